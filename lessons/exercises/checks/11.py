"""Checks of the exercises of lesson 11."""

import numpy as np

from lessons.exercises.checker import exercise
from tinyadv import Tensor, defenses, grad, models, ops
from tinyadv.balls import L2
from tinyadv.losses import cross_entropy

rng = np.random.default_rng(0)
G = rng.standard_normal((3, 1, 28, 28)) * np.array([1, 0.1, 0.01]).reshape(3, 1, 1, 1)
X = np.clip(rng.uniform(-1, 2, G.shape), 0, 1)  # a third black, a third white
Y = np.array([0, 3, 3, 1])


@exercise(
    cases=lambda: [(G, 0.5), (G, 2.0)],
    hint="At the best δ the derivative with respect to δ is 0; set its length equal to ε.",
)
def weight_for_radius(g, epsilon):
    steepest = L2(epsilon).steepest(g)  # of length 1
    return epsilon / (2 * (g * steepest).sum(axis=(1, 2, 3)))


@weight_for_radius.mistake(
    "A factor 2 is missing. The derivative of ‖δ‖₂²/(4λ) with respect to δ is δ/(2λ), so the best "
    "δ is 2λg."
)
def _(g, epsilon):
    return epsilon / np.sqrt((g**2).sum(axis=(1, 2, 3)))


@weight_for_radius.mistake(
    "You divided by ‖g‖₂². The length of 2λg is proportional to ‖g‖₂, not to its square."
)
def _(g, epsilon):
    return epsilon / (2 * (g**2).sum(axis=(1, 2, 3)))


@weight_for_radius.mistake(
    "You took the length of the whole batch. Each image has a λ of its own: sum over the axes 1, 2 "
    "and 3."
)
def _(g, epsilon):
    return np.full(len(g), epsilon / (2 * np.sqrt((g**2).sum())))


@weight_for_radius.mistake(
    "You measured the length of δ by its largest pixel. Here the attacker pays for the 2-norm."
)
def _(g, epsilon):
    return epsilon / (2 * abs(g).max(axis=(1, 2, 3)))


@exercise(
    cases=lambda: [(G, X, 0.2), (G, X, 2.0)],
    hint="Between which two values may δ_i lie, and which of them does g_i prefer?",
)
def gain_within_the_box(g, x, epsilon):
    low, high = np.maximum(-epsilon, -x), np.minimum(epsilon, 1 - x)
    return np.maximum(g * low, g * high).sum(axis=(1, 2, 3))


@gain_within_the_box.mistake(
    "This is ε‖g‖₁: it ignores that x + δ lies between 0 and 1. How far may a black pixel move "
    "down?"
)
def _(g, x, epsilon):
    return epsilon * abs(g).sum(axis=(1, 2, 3))


@gain_within_the_box.mistake(
    "You left out all pixels that would leave [0, 1]. Such a pixel can still move up to the edge."
)
def _(g, x, epsilon):
    moved = x + epsilon * np.sign(g)
    return (epsilon * abs(g) * ((moved >= 0) & (moved <= 1))).sum(axis=(1, 2, 3))


@gain_within_the_box.mistake(
    "You multiplied g by the moved image. The gain is gᵀδ, and δ is what was added to x."
)
def _(g, x, epsilon):
    return (g * np.clip(x + epsilon * np.sign(g), 0, 1)).sum(axis=(1, 2, 3))


@gain_within_the_box.mistake("You added up the gains of the batch. Each image has its own maximum.")
def _(g, x, epsilon):
    return np.full(len(g), gain_within_the_box.answer(g, x, epsilon).sum())


def network():
    """A multilayer perceptron in double precision, and a batch for it."""
    model = models.mlp((9, 8, 5), rng=0, activation="tanh").astype(np.float64)
    return model, X[0, 0, :4, :9].copy(), Y, 0.3


def own_step(model, x, y, epsilon, create_graph=True, size=lambda g: ops.abs(g).sum(axis=1),
             of=lambda loss: loss.sum()):  # fmt: skip
    """The exercise, with what usually goes wrong as an argument."""
    image = Tensor(x)
    loss = cross_entropy(model(image), y, reduction="none")
    (g,) = grad(of(loss), [image], create_graph=create_graph)
    return grad((loss + epsilon * size(g)).mean(), model.parameters())


@exercise(
    cases=lambda: [network()],
    hint="The penalty of an image is ε times the sum of |g_i| over its pixels; take the mean over "
    "the images, and let `grad` go back through g as well.",
)
def penalised_step(model, x, y, epsilon):
    objective, _ = defenses.GradientPenalty(epsilon, norm=1)(model, x, y)
    return grad(objective, model.parameters())


@penalised_step.mistake(
    "This is the gradient of L alone: g was a constant for the second `grad`. The first one must "
    "record how g was computed."
)
def _(model, x, y, epsilon):
    return grad(cross_entropy(model(x), y), model.parameters())


@penalised_step.mistake(
    "Your g is the gradient of the *mean* loss, so it is N times too small. Images do not "
    "interact: differentiate the sum."
)
def _(model, x, y, epsilon):
    return own_step(model, x, y, epsilon, of=lambda loss: loss.mean())


@penalised_step.mistake("This is the penalty ε‖g‖₂². The dual norm of the ∞-norm is the 1-norm.")
def _(model, x, y, epsilon):
    return own_step(model, x, y, epsilon, size=lambda g: (g * g).sum(axis=1))


@penalised_step.mistake(
    "You took the mean of |g_i| over the pixels as well. The 1-norm is the sum over the pixels; "
    "only the images are averaged."
)
def _(model, x, y, epsilon):
    return own_step(model, x, y, epsilon, size=lambda g: ops.abs(g).mean(axis=1))


@penalised_step.mistake("You summed g without taking its absolute value.")
def _(model, x, y, epsilon):
    return own_step(model, x, y, epsilon, size=lambda g: g.sum(axis=1))


W = rng.standard_normal((4, 6))
P = np.array([0.1, 0.2, 0.3, 0.4])


def parts(W, p, y):
    """g, and W g."""
    g = (p - np.eye(len(p))[y]) @ W
    return g, W @ g


@exercise(
    cases=lambda: [(W, P, 1), (W, P, 3)],
    hint="Follow a small change db: how much does it change z, then p, then g, then R?",
)
def bias_gradient(W, p, y):
    image, b = Tensor(np.zeros((1, W.shape[1]))), Tensor(np.log(p))  # at x = 0, z is b
    loss = cross_entropy(ops.dense(image, Tensor(W), b), np.array([y]))
    (g,) = grad(loss, [image], create_graph=True)
    R = (g * g).sum()
    return float(R), grad(R, [b])[0]


@bias_gradient.mistake(
    "The factor ∂p/∂z is missing. b changes the logits, and g depends on them through p."
)
def _(W, p, y):
    g, Wg = parts(W, p, y)
    return g @ g, 2 * Wg


@bias_gradient.mistake(
    "You took only the diagonal of ∂p/∂z, p_i(1 − p_i). A bias changes all probabilities, because "
    "they sum to 1."
)
def _(W, p, y):
    g, Wg = parts(W, p, y)
    return g @ g, 2 * p * (1 - p) * Wg


@bias_gradient.mistake("A factor 2 is missing: dR = 2gᵀdg.")
def _(W, p, y):
    g, Wg = parts(W, p, y)
    return g @ g, p * Wg - p * (p @ Wg)


@bias_gradient.mistake(
    "Your g is Wᵀp, the gradient of the log of the softmax's denominator. The cross-entropy has "
    "the gradient p − e_y with respect to the logits."
)
def _(W, p, y):
    Wg = W @ (p @ W)
    return ((p @ W) ** 2).sum(), 2 * (p * Wg - p * (p @ Wg))


@bias_gradient.mistake(
    "Zero is right for a single output and ReLUs, where φ″ = 0. Here the softmax is curved."
)
def _(W, p, y):
    g, _ = parts(W, p, y)
    return g @ g, np.zeros(len(p))


class WeightGradient:
    """x -> ∂L/∂θ for one image, all weights in one vector."""

    def __init__(self):
        model = models.mlp((6, 5, 3), rng=1, activation="tanh")
        self.model, self.y = model.astype(np.float64), np.array([2])

    def loss(self, image):
        return cross_entropy(self.model(image), self.y)

    def flat(self, gradients):
        return np.concatenate([g.ravel() for g in gradients])

    def __call__(self, x):
        return self.flat(grad(self.loss(Tensor(x[None])), self.model.parameters()))

    def of_the_penalty(self, x):
        image = Tensor(x[None])
        (g,) = grad(self.loss(image), [image], create_graph=True)
        return self.flat(grad((g * g).sum(), self.model.parameters()))


def images():
    weight_gradient, found = WeightGradient(), []
    for x in (X[0, 0, 5, :6], X[1, 0, 8, 3:9]):
        image = Tensor(x[None])
        (g,) = grad(weight_gradient.loss(image), [image])
        found.append((weight_gradient, x, g[0], 1e-3))
    return found


@exercise(
    cases=images,
    hint="∂‖g‖₂²/∂θ = 2 (∂g/∂θ)ᵀg, and (∂g/∂θ)ᵀg is the derivative of ∂L/∂θ at x + t g with "
    "respect to t.",
)
def without_double_backprop(weight_gradient, x, g, h):
    return weight_gradient.of_the_penalty(x)


@without_double_backprop.mistake(
    "A factor 2 is missing: the derivative of ‖g‖₂² is twice what the derivative of ∂L/∂θ along g "
    "gives."
)
def _(weight_gradient, x, g, h):
    return weight_gradient.of_the_penalty(x) / 2


@without_double_backprop.mistake(
    "You moved along g/‖g‖₂. The length of g belongs to the derivative: move by h g."
)
def _(weight_gradient, x, g, h):
    return weight_gradient.of_the_penalty(x) / np.sqrt(g @ g)


@without_double_backprop.mistake(
    "You moved along sign(g), as FGSM does. The derivative of ‖g‖₂² needs the direction g; sign(g) "
    "belongs to ‖g‖₁."
)
def _(weight_gradient, x, g, h):
    s = np.sign(g)
    return (weight_gradient(x + h * s) - weight_gradient(x - h * s)) / h


@without_double_backprop.mistake(
    "This is a one-sided difference, with an error proportional to h. Take the images x + h g and "
    "x − h g."
)
def _(weight_gradient, x, g, h):
    return 2 * (weight_gradient(x + h * g) - weight_gradient(x)) / h


@without_double_backprop.mistake("The sign is wrong: subtract the gradient at x − h g.")
def _(weight_gradient, x, g, h):
    return -weight_gradient.of_the_penalty(x)
