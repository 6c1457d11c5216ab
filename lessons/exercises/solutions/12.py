"""Solutions of the exercises of lesson 12."""

import numpy as np


def largest_radius(s, height):
    """At a point of class +1, f = s + A. A square's corner lowers x₂ by ε and raises h by 2Aε.

    The smallest y f(x) is A + s − (1 + 2A) ε, and it is 0 at ε = (A + s)/(1 + 2A). For s < 1/2
    this grows with A and approaches 1/2, where the squares touch. So n units are enough for every
    ε below 1/2, but a larger ε needs a steeper function, with larger weights.
    """
    return (height + s) / (1 + 2 * height)


def parameters(c, d):
    """The dense layer after the convolutions has 196c · 64d weights: both factors count.

    Its share of all parameters is large for every width, so the number of parameters says little
    about the number of filters. A comparison of widths should say what was widened.
    """
    first = 25 * 2 * c + 2 * c
    second = 25 * 2 * c * 4 * c + 4 * c
    hidden = 7 * 7 * 4 * c * 64 * d + 64 * d  # two poolings: 28 -> 14 -> 7
    last = 64 * d * 10 + 10
    return first + second + hidden + last


def kinks(W, b, v):
    """At t = −b_i/w_i1 the slope of f changes by v_i |w_i1|, whichever way the unit is turned.

    A unit that does not look at x₁ (w_i1 = 0) has no kink on this axis, and neither has one with
    v_i = 0. Units with a kink at the same t add their changes, which may cancel: relu(a) − relu(−a)
    = a has no kink at all. H units are an upper bound on the number of kinks, not the number.
    """
    change = v * abs(W[:, 0])  # (H,)
    looks = W[:, 0] != 0
    change, at = change[looks], -b[looks] / W[looks, 0]
    found = []
    for t in np.sort(at):
        total = change[abs(at - t) < 1e-9].sum()
        if abs(total) > 1e-9 and not (found and t - found[-1] < 1e-9):
            found.append(t)
    return np.array(found)


def loss_floor(x_1, y_1, x_2, y_2, epsilon):
    """Balls overlap if no pixel differs by more than 2ε. Then the pair's mean loss is ≥ ln 2.

    At a common point the worst losses of the two images are at least −ln p_{y_1} and −ln p_{y_2}.
    With p_{y_1} + p_{y_2} ≤ 1 their sum is smallest if both are 1/2, where it is 2 ln 2. No
    network, however large, is better. The point halfway between two images is itself an image.
    So a high robust loss may come from ε and the data, not from the network.
    """
    apart = abs(x_1 - x_2).max(axis=(1, 2, 3))  # (N,)
    conflict = (apart <= 2 * epsilon) & (y_1 != y_2)
    return conflict.mean() * np.log(2)
