"""Solutions of the exercises of lesson 15."""

import numpy as np


def combined(gradients, counts):
    """The mean over all images weights a rank by its share of them."""
    return counts @ gradients / counts.sum()  # (P,) @ (P, n) -> (n,)


def bytes_of_rank_0(n, ranks):
    """Without a ring rank 0 receives P − 1 vectors and sends P − 1: it is the bottleneck.

    In the ring every rank has the same traffic. It is less than four vectors, however many ranks
    there are.
    """
    return 2 * (ranks - 1) * 4 * n, 2 * 2 * (ranks - 1) / ranks * 4 * n


def many_ranks(n, latency, bandwidth):
    """The factor 2(P − 1) is common to both terms: λ > 4n/(Pβ), so P > 4n/(λβ).

    A chunk has 4n/P bytes. With too many ranks the chunks are so small that a message mostly waits.
    """
    return int(np.floor(4 * n / (latency * bandwidth))) + 1


def moments(sums, squares, counts):
    """Sums over the ranks, divided once: E[x²] − E[x]².

    The mean of the ranks' variances would lack how far the ranks' means are apart.
    """
    total = counts.sum()
    mean = sums.sum(axis=0) / total  # (P, C) -> (C,)
    return mean, squares.sum(axis=0) / total - mean**2
