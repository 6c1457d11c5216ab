"""Attacks by the gradient of the loss for the pixels: FGSM, PGD, and PGD that adapts its steps.

The inner maximisation of min-max training, max L(x + δ, y) over all δ in a ball, is climbed:

    start at a random δ
    repeat:  g ← ∂L/∂x at x + δ        one pass forward and back
             δ ← δ + α · steepest(g)   the direction that raises a linear L most at length 1
             δ ← project(δ)            back into ball and box

What "steepest" and "project" mean depends on the norm, and stands in :mod:`tinyadv.balls`. Pixels
and ε are in units of 0–1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np

from tinyadv.attacks.common import (
    AttackWarning,
    by_pieces,
    check_ball,
    check_counts,
    check_finite,
    checked,
    input_gradient,
    is_fooled,
    per_example,
    step_or_default,
    to_raise,
    worse,
)
from tinyadv.backend import array_module
from tinyadv.balls import Ball, Linf
from tinyadv.losses import cross_entropy
from tinyadv.tensor import Array, _value


def fgsm(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    ball: Ball = Linf(0.3),
    step_size: float | None = None,
    random_start: bool = False,
    loss: Callable = cross_entropy,
    target: Array | int | None = None,
    rng: np.random.Generator | int = 0,
    workers: int | None = None,
) -> Array:
    """The fast gradient sign method: x + ε · sign(∂L/∂x), clipped to [0, 1].

    Goodfellow et al. (2015), "Explaining and harnessing adversarial examples". It is one step of
    :func:`pgd` with step size ε, from x itself. With ``random_start=True`` and a step of 1.25 ε it
    is after Wong et al. (2020), "Fast is better than free", who also start outside of [0, 1]:
    theirs is :class:`tinyadv.defenses.Fast`.

    Parameters
    ----------
    model, x, y, ball, loss, target, rng, workers
        As for :func:`pgd`. In another ball than ``Linf`` the step goes in that ball's steepest
        direction.
    step_size : float, optional
        In pixel values 0–1. By default ε, and 1.25 ε with a random start.
    random_start : bool
        Start at a random point of the ball instead of x.

    Returns
    -------
    x_adv : (N, …)
    """
    check_ball(ball)
    if step_size is None:
        step_size = ball.epsilon * (1.25 if random_start else 1)
    return pgd(
        model, x, y, ball=ball, step_size=step_size, steps=1, random_start=random_start,
        loss=loss, target=target, rng=rng, workers=workers,
    )  # fmt: skip


def pgd(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    ball: Ball = Linf(0.3),
    step_size: float | None = None,
    steps: int = 40,
    restarts: int = 1,
    random_start: bool = True,
    momentum: float = 0.0,
    loss: Callable = cross_entropy,
    target: Array | int | None = None,
    rng: np.random.Generator | int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Array:
    """Projected gradient descent, on minus the loss: "the universal first-order adversary".

    Madry et al. (2018), "Towards deep learning models resistant to adversarial attacks". Their
    MNIST attack is ``ball=Linf(0.3), step_size=0.01, steps=40``.

    Parameters
    ----------
    model : callable
        Takes images, arrays or tensors (n, …), and returns logits (n, K), each image on its own. A
        :class:`~tinyadv.layers.Module` is one, a function of your own is another.
    x : (N, …) of a floating-point type
        Images, pixel values 0–1.
    y : (N,) integers, optional
        Their labels. By default the model's own predictions: that needs no knowledge of the truth,
        but an image that is misread already is then led away from the wrong answer.
    ball : Ball
        Which perturbations are allowed: ``Linf(ε)``, ``L2(ε)``, ``L1(ε, pixels=20)``, ε in pixel
        values 0–1. In L1 the steepest step changes one pixel alone, and comes to nothing where that
        pixel is black or white already; shared among more pixels, steps get farther.
    step_size : float, optional
        α, in the ball's norm. By default 2.5 ε / steps, and ε at most: from three steps on
        enough to reach any point of the ball from any other, and to move along its surface then.
    steps : int
    restarts : int
        Runs from different random starts. Of each image the worst result is kept: one that fools
        the model, and among those the one with the largest loss.
    random_start : bool
        Start at a random point of the ball; otherwise at x.
    momentum : float
        μ: 0 is plain PGD. With another μ the steps follow g ← μ g + ∇/‖∇‖₁. With ``momentum=1,
        random_start=False, steps=10, step_size=ε/10`` this is MI-FGSM (Dong et al. 2018, "Boosting
        adversarial attacks with momentum").
    loss : callable
        What is raised: a loss of :mod:`tinyadv.losses` (``cross_entropy``, ``margin``, ``dlr``), or
        any ``loss(logits, labels, reduction="none") -> (N,)`` made of :mod:`tinyadv.ops`.
    target : (N,) integers or one integer, optional
        Classes to reach; then minus the loss of the target is raised. For ``dlr`` it is the form of
        that loss for targets, :func:`tinyadv.losses.dlr_targeted`.
    rng : numpy.random.Generator or int
        For the random starts, drawn on the host for the whole batch: the same on every backend.
    workers : int, optional
        Threads that share the images; by default as many as there are cores. The result does not
        depend on it.
    progress : bool
        Show a bar on terminals.

    Returns
    -------
    x_adv : (N, …)
        In the ball around ``x``, in [0, 1], of the shape and dtype of ``x``.

    Raises
    ------
    TypeError, ValueError
        If ``x``, ``y`` or ``target`` are not as described, if the model does not return logits, or
        if a number is out of range. The message says what came.

    Warns
    -----
    AttackWarning
        If the model seems to return probabilities, a target is the label itself, a single step is
        longer than ε though the attack starts at x, or there are restarts without random starts.

    Examples
    --------
    >>> from tinyadv import models
    >>> x = np.random.default_rng(0).random((2, 1, 28, 28))
    >>> x_adv = pgd(models.slides_cnn(), x, ball=Linf(0.1), steps=5)
    >>> x_adv.shape, bool(abs(x_adv - x).max() <= 0.1 + 1e-9)
    ((2, 1, 28, 28), True)
    """
    check_ball(ball)
    x, y, target = checked(model, x, y, target)
    check_counts(steps=steps, restarts=restarts)
    step_size = step_or_default(step_size, ball, steps)
    _check_step(step_size, ball, random_start)
    if not momentum >= 0:
        raise ValueError(f"momentum must be ≥ 0, got {momentum}")

    steps_up = partial(
        climb, model, ball=ball, step_size=step_size, steps=steps, momentum=momentum, loss=loss
    )
    return _worst_of_restarts(
        steps_up, model, x, y, target, ball=ball, restarts=restarts, random_start=random_start,
        loss=loss, rng=rng, workers=workers, progress=progress, name="PGD",
    )  # fmt: skip


def climb(
    model: Callable,
    x: Array,
    y: Array,
    target: Array | None,
    delta: Array,
    *,
    ball: Ball,
    step_size: float,
    steps: int,
    momentum: float = 0.0,
    loss: Callable = cross_entropy,
) -> Array:
    """The loop of :func:`pgd` alone: from δ, ``steps`` steps upwards; returns x + δ.

    Nothing is checked, and nothing is cut into pieces. Arguments as for :func:`pgd`; ``y`` may be
    anything that ``loss`` takes.
    """
    low, high = -x, 1 - x  # so that 0 ≤ x + δ ≤ 1
    velocity = 0.0
    for _ in range(steps):
        g, _, _ = input_gradient(model, x + delta, y, target, loss=loss)
        if momentum:
            velocity = momentum * velocity + _at_unit_l1(g)
            g = velocity
        delta = ball.project(delta + step_size * ball.steepest(g), low, high)
    return x + delta


def _check_step(step_size: float, ball: Ball, random_start: bool) -> None:
    if step_size > ball.epsilon and not random_start:
        warnings.warn(
            f"a step of {step_size:g} is longer than ε = {ball.epsilon:g}: from x, each step ends "
            "at the edge of the ball. Take step_size ≤ ε, or random_start=True",
            AttackWarning,
            stacklevel=3,
        )


def _at_unit_l1(g):
    """Each example's gradient divided by its 1-norm; zero stays zero."""
    xp = array_module(g)
    size = abs(g).sum(tuple(range(1, g.ndim)), keepdims=True)
    return g / xp.where(size > 0, size, 1)


def _worst_of_restarts(
    climb, model, x, y, target, *, ball, restarts, random_start, loss, rng, workers, progress, name
):
    """Run ``climb`` from several starts and keep the worst result for each example."""
    xp, rng = array_module(x), np.random.default_rng(rng)
    if restarts > 1 and not random_start:
        warnings.warn(
            f"all {restarts} restarts begin at x and do the same: take random_start=True, or one",
            AttackWarning,
            stacklevel=3,
        )

    def run(x, y, target, start):
        x_adv = climb(x, y, target, start)
        if restarts == 1:
            return x_adv
        logits = _value(model(x_adv))
        value = to_raise(loss, logits, y, target)
        return x_adv, is_fooled(logits, y, target), value

    worst = None
    for i in range(restarts):
        start = ball.random(x, rng) if random_start else xp.zeros_like(x)
        label = name if restarts == 1 else f"{name}, start {i + 1}/{restarts}"
        found = by_pieces(
            run, x, y, target, start, workers=workers, progress=progress, name=label
        )  # fmt: skip
        worst = found if restarts == 1 else worse(worst, found)
    return check_finite(worst if restarts == 1 else worst[0])


def apgd(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    ball: Ball = Linf(0.3),
    steps: int = 100,
    restarts: int = 1,
    random_start: bool = True,
    momentum: float = 0.25,
    rho: float = 0.75,
    loss: Callable = cross_entropy,
    target: Array | int | None = None,
    rng: np.random.Generator | int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Array:
    """PGD with no step size to choose: Auto-PGD.

    Croce & Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", algorithm 1. Each image has its own step η, 2 ε at first. At
    checkpoints, farther apart at first than later, η is halved and the image goes back to the best
    point it has seen, if the loss rose in too few of the steps since the last checkpoint, or if
    neither η nor the best loss has changed since then. The paper has it for L∞ and L2; in L1 it
    takes the same steps here, and needs a ball with several ``pixels``.

    Parameters
    ----------
    model, x, y, ball, restarts, random_start, loss, target, rng, workers, progress
        As for :func:`pgd`.
    steps : int
    momentum : float
        1 - α, the share of the last change that goes into a step.
    rho : float
        ρ: the share of steps that must raise the loss for η to stay.

    Returns
    -------
    x_adv : (N, …)
        The last point that fooled the model, or, where none did, the one with the largest loss.
    """
    check_ball(ball)
    x, y, target = checked(model, x, y, target)
    check_counts(steps=steps, restarts=restarts)
    for label, share in {"momentum": momentum, "rho": rho}.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{label} must be from 0 to 1, got {share}")
    if math.isinf(ball.epsilon):
        raise ValueError(
            "apgd starts with a step of 2 ε, which must be finite: give the ball a radius; "
            "Linf(1) holds all images"
        )
    checkpoints = _checkpoints(steps)

    def climb(x, y, target, delta):
        xp, low, high = array_module(x), -x, 1 - x

        def rows(a):
            return per_example(a, x)

        def look(delta):
            g, value, logits = input_gradient(model, x + delta, y, target, loss=loss)
            return g, value, is_fooled(logits, y, target)

        eta = xp.full_like(x[(slice(None),) + (0,) * (x.ndim - 1)], 2 * ball.epsilon)  # (N,)
        before = delta
        g, value, fooled = look(delta)
        result, best, best_g, best_value = delta, delta, g, value
        has_fooled = fooled
        rises = xp.zeros_like(value)  # steps that raised the loss since the last checkpoint
        halved, best_value_then, last = xp.zeros_like(fooled), value, 0
        for k in range(1, steps + 1):
            z = ball.project(delta + rows(eta) * ball.steepest(g), low, high)
            mu = momentum if k > 1 else 0.0
            step = (1 - mu) * (z - delta) + mu * (delta - before)
            before, delta = delta, ball.project(delta + step, low, high)

            old_value = value
            g, value, fooled = look(delta)
            rises = rises + (value > old_value)
            better = value > best_value
            best, best_g = (
                xp.where(rows(better), new, old) for new, old in ((delta, best), (g, best_g))
            )
            best_value = xp.where(better, value, best_value)
            has_fooled = has_fooled | fooled
            take = fooled | (better & ~has_fooled)
            result = xp.where(rows(take), delta, result)

            if k in checkpoints:
                too_few = rises < rho * (k - last)
                stuck = ~halved & (best_value <= best_value_then)
                halved = too_few | stuck
                eta = xp.where(halved, eta / 2, eta)
                delta, g = (
                    xp.where(rows(halved), old, new) for old, new in ((best, delta), (best_g, g))
                )
                value = xp.where(halved, best_value, value)
                best_value_then, last, rises = best_value, k, xp.zeros_like(rises)
        return x + result

    return _worst_of_restarts(
        climb, model, x, y, target, ball=ball, restarts=restarts, random_start=random_start,
        loss=loss, rng=rng, workers=workers, progress=progress, name="APGD",
    )  # fmt: skip


def _checkpoints(steps: int) -> set[int]:
    """The steps at which APGD looks back: p₁ = 0.22, each gap 0.03 shorter, 0.06 at least."""
    share, gap, result = 22, 22, set()  # in hundredths: 0.22 + 0.19 + 0.16 is not 0.57 in floats
    while share <= 100:
        result.add(-(-share * steps // 100))  # rounded up
        gap = max(gap - 3, 6)
        share += gap
    return result
