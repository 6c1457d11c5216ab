"""Solutions of the exercises of lesson 13."""

from math import comb

import numpy as np


def robust_accuracy(clean, attacked, distance, y, epsilon):
    """First the minimum over the attacks for each image, then the mean over the images.

    The other order gives the accuracy under the best single attack. That number is larger if the
    attacks fool different images. A misclassified result outside the ball proves nothing: it
    belongs to a larger ε.
    """
    survives = (attacked == y) | (distance > epsilon + 1e-6)  # (A, N)
    return (survives.all(axis=0) & (clean == y)).mean()


def pixels_that_change(x, epsilon, levels):
    """Rounding never decreases, so the two ends of a pixel's range decide.

    If no pixel can change its level, all x + δ round to the same image, and no attack can succeed:
    the image is certified. BPDA then fails for the right reason. With two levels a black or white
    pixel needs ε ≥ 1/2. Of a grey pixel near 1/2 the opposite is true: a tiny δ changes it by 1.
    """
    low, high = np.clip(x - epsilon, 0, 1), np.clip(x + epsilon, 0, 1)
    changes = np.rint((levels - 1) * low) < np.rint((levels - 1) * high)
    return changes.sum(axis=(1, 2, 3))


def bpda_step(gradient, front, x, x_adv, alpha, epsilon):
    """The gradient is taken where the forward pass arrives, front(x_adv), and used at x_adv.

    x_adv itself is never replaced by front(x_adv): the attacker hands in an image before the front,
    and its distance from x is measured there.
    """
    g = gradient(front(x_adv))
    moved = x_adv + alpha * np.sign(g)
    moved = np.clip(moved, x - epsilon, x + epsilon)
    return np.clip(moved, 0, 1)


def step_against_noise(gradient, x, noise):
    """The gradient of an expected value is the expected value of the gradient.

    So the gradients are averaged before the sign is taken. Averaging signs would give each draw
    the same weight, however little its loss depends on the pixel. The gradient at the mean of the
    draws would belong to another network, the one without noise.
    """
    mean = np.mean([gradient(x + u) for u in noise], axis=0)  # M times (N, D) -> (N, D)
    return np.sign(mean)


def by_chance(weaker, stronger):
    """The number of successes of the weaker attack is binomial: sum its upper tail from b on.

    Images that both attacks fool, or neither, say nothing about which is better. With few images
    that differ, even b of b is not a proof: (1/2)^b falls below 0.01 only from b = 7 on.
    """
    b = int((weaker & ~stronger).sum())
    n = b + int((stronger & ~weaker).sum())
    return sum(comb(n, i) for i in range(b, n + 1)) / 2**n
