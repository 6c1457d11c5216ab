"""Checks of the exercises of lesson 10."""

import numpy as np

from lessons.exercises.checker import exercise
from tinyadv import Tensor, grad, ops
from tinyadv.balls import L2, Linf
from tinyadv.losses import cross_entropy, soft_cross_entropy

rng = np.random.default_rng(0)
BALANCED, SKEWED = np.repeat(np.arange(10), 3), np.array([0, 0, 0, 0, 0, 2, 2, 1])
W, W_MADE = rng.standard_normal((2, 2, 12))
W_MADE[:, 8:] = W[:, 8:]  # so that the attacks agree on some pixels
X, Y = rng.random((6, 12)), np.array([0, 1, 1, 0, 1, 1])
CORNERS = np.array([[1.0, 1.0], [1.0, -1.0], [1.0, 0.4], [-1.0, 3.0], [-1.0, -5.0]])
IMAGES, STEP = rng.random((8, 1, 28, 28)), np.full((8, 1, 28, 28), 0.2)
ROW = IMAGES[:, 0, 0, 0].copy()  # the first pixel tells which image it is
LABELS = np.zeros(8, int)


def with_gaps(images):
    """Class 0, and class 1 on a part of the way from an image to image + step."""
    first = images[:, 0, 0, 0]
    share = (first - ROW) / STEP[:, 0, 0, 0]
    low, high = np.array(
        [
            [2, 2],  # nowhere
            [0.3, 0.6],  # between
            [0.65, 0.85],  # between, at three quarters of the way
            [0.05, 0.95],  # on the whole way, and not at the ends
            [-1, 0.4],  # at the start
            [0.7, 2],  # at the end
            [-1, 2],  # everywhere
            [0.9, 2],  # at the end only
        ]
    ).T
    return ((share > low) & (share < high)).astype(int)


@exercise(
    cases=lambda: [(BALANCED, 10), (SKEWED, 4), (np.array([1, 1, 1, 0]), 2)],
    hint="The mean loss is −Σ_k f_k ln p_k, where f_k is the share of class k. Minimise it subject "
    "to Σ_k p_k = 1.",
)
def loss_when_ignoring(y, classes):
    f = np.bincount(y, minlength=classes)[None] / len(y)
    return soft_cross_entropy(np.log(np.maximum(f, 1e-300)), f)


@loss_when_ignoring.mistake(
    "ln K is the loss of equal probabilities. If some classes are more frequent, a constant "
    "prediction can do better."
)
def _(y, classes):
    return np.log(classes)


@loss_when_ignoring.mistake(
    "You take the logarithm to base 2, so the result is in bits. The cross-entropy uses ln."
)
def _(y, classes):
    return loss_when_ignoring.answer(y, classes) / np.log(2)


@loss_when_ignoring.mistake(
    "You consider the most frequent class only. The images of the other classes have losses, too, "
    "and if p puts everything on one class, these are infinite."
)
def _(y, classes):
    return -np.log(np.bincount(y).max() / len(y))


@loss_when_ignoring.mistake(
    "The result is not a number where a class does not occur: 0 · ln 0. Such a class adds nothing."
)
def _(y, classes):
    f = np.bincount(y, minlength=classes) / len(y)
    return loss_when_ignoring.answer(y, classes) if f.all() else np.nan


@loss_when_ignoring.mistake("This is the share of errors. What is the cross-entropy?")
def _(y, classes):
    return 1 - np.bincount(y).max() / len(y)


@loss_when_ignoring.mistake(
    "You give equal probabilities to the classes that occur. The frequent ones deserve more."
)
def _(y, classes):
    return np.log(len(np.unique(y)))


def worst(W, x, y, epsilon, ball=None):
    return x + epsilon * (ball or Linf(1.0)).steepest(W[1 - y] - W[y])


def gradient(W, images, y, reduction="mean"):
    weights = Tensor(W)
    return grad(cross_entropy(ops.dense(images, weights), y, reduction=reduction), [weights])[0]


@exercise(
    cases=lambda: [(W, X, Y, 0.1), (W, X, Y, 0.0)],
    hint="Find the worst image x* of each x first: v is the row of the wrong class minus the row "
    "of the true class. Then hold x* fixed and average (p − one-hot) x*ᵀ, with p at x*.",
)
def robust_gradient(W, x, y, epsilon):
    return gradient(W, worst(W, x, y, epsilon), y)


@robust_gradient.mistake(
    "This is the gradient at the clean images. Danskin's theorem asks for the gradient at the "
    "worst ones."
)
def _(W, x, y, epsilon):
    return gradient(W, x, y)


@robust_gradient.mistake(
    "Your images are the best ones for the network: the loss rises with the logit of the wrong "
    "class and falls with z_y."
)
def _(W, x, y, epsilon):
    return gradient(W, worst(W, x, y, -epsilon), y)


@robust_gradient.mistake(
    "p is the prediction at x*, but you multiply it by the clean x. Both factors belong to x*."
)
def _(W, x, y, epsilon):
    z = worst(W, x, y, epsilon) @ W.T
    return (ops.softmax(z, axis=1) - np.eye(2)[y]).T @ x / len(x)


@robust_gradient.mistake(
    "You multiply by x*, but p is the prediction at the clean x. Both factors belong to x*."
)
def _(W, x, y, epsilon):
    return (ops.softmax(x @ W.T, axis=1) - np.eye(2)[y]).T @ worst(W, x, y, epsilon) / len(x)


@robust_gradient.mistake(
    "You move all images in the same direction. Which class is the wrong one depends on the label."
)
def _(W, x, y, epsilon):
    return gradient(W, worst(W, x, np.zeros_like(y), epsilon), y)


@robust_gradient.mistake("This is the gradient of the sum. The loss is the mean over N images.")
def _(W, x, y, epsilon):
    return gradient(W, worst(W, x, y, epsilon), y, reduction="sum")


@robust_gradient.mistake("Your perturbation is the worst in the 2-norm. Use the ∞-norm.")
def _(W, x, y, epsilon):
    return gradient(W, worst(W, x, y, epsilon, L2(1.0)), y)


@robust_gradient.mistake(
    "This is the direction of descent. The gradient itself contains p − one-hot, not one-hot − p."
)
def _(W, x, y, epsilon):
    return -robust_gradient.answer(W, x, y, epsilon)


def losses(W, images, y):
    return cross_entropy(images @ W.T, y, reduction="none")


@exercise(
    cases=lambda: [(W_MADE, W, X, Y, 0.1), (-W, W, X, Y, 0.1), (W, W, X, Y, 0.3)],
    hint="Compute two sets of images, x + ε sign(v) with v from W_made and with v from W, and the "
    "cross-entropy of W on both.",
)
def missed_loss(W_made, W, x, y, epsilon):
    return losses(W, worst(W, x, y, epsilon), y) - losses(W, worst(W_made, x, y, epsilon), y)


@missed_loss.mistake(
    "You subtract the other way round. The loss on the worst images is the larger one."
)
def _(W_made, W, x, y, epsilon):
    return -missed_loss.answer(W_made, W, x, y, epsilon)


@missed_loss.mistake(
    "You use the loss of W_made on its own examples. The network has the weights W now, on both "
    "sets of images."
)
def _(W_made, W, x, y, epsilon):
    made = worst(W_made, x, y, epsilon)
    return losses(W, worst(W, x, y, epsilon), y) - losses(W_made, made, y)


@missed_loss.mistake(
    "You compare with the clean images. How much loss do the examples of W_made already contain?"
)
def _(W_made, W, x, y, epsilon):
    return losses(W, worst(W, x, y, epsilon), y) - losses(W, x, y)


@missed_loss.mistake("This is the mean over the images. Return one difference for each.")
def _(W_made, W, x, y, epsilon):
    return missed_loss.answer(W_made, W, x, y, epsilon).mean()


@missed_loss.mistake(
    "These are the differences of the margin. The loss of two classes, ln(1 + exp(−margin)), is "
    "not linear in it."
)
def _(W_made, W, x, y, epsilon):
    v = W[1 - y] - W[y]
    return ((worst(W, x, y, epsilon) - worst(W_made, x, y, epsilon)) * v).sum(axis=1)


ONE = np.ones(1)
SIGNS = np.array([[-1.0], [1.0]])
RIGHT, UP = np.array([1.0, 0.0]), np.array([0.3, 1.0])


@exercise(
    cases=lambda: [
        (0 * ONE, ONE, SIGNS),
        (0 * ONE, -ONE, SIGNS),
        (RIGHT, UP, CORNERS),
        (RIGHT, -UP, CORNERS),
        (UP, RIGHT, CORNERS),
    ],
    hint="For a small h, only the maximisers at θ matter. Which of them has the largest "
    "(θ + h u)ᵀx?",
)
def one_sided_slope(theta, u, points):
    values = points @ theta
    return (points[values > values.max() - 1e-9] @ u).max()


@one_sided_slope.mistake(
    "You take one maximiser, as argmax finds it. If several points tie, another one may rise "
    "faster along u."
)
def _(theta, u, points):
    return points[(points @ theta).argmax()] @ u


@one_sided_slope.mistake(
    "This is the mean over the maximisers. φ is a maximum: right after θ only one of them counts."
)
def _(theta, u, points):
    values = points @ theta
    return (points[values > values.max() - 1e-9] @ u).mean()


@one_sided_slope.mistake(
    "This is φ(u), the maximum over all points. A point that is not a maximiser at θ stays below "
    "the others if h is small enough."
)
def _(theta, u, points):
    return (points @ u).max()


@one_sided_slope.mistake(
    "This is the mean of the slopes on both sides, as a central difference gives it. At a kink the "
    "two differ."
)
def _(theta, u, points):
    values = points @ theta
    slopes = points[values > values.max() - 1e-9] @ u
    return (slopes.max() + slopes.min()) / 2


@one_sided_slope.mistake(
    "You take the maximiser that rises least along u, which gives the slope on the other side of θ."
)
def _(theta, u, points):
    values = points @ theta
    return (points[values > values.max() - 1e-9] @ u).min()


def on_the_way(predict, x, x_adv, y, parts, first=1, last=None, ends=True, every=False):
    shares = range(first, parts if last is None else last)
    wrong = np.array([predict(x + i / parts * (x_adv - x)) != y for i in shares])
    wrong = wrong.all(axis=0) if every else wrong.any(axis=0)
    return wrong & (predict(x) == y) & (predict(x_adv) == y) if ends else wrong


@exercise(
    cases=lambda: [(with_gaps, IMAGES, IMAGES + STEP, LABELS, parts) for parts in (4, 10, 2)],
    hint="Three conditions for each image: correct at x, correct at x_adv, and wrong at one or "
    "more of x + (i/parts)(x_adv − x) for i = 1, …, parts − 1.",
)
def hidden_errors(predict, x, x_adv, y, parts):
    return on_the_way(predict, x, x_adv, y, parts).mean()


@hidden_errors.mistake(
    "You also count images that are misclassified at the start or at the end. These errors are not "
    "hidden."
)
def _(predict, x, x_adv, y, parts):
    return on_the_way(predict, x, x_adv, y, parts, ends=False).mean()


@hidden_errors.mistake(
    "You include the two ends of the way. An error at x or at x_adv is not hidden, and such an "
    "image must not be counted."
)
def _(predict, x, x_adv, y, parts):
    return on_the_way(predict, x, x_adv, y, parts, first=0, last=parts + 1, ends=False).mean()


@hidden_errors.mistake("You count images that are wrong on the whole way. One point is enough.")
def _(predict, x, x_adv, y, parts):
    return on_the_way(predict, x, x_adv, y, parts, every=True).mean()


@hidden_errors.mistake(
    "This is the share among the images that are correct at both ends. Divide by all N."
)
def _(predict, x, x_adv, y, parts):
    ends = (predict(x) == y) & (predict(x_adv) == y)
    return on_the_way(predict, x, x_adv, y, parts).sum() / ends.sum()


@hidden_errors.mistake("You look at the middle of the way only. Look at all parts − 1 points.")
def _(predict, x, x_adv, y, parts):
    return on_the_way(predict, x, x_adv, y, 2).mean()


@hidden_errors.mistake(
    "You check that x_adv is correctly classified, but not that x is. An image that is wrong from "
    "the start is an ordinary error."
)
def _(predict, x, x_adv, y, parts):
    wrong = on_the_way(predict, x, x_adv, y, parts, ends=False)
    return (wrong & (predict(x_adv) == y)).mean()
