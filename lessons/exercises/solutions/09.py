"""Solutions of the exercises of lesson 09."""

import numpy as np


def destination(u, v, t):
    """The inverse of a rotation by −θ is the rotation by θ, and the shift is added last.

    Check it with θ = 90°: the point below the centre, (0, 1), goes to (1, 0), on the right. The
    order matters. Rotating the shifted image would rotate the shift as well, and a digit that is
    off-centre would move along a circle around the centre.
    """
    theta = t[0] * np.pi / 180
    a = np.cos(theta) * u + np.sin(theta) * v + t[1]
    b = -np.sin(theta) * u + np.cos(theta) * v + t[2]
    return np.stack([a, b])


def worst_of_k_accuracy(p, k):
    """Image i survives one transformation with probability 1 − p_i, and all k with (1 − p_i)ᵏ.

    The mean over the images comes last. For k > 1, the mean of p in the formula would give too low
    an accuracy if the p_i differ, because (1 − p)ᵏ is convex (Jensen's inequality). An image with
    a small p_i > 0 mostly survives ten random transformations, although errors exist. A grid that
    covers the set densely is more likely to find them, so its accuracy is lower.
    """
    return np.mean((1 - p) ** k)


def slope_in_t(x_u, x_v, a, b, t):
    """The shift moves (a′, b′) by −1 pixel, and the angle turns (u, v) by π/180 for each degree.

    The shifts have the same effect on the position everywhere. The effect of the angle grows with
    the distance from the centre: at a distance of 13 pixels, one degree moves a point by
    13 π/180 ≈ 0.23 pixels. Degrees and pixels are different units, so no single step size suits all
    three: the lesson's attack moves each by 1 % of its limit.
    """
    theta = t[0] * np.pi / 180
    cos, sin = np.cos(theta), np.sin(theta)
    a, b = a - t[1], b - t[2]  # a′ and b′
    by_angle = (x_u * (-sin * a - cos * b) + x_v * (cos * a - sin * b)) * np.pi / 180
    by_right = -(x_u * cos + x_v * sin)  # u falls by cos θ, v by sin θ
    by_down = x_u * sin - x_v * cos
    return np.stack([by_angle, by_right, by_down], axis=1)


def ascent_reaches(loss, wrong):
    """Each point belongs to one local maximum, and only the points on the way there are visited.

    A single ascent, however long, sees one hill. If the network is wrong on other hills only, more
    steps do not help, but more random starts may. On the grid, a start that is an error itself
    counts, so the share of starts that succeed is at least the share of errors.
    """
    found = np.zeros(loss.shape, bool)
    for start in np.ndindex(loss.shape):
        i, j = start
        while not found[start]:
            found[start] = wrong[i, j]
            top, left = max(i - 1, 0), max(j - 1, 0)
            around = loss[top : i + 2, left : j + 2]  # slices end at the edge by themselves
            di, dj = np.unravel_index(around.argmax(), around.shape)
            if (top + di, left + dj) == (i, j):  # a local maximum
                break
            i, j = top + di, left + dj
    return found
