"""Exercises of lesson 16: replace each ``...``, then run ``python -m lessons.exercises 16``."""

import numpy as np


def line_above(low, high):
    """1. The line above a ReLU, for stable and unstable ReLUs.

    It is the best one: nowhere below relu(v) for low ≤ v ≤ high, and equal to it at both ends. If
    low = high, let it be the ReLU itself: slope 1 for low > 0, otherwise slope and intercept 0.

    low, high: (N,), low ≤ high. Returns the slope and the intercept, both (N,): the line is
    slope · v + intercept.
    """
    ...


def lower_bounds(upper, c):
    """2. Lower bounds from a function that computes upper bounds only.

    upper: a function; `upper(c)` returns an upper bound on ⟨c, f(x)⟩ for each row of c (R, K), for
    all images x of a box. c: (R, K). Returns a lower bound on ⟨c, f(x)⟩ for each row, (R,).
    """
    ...


def chord_of_leaky_relu(low, high, a):
    """3. Which lines enclose a leaky ReLU, max(v, a v) with 0 < a < 1?

    It is convex, like the ReLU. For unstable ones, low < 0 < high, find the chord above, and the
    smallest and the largest slope of lines through the kink that stay below.

    low, high: (N,), low < 0 < high; a: a number. Returns four things: the slope (N,) and the
    intercept (N,) of the chord, and the smallest and the largest slope of lines below, two numbers.
    """
    ...


def largest_on_a_ball(g, x, epsilon):
    """4. The largest ⟨g, x′⟩ for ‖x′ − x‖₂ ≤ ε.

    With this in place of the corner of a box, the same walk back gives bounds for L2 balls. (Pixels
    may leave [0, 1] here.)

    g: (R, D); x: (D,); epsilon: a number. Returns R numbers.
    """
    ...
