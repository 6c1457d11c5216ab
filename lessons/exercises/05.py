"""Exercises of lesson 05: replace each ``...``, then run ``python -m lessons.exercises 05``."""

import numpy as np


def best_step(z, J, target):
    """1. At which step was the targeted attack at its best point?

    The best point of an image is the one with the smallest J, of all points that are classified as
    the target.

    z: (S, N, K), the logits of N images at S steps, from step 0 on; J: (S, N); target: (N,).
    Returns N whole numbers: the step of the best point, or −1 if the target was never reached.
    """
    ...


def unit_max_of_p_minus_y(z, y):
    """2. Compute (p − y) / max|p − y| without 0/0, where float32 rounds p − y to 0.

    Here y is the one-hot label, and p − y is the gradient of the cross-entropy with respect to the
    logits. Suppose that the label has the largest logit and that its margin is so large that
    p_k = 0 for all other classes in the precision of the computer. The quotient still has a value.
    (Hint: which entry of p − y is the largest? Divide the other entries by it on paper first.)

    z: (N, K), logits, float32; y: (N,), labels. Returns (N, K).
    """
    ...


def closer(model, x, x_adv, y, steps):
    """3. Shorten perturbations that fool the network, by bisection.

    Search on the straight line from each image x to its x_adv. Keep two points of it, one that is
    correctly classified (at first x) and one that is misclassified (at first x_adv). In each step
    classify the point halfway between them, and let it replace one of the two.

    model: a function of arrays, (N, …) -> (N, K), the logits; x, x_adv: (N, …), correctly
    classified and misclassified images; y: (N,), labels; steps: how often to halve the distance.
    Returns (N, …): misclassified images.
    """
    ...


def minima(g, c, lam):
    """4. Which perturbation minimises J, for the two distances of the lesson?

    Let the loss of the target be Dist = gᵀδ + (c/2) ‖δ‖₂², so that J can be minimised one pixel at
    a time. Minimise Dist + λ d₁(δ), and then Dist + λ d₂(δ). Ignore the range of pixel values.

    g: (N, D), where D is the number of pixels; c, lam: positive numbers, lam is λ.
    Returns two arrays (N, D): δ for d₁, and δ for d₂.
    """
    ...


def no_move_pays_off(x, x_star, g, lam):
    """5. In which pixels of x is J = Dist + λ d₁(x − x*) at a minimum?

    Look at one pixel at a time, and at small moves. No move pays off if J falls neither upwards nor
    downwards. Where the pixel is unchanged, J has a kink, and these are two different slopes. A
    pixel with the value 0 can only move up, and one with the value 1 only down. Rounding must not
    decide: J falls if it changes by less than −1e-6 per unit.

    x, x_star: (N, D), images as rows; g: (N, D), ∂Dist/∂x at x; lam: λ.
    Returns (N, D) booleans.
    """
    ...
