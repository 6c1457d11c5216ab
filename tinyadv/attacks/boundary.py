"""FAB: along the decision boundary, towards the image. A smallest perturbation by linear steps.

DeepFool stops at the first error that it finds. FAB goes on from there. At each point it takes the
network for linear, so that the boundary between two classes is a hyperplane, and computes the
nearest point of that hyperplane within [0, 1] exactly: once from where it is, once from the image
itself. The step is a mix of both, so that it follows the boundary and is drawn to the image.

    x_orig   (N, …)   the image; `x` in the code
    x⁽ⁱ⁾     (N, …)   where the search is; `point`
    f, w              z_s - z_c at the point, and its gradient; c is the label, s another class
    π                 the hyperplane f + <w, · - x⁽ⁱ⁾> = 0, the boundary were the network linear
    d        (N, …)   from the point onto π, and `d_orig` from the image
    α        (N,)     the image's share in a step, α_max at most
    η                 how far beyond π a step goes: 1 ends on it
    β                 the share of the way from the image that is kept once an error is found
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tinyadv.attacks.common import (
    all_logits,
    by_pieces,
    check_counts,
    checked,
    per_example,
    ranked_others,
    tensor_logits,
)
from tinyadv.attacks.minimal import Smallest, _lead, _rounding, _verified
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import L1, L2, Ball, Linf
from tinyadv.losses import one_hot
from tinyadv.tensor import Array, Tensor, _value, grad


def fab(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    ball: Ball = Linf(0.3),
    steps: int = 100,
    restarts: int = 1,
    targets: int | None = None,
    target: Array | int | None = None,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    rng: np.random.Generator | int = 0,
    details: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> Array | tuple[Array, Smallest]:
    """The fast adaptive boundary attack: a small perturbation in L∞, L2 or L1.

    Croce & Hein (2020), "Minimally distorted adversarial examples with a fast adaptive boundary
    attack", algorithm 1: project onto the linearised boundary within the box, from the point and
    from the image; step, with a bias towards the image; from each error go back towards the image;
    at the end, search the way from the image to the nearest error once more.

    Parameters
    ----------
    model : callable
        Takes images, arrays or tensors (n, …), and returns logits (n, K), each image on its own.
    x : (N, …) of a floating-point type
        Images, pixel values 0–1.
    y : (N,) integers, optional
        Their labels; by default the model's own predictions.
    ball : Linf, L2 or L1
        Says in which norm the perturbation is to be small. Its ε is no limit to what is found: it
        only bounds how far from the image restarts begin.
    steps : int
        Each takes one gradient, or K - 1 of them, see ``targets``.
    restarts : int
        The first begins at the image; the others at random points around it, half as far from it as
        the nearest error so far and ε/2 at most.
    targets : int, optional
        How many classes are tried, one after the other: FAB-T, with one gradient in each step. They
        are those with the largest logits at ``x``; an error is an error, whichever class it is.
        AutoAttack takes 9. By default each step goes towards whichever of all classes has the
        nearest hyperplane, and takes a gradient for each: FAB as it was first published.
    target : (N,) integers or one integer, optional
        Classes to reach: nothing else then counts as an error.
    alpha_max, eta, beta : float
        α_max from 0 to 1, η ≥ 1 and β from 0 to 1, as above.
    rng : numpy.random.Generator or int
        For the starts after the first, drawn on the host.
    details : bool
        Return ``(x_adv, Smallest)`` instead of ``x_adv``.
    workers : int, optional
        Threads that share the images; the result does not depend on it.
    progress : bool
        Show a bar on terminals.

    Returns
    -------
    x_adv : (N, …)
        In [0, 1], of the shape and dtype of ``x``, but not always in the ball: whether an image
        has an error within ε is the question whether ``distance`` is at most ε. Where no error was
        found, and where x is one already, it is x.
    details : Smallest
        ``success``, ``distance`` and ``passes``, see
        :class:`~tinyadv.attacks.minimal.Smallest`; only with ``details=True``.

    Raises
    ------
    TypeError
        If ``ball`` is none of the three, if ``x`` is no array of floating-point numbers, or if the
        model returns no tensor for a tensor.
    ValueError
        If ε is infinite, if both ``target`` and ``targets`` are given, or if another input is not
        as described. The message says what came.

    Warns
    -----
    AttackWarning
        If it failed for some of the examples, or a target is the label itself.

    Examples
    --------
    >>> from tinyadv import models
    >>> x = np.random.default_rng(0).random((2, 1, 28, 28))
    >>> x_adv, found = fab(models.slides_cnn(), x, steps=10, details=True)
    >>> found.success, bool((found.distance < 0.1).all())
    (array([ True,  True]), True)
    """
    x, y, target = checked(model, x, y, target)
    check_counts(steps=steps, restarts=restarts)
    ball = _plain(ball)
    if targets is not None:
        check_counts(targets=targets)
        if target is not None:
            raise ValueError(
                "give target, the classes to reach, or targets, how many to try: not both"
            )
    for name, share in {"alpha_max": alpha_max, "beta": beta}.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {share}")
    if not 1 <= eta < math.inf:
        raise ValueError(f"eta must be a number ≥ 1, got {eta}")

    def run(x, y, target, classes, best, distance, way):
        xp = array_module(x)
        point = x
        if way is not None:
            radius = xp.minimum(distance, ball.epsilon) / 2
            point = xp.clip(x + per_example(radius, x) * way, 0, 1)
        for _ in range(steps):
            f, w = _nearest_boundary(model, point, y, target, classes, ball)
            d = onto_hyperplane(ball, point, w, -f)
            # The same hyperplane, seen from the image.
            d_orig = onto_hyperplane(ball, x, w, -(f + _dot(w, x - point)))
            size, size_orig = ball.norm(d), ball.norm(d_orig)
            both = size + size_orig
            alpha = xp.minimum(size / xp.where(both > 0, both, 1), alpha_max)
            alpha = per_example(alpha, x)
            point = (1 - alpha) * (point + eta * d) + alpha * (x + eta * d_orig)
            point = xp.clip(point, 0, 1)

            z = _value(model(point))
            error = _lead(z, y, target)[0] > _rounding(z)
            size = ball.norm(point - x)
            closer = error & (size < distance)
            best = xp.where(per_example(closer, x), point, best)
            distance = xp.where(closer, size, distance)
            point = xp.where(per_example(error, x), x + beta * (point - x), point)
        return best, distance

    xp, rng = array_module(x), np.random.default_rng(rng)
    z = all_logits(model, x)
    # What is misread as it is needs no attack: the others are picked out once, before all steps.
    standing = np.flatnonzero(to_numpy(_lead(z, y, target)[0] <= 0))
    x_adv, passes, now = x.copy(), np.zeros(len(x), int), xp.asarray(standing)
    # Drawn for all images, so that a start does not depend on which others are misread.
    ways = [None if i == 0 else _random_way(ball, x, rng) for i in range(restarts)]
    if len(standing):
        others = ranked_others(z, y)  # (N, K - 1)
        x_, y_, t_ = (None if a is None else a[now] for a in (x, y, target))
        choices = [None] if target is not None else [others[now]]
        if targets is not None:
            choices = [others[now][:, j : j + 1] for j in range(min(targets, others.shape[1]))]
        best, distance = x_, xp.full_like(x_.reshape(len(x_), -1)[:, 0], xp.inf)
        for i, way in enumerate(ways):
            for j, classes in enumerate(choices):
                best, distance = by_pieces(
                    run, x_, y_, t_, classes, best, distance, None if way is None else way[now],
                    workers=workers, progress=progress,
                    name=f"FAB, run {i * len(choices) + j + 1}/{len(ways) * len(choices)}",
                )  # fmt: skip
        x_adv[now] = by_pieces(
            lambda *arrays: _final_search(model, *arrays), x_, y_, t_, best, workers=workers
        )
        passes[standing] = steps * restarts * len(choices)
    return _verified(
        model, x, x_adv, xp.asarray(passes), y, target, ball=ball, details=details
    )  # fmt: skip


def _plain(ball: Ball) -> Ball:
    """The ball, if its norm is one of the three; L1 without its ``pixels``, of no use here."""
    for kind in (Linf, L2, L1):
        if isinstance(ball, kind):
            if math.isinf(ball.epsilon):
                raise ValueError(
                    "fab begins its restarts within the ball, so ε must be finite: Linf(1) holds "
                    "all images; what is found is not limited by it"
                )
            return kind(ball.epsilon)
    raise TypeError(f"fab is for Linf, L2 and L1, got {ball!r}")


def _random_way(ball, x, rng):
    """A random direction of length 1 for each image, from the host."""
    u = rng.uniform(-1, 1, x.shape) if isinstance(ball, Linf) else rng.standard_normal(x.shape)
    u /= per_example(ball.norm(u), u)
    return array_module(x).asarray(u.astype(x.dtype))


def _dot(a, b):  # (N, …), (N, …) -> (N,)
    return (a * b).reshape(len(a), -1).sum(1)


# ------------------------------------------------------------------------------ the boundary


def _nearest_boundary(model, point, y, target, classes, ball):
    """f and w of the nearest hyperplane at the point: (N,), (N, …).

    ``classes`` (N, C) are those that the label may be lost to; with a target it is its hyperplane
    with the class that is ahead of it.
    """
    xp, image = array_module(point), Tensor(point)
    logits = tensor_logits(model, image)
    z = logits.value
    if target is None:
        own = one_hot(y, z)
        directions = [one_hot(classes[:, j], z) - own for j in range(classes.shape[1])]
    else:
        directions = [_lead(z, y, target)[1]]
    # What rounding could undo is no error, so a step must go that much farther. Otherwise steps
    # towards a boundary shrink until they end short of it.
    beyond = 2 * _rounding(z)
    nearest = f = xp.zeros_like(point.reshape(len(point), -1)[:, 0])
    nearest, w = nearest + xp.inf, xp.zeros_like(point)
    for s_minus_c in directions:  # (N, K)
        f_s = ((s_minus_c * z).sum(1) - beyond).astype(point.dtype)
        (w_s,) = grad(logits, [image], s_minus_c)  # one tape, a walk for each class
        slope = _dot(ball.steepest(w_s), w_s)  # the dual norm of w
        distance = xp.where(slope > 0, abs(f_s) / xp.where(slope > 0, slope, 1), xp.inf)
        closer = distance < nearest
        nearest = xp.where(closer, distance, nearest)
        f, w = xp.where(closer, f_s, f), xp.where(per_example(closer, point), w_s, w)
    return f, w


def onto_hyperplane(ball: Ball, x: Array, w: Array, c: Array) -> Array:
    """The smallest δ with <w, δ> = c and 0 ≤ x + δ ≤ 1.

    Each pixel moves in the direction that brings <w, δ> nearer to c, or not at all. With the gain
    g_i = |w_i| per unit and the room r_i up to 0 or 1, how far they move is t_i ≤ r_i, with
    Σ g_i t_i = |c|, and the smallest norm has

        L∞   t_i = min(r_i, τ)        all move alike
        L2   t_i = min(r_i, τ g_i)    in proportion to their gain
        L1   t_i = r_i for the pixels of the largest gain, and 0 for the others; one in between

    In the first two, pixels run out of room one after the other as τ grows. Sorted by that, Σ g_i
    t_i is known at all these points, and |c| lies between two of them.

    Parameters
    ----------
    ball : Linf, L2 or L1
        For its norm.
    x, w : (N, …)
    c : (N,)

    Returns
    -------
    δ : (N, …)
        Where there is none, for want of room, the corner of the box that comes nearest.
    """
    xp = array_module(x)
    rows = w.reshape(len(w), -1)  # (N, …) -> (N, D)
    # At a largest gain of 1, squares of small numbers do not vanish.
    scale = abs(rows).max(1)
    scale = xp.where(scale > 0, scale, 1)
    rows, needed = rows / scale[:, None], (abs(c) / scale)[:, None]
    way = xp.sign(rows) * xp.sign(c)[:, None]
    at = x.reshape(len(x), -1)
    room, gain = xp.where(way > 0, 1 - at, at), abs(rows)
    if isinstance(ball, L1):
        t = _largest_gain_first(xp, gain, room, needed)
    else:
        t = _all_at_once(xp, gain, room, needed, gain if isinstance(ball, L2) else xp.sign(gain))
    return (way * t).reshape(x.shape)


def _all_at_once(xp, gain, room, needed, speed):
    """t_i = min(r_i, τ · speed_i), with Σ g_i t_i = needed: (N, D) -> (N, D)."""
    ends = xp.where(speed > 0, room / xp.where(speed > 0, speed, 1), xp.inf)  # τ at t_i = r_i
    order = xp.argsort(ends, axis=1)
    g, r, v, ends = (xp.take_along_axis(a, order, axis=1) for a in (gain, room, speed, ends))
    # For τ between ends[k - 1] and ends[k]: Σ g t = Σ_{i<k} g_i r_i + τ Σ_{i≥k} g_i v_i.
    zero = xp.zeros_like(g[:, :1])
    used_up = xp.concatenate([zero, xp.cumsum(g * r, axis=1)[:, :-1]], axis=1)
    growth = xp.cumsum((g * v)[:, ::-1], axis=1)[:, ::-1]
    tau = xp.where(growth > 0, (needed - used_up) / xp.where(growth > 0, growth, 1), xp.inf)
    k = (tau > ends).sum(1)[:, None]  # pixels that have run out of room
    last = g.shape[1] - 1
    tau = xp.take_along_axis(tau, xp.minimum(k, last), axis=1)
    enough = (k <= last) & xp.isfinite(tau)
    return xp.where(enough, xp.minimum(room, xp.where(enough, tau, 0) * speed), room)


def _largest_gain_first(xp, gain, room, needed):
    """t_i = r_i, one pixel after the other, until Σ g_i t_i = needed: (N, D) -> (N, D)."""
    order = xp.argsort(-gain, axis=1)
    g, r = (xp.take_along_axis(a, order, axis=1) for a in (gain, room))
    used_up = xp.cumsum(g * r, axis=1)
    rest = needed - xp.concatenate([xp.zeros_like(g[:, :1]), used_up[:, :-1]], axis=1)
    t = xp.clip(xp.where(g > 0, rest / xp.where(g > 0, g, 1), 0), 0, r)
    return xp.take_along_axis(t, xp.argsort(order, axis=1), axis=1)


# ------------------------------------------------------------------------------ the final search


def _final_search(model, x, y, target, best, steps=3):
    """The first error on the way from the image to ``best``, by the rule of false position.

    Between a point that is read correctly and one that is not, the lead is taken for linear, and
    the point where it would be 0, or just above, replaces one of the two.
    """
    xp = array_module(x)
    delta = best - x

    def look(t):
        point = xp.clip(x + per_example(t, x) * delta, 0, 1)
        z = _value(model(point))
        return point, _lead(z, y, target)[0].astype(x.dtype), _rounding(z).astype(x.dtype)

    low = xp.zeros_like(x.reshape(len(x), -1)[:, 0])
    high = low + 1
    (_, lead_low, _), (_, lead_high, rounding) = look(low), look(high)
    for _ in range(steps):
        rise = lead_high - lead_low
        # A little beyond 0, for on the boundary itself rounding decides.
        aim = xp.maximum(lead_high / 100, 2 * rounding)
        share = (aim - lead_low) / xp.where(rise > 0, rise, 1)
        t = low + xp.clip(share, 0, 1) * (high - low)
        point, lead, rounding = look(t)
        error = (lead > rounding) & (rise > 0)
        best = xp.where(per_example(error, x), point, best)
        low, lead_low = xp.where(error, low, t), xp.where(error, lead_low, lead)
        high, lead_high = xp.where(error, t, high), xp.where(error, lead, lead_high)
    return best
