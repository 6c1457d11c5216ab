"""Checks of the exercises of lesson 16."""

import numpy as np

from lessons.exercises.checker import exercise
from tinyadv import models
from tinyadv.verify.linear import linear_bound
from tinyadv.verify.relus import lines

rng = np.random.default_rng(0)

# ---------------------------------------------------------------------------------- exercise 1

LOW = np.array([-1.0, -3.0, 0.5, -2.0, 0.0, -1.0, 2.0, -2.0, 0.0])
HIGH = np.array([2.0, 1.0, 1.5, -1.0, 3.0, 0.0, 2.0, -2.0, 0.0])


@exercise(
    cases=lambda: [(LOW, HIGH)],
    hint="The line passes through (l, relu(l)) and (u, relu(u)). Which two points are these for a "
    "ReLU that is stable?",
)
def line_above(low, high):
    slope = lines(low, high)[0]
    return slope, -slope * np.minimum(low, 0)


@line_above.mistake(
    "You used the chord of an unstable ReLU, u (v − l)/(u − l), everywhere. If l > 0 the ReLU is v "
    "itself, and if u < 0 it is 0."
)
def _(low, high):
    width = np.where(high > low, high - low, 1)
    slope = np.where(high > low, high / width, 0)
    return slope, -slope * low


@line_above.mistake("The intercept has the wrong sign: at v = l < 0 the line must be at 0.")
def _(low, high):
    slope = lines(low, high)[0]
    return slope, slope * np.minimum(low, 0)


@line_above.mistake(
    "This line has no intercept. It passes through the kink, and is below the ReLU where v < 0 or "
    "v > 0."
)
def _(low, high):
    return lines(low, high)[0], np.zeros_like(low)


@line_above.mistake(
    "A slope of 1 with the intercept −l is above the ReLU, but not the best line: it is too high "
    "at u."
)
def _(low, high):
    unstable = (low < 0) & (high > 0)
    slope = np.where(unstable, 1.0, lines(low, high)[0])
    return slope, np.where(unstable, -low, 0)


# ---------------------------------------------------------------------------------- exercise 2

MODEL = models.mlp((4, 6, 3), rng=1).astype(np.float64).frozen()


def upper(c):
    """By linear bounds of a small network."""
    x = np.full((1, 4), 0.5)
    first = MODEL.layers[1]
    reach = 0.3 * abs(first.weight).sum(1)
    centre = first(x)
    bound, _, _ = linear_bound(MODEL, x - 0.3, x + 0.3, c, [(centre - reach, centre + reach)])
    return bound.value


C = rng.standard_normal((5, 3))


@exercise(
    cases=lambda: [(upper, C)],
    hint="Where ⟨c, f(x)⟩ is smallest, which other direction is largest?",
)
def lower_bounds(upper, c):
    return -upper(-c)


@lower_bounds.mistake("The minus sign outside is missing: upper(−c) is a bound on ⟨−c, f⟩.")
def _(upper, c):
    return upper(-c)


@lower_bounds.mistake(
    "You negated the upper bound of the same direction. ⟨c, f⟩ ≤ b says nothing about how small "
    "⟨c, f⟩ may be: ask about −c."
)
def _(upper, c):
    return -upper(c)


@lower_bounds.mistake("This is the upper bound itself.")
def _(upper, c):
    return upper(c)


# ---------------------------------------------------------------------------------- exercise 3

LEAKY = np.array([-1.0, -3.0, -0.2]), np.array([2.0, 1.0, 4.0]), 0.1


@exercise(
    cases=lambda: [LEAKY],
    hint="Which values does the function take at both ends? A line below must not cross either "
    "piece.",
)
def chord_of_leaky_relu(low, high, a):
    slope = (high - a * low) / (high - low)
    return slope, a * low - slope * low, a, 1.0


@chord_of_leaky_relu.mistake("At v = l a leaky ReLU is a·l, not 0: this is the chord of a ReLU.")
def _(low, high, a):
    slope = high / (high - low)
    return slope, -slope * low, a, 1.0


@chord_of_leaky_relu.mistake(
    "Lines with a slope below a cross the left piece: for v < 0 they are above a·v."
)
def _(low, high, a):
    return *chord_of_leaky_relu.answer(low, high, a)[:2], 0.0, 1.0


@chord_of_leaky_relu.mistake("The chord passes through (u, u), so its intercept is u − slope · u.")
def _(low, high, a):
    slope = (high - a * low) / (high - low)
    return slope, -slope * low, a, 1.0


# ---------------------------------------------------------------------------------- exercise 4

G, X = rng.standard_normal((4, 7)), rng.random(7)


@exercise(
    cases=lambda: [(G, X, 0.3)],
    hint="Which δ with ‖δ‖₂ = ε has the largest product with g? See the steepest ascent of lesson "
    "06.",
)
def largest_on_a_ball(g, x, epsilon):
    step = epsilon * g / np.linalg.norm(g, axis=1, keepdims=True)
    return (g * (x + step)).sum(axis=1)


@largest_on_a_ball.mistake("‖g‖₁ belongs to the L∞ ball. The dual norm of L2 is L2 itself.")
def _(g, x, epsilon):
    return g @ x + epsilon * abs(g).sum(axis=1)


@largest_on_a_ball.mistake("The square root is missing: this is ε‖g‖².")
def _(g, x, epsilon):
    return g @ x + epsilon * (g**2).sum(axis=1)


@largest_on_a_ball.mistake("This is the smallest value. The sign of the step is the wrong one.")
def _(g, x, epsilon):
    return g @ x - epsilon * np.linalg.norm(g, axis=1)


@largest_on_a_ball.mistake("You left out ⟨g, x⟩, the value at the centre.")
def _(g, x, epsilon):
    return epsilon * np.linalg.norm(g, axis=1)
