"""How good a network is, on clean and on attacked examples.

    predict           the class of each example
    accuracy          the share that is right, with an attack or without
    robustness        several attacks in one table: what each one finds, how, and at which cost
    robustness_curve  the accuracy over ε

What an attack claims does not count. It only proposes examples: they are checked here, and the
network is asked again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import L1, L2, Ball, Linf
from tinyadv.data import batches
from tinyadv.tensor import Array, Tensor, _value

NORMS = {"Linf": Linf(0), "L2": L2(0), "L1": L1(0)}  # in which perturbations are measured


def predict(model: Callable, x: Array, batch_size: int = 500) -> Array:
    """The class with the largest logit for each example.

    Parameters
    ----------
    model : callable
        Takes (n, …) images, returns (n, K) logits.
    x : (N, …)
    batch_size : int
        Examples in one pass; bounds the memory, not the result.

    Returns
    -------
    (N,) int64, on the backend of ``x``

    Raises
    ------
    ValueError
        If ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    xp = array_module(x)
    labels = [_value(model(x[i : i + batch_size])).argmax(1) for i in range(0, len(x), batch_size)]
    return xp.concatenate(labels) if labels else xp.zeros(0, np.int64)


def accuracy(
    model: Callable, x: Array, y: Array, attack: Callable | None = None, batch_size: int = 500
) -> float:
    """The share of examples that are classified as ``y``, between 0 and 1.

    Parameters
    ----------
    model : callable
        Takes (n, …) images, returns (n, K) logits.
    x : (N, …)
    y : (N,) integers
        A label that the model has no logit for counts as wrong; nothing waits to look for one.
    attack : callable, optional
        ``attack(model, x, y) -> x_adv``; the accuracy is then that on what it returns.
    batch_size : int
        Examples in one pass.

    Raises
    ------
    ValueError
        If there are no examples, or ``y`` is not one integer for each.
    """
    x, y = _examples_and_labels(x, y, "accuracy")
    correct = 0
    for xb, yb in batches(x, y, batch_size):
        if attack is not None:
            xb = attack(model, xb, yb)
        right = predict(model, xb, batch_size) == array_module(xb).asarray(yb)
        correct = correct + right.sum()  # stays on the device until the end
    return float(correct) / len(x)


def _examples_and_labels(x, y, name: str):
    """Both as arrays, if there is one integer label for each of one or more examples."""
    x, y = (v if hasattr(v, "shape") else np.asarray(v) for v in (x, y))  # lists are fine
    if len(x) == 0:
        raise ValueError(f"{name} needs one example at least, got none")
    if y.shape != (len(x),) or y.dtype.kind not in "iu":  # (N, 1) would compare all with all
        raise ValueError(
            f"labels must be integers of shape ({len(x)},), one for each example, "
            f"got {y.dtype} of shape {y.shape}"
        )
    return x, y


def _check_classes(model, x, y) -> None:
    """Raise an error unless the model has a logit for each label."""
    classes, y = _value(model(x[:1])).shape[-1], to_numpy(y)
    if not 0 <= y.min() <= y.max() < classes:
        raise ValueError(
            f"labels must be from 0 to {classes - 1}, the model returns {classes} logits; "
            f"got labels from {y.min()} to {y.max()}"
        )


# ------------------------------------------------------------------------------- several attacks


@dataclass(frozen=True)
class AttackResult:
    """What one attack did. All arrays are NumPy's, with one entry for each of N examples.

    Attributes
    ----------
    attacked : (N,) bool
        The examples that it was given: those that were right until then.
    survived : (N,) bool
        Those of them that are still right.
    sizes : dict of (N,) float
        ``"Linf"``, ``"L2"``, ``"L1"`` → the norm of x_adv - x where the attack succeeded, NaN
        elsewhere.
    queries, gradients : float
        Passes with arrays, and passes with tensors, which is how gradients are taken, for each
        attacked example. What an attack looks at before it starts is counted too, so that 40 steps
        are 40 gradients and a little more.
    seconds : float
    """

    attacked: np.ndarray
    survived: np.ndarray
    sizes: dict[str, np.ndarray]
    queries: float
    gradients: float
    seconds: float

    @property
    def succeeded(self) -> np.ndarray:
        """(N,) bool: right before this attack, and wrong after it."""
        return self.attacked & ~self.survived

    @property
    def accuracy(self) -> float:
        """The share of all N examples that are right after the attack."""
        return float(self.survived.mean())

    @property
    def success_rate(self) -> float:
        """The share of the attacked examples that the attack turned; NaN if there were none."""
        return float(self.succeeded.sum() / self.attacked.sum()) if self.attacked.any() else np.nan

    @property
    def median(self) -> dict[str, float]:
        """The median norm of the perturbations that succeeded, or NaN: norm → pixel values."""
        return self._of_successes(np.median)

    @property
    def largest(self) -> dict[str, float]:
        """The largest norm of those that succeeded, or NaN."""
        return self._of_successes(np.max)

    def _of_successes(self, summary: Callable) -> dict[str, float]:
        found = self.succeeded
        return {
            norm: float(summary(size[found])) if found.any() else np.nan
            for norm, size in self.sizes.items()
        }

    def __repr__(self) -> str:  # the numbers, not the arrays
        names = ("accuracy", "success_rate", "queries", "gradients", "seconds")
        numbers = [f"{name}={getattr(self, name):.6g}" for name in names]
        return f"AttackResult({', '.join(numbers)})"


@dataclass(frozen=True)
class Robustness:
    """What several attacks did to a model; ``print`` and notebooks show it as a table.

    Attributes
    ----------
    correct : (N,) bool
        The examples that are right without any attack.
    attacks : dict of AttackResult
        By name, in the order in which they ran.
    """

    correct: np.ndarray
    attacks: dict[str, AttackResult]

    @property
    def clean_accuracy(self) -> float:
        """The share of examples that are right without any attack."""
        return float(self.correct.mean())

    @property
    def survived(self) -> np.ndarray:
        """(N,) bool: right without attack, and under each of the attacks."""
        fallen = np.any([result.succeeded for result in self.attacks.values()], axis=0)
        return self.correct & ~fallen

    @property
    def worst_case(self) -> float:
        """The share of examples that survive all attacks, each example meeting its worst one."""
        return float(self.survived.mean())

    def as_dict(self) -> dict:
        """The numbers without the arrays, for a JSON file; what does not exist is None."""
        return {
            "examples": len(self.correct),
            "clean_accuracy": self.clean_accuracy,
            "worst_case": self.worst_case,
            "attacks": {
                name: {
                    "accuracy": result.accuracy,
                    "success_rate": _or_none(result.success_rate),
                    "median": {norm: _or_none(size) for norm, size in result.median.items()},
                    "largest": {norm: _or_none(size) for norm, size in result.largest.items()},
                    "queries": result.queries,
                    "gradients": result.gradients,
                    "seconds": result.seconds,
                }
                for name, result in self.attacks.items()
            },
        }

    def table(self) -> str:
        """The numbers as an aligned table."""
        header = ["", "accuracy", "success", "L∞ median, max", "L2 median, max", "L1 median, max",
                  "queries", "gradients", "seconds"]  # fmt: skip
        rows = [header, ["no attack", _percent(self.clean_accuracy)]]
        for name, result in self.attacks.items():
            median, largest = result.median, result.largest
            sizes = [f"{_short(median[norm])}, {_short(largest[norm])}" for norm in NORMS]
            rows.append([
                str(name), _percent(result.accuracy), _percent(result.success_rate),
                *(sizes if result.succeeded.any() else ["–"] * len(NORMS)),
                f"{result.queries:.1f}", f"{result.gradients:.1f}", f"{result.seconds:.1f}",
            ])  # fmt: skip
        rows.append(["worst case", _percent(self.worst_case)])
        rows = [row + [""] * (len(header) - len(row)) for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, ["-" * width for width in widths])
        lines = []
        for first, *others in rows:
            cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()


def _or_none(number: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(number) else number


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.1f} %"


def _short(number: float) -> str:
    """Three digits, and never an exponent: 0.3, 12.5, 219."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}" if number >= 1e-3 else "<0.001"


class Counted:
    """A model that counts its passes; several threads may use it at once.

    Parameters
    ----------
    model : callable

    Attributes
    ----------
    queries : int
        Examples that came as arrays: all that an attack without gradients needs.
    gradients : int
        Examples that came as tensors.
    """

    def __init__(self, model: Callable):
        self.model = model
        self.queries = self.gradients = 0
        # `+=` reads, adds and writes: another thread may come between.
        self._lock = threading.Lock()

    def __call__(self, x):
        with self._lock:
            if isinstance(x, Tensor):
                self.gradients += len(x)
            else:
                self.queries += len(x)
        return self.model(x)

    def __getattr__(self, name):  # layers, parameters …: all else is the model's
        if name == "model":  # not there yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.model, name)


def robustness(
    model: Callable,
    x: Array,
    y: Array,
    attacks: Mapping[str, Callable],
    *,
    ball: Ball | None = None,
    batch_size: int = 1000,
    cascade: bool = False,
    progress: bool = False,
) -> Robustness:
    """How many examples stay right under each of several attacks, and under all of them.

    An example that is wrong without attack counts as wrong and is not attacked; all shares are
    shares of all N examples. What an attack returns is checked, and shown to the model again: only
    that decides.

    Parameters
    ----------
    model : callable
        Takes (n, …) images, returns (n, K) logits.
    x : (N, …)
        Images, pixel values 0–1.
    y : (N,) integers
    attacks : dict
        Name → ``attack(model, x, y) -> x_adv``: a function of :mod:`tinyadv.attacks`, with its
        settings bound by ``functools.partial(pgd, ball=Linf(0.1))``, or one of your own.
    ball : Ball, optional
        Count an attack's success only where x_adv - x lies in this ball, up to rounding. Needed
        where attacks that look for the smallest perturbation, of any size, stand beside others.
    batch_size : int
        Examples that an attack gets at a time.
    cascade : bool
        Give each attack only what has survived those before it: the same worst case for less
        work, if strong and cheap attacks come first. An attack's accuracy is then that after all
        attacks so far.
    progress : bool
        Show a bar on terminals.

    Returns
    -------
    Robustness

    Raises
    ------
    TypeError
        If ``attacks`` is no dict, ``ball`` is no ball, or an attack returns no array of the
        backend of ``x``.
    ValueError
        If there are no examples or no attacks, ``y`` is not one integer for each example, from 0
        to K - 1, or ``x`` or what an attack returns has pixels that are not numbers from 0 to 1;
        the message names the attack. An error that an attack raises has a note with its name.

    Examples
    --------
    >>> from functools import partial
    >>> from tinyadv import models
    >>> from tinyadv.attacks import fgsm, pgd
    >>> x, y = np.random.default_rng(0).random((8, 1, 28, 28)), np.arange(8)
    >>> weak, strong = partial(fgsm, ball=Linf(0.1)), partial(pgd, ball=Linf(0.1), steps=5)
    >>> result = robustness(models.slides_cnn(), x, y, {"FGSM": weak, "PGD-5": strong})
    >>> result.worst_case <= result.attacks["PGD-5"].accuracy <= result.clean_accuracy
    True
    """
    x, y = _examples_and_labels(x, y, "robustness")
    if not isinstance(attacks, Mapping):
        raise TypeError(
            "attacks must be a dict, name → attack(model, x, y), such as "
            f"{{'PGD': functools.partial(pgd, ball=Linf(0.1))}}, got {type(attacks).__name__}"
        )
    if not attacks:
        raise ValueError("robustness needs one attack at least, got an empty dict")
    if not isinstance(ball, Ball | None):
        raise TypeError(f"ball must be Linf(ε), L2(ε) or L1(ε), got {ball!r}")
    _check_pixels(x, "x")
    _check_classes(model, x, y)
    correct = _right(model, x, y, batch_size)
    results: dict[str, AttackResult] = {}
    standing = correct
    for name, attack in attacks.items():
        results[name] = _attacked(
            model, x, y, standing if cascade else correct, name, attack, ball, batch_size, progress
        )
        standing = results[name].survived
    return Robustness(correct, results)


def _right(model, x, y, batch_size: int) -> np.ndarray:
    """Which examples are right: (N,) of bool, on the host."""
    return to_numpy(predict(model, x, batch_size)) == to_numpy(y)


def _attacked(model, x, y, standing, name, attack, ball, batch_size, progress) -> AttackResult:
    """Give ``attack`` the examples that are ``standing``, and look at what it returns."""
    from tqdm import tqdm

    xp = array_module(x)
    y = xp.asarray(y)
    counted = Counted(model)
    survived = standing.copy()
    sizes = {norm: np.full(len(x), np.nan) for norm in NORMS}
    numbers = np.flatnonzero(standing)
    bar = tqdm(total=len(numbers), desc=str(name), leave=False, disable=None if progress else True)
    seconds = 0.0
    with bar:
        for start in range(0, len(numbers), batch_size):
            chosen = numbers[start : start + batch_size]
            xb, yb = (a[xp.asarray(chosen)] for a in (x, y))
            began = time.perf_counter()
            try:
                x_adv = attack(counted, xb, yb)
            except Exception as error:
                error.add_note(f"while the attack {name!r} was running")
                raise
            _check_returned(x_adv, xb, name)
            seconds += time.perf_counter() - began  # the check has waited for the device
            # Not xb again: an attack may have written into it.
            delta = x_adv.astype(np.float64) - x[xp.asarray(chosen)].astype(np.float64)
            turned = ~_right(model, x_adv, y[xp.asarray(chosen)], batch_size)
            if ball is not None:
                # Pixels of 0–1 plus δ are rounded, and may lie outside by that much.
                turned &= to_numpy(ball.norm(delta)) <= ball.epsilon * (1 + 1e-4) + 1e-6
            survived[chosen] = ~turned
            for norm, measure in NORMS.items():
                sizes[norm][chosen] = np.where(turned, to_numpy(measure.norm(delta)), np.nan)
            bar.update(len(chosen))
    each = max(len(numbers), 1)
    return AttackResult(
        standing, survived, sizes, counted.queries / each, counted.gradients / each, seconds
    )


def _check_returned(x_adv, x, name) -> None:
    """Raise an error that names the attack unless it returned images that could be real."""
    if type(x_adv) is not type(x):
        raise TypeError(
            f"the attack {name!r} must return an array as it was given, {type(x).__name__} of "
            f"{type(x).__module__}, got {type(x_adv).__name__} of {type(x_adv).__module__}"
        )
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        raise ValueError(
            f"the attack {name!r} must return {x.dtype} of shape {x.shape}, as it was given, "
            f"got {x_adv.dtype} of shape {x_adv.shape}"
        )
    _check_pixels(x_adv, f"what the attack {name!r} returned")


def _check_pixels(x, name: str) -> None:
    low, high = to_numpy(array_module(x).stack([x.min(), x.max()]))
    if not (low >= 0 and high <= 1):  # NaN compares as false
        # str shows all digits that the dtype has: 1.0000001 is not 1.
        seen = f"values from {low!s} to {high!s}; np.clip(x, 0, 1) removes rounding errors"
        raise ValueError(
            f"{name} must have pixel values from 0 to 1, got {'NaN' if low != low else seen}"
        )


# ---------------------------------------------------------------------------------- over epsilon


def robustness_curve(
    model: Callable,
    x: Array,
    y: Array,
    attack: Callable[[float], Callable],
    epsilons: Iterable[float],
    *,
    batch_size: int = 1000,
    cascade: bool = False,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The accuracy under an attack, for each of several ε.

    Parameters
    ----------
    model, x, y, batch_size, progress
        As for :func:`robustness`.
    attack : function
        ``attack(epsilon)`` returns an attack of that size:
        ``lambda epsilon: functools.partial(pgd, ball=Linf(epsilon))``.
    epsilons : sequence of float
        In pixel values 0–1, in any order. At 0 there is no attack: this is the clean accuracy.
    cascade : bool
        Count what has fallen to a smaller ε as fallen to the larger ones as well, which have it in
        their balls, and do not attack it again. The curve then never rises. Otherwise each ε
        stands for itself, and a curve that rises shows an attack that fails.

    Returns
    -------
    epsilons, accuracies : (E,) arrays, in the order given

    Raises
    ------
    ValueError
        If an ε is negative or NaN, and for the reasons that :func:`robustness` has.

    Examples
    --------
    >>> from functools import partial
    >>> from tinyadv import models
    >>> from tinyadv.attacks import fgsm
    >>> model, x = models.slides_cnn(), np.random.default_rng(0).random((8, 1, 28, 28))
    >>> y = predict(model, x)
    >>> epsilons, accuracies = robustness_curve(
    ...     model, x, y, lambda epsilon: partial(fgsm, ball=Linf(epsilon)), [0, 0.5])
    >>> bool(accuracies[0] == 1 and accuracies[1] < 1)
    True
    """
    x, y = _examples_and_labels(x, y, "robustness_curve")
    epsilons = np.array(list(epsilons), float)
    if not (epsilons >= 0).all():
        raise ValueError(f"epsilons must be ≥ 0, got {epsilons.tolist()}")
    _check_pixels(x, "x")
    _check_classes(model, x, y)
    correct = standing = _right(model, x, y, batch_size)
    accuracies = np.empty_like(epsilons)
    for i in np.argsort(epsilons):  # upwards, for the cascade
        epsilon = float(epsilons[i])
        if epsilon > 0:
            standing = _attacked(
                model, x, y, standing if cascade else correct, f"ε = {epsilon:g}",
                attack(epsilon), None, batch_size, progress,
            ).survived  # fmt: skip
        accuracies[i] = standing.mean()
    return epsilons, accuracies
