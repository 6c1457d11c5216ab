"""Solutions of the exercises of lesson 08."""

import numpy as np


def share_in_the_2_norm(g_v, g_s):
    """In the 2-norm the share is exactly the cosine.

    The attacker takes δ = −ε g_s/‖g_s‖₂, which changes the victim's margin by −ε g_vᵀg_s/‖g_s‖₂.
    The victim's own gradient would change it by −ε‖g_v‖₂. The quotient is the cosine. In the
    ∞-norm only the signs of g_s count, so there the share and the cosine differ in general. They
    are about equal if the entries behave like independent Gaussian pairs.
    """
    lengths = np.linalg.norm(g_v, axis=1) * np.linalg.norm(g_s, axis=1)
    return (g_v * g_s).sum(axis=1) / lengths


def mean_square(g, directions):
    """Random signs are slightly better: (1 + (n − 1)/M) ‖g‖², because all u have the same length.

    ‖ĝ‖² is the sum of (u_jᵀg)(u_kᵀg)(u_jᵀu_k) over all j and k, divided by M². For j ≠ k the two
    directions are independent, and E[u uᵀ] is the identity, so each of these M(M − 1) products has
    the mean ‖g‖².

    For j = k the product is (uᵀg)² ‖u‖². Split a normal u into s along g and n − 1 further entries
    r_i, all standard normal: the mean is ‖g‖² E[s² (s² + Σ r_i²)] = ‖g‖² (3 + n − 1), since
    E[s⁴] = 3. For signs, ‖u‖² is always n, so the mean is n E[(uᵀg)²] = n‖g‖².

    Together: (n + M − 1)/M ‖g‖² for signs, and (n + 2 + M − 1)/M ‖g‖² for normal entries. With a
    single direction of signs, ĝ is √n times too long.
    """
    return (1 + (len(g) - 1) / directions) * (g**2).sum()


def spread_of_stripes(g, epsilon):
    """A stripe changes the margin by ±ε times the *sum* of the gradient over its column.

    The columns have independent signs, so their squares add up: ε √(Σ_c G_c²), where G_c is the
    sum of column c. If all entries of a column are equal, G_c² is 28 times the sum of their
    squares, and stripes move the margin √28 ≈ 5.3 times as far as independent pixels. If the
    signs alternate from row to row, G_c is about 0 and stripes have hardly any effect. So stripes
    are better where the gradient keeps its sign along the columns.
    """
    columns = g.sum(axis=1)  # (N, 28, 28) -> (N, 28)
    return epsilon * np.sqrt((columns**2).sum(axis=1))


def pgd_from_queries(margin, x, epsilon, alpha, u, h):
    """m(x) is the same for all directions, so that M + 1 queries give M slopes.

    The attack lowers the margin, so it moves against the estimate. The sign needs neither the
    factor 1/M nor the right length of ĝ. All queries of a step use the current point, not x.

    With 10 steps of ε/4 and 49 directions, 500 queries in all, about half of the images still
    survive on the lesson's standard A, far more than under Square: by step 2, an estimate from 49
    directions has a cosine of only 1/√(1 + 785/49) ≈ 0.24 with the gradient.
    """
    x_adv = x
    for of_step in u:  # (M, N, 1, 28, 28)
        m, g = margin(x_adv), np.zeros_like(x)
        for each in of_step:
            slope = (margin(x_adv + h * each) - m) / h  # (N,)
            g = g + slope[:, None, None, None] * each / len(of_step)
        delta = np.clip(x_adv - alpha * np.sign(g) - x, -epsilon, epsilon)
        x_adv = np.clip(x + delta, 0, 1)
    return x_adv
