"""Interval bounds: for pixels between l and u, between which numbers is each neuron?

    l, u   (N, …)   the lowest and the highest value of each number that goes into a layer
    m      (N, …)   the middle, (l + u) / 2
    r      (N, …)   the radius, (u - l) / 2

A monotone function takes bounds to bounds, f(l) and f(u). A linear one with weights W takes the
middle to W m + b, and the radius to |W| r: each weight pulls in its worst direction. Gowal et al.
(2018), "On the effectiveness of interval bound propagation for training verifiably robust models",
equation 6.

Each layer forgets that its inputs cannot all be at their worst at once, so bounds are loose on
ordinary networks. They are made of :mod:`tinyadv.ops`, and so a network can be trained on them.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from tinyadv import conv, ops
from tinyadv.backend import array_module
from tinyadv.data import batches
from tinyadv.evaluate import _check_classes, _check_pixels, _examples_and_labels
from tinyadv.layers import (
    Activation,
    Average,
    AvgPool2d,
    Conv2d,
    Dense,
    Flatten,
    MaxPool2d,
    Module,
    Sequential,
    _mean,
)
from tinyadv.losses import one_hot
from tinyadv.tensor import Array, _value

MONOTONE = (Activation, AvgPool2d, Flatten, MaxPool2d)


def interval_bounds(model: Module, low, high):
    """Bounds on what ``model`` returns for all inputs between ``low`` and ``high``.

    Parameters
    ----------
    model : Module
        A layer of :mod:`tinyadv.layers`, a ``Sequential`` of such, or an ``Average`` of those.
    low, high : (N, …)
        Arrays or tensors, low ≤ high.

    Returns
    -------
    low, high : of the shape that the model returns; tensors, to be differentiated

    Raises
    ------
    TypeError
        If a layer is of a kind that has no rule here.
    """
    if isinstance(model, Sequential):
        for layer in model.layers:
            low, high = interval_bounds(layer, low, high)
        return low, high
    if isinstance(model, Average):
        lows, highs = zip(*(interval_bounds(m, low, high) for m in model.members), strict=True)
        return _mean(lows), _mean(highs)
    if isinstance(model, MONOTONE):
        return model(low), model(high)
    if not isinstance(model, (Conv2d, Dense)):
        raise TypeError(
            f"no interval rule for {type(model).__name__}: use the layers "
            f"{', '.join(kind.__name__ for kind in (Conv2d, Dense, *MONOTONE))} in a Sequential, "
            "or an Average of such"
        )
    middle, radius = model(0.5 * (low + high)), _spread(model, 0.5 * (high - low))
    return middle - radius, middle + radius


def _spread(layer: Conv2d | Dense, radius):
    """|W| r: how far a linear layer's outputs may be from what the middle gives."""
    if isinstance(layer, Dense):
        return ops.dense(radius, ops.abs(layer.weight))  # (N, I) -> (N, O)
    return conv.conv2d(
        radius, ops.abs(layer.weight), stride=layer.stride, padding=layer.padding
    )  # (N, C, H, W) -> (N, O, P, Q)


def worst_logits(model: Sequential | Average, low, high, y: Array):
    """For each class k an upper bound on z_k - z_y, with 0 for the label: (N, K).

    As logits these are the worst that the bounds allow, so their cross-entropy is an upper bound on
    the loss, and an example is *certified* where every other class is below 0. The last layer is
    joined to the difference, Σ_i (W_ki - W_yi) h_i + b_k - b_y: bounded as a whole this is tighter
    than the difference of two bounds (Gowal et al. 2018, section 3, "elision of the last layer").
    For an ``Average`` it is the mean of its members' bounds: none of them can be at a worse point
    than its own worst.

    Parameters
    ----------
    model : Sequential or Average
        With a ``Dense`` at its end; or the mean of such.
    low, high : (N, …)
    y : (N,) integers

    Raises
    ------
    TypeError
        If ``model`` is no such network.
    """
    if isinstance(model, Average):
        return _mean([worst_logits(member, low, high, y) for member in model.members])
    last = model.layers[-1:] if isinstance(model, Sequential) else []
    if not last or not isinstance(last[0], Dense):
        end = f" that ends in {type(last[0]).__name__}" if last else ""
        raise TypeError(
            "worst_logits takes a Sequential that ends in a Dense, or an Average of such, "
            f"got {type(model).__name__}{end}"
        )
    return ops.by_examples(partial(_worst_logits, model), low, high, y)


def _worst_logits(model: Sequential, low, high, y):
    last = model[-1]
    low, high = interval_bounds(model[:-1], low, high)
    middle, radius = 0.5 * (low + high), 0.5 * (high - low)  # (N, I)
    z = last(middle)  # (N, K)
    label = one_hot(y, z)
    gap = z - ops.sum(label * z, axis=1, keepdims=True)
    # Σ_i |W_ki - W_yi| r_i, for all pairs of classes at once and then for each example's own label.
    w = last.weight  # (K, I)
    classes, inputs = w.shape
    pairs = ops.abs(ops.reshape(w, (classes, 1, inputs)) - ops.reshape(w, (1, classes, inputs)))
    spread = ops.dense(radius, ops.reshape(pairs, (classes * classes, inputs)))
    spread = ops.reshape(spread, (-1, classes, classes))  # (N, k, y)
    return gap + ops.sum(spread * label[:, None, :], axis=2)


def certified(model: Sequential | Average, x: Array, y: Array, epsilon: float) -> Array:
    """Whether no perturbation with ‖δ‖∞ ≤ ε, pixels in [0, 1], changes the answer from y: (N,).

    ``False`` proves nothing: the bounds are not exact. ``True`` holds up to the rounding errors of
    the network's own arithmetic, some 1e-6 of the logits in float32.

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
        If a layer has no interval rule, or the model is none that :func:`worst_logits` takes.
    ValueError
        If pixels are outside [0, 1], labels are not N of the model's classes, or ε is negative.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be ≥ 0, got {epsilon}")
    x, y = _examples_and_labels(x, y, "certified")
    _check_pixels(x, "x")
    _check_classes(model, x, y)
    xp = array_module(x)
    low, high = xp.clip(x - epsilon, 0, 1), xp.clip(x + epsilon, 0, 1)
    worst = _value(worst_logits(model, low, high, y))
    label = one_hot(y, worst)
    # Not even a tie: argmax would then depend on the order of the classes.
    return xp.where(label > 0, -np.inf, worst).max(1) < 0


def certified_accuracy(
    model: Sequential | Average, x: Array, y: Array, epsilon: float, batch_size: int = 500
) -> float:
    """The share of examples that are certified, between 0 and 1: a lower bound under any attack.

    Arguments and errors as for :func:`certified`; so many examples at a time.
    """
    x, y = _examples_and_labels(x, y, "certified_accuracy")
    count = 0
    for xb, yb in batches(x, y, batch_size):
        count = count + certified(model, xb, yb, epsilon).sum()
    return float(count) / len(x)
