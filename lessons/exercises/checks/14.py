"""Checks of the exercises of lesson 14."""

import numpy as np

from lessons.exercises.checker import exercise
from tinyadv import layers, models, verify

rng = np.random.default_rng(0)

# ---------------------------------------------------------------------------------- exercise 1

LOW = np.array([[-3.0, -1, 0, 1, -2, -1]])
HIGH = np.array([[-1.0, 2, 1, 2, 1, 0]])


@exercise(
    cases=lambda: [(LOW, HIGH)],
    hint="Draw |x|. For an interval left of 0, right of 0, and around 0: where is it smallest?",
)
def bounds_of_abs(low, high):
    share = np.linspace(0, 1, 601).reshape(-1, 1, 1)
    reached = abs(low + share * (high - low))
    return reached.min(axis=0), reached.max(axis=0)


@bounds_of_abs.mistake(
    "You took |low| and |high|. |x| falls for negative x, so the ends of the interval may change "
    "places."
)
def _(low, high):
    return abs(low), abs(high)


@bounds_of_abs.mistake("If 0 lies in the interval, |x| can be 0, which is less than at both ends.")
def _(low, high):
    return np.minimum(abs(low), abs(high)), np.maximum(abs(low), abs(high))


@bounds_of_abs.mistake("This is a ReLU. The absolute value of a negative number is positive.")
def _(low, high):
    return np.maximum(low, 0), np.maximum(high, 0)


@bounds_of_abs.mistake(
    "0 is a valid lower bound, but not the best one if the interval does not contain 0."
)
def _(low, high):
    return np.zeros_like(low), np.maximum(abs(low), abs(high))


# ---------------------------------------------------------------------------------- exercise 2


W = np.array([[2.0, 1.0], [1.0, 1.0]])
LEAST = rng.uniform(0, 0.5, (5, 3))
MOST = LEAST + rng.uniform(0, 0.5, (5, 3))
RANDOM = tuple(rng.standard_normal(shape) for shape in ((4, 3), 4, (2, 4), 2))
INVERSE = W, np.array([1.0, 2.0]), np.linalg.inv(W), np.zeros(2)


def dense(W, b):
    """The library's layer."""
    layer = layers.Dense(*W.T.shape).astype(np.float64)
    for parameter, value in zip(layer.parameters(), (W, b), strict=True):
        parameter.value[...] = value
    return layer


def bounds(network, low, high):
    return tuple(end.value for end in verify.interval_bounds(network, low, high, outward=False))


@exercise(
    cases=lambda: [(*RANDOM, LEAST, MOST), (*INVERSE, LEAST[:, :2], MOST[:, :2])],
    hint="Write the output as one linear function of x. For which function are interval bounds "
    "reached?",
)
def two_linear_layers(W_1, b_1, W_2, b_2, low, high):
    return bounds(dense(W_2 @ W_1, W_2 @ b_1 + b_2), low, high)


@two_linear_layers.mistake(
    "These are the bounds layer by layer: valid, but not reached. They forget that the hidden "
    "values depend on the same input."
)
def _(W_1, b_1, W_2, b_2, low, high):
    return bounds(layers.Sequential(dense(W_1, b_1), dense(W_2, b_2)), low, high)


@two_linear_layers.mistake("The bias of the first layer passes through the second: W₂b₁ + b₂.")
def _(W_1, b_1, W_2, b_2, low, high):
    return bounds(dense(W_2 @ W_1, b_2), low, high)


@two_linear_layers.mistake("The bias of the second layer is missing: W₂b₁ + b₂.")
def _(W_1, b_1, W_2, b_2, low, high):
    return bounds(dense(W_2 @ W_1, W_2 @ b_1), low, high)


@two_linear_layers.mistake(
    "You put both ends into the layers. Where a weight is negative, the largest input gives the "
    "smallest output."
)
def _(W_1, b_1, W_2, b_2, low, high):
    return tuple((end @ W_1.T + b_1) @ W_2.T + b_2 for end in (low, high))


@two_linear_layers.mistake(
    "You sorted the outputs for `low` and `high`. Each input can be chosen on its own, so other "
    "corners of the box may reach further."
)
def _(W_1, b_1, W_2, b_2, low, high):
    ends = [(end @ W_1.T + b_1) @ W_2.T + b_2 for end in (low, high)]
    return np.minimum(*ends), np.maximum(*ends)


# ---------------------------------------------------------------------------------- exercise 3


@exercise(
    cases=lambda: [(784,), (100,)],
    hint="E|w| = 2 ∫ w p(w) dw from 0 to ∞, where p(w) = exp(−w²/(2σ²))/(σ√(2π)).",
)
def std_of_weights(n):
    return np.sqrt(2 * np.pi) / n


@std_of_weights.mistake("2/n is E|w|, the mean size. The standard deviation is larger.")
def _(n):
    return 2 / n


@std_of_weights.mistake(
    "This is the usual initialisation. With it a layer's radius grows by √(4n/π)."
)
def _(n):
    return np.sqrt(2 / n)


@std_of_weights.mistake("You multiplied by √(2/π) instead of dividing by it.")
def _(n):
    return 2 / n * np.sqrt(2 / np.pi)


@std_of_weights.mistake(
    "There is a factor of 2 too many: the density of w is symmetric, so negative and positive "
    "w contribute the same, and E|w| is twice the integral over positive w."
)
def _(n):
    return 2 * np.sqrt(2 * np.pi) / n


@std_of_weights.mistake("This is the variance. The question asks for the standard deviation.")
def _(n):
    return 2 * np.pi / n**2


# ---------------------------------------------------------------------------------- exercise 4

WORST = np.array([
    [[0.0, -1, -2], [-3, 0, -1], [0, -2, -4], [0, 1, 2], [-1, -1, 0], [0, -1, -1], [0, -1, -1]],
    [[0.0, -1, -1], [1, 0, -2], [0, 3, -4], [0, 1, -9], [-1, 1, 0], [0, -1, -1], [0, 1, -1]],
    [[0.0, -1, -1], [1, 0, -2], [0, -3, -4], [0, -1, -9], [-1, 1, 0], [0, -1, 9], [0, 0, -1]],
])  # fmt: skip
LABELS = np.array([0, 1, 0, 0, 2, 0, 0])


def of_others(worst, y):
    """The largest ẑ_k with k ≠ y: (…, N, K) -> (…, N)."""
    return np.where(np.arange(worst.shape[-1]) == y[:, None], -np.inf, worst).max(axis=-1)


@exercise(
    cases=lambda: [(WORST, LABELS)],
    hint="Average over the members; then ask for each image: are all ẑ_k with k ≠ y negative?",
)
def certified_by_the_mean(worst, y):
    return of_others(worst.mean(axis=0), y) < 0


@certified_by_the_mean.mistake(
    "You asked for a certificate of every member. That is enough, but more than the ensemble needs."
)
def _(worst, y):
    return (of_others(worst, y) < 0).all(axis=0)


@certified_by_the_mean.mistake(
    "You took a majority of the members. The ensemble averages logits, so one member may outvote "
    "two with small margins."
)
def _(worst, y):
    return (of_others(worst, y) < 0).mean(axis=0) > 0.5


@certified_by_the_mean.mistake(
    "ẑ_y is always 0. Leave out k = y, otherwise nothing is ever certified."
)
def _(worst, y):
    return (worst.mean(axis=0) < 0).all(axis=1)


@certified_by_the_mean.mistake(
    "You let ẑ_k = 0 pass, because ẑ_y is 0 as well. Then z_k and z_y may be equal: ẑ_k must be "
    "strictly below 0."
)
def _(worst, y):
    return of_others(worst.mean(axis=0), y) <= 0


@certified_by_the_mean.mistake(
    "You averaged the members' largest ẑ_k. Members may have different k there: average first, for "
    "each class."
)
def _(worst, y):
    return of_others(worst, y).mean(axis=0) < 0


# ---------------------------------------------------------------------------------- exercise 5


class Certified:
    """(x, y, epsilon) -> (N,) of bool, by interval bounds of a small network."""

    def __init__(self):
        self.model = models.mlp((6, 8, 3), rng=3).astype(np.float64).frozen()

    def __call__(self, x, y, epsilon):
        if np.shape(epsilon) != (len(x), 1):
            raise ValueError(
                f"epsilon must be of shape ({len(x)}, 1), one radius for each image, got shape "
                f"{np.shape(epsilon)}. `certified` returns ({len(x)},): keep your intervals in "
                "that shape, too, and pass middle[:, None]"
            )
        low, high = np.clip(x - epsilon, 0, 1), np.clip(x + epsilon, 0, 1)
        worst = verify.worst_logits(self.model, low, high, y, outward=False)
        return of_others(worst, y) < 0


def images():
    certified = Certified()
    x = np.random.default_rng(4).uniform(0, 1, (6, 6))
    y = certified.model(x).argmax(axis=1)
    y[2] = (y[2] + 1) % 3  # misclassified
    return certified, x, y


@exercise(
    cases=lambda: [(*images(), 8), (*images(), 3)],
    hint="Keep a low end that is proved and a high end that is not, one pair for each image.",
)
def certified_radius(certified, x, y, halvings):
    step, low = 1.0, np.zeros(len(x))
    for _ in range(halvings):
        step /= 2
        low = low + step * certified(x, y, (low + step)[:, None])
    return low


@certified_radius.mistake(
    "You returned the high end, which was not certified. The result must be a proof: return the "
    "low end."
)
def _(certified, x, y, halvings):
    return certified_radius.answer(certified, x, y, halvings) + 0.5**halvings


@certified_radius.mistake("You returned the middle of the last interval. It was never tried.")
def _(certified, x, y, halvings):
    return certified_radius.answer(certified, x, y, halvings) + 0.5 ** (halvings + 1)


@certified_radius.mistake(
    "You kept one interval for the whole batch. Each image has a radius of its own."
)
def _(certified, x, y, halvings):
    low, high = 0.0, 1.0
    for _ in range(halvings):
        middle = (low + high) / 2
        proved = certified(x, y, np.full((len(x), 1), middle)).all()
        low, high = (middle, high) if proved else (low, middle)
    return np.full(len(x), low)


@certified_radius.mistake(
    "You kept the wrong half. If the middle is certified, the largest radius lies above it."
)
def _(certified, x, y, halvings):
    low, high = np.zeros(len(x)), np.ones(len(x))
    for _ in range(halvings):
        middle = (low + high) / 2
        proved = certified(x, y, middle[:, None])
        low, high = np.where(proved, low, middle), np.where(proved, middle, high)
    return low
