"""Checks of the exercises of lesson 05."""

import numpy as np

from lessons.exercises.checker import exercise
from tinyadv import attacks, ops

rng = np.random.default_rng(0)
TARGET = np.array([0, 1, 2, 3, 0])
REACHED = np.array([[0, 0, 0, 0, 0], [1, 0, 1, 0, 0], [0, 1, 1, 1, 0], [1, 1, 0, 1, 0],
                    [1, 0, 1, 1, 0], [0, 1, 1, 0, 0]])  # the last image never does  # fmt: skip
LOGITS = rng.random((6, 5, 4)) + 2 * np.eye(4)[(TARGET + 1 - REACHED) % 4]
J = rng.random((6, 5))
J[0] -= 1  # x* itself, without a penalty

MARGINS = np.array([[3.0, 1.0, 0.5, 0.0], [-1.0, 20.0, 0.0, 1.0], [0.0, 1.0, 200.0, -1.0],
                    [1000.0, 2.0, 1.0, 0.0]], np.float32)  # fmt: skip
LABELS = np.array([0, 1, 2, 0])

HIDDEN, OUT = rng.standard_normal((16, 8)), rng.standard_normal((8, 3))
X = rng.random((6, 1, 4, 4))


def network(x):
    return ops.tanh(x.reshape(len(x), 16) @ HIDDEN) @ OUT


Y = network(X).argmax(axis=1)
X_ADV = attacks.untargeted(network, X, Y, step_size=0.3, steps=20)
FOOLED = network(X_ADV).argmax(axis=1) != Y
G = rng.standard_normal((3, 8))

# δ = 0, then δ > 0, then δ < 0, with λ/D = 0.5
PIXELS = np.array([  # x, x*, g
    (0.4, 0.4, 0.3), (0.4, 0.4, 0.7), (0.0, 0.0, 0.7), (0.0, 0.0, -0.7), (1.0, 1.0, -0.7),
    (1.0, 1.0, 0.7), (0.6, 0.2, -0.5), (0.6, 0.2, -0.7), (1.0, 0.3, -0.7), (1.0, 0.3, 0.2),
    (0.6, 0.2, -0.3), (0.3, 0.8, 0.5), (0.3, 0.8, 0.9), (0.0, 0.8, 0.9), (0.0, 0.8, 0.1),
    (0.3, 0.8, -0.2),
])  # fmt: skip
AT_MINIMUM = (*(PIXELS[:, i].reshape(2, 8) for i in range(3)), 4.0)


@exercise(
    cases=lambda: [(LOGITS, J, TARGET)],
    hint="Replace J by infinity where the predicted class is not the target.",
)
def best_step(z, J, target):
    allowed = np.where(z.argmax(axis=2) == target, J, np.inf)
    return np.where(np.isinf(allowed).all(axis=0), -1, allowed.argmin(axis=0))


@best_step.mistake(
    "You took the smallest J of all points. At this point the network may not predict the target."
)
def _(z, J, target):
    return J.argmin(axis=0)


@best_step.mistake("If an image never reaches its target, return −1.")
def _(z, J, target):
    return np.where(z.argmax(axis=2) == target, J, np.inf).argmin(axis=0)


@best_step.mistake("You took the first point that reaches the target. A later one may be better.")
def _(z, J, target):
    reached = z.argmax(axis=2) == target
    return np.where(reached.any(axis=0), reached.argmax(axis=0), -1)


@best_step.mistake("You took the last point that reaches the target. An earlier one may be better.")
def _(z, J, target):
    reached = z.argmax(axis=2) == target
    return np.where(reached.any(axis=0), len(z) - 1 - reached[::-1].argmax(axis=0), -1)


@exercise(
    cases=lambda: [(MARGINS, LABELS)],
    hint="The largest entry is 1 − p_y, the sum of all other p_k. In p_k / Σ_{j≠y} p_j the logit "
    "of the label cancels.",
)
def unit_max_of_p_minus_y(z, y):
    label = np.eye(z.shape[1])[y]
    return ops.softmax(np.where(label == 1, -np.inf, z), axis=1) - label


def naive(z, y, guarded=False):
    g = ops.softmax(z, axis=1) - np.eye(z.shape[1], dtype=z.dtype)[y]
    largest = abs(g).max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return g / np.where(largest > 0, largest, 1) if guarded else g / largest


@unit_max_of_p_minus_y.mistake(
    "This is the formula as it stands. For large margins it is 0/0 and the result is NaN: simplify "
    "the quotient before you compute it."
)
def _(z, y):
    return naive(z, y)


@unit_max_of_p_minus_y.mistake(
    "There is no NaN, because you divide by 1 where p − y is 0. But the direction is lost there: "
    "the exact quotient is not 0."
)
def _(z, y):
    return naive(z, y, guarded=True)


@unit_max_of_p_minus_y.mistake(
    "float64 does not help: p_y is rounded to 1 at a margin of about 37, and e^(−1000) is 0. "
    "Simplify the quotient before you compute it."
)
def _(z, y):
    return naive(z.astype(np.float64), y)


@unit_max_of_p_minus_y.mistake(
    "Neither float64 nor dividing by 1 helps: p_y is rounded to 1 at a margin of about 37, and "
    "e^(−1000) is 0. Simplify the quotient before you compute it."
)
def _(z, y):
    return naive(z.astype(np.float64), y, guarded=True)


@unit_max_of_p_minus_y.mistake("Check the signs: the attack lowers z_y, so p_y − 1 is negative.")
def _(z, y):
    return -unit_max_of_p_minus_y.answer(z, y)


@unit_max_of_p_minus_y.mistake(
    "The entry of the label is right. The other entries must be divided by the sum of the p_k of "
    "the other classes."
)
def _(z, y):
    label = np.eye(z.shape[1])[y]
    return np.where(label == 1, -1, ops.softmax(z, axis=1))


def bisection(model, x, x_adv, y, steps):
    """All ends of the search: correctly classified, misclassified, and the last point tried."""
    column = lambda share: share.reshape(-1, *(1,) * (x.ndim - 1))
    point = lambda share: x + column(share) * (x_adv - x)
    low, high = np.zeros(len(x)), np.ones(len(x))
    for _ in range(steps):
        middle = (low + high) / 2
        fooled = model(point(middle)).argmax(axis=1) != y
        low, high = np.where(fooled, low, middle), np.where(fooled, middle, high)
    return point(low), point(high), point(middle)


@exercise(
    cases=lambda: [(network, X[FOOLED], X_ADV[FOOLED], Y[FOOLED], steps) for steps in (1, 8)],
    hint="If the point halfway is misclassified, it replaces the misclassified one; otherwise it "
    "replaces the other one. Return the misclassified one.",
)
def closer(model, x, x_adv, y, steps):
    return bisection(model, x, x_adv, y, steps)[1]


@closer.mistake(
    "You return the points that are correctly classified. They are as close to the boundary, but "
    "there the attack fails."
)
def _(model, x, x_adv, y, steps):
    return bisection(model, x, x_adv, y, steps)[0]


@closer.mistake(
    "You return the last point halfway. For some images it is correctly classified. Return the end "
    "that is misclassified."
)
def _(model, x, x_adv, y, steps):
    return bisection(model, x, x_adv, y, steps)[2]


@closer.mistake(
    "You decide for all images at once. Each image has a boundary of its own: decide for each one."
)
def _(model, x, x_adv, y, steps):
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        fooled = (model(x + middle * (x_adv - x)).argmax(axis=1) != y).all()
        low, high = (low, middle) if fooled else (middle, high)
    return x + high * (x_adv - x)


@closer.mistake(
    "You halve the perturbation as long as it fools the network. That is not a bisection: after "
    "the first failure, try points between the two ends."
)
def _(model, x, x_adv, y, steps):
    for _ in range(steps):
        middle = x + (x_adv - x) / 2
        fooled = model(middle).argmax(axis=1) != y
        x_adv = np.where(fooled.reshape(-1, 1, 1, 1), middle, x_adv)
    return x_adv


@exercise(
    cases=lambda: [(G, 2.0, 4.0)],
    hint="For d₂ set the derivative to 0. For d₁ do the same for δ_i > 0 and for δ_i < 0, and ask "
    "when the solution has the sign that you supposed.",
)
def minima(g, c, lam):
    rate = lam / g.shape[1]
    return (np.clip(g, -rate, rate) - g) / c, -g / (c + 2 * rate)


@minima.mistake(
    "Where |g_i| is below λ/D, your δ_i has the sign of g_i, so all terms of J are positive. The "
    "minimum is at δ_i = 0."
)
def _(g, c, lam):
    return -(g - np.sign(g) * lam / g.shape[1]) / c, minima.answer(g, c, lam)[1]


@minima.mistake(
    "You leave out the pixels with a small |g_i|, but do not shorten the others. The penalty pulls "
    "on them too, with λ/D."
)
def _(g, c, lam):
    return -g * (abs(g) > lam / g.shape[1]) / c, minima.answer(g, c, lam)[1]


@minima.mistake(
    "The derivative of the penalty has the sign of δ_i. You took the sign of g_i, which is the "
    "opposite one: δ_i goes against g_i."
)
def _(g, c, lam):
    return -(g + np.sign(g) * lam / g.shape[1]) / c, minima.answer(g, c, lam)[1]


@minima.mistake("d₁ and d₂ are means over the D pixels: the penalty of one pixel has a factor 1/D.")
def _(g, c, lam):
    return minima.answer(g, c, lam * g.shape[1])


@minima.mistake("The derivative of δ_i² is 2 δ_i: a factor is missing in the result for d₂.")
def _(g, c, lam):
    return minima.answer(g, c, lam)[0], -g / (c + lam / g.shape[1])


@minima.mistake("Check the signs: J is minimised, so δ_i has the sign of −g_i.")
def _(g, c, lam):
    return tuple(-delta for delta in minima.answer(g, c, lam))


def pays_off(x, delta, g, rate):
    """Whether J falls if a pixel moves up, and if it moves down, whatever the pixel range."""
    up, down = g + rate * np.where(delta < 0, -1, 1), -g + rate * np.where(delta > 0, -1, 1)
    return up < -1e-6, down < -1e-6


@exercise(
    cases=lambda: [AT_MINIMUM],
    hint="Upwards J changes by g + λ/D per unit if δ ≥ 0, and by g − λ/D if δ < 0. Find the same "
    "for downwards, and then ask which of the two moves are possible.",
)
def no_move_pays_off(x, x_star, g, lam):
    up, down = pays_off(x, x - x_star, g, lam / x.shape[1])
    return ~(up & (x < 1)) & ~(down & (x > 0))


@no_move_pays_off.mistake(
    "You forgot the pixel range: a pixel at 0 cannot move down, and one at 1 cannot move up."
)
def _(x, x_star, g, lam):
    up, down = pays_off(x, x - x_star, g, lam / x.shape[1])
    return ~(up | down)


@no_move_pays_off.mistake(
    "A pixel at 0 or 1 can still move in one direction. You count it as fixed."
)
def _(x, x_star, g, lam):
    up, down = pays_off(x, x - x_star, g, lam / x.shape[1])
    return ~(up | down) | (x <= 0) | (x >= 1)


@no_move_pays_off.mistake(
    "|g_i| ≤ λ/D is the condition for unchanged pixels. A changed pixel can also move back to x*, "
    "which lowers the penalty."
)
def _(x, x_star, g, lam):
    up, down = pays_off(x, 0 * x, g, lam / x.shape[1])
    return ~(up & (x < 1)) & ~(down & (x > 0))


@no_move_pays_off.mistake(
    "|g_i| ≤ λ/D is the condition for unchanged pixels between 0 and 1. Changed pixels, and those "
    "at 0 or 1, have others: compare the slopes of J in the directions that are possible."
)
def _(x, x_star, g, lam):
    return abs(g) <= lam / x.shape[1] + 1e-6


@no_move_pays_off.mistake(
    "You took the derivative of |δ_i| at the kink as 0. The attack does so, but there J rises with "
    "λ/D in both directions, which may outweigh g_i."
)
def _(x, x_star, g, lam):
    slope = g + lam / x.shape[1] * np.sign(x - x_star)
    return ~((slope < -1e-6) & (x < 1)) & ~((slope > 1e-6) & (x > 0))


@no_move_pays_off.mistake("d₁ is the mean over the D pixels, so a move costs λ/D per unit, not λ.")
def _(x, x_star, g, lam):
    return no_move_pays_off.answer(x, x_star, g, lam * x.shape[1])
