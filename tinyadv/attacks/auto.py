"""AutoAttack: four attacks that fail for different reasons, one after the other, nothing to tune.

A weak attack makes a network look robust. An attack that is strong against one network may be weak
against the next, where the loss is flat, the gradients lie or the step size does not fit. So four
are taken, and an example counts as robust if it stands against all of them:

    APGD-CE   climbs the cross-entropy, with steps that adapt
    APGD-T    climbs the targeted DLR loss, which does not go flat: towards one class after another
    FAB-T     looks for the smallest perturbation, and whether that is at most ε
    Square    asks for answers only, no gradients

Each attack gets the examples that are still standing, which is less and less work.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from tinyadv.attacks.blackbox import square
from tinyadv.attacks.boundary import fab
from tinyadv.attacks.common import (
    AttackWarning,
    all_logits,
    answers_only,
    asked_again,
    check_answers,
    check_ball,
    check_counts,
    checked,
    is_fooled,
    ranked_others,
)
from tinyadv.attacks.gradient import apgd
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import L2, Ball, Linf
from tinyadv.losses import cross_entropy, dlr, margin
from tinyadv.tensor import Array


@dataclass(frozen=True)
class Round:
    """What one of the attacks did: ``before`` and ``after`` count the examples that stand."""

    name: str
    before: int
    after: int
    seconds: float


@dataclass(frozen=True)
class AutoReport:
    """What became of each example; ``print`` shows it as a table.

    Attributes
    ----------
    rounds : tuple of Round
        One for each attack, in the order in which they ran.
    broken_by : (N,) integers, on the host
        The number of the attack that broke the example, 0 for the first; -1 where the example was
        misread before any attack, and ``len(rounds)`` where it stands.
    """

    rounds: tuple[Round, ...]
    broken_by: np.ndarray = field(repr=False)

    @property
    def clean_accuracy(self) -> float:
        """The share of the examples that are read correctly without attack."""
        return float((self.broken_by >= 0).mean())

    @property
    def standing(self) -> np.ndarray:
        """(N,) bool: which examples stand against all attacks."""
        return self.broken_by == len(self.rounds)

    @property
    def robust_accuracy(self) -> float:
        """Their share of all examples."""
        return float(self.standing.mean())

    def __str__(self) -> str:
        n = len(self.broken_by)
        lines = [
            f"{'':10}  accuracy  broken  seconds",
            f"{'no attack':10}  {self.clean_accuracy:8.2%}",
        ]
        lines += [
            f"{r.name:10}  {r.after / n:8.2%}  {r.before - r.after:6}  {r.seconds:7.1f}"
            for r in self.rounds
        ]
        return "\n".join(lines)


def auto_attack(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    ball: Ball = Linf(0.3),
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
    rng: np.random.Generator | int = 0,
    details: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> Array | tuple[Array, AutoReport]:
    """The standard ensemble: APGD-CE, APGD-T, FAB-T and Square, on what is still standing.

    Croce & Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", in the authors' standard version of it: one start for each attack. The
    defaults are theirs, and numbers that are to be compared with others' should not change them;
    with fewer steps, targets and queries it is quicker and finds less.

    Parameters
    ----------
    model : callable
        Takes images, arrays or tensors (n, C, H, W), and returns logits (n, K), each image on its
        own and always the same ones.
    x : (N, C, H, W) of a floating-point type
        Images, pixel values 0–1.
    y : (N,) integers, optional
        Their labels; by default the model's own predictions.
    ball : Linf or L2
        Which perturbations are allowed, ε in pixel values 0–1.
    steps : int
        Of APGD, and of FAB for each class.
    targets : int
        How many classes APGD-T and FAB-T try, those with the largest logits at ``x``; of K classes
        K - 1 at most.
    queries : int
        Of Square.
    rng : numpy.random.Generator or int
        For random starts and squares, drawn on the host.
    details : bool
        Return a report as well.
    workers : int, optional
        Threads that share the images; the result does not depend on it.
    progress : bool
        Show bars on terminals.

    Returns
    -------
    x_adv : (N, C, H, W)
        In the ball around ``x``, in [0, 1], of the shape and dtype of ``x``: the first image that
        was found to be misread. Examples that stand come back as they were, and so do those that
        were misread from the start.
    report : AutoReport
        Only with ``details=True``: how many examples stood before and after each attack, the
        seconds it took, and which of them broke which example.

    Raises
    ------
    TypeError
        If ``ball`` is neither ``Linf`` nor ``L2``, ``x`` is no array of floating-point numbers, or
        the model returns no tensor for a tensor.
    ValueError
        If ``x`` is not (N, C, H, W), if ε is infinite, if there is NaN among the model's logits, or
        if another input is not as described.

    Warns
    -----
    AttackWarning
        If ε > 1 in Linf; if the model seems to return probabilities, or answers the same image
        differently each time; and if Square breaks more than one in a hundred of all examples after
        the attacks with gradients have failed there: the gradients then may be of no use.

    Notes
    -----
    The targeted DLR loss needs four classes. With two or three, APGD-T climbs the margin instead:
    the target's logit minus the largest other one, which with two classes is the label's. It is not
    divided by anything, but only the sign or the direction of its gradient goes into a step.

    Examples
    --------
    >>> from tinyadv import models
    >>> x = np.random.default_rng(0).random((4, 1, 28, 28))
    >>> x_adv, report = auto_attack(models.slides_cnn(), x, ball=Linf(0.2), details=True)
    >>> [(r.name, r.before, r.after) for r in report.rounds[:2]]
    [('APGD-CE', 4, 0), ('APGD-T', 0, 0)]
    """
    x, y, _ = checked(model, x, y)
    check_counts(steps=steps, targets=targets, queries=queries)
    check_ball(ball)
    _check_ball_and_shape(ball, x)
    xp, rng = array_module(x), np.random.default_rng(rng)
    logits = all_logits(model, x)
    check_answers(logits)
    _check_same_answers(model, x)
    others = ranked_others(logits, y)[:, :targets]  # (N, T), the most likely class first
    shared = {"ball": ball, "workers": workers, "progress": progress}

    def apgd_ce(x, y, others, rng):
        return apgd(model, x, y, loss=cross_entropy, steps=steps, rng=rng, **shared)

    def apgd_t(j, x, y, others, rng):
        loss = dlr if logits.shape[1] >= 4 else margin
        return apgd(model, x, y, loss=loss, target=others[:, j], steps=steps, rng=rng, **shared)

    def fab_t(x, y, others, rng):
        nearest, found = fab(
            model, x, y, targets=targets, steps=steps, rng=rng, details=True, **shared
        )
        return xp.where((found.distance <= ball.epsilon)[:, None, None, None], nearest, x)

    def search(x, y, others, rng):
        return square(model, x, y, queries=queries, rng=rng, **shared)

    attacks = {
        "APGD-CE": [apgd_ce],
        "APGD-T": [partial(apgd_t, j) for j in range(others.shape[1])],
        "FAB-T": [fab_t],
        "Square": [search],
    }
    stands = len(attacks)
    x_adv, rounds = x.copy(), []
    broken_by = np.where(to_numpy(logits.argmax(1) == y), stands, -1)
    for number, (name, runs) in enumerate(attacks.items()):
        began, before = time.perf_counter(), int((broken_by == stands).sum())
        for run in runs:
            standing = np.flatnonzero(broken_by == stands)
            if not len(standing):
                break
            now, seed = xp.asarray(standing), int(rng.integers(2**63))
            with warnings.catch_warnings():  # what they warn of has been said, or is no news here
                warnings.simplefilter("ignore", AttackWarning)
                tried = run(x[now], y[now], others[now], seed)
            answers = all_logits(answers_only(model), tried)
            fooled = np.flatnonzero(to_numpy(is_fooled(answers, y[now])))
            x_adv[now[xp.asarray(fooled)]] = tried[xp.asarray(fooled)]
            broken_by[standing[fooled]] = number
        after = int((broken_by == stands).sum())
        rounds.append(Round(name, before, after, time.perf_counter() - began))
    _check_square(rounds[-1], len(x))
    return (x_adv, AutoReport(tuple(rounds), broken_by)) if details else x_adv


def _check_ball_and_shape(ball, x) -> None:
    if not isinstance(ball, (Linf, L2)):
        raise TypeError(f"auto_attack is for Linf and L2, as the Square Attack is; got {ball!r}")
    if x.ndim != 4:
        raise ValueError(
            f"auto_attack needs images (N, C, H, W), for the Square Attack; got shape {x.shape}: "
            "reshape x, and let the model begin with a layer that flattens"
        )


def _check_same_answers(model, x) -> None:
    """Warn if the model's logits are other ones when it is asked again."""
    random, change, _ = asked_again(model, x[:100])
    if random:
        warnings.warn(
            f"the model's logits for the same images changed by up to {change:.3g}: it seems to be "
            "random. What breaks it once need not do so again; attack its average instead",
            AttackWarning,
            stacklevel=3,
        )


def _check_square(last: Round, n: int) -> None:
    """Warn if the attack without gradients finds what those with gradients have not."""
    broken = last.before - last.after
    if broken > 0.01 * n:
        warnings.warn(
            f"Square, which asks for no gradients, broke {broken} of {last.before} examples that "
            "stood against the attacks with gradients: the gradients may be masked. More steps, or "
            "an attack made for this model, may find still more",
            AttackWarning,
            stacklevel=3,
        )
