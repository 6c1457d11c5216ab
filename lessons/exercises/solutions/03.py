"""Solutions of the exercises of lesson 03."""

import numpy as np


def pixels_needed(g, fall, step):
    """A pixel lowers the logit by step · |g_i| at most, so take the pixels with the largest |g_i|.

    The saliency map is this order. If the |g_i| are very different, a few pixels do most of the
    work; if they are all equal, no choice is better than any other.
    """
    falls = step * np.sort(abs(g).reshape(len(g), -1))[:, ::-1].cumsum(axis=1)  # (N, 784)
    enough = falls >= fall
    return np.where(enough.any(axis=1), enough.argmax(axis=1) + 1, np.inf)


def factor_of_the_squared_error(p):
    """The factor is the quotient of the derivatives with respect to p_t, −2 (1 − p_t) and −1/p_t.

    It vanishes for p_t near 0, like the factor of the swapped loss: the softmax is saturated, and
    the image hardly moves. It also vanishes near 1, where the goal is reached anyway. In the
    cross-entropy the logarithm cancels the small factor p_t of the softmax.
    """
    return 2 * p * (1 - p)


def gradient_in_the_right_order(z, t):
    """With h_k = ∂L/∂p_k, the chain rule gives ∂L/∂z_j = p_j (h_j − Σ_k h_k p_k).

    At the target this is −(1 − p_t)/K − (p_t/K) Σ_{k≠t} p_k / (1 − p_k), so its size is at least
    (1 − p_t)/K, however small p_t is. The loss is not saturated. In the slides it is, because they
    swap the arguments, not because the loss is meant for yes-or-no questions.
    """
    e = np.eye(z.shape[1])[t]  # (N,) -> (N, K)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    h = -(e / p - (1 - e) / (1 - p)) / z.shape[1]  # ∂L/∂p
    return p * (h - (h * p).sum(axis=1, keepdims=True))


def undecided(W, b, x):
    """The softmax only sees differences of logits, so K − 1 equations suffice, not K.

    Let C contain the differences of the rows of W to its first row. The change δ must solve
    C δ = −(differences of the logits). Of all solutions, the pseudo-inverse gives the one with the
    smallest 2-norm. It does not matter which value the equal logits have. For a network that is not
    linear, this is one step of a search; lesson 07 repeats such steps.
    """
    C, d = W[1:] - W[0], b[1:] - b[0]
    return x - (x @ C.T + d) @ np.linalg.pinv(C).T  # (N, K − 1) @ (K − 1, D)
