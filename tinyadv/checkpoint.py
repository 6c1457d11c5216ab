"""Weights and whole training states in ``.npz`` files: arrays and JSON, never pickled.

    save_weights, load_weights    the parameters of a network
    TrainingState                 everything that a resumed training needs to continue
    save_state, load_state        any nested dictionary of arrays and numbers
    check_like                    whether its owner can continue from a state
    replacing, check_writable     a file that is written completely or not at all

A state is checked as a whole before anything takes over a part of it.
"""

from __future__ import annotations

import copy
import errno
import glob
import io
import json
import math
import os
import secrets
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from tinyadv.layers import Module

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows, which does not delete a file that another process has open
    LOCK_EX = LOCK_NB = 0  # type: ignore[misc]
    flock = lambda file, operation: None

INFO = "__tinyadv__"  # the entry that holds everything but the arrays, as JSON


class CheckpointError(ValueError):
    """A file is missing or broken, or belongs to something else. The message names the file."""


def save_state(path: str | os.PathLike, state: dict) -> None:
    """Write a nested dictionary of arrays, numbers, strings, lists and ``None``.

    A tuple comes back as a list, and a NumPy number as a Python one.

    Raises
    ------
    TypeError
        If it contains anything else, or an array of Python objects.
    ValueError
        If a key is not a string, contains ``/`` or cannot be printed.
    """
    arrays: dict[str, Any] = {}

    def split(part: dict, prefix: str) -> dict:
        """Move the arrays out of ``part``, and return the rest, which goes into the JSON."""
        rest = {}
        for key, value in part.items():
            if not isinstance(key, str) or "/" in key or not key.isprintable():
                raise ValueError(f"a key must be a printable string without '/', got {key!r}")
            if isinstance(value, np.ndarray):
                if value.dtype.hasobject:  # NumPy would pickle it
                    raise TypeError(f"the array {key!r} holds Python objects, not numbers")
                arrays[prefix + key] = value
            elif isinstance(value, dict):
                rest[key] = split(value, f"{prefix}{key}/")
            else:
                rest[key] = value
        return rest

    # The prefix keeps arrays from having the name of INFO or of an argument of np.savez.
    info = json.dumps(split(state, "state/"), default=_python_number)
    arrays[INFO] = np.frombuffer(info.encode(), np.uint8)
    with replacing(path) as file:
        np.savez(file, **arrays)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of ``path`` at the end.

    It is written under a temporary name, flushed to the disk, and moved to its own name. So at
    every moment the name refers to either the complete old file or the complete new one, even if
    the program is killed in between. What a killed program leaves behind is deleted the next time.

    Raises
    ------
    OSError
        If the file cannot be written; the error names ``path``. The old file stays as it is.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with suppress(OSError):
                with open(old, "rb") as file:
                    flock(file, LOCK_EX | LOCK_NB)  # fails while its writer is alive
                old.unlink()
        with open(temporary, "xb") as file:
            with suppress(OSError):  # not every file system has locks
                flock(file, LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # a full disk names no file
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_writable(path: str | os.PathLike) -> None:
    """Make the folder of a file if it is not there; OSError unless the file can be written."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=path.parent).close()


def _python_number(value):
    """Convert what JSON cannot write: NumPy's numbers."""
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        return value.item()
    raise TypeError(f"a state cannot hold a {type(value).__name__}: make it an array or a number")


def load_state(path: str | os.PathLike) -> dict:
    """Read what :func:`save_state` wrote.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated or damaged, or was not written by :func:`save_state`.
    """
    try:
        with open(path, "rb") as file:
            arrays = dict(_arrays(file))
        state = json.loads(arrays.pop(INFO).tobytes()) if INFO in arrays else None
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}: check the path, or save it") from None
    except Exception as error:  # damaged files make NumPy and zipfile raise a dozen kinds
        raise CheckpointError(f"{path} is not an intact .npz file ({error}): delete it") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} was not written by tinyadv: give another path")
    for name, array in arrays.items():
        root, *folders, key = name.split("/") if "/" in name else ("", name)
        part = state if root == "state" else None
        for folder in folders:
            part = part.get(folder) if isinstance(part, dict) else None
        if not isinstance(part, dict) or key in part:
            raise CheckpointError(f"{path}: there is no place for the array {name!r} in the state")
        part[key] = array
    return state


def _arrays(file: BinaryIO) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of an .npz file by name. No more is read than the file itself is large."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError(f"{size:,} compressed bytes that unpack to {unpacked:,}")
        for entry in entries:
            content = io.BytesIO(archive.read(entry))
            array = np.lib.format.read_array(content, allow_pickle=False)
            if content.read(1):
                raise ValueError(f"{entry.filename} is longer than the array in it")
            yield entry.filename.removesuffix(".npy"), array


# --------------------------------------------------------------------------- a state as expected


def is_json_number(value: Any) -> bool:
    """Whether it is an integer or a float, NaN included; True, False and 10⁴⁰⁰ are neither."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 1 << 63
    return isinstance(value, float)


KINDS: dict[Any, tuple[str, Callable]] = {  # bool before int, because True is an int
    bool: ("true or false", lambda v: isinstance(v, bool)),
    int: ("an integer ≥ 0", lambda v: is_json_number(v) and isinstance(v, int) and v >= 0),
    float: ("a finite number ≥ 0", lambda v: is_json_number(v) and 0 <= v < math.inf),
    str: ("a string", lambda v: isinstance(v, str)),
    (list, tuple): ("a list", lambda v: isinstance(v, (list, tuple))),
    dict: ("a dictionary", lambda v: isinstance(v, dict)),
}


def check_like(state: Any, own: Any, name: str, equal: Collection[str] = ()) -> None:
    """Raise ValueError, which names the field, unless ``state`` could be ``own`` at another time.

    Parameters
    ----------
    state
        The content of a file.
    own
        The state that would be saved now. Dictionaries need the same fields, arrays the same shape
        and numbers of the same kind. Floats must be finite, also after a conversion to the dtype of
        their counterpart. None allows anything, and an empty dictionary any dictionary; the caller
        checks the items of lists.
    name : str
        What the error calls the state.
    equal : collection of str
        The fields that must have the same content in ``state`` and in ``own``.
    """
    if isinstance(own, np.ndarray):
        text = f"an array {own.shape} of finite {own.dtype} numbers"
        fits = isinstance(state, np.ndarray) and state.shape == own.shape
        fits = fits and state.dtype.kind == own.dtype.kind
        with np.errstate(over="ignore"):
            fits = fits and bool(np.isfinite(state.astype(own.dtype)).all())
    else:
        kinds = (KINDS[kind] for kind in KINDS if isinstance(own, kind))
        text, holds = next(kinds, ("", lambda v: True))
        fits = holds(state)
    if not fits:
        got = f"{state.dtype} {state.shape}" if isinstance(state, np.ndarray) else f"{state!r:.60}"
        raise ValueError(f"{name} must be {text}, got {got}")
    if not isinstance(own, dict) or not own:
        return
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise ValueError(f"{name} lacks the fields {missing} and has unknown ones: {unknown}")
    for key, part in own.items():
        if key not in equal:
            check_like(state[key], part, f"{name}.{key}")
        elif not _same(part, state[key]):
            saved, now = f"{key} = {state[key]!s:.200}", f"{key} = {part!s:.200}"
            raise ValueError(f"{name} was saved with {saved}, this one has {now}: use the same")


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        same_keys = isinstance(b, dict) and a.keys() == b.keys()
        return same_keys and all(_same(a[key], b[key]) for key in a)
    return np.array_equal(a, b)  # an array or tuple of a, maybe a list in b


def check_random_state(state: Any, generator: np.random.Generator, name: str) -> None:
    """Raise ValueError unless the bit generator of ``generator`` can continue from ``state``."""
    twin = copy.deepcopy(generator.bit_generator)
    try:
        twin.state = state
        inner = state["state"]  # NumPy does not check the places in these buffers
        possible = _same(twin.state, state) and state.get("has_uint32", 0) in (0, 1)
        possible &= 0 <= inner.get("pos", 0) <= 624 and 0 <= state.get("buffer_pos", 0) <= 4
    except Exception:  # NumPy raises half a dozen kinds
        possible = False
    if not possible:
        raise ValueError(f"{name} must be a state that {type(twin).__name__} can have")


# ------------------------------------------------------------------------------------- weights


def save_weights(path: str | os.PathLike, model: Module) -> None:
    """Write the parameters of ``model``."""
    save_state(path, {"weights": model.state_dict()})


def load_weights(path: str | os.PathLike, model: Module) -> None:
    """Set the parameters of ``model`` from a file of weights, or from a training state.

    A training state of a run that averages the weights gives the averaged ones.

    Raises
    ------
    CheckpointError
        As :func:`load_state`, and if the weights are not finite or belong to another network.
        Nothing is changed then.
    """
    state = load_state(path)
    if "weights" not in state:
        raise CheckpointError(f"{path} holds no weights, only {sorted(state)}: give another path")
    try:
        check_like(state["weights"], model.state_dict(), "weights")
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit this network: {error}") from error
    model.load_state_dict(state["weights"])


# -------------------------------------------------------------------------------- a training run

# The attributes of a training state that are saved as they are.
PLACE = ("epoch", "step", "order", "sums", "seconds")


class TrainingState:
    """The state of a training run: everything that changes while it goes on.

    Parameters
    ----------
    model : Module
    optimizer : Optimizer
        Of some or all of the model's parameters.
    rng : numpy.random.Generator
        Shuffles the examples.
    history : object
        Its attributes are lists, the columns of a table with one row for each epoch;
        ``history.append(**row)`` adds a row.
    settings : dict
        What a run must have in common with the run that it resumes: plain numbers and strings.
    parts : dict of str to object
        The other objects that may have a state, such as defences. Those with ``state_dict`` and
        ``load_state_dict`` are saved and restored. One called ``"average"`` keeps averaged weights,
        see :class:`tinyadv.optim.WeightAverage`.

    Attributes
    ----------
    epoch, step : int
        Completed epochs, and completed batches of the current one.
    order : (N,) int or None
        The order of the examples in this epoch; None until it begins.
    sums : dict of str to (sum, examples)
        For each number whose mean over the epoch goes into the history. The sums stay on the device
        until :meth:`settle`.
    seconds : float
        Time spent in this epoch.
    saved_in : path or None
        The file that holds the latest state.
    writes : bool
        Whether :meth:`save` writes the file: of several processes only one does.
    ended_by : BaseException or None
        The error by which the run has ended, on all ranks, see :meth:`end`.

    Raises
    ------
    ValueError
        If the optimiser or the average has parameters that do not belong to the model.
    """

    saved_in: str | os.PathLike | None
    ended_by: BaseException | None

    def __init__(self, model: Module, optimizer: Any, rng: np.random.Generator, history: Any, *,
                 settings: dict, parts: dict):  # fmt: skip
        self.model, self.optimizer, self.rng, self.history = model, optimizer, rng, history
        self.parts = {name: p for name, p in parts.items() if hasattr(p, "load_state_dict")}
        names = {id(p): name for name, p in model.named_parameters()}
        own, trained = ([*map(id, params)] for params in (model.parameters(), optimizer.params))
        for owner, part in (("optimizer", optimizer), ("average", parts.get("average"))):
            params = getattr(part, "params", ())
            others = len({*map(id, params)} - set(own))
            if others:
                raise ValueError(
                    f"{others} of the {owner}'s {len(params)} parameters do not belong to this "
                    "model: make it with model.parameters(), or with some of them"
                )
        self.settings = {
            **settings,
            "generator": type(rng.bit_generator).__name__,
            "defences": {name: type(part).__name__ for name, part in self.parts.items()},
            "trained": None if trained == own else [names[i] for i in trained],
        }
        self.saved_in, self.epoch, self.writes, self.ended_by = None, 0, True, None
        self._new_epoch()

    def _new_epoch(self):
        self.step, self.order, self.sums, self.seconds = 0, None, {}, 0.0

    def add(self, examples: int, **totals: Any) -> None:
        """Add numbers that were summed over some examples; nothing waits for the device."""
        for name, total in totals.items():
            before, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = before + total, count + examples

    def settle(self) -> None:
        """Fetch the sums from the device, and wait until they are there."""
        self.sums = {name: (float(total), count) for name, (total, count) in self.sums.items()}

    def end_epoch(self, **numbers: float) -> None:
        """Add the means of this epoch to the history, with other numbers, and begin the next."""
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.epoch += 1
        self.history.append(
            epoch=self.epoch, **means, lr=self.optimizer.lr, seconds=self.seconds, **numbers
        )
        self._new_epoch()

    def end(self, error: BaseException) -> BaseException:
        """``error``, to be raised; of several processes all do so."""
        self.ended_by = error
        return error

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While this is open, the model has its averaged weights, if an average is kept."""
        swap = getattr(self.parts.get("average"), "swap", lambda: None)
        swap()
        try:
            yield
        finally:
            swap()

    def state_dict(self) -> dict:
        """All of it. ``"weights"`` are those that the training would return now."""
        self.settle()
        state = {
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.bit_generator.state,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "history": vars(self.history),
            "settings": self.settings,
            **{name: getattr(self, name) for name in PLACE},
        }
        if "average" in self.parts:
            state["weights before averaging"] = self.model.state_dict()
        with self.averaged():
            return {**state, "weights": self.model.state_dict()}

    def save(self, path: str | os.PathLike) -> None:
        """Write all of it to a file."""
        if self.writes:
            save_state(path, self.state_dict())
        self.saved_in = path

    def load(self, path: str | os.PathLike) -> None:
        """Continue from a file that :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            If the file is missing or broken, or belongs to a run with other settings or to another
            network. Nothing is changed then.
        """
        state, where = load_state(path), ""
        parts = {"optimizer": self.optimizer, **self.parts}
        before = {name: part.state_dict() for name, part in parts.items()}
        try:
            self._check(state)
            for name, part in parts.items():  # each may refuse its state
                where = f"state of {name}: "
                part.load_state_dict((state | state["parts"])[name])
        except Exception as error:  # a part may raise anything
            for name, part in parts.items():
                part.load_state_dict(before[name])
            text = str(error) if isinstance(error, ValueError) else repr(error)
            raise CheckpointError(f"{path}: {where}{text}") from error
        self.model.load_state_dict(state.get("weights before averaging", state["weights"]))
        self.rng.bit_generator.state = state["rng"]
        vars(self.history).update(state["history"])
        vars(self).update({name: state[name] for name in PLACE}, saved_in=path)

    def _check(self, state: dict) -> None:
        """Raise ValueError unless :meth:`save` could have written this state in such a run.

        The optimiser and the parts check their states themselves.
        """
        if "settings" not in state:
            raise ValueError(f"this is not a training state with settings, but {sorted(state)}")
        if "loss_sum" in state and "sums" not in state:
            _convert(state, self.settings)
        check_like(state["settings"], self.settings, "state.settings", equal=self.settings)
        own = self.state_dict() | {"settings": {}, "history": {}, "rng": {}, "optimizer": {}}
        check_like(state, own | {"parts": dict.fromkeys(self.parts)}, "state")
        check_random_state(state["rng"], self.rng, "state.rng")

        # Do the history, the order and the sums belong to that epoch and step?
        examples, size = self.settings["examples"], self.settings["batch_size"]
        epoch, step, order, sums = (state[name] for name in PLACE[:4])
        for name in vars(self.history).keys() | state["history"]:
            column = state["history"].get(name)
            numbers = isinstance(column, list) and all(map(is_json_number, column))
            if not numbers or len(column) != epoch or name in dir(type(self.history)):
                raise ValueError(f"state.history.{name} must hold {epoch} numbers, one per epoch")
        if state["history"]["epoch"] != [*range(1, epoch + 1)]:
            raise ValueError(f"state.history.epoch must count to {epoch}")
        if step > -(-examples // size):
            raise ValueError(f"state.step must be a batch of an epoch, got {step}")
        if step or order is not None:
            check_like(order, np.arange(examples), "state.order")
            if not step or (np.sort(order) != np.arange(examples)).any():
                raise ValueError("state.order must hold each example once, and be null at step 0")
        for name in {"loss", "train_accuracy", *sums} if step else sums:
            match sums.get(name):
                case [int() | float() as total, int(count)] if count > 0 and is_json_number(total):
                    if math.isfinite(total) or name not in ("loss", "train_accuracy"):
                        continue
            raise ValueError(f"state.sums.{name} must hold a sum and the number of its examples")


def _convert(state: dict, own: dict) -> None:
    """Bring a state of format 1, which has two sums with names of their own, into today's form."""
    if state["settings"].pop("replays", 1) != 1:
        raise ValueError("an earlier version wrote it with Free, with other steps: delete it")
    state["settings"].setdefault("trained", None)
    check_like(state.get("step"), 0, "state.step")
    examples = min(state["step"] * own["batch_size"], own["examples"])
    names = {"loss": "loss_sum", "train_accuracy": "correct"}
    sums = {name: [state.pop(old, None), examples] for name, old in names.items()}
    state["sums"] = sums if examples else {}
