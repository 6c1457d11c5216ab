"""Checks of the exercises of lesson 09."""

import numpy as np

from lessons.exercises.checker import exercise
from tinyadv import Tensor, grad, ops

rng = np.random.default_rng(0)
U, V = rng.uniform(-13.5, 13.5, (2, 6))
T = np.array([20.0, 2.0, -1.5])
SHARES = np.array([0, 0.01, 0.05, 0.3, 0.8, 1.0])
X_U, X_V = rng.standard_normal((2, 6))

ROWS, COLUMNS = np.mgrid[:15, :11]
HILLS = [(2, 2, 1.0), (3, 8, 1.4), (9, 5, 1.2), (13, 1, 0.8), (13, 10, 1.6)]
LOSS = sum(h * np.exp(-((ROWS - r) ** 2 + (COLUMNS - c) ** 2) / 9) for r, c, h in HILLS)
LOSS = LOSS + 0.02 * rng.random(LOSS.shape)
WRONG = np.zeros(LOSS.shape, bool)
WRONG[12:, 8:] = True  # around a maximum,
WRONG[6:8, 3:6] = True  # on the slope of a hill,
WRONG[0, 10] = True  # and in a corner


@exercise(
    cases=lambda: [
        (np.array([0.0, 1.0]), np.array([1.0, 0.0]), np.array([90.0, 0.0, 0.0])),
        (U, V, T),
    ],
    hint="First solve the two equations of step 1 for a′ and b′: what undoes a rotation? Then a "
    "and b follow from a′ = a − s₁ and b′ = b − s₂.",
)
def destination(u, v, t):
    theta = np.radians(t[0])
    cos, sin = np.cos(theta), np.sin(theta)
    a, b = np.linalg.solve([[cos, -sin], [sin, cos]], [u, v])
    return np.stack([a + t[1], b + t[2]])


@destination.mistake(
    "You turn the image clockwise, by −θ, as the lesson does to find where a pixel came from. With "
    "θ = 90° the point below the centre must end up on its right."
)
def _(u, v, t):
    return destination.answer(u, v, np.array([-t[0], t[1], t[2]]))


@destination.mistake(
    "You shift by −s₁ and −s₂. That undoes a shift; here the shift is carried out: what was at "
    "column a′ is now at a′ + s₁."
)
def _(u, v, t):
    return destination.answer(u, v, np.array([t[0], -t[1], -t[2]]))


@destination.mistake(
    "You shift first and rotate then, so the shift is rotated as well. The lesson rotates first."
)
def _(u, v, t):
    return destination.answer(u + t[1], v + t[2], np.array([t[0], 0, 0]))


@destination.mistake("θ is in degrees; np.cos and np.sin take radians.")
def _(u, v, t):
    return destination.answer(u, v, np.array([np.degrees(t[0]), t[1], t[2]]))


@destination.mistake(
    "This is the formula of step 1, which finds where a new pixel came from. Here you go the other "
    "way: solve it for a and b."
)
def _(u, v, t):
    return destination.answer(u - t[1], v - t[2], np.array([-t[0], 0, 0]))


@exercise(
    cases=lambda: [(SHARES, 1), (SHARES, 10), (np.array([0.02, 0.5]), 100)],
    hint="With which probability does image i survive one transformation, and all k? The expected "
    "share is the mean of the images' probabilities.",
)
def worst_of_k_accuracy(p, k):
    return np.mean((1 - p) ** k)


@worst_of_k_accuracy.mistake(
    "You averaged p over the images first. Most errors are on images with a large p, where one try "
    "is enough; the power must be taken for each image."
)
def _(p, k):
    return (1 - p.mean()) ** k


@worst_of_k_accuracy.mistake("This is the share of images that are fooled, not of those left.")
def _(p, k):
    return np.mean(1 - (1 - p) ** k)


@worst_of_k_accuracy.mistake(
    "Probabilities of several tries do not simply add up: two of the k may both fool the network."
)
def _(p, k):
    return np.mean(np.maximum(1 - k * p, 0))


@worst_of_k_accuracy.mistake(
    "pᵏ is the probability that all k transformations fool the network. One of them is enough."
)
def _(p, k):
    return np.mean(1 - p**k)


def by_hand(x_u, x_v, a, b, t):
    """The slope in θ per radian, in s₁ and in s₂, with a and b for a′ and b′."""
    cos, sin = np.cos(np.radians(t[0])), np.sin(np.radians(t[0]))
    by_angle = x_u * (-sin * a - cos * b) + x_v * (cos * a - sin * b)
    return np.stack([by_angle, -(x_u * cos + x_v * sin), x_u * sin - x_v * cos], axis=1)


@exercise(
    cases=lambda: [(X_U, X_V, U, V, T)],
    hint="∂x/∂θ = x_u ∂u/∂θ + x_v ∂v/∂θ, and in the same way for s₁ and s₂, where ∂u/∂s₁ = −cos θ. "
    "Use a′ and b′, and mind the degrees.",
)
def slope_in_t(x_u, x_v, a, b, t):
    each = Tensor(np.tile(t, (len(a), 1)))  # (P, 3)
    angle, right, down = (each[:, i] for i in range(3))
    cos, sin = ops.cos(angle * np.pi / 180), ops.sin(angle * np.pi / 180)
    u = cos * (a - right) - sin * (b - down)
    v = sin * (a - right) + cos * (b - down)
    return grad((x_u * u + x_v * v).sum(), [each])[0]


@slope_in_t.mistake(
    "The slope with respect to θ is per radian. A degree is π/180 of a radian, which is an inner "
    "derivative."
)
def _(x_u, x_v, a, b, t):
    return by_hand(x_u, x_v, a - t[1], b - t[2], t)


@slope_in_t.mistake(
    "In the slope with respect to θ you use a and b. The rotation acts on a′ = a − s₁ "
    "and b′ = b − s₂."
)
def _(x_u, x_v, a, b, t):
    return by_hand(x_u, x_v, a, b, t) * [np.pi / 180, 1, 1]


@slope_in_t.mistake(
    "The slopes with respect to s₁ and s₂ have the wrong sign: a′ = a − s₁ falls as s₁ grows."
)
def _(x_u, x_v, a, b, t):
    return slope_in_t.answer(x_u, x_v, a, b, t) * [1, -1, -1]


@slope_in_t.mistake(
    "You forgot that the shift is undone before the rotation: unless θ = 0, s₁ changes both u and "
    "v."
)
def _(x_u, x_v, a, b, t):
    result = slope_in_t.answer(x_u, x_v, a, b, t)
    result[:, 1], result[:, 2] = -x_u, -x_v
    return result


@slope_in_t.mistake("θ is in degrees; np.cos and np.sin take radians.")
def _(x_u, x_v, a, b, t):
    t = np.array([np.degrees(t[0]), t[1], t[2]])
    return slope_in_t.answer(x_u, x_v, a, b, t)


def climbed(loss, wrong, wrap=False, diagonal=True, visited=True):
    """Follow, from all points at once, the best neighbour of each point."""
    padded = np.pad(loss, 1, **({"mode": "wrap"} if wrap else {"constant_values": -np.inf}))
    height, width = loss.shape
    steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if diagonal or i * j == 0]
    around = [padded[1 + i : 1 + i + height, 1 + j : 1 + j + width] for i, j in steps]
    step = np.array(steps)[np.argmax(around, axis=0)]  # (A, S, 2)
    at = np.moveaxis(np.indices(loss.shape), 0, -1)
    found = wrong.copy()
    for _ in range(loss.size):
        at = (at + step[at[..., 0], at[..., 1]]) % loss.shape
        now = wrong[at[..., 0], at[..., 1]]
        found = found | now if visited else now
    return found


@exercise(
    cases=lambda: [(LOSS, WRONG)],
    hint="For each point, find the largest of the up to nine losses in loss[i-1:i+2, j-1:j+2]. If "
    "it is the point itself, the ascent ends. Otherwise go on from there.",
)
def ascent_reaches(loss, wrong):
    return climbed(loss, wrong)


@ascent_reaches.mistake(
    "You look at the end of the ascent only. An error on the way there counts as well, and so does "
    "one at the start."
)
def _(loss, wrong):
    return climbed(loss, wrong, visited=False)


@ascent_reaches.mistake(
    "These are the starts that are errors themselves. Ascent finds more, by moving uphill."
)
def _(loss, wrong):
    return wrong.copy()


@ascent_reaches.mistake(
    "You move to some neighbour with a larger loss: the last one that you look at. Compare each "
    "neighbour with the best one so far, not with the current point."
)
def _(loss, wrong):
    height, width = loss.shape
    found = wrong.copy()
    for start in np.ndindex(loss.shape):
        at, last = start, None
        while at != last and not found[start]:
            last = at
            for i in range(max(last[0] - 1, 0), min(last[0] + 2, height)):
                for j in range(max(last[1] - 1, 0), min(last[1] + 2, width)):
                    at = (i, j) if loss[i, j] > loss[last] else at
            found[start] = wrong[at]
    return found


@ascent_reaches.mistake("You use four neighbours. The diagonal ones are neighbours, too.")
def _(loss, wrong):
    return climbed(loss, wrong, diagonal=False)


@ascent_reaches.mistake(
    "You cross the edge of the grid. Index −1, and np.roll, lead to the opposite side, which is "
    "not a neighbour."
)
def _(loss, wrong):
    return climbed(loss, wrong, wrap=True)


@ascent_reaches.mistake(
    "You take only one step from each start. Go on until no neighbour has a larger loss."
)
def _(loss, wrong):
    found = wrong.copy()
    for i, j in np.ndindex(loss.shape):
        top, left = max(i - 1, 0), max(j - 1, 0)
        around = loss[top : i + 2, left : j + 2]
        di, dj = np.unravel_index(around.argmax(), around.shape)
        found[i, j] |= wrong[top + di, left + dj]
    return found
