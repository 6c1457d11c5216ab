"""The smallest perturbations: how far is an image from the nearest one that is misread?

PGD asks whether there is an error within ε. Here no ε is given, and the answer is a distance, which
each image has its own:

    min ‖δ‖   so that   argmax z(x + δ) ≠ y   and   0 ≤ x + δ ≤ 1.

DeepFool takes the network for linear, goes to the nearest decision boundary that it then would
have, and looks again: a few steps. Carlini and Wagner's attack makes the constraint a part of the
loss and descends: thousands of steps, and shorter perturbations.

    z      (N, K)   logits
    lead   (N,)     by how much the wrong class is ahead: max_{i≠y} z_i - z_y, above 0 for an error;
                    with a target t it is z_t - max_{i≠t} z_i
    δ, r   (N, …)   the perturbation
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from tinyadv.attacks.common import (
    AttackWarning,
    _examples_last,
    all_logits,
    by_pieces,
    check_counts,
    check_numbers,
    checked,
    per_example,
    ranked_others,
)
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import L2, Ball, Linf
from tinyadv.losses import one_hot
from tinyadv.tensor import Array, Tensor, _value, grad

NORMS: dict[str, Ball] = {"l2": L2(1.0), "linf": Linf(1.0)}


class Smallest(NamedTuple):
    """What an attack of this module found, for each example.

    Attributes
    ----------
    success : (N,) bool
        Whether the returned image is misread, as decided by a forward pass on that very array.
    distance : (N,)
        ‖x_adv - x‖ in the attack's norm, in pixel values 0–1; ∞ where it failed.
    passes : (N,) integers
        Points at which gradients were taken: what the search has cost.
    """

    success: Array
    distance: Array
    passes: Array


def deepfool(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    norm: str = "l2",
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int = 10,
    details: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> Array | tuple[Array, Smallest]:
    """Straight to the nearest boundary, were the network linear; then look again.

    Moosavi-Dezfooli et al. (2016), "DeepFool: a simple and accurate method to fool deep neural
    networks", algorithm 2. At x + δ, class k overtakes y where f_k = z_k - z_y reaches 0. To first
    order that is a hyperplane with normal w_k = ∇f_k, at the distance |f_k| / ‖w_k‖ (the dual norm
    of w_k). The step leads to the nearest one.

    Parameters
    ----------
    model : callable
        Takes images, arrays or tensors (n, …), and returns logits (n, K), each image on its own.
    x : (N, …) of a floating-point type
        Images, pixel values 0–1.
    y : (N,) integers, optional
        Their labels; by default the model's own predictions.
    norm : {"l2", "linf"}
        In which norm the perturbation is to be small.
    steps : int
        At most. An example that is misread takes no further step.
    overshoot : float
        η: the point looked at is x + (1 + η) r, r being the sum of the steps, for it must lie
        beyond the boundary and not on it.
    candidates : int
        How many classes are considered: y and the others with the largest logits at x. Each costs
        one gradient in every step.
    details : bool
        Return ``(x_adv, Smallest)`` instead of ``x_adv``.
    workers : int, optional
        Threads that share the images; the result does not depend on it.
    progress : bool
        Show a bar on terminals.

    Returns
    -------
    x_adv : (N, …)
        In [0, 1], of the shape and dtype of ``x``. Where no misread image was found, and where x is
        misread already, it is x.

    Raises
    ------
    TypeError, ValueError
        If the inputs are not as described, or a number is out of range. The message says what came.

    Warns
    -----
    AttackWarning
        If it failed for some of the examples.

    Examples
    --------
    >>> from tinyadv import models
    >>> x = np.random.default_rng(0).random((2, 1, 28, 28))
    >>> x_adv, found = deepfool(models.slides_cnn(), x, details=True)
    >>> found.success, bool((found.distance < 1).all())
    (array([ True,  True]), True)
    """
    x, y, _ = checked(model, x, y)
    check_counts(steps=steps, candidates=candidates)
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {tuple(NORMS)}, got {norm!r}")
    if candidates < 2:
        raise ValueError(f"candidates must be ≥ 2, the label and another class, got {candidates}")
    check_numbers(overshoot=overshoot)
    ball = NORMS[norm]

    def run(x, y):
        return _step_by_step(model, x, y, None, ball, steps, overshoot, candidates)

    x_adv, passes = by_pieces(run, x, y, workers=workers, progress=progress, name="DeepFool")
    return _verified(model, x, x_adv, passes, y, None, ball=ball, details=details)


def _step_by_step(model, x, y, target, ball, steps=50, overshoot=0.02, candidates=10):
    """DeepFool for a piece of a batch: what it found, or else x, and its passes."""
    xp = array_module(x)
    result, passes = x.copy(), np.zeros(len(x), int)
    z = _value(model(x))
    if target is None:
        others = ranked_others(z, y)[:, : candidates - 1]  # (N, K) -> (N, candidates - 1)
    else:
        others = target[:, None]  # (N,) -> (N, 1)
    r, under_way = xp.zeros_like(x), np.arange(len(x))
    still = np.flatnonzero(to_numpy(_lead(z, y, target)[0] <= 0))
    for _ in range(steps):
        under_way = under_way[still]
        if not len(under_way):
            break
        x, y, target, others, r, z = (_only(a, still) for a in (x, y, target, others, r, z))
        passes[under_way] += 1
        to_leave = y if target is None else _rival(z, target)
        x_adv = xp.clip(x + (1 + overshoot) * r, 0, 1)
        r = r + _to_nearest_boundary(model, x_adv, to_leave, others, ball)
        x_adv = xp.clip(x + (1 + overshoot) * r, 0, 1)
        # Stopping early by design: a GPU is asked once in a step who is done.
        z = _value(model(x_adv))
        beyond = to_numpy(_lead(z, y, target)[0] > _rounding(z))
        reached, still = np.flatnonzero(beyond), np.flatnonzero(~beyond)
        result[xp.asarray(under_way[reached])] = x_adv[xp.asarray(reached)]
    return result, xp.asarray(passes)


def _to_nearest_boundary(model, x, y, others, ball):
    """The step from x onto the nearest of the linearised boundaries: (N, …) -> (N, …).

    ``others`` (N, C) are the classes that y may be lost to.
    """
    xp, image = array_module(x), Tensor(x)
    logits = model(image)
    z, own = logits.value, one_hot(y, logits)
    nearest, step = xp.full_like(z[:, 0], xp.inf), xp.zeros_like(x)
    for j in range(others.shape[1]):
        k_minus_y = one_hot(others[:, j], logits) - own  # (N, K)
        f = (k_minus_y * z).sum(1)  # (N,)
        (w,) = grad(logits, [image], k_minus_y)  # one tape, a walk for each class
        direction = ball.steepest(w)  # of length 1, and what is gained along it is w's dual norm
        slope = (direction * w).reshape(len(x), -1).sum(1)
        # At a tie, f = 0, y may still be the answer, so each step goes a little farther.
        distance = (abs(f) + _rounding(z)) / xp.where(slope > 0, slope, 1)
        closer = (slope > 0) & (distance < nearest)
        nearest = xp.where(closer, distance, nearest)
        step = xp.where(per_example(closer, x), per_example(distance, x) * direction, step)
    return step


def carlini_wagner(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    target: Array | int | None = None,
    confidence: float = 0.0,
    learning_rate: float = 0.01,
    steps: int = 1000,
    search_steps: int = 9,
    initial_c: float = 1e-3,
    abort_early: bool = True,
    start: str = "deepfool",
    details: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> Array | tuple[Array, Smallest]:
    """The shortest δ by descent on ‖δ‖₂² + c · f, with a search for the weight c.

    Carlini & Wagner (2017), "Towards evaluating the robustness of neural networks", the L2 attack
    with their f₆:

        f = max(-lead, -κ): 0 or less once the wrong class is ahead,
        x + δ = (1 + tanh w) / 2: any w is an image in [0, 1], so nothing needs clipping.

    Adam changes w, from w(x). With a small c the distance weighs more than the error, and none is
    found; with a large c it is found farther away than it need be. So c is raised tenfold until an
    error is found, and then bisected.

    Parameters
    ----------
    model, x, y, workers, progress, details
        As for :func:`deepfool`.
    target : (N,) integers or one integer, optional
        Classes to reach, instead of any but y.
    confidence : float
        κ: by how much the wrong class must be ahead, in logits.
    learning_rate : float
        Adam's, for w.
    steps : int
        Adam's steps for each c, at most; the authors' program has 10,000.
    search_steps : int
        How many values of c are tried.
    initial_c : float
        The first of them.
    abort_early : bool
        End an example's descent when its smallest loss has fallen by less than 0.01 % in a tenth of
        ``steps``.
    start : {"deepfool", "image"}
        Where the descents begin. ``"image"``: each at x, as in the paper. ``"deepfool"``: at what
        :func:`deepfool` finds, and later ones at the best point so far. Descent from x heads for
        the class that is ahead of the others there, and that need not be the nearest one.

    Returns
    -------
    x_adv : (N, …), or ``(x_adv, Smallest)``
        The nearest misread point over all steps and all c; as for :func:`deepfool`.

    Raises
    ------
    TypeError, ValueError
        As for :func:`deepfool`.

    Warns
    -----
    AttackWarning
        If it failed for some of the examples, or a target is the label itself.

    Notes
    -----
    The authors' program compares the loss of the whole batch, and all examples go on to the next c
    together. Here every example has a clock, and a c, of its own: it goes on to the next c when
    its own descent has ended, and leaves when it has tried its last. So no example waits for
    another, and none depends on which others are with it.
    """
    x, y, target = checked(model, x, y, target)
    check_counts(steps=steps, search_steps=search_steps)
    check_numbers(confidence=confidence)
    for name, number in {"learning_rate": learning_rate, "initial_c": initial_c}.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name} must be a number above 0, got {number}")
    if start not in ("deepfool", "image"):
        raise ValueError(f'start must be "deepfool" or "image", got {start!r}')
    look_every = math.ceil(steps / 10)
    # A descent that starts beyond the boundary is there at first whatever c is.
    grace = look_every if start == "deepfool" else 0

    def run(x, y, target):
        xp = array_module(x)
        result, passes = x.copy(), np.zeros(len(x), int)
        z = _value(model(x))
        lead, _ = _lead(z, y, target)
        keep = np.flatnonzero(to_numpy((lead <= 0) | (lead < confidence)))
        x_start = x
        if start == "deepfool":
            x_start, taken = _step_by_step(model, x, y, target, NORMS["l2"])
            passes += to_numpy(taken)
        s, under_way = _at_the_start(x, x_start, y, target, initial_c), np.arange(len(x))
        if start == "deepfool":
            z = _value(model(x_start))
            hit = _lead(z, y, target)[0] > confidence + _rounding(z)
            s.best, s.best_distance = x_start, xp.where(hit, _squared(x_start - x), xp.inf)
        while len(keep):
            under_way = under_way[keep]
            s = SimpleNamespace(**{name: _only(a, keep) for name, a in vars(s).items()})
            for _ in range(look_every):
                _descend(s, model, confidence, learning_rate, steps, grace)
            passes[under_way] += look_every
            _next_c(s, steps, abort_early, start)
            tried_all = to_numpy(s.tried >= search_steps)  # the one thing a GPU is asked
            done, keep = np.flatnonzero(tried_all), np.flatnonzero(~tried_all)
            result[xp.asarray(under_way[done])] = s.best[xp.asarray(done)]
        return result, xp.asarray(passes)

    x_adv, passes = by_pieces(
        run, x, y, target, workers=workers, progress=progress, name="Carlini-Wagner"
    )
    return _verified(
        model, x, x_adv, passes, y, target, ball=NORMS["l2"], details=details,
        confidence=confidence,
    )  # fmt: skip


def _at_the_start(x, x_start, y, target, initial_c) -> SimpleNamespace:
    """All that is known of each example on its way; every field has a row for each."""
    xp = array_module(x)
    w = _as_w(x_start)
    each = xp.zeros_like(x.reshape(len(x), -1)[:, 0])  # (N,)
    infinite = each + xp.inf
    return SimpleNamespace(
        x=x, y=y, target=target,
        w=w, w_start=w, m=xp.zeros_like(x), v=xp.zeros_like(x), t=each,  # Adam's
        c=each + initial_c, low=each, high=infinite, tried=each, found=each > 0,  # the search's
        loss=infinite, loss_before=infinite,  # the smallest one, and what it was at the last look
        best=x, best_distance=infinite,  # squared, as in the loss
    )  # fmt: skip


def _as_w(x):
    """The w with x = (1 + tanh w) / 2, nearly: arctanh(±1) would be infinite."""
    return array_module(x).arctanh((2 * x - 1) * 0.999999)


def _descend(s, model, confidence, learning_rate, steps, grace, beta1=0.9, beta2=0.999) -> None:
    """One step of Adam for all examples, and a look at the points that they were at."""
    xp = array_module(s.x)
    image = Tensor((xp.tanh(s.w) + 1) / 2)
    logits = model(image)
    x_adv, z = image.value, logits.value
    delta = x_adv - s.x
    distance = _squared(delta)
    lead, direction = _lead(z, s.y, s.target)
    needed = confidence + _rounding(z)

    hit = lead > needed
    s.found = s.found | (hit & (s.t >= grace))
    better = hit & (distance < s.best_distance)
    s.best_distance = xp.where(better, distance, s.best_distance)
    s.best = xp.where(per_example(better, s.x), x_adv, s.best)
    s.loss = xp.minimum(s.loss, distance + s.c * xp.maximum(-lead, -needed))

    # ∂loss/∂x_adv = 2 δ + c ∂f/∂x_adv, and f is flat beyond the lead that is needed.
    pull = xp.where(hit, 0, -s.c)[:, None] * direction  # (N, K)
    (g,) = grad(logits, [image], pull)
    g = (2 * delta + g) * (2 * x_adv * (1 - x_adv))  # ∂x_adv/∂w = (1 - tanh² w) / 2
    s.m = beta1 * s.m + (1 - beta1) * g
    s.v = beta2 * s.v + (1 - beta2) * (g * g)
    s.t = s.t + 1
    rate = learning_rate * xp.sqrt(1 - beta2**s.t) / (1 - beta1**s.t)
    rate = xp.where(s.t < steps, rate, 0)  # no point is looked at after the last one
    s.w = s.w - per_example(rate, s.x) * s.m / (xp.sqrt(s.v) + 1e-8)


def _next_c(s, steps, abort_early, start) -> None:
    """Where an example's descent has ended, set its next c and put it back to its start."""
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
    if start == "deepfool":
        has_best = per_example(ended & xp.isfinite(s.best_distance), s.x)
        s.w_start = xp.where(has_best, _as_w(s.best), s.w_start)
    again = per_example(ended, s.x)
    s.w = xp.where(again, s.w_start, s.w)
    s.m, s.v = xp.where(again, 0, s.m), xp.where(again, 0, s.v)


# ---------------------------------------------------------------------------- what both are made of


def _lead(z, y, target=None):
    """By how much the wrong class is ahead, (N,), and the direction of z that raises it, (N, K)."""
    label = y if target is None else target
    own, rival = one_hot(label, z), one_hot(_rival(z, label), z)
    direction = rival - own if target is None else own - rival
    return (direction * z).sum(1), direction


def _rival(z, label):
    """The class with the largest logit but ``label``: (N,)."""
    xp = array_module(z)
    return xp.where(one_hot(label, z) > 0, -xp.inf, z).argmax(1)


def _rounding(z):
    """A lead that rounding alone could make or undo, in a batch of another size, say: (N,)."""
    return 16 * float(np.finfo(z.dtype).eps) * abs(z).max(1)


def _squared(delta):  # (N, …) -> (N,)
    return (delta * delta).reshape(len(delta), -1).sum(1)


def _only(a, index: np.ndarray):
    """The rows ``index`` (on the host, ascending) of an array; ``None`` stays ``None``."""
    if a is None or len(index) == len(a):
        return a
    xp = array_module(a)
    return _examples_last(xp, a[xp.asarray(index)])


def _verified(model, x, x_adv, passes, y, target, *, ball, details, confidence=0.0):
    """The result, after a look at the array that is returned: what fails is put back and told."""
    xp = array_module(x)
    lead, _ = _lead(all_logits(model, x_adv), y, target)
    success = (lead > 0) & (lead >= confidence)
    x_adv = xp.where(per_example(success, x), x_adv, x)
    distance = xp.where(success, ball.norm(x_adv - x), xp.inf)
    failed = len(x) - int(to_numpy(success.sum()))
    if failed:
        warnings.warn(
            f"no perturbation was found for {failed} of {len(x)} examples: they come back as they "
            "were. details=True tells which; more steps may help",
            AttackWarning,
            stacklevel=3,
        )
    return (x_adv, Smallest(success, distance, passes)) if details else x_adv
