"""Solutions of the exercises of lesson 16."""

import numpy as np


def line_above(low, high):
    """Clipping the bounds, down = min(l, 0) and up = max(u, 0), covers all three cases.

    For a stable ReLU it gives the slope 1 (down = 0) or 0 (up = 0), and the intercept 0: the ReLU
    itself. A chord of a convex function is above it between its ends.
    """
    down, up = np.minimum(low, 0), np.maximum(high, 0)
    width = up - down
    slope = np.divide(up, width, out=np.zeros_like(width), where=width > 0)
    return slope, -slope * down


def lower_bounds(upper, c):
    """⟨c, f⟩ is smallest where ⟨−c, f⟩ is largest, so a lower bound is −upper(−c).

    Upper and lower bounds of n neurons are therefore 2n questions of the same kind. They need two
    walks, because the signs of g choose other lines.
    """
    return -upper(-c)


def chord_of_leaky_relu(low, high, a):
    """At the ends the values are a·l and u. Below, any slope from a to 1 will do."""
    slope = (high - a * low) / (high - low)
    return slope, high - slope * high, a, 1.0


def largest_on_a_ball(g, x, epsilon):
    """⟨g, x⟩ + ε‖g‖₂, by the Cauchy–Schwarz inequality; reached at x′ = x + ε g/‖g‖₂.

    For the box of lesson 16 it is ⟨g, x⟩ + ε‖g‖₁: each norm meets its dual norm, as for the
    steepest ascent of lesson 06.
    """
    return g @ x + epsilon * np.sqrt((g**2).sum(axis=1))
