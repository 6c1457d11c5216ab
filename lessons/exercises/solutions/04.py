"""Solutions of the exercises of lesson 04."""

import numpy as np


def smallest_epsilon(w, b, x, y, p):
    """The worst case lowers the margin y z by ε‖w‖_*, so it becomes 0 at ε = y z / ‖w‖_*.

    The dual norm is the 1-norm for p = ∞, and the ∞-norm for p = 1. This is the distance of the
    image from the decision boundary, measured in the p-norm. For a linear model it is exact; for a
    network it has to be searched for.
    """
    dual = {np.inf: 1, 2: 2, 1: np.inf}[p]
    margin = y * (x @ w + b)  # (N,)
    return np.maximum(margin, 0) / np.linalg.norm(w, dual)


def twice_as_fine(w, epsilon):
    """Four pixels share one weight: the gain of the best direction stays, random signs gain half.

    There are four times as many weights, each a quarter as large. So ‖w‖₁ is the same, and ‖w‖₂ is
    half of what it was. A larger number of pixels alone does not make a model more vulnerable:
    ε m n does not grow, because m shrinks. But random noise gets weaker compared with the attack.
    """
    fine = np.repeat(np.repeat(w / 4, 2, axis=0), 2, axis=1)  # (2H, 2W)
    return fine, epsilon * abs(fine).sum(), epsilon * np.sqrt((fine**2).sum())


def predicted_and_actual_rise(loss, gradient, x, epsilon):
    """Predicted is gᵀδ, with the δ that remains after clipping.

    FGSM maximises the prediction, not the loss. The difference of the two is of the order of ε², so
    for a small ε they agree. For a large one the loss may rise much more or less than predicted.
    """
    g = gradient(x)  # (N, D)
    delta = np.clip(x + epsilon * np.sign(g), 0, 1) - x
    return (g * delta).sum(axis=1), loss(x + delta) - loss(x)


def gradient_of_the_worst_loss(w, b, x, y, epsilon):
    """Each image contributes −σ(−m) times the gradient of its worst margin m, y x − ε w/‖w‖₂.

    The term with ε pulls w_i towards 0 with a force in proportion to w_i, so it hardly acts on a
    weight that is small already. In the ∞-norm ‖w‖₁ replaces ‖w‖₂, and the force is ε sign(w_i),
    the same for small and large weights. This is why robust training in the ∞-norm drives most
    weights close to 0.
    """
    length = np.sqrt((w**2).sum())
    m = y * (x @ w + b) - epsilon * length  # (N,)
    share = 1 / (1 + np.exp(m))  # σ(−m), (N,): close to 0 for images with a large margin
    gradients = y[:, None] * x - epsilon * w / length  # of m, (N, D)
    return -(share[:, None] * gradients).mean(axis=0)


def worst_case_in_l1(w, x, y, epsilon):
    """Spend ε where a unit of change costs the model most, at the largest |w_i|, until it is used.

    A pixel is used up when it is black or white. Then the next one follows, so δ changes a few
    pixels completely, and one more in part. The steepest step of the 1-norm without the pixel range
    (step 2) changes a single pixel.
    """
    delta = np.zeros(x.shape)
    for n in range(len(x)):
        left = epsilon
        for i in np.argsort(-abs(w)):
            direction = -y[n] * np.sign(w[i])
            room = 1 - x[n, i] if direction > 0 else x[n, i]
            change = min(room, left)
            delta[n, i] = direction * change
            left -= change
    return delta
