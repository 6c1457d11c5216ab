"""FAB: along the decision boundary, towards the image. A smallest perturbation by linear steps.

DeepFool stops at the first adversarial example that it finds. FAB goes on from there. At each point
it treats the network as linear, so the boundary between two classes is a hyperplane, and
computes the nearest point of that hyperplane within [0, 1] exactly: once from the current point,
once from the image itself. The step is a mix of both, so that it follows the boundary and is drawn
to the image.

    x_orig   (N, …)   the image; `x` in the code
    x⁽ⁱ⁾     (N, …)   the current point of the search; `point`
    f, w              z_s - z_c at the point, and its gradient; c is the label, s another class
    π                 the hyperplane f + <w, · - x⁽ⁱ⁾> = 0, the boundary of the linearised network
    d        (N, …)   from the point to π, and `d_orig` from the image
    α        (N,)     the weight of the image in a step, at most α_max
    η                 how far beyond π a step goes: 1 ends on it
    β                 the share of the distance to the image that is kept after a success
"""

from __future__ import annotations

from functools import partial

import numpy as np

from tinyadv import inputs
from tinyadv.attacks import shared
from tinyadv.attacks.minimal import nearest_boundary, verified
from tinyadv.attacks.shared import dot, lead, normalised, only, per_example, rounding
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import L1, L2, Ball, Linf, wide
from tinyadv.inputs import Checked, Model, all_logits, checked, lent
from tinyadv.parallel import by_examples
from tinyadv.tensor import RNG, Array, value_of


def fab(
    model: Model, x: Array | Checked, y: Array | None = None, *,
    ball: Ball = Linf(0.3), steps: int = 100, restarts: int = 1, targets: int | None = None,
    target: Array | int | None = None, alpha_max: float = 0.1, eta: float = 1.05, beta: float = 0.9,
    rng: RNG = 0, details: bool = False, progress: bool = False,
) -> Array:  # fmt: skip
    """The fast adaptive boundary attack: a small perturbation in L∞, L2 or L1.

    Croce & Hein (2020), "Minimally distorted adversarial examples with a fast adaptive boundary
    attack", algorithm 1: project onto the linearised boundary within the box, from the point and
    from the image; step, with a bias towards the image; after each success go back towards the
    image; at the end, search the segment from the image to the nearest success once more.

    Parameters that are not described here: see :mod:`tinyadv.attacks`.

    Parameters
    ----------
    ball : Linf, L2 or L1
        Its norm measures the perturbation. Its ε does not limit the result: it only bounds how far
        from the image the restarts begin.
    steps : int
        Each takes one backward pass, or K - 1 of them, see ``targets``.
    restarts : int
        The first begins at the image; the others at random points around it, at half the distance
        of the nearest success so far, and at most ε/2.
    targets : int, optional
        How many classes are tried, one after the other: FAB-T, with one backward pass in each step.
        They are the classes with the largest logits at ``x``; reaching any class other than y is a
        success. AutoAttack takes 9. By default each step goes towards the nearest of all
        hyperplanes, and takes a backward pass for each: FAB as it was first published.
    target : (N,) integers or one integer, optional
        Classes to reach; only reaching them is a success.
    alpha_max, eta, beta : float
        α_max from 0 to 1, η ≥ 1 and β from 0 to 1, as above.

    Returns
    -------
    x_adv : (N, …)
        Not always in the ball: the attack succeeds within ε if ``distance`` is at most ε. x itself
        where it is misclassified already, or where the search failed.
    details : Smallest
        ``success``, ``distance`` and ``passes``, see
        :class:`~tinyadv.attacks.minimal.Smallest`; only with ``details=True``.

    Raises
    ------
    TypeError
        Also if ``ball`` is none of the three.
    ValueError
        Also if ε is infinite, or if both ``target`` and ``targets`` are given.

    Warns
    -----
    AttackWarning
        Also if the search failed for some of the examples.

    Examples
    --------
    >>> from tinyadv import models
    >>> x = np.random.default_rng(0).random((2, 1, 28, 28))
    >>> x_adv, found = fab(models.slides_cnn(), x, steps=10, details=True)
    >>> found.success, bool((found.distance < 0.1).all())
    (array([ True,  True]), True)
    """
    x, y, target = checked(model, x, y, target)
    inputs.check_counts(steps=steps, restarts=restarts)
    shared.check_radius(ball, "fab", Linf, L2, L1)
    # Only the norm is used: L1 without its ``pixels``.
    ball = next(norm(ball.epsilon) for norm in (Linf, L2, L1) if isinstance(ball, norm))
    if targets is not None:
        inputs.check_counts(targets=targets)
        if target is not None:
            raise ValueError("give either target (which classes) or targets (how many classes)")
    inputs.check_shares(alpha_max=alpha_max, beta=beta)
    inputs.check_each("a number ≥ 1", lambda number: 1 <= number < np.inf, eta=eta)

    xp, rng, attacked = array_module(x), np.random.default_rng(rng), lent(model)
    run = partial(_fab, attacked, ball=ball, steps=steps, alpha_max=alpha_max, eta=eta, beta=beta)
    z = all_logits(model, x)
    # Images that are misclassified without an attack are left out, once, before all steps.
    left = np.flatnonzero(to_numpy(lead(z, y, target)[0] <= 0))
    x_adv, passes = x.copy(), np.zeros(len(x), int)
    # Drawn for all images, so that a start does not depend on which others are left out.
    ways = [None if i == 0 else _random_way(ball, x, rng) for i in range(restarts)]
    if len(left):
        best, y_left, target_left, others = only(left, x, y, target, shared.ranked_others(z, y))
        x_left, distance = best, xp.full(len(left), xp.inf, wide(x).dtype)
        # The classes to go to, (N, C): all at once, or one after the other.
        choices = [others] if targets is None else [k[:, None] for k in others.T[:targets]]
        runs = [(only(left, way)[0], classes) for way in ways for classes in choices]
        for i, (way, classes) in enumerate(runs):
            with shared.pieces(model, x_left, progress, "FAB", i, len(runs)) as how:
                best, distance = by_examples(
                    run, x_left, y_left, target_left, classes, best, distance, way, **how
                )
        with shared.pieces(model, x_left) as how:
            x_adv[xp.asarray(left)] = by_examples(
                partial(_final_search, attacked), x_left, y_left, target_left, best, **how
            )
        passes[left] = steps * len(runs)
    x_adv, found = verified(model, x, x_adv, xp.asarray(passes), y, target, ball=ball)
    return (x_adv, found) if details else x_adv


def _fab(model, x, y, target, classes, best, distance, way, *, ball, steps, alpha_max, eta, beta):
    """The loop of :func:`fab` alone: one run; returns the nearest success and its distance.

    ``way`` (N, …) is the direction in which it begins, ``None`` if it begins at the image; ``best``
    and ``distance`` are the results of earlier runs.
    """
    xp, point = array_module(x), x
    if way is not None:
        radius = xp.minimum(distance, ball.epsilon) / 2
        point = xp.clip(x + per_example(radius, x) * way, 0, 1).astype(x.dtype, copy=False)
    for _ in range(steps):
        f, w = nearest_boundary(model, point, y, target, classes, ball)
        d = onto_hyperplane(ball, point, w, -f)
        # The same hyperplane, seen from the image.
        d_orig = onto_hyperplane(ball, x, w, -(f + dot(w, wide(x) - point)))
        size, size_orig = ball.norm(d), ball.norm(d_orig)
        both = size + size_orig
        alpha = xp.minimum(size / xp.where(both > 0, both, 1), alpha_max)
        alpha = per_example(alpha, x)
        point = (1 - alpha) * (point + eta * d) + alpha * (x + eta * d_orig)
        point = xp.clip(point, 0, 1).astype(x.dtype, copy=False)

        z = value_of(model(point))
        success = lead(z, y, target)[0] > rounding(z, x)
        size = ball.norm(wide(point) - x)
        closer = success & (size < distance)
        best = xp.where(per_example(closer, x), point, best)
        distance = xp.where(closer, size, distance)
        back = (x + beta * (wide(point) - x)).astype(x.dtype, copy=False)
        point = xp.where(per_example(success, x), back, point)
    return best, distance


def _random_way(ball, x, rng):
    """A random direction of length 1 for each image, drawn on the host."""
    u = rng.uniform(-1, 1, x.shape) if isinstance(ball, Linf) else rng.standard_normal(x.shape)
    return array_module(x).asarray(normalised(u, ball).astype(x.dtype))


# ------------------------------------------------------------------------------ the hyperplane


def onto_hyperplane(ball: Ball, x: Array, w: Array, c: Array) -> Array:
    """The smallest δ with <w, δ> = c and 0 ≤ x + δ ≤ 1.

    Each pixel moves in the direction that brings <w, δ> closer to c, or not at all. With the gain
    g_i = |w_i| per unit and the room r_i up to 0 or 1, pixel i moves by t_i ≤ r_i, with
    Σ g_i t_i = |c|, and the norm is smallest for

        L∞   t_i = min(r_i, τ)        all move by the same amount
        L2   t_i = min(r_i, τ g_i)    in proportion to their gain
        L1   t_i = r_i for the pixels of the largest gain, and 0 for the others; one in between

    In the first two, pixels run out of room one after the other as τ grows. With the pixels sorted
    by that, Σ g_i t_i is known at all these points, and |c| lies between two of them.

    Parameters
    ----------
    ball : Linf, L2 or L1
        For its norm.
    x, w : (N, …)
    c : (N,)

    Returns
    -------
    δ : (N, …)
        Where the box has no such point, the corner that comes closest to <w, δ> = c.
    """
    xp = array_module(x)
    x, w = wide(x), wide(w)
    rows = w.reshape(len(w), -1)  # (N, …) -> (N, D)
    # Scaled to a largest gain of 1, so that squares of small numbers do not underflow.
    scale = abs(rows).max(1)
    scale = xp.where(scale > 0, scale, 1)
    rows, needed = rows / scale[:, None], (abs(c) / scale)[:, None]  # (N, D), (N, 1)
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
    """The first success on the segment from the image to ``best``, by the method of false position.

    Between a point that is correctly classified and one that is not, the lead is treated as linear;
    the point where it would be 0, or slightly above, replaces one of the two.
    """
    xp, delta = array_module(x), wide(best) - x

    def look(t):
        point = xp.clip(x + per_example(t, x) * delta, 0, 1).astype(x.dtype, copy=False)
        z = value_of(model(point))
        return point, lead(z, y, target)[0].astype(t.dtype), rounding(z, x).astype(t.dtype)

    low = xp.zeros(len(x), delta.dtype)
    high = low + 1
    (_, lead_low, _), (_, lead_high, noise) = look(low), look(high)
    for _ in range(steps):
        rise = lead_high - lead_low
        # Slightly above 0, because on the boundary itself rounding decides.
        aim = xp.maximum(lead_high / 100, 2 * noise)
        share = (aim - lead_low) / xp.where(rise > 0, rise, 1)
        t = low + xp.clip(share, 0, 1) * (high - low)
        point, ahead, noise = look(t)
        success = (ahead > noise) & (rise > 0)
        best = xp.where(per_example(success, x), point, best)
        low, lead_low = xp.where(success, low, t), xp.where(success, lead_low, ahead)
        high, lead_high = xp.where(success, t, high), xp.where(success, ahead, lead_high)
    return best
