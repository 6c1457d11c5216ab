"""Exercises of lesson 02: replace each ``...``, then run ``python -m lessons.exercises 02``."""

import numpy as np


def receptive_field(layers):
    """1. How many pixels wide is the part of the image that one number of the last map depends on?

    A layer with kernel k and stride s computes each number from k×k neighbouring numbers, and
    moves its window by s. A convolution of the lesson has the stride 1, a 2×2 pooling the kernel 2
    and the stride 2. ReLUs change nothing, and there is no padding.

    layers: a list of pairs (k, s), first layer first. Returns a whole number.
    """
    ...


def average_pool_backward(g):
    """2. The backward pass of average pooling, which returns the mean of each 2×2 block.

    g: (C, P, Q), the gradient with respect to the output.
    Returns (C, 2P, 2Q), the gradient with respect to the input.
    """
    ...


def rmsprop_steps(g, steps, eta, rho):
    """3. The steps of RMSprop if the gradient stays the same.

    The gradients of different weights differ, but each stays the same in all steps. Look at the
    result: how does the length of a step depend on the gradient, and on the number of the step?
    (The 10⁻⁷ may be left out; it hardly matters here.)

    g: (M,), one gradient for each of M weights; steps: how many; eta, rho: numbers.
    Returns (steps, M): what each step adds to the weights.
    """
    ...


def strided_backward(g, w, size, stride):
    """4. The gradient of a convolution that moves its filters by more than one pixel.

    With the stride t the output is y_opq = Σ_cij w_ocij x_{c, tp + i, tq + j}, for all p and q for
    which the window lies in the image. (Pixels that are in no window have the gradient 0, so the
    size of the result does not follow from that of g.)

    g: (O, P, Q), ∂L/∂y; w: (O, C, kh, kw), the filters; size: (H, W), of the image; stride: t.
    Returns ∂L/∂x, (C, H, W).
    """
    ...
