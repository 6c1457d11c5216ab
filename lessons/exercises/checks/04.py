"""Checks of the exercises of lesson 04."""

import numpy as np

from lessons.exercises.checker import exercise
from tinyadv import Tensor, attacks, grad, losses, ops
from tinyadv.balls import Linf

rng = np.random.default_rng(0)
W, B, X = rng.standard_normal(12), 0.3, rng.random((6, 12))
Y = np.where(np.arange(6) < 3, 1, -1) * np.where(X @ W + B > 0, 1, -1)  # three are misclassified
NORMS = [np.inf, 2, 1]
PICTURE = rng.standard_normal((4, 5))
HIDDEN, OUT = rng.standard_normal((12, 8)), rng.standard_normal((8, 3))
LABELS = np.array([0, 1, 2, 0, 1, 2])


def network(x):
    return ops.tanh(2 * x @ HIDDEN) @ OUT


def loss(x):
    return losses.cross_entropy(network(x), LABELS, reduction="none")


def gradient(x):
    image = Tensor(x)
    return grad(loss(image).sum(), [image])[0]


@exercise(
    cases=lambda: [(W, B, X, Y, p) for p in NORMS],
    hint="In the worst case the margin y (wᵀx + b) falls by ε times the dual norm of w. For which "
    "ε is it 0?",
)
def smallest_epsilon(w, b, x, y, p):
    dual = {np.inf: 1, 2: 2, 1: np.inf}[p]
    return np.maximum(y * (x @ w + b), 0) / np.linalg.norm(w, dual)


@smallest_epsilon.mistake(
    "You divided by the norm in which δ is measured. The gain is limited by the dual norm of w."
)
def _(w, b, x, y, p):
    return np.maximum(y * (x @ w + b), 0) / np.linalg.norm(w, p)


@smallest_epsilon.mistake(
    "This is the distance from the boundary, on either side. A misclassified image needs no "
    "perturbation."
)
def _(w, b, x, y, p):
    return abs(x @ w + b) / np.linalg.norm(w, {np.inf: 1, 2: 2, 1: np.inf}[p])


@smallest_epsilon.mistake("A misclassified image has a negative margin, but ε cannot be below 0.")
def _(w, b, x, y, p):
    return y * (x @ w + b) / np.linalg.norm(w, {np.inf: 1, 2: 2, 1: np.inf}[p])


@smallest_epsilon.mistake("You used the label +1 for all images. The margin is y (wᵀx + b).")
def _(w, b, x, y, p):
    return smallest_epsilon.answer(w, b, x, 1, p)


def four(w, epsilon, share):
    fine = share * w.repeat(2, axis=0).repeat(2, axis=1)
    return fine, epsilon * abs(fine).sum(), epsilon * np.sqrt((fine**2).sum())


@exercise(
    cases=lambda: [(PICTURE, 0.2)],
    hint="The four pixels of a block have the value of the old pixel. What must their weights add "
    "up to, if wᵀx is to stay the same?",
)
def twice_as_fine(w, epsilon):
    return four(w, epsilon, 1 / 4)


@twice_as_fine.mistake(
    "You copied the weights. Now every old pixel counts four times, and wᵀx is four times as large."
)
def _(w, epsilon):
    return four(w, epsilon, 1)


@twice_as_fine.mistake(
    "You halved the weights. A block has four pixels, not two, so wᵀx is twice as large as before."
)
def _(w, epsilon):
    return four(w, epsilon, 1 / 2)


@twice_as_fine.mistake(
    "You put four small copies of w side by side. Each weight belongs to a block of 2×2 pixels. "
    "(Hint: np.repeat, not np.tile.)"
)
def _(w, epsilon):
    return np.tile(w / 4, (2, 2)), *twice_as_fine.answer(w, epsilon)[1:]


@twice_as_fine.mistake(
    "np.linalg.norm(W, 2) of a matrix is not the root of the sum of squares, but its largest "
    "singular value. Give it a vector, or leave out the 2."
)
def _(w, epsilon):
    fine, gain, _ = twice_as_fine.answer(w, epsilon)
    return fine, gain, epsilon * np.linalg.norm(fine, 2)


@twice_as_fine.mistake(
    "The gain of ε sign(w) is ε Σ |w_i|: where w_i is negative, δ_i is negative, too."
)
def _(w, epsilon):
    fine, _, chance = twice_as_fine.answer(w, epsilon)
    return fine, epsilon * fine.sum(), chance


@twice_as_fine.mistake(
    "Only the weight of one pixel of each block is not 0. The four are to have the same weight."
)
def _(w, epsilon):
    fine = np.zeros((2 * len(w), 2 * w.shape[1]))
    fine[::2, ::2] = w
    return fine, epsilon * abs(w).sum(), epsilon * np.sqrt((w**2).sum())


@exercise(
    cases=lambda: [(loss, gradient, X, epsilon) for epsilon in (0.01, 0.3)],
    hint="The linear approximation is L(x) + gᵀδ. Take δ = x_adv − x, after clipping.",
)
def predicted_and_actual_rise(loss, gradient, x, epsilon):
    delta = attacks.fgsm(network, x, LABELS, ball=Linf(epsilon)) - x
    return (gradient(x) * delta).sum(axis=1), loss(x + delta) - loss(x)


@predicted_and_actual_rise.mistake(
    "Your prediction, ε‖g‖₁, is for the perturbation before clipping. Where a pixel reaches 0 or "
    "1, δ is smaller."
)
def _(loss, gradient, x, epsilon):
    actual = predicted_and_actual_rise.answer(loss, gradient, x, epsilon)[1]
    return epsilon * abs(gradient(x)).sum(axis=1), actual


@predicted_and_actual_rise.mistake("You forgot to clip x + δ to the range [0, 1] of pixel values.")
def _(loss, gradient, x, epsilon):
    delta = epsilon * np.sign(gradient(x))
    return (gradient(x) * delta).sum(axis=1), loss(x + delta) - loss(x)


@predicted_and_actual_rise.mistake("These are the losses after the step. Subtract L(x) from both.")
def _(loss, gradient, x, epsilon):
    predicted, actual = predicted_and_actual_rise.answer(loss, gradient, x, epsilon)
    return loss(x) + predicted, loss(x) + actual


@predicted_and_actual_rise.mistake(
    "You added up the batch. Each image has its own rise: sum over the axis of the pixels only."
)
def _(loss, gradient, x, epsilon):
    predicted, actual = predicted_and_actual_rise.answer(loss, gradient, x, epsilon)
    return predicted.sum(), actual


@predicted_and_actual_rise.mistake(
    "Your prediction takes the gradient at x + δ. The linear approximation at x knows x only."
)
def _(loss, gradient, x, epsilon):
    x_adv = np.clip(x + epsilon * np.sign(gradient(x)), 0, 1)
    return (gradient(x_adv) * (x_adv - x)).sum(axis=1), loss(x_adv) - loss(x)


@predicted_and_actual_rise.mistake("You stepped along g, as in the 2-norm. FGSM takes its sign.")
def _(loss, gradient, x, epsilon):
    g = gradient(x)
    delta = np.clip(x + epsilon * g, 0, 1) - x
    return (g * delta).sum(axis=1), loss(x + delta) - loss(x)


def worst_loss(w, b, x, y, penalty):
    return ops.softplus(penalty - y * (x @ w + b)).mean()


def norm2(w):
    return (w**2).sum() ** 0.5


@exercise(
    cases=lambda: [(W, B, X, Y, epsilon) for epsilon in (0.5, 0.0)],
    hint="The derivative of L(m) is −σ(−m) = −1/(1 + eᵐ), and the gradient of ‖w‖₂ is w/‖w‖₂.",
)
def gradient_of_the_worst_loss(w, b, x, y, epsilon):
    w = Tensor(w)
    return grad(worst_loss(w, b, x, y, epsilon * norm2(w)), [w])[0]


@gradient_of_the_worst_loss.mistake("You treated ε‖w‖₂ as a constant. It depends on w, too.")
def _(w, b, x, y, epsilon):
    length, w = norm2(w), Tensor(w)
    return grad(worst_loss(w, b, x, y, epsilon * length), [w])[0]


@gradient_of_the_worst_loss.mistake(
    "This is the gradient of the loss of the clean images. In the worst case their margins are "
    "smaller by ε‖w‖₂."
)
def _(w, b, x, y, epsilon):
    return gradient_of_the_worst_loss.answer(w, b, x, y, 0.0)


@gradient_of_the_worst_loss.mistake(
    "This is the gradient for the ∞-norm: ε sign(w) is the gradient of ε‖w‖₁."
)
def _(w, b, x, y, epsilon):
    w = Tensor(w)
    return grad(worst_loss(w, b, x, y, epsilon * abs(w.value) @ (w / w.value)), [w])[0]


@gradient_of_the_worst_loss.mistake(
    "You added the gradient of ε‖w‖₂ to the mean, as weight decay does. The norm stands inside of "
    "L, so it is multiplied by the same −L′(m) of each image as y x."
)
def _(w, b, x, y, epsilon):
    length = norm2(w)
    m = y * (x @ w + b) - epsilon * length
    return -((y / (1 + np.exp(m)))[:, None] * x).mean(axis=0) + epsilon * w / length


@gradient_of_the_worst_loss.mistake(
    "Your factor is the largest for images with a large margin. L′(m) = −σ(−m) is close to 0 there."
)
def _(w, b, x, y, epsilon):
    m = y * (x @ w + b) - epsilon * norm2(w)
    gradients = y[:, None] * x - epsilon * w / norm2(w)
    return -(gradients / (1 + np.exp(-m))[:, None]).mean(axis=0)


@gradient_of_the_worst_loss.mistake("You took the sum over the images. The loss is the mean.")
def _(w, b, x, y, epsilon):
    return len(x) * gradient_of_the_worst_loss.answer(w, b, x, y, epsilon)


@gradient_of_the_worst_loss.mistake(
    "Check the signs. The worst margin is y (wᵀx + b) minus ε‖w‖₂, and its loss falls as it grows."
)
def _(w, b, x, y, epsilon):
    return -gradient_of_the_worst_loss.answer(w, b, x, y, epsilon)


def greedy(score, direction, room, epsilon):
    """Spends ε on the pixels in the order of their scores, each up to its room."""
    order = np.argsort(-score, axis=1)
    sizes = np.take_along_axis(room, order, axis=1)
    before = sizes.cumsum(axis=1) - sizes  # what the pixels before this one have used
    changes = np.zeros(room.shape)
    np.put_along_axis(changes, order, np.clip(epsilon - before, 0, sizes), axis=1)
    return direction * changes + 0.0  # no −0


def ways(w, x, y):
    """The direction in which each pixel lowers y wᵀx, and its room in that direction."""
    direction = -y[:, None] * np.sign(w)
    return direction, np.where(direction > 0, 1 - x, x)


@exercise(
    cases=lambda: [(W, X, Y, epsilon) for epsilon in (2.0, 0.05)],
    hint="A change of one unit of pixel i lowers y wᵀx by |w_i|, in the right direction. Where do "
    "you spend ε first, and when do you go on to the next pixel?",
)
def worst_case_in_l1(w, x, y, epsilon):
    direction, room = ways(w, x, y)
    return greedy(np.tile(abs(w), (len(x), 1)), direction, room, epsilon)


def one_pixel(w, x, y, epsilon):
    return -epsilon * y[:, None] * np.sign(w) * (abs(w) == abs(w).max())


@worst_case_in_l1.mistake(
    "You changed one pixel by ε, as if there were no pixel range. The result is not an image."
)
def _(w, x, y, epsilon):
    return one_pixel(w, x, y, epsilon)


@worst_case_in_l1.mistake(
    "You clipped the change of one pixel to [0, 1]. What is left of ε can be spent on other pixels."
)
def _(w, x, y, epsilon):
    return np.clip(x + one_pixel(w, x, y, epsilon), 0, 1) - x


@worst_case_in_l1.mistake("Check the sign: you raise y wᵀx. The attacker wants to lower it.")
def _(w, x, y, epsilon):
    return worst_case_in_l1.answer(w, x, -y, epsilon)


@worst_case_in_l1.mistake("The direction depends on the label: lower y wᵀx, not wᵀx.")
def _(w, x, y, epsilon):
    return worst_case_in_l1.answer(w, x, np.ones_like(y), epsilon)


@worst_case_in_l1.mistake(
    "You went through the pixels in the order of y w_i. Where y w_i is negative, a pixel lowers "
    "y wᵀx by gaining ink: only |w_i| counts."
)
def _(w, x, y, epsilon):
    direction, room = ways(w, x, y)
    return greedy(y[:, None] * w, direction, room, epsilon)


@worst_case_in_l1.mistake(
    "You chose the pixels with the largest |w_i| times their room. But a pixel with little room "
    "uses little of ε: what counts is the gain for each unit of ε."
)
def _(w, x, y, epsilon):
    direction, room = ways(w, x, y)
    return greedy(abs(w) * room, direction, room, epsilon)
