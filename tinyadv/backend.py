"""NumPy or CuPy: which module's functions to call for an array.

The rest of the library is written once. It takes the module that an array belongs to and calls
that module's functions, so the same lines run on a CPU and on a GPU:

>>> import numpy as np
>>> array_module(np.zeros(3)) is np
True
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np

BACKENDS = ("numpy", "cupy")
Function = TypeVar("Function", bound=Callable)  # a decorated function keeps its signature


class BackendError(RuntimeError):
    """A backend that was asked for cannot be used on this machine."""


def get_backend(name: str) -> ModuleType:
    """The array module called ``name``.

    Parameters
    ----------
    name : {"numpy", "cupy"}

    Raises
    ------
    ValueError
        If ``name`` is neither.
    BackendError
        If CuPy is not installed, or finds no CUDA device. The message is one sentence that says
        what to do.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {name!r}")
    if name == "numpy":
        return np
    try:
        import cupy
    except ImportError as error:
        raise BackendError(
            f"the cupy backend needs CuPy ({error}): install it with "
            "pip install 'cupy-cuda13x[ctk]' (cuda12x for CUDA 12), or use --backend numpy"
        ) from None
    # ``import cupy`` succeeds on a machine with no GPU; only this queries the driver.
    if not cupy.cuda.is_available():
        raise BackendError(
            "CuPy is installed but finds no CUDA device here: "
            "check that nvidia-smi lists one, or use --backend numpy"
        )
    return cupy


# What lives on the host. For any other array it is the package that its class comes from, which is
# `cupy` for CuPy's arrays; no other code names a device library.
_HOST = (np.ndarray, np.generic, int, float, list, tuple, type(None))


def array_module(*values: Any) -> ModuleType:
    """The module whose functions fit ``values``: the module of the first one that is not NumPy's.

    Numbers, lists and ``None`` count as NumPy's.
    """
    for value in values:
        if not isinstance(value, _HOST):
            return sys.modules[type(value).__module__.partition(".")[0]]
    return np


# A kernel has 4,096 bytes for its arguments, and an array of four axes needs 80. If there are as
# many results as arrays, this is how many fit.
MOST_ARRAYS = 24


def elementwise(f: Function) -> Function:
    """``f``, which calls nothing but elementwise functions, as one kernel on a GPU.

    NumPy runs ``f``. CuPy runs it once for each combination of dtypes to see which functions it
    calls, and compiles these into a single kernel (``cupy.fuse``). This saves launches, which take
    longer than the arithmetic on small arrays. For both to compute the same,

    - every number that may change must be an argument, because CuPy reads other numbers only once;
    - ``f`` must not combine a number with a number, because the result would turn float32 arrays
      into float64;
    - ``f`` takes arrays, Python's numbers and ``None``, and returns an array, a tuple of arrays, or
      nothing if it writes into its arguments.

    If all arrays have the same number of axes, results are stored in the order of the first array.
    NumPy does this by itself if all arrays have the same order.

    Examples
    --------
    >>> @elementwise
    ... def between(x, low, high):
    ...     xp = array_module(x)
    ...     return xp.minimum(xp.maximum(x, low), high)
    >>> between(np.array([-1.0, 0.5, 2.0]), 0.0, 1.0)
    array([0. , 0.5, 1. ])
    """
    fused = functools.cache(lambda xp: xp.fuse(f))

    @functools.wraps(f)
    def call(*args):
        if isinstance(args[0], np.ndarray) or (xp := array_module(*args)) is np:
            return f(*args)
        arrays = [a for a in args if isinstance(a, xp.ndarray)]
        if not 0 < len(arrays) <= MOST_ARRAYS:  # none if another fused function calls this one
            return f(*args)
        if any(a.ndim != arrays[0].ndim for a in arrays):
            return fused(xp)(*args)
        # CuPy's results are in C order, so the axes are put into the order of the first array.
        order = sorted(range(arrays[0].ndim), key=lambda axis: -arrays[0].strides[axis])
        back = sorted(order, key=order.__getitem__)
        y = fused(xp)(*(a.transpose(order) if isinstance(a, xp.ndarray) else a for a in args))
        if isinstance(y, tuple):
            return tuple(part.transpose(back) for part in y)
        return None if y is None else y.transpose(back)

    return cast(Function, call)


def to_numpy(x: Any) -> np.ndarray:
    """``x`` (a Tensor, an array of either backend, a number, a list) as a NumPy array on the host.

    From a GPU this copies and waits for the device.
    """
    x = getattr(x, "value", x)
    # CuPy has a function for this; what else there is (PyTorch's tensors) NumPy reads by itself.
    return getattr(array_module(x), "asnumpy", np.asarray)(x)


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed memory for the next array, instead of returning it.

    A network's arrays have a few megabytes each. By default glibc fetches each such block from the
    operating system and gives it back, and the page faults of fresh memory then cost about as much
    as the arithmetic of the smaller networks. Importing tinyadv calls this function once;
    set the environment variable ``TINYADV_KEEP_MEMORY=0`` beforehand to leave the C library alone.

    Returns
    -------
    bool
        Whether the setting was made. On systems other than Linux with glibc this does nothing.
    """
    if os.environ.get("TINYADV_KEEP_MEMORY") == "0":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))
