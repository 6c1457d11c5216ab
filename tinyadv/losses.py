"""Losses: what training minimises and an attack maximises.

    z  (N, K)   logits: one row for each example, one column for each class
    y  (N,)     labels: integers from 0 to K - 1

Every loss has the same signature, ``loss(logits, labels, reduction="mean")``, so that an attack
takes any of them, and anything else that looks like them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tinyadv import ops
from tinyadv.backend import array_module
from tinyadv.inputs import check_choice
from tinyadv.tensor import Array, Same, Tensor, value_of

Loss = Callable[..., Array]  # loss(logits, labels, reduction="mean")
REDUCTIONS = {"mean": ops.mean, "sum": ops.sum, "none": lambda losses: losses}


def is_label(labels: Array, logits: Array | Tensor) -> Array:
    """Whether a class is the label: (N, K) bool, on the logits' backend.

    Raises
    ------
    ValueError
        If the labels are not N integers from 0 to K - 1. Of labels that are on a GPU already only
        the shape is checked, because reading their values would stop the device.
    """
    z, labels = value_of(logits), value_of(labels)
    labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
    integers = labels.dtype.kind in "iu" or not labels.size  # [] is an array of float64
    if z.ndim != 2 or labels.shape != z.shape[:1] or not integers:
        raise ValueError(
            "a loss takes logits (N, K) and labels (N,), which are integers from 0 to K - 1; "
            f"got {z.shape} and {labels.shape} of {labels.dtype}"
        )
    xp, k = array_module(z), z.shape[1]
    if isinstance(labels, np.ndarray) and labels.size:
        if not 0 <= labels.min() <= labels.max() < k:
            raise ValueError(
                f"labels must be from 0 to {k - 1}, because the network has {k} outputs; "
                f"got labels from {labels.min()} to {labels.max()}"
            )
    return xp.asarray(labels)[:, None] == xp.arange(k)


def one_hot(labels: Array, logits: Array | Tensor) -> Array:
    """The labels as rows with a single 1, in the logits' shape, dtype and backend: (N, K).

    Raises
    ------
    ValueError
        As :func:`is_label`.
    """
    return is_label(labels, logits).astype(value_of(logits).dtype)


def _at(mask, values):
    """The value (N,) of each row that ``mask`` picks; the others may be infinite."""
    return ops.sum(ops.masked(values, mask), axis=1)


def _reduce(losses, reduction):
    check_choice(tuple(REDUCTIONS), reduction=reduction)
    return REDUCTIONS[reduction](losses)


def cross_entropy(logits: Same, labels: Array, reduction: str = "mean") -> Same:
    """-log of the probability that softmax gives to the label: -Σ_c y_c log softmax(z)_c.

    Parameters
    ----------
    logits : (N, K)
    labels : (N,) integers
    reduction : {"mean", "sum", "none"}
        Over the examples; ``"none"`` returns one loss for each: (N,).

    Raises
    ------
    ValueError
        If the shapes do not match or a label is out of range.
    """
    y = is_label(labels, logits)
    return _reduce(-_at(y, ops.log_softmax(logits, axis=1)), reduction)


def soft_cross_entropy(logits: Same, probabilities: Array, reduction: str = "mean") -> Same:
    """The same for labels that are probabilities: -Σ_c p_c log softmax(z)_c.

    For a fixed p this is the divergence KL(p ‖ softmax(z)) plus a constant, the entropy of p.

    Parameters
    ----------
    logits, probabilities : (N, K)
        Each row of ``probabilities`` adds up to 1.
    reduction : {"mean", "sum", "none"}
    """
    if logits.shape != probabilities.shape or len(logits.shape) != 2:
        raise ValueError(
            "soft_cross_entropy takes logits and probabilities of one shape (N, K), "
            f"got {logits.shape} and {probabilities.shape}"
        )
    log_p = ops.log_softmax(logits, axis=1)
    counts = value_of(probabilities)  # 0 · log 0 = 0: a class of probability 0 adds nothing
    if isinstance(probabilities, Tensor):  # whose gradient there is the logarithm, if it is finite
        counts = (counts != 0) | (value_of(log_p) > -np.inf)
    return _reduce(-ops.sum(probabilities * ops.where(counts, log_p, 0), axis=1), reduction)


def margin(logits: Same, labels: Array, reduction: str = "mean") -> Same:
    """The largest other logit minus the label's: above 0 where the example is misclassified.

    The loss f₆ of Carlini & Wagner (2017), "Towards Evaluating the Robustness of Neural Networks".
    Unlike cross-entropy it does not go flat when the network is confident. Arguments as for
    :func:`cross_entropy`.
    """
    y = is_label(labels, logits)
    others = ops.where(y, -np.inf, logits)
    return _reduce(ops.max(others, axis=1) - _at(y, logits), reduction)


def dlr(logits: Same, labels: Array, reduction: str = "mean") -> Same:
    """Difference of logits ratio: -(z_y - max_{i≠y} z_i) / (z_π1 - z_π3), π sorting downwards.

    Croce & Hein (2020), "Reliable evaluation of adversarial robustness", equation 6. The quotient
    makes it blind to the scale of the logits. Needs K ≥ 3; arguments as for :func:`cross_entropy`.
    """
    difference = margin(logits, labels, "none")
    ranked = _sorted_logits(logits, 3)
    spread = ranked[:, 0] - ranked[:, 2]
    return _reduce(difference / _not_0(spread), reduction)


def dlr_targeted(logits: Same, labels: Array, targets: Array, reduction: str = "mean") -> Same:
    """-(z_y - z_t) / (z_π1 - (z_π3 + z_π4) / 2): the DLR loss that favours class t over y.

    Croce & Hein (2020), equation 7. Needs K ≥ 4. It is raised to reach the target.

    Parameters
    ----------
    logits : (N, K)
    labels, targets : (N,) integers
    reduction : {"mean", "sum", "none"}
    """
    difference = _at(is_label(targets, logits), logits) - _at(is_label(labels, logits), logits)
    ranked = _sorted_logits(logits, 4)
    spread = ranked[:, 0] - 0.5 * (ranked[:, 2] + ranked[:, 3])
    return _reduce(difference / _not_0(spread), reduction)


def _not_0(spread):
    """The spread as a divisor. In float16, where a quotient by 1e-12 overflows, at least 2⁻⁵."""
    return ops.maximum(spread, 2**-5) if spread.dtype.char == "e" else spread + 1e-12


def _sorted_logits(logits: Array, least: int) -> Array:
    """Each row in descending order; the order itself is constant, the values are not."""
    if logits.shape[1] < least:
        raise ValueError(f"the DLR loss needs {least} classes or more, got {logits.shape[1]}")
    xp = array_module(value_of(logits))
    order = xp.argsort(-value_of(logits), axis=1)
    rows = xp.arange(logits.shape[0])[:, None]
    return ops.getitem(logits, (rows, order))


def swapped_binary_cross_entropy(
    logits: Same, labels: Array, reduction: str = "mean", *, epsilon: float = 1e-7
) -> Same:
    """Keras's ``binary_crossentropy(prediction, target)``: the arguments in the wrong places.

    Keras takes ``(target, prediction)`` and clips the second to [ε, 1 - ε]. Given the other way
    round, what is clipped and goes into the logarithms is the one-hot target t, and the
    prediction p = softmax(z) only weights them:

        -mean_c [p_c log clip(t_c) + (1 - p_c) log(1 - clip(t_c))].

    Keras computes in float32, where 1 - 1e-7 is rounded to 1 - 1.19e-7, so the logarithms are
    -16.12 and -15.94, 16.03 on average. For K = 10 that makes 0.2 · 16.03 · (1 - p_y) =
    3.206 (1 - p_y), up to 1.2e-7: linear in the probability, where cross-entropy is -log p_y. A
    saturated softmax then has no gradient.

    Parameters
    ----------
    logits : (N, K)
    labels : (N,) integers
    reduction : {"mean", "sum", "none"}
    epsilon : float
        Keras's clipping.
    """
    t, p = one_hot(labels, logits), ops.softmax(logits, axis=1)
    xp = array_module(value_of(logits))
    # clip(t) is one of two numbers, in Keras's float32; so is 1 - clip(t).
    low, high = float(np.float32(epsilon)), float(np.float32(1 - epsilon))
    log_t = xp.where(t > 0, math.log(high), math.log(low)).astype(t.dtype)
    log_not_t = xp.where(t > 0, math.log(1 - high), math.log(high)).astype(t.dtype)
    return _reduce(-ops.mean(p * log_t + (1 - p) * log_not_t, axis=1), reduction)
