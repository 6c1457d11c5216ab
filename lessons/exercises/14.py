"""Exercises of lesson 14: replace each ``...``, then run ``python -m lessons.exercises 14``."""

import numpy as np


def bounds_of_abs(low, high):
    """1. Interval bounds of the absolute value, which does not only rise.

    A layer computes |x| for each value. Which values can it take if x lies between `low` and
    `high`?

    low, high: (N, D), low ≤ high. Returns the lower and the upper bounds, both (N, D).
    """
    ...


def two_linear_layers(W_1, b_1, W_2, b_2, low, high):
    """2. The smallest and largest outputs of two linear layers with no ReLU between them.

    Interval bounds layer by layer are valid, but not reached. Find the values that are reached. To
    see how much they differ, try a second layer whose matrix is the inverse of the first one.

    W_1: (H, D), b_1: (H,); W_2: (K, H), b_2: (K,); low, high: (N, D). Returns the smallest and the
    largest value of each output over all inputs between `low` and `high`, both (N, K).
    """
    ...


def std_of_weights(n):
    """3. With which standard deviation must normal weights be drawn so that E|w| = 2/n?

    Such weights keep the mean radius from growing: a linear layer doubles it and a ReLU halves it.
    Derive E|w| for a normal distribution with mean 0 and standard deviation σ.
    (Hint: ∫ w exp(−w²/(2σ²)) dw from 0 to ∞ is σ².)

    n: the number of inputs of the layer. Returns a number, σ.
    """
    ...


def certified_by_the_mean(worst, y):
    """4. Certificates for an ensemble that averages the logits of M networks.

    `worst` holds the ẑ of each member. Show first that the mean of the ẑ_k over the members is an
    upper bound on the ensemble's z_k − z_y. Can it certify an image that a member does not certify?

    worst: (M, N, K), ẑ of each member; y: (N,), labels. Returns N booleans: for which images does
    the mean of the bounds prove that the ensemble predicts y for all allowed images?
    """
    ...


def certified_radius(certified, x, y, halvings):
    """5. The largest ε for which each image is certified, by bisection.

    Bounds that hold for ε also hold for a smaller one. For each image, start with the interval from
    0 to 1, and halve it `halvings` times: try its middle, and keep the half in which the answer
    changes from yes to no. All images should be tried at once.

    certified: a function (x, y, epsilon) -> N booleans, in which epsilon is (N, 1), one radius for
    each image; x: (N, D); y: (N,), labels. Returns N numbers: the largest ε that was tried and
    *certified*, or 0 if there was none. (`certified` returns (N,), so keep the ends of the
    intervals in that shape, too, and call it with middle[:, None].)
    """
    ...
