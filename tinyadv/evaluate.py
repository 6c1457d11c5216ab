"""How good a network is, on clean and on attacked examples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinyadv.backend import array_module
from tinyadv.data import batches
from tinyadv.tensor import Array, _value


def predict(model: Callable, x: Array, batch_size: int = 500) -> Array:
    """The class with the largest logit for each example.

    Parameters
    ----------
    model : callable
        Takes (n, …) images, returns (n, K) logits.
    x : (N, …)
    batch_size : int
        Examples in one pass; bounds the memory, not the result.

    Returns
    -------
    (N,) int64, on the backend of ``x``

    Raises
    ------
    ValueError
        If ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    xp = array_module(x)
    labels = [_value(model(x[i : i + batch_size])).argmax(1) for i in range(0, len(x), batch_size)]
    return xp.concatenate(labels) if labels else xp.zeros(0, np.int64)


def accuracy(
    model: Callable, x: Array, y: Array, attack: Callable | None = None, batch_size: int = 500
) -> float:
    """The share of examples that are classified as ``y``, between 0 and 1.

    Parameters
    ----------
    model : callable
        Takes (n, …) images, returns (n, K) logits.
    x : (N, …)
    y : (N,) integers
    attack : callable, optional
        ``attack(model, x, y) -> x_adv``; the accuracy is then that on what it returns.
    batch_size : int
        Examples in one pass.

    Raises
    ------
    ValueError
        If there are no examples, or ``y`` is not one integer for each.
    """
    x, y = (v if hasattr(v, "shape") else np.asarray(v) for v in (x, y))  # lists are fine
    if len(x) == 0:
        raise ValueError("accuracy needs one example at least, got none")
    if y.shape != (len(x),) or y.dtype.kind not in "iu":  # (N, 1) would compare all with all
        raise ValueError(
            f"labels must be integers of shape ({len(x)},), one for each example, "
            f"got {y.dtype} of shape {y.shape}"
        )
    correct = 0
    for xb, yb in batches(x, y, batch_size):
        if attack is not None:
            xb = attack(model, xb, yb)
        right = predict(model, xb, batch_size) == array_module(xb).asarray(yb)
        correct = correct + right.sum()  # stays on the device until the end
    return float(correct) / len(x)
