"""Training: one loop, in which the objective and the inner maximisation are arguments."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from tinyadv import checkpoint as files
from tinyadv.backend import array_module
from tinyadv.data import Dataset
from tinyadv.evaluate import accuracy
from tinyadv.layers import Module
from tinyadv.losses import cross_entropy
from tinyadv.optim import Optimizer, Schedule
from tinyadv.tensor import Array, Tensor, grad

# How often the loss is looked at while an epoch runs. On a GPU each look waits for the device.
LOOK_EVERY = 50


@dataclass
class History:
    """What happened in each epoch: parallel lists, one entry for an epoch.

    ``loss`` and ``train_accuracy`` are means over the epoch while the weights were changing, on the
    examples as trained on (perturbed ones if there was a ``perturb``). ``test_accuracy`` is taken
    at the end of the epoch on clean examples; NaN where there was no validation.
    """

    epoch: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def plot(self, axes=None):
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
        # Plain numbers where there is room for them: 0.5, and not 5 × 10⁻¹.
        left.yaxis.set(minor_locator=LogLocator(subs=(2, 5)))
        left.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
        right.plot(self.epoch, [100 * a for a in self.train_accuracy], "o-", label="training")
        if not all(map(math.isnan, self.test_accuracy)):
            right.plot(self.epoch, [100 * a for a in self.test_accuracy], "s--", label="test")
        right.set(xlabel="epoch", ylabel="accuracy, %")
        right.legend(frameon=False)
        return axes


def cross_entropy_objective(model: Module, x: Array, y: Array) -> tuple[Tensor, Tensor]:
    """The usual objective: the mean cross-entropy of a batch, and the logits."""
    logits = model(x)
    return cross_entropy(logits, y), logits


def fit(
    model: Module,
    data: Dataset,
    optimizer: Optimizer,
    epochs: int,
    perturb: Callable | None = None,
    *,
    augment: Callable | None = None,
    objective: Callable = cross_entropy_objective,
    batch_size: int = 128,
    schedule: Schedule | None = None,
    rng: np.random.Generator | int = 0,
    validate: bool = True,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> History:
    """Train ``model`` in place.

    Each step takes a batch of shuffled examples, lets ``perturb`` change them, and moves the
    parameters along the gradient of the objective: with an attack as ``perturb`` this is the
    min-max training of Madry et al. (2018), without one it is ordinary training.

    Parameters
    ----------
    model : Module
        Its parameters' backend is where everything runs; the data are moved there.
    data : Dataset
        ``x_train`` (N, C, H, W) and ``y_train`` (N,) are trained on, the test part is validated on.
    optimizer : Optimizer
        Made with ``model.parameters()``.
    epochs : int
        How many passes over the training data there shall be in all, resumed ones included.
    perturb : callable, optional
        The inner maximisation: ``perturb(model, x, y) -> x_adv``; see :mod:`tinyadv.defenses`. One
        that returns a tensor is told its gradient, which comes of the same pass as that of the
        weights: ``perturb.learn(g)``. With an attribute ``replays`` each batch is used that many
        times in a row.
    augment : callable, optional
        ``augment(x, rng) -> x``, before anything else, such as :func:`tinyadv.data.random_shift`.
        It draws from the generator of the shuffling.
    objective : callable
        ``objective(model, x, y) -> (loss, logits)``: the loss a scalar tensor, the logits for the
        training accuracy. If it, or ``perturb``, has a method ``at(epoch)``, that is called before
        each step with the epochs done, fractions included: for an ε that grows. If it has
        ``state_dict()`` and ``load_state_dict(state)``, its state is part of the checkpoint.
    batch_size : int
    schedule : callable, optional
        ``schedule(epoch) -> learning rate``, with fractions of an epoch; see
        :mod:`tinyadv.optim`. By default the optimiser keeps its own. No state holds it: to go on
        as before, a resumed run needs the same schedule, and with another it goes on with that.
    rng : numpy.random.Generator or int
        For the shuffling. When ``perturb`` draws from the same generator, or has a state, a
        resumed run repeats its draws as well.
    validate : bool
        Whether to take the test accuracy after each epoch.
    checkpoint : path, optional
        Where to keep the training state: written at the end of every epoch, on Ctrl-C, and every
        ``checkpoint_steps`` steps.
    checkpoint_steps : int, optional
    resume : bool
        Go on from ``checkpoint`` if that file exists. The weights at the end are then the same, bit
        by bit, as those of a run that was never interrupted. The optimiser must have the same
        options; if it is made with another learning rate, training goes on with that.
    progress : bool
        A bar on a terminal, and a line for each epoch.

    Returns
    -------
    History

    Raises
    ------
    TypeError
        If ``data`` is no data set, ``schedule`` no function, ``perturb`` returns no images, or
        ``objective`` something else than two tensors.
    ValueError
        If an argument makes no sense, or the checkpoint belongs to other settings or to another
        network. Nothing is changed then.
    CheckpointError
        If the checkpoint is broken.
    FloatingPointError
        If the loss is no longer finite; the message says what to try.
    KeyboardInterrupt
        On Ctrl-C, after the running step is done and the state is saved. A second one does not
        wait.
    """
    from tqdm import tqdm

    _check_count(epochs=epochs, least=0)
    _check_count(batch_size=batch_size)
    if checkpoint_steps is not None:
        _check_count(checkpoint_steps=checkpoint_steps)
    if schedule is not None and not callable(schedule):
        raise TypeError(
            f"schedule must be a function of the epoch, such as optim.constant(0.1), "
            f"got {schedule!r}"
        )
    if (resume or checkpoint_steps) and checkpoint is None:
        raise ValueError("resume and checkpoint_steps need checkpoint=, the file to keep state in")
    parameters = model.parameters()
    if list(map(id, optimizer.params)) != list(map(id, parameters)):
        raise ValueError("the optimizer changes other parameters: make it with model.parameters()")
    _check_data(data, validate)
    xp = array_module(*[p.value for p in parameters])
    x_train, y_train = xp.asarray(data.x_train), xp.asarray(data.y_train)
    n = len(x_train)
    if validate:
        x_test, y_test = xp.asarray(data.x_test), xp.asarray(data.y_test)
    replays = getattr(perturb, "replays", 1)
    steps = math.ceil(n / batch_size) * replays
    parts = {"perturb": perturb, "objective": objective}
    run = _Run(model, optimizer, np.random.default_rng(rng), n, batch_size, replays, parts)
    if resume and os.path.exists(checkpoint):
        run.load(checkpoint)

    with _interrupts() as interrupted:
        while run.epoch < epochs:
            if run.order is None:  # a new epoch
                run.order = run.rng.permutation(n)
            started = time.perf_counter() - run.seconds
            loss_sum, correct, unsaved = run.loss_sum, run.correct, 0
            bar = tqdm(
                range(run.step, steps),
                desc=f"epoch {run.epoch + 1}/{epochs}",
                initial=run.step,
                total=steps,
                leave=False,
                disable=None if progress else True,  # None: a bar on terminals alone
            )
            for step in bar:
                if schedule is not None:
                    optimizer.lr = schedule(run.epoch + step / steps)
                for part in parts.values():
                    if hasattr(part, "at"):
                        part.at(run.epoch + step / steps)
                if step % replays == 0:
                    first = step // replays * batch_size
                    batch = xp.asarray(run.order[first : first + batch_size])
                    images, y = x_train[batch], y_train[batch]
                    if augment is not None:
                        images = augment(images, run.rng)
                x = images
                if perturb is not None:
                    x = _images(perturb(model, x, y))
                loss, logits = _two_tensors(objective(model, x, y))
                if isinstance(x, Tensor):
                    *gradients, g = grad(loss, [*parameters, x])
                    perturb.learn(g)
                else:
                    gradients = grad(loss, parameters)
                optimizer.step(gradients)

                # Sums stay on the device; float() would wait for it at every step.
                loss_sum = loss_sum + loss.value * len(batch)
                correct = correct + (logits.value.argmax(1) == y).sum()
                run.step = step + 1
                unsaved += 1
                # Between two replays no state could say which images they are of.
                may_end = run.step % replays == 0
                stop = may_end and interrupted.is_set()
                save = may_end and checkpoint_steps is not None and unsaved >= checkpoint_steps
                if stop or save or run.step % LOOK_EVERY == 0 or run.step == steps:
                    run.loss_sum, run.correct = float(loss_sum), int(correct)
                    run.seconds = time.perf_counter() - started
                    _stop_if_not_finite(run)
                if (stop or save) and checkpoint is not None:
                    run.save(checkpoint)
                    unsaved = 0
                if stop:
                    bar.close()
                    raise _stopped(f"in epoch {run.epoch + 1}", run)

            run.end_epoch(accuracy(model, x_test, y_test) if validate else math.nan)
            if checkpoint is not None:
                run.save(checkpoint)
            if progress:
                tqdm.write(_line(run.history, epochs))
            if interrupted.is_set():  # during the validation
                raise _stopped(f"after epoch {run.epoch}", run)
    return run.history


def _check_count(*, least: int = 1, **count) -> None:
    ((name, value),) = count.items()
    if not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be an int ≥ {least}, got {value!r}")


def _check_data(data: Dataset, validate: bool) -> None:
    for part, kind in [("train", "training"), ("test", "test")][: 1 + validate]:
        x, y = (getattr(data, f"{name}_{part}", None) for name in "xy")
        hint = "; validate=False does without" if part == "test" else ""
        if x is None or y is None:
            raise TypeError(
                f"fit needs data.x_{part} and data.y_{part}, as data.load('glyphs') has them, "
                f"got {type(data).__name__} without{hint}"
            )
        if len(x) == 0 or len(y) != len(x):
            raise ValueError(
                f"fit needs {kind} images and a label for each, got {len(x)} and {len(y)}{hint}"
            )


def _images(result):
    """What ``perturb`` returned, if it is what it should."""
    if not hasattr(result, "shape"):
        raise TypeError(
            f"perturb must return images, got {type(result).__name__}: what returns (loss, logits) "
            "goes into objective="
        )
    return result


def _two_tensors(result) -> tuple[Tensor, Tensor]:
    """What an objective returned, if it is what it should."""
    pair = isinstance(result, (tuple, list)) and len(result) == 2
    if not pair or not all(isinstance(part, Tensor) for part in result):
        kinds = [type(part).__name__ for part in result] if pair else type(result).__name__
        raise TypeError(f"objective must return (loss, logits), both Tensors, got {kinds}")
    return result


class _Run:
    """Where a training run stands: all that changes while it goes on, and can be saved."""

    def __init__(self, model, optimizer, rng, examples, batch_size, replays, parts: dict):
        self.model, self.optimizer, self.rng = model, optimizer, rng
        self.parts = {
            name: part for name, part in parts.items() if hasattr(part, "load_state_dict")
        }
        self.settings = {
            "examples": examples,
            "batch_size": int(batch_size),
            "replays": replays,
            "generator": type(rng.bit_generator).__name__,
            "defences": {name: type(part).__name__ for name, part in self.parts.items()},
        }
        self.history = History()
        self.saved_in = None  # the file that holds the last state, if there is one
        self.epoch = 0
        self._new_epoch()

    def _new_epoch(self):
        self.step = 0  # steps of this epoch that are done
        self.order = None  # this epoch's order of the examples, (N,)
        self.loss_sum, self.correct, self.seconds = 0.0, 0, 0.0

    def end_epoch(self, test_accuracy: float) -> None:
        n = self.settings["examples"] * self.settings["replays"]
        self.epoch += 1
        record = {
            "epoch": self.epoch,
            "loss": self.loss_sum / n,
            "train_accuracy": self.correct / n,
            "test_accuracy": test_accuracy,
            "lr": self.optimizer.lr,
            "seconds": self.seconds,
        }
        for name, value in record.items():
            getattr(self.history, name).append(value)
        self._new_epoch()

    def save(self, path) -> None:
        state = {
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": files.generator_state(self.rng),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "history": vars(self.history),
            "settings": self.settings,
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "correct": self.correct,
            "seconds": self.seconds,
        }
        if self.order is not None:
            state["order"] = self.order
        files.save_state(path, state)
        self.saved_in = path

    def load(self, path) -> None:
        state = files.load_state(path)
        if "settings" not in state:
            raise ValueError(
                f"{path} is no training state, it holds {sorted(state)}: give another checkpoint"
            )
        saved = state["settings"]
        differ = [key for key, value in self.settings.items() if saved.get(key) != value]
        if differ:
            raise ValueError(
                f"{path} was written by a run with {_listed(saved, differ)}, this one has "
                f"{_listed(self.settings, differ)}: use the same, or another checkpoint"
            )
        self.optimizer._check_state(state["optimizer"])  # before the weights change
        before = {name: part.state_dict() for name, part in self.parts.items()}
        try:  # all of these may refuse, too
            for name, part in self.parts.items():
                part.load_state_dict(state["parts"][name])
            self.model.load_state_dict(state["weights"])
        except ValueError:
            for name, part in self.parts.items():
                part.load_state_dict(before[name])
            raise
        self.optimizer.load_state_dict(state["optimizer"])
        files.set_generator_state(self.rng, state["rng"])
        self.history = History(**state["history"])
        self.order = state.get("order")
        for name in ("epoch", "step", "loss_sum", "correct", "seconds"):
            setattr(self, name, state[name])
        self.saved_in = path


def _listed(settings: dict, keys: list[str]) -> str:
    return ", ".join(f"{key} = {settings.get(key)}" for key in keys)


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """While this is open, the first Ctrl-C sets the event; the next one acts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # Python lets only the main thread handle signals
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number, frame):
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _stopped(when: str, run: _Run) -> KeyboardInterrupt:
    where = f"state saved in {run.saved_in}" if run.saved_in else "no state kept"
    return KeyboardInterrupt(f"stopped {when}: {where}")


def _stop_if_not_finite(run: _Run) -> None:
    weights = [p.value for p in run.model.parameters()]
    if math.isfinite(run.loss_sum) and all(array_module(w).isfinite(w).all() for w in weights):
        return
    kept = f" The last good state is in {run.saved_in}." if run.saved_in else ""
    raise FloatingPointError(
        f"the loss or a weight is not finite in epoch {run.epoch + 1}, by step {run.step}. Try a "
        f"lower learning rate (it is {run.optimizer.lr:g}), start with a rising one "
        f"(piecewise_linear), and look for NaN or unscaled numbers in the data.{kept}"
    )


def _line(history: History, epochs: int) -> str:
    line = (
        f"epoch {history.epoch[-1]:2}/{epochs}  loss {history.loss[-1]:.4f}  "
        f"training {100 * history.train_accuracy[-1]:6.2f} %"
    )
    if not math.isnan(history.test_accuracy[-1]):
        line += f"  test {100 * history.test_accuracy[-1]:6.2f} %"
    return line + f"  {history.seconds[-1]:.1f} s"
