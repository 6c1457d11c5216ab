"""Solutions of the exercises of lesson 07."""

import numpy as np


def robust_accuracy(distance, radii):
    """A single run gives the whole curve, because the attack did not need to know ε.

    All N images count. A misclassified one has d = 0 and is not robust at any radius, not even at
    ε = 0, where the curve gives the accuracy on clean images. An image on which the attack failed
    counts as robust, although another attack may succeed: so the curve is an upper bound on the
    true one.
    """
    return (distance > radii[:, None]).mean(axis=1)  # (N,), (R, 1) -> (R, N) -> (R,)


def nearest_linf(z, w, y):
    """In the ∞-norm all pixels move by the same amount, each against the sign of its gradient.

    δ = −a sign(w) lowers f by a‖w‖₁, so it reaches f = 0 at a = f/‖w‖₁. No shorter step does:
    |wᵀδ| ≤ ‖w‖₁ ‖δ‖∞. It looks like an FGSM step, but its length is computed. The nearest class
    need not have the smallest lead, and it may differ from the nearest class in the 2-norm.
    """
    rows = np.arange(len(z))
    f = z[rows, y][:, None] - z  # (N, K), the lead over each class; 0 over y itself
    w = w[rows, y][:, None] - w  # (N, K, D), the gradient of the lead
    norm = abs(w).sum(axis=2)  # (N, K)
    norm[rows, y] = 1  # 0 otherwise
    distance = f / norm
    distance[rows, y] = np.inf  # the label is not another class
    k = distance.argmin(axis=1)  # (N,)
    return -distance[rows, k][:, None] * np.sign(w[rows, k])


def minimiser(f, w, c):
    """δ = −t w with t = min(c/2, f/‖w‖²): the penalty pulls, but never beyond the boundary.

    Only the part of δ along w changes the margin, so any other part would be wasted length. Along
    −w, the objective is t²‖w‖² + c max(f − t‖w‖², 0). Before the boundary its slope is
    (2t − c)‖w‖², so it falls until t = c/2. Behind the boundary its slope is 2t‖w‖², so it
    rises. If t = c/2 is reached first, the attack fails, although δ is not zero. From
    c = 2f/‖w‖² on, all values of c give the same δ. This threshold differs from image to image,
    and therefore each image gets its own search.
    """
    square = (w**2).sum(axis=1)  # (N,)
    t = np.minimum(c / 2, f / square)  # (N,)
    return -t[:, None] * w


def shorten(predict, x, x_adv, y):
    """Any adversarial example is an upper bound on d(x), and bisection makes it a smaller one.

    The loop keeps x + `low` (x_adv − x) correctly classified and x + `high` (x_adv − x)
    misclassified, so a boundary lies between them. It can be applied to the result of any attack,
    such as DeepFool with its overshoot, and needs predicted classes only. The direction remains
    the one of x_adv. Only an attack that also turns δ can find the nearest error. If the segment
    crosses several boundaries, bisection finds one of them, not always the nearest.
    """
    low, high = np.zeros(len(x)), np.ones(len(x))  # shares of the way, one for each image
    for _ in range(20):
        middle = (low + high) / 2
        wrong = predict(x + middle[:, None, None, None] * (x_adv - x)) != y
        low, high = np.where(wrong, low, middle), np.where(wrong, middle, high)
    return x + high[:, None, None, None] * (x_adv - x)
