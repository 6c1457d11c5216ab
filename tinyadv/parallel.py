"""A batch cut into pieces that several cores work on, each with a tape of its own.

NumPy uses one core for everything but matrix products, and releases Python's global lock (GIL)
while it computes. The examples of a batch do not depend on each other. So each piece of the batch
goes through the network in a thread and is recorded on a tape of its own; the outer tape has a
single node:

    whole     x ──────────────────────────[by_examples]── z
                cut ↓                      ↑ joined
    piece 0   x[:64] ── conv ── relu ── … ── z[:64]          in one thread
    piece 1   x[64:] ── conv ── relu ── … ── z[64:]          in another

The gradient of that node is cut in the same way. Each thread walks back along its own tape; then
the gradients of the examples are joined, and the gradients of what the pieces share, such as the
weights, are added up in the order of the pieces. How a batch is cut depends on its size and not on
the number of cores, so neither do the results.

On a GPU there are no pieces: one launch serves the whole batch.
"""

from __future__ import annotations

import contextvars
import functools
import math
import operator
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import pairwise

import numpy as np

from tinyadv.backend import array_module
from tinyadv.tensor import Array, Tensor, tape, value_of, walk_back

# ------------------------------------------------------------------------------------- threads

try:
    CORES = len(os.sched_getaffinity(0))  # those that this process may use
except AttributeError:  # not on every system
    CORES = os.cpu_count() or 1

LARGE = 1 << 20  # numbers in an array whose sum with others is worth two threads

_limit = contextvars.ContextVar("limit", default=None)
_thread = threading.local()


def threads() -> int:
    """How many threads share the work: :func:`limit`, else TINYADV_THREADS, else all cores."""
    if _limit.get() is not None:
        return _limit.get()
    return _count(os.environ.get("TINYADV_THREADS") or CORES, "the variable TINYADV_THREADS")


@contextmanager
def limit(n: int) -> Iterator[None]:
    """Share the pieces of a batch among at most ``n`` threads; the results do not depend on it.

    The environment variable ``TINYADV_THREADS`` does the same for a whole program. Matrix products
    that are not part of a piece use the threads of the BLAS, which ``OPENBLAS_NUM_THREADS`` limits.

    Raises
    ------
    ValueError
        If ``n`` is not an integer ≥ 1.

    Examples
    --------
    >>> with limit(1):
    ...     threads()
    1
    """
    token = _limit.set(_count(n, "n"))
    try:
        yield
    finally:
        _limit.reset(token)


def _count(n, name: str) -> int:
    try:
        count = int(n) if isinstance(n, str) else operator.index(n)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise ValueError(f"{name} must be a number of threads, an integer ≥ 1, got {n!r}")
    return count


def inside() -> bool:
    """Whether the running code works on a piece already, which should not be cut again."""
    return getattr(_thread, "inside", False)


def in_threads(work: Callable, items: Sequence) -> list:
    """``[work(item) for item in items]``, shared between the threads.

    The pool begins with the first item and this thread with the last, until they meet. The first
    error is raised here, once the items that have begun are done; no further item is begun then.
    Within another such call there is nothing to gain, and this thread does all the work.
    """
    if inside() or len(items) < 2:
        return [work(item) for item in items]
    helpers, failed = min(threads(), len(items)) - 1, threading.Event()

    def help_with(item):
        try:
            return None if failed.is_set() else work(item)
        except BaseException:
            failed.set()
            raise

    results: list = [None] * len(items)
    with one_blas_thread():
        # The last item is this thread's own.
        futures = [_pool(helpers).submit(help_with, item) for item in items[:-1]] if helpers else []
        _thread.inside = True
        try:
            for i in reversed(range(len(items))):
                # What nobody has begun can still be cancelled, and this thread does it.
                mine = i >= len(futures) or futures[i].cancel()
                if not failed.is_set():
                    results[i] = work(items[i]) if mine else futures[i].result()
        finally:
            failed.set()
            _thread.inside = False
            ended = [future for future in futures if not future.cancel()]
            wait(ended)
    for future in ended:
        future.result()  # raises the error of a helper
    return results


@functools.cache
def _pool(helpers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(
        helpers, "tinyadv", initializer=lambda: setattr(_thread, "inside", True)
    )


_blas_lock = threading.Lock()
_blas_users: list = []  # everyone who is inside; the last to leave restores the first one's limit


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit the BLAS to one thread while any thread is in this context: the cores are taken."""
    with _blas_lock:
        _blas_users.append(_blas_users[0] if _blas_users else _change_blas(_blas().limit, limits=1))
    try:
        yield
    finally:
        with _blas_lock:
            limit = _blas_users.pop()
            if not _blas_users:
                _change_blas(limit.restore_original_limits)


def _change_blas(change: Callable, **how):
    """threadpoolctl obeys only the thread that was the first to set a limit, unless told to."""
    clear = getattr(_threadpoolctl().OpenBLASController, "clear_controlling_thread", None)
    if clear is None:  # before version 3.7
        return change(**how)
    clear(force=True)
    try:
        return change(**how)
    finally:
        clear(force=True)


@functools.cache
def _blas():
    return _threadpoolctl().ThreadpoolController().select(user_api="blas")


def _threadpoolctl():
    import threadpoolctl  # not at the top, because only threads need it

    return threadpoolctl


# --------------------------------------------------------------------------- pieces of a batch


def may_cut(model) -> bool:
    """Whether a batch for ``model`` may be cut: it and all within it say ``by_example = True``.

    A module or function that does not say so gets the whole batch: it may be one that looks at all
    examples together, such as batch normalisation, or that draws random numbers.
    """
    if not getattr(model, "by_example", False):
        return False
    modules = model.modules() if hasattr(model, "modules") else ()
    return all(module.by_example for module in modules)


def worth_cutting(x: Array | Tensor, least: int | None = None) -> bool:
    """Whether :func:`by_examples` cuts this batch: a large one that is not a piece already."""
    if least is None:  # enough to outweigh the cost of a thread; on a GPU nothing is
        least = 16 if array_module(value_of(x)) is np else math.inf
    return len(x) >= least and not inside()


def by_examples(
    f: Callable,
    *arrays: Array | Tensor | None,
    least: int | None = None,
    most: int = 64,
    done: Callable[[int], object] | None = None,
):
    """``f(*arrays)``, the batch cut into pieces that several cores work on.

    Within such a piece this is just ``f(*arrays)``. The same holds on a GPU, unless ``least`` is
    given: the pieces then run one after another, which saves memory.

    Parameters
    ----------
    f : function
        Treats each example on its own: f of a piece is that piece of f of the whole. Returns an
        array or a tensor (N, …), or a tuple of arrays.
    *arrays : (N, …)
        Arrays or tensors, cut along their first axis. ``None`` is passed on as ``None``. What f
        takes from elsewhere, such as weights, is shared by the pieces and gets its gradient, too.
    least, most : int
        A batch with fewer examples than ``least`` is left whole, no piece has more than ``most``.
        By default large enough to outweigh the cost of a thread, and small enough for the caches.
    done : function, optional
        Called with the number of examples whenever a piece has ended, for a progress bar.

    Returns
    -------
    what ``f(*arrays)`` would return
    """
    n = len(arrays[0])
    if not worth_cutting(arrays[0], least):
        result = f(*arrays)
        if done is not None:
            done(n)
        return result
    count = 2 * -(-n // (2 * most))  # an even number, for two cores
    edges = sorted({n * i // count for i in range(count + 1)})
    pieces = [slice(*edge) for edge in pairwise(edges)]
    start = Tensor(0.0).number  # everything that the pieces make has a higher number

    def work(piece):
        parts = [_cut(array, piece) for array in arrays]
        result = f(*parts)
        if done is not None:
            done(piece.stop - piece.start)
        return result, [part for part in parts if isinstance(part, Tensor)]

    on_cpu = array_module(value_of(arrays[0])) is np
    results = in_threads(work, pieces) if on_cpu else [work(piece) for piece in pieces]
    outputs, leaves = zip(*results, strict=True)
    if isinstance(outputs[0], tuple):
        return tuple(_row_by_row(parts) for parts in zip(*outputs, strict=True))
    if not any(isinstance(output, Tensor) for output in outputs):
        return _row_by_row(outputs)
    outputs = [output if isinstance(output, Tensor) else Tensor(output) for output in outputs]
    shared = _shared(outputs, start)
    inputs = [array for array in arrays if isinstance(array, Tensor)]
    is_cut = [True] * len(inputs) + [False] * len(shared)
    leaves = [[*own, *shared] for own in leaves]
    return _node([*inputs, *shared], outputs, leaves, is_cut, pieces, start)


def _cut(array, piece: slice):
    if array is None:
        return None
    rows = examples_last(value_of(array)[piece])
    return Tensor(rows) if isinstance(array, Tensor) else rows


def examples_last(array: Array) -> Array:
    """The same array, stored with its examples last, as convolutions store theirs: (N, …).

    NumPy's elementwise functions are several times slower on arrays that are stored differently.
    """
    if array.ndim < 2 or not isinstance(array, np.ndarray):
        return array
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 0, -1)), -1, 0)


def _row_by_row(parts):
    """The pieces as one array, stored as users expect it."""
    xp = array_module(*parts)
    return xp.ascontiguousarray(xp.concatenate(parts))


def _shared(outputs: list[Tensor], start: int) -> list[Tensor]:
    """What the tapes of the pieces take from outside, such as weights: each tensor once."""
    made = [node for output in outputs for node in tape(output, start) if node.number >= start]
    used = [*outputs, *(arg for node in made for arg in node.args if isinstance(arg, Tensor))]
    return list({id(arg): arg for arg in used if arg.number < start}.values())


def _node(inputs, outputs, leaves, is_cut, pieces, start, add=False) -> Tensor:
    """One node for the tapes that end in ``outputs``: one after another, or their sum.

    ``leaves[piece][k]`` is input k on the tape of a piece: its examples in the piece if
    ``is_cut[k]``, otherwise all of it.
    """
    how = {"outputs": outputs, "leaves": leaves, "is_cut": is_cut, "pieces": pieces}
    value = _together([output.value for output in outputs], add)
    return Tensor(value, by_examples, inputs, {**how, "start": start, "add": add})


def _together(parts, add: bool):
    if not add:
        return array_module(*parts).concatenate(parts)
    if len(parts) < 2 or parts[0].size < LARGE or not isinstance(parts[0], np.ndarray):
        return functools.reduce(operator.add, parts)
    total, middle = np.empty_like(parts[0]), len(parts[0]) // 2

    def add_rows(rows):
        np.add(parts[0][rows], parts[1][rows], out=total[rows])
        for part in parts[2:]:
            total[rows] += part[rows]

    in_threads(add_rows, [slice(0, middle), slice(middle, None)])
    return total


def _back(wanted, g, y, *inputs, outputs, leaves, is_cut, pieces, start, add):
    """The rule of that node: each thread walks back along the tape of a piece."""
    again = isinstance(g, Tensor)  # the gradient will itself be differentiated

    def walk(i):
        part = value_of(g) if add else value_of(g)[pieces[i]]
        part = Tensor(part) if again else part
        ends = [leaves[i][k] for k in wanted]
        found = walk_back(tape(outputs[i], start), outputs[i], part, ends, again)
        for k, end in enumerate(ends):
            if found[k] is None:
                found[k] = Tensor(np.zeros_like(end.value)) if again else np.zeros_like(end.value)
        return part, found

    parts, found = zip(*in_threads(walk, range(len(pieces))), strict=True)
    # Each gradient is again the result of pieces, if it is to be differentiated. Then it depends on
    # g as well, and on what else the rules took from outside.
    result, leaves = [], [[*own, part] for own, part in zip(leaves, parts, strict=True)]
    for k in wanted:
        gradients = [each.pop(0) for each in found]  # nothing holds them longer than needed
        if not again:
            result.append(_together(gradients, add=not is_cut[k]))
            continue
        known = {id(x) for x in inputs}
        more = [x for x in _shared(gradients, start) if id(x) not in known]
        ends = [[*own, *more] for own in leaves]
        cut = [*is_cut, not add] + [False] * len(more)
        result.append(
            _node([*inputs, g, *more], gradients, ends, cut, pieces, start, not is_cut[k])
        )
    return result


by_examples.vjp = _back  # not by defvjp: one walk serves all arguments
