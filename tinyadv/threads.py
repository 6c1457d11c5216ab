"""Several cores at once, for work that falls into independent pieces.

NumPy uses one core for everything but matrix products, and while it computes it lets other threads
run. So an operation that treats the rows of an image, or its channels, one like the other is cut
into pieces that several threads share. Each thread then multiplies its own matrices, and the BLAS
library is held to one thread meanwhile. How the work is cut does not depend on the number of cores,
and neither do the results. CuPy's arrays are never cut.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from tinyadv.backend import array_module

try:
    CORES = len(os.sched_getaffinity(0))  # those that this process may use
except AttributeError:  # not on every system
    CORES = os.cpu_count() or 1

# Waking another thread takes about as long as 50,000 multiplications and additions per core.
WORTH_A_THREAD = 1 << 21  # elements to copy or add, or multiplications, for each piece


def cut(length: int, work: float, xp, pieces: int = 2) -> list[slice]:
    """Slices of an axis, as equal as can be: ``pieces`` if there is enough to do, or one.

    Parameters
    ----------
    length : int
        Of the axis.
    work : float
        Multiplications and additions that there are to do in all.
    xp : module
        The arrays' own; only NumPy's work is cut.
    """
    if xp is not np or work < pieces * WORTH_A_THREAD:
        pieces = 1
    pieces = max(1, min(pieces, length))
    edges = [length * i // pieces for i in range(pieces + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def in_threads(work: Callable, pieces: Sequence) -> list:
    """``[work(piece) for piece in pieces]``, the pieces shared out over the cores.

    An error in one of the threads is raised here.
    """
    threads = min(len(pieces), CORES)
    results: list = [None] * len(pieces)
    waiting = iter(range(len(pieces)))

    def take_turns():
        for i in waiting:  # one iterator for all threads: each index is handed out once
            results[i] = work(pieces[i])

    with _one_blas_thread:
        futures = [_pool().submit(take_turns) for _ in range(threads - 1)]
        try:
            take_turns()
        finally:
            for future in futures:
                if not future.cancel():  # it has begun
                    future.result()
    return results


def product(a, b):  # (n, k), (k, m) -> (n, m)
    """The matrix product ``a @ b``, its rows shared out over the cores."""
    xp = array_module(a)
    pieces = cut(a.shape[0], a.shape[0] * a.shape[1] * b.shape[1], xp)
    if xp is not np:
        return a @ b
    y = np.empty((a.shape[0], b.shape[1]), np.result_type(a, b))
    in_threads(lambda rows: np.matmul(a[rows], b, out=y[rows]), pieces)
    return y


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CORES, thread_name_prefix="tinyadv")


class _OneBlasThread:
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


_one_blas_thread = _OneBlasThread()


@functools.cache
def _blas():
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")
