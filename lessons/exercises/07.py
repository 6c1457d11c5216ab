"""Exercises of lesson 07: replace each ``...``, then run ``python -m lessons.exercises 07``."""

import numpy as np


def robust_accuracy(distance, radii):
    """1. The robust accuracy at every radius, from one run of an attack.

    An image is robust at ε if the attack found no adversarial example within ε.

    distance: (N,), the length that the attack needed for each image: 0 if the image is
    misclassified already, and infinity if the attack found nothing.
    radii: (R,). Returns (R,), numbers between 0 and 1.
    """
    ...


def nearest_linf(z, w, y):
    """2. The shortest step in the ∞-norm to a boundary of the linearised network.

    This is `nearest_hyperplane` of the lesson in another norm. Step 1 says how far a hyperplane is
    away in the ∞-norm. Which step has just this length and leads there?

    z: (N, K), the logits; w: (N, K, D), the gradient of each logit with respect to the pixels;
    y: (N,), labels; all images are correctly classified. Returns (N, D), the steps.
    """
    ...


def minimiser(f, w, c):
    """3. Where Carlini and Wagner's objective has its minimum, if the margin is linear.

    Minimise ‖δ‖² + c max(f + wᵀδ, 0) over δ. Step 3 describes two cases; here each image has its
    own f and w, so one c may be too small for one image and large enough for another.

    f: (N,), positive margins; w: (N, D), their gradients; c: a positive number.
    Returns (N, D), one δ for each image.
    """
    ...


def shorten(predict, x, x_adv, y):
    """4. Move adversarial examples back towards their images, as far as they stay misclassified.

    Bisect on the segment from x to x_adv, for each image on its own. Halve the interval at least
    ten times; no gradient is needed.

    predict: a function from images (N, 1, 28, 28) to classes (N,); x: images, all correctly
    classified; x_adv: images, all misclassified; y: (N,), labels.
    Returns (N, 1, 28, 28), misclassified images just beyond a boundary.
    """
    ...
