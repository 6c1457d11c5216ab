"""Checks of the exercises of lesson 06."""

import numpy as np

from lessons.exercises.checker import exercise
from tinyadv import Tensor, grad, losses

rng = np.random.default_rng(0)
G = rng.standard_normal((3, 1, 28, 28)) * np.array([1, 1e-2, 0]).reshape(3, 1, 1, 1)
EXACT = rng.uniform(-0.4, 0.4, (2, 1, 28, 28))
EXACT[:, 0, 5, 5] = -1, 0.5  # two and four steps of 0.25 |g_i| end exactly at 0.5

X = rng.uniform(0.2, 0.8, (7, 1, 28, 28))
DELTA = rng.uniform(-0.1, 0.1, X.shape)  # the first image obeys the threat model
DELTA[1] *= 1.5  # not in the ball
X[2, 0, 9, 9], DELTA[2, 0, 9, 9] = 0.02, -0.07  # not an image
DELTA[3] = (0.1 + 1e-9) * np.sign(DELTA[3])  # obeys it, but for rounding
X[4, 0, 9, 9], DELTA[4, 0, 9, 9] = 0.95, 0.05 + 1e-9  # so does this one, at the edge of the box
DELTA[5, 0, 9, 9] = -0.12  # not in the ball, on the lower side only
X[6, 0, 9, 9], DELTA[6, 0, 9, 9] = 0.97, 0.07  # not an image, on the upper side only
Z = np.array([[4.0, 1.0, 3.0], [0.0, 2.0, 1.0], [30.0, -20.0, -25.0]])
Y = np.array([0, 0, 0])


@exercise(
    cases=lambda: [(G, 0.1, 0.3), (EXACT, 0.25, 0.5)],
    hint="A step moves the pixel with the largest |g_i| by α |g_i|. How many such steps make ε?",
)
def steps_to_the_surface(g, alpha, epsilon):
    with np.errstate(divide="ignore"):
        return np.ceil(epsilon / (alpha * abs(g).max(axis=(1, 2, 3))))


@steps_to_the_surface.mistake(
    "You took the length of g in the 2-norm. The ball is one of the ∞-norm, so its surface is "
    "reached when the largest |δ_i| is ε."
)
def _(g, alpha, epsilon):
    with np.errstate(divide="ignore"):
        return np.ceil(epsilon / (alpha * np.sqrt((g**2).sum(axis=(1, 2, 3)))))


@steps_to_the_surface.mistake(
    "You took the largest |g_i| of the whole batch. Each image has a gradient of its own: take the "
    "maximum over the axes 1, 2 and 3."
)
def _(g, alpha, epsilon):
    return np.full(len(g), np.ceil(epsilon / (alpha * abs(g).max())))


@steps_to_the_surface.mistake(
    "The number of steps must be whole: after a fraction of a step nothing has happened. Round up."
)
def _(g, alpha, epsilon):
    with np.errstate(divide="ignore"):
        return epsilon / (alpha * abs(g).max(axis=(1, 2, 3)))


@steps_to_the_surface.mistake("You rounded down. The step that reaches the surface counts, too.")
def _(g, alpha, epsilon):
    with np.errstate(divide="ignore"):
        return np.floor(epsilon / (alpha * abs(g).max(axis=(1, 2, 3))))


@steps_to_the_surface.mistake(
    "You always add one to the whole steps. Where the last of them ends exactly at the surface, "
    "that is one too many: round up instead."
)
def _(g, alpha, epsilon):
    with np.errstate(divide="ignore"):
        return np.floor(epsilon / (alpha * abs(g).max(axis=(1, 2, 3)))) + 1


@steps_to_the_surface.mistake("You counted with g.max(). A gradient may also be negative: use |g|.")
def _(g, alpha, epsilon):
    with np.errstate(divide="ignore"):
        return np.ceil(epsilon / (alpha * g.max(axis=(1, 2, 3))))


@exercise(
    cases=lambda: [(X, X + DELTA, 0.1)],
    hint="Two conditions for every pixel: |x_adv − x| ≤ ε, and 0 ≤ x_adv ≤ 1. Each of them with a "
    "tolerance of 1e-6.",
)
def allowed(x, x_adv, epsilon):
    within = (abs(x_adv - x) <= epsilon + 1e-6) & (x_adv >= -1e-6) & (x_adv <= 1 + 1e-6)
    return within.all(axis=(1, 2, 3))


@allowed.mistake("You forgot that x_adv must be an image: its pixel values lie between 0 and 1.")
def _(x, x_adv, epsilon):
    return (abs(x_adv - x) <= epsilon + 1e-6).all(axis=(1, 2, 3))


@allowed.mistake("You forgot the ball: no pixel may change by more than ε.")
def _(x, x_adv, epsilon):
    return ((x_adv >= -1e-6) & (x_adv <= 1 + 1e-6)).all(axis=(1, 2, 3))


@allowed.mistake("A pixel may also change by too much downwards: compare |x_adv − x| with ε.")
def _(x, x_adv, epsilon):
    within = (x_adv - x <= epsilon + 1e-6) & (x_adv >= -1e-6) & (x_adv <= 1 + 1e-6)
    return within.all(axis=(1, 2, 3))


@allowed.mistake("You tolerate rounding at the surface of the ball, but not at the values 0 and 1.")
def _(x, x_adv, epsilon):
    within = (abs(x_adv - x) <= epsilon + 1e-6) & (x_adv >= 0) & (x_adv <= 1)
    return within.all(axis=(1, 2, 3))


@allowed.mistake("You let rounding decide. Allow 1e-6 more than ε, and 1e-6 beyond 0 and 1.")
def _(x, x_adv, epsilon):
    within = (abs(x_adv - x) <= epsilon) & (x_adv >= 0) & (x_adv <= 1)
    return within.all(axis=(1, 2, 3))


@allowed.mistake(
    "You decide for each pixel. An image obeys the threat model if all its pixels do, so return "
    "one boolean for each image: take .all() over the axes 1, 2 and 3."
)
def _(x, x_adv, epsilon):
    return (abs(x_adv - x) <= epsilon + 1e-6) & (x_adv >= -1e-6) & (x_adv <= 1 + 1e-6)


@exercise(
    cases=lambda: [(Z, Y)],
    hint="The loss contains two of the K logits, one with the factor 1 and one with −1.",
)
def margin_gradient(z, y):
    logits = Tensor(z)
    return grad(losses.margin(logits, y, reduction="sum"), [logits])[0]  # −margin


@margin_gradient.mistake(
    "This is the gradient of the margin. The loss is minus the margin, so the signs are the other "
    "way round."
)
def _(z, y):
    return -margin_gradient.answer(z, y)


@margin_gradient.mistake(
    "You took the largest logit of all classes. If the image is correctly classified, that "
    "is z_y itself: take the maximum over k ≠ y."
)
def _(z, y):
    k = np.eye(z.shape[1])
    return k[z.argmax(axis=1)] - k[y]


@margin_gradient.mistake(
    "This is the gradient of the mean over the images. Each image has a loss of its own, so do not "
    "divide by N."
)
def _(z, y):
    return margin_gradient.answer(z, y) / len(z)


@margin_gradient.mistake(
    "If the image is correctly classified, your largest logit is z_y itself, and its entry "
    "is overwritten. Leave class y out when you look for the largest other logit."
)
def _(z, y):
    k = np.eye(z.shape[1])
    return np.where(k[z.argmax(axis=1)] == 1, 1, -k[y])


@margin_gradient.mistake(
    "This is p − y, the gradient of the cross-entropy. The loss is now z_k − z_y, where k is the "
    "best other class. It contains two logits and no softmax: differentiate it."
)
def _(z, y):
    logits = Tensor(z)
    return grad(losses.cross_entropy(logits, y, reduction="sum"), [logits])[0]


@exercise(
    cases=lambda: [(0.3, 20), (0.1, 7)],
    hint="How far apart can two points of the ball be, in one pixel?",
)
def smallest_step(epsilon, steps):
    return 2 * epsilon / steps


@smallest_step.mistake(
    "From the centre of the ball that is enough. A random start may lie on one side, and the best "
    "point on the other."
)
def _(epsilon, steps):
    return epsilon / steps


@smallest_step.mistake("That is the whole way. It may be covered in several steps.")
def _(epsilon, steps):
    return 2 * epsilon


@smallest_step.mistake("2.5 ε/steps is the lesson's choice, with a reserve. How much is needed?")
def _(epsilon, steps):
    return 2.5 * epsilon / steps
