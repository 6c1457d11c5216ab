"""Weights and whole training states in ``.npz`` files: arrays and JSON, never pickled.

A file is written under a temporary name, flushed to the disk, and moved to its own name. So at
every moment the name holds either the whole old file or the whole new one, also when the program
is killed in between.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np

from tinyadv.layers import Module

INFO = "__tinyadv__"  # the entry that holds all that is no array, as JSON


class CheckpointError(RuntimeError):
    """A file is missing, broken, or not of the expected kind."""


def save_state(path: str | os.PathLike, state: dict) -> None:
    """Write a nested dictionary of arrays, numbers, strings, lists and ``None``.

    A tuple comes back as a list, and a NumPy number as a Python one.

    Raises
    ------
    TypeError
        If something in it is none of these, or an array holds Python objects.
    ValueError
        If a key is no string, contains ``/`` or cannot be printed.
    """
    arrays: dict[str, np.ndarray] = {}

    def split(part: dict, prefix: str) -> dict:
        """Move the arrays out of ``part``; what is left is for JSON."""
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

    # In a folder of their own, no array has the name of INFO or of an argument of np.savez.
    info = json.dumps(split(state, "state/"), default=_python_number)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays, **{INFO: np.frombuffer(info.encode(), np.uint8)})
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)  # there is no other way to read it
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # as of any new file; mkstemp's is its owner's alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _python_number(value):
    """For JSON, which does not know NumPy's numbers."""
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        return value.item()
    raise TypeError(
        f"{type(value).__name__} is not JSON serializable: make it an array or a number"
    )


def load_state(path: str | os.PathLike) -> dict:
    """Read what :func:`save_state` wrote.

    Raises
    ------
    CheckpointError
        If there is no such file, it is truncated or damaged, or something else wrote it.
    """
    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            if not isinstance(content, np.lib.npyio.NpzFile) or INFO not in content:
                raise CheckpointError(
                    f"{path} is an array file, but not one that tinyadv wrote: give another path"
                )
            arrays = {name: content[f"{name}.npy"] for name in content.files}
        state = json.loads(arrays.pop(INFO).tobytes())
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}: check the path, or make it") from None
    except CheckpointError:
        raise
    except Exception as error:  # broken bytes make NumPy and zipfile raise a dozen kinds
        raise CheckpointError(
            f"{path} is no intact .npz file ({error}): it is truncated, damaged or something else; "
            "delete it and make it again"
        ) from error
    for name, array in arrays.items():
        _, *folders, key = name.split("/")
        part = state
        for folder in folders:
            part = part[folder]
        part[key] = array
    return state


def generator_state(rng: np.random.Generator) -> dict:
    """Where a random generator stands, as a dictionary that :func:`save_state` can write."""

    def plain(state: dict) -> dict:  # MT19937 has an array in it
        return {
            key: plain(value) if isinstance(value, dict)
            else value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in state.items()
        }  # fmt: skip

    return plain(rng.bit_generator.state)


def set_generator_state(rng: np.random.Generator, state: dict) -> None:
    """Let a generator go on from where another of its kind stood."""
    rng.bit_generator.state = state


def save_weights(path: str | os.PathLike, model: Module) -> None:
    """Write the parameters of ``model``."""
    save_state(path, {"weights": model.state_dict()})


def load_weights(path: str | os.PathLike, model: Module) -> None:
    """Set the parameters of ``model`` from a file of :func:`save_weights` or a training state.

    Raises
    ------
    CheckpointError
        As :func:`load_state`, and if the weights are those of another network.
    """
    state = load_state(path)
    if "weights" not in state:
        raise CheckpointError(f"{path} holds no weights, only {sorted(state)}")
    try:
        model.load_state_dict(state["weights"])
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
