"""Exercises of lesson 10: replace each ``...``, then run ``python -m lessons.exercises 10``."""

import numpy as np


def loss_when_ignoring(y, classes):
    """1. At which loss does a training get stuck, if the network ignores the images?

    Such a network gives the same probabilities p to all images. Which p makes the mean
    cross-entropy on the labels y smallest, and what is it then? In the lesson all classes are
    equally frequent, so the answer is ln 10.

    y: (N,), labels from 0 to classes − 1, some of which may not occur; classes: a number.
    Returns a number.
    """
    ...


def robust_gradient(W, x, y, epsilon):
    """2. The gradient of the robust loss with respect to the weights of a linear network.

    The network of step 1, z = W x with two classes, has the mean loss φ over the images, each of
    which the attacker has changed to its worst in the ∞-norm (leave out the range of the pixel
    values). Use Danskin's theorem, and from lesson 01 that ∂L/∂z = p − one-hot(y) for one image.

    W: (2, D); x: (N, D); y: (N,), labels 0 or 1; epsilon: a number. Returns (2, D), dφ/dW.
    """
    ...


def missed_loss(W_made, W, x, y, epsilon):
    """3. Why examples made in advance do not replace the attack.

    Take the same network and threat model. The examples were made with the weights W_made, but the
    network now has the weights W. By how much is its loss on them below its loss on the worst
    images?

    W_made, W: (2, D); x: (N, D); y: (N,), labels 0 or 1; epsilon: a number.
    Returns (N,), one difference ≥ 0 for each image.
    """
    ...


def one_sided_slope(theta, u, points):
    """4. The slope of a maximum where several points are maximisers.

    Let φ(θ) be the maximum of θᵀx over the rows x of `points`. Compute its slope if θ moves along
    u, lim (φ(θ + h u) − φ(θ))/h for h → 0 with h > 0. With the points −1 and 1, φ(θ) = |θ| has the
    slope 1 at θ = 0 in both directions u = 1 and u = −1.

    theta, u: (D,); points: (M, D). Values of θᵀx that differ by less than 1e-9 count as equal.
    Returns a number.
    """
    ...


def hidden_errors(predict, x, x_adv, y, parts):
    """5. Does the network hide its errors from a single step?

    Catastrophic overfitting shows on the way: images that are correctly classified at the start
    and at the end of the step, and misclassified somewhere between. Divide the way from x to
    x_adv into equal parts, and evaluate the network at the parts − 1 points between the two ends.

    predict: a function from images (N, 1, 28, 28) to classes (N,); x, x_adv: images; y: (N,),
    labels; parts: a number. Returns the share of such images among all N.
    """
    ...
