"""Solutions of the exercises of lesson 14."""

import numpy as np


def bounds_of_abs(low, high):
    """The largest |x| is at an end of the interval. The smallest is at an end, or at 0 inside.

    Applying the function to both ends is right only for functions that never decrease, such as
    the ReLU. For others the interval has to be cut where the function turns.
    """
    upper = np.maximum(abs(low), abs(high))
    inside = (low <= 0) & (high >= 0)
    lower = np.where(inside, 0, np.minimum(abs(low), abs(high)))
    return lower, upper


def two_linear_layers(W_1, b_1, W_2, b_2, low, high):
    """Two linear layers are one: multiply the matrices first, and then take absolute values.

    Layer by layer the radius is |W₂||W₁| r, and in truth |W₂W₁| r, which is never larger, because
    products may cancel before the absolute value is taken. If W₂ is the inverse of W₁, the true
    radius is r itself, whatever |W₂||W₁| is. Intervals forget that the hidden values depend on
    the same input.
    """
    W, b = W_2 @ W_1, W_2 @ b_1 + b_2  # (K, D), (K,)
    m, r = (low + high) / 2, (high - low) / 2
    centre, radius = m @ W.T + b, r @ abs(W).T  # (N, K)
    return centre - radius, centre + radius


def std_of_weights(n):
    """E|w| = 2 · σ²/(σ√(2π)) = σ√(2/π), so σ = √(2π)/n.

    The usual initialisation has σ = √(2/n), which is larger by the factor √(n/π). It keeps sums in
    which terms cancel at their size. In the radius nothing cancels, so its weights must be
    smaller, in proportion to 1/n instead of 1/√n.
    """
    return np.sqrt(2 * np.pi) / n


def certified_by_the_mean(worst, y):
    """z_k − z_y of the ensemble is the mean of the members' differences, each at most its ẑ_k.

    The members' worst cases may belong to different images, so the mean is a bound that need not be
    reached. A member without a certificate can be outweighed by the others. ẑ_y is 0 and is left
    out; the others must be strictly below 0.
    """
    mean = worst.mean(axis=0)  # (M, N, K) -> (N, K)
    others = np.arange(mean.shape[1]) != y[:, None]  # (N, K)
    return np.where(others, mean, -np.inf).max(axis=1) < 0


def certified_radius(certified, x, y, halvings):
    """`low` is certified (or 0), `high` is not: the radius that is proved is `low`.

    Each image has an interval of its own, but one call of `certified` tries all middles at once.
    The result is a proof for each image. The mean of (radius > ε) is the certified accuracy at any
    ε, up to the width of the last interval.
    """
    low, high = np.zeros(len(x)), np.ones(len(x))
    for _ in range(halvings):
        middle = (low + high) / 2
        proved = certified(x, y, middle[:, None])
        low, high = np.where(proved, middle, low), np.where(proved, high, middle)
    return low
