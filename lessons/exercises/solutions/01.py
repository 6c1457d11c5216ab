"""Solutions of the exercises of lesson 01."""

import numpy as np


def division_rules(a, b, g):
    """The Jacobians are diagonal, so both rules are elementwise products of g and a derivative.

    ∂out/∂a = 1/b and ∂out/∂b = −a/b². The second one is −out/b, so the backward pass can use the
    output again, as the rule of tanh does.
    """
    out = a / b
    return g / b, -g * out / b


def forward_mode(v, x, W0, b0, W1, b1):
    """Each layer multiplies the direction by its Jacobian; a constant such as b has derivative 0.

    The direction travels beside the values, so nothing has to be kept for a backward pass. But one
    pass answers for one direction only: the gradient with respect to I inputs takes I passes.
    """
    u = np.tanh(x @ W0 + b0)  # (N, M)
    along_a = v @ W0  # J₁v, (N, M)
    along_u = (1 - u**2) * along_a  # J₂J₁v
    return along_u @ W1  # J₃J₂J₁v, (N, K)


def sum_over_copies(g, shape):
    """All copies are the same number, so its gradient is the sum of the gradients of the copies.

    NumPy aligns shapes at the last axis. So first sum over the axes that it put in front, and then
    over those of length 1, which must remain as axes of length 1.
    """
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))  # the new axes in front
    repeated = tuple(axis for axis, length in enumerate(shape) if length == 1)
    return g.sum(axis=repeated, keepdims=True)


def best_h(M, r):
    """The derivative of the bound, h M / 3 − r / h², is 0 for h³ = 3 r / M.

    For a smaller h rounding dominates, and for a larger h the neglected term. With M = 1 and
    r = 10⁻¹⁶, as in float64, it is h ≈ 7·10⁻⁶; the lesson takes 10⁻⁵. With the r of float32, which
    is 5·10⁸ times larger, h is about 800 times larger.
    """
    return (3 * r / M) ** (1 / 3)


def backward_order(parents, output):
    """A depth-first search finishes a node after all nodes that it was computed from.

    So the order in which nodes are finished is a tape: every node comes after its parents.
    Backwards it is an order for the backward pass. To note a node at its first visit is not enough,
    because another node that uses it may be found later.
    """
    tape, seen = [], set()

    def visit(node):
        if node not in seen:
            seen.add(node)
            for parent in parents[node]:
                visit(parent)
            tape.append(node)  # all its parents are on the tape

    visit(output)
    return tape[::-1]
