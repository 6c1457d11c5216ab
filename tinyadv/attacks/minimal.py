"""Smallest perturbations: how far is an image from the nearest one that is misclassified?

PGD looks for an adversarial example within ε. Here no ε is given, and the result is a distance,
which differs from image to image:

    min ‖δ‖   subject to   argmax z(x + δ) ≠ y   and   0 ≤ x + δ ≤ 1.

DeepFool treats the network as linear, steps to the nearest decision boundary of that linear model,
and repeats this at the new point: a few steps. Carlini and Wagner's attack makes the constraint a
part of the loss and descends: thousands of steps, and shorter perturbations.

    z      (N, K)   logits
    lead   (N,)     by how much the wrong class is ahead, see :func:`tinyadv.attacks.shared.lead`
    δ, r   (N, …)   the perturbation
"""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from tinyadv import inputs
from tinyadv.attacks import shared
from tinyadv.attacks.shared import dot, lead, only, per_example, rounding, with_a_tape
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import L2, Ball, Linf, wide
from tinyadv.inputs import Checked, Model, all_logits, checked, lent, warn
from tinyadv.losses import one_hot
from tinyadv.parallel import by_examples
from tinyadv.tensor import Array, Tensor, grad, value_of

NORMS: dict[str, Ball] = {"l2": L2(1.0), "linf": Linf(1.0)}


class Smallest(NamedTuple):
    """What a search for the smallest perturbation found, for each example."""

    success: Array
    """(N,) bool: whether the returned image fools the model, according to a forward pass on it."""
    distance: Array
    """(N,): ‖x_adv - x‖ in the norm of the attack, in pixel values 0–1; ∞ where it failed."""
    passes: Array
    """(N,) integers: forward and backward passes, the cost of the search."""


def deepfool(
    model: Model, x: Array | Checked, y: Array | None = None, *,
    norm: str = "l2", steps: int = 50, overshoot: float = 0.02, candidates: int = 10,
    details: bool = False, progress: bool = False,
) -> Array:  # fmt: skip
    """Step to the nearest boundary of the linearised network, and linearise again.

    Moosavi-Dezfooli et al. (2016), "DeepFool: a simple and accurate method to fool deep neural
    networks", algorithm 2. At x + δ, class k overtakes y where f_k = z_k - z_y reaches 0. To first
    order that is a hyperplane with normal w_k = ∇f_k, at the distance |f_k| / ‖w_k‖ (the dual norm
    of w_k). The step leads to the nearest one.

    Parameters that are not described here: see :mod:`tinyadv.attacks`.

    Parameters
    ----------
    norm : {"l2", "linf"}
        The norm that measures the perturbation.
    steps : int
        At most. An example that is misclassified takes no further step.
    overshoot : float
        η: the network is evaluated at x + (1 + η) r, where r is the sum of the steps, because the
        point must lie beyond the boundary and not on it.
    candidates : int
        How many classes are considered: y and the others with the largest logits at x. Each of the
        others costs one backward pass in every step.

    Returns
    -------
    x_adv : (N, …)
        x itself where it is misclassified already, or where the search failed.
    details : Smallest
        Only with ``details=True``.

    Warns
    -----
    AttackWarning
        Also if the search failed for some of the examples.

    Examples
    --------
    >>> from tinyadv import models
    >>> x = np.random.default_rng(0).random((2, 1, 28, 28))
    >>> x_adv, found = deepfool(models.slides_cnn(), x, details=True)
    >>> found.success, bool((found.distance < 1).all())
    (array([ True,  True]), True)
    """
    x, y, _ = checked(model, x, y)
    inputs.check_counts(steps=steps)
    inputs.check_counts(least=2, candidates=candidates)  # the label and another class
    inputs.check_choice(tuple(NORMS), norm=norm)
    inputs.check_numbers(overshoot=overshoot)
    run = partial(_deepfool, lent(model), ball=NORMS[norm], steps=steps, overshoot=overshoot,
                  candidates=candidates)  # fmt: skip
    with shared.pieces(model, x, progress, "DeepFool") as how:
        x_adv, passes = by_examples(run, x, y, None, **how)
    x_adv, found = verified(model, x, x_adv, passes, y, None, ball=NORMS[norm])
    return (x_adv, found) if details else x_adv


def _deepfool(model, x, y, target, *, ball, steps=50, overshoot=0.02, candidates=10):
    """The loop of :func:`deepfool` alone; returns x_adv, or else x, and the number of passes."""
    xp = array_module(x)
    result, passes = x.copy(), np.zeros(len(x), int)
    z = value_of(model(x))
    classes = shared.ranked_others(z, y)[:, : candidates - 1]  # (N, K) -> (N, candidates - 1)
    r, left = xp.zeros_like(wide(x)), np.arange(len(x))
    still = np.flatnonzero(to_numpy(lead(z, y, target)[0] <= 0))
    x_adv = x
    for step in range(steps):
        left = left[still]
        if not len(left):
            break
        x, y, target, classes, r, x_adv = only(still, x, y, target, classes, r, x_adv)
        passes[left] += 1
        f, w = nearest_boundary(model, x_adv, y, target, classes, ball)
        direction = ball.steepest(w)  # of length 1, and <direction, w> is the dual norm of w
        slope = dot(direction, w)
        # A model may compute in fewer digits than its logits have, so that steps onto the boundary
        # shrink and stop short of it. In the last third they are lengthened, more and more.
        length = 2.0 ** max(step - 2 * steps // 3, 0) * abs(f) / xp.where(slope > 0, slope, 1)
        r = r + per_example(length, x) * direction
        x_adv = xp.clip(x + (1 + overshoot) * r, 0, 1).astype(x.dtype, copy=False)
        # Stopping early is deliberate: it synchronises with a GPU once in a step.
        z = value_of(model(x_adv))
        beyond = to_numpy(lead(z, y, target)[0] > rounding(z, x))
        reached, still = np.flatnonzero(beyond), np.flatnonzero(~beyond)
        result[xp.asarray(left[reached])] = x_adv[xp.asarray(reached)]
    return result, xp.asarray(passes)


def nearest_boundary(
    model: Model, x: Array, y: Array, target: Array | None, classes: Array, ball: Ball
) -> tuple[Array, Array]:
    """The nearest decision boundary of the linearised network, {x + δ: f + <w, δ> = 0}.

    It is taken to lie slightly beyond z_k = z_y, by twice :func:`~tinyadv.attacks.shared.rounding`:
    otherwise, steps onto it would shrink and stop just short of what counts as a success.

    Parameters
    ----------
    x, y, target : (N, …), (N,), (N,) or None
    classes : (N, C)
        The classes whose boundary with y is considered. With a target only one boundary counts,
        the target's with the class that is ahead of it.
    ball : Ball
        For its norm.

    Returns
    -------
    f, w : (N,), (N, …), in float32 at least
        f is z_k - z_y at x, less that rounding, and w its gradient. Both are 0 where no class has
        a gradient.
    """
    xp, image = array_module(x), Tensor(x)
    logits = with_a_tape(model(image))
    z = logits.value
    if target is None:
        own = one_hot(y, z)
        directions = [one_hot(k, z) - own for k in classes.T]
    else:
        directions = [lead(z, y, target)[1]]
    beyond = 2 * rounding(z, x)
    w = xp.zeros_like(wide(x))
    f, nearest = xp.zeros(len(x), w.dtype), xp.full(len(x), xp.inf, w.dtype)
    for k_minus_y in directions:  # (N, K)
        f_k = ((k_minus_y * z).sum(1) - beyond).astype(w.dtype)
        (w_k,) = grad(logits, [image], k_minus_y)  # the tape is shared, each class is a walk back
        w_k = wide(w_k)
        slope = dot(ball.steepest(w_k), w_k)  # the dual norm of w_k
        distance = xp.where(slope > 0, abs(f_k) / xp.where(slope > 0, slope, 1), xp.inf)
        closer = distance < nearest
        nearest = xp.where(closer, distance, nearest)
        f, w = xp.where(closer, f_k, f), xp.where(per_example(closer, x), w_k, w)
    return f, w


def carlini_wagner(
    model: Model, x: Array | Checked, y: Array | None = None, *,
    target: Array | int | None = None, confidence: float = 0.0, learning_rate: float = 0.01,
    steps: int = 1000, search_steps: int = 9, initial_c: float = 1e-3, abort_early: bool = True,
    start: str = "deepfool", details: bool = False, progress: bool = False,
) -> Array:  # fmt: skip
    """The shortest δ by descent on ‖δ‖₂² + c · f, with a search for the weight c.

    Carlini & Wagner (2017), "Towards evaluating the robustness of neural networks", the L2 attack
    with their f₆:

        f = max(-lead, -κ): reaches its minimum when the wrong class is ahead by κ,
        x + δ = (1 + tanh w) / 2: any w is an image in [0, 1], so nothing needs clipping.

    Adam changes w, starting at w(x). If c is small, the distance dominates and the attack fails; if
    c is large, it succeeds at a larger distance than necessary. So c is multiplied by ten until the
    attack succeeds, and then bisected.

    Parameters that are not described here: see :mod:`tinyadv.attacks`.

    Parameters
    ----------
    confidence : float
        κ: by how much the wrong class must be ahead, in logits.
    learning_rate : float
        Adam's, for w.
    steps : int
        Adam's steps for each c, at most; the authors' program takes 10,000.
    search_steps : int
        How many values of c are tried.
    initial_c : float
        The first of them.
    abort_early : bool
        End the descent of an example when its smallest loss has decreased by less than 0.01 % in a
        tenth of ``steps``.
    start : {"deepfool", "image"}
        Where the descents start. ``"image"``: each at x, as in the paper. ``"deepfool"``: at the
        result of :func:`deepfool`, and later ones at the best point so far. Descent from x heads
        for the class with the second largest logit there, which need not be the nearest one.

    Returns
    -------
    x_adv : (N, …)
        The nearest point that fools the model, over all steps and all c. x itself where it is
        misclassified already, by the margin κ, or where the search failed.
    details : Smallest
        Only with ``details=True``.

    Warns
    -----
    AttackWarning
        Also if the search failed for some of the examples.

    Notes
    -----
    The authors' program compares the loss of the whole batch, and all examples go on to the next c
    together. Here each example has its own clock and its own c: it goes on to the next c when its
    own descent has ended, and leaves when it has tried its last. So no example waits for another,
    and no result depends on the other examples of the batch.
    """
    x, y, target = checked(model, x, y, target)
    inputs.check_counts(steps=steps, search_steps=search_steps)
    inputs.check_numbers(confidence=confidence)
    inputs.check_positive(learning_rate=learning_rate, initial_c=initial_c)
    inputs.check_choice(("deepfool", "image"), start=start)
    run = partial(
        _carlini_wagner, lent(model), confidence=confidence, learning_rate=learning_rate,
        steps=steps, search_steps=search_steps, initial_c=initial_c, abort_early=abort_early,
        from_deepfool=start == "deepfool",
    )  # fmt: skip
    with shared.pieces(model, x, progress, "Carlini-Wagner") as how:
        x_adv, passes = by_examples(run, x, y, target, **how)
    x_adv, found = verified(
        model, x, x_adv, passes, y, target, ball=NORMS["l2"], confidence=confidence
    )
    return (x_adv, found) if details else x_adv


def _carlini_wagner(
    model, x, y, target, *, confidence, learning_rate, steps, search_steps, initial_c, abort_early,
    from_deepfool,
):  # fmt: skip
    """The loop of :func:`carlini_wagner` alone; returns x_adv, or else x, and the passes."""
    xp, look_every = array_module(x), math.ceil(steps / 10)
    result, passes = x.copy(), np.zeros(len(x), int)
    ahead, _ = lead(value_of(model(x)), y, target)
    keep = np.flatnonzero(to_numpy((ahead <= 0) | (ahead < confidence)))
    s, left = _at_the_start(x, y, target, initial_c), np.arange(len(x))
    # A descent that starts beyond the boundary is there at first whatever c is.
    grace = look_every if from_deepfool else 0
    if from_deepfool:
        x_start, taken = _deepfool(model, x, y, target, ball=NORMS["l2"])
        passes += to_numpy(taken)
        z = value_of(model(x_start))
        hit, away = lead(z, y, target)[0] > confidence + rounding(z, x), wide(x_start) - x
        s.w = s.w_start = _as_w(x_start)
        s.best, s.best_distance = x_start, xp.where(hit, dot(away, away), xp.inf)
    while len(keep):
        left = left[keep]
        s = SimpleNamespace(**dict(zip(vars(s), only(keep, *vars(s).values()), strict=True)))
        for _ in range(look_every):
            _descend(s, model, confidence, learning_rate, steps, grace)
        passes[left] += look_every
        _next_c(s, steps, abort_early, from_deepfool)
        tried_all = to_numpy(s.tried >= search_steps)  # the only synchronisation with a GPU
        done, keep = np.flatnonzero(tried_all), np.flatnonzero(~tried_all)
        result[xp.asarray(left[done])] = s.best[xp.asarray(done)]
    return result, xp.asarray(passes)


def _at_the_start(x, y, target, initial_c):
    """The state of each example; every field has a row for each."""
    xp, w = array_module(x), _as_w(x)
    zero, infinite = xp.zeros(len(x), w.dtype), xp.full(len(x), xp.inf, w.dtype)
    return SimpleNamespace(
        x=x, y=y, target=target,
        w=w, w_start=w, m=xp.zeros_like(w), v=xp.zeros_like(w), t=zero,  # Adam
        c=zero + initial_c, low=zero, high=infinite, tried=zero, found=zero > 0,  # the search
        loss=infinite, loss_before=infinite,  # the smallest, now and at the previous comparison
        best=x, best_distance=infinite,  # squared, as in the loss
    )  # fmt: skip


def _as_w(x):
    """The w with x ≈ (1 + tanh w) / 2; approximately, because arctanh(±1) is infinite."""
    return array_module(x).arctanh((2 * wide(x) - 1) * 0.999999)


def _descend(s, model, confidence, learning_rate, steps, grace, beta1=0.9, beta2=0.999):
    """Record the successes at w and their distances, and take one step of Adam from w."""
    xp = array_module(s.x)
    at_w = (xp.tanh(s.w) + 1) / 2
    image = Tensor(at_w.astype(s.x.dtype, copy=False))
    logits = with_a_tape(model(image))
    x_adv, z = image.value, logits.value
    delta = wide(x_adv) - s.x
    distance = dot(delta, delta)
    ahead, direction = lead(z, s.y, s.target)
    needed = confidence + rounding(z, s.x)

    hit = ahead > needed
    s.found = s.found | (hit & (s.t >= grace))
    better = hit & (distance < s.best_distance)
    s.best_distance = xp.where(better, distance, s.best_distance)
    s.best = xp.where(per_example(better, s.x), x_adv, s.best)
    s.loss = xp.minimum(s.loss, distance + s.c * xp.maximum(-ahead, -needed))

    # ∂loss/∂x_adv = 2 δ + c ∂f/∂x_adv, and f is flat beyond the lead that is needed.
    pull = xp.where(hit, 0, -s.c)[:, None] * direction  # (N, K)
    (g,) = grad(logits, [image], pull)
    g = (2 * delta + g) * (2 * at_w * (1 - at_w))  # ∂x_adv/∂w = (1 - tanh² w) / 2
    s.m = beta1 * s.m + (1 - beta1) * g
    s.v = beta2 * s.v + (1 - beta2) * (g * g)
    s.t = s.t + 1
    rate = learning_rate * xp.sqrt(1 - beta2**s.t) / (1 - beta1**s.t)
    rate = xp.where(s.t < steps, rate, 0)  # the point after the last step is never evaluated
    s.w = s.w - per_example(rate, s.x) * s.m / (xp.sqrt(s.v) + 1e-8)


def _next_c(s, steps, abort_early, from_best):
    """Where the descent of an example has ended, set its next c and put it back to its start."""
    xp = array_module(s.x)
    ended = s.t >= steps
    if abort_early:
        ended = ended | (s.loss > 0.9999 * s.loss_before)
    s.high = xp.where(ended & s.found, xp.minimum(s.high, s.c), s.high)
    s.low = xp.where(ended & ~s.found, xp.maximum(s.low, s.c), s.low)
    following = xp.where(xp.isfinite(s.high), (s.low + s.high) / 2, 10 * s.c)
    s.c = xp.where(ended, following, s.c)
    s.tried = s.tried + ended
    s.t = xp.where(ended, 0, s.t)
    s.loss_before = xp.where(ended, xp.inf, s.loss)
    s.loss = s.loss_before
    s.found = s.found & ~ended
    if from_best:
        has_best = per_example(ended & xp.isfinite(s.best_distance), s.x)
        s.w_start = xp.where(has_best, _as_w(s.best), s.w_start)
    again = per_example(ended, s.x)
    s.w = xp.where(again, s.w_start, s.w)
    s.m, s.v = xp.where(again, 0, s.m), xp.where(again, 0, s.v)


def verified(
    model: Model, x: Array, x_adv: Array, passes: Array, y: Array, target: Array | None, *,
    ball: Ball, confidence: float = 0.0,
) -> tuple[Array, Smallest]:  # fmt: skip
    """What an attack found, after a forward pass on the very array that it returns.

    Where that fails the result is x, with a warning.
    """
    xp = array_module(x)
    ahead, _ = lead(all_logits(model, x_adv), y, target)
    success = (ahead > 0) & (ahead >= confidence)
    x_adv = xp.where(per_example(success, x), x_adv, x)
    distance = xp.where(success, ball.norm(wide(x_adv) - x), xp.inf)
    failed = len(x) - int(to_numpy(success.sum()))
    if failed:
        warn(
            f"no perturbation was found for {failed} of {len(x)} examples, which are unchanged: "
            "details=True says which they are; more steps may help"
        )
    return x_adv, Smallest(success, distance, passes)
