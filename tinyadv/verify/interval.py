"""Interval bounds: if each pixel lies between l and u, between which numbers does each neuron lie?

    l, u   (N, …)   lower and upper bounds on the inputs of a layer
    m      (N, …)   the centre of the interval, (l + u) / 2
    r      (N, …)   its radius, (u - l) / 2

A monotone function maps bounds to bounds, f(l) and f(u). A linear layer with weights W maps the
centre to W m + b and the radius to |W| r, because each input may move in the direction that is
worst for its weight. Gowal et al. (2018), "On the effectiveness of interval bound propagation for
training verifiably robust models", equation 6.

Each layer ignores that its inputs cannot all take their worst values at the same time, so the
bounds are loose for networks with standard training. They are computed with :mod:`tinyadv.ops`, so
a network can be trained on them.

With ``outward=True`` the bounds hold in spite of rounding: see :mod:`tinyadv.verify.rounding`.

A layer of your own
-------------------
A rule belongs to the function that a class computes. A subclass with a ``__call__`` of its own
computes another function, so it is refused until it has a rule of its own:

>>> class Residual(layers.Sequential):
...     def __call__(self, x):
...         return x + super().__call__(x)
>>> @interval_rule(Residual)
... def residual(model, low, high, outward):
...     within = interval_bounds(model[:], low, high, outward)  # a plain Sequential
...     sums = low + within[0], high + within[1]
...     if not outward:
...         return sums
...     return rounded_outward(*sums, 2, magnitude(low, high) + magnitude(*within))
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinyadv import conv, layers, ops
from tinyadv.backend import array_module
from tinyadv.balls import Ball, Linf
from tinyadv.data import batches
from tinyadv.inputs import all_logits, as_arrays, check_counts, check_labels, check_pixels, frozen
from tinyadv.losses import is_label
from tinyadv.parallel import by_examples, may_cut
from tinyadv.tensor import Array, value_of
from tinyadv.verify.rounding import Bounds, magnitude, rounded_outward, rounding_error

RULES: dict[type, Callable] = {}


def interval_rule(*kinds: type) -> Callable:
    """Decorator: this function gives the interval bounds of the layers of these classes.

    ``rule(layer, low, high, outward)`` returns bounds on ``layer(x)`` for all low ≤ x ≤ high. If
    ``outward``, they must hold in spite of rounding: see :func:`rounded_outward`, and pass
    ``outward`` on to :func:`interval_bounds`. The module's docstring has an example.

    Parameters
    ----------
    *kinds : classes
        Their subclasses have the same rule unless they redefine an attribute of the class, such as
        ``__call__``, other than its constructor and its ``__repr__``.
    """

    def register(rule: Callable) -> Callable:
        RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def kind_of(model: object) -> type | None:
    """The class in ``RULES`` whose function ``model`` computes, or None."""
    redefined = {name for name, value in getattr(model, "__dict__", {}).items() if callable(value)}
    for kind in type(model).__mro__:
        if kind in RULES:
            return None if redefined & set(dir(kind)) else kind
        redefined |= {
            name for name, value in vars(kind).items()
            if name == "__call__" or name[:2] != "__" or callable(value)  # not __doc__ and the like
        } - {"__init__", "__repr__", "by_example"}  # fmt: skip
    return None


def interval_bounds(model: layers.Module, low: Array, high: Array, outward: bool = True) -> Bounds:
    """Bounds on the outputs of ``model`` for all inputs between ``low`` and ``high``.

    Parameters
    ----------
    model : Module
        A layer of :mod:`tinyadv.layers`, a ``Sequential`` of such layers, an ``Average`` of such
        networks, or what else has an :func:`interval_rule`.
    low, high : (N, …)
        Arrays or tensors, low ≤ high.
    outward : bool
        Whether the bounds hold in spite of rounding errors. Training does not need this, and is a
        third faster without it.

    Returns
    -------
    low, high : of the shape that the model returns
        Tensors, which can be differentiated; arrays if the model is frozen and the inputs are
        arrays.

    Raises
    ------
    TypeError
        If there is no rule for a layer.
    ValueError
        If sums in float16 are too long for a proof.
    """
    kind = kind_of(model)
    if kind is None:
        known = ", ".join(sorted(kind.__name__ for kind in RULES))
        raise TypeError(
            f"no interval rule for {type(model).__name__}: use {known}, or verify.interval_rule"
        )
    return RULES[kind](model, low, high, outward)


@interval_rule(layers.Sequential)
def _one_after_another(model, low, high, outward):
    for layer in model.layers:
        low, high = interval_bounds(layer, low, high, outward)
    return low, high


@interval_rule(layers.Average)
def _average(model, low, high, outward):
    bounds = [interval_bounds(member, low, high, outward) for member in model.members]
    low, high = map(layers.mean_of, zip(*bounds, strict=True))
    if not outward:
        return low, high
    size = layers.mean_of([magnitude(*b) for b in bounds])
    return rounded_outward(low, high, len(bounds), size, *(b[0] for b in bounds))


@interval_rule(layers.Flatten, layers.MaxPool2d)
def _exact(layer, low, high, outward):
    return layer(low), layer(high)


@interval_rule(layers.Activation)
def _monotone(layer, low, high, outward):
    if layer.name not in layers.ACTIVATIONS:
        raise TypeError(f"no interval rule for {layer!r}: it need not be monotone")
    bounds = layer(low), layer(high)
    if not outward or layer.name == "relu":  # which rounds nothing
        return bounds
    # An exponential or a logarithm of NumPy is off by up to 4 units in the last place. What may
    # have overflowed makes the bounds NaN, because 0 · ∞ is NaN, even if the function is bounded.
    return rounded_outward(*bounds, 16, 1 + magnitude(*bounds) + 0 * magnitude(low, high))


@interval_rule(layers.AvgPool2d)
def _mean(layer, low, high, outward):
    terms = np.prod(conv.pair(layer.kernel_size, "kernel_size", 1))
    means = layer(low), layer(high)
    return rounded_outward(*means, terms, layer(magnitude(low, high))) if outward else means


@interval_rule(layers.Conv2d, layers.Dense)
def _linear(layer, low, high, outward):
    centre, radius = 0.5 * (low + high), 0.5 * (high - low)
    value, spread = layer(centre), _in_size(layer, radius, bias=False)
    bounds = value - spread, value + spread
    if not outward:
        return bounds
    terms, size = value_of(layer.weight)[0].size, _in_size(layer, _largest(centre, radius))
    return rounded_outward(*bounds, terms, size, low)


def _largest(centre, radius):
    """M; not smaller than normal numbers, because halves of subnormal ones lose digits."""
    return ops.abs(centre) + (radius + float(np.finfo(value_of(radius).dtype).tiny))


def _in_size(layer: layers.Conv2d | layers.Dense, x: Array, bias: bool = True) -> Array:
    """|W| x + |b|: a linear layer with all its weights positive."""
    b = ops.abs(layer.bias) if bias and layer.bias is not None else None
    if isinstance(layer, layers.Dense):
        return ops.dense(x, ops.abs(layer.weight), b)  # (N, I) -> (N, O)
    how = {"stride": layer.stride, "padding": layer.padding}
    return conv.conv2d(x, ops.abs(layer.weight), b, **how)  # (N, C, H, W) -> (N, O, P, Q)


def worst_logits(
    model: layers.Module, low: Array, high: Array, y: Array, outward: bool = True, *,
    within: tuple[Ball, Array] | None = None,
) -> Array:  # fmt: skip
    """For each class k an upper bound on z_k - z_y, with 0 for the label: (N, K).

    These are the worst logits that the bounds allow, so their cross-entropy is an upper bound on
    the loss, and an example is *certified* if the bounds of all other classes are below 0. The
    last layer is merged with the difference, Σ_i (W_ki - W_yi) h_i + b_k - b_y: a bound on this sum
    is tighter than the difference of two bounds (Gowal et al. 2018, section 3, "elision of the last
    layer"). For an ``Average`` the result is the mean of its members' bounds, because no member can
    be worse than its own worst case. For a network with a rule of its own it is the difference of
    two bounds.

    Parameters
    ----------
    model : Module
        A network that :func:`interval_bounds` takes.
    low, high : (N, …)
    y : (N,) integers
    outward : bool
        As for :func:`interval_bounds`.
    within : (Ball, x), optional
        Ignored: intervals know of boxes only. :func:`tinyadv.verify.linear_worst_logits` uses it.

    Raises
    ------
    TypeError
        If there is no rule for a layer.
    ValueError
        If the network does not return logits (N, K), or sums in float16 are too long for a proof;
        with ``outward`` also if a lower bound is above the upper one.
    """
    if outward:
        check_bounds(low, high)
    work = lambda low, high, y: _gaps(model, outward, low, high, y)[0]
    return by_examples(work, low, high, y) if may_cut(model) else work(low, high, y)


def check_bounds(low: Array, high: Array) -> None:
    """Raise ValueError unless low ≤ high everywhere."""
    wrong = value_of(low) > value_of(high)
    if wrong.any():
        count = int(wrong.sum())
        raise ValueError(
            f"expected low ≤ high: {count} of {wrong.size} lower bounds are above the upper ones"
        )


def _gaps(model, outward, low, high, y):
    """The worst logits, and if ``outward`` a bound on |z_k| + |z_y| for each class: each (N, K)."""
    kind = kind_of(model)
    if kind is layers.Sequential and model.layers:
        *first, last = model.layers
        low, high = interval_bounds(layers.Sequential(*first), low, high, outward)
        return _gaps(last, outward, low, high, y)
    size, inputs = None, [low]
    if kind is layers.Average:
        members = [_gaps(member, outward, low, high, y) for member in model.members]
        inputs, sizes = zip(*members, strict=True)
        terms, worst = len(members), layers.mean_of(inputs)
        size = layers.mean_of(sizes) if outward else None
        label = is_label(y, worst)
    elif kind is layers.Dense:
        centre, radius = 0.5 * (low + high), 0.5 * (high - low)  # (N, I)
        terms, size = low.shape[1], _in_size(model, _largest(centre, radius)) if outward else None
        z = model(centre)  # (N, K)
        label = is_label(y, z)
        gap = z - _at(label, z)
        # Σ_i |W_ki - W_yi| r_i, for all pairs of classes, then for each example's own label.
        w = model.weight  # (K, I)
        k, i = w.shape
        inputs.append(w)
        pairs = ops.abs(ops.reshape(w, (k, 1, i)) - ops.reshape(w, (1, k, i)))
        spread = ops.dense(radius, ops.reshape(pairs, (k * k, i)))
        spread = ops.reshape(spread, (-1, k, k))  # (N, K, y)
        worst = gap + ops.sum(ops.masked(spread, label[:, None, :]), axis=2)
    else:
        low, high = interval_bounds(model, low, high, outward)
        if low.ndim != 2:
            raise ValueError(f"expected a network that returns logits (N, K), got {low.shape}")
        label, terms, size = is_label(y, low), 1, magnitude(low, high)
        worst = ops.masked(high - _at(label, low), ~label)
    if outward:  # both logits are off
        if kind is not layers.Average:
            size = size + _at(label, size)
        error = rounding_error(terms, size, *inputs)
        worst, size = worst + ops.masked(error, ~label), size + error
    return worst, size


def _at(label, values):
    """The label's value in each row: (N, K) -> (N, 1)."""
    return ops.sum(ops.masked(values, label), axis=1, keepdims=True)


Bound = Callable[..., Array]  # a function such as worst_logits


def check_bound(bound: Bound) -> None:
    """Raise TypeError unless ``bound`` is a function."""
    if not callable(bound):
        raise TypeError(
            "bound must be a function of (model, low, high, y, outward) such as "
            f"verify.worst_logits, got {bound!r}"
        )


def certified(
    model: layers.Module, x: Array, y: Array, epsilon: float | Ball, bound: Bound = worst_logits
) -> Array:
    """Whether the predicted class is y for all perturbations in a ball, pixels in [0, 1]: (N,).

    ``False`` proves nothing, because the bounds are not exact. ``True`` is a proof, in spite of
    rounding: no image x′ of the dtype of ``x`` within ε is misclassified, neither by the network
    in exact arithmetic nor as it is computed.

    Parameters
    ----------
    model : Module
        As for ``bound``.
    x : (N, …), pixel values 0–1
    y : (N,) integers
    epsilon : float or Ball
        A number is the radius of an L∞ ball, in pixel values 0–1. Intervals replace another ball
        by the box around it.
    bound : function
        ``bound(model, low, high, y)`` returns an upper bound on z_k - z_y for each class k (N, K).
        For an L2 or L1 ball it is also given ``within=(ball, x)``. Interval bounds by default;
        :func:`tinyadv.verify.linear_worst_logits` is tighter, and takes the ball into account.

    Returns
    -------
    certified : (N,) bool, on the backend of ``x``

    Raises
    ------
    TypeError
        If there are no bounds for a layer, ``x`` is not an array of floating-point numbers, ε is
        neither a number nor a ball, or ``bound`` is not a function.
    ValueError
        If there are no examples, pixels are outside [0, 1], labels are not N integers from 0 to
        K - 1, or ε is negative; and as for :func:`worst_logits`.
    """
    check_bound(bound)
    x, y = checked_for_proof(model, x, y, epsilon)
    return _certified(frozen(model), x, y, epsilon, bound)


def checked_for_proof(
    model: layers.Module, x: Array, y: Array, epsilon: float | Ball
) -> tuple[Array, Array]:
    """Images and labels as arrays, after a check of all arguments of :func:`certified`."""
    if not isinstance(epsilon, Ball):
        if not hasattr(epsilon, "__float__"):
            raise TypeError(f"epsilon must be a number or a ball like Linf(0.1), got {epsilon!r}")
        if not epsilon >= 0:
            raise ValueError(f"epsilon must be ≥ 0, got {epsilon}")
    x, y = as_arrays(x, y)
    check_pixels(x)
    return x, check_labels(y, x, all_logits(model, x[:1]).shape[-1])


def box(x: Array, epsilon: float) -> Bounds:
    """Bounds on the images of the dtype of ``x`` within ε in L∞, pixels in [0, 1]: (N, …)."""
    # Differences of pixels are rounded as well. A float, because NumPy's would make x float64.
    xp, reach = array_module(x), min(float(epsilon), 1) + 2 * float(np.finfo(x.dtype).eps)
    return xp.clip(x - reach, 0, 1), xp.clip(x + reach, 0, 1)


def _certified(model, x, y, epsilon, bound):
    ball = epsilon if isinstance(epsilon, Ball) else Linf(epsilon)
    how = {}
    if not isinstance(ball, Linf):
        # An attack's projection is rounded, too.
        wider = type(ball)(ball.epsilon * (1 + 100 * float(np.finfo(x.dtype).eps)))
        how = {"within": (wider, x)}
    worst = value_of(bound(model, *box(x, ball.epsilon), y, **how))  # (N, K)
    others = array_module(x).where(is_label(y, worst), -np.inf, worst)
    return others.max(1) < 0  # not ≤: the prediction at a tie depends on the order of the classes


def certified_accuracy(
    model: layers.Module, x: Array, y: Array, epsilon: float | Ball, batch_size: int = 500,
    bound: Bound = worst_logits,
) -> float:  # fmt: skip
    """The share of examples that are certified, between 0 and 1.

    It is a lower bound on the robust accuracy under any attack within the ball. Arguments and
    errors as for :func:`certified`; ``batch_size`` examples are bounded at a time.
    """
    check_bound(bound)
    x, y = checked_for_proof(model, x, y, epsilon)
    check_counts(batch_size=batch_size)
    model, count = frozen(model), 0
    for xb, yb in batches(x, y, batch_size):
        count = count + _certified(model, xb, yb, epsilon, bound).sum()  # stays on the device
    return float(count) / len(x)
