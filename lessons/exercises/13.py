"""Exercises of lesson 13: replace each ``...``, then run ``python -m lessons.exercises 13``."""

from math import comb

import numpy as np


def robust_accuracy(clean, attacked, distance, y, epsilon):
    """1. The worst case image by image, from the results of several attacks.

    A result counts only if it lies in the ball; rounding must not decide, so tolerate 1e-6. The
    image itself lies in the ball, too.

    clean: (N,), the classes predicted for the images; attacked: (A, N), the classes predicted for
    the results of A attacks; distance: (A, N), ‖δ‖∞ of these results; y: (N,), labels; epsilon: a
    number. Returns a number, the upper bound on the robust accuracy.
    """
    ...


def pixels_that_change(x, epsilon, levels):
    """2. How many pixels of each image can an attacker move to another grey level?

    A defence rounds each pixel to one of `levels` equally spaced values: np.rint((levels − 1) x) /
    (levels − 1). The attacker changes the image before it is rounded, by at most ε in each pixel.
    What does it mean for BPDA, and for the robustness of the image, if there is no such pixel? Try
    two levels and an image that is black and white.

    x: (N, 1, 28, 28); epsilon: a number; levels: a whole number. Returns N whole numbers.
    """
    ...


def bpda_step(gradient, front, x, x_adv, alpha, epsilon):
    """3. One step of PGD in the ∞-norm against the network x ↦ f(front(x)), with BPDA.

    The derivative of `front` is useless, and is replaced by the identity in the backward pass. The
    forward pass stays as it is.

    gradient: a function, (N, 1, 28, 28) -> (N, 1, 28, 28): ∂L/∂s for the images s that enter f;
    front: a function, (N, 1, 28, 28) -> (N, 1, 28, 28); x, x_adv: (N, 1, 28, 28), the images and
    the current adversarial examples; alpha, epsilon: numbers. Returns the next x_adv.
    """
    ...


def step_against_noise(gradient, x, noise):
    """4. The direction of a step of PGD in the ∞-norm against a defence that adds random noise.

    The network is x ↦ f(x + u), with a new u each time. The attacker raises the *expected* loss
    E[L(f(x + u), y)], which is estimated from M draws.

    gradient: a function, (N, D) -> (N, D): ∂L/∂s for the images s that enter f; x: (N, D); noise:
    (M, N, D), draws of u. Returns (N, D), the direction of steepest ascent in the ∞-norm.
    """
    ...


def by_chance(weaker, stronger):
    """5. PGD should find at least what Square finds. Is a contradiction more than chance?

    Both attacks ran on the same N images. Let b images be fooled only by the attack that should be
    weaker, and c only by the one that should be stronger. If both attacks were equally good, each
    of these b + c images would belong to either side with probability 1/2, independently. How
    probable is it then that the weaker attack has b *or more* of them? (This is McNemar's test. A
    small probability is a sign of a masked gradient.)

    weaker, stronger: (N,) of bool, which images each attack fools. Returns a number.
    """
    ...
