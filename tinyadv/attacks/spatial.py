"""Attacks that turn and shift the image, as a camera that is not held straight does.

Nothing about the pixels is adversarial here: every result is the same picture, a little to the
side. Three numbers make it, and three ways to look for the worst ones stand below.

    x      (N, C, H, W)   images, pixel values 0–1, black outside
    θ      (N,)           the angle in degrees, counter-clockwise as one sees it
    s      (N, 2)         the shift in pixels, to the right and down
    t      (N, 3)         the transformation: θ and s
    u, v   (H, W, N)      the column and the row of x that a pixel of the result is read at
    k                     random transformations that are tried for each image

Engstrom et al. (2019), "Exploring the landscape of spatial robustness", first called "A rotation
and a translation suffice: fooling CNNs with simple transformations". Reading an image between its
pixels so that there is a gradient for the place: Jaderberg et al. (2015), "Spatial transformer
networks".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np

from tinyadv import ops
from tinyadv.attacks.common import (
    answers_only,
    by_pieces,
    check_counts,
    check_numbers,
    checked,
    input_gradient,
    is_fooled,
    to_raise,
    worse,
)
from tinyadv.backend import array_module, to_numpy
from tinyadv.losses import cross_entropy
from tinyadv.tensor import Array, Tensor, _value

# Transformations of the grid between two times at which fooled images are put aside.
ROUND = 25

# --------------------------------------------------------------------------------- the sampling


def rotate_translate(x: Array | Tensor, angle, shift) -> Array | Tensor:
    """Images turned about their centre, and then shifted.

    A pixel of the result is read where it came from, between four pixels of x, which count by how
    near they are (bilinear interpolation). Outside the image all is 0. Everything is made of
    operations, so there is a gradient for the image, for the angle and for the shift, of any order.
    For the latter two it is the slope between neighbouring pixels, and jumps from one to the next.

    Parameters
    ----------
    x : (N, C, H, W) of a floating-point type, array or Tensor
    angle : (N,) or a number, array or Tensor
        θ, in degrees; above 0 is counter-clockwise as one sees it, with row 0 on top.
    shift : (N, 2) or (2,), array or Tensor
        To the right and down, in pixels. One angle and one shift for all images are faster.

    Returns
    -------
    (N, C, H, W)
        Of the dtype of ``x``; a Tensor if one of the arguments is. With θ = 0 and a shift of whole
        pixels no pixel value is changed, and values in [0, 1] stay there.

    Raises
    ------
    TypeError
        If ``x`` does not hold floating-point numbers.
    ValueError
        If the shapes are others.

    Examples
    --------
    >>> x = np.eye(3)[None, None]
    >>> rotate_translate(x, 0, (1, 0))[0, 0]
    array([[0., 1., 0.],
           [0., 0., 1.],
           [0., 0., 0.]])
    """
    angle, shift = _checked_transformation(x, angle, shift)
    xp, (n, c, h, w) = array_module(_value(x)), x.shape
    # Where pixels of the result come from, going back: first shift, then turn by -θ. Row 0 is on
    # top, hence the signs.
    theta = angle * (math.pi / 180)
    column = xp.arange(w, dtype=x.dtype)[:, None] - (w - 1) / 2 - shift[:, 0]  # (W, n), n: N or 1
    row = xp.arange(h, dtype=x.dtype)[:, None, None] - (h - 1) / 2 - shift[:, 1]  # (H, 1, n)
    u = ops.cos(theta) * column - ops.sin(theta) * row + (w - 1) / 2  # (H, W, n)
    v = ops.sin(theta) * column + ops.cos(theta) * row + (h - 1) / 2

    # How near a place is to its four neighbours depends on t, and stays on the tape. Which ones
    # they are jumps, and does not. With two black pixels around x, every place has four.
    left = xp.clip(xp.floor(_value(u)), -2, w)
    top = xp.clip(xp.floor(_value(v)), -2, h)
    to_right, to_bottom = u - left, v - top  # from 0 to 1, wherever the four are not all black
    wide, high = w + 4, h + 4
    first = (top.astype(np.int64) + 2) * wide + (left.astype(np.int64) + 2)  # (H, W, n)
    first = first + xp.arange(c).reshape(c, 1, 1, 1) * (high * wide)  # -> (C, H, W, n)

    # Stored with the examples last, as convolutions store theirs, so that what is read for all
    # images at the same place is one contiguous run.
    pixels = ops.pad(ops.transpose(x, (1, 2, 3, 0)), [(0, 0), (2, 2), (2, 2), (0, 0)])
    if first.shape[-1] == n > 1:  # each image its own
        pixels, first, step = ops.reshape(pixels, (-1,)), first * n + xp.arange(n), n
    else:
        pixels, first, step = ops.reshape(pixels, (-1, n)), first[..., 0], 1

    def read(down, right):  # -> (C, H, W, N)
        return ops.getitem(pixels, first + (down * wide + right) * step)

    above = (1 - to_right) * read(0, 0) + to_right * read(0, 1)
    below = (1 - to_right) * read(1, 0) + to_right * read(1, 1)
    return ops.transpose((1 - to_bottom) * above + to_bottom * below, (3, 0, 1, 2))


def _checked_transformation(x, angle, shift):
    """Angle and shift as (N,) and (N, 2), or (1,) and (1, 2) if they are those of all images."""
    if getattr(x, "ndim", None) != 4:
        raise ValueError(
            f"rotate_translate takes images (N, C, H, W), got {getattr(x, 'shape', type(x))}"
        )
    if x.dtype.kind != "f":
        raise TypeError(f"rotate_translate takes images of floating-point numbers, not {x.dtype}")

    def like_x(value):
        if isinstance(value, Tensor):
            return value if value.dtype == x.dtype else ops.astype(value, x.dtype)
        return array_module(_value(x)).asarray(value, dtype=x.dtype)

    angle, shift, n = like_x(angle), like_x(shift), len(x)
    if angle.shape not in [(), (n,)] or shift.shape not in [(2,), (n, 2)]:
        raise ValueError(
            f"for {n} images the angle must be a number or ({n},), and the shift (2,) or ({n}, 2), "
            f"right and down; got {angle.shape} and {shift.shape}"
        )
    return ops.reshape(angle, (-1,)), ops.reshape(shift, (-1, 2))


# ---------------------------------------------------------------------------------- the attacks


def spatial_grid(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    max_angle: float = 30.0,
    max_shift: float = 3.0,
    angles: int = 31,
    shifts: int = 5,
    exhaustive: bool = False,
    loss: Callable = cross_entropy,
    target: Array | int | None = None,
    details: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> Array | tuple[Array, Array]:
    """The worst rotation and translation of a grid: 31 angles, 5 shifts to the right and 5 down.

    The strongest attack of Engstrom et al. (2019). Three numbers are few enough to try them all,
    and no gradient is needed. The image itself comes first, then the grid from its corners inwards,
    for the largest transformations fool most.

    Parameters
    ----------
    model : callable
        Takes images (n, C, H, W), returns logits (n, K), each image on its own.
    x : (N, C, H, W) of a floating-point type
        Images, pixel values 0–1.
    y : (N,) integers, optional
        Their labels. By default the model's own predictions.
    max_angle : float
        Angles go from -max_angle to max_angle, in degrees.
    max_shift : float
        Shifts go from -max_shift to max_shift in both directions, in pixels.
    angles, shifts : int
        How many there are of each, at equal distances: angles · shifts² transformations in all.
        Even numbers leave 0 out of the grid, and then the image itself is one more.
    exhaustive : bool
        Try all transformations on all images, to find the largest loss. By default an image that is
        fooled is soon done: that gives the same accuracy, at a fraction of the cost.
    loss : callable
        Of those that fool the model, and of those that do not, the worse one has the larger
        ``loss(logits, labels, reduction="none") -> (N,)``.
    target : (N,) integers or one integer, optional
        Classes to reach.
    details : bool
        Return the transformations as well.
    workers : int, optional
        Threads that share the images; by default one for each core. The result does not depend on
        it.
    progress : bool
        Show a bar on terminals.

    Returns
    -------
    x_adv : (N, C, H, W)
        ``rotate_translate(x, t[:, 0], t[:, 1:])``: in [0, 1], of the shape and dtype of ``x``.
    t : (N, 3)
        Angle, shift to the right, shift down; only with ``details=True``.

    Raises
    ------
    TypeError, ValueError
        If ``x``, ``y`` or ``target`` are not as described, if the model does not return logits, or
        if a number is out of range. The message says what came.

    Examples
    --------
    >>> from tinyadv import models
    >>> x = np.random.default_rng(0).random((2, 1, 28, 28))
    >>> x_adv, t = spatial_grid(models.slides_cnn(), x, angles=3, shifts=3, details=True)
    >>> x_adv.shape, t.shape
    ((2, 1, 28, 28), (2, 3))
    """
    model = answers_only(model)
    x, y, target = _checked_images(model, x, y, target)
    check_counts(angles=angles, shifts=shifts)
    grid = _grid(_limits(max_angle, max_shift), angles, shifts)

    xp, n = array_module(x), len(x)
    t = xp.zeros((n, 3), x.dtype)
    value, fooled = xp.full((n,), -np.inf, x.dtype), xp.zeros(n, bool)
    left = np.arange(n)
    # The image itself is a round of its own: what is misread already needs no transformation.
    rounds = [grid[:1], *(grid[i : i + ROUND] for i in range(1, len(grid), ROUND))]
    for i, some in enumerate(rounds):
        now = xp.asarray(left)
        t[now], fooled[now], value[now] = by_pieces(
            partial(_try_all, model, loss, some),
            *(None if a is None else a[now] for a in (x, y, target, t, fooled, value)),
            workers=workers, progress=progress, name=f"grid, round {i + 1}/{len(rounds)}",
        )  # fmt: skip
        if not exhaustive:
            left = np.flatnonzero(~to_numpy(fooled))  # waits for a GPU, once in a round
            if len(left) == 0:
                break
    return _moved(x, t, details, workers)


def spatial_random(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    max_angle: float = 30.0,
    max_shift: float = 3.0,
    k: int = 10,
    loss: Callable = cross_entropy,
    target: Array | int | None = None,
    rng: np.random.Generator | int = 0,
    details: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> Array | tuple[Array, Array]:
    """The worst of k random rotations and translations.

    The paper's "worst-of-10", which is cheap enough to be the inner maximisation of a training:
    ``fit(…, perturb=partial(spatial_random, rng=rng))``, with a generator, so that each step draws
    new ones. With k = 1 nothing is maximised: that is data augmentation.

    Parameters
    ----------
    model, x, y, max_angle, max_shift, loss, target, details, workers, progress
        As for :func:`spatial_grid`.
    k : int
        Transformations for each image, its own ones, drawn evenly from the allowed range.
    rng : numpy.random.Generator or int
        Each image draws from a generator of its own, seeded from this one, so its transformations
        do not depend on the other images, and the first ones not on k.

    Returns
    -------
    x_adv : (N, C, H, W)
    t : (N, 3)
        Angle, shift to the right, shift down; only with ``details=True``.
    """
    model = answers_only(model)
    x, y, target = _checked_images(model, x, y, target)
    limits = _limits(max_angle, max_shift)
    check_counts(k=k)
    draws = _random(len(x), k, limits, rng)  # (N, k, 3)

    def run(x, y, target, draws):
        return _try_all(model, loss, [draws[:, i] for i in range(k)], x, y, target)[0]

    t = by_pieces(
        run, x, y, target, array_module(x).asarray(draws.astype(x.dtype)), workers=workers,
        progress=progress, name=f"worst of {k}",
    )  # fmt: skip
    return _moved(x, t, details, workers)


def spatial_first_order(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    max_angle: float = 30.0,
    max_shift: float = 3.0,
    step_size: float = 0.01,
    steps: int = 200,
    loss: Callable = cross_entropy,
    target: Array | int | None = None,
    rng: np.random.Generator | int = 0,
    details: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> Array | tuple[Array, Array]:
    """Ascent on the three numbers of the transformation, by the gradient of the loss for them.

    What PGD is for pixels: a random start, steps along the gradient's sign, back into the allowed
    range. Of all the points on the way the worst one counts. Yet it is weaker than the grid: over
    angle and shift the loss has many local maxima.

    Parameters
    ----------
    model, x, y, max_angle, max_shift, target, details, workers, progress
        As for :func:`spatial_grid`; the model must take tensors.
    step_size : float
        A share of ``max_angle`` for the angle, and of ``max_shift`` for the shifts, which makes
        0.3° and 0.03 pixels. Each of the three goes up or down by that much.
    steps : int
        200 in the paper.
    loss : callable
        What is raised, ``loss(logits, labels, reduction="none") -> (N,)``.
    rng : numpy.random.Generator or int
        For the random starts, drawn on the host.

    Returns
    -------
    x_adv : (N, C, H, W)
    t : (N, 3)
        Angle, shift to the right, shift down; only with ``details=True``.
    """
    x, y, target = _checked_images(model, x, y, target)
    limits = _limits(max_angle, max_shift)
    check_counts(steps=steps)
    check_numbers(step_size=step_size)
    xp = array_module(x)
    start = _random(len(x), 1, limits, rng)[:, 0]  # (N, 3)
    most, step = (xp.asarray(a.astype(x.dtype)) for a in (limits, step_size * limits))

    def moved(x, t):
        return model(rotate_translate(x, t[:, 0], t[:, 1:]))

    def climb(x, y, target, t):
        worst = None
        for _ in range(steps + 1):
            g, value, logits = input_gradient(partial(moved, x), t, y, target, loss=loss)
            worst = worse(worst, (t, is_fooled(logits, y, target), value))
            t = xp.clip(t + step * xp.sign(g), -most, most)
        return worst[0]

    t = by_pieces(
        climb, x, y, target, xp.asarray(start.astype(x.dtype)), workers=workers,
        progress=progress, name="first order",
    )  # fmt: skip
    return _moved(x, t, details, workers)


# --------------------------------------------------------------------------- what they are made of


def _checked_images(model, x, y, target):
    x, y, target = checked(model, x, y, target)
    if x.ndim != 4:
        raise ValueError(
            f"rotation and translation need images (N, C, H, W), got shape {x.shape}: reshape x, "
            "and let the model begin with a layer that flattens"
        )
    return x, y, target


def _limits(max_angle: float, max_shift: float) -> np.ndarray:
    """The largest angle and shifts: (3,)."""
    check_numbers(max_angle=max_angle, max_shift=max_shift)
    return np.array([max_angle, max_shift, max_shift], float)


def _grid(limits, angles: int, shifts: int) -> list[np.ndarray]:
    """The transformations of the grid, (3,) each: none at all first, then from the largest on."""
    ticks = [
        # Divided by their number, and not by their distance, for ±0 exactly in the middle.
        {limit * (2 * i - count + 1) / max(count - 1, 1) for i in range(count)}
        for limit, count in zip(limits, (angles, shifts, shifts), strict=True)
    ]
    grid = [np.array(t) for t in product(*map(sorted, ticks)) if any(t)]
    size = lambda t: -np.linalg.norm(t / np.maximum(limits, 1e-300))
    return [np.zeros(3), *sorted(grid, key=size)]


def _random(n: int, k: int, limits, rng) -> np.ndarray:
    """k transformations for each of n images, uniform within the limits: (n, k, 3)."""
    seeds = np.random.default_rng(rng).integers(2**63, size=n)
    u = np.stack([np.random.default_rng(seed).random((k, 3)) for seed in seeds])
    return limits * (2 * u - 1)


def _try_all(model, loss, transformations, x, y, target, *worst):
    """The worst transformation of each image: t (n, 3), fooled (n,) of bool, the loss (n,).

    Parameters
    ----------
    transformations : sequence of (3,) or (n, 3)
        For all images alike, or for each its own.
    worst : t, fooled, loss
        The worst ones so far, if there are any.
    """
    xp, worst = array_module(x), worst or None
    for t in transformations:
        logits = model(rotate_translate(x, t[..., 0], t[..., 1:]))
        value = _value(to_raise(loss, logits, y, target))
        t = xp.broadcast_to(xp.asarray(t, dtype=x.dtype), (len(x), 3))
        worst = worse(worst, (t, is_fooled(logits, y, target), value))
    return worst


def _moved(x, t, details, workers):
    """What an attack returns: the images, transformed once more, and the transformations."""
    move = lambda x, t: rotate_translate(x, t[:, 0], t[:, 1:])
    x_adv = by_pieces(move, x, t, workers=workers)
    return (x_adv, t) if details else x_adv
