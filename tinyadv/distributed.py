"""Several processes that share the work through MPI, on one machine or on many.

    mpiexec -n 4 python -m mpi4py train.py      where train.py calls  fit(…, comm=MPI.COMM_WORLD)

``-m mpi4py`` ends all processes if one of them fails outside the functions of this library.

Each process runs the whole program, and is called a *rank*. All ranks have the same weights and
draw the same random numbers. There are two ways to share a batch of N examples among P ranks.

*Rows*: :class:`DataParallel`, for training. Rank r takes n_r of the rows. Because the loss is a
mean over the examples,

    ∇L = Σ_r  n_r/N · ∇L_r

the gradient of the whole batch is a weighted sum over the ranks. One *allreduce* in each step gives
every rank this sum, and all of them take the same step. The sum is rounded in another order than in
one process, so the weights agree up to rounding.

*Pieces*: :class:`Ranks`, for evaluation, and for training with ``exact=True``. All ranks call the
same functions with the whole batch. :mod:`tinyadv.parallel` cuts it into pieces, which do not
depend on the number of ranks; each rank computes some of them and receives the others. Gradients
are added in the order of the pieces. So the results are those of one process, bit by bit. But the
gradients of all pieces travel, and a batch of fewer pieces than ranks leaves some ranks idle.

Every rank computes for itself: the random numbers of the whole batch, ``augment``, the step of the
optimizer. Give each rank its own cores: with four ranks on a machine of eight cores, set
``TINYADV_THREADS=2`` and ``OPENBLAS_NUM_THREADS=2``. Arrays on a GPU travel through the host.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import re
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tinyadv.backend import array_module, to_numpy
from tinyadv.checkpoint import check_writable, load_state, save_state
from tinyadv.inputs import quiet
from tinyadv.parallel import RANKS, in_threads, may_cut, setting
from tinyadv.tensor import Array, Tensor, value_of

KEEP_AFTER = 1.0  # seconds: a share that took longer is kept for a resumed sweep


def is_first(comm: Any) -> bool:
    """Whether this is rank 0, which prints and writes files; also without a communicator."""
    return not several(comm) or comm.Get_rank() == 0


def several(comm: Any) -> bool:
    """Whether there is more than one rank; TypeError if ``comm`` is not a communicator."""
    if comm is None:
        return False
    if isinstance(comm, type) or not hasattr(comm, "allgather"):
        raise TypeError(
            f"comm must be a communicator such as mpi4py.MPI.COMM_WORLD, got {comm!r:.100}"
        )
    return comm.Get_size() > 1


def on_any_rank(comm: Any, flag: bool) -> bool:
    """Whether ``flag`` is true on one of the ranks, which all ask this at the same time."""
    return any(comm.allgather(flag)) if several(comm) else flag


def check_sharable(comm: Any, model: Any, perturb: Any = None, objective: Any = None) -> None:
    """Raise ValueError unless the ranks can share a batch for this model.

    A ``perturb`` that is given must not take the steps of the optimizer itself, and must draw from
    a generator, as ``objective`` must.
    """
    if several(comm) and not may_cut(model):
        raise ValueError(
            "the ranks cannot share a batch: a layer does not promise by_example = True, so it may "
            "look at the whole batch or draw random numbers"
        )
    if several(comm) and hasattr(perturb, "train_batch"):
        raise ValueError(
            f"{type(perturb).__name__} takes its own steps and may keep something for each image "
            "of a batch, of which a rank has only some: use exact=True, or one process"
        )
    for name, part in (("perturb", perturb), ("objective", objective)):
        for place in _generators(part) if several(comm) else ():
            if not isinstance(place["rng"], np.random.Generator):
                raise ValueError(
                    f"{name} has rng={place['rng']!r:.50}, from which each rank would draw the "
                    "same numbers for its own rows: leave rng out, and it draws from the generator "
                    "of the run; or give a numpy.random.Generator; or use exact=True"
                )


@contextmanager
def agreeing(comm: Any) -> Iterator[dict]:
    """Raise an error on all ranks if this block fails on one, or if their facts differ.

    Otherwise the ranks would begin, and wait for each other forever. Nothing in the block may wait
    for another rank.

    Yields
    ------
    dict
        For the facts that must be the same on all ranks.

    Raises
    ------
    ValueError
        On the ranks where the block itself has raised nothing.
    """
    together, facts = several(comm), dict[str, Any]()
    try:
        yield facts
    except BaseException as error:
        if together:
            comm.allgather((repr(error), ""))
        raise
    own = ", ".join(f"{k} {v}" for k, v in facts.items())
    found = comm.allgather((None, own)) if together else []
    for rank, (failed, theirs) in enumerate(found):
        if failed:
            raise ValueError(f"rank {rank} cannot begin: {failed}")
        if theirs != found[0][1]:
            raise ValueError(
                f"the ranks disagree: rank 0: {found[0][1]}; rank {rank}: {theirs}. All of them "
                "need the same arguments, and must see the same checkpoint"
            )


@contextmanager
def ending_together(comm: Any, is_common: Callable = lambda error: False) -> Iterator[None]:
    """End all ranks if this one fails, because the others would wait for it forever.

    An error for which ``is_common`` is true is raised by all ranks, and reaches the caller. Ranks
    other than the first do not warn.
    """
    try:
        with nullcontext() if is_first(comm) else quiet():
            yield
    except BaseException as error:
        if several(comm) and not is_common(error):
            traceback.print_exc()
            print(f"rank {comm.Get_rank()} failed, and ends all ranks", file=sys.stderr, flush=True)
            time.sleep(0.5)  # mpiexec needs a moment to pass this on
            comm.Abort(1)
        raise


# ------------------------------------------------------------------------------------ shared pieces


class Ranks:
    """The ranks that share the pieces of :func:`tinyadv.parallel.by_examples`.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    folder : path, optional
        Keep there what each rank has computed, and take from there what an earlier run has.
    key : str
        Begins the names of the files; different for runs whose results differ.

    Attributes
    ----------
    counter : Counter
        Counts the passes of the model, see :class:`tinyadv.attacks.cascade.Counted`. After each
        call it includes what the other ranks have counted in their pieces.
    """

    def __init__(self, comm: Any, folder: str | os.PathLike | None = None, key: str = ""):
        self.comm, self.rank, self.size = comm, comm.Get_rank(), comm.Get_size()
        self.folder, self.key, self.calls = folder and Path(folder), key, 0
        self.counter: Counter[str] = Counter()
        # One list for all, because a rank may write its next file before another has looked.
        self.files: list[Path] = comm.bcast(sorted(Path(folder).glob("*.npz")) if folder else [])

    def share(self, work: Callable, count: int, xp: Any = np) -> list:
        """``[work(i) for i in range(count)]``, where each rank does a part of the work.

        A tensor that comes from another rank has its value, but no tape.
        """
        name, self.calls = f"{self.key}-{self.calls:06}", self.calls + 1
        before, began = self.counter.copy(), time.perf_counter()
        kept = [load_state(path) for path in self.files if path.name.startswith(name)]
        missing = sorted(set(range(count)) - {int(i) for share in kept for i in share["pieces"]})
        mine = missing[self.rank :: self.size]

        def worked(items):
            return in_threads(work, items, least=1) if xp is np else list(map(work, items))

        own = dict(zip(mine, worked(mine), strict=True))
        share: dict[str, Any] = {"pieces": {str(i): _sent(result) for i, result in own.items()}}
        share["counts"] = dict(self.counter - before)
        slow = time.perf_counter() - began > KEEP_AFTER
        if self.folder and own and slow and not any(map(_on_tape, own.values())):
            save_state(self.folder / f"{name}-{mine[0]:06}.npz", share)
        shares = kept + self.comm.allgather(share)
        results = {int(i): _received(r, xp) for share in shares for i, r in share["pieces"].items()}
        results |= own  # with their tapes
        if not own and _on_tape(results[0]):
            i = self.rank % count  # the tape of one piece tells which weights all of them share
            (results[i],) = worked([i])
        self.counter.clear()
        self.counter.update(sum((Counter(share["counts"]) for share in shares), before))
        return [results[i] for i in range(count)]


def _parts(result: Any) -> Any:
    return result if isinstance(result, (tuple, list)) else (result,)


def _on_tape(result: Any) -> bool:
    return any(isinstance(part, Tensor) for part in _parts(result))


def _sent(result: Any) -> dict:
    """A result as a state: its arrays on the host, with their axes in the order of the memory."""
    arrays = [value_of(part) for part in _parts(result)]
    orders = [sorted(range(a.ndim), key=lambda i: -a.strides[i]) for a in arrays]
    sent = {str(k): to_numpy(a.transpose(orders[k])) for k, a in enumerate(arrays)}
    return {**sent, "orders": orders, "kind": type(result).__name__, "tape": _on_tape(result)}


def _received(sent: dict, xp: Any) -> Any:
    orders = sent["orders"]
    parts = [xp.asarray(sent[str(k)]).transpose(np.argsort(o)) for k, o in enumerate(orders)]
    parts = [Tensor(part) for part in parts] if sent["tape"] else parts
    return {"tuple": tuple(parts), "list": parts}.get(sent["kind"], parts[0])


class Alone:
    """The communicator of a single process, for which MPI is not needed."""

    Get_rank: Callable = staticmethod(lambda: 0)
    Get_size: Callable = staticmethod(lambda: 1)
    allgather: Callable = staticmethod(lambda mine: [mine])
    bcast: Callable = staticmethod(lambda mine: mine)


@contextmanager
def sharing_pieces(comm: Any, model: Any, folder: Any = None, key: tuple = ()) -> Iterator[None]:
    """While this is open, the ranks share the pieces of each batch, if there are several.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or None
    model : callable
    folder : path, optional
        As for :class:`Ranks`.
    key : tuple
        What the results depend on, besides the model: arrays, numbers, functions.

    Raises
    ------
    ValueError
        If the model does not allow it, see :func:`check_sharable`, or the ranks have different
        models or keys.
    OSError
        If nothing can be written in the folder.
    """
    if comm is None and folder is None:
        yield
        return
    digest = hashlib.sha256()
    with agreeing(comm) as facts:
        check_sharable(comm, model)
        if folder is not None:
            check_writable(Path(folder) / "share.npz")
        _feed(digest, (model, *key))
        facts["model and arguments"] = digest.hexdigest()[:16]
    comm = Alone() if comm is None else comm
    with ending_together(comm), setting(RANKS, Ranks(comm, folder, digest.hexdigest()[:16])):
        yield


def _feed(digest: Any, part: Any, seen: tuple = ()) -> None:
    """Feed what the results depend on: numbers, arrays, the code of functions, and what is inside.

    Where memory addresses are all that differs, the digest is the same, in every process.
    """
    if any(part is other for other in seen):
        return
    inside: Any = ()
    if hasattr(part, "dtype") and hasattr(part, "shape"):
        array = to_numpy(part)
        digest.update(array.tobytes())
        inside = array.shape, str(array.dtype)
    elif isinstance(part, np.random.Generator):
        inside = (part.bit_generator.state,)
    elif isinstance(part, functools.partial):
        inside = part.func, part.args, part.keywords
    elif inspect.ismethod(part):
        inside = part.__func__, part.__self__
    elif inspect.isfunction(part):
        closure = [cell.cell_contents for cell in part.__closure__ or ()]
        inside = part.__code__, part.__defaults__, part.__kwdefaults__, closure
    elif inspect.iscode(part):
        inside = part.co_code, part.co_names, part.co_consts
    elif isinstance(part, dict):
        inside = part.items()
    elif isinstance(part, (list, tuple)):
        inside = part
    elif isinstance(part, (set, frozenset)):  # in an order that is the same in every process
        inside = sorted(map(repr, part))
    elif hasattr(part, "state_dict"):  # a model: what it keeps besides its weights does not count
        inside = re.sub(r" at 0x\w+", "", repr(part)), part.state_dict()
    elif hasattr(part, "__dict__") and not isinstance(part, (type, ModuleType)):
        inside = type(part).__qualname__, vars(part)
    else:
        digest.update(re.sub(r" at 0x\w+", "", repr(part)).encode())
    digest.update(f"{type(part).__name__}(".encode())
    for each in inside:
        _feed(digest, each, (*seen, part))
    digest.update(b")")


def count_passes(counter: Counter[str]) -> None:
    """Let the ranks, if several share the pieces, add up what they count with ``counter``."""
    if RANKS.get() is not None:
        RANKS.get().counter = counter


# -------------------------------------------------------------------------------------- shared rows

# While a rank works on its rows of a batch: these rows, and the number of all.
_rows: ContextVar[tuple[slice, int]] = ContextVar("rows", default=(slice(0, -1), 0))


class RowsGenerator(np.random.Generator):
    """Draws numbers for all examples of a batch, and returns those of this rank's rows.

    So the ranks together draw what one process draws. It does so for arrays whose first axis is as
    long as the rank's part of the batch; numbers and arrays of another size are the same on all
    ranks. Within a batch only the methods in ``DRAWS`` can be used, and their parameters must be
    numbers. All else raises TypeError, because it could draw a different amount of numbers on each
    rank, and then the ranks would no longer be in step.
    """


# The methods whose arrays can be cut into rows, and their arguments.
DRAWS = {
    "random": ("size", "dtype", "out"),
    "standard_normal": ("size", "dtype", "out"),
    "standard_exponential": ("size", "dtype", "method", "out"),
    "uniform": ("low", "high", "size"),
    "normal": ("loc", "scale", "size"),
    "integers": ("low", "high", "size", "dtype", "endpoint"),
}


def _for_rows(name: str) -> Callable:
    draw = getattr(np.random.Generator, name)

    def method(self: Any, *args: Any, **how: Any) -> Any:
        """As in ``numpy.random.Generator``, for this rank's rows."""
        rows, n = _rows.get()
        if not n:  # not within a batch
            return draw(self, *args, **how)
        how |= dict(zip(DRAWS.get(name, ()), args, strict=False))
        if name not in DRAWS or any(np.ndim(how[key]) for key in how.keys() - {"size", "dtype"}):
            raise TypeError(
                f"the ranks cannot share what rng.{name} draws here: draw with {', '.join(DRAWS)}, "
                "with numbers as parameters and size=(n, …) for n examples; or use exact=True"
            )
        shape = np.empty(how.get("size") or (), bool).shape
        if not shape or shape[0] != rows.stop - rows.start:
            return draw(self, **how)
        return draw(self, **how | {"size": (n, *shape[1:])})[rows]

    return method


for _name in {*dir(np.random.Generator)} - {"bit_generator", "spawn"}:
    if not _name.startswith("_"):
        setattr(RowsGenerator, _name, _for_rows(_name))


def by_rows(comm: Any, rng: np.random.Generator) -> np.random.Generator:
    """``rng``, or if there are several ranks a :class:`RowsGenerator` with the same state."""
    return RowsGenerator(rng.bit_generator) if several(comm) else rng


def _generators(part: Any) -> Iterator[dict]:
    """The dictionaries in which ``part``, and an attack that it has, keep an ``rng``.

    These are the attributes of an object, and the arguments of a ``functools.partial``.
    """
    for each in (part, getattr(part, "attack", None)):
        for place in (getattr(each, "__dict__", {}), getattr(each, "keywords", {})):
            if place.get("rng") is not None:
                yield place


class DataParallel:
    """Synchronous data parallelism: an optimizer whose step takes the gradients of all ranks.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    optimizer : Optimizer
    totals : function
        ``totals(result, y)``: the numbers to be added up over the examples, by name. Every rank
        must name the same.
    interrupted : threading.Event
        Whether this rank was asked to stop.
    exact : bool
        The ranks share pieces instead of rows.

    Attributes
    ----------
    stop : threading.Event
        Whether any rank was asked to stop, as of the last step: the same on all ranks.
    """

    def __init__(self, comm: Any, optimizer: Any, totals: Callable, interrupted: Any, exact: bool):
        self.comm, self.optimizer, self.totals_of = comm, optimizer, totals
        self.interrupted, self.exact, self.stop = interrupted, exact, threading.Event()
        self.buffer = np.zeros(0)

    def __getattr__(self, name: str) -> Any:  # params, lr …
        return getattr(self.optimizer, name)

    def train_batch(self, inner: Callable, model: Any, x: Array, y: Array, objective: Callable,
                    optimizer: Any, begin: Callable) -> Iterator[Any]:  # fmt: skip
        """As :func:`tinyadv.train.train_step`, which may be ``inner``, with this rank's rows.

        Yields the totals over all ranks, or with ``exact`` what ``inner`` yields.
        """
        if self.exact:
            yield from inner(model, x, y, objective, optimizer, begin)
            found = self.comm.allgather((self.interrupted.is_set(), optimizer.lr))
            self._check_rate(sum(lr for _, lr in found))
            if any(interrupted for interrupted, _ in found):
                self.stop.set()
            return
        n, rank, size = len(x), self.comm.Get_rank(), self.comm.Get_size()
        rows = slice(n * rank // size, n * (rank + 1) // size)
        self.share = (rows.stop - rows.start) / n
        if not self.share:  # more ranks than examples: one of them again, with weight 0
            rows = slice(0, 1)

        def noted(model, x, y):
            result = objective(model, x, y)
            self.totals = self.totals_of(result, y)
            return result

        with setting(RANKS, None), setting(_rows, (rows, n)):
            for _ in inner(model, x[rows], y[rows], noted, self, begin):
                yield self.totals

    def step(self, grads: list[Array]) -> None:
        """Add up the gradients and the totals of all ranks, and take the step of the optimizer."""
        xp, ends = array_module(*grads), np.cumsum([g.size for g in grads]).tolist()
        length = ends[-1] + len(self.totals) + 2
        if not len(self.buffer):
            with agreeing(self.comm) as facts:
                options = vars(self.optimizer).items()
                facts.update({k: v for k, v in options if isinstance(v, (int, float, str))})
                facts["numbers of the objective"] = list(self.totals)
        if len(self.buffer) != length:  # one array for all that travels, and one for the sums
            self.buffer = xp.zeros(length, np.result_type(np.float32, *(g.dtype for g in grads)))
            self.sums = np.zeros(length, self.buffer.dtype)
        *parts, numbers = xp.split(self.buffer, ends)
        for part, g in zip(parts, grads, strict=True):
            part[...] = g.reshape(-1)
            part *= self.share
        for k, total in enumerate(self.totals.values()):
            numbers[k] = total if self.share else 0
        numbers[-2], numbers[-1] = self.optimizer.lr, self.interrupted.is_set()
        self.comm.Allreduce(to_numpy(self.buffer), self.sums)
        *parts, numbers = xp.split(xp.asarray(self.sums), ends)
        self._check_rate(float(self.sums[-2]))
        self.optimizer.step([part.reshape(g.shape) for part, g in zip(parts, grads, strict=True)])
        self.totals = dict(zip(self.totals, numbers, strict=False))
        if self.sums[-1]:
            self.stop.set()

    def _check_rate(self, total: float) -> None:
        own, mean = self.optimizer.lr, total / self.comm.Get_size()
        if abs(own - mean) > 1e-5 * abs(mean):
            raise ValueError(
                f"the ranks disagree about the learning rate: {own:g} here, {mean:g} on average. "
                "Their weights would differ: schedule must not depend on the rank"
            )


@contextmanager
def sharing_batches(
    comm: Any, run: Any, parts: dict, train_batch: Callable, totals: Callable, interrupted: Any,
    exact: bool,
) -> Iterator[tuple]:  # fmt: skip
    """The training of ``fit`` over the ranks, or as it is if there is one process.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or None
    run : TrainingState
        Any error but ``run.ended_by``, which is raised on all ranks, ends them.
    parts : dict of str to object
        What may draw random numbers in a step: ``perturb``, ``objective``.
    train_batch, totals, interrupted, exact
        As for :class:`DataParallel`.
    Yields
    ------
    train_batch, interrupted
        To be used instead.
    """
    if not several(comm):
        yield train_batch, interrupted
        return
    team, run.writes = DataParallel(comm, run.optimizer, totals, interrupted, exact), is_first(comm)
    with ending_together(comm, lambda e: e is run.ended_by), setting(RANKS, Ranks(comm)):
        for p in run.model.parameters():  # whatever each rank began with
            p.value[...] = array_module(p.value).asarray(comm.bcast(to_numpy(p.value)))
        run.rng.bit_generator.state = comm.bcast(run.rng.bit_generator.state)
        for place in () if exact else chain(*map(_generators, parts.values())):
            place["rng"] = by_rows(comm, place["rng"])
        yield lambda *args: team.train_batch(train_batch, *args), team.stop
    comm.Barrier()  # rank 0 has written the last checkpoint
