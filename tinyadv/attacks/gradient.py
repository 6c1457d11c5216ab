"""Attacks along the input gradient: FGSM, PGD, and PGD with an adaptive step size.

They approximate the inner maximum of min-max training, max L(x + δ, y) over all δ in a ball:

    start at a random δ
    repeat:  g ← ∂L/∂x at x + δ        one forward and one backward pass
             δ ← δ + α · steepest(g)   the direction of length 1 in which L rises most
             δ ← project(δ)            back into the ball and [0, 1]

What "steepest" and "project" mean depends on the norm; :mod:`tinyadv.balls` has both. The
parameters that all attacks share are described in :mod:`tinyadv.attacks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from tinyadv import inputs
from tinyadv.attacks import shared
from tinyadv.attacks.shared import input_gradient, is_fooled, judged, moved, per_example, worse
from tinyadv.backend import array_module
from tinyadv.balls import L1, Ball, Linf
from tinyadv.inputs import Checked, Model, checked, lent, warn
from tinyadv.losses import Loss, cross_entropy
from tinyadv.parallel import by_examples
from tinyadv.tensor import RNG, Array


def fgsm(
    model: Model, x: Array | Checked, y: Array | None = None, *,
    ball: Ball = Linf(0.3), step_size: float | None = None, random_start: bool = False,
    loss: Loss = cross_entropy, target: Array | int | None = None, rng: RNG = 0,
) -> Array:  # fmt: skip
    """The fast gradient sign method: x + ε · sign(∂L/∂x), clipped to [0, 1].

    Goodfellow et al. (2015), "Explaining and harnessing adversarial examples". It is one step of
    :func:`pgd` with step size ε, from x itself; in another ball than ``Linf`` the step goes in the
    steepest direction of that ball (FGM). With ``random_start=True`` and a step of 1.25 ε it is
    close to Wong et al. (2020), "Fast is better than free", whose random start may leave [0, 1]:
    their version is :class:`tinyadv.defenses.Fast`.

    Parameters that are not described here: see :mod:`tinyadv.attacks`.

    Parameters
    ----------
    step_size : float, optional
        In pixel values 0–1. By default ε, and 1.25 ε with a random start.
    random_start : bool
        Start at a random point of the ball instead of x.

    Returns
    -------
    x_adv : (N, …)
    """
    if step_size is None and isinstance(ball, Ball):  # pgd raises the error if it is not a ball
        step_size = ball.epsilon * (1.25 if random_start else 1)
    x = checked(model, x, y, target)
    return pgd(model, x, ball=ball, step_size=step_size, steps=1, random_start=random_start,
               loss=loss, rng=rng)  # fmt: skip


def pgd(
    model: Model, x: Array | Checked, y: Array | None = None, *,
    ball: Ball = Linf(0.3), step_size: float | None = None, steps: int = 40, restarts: int = 1,
    random_start: bool = True, momentum: float = 0.0, loss: Loss = cross_entropy,
    target: Array | int | None = None, rng: RNG = 0, progress: bool = False,
) -> Array:  # fmt: skip
    """Projected gradient descent, on minus the loss: "the universal first-order adversary".

    Madry et al. (2018), "Towards deep learning models resistant to adversarial attacks". Their
    MNIST attack is ``ball=Linf(0.3), step_size=0.01, steps=40``. In an L1 ball the steepest step
    changes a single pixel, and has no effect if that pixel is black or white already;
    ``L1(ε, pixels=20)`` shares each step among 20 pixels, and makes more progress.

    Parameters that are not described here: see :mod:`tinyadv.attacks`.

    Parameters
    ----------
    step_size : float, optional
        α, in the norm of the ball. By default 2.5 ε / steps, but at most ε: from three steps on
        this is enough to reach any point of the ball from any other, and to move along its surface.
    steps : int
    restarts : int
        Runs from different random starts. The worst result for each image is kept: one that fools
        the model, and among those the one with the largest loss.
    random_start : bool
        Start at a random point of the ball instead of x.
    momentum : float
        μ: 0 is plain PGD. Otherwise the steps follow g ← μ g + ∇/‖∇‖₁. With ``momentum=1,
        random_start=False, steps=10, step_size=ε/10`` this is MI-FGSM (Dong et al. 2018, "Boosting
        adversarial attacks with momentum").

    Returns
    -------
    x_adv : (N, …)
        In the ball around ``x``.

    Warns
    -----
    AttackWarning
        Also if a single step is longer than ε although the attack starts at x, or if there are
        restarts without random starts.

    Examples
    --------
    >>> from tinyadv import models
    >>> x = np.random.default_rng(0).random((2, 1, 28, 28))
    >>> x_adv = pgd(models.slides_cnn(), x, ball=Linf(0.1), steps=5)
    >>> x_adv.shape, bool(abs(x_adv - x).max() <= 0.1 + 1e-9)
    ((2, 1, 28, 28), True)
    """
    inputs.check_ball(ball)
    x, y, target = checked(model, x, y, target)
    inputs.check_counts(steps=steps, restarts=restarts)
    step_size = shared.step_or_default(step_size, ball, steps)
    if step_size > ball.epsilon and not random_start:
        warn(
            f"a step of {step_size:g} is longer than ε = {ball.epsilon:g}, so each step ends at "
            "the surface of the ball: take step_size ≤ ε, or random_start=True"
        )
    inputs.check_numbers(momentum=momentum)
    run = partial(climb, lent(model), ball=ball, step_size=step_size, steps=steps,
                  momentum=momentum, loss=loss)  # fmt: skip
    worst: Any = None
    for i, start in enumerate(_starts(ball, x, restarts, random_start, rng)):
        with shared.pieces(model, x, progress, "PGD", i, restarts) as how:
            x_adv = by_examples(run, x, y, target, start, **how)
        worst = worse(worst, judged(model, x_adv, y, target, loss)) if restarts > 1 else (x_adv,)
    return shared.check_finite(worst[0])


def climb(
    model: Model, x: Array, y: Array, target: Array | None, delta: Array, *,
    ball: Ball, step_size: float, steps: int, momentum: float = 0.0, loss: Loss = cross_entropy,
) -> Array:  # fmt: skip
    """The loop of :func:`pgd` alone: ``steps`` steps of ascent from δ; returns x + δ.

    Nothing is checked, and nothing is cut into pieces. Arguments as for :func:`pgd`; ``y`` may be
    anything that ``loss`` takes.
    """
    low, high = -x, 1 - x  # so that 0 ≤ x + δ ≤ 1
    velocity = 0.0
    for _ in range(steps):
        g, _, _ = input_gradient(model, x + delta, y, target, loss=loss)
        if momentum:
            velocity = momentum * velocity + shared.normalised(g, L1(1))
            g = velocity
        delta = ball.step(delta, g, step_size, low, high)  # project(δ + α · steepest(g))
    return moved(x, delta)


def _starts(ball: Ball, x: Array, restarts: int, random_start: bool, rng: RNG) -> Iterator[Array]:
    """The perturbation that each run starts with, (N, …): drawn on the host for the whole batch."""
    xp, rng = array_module(x), np.random.default_rng(rng)
    if restarts > 1 and not random_start:
        warn(f"all {restarts} restarts start at x and give the same result: take random_start=True")
    for _ in range(restarts):
        yield ball.random(x, rng) if random_start else xp.zeros_like(x)


def apgd(
    model: Model, x: Array | Checked, y: Array | None = None, *,
    ball: Ball = Linf(0.3), steps: int = 100, restarts: int = 1, random_start: bool = True,
    momentum: float = 0.25, rho: float = 0.75, loss: Loss = cross_entropy,
    target: Array | int | None = None, rng: RNG = 0, progress: bool = False,
) -> Array:  # fmt: skip
    """PGD with no step size to choose: Auto-PGD.

    Croce & Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", algorithm 1. Each image has its own step size η, initially 2 ε. At
    checkpoints, whose distances shrink, η is halved and the image goes back to its best point so
    far, if the loss rose in too few of the steps since the last checkpoint, or if neither η nor the
    best loss has changed since then. The paper describes it for L∞ and L2; in L1 it takes the same
    steps here, and needs a ball with several ``pixels``.

    Parameters that are not described here: see :mod:`tinyadv.attacks`.

    Parameters
    ----------
    steps : int
    restarts, random_start
        As for :func:`pgd`.
    momentum : float
        1 - α in the paper: the share of the previous change that goes into a step.
    rho : float
        ρ: the share of steps that must raise the loss for η to stay.

    Returns
    -------
    x_adv : (N, …)
        In the ball around ``x``: the last point that fooled the model, or, if there was none, the
        point with the largest loss.

    Raises
    ------
    ValueError
        Also if ε is infinite.
    """
    inputs.check_ball(ball)
    x, y, target = checked(model, x, y, target)
    inputs.check_counts(steps=steps, restarts=restarts)
    inputs.check_shares(momentum=momentum, rho=rho)
    shared.check_radius(ball, "apgd", Ball)  # it starts with a step of 2 ε
    run = partial(_apgd, lent(model), ball=ball, steps=steps, momentum=momentum, rho=rho, loss=loss)
    worst: Any = None
    for i, start in enumerate(_starts(ball, x, restarts, random_start, rng)):
        with shared.pieces(model, x, progress, "APGD", i, restarts) as how:
            x_adv = by_examples(run, x, y, target, start, **how)
        worst = worse(worst, judged(model, x_adv, y, target, loss)) if restarts > 1 else (x_adv,)
    return shared.check_finite(worst[0])


def _apgd(model, x, y, target, delta, *, ball, steps, momentum, rho, loss):
    """The loop of :func:`apgd` alone: algorithm 1 from δ; returns x + δ."""
    xp, low, high = array_module(x), -x, 1 - x

    def look(delta):
        g, value, logits = input_gradient(model, x + delta, y, target, loss=loss)
        return g, value, is_fooled(logits, y, target)

    def choose(mask, a, b):  # for each example
        return xp.where(per_example(mask, x), a, b)

    eta = xp.full(len(x), 2 * ball.epsilon, x.dtype)
    before = delta
    g, value, fooled = look(delta)
    result, best, best_g, best_value = delta, delta, g, value
    has_fooled = fooled
    rises = xp.zeros_like(value)  # steps that raised the loss since the last checkpoint
    halved, best_value_then, last = xp.zeros_like(fooled), value, 0
    checkpoints = _checkpoints(steps)
    for k in range(1, steps + 1):
        z = ball.step(delta, g, per_example(eta, x), low, high)
        mu = momentum if k > 1 else 0.0
        step = (1 - mu) * (z - delta) + mu * (delta - before)
        before, delta = delta, ball.project(delta + step, low, high)

        old_value = value
        g, value, fooled = look(delta)
        rises = rises + (value > old_value)
        better = value > best_value
        best, best_g = choose(better, delta, best), choose(better, g, best_g)
        best_value = xp.where(better, value, best_value)
        has_fooled = has_fooled | fooled
        result = choose(fooled | (better & ~has_fooled), delta, result)

        if k in checkpoints:
            too_few = rises < rho * (k - last)
            stuck = ~halved & (best_value <= best_value_then)
            halved = too_few | stuck
            eta = xp.where(halved, eta / 2, eta)
            delta, g = choose(halved, best, delta), choose(halved, best_g, g)
            value = xp.where(halved, best_value, value)
            best_value_then, last, rises = best_value, k, xp.zeros_like(rises)
    return moved(x, result)


def _checkpoints(steps: int) -> set[int]:
    """The steps at which APGD adapts η: p₁ = 0.22, each gap 0.03 shorter, but at least 0.06."""
    share, gap, result = 22, 22, set()  # in hundredths: 0.22 + 0.19 + 0.16 is not 0.57 in floats
    while share <= 100:
        result.add(-(-share * steps // 100))  # rounded up
        gap = max(gap - 3, 6)
        share += gap
    return result
