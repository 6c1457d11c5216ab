"""Several attacks on the same examples: the loop, and the table of what each of them found.

    correct     (N,)  classified correctly without any attack
    attacked    (N,)  given to an attack
    survived    (N,)  given to an attack, and still classified correctly

In a *cascade* each attack is given only the examples that survived the attacks before it, so an
example counts as robust only if it survives all of them, and later attacks have less work.

An attack only proposes examples. Whether it succeeds is decided here: its examples are checked, and
the model, which is given arrays, classifies them once more.
:func:`tinyadv.evaluate.robustness` and :func:`~tinyadv.attacks.auto.auto_attack` share this loop.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from tinyadv.attacks.shared import QueryOnly, bar
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import L1, L2, Linf
from tinyadv.distributed import count_passes
from tinyadv.inputs import Model, check_returned, frozen, predict, warn_of_nan
from tinyadv.tensor import Array, Tensor

NORMS = {"Linf": Linf(0), "L2": L2(0), "L1": L1(0)}  # the norms in which perturbations are measured


# --------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class AttackResult:
    """What one attack found. All arrays are NumPy arrays with one entry for each of N examples.

    Attributes
    ----------
    attacked : (N,) bool
        The examples that the attack was given; ``attacked.sum()`` is their number.
    survived : (N,) bool
        Those of them that are still classified correctly.
    sizes : dict of (N,) float
        ``"Linf"``, ``"L2"``, ``"L1"`` → the norm of x_adv - x where the attack succeeded, NaN
        elsewhere.
    queries, gradients : float
        Passes with arrays, and passes with tensors, which is how gradients are taken, per attacked
        example. The pass in which an attack checks its inputs is included, so that 40 steps are 40
        gradients and a little more.
    seconds : float
        The time until its result was complete, on a GPU as well.
    """

    attacked: np.ndarray
    survived: np.ndarray
    sizes: dict[str, np.ndarray]
    queries: float
    gradients: float
    seconds: float

    @property
    def succeeded(self) -> np.ndarray:
        """(N,) bool: classified correctly before this attack, and misclassified after it."""
        return self.attacked & ~self.survived

    @property
    def accuracy(self) -> float:
        """The share of all N examples that are classified correctly after the attack."""
        return float(self.survived.mean())

    @property
    def success_rate(self) -> float:
        """The share of the attacked examples for which the attack succeeds; NaN without any."""
        return float(self.succeeded.sum() / self.attacked.sum()) if self.attacked.any() else np.nan

    @property
    def median(self) -> dict[str, float]:
        """Norm → the median size of the successful perturbations, in pixel values, or NaN."""
        return self._of_successes(np.median)

    @property
    def largest(self) -> dict[str, float]:
        """Norm → the size of the largest successful perturbation, or NaN."""
        return self._of_successes(np.max)

    def _of_successes(self, summary: Callable) -> dict[str, float]:
        found = self.succeeded
        if not found.any():
            return dict.fromkeys(self.sizes, np.nan)
        return {norm: float(summary(size[found])) for norm, size in self.sizes.items()}

    def __repr__(self) -> str:  # the numbers, not the arrays
        names = ("accuracy", "success_rate", "queries", "gradients", "seconds")
        numbers = [f"{name}={getattr(self, name):.6g}" for name in names]
        return f"AttackResult({', '.join(numbers)})"


@dataclass(frozen=True)
class Robustness:
    """What several attacks found; ``print`` and notebooks show it as a table.

    Attributes
    ----------
    correct : (N,) bool
        The examples that are classified correctly without any attack.
    attacks : dict of AttackResult
        By name, in the order in which they ran.
    """

    correct: np.ndarray
    attacks: dict[str, AttackResult]

    @property
    def clean_accuracy(self) -> float:
        """The share of examples that are classified correctly without any attack."""
        return float(self.correct.mean())

    @property
    def broken_by(self) -> np.ndarray:
        """(N,) int: the number of the first attack that succeeded, counted from 0.

        -1 where the example is misclassified without any attack, ``len(attacks)`` where it survives
        all of them.
        """
        first = np.where(self.correct, len(self.attacks), -1)
        for number, result in enumerate(self.attacks.values()):
            first[result.succeeded & (first == len(self.attacks))] = number
        return first

    @property
    def survived(self) -> np.ndarray:
        """(N,) bool: classified correctly without attack and under each of the attacks."""
        return self.broken_by == len(self.attacks)

    @property
    def robust_accuracy(self) -> float:
        """The share of examples that survive all attacks."""
        return float(self.survived.mean())

    worst_case = robust_accuracy
    """Another name of ``robust_accuracy``."""

    def as_dict(self) -> dict:
        """The numbers without the arrays, as JSON can hold them: None instead of NaN."""
        numbers = ("accuracy", "success_rate", "median", "largest", "queries", "gradients",
                   "seconds")  # fmt: skip
        return {
            "examples": len(self.correct),
            "clean_accuracy": self.clean_accuracy,
            "worst_case": self.robust_accuracy,
            "attacks": {
                name: {number: _for_json(getattr(result, number)) for number in numbers}
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
        rows.append(["all attacks", _percent(self.robust_accuracy)])
        widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
        rows.insert(1, ["-" * width for width in widths])
        cells = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
        return "\n".join(map("  ".join, cells))

    __repr__ = table


def _for_json(number):
    """JSON has no NaN."""
    if isinstance(number, dict):
        return {name: _for_json(value) for name, value in number.items()}
    return None if np.isnan(number) else number


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.1f} %"


def _short(number: float) -> str:
    """Three digits, and never an exponent: 0.3, 12.5, 219."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}" if number >= 1e-3 else "<0.001"


# ---------------------------------------------------------------------------------- the loop


class Counted:
    """A model that counts the examples of its passes; several threads may use it at once.

    All other attributes are the model's. A :meth:`frozen` copy adds to the same counts.

    Parameters
    ----------
    model : callable
    """

    def __init__(self, model: Model):
        self.model = model
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()  # += reads, adds and writes: another thread may come between

    @property
    def queries(self) -> int:
        """Examples that came as arrays: all that a query-only attack needs."""
        return self._counts["queries"]

    @property
    def gradients(self) -> int:
        """Examples that came as tensors."""
        return self._counts["gradients"]

    def __call__(self, x: Array) -> Array:
        with self._lock:
            self._counts["gradients" if isinstance(x, Tensor) else "queries"] += len(x)
        return self.model(x)

    def frozen(self) -> Counted:
        """The same with a frozen model, which records no tape for its weights."""
        twin = copy.copy(self)
        twin.model = frozen(self.model)
        return twin

    def __getattr__(self, name: str) -> Any:  # by_example, layers, parameters …
        if name == "model":  # it does not exist yet while a copy is made
            raise AttributeError(name)
        return getattr(self.model, name)


def run_attacks(
    model: Model, x: Array, y: Array, correct: np.ndarray,
    attacks: Mapping[str, Sequence[Callable]], *,
    cascade: bool = True, **options: Any,
) -> Robustness:  # fmt: skip
    """Run several attacks one after another. Only their results are checked.

    Parameters
    ----------
    model, x, y
        As for :func:`tinyadv.evaluate.robustness`.
    correct : (N,) bool, on the host
        Which examples the model classifies correctly.
    attacks : dict
        Name → the runs of the attack, functions ``run(model, x, y, index) -> x_adv`` for the
        examples with the numbers ``index`` (n,); x and y are copies. Each run is given what
        survived the runs before it.
    cascade : bool
        Give each attack only what survived the attacks before it; otherwise all correctly
        classified examples.
    batch_size : int
        The most examples that a run is given at a time.
    ball, progress
        As for :func:`tinyadv.evaluate.robustness`.
    found : (N, …), optional
        Successful adversarial examples are written into it.

    Raises
    ------
    TypeError, ValueError
        If a run does not return images like those that it was given; the message names the attack.
        An error that a run raises has a note with the name.

    Warns
    -----
    AttackWarning
        If the model returns NaN for some of the examples that an attack returned.
    """
    results, survivors = {}, correct
    for name, runs in attacks.items():
        chosen = survivors if cascade else correct
        results[name] = _run_attack(model, x, y, chosen, name, runs, **options)
        survivors = results[name].survived
    return Robustness(correct, results)


def _run_attack(
    model, x, y, chosen, name, runs, *, batch_size, ball=None, progress=False, found=None
):
    xp, counted, judge = array_module(x), Counted(model), QueryOnly(model)
    survived, seconds, undecided = chosen.copy(), 0.0, 0
    count_passes(counted._counts)
    sizes = np.full((len(NORMS), len(x)), np.nan)
    n = int(chosen.sum())
    with bar(progress, n * len(runs), str(name)) as counter:
        for run in runs:
            numbers = np.flatnonzero(survived)
            for start in range(0, len(numbers), batch_size):
                part = numbers[start : start + batch_size]
                index = xp.asarray(part)
                images, labels = x[index], y[index]
                began = time.perf_counter()
                try:
                    # Copies, because an attack may write into its inputs.
                    x_adv = run(counted, images.copy(), labels.copy(), index)
                except Exception as error:
                    error.add_note(f"while the attack {name!r} was running")
                    raise
                check_returned(x_adv, images, f"the attack {name!r}")
                seconds += time.perf_counter() - began  # the check has waited for the device
                fooled, lost, lengths = _measured(judge, images, x_adv, labels, ball)
                undecided += lost
                survived[part] = ~fooled
                sizes[:, part] = np.where(fooled, lengths, np.nan)
                if found is not None:
                    successes = xp.asarray(np.flatnonzero(fooled))
                    found[index[successes]] = x_adv[successes]
                counter.update(len(part))
    warn_of_nan(undecided, f"the examples of the attack {name!r}")
    queries, gradients = (count / max(n, 1) for count in (counted.queries, counted.gradients))
    sizes = dict(zip(NORMS, sizes, strict=True))
    return AttackResult(chosen, survived, sizes, queries, gradients, seconds)


def _measured(judge, x, x_adv, y, ball):
    """Which examples are misclassified (n,), how many of them by NaN, and ‖x_adv - x‖ (3, n).

    All are fetched from the device at once.
    """
    xp, delta = array_module(x), x_adv.astype(np.float64) - x.astype(np.float64)
    predicted = predict(judge, x_adv)
    fooled = predicted != y
    if ball is not None:
        # x + δ is rounded in each pixel, and so is what an attack takes ‖δ‖ to be.
        eps = float(np.finfo(x.dtype).eps)
        pixels = ball.norm(xp.full_like(delta[:1], eps / 2))
        fooled = fooled & (ball.norm(delta) <= ball.epsilon * (1 + 16 * eps) + pixels)
    rows = [fooled, fooled & (predicted < 0), *(norm.norm(delta) for norm in NORMS.values())]
    fooled, lost, *lengths = to_numpy(xp.stack([row.astype(np.float64) for row in rows]))
    return fooled > 0, int(lost.sum()), np.stack(lengths)
