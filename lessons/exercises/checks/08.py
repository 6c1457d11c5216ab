"""Checks of the exercises of lesson 08."""

import numpy as np

from lessons.exercises.checker import exercise
from tinyadv.balls import L2

rng = np.random.default_rng(0)
G_V = rng.standard_normal((5, 60)) * np.array([1, 0.1, 5, 1, 2])[:, None]
G_S = rng.standard_normal((5, 60)) ** 3 + np.array([1, 5, 0, -1, 0.5])[:, None] * G_V
SMALL_G, LARGE_G = np.array([0.5, -1.0, 2.0, 0.0, 0.3]), rng.standard_normal(40)
G = rng.standard_normal((3, 28, 28)) + np.array([0, 0.5, 0]).reshape(3, 1, 1)
G[2] *= np.where(np.arange(28) % 2, 3, -3)[:, None]  # its rows have signs of their own
G[2] += 0.4

EPSILON, ALPHA, T, M, H = 0.2, 0.06, 5, 12, 1e-3
X = rng.uniform(0, 1, (4, 1, 28, 28))
U = rng.standard_normal((T, M, *X.shape))


class Victim:
    """The margin of a smooth little network, which counts its queries."""

    def __init__(self, left):
        self.left = left
        self.w = np.random.default_rng(1).standard_normal((784, 8)) / 28

    def __call__(self, images):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError(
                f"you have used up T(M + 1) = {T * (M + 1)} queries for each image. Which query "
                "is the same for all M directions?"
            )
        if np.shape(images) != X.shape:
            raise ValueError(f"margin takes images {X.shape}, got {np.shape(images)}")
        z = np.asarray(images).reshape(len(images), -1) @ self.w  # (N, 8)
        return np.tanh(z[:, :4]).sum(axis=1) - np.sin(z[:, 4:]).sum(axis=1)


@exercise(
    cases=lambda: [(G_V, G_S)],
    hint="In the 2-norm the best step for the source is δ = −ε g_s/‖g_s‖₂, and the victim's best "
    "step changes its margin by −ε‖g_v‖₂.",
)
def share_in_the_2_norm(g_v, g_s):
    unit = L2(1.0).steepest
    return (g_v * unit(g_s)).sum(axis=1) / (g_v * unit(g_v)).sum(axis=1)


@share_in_the_2_norm.mistake(
    "This is the share in the ∞-norm. In the 2-norm the step is not a sign."
)
def _(g_v, g_s):
    return (g_v * np.sign(g_s)).sum(axis=1) / abs(g_v).sum(axis=1)


@share_in_the_2_norm.mistake(
    "The step is right, but you divide by ‖g_v‖₁, the largest change in the ∞-norm. How much does "
    "the victim's own best step change its margin in the 2-norm?"
)
def _(g_v, g_s):
    return (g_v * g_s).sum(axis=1) / (np.linalg.norm(g_s, axis=1) * abs(g_v).sum(axis=1))


@share_in_the_2_norm.mistake(
    "This is the change for ε = 1, not the share. Divide it by what the victim's own gradient "
    "achieves."
)
def _(g_v, g_s):
    return (g_v * g_s).sum(axis=1) / np.linalg.norm(g_s, axis=1)


@share_in_the_2_norm.mistake(
    "The step has the length ε, whatever the length of g_s: use g_s/‖g_s‖₂."
)
def _(g_v, g_s):
    return (g_v * g_s).sum(axis=1) / np.linalg.norm(g_v, axis=1)


@share_in_the_2_norm.mistake(
    "You take the lengths over the whole batch. Each image has gradients of its own: use axis=1."
)
def _(g_v, g_s):
    return (g_v * g_s).sum(axis=1) / (np.linalg.norm(g_v) * np.linalg.norm(g_s))


@exercise(
    cases=lambda: [(SMALL_G, 1), (SMALL_G, 7), (LARGE_G, 100)],
    hint="‖ĝ‖² is 1/M² times a sum over M² pairs of directions. M pairs consist of the same "
    "direction twice. How long is a vector of n signs?",
)
def mean_square(g, directions):
    return (1 + (len(g) - 1) / directions) * (g**2).sum()


@mean_square.mistake(
    "This is the mean for normal directions. Signs have no spread in their length: ‖u‖² is always "
    "n, so what is E[(uᵀg)² ‖u‖²]?"
)
def _(g, directions):
    return (1 + (len(g) + 1) / directions) * (g**2).sum()


@mean_square.mistake(
    "You forgot the M(M − 1) products of two different directions, each with the mean ‖g‖²."
)
def _(g, directions):
    return len(g) / directions * (g**2).sum()


@mean_square.mistake(
    "You counted M² products of different directions. There are M(M − 1): the others are those of "
    "a direction with itself."
)
def _(g, directions):
    return (1 + len(g) / directions) * (g**2).sum()


@mean_square.mistake("That is ‖g‖² = ‖E[ĝ]‖². The mean of the square is larger, because ĝ varies.")
def _(g, directions):
    return (g**2).sum()


@mean_square.mistake("That is E‖ĝ‖² for ‖g‖ = 1. A longer gradient gives a longer estimate.")
def _(g, directions):
    return 1 + (len(g) - 1) / directions


@exercise(
    cases=lambda: [(G, 0.3)],
    hint="All 28 pixels of a column get the same sign. The variance of a sum of independent terms "
    "is the sum of their variances.",
)
def spread_of_stripes(g, epsilon):
    return L2(1.0).norm(epsilon * g.sum(axis=1))


@spread_of_stripes.mistake(
    "This is ε‖g‖₂, for a sign of its own at every pixel. A stripe gives all pixels of a column "
    "the same sign, so its entries of g add up before they are squared."
)
def _(g, epsilon):
    return epsilon * np.sqrt((g**2).sum(axis=(1, 2)))


@spread_of_stripes.mistake(
    "Your stripes are horizontal. The axes of g are image, row, column; a vertical stripe runs "
    "through all rows."
)
def _(g, epsilon):
    return epsilon * np.sqrt((g.sum(axis=2) ** 2).sum(axis=1))


@spread_of_stripes.mistake(
    "You add up |g| within a column. Pixels of one stripe with opposite gradients cancel."
)
def _(g, epsilon):
    return epsilon * np.sqrt((abs(g).sum(axis=1) ** 2).sum(axis=1))


@spread_of_stripes.mistake(
    "This is the largest change that stripes can make, with the best sign for each. At random, "
    "some columns raise the margin and others lower it."
)
def _(g, epsilon):
    return epsilon * abs(g.sum(axis=1)).sum(axis=1)


@spread_of_stripes.mistake(
    "√28 ε‖g‖₂ holds if all entries of a column are equal. Add up what the entries really are."
)
def _(g, epsilon):
    return epsilon * np.sqrt(28 * (g**2).sum(axis=(1, 2)))


@spread_of_stripes.mistake("You forgot ε: each pixel changes by ±ε, not by ±1.")
def _(g, epsilon):
    return np.sqrt((g.sum(axis=1) ** 2).sum(axis=1))


@spread_of_stripes.mistake("This is the variance. The standard deviation is its square root.")
def _(g, epsilon):
    return epsilon**2 * (g.sum(axis=1) ** 2).sum(axis=1)


def attack(margin, x, epsilon, alpha, u, h, sign=-1.0, project=True, box=True, move=np.sign,
           base=True, at_x=False, joint=False, clip=False):  # fmt: skip
    x_adv = x
    for directions in u:
        point = x if at_x else x_adv
        m, g = (margin(point) if base else 0), np.zeros_like(x)
        for each in directions:
            query = point + h * each
            query = np.clip(query, 0, 1) if clip else query
            slope = (margin(query) - m) / h
            slope = np.full_like(slope, slope.mean()) if joint else slope
            g = g + slope[:, None, None, None] * each / len(directions)
        delta = x_adv + sign * alpha * move(g) - x
        delta = np.clip(delta, -epsilon, epsilon) if project else delta
        x_adv = np.clip(x + delta, 0, 1) if box else x + delta
    return x_adv


@exercise(
    cases=lambda: [(Victim(T * (M + 1)), X, EPSILON, ALPHA, U, H)],
    hint="In each step: query the current images once, and once more for each direction; average "
    "slope times direction; move by α against the sign; clip δ to ±ε and the image to [0, 1]. Do "
    "not clip the queries.",
)
def pgd_from_queries(margin, x, epsilon, alpha, u, h):
    return attack(margin, x, epsilon, alpha, u, h)


@pgd_from_queries.mistake("You raise the margin. The attack succeeds when it falls below zero.")
def _(margin, x, epsilon, alpha, u, h):
    return attack(margin, x, epsilon, alpha, u, h, sign=1.0)


@pgd_from_queries.mistake(
    "You did not project: after several steps a pixel has changed by more than ε."
)
def _(margin, x, epsilon, alpha, u, h):
    return attack(margin, x, epsilon, alpha, u, h, project=False)


@pgd_from_queries.mistake("You forgot the range of pixel values, 0 to 1.")
def _(margin, x, epsilon, alpha, u, h):
    return attack(margin, x, epsilon, alpha, u, h, box=False)


@pgd_from_queries.mistake(
    "You step along ĝ itself. In the ∞-norm every pixel moves by α, whatever the length of ĝ."
)
def _(margin, x, epsilon, alpha, u, h):
    return attack(margin, x, epsilon, alpha, u, h, move=lambda g: g)


@pgd_from_queries.mistake(
    "You forgot to subtract the margin at the current point, so your slopes are not slopes."
)
def _(margin, x, epsilon, alpha, u, h):
    return attack(margin, x, epsilon, alpha, u, h, base=False)


@pgd_from_queries.mistake(
    "You estimate the gradient at x in every step. PGD needs it at the current point."
)
def _(margin, x, epsilon, alpha, u, h):
    return attack(margin, x, epsilon, alpha, u, h, at_x=True)


@pgd_from_queries.mistake(
    "You clipped the queries to [0, 1]. That shortens the step h u at pixels near 0 and 1, but you "
    "still divide by h. Clip only the image that ends a step."
)
def _(margin, x, epsilon, alpha, u, h):
    return attack(margin, x, epsilon, alpha, u, h, clip=True)


@pgd_from_queries.mistake(
    "You use one slope for the whole batch. Each image has a margin of its own, and so a slope of "
    "its own: (N,), to be multiplied by directions (N, 1, 28, 28)."
)
def _(margin, x, epsilon, alpha, u, h):
    return attack(margin, x, epsilon, alpha, u, h, joint=True)
