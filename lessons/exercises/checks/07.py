"""Checks of the exercises of lesson 07."""

import numpy as np

from lessons.exercises.checker import exercise
from tinyadv.balls import L2, Linf

rng = np.random.default_rng(0)
DISTANCES = np.array([0.5, 0, 2.0, np.inf, 1.0, 0, 0.25, 1.5])  # two misclassified, one not found
RADII = np.array([0, 0.5, 1.2, 3.0])

N, K, D = 12, 4, 30
W = rng.standard_normal((N, K, D)) ** rng.choice([1, 5], (N, K, 1))  # ‖w‖₁/‖w‖₂ varies,
W *= rng.uniform(1, 4, (N, K, 1)) / np.linalg.norm(W, axis=2, keepdims=True)  # and so does ‖w‖₂
Y = rng.integers(0, K, N)
Z = rng.uniform(0, 3, (N, K))
Z[np.arange(N), Y] = 3.5  # all are correctly classified

F_OF_C = np.array([0.5, 2.0, 8.0])
W_OF_C = rng.standard_normal((3, 10)) * np.array([2.0, 1.0, 0.5])[:, None]

X = rng.uniform(0.3, 0.7, (4, 1, 28, 28))
OFFSETS = rng.uniform(-0.3, 0.3, X.shape)
OFFSETS *= np.array([0.45, 0.6, 0.8, 1.0]).reshape(4, 1, 1, 1)


def curved(images):
    """Class 1 inside a ball around grey, class 0 between two balls, and class 2 further out."""
    away = np.sqrt(((images - 0.5) ** 2).sum(axis=(1, 2, 3)))
    return np.where(away < 3.7, 1, np.where(away < 5, 0, 2))


LABELS = curved(X)


@exercise(
    cases=lambda: [(DISTANCES, RADII)],
    hint="For each radius, count the images whose distance exceeds it, and divide by N.",
)
def robust_accuracy(distance, radii):
    return (distance > radii[:, None]).mean(axis=1)


@robust_accuracy.mistake("That is the share of images that the attack fools, not of the others.")
def _(distance, radii):
    return (distance <= radii[:, None]).mean(axis=1)


@robust_accuracy.mistake(
    "An image with d = ε is fooled, because the ball contains its surface. You also count "
    "misclassified images as robust at ε = 0."
)
def _(distance, radii):
    return (distance >= radii[:, None]).mean(axis=1)


@robust_accuracy.mistake(
    "You left out the images on which the attack found nothing. They survive it at every radius."
)
def _(distance, radii):
    return robust_accuracy.answer(distance[np.isfinite(distance)], radii)


@robust_accuracy.mistake(
    "You left out the misclassified images. Robust accuracy is a share of all images; at ε = 0 it "
    "must be the accuracy on clean images."
)
def _(distance, radii):
    return robust_accuracy.answer(distance[distance > 0], radii)


def steps(z, w, y, distance_in, step_in):
    """The step to the class that is nearest in one norm, as the shortest step in another."""
    rows = np.arange(len(z))
    f, w = z[rows, y][:, None] - z, w[rows, y][:, None] - w  # (N, K), (N, K, D)
    distance = f.copy()
    if distance_in:
        gain = (distance_in.steepest(w.reshape(-1, w.shape[2])).reshape(w.shape) * w).sum(axis=2)
        distance = f / np.where(gain > 0, gain, 1)
    distance[rows, y] = np.inf
    k = distance.argmin(axis=1)
    u = step_in.steepest(w[rows, k])  # (N, D), of length 1
    return -(f[rows, k] / (u * w[rows, k]).sum(axis=1))[:, None] * u


@exercise(
    cases=lambda: [(Z, W, Y)],
    hint="Use the lead f = z_y − z_k over each other class and its gradient w_y − w_k. The nearest "
    "class has the smallest f/‖w_y − w_k‖₁, and that is also how far each pixel moves.",
)
def nearest_linf(z, w, y):
    return steps(z, w, y, Linf(1), Linf(1))


@nearest_linf.mistake(
    "You chose the class with the smallest lead. A larger lead with a steeper gradient can be used "
    "up sooner."
)
def _(z, w, y):
    return steps(z, w, y, None, Linf(1))


@nearest_linf.mistake(
    "You chose the class that is nearest in the 2-norm. Compare the distances in the ∞-norm, where "
    "another class may be nearer."
)
def _(z, w, y):
    return steps(z, w, y, L2(1), Linf(1))


@nearest_linf.mistake(
    "This is the shortest step in the 2-norm, which moves some pixels far more than others."
)
def _(z, w, y):
    return steps(z, w, y, L2(1), L2(1))


@nearest_linf.mistake(
    "You chose the right class, but your step is along its gradient. It reaches the boundary, and "
    "its largest pixel moves by more than f/‖w‖₁. Which moves of the single pixels gain most?"
)
def _(z, w, y):
    return steps(z, w, y, Linf(1), L2(1))


@nearest_linf.mistake(
    "Your steps are 0: the lead of y over itself is 0, so y seems to be the nearest class. Leave "
    "it out."
)
def _(z, w, y):
    return np.zeros_like(w[:, 0])


@nearest_linf.mistake(
    "You use the gradient of z_k. The lead is z_y − z_k, and z_y also depends on the pixels."
)
def _(z, w, y):
    w = w.copy()
    w[np.arange(len(z)), y] = 0
    return -nearest_linf.answer(z, w, y)


@nearest_linf.mistake("The step has the wrong sign: the lead must fall to 0, and yours doubles.")
def _(z, w, y):
    return -nearest_linf.answer(z, w, y)


@exercise(
    cases=lambda: [(F_OF_C, W_OF_C, c) for c in (0.1, 1.0, 10.0, 100.0)],
    hint="The minimum lies at δ = −t w for some t ≥ 0. Where is the slope with respect to t "
    "negative, and where is the boundary?",
)
def minimiser(f, w, c):
    t = np.minimum(c / 2, f / (w**2).sum(axis=1))
    return -t[:, None] * w


@minimiser.mistake(
    "δ = −cw/2 is right as long as the margin is positive there. Beyond the boundary the penalty "
    "is 0, so a longer δ only costs."
)
def _(f, w, c):
    return -c / 2 * w


@minimiser.mistake(
    "You always go to the boundary. If c is small, the last part of the way costs more length than "
    "it saves in the penalty."
)
def _(f, w, c):
    return -(f / (w**2).sum(axis=1))[:, None] * w


@minimiser.mistake(
    "If c is too small, the attack fails, but δ is not 0: at δ = 0 the length has no slope and the "
    "penalty has, so the first part of the way always pays."
)
def _(f, w, c):
    square = (w**2).sum(axis=1)
    return -np.where(c < 2 * f / square, 0, f / square)[:, None] * w


@minimiser.mistake(
    "Two things are missing: the gradient of ‖δ‖² is 2δ, and beyond the boundary there is no "
    "penalty."
)
def _(f, w, c):
    return -c * w


@minimiser.mistake("The gradient of ‖δ‖² is 2δ, not δ.")
def _(f, w, c):
    return -np.minimum(c, f / (w**2).sum(axis=1))[:, None] * w


@minimiser.mistake(
    "Your δ does not end on the boundary for a large c. Put δ = −t w into f + wᵀδ = 0: wᵀw is the "
    "square of the length of w."
)
def _(f, w, c):
    return -np.minimum(c / 2, f / np.linalg.norm(w, axis=1))[:, None] * w


def just_beyond(result, predict, x, x_adv, y):
    result = np.asarray(result, float)
    way = x_adv - x
    share = ((result - x) * way).sum(axis=(1, 2, 3)) / (way**2).sum(axis=(1, 2, 3))  # (N,)
    share = share[:, None, None, None]
    if not np.allclose(result, x + share * way, atol=1e-6):
        return "a point does not lie on the line from x to x_adv."
    if (predict(result) == y).any():
        return "a point is correctly classified."
    if (predict(x + (share - 1e-3) * way) != y).any():
        return "a point could be moved further back, by a thousandth of the way, and stay wrong."
    return ""


def bisected(predict, x, x_adv, y, halvings=20, joint=False, swapped=False, end=1):
    low, high = np.zeros(len(x)), np.ones(len(x))
    for _ in range(halvings):
        middle = (low + high) / 2
        wrong = predict(x + middle[:, None, None, None] * (x_adv - x)) != y
        wrong = np.full(len(x), wrong.all()) if joint else wrong
        wrong = ~wrong if swapped else wrong
        low, high = np.where(wrong, low, middle), np.where(wrong, middle, high)
    share = (low, high)[end]
    return x + share[:, None, None, None] * (x_adv - x)


@exercise(
    cases=lambda: [(curved, X, X + OFFSETS, LABELS)],
    hint="Keep two shares of the way for each image, one that is correctly classified and one that "
    "is misclassified, and replace one of them by their mean.",
    judge=just_beyond,
)
def shorten(predict, x, x_adv, y):
    return bisected(predict, x, x_adv, y)


@shorten.mistake(
    "Your points lie on the near side of the boundary, where the image is still correctly "
    "classified. Of the two ends of the interval, return the misclassified one."
)
def _(predict, x, x_adv, y):
    return bisected(predict, x, x_adv, y, end=0)


@shorten.mistake(
    "You use one share of the way for the whole batch. Each image has its own boundary, so decide "
    "for each image which end of its interval moves."
)
def _(predict, x, x_adv, y):
    return bisected(predict, x, x_adv, y, joint=True)


@shorten.mistake(
    "You keep the wrong half: if the middle is misclassified, the boundary lies between x and it."
)
def _(predict, x, x_adv, y):
    return bisected(predict, x, x_adv, y, swapped=True)


@shorten.mistake("A single halving leaves a point far beyond the boundary. Go on halving.")
def _(predict, x, x_adv, y):
    return bisected(predict, x, x_adv, y, halvings=1)
