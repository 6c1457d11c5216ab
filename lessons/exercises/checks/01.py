"""Checks of the exercises of lesson 01."""

import numpy as np

from lessons.exercises.checker import exercise
from tinyadv import Tensor, grad, ops
from tinyadv.gradcheck import jvp

rng = np.random.default_rng(0)
A, G = rng.standard_normal((2, 3, 4))
B = rng.choice([-1, 1], (3, 4)) * rng.uniform(0.5, 2, (3, 4))
X, V = rng.standard_normal((2, 5, 3))
WEIGHTS = [rng.standard_normal(shape) for shape in ((3, 6), 6, (6, 4), 4)]
SHAPES = [((4, 3), (3,)), ((4, 3), (4, 1)), ((2, 4, 3), (4, 1)), ((4, 3), (4, 3)), ((5, 3), ())]


@exercise(
    cases=lambda: [(A, B, G)],
    hint="Multiply g by the derivative of a / b with respect to a, and to b.",
)
def division_rules(a, b, g):
    a, b = Tensor(a), Tensor(b)
    return tuple(grad((a / b * g).sum(), [a, b]))


@division_rules.mistake(
    "Check the sign of ∂L/∂b: if a and b are positive, a larger b lowers a / b."
)
def _(a, b, g):
    return g / b, g * a / b**2


@division_rules.mistake("The derivative of 1 / b with respect to b contains the square of b.")
def _(a, b, g):
    return g / b, -g * a / b


@division_rules.mistake(
    "These are the derivatives of a / b. A rule takes g = ∂L/∂out and returns ∂L/∂in, so g is a "
    "factor of both."
)
def _(a, b, g):
    return 1 / b, -a / b**2


@division_rules.mistake("Return ∂L/∂a first, and then ∂L/∂b.")
def _(a, b, g):
    return -g * a / b**2, g / b


@exercise(
    cases=lambda: [(V, X, *WEIGHTS)],
    hint="J₁ multiplies by W0, J₂ elementwise by 1 − u² with u = tanh(x W0 + b0), J₃ by W1.",
)
def forward_mode(v, x, W0, b0, W1, b1):
    return jvp(lambda x: ops.tanh(x @ W0 + b0) @ W1 + b1, [x], [v])[1]


@forward_mode.mistake("You left out J₂, the derivative of tanh.")
def _(v, x, W0, b0, W1, b1):
    return v @ W0 @ W1


@forward_mode.mistake(
    "You added the biases to the direction. They are constants: if x moves, they stay, so their "
    "derivative is 0."
)
def _(v, x, W0, b0, W1, b1):
    return ((1 - np.tanh(x @ W0 + b0) ** 2) * (v @ W0 + b0)) @ W1 + b1


@forward_mode.mistake(
    "You sent the direction through tanh. The Jacobian is linear: it multiplies the direction by "
    "the derivative of tanh at the point."
)
def _(v, x, W0, b0, W1, b1):
    return np.tanh(v @ W0) @ W1


@forward_mode.mistake(
    "The derivative of tanh is 1 − u² with the output u, not with the input of tanh."
)
def _(v, x, W0, b0, W1, b1):
    return ((1 - (x @ W0 + b0) ** 2) * (v @ W0)) @ W1


@forward_mode.mistake(
    "That is the difference for t = 1. The derivative is its limit for a small t, and it is exact."
)
def _(v, x, W0, b0, W1, b1):
    return (np.tanh((x + v) @ W0 + b0) - np.tanh(x @ W0 + b0)) @ W1


@exercise(
    cases=lambda: [(rng_of(i).standard_normal(long), s) for i, (long, s) in enumerate(SHAPES)],
    hint="NumPy aligns shapes at the last axis. Which axes of g does the argument not have, and "
    "which have the length 1 in it?",
)
def sum_over_copies(g, shape):
    argument = Tensor(np.zeros(shape))
    return grad(((argument + np.zeros(g.shape)) * g).sum(), [argument])[0]


def rng_of(seed):
    return np.random.default_rng(seed)


def axes(g, shape):
    """The axes of g along which an array of this shape was repeated."""
    shape = (1,) * (g.ndim - len(shape)) + shape
    return tuple(i for i in range(g.ndim) if shape[i] == 1)


@sum_over_copies.mistake(
    "You took the mean over the copies. If the argument changes, all copies change, and their "
    "effects add up."
)
def _(g, shape):
    return g.mean(axis=axes(g, shape), keepdims=True).reshape(shape)


@sum_over_copies.mistake("You took one copy only. The gradient is the sum over all copies.")
def _(g, shape):
    index = tuple(slice(0, 1) if i in axes(g, shape) else slice(None) for i in range(g.ndim))
    return g[index].reshape(shape)


@sum_over_copies.mistake(
    "You summed over the right axes, but an axis of length 1 must remain as an axis of length 1. "
    "(Hint: keepdims.)"
)
def _(g, shape):
    return g.sum(axis=axes(g, shape))


@sum_over_copies.mistake(
    "You always sum over the first axis, which is right for a bias. Which axes were repeated "
    "depends on the shape."
)
def _(g, shape):
    return g.sum(axis=0)


@sum_over_copies.mistake(
    "You treated the axes of length 1 only. The argument may also have fewer axes than g."
)
def _(g, shape):
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


@exercise(
    cases=lambda: [(1.0, 5e-4), (50.0, 1e-2), (1e-3, 1e-7)],
    hint="At its smallest value the derivative of the bound with respect to h is 0.",
)
def best_h(M, r):
    return (3 * r / M) ** (1 / 3)


@best_h.mistake(
    "For this h both terms are equal. The sum is smallest where its derivative with respect to h "
    "is 0, which is close by, but not the same."
)
def _(M, r):
    return (6 * r / M) ** (1 / 3)


@best_h.mistake("The exponent is not right: the derivative of r / h contains h², not h.")
def _(M, r):
    return (3 * r / M) ** (1 / 2)


@best_h.mistake("This is h³. Take the cube root.")
def _(M, r):
    return 3 * r / M


@best_h.mistake("This is the smallest value of the bound. Return the h for which it is reached.")
def _(M, r):
    h = best_h.answer(M, r)
    return h**2 * M / 6 + r / h


# c = b + b·p, where b = a + a, with the names a: 2, b: 0, b·p: 4, p: 1, c: 3; c does not need 5
GRAPH = {0: [2, 2], 1: [], 2: [], 3: [0, 4], 4: [0, 1], 5: [0, 2]}
LONG = {7: [1, 3], 3: [4], 4: [5], 5: [1], 1: [2, 6], 6: [2], 2: []}  # short and long ways


def order_of(order, parents, output):
    order = [int(node) for node in np.asarray(order)]
    if set(order) != set(backward_order.answer(parents, output).tolist()):
        return f"{order} are not the nodes that node {output} was computed from."
    for node in order:
        for parent in parents[node]:
            if order.index(parent) < order.index(node):
                return f"In {order}, node {parent} comes before node {node}, which uses it."
    return ""


@exercise(
    cases=lambda: [(GRAPH, 3), (LONG, 7), (GRAPH, 1)],
    judge=order_of,
    hint="Add a node to a tape only when all its parents are on it, and read the tape backwards. A "
    "recursive function can do this.",
)
def backward_order(parents, output):
    tape = []

    def visit(node):
        for parent in parents[node]:
            visit(parent)
        if node not in tape:
            tape.append(node)

    visit(output)
    return np.array(tape[::-1])


@backward_order.mistake(
    "This is the order of the queue, in which nodes are listed once for every way that leads to "
    "them. Each node must pass on its gradient once."
)
def _(parents, output):
    queue = [output]
    for node in queue:
        queue += parents[node]
    return queue


@backward_order.mistake(
    "This is the order of the queue without repetitions. It lists a node after the first node that "
    "uses it, but another node that uses it may come later."
)
def _(parents, output):
    queue = [output]
    for node in queue:
        queue += [p for p in dict.fromkeys(parents[node]) if p not in queue]
    return queue


@backward_order.mistake(
    "You list a node when you first visit it. A later node may use it as well: list it when all "
    "its parents are done, and turn the list around."
)
def _(parents, output):
    order = []

    def visit(node):
        if node not in order:
            order.append(node)
            for parent in parents[node]:
                visit(parent)

    visit(output)
    return order


@backward_order.mistake(
    "A node that is used twice is in your list twice. Remember which nodes you have visited, and "
    "list each of them once."
)
def _(parents, output):
    tape = []

    def visit(node):
        for parent in parents[node]:
            visit(parent)
        tape.append(node)

    visit(output)
    return tape[::-1]


@backward_order.mistake(
    "This is the order of the forward pass, from the inputs to the output. Turn it around."
)
def _(parents, output):
    return backward_order.answer(parents, output)[::-1]
