"""Exercises of lesson 15: replace each ``...``, then run ``python -m lessons.exercises 15``."""

import numpy as np


def combined(gradients, counts):
    """1. The gradient of the mean loss over all images, from the gradients of the ranks.

    Each rank has computed the gradient of the mean loss over its own images.

    gradients: (P, n), one row for each rank; counts: (P,), how many images each rank has. Returns
    (n,).
    """
    ...


def bytes_of_rank_0(n, ranks):
    """2. How many bytes does rank 0 send and receive in an allreduce, both together?

    Without a ring all others send their vectors to rank 0, which sends each of them the sum. In the
    ring each rank sends to the right and receives from the left.

    n: how many numbers of float32 a vector has; ranks: P. Returns two numbers, without a ring and
    with one.
    """
    ...


def many_ranks(n, latency, bandwidth):
    """3. The smallest number of ranks with which a ring loses more to latency than to bandwidth.

    The ring takes 2(P − 1) λ + 2 (P − 1)/P · 4n/β. From which P on is the first term larger?

    n: how many numbers of float32 a vector has; latency: λ in seconds; bandwidth: β in bytes per
    second. Returns a whole number.
    """
    ...


def moments(sums, squares, counts):
    """4. The mean and the variance over the whole batch, from what each rank knows of its images.

    For batch normalisation the ranks must exchange more than gradients. Each rank has added up the
    values of each channel over its images, and the squares of the values.

    sums, squares: (P, C), of P ranks and C channels; counts: (P,), how many values each rank has
    added up. Returns the means and the variances of the C channels, (C,) and (C,).
    """
    ...
