"""Attacks that rotate and shift the image, as a camera that is not held straight does.

The pixels are not perturbed: every result is the same picture, slightly moved. Three numbers define
it, and there are three ways to look for the worst ones.

    x      (N, C, H, W)   images, pixel values 0–1, black outside
    θ      (N,)           the angle in degrees, counter-clockwise in the displayed image
    s      (N, 2)         the shift in pixels, to the right and down
    t      (N, 3)         the transformation: θ and s
    u, v   (H, W, N)      the column and the row of x that a pixel of the result comes from
    k                     random transformations that are tried for each image

Engstrom et al. (2019), "Exploring the landscape of spatial robustness", first called "A rotation
and a translation suffice: fooling CNNs with simple transformations". Interpolating between pixels
so that there is a gradient with respect to the position: Jaderberg et al. (2015), "Spatial
transformer networks".
"""

from __future__ import annotations

import math
from functools import partial
from itertools import product

import numpy as np

from tinyadv import inputs, ops
from tinyadv.attacks import shared
from tinyadv.attacks.shared import input_gradient, is_fooled, only, to_raise, worse
from tinyadv.backend import array_module, to_numpy
from tinyadv.inputs import Checked, Model, checked, lent
from tinyadv.losses import Loss, cross_entropy
from tinyadv.parallel import by_examples
from tinyadv.tensor import RNG, Array, Tensor, value_of

# After this many transformations of the grid, the images that are fooled are left out.
ROUND = 25

# --------------------------------------------------------------------------------- the sampling


def rotate_translate(x: Array | Tensor, angle: Array, shift: Array) -> Array | Tensor:
    """Rotate images about their centre, and then shift them.

    Each pixel of the result is interpolated bilinearly between the four pixels of x around the
    point that it came from. Outside the image all is 0. The result is differentiable, to any order,
    with respect to the image, the angle and the shift. For angle and shift the gradient is the
    slope between neighbouring pixels, and jumps from one pair of pixels to the next.

    Parameters
    ----------
    x : (N, C, H, W) of a floating-point type, array or Tensor
    angle : (N,) or a number, array or Tensor
        θ, in degrees; positive is counter-clockwise in the displayed image, with row 0 on top.
    shift : (N, 2) or (2,), array or Tensor
        To the right and down, in pixels. One angle and one shift for all images are faster.

    Returns
    -------
    (N, C, H, W)
        Of the dtype of ``x``; a Tensor if one of the arguments is. With θ = 0 and a shift of whole
        pixels no pixel value changes. Values in [0, 1] stay there.

    Raises
    ------
    TypeError
        If ``x`` does not hold floating-point numbers.
    ValueError
        If the shapes are not as described.

    Examples
    --------
    >>> x = np.eye(3)[None, None]
    >>> rotate_translate(x, 0, (1, 0))[0, 0]
    array([[0., 1., 0.],
           [0., 0., 1.],
           [0., 0., 0.]])
    """
    angle, shift = _checked_transformation(x, angle, shift)
    xp, (n, c, h, w) = array_module(value_of(x)), x.shape
    # Where the pixels of the result come from: undo the shift, then rotate by -θ. Row 0 is on top,
    # hence the signs.
    theta = angle * (math.pi / 180)
    dtype = angle.dtype
    column = xp.arange(w, dtype=dtype)[:, None] - (w - 1) / 2 - shift[:, 0]  # (W, n), n: N or 1
    row = xp.arange(h, dtype=dtype)[:, None, None] - (h - 1) / 2 - shift[:, 1]  # (H, 1, n)
    u = ops.cos(theta) * column - ops.sin(theta) * row + (w - 1) / 2  # (H, W, n)
    v = ops.sin(theta) * column + ops.cos(theta) * row + (h - 1) / 2

    # The distances to the four neighbours depend on t and are recorded on the tape. Which pixels
    # are the neighbours is piecewise constant, so it is not. With a border of two black pixels
    # around x, every point has four neighbours.
    left = xp.clip(xp.floor(value_of(u)), -2, w)
    top = xp.clip(xp.floor(value_of(v)), -2, h)
    to_right, to_bottom = u - left, v - top  # from 0 to 1, unless all four are black
    wide, high = w + 4, h + 4
    first = (top.astype(np.int64) + 2) * wide + (left.astype(np.int64) + 2)  # (H, W, n)
    first = first + xp.arange(c).reshape(c, 1, 1, 1) * (high * wide)  # -> (C, H, W, n)

    # Stored with the examples last, so that the same pixel of all images is one contiguous run.
    pixels = ops.pad(ops.transpose(x, (1, 2, 3, 0)), [(0, 0), (2, 2), (2, 2), (0, 0)])
    if first.shape[-1] == n > 1:  # a transformation for each image
        pixels, first, step = ops.reshape(pixels, (-1,)), first * n + xp.arange(n), n
    else:
        pixels, first, step = ops.reshape(pixels, (-1, n)), first[..., 0], 1

    def read(down, right):  # -> (C, H, W, N)
        return ops.getitem(pixels, first + (down * wide + right) * step)

    above = (1 - to_right) * read(0, 0) + to_right * read(0, 1)
    below = (1 - to_right) * read(1, 0) + to_right * read(1, 1)
    moved = ops.transpose((1 - to_bottom) * above + to_bottom * below, (3, 0, 1, 2))
    return moved if moved.dtype == x.dtype else ops.astype(moved, x.dtype)


def _checked_transformation(x, angle, shift):
    """Angle and shift as (N,) and (N, 2), or as (1,) and (1, 2) if all images share them."""
    shared.check_images(x, "rotate_translate")
    if x.dtype.kind != "f":
        raise TypeError(f"x must hold floating-point numbers, got {x.dtype}: use astype('float32')")
    dtype = _of_positions(x)

    def like_x(value):
        if isinstance(value, Tensor):
            return value if value.dtype == dtype else ops.astype(value, dtype)
        return array_module(value_of(x)).asarray(value, dtype=dtype)

    angle, shift, n = like_x(angle), like_x(shift), len(x)
    if angle.shape not in [(), (n,)] or shift.shape not in [(2,), (n, 2)]:
        raise ValueError(
            f"for {n} images the angle must be a number or ({n},), and the shift (2,) or ({n}, 2), "
            f"right and down; got {angle.shape} and {shift.shape}"
        )
    return ops.reshape(angle, (-1,)), ops.reshape(shift, (-1, 2))


def _of_positions(x: Array) -> np.dtype:
    """The dtype of t, u and v: the dtype of x, or float32 where x is too coarse for positions."""
    return np.result_type(x.dtype, np.float32)


# ---------------------------------------------------------------------------------- the attacks


def spatial_grid(
    model: Model, x: Array | Checked, y: Array | None = None, *,
    max_angle: float = 30.0, max_shift: float = 3.0, angles: int = 31, shifts: int = 5,
    exhaustive: bool = False, loss: Loss = cross_entropy, target: Array | int | None = None,
    details: bool = False, progress: bool = False,
) -> Array:  # fmt: skip
    """The worst rotation and translation of a grid: 31 angles, 5 shifts to the right and 5 down.

    The strongest attack of Engstrom et al. (2019). Three numbers are few enough for an exhaustive
    search, and no gradient is needed. The image itself comes first, then the grid from its corners
    inwards, because the largest transformations fool the model most often.

    Parameters that are not described here: see :mod:`tinyadv.attacks`.

    Parameters
    ----------
    max_angle : float
        Angles go from -max_angle to max_angle, in degrees.
    max_shift : float
        Shifts go from -max_shift to max_shift in both directions, in pixels.
    angles, shifts : int
        How many there are of each, equally spaced: angles · shifts² transformations in all. Even
        numbers leave 0 out of the grid, and then the image itself is an additional one.
    exhaustive : bool
        Try all transformations on all images, to find the largest loss. By default an image that
        fools the model is not tried further: that gives the same accuracy, at a fraction of the
        cost.
    loss : callable
        Decides which one is worse of two results that both fool the model, or both do not.

    Returns
    -------
    x_adv : (N, C, H, W)
        ``rotate_translate(x, t[:, 0], t[:, 1:])``.
    t : (N, 3)
        Angle, shift to the right, shift down; only with ``details=True``.

    Raises
    ------
    ValueError
        Also if ``x`` is not (N, C, H, W).

    Examples
    --------
    >>> from tinyadv import models
    >>> x = np.random.default_rng(0).random((2, 1, 28, 28))
    >>> x_adv, t = spatial_grid(models.slides_cnn(), x, angles=3, shifts=3, details=True)
    >>> x_adv.shape, t.shape
    ((2, 1, 28, 28), (2, 3))
    """
    query = shared.QueryOnly(model)
    x, y, target = checked(query, x, y, target)
    inputs.check_counts(angles=angles, shifts=shifts)
    grid = _grid(_limits(x, max_angle, max_shift), angles, shifts)

    xp, n, dtype = array_module(x), len(x), _of_positions(x)
    t = xp.zeros((n, 3), dtype)
    value, fooled = xp.full(n, -np.inf, dtype), xp.zeros(n, bool)
    left = np.arange(n)
    # The first round is the image itself: if it is misclassified, no transformation is needed.
    rounds = [grid[:1], *(grid[i : i + ROUND] for i in range(1, len(grid), ROUND))]
    for i, some in enumerate(rounds):
        now, arrays = xp.asarray(left), only(left, x, y, target, t, fooled, value)
        run = partial(_try_all, query, loss, some)
        with shared.pieces(query, arrays[0], progress, "grid", i, len(rounds)) as how:
            t[now], fooled[now], value[now] = by_examples(run, *arrays, **how)
        if not exhaustive:
            left = np.flatnonzero(~to_numpy(fooled))  # synchronises with a GPU, once in a round
            if len(left) == 0:
                break
    return _transformed(x, t, details)


def spatial_random(
    model: Model, x: Array | Checked, y: Array | None = None, *,
    max_angle: float = 30.0, max_shift: float = 3.0, k: int = 10, loss: Loss = cross_entropy,
    target: Array | int | None = None, rng: RNG = 0, details: bool = False,
    progress: bool = False,
) -> Array:  # fmt: skip
    """The worst of k random rotations and translations.

    The paper's "worst-of-10", which is cheap enough for the inner maximisation of min-max training:
    ``fit(…, perturb=partial(spatial_random, rng=rng))``, with a generator, so that each step draws
    new ones. With k = 1 nothing is maximised, and this is data augmentation.

    Parameters that are not described here: see :mod:`tinyadv.attacks`.

    Parameters
    ----------
    max_angle, max_shift, loss
        As for :func:`spatial_grid`.
    k : int
        Transformations for each image, different ones, uniform in the allowed range.
    rng : numpy.random.Generator or int
        Each image draws from a generator of its own, seeded from this one, so its transformations
        do not depend on the other images, and the first ones do not depend on k.

    Returns
    -------
    x_adv, t
        As for :func:`spatial_grid`.
    """
    query = shared.QueryOnly(model)
    x, y, target = checked(query, x, y, target)
    limits = _limits(x, max_angle, max_shift)
    inputs.check_counts(k=k)
    draws = _random(len(x), k, limits, rng).astype(_of_positions(x))  # (N, k, 3)
    draws = array_module(x).asarray(draws)

    def run(x, y, target, draws):
        return _try_all(query, loss, [draws[:, i] for i in range(k)], x, y, target)[0]

    with shared.pieces(query, x, progress, f"worst of {k}") as how:
        t = by_examples(run, x, y, target, draws, **how)
    return _transformed(x, t, details)


def spatial_first_order(
    model: Model, x: Array | Checked, y: Array | None = None, *,
    max_angle: float = 30.0, max_shift: float = 3.0, step_size: float = 0.01, steps: int = 200,
    loss: Loss = cross_entropy, target: Array | int | None = None,
    rng: RNG = 0, details: bool = False, progress: bool = False,
) -> Array:  # fmt: skip
    """Gradient ascent on the three numbers of the transformation.

    PGD, with t instead of the pixels: a random start, steps along the sign of the gradient, back
    into the allowed range. The worst of all points on the way is returned. Yet it is weaker than
    the grid, because the loss has many local maxima in angle and shift.

    Parameters that are not described here: see :mod:`tinyadv.attacks`.

    Parameters
    ----------
    max_angle, max_shift
        As for :func:`spatial_grid`.
    step_size : float
        A share of ``max_angle`` for the angle, and of ``max_shift`` for the shifts: by default 0.3°
        and 0.03 pixels. Each of the three numbers changes by that much in a step.
    steps : int
        200 in the paper.

    Returns
    -------
    x_adv, t
        As for :func:`spatial_grid`.
    """
    x, y, target = checked(model, x, y, target)
    limits = _limits(x, max_angle, max_shift)
    inputs.check_counts(steps=steps)
    inputs.check_numbers(step_size=step_size)
    start = _random(len(x), 1, limits, rng)[:, 0]  # (N, 1, 3) -> (N, 3)
    most, step, start = (
        array_module(x).asarray(a.astype(_of_positions(x)))
        for a in (limits, step_size * limits, start)
    )
    run = partial(_first_order, lent(model), most=most, step=step, steps=steps, loss=loss)
    with shared.pieces(model, x, progress, "first order") as how:
        t = by_examples(run, x, y, target, start, **how)
    return _transformed(x, t, details)


def _first_order(model, x, y, target, t, *, most, step, steps, loss):
    """The loop of :func:`spatial_first_order` alone: from t; returns the worst t."""
    xp, worst = array_module(x), None
    of_t = lambda t: model(rotate_translate(x, t[:, 0], t[:, 1:]))  # the logits
    for _ in range(steps + 1):
        g, value, logits = input_gradient(of_t, t, y, target, loss=loss)
        worst = worse(worst, (t, is_fooled(logits, y, target), value))
        t = xp.clip(t + step * xp.sign(g), -most, most)
    return worst[0]


# ------------------------------------------------------------------------------ what they share


def _limits(x: Array, max_angle: float, max_shift: float) -> np.ndarray:
    """The largest angle and shifts, (3,), after a check that x consists of images."""
    shared.check_images(x, "a rotation")
    inputs.check_numbers(max_angle=max_angle, max_shift=max_shift)
    return np.array([max_angle, max_shift, max_shift], float)


def _grid(limits: Array, angles: int, shifts: int) -> list[np.ndarray]:
    """The transformations of the grid, (3,) each: the identity first, then from the largest on."""
    ticks = [
        # Divided by their number, and not by their distance, so that the middle is exactly 0.
        {limit * (2 * i - count + 1) / max(count - 1, 1) for i in range(count)}
        for limit, count in zip(limits, (angles, shifts, shifts), strict=True)
    ]
    grid = [np.array(t) for t in product(*map(sorted, ticks)) if any(t)]
    size = lambda t: -np.linalg.norm(t / np.maximum(limits, 1e-300))
    return [np.zeros(3), *sorted(grid, key=size)]


def _random(n: int, k: int, limits: Array, rng: RNG) -> np.ndarray:
    """k transformations for each of n images, uniform within the limits: (n, k, 3)."""
    seeds = np.random.default_rng(rng).integers(2**63, size=n)
    u = np.stack([np.random.default_rng(seed).random((k, 3)) for seed in seeds])
    return limits * (2 * u - 1)


def _try_all(query, loss, transformations, x, y, target, *worst):
    """The worst transformation of each image: t (n, 3), fooled (n,) of bool, the loss (n,).

    Parameters
    ----------
    transformations : sequence of (3,) or (n, 3)
        The same for all images, or one for each.
    worst : t, fooled, loss
        The worst ones so far, if there are any.
    """
    xp, worst = array_module(x), worst or None
    for t in transformations:
        logits = query(rotate_translate(x, t[..., 0], t[..., 1:]))
        value = value_of(to_raise(loss, logits, y, target))
        t = xp.broadcast_to(xp.asarray(t, dtype=_of_positions(x)), (len(x), 3))
        worst = worse(worst, (t, is_fooled(logits, y, target), value))
    return worst


def _transformed(x, t, details):
    """What an attack returns: the images, transformed once more, and the transformations."""
    x_adv = by_examples(lambda x, t: rotate_translate(x, t[:, 0], t[:, 1:]), x, t)
    return (x_adv, t) if details else x_adv
