"""Checks of the exercises of lesson 12."""

import numpy as np

from lessons.exercises.checker import exercise
from tinyadv import layers


@exercise(
    cases=lambda: [(0.1, 1), (0.1, 4), (0.3, 2)],
    hint="At the point itself y f = A + s. By how much do ±ε in x₂ and ±ε in x₁ lower it?",
)
def largest_radius(s, height):
    return (height + s) / (1 + 2 * height)


@largest_radius.mistake("You moved along x₁ only. The corner also lies ε closer in x₂.")
def _(s, height):
    return (height + s) / (2 * height)


@largest_radius.mistake(
    "h falls from +A to −A between two neighbours, a distance of 1. What is its slope?"
)
def _(s, height):
    return (height + s) / (1 + height)


@largest_radius.mistake(
    "The sign of s is wrong. A point of class +1 lies above the axis, so s helps."
)
def _(s, height):
    return (height - s) / (1 + 2 * height)


@largest_radius.mistake("This is the limit for a very high zigzag, not the ε for this height.")
def _(s, height):
    return 0.5


@largest_radius.mistake("This is the lesson's zigzag, with A = 1. Let the slope depend on A.")
def _(s, height):
    return (1 + s) / 3


@exercise(
    cases=lambda: [(1, 1), (2, 1), (1, 3), (4, 2)],
    hint="Count layer by layer, weights and biases, with the table of step 3.",
)
def parameters(c, d):
    how = {"rng": np.random.default_rng(0)}
    learned = [
        layers.Conv2d(1, 2 * c, 5, **how), layers.Conv2d(2 * c, 4 * c, 5, **how),
        layers.Dense(196 * c, 64 * d, **how), layers.Dense(64 * d, 10, **how),
    ]  # fmt: skip
    return sum(p.size for layer in learned for p in layer.parameters())


@parameters.mistake("You forgot the biases: one for each filter and for each unit.")
def _(c, d):
    return parameters.answer(c, d) - (6 * c + 64 * d + 10)


@parameters.mistake(
    "The input of the hidden layer grows with the number of filters: 7 · 7 · 4c values."
)
def _(c, d):
    return parameters.answer(c, d) - 196 * (c - 1) * 64 * d


@parameters.mistake("Each of the two poolings halves height and width: 28 → 14 → 7.")
def _(c, d):
    return parameters.answer(c, d) + 3 * 196 * c * 64 * d


@parameters.mistake(
    "A filter of the second convolution has 25 weights for *each* of its 2c input channels."
)
def _(c, d):
    return parameters.answer(c, d) - 25 * 4 * c * (2 * c - 1)


def zigzag(n=6):
    """The weights of step 2."""
    k = np.arange(n)
    W = np.zeros((n, 2))
    W[:-1, 0], W[-1, 1] = 1, 1
    v = np.array([-2, *np.where(k[1:-1] % 2, 4, -4), 1.0])
    return W, np.array([1.0, *-k[1:-1], 2]), v


def entangled():
    """Steep, reversed, unused, doubled and cancelling units."""
    W = np.array([[2, 1], [-1, 3], [0.5, -2], [3, 0], [-1, 0], [1, 1], [-1, 0.0], [1, 0]])
    t = np.array([1.5, -0.5, 1.5, 0.25, 2.0, 2.0, 3.0, 3.0])
    v = np.array([1.0, 2.0, 1.0, 0.0, 3.0, -3.0, 1.0, 1.0])
    return W, -W[:, 0] * t, v


@exercise(
    cases=lambda: [zigzag(), entangled()],
    hint="For each unit find t and the change of the slope there; then add up the changes at each "
    "t.",
)
def kinks(W, b, v):
    looks = W[:, 0] != 0
    at = np.round(-b[looks] / W[looks, 0], 9)
    places, group = np.unique(at, return_inverse=True)
    change = np.bincount(group, v[looks] * abs(W[looks, 0]))
    return places[abs(change) > 1e-9]


def kinks_if(W, b, counts, change):
    """All places where the changes of the units that count do not cancel."""
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.round(-b / W[:, 0], 9)
    places, group = np.unique(at[counts], return_inverse=True)
    return places[abs(np.bincount(group, change[counts])) > 1e-9]


@kinks.mistake(
    "Kinks at the same t can cancel. Add up the changes of the slope there, and keep t only if the "
    "sum is not 0."
)
def _(W, b, v):
    return kinks_if(W, b, (W[:, 0] != 0) & (v != 0), abs(v))


@kinks.mistake("You also listed units that f does not use. What does v_i = 0 mean?")
def _(W, b, v):
    return kinks_if(W, b, W[:, 0] != 0, np.ones(len(v)))


@kinks.mistake(
    "A unit with w_i1 < 0 is active to the left of its kink. When t passes it, the slope "
    "of f gains −w_i1 v_i, so the change is v_i |w_i1|."
)
def _(W, b, v):
    return kinks_if(W, b, W[:, 0] != 0, v * W[:, 0])


@kinks.mistake("A unit that does not depend on x₁ has no kink on this axis: leave out w_i1 = 0.")
def _(W, b, v):
    return kinks_if(W, b, v != 0, v * np.where(W[:, 0] == 0, 1, abs(W[:, 0])))


@kinks.mistake("The sign is wrong: w_i1 t + b_i = 0 at t = −b_i/w_i1.")
def _(W, b, v):
    return np.sort(-kinks.answer(W, b, v))


def pairs():
    """Pairs at distances from 0.05 to 0.9; the second pair is of one class."""
    rng = np.random.default_rng(1)
    x, share = rng.uniform(0, 0.1, (2, 6, 1, 28, 28)) * np.array([1, 10]).reshape(2, 1, 1, 1, 1)
    share[:, 0, 3, 7] = 1
    distance = np.array([0.05, 0.25, 0.25, 0.39, 0.5, 0.9]).reshape(6, 1, 1, 1)
    return x, np.array([0, 1, 2, 3, 4, 5]), x + distance * share, np.array([9, 1, 8, 7, 6, 6])


@exercise(
    cases=lambda: [(*pairs(), 0.2), (*pairs(), 0.03), (*pairs(), 0.01)],
    hint="Which pairs of different classes have a point in common, and what is −ln p_1 − ln p_2 at "
    "least if p_1 + p_2 ≤ 1?",
)
def loss_floor(x_1, y_1, x_2, y_2, epsilon):
    middle = (x_1 + x_2) / 2
    meets = (abs(middle - x_1) <= epsilon).all(axis=(1, 2, 3))
    return np.log(2) * (meets & (y_1 != y_2)).mean()


LN_2 = np.log(2)


def floor_if(x_1, x_2, counts, radius, value=LN_2):
    return value * ((abs(x_1 - x_2).max(axis=(1, 2, 3)) <= radius) & counts).mean()


@loss_floor.mistake(
    "You asked whether one image lies in the other's ball. Two balls of radius ε meet if they "
    "are at most 2ε apart."
)
def _(x_1, y_1, x_2, y_2, epsilon):
    return floor_if(x_1, x_2, y_1 != y_2, epsilon)


@loss_floor.mistake("Two images of the same class do not disturb each other, however close.")
def _(x_1, y_1, x_2, y_2, epsilon):
    return floor_if(x_1, x_2, True, 2 * epsilon)


@loss_floor.mistake("2 ln 2 is the sum of the losses of a pair. The mean loss counts each image.")
def _(x_1, y_1, x_2, y_2, epsilon):
    return floor_if(x_1, x_2, y_1 != y_2, 2 * epsilon, 2 * np.log(2))


@loss_floor.mistake(
    "ln 10 is the loss of a network that ignores the image. Here the network must only give both "
    "labels at one point."
)
def _(x_1, y_1, x_2, y_2, epsilon):
    return floor_if(x_1, x_2, y_1 != y_2, 2 * epsilon, np.log(10))


@loss_floor.mistake("You measured the distance in the 2-norm. The balls are balls of the ∞-norm.")
def _(x_1, y_1, x_2, y_2, epsilon):
    apart = np.sqrt(((x_1 - x_2) ** 2).sum(axis=(1, 2, 3)))
    return np.log(2) * ((apart <= 2 * epsilon) & (y_1 != y_2)).mean()
