"""Exercises of lesson 04: replace each ``...``, then run ``python -m lessons.exercises 04``."""

import numpy as np


def smallest_epsilon(w, b, x, y, p):
    """1. At which ε does the worst case of a linear model reach the decision boundary?

    Without the limits of the pixel range: only ‖δ‖ ≤ ε in the p-norm. The model is wᵀx + b. For
    images that are misclassified without a perturbation, the answer is 0.

    w: (D,); b: a number; x: (N, D), images as rows; y: (N,), labels −1 and +1; p: np.inf, 2 or 1.
    Returns N numbers.
    """
    ...


def twice_as_fine(w, epsilon):
    """2. The same model for the same images with four times as many pixels.

    Each pixel of an image is replaced by 2×2 pixels with its value. Choose the weights of a linear
    model for the new images that computes the same wᵀx as before, and let the four pixels of a
    block have the same weight. What happens to the gain of ε sign(w), and to ε‖w‖₂, the typical
    gain of random signs?

    w: (H, W), the weights for the old images; epsilon: a number.
    Returns three results: the new weights, (2H, 2W), the new gain of ε sign(w), and the new ε‖w‖₂.
    """
    ...


def predicted_and_actual_rise(loss, gradient, x, epsilon):
    """3. By how much does the loss rise under FGSM, by the linear approximation and in fact?

    Both rises are for the same perturbation: the one after clipping the pixels to [0, 1].

    loss: a function (N, D) -> (N,), the loss of each image; gradient: a function (N, D) -> (N, D),
    its gradient with respect to the pixels; x: (N, D), images as rows; epsilon: a number.
    Returns two arrays: N predicted rises and N actual ones.
    """
    ...


def gradient_of_the_worst_loss(w, b, x, y, epsilon):
    """4. Robust training in the 2-norm: the gradient with respect to the weights.

    The loss is the mean of L(y (wᵀx + b) − ε‖w‖₂) over the images, with L(m) = log(1 + e^(−m)).
    Compute its gradient with respect to w. What does the term with ε do to a small w_i, and what
    would it do in the ∞-norm?

    w: (D,), not 0; b, epsilon: numbers; x: (N, D), images as rows; y: (N,), labels −1 and +1.
    Returns (D,).
    """
    ...


def worst_case_in_l1(w, x, y, epsilon):
    """5. The exact worst case of a linear model for ‖δ‖₁ ≤ ε and 0 ≤ x + δ ≤ 1.

    Find the δ that lowers y wᵀ(x + δ) most. One pixel is not always enough: it cannot change by
    more than its room in [0, 1], and ε may be larger than that.

    w: (D,), no two |w_i| are equal, none is 0; x: (N, D), images as rows; y: (N,), labels −1 and
    +1; epsilon: a number. Returns δ, (N, D).
    """
    ...
