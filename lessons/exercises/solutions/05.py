"""Solutions of the exercises of lesson 05."""

import numpy as np


def best_step(z, J, target):
    """J counts only where the target is predicted: elsewhere it is as good as infinite.

    The point with the smallest J of all may not reach the target, because close to x* the penalty
    is small.
    """
    allowed = np.where(z.argmax(axis=2) == target, J, np.inf)  # (S, N)
    return np.where(np.isfinite(allowed).any(axis=0), allowed.argmin(axis=0), -1)


def unit_max_of_p_minus_y(z, y):
    """The entry of the label is the largest, |p_y − 1| = Σ_{k≠y} p_k. Divided by it, it is −1.

    The entry of another class k becomes p_k / Σ_{j≠y} p_j. In this quotient e^(z_y) cancels, and
    what remains is a softmax over the other logits, however far they are behind z_y. So float32
    cannot represent p − y, but it can represent the quotient. With this gradient at the logits, the
    untargeted attack also succeeds on the lesson's network with its logits times 100. Dividing by 1
    instead of 0 only prevents the NaN: the image does not move.
    """
    rows = np.arange(len(z))
    others = z.copy()
    others[rows, y] = -np.inf
    others -= others.max(axis=1, keepdims=True)  # the largest of them is now 0
    result = np.exp(others)
    result /= result.sum(axis=1, keepdims=True)
    result[rows, y] = -1
    return result


def closer(model, x, x_adv, y, steps):
    """Each step halves the distance between the two points, and the boundary lies between them.

    The result is close to the boundary, but only on this line: another direction may lead to a
    shorter perturbation. The search needs predictions only, no gradients.
    """
    shape = (-1,) + (1,) * (x.ndim - 1)
    correct, wrong = np.zeros(len(x)), np.ones(len(x))  # shares of the way to x_adv
    for _ in range(steps):
        middle = (correct + wrong) / 2
        point = x + middle.reshape(shape) * (x_adv - x)
        fooled = np.asarray(model(point)).argmax(axis=1) != y
        correct, wrong = np.where(fooled, correct, middle), np.where(fooled, middle, wrong)
    return x + wrong.reshape(shape) * (x_adv - x)


def minima(g, c, lam):
    """With d₁ each |g_i| is lowered by λ/D, and where it is smaller than this, the pixel stays.

    If δ_i > 0, the derivative g_i + c δ_i + λ/D must be 0, so δ_i = −(g_i + λ/D) / c, which is
    positive for g_i < −λ/D only. It is similar for δ_i < 0. If |g_i| ≤ λ/D, neither can be, and the
    minimum is at the kink. With d₂ the derivative g_i + (c + 2λ/D) δ_i is not 0 at δ_i = 0, unless
    g_i is.
    """
    rate = lam / g.shape[1]  # λ/D
    return -np.sign(g) * np.maximum(abs(g) - rate, 0) / c, -g / (c + 2 * rate)


def no_move_pays_off(x, x_star, g, lam):
    """The penalty costs λ/D for a move away from x*, and refunds λ/D for a move back.

    An unchanged pixel has no way back, so both directions cost. This gives the condition
    |g_i| ≤ λ/D between 0 and 1. A changed pixel must have g_i = −(λ/D) sign(δ_i): the loss falls
    exactly as fast as the penalty rises. At 0 or 1 an even larger |g_i| is possible, because the
    pixel cannot move further.
    """
    rate, delta = lam / x.shape[1], x - x_star
    up = g + np.where(delta >= 0, rate, -rate)  # the change of J per unit, upwards
    down = -g + np.where(delta <= 0, rate, -rate)
    return ((up >= -1e-6) | (x >= 1)) & ((down >= -1e-6) | (x <= 0))
