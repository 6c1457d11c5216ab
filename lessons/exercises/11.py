"""Exercises of lesson 11: replace each ``...``, then run ``python -m lessons.exercises 11``."""

import numpy as np

from tinyadv import Tensor, grad, ops
from tinyadv.losses import cross_entropy


def weight_for_radius(g, epsilon):
    """1. For which λ does the attacker who pays for the length of δ move exactly as far as ε?

    By step 1 the penalty λ‖g‖₂² is the maximum over δ of gᵀδ − ‖δ‖₂²/(4λ). Find, for each image,
    the λ for which the best δ has the length ‖δ‖₂ = ε.

    g: (N, 1, 28, 28), the gradients with respect to the pixels, none of which is 0; epsilon: a
    number. Returns N numbers.
    """
    ...


def gain_within_the_box(g, x, epsilon):
    """2. The maximum of gᵀδ over the threat model: ‖δ‖∞ ≤ ε *and* 0 ≤ x + δ ≤ 1.

    The dual norm forgets that x + δ must be an image. Compute the maximum for each image.

    g, x: (N, 1, 28, 28); epsilon: a number. Returns N numbers.
    """
    ...


def penalised_step(model, x, y, epsilon):
    """3. The gradient for a training step with the penalty of the ∞-norm, ε‖g‖₁.

    The objective is the mean of L + ε‖g‖₁ over the images, where g = ∂L/∂x is a gradient for each
    image. (Hint: `ops.abs` takes tensors.)

    model: returns logits (N, K); x: (N, D), an array; y: (N,), labels; epsilon: a number.
    Returns a list of arrays: the gradient of the objective with respect to `model.parameters()`.
    """
    ...


def bias_gradient(W, p, y):
    """4. The penalty of a linear classifier, and its gradient with respect to the biases.

    The logits are z = W x + b, p = softmax(z), and L is the cross-entropy. Nothing is curved here
    except the softmax. Derive g = ∂L/∂x, the penalty R = ‖g‖₂², and ∂R/∂b, for one image.
    (Hint: ∂p_i/∂z_j is p_i(1 − p_i) if i = j, and −p_i p_j otherwise.)

    W: (K, D); p: (K,); y: a label. Returns R, a number, and ∂R/∂b, (K,).
    """
    ...


def without_double_backprop(weight_gradient, x, g, h):
    """5. The gradient of the penalty ‖g‖₂² by finite differences, without double backprop.

    Move the image by ±h along its own gradient g, and watch how the gradient *with respect to the
    weights* changes. Use a central difference, so that the error falls with h². (Hint: write
    ∂‖g‖₂²/∂θ as the derivative at t = 0 of something that contains ∂L/∂θ at the image x + t g.)

    weight_gradient: a function, (D,) -> (P,), that returns ∂L/∂θ at an image; x: (D,), an image;
    g: (D,), ∂L/∂x at x; h: a small number. Returns (P,).
    """
    ...
