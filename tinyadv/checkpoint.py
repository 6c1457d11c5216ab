"""Weights and whole training states in ``.npz`` files: arrays and JSON, never pickled.

    save_weights, load_weights    the parameters of a network
    TrainingState                 everything that a resumed training needs to continue
    save_state, load_state        any nested dictionary of arrays and numbers

A file is written under a temporary name, flushed to the disk, and moved to its own name. So at
every moment the name refers to either the complete old file or the complete new one, even if the
program is killed in between.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tinyadv.layers import Module

INFO = "__tinyadv__"  # the entry that holds everything but the arrays, as JSON


class CheckpointError(RuntimeError):
    """A file is missing, broken, or not of the expected kind."""


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
    arrays: dict[str, np.ndarray] = {}

    def split(part: dict, prefix: str) -> dict:
        """Move the arrays out of ``part``, and return what is left for JSON."""
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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            np.savez(file, **arrays, **{INFO: np.frombuffer(info.encode(), np.uint8)})
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
            content = np.load(file, allow_pickle=False)
            names = getattr(content, "files", [])  # an .npy file is a single array
            arrays = {name: content[f"{name}.npy"] for name in names}
        state = json.loads(arrays.pop(INFO).tobytes()) if INFO in arrays else None
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}: check the path, or save it") from None
    except Exception as error:  # damaged files make NumPy and zipfile raise a dozen kinds
        raise CheckpointError(
            f"{path} is not an intact .npz file ({error}): delete it and write it again"
        ) from error
    if state is None:
        raise CheckpointError(f"{path} was not written by tinyadv: give another path")
    for name, array in arrays.items():
        _, *folders, key = name.split("/")
        part = state
        for folder in folders:
            part = part[folder]
        part[key] = array
    return state


def check_same(owner: str, saved: dict, own: dict) -> None:
    """Raise ValueError unless a state was saved by an owner with the same settings.

    ``saved`` has the settings in the state, ``own`` the settings of the object that is to load it.
    """
    for name, value in own.items():
        if saved.get(name) != value:
            raise ValueError(
                f"{owner} with {name} = {saved.get(name)}, this one has {name} = {value}: "
                "use the same, or another checkpoint"
            )


def save_weights(path: str | os.PathLike, model: Module) -> None:
    """Write the parameters of ``model``."""
    save_state(path, {"weights": model.state_dict()})


def load_weights(path: str | os.PathLike, model: Module) -> None:
    """Set the parameters of ``model`` from a file of weights, or from a training state.

    A training state of a run that averages the weights gives the averaged ones.

    Raises
    ------
    CheckpointError
        As :func:`load_state`, and if the weights belong to another network.
    """
    state = load_state(path)
    if "weights" not in state:
        raise CheckpointError(f"{path} holds no weights, only {sorted(state)}: give another path")
    try:
        model.load_state_dict(state["weights"])
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


# The attributes of a training state that are saved as they are.
PLACE = ("epoch", "step", "order", "sums", "seconds")


class TrainingState:
    """Where a training run stands: everything that changes while it goes on.

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

    Raises
    ------
    ValueError
        If the optimiser has parameters that do not belong to the model.
    """

    def __init__(self, model: Module, optimizer, rng: np.random.Generator, history, *,
                 settings: dict, parts: dict):  # fmt: skip
        self.model, self.optimizer, self.rng, self.history = model, optimizer, rng, history
        self.parts = {name: p for name, p in parts.items() if hasattr(p, "load_state_dict")}
        names = {id(p): name for name, p in model.named_parameters()}
        own, trained = ([*map(id, params)] for params in (model.parameters(), optimizer.params))
        others = len(set(trained) - set(own))
        if others:
            raise ValueError(
                f"{others} of the optimizer's {len(trained)} parameters do not belong to this "
                "model: make it with model.parameters(), or with some of them"
            )
        self.settings = {
            **settings,
            "generator": type(rng.bit_generator).__name__,
            "defences": {name: type(part).__name__ for name, part in self.parts.items()},
            "trained": None if trained == own else [names[i] for i in trained],
        }
        self.saved_in, self.epoch = None, 0
        self._new_epoch()

    def _new_epoch(self) -> None:
        self.step, self.order, self.sums, self.seconds = 0, None, {}, 0.0

    def add(self, examples: int, **totals) -> None:
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

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While this is open, the model has its averaged weights, if an average is kept."""
        swap = getattr(self.parts.get("average"), "swap", lambda: None)
        swap()
        try:
            yield
        finally:
            swap()

    def save(self, path: str | os.PathLike) -> None:
        """Write all of it. ``"weights"`` are those that the training would return now."""
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
            state["weights"] = self.model.state_dict()
        save_state(path, state)
        self.saved_in = path

    def load(self, path: str | os.PathLike) -> None:
        """Continue from a file that :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            If the file is missing or broken.
        ValueError
            If it belongs to a run with other settings or to another network. Nothing is changed
            then.
        """
        state = load_state(path)
        if "settings" not in state:
            raise ValueError(f"{path} is not a training state: it holds {sorted(state)}")
        check_same(f"{path} was written by a run", state["settings"], self.settings)
        if "sums" not in state:
            _convert(path, state)
        self.optimizer.check_state(state["optimizer"])  # before anything changes
        before = {name: part.state_dict() for name, part in self.parts.items()}
        try:  # each of these may refuse the state
            for name, part in self.parts.items():
                part.load_state_dict(state["parts"][name])
            self.model.load_state_dict(state.get("weights before averaging", state["weights"]))
        except ValueError:
            for name, part in self.parts.items():
                part.load_state_dict(before[name])
            raise
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.bit_generator.state = state["rng"]
        vars(self.history).update(state["history"])
        vars(self).update({name: state.get(name) for name in PLACE}, saved_in=path)


def _convert(path, state: dict) -> None:
    """Bring a state of format 1, which has two sums with names of their own, into today's form."""
    settings = state["settings"]
    if settings.get("replays", 1) != 1:
        raise ValueError(
            f"{path} was written with Free by an earlier version, which counted steps differently: "
            "delete it and start again"
        )
    examples = min(state["step"] * settings["batch_size"], settings["examples"])
    names = {"loss": "loss_sum", "train_accuracy": "correct"}
    state["sums"] = {name: (state[old], examples) for name, old in names.items()}
