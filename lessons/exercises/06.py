"""Exercises of lesson 06: replace each ``...``, then run ``python -m lessons.exercises 06``."""

import numpy as np


def steps_to_the_surface(g, alpha, epsilon):
    """1. How many steps δ ← δ + α g does each image need until its largest |δ_i| reaches ε?

    Steps along g itself, with one α for all images, depend on the length of g. Let δ start at 0
    and g be the same in every step. A last step that ends exactly at ε has reached it.

    g: (N, 1, 28, 28), the gradients with respect to the pixels; alpha, epsilon: numbers.
    Returns N whole numbers, or infinity for an image whose gradient is 0.
    """
    ...


def allowed(x, x_adv, epsilon):
    """2. Without the clip to [0, 1] the loss rises more. Does the result still count?

    Decide for each adversarial example whether it obeys the threat model: no pixel changes by more
    than ε, and all pixel values lie between 0 and 1. Rounding must not decide: tolerate 1e-6.

    x, x_adv: (N, 1, 28, 28); epsilon: a number. Returns N booleans, one for each image.
    """
    ...


def margin_gradient(z, y):
    """3. The gradient of another loss: minus the margin, max_{k≠y} z_k − z_y.

    Where the network is certain of the true class, the gradient of the cross-entropy is nearly 0
    (lesson 01: it contains p_y − 1). What is the gradient of this loss with respect to the logits?

    z: (N, K), logits; y: (N,), labels. Returns (N, K), one gradient for each image.
    """
    ...


def smallest_step(epsilon, steps):
    """4. The smallest step size with which PGD in the ∞-norm can cross the whole ball.

    It must be able to reach every point of the ball from every start.

    epsilon, steps: numbers. Returns a number.
    """
    ...
