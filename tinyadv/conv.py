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

In memory the arrays lie as (C, H, W, N): the shape above is a transposed view. A row of a window,
taken over all examples, is then one contiguous run, and copying windows (*im2col*) costs a
fraction of what it costs in the usual order. Arrays in any other order work as well, they are
copied once on the way in; NumPy's elementwise functions keep the order that they find.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from itertools import product

from tinyadv import ops
from tinyadv.backend import array_module
from tinyadv.tensor import _value, defvjp, primitive
from tinyadv.threads import one_blas_thread

# Copied windows take kh·kw times the memory of the images, so they are made for a few rows of
# output at a time: few enough not to fill the processor's cache, and many enough for the work on
# them to outweigh the calls.
BLOCK_BYTES = 1 << 22


def _pair(value, name: str, least: int) -> tuple[int, int]:
    """``value``, an int or a pair of ints, as a pair; both at least ``least``."""
    try:
        pair = tuple(value) if hasattr(value, "__len__") else (value, value)
        first, second = (operator.index(v) for v in pair)  # NumPy's integers as well
    except (TypeError, ValueError):
        first = second = least - 1
    if min(first, second) < least:
        raise ValueError(f"{name} must be an int ≥ {least} or a pair of them, got {value!r}")
    return first, second


def _count(length: int, kernel: int, stride: int, padding: int, axis: str) -> int:
    """How many windows fit along an axis; what they do not cover at its end is left out."""
    if length + 2 * padding < kernel:
        raise ValueError(
            f"a window of {axis} {kernel} does not fit into an image of {axis} {length} with "
            f"padding {padding}: use a smaller kernel, more padding, or larger images"
        )
    return (length + 2 * padding - kernel) // stride + 1


# ------------------------------------------------------------------------------- memory order


def _channels_first(x):  # shape (N, C, H, W) -> (C, H, W, N), contiguous
    x = x.transpose(1, 2, 3, 0)
    return x if x.flags.c_contiguous else x.copy()


def _examples_first(x):  # shape (C, H, W, N) -> (N, C, H, W), a view
    return x.transpose(3, 0, 1, 2)


def _padded(x, padding):  # (C, H, W, N) -> (C, H + 2·ph, W + 2·pw, N)
    ph, pw = padding
    if ph == pw == 0:
        return x
    c, h, w, n = x.shape
    larger = array_module(x).zeros((c, h + 2 * ph, w + 2 * pw, n), x.dtype)
    larger[:, ph : ph + h, pw : pw + w] = x
    return larger


def _windows(x, kernel, stride):  # (C, H, W, N) -> (C, kh, kw, P, Q, N), a view
    """Every window of ``x``: element (c, i, j, p, q, n) is x[c, p·sh + i, q·sw + j, n]."""
    (kh, kw), (sh, sw) = kernel, stride
    c, h, w, n = x.shape
    shape = (c, kh, kw, (h - kh) // sh + 1, (w - kw) // sw + 1, n)
    dc, dh, dw, dn = x.strides
    strides = (dc, dh, dw, dh * sh, dw * sw, dn)
    return array_module(x).lib.stride_tricks.as_strided(x, shape, strides)


def _by_rows(windows):  # (C, kh, kw, P, Q, N) -> (P, C·kh·kw, Q·N), a view
    """Copied windows as one matrix for each row of output.

    A product for each row, all in one call, is up to three times as fast as a single product over
    all rows: what a BLAS reads again then still lies in the cache. The products are too small for
    a BLAS to share them out over several threads, hence ``one_blas_thread``.
    """
    c, kh, kw, p, q, n = windows.shape
    return windows.reshape(c * kh * kw, p, q * n).transpose(1, 0, 2)


def _row_blocks(windows) -> Iterator[slice]:
    """Slices of output rows whose copied windows fit into ``BLOCK_BYTES``, one row at least."""
    rows = windows.shape[3]
    step = max(1, BLOCK_BYTES * rows // max(1, windows.size * windows.itemsize))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


# -------------------------------------------------------------------------------- convolution


@primitive
@one_blas_thread
def conv2d(x, w, b=None, *, stride=1, padding=0):
    """Two-dimensional convolution (cross-correlation, as in every deep-learning library).

    Parameters
    ----------
    x : (N, C, H, W)
    w : (O, C, kh, kw)
    b : (O,), optional
    stride, padding : int or (int, int)
        Steps between windows, and zeros added at each border, in pixels.

    Returns
    -------
    (N, O, P, Q) with P = ⌊(H + 2·padding - kh) / stride⌋ + 1, and Q likewise.

    Raises
    ------
    ValueError
        If the shapes do not go together or no window fits.
    TypeError
        If the images are integers.
    """
    stride, padding = _pair(stride, "stride", 1), _pair(padding, "padding", 0)
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
    o, _, *kernel = w.shape
    for i, axis in enumerate(("height", "width")):
        _count(x.shape[2 + i], kernel[i], stride[i], padding[i], axis)
    windows = _windows(_padded(_channels_first(x), padding), kernel, stride)
    filters = w.reshape(o, -1)  # (O, C·kh·kw)
    xp = array_module(x)
    p, q, n = windows.shape[3:]
    y = xp.empty((o, p, q, n), xp.result_type(x, w))
    y_rows = y.reshape(o, p, q * n).transpose(1, 0, 2)  # (P, O, Q·N), a view
    for rows in _row_blocks(windows):
        columns = _by_rows(windows[:, :, :, rows].copy())  # (p, C·kh·kw, Q·N)
        xp.matmul(filters, columns, out=y_rows[rows])
        if b is not None:
            y[:, rows] += b.reshape(o, 1, 1, 1)
    return _examples_first(y)


@primitive
@one_blas_thread
def conv2d_dx(g, w, *, size, stride=1, padding=0):
    """The adjoint of :func:`conv2d` for its images; also known as transposed convolution.

    Parameters
    ----------
    g : (N, O, P, Q)
    w : (O, C, kh, kw)
    size : (H, W)
        Of the images; the shape of ``g`` alone does not tell it.

    Returns
    -------
    (N, C, H, W)

    Raises
    ------
    ValueError
        If ``g`` has not as many windows as images of that size.
    """
    (sh, sw), (ph, pw) = _pair(stride, "stride", 1), _pair(padding, "padding", 0)
    (o, c, kh, kw), (n, _, p, q), (h, wd) = w.shape, g.shape, size
    fits = _count(h, kh, sh, ph, "height"), _count(wd, kw, sw, pw, "width")
    if fits != (p, q):
        raise ValueError(
            f"images of size {(h, wd)} have {fits} windows, so g must be (N, {o}, {fits[0]}, "
            f"{fits[1]}), got {g.shape}"
        )
    xp, filters = array_module(g), w.reshape(o, -1).T  # (C·kh·kw, O)
    g_rows = _channels_first(g).reshape(o, p, q * n).transpose(1, 0, 2)  # (P, O, Q·N), a view
    x = xp.zeros((c, h + 2 * ph, wd + 2 * pw, n), xp.result_type(g, w))
    windows = _windows(x, (kh, kw), (sh, sw))  # (C, kh, kw, P, Q, N), overlapping views of x
    for rows in _row_blocks(windows):
        columns = filters @ g_rows[rows]  # (p, C·kh·kw, Q·N)
        columns = columns.reshape(len(columns), c, kh, kw, q, n)
        columns = columns.transpose(1, 2, 3, 0, 4, 5)  # (C, kh, kw, p, Q, N)
        # For one (i, j) the windows do not overlap, so each can be added as a whole.
        for i, j in product(range(kh), range(kw)):
            windows[:, i, j, rows] += columns[:, i, j]
    return _examples_first(x[:, ph : ph + h, pw : pw + wd])


@primitive
@one_blas_thread
def conv2d_dw(x, g, *, kernel_size, stride=1, padding=0):
    """The adjoint of :func:`conv2d` for its filters.

    Parameters
    ----------
    x : (N, C, H, W)
    g : (N, O, P, Q)
    kernel_size : (kh, kw)

    Returns
    -------
    (O, C, kh, kw)
    """
    stride, padding = _pair(stride, "stride", 1), _pair(padding, "padding", 0)
    xp, c, (n, o, p, q) = array_module(x), x.shape[1], g.shape
    windows = _windows(_padded(_channels_first(x), padding), kernel_size, stride)
    g_rows = _channels_first(g).reshape(o, p, q * n).transpose(1, 2, 0)  # (P, Q·N, O), a view
    w = xp.zeros((c * kernel_size[0] * kernel_size[1], o), xp.result_type(x, g))  # (C·kh·kw, O)
    for rows in _row_blocks(windows):
        columns = _by_rows(windows[:, :, :, rows].copy())  # (p, C·kh·kw, Q·N)
        w += (columns @ g_rows[rows]).sum(0)  # added up over rows
    return w.T.reshape(o, c, *kernel_size)


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


def _offsets(size, kernel_size, stride):
    """For each position (i, j) in a window, the slices that name it in all windows at once.

    ``x[offset]`` has shape (N, C, P, Q). Going through these instead of through windows is what
    makes pooling a few whole-array operations.
    """
    kh, kw = _pair(kernel_size, "kernel_size", 1)
    sh, sw = (kh, kw) if stride is None else _pair(stride, "stride", 1)
    p, q = _count(size[0], kh, sh, 0, "height"), _count(size[1], kw, sw, 0, "width")
    return [
        (..., slice(i, i + sh * (p - 1) + 1, sh), slice(j, j + sw * (q - 1) + 1, sw))
        for i, j in product(range(kh), range(kw))
    ]


def _zero_images(like, size):  # (N, C, P, Q) -> (N, C, H, W), stored as (C, H, W, N)
    n, c = like.shape[:2]
    return _examples_first(array_module(like).zeros((c, *size, n), like.dtype))


@primitive
def max_pool2d(x, *, kernel_size, stride=None):
    """The largest pixel of every window. The gradient goes to it; of equal ones, to the first.

    Parameters
    ----------
    x : (N, C, H, W)
    kernel_size, stride : int or (int, int)
        The stride is the kernel's size by default. Windows may overlap, or leave gaps.

    Returns
    -------
    (N, C, P, Q) with P = ⌊(H - kh) / stride⌋ + 1, and Q likewise.
    """
    parts = [x[offset] for offset in _offsets(_checked(x).shape[2:], kernel_size, stride)]
    return functools.reduce(array_module(x).maximum, parts)


def _winners(x, y, kernel_size, stride=None):
    """For each offset, a mask (N, C, P, Q): is the window's first largest pixel there?"""
    masks, open_windows = [], True
    for offset in _offsets(x.shape[2:], kernel_size, stride):
        mask = (x[offset] == y) & open_windows
        open_windows = open_windows ^ mask  # a window that has found its winner is closed
        masks.append(mask)
    return masks


# With the winners fixed, max pooling is linear: it takes the winners' values. Its adjoint puts
# values at the winners' places. Each is the other's gradient rule.


@primitive
def pool_take(x, winners, *, kernel_size, stride=None):
    """The winners' pixels: (N, C, H, W) -> (N, C, P, Q)."""
    offsets = _offsets(x.shape[2:], kernel_size, stride)
    return functools.reduce(
        operator.add, (x[offset] * mask for offset, mask in zip(offsets, winners, strict=True))
    )


@primitive
def pool_put(g, winners, *, size, kernel_size, stride=None):
    """Zero images with ``g`` added at the winners' places: (N, C, P, Q) -> (N, C, H, W)."""
    x, (kh, kw) = _zero_images(g, size), _pair(kernel_size, "kernel_size", 1)
    sh, sw = (kh, kw) if stride is None else _pair(stride, "stride", 1)
    for offset, mask in zip(_offsets(size, kernel_size, stride), winners, strict=True):
        if sh >= kh and sw >= kw:  # windows that do not overlap need no adding up
            array_module(g).multiply(g, mask, out=x[offset])
        else:
            x[offset] += g * mask
    return x


defvjp(max_pool2d, lambda g, y, x, **how: (
    pool_put(g, _winners(_value(x), _value(y), **how), size=x.shape[2:], **how)
))  # fmt: skip
defvjp(pool_take, lambda g, y, x, winners, **how: pool_put(g, winners, size=x.shape[2:], **how))
defvjp(pool_put, lambda g, y, g1, winners, *, size, **how: pool_take(g, winners, **how))


@primitive
def avg_pool2d(x, *, kernel_size, stride=None):
    """The mean of every window; arguments and shapes as for :func:`max_pool2d`."""
    parts = [x[offset] for offset in _offsets(_checked(x).shape[2:], kernel_size, stride)]
    return functools.reduce(operator.add, parts) / len(parts)


@primitive
def avg_pool2d_dx(g, *, size, kernel_size, stride=None):
    """The adjoint of :func:`avg_pool2d`: each pixel of a window gets an equal share."""
    x, offsets = _zero_images(g, size), _offsets(size, kernel_size, stride)
    share = g / len(offsets)
    for offset in offsets:
        x[offset] += share
    return x


defvjp(avg_pool2d, lambda g, y, x, **how: avg_pool2d_dx(g, size=x.shape[2:], **how))
defvjp(avg_pool2d_dx, lambda g, y, g1, *, size, **how: avg_pool2d(g, **how))

ops.conv2d, ops.max_pool2d, ops.avg_pool2d = conv2d, max_pool2d, avg_pool2d
