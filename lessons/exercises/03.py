"""Exercises of lesson 03: replace each ``...``, then run ``python -m lessons.exercises 03``."""

import numpy as np


def pixels_needed(g, fall, step):
    """1. How many pixels must move so that the logit of the true class falls by a given amount?

    Each pixel may move by ``step``, up or down, or stay. Trust the linear formula of step 1, choose
    the best pixels of each image, and ignore the range [0, 1].

    g: (N, 1, 28, 28), the gradients of the logits z_y; fall, step: positive numbers.
    Returns the smallest number of pixels for each of the N images, or infinity where all 784 pixels
    together are not enough.
    """
    ...


def factor_of_the_squared_error(p):
    """2. The loss (1 − p_t)² has the gradient of the cross-entropy −log p_t, times a factor.

    The swapped loss of the lesson has the factor 3.206 p_t. Which one has (1 − p_t)²?

    p: (N,), the probabilities p_t of the target, between 0 and 1. Returns (N,), the factors.
    """
    ...


def gradient_in_the_right_order(z, t):
    """3. Is the binary cross-entropy saturated if its arguments are in the right order?

    With p = softmax(z) and the one-hot target e it is

        L = −(1/K) Σ_k [e_k log p_k + (1 − e_k) log(1 − p_k)].

    Compute its gradient with respect to the logits. Every p_k depends on every logit:
    ∂p_k/∂z_j is p_k (1 − p_k) for j = k, and −p_k p_j otherwise. No clipping is needed. Then look
    at ∂L/∂z_t: is it close to 0 where p_t is?

    z: (N, K), logits; t: (N,), targets. Returns (N, K), one gradient for each image.
    """
    ...


def undecided(W, b, x):
    """4. The closest image for which the softmax gives all K classes the same probability.

    The network is linear: the logits of a row x are W x + b. "Closest" means that the 2-norm of the
    change is the smallest possible one. The pixels may leave the range [0, 1].

    W: (K, D), with linearly independent rows; b: (K,); x: (N, D), images as rows; K < D.
    Returns (N, D), the changed images.
    """
    ...
