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
"""

from __future__ import annotations

from functools import partial

import numpy as np

from tinyadv import conv, layers, ops
from tinyadv.backend import array_module
from tinyadv.data import batches
from tinyadv.inputs import all_logits, as_arrays, check_counts, check_labels, check_pixels, frozen
from tinyadv.losses import one_hot
from tinyadv.parallel import by_examples
from tinyadv.tensor import Array, value_of

LINEAR = (layers.Conv2d, layers.Dense)
MONOTONE = (layers.Activation, layers.AvgPool2d, layers.Flatten, layers.MaxPool2d)


def interval_bounds(model: layers.Module, low, high):
    """Bounds on the outputs of ``model`` for all inputs between ``low`` and ``high``.

    Parameters
    ----------
    model : Module
        A layer of :mod:`tinyadv.layers`, a ``Sequential`` of such layers, or an ``Average`` of
        such networks.
    low, high : (N, …)
        Arrays or tensors, low ≤ high.

    Returns
    -------
    low, high : of the shape that the model returns
        Tensors, which can be differentiated; arrays if the model is frozen and the inputs are
        arrays.

    Raises
    ------
    TypeError
        If there is no rule for a layer.
    """
    if isinstance(model, layers.Sequential):
        for layer in model.layers:
            low, high = interval_bounds(layer, low, high)
        return low, high
    if isinstance(model, layers.Average):
        lows, highs = zip(*(interval_bounds(m, low, high) for m in model.members), strict=True)
        return layers.mean_of(lows), layers.mean_of(highs)
    if isinstance(model, MONOTONE):
        return model(low), model(high)
    if not isinstance(model, LINEAR):
        raise TypeError(
            f"no interval rule for {type(model).__name__}: use the layers "
            f"{', '.join(kind.__name__ for kind in (*LINEAR, *MONOTONE))} in a Sequential, or an "
            "Average of such networks"
        )
    centre, radius = model(0.5 * (low + high)), _spread(model, 0.5 * (high - low))
    return centre - radius, centre + radius


def _spread(layer: layers.Conv2d | layers.Dense, radius):
    """|W| r: how far the outputs of a linear layer may be from its output for the centre."""
    if isinstance(layer, layers.Dense):
        return ops.dense(radius, ops.abs(layer.weight))  # (N, I) -> (N, O)
    how = {"stride": layer.stride, "padding": layer.padding}
    return conv.conv2d(radius, ops.abs(layer.weight), **how)  # (N, C, H, W) -> (N, O, P, Q)


def worst_logits(model: layers.Module, low, high, y: Array):
    """For each class k an upper bound on z_k - z_y, with 0 for the label: (N, K).

    These are the worst logits that the bounds allow, so their cross-entropy is an upper bound on
    the loss, and an example is *certified* if the bounds of all other classes are below 0. The
    last layer is merged with the difference, Σ_i (W_ki - W_yi) h_i + b_k - b_y: a bound on this sum
    is tighter than the difference of two bounds (Gowal et al. 2018, section 3, "elision of the last
    layer"). For an ``Average`` the result is the mean of its members' bounds, because no member can
    be worse than its own worst case.

    Parameters
    ----------
    model : Sequential or Average
        A network that ends in a ``Dense``, or the average of such networks.
    low, high : (N, …)
    y : (N,) integers

    Raises
    ------
    TypeError
        If ``model`` is not such a network.
    """
    if isinstance(model, layers.Average):
        return layers.mean_of([worst_logits(member, low, high, y) for member in model.members])
    last = model.layers[-1:] if isinstance(model, layers.Sequential) else []
    if not last or not isinstance(last[0], layers.Dense):
        end = f" that ends in {type(last[0]).__name__}" if last else ""
        raise TypeError(
            "worst_logits takes a Sequential that ends in a Dense, or an Average of such "
            f"networks, got {type(model).__name__}{end}"
        )
    return by_examples(partial(_worst_logits, model), low, high, y)


def _worst_logits(model: layers.Sequential, low, high, y):
    last = model[-1]
    low, high = interval_bounds(model[:-1], low, high)
    centre, radius = 0.5 * (low + high), 0.5 * (high - low)  # (N, I)
    z = last(centre)  # (N, K)
    label = one_hot(y, z)
    gap = z - ops.sum(label * z, axis=1, keepdims=True)
    # Σ_i |W_ki - W_yi| r_i, for all pairs of classes at once and then for each example's own label.
    w = last.weight  # (K, I)
    classes, inputs = w.shape
    pairs = ops.abs(ops.reshape(w, (classes, 1, inputs)) - ops.reshape(w, (1, classes, inputs)))
    spread = ops.dense(radius, ops.reshape(pairs, (classes * classes, inputs)))
    spread = ops.reshape(spread, (-1, classes, classes))  # (N, k, y)
    return gap + ops.sum(spread * label[:, None, :], axis=2)


def certified(model: layers.Module, x: Array, y: Array, epsilon: float) -> Array:
    """Whether the predicted class is y for all perturbations with ‖δ‖∞ ≤ ε, pixels in [0, 1]: (N,).

    ``False`` proves nothing, because the bounds are not exact. ``True`` is a proof up to the
    rounding errors of the network's own arithmetic, about 1e-6 of the logits in float32.

    Parameters
    ----------
    model : Sequential or Average
        As for :func:`worst_logits`.
    x : (N, …), pixel values 0–1
    y : (N,) integers
    epsilon : float
        In pixel values 0–1.

    Returns
    -------
    certified : (N,) bool, on the backend of ``x``

    Raises
    ------
    TypeError
        If a layer has no interval rule, ``x`` is not an array of floating-point numbers, or the
        model is not a network that :func:`worst_logits` takes.
    ValueError
        If there are no examples, pixels are outside [0, 1], labels are not N integers from 0 to
        K - 1, or ε is negative.
    """
    return _certified(frozen(model), *_checked(model, x, y, epsilon), epsilon)


def _checked(model, x, y, epsilon) -> tuple[Array, Array]:
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be ≥ 0, got {epsilon}")
    x, y = as_arrays(x, y)
    check_pixels(x)
    return x, check_labels(y, x, all_logits(model, x[:1]).shape[-1])


def _certified(model, x, y, epsilon) -> Array:
    xp, epsilon = array_module(x), float(epsilon)  # a NumPy number would make float64 of float32
    low, high = xp.clip(x - epsilon, 0, 1), xp.clip(x + epsilon, 0, 1)
    worst = value_of(worst_logits(model, low, high, y))  # (N, K)
    others = xp.where(one_hot(y, worst) > 0, -np.inf, worst)
    return others.max(1) < 0  # not ≤: the prediction at a tie depends on the order of the classes


def certified_accuracy(
    model: layers.Module, x: Array, y: Array, epsilon: float, batch_size: int = 500
) -> float:
    """The share of examples that are certified, between 0 and 1.

    It is a lower bound on the robust accuracy under any attack with ‖δ‖∞ ≤ ε. Arguments and errors
    as for :func:`certified`; ``batch_size`` examples are bounded at a time.
    """
    x, y = _checked(model, x, y, epsilon)
    check_counts(batch_size=batch_size)
    model, count = frozen(model), 0
    for xb, yb in batches(x, y, batch_size):
        count = count + _certified(model, xb, yb, epsilon).sum()  # stays on the device
    return float(count) / len(x)
