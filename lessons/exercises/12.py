"""Exercises of lesson 12: replace each ``...``, then run ``python -m lessons.exercises 12``."""

import numpy as np


def largest_radius(s, height):
    """1. Up to which ε is a zigzag network correct on all squares, if its zigzag is higher?

    Let h pass through −A below each point of class +1 and through +A above each point of class −1,
    with straight lines in between, and let f(x) = x₂ − h(x₁). The lesson has A = 1 and found that
    the smallest y f(x) in a square is 1 + s − 3ε. Derive it for any A, and set it to 0.
    (Hint: y f is concave on each square, so its minimum is at a corner.)

    s: the second coordinate of the points, 0 < s < 1/2; height: A > 0. Returns a number.
    """
    ...


def parameters(c, d):
    """2. How many parameters has the network if only a part of it is widened?

    Take the network of step 3, with 2c and 4c filters in the two convolutions and 64d units in the
    hidden layer (the lesson has c = d = w). Afterwards compare c = 16, d = 1 with c = 1, d = 16:
    where are most of the weights of a wide network?

    c, d: whole numbers. Returns a whole number.
    """
    ...


def kinks(W, b, v):
    """3. Where does the slope of the network change along the axis x = (t, 0)?

    f(x) = Σ_i v_i relu(w_iᵀx + b_i) has at most one kink for each hidden unit, but it may have
    fewer. Which units have none, and when do the kinks of several units cancel each other?
    Values closer than 1e-9 count as equal.

    W: (H, 2), one row for each unit; b, v: (H,). Returns all t at which the slope of f(t, 0)
    changes, in increasing order, each once.
    """
    ...


def loss_floor(x_1, y_1, x_2, y_2, epsilon):
    """4. A robust loss that no network can go below, however large it is.

    You are given N pairs of images. If the two balls of a pair have a point in common, the network
    has only one prediction there, for both labels. What is the smallest mean of the two worst-case
    cross-entropies? Derive from it a lower bound on the mean robust loss of all 2N images.
    (Hint: at the common point p_{y_1} + p_{y_2} ≤ 1.)

    x_1, x_2: (N, 1, 28, 28); y_1, y_2: (N,), labels; epsilon: the radius in the ∞-norm.
    Returns a number: the largest lower bound that follows from these pairs, each on its own.
    """
    ...
