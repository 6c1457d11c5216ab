"""Checks of the exercises of lesson 15."""

import math

import numpy as np

from lessons.exercises.checker import exercise

rng = np.random.default_rng(0)
GRADIENTS, COUNTS = rng.standard_normal((3, 5)), np.array([110, 70, 20])


@exercise(
    cases=lambda: [(GRADIENTS, COUNTS)],
    hint="The mean over all images is Σ n_r L_r / N. What is the gradient of a sum?",
)
def combined(gradients, counts):
    return (gradients * counts[:, None]).sum(axis=0) / counts.sum()


@combined.mistake(
    "This is the plain mean over the ranks. A rank with few images then counts as much as one with "
    "many: weight each by n_r/N."
)
def _(gradients, counts):
    return gradients.mean(axis=0)


@combined.mistake("This is the plain sum over the ranks. Each gradient needs the weight n_r/N.")
def _(gradients, counts):
    return gradients.sum(axis=0)


@combined.mistake("You weighted by n_r, which gives the gradient of the sum. Divide by N.")
def _(gradients, counts):
    return counts @ gradients


@combined.mistake("You divided by the number of ranks. The weights n_r/N already add up to 1.")
def _(gradients, counts):
    return counts @ gradients / counts.sum() / len(counts)


@exercise(
    cases=lambda: [(1000, 4), (166_406, 64)],
    hint="Without a ring: how many vectors come in, and how many go out? In the ring both are "
    "2(P − 1) chunks of n/P numbers. A number has four bytes.",
)
def bytes_of_rank_0(n, ranks):
    return 8 * n * (ranks - 1), 16 * n * (ranks - 1) / ranks


@bytes_of_rank_0.mistake("You counted what rank 0 sends. It receives as much.")
def _(n, ranks):
    return 4 * n * (ranks - 1), 8 * n * (ranks - 1) / ranks


@bytes_of_rank_0.mistake("You counted numbers. A number of float32 has four bytes.")
def _(n, ranks):
    return 2 * n * (ranks - 1), 4 * n * (ranks - 1) / ranks


@bytes_of_rank_0.mistake(
    "The ring has two round trips: one that adds up, one that spreads the sums."
)
def _(n, ranks):
    return 8 * n * (ranks - 1), 8 * n * (ranks - 1) / ranks


@bytes_of_rank_0.mistake("Rank 0 sends nothing to itself: there are P − 1 others.")
def _(n, ranks):
    return 8 * n * ranks, 16 * n * (ranks - 1) / ranks


@exercise(
    cases=lambda: [(166_406, 20e-6, 1.25e9), (10_000, 1e-6, 1e10), (1000, 50e-6, 1e8)],
    hint="Divide both terms by 2(P − 1), and solve for P.",
)
def many_ranks(n, latency, bandwidth):
    return math.floor(4 * n / (latency * bandwidth)) + 1


@many_ranks.mistake("You counted numbers. A vector has 4n bytes.")
def _(n, latency, bandwidth):
    return math.floor(n / (latency * bandwidth)) + 1


@many_ranks.mistake("This is not yet a whole number of ranks with which the first term is larger.")
def _(n, latency, bandwidth):
    return 4 * n / (latency * bandwidth)


@many_ranks.mistake("With this number the second term is still at least as large: take one more.")
def _(n, latency, bandwidth):
    return math.floor(4 * n / (latency * bandwidth))


SUMS, SQUARES, VALUES = [], [], np.array([50, 20, 10])
for count, centre in zip(VALUES, (0.0, 2.0, -1.0), strict=True):
    values = rng.standard_normal((count, 3)) * np.array([1, 2, 0.5]) + centre
    SUMS.append(values.sum(axis=0))
    SQUARES.append((values**2).sum(axis=0))


@exercise(
    cases=lambda: [(np.array(SUMS), np.array(SQUARES), VALUES)],
    hint="First add up over the ranks: the sums, the squares and the counts. Then divide once.",
)
def moments(sums, squares, counts):
    mean = sums.sum(axis=0) / counts.sum()
    return mean, squares.sum(axis=0) / counts.sum() - mean * mean


@moments.mistake(
    "You took the means over the ranks of their means and variances. The ranks have different "
    "numbers of images, and their means also differ, which adds to the variance."
)
def _(sums, squares, counts):
    mean = sums / counts[:, None]
    return mean.mean(axis=0), (squares / counts[:, None] - mean**2).mean(axis=0)


@moments.mistake(
    "The variance of the whole batch also has a part that comes from the distances between the "
    "ranks' means. Use the mean of the whole batch, and not each rank's own."
)
def _(sums, squares, counts):
    own = squares / counts[:, None] - (sums / counts[:, None]) ** 2
    return sums.sum(axis=0) / counts.sum(), counts @ own / counts.sum()


@moments.mistake("This second result is E[x²]. The variance is E[x²] − μ².")
def _(sums, squares, counts):
    return sums.sum(axis=0) / counts.sum(), squares.sum(axis=0) / counts.sum()


@moments.mistake("This second result is the standard deviation. The variance is its square.")
def _(sums, squares, counts):
    mean, variance = moments.answer(sums, squares, counts)
    return mean, np.sqrt(variance)
