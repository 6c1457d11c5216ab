"""Exercises of lesson 01: replace each ``...``, then run ``python -m lessons.exercises 01``."""

import numpy as np


def division_rules(a, b, g):
    """1. The rules of out = a / b, for its two arguments.

    a, b: arrays of the same shape; g = ∂L/∂out, of that shape too.
    Returns two arrays, ∂L/∂a and ∂L/∂b.
    """
    ...


def forward_mode(v, x, W0, b0, W1, b1):
    """2. The derivative of the logits along a direction v of the input, without reverse mode.

    If x moves to x + t v, by how much do the logits z = tanh(x W0 + b0) W1 + b1 change, for each
    unit of a small t? Carry J₁v, J₂J₁v, J₃J₂J₁v from the input to the logits. No Jacobian that
    contains more than one point is needed.

    v, x: (N, I), a direction for each point; W0: (I, M); b0: (M,); W1: (M, K); b1: (K,).
    Returns (N, K).
    """
    ...


def sum_over_copies(g, shape):
    """3. The rule of broadcasting: the gradient of an argument of any shape.

    NumPy repeated an array of shape ``shape`` to the shape of g = ∂L/∂out. It may have put new axes
    in front, and it may have repeated axes of length 1.

    g: an array; shape: a tuple, such as (3,), (4, 1) or (). Returns an array of shape ``shape``.
    """
    ...


def best_h(M, r):
    """4. The h for which the finite differences of this lesson are most accurate.

    Let |f'''| ≤ M, and let r be the largest rounding error of one evaluation of f. Then the error
    of (f(w + h) − f(w − h)) / 2h is at most h² M / 6 + r / h. For which h is this bound smallest?

    M, r: positive numbers. Returns a number.
    """
    ...


def backward_order(parents, output):
    """5. An order for the backward pass, without a tape.

    Each node must come before its parents. List the output and all nodes that it was computed from,
    each of them once, and no others.

    parents: a dictionary. For the node i, parents[i] is the list of the nodes that i was computed
    from; a node that was used twice is in it twice. The numbers of the nodes say nothing about the
    order. output: the number of a node. Returns a list of numbers. There may be several solutions.
    """
    ...
