"""Exercises of lesson 09: replace each ``...``, then run ``python -m lessons.exercises 09``."""

import numpy as np


def destination(u, v, t):
    """1. Where does each point of the old image end up in the new one?

    Step 1 computes (u, v) from (a, b). Solve for (a, b): the image is first rotated by θ
    counter-clockwise, and then shifted.

    u, v: (P,), columns and rows in the old image, counted from its centre, rows downwards;
    t: (3,), the angle θ in degrees, and the shifts s₁ to the right and s₂ down.
    Returns (2, P), the columns a and the rows b, counted from the centre as well.
    """
    ...


def worst_of_k_accuracy(p, k):
    """2. The accuracy to expect under the worst of k random transformations.

    For image i, a share p_i of all transformations fools the network. The k transformations are
    drawn independently, anew for each image.

    p: (N,), numbers between 0 and 1; k: a number. Returns the expected share of the N images that
    survive all k, without drawing random numbers.
    """
    ...


def slope_in_t(x_u, x_v, a, b, t):
    """3. The derivative of each new pixel with respect to the transformation.

    Step 2 gives the derivatives of the interpolated value with respect to u and v. Now apply the
    chain rule through u and v of step 1.

    x_u, x_v: (P,), the derivatives of P new pixels with respect to u and v; a, b: (P,), columns
    and rows of these pixels, counted from the centre; t: (3,), θ in degrees, s₁ and s₂.
    Returns (P, 3), the derivatives with respect to θ (per degree), s₁ and s₂.
    """
    ...


def ascent_reaches(loss, wrong):
    """4. From which points of a grid does gradient ascent find an error?

    On the grid, ascent moves to the neighbour with the largest loss, as long as this is larger
    than the loss at the current point. Neighbours are the up to eight points around it, also
    diagonally; the grid ends at its edges. An error is found if the network is wrong at the start
    or at any point that is visited.

    loss: (A, S), numbers that all differ; wrong: (A, S), booleans: is the network wrong here?
    Returns (A, S), a boolean for each start. Its mean can be compared with the mean of `wrong`.
    """
    ...
