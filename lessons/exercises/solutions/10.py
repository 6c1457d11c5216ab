"""Solutions of the exercises of lesson 10."""

import numpy as np


def loss_when_ignoring(y, classes):
    """The best constant p is the frequency f of each class, and its loss is the entropy of f.

    The mean loss is −Σ_k f_k ln p_k. Minimise it subject to Σ_k p_k = 1: with a multiplier λ,
    −f_k/p_k + λ = 0, so p_k is proportional to f_k, and hence p = f. A class that does not occur
    adds nothing. If a training loss stays at this value for many steps, look at the logits: the
    network may have learnt the frequencies of the classes only.
    """
    f = np.bincount(y, minlength=classes) / len(y)  # (K,)
    f = f[f > 0]
    return -(f * np.log(f)).sum()


def robust_gradient(W, x, y, epsilon):
    """Solve the inner maximum, then differentiate as if the worst images were data.

    The only difference to standard training is x* instead of x, in the probabilities p *and*
    in the factor x of ∂L/∂W = (p − one-hot) xᵀ. That x* depends on W needs no further term,
    because this term is zero.
    """
    v = W[1 - y] - W[y]  # (N, D), the direction in which the loss rises
    worst = x + epsilon * np.sign(v)  # (N, D)
    z = worst @ W.T  # (N, 2)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1  # p − one-hot
    return p.T @ worst / len(x)  # (2, N) @ (N, D), and the mean over the images


def missed_loss(W_made, W, x, y, epsilon):
    """The loss on old examples is only a lower bound on the robust loss.

    The two are equal if sign(v) is the same for both weights. Training on fixed examples does not
    keep these signs as they were. Where all of them become opposite, the old examples are even
    easier than the clean images. So the loss on them may become small although the network is not
    robust. Min-max training computes the examples anew in each step, with the current weights.
    """

    def worst(W):
        return x + epsilon * np.sign(W[1 - y] - W[y])

    def loss(images):
        z = images @ W.T  # (N, 2)
        rows = np.arange(len(y))
        return np.logaddexp(0, z[rows, 1 - y] - z[rows, y])  # ln(1 + exp(z_other − z_y))

    return loss(worst(W)) - loss(worst(W_made))


def one_sided_slope(theta, u, points):
    """The maximisers compete, and the one that rises fastest along u decides.

    For a small h, φ(θ + h u) is reached at one of the maximisers at θ, since the other points are
    too far below. Among them θᵀx is equal, so the largest uᵀx wins. In the opposite direction the
    *smallest* uᵀx gives the slope: −(min uᵀx). If the two differ, φ has a kink. An attack
    finds one of the maximisers. There the gradient uᵀx is the slope for some directions only. It is
    a lower bound on the others: φ(θ + h u) ≥ (θ + h u)ᵀx = φ(θ) + h uᵀx.
    """
    values = points @ theta  # (M,)
    maximisers = points[values > values.max() - 1e-9]
    return (maximisers @ u).max()


def hidden_errors(predict, x, x_adv, y, parts):
    """A network is robust only if no point of the ball fools it, and the way lies in the ball.

    The ball is convex, so all points between x and x_adv are allowed perturbations. Each hidden
    error is an image that the single step of the training reports as robust. No gradient is needed
    to find it, and a large share of such images is a sign of catastrophic overfitting. A share of
    0 proves nothing, because errors may lie beside this line.
    """
    between = np.zeros(len(x), bool)
    for i in range(1, parts):
        between |= predict(x + i / parts * (x_adv - x)) != y
    ends = (predict(x) == y) & (predict(x_adv) == y)
    return (between & ends).mean()
