"""Rounding: bounds that hold although computers round.

A sum of n products, added up in floating-point arithmetic in any order, is off by at most
γ_n Σ|w_i||x_i|, with γ_n = n u / (1 - n u) and u half the machine epsilon: Higham (2002), "Accuracy
and stability of numerical algorithms", section 3.1. Bounds are moved outward by such an error, once
for their own arithmetic and once for the network's. What :func:`tinyadv.verify.certified` proves is
therefore true of the network in exact arithmetic, and as it is computed here, in pieces, in a batch
of any size, or on a GPU (without TF32).

    M                                        the largest magnitude of an input
    l, u ∓ 2 γ (|W| M + |b|)                 the bounds of a linear layer, rounded outward

If arrays of several precisions meet, u belongs to the coarsest. Where a sum may overflow, the
bounds are infinite or NaN and prove nothing.
"""

from __future__ import annotations

import numpy as np

from tinyadv import ops
from tinyadv.tensor import Array, value_of

Bounds = tuple[Array, Array]  # low and high, arrays or tensors


def magnitude(low: Array, high: Array) -> Array:
    """The largest magnitude of a number between ``low`` and ``high``: max(|low|, |high|)."""
    return ops.maximum(ops.abs(low), ops.abs(high))


def rounded_outward(low: Array, high: Array, terms: int, size: Array, *inputs: Array) -> Bounds:
    """Bounds on a sum that hold in spite of rounding, in its own arithmetic and in the network's.

    Parameters
    ----------
    low, high : (N, …)
        Bounds on the sum, as computed.
    terms : int
        How many numbers are added up, at most.
    size : of the shape of the bounds
        An upper bound on the sum of the magnitudes of these numbers, as computed.
    *inputs : arrays or tensors
        What the sum was computed from, if its dtype may be coarser than the dtype of ``size``.
    """
    error = rounding_error(terms, size, *inputs)
    return low - error, high + error


def rounding_error(terms: int, size: Array, *inputs: Array) -> Array:
    """2 γ / (1 - γ) times the size: γ for the bound and γ for the network, of a size off by γ.

    Beside the n products there are the bias, the centre and the radius, their sum, and the addition
    of the error: 16 roundings are more than all these.
    """
    dtype = max((value_of(x).dtype for x in (size, *inputs)), key=lambda d: np.finfo(d).eps)
    n = (int(terms) + 16) * float(np.finfo(dtype).eps) / 2
    if n > 0.25:
        raise ValueError(
            f"nothing can be proved about sums of {terms} numbers in {dtype}: convert the model "
            "and the images to float32"
        )
    tiny = float(np.finfo(dtype).tiny)  # products may also be too small to be represented
    return 2 * n / (1 - 2 * n) * size + 4 * int(terms) * tiny
