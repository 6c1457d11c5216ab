"""Balls: the perturbations that an attack may choose from.

    δ   (N, …)   perturbations, one for each example; x + δ is what the network sees
    ε            the ball's radius, in pixel values 0–1: ‖δ‖ ≤ ε
    v   (N, D)   the same with each example as a row of D numbers

A ball has three methods: ``random`` draws one of its points, ``steepest`` gives the direction of
length 1 along which a linear function rises most, and ``project`` finds the point of the ball that
is nearest to a given one. With these three, projected gradient descent is one loop for all norms;
``step`` is its body, steepest and project one after the other.

Images have another limit: pixels lie in [0, 1]. Clipping after projecting can leave a point that is
not the nearest one of ball and box together, so ``project`` takes limits for δ as well, and the
nearest point within both is found exactly, by sorting. Nothing here waits for a GPU.

A result has the dtype of what is given. In float32 and float64, ‖δ‖ ≤ ε holds up to rounding,
about 1e-6 ε and 1e-14 ε for 784 pixels, and six times as much for 50,000. float16 is too coarse for
that: sums are taken in float32, and the result is rounded towards zero, so that ‖δ‖ does not exceed
ε.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from tinyadv.backend import array_module, elementwise
from tinyadv.tensor import RNG, Array


@dataclass(frozen=True)
class Ball:
    """All δ with ‖δ‖ ≤ ε, in the norm that a subclass stands for.

    Parameters
    ----------
    epsilon : float
        The radius, in pixel values 0–1.

    Raises
    ------
    ValueError
        If ``epsilon`` is not a number ≥ 0; ∞ is one.
    """

    epsilon: float

    def __post_init__(self) -> None:
        if not (is_number(self.epsilon) and self.epsilon >= 0):
            raise ValueError(f"epsilon must be ≥ 0, a number; got {self.epsilon!r}")
        # A NumPy number would make float64 of float32 images.
        object.__setattr__(self, "epsilon", float(self.epsilon))

    def norm(self, delta: Array) -> Array:
        """The norm of each example's perturbation: (N, …) -> (N,)."""
        raise NotImplementedError

    def random(self, x: Array, rng: RNG) -> Array:
        """A random δ for each image of ``x`` (N, …), with x + δ in [0, 1].

        In L∞ it is uniform in what ball and box share. In L2 and L1 it is uniform in the ball, and
        pixels that leave [0, 1] are then cut off, which makes it shorter. Drawn on the host, so
        that every backend sees the same numbers.
        """
        raise NotImplementedError

    def steepest(self, g: Array) -> Array:
        """The direction d with ‖d‖ = 1 and the largest <g, d>: (N, …) -> (N, …).

        Where g is zero there is no direction, and the result is zero.
        """
        raise NotImplementedError

    def project(self, delta: Array, low: Array | None = None, high: Array | None = None) -> Array:
        """The nearest point to ``delta`` within the ball, and between ``low`` and ``high``.

        Parameters
        ----------
        delta : (N, …)
        low, high : arrays of the same shape, or numbers, optional
            Limits for δ, low ≤ 0 ≤ high: for an image x in [0, 1] they are -x and 1 - x.

        Returns
        -------
        (N, …); points inside come back as they are, bit by bit.
        """
        raise NotImplementedError

    def step(self, delta: Array, g: Array, size: Array | float, low: Array, high: Array) -> Array:
        """A step of projected gradient ascent: ``project(delta + size · steepest(g), low, high)``.

        Parameters
        ----------
        delta, g : (N, …)
        size : float or array
            The length of the step, or one (N, 1, …, 1) for each example.
        low, high : arrays of the same shape
            As for :meth:`project`.

        Returns
        -------
        (N, …), in the dtype of ``delta``
        """
        step = size * self.steepest(g).astype(delta.dtype, copy=False)
        return self.project(delta + step, low, high)


def is_number(value: Any) -> bool:
    """Whether it is a real number, Python's or NumPy's. True, False and text are not."""
    if isinstance(value, Real):
        return not isinstance(value, bool)
    return getattr(value, "shape", None) == () and value.dtype.kind in "iuf"


def wide(a: Array) -> Array:
    """``a`` in float32 at least, because in float16 sums overflow and squares vanish."""
    return a.astype(np.result_type(a.dtype, np.float32), copy=False)


def narrowed(a: Array, dtype: np.dtype, towards: Array | float = 0) -> Array:
    """``a`` in another dtype; if it is float16, rounded towards ``towards`` and not to nearest."""
    near, xp = a.astype(dtype, copy=False), array_module(a)
    if dtype.itemsize >= 4:
        return near
    too_far = abs(wide(near) - towards) > abs(a - towards)
    return xp.where(too_far, xp.nextafter(near, towards), near)


def per_example(a: Array, x: Array) -> Array:
    """A number for each example, shaped to broadcast with images: (N,) -> (N, 1, …, 1)."""
    return a.reshape((-1,) + (1,) * (x.ndim - 1))


def _rows(delta):  # (N, …) -> (N, D)
    return wide(delta).reshape(len(delta), math.prod(delta.shape[1:]))


def _limited(xp, delta, low, high):
    """``delta`` between its limits, as far as there are any."""
    if low is not None:
        delta = xp.maximum(delta, low)
    return delta if high is None else xp.minimum(delta, high)


def _room(xp, delta, low, high):
    """How far each number may go in its own direction, as rows: (N, D), ∞ without limits."""
    infinite = xp.full_like(delta, xp.inf)
    up = infinite if high is None else high
    down = infinite if low is None else -low
    return _rows(xp.where(delta > 0, up, down).astype(delta.dtype, copy=False))


def _at(xp, rows, index):
    """One number of each row: (N, D), (N,) -> (N, 1)."""
    return xp.take_along_axis(rows, index[:, None], axis=1)


class Linf(Ball):
    """‖δ‖∞ = max |δ_i|: no pixel changes by more than ε."""

    def norm(self, delta: Array) -> Array:
        return abs(_rows(delta)).max(1)

    def random(self, x: Array, rng: RNG) -> Array:
        # Ball and box are both products of intervals, and so is what they share.
        xp, u, dtype = array_module(x), np.random.default_rng(rng).random(x.shape), x.dtype
        x = wide(x)
        low, high = xp.maximum(-x, -self.epsilon), xp.minimum(1 - x, self.epsilon)
        return narrowed(low + (high - low) * xp.asarray(u.astype(x.dtype)), dtype)

    def steepest(self, g: Array) -> Array:
        return array_module(g).sign(g)

    def project(self, delta: Array, low: Array | None = None, high: Array | None = None) -> Array:
        xp = array_module(delta)
        clipped = xp.clip(wide(delta), -self.epsilon, self.epsilon)
        return _limited(xp, narrowed(clipped, delta.dtype), low, high)

    def step(self, delta: Array, g: Array, size: Array | float, low: Array, high: Array) -> Array:
        if delta.dtype.itemsize < 4:  # which needs rounding
            return super().step(delta, g, size, low, high)
        return _linf_step(delta, g, size, -self.epsilon, self.epsilon, low, high)


@elementwise
def _linf_step(delta, g, size, least, most, low, high):
    xp = array_module(delta)
    delta = delta + size * xp.sign(g).astype(delta.dtype, copy=False)
    return xp.minimum(xp.maximum(xp.clip(delta, least, most), low), high)


class L2(Ball):
    """‖δ‖₂ = (Σ δ_i²)^½: the length of the perturbation is at most ε."""

    def norm(self, delta: Array) -> Array:
        return array_module(delta).sqrt((_rows(delta) ** 2).sum(1))

    def random(self, x: Array, rng: RNG) -> Array:
        # A normal vector has no preferred direction. The share of the volume within radius r is
        # (r/ε)ᴰ, so a uniform point has radius ε·u^(1/D).
        rng, dimension = np.random.default_rng(rng), math.prod(x.shape[1:])
        direction = rng.standard_normal((len(x), dimension))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        radius = self.epsilon * rng.random((len(x), 1)) ** (1 / dimension)
        return _into_box(x, radius * direction)

    def steepest(self, g: Array) -> Array:
        xp, v = array_module(g), _rows(g)
        # Divided by the largest number first, because squares of 1e-30 are zero in float32.
        v = v / _positive(xp, abs(v).max(1, keepdims=True))
        v = v / _positive(xp, xp.sqrt((v * v).sum(1, keepdims=True)))
        return v.reshape(g.shape).astype(g.dtype, copy=False)

    def project(self, delta: Array, low: Array | None = None, high: Array | None = None) -> Array:
        """With a multiplier for the ball, the nearest point is s·δ, limited, for some s ≤ 1.

        Each number follows s·|δ_i| until it meets its limit b_i at s = b_i / |δ_i|. Sorted by that,
        the length of s·δ, limited, is known at all these points, and ε lies between two of them.
        """
        xp = array_module(delta)
        inside = _limited(xp, delta, low, high)
        size, room = abs(_rows(delta)), _room(xp, delta, low, high)
        # s at which each number meets its limit; a zero never does.
        meets = xp.where(size > 0, room / xp.maximum(size, 1e-30), xp.inf)
        order = xp.argsort(meets, axis=1)
        meets, size, room = (xp.take_along_axis(a, order, axis=1) for a in (meets, size, room))
        # For s between meets[k - 1] and meets[k]: length² = Σ_{i<k} b_i² + s² Σ_{i≥k} δ_i².
        zero = xp.zeros_like(size[:, :1])
        finite = xp.where(xp.isfinite(room), room, 0)
        met = xp.concatenate([zero, xp.cumsum(finite**2, axis=1)], axis=1)[:, :-1]
        free = xp.cumsum((size**2)[:, ::-1], axis=1)[:, ::-1]
        s = xp.sqrt(xp.maximum(self.epsilon**2 - met, 0) / _positive(xp, free))
        k = (s > meets).sum(1)  # numbers that meet their limit before the length is ε
        s = _at(xp, s, xp.minimum(k, size.shape[1] - 1))
        shrunk = _limited(xp, delta * per_example(s, delta), low, high)
        return _keep_inside(xp, self, inside, shrunk)


@dataclass(frozen=True)
class L1(Ball):
    """‖δ‖₁ = Σ |δ_i|: all changes together are at most ε.

    Parameters
    ----------
    epsilon : float
    pixels : int
        How many numbers of each example the steepest direction shares its length among. One is
        what the definition says; with more, a step is not lost where a pixel has reached its limit
        (Tramèr & Boneh 2019, "Adversarial training and robustness for multiple perturbations").

    Raises
    ------
    ValueError
        If ``epsilon`` is not a number ≥ 0, or ``pixels`` is not an integer ≥ 1.
    """

    pixels: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        integer = isinstance(self.pixels, (int, np.integer)) and not isinstance(self.pixels, bool)
        if not integer or self.pixels < 1:
            raise ValueError(f"pixels must be an integer ≥ 1, got {self.pixels!r}")

    def norm(self, delta: Array) -> Array:
        return abs(_rows(delta)).sum(1)

    def random(self, x: Array, rng: RNG) -> Array:
        # D numbers of an exponential distribution, with one more for the room that is left, divided
        # by their sum: uniform in the simplex. Random signs make it the ball.
        rng, dimension = np.random.default_rng(rng), math.prod(x.shape[1:])
        shares = rng.standard_exponential((len(x), dimension + 1))
        shares = shares[:, 1:] / shares.sum(1, keepdims=True)
        signs = 2 * rng.integers(0, 2, shares.shape) - 1
        return _into_box(x, self.epsilon * signs * shares)

    def steepest(self, g: Array) -> Array:
        xp, v = array_module(g), _rows(g)
        count = min(self.pixels, v.shape[1])
        # The places by rank, so that equal numbers do not all count.
        rank = xp.argsort(xp.argsort(-abs(v), axis=1), axis=1)
        d = xp.where(rank < count, xp.sign(v), 0)
        d = d / _positive(xp, abs(d).sum(1, keepdims=True))
        return d.reshape(g.shape).astype(g.dtype, copy=False)

    def project(self, delta: Array, low: Array | None = None, high: Array | None = None) -> Array:
        """The nearest point takes the same λ off every |δ_i|, down to 0, and then limits it.

        As λ falls from the largest |δ_i|, number i sets out at λ = |δ_i| and meets its limit b_i at
        λ = |δ_i| - b_i. Between these points the norm grows by 1 for each number under way. Sorted,
        the norm is known at all of them, and ε lies between two. Without limits this is the
        projection of Duchi et al. (2008), "Efficient projections onto the l1-ball".

        What is left of |δ_i| - λ may be small, however long δ is. So λ is found in float64, and is
        subtracted in two steps: a point that is one of the |δ_i|, or is b_i below it; and the rest.
        """
        xp = array_module(delta)
        inside = _limited(xp, delta, low, high)
        rows, room = _rows(delta), _room(xp, delta, low, high).astype(np.float64)
        size = abs(rows).astype(np.float64)
        points = xp.maximum(xp.concatenate([size, size - room], axis=1), 0)  # λ, (N, 2D)
        change = xp.concatenate([xp.ones_like(size), -xp.ones_like(size)], axis=1)
        order = xp.argsort(-points, axis=1)
        points, change = (xp.take_along_axis(a, order, axis=1) for a in (points, change))
        under_way = xp.cumsum(change, axis=1)
        grown = under_way[:, :-1] * (points[:, :-1] - points[:, 1:])
        norm = xp.concatenate([xp.zeros_like(size[:, :1]), xp.cumsum(grown, axis=1)], axis=1)
        k = xp.maximum((norm <= self.epsilon).sum(1) - 1, 0)  # the last point with a norm within ε
        at, growth = _at(xp, points, k), _at(xp, under_way, k)
        rest = (self.epsilon - _at(xp, norm, k)) / xp.maximum(growth, 1)
        v = xp.clip(size - at + rest, 0, xp.minimum(size, room))
        # If δ is so long, some 1e12 ε, that float64 has no digits left, at least the norm is right.
        v = v * xp.minimum(self.epsilon / _positive(xp, v.sum(1, keepdims=True)), 1)
        shrunk = (xp.sign(rows) * v.astype(rows.dtype)).reshape(delta.shape)
        return _keep_inside(xp, self, inside, shrunk)


def _positive(xp, a):
    """``a`` with ones instead of zeros, to divide by."""
    return xp.where(a > 0, a, 1)


def _keep_inside(xp: Any, ball: Ball, inside: Array, shrunk: Array) -> Array:
    """Points that limits alone bring into the ball as they are, the others shrunk."""
    fits = per_example(ball.norm(inside) <= ball.epsilon, inside)
    return xp.where(fits, inside, narrowed(shrunk, inside.dtype))


def _into_box(x, delta):
    """``delta``, drawn as float64 rows on the host, on the images' backend, with x + δ in [0, 1].

    Limiting single pixels only makes a perturbation smaller, so it stays in the ball.
    """
    xp = array_module(x)
    delta = xp.asarray(narrowed(delta.reshape(x.shape), x.dtype))
    return xp.clip(delta, -x, 1 - x)
