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
weights, are added up in the order of the pieces.

How a batch is cut depends on its size and not on the number of threads, and within a piece the BLAS
(the library that multiplies matrices for NumPy) has one thread. So :func:`limit` and the number of
cores do not change a bit of what the pieces compute. Products outside pieces use the threads of the
BLAS: in batches that are too small to be cut, in networks without convolutions, in models that do
not promise ``by_example``. Another number of BLAS threads (``OPENBLAS_NUM_THREADS``), like another
processor, may change the last bits of these.

On a GPU there are no pieces: one launch serves the whole batch.

The pieces may also be shared among processes: :mod:`tinyadv.distributed`.
"""

from __future__ import annotations

import functools
import math
import operator
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from itertools import chain, pairwise
from typing import Any

import numpy as np

from tinyadv.backend import array_module
from tinyadv.tensor import Array, Tensor, tape, value_of, walk_back

# ------------------------------------------------------------------------------------- threads

try:
    CORES = len(os.sched_getaffinity(0))  # those that this process may use
except AttributeError:  # not on every system
    CORES = os.cpu_count() or 1

LARGE = 1 << 20  # numbers in an array from which on two threads add it faster than one

_limit: ContextVar[int | None] = ContextVar("limit", default=None)
# In a piece: the errors of all pieces of the call.
_errors: ContextVar[list | None] = ContextVar("errors", default=None)
# The tinyadv.distributed.Ranks that share the pieces, if there are several processes.
RANKS: ContextVar[Any] = ContextVar("ranks", default=None)


def threads() -> int:
    """How many threads share the work: :func:`limit`, else TINYADV_THREADS, else all cores."""
    if (own := _limit.get()) is not None:
        return own
    return _count(os.environ.get("TINYADV_THREADS") or CORES, "the variable TINYADV_THREADS")


@contextmanager
def limit(n: int) -> Iterator[None]:
    """Share the pieces of a batch among at most ``n`` threads; the results do not depend on it.

    The environment variable ``TINYADV_THREADS`` does the same for a whole program. The limit holds
    for the thread that sets it. Matrix products that are not part of a piece use the threads of the
    BLAS, which ``OPENBLAS_NUM_THREADS`` limits.

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
    with setting(_limit, _count(n, "n")):
        yield


@contextmanager
def setting(variable: ContextVar, value: Any) -> Iterator[None]:
    """Give a context variable another value while this is open."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def _count(n: Any, name: str) -> int:
    try:
        count = int(n) if isinstance(n, str) else operator.index(n)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise ValueError(f"{name} must be a number of threads, an integer ≥ 1, got {n!r}")
    return count


def inside() -> bool:
    """Whether the running code works on a piece already, which should not be cut again."""
    return _errors.get() is not None


@contextmanager
def uncut() -> Iterator[None]:
    """Leave batches whole while this is open, as within a piece."""
    with setting(_errors, _errors.get() if inside() else []):
        yield


class Stopped(BaseException):
    """Ends the work on a piece because another piece failed. No caller gets to see it."""


def stop_point() -> None:
    """End the work on this piece here if another piece of the same batch has failed.

    Call it once in each step of a loop that may run long in a piece; then an error in one thread,
    or Ctrl-C, does not wait for the whole pieces of the others. Outside a piece it does nothing.
    The input gradients and queries of the attacks call it, and so does every ``Sequential``.

    Raises
    ------
    Stopped
        Not an ``Exception``, so that no handler of errors in a model catches it.
    """
    if _errors.get():
        raise Stopped


def _until_stopped(items: Iterable) -> Iterator:
    for item in items:
        stop_point()
        yield item


def in_threads(work: Callable, items: Sequence, least: int = 2) -> list:
    """``[work(item) for item in items]``, shared between the threads.

    Each thread, the calling one among them, takes the next item until none is left. All of them
    see the caller's context variables, such as :func:`limit` and ``numpy.errstate``. The first
    error, or Ctrl-C, is raised here once the other threads have reached a :func:`stop_point` or
    the end of their items; a second Ctrl-C does not wait for them.

    Within another such call there is nothing to gain, and this thread does all the work. So it does
    if there are fewer than ``least`` items, which are then no pieces: they may be cut themselves.
    """
    if inside() or len(items) < least:
        return [work(item) for item in _until_stopped(items)]
    helpers, waiting, process = min(threads(), len(items)) - 1, iter(range(len(items))), os.getpid()
    results: dict[int, Any] = {}
    errors, ends = list[BaseException](), list[threading.Event]()

    def help_with():
        _errors.set(errors)
        try:
            for i in _until_stopped(waiting):
                results[i] = work(items[i])
        except BaseException as error:
            if not errors:
                errors.append(error)

    def wait_for_helpers():
        for end in ends:
            if os.getpid() == process:  # a process that was forked within a piece has no helpers
                end.wait()

    def left():  # none, or after a fork the items that the helpers had begun
        wait_for_helpers()
        yield from set(range(len(items))).difference(results)

    try:
        with one_blas_thread():
            try:
                with suppress(RuntimeError):  # no thread can be started, as when Python shuts down
                    for _ in range(helpers):
                        ends.append(_in_a_helper(help_with))
                _errors.set(errors)
                for i in _until_stopped(chain(waiting, left())):
                    results[i] = work(items[i])
            except BaseException as error:
                if not errors:
                    errors.append(error)
                wait_for_helpers()  # which stop soon
            _errors.set(None)
    finally:
        _errors.set(None)  # once more, because Ctrl-C may have come before
    if errors:
        raise errors.pop()  # left in the list, it would keep alive all that its traceback refers to
    return [results[i] for i in range(len(items))]


_idle: list = []  # the inboxes of the helpers that wait for work


def _in_a_helper(function: Callable) -> threading.Event:
    """Call the function in an idle thread or a new one; the event is set when it has ended."""
    try:
        inbox = _idle.pop()
    except IndexError:
        inbox = queue.SimpleQueue()
        # Daemons, so that a program that ends does not wait for them.
        threading.Thread(target=_help, args=(inbox,), name="tinyadv", daemon=True).start()
    end = threading.Event()
    inbox.put((copy_context(), function, end))
    return end


def _help(inbox: queue.SimpleQueue) -> None:
    while True:
        context, function, end = inbox.get()
        context.run(function)
        _idle.append(inbox)
        end.set()
        del context, function, end  # nothing holds them while the thread is idle


# ---------------------------------------------------------------------------- threads of the BLAS

_blas_lock = threading.RLock()
_blas_users: dict = {}  # everyone in one_blas_thread: a token -> the number of its thread
_blas_before: dict = {}  # while there are any: a library -> its own number of threads


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit the BLAS to one thread while any thread is in this context: the cores are taken."""
    user = object()

    def leave():
        try:
            _blas_users.pop(user, None)
            _adapt_blas()
        finally:
            with suppress(RuntimeError):  # this thread does not hold the lock any more
                while True:
                    _blas_lock.release()

    try:
        try:
            _blas_users[user] = threading.get_ident()
            _adapt_blas()
            yield
        finally:
            leave()
    finally:
        leave()  # once more, because Ctrl-C may have cut the first one short


def _adapt_blas() -> None:
    """Limit the BLAS if it has users, else restore it. Cut short by Ctrl-C, it can be repeated."""
    with _blas_lock:
        if _blas_users:
            for library in _blas().lib_controllers:
                _blas_before.setdefault(library, library.num_threads)
                _set_blas(library, 1)
        else:
            for library, count in _blas_before.items():
                _set_blas(library, count)
            _blas_before.clear()


def _set_blas(library: Any, count: int) -> None:
    """threadpoolctl ≥ 3.8 obeys only the thread that was the first to set a limit, if any was."""
    clear = getattr(library, "clear_controlling_thread", lambda force: None)
    clear(force=True)
    library.set_num_threads(count)
    clear(force=True)


@functools.cache
def _blas():
    import threadpoolctl  # not at the top, because only threads need it

    return threadpoolctl.ThreadpoolController().select(user_api="blas")


def _after_fork() -> None:
    """In the new process, where no thread but the forking one exists."""
    _idle.clear()
    here = threading.get_ident()
    if not inside() or here in _blas_users.values():  # else a helper, limited by its caller
        for user, thread in list(_blas_users.items()):
            if thread != here:
                del _blas_users[user]
    _adapt_blas()
    _blas_lock.release()


if hasattr(os, "register_at_fork"):  # with the lock held, so that no thread is half-way through it
    os.register_at_fork(
        before=_blas_lock.acquire, after_in_parent=_blas_lock.release, after_in_child=_after_fork
    )


# --------------------------------------------------------------------------- pieces of a batch


def may_cut(model: Any) -> bool:
    """Whether a batch for ``model`` may be cut: it and all within it say ``by_example = True``.

    A module or function that does not say so gets the whole batch: it may be one that looks at all
    examples together, such as batch normalisation, or that draws random numbers.
    """
    if not getattr(model, "by_example", False):
        return False
    modules = model.modules() if hasattr(model, "modules") else ()
    return all(module.by_example for module in modules)


def worth_cutting(x: Array | Tensor, least: float | None = None) -> bool:
    """Whether :func:`by_examples` cuts this batch: a large one that is not a piece already.

    Networks call it before each pass, so it is also a :func:`stop_point`.
    """
    stop_point()
    if least is None:  # enough to outweigh the cost of a thread; on a GPU nothing is
        least = 16 if array_module(value_of(x)) is np else math.inf
    return len(x) >= least and not inside()


def by_examples(
    f: Callable, *arrays: Array | Tensor | None, least: int | None = None, most: int = 64,
    done: Callable[[int], object] | None = None,
) -> Any:  # fmt: skip
    """``f(*arrays)``, the batch cut into pieces that several cores work on.

    Within such a piece this is just ``f(*arrays)``. The same holds on a GPU, unless ``least`` is
    given: the pieces then run one after another, which saves memory.

    Parameters
    ----------
    f : function
        Treats each example on its own: f of a piece is that piece of f of the whole. Returns an
        array or a tensor (N, …), or a tuple of these.
    *arrays : (N, …)
        Arrays or tensors, cut along their first axis. ``None`` is passed on as ``None``. What f
        takes from elsewhere, such as weights, is shared by the pieces and also gets its gradient.
    least, most : int
        A batch with fewer examples than ``least`` is left whole, no piece has more than ``most``.
        By default large enough to outweigh the cost of a thread, and small enough for the caches.
    done : function, optional
        Called with the number of examples whenever a piece has ended; a progress bar uses it.

    Returns
    -------
    what ``f(*arrays)`` would return

    Raises
    ------
    ValueError
        If the arrays differ in length, or f does not return a row for each example of a piece.
    """
    some = [array for array in arrays if array is not None]
    if len({len(array) for array in some}) != 1:
        lengths = [len(array) for array in some]
        raise ValueError(f"by_examples needs arrays of the same length, N; got {lengths}")
    n = len(some[0])
    if not worth_cutting(some[0], least):
        result = f(*arrays)
        if done is not None:
            done(n)
        return result
    count = 2 * -(-n // (2 * most))  # an even number, for two cores
    edges = sorted({n * i // count for i in range(count + 1)})
    pieces = [slice(*edge) for edge in pairwise(edges)]
    start = Tensor(0.0).number  # everything that the pieces make has a higher number

    leaves: list = [[] for _ in pieces]

    def work(i):
        parts = [_cut(array, pieces[i]) for array in arrays]
        leaves[i] = [part for part in parts if isinstance(part, Tensor)]
        result = f(*parts)
        if done is not None:
            done(pieces[i].stop - pieces[i].start)
        return result

    outputs = _caller(array_module(value_of(some[0])))(work, range(len(pieces)))

    def joined(outputs):
        for output, piece in zip(outputs, pieces, strict=True):
            if getattr(output, "shape", ())[:1] != (piece.stop - piece.start,):
                got = getattr(output, "shape", type(output).__name__)
                raise ValueError(
                    "f must return arrays or tensors with a row for each example: for "
                    f"{piece.stop - piece.start} examples it returned {got}"
                )
        if not any(isinstance(output, Tensor) for output in outputs):
            return _row_by_row(outputs)
        outputs = [output if isinstance(output, Tensor) else Tensor(output) for output in outputs]
        shared = _shared(outputs, start)
        inputs = [array for array in arrays if isinstance(array, Tensor)]
        is_cut = [True] * len(inputs) + [False] * len(shared)
        ends = [[*own, *shared] for own in leaves]
        return _node([*inputs, *shared], outputs, ends, is_cut, pieces, start)

    if isinstance(outputs[0], tuple):
        return tuple(map(joined, zip(*outputs, strict=True)))
    return joined(outputs)


def _caller(xp: Any = np) -> Callable[[Callable, range], list]:
    """What calls a function for each piece: this thread, or threads on a CPU, or several ranks."""
    ranks = RANKS.get()
    if ranks is not None and not inside():
        return lambda work, pieces: ranks.share(work, len(pieces), xp)
    return in_threads if xp is np else lambda work, pieces: list(map(work, pieces))


def _cut(array: Any, piece: slice) -> Any:
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


def _node(inputs, outputs, leaves, is_cut, pieces, start, add=False):
    """One node for the tapes that end in ``outputs``: one after another, or their sum.

    ``leaves[piece][k]`` is input k on the tape of a piece: its examples in the piece if
    ``is_cut[k]``, otherwise all of it.
    """
    how = {"outputs": outputs, "leaves": leaves, "is_cut": is_cut, "pieces": pieces}
    value = _together([output.value for output in outputs], add)
    return Tensor(value, by_examples, inputs, {**how, "start": start, "add": add})


def _together(parts: Any, add: bool) -> Any:
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

    parts = [value_of(g) if add else value_of(g)[piece] for piece in pieces]
    parts = [Tensor(part) for part in parts] if again else parts

    def walk(i):
        ends = [leaves[i][k] for k in wanted]
        found = walk_back(tape(outputs[i], start), outputs[i], parts[i], ends, again)
        for k, end in enumerate(ends):
            if found[k] is None:
                found[k] = Tensor(np.zeros_like(end.value)) if again else np.zeros_like(end.value)
        return found

    found = _caller()(walk, range(len(pieces)))
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


# Not by defvjp: one walk serves all arguments.
by_examples.vjp = _back  # type: ignore[attr-defined]
