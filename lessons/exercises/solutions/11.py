"""Solutions of the exercises of lesson 11."""

import numpy as np

from tinyadv import Tensor, grad, ops
from tinyadv.losses import cross_entropy


def weight_for_radius(g, epsilon):
    """The best δ is 2λg, and its length 2λ‖g‖₂ is ε for λ = ε/(2‖g‖₂).

    So one λ for all images is a different radius for each of them: the attacker goes far where the
    gradient is long. With this λ the penalty λ‖g‖₂² is ε‖g‖₂/2. That is half of what the attacker
    gains with the same radius when the length costs nothing: the other half is the price.
    """
    length = np.sqrt((g**2).sum(axis=(1, 2, 3)))  # (N, 1, 28, 28) -> (N,)
    return epsilon / (2 * length)


def gain_within_the_box(g, x, epsilon):
    """Each pixel still moves on its own, now between max(−ε, −x_i) and min(ε, 1 − x_i).

    So the best δ_i is the end that g_i points to. A black pixel with a negative g_i gains nothing,
    although it counts in ε‖g‖₁. On images of black and white pixels the penalty ε‖g‖₁ is therefore
    more pessimistic than the linearised threat model.
    """
    delta = np.clip(x + epsilon * np.sign(g), 0, 1) - x
    return (g * delta).sum(axis=(1, 2, 3))


def penalised_step(model, x, y, epsilon):
    """`create_graph=True` keeps g a tensor that depends on the weights.

    Without it g would be a constant, and only L would be differentiated: the value of the
    objective would look right, and the penalty would change nothing. The sum of the losses is
    differentiated, not their mean, because each image's g is the gradient of its own loss.
    """
    image = Tensor(x)
    loss = cross_entropy(model(image), y, reduction="none")  # (N,)
    (g,) = grad(loss.sum(), [image], create_graph=True)  # (N, D)
    objective = (loss + epsilon * ops.abs(g).sum(axis=1)).mean()
    return grad(objective, model.parameters())


def bias_gradient(W, p, y):
    """g = Wᵀ(p − e_y), where e_y is the one-hot label, and ∂R/∂b = 2 J W g, with J = ∂p/∂z.

    J = diag(p) − ppᵀ. W appears in g, too, but does not depend on b: a change db moves the logits
    by db, p by J db, g by WᵀJ db, and R by 2gᵀWᵀJ db. The biases have a derivative although no
    hidden unit is curved, because the softmax is.
    """
    g = W.T @ (p - np.eye(len(p))[y])  # (D, K) @ (K,) -> (D,)
    J = np.diag(p) - np.outer(p, p)  # (K, K), symmetric
    return g @ g, 2 * J @ (W @ g)


def without_double_backprop(weight_gradient, x, g, h):
    """∂‖g‖₂²/∂θ = 2 (∂g/∂θ)ᵀg, and (∂g/∂θ)ᵀg is the derivative of ∂L/∂θ along g.

    The order of the two derivatives of L does not matter: ∂²L/∂θ∂x times g says how ∂L/∂θ changes
    when the image moves along g. So two more ordinary gradients replace the gradient of a
    gradient. The factor 2 cancels the 2 of the central difference.
    """
    return (weight_gradient(x + h * g) - weight_gradient(x - h * g)) / h
