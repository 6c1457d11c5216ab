"""Solutions of the exercises of lesson 06."""

import numpy as np


def steps_to_the_surface(g, alpha, epsilon):
    """With one α, an image with a hundred times smaller gradient needs a hundred times more steps.

    Gradients of correctly classified images differ by such factors, because they contain the
    factor 1 − p_y. The sign, and g/‖g‖₂, remove the length of g from the step.
    """
    per_step = alpha * abs(g).max(axis=(1, 2, 3))  # (N, 1, 28, 28) -> (N,)
    steps = np.full(len(g), np.inf)
    moves = per_step > 0
    steps[moves] = np.ceil(epsilon / per_step[moves])
    return steps


def allowed(x, x_adv, epsilon):
    """An example outside the set breaks the threat model, so it is not a success of the attack.

    Without the clip, x + δ may contain pixel values below 0 or above 1, and no image has such
    pixels. The loss may be larger there, but the network never gets such an input.
    """
    changed = abs(x_adv - x).max(axis=(1, 2, 3))  # (N,)
    low, high = x_adv.min(axis=(1, 2, 3)), x_adv.max(axis=(1, 2, 3))
    return (changed <= epsilon + 1e-6) & (low >= -1e-6) & (high <= 1 + 1e-6)


def margin_gradient(z, y):
    """The gradient is −1 for the true class and 1 for the best other class, however large z is.

    So it helps on images that the network is very certain of: there float32 rounds the gradient of
    the cross-entropy to 0, and PGD does not move.
    """
    rows = np.arange(len(z))
    others = z.copy()
    others[rows, y] = -np.inf
    gradient = np.zeros_like(z)
    gradient[rows, others.argmax(axis=1)] = 1
    gradient[rows, y] = -1
    return gradient


def smallest_step(epsilon, steps):
    """Opposite corners are 2ε apart in every pixel. The lesson's 2.5 ε/steps leaves a reserve."""
    return 2 * epsilon / steps
