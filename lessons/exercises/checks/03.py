"""Checks of the exercises of lesson 03."""

import numpy as np

from lessons.exercises.checker import exercise
from tinyadv import Tensor, grad, losses, ops

rng = np.random.default_rng(0)
G = rng.standard_normal((4, 1, 28, 28)) * np.array([1, 3, 0.2, 1e-3]).reshape(4, 1, 1, 1)
G[1] = -abs(G[1])  # every pixel has to gain ink
P = np.array([1e-6, 0.01, 0.3, 0.5, 0.9, 0.999])
Z = np.array([[2.0, -1.0, 0.5, 0.0], [9.0, -2.0, -3.0, 0.0], [0.0, 0.1, 6.0, -0.5]])
T = np.array([1, 2, 2])
W, B, X = rng.standard_normal((3, 8)), rng.standard_normal(3), rng.random((4, 8))


@exercise(
    cases=lambda: [(G, 5.0, 0.1)],
    hint="A pixel that moves by the step against its gradient lowers the logit by step · |g_i|. "
    "Sort these numbers, and add them up from the largest one.",
)
def pixels_needed(g, fall, step):
    return fewest(abs(g), fall, step)


def fewest(score, fall, step):
    """How many of the largest scores of each image add up to fall / step."""
    total = np.cumsum(-np.sort(-score.reshape(len(score), -1), axis=1), axis=1)
    enough = step * total >= fall
    return np.where(enough.any(axis=1), enough.argmax(axis=1) + 1, np.inf)


@pixels_needed.mistake(
    "You used g instead of |g|. Where the gradient is negative, the logit falls if the pixel gains "
    "ink."
)
def _(g, fall, step):
    return fewest(g, fall, step)


@pixels_needed.mistake(
    "You used −g, so only pixels with a negative gradient count. Where the gradient is positive, "
    "the logit falls if the pixel loses ink."
)
def _(g, fall, step):
    return fewest(-g, fall, step)


@pixels_needed.mistake("You forgot the step: a pixel lowers the logit by step · |g_i|.")
def _(g, fall, step):
    return fewest(abs(g), fall, 1)


@pixels_needed.mistake("You began with the smallest |g_i|. The largest ones lower the logit most.")
def _(g, fall, step):
    total = np.cumsum(np.sort(abs(g).reshape(len(g), -1), axis=1), axis=1)
    enough = step * total >= fall
    return np.where(enough.any(axis=1), enough.argmax(axis=1) + 1, np.inf)


@pixels_needed.mistake(
    "You divided by the mean |g_i|. That is for pixels chosen at random; the best ones do more."
)
def _(g, fall, step):
    count = np.ceil(fall / (step * abs(g).mean(axis=(1, 2, 3))))
    return np.where(count <= 784, count, np.inf)


@pixels_needed.mistake("You counted one pixel too few: argmax counts from 0.")
def _(g, fall, step):
    return fewest(abs(g), fall, step) - 1


@pixels_needed.mistake("Where all pixels together are not enough, return infinity.")
def _(g, fall, step):
    total = step * np.cumsum(-np.sort(-abs(g).reshape(len(g), -1), axis=1), axis=1)
    return (total >= fall).argmax(axis=1) + 1


@exercise(
    cases=lambda: [(P,)],
    hint="Both losses depend on the image through p_t only. Divide their derivatives with respect "
    "to p_t.",
)
def factor_of_the_squared_error(p):
    z = Tensor(np.stack([np.log(p), np.log1p(-p)], axis=1))  # softmax(z) = (p, 1 − p)
    p_t = ops.softmax(z, axis=1)[:, 0]
    squared = grad(((1 - p_t) ** 2).sum(), [z])[0]
    return squared[:, 0] / grad(-ops.log(p_t).sum(), [z])[0][:, 0]


@factor_of_the_squared_error.mistake(
    "This is the derivative of (1 − p_t)² with respect to p_t. Divide it by that of −log p_t."
)
def _(p):
    return -2 * (1 - p)


@factor_of_the_squared_error.mistake(
    "A factor is missing: you divided by −1, but the derivative of −log p_t is −1/p_t."
)
def _(p):
    return 2 * (1 - p)


@factor_of_the_squared_error.mistake(
    "Check the sign. Both losses fall as p_t rises, so their gradients point the same way."
)
def _(p):
    return -2 * p * (1 - p)


@factor_of_the_squared_error.mistake(
    "You divided the other way round: the squared error's derivative is the numerator."
)
def _(p):
    return 1 / (2 * p * (1 - p))


@factor_of_the_squared_error.mistake("The derivative of a square has a factor of 2.")
def _(p):
    return p * (1 - p)


def binary_cross_entropy(p, t):
    """In the right order: the sum over the images, each with its mean over the classes."""
    e = np.eye(p.shape[1])[t]
    return -ops.mean(e * ops.log(p) + (1 - e) * ops.log(1 - p), axis=1).sum()


@exercise(
    cases=lambda: [(Z, T)],
    hint="First compute h_k = ∂L/∂p_k. Then ∂L/∂z_j is the sum of h_k ∂p_k/∂z_j over all k.",
)
def gradient_in_the_right_order(z, t):
    logits = Tensor(z)
    return grad(binary_cross_entropy(ops.softmax(logits, axis=1), t), [logits])[0]


@gradient_in_the_right_order.mistake(
    "This is the gradient with respect to the probabilities. The chain rule goes on through the "
    "softmax to the logits."
)
def _(z, t):
    p = Tensor(ops.softmax(z, axis=1))
    return grad(binary_cross_entropy(p, t), [p])[0]


@gradient_in_the_right_order.mistake(
    "(p − e)/K would be right for K independent sigmoids: it uses ∂p_k/∂z_k only. In a softmax a "
    "logit also changes the probabilities of the other classes."
)
def _(z, t):
    return (ops.softmax(z, axis=1) - np.eye(z.shape[1])[t]) / z.shape[1]


@gradient_in_the_right_order.mistake("The loss is a mean over the K classes: a factor is missing.")
def _(z, t):
    return gradient_in_the_right_order.answer(z, t) * z.shape[1]


@gradient_in_the_right_order.mistake(
    "p − e is the gradient of the cross-entropy −log p_t. This loss also contains log(1 − p_k) of "
    "the other classes."
)
def _(z, t):
    logits = Tensor(z)
    return grad(losses.cross_entropy(logits, t, reduction="sum"), [logits])[0]


@exercise(
    cases=lambda: [(W, B, X)],
    hint="Equal probabilities mean that the differences of the logits are 0. These are K − 1 "
    "linear equations for the change, and np.linalg.pinv finds their smallest solution.",
)
def undecided(W, b, x):
    centred = W - W.mean(axis=0)  # the logits minus their mean must be 0
    z = x @ centred.T + b - b.mean()
    return x - np.linalg.lstsq(centred, z.T, rcond=None)[0].T


@undecided.mistake(
    "You made all logits 0. It is enough that they are equal, and a smaller change can do that."
)
def _(W, b, x):
    return x - (x @ W.T + b) @ np.linalg.pinv(W).T


@undecided.mistake(
    "You moved all logits to their mean. They may be equal at any other value, and a smaller "
    "change can do that."
)
def _(W, b, x):
    z = x @ W.T + b
    return x - (z - z.mean(axis=1, keepdims=True)) @ np.linalg.pinv(W).T


@undecided.mistake("You made the two largest logits equal. All K have to be.")
def _(W, b, x):
    z = x @ W.T + b
    first, second = np.argsort(-z, axis=1)[:, :2].T
    w, rows = W[first] - W[second], np.arange(len(x))
    distance = (z[rows, first] - z[rows, second]) / (w**2).sum(axis=1)
    return x - distance[:, None] * w


@undecided.mistake("You forgot the biases: they are part of the logits, which have to be equal.")
def _(W, b, x):
    return undecided.answer(W, 0 * b, x)
