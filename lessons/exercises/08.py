"""Exercises of lesson 08: replace each ``...``, then run ``python -m lessons.exercises 08``."""

import numpy as np


def share_in_the_2_norm(g_v, g_s):
    """1. Which share of the effect transfers, if the attacker works in the 2-norm?

    Step 1 derives the share for ‖δ‖∞ ≤ ε. Derive it for ‖δ‖₂ ≤ ε: the attacker takes the best step
    for the source, and the victim's margin changes by a share of what its own best step achieves.

    g_v, g_s: (N, D), the gradients of the two margins. Returns (N,), one share for each image.
    """
    ...


def mean_square(g, directions):
    """2. The mean of ‖ĝ‖², if the entries of the directions are random signs.

    Derive E‖ĝ‖² = (1 + (n + 1)/M) ‖g‖² for normal directions first: show E[(uᵀg)² ‖u‖²] =
    (n + 2)‖g‖², by splitting u into its part along g and the rest. Products of two different
    directions contribute ‖g‖² each. Then let each entry of u be 1 or −1 with probability 1/2,
    independently. What changes?

    g: (n,), the true gradient; directions: M, their number. Returns a number.
    """
    ...


def spread_of_stripes(g, epsilon):
    """3. By how much does the first query of the Square attack change the margin?

    For vertical stripes, one pixel wide, each +ε or −ε at random, the mean change is 0 to first
    order. Compute its standard deviation. (If each *pixel* had a sign of its own, it would be
    ε‖g‖₂. Which gradients make stripes better, and which make them worse?)

    g: (N, 28, 28), gradients of the margin, rows before columns; epsilon: a number.
    Returns (N,), without drawing random numbers.
    """
    ...


def pgd_from_queries(margin, x, epsilon, alpha, u, h):
    """4. PGD in the ∞-norm, from x, with gradients that are estimated from queries.

    Each step estimates the gradient from M directions, as in step 2, moves every pixel by α
    against it, and projects. There are T steps, so you may query each image T(M + 1) times.
    The queries x + h u may leave [0, 1], but the result must not.

    margin: a function from images (N, 1, 28, 28) to margins (N,); each call queries each image
    once. x: images; epsilon, alpha: numbers; u: (T, M, N, 1, 28, 28), the directions of each step;
    h: the finite-difference step. Returns (N, 1, 28, 28), images within ε of x.
    """
    ...
