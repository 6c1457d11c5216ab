# %% [markdown]
r"""
# 01 Backprop

**Question.** By how much does the loss of a network change if one weight changes a little?
Training needs this number for every weight. How can we compute all of them for the price of a
few evaluations of the loss? *Backpropagation* does this. It also gives the gradient with
respect to the *input* of the network, which the attacks of this course use.

**Time.** A few seconds. **You need** NumPy, partial derivatives, the chain rule. **After this
lesson you can** write automatic differentiation, derive gradient rules, and check them.
"""

# %%
import numpy as np
from plots import backprop as plots
from support import cli

from tinyadv import Tensor, check_grads, grad, losses, ops

run = cli.start("01_backprop", __doc__, data=())
rng = np.random.default_rng(run.seed)
x = rng.uniform(-1, 1, (1200, 2))  # points in a square
label = (x[:, 1] > 0.5 * np.sin(4 * x[:, 0])).astype(int)  # 1 for the points above a curve
y = np.eye(2)[label]  # (N,) -> (N, K): class 0 is the row (1, 0), class 1 is (0, 1)
x, y, x_new, label_new = x[:200], y[:200], x[200:], label[200:]  # 200 points to train on

# %% [markdown]
# ## A network is a composed function
#
# Each layer multiplies by a matrix W, adds a bias b, and applies an *activation* f elementwise:
#
# $$f_L(\ldots f_1(W_1 f_0(W_0 x + b_0) + b_1) \ldots).$$
#
# Without activations the layers would collapse into a single layer. Common activations are the
# ReLU max(a, 0), the sigmoid 1/(1 + e⁻ᵃ), and tanh(a). Our network has two layers, and no
# activation after the second. In the code points are rows, and W x becomes `x @ W`.
#
# The K outputs z are the *logits*. The *softmax* turns them into probabilities of the classes,
# p_c = e^(z_c) / Σ_k e^(z_k). The loss is the *cross-entropy* L = −Σ_c y_c log p_c with the
# one-hot label y: minus the logarithm of the probability of the true class. Since Σ_c y_c = 1,
#
# $$L = \log \sum_k e^{z_k} - \sum_c y_c z_c, \qquad
# \frac{\partial L}{\partial z_c} = \frac{e^{z_c}}{\sum_k e^{z_k}} - y_c = p_c - y_c.$$
#
# ## The chain rule is a product of Jacobians
#
# The *Jacobian* of a function from n numbers to m numbers is the m × n matrix of its partial
# derivatives, J_ij = ∂out_i/∂in_j. By the chain rule, the Jacobian of a composition is the
# product of the Jacobians. With the W of the code, our network computes for one point a = W₀ᵀx
# + b₀, then u = tanh(a), then z = W₁ᵀu + b₁, and then L. So
#
# $$\frac{\partial L}{\partial x} = J_4 J_3 J_2 J_1, \quad J_1 = W_0^\top, \quad
# J_2 = \mathrm{diag}(1 - u^2), \quad J_3 = W_1^\top, \quad J_4 = (p - y)^\top.$$
#
# The product may be computed from either end. *Forward mode* starts at the input with J₂J₁.
# *Reverse mode* starts at the loss with J₄J₃.
#
# **Predict first.** (a) A network has 784 inputs (the pixels of an image), 100 hidden units and
# 10 classes. Which order takes fewer multiplications, and by roughly what factor?

# %%
# (i, j) @ (j, k) takes i·j·k. J₄: (1, 10), J₃: (10, 100), J₂: diagonal, J₁: (100, 784)
forward = 100 * 784 + 10 * 100 * 784 + 1 * 10 * 784  # J₂J₁, J₃(J₂J₁), J₄(J₃J₂J₁)
reverse = 1 * 10 * 100 + 100 + 1 * 100 * 784  # J₄J₃, (J₄J₃)J₂, (J₄J₃J₂)J₁
print(f"forward mode: {forward:,} multiplications, reverse mode: {reverse:,}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# (a) Reverse mode, by a factor of about ten: from the side of the loss every intermediate
# result is a single row. For a function with one input and many outputs, forward mode would be
# better.
# </details>
#
# Reverse mode carries one row, g = ∂L/∂out, from the loss to the input. Each step turns it into
# ∂L/∂in = g J, a *vector-Jacobian product*, and seldom needs J itself: for tanh, g J is g·(1 −
# u²), elementwise. The weights are inputs of their step, too. A matrix product needs one
# product for ∂L/∂x and one for ∂L/∂W. So the loss and its gradient together cost about as much
# as three evaluations of the loss, however many weights there are.
#
# ## A tape
#
# In a program a result may be used in several places, so the steps need not form a chain. Every
# result remembers its *parents*, the numbers that it was computed from, and for each parent the
# *rule* g ↦ g J. The *tape* is the list of all results, in the order of their computation.

# %%
tape = []


class Node:
    """A number, or an array, that remembers what it was computed from."""

    def __init__(self, value, parents=()):
        self.value, self.parents = value, parents  # pairs (parent, rule)
        tape.append(self)

    def __add__(self, other):
        return Node(self.value + other.value, [(self, lambda g: g), (other, lambda g: g)])

    def __mul__(self, other):
        rules = [(self, lambda g: g * other.value), (other, lambda g: g * self.value)]
        return Node(self.value * other.value, rules)


def backward(y, order):
    """∂y/∂node for the nodes that y was computed from."""
    gradient = {y: 1.0}
    for node in order:
        if node in gradient:  # y depends on it
            for parent, rule in node.parents:
                gradient[parent] = gradient.get(parent, 0.0) + rule(gradient[node])
    return gradient


p, q = Node(2.0), Node(3.0)
gradient = backward(p * q + p, reversed(tape))
assert (gradient[p], gradient[q]) == (4, 2)  # q + 1 and p
a = Node(3.0)
b = a + a
c = b + b  # = 4a
queue = [c]
for node in queue:  # first come, first served; the list grows while the loop runs
    queue += [parent for parent, _ in node.parents]
found = backward(c, reversed(tape))[a], backward(c, queue)[a]
print("∂c/∂a: {:g} along the tape, {:g} in queue order".format(*found))
assert found == (4, 8)

# %% [markdown]
# The gradient of a node says how much the output changes if the node changes. If it is used in
# several places, all uses change and the effects add up, so its gradient is their *sum*. In c =
# b + b the gradient 2 of b arrives in two parts, and b is in the queue twice. Each time it
# passes on all of it, and a receives twice what it should. A node must pass on its gradient
# once, and after all nodes that use it. (In c = b + b·p, the queue reaches b before b·p.) Such
# an order is *topological*. The tape backwards is one: a result comes after its parents.
#
# ## A tape of arrays
#
# A node for every number would be slow. A node for every array works with the same `backward`.
# A rule now takes g = ∂L/∂out, in the shape of the output, and returns ∂L/∂in, in the shape of
# the input. Written with indices, it follows from the definition of the operation.
#
# **Matrix product.** A_nk is used in out_nj = Σ_k A_nk B_kj for every j, with derivative B_kj:
#
# $$\frac{\partial L}{\partial A_{nk}} = \sum_j g_{nj} B_{kj} = (g B^\top)_{nk}, \qquad
# \frac{\partial L}{\partial B_{kj}} = \sum_n A_{nk} g_{nj} = (A^\top g)_{kj}.$$
#
# **Broadcasting.** In out_nj = A_nj + b_j, every row n uses the same b_j, so ∂L/∂b_j = Σ_n
# g_nj. In general, take the gradient of the repeated argument, and sum it over the axes along
# which it was repeated. For out_nj = A_nj b_j this gives Σ_n g_nj A_nj.

# %%
activations = {  # the function, and its derivative, computed from the output
    "ReLU": (lambda a: np.maximum(a, 0), lambda out: (out > 0) * 1.0),
    "sigmoid": (lambda a: 1 / (1 + np.exp(-a)), lambda out: out * (1 - out)),
    "tanh": (np.tanh, lambda out: 1 - out**2),
}


def dense(x, W, b):  # (N, I), (I, M), (M,) -> (N, M)
    rules = [(x, lambda g: g @ W.value.T), (W, lambda g: x.value.T @ g)]
    return Node(x.value @ W.value + b.value, [*rules, (b, lambda g: g.sum(axis=0))])


def activate(a, name):
    f, derivative = activations[name]
    out = f(a.value)
    return Node(out, [(a, lambda g: g * derivative(out))])  # the Jacobian is diagonal


def cross_entropy(z, y):
    p = np.exp(z.value) / np.exp(z.value).sum(axis=1, keepdims=True)  # softmax, (N, K)
    loss = -(y * np.log(p)).sum() / len(y)  # the mean over the points
    return Node(loss, [(z, lambda g: g * (p - y) / len(y))])


def network(x, W0, b0, W1, b1, name="tanh"):
    return dense(activate(dense(x, W0, b0), name), W1, b1)  # (N, 2) -> (N, M) -> (N, K)


def backprop(x, y, weights, name="tanh"):
    """The loss, and its gradients with respect to x and to each weight array."""
    tape.clear()
    leaves = [Node(array) for array in (x, *weights)]
    loss = cross_entropy(network(*leaves, name=name), y)
    gradient = backward(loss, reversed(tape))
    return loss.value, [gradient[leaf] for leaf in leaves]


# %% [markdown]
# ## The gradient, one weight at a time
#
# The definition of a derivative gives the same numbers, slowly. Change one number w by ±h:
#
# $$\frac{\partial L}{\partial w} \approx \frac{L(w + h) - L(w - h)}{2h}.$$
#
# The formula neglects a term of the order h², and rounding adds an error of about 10⁻¹⁶/h, so h
# must be neither too large nor too small. These *finite differences* take two evaluations of
# the loss for each weight: too slow for training, but a check for every rule.


# %%
def finite_differences(x, y, weights, name="tanh", h=1e-5):
    """The gradients of ``backprop``: each number is changed in place, and then put back."""
    gradients = [np.zeros_like(array) for array in (x, *weights)]
    for array, g in zip((x, *weights), gradients, strict=True):
        for i in np.ndindex(array.shape):
            w = array[i]
            array[i] = w + h
            above, _ = backprop(x, y, weights, name)
            array[i] = w - h
            below, _ = backprop(x, y, weights, name)
            array[i], g[i] = w, (above - below) / (2 * h)
    return gradients


largest_difference = lambda a, b: max(abs(u - v).max() for u, v in zip(a, b, strict=True))
M, few, few_y = 16, x[:20], y[:20]  # M hidden units
start = [rng.standard_normal((2, M)), np.zeros(M), rng.standard_normal((M, 2)) / 4, np.zeros(2)]
for name in activations:
    _, exact = backprop(few, few_y, start, name)
    error = largest_difference(exact, finite_differences(few, few_y, start, name))
    print(f"{name:7}  largest difference between backprop and finite differences: {error:.0e}")
    assert error < 1e-7

# %% [markdown]
# ## Training
#
# *Gradient descent* repeats W ← W − η ∂L/∂W for every weight array W, with a *learning rate* η.
# Three steps with finite differences and three with backprop arrive at the same weights.


# %%
def train(weights, gradients, steps, eta=1.0):
    for _ in range(steps):
        weights = [W - eta * g for W, g in zip(weights, gradients(weights), strict=True)]
    return weights


by_backprop = lambda w: backprop(x, y, w)[1][1:]  # [0] is the gradient with respect to x
one_at_a_time = lambda w: finite_differences(x, y, w)[1:]
error = largest_difference(train(start, by_backprop, 3), train(start, one_at_a_time, 3))
print(f"weights after three steps, largest difference: {error:.0e}")
weights = train(start, by_backprop, 500 if run.quick else 2000)
predict = lambda x: network(*map(Node, (x, *weights))).value.argmax(axis=1)  # (N, 2) -> (N,)
accuracy = float((predict(x_new) == label_new).mean())
print(f"loss: {backprop(x, y, start)[0]:.3f} before, {backprop(x, y, weights)[0]:.3f} after")
print(f"accuracy on {len(x_new):,} new points: {accuracy:.1%}")
assert error < 1e-7 and accuracy > 0.9

# %% [markdown]
# ## Check: the library computes the same
#
# A `tinyadv.Tensor` is our `Node`, `tinyadv.grad` is our `backward`, and `check_grads` compares
# gradients with finite differences. The library can also compute *the gradient of the
# gradient*. Our rules compute with arrays, so their results are not on the tape. The rules of
# the library are written in its own operations. With `create_graph=True` they are given
# tensors, so the gradient is on the tape and can be differentiated again. Lesson 11 trains
# networks with such derivatives.

# %%
z_of = lambda x, W0, b0, W1, b1: ops.tanh(x @ W0 + b0) @ W1 + b1
library_loss = lambda *arrays: losses.cross_entropy(z_of(*arrays), label[: len(x)])
tensors = [Tensor(array) for array in (x, *start)]
error = largest_difference(backprop(x, y, start)[1], grad(library_loss(*tensors), tensors))
print(f"largest difference to the library: {error:.0e}")
assert error < 1e-12
check_grads(library_loss, [x, *start], order=2)  # the gradient, and the gradient of the gradient

t = Tensor(np.array([-0.5, 2.0]))
for name, f in (("t³", lambda t: t**3), ("tanh", ops.tanh), ("ReLU", ops.relu)):
    (first,) = grad(f(t).sum(), [t], create_graph=True)
    (second,) = grad(first.sum(), [t])
    print(f"{name:4}  derivatives at −0.5 and 2: {first.value.round(3)}, second {second.round(3)}")
assert (second == 0).all()  # of the ReLU

# %% [markdown]
# (The functions act elementwise, so the gradient of their sum holds the derivative at each
# number.) The ReLU consists of two straight pieces. Its second derivative is zero everywhere
# except at the kink t = 0, where the first derivative jumps and the second is undefined.
#
# ## The same gradient, with respect to the input
#
# `backward` does not know which arrays are weights, so `backprop` returns ∂L/∂x as well. Of all
# small steps of one Euclidean length, the one along ∂L/∂x raises the loss of a *point* most.
#
# **Predict first.** (b) Keep the trained weights fixed, and move a point of class 0 along
# ∂L/∂x, in small steps of length α. Will it reach class 1? Will its path be straight?

# %%
alpha, path = 0.01, [x[[x[:, 1].argmin()]]]  # (1, 2): the lowest point, of class 0
while predict(path[-1])[0] == 0 and len(path) < 500:
    _, (g, *_) = backprop(path[-1], np.array([[1.0, 0.0]]), weights)  # g: (1, 2)
    path.append(path[-1] + alpha * g / np.linalg.norm(g))
print(f"the point is assigned to class {predict(path[-1])[0]} after {len(path) - 1} steps")
_, (arrows, *_) = backprop(x[::4], y[::4], weights)  # (N/4, 2)
figure = plots.input_gradients(x, y.argmax(1), x[::4], arrows, np.concatenate(path), predict)
run.show(figure, "input gradients")
assert predict(path[-1])[0] == 1

# %% [markdown]
# <details><summary>Answer</summary>
#
# (b) It reaches class 1, but not on a straight path: ∂L/∂x contains diag(1 − u²), and u changes
# on the way. In the figure, nearly all arrows point towards the boundary between the classes.
# </details>
#
# ## Limits
#
# Reverse mode keeps all intermediate results until the backward pass, which takes memory. At
# its kink our ReLU has the slope 0, and finite differences across the kink disagree.
#
# ## Exercises
#
# `python -m lessons.exercises 01` gives you stubs (`lessons/exercises/01.py`), and checks them.
#
# 1. Derive the two rules of a / b.
# 2. Compute the derivative of the logits along a direction of x in one pass of forward mode.
# 3. Write the rule of broadcasting for all shapes. (Hint: NumPy may add axes in front.)
# 4. For which h are finite differences most accurate? (Hint: the error is h² M/6 + r/h.)
# 5. Find an order for the backward pass without a tape, from the parents alone.
#
# ## References
#
# Rumelhart, Hinton & Williams (1986), "Learning representations by back-propagating errors".
# Baydin et al. (2018), "Automatic differentiation in machine learning: a survey".

# %%
run.record(forward=forward, reverse=reverse, accuracy=accuracy, steps_to_class_1=len(path) - 1)
