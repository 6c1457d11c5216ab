"""The operations: each is a line or two of NumPy, with its gradient rules right below.

How to read a rule: ``g`` is ∂L/∂y, ``y`` is the output, then the arguments follow by name, and the
rule returns ∂L/∂argument. Rules are made of operations, so they can be differentiated again.

Names and meanings are NumPy's (``ops.sum``, ``ops.max`` … shadow Python's own in this file).
All of NumPy's broadcasting works: :func:`_fit` sums a gradient over the axes along which its
argument was repeated. Convolution and pooling are in :mod:`tinyadv.conv`, and can be reached from
here as well (``ops.conv2d`` …).
"""

from __future__ import annotations

import builtins
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike

from tinyadv.backend import Function, array_module, elementwise
from tinyadv.tensor import Array, Axis, Same, Shape, Tensor, defvjp, primitive, value_of

# -------------------------------------------------------------------------- shape and dtype, first


def in_float32(fun: Function) -> Function:
    """``fun``, computed in float32 where its first argument is float16. The result is float16.

    For functions that add up many numbers: float16 ends at 65,504, and a sum of ones at 2,048.
    Another argument in a higher precision makes the result as precise, as everywhere in NumPy.
    """

    @functools.wraps(fun)
    def wide(*args, **kwargs):
        if not args or args[0].dtype.char != "e":  # NumPy's letter for float16
            return fun(*args, **kwargs)
        dtypes = [getattr(a, "dtype", np.dtype(bool)) for a in args]
        wider = [
            a.astype(np.float32) if dtype.char == "e" else a
            for a, dtype in zip(args, dtypes, strict=True)
        ]
        dtype = np.result_type(*[dtype for dtype in dtypes if dtype.kind == "f"])
        return fun(*wider, **kwargs).astype(dtype)

    return cast(Function, wide)


def bits(x: Array) -> Array:
    """The bits of each number, taken as an integer: a view of ``x``."""
    return x.view(f"i{x.dtype.itemsize}")


@primitive
def masked(x: Same, mask: Array) -> Same:
    """``x`` where ``mask`` (bool) holds, 0 elsewhere, also where ``x`` is infinite or NaN.

    x · mask would be NaN there, because 0 · ∞ is. The bits of a number, taken as an integer, can be
    multiplied by 0 just as fast; ``where`` took 13 times as long in NumPy 2.4.
    """
    if mask.dtype.kind != "b":
        raise TypeError(f"masked takes a mask of bool, such as x > 0, got {mask.dtype}")
    return (bits(x) * mask).view(x.dtype)


defvjp(masked, lambda g, y, x, mask: _fit(masked(g, mask), x))


@primitive
def reshape(x: Array, shape: int | Shape) -> Array:
    """``x`` with its elements, row by row, in another shape (one length may be -1)."""
    return x.reshape(shape)


defvjp(reshape, lambda g, y, x, shape: reshape(g, x.shape))


@primitive
def transpose(x: Array, axes: Sequence[int] | None = None) -> Array:
    """``x`` with its axes in another order; reversed by default."""
    return x.transpose(axes)


def _inverse_permutation(axes, ndim):
    return None if axes is None else sorted(range(ndim), key=lambda i: axes[i] % ndim)


defvjp(transpose, lambda g, y, x, axes=None: transpose(g, _inverse_permutation(axes, x.ndim)))


@primitive
def broadcast_to(x: Array, shape: int | Shape) -> Array:
    """``x`` repeated along new axes and axes of length 1. A view: nothing is copied."""
    return array_module(x).broadcast_to(x, shape)


defvjp(broadcast_to, lambda g, y, x, shape: _fit(g, x))


@primitive
def astype(x: Array, dtype: DTypeLike) -> Array:
    """``x`` in another floating-point precision."""
    if np.dtype(dtype).kind != "f":
        raise TypeError(f"astype differentiates between floating-point types, got {dtype!r}")
    return x.astype(dtype)


defvjp(astype, lambda g, y, x, dtype: astype(g, x.dtype))


@primitive
@in_float32
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The sum over ``axis`` (an int, a tuple, or ``None`` for all)."""
    return x.sum(axis=axis, keepdims=keepdims)


defvjp(sum, lambda g, y, x, axis=None, keepdims=False: (
    broadcast_to(_with_axes(g, x, axis, keepdims), x.shape)
))  # fmt: skip


def _axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """``axis`` in all the forms that NumPy allows, as a tuple of non-negative ints."""
    if axis is None:
        return tuple(range(ndim))
    return tuple(a % ndim for a in (axis if isinstance(axis, (tuple, list)) else (axis,)))


def _with_axes(g, x, axis, keepdims):
    """``g``, the shape of a reduction of ``x``, with the reduced axes put back as length 1."""
    if keepdims:
        return g
    axes = _axes(axis, x.ndim)
    return reshape(g, tuple(1 if i in axes else n for i, n in enumerate(x.shape)))


def _fit(g, x):
    """``g`` added up to the shape of ``x``, in its dtype: the adjoint of broadcasting.

    Every element of ``x`` gets the sum of g over the places to which it was copied.
    """
    if g.shape != x.shape:
        added = g.ndim - x.ndim
        axes = tuple(range(added)) + tuple(
            i + added for i, n in enumerate(x.shape) if n == 1 and g.shape[i + added] != 1
        )
        g = reshape(sum(g, axes), x.shape)
    return g if g.dtype == x.dtype else astype(g, x.dtype)


# ------------------------------------------------------------------------------------- arithmetic


@primitive
def add(a: Array, b: Array) -> Array:
    return a + b


defvjp(add, lambda g, y, a, b: _fit(g, a), lambda g, y, a, b: _fit(g, b))


@primitive
def subtract(a: Array, b: Array) -> Array:
    return a - b


defvjp(subtract, lambda g, y, a, b: _fit(g, a), lambda g, y, a, b: _fit(-g, b))


@primitive
def multiply(a: Array, b: Array) -> Array:
    return a * b


defvjp(multiply, lambda g, y, a, b: _fit(g * b, a), lambda g, y, a, b: _fit(g * a, b))


@primitive
def divide(a: Array, b: Array) -> Array:
    return a / b


defvjp(divide, lambda g, y, a, b: _fit(g / b, a), lambda g, y, a, b: _fit(-g * y / b, b))


@primitive
def negative(x: Same) -> Same:
    return -x


defvjp(negative, lambda g, y, x: -g)


@primitive
def power(a: Array, b: Array) -> Array:
    """a to the power b. The gradient with respect to b assumes a ≥ 0 and treats 0ᵇ as constant."""
    return a**b


def _power_base(g, y, a, b):
    # b·aᵇ⁻¹, where b = 0 must give 0 even at a = 0 and for a g that is infinite.
    if np.isscalar(b):
        return g * (b * a ** (b - 1)) if b else masked(g, g < g)
    is_zero = b == 0
    if not isinstance(b, Tensor):  # which may have a derivative there
        g = masked(g, ~is_zero)
    return _fit(g * (b * a ** (b - 1 + (is_zero & (value_of(a) == 0)))), a)


def _power_exponent(g, y, a, b):
    a = a if hasattr(a, "dtype") else array_module(value_of(g)).full_like(value_of(g), a)
    return _fit(masked(g * y * log(where(a > 0, a, 1)), a > 0), b)


defvjp(power, _power_base, _power_exponent)


# ------------------------------------------------------------------------ elementwise functions


@primitive
def exp(x: Same) -> Same:
    return array_module(x).exp(x)


defvjp(exp, lambda g, y, x: g * y)


@primitive
def log(x: Same) -> Same:
    return array_module(x).log(x)


defvjp(log, lambda g, y, x: g / x)


@primitive
def sqrt(x: Same) -> Same:
    return array_module(x).sqrt(x)


defvjp(sqrt, lambda g, y, x: g * 0.5 / y)


@primitive
def abs(x: Same) -> Same:
    return array_module(x).abs(x)


def _abs_rule(g, y, x):
    x = value_of(x)
    return masked(g * array_module(x).sign(x), x != 0)


defvjp(abs, _abs_rule)


@primitive
def sin(x: Same) -> Same:
    return array_module(x).sin(x)


@primitive
def cos(x: Same) -> Same:
    return array_module(x).cos(x)


defvjp(sin, lambda g, y, x: g * cos(x))
defvjp(cos, lambda g, y, x: -g * sin(x))


@primitive
def maximum(a: Array, b: Array) -> Array:
    """The larger one, element by element. Where they are equal the gradient goes to ``a``."""
    return array_module(a, b).maximum(a, b)


defvjp(
    maximum,
    lambda g, y, a, b: _fit(masked(g, value_of(a) >= value_of(b)), a),
    lambda g, y, a, b: _fit(masked(g, value_of(a) < value_of(b)), b),
)


@primitive
def minimum(a: Array, b: Array) -> Array:
    """The smaller one, element by element. Where they are equal the gradient goes to ``a``."""
    return array_module(a, b).minimum(a, b)


defvjp(
    minimum,
    lambda g, y, a, b: _fit(masked(g, value_of(a) <= value_of(b)), a),
    lambda g, y, a, b: _fit(masked(g, value_of(a) > value_of(b)), b),
)


@primitive
def where(condition: Array, a: Array, b: Array) -> Array:
    """``a`` where ``condition`` holds, ``b`` elsewhere.

    What is not chosen gets the gradient 0, and 0 · ∞ is NaN: ``where(x > 0, sqrt(x), 0)`` has no
    gradient at 0, but ``sqrt(where(x > 0, x, 1))`` has.
    """
    return array_module(condition, a, b).where(condition, a, b)


defvjp(
    where,
    None,
    lambda g, y, condition, a, b: _fit(where(condition, g, 0), a),
    lambda g, y, condition, a, b: _fit(where(condition, 0, g), b),
)


@primitive
def clip(x: Same, low: Array, high: Array) -> Same:
    """``x`` limited to [low, high], arrays or numbers; ``None`` is no limit.

    The gradient passes through where low ≤ x ≤ high.
    """
    return array_module(x, low, high).clip(x, low, high)


def _clip_rule(g, y, x, low, high):
    inside = value_of(x) == value_of(y)
    return _fit(masked(g, inside), x)


defvjp(clip, _clip_rule)


@primitive
@elementwise
def relu(x: Same) -> Same:
    """max(x, 0). The gradient at 0 is 0."""
    # Not `maximum(x, 0)`: for 737,000 float32 numbers NumPy 2.4 took 0.28 ms, clip took 0.08 ms.
    xp = array_module(x)
    return xp.clip(x, 0, xp.inf)


@primitive
def relu_dx(g: Same, y: Array) -> Same:
    """``g`` where ``y`` > 0, 0 elsewhere: ``masked(g, y > 0)`` as one kernel on a GPU."""
    return _where_positive(bits(g), y).view(g.dtype)


@elementwise
def _where_positive(g, y):
    return g * (y > 0)


defvjp(relu, lambda g, y, x: relu_dx(g, value_of(y)))
defvjp(relu_dx, lambda g, _, g1, y: relu_dx(g, y))


@primitive
def leaky_relu(x: Same, slope: float = 0.01) -> Same:
    """x above 0, slope·x below."""
    return array_module(x).where(x > 0, x, _times(slope, x))


defvjp(leaky_relu, lambda g, y, x, slope=0.01: _fit(where(x > 0, g, _times(slope, g)), x))


def _times(factor, x):
    """factor · x, and 0 for the number 0 whatever ``x`` is."""
    return 0 if np.isscalar(factor) and factor == 0 else factor * x


@primitive
def tanh(x: Same) -> Same:
    return array_module(x).tanh(x)


defvjp(tanh, lambda g, y, x: g * (1 - y * y))


@primitive
def softplus(x: Same) -> Same:
    """log(1 + eˣ), a smooth ReLU."""
    return array_module(x).logaddexp(x, 0)  # = max(x, 0) + log(1 + e^-|x|): no overflow


defvjp(softplus, lambda g, y, x: g * sigmoid(x))


@primitive
def sigmoid(x: Same) -> Same:
    """1 / (1 + e⁻ˣ), accurate in both tails."""
    xp = array_module(x)
    return xp.exp(-xp.logaddexp(-x, 0))


defvjp(sigmoid, lambda g, y, x: g * (y * (1 - y)))


# ------------------------------------------------------------------------------------- reductions


@in_float32
def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The mean over ``axis``; NaN where that has no elements."""
    total = sum(x, axis, keepdims)
    return total * (total.size / x.size if x.size else math.nan)


@primitive
def max(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The largest element over ``axis``. Ties share the gradient evenly."""
    return x.max(axis=axis, keepdims=keepdims)


def _max_rule(g, y, x, axis=None, keepdims=False):
    xp, largest = array_module(value_of(x)), _with_axes(value_of(y), x, axis, keepdims)
    # With ∞ for a largest element that is NaN: numbers are below that, and NaN is not.
    winner = ~(value_of(x) < xp.fmin(largest, xp.inf))
    dtype = np.result_type(x.dtype, np.float32)  # float16 counts to 2,048
    share = 1 / winner.sum(axis=_axes(axis, x.ndim), dtype=dtype, keepdims=True)
    return masked(_with_axes(g, x, axis, keepdims) * share, winner)


defvjp(max, _max_rule)


def min(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The smallest element over ``axis``. Ties share the gradient evenly."""
    return -max(-x, axis, keepdims)


@primitive
@in_float32
def logsumexp(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """log Σ eˣ over ``axis``, a smooth maximum."""
    largest = x.max(axis=axis, keepdims=True)
    xp = array_module(x)
    largest = xp.where(xp.isfinite(largest), largest, 0)  # a row of -inf gives -inf, not nan
    y = xp.log(xp.exp(x - largest).sum(axis=axis, keepdims=True)) + largest
    return y if keepdims else y.reshape(x.max(axis=axis).shape)


defvjp(logsumexp, in_float32(lambda g, y, x, axis=None, keepdims=False: (
    _with_axes(g, x, axis, keepdims)
    * exp(x - _with_axes(masked(y, value_of(y) > -math.inf), x, axis, keepdims))  # not ∞ - ∞
)))  # fmt: skip


@primitive
@in_float32
def softmax(x: Same, axis: Axis = -1) -> Same:
    """eˣ / Σ eˣ over ``axis``."""
    e = array_module(x).exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


defvjp(softmax, in_float32(lambda g, y, x, axis=-1: y * (g - sum(g * y, axis, keepdims=True))))


@primitive
@in_float32
def log_softmax(x: Same, axis: Axis = -1) -> Same:
    """log(eˣ / Σ eˣ) over ``axis``, with no exponential that could overflow."""
    x = x - x.max(axis=axis, keepdims=True)
    return _minus_log(x, array_module(x).exp(x).sum(axis=axis, keepdims=True))


@elementwise
def _minus_log(x, total):
    return x - array_module(x).log(total)


defvjp(log_softmax, in_float32(
    lambda g, y, x, axis=-1: g - exp(y) * sum(g, axis, keepdims=True)
))  # fmt: skip


# -------------------------------------------------------------------------------- matrix products


def matmul(a: Array, b: Array) -> Array:
    """Matrix product over the last two axes, as ``numpy.matmul``: batches broadcast.

    A vector counts as a row on the left, as a column on the right, and that axis is dropped.
    """
    if b.ndim == 1:
        return reshape(matmul(a, reshape(b, (-1, 1))), a.shape[:-1])
    if a.ndim == 1:
        return reshape(_matmul(reshape(a, (1, -1)), b), b.shape[:-2] + b.shape[-1:])
    return _matmul(a, b)


@primitive
def _matmul(a, b):  # (…, n, k), (…, k, m) -> (…, n, m)
    return a @ b


defvjp(
    _matmul,
    lambda g, y, a, b: _fit(_matmul(g, _swap(b)), a),
    lambda g, y, a, b: _fit(_matmul(_swap(a), g), b),
)


def _swap(x):
    """``x`` with its last two axes exchanged."""
    return transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


# A fully connected layer is a trilinear form in x, w and g, <g, dense(x, w)> = <dense_dx(g, w), x>
# = <dense_dw(x, g), w>: three operations, and the gradient rules of each are the other two.


@primitive
def dense(x: Array, w: Array, b: Array | None = None) -> Array:  # (N, I), (O, I), (O,) -> (N, O)
    """x wᵀ + b: the weighted sums of a fully connected layer.

    The result is stored feature by feature, as convolutions store theirs: it is what a BLAS makes
    and reads fastest here.
    """
    y = (w @ x.T).T
    if b is not None:
        y += b
    return y


@primitive
def dense_dx(g: Array, w: Array) -> Array:  # (N, O), (O, I) -> (N, I)
    """g w: what flows back to the inputs, stored feature by feature as well."""
    if len(g) < 64 and isinstance(g, np.ndarray):  # for so few a CPU's BLAS is faster in this order
        return (g @ w).T.copy().T
    return (w.T @ g.T).T


@primitive
def dense_dw(x: Array, g: Array) -> Array:  # (N, I), (N, O) -> (O, I)
    """gᵀ x: what flows back to the weights."""
    return g.T @ x


defvjp(
    dense,
    lambda g, y, x, w, b=None: dense_dx(g, w),
    lambda g, y, x, w, b=None: dense_dw(x, g),
    lambda g, y, x, w, b=None: sum(g, 0),
)
defvjp(dense_dx, lambda g, y, g1, w: dense(g, w), lambda g, y, g1, w: dense_dw(g, g1))
defvjp(dense_dw, lambda g, y, x, g1: dense_dx(g1, g), lambda g, y, x, g1: dense(x, g))


# --------------------------------------------------------------------------- parts and wholes


@primitive
def getitem(x: Array, index: Any) -> Array:
    """``x[index]``: slices, integers, integer arrays, masks, as in NumPy."""
    return x[index]


def _names_once(i):
    """Whether this index names no element twice; a mask in CuPy is left to ``add.at``."""
    is_mask = isinstance(i, np.ndarray) and i.dtype == bool
    return is_mask or i is None or i is Ellipsis or isinstance(i, (int, slice))


@primitive
@in_float32
def put_at(g: Array, index: Any, shape: Shape) -> Array:
    """Zeros of ``shape`` with ``g`` added at ``index``: the adjoint of :func:`getitem`.

    Where an index is repeated, its parts add up.
    """
    xp = array_module(g)
    x = xp.zeros(shape, g.dtype)
    parts = index if isinstance(index, tuple) else (index,)
    if builtins.all(map(_names_once, parts)):
        x[index] = g
    else:
        xp.add.at(x, index, g)
    return x


defvjp(getitem, lambda g, y, x, index: put_at(g, index, x.shape))
defvjp(put_at, lambda g, y, x, index, shape: getitem(g, index))


def pad(x: Array, widths: Sequence[int | Sequence[int]]) -> Array:
    """``x`` with zeros around it; ``widths`` has a pair (before, after) for each axis."""
    pairs = [(w, w) if isinstance(w, int) else tuple(w) for w in widths]
    if len(pairs) != x.ndim or builtins.min(n for pair in pairs for n in pair) < 0:
        raise ValueError(f"pad needs a pair of widths ≥ 0 for each of {x.ndim} axes, got {pairs}")
    shape = tuple(n + before + after for n, (before, after) in zip(x.shape, pairs, strict=True))
    inside = tuple(slice(w[0], w[0] + n) for n, w in zip(x.shape, pairs, strict=True))
    return put_at(x, inside, shape)


@primitive
def _concatenate(*arrays, axis):
    return array_module(*arrays).concatenate(arrays, axis=axis)


def _concatenate_rule(i, g, y, *arrays, axis):
    axis = axis % y.ndim
    start = builtins.sum(x.shape[axis] for x in arrays[:i])
    return getitem(g, (slice(None),) * axis + (slice(start, start + arrays[i].shape[axis]),))


defvjp(_concatenate, variadic=_concatenate_rule)


def concatenate(arrays: Sequence[Array | Tensor], axis: int = 0) -> Array:
    """The arrays one after another along an axis that they have."""
    return _concatenate(*arrays, axis=axis)


def stack(arrays: Sequence[Array | Tensor], axis: int = 0) -> Array:
    """The arrays, all of one shape, side by side along a new axis."""
    axis = range(arrays[0].ndim + 1)[axis]  # never negative, and an error if there is no such axis
    shape = arrays[0].shape[:axis] + (1,) + arrays[0].shape[axis:]
    return _concatenate(*[reshape(x, shape) for x in arrays], axis=axis)


# --------------------------------------------------------------- the same as operators and methods


def _unpacked(args):
    """The numbers of x.reshape(2, 3), as well as those of x.reshape((2, 3))."""
    return args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args


OPERATORS = {
    "add": add, "sub": subtract, "mul": multiply, "truediv": divide, "pow": power, "matmul": matmul
}  # fmt: skip
for _name, _operation in OPERATORS.items():  # tensor.py has the types of all these
    setattr(Tensor, f"__{_name}__", _operation)
    setattr(Tensor, f"__r{_name}__", lambda x, other, f=_operation: f(other, x))
METHODS = {
    "__neg__": negative, "__abs__": abs, "__getitem__": getitem, "T": property(transpose),
    "sum": sum, "mean": mean, "max": max, "min": min, "astype": astype,
    "reshape": lambda x, *shape: reshape(x, _unpacked(shape)),
    "transpose": lambda x, *axes: transpose(x, _unpacked(axes) or None),
}  # fmt: skip
for _name, _method in METHODS.items():
    setattr(Tensor, _name, _method)

conv2d: Callable[..., Any]  # these three are in conv.py, which puts them here
max_pool2d: Callable[..., Any]
avg_pool2d: Callable[..., Any]
