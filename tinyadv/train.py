"""Training: one loop, in which the objective and the inner maximisation are arguments.

    min over θ of  E[ max over δ of  L(f_θ(x + δ), y) ]
    ‾‾‾‾‾‾‾‾‾‾        ‾‾‾‾‾‾‾‾‾‾     ‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾
    optimizer=        perturb=       objective=

:func:`train_step` is the algorithm for one batch, and :func:`fit` repeats it. The rest of the
module is about arguments, Ctrl-C and what is printed.
"""

from __future__ import annotations

import inspect
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from tinyadv.backend import array_module
from tinyadv.checkpoint import TrainingState, check_writable
from tinyadv.data import Dataset
from tinyadv.distributed import (
    agreeing,
    by_rows,
    check_sharable,
    is_first,
    on_any_rank,
    sharing_batches,
)
from tinyadv.evaluate import accuracy
from tinyadv.inputs import as_arrays, check_counts
from tinyadv.layers import Module
from tinyadv.losses import cross_entropy
from tinyadv.optim import Optimizer, Schedule, WeightAverage
from tinyadv.tensor import RNG, Array, Tensor, grad, tape, value_of

# Batches between two looks at the loss while an epoch runs. On a GPU each look waits for it.
LOOK_EVERY = 50


def cross_entropy_objective(model: Module, x: Array, y: Array) -> tuple[Tensor, Tensor]:
    """The usual objective: the mean cross-entropy of a batch, and the logits."""
    logits = model(x)
    return cross_entropy(logits, y), logits


def train_step(
    perturb: Callable | None, model: Module, x: Array, y: Array, objective: Callable,
    optimizer: Optimizer, begin: Callable,
) -> Iterator[Result]:  # fmt: skip
    """Train on one batch: perturb it, differentiate the objective, take a step.

    A ``perturb`` that has a method ``train_batch`` replaces this function by
    ``train_batch(model, x, y, objective, optimizer, begin)``, such as
    :meth:`tinyadv.defenses.Free.train_batch`, which takes several steps.

    Parameters
    ----------
    perturb, model, objective, optimizer
        As for :func:`fit`; ``objective`` returns a :class:`Result`.
    x, y : (N, …), (N,)
        The batch.
    begin : callable
        ``begin(k, m)`` must be called before update k = 0, …, m - 1 of this batch: it sets the
        learning rate, and calls ``at(epoch)`` of the defences.

    Yields
    ------
    Result
        Of the objective, after each update of the parameters.
    """
    begin(0, 1)
    if perturb is not None:
        x = _images(perturb(model, x, y), "perturb")
    result = objective(model, x, y)
    optimizer.step(grad(result.loss, optimizer.params))
    yield result


def fit(
    model: Module, data: Dataset, optimizer: Optimizer, epochs: int,
    perturb: Callable | None = None, *,
    augment: Callable | None = None, objective: Callable = cross_entropy_objective,
    batch_size: int = 128, schedule: Schedule | None = None,
    average: float | WeightAverage | None = None, rng: RNG = 0,
    validate: bool | Callable = True, checkpoint: str | os.PathLike | None = None,
    checkpoint_steps: int | None = None, resume: bool = False, progress: bool = True,
    comm: Any = None, exact: bool = False,
) -> History:  # fmt: skip
    """Train ``model`` in place.

    Each step takes a batch of shuffled examples, lets ``perturb`` change them, and moves the
    parameters against the gradient of the objective. With an attack as ``perturb`` this is the
    min-max training of Madry et al. (2018); without one it is standard training.

    Parameters
    ----------
    model : Module
        Everything runs on the backend of its parameters; the data are moved there.
    data : Dataset
        ``x_train`` (N, C, H, W) and ``y_train`` (N,) are trained on; the test part is for the
        validation.
    optimizer : Optimizer
        Made with ``model.parameters()``, or with some of them: the other parameters are frozen,
        which means that they do not change and that no gradient is computed for them.
    epochs : int
        Passes over the training data in total, including passes before a resumed checkpoint.
    perturb : callable, optional
        The inner maximisation: ``perturb(model, x, y) -> x_adv``, see :mod:`tinyadv.defenses`. If
        it takes an ``rng`` that is not set yet, as ``partial(pgd, ball=Linf(0.3))`` does, it is
        given the generator of the run and draws new numbers in each step. A function of your own
        that calls an attack must pass such an ``rng`` on, or the attack draws the same numbers in
        each step. Or an object that updates the parameters itself, see :func:`train_step`.
    augment : callable, optional
        ``augment(x, rng) -> x``, applied first, such as ``random_shift(2)`` of :mod:`tinyadv.data`.
        It draws from the generator that shuffles.
    objective : callable
        ``objective(model, x, y) -> (loss, logits)``: a scalar tensor, and a tensor (N, K) for the
        training accuracy. It may return a dictionary of named scalars as well, as
        ``(loss, logits, {"penalty": penalty})``. Their means over the epoch become columns of the
        history; they may be tensors or arrays, and nothing waits for them before the epoch ends.
        Parameters that the loss does not depend on have the gradient 0. An ``rng`` is given to it
        as to ``perturb``.
    batch_size : int
    schedule : callable, optional
        ``schedule(epoch) -> learning rate``, where ``epoch`` has fractions; see
        :mod:`tinyadv.optim`. By default the optimiser keeps its own. It is not part of the
        checkpoint: a resumed run uses the schedule that it is given.
    average : float or WeightAverage, optional
        Keep a running average of the weights that are trained, by default none: a number is the
        decay of a :class:`tinyadv.optim.WeightAverage`. Steps are taken from the weights
        themselves, and training is the same as without an average. The averaged weights are
        validated, and ``model`` has them when ``fit`` returns. If ``fit`` raises an error instead,
        the model has the weights of the last step.
    rng : numpy.random.Generator or int
        For the shuffling, for ``augment``, and for a ``perturb`` that takes an ``rng``. Its state
        is part of the checkpoint, so a resumed run repeats all these draws.
    validate : bool or callable
        What to do after each epoch. ``True`` measures the test accuracy, ``False`` nothing. A
        function ``validate(model)`` returns a number, which is recorded as the test accuracy, or a
        dictionary of named numbers, which become columns of the history. With ``comm`` every
        process calls it.
    checkpoint : path, optional
        The file to keep the training state in: written at the end of every epoch, on Ctrl-C, and
        every ``checkpoint_steps`` batches.
    checkpoint_steps : int, optional
    resume : bool
        Continue from ``checkpoint`` if that file exists. The weights at the end are then the same,
        bit by bit, as after an uninterrupted run on the same machine. The optimiser must have the
        same options; if it is made with another learning rate, training continues with that.
    progress : bool
        A bar on a terminal, and a line for each epoch.
    comm : mpi4py.MPI.Comm, optional
        Share each batch among the processes of this communicator, such as ``MPI.COMM_WORLD`` in a
        program that ``mpiexec -n 4 python -m mpi4py`` starts; see :mod:`tinyadv.distributed`. All
        of them call ``fit`` with the same arguments, begin with the weights of rank 0, and end with
        the same weights. The loss must be a mean over the examples. Random numbers must come from a
        generator: the argument ``rng`` of a function, or the attribute ``rng`` of a defence; see
        :class:`tinyadv.distributed.RowsGenerator` for what can be drawn. Rank 0 writes the
        checkpoint, on a file system that all of them read; any number of processes can resume it.
        An error in a step, or in the validation, ends all of them.
    exact : bool
        With ``comm``: the same numbers as in one process, bit by bit. This is faster than one
        process only on a CPU and for a network with convolutions. A batch is cut into pieces of at
        most 64 examples, at least two, so a batch of 128 gives work to two processes only. By
        default the processes exchange less, and the numbers agree up to rounding.

    Returns
    -------
    History

    Raises
    ------
    TypeError
        If ``data`` is not a data set, an argument that should be a function is not, ``perturb`` or
        ``augment`` does not return images, ``objective`` does not return two tensors, or ``comm``
        is not a communicator. With ``comm`` also if a generator cannot draw the rows of a process.
    ValueError
        If an argument or a name is not allowed, the loss does not depend on any parameter of the
        optimiser, ``average`` has been used in another run, or several processes cannot share a
        batch. In that case nothing is changed. Also if the processes have different arguments or
        find different checkpoints, or one of them cannot begin.
    CheckpointError
        A ValueError: if the checkpoint is broken, or belongs to other settings or another network.
    OSError
        If the checkpoint cannot be written; a path that does not allow it is noticed at the
        beginning.
    FloatingPointError
        If the loss is no longer finite; the message says what to try.
    KeyboardInterrupt
        On Ctrl-C, after the current batch is done and the state is saved. A second Ctrl-C does not
        wait. A ``fit`` that is called within a step of another one leaves Ctrl-C to that one, and
        a handler of SIGINT that Python does not know stays in place.

    Notes
    -----
    If ``perturb``, ``objective`` or ``average`` has a method ``at(epoch)``, it is called before
    each step with the number of epochs done, including fractions: for an ε that grows. If it has
    ``state_dict()`` and ``load_state_dict(state)``, its state is part of the checkpoint.
    """
    with agreeing(comm) as facts:
        check_counts(0, epochs=epochs)
        every = 1 if checkpoint_steps is None else checkpoint_steps
        check_counts(batch_size=batch_size, checkpoint_steps=every)
        _check_functions(perturb=perturb, augment=augment, objective=objective, schedule=schedule)
        if not (isinstance(validate, (bool, np.bool_)) or callable(validate)):
            raise TypeError(f"validate must be True, False or a function, got {validate!r}")
        if (resume or checkpoint_steps) and checkpoint is None:
            raise ValueError(
                "resume and checkpoint_steps need checkpoint=, the file to keep state in"
            )
        xp = array_module(*[p.value for p in model.parameters()])
        x_train, y_train = _part(data, "train", xp)
        if validate and not callable(validate):
            x_test, y_test = _part(data, "test", xp)
            validate = lambda model: accuracy(model, x_test, y_test)
        if average is not None and not hasattr(average, "swap"):
            average = WeightAverage(optimizer.params, decay=average)
        if isinstance(average, WeightAverage) and (average.steps or average.weights):
            raise ValueError("average belongs to a run before this one: make a new WeightAverage")
        parts: dict[str, Any] = {"perturb": perturb, "objective": objective, "average": average}
        settings = {"examples": len(x_train), "batch_size": int(batch_size)}
        check_sharable(comm, model, *(() if exact else (perturb, objective)))
        progress, rng = progress and is_first(comm), by_rows(comm, np.random.default_rng(rng))
        run = TrainingState(model, optimizer, rng, History(), settings=settings, parts=parts)
        if resume and checkpoint is not None and os.path.exists(checkpoint):
            run.load(checkpoint)
        if checkpoint is not None and run.epoch < epochs:
            check_writable(checkpoint)  # now, and not after an epoch
        facts.update(images=len(x_train), batch_size=batch_size, epochs=epochs, exact=exact)
        facts.update(validate=bool(validate), epoch=run.epoch, step=run.step)

    train_batch = getattr(perturb, "train_batch", None)
    train_batch = train_batch or partial(train_step, with_generator(perturb, rng))
    evaluated = partial(_evaluated, with_generator(objective, rng), optimizer.params)
    batches = math.ceil(len(x_train) / batch_size)

    def begin(k: int, m: int) -> None:
        epoch = run.epoch + (run.step * m + k) / (batches * m)
        if schedule is not None:
            optimizer.lr = schedule(epoch)
        for part in parts.values():
            if hasattr(part, "at"):
                part.at(epoch)

    with (
        _interrupts() as event,
        sharing_batches(comm, run, parts, train_batch, _totals, event, exact) as (train, stopped),
    ):
        while run.epoch < epochs:
            if run.order is None:
                run.order = rng.permutation(len(x_train))
            started = time.perf_counter() - run.seconds
            for step in _bar(run, batches, epochs, progress):
                rows = xp.asarray(run.order[step * batch_size : (step + 1) * batch_size])
                x, y = x_train[rows], _read_only(y_train[rows])
                if augment is not None:
                    x = _images(augment(x, rng), "augment")
                for result in train(model, x, y, evaluated, optimizer, begin):
                    run.add(len(y), **_totals(result, y))
                    if parts["average"] is not None:
                        parts["average"].update()

                run.step += 1
                stop = stopped.is_set()
                save = checkpoint_steps is not None and run.step % checkpoint_steps == 0
                if stop or save or run.step % LOOK_EVERY == 0 or run.step == batches:
                    run.settle()
                    run.seconds = time.perf_counter() - started
                    _check_finite(run)
                if stop:
                    break
                if save and checkpoint is not None:
                    run.save(checkpoint)
            else:
                with run.averaged():
                    numbers = _validated(validate, model, run)
                run.end_epoch(**numbers)
                if progress:
                    _print_line(run.history, epochs)

            if checkpoint is not None:
                run.save(checkpoint)
            if stopped.is_set() or on_any_rank(comm, event.is_set()):
                when = f"in epoch {run.epoch + 1}" if run.step else f"after epoch {run.epoch}"
                kept = f"state saved in {run.saved_in}" if run.saved_in else "no state kept"
                raise run.end(KeyboardInterrupt(f"stopped {when}: {kept}"))
    if parts["average"] is not None:
        parts["average"].swap()
    return run.history


# ---------------------------------------------------------------------------- results and history


class Result(NamedTuple):
    """What the objective returns for a batch."""

    loss: Tensor
    """a scalar"""
    logits: Tensor
    """(N, K)"""
    numbers: dict = {}  # noqa: RUF012 (never changed)
    """scalars by name, for the history"""


@dataclass(eq=False, repr=False)
class History(SimpleNamespace):
    """What happened in each epoch: parallel lists with one entry per epoch.

    ``loss`` and ``train_accuracy`` are means over the epoch while the weights were changing, on the
    examples as trained on (the perturbed ones, if there was a ``perturb``). ``test_accuracy`` is
    measured at the end of the epoch, on clean examples; NaN where there was no validation. Numbers
    that an objective or a ``validate`` function names are further lists: ``history.their_name``.
    """

    epoch: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def append(self, **row: float) -> None:
        """Add an epoch. A new name becomes a new list, with NaN for the epochs before."""
        before = len(self.epoch)
        for name in {**vars(self), **row}:
            vars(self).setdefault(name, [math.nan] * before).append(row.get(name, math.nan))

    def plot(self, axes: Any = None) -> Any:
        """Draw loss and accuracies over epochs; returns the two matplotlib axes.

        Parameters
        ----------
        axes : pair of matplotlib axes, optional
            For the loss and for the accuracy; made if not given.
        """
        import matplotlib.pyplot as plt
        from matplotlib.ticker import LogLocator

        if axes is None:
            _, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
        left, right = axes
        left.plot(self.epoch, self.loss, "o-", color="C0")
        left.set(xlabel="epoch", ylabel="training loss", yscale="log")
        # Plain numbers, where there is room for them: 0.5, not 5 × 10⁻¹.
        left.yaxis.set(minor_locator=LogLocator(subs=(2, 5)))
        left.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
        right.plot(self.epoch, [100 * a for a in self.train_accuracy], "o-", label="training")
        if not all(map(math.isnan, self.test_accuracy)):
            right.plot(self.epoch, [100 * a for a in self.test_accuracy], "s--", label="test")
        right.set(xlabel="epoch", ylabel="accuracy, %")
        right.legend(frameon=False)
        return axes


def _totals(result: Result | dict, y: Array) -> dict[str, Any]:
    """What a step returned, summed over the examples; the sums stay on the device."""
    if isinstance(result, dict):  # the totals of several processes
        return result
    loss, logits, numbers = result
    totals = {name: value_of(number) * len(y) for name, number in numbers.items()}
    correct = (logits.value.argmax(1) == y).sum()
    return {"loss": loss.value * len(y), "train_accuracy": correct, **totals}


# ------------------------------------------------------------------------------------- arguments


def _check_functions(**functions: Any) -> None:
    for name, function in functions.items():
        usable = function is None or callable(function) or hasattr(function, "train_batch")
        if not usable or isinstance(function, type):
            raise TypeError(f"{name} must be a function, or act as one, got {function!r}")


def _part(data: Dataset, part: str, xp: Any) -> tuple[Array, Array]:
    """The images and labels of a part of the data, after a check, on the backend ``xp``."""
    x, y = (getattr(data, f"{name}_{part}", None) for name in "xy")
    hint = "; validate=False does not need them" if part == "test" else ""
    if x is None or y is None:
        raise TypeError(
            f"fit needs data.x_{part} and data.y_{part}, as a tinyadv.data.Dataset has them; got a "
            f"{type(data).__name__} without them{hint}"
        )
    if not len(x) == len(y) > 0:
        got = f"{len(x)} images and {len(y)} labels"
        raise ValueError(f"fit needs {part} images and a label for each, got {got}{hint}")
    # CuPy knows this machine's byte order only, and NumPy computes faster in it.
    x, y = (a.astype(a.dtype.newbyteorder("="), copy=False) for a in as_arrays(x, y))
    return xp.asarray(x), xp.asarray(y)


def _read_only(y: Array) -> Array:
    """``y``, which ``perturb`` must not change, because the training accuracy depends on it."""
    if isinstance(y, np.ndarray):
        y.flags.writeable = False
    return y


def _images(x: Any, source: str) -> Array:
    """What ``perturb`` or ``augment`` returned, after a check."""
    if isinstance(x, Tensor) or not hasattr(x, "shape"):
        raise TypeError(
            f"{source} must return an array of images, got {type(x).__name__}: take the .value "
            "of a Tensor; a function that returns (loss, logits) goes into objective="
        )
    return x


def with_generator(function: Any, rng: np.random.Generator) -> Any:
    """``function``, or if it takes an argument ``rng`` that is not set, it with ``rng``."""
    try:
        arguments = inspect.signature(function, follow_wrapped=False).parameters
    except (TypeError, ValueError):  # None, or something that does not tell its arguments
        return function
    is_set = "rng" not in arguments or "rng" in getattr(function, "keywords", ())
    return function if is_set else partial(function, rng=rng)


def _evaluated(objective, params, model, x, y):
    """What ``objective`` returned, after a check."""
    returned = objective(model, x, y)
    parts = returned if isinstance(returned, (tuple, list)) else [returned]
    if len(parts) not in (2, 3) or not all(map(isinstance, parts, (Tensor, Tensor, Mapping))):
        raise TypeError(
            "objective must return (loss, logits), two Tensors, and optionally a dictionary of "
            f"named numbers; got {', '.join(type(part).__name__ for part in parts)}"
        )
    result, trained = Result(*parts), set(map(id, params))
    if not any(id(node) in trained for node in tape(result.loss)):
        raise ValueError(
            "the loss does not depend on any parameter of the optimizer: compute it from model(x) "
            "with tinyadv.ops; float(), .value and Tensor() lose how it was computed"
        )
    _check_columns("objective", result.numbers, RESERVED)
    return result


def _validated(validate: Any, model: Module, run: TrainingState) -> dict:
    """The numbers that ``validate`` returned, after a check."""
    numbers = validate(model) if validate else {}
    if not isinstance(numbers, Mapping):
        numbers = {"test_accuracy": numbers}
    _check_columns("validate", numbers, RESERVED - {"test_accuracy"} | run.sums.keys())
    return {name: float(value_of(number)) for name, number in numbers.items()}


RESERVED = {*vars(History()), *dir(History)}  # what a column of the history must not be called


def _check_columns(source: str, numbers: Mapping, taken: set) -> None:
    for name, number in numbers.items():
        if not (isinstance(name, str) and name.isidentifier()) or name in taken:
            hint = "choose a Python identifier that is still free"
            raise ValueError(f"{source} named a number {name!r}: {hint}")
        number = value_of(number)
        if not isinstance(number, (int, float)) and getattr(number, "shape", None) != ():
            got = f"{type(number).__name__} for {name}"
            raise TypeError(f"{source} must return numbers, got {got}: take a mean")


# ------------------------------------------------------------------------- Ctrl-C, NaN, the screen


class _CtrlC(threading.Event):
    """A handler of SIGINT: the first Ctrl-C sets the event; the next one acts as usual."""

    def __init__(self, usual):
        super().__init__()
        self.usual = usual

    def __call__(self, number, frame):
        self.set()
        signal.signal(signal.SIGINT, self.usual)


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """While this is open, the first Ctrl-C sets the event."""
    main = threading.current_thread() is threading.main_thread()  # the others handle no signals
    usual = signal.getsignal(signal.SIGINT) if main else None
    # Three handlers stay in place: None, which is not Python's and could not be put back; the
    # handler that ignores Ctrl-C; and another fit's, which saves its state after its current step.
    if usual in (None, signal.SIG_IGN) or isinstance(usual, _CtrlC):
        yield threading.Event()
        return
    signal.signal(signal.SIGINT, event := _CtrlC(usual))
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, usual)


def _check_finite(run: TrainingState) -> None:
    weights = [p.value for p in run.model.parameters()]
    loss, _ = run.sums["loss"]
    if math.isfinite(loss) and all(array_module(w).isfinite(w).all() for w in weights):
        return
    kept = f" The last good state is in {run.saved_in}." if run.saved_in else ""
    message = (
        f"the loss or a weight is not finite in epoch {run.epoch + 1}, by step {run.step}. Try a "
        f"lower learning rate (it is {run.optimizer.lr:g}) or one that rises from a low value "
        f"(piecewise_linear), and look for NaN or unscaled numbers in the data.{kept}"
    )
    raise run.end(FloatingPointError(message))


def _bar(run: TrainingState, batches: int, epochs: int, progress: bool) -> Any:
    """The numbers of the batches that are left in this epoch, with a progress bar."""
    from tqdm import tqdm

    name, hidden = f"epoch {run.epoch + 1}/{epochs}", None if progress else True
    left = range(run.step, batches)  # with disable=None there is a bar on terminals only
    return tqdm(left, name, batches, initial=run.step, leave=False, disable=hidden)


def _print_line(history: History, epochs: int) -> None:
    from tqdm import tqdm

    last = {name: column[-1] for name, column in vars(history).items()}
    line = f"epoch {last['epoch']:2}/{epochs}  loss {last['loss']:.4f}"
    line += f"  training {100 * last['train_accuracy']:6.2f} %"
    if not math.isnan(last["test_accuracy"]):
        line += f"  test {100 * last['test_accuracy']:6.2f} %"
    for name in list(last)[len(vars(History())) :]:
        line += f"  {name} {last[name]:.4g}"
    tqdm.write(f"{line}  {last['seconds']:.1f} s")
