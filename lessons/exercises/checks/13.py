"""Checks of the exercises of lesson 13."""

from math import comb

import numpy as np
from scipy import stats

from lessons.exercises.checker import exercise
from tinyadv import broken_defenses
from tinyadv.balls import Linf

rng = np.random.default_rng(0)

# ---------------------------------------------------------------------------------- exercise 1

Y = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2])
CLEAN = np.array([0, 1, 2, 3, 4, 5, 6, 0, 0, 1, 2])  # images 7 and 8 are misclassified
ATTACKED = np.array([
    [9, 1, 2, 9, 4, 5, 6, 7, 0, 1, 2],
    [0, 9, 2, 9, 4, 9, 9, 7, 8, 1, 2],
    [0, 1, 2, 3, 9, 9, 6, 7, 0, 9, 2],
])  # fmt: skip
DISTANCE = np.full((3, 11), 0.15)
DISTANCE[[1, 2], [6, 9]] = 0.3  # too far
DISTANCE[:, [0, 3, 5]] = 0.2 + 1e-8  # within, but for rounding


@exercise(
    cases=lambda: [(CLEAN, ATTACKED, DISTANCE, Y, 0.2)],
    hint="For each image: is it correctly classified itself, and in all results within the ball?",
)
def robust_accuracy(clean, attacked, distance, y, epsilon):
    fooled = ((attacked != y) & (distance <= epsilon + 1e-6)).any(axis=0)
    return (~fooled & (clean == y)).mean()


@robust_accuracy.mistake(
    "This is the accuracy under the best single attack. Take the minimum image by image first: one "
    "success counts, whichever attack achieved it."
)
def _(clean, attacked, distance, y, epsilon):
    survives = (attacked == y) | (distance > epsilon + 1e-6)
    return (survives & (clean == y)).mean(axis=1).min()


@robust_accuracy.mistake(
    "You took the clean images as one more attack, but then the best single one. Take the minimum "
    "image by image first."
)
def _(clean, attacked, distance, y, epsilon):
    survives = (attacked == y) | (distance > epsilon + 1e-6)
    return min((clean == y).mean(), survives.mean(axis=1).min())


@robust_accuracy.mistake(
    "You subtracted an image twice that is misclassified both without an attack and under one."
)
def _(clean, attacked, distance, y, epsilon):
    fooled = ((attacked != y) & (distance <= epsilon + 1e-6)).any(axis=0)
    return 1 - fooled.mean() - (clean != y).mean()


@robust_accuracy.mistake(
    "You counted a result outside the ball as a success. It says nothing about this ε."
)
def _(clean, attacked, distance, y, epsilon):
    return ((attacked == y).all(axis=0) & (clean == y)).mean()


@robust_accuracy.mistake(
    "You forgot the image itself. An image that is misclassified without any attack is not robust."
)
def _(clean, attacked, distance, y, epsilon):
    return ((attacked == y) | (distance > epsilon + 1e-6)).all(axis=0).mean()


@robust_accuracy.mistake("You let rounding decide. Allow 1e-6 more than ε.")
def _(clean, attacked, distance, y, epsilon):
    return (((attacked == y) | (distance > epsilon)).all(axis=0) & (clean == y)).mean()


@robust_accuracy.mistake("You averaged over the attacks. The attacker has all of them.")
def _(clean, attacked, distance, y, epsilon):
    survives = (attacked == y) | (distance > epsilon + 1e-6)
    return (survives & (clean == y)).mean()


# ---------------------------------------------------------------------------------- exercise 2

GREY = rng.uniform(0, 1, (2, 1, 28, 28))
PRINTED = np.round(GREY[:1])  # black and white


@exercise(
    cases=lambda: [(GREY, 0.03, 8), (GREY, 0.2, 8), (PRINTED, 0.2, 2), (PRINTED, 0.6, 2)],
    hint="Rounding never decreases: compare the levels of the smallest and the largest value that "
    "the pixel can take.",
)
def pixels_that_change(x, epsilon, levels):
    ends = np.clip(x - epsilon, 0, 1), np.clip(x + epsilon, 0, 1)
    low, high = (np.rint((levels - 1) * end) for end in ends)
    return (low < high).sum(axis=(1, 2, 3))


def level(x, levels):
    return np.rint((levels - 1) * x)


@pixels_that_change.mistake("You tried only x + ε. Darker levels count as well.")
def _(x, epsilon, levels):
    brighter = level(np.clip(x + epsilon, 0, 1), levels)
    return (brighter > level(x, levels)).sum(axis=(1, 2, 3))


@pixels_that_change.mistake(
    "You moved the rounded pixel, or compared ε with half the distance of two levels. The attacker "
    "comes before the rounding, and a pixel close to the edge between two levels needs less."
)
def _(x, epsilon, levels):
    x = level(x, levels) / (levels - 1)
    return pixels_that_change.answer(x, epsilon, levels)


@pixels_that_change.mistake("Count pixels, and do not average over them.")
def _(x, epsilon, levels):
    return pixels_that_change.answer(x, epsilon, levels) / x[0].size


# ---------------------------------------------------------------------------------- exercise 3

X = np.clip(rng.uniform(-0.3, 1.3, (2, 1, 28, 28)), 0, 1)
X_ADV = np.clip(X + rng.uniform(-0.1, 0.1, X.shape), 0, 1)
ALPHA, EPSILON = 0.04, 0.1


def front(x):
    return np.rint(3 * x) / 3


def gradient(s):
    """Of a loss that depends on s differently in each pixel, with a slope that changes its sign."""
    return np.cos(20 * s + np.arange(s.size).reshape(s.shape))


@exercise(
    cases=lambda: [(gradient, front, X, X_ADV, ALPHA, EPSILON)],
    hint="It is a step of PGD: which gradient, from which point, projected to the ball around "
    "which image?",
)
def bpda_step(gradient, front, x, x_adv, alpha, epsilon):
    ball = Linf(epsilon)
    g = gradient(broken_defenses.straight_through(front)(x_adv))
    delta = ball.project(x_adv + alpha * ball.steepest(g) - x)
    return np.clip(x + delta, 0, 1)


def step(g, start, alpha, centre, epsilon):
    return np.clip(np.clip(start + alpha * np.sign(g), centre - epsilon, centre + epsilon), 0, 1)


@bpda_step.mistake(
    "You took the gradient at x_adv. f never sees x_adv: the forward pass goes through the front."
)
def _(gradient, front, x, x_adv, alpha, epsilon):
    return step(gradient(x_adv), x_adv, alpha, x, epsilon)


@bpda_step.mistake(
    "You started the step at front(x_adv). The front belongs to the defence: the attacker moves "
    "the image before it."
)
def _(gradient, front, x, x_adv, alpha, epsilon):
    s = front(x_adv)
    return step(gradient(s), s, alpha, x, epsilon)


@bpda_step.mistake("You forgot to clip to [0, 1].")
def _(gradient, front, x, x_adv, alpha, epsilon):
    moved = x_adv + alpha * np.sign(gradient(front(x_adv)))
    return np.clip(moved, x - epsilon, x + epsilon)


@bpda_step.mistake(
    "The result leaves the ball. Project the difference from x, the image at the start, not from "
    "the current x_adv."
)
def _(gradient, front, x, x_adv, alpha, epsilon):
    return np.clip(x_adv + alpha * np.sign(gradient(front(x_adv))), 0, 1)


@bpda_step.mistake("You went down. The attacker raises the loss.")
def _(gradient, front, x, x_adv, alpha, epsilon):
    return step(-gradient(front(x_adv)), x_adv, alpha, x, epsilon)


@bpda_step.mistake("The sign is missing: in the ∞-norm every pixel moves by α.")
def _(gradient, front, x, x_adv, alpha, epsilon):
    moved = x_adv + alpha * gradient(front(x_adv))
    return np.clip(np.clip(moved, x - epsilon, x + epsilon), 0, 1)


@bpda_step.mistake(
    "You returned the image behind the front. The attacker hands in the image before it, and the "
    "network applies the front itself."
)
def _(gradient, front, x, x_adv, alpha, epsilon):
    return front(step(gradient(front(x_adv)), x_adv, alpha, x, epsilon))


@bpda_step.mistake("The ball is around x, not around front(x): the attacker changes x itself.")
def _(gradient, front, x, x_adv, alpha, epsilon):
    return step(gradient(front(x_adv)), x_adv, alpha, front(x), epsilon)


# ---------------------------------------------------------------------------------- exercise 4

NOISE = rng.normal(0, 0.2, (5, 3, 40))
FEW = rng.uniform(0, 1, (3, 40))


def steep(s):
    """Now and then much longer than usual, so that the mean and the majority differ."""
    return np.tan(3 * s)


@exercise(
    cases=lambda: [(steep, FEW, NOISE)],
    hint="The gradient of an expected value is the expected value of the gradient. When is the "
    "sign taken?",
)
def step_against_noise(gradient, x, noise):
    return np.sign(sum(gradient(x + u) for u in noise))


@step_against_noise.mistake(
    "You averaged the signs. The expected loss has *one* gradient, the mean; take its sign at the "
    "end."
)
def _(gradient, x, noise):
    return np.mean([np.sign(gradient(x + u)) for u in noise], axis=0)


@step_against_noise.mistake(
    "You took the majority of the signs. A draw whose loss hardly depends on a pixel should count "
    "little: average the gradients."
)
def _(gradient, x, noise):
    return np.sign(np.sum([np.sign(gradient(x + u)) for u in noise], axis=0))


@step_against_noise.mistake(
    "You averaged the noise. f(x + E[u]) is another network: average the gradients."
)
def _(gradient, x, noise):
    return np.sign(gradient(x + noise.mean(axis=0)))


@step_against_noise.mistake("This is the step for a single draw; the next draw may contradict it.")
def _(gradient, x, noise):
    return np.sign(gradient(x + noise[0]))


@step_against_noise.mistake("The step in the ∞-norm is the sign of the mean gradient.")
def _(gradient, x, noise):
    return np.mean([gradient(x + u) for u in noise], axis=0)


@step_against_noise.mistake("The noise is missing: the network never sees x itself.")
def _(gradient, x, noise):
    return np.sign(gradient(x))


# ---------------------------------------------------------------------------------- exercise 5


def fooled(b, c, both, neither):
    """Two attacks on b + c + both + neither images."""
    weaker = [True] * b + [False] * c + [True] * both + [False] * neither
    stronger = [False] * b + [True] * c + [True] * both + [False] * neither
    return np.array(weaker), np.array(stronger)


@exercise(
    cases=lambda: [fooled(9, 2, 6, 4), fooled(3, 0, 10, 10), fooled(2, 5, 0, 3)],
    hint="n = b + c fair coins are tossed: how probable are b heads or more?",
)
def by_chance(weaker, stronger):
    b, c = (weaker & ~stronger).sum(), (stronger & ~weaker).sum()
    return stats.binom.sf(b - 1, b + c, 0.5)


def tail(first, n):
    return sum(comb(int(n), i) for i in range(int(first), int(n) + 1)) / 2 ** int(n)


def counts(weaker, stronger):
    return (weaker & ~stronger).sum(), (stronger & ~weaker).sum()


@by_chance.mistake("This is the probability of exactly b. More than b counts as well.")
def _(weaker, stronger):
    b, c = counts(weaker, stronger)
    return comb(int(b + c), int(b)) / 2 ** int(b + c)


@by_chance.mistake("This is the probability of more than b. b itself counts as well.")
def _(weaker, stronger):
    b, c = counts(weaker, stronger)
    return tail(b + 1, b + c)


@by_chance.mistake(
    "You counted the images that both attacks fool. They do not tell the two attacks apart."
)
def _(weaker, stronger):
    return tail(weaker.sum(), weaker.sum() + stronger.sum())


@by_chance.mistake(
    "You exchanged b and c (b belongs to the attack that should be weaker), or summed the lower "
    "tail: b or *more* are asked for."
)
def _(weaker, stronger):
    b, c = counts(weaker, stronger)
    return tail(c, b + c)


@by_chance.mistake(
    "This test is two-sided. Only one side is a contradiction: that the weaker attack finds more."
)
def _(weaker, stronger):
    b, c = counts(weaker, stronger)
    return min(1, 2 * tail(max(b, c), b + c))


@by_chance.mistake(
    "You doubled the upper tail, which makes the test two-sided and may even exceed 1. Only one "
    "side is a contradiction: that the weaker attack finds more."
)
def _(weaker, stronger):
    b, c = counts(weaker, stronger)
    return 2 * tail(b, b + c)


@by_chance.mistake(
    "You doubled the upper tail. Only one side is a contradiction: that the weaker attack finds "
    "more."
)
def _(weaker, stronger):
    b, c = counts(weaker, stronger)
    return min(1, 2 * tail(b, b + c))


@by_chance.mistake("This is the probability of fewer than b. The question is for b *or more*.")
def _(weaker, stronger):
    b, c = counts(weaker, stronger)
    return 1 - tail(b, b + c)


@by_chance.mistake("n is b + c. Images that both attacks fool, or neither, do not count.")
def _(weaker, stronger):
    b, _c = counts(weaker, stronger)
    return tail(b, len(weaker))
