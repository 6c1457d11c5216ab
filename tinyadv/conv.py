"""Convolution and pooling, with the operations that are their adjoints.

Shapes, in PyTorch's order:

    x  (N, C, H, W)      images: number, channels, height, width
    w  (O, C, kh, kw)    filters: output channels, input channels, kernel height and width
    y  (N, O, P, Q)      output: P rows and Q columns of window positions

Convolution is linear in x and linear in w, so with g of y's shape one number,

    <g, conv2d(x, w)> = <conv2d_dx(g, w), x> = <conv2d_dw(x, g), w>,

defines two more operations: what flows back to the images, and what flows back to the filters.
Each of the three is linear in its two arguments, and its gradient rules are the other two. That is
all there is to derivatives of any order.

How to compute it: every window becomes a column of a matrix, and one matrix product applies all
filters to all windows. The usual way (*im2col*) copies every window, kh·kw times the memory of the
images. Here they are unfolded *along the width only*. For a kernel of width kw = 3:

    row h of an image        a b c d e

    columns[h]               a b c       under the left column of the window, at q = 0, 1, 2
                             b c d       under the middle column
                             c d e       under the right column

The rows of ``columns`` lie one after another in memory. So the windows of output row p, which need
kh of them, are a piece of that memory, and the pieces of neighbouring rows overlap:

    columns[0] ┐
    columns[1] │ p = 0  ┐
    columns[2] ┘        │ p = 1
    columns[3]          ┘              each piece is a matrix (kh·C·kw, Q·N), and none is copied

On a GPU, where many small products take longer to launch than to compute, the windows are copied
after all: a convolution and each of its adjoints is a single product for all rows.

The arrays are stored as (C, H, W, N): the shape above is a transposed view. What lies under one
kernel column, over all examples, is then one contiguous run. Arrays stored in another order work
too; they are copied once first. NumPy's elementwise functions keep the order they find.
"""

from __future__ import annotations

import functools
import math
import operator
from itertools import accumulate, pairwise, product
from typing import Any

import numpy as np

from tinyadv import ops
from tinyadv.backend import array_module, elementwise
from tinyadv.tensor import Array, Shape, defvjp, primitive, value_of

Pair = int | tuple[int, int]  # one number for both directions, or (vertical, horizontal)


def pair(value: Any, name: str, least: int) -> tuple[int, int]:
    """``value``, an int or a pair of ints, as a pair.

    Raises
    ------
    ValueError
        If one of the two is not an integer, or is below ``least``.
    """
    try:
        both = tuple(value) if hasattr(value, "__len__") else (value, value)
        first, second = (operator.index(v) for v in both)  # NumPy's integers as well
    except (TypeError, ValueError):
        first = second = least - 1
    if min(first, second) < least:
        raise ValueError(f"{name} must be an int ≥ {least} or a pair of them, got {value!r}")
    return first, second


def _counts(size, kernel, stride, padding=(0, 0), g=None):
    """P and Q, how many windows fit along the height and the width of images of this size.

    Pixels at the end of an axis that no window covers are left out.

    Raises
    ------
    ValueError
        If no window fits, or ``g`` (N, O, P, Q) is given and does not have a number for each.
    """
    lengths = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    if any(k > length for k, length in zip(kernel, lengths, strict=True)):
        raise ValueError(
            f"a window of size {tuple(kernel)} does not fit into an image of size {tuple(size)} "
            f"with padding {padding}: use a smaller kernel, more padding, or larger images"
        )
    p, q = ((n - k) // s + 1 for n, k, s in zip(lengths, kernel, stride, strict=True))
    if g is not None and g.shape[2:] != (p, q):
        raise ValueError(
            f"images of size {tuple(size)} have {(p, q)} windows, so g must be (N, O, {p}, {q}), "
            f"got {g.shape}"
        )
    return p, q


# ------------------------------------------------------------------------------- memory order


def _channels_first(x):  # shape (N, C, H, W) -> (C, H, W, N), contiguous
    x = x.transpose(1, 2, 3, 0)
    return x if x.flags.c_contiguous else x.copy()


def _examples_first(x):  # shape (C, H, W, N) -> (N, C, H, W), a view
    return x.transpose(3, 0, 1, 2)


def _padded(x, padding):  # shape (N, C, H, W) -> (C, H + 2·ph, W + 2·pw, N), contiguous
    ph, pw = padding
    if ph == pw == 0:
        return _channels_first(x)
    n, c, h, w = x.shape
    larger = array_module(x).zeros((c, h + 2 * ph, w + 2 * pw, n), x.dtype)
    larger[:, ph : ph + h, pw : pw + w] = x.transpose(1, 2, 3, 0)
    return larger


def _strided(x, shape, strides):
    return array_module(x).lib.stride_tricks.as_strided(x, shape, strides)


def _columns(x, kw, sw):
    """The images unfolded along the width: (C, H, W, N) -> (H, C·kw, Q·N)."""
    (c, h, w, n), (dc, dh, dw, dn) = x.shape, x.strides
    q = (w - kw) // sw + 1
    # Element (h, c, j, q, n) is x[c, h, q·sw + j, n].
    view = _strided(x, (h, c, kw, q, n), (dh, dc, dw, dw * sw, dn))
    return view.copy().reshape(h, c * kw, q * n)


def _rows_of(columns, kh, sh):
    """What each row of the output reads: (H, C·kw, Q·N) -> (P, kh·C·kw, Q·N), overlapping views."""
    (h, k, m), (dh, dk, dm) = columns.shape, columns.strides
    return _strided(columns, ((h - kh) // sh + 1, kh * k, m), (dh * sh, dk, dm))


def _windows(x, kernel, stride):
    """The windows as columns: (C, H, W, N) -> (P, kh·C·kw, Q·N), a matrix for each output row.

    On a GPU one matrix for all rows, (kh·C·kw, P·Q·N).
    """
    (kh, kw), (sh, sw) = kernel, stride
    if isinstance(x, np.ndarray):
        return _rows_of(_columns(x, kw, sw), kh, sh)
    (c, h, w, n), (dc, dh, dw, dn) = x.shape, x.strides
    p, q = (h - kh) // sh + 1, (w - kw) // sw + 1
    # Element (i, c, j, p, q, n) is x[c, p·sh + i, q·sw + j, n].
    view = _strided(x, (kh, c, kw, p, q, n), (dh, dc, dw, dh * sh, dw * sw, dn))
    return view.copy().reshape(kh * c * kw, p * q * n)


def _by_rows(y):  # (O, P, Q, N) -> (P, O, Q·N), on a GPU (O, P·Q·N); views
    o, p, q, n = y.shape
    on_cpu = isinstance(y, np.ndarray)
    return y.reshape(o, p, q * n).transpose(1, 0, 2) if on_cpu else y.reshape(o, p * q * n)


def _filters(w):  # (O, C, kh, kw) -> (O, kh·C·kw)
    return w.transpose(0, 2, 1, 3).reshape(len(w), math.prod(w.shape[1:]))


# -------------------------------------------------------------------------------- convolution


@primitive
def conv2d(
    x: Array, w: Array, b: Array | None = None, *, stride: Pair = 1, padding: Pair = 0
) -> Array:
    """Two-dimensional convolution (cross-correlation, as in every deep-learning library).

    Parameters
    ----------
    x : (N, C, H, W)
    w : (O, C, kh, kw)
    b : (O,), optional
    stride, padding : int or (int, int)
        The distance between windows, and the zeros added at each border, in pixels.

    Returns
    -------
    (N, O, P, Q) with P = ⌊(H + 2·padding - kh) / stride⌋ + 1, and Q likewise.

    Raises
    ------
    ValueError
        If the shapes do not match or no window fits.
    TypeError
        If the images are integers.
    """
    stride, padding = pair(stride, "stride", 1), pair(padding, "padding", 0)
    if x.ndim != 4 or w.ndim != 4 or x.shape[1] != w.shape[1]:
        raise ValueError(
            "conv2d takes images (N, C, H, W) and filters (O, C, kh, kw) with the same C, "
            f"got {x.shape} and {w.shape}"
        )
    if x.dtype.kind != "f":
        raise TypeError(
            f"conv2d takes images of floating-point numbers, not {x.dtype}: "
            "divide bytes by 255 and convert them to float32"
        )
    xp, n, (o, _, *kernel) = array_module(x), len(x), w.shape
    p, q = _counts(x.shape[2:], kernel, stride, padding)
    y = xp.empty((o, p, q, n), xp.result_type(x, w))
    xp.matmul(_filters(w), _windows(_padded(x, padding), kernel, stride), out=_by_rows(y))
    if b is not None:
        y += b.reshape(o, 1, 1, 1)
    return _examples_first(y)


@primitive
@ops.in_float32
def conv2d_dx(g: Array, w: Array, *, size: Shape, stride: Pair = 1, padding: Pair = 0) -> Array:
    """The adjoint of :func:`conv2d` for its images; also known as transposed convolution.

    Each output row adds its product to the ``columns`` that it reads in the forward pass; on a GPU,
    where all rows have one product, each kernel row i does. Then each kernel column j adds to the
    pixels.

    Parameters
    ----------
    g : (N, O, P, Q)
    w : (O, C, kh, kw)
    size : (H, W)
        Of the images; the shape of ``g`` does not determine it.

    Returns
    -------
    (N, C, H, W)

    Raises
    ------
    ValueError
        If ``g`` does not have as many windows as images of that size.
    """
    sh, sw = stride = pair(stride, "stride", 1)
    ph, pw = padding = pair(padding, "padding", 0)
    (_, c, kh, kw), n, (height, width) = w.shape, len(g), size
    p, q = _counts(size, (kh, kw), stride, padding, g)
    xp, dtype = array_module(g), array_module(g).result_type(g, w)
    filters, g = _filters(w).T, _by_rows(_channels_first(g))  # (kh·C·kw, O) and (P, O, Q·N)
    columns = xp.zeros((height + 2 * ph, c * kw, q * n), dtype)  # (H, C·kw, Q·N)
    if xp is np:
        for window, g_row in zip(_rows_of(columns, kh, sh), g, strict=True):
            window += filters @ g_row
    else:
        rows = (filters @ g).reshape(kh, c * kw, p, q * n).transpose(0, 2, 1, 3)
        for i in range(kh):
            columns[i : i + sh * (p - 1) + 1 : sh] += rows[i]
    columns = columns.reshape(len(columns), c, kw, q, n).transpose(1, 0, 2, 3, 4)
    x = xp.zeros((c, height + 2 * ph, width + 2 * pw, n), dtype)
    for j in range(kw):
        x[:, :, j : j + sw * (q - 1) + 1 : sw] += columns[:, :, j]
    return _examples_first(x[:, ph : ph + height, pw : pw + width])


@primitive
@ops.in_float32
def conv2d_dw(
    x: Array, g: Array, *, kernel_size: Shape, stride: Pair = 1, padding: Pair = 0
) -> Array:
    """The adjoint of :func:`conv2d` for its filters.

    Parameters
    ----------
    x : (N, C, H, W)
    g : (N, O, P, Q)
    kernel_size : (kh, kw)

    Returns
    -------
    (O, C, kh, kw)

    Raises
    ------
    ValueError
        If ``g`` does not have as many windows as the images.
    """
    stride, padding = pair(stride, "stride", 1), pair(padding, "padding", 0)
    (kh, kw), c, o = kernel_size, x.shape[1], g.shape[1]
    _counts(x.shape[2:], kernel_size, stride, padding, g)
    windows, g = _windows(_padded(x, padding), kernel_size, stride), _by_rows(_channels_first(g))
    w = windows @ g.swapaxes(-1, -2)  # (P, kh·C·kw, O), on a GPU (kh·C·kw, O)
    w = w.sum(0) if w.ndim == 3 else w
    return w.T.reshape(o, kh, c, kw).transpose(0, 2, 1, 3)


defvjp(
    conv2d,
    lambda g, y, x, w, b=None, **how: conv2d_dx(g, w, size=x.shape[2:], **how),
    lambda g, y, x, w, b=None, **how: conv2d_dw(x, g, kernel_size=w.shape[2:], **how),
    lambda g, y, x, w, b=None, **how: ops.sum(g, (0, 2, 3)),
)
defvjp(
    conv2d_dx,
    lambda g, y, g1, w, *, size, **how: conv2d(g, w, **how),
    lambda g, y, g1, w, *, size, **how: conv2d_dw(g, g1, kernel_size=w.shape[2:], **how),
)
defvjp(
    conv2d_dw,
    lambda g, y, x, g1, *, kernel_size, **how: conv2d_dx(g1, g, size=x.shape[2:], **how),
    lambda g, y, x, g1, *, kernel_size, **how: conv2d(x, g, **how),
)


# ------------------------------------------------------------------------------------ pooling


def _checked(x):
    if x.ndim != 4:
        raise ValueError(f"pooling takes images (N, C, H, W), got {x.shape}")
    return x


def window_offsets(size: Shape, kernel_size: Pair, stride: Pair | None, g: Any = None) -> list:
    """For each position (i, j) in a window, the slices that name it in all windows at once.

    ``x[offset]`` has shape (N, C, P, Q). Going through these instead of through windows is what
    makes pooling a few whole-array operations. If ``g`` is given, it must have that shape.
    """
    kh, kw = pair(kernel_size, "kernel_size", 1)
    sh, sw = (kh, kw) if stride is None else pair(stride, "stride", 1)
    p, q = _counts(size, (kh, kw), (sh, sw), g=g)
    return [
        (..., slice(i, i + sh * (p - 1) + 1, sh), slice(j, j + sw * (q - 1) + 1, sw))
        for i, j in product(range(kh), range(kw))
    ]


def _zero_images(like, size):  # (N, C, P, Q) -> (N, C, H, W), stored as (C, H, W, N)
    n, c = like.shape[:2]
    return _examples_first(array_module(like).zeros((c, *size, n), like.dtype))


@primitive
def max_pool2d(x: Array, *, kernel_size: Pair, stride: Pair | None = None) -> Array:
    """The largest pixel of every window, NaN if one is NaN.

    The gradient goes to that pixel; of equal ones, to the first.

    Parameters
    ----------
    x : (N, C, H, W)
    kernel_size, stride : int or (int, int)
        The stride is the kernel's size by default. Windows may overlap, or leave gaps.

    Returns
    -------
    (N, C, P, Q) with P = ⌊(H - kh) / stride⌋ + 1, and Q likewise.
    """
    parts = [x[offset] for offset in window_offsets(_checked(x).shape[2:], kernel_size, stride)]
    return _largest(*parts) if len(parts) > 1 else array_module(x).copy(parts[0])


@elementwise
def _largest(*parts):
    return functools.reduce(array_module(*parts).maximum, parts)


def _winners(x, y, kernel_size, stride=None):
    """For each offset, a mask (N, C, P, Q): is the window's first largest pixel there?"""
    xp, offsets = array_module(y), window_offsets(x.shape[2:], kernel_size, stride)
    if len(offsets) == 1:
        return (xp.ones_like(y, dtype=bool),)
    # As an array, ∞ makes NumPy 2.4 four times faster.
    infinity = xp.full_like(y, xp.inf) if xp is np else math.inf
    return _first_largest(y, infinity, *(x[offset] for offset in offsets[:-1]))


@elementwise
def _first_largest(y, infinity, *parts):
    """The masks; ``parts`` are the pixels at each offset but the last."""
    # ∞ for a largest pixel that is NaN: numbers are below that, and NaN is not.
    top = array_module(y).fmin(y, infinity)
    below = [part < top for part in parts]
    # The windows that are still without a winner after each offset; those after the last but one
    # have it at the last.
    open_windows = list(accumulate(below, operator.and_))
    found = [before ^ after for before, after in pairwise(open_windows)]
    return (~open_windows[0], *found, open_windows[-1])


# With the winners fixed, max pooling is linear: it takes the winners' values. Its adjoint puts
# values at the winners' places. Each is the other's gradient rule.


@primitive
def pool_take(x: Array, winners: tuple, *, kernel_size: Pair, stride: Pair | None = None) -> Array:
    """The winners' pixels: (N, C, H, W) -> (N, C, P, Q)."""
    offsets = window_offsets(x.shape[2:], kernel_size, stride)
    return functools.reduce(
        operator.add,
        (ops.masked(x[offset], mask) for offset, mask in zip(offsets, winners, strict=True)),
    )


@primitive
@ops.in_float32
def pool_put(
    g: Array, winners: tuple, *,
    size: Shape, kernel_size: Pair, stride: Pair | None = None,
) -> Array:  # fmt: skip
    """Zero images with ``g`` added at the winners' places: (N, C, P, Q) -> (N, C, H, W)."""
    x, (kh, kw) = _zero_images(g, size), pair(kernel_size, "kernel_size", 1)
    sh, sw = (kh, kw) if stride is None else pair(stride, "stride", 1)
    offsets = window_offsets(size, kernel_size, stride, g)
    if sh >= kh and sw >= kw:  # windows that do not overlap need no adding up
        _put(ops.bits(g), *winners, *(ops.bits(x)[offset] for offset in offsets))
    else:
        for offset, mask in zip(offsets, winners, strict=True):
            x[offset] += ops.masked(g, mask)
    return x


@elementwise
def _put(g, *masks_and_places):
    half = len(masks_and_places) // 2
    for mask, place in zip(masks_and_places[:half], masks_and_places[half:], strict=True):
        array_module(g).multiply(g, mask, out=place)


defvjp(max_pool2d, lambda g, y, x, **how: (
    pool_put(g, _winners(value_of(x), value_of(y), **how), size=x.shape[2:], **how)
))  # fmt: skip
defvjp(pool_take, lambda g, y, x, winners, **how: pool_put(g, winners, size=x.shape[2:], **how))
defvjp(pool_put, lambda g, y, g1, winners, *, size, **how: pool_take(g, winners, **how))


@primitive
@ops.in_float32
def avg_pool2d(x: Array, *, kernel_size: Pair, stride: Pair | None = None) -> Array:
    """The mean of every window; arguments and shapes as for :func:`max_pool2d`."""
    parts = [x[offset] for offset in window_offsets(_checked(x).shape[2:], kernel_size, stride)]
    return functools.reduce(operator.add, parts) / len(parts)


@primitive
@ops.in_float32
def avg_pool2d_dx(g: Array, *, size: Shape, kernel_size: Pair, stride: Pair | None = None) -> Array:
    """The adjoint of :func:`avg_pool2d`: each pixel of a window gets an equal share."""
    x, offsets = _zero_images(g, size), window_offsets(size, kernel_size, stride, g)
    share = g / len(offsets)
    for offset in offsets:
        x[offset] += share
    return x


defvjp(avg_pool2d, lambda g, y, x, **how: avg_pool2d_dx(g, size=x.shape[2:], **how))
defvjp(avg_pool2d_dx, lambda g, y, g1, *, size, **how: avg_pool2d(g, **how))

ops.conv2d, ops.max_pool2d, ops.avg_pool2d = conv2d, max_pool2d, avg_pool2d
