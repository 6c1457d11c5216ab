"""Several cores at once, for work that falls into independent pieces.

NumPy uses one core for everything but matrix products, and while it computes it lets other threads
run. So the examples of a batch, which do not depend on each other, are given to several threads,
one piece of the batch each. Each thread then multiplies its own matrices, and the BLAS library is
held to one thread meanwhile. How a batch is cut does not depend on the number of cores, and
neither do the results.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ContextDecorator

try:
    CORES = len(os.sched_getaffinity(0))  # those that this process may use
except AttributeError:  # not on every system
    CORES = os.cpu_count() or 1


_this_thread = threading.local()


def inside() -> bool:
    """Whether the running code is one of several pieces already, and should not be cut again."""
    return getattr(_this_thread, "inside", False)


def side_by_side(work: Callable[[], None], threads: int) -> None:
    """Call ``work()`` in ``threads`` threads at once, this one among them, and wait for all.

    ``work`` takes what there is to do from a common store until that is empty, so it does not
    matter if some of the threads never come to run. An error in one of them is raised here. Within
    another such work there is nothing to gain, and this thread does it all.
    """
    threads = 1 if inside() else min(threads, CORES)
    if threads < 2:
        return work()
    with one_blas_thread:
        futures = [_pool().submit(work) for _ in range(threads - 1)]
        try:
            work()
        finally:
            for future in futures:
                if not future.cancel():  # it has begun
                    future.result()


def in_threads(work: Callable, pieces: Sequence, workers: int | None = None) -> list:
    """``[work(piece) for piece in pieces]``, shared out over the cores, or over ``workers``."""
    results: list = [None] * len(pieces)
    waiting = iter(range(len(pieces)))

    def take_turns():
        before, _this_thread.inside = inside(), True
        try:
            for i in waiting:  # one iterator for all threads: each index is handed out once
                results[i] = work(pieces[i])
        except BaseException:
            for _ in waiting:  # nothing is left for the others to begin with
                pass
            raise
        finally:
            _this_thread.inside = before

    side_by_side(take_turns, min(len(pieces), workers or CORES))
    return results


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CORES, thread_name_prefix="tinyadv")


class _OneBlasThread(ContextDecorator):
    """Holds the BLAS to one thread as long as anyone is inside."""

    def __init__(self):
        self.lock = threading.Lock()
        self.inside = 0

    def __enter__(self):
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.limit = _blas().limit(limits=1)
                self.limit.__enter__()

    def __exit__(self, *error):
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.limit.__exit__(*error)


one_blas_thread = _OneBlasThread()


@functools.cache
def _blas():
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")
