# %% [markdown]
"""
# 01 Backprop: one gradient, for the weights and for the input

**Question.** A network has many weights. By how much does the loss change when one of them changes
a little, and how can all these numbers be had at once? And what does the same computation say about
the numbers that go in?

**Equation.** A network is a composed function of its input x,

    out = f_L(… f_1(W_1 · f_0(W_0 · x + b_0) + b_1) …),

and training moves its weights against the gradient of a loss, with a learning rate η:

    W ← W − η ∂Loss/∂W.

**Papers.** Rumelhart, Hinton & Williams (1986), "Learning representations by back-propagating
errors"; Baydin et al. (2018), "Automatic differentiation in machine learning: a survey";
Pearlmutter (1994), "Fast exact multiplication by the Hessian".

**Run.** `python lessons/01_backprop.py`: about 2 seconds on one core. `--full` takes a wider
network and more steps.

**What to look for.** A class of some 25 lines gives the same gradient as finite differences, to
nine decimal places. Walked in the wrong order, it gives 8 or 2 where 4 is right. The same idea with
arrays trains a network, and agrees with `tinyadv.grad` to twelve digits. The gradient for all
weights together costs a few forward passes, not two for each weight. Taken for the input, it leads
to another answer, and nearly by the shortest way.

**What was shortened.** Points in a plane instead of images, so that everything can be drawn. The
lesson makes them itself: `--data` changes nothing here.
"""

# %% [markdown]
# ## Names and settings
#
#     x       (N, 2)         the inputs: N points in the plane
#     label   (N,)           the class of each, 0 or 1
#     y       (N, K)         the same as one-hot rows: (1, 0) or (0, 1); K = 2 classes
#     W0, b0  (2, H), (H,)   weights and biases of the first layer, with H hidden units
#     W1, b1  (H, K), (K,)   weights and biases of the second
#     h       (N, H)         what the hidden units give
#     z       (N, K)         logits: a score for each class
#     out     (N, K)         probabilities
#     g                      ∂Loss/∂(something), in the shape of that something
#     η                      the learning rate
#     δ                      the step of a finite difference
#     W, V                   lists of all weights: on our tape, in the library
#     v                      a direction for the weights: a list of arrays like W
#
# The equation above has x as a column. Here each point is a row, so W · x is written x @ W.

# %%
import math
import time
from collections import defaultdict

import common
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from tinyadv import Tensor, grad, losses, models, ops, to_numpy

NAME = "01_backprop"
args = common.arguments(__doc__, datasets=())
xp = args.xp  # numpy or cupy: where the library's arrays are; the tapes made here are NumPy's

N, K = 200, 2  # points, classes
H = 64 if args.full else 16  # hidden units
STEPS = 3000 if args.full else 200 if args.quick else 600  # of gradient descent
ETA = 1.0  # η, the learning rate

rng = np.random.default_rng(args.seed)
numbers = {}  # what is recorded
print(f"{N} points, {H} hidden units, {STEPS} steps, η = {ETA}")

# %% [markdown]
# ## The data: two half circles that reach into each other


# %%
def two_moons(n, noise=0.1):
    """Points (n, 2) on two half circles, and the number of the half circle (n,)."""
    label = np.arange(n) % 2
    t = rng.uniform(0, np.pi, n)  # the angle on the half circle
    upper = np.stack([np.cos(t), np.sin(t)], axis=1)  # (n, 2)
    lower = np.stack([1 - np.cos(t), 0.5 - np.sin(t)], axis=1)  # (n, 2)
    x = np.where(label[:, None] == 0, upper, lower)
    return x + noise * rng.standard_normal((n, 2)), label


x, label = two_moons(N)
y = np.eye(K)[label]  # (N,) -> (N, K)
print("x[0] =", x[0].round(3), " label[0] =", label[0], " y[0] =", y[0])

# %% [markdown]
# ## A network is a composed function
#
# Each layer multiplies by a matrix, adds a bias and applies a function f to every number. Without f
# the layers would collapse into one matrix. Three common choices, with their slopes; each slope can
# be had from the output alone, with no further exponential. Beside the slope stands what the
# definition of a derivative gives, (f(x + δ) − f(x − δ)) / 2δ.

# %%
activations = {
    "ReLU     max(x, 0)": (lambda x: np.maximum(x, 0), lambda out: float(out > 0)),
    "sigmoid  1/(1 + exp(-x))": (lambda x: 1 / (1 + np.exp(-x)), lambda out: out * (1 - out)),
    "tanh     (eˣ - e⁻ˣ)/(eˣ + e⁻ˣ)": (np.tanh, lambda out: 1 - out**2),
}
at, delta = 0.7, 1e-5
rows = []
for name, (f, slope) in activations.items():
    difference = (f(at + delta) - f(at - delta)) / (2 * delta)
    assert abs(slope(f(at)) - difference) < 1e-9
    rows.append([name, f"{f(at):.6f}", f"{slope(f(at)):.6f}", f"{difference:.6f}"])
common.table(rows, ["activation", f"f({at})", "slope", "finite difference"])


# %% [markdown]
# In this lesson f is tanh, since it is smooth: a finite difference across the kink of a ReLU means
# nothing. The last layer has no f; softmax turns its logits z into probabilities, and the loss is
# the cross-entropy with the one-hot labels, −Σ_c y_c log out_c, averaged over the points.


# %%
def network(x, W0, b0, W1, b1):
    h = np.tanh(x @ W0 + b0)  # (N, 2) @ (2, H) + (H,) -> (N, H)
    return h @ W1 + b1  # (N, H) @ (H, K) + (K,) -> (N, K)


def softmax(z):
    e = np.exp(z)
    return e / e.sum(axis=1, keepdims=True)  # each row sums to 1


def cross_entropy(out, y):
    return -(y * np.log(out)).sum(axis=1).mean()  # (N, K) -> (N,) -> a number


def initial_weights(hidden):
    return [
        rng.standard_normal((2, hidden)),
        np.zeros(hidden),
        rng.standard_normal((hidden, K)) / np.sqrt(hidden),
        np.zeros(K),
    ]


small = initial_weights(3)  # three hidden units, so that all weights fit into a table
few, few_label, few_y = x[:10], label[:10], y[:10]
out = softmax(network(few, *small))
print("probabilities of x[0]:", out[0].round(4), " y[0]:", few_y[0])
print(f"its loss: {cross_entropy(out[:1], few_y[:1]):.4f} = -log {out[0] @ few_y[0]:.4f}")
print(f"the loss of ten points: {cross_entropy(out, few_y):.4f}")


# %% [markdown]
# ## The gradient, one weight at a time
#
# Move one weight up and down by δ, look at the loss, divide: ∂Loss/∂w. This needs nothing but the
# forward pass, and two of those for every weight. A step against the whole gradient then lowers the
# loss by about η‖∂Loss/∂W‖².


# %%
def finite_differences(loss, weights, delta=1e-5, both_sides=True):
    """(loss(w + δ) − loss(w − δ)) / 2δ for one weight w after another, each put back afterwards.

    With one side only: (loss(w + δ) − loss(w)) / δ.
    """
    back = delta if both_sides else 0.0
    gradients = []
    for W in weights:
        g = np.zeros_like(W)
        for i in np.ndindex(W.shape):
            w = W[i]
            W[i] = w + delta
            above = loss(weights)
            W[i] = w - back
            below = loss(weights)
            W[i] = w
            g[i] = (above - below) / (delta + back)
        gradients.append(g)
    return gradients


def small_loss(weights):
    return cross_entropy(softmax(network(few, *weights)), few_y)


differences = finite_differences(small_loss, small)
eta = 0.01
stepped = [W - eta * g for W, g in zip(small, differences, strict=True)]
fall = small_loss(small) - small_loss(stepped)
predicted = eta * sum((g**2).sum() for g in differences)
assert 0.5 * predicted < fall < 1.5 * predicted
print(f"one step with η = {eta}: the loss falls by {fall:.6f}; η‖∂Loss/∂W‖² = {predicted:.6f}")


# %% [markdown]
# ## A tape of numbers
#
# The chain rule does better. Every number that is computed remembers the numbers that it was made
# from, its *parents*, and its slope for each of them. What is remembered is the *tape*.


# %%
class Scalar:
    """A number that remembers its parents, and its slope for each."""

    def __init__(self, value, parents=()):
        self.value = value
        self.parents = parents  # pairs (parent, ∂self/∂parent)
        self.depth = 1 + max((parent.depth for parent, _ in parents), default=-1)

    def __add__(self, other):
        return Scalar(self.value + other.value, [(self, 1.0), (other, 1.0)])

    def __mul__(self, other):
        return Scalar(self.value * other.value, [(self, other.value), (other, self.value)])

    def relu(self):
        return Scalar(max(self.value, 0.0), [(self, float(self.value > 0))])

    def tanh(self):
        out = math.tanh(self.value)
        return Scalar(out, [(self, 1 - out**2)])

    def exp(self):
        out = math.exp(self.value)
        return Scalar(out, [(self, out)])

    def log(self):
        return Scalar(math.log(self.value), [(self, 1 / self.value)])


p, q = Scalar(2.0), Scalar(3.0)
r = p * q
s = r.relu()
print(f"r = p·q = {r.value}; ∂r/∂p, ∂r/∂q =", [slope for _, slope in r.parents])
print(f"s = max(r, 0) = {s.value}; ∂s/∂r =", [slope for _, slope in s.parents])

# %% [markdown]
# ## In which order?
#
# The gradient of a number is the sum over everything that was made from it: each child passes on
# its own gradient times the slope. Three ways to walk back, and the smallest tape that tells them
# apart: b = a + a, c = b + b. Since c = 4a, the gradient is 4.


# %%
def walk_queue(y):
    """First come, first served: whoever gets something passes on what it has."""
    gradient = defaultdict(float, {y: 1.0})
    queue = [y]
    for node in queue:  # the list grows while the loop runs
        for parent, slope in node.parents:
            gradient[parent] += gradient[node] * slope
            queue.append(parent)
    return gradient


def walk_recursive(y):
    """Each node once, as soon as it is reached."""
    gradient, seen = defaultdict(float, {y: 1.0}), set()

    def visit(node):
        if node not in seen:
            seen.add(node)
            for parent, slope in node.parents:
                gradient[parent] += gradient[node] * slope
                visit(parent)

    visit(y)
    return gradient


def topological_order(y):
    """y and all that it was made from, every node before its parents."""
    nodes, seen = [y], {y}
    for node in nodes:  # the list grows while the loop runs
        for parent, _ in node.parents:
            if parent not in seen:
                seen.add(parent)
                nodes.append(parent)
    return sorted(nodes, key=lambda node: -node.depth)  # a parent's depth is smaller


def walk_in_order(y):
    """Each node once, after all its children."""
    gradient = defaultdict(float, {y: 1.0})
    for node in topological_order(y):
        for parent, slope in node.parents:
            gradient[parent] += gradient[node] * slope
    return gradient


a = Scalar(3.0)
b = a + a
c = b + b
walks = {
    "first come, first served": walk_queue(c),
    "each once, as soon as reached": walk_recursive(c),
    "each once, children first": walk_in_order(c),
}
common.table([[how, g[b], g[a]] for how, g in walks.items()], ["walk", "∂c/∂b", "∂c/∂a"])
numbers["walks"] = {how: g[a] for how, g in walks.items()}
assert list(numbers["walks"].values()) == [8, 2, 4]

# %% [markdown]
# All three find ∂c/∂b = 2. But c is made of b twice, so b's gradient arrives in two parts. In the
# queue b stands twice, and each time passes on all of 2: a gets 8. The recursion leaves for b when
# the first part is there, passes on 1, and does not come back for the second: a gets 2. A node may
# pass on its gradient once, and only when all of it has arrived; so all that was made from it must
# have had its turn before. That is a topological order. One such order comes for free: by depth,
# the length of the longest path from the numbers that one started with.
#
# ## Backprop beside finite differences
#
# The small network on the tape of numbers, with one walk back for all 17 weights:


# %%
def scalar_loss(W0, b0, W1, b1):
    total = Scalar(0.0)
    for (x0, x1), k in zip(few, few_label, strict=True):
        x0, x1 = Scalar(x0), Scalar(x1)
        h = [(x0 * W0[0, j] + x1 * W0[1, j] + b0[j]).tanh() for j in range(3)]
        z = [h[0] * W1[0, c] + h[1] * W1[1, c] + h[2] * W1[2, c] + b1[c] for c in range(K)]
        # −log softmax(z)_k = log(e^z_0 + e^z_1) − z_k
        total = total + (z[0].exp() + z[1].exp()).log() + Scalar(-1.0) * z[k]
    return total * Scalar(1 / len(few))


leaves = [np.vectorize(Scalar, otypes=[object])(W) for W in small]  # a Scalar for each weight
loss = scalar_loss(*leaves)
gradient = walk_in_order(loss)
assert abs(loss.value - small_loss(small)) < 1e-12

rows, errors = [], []
for name, W, leaf, difference in zip(
    ["W0", "b0", "W1", "b1"], small, leaves, differences, strict=True
):
    for i in np.ndindex(W.shape):
        g = gradient[leaf[i]]
        errors.append(abs(g - difference[i]))
        weight = f"{name}[{', '.join(map(str, i))}]"
        rows.append([weight, f"{W[i]:.4f}", f"{difference[i]:.10f}", f"{g:.10f}"])
common.table(rows, ["weight", "value", "finite difference", "backprop"])
numbers["backprop_against_differences"] = max(errors)
print(f"largest difference {max(errors):.1e}; nodes on the tape: {len(topological_order(loss))}")
assert max(errors) < 1e-9

# %% [markdown]
# ## A tape of arrays
#
# A node for every number is slow. With a node for every array the idea is the same, but a slope for
# each pair of numbers would be a huge matrix. It is never needed as such: all that is asked of an
# operation is a *rule* that takes g = ∂Loss/∂output and returns ∂Loss/∂input. Two rules need some
# thought.
#
# - **Adding a bias** (N, H) + (H,) repeats it for all N rows. Its gradient is the sum over the
#   places that it was repeated to: g summed over the rows, (N, H) -> (H,).
# - **A matrix product** out = A @ B, (N, I) @ (I, H) -> (N, H). The gradient for A is made of g and
#   B, is linear in both, and has A's shape. There is one product like that: g @ Bᵀ,
#   (N, H) @ (H, I) -> (N, I). In the same way the gradient for B is Aᵀ @ g, (I, N) @ (N, H).


# %%
class Node:
    """An array that remembers its parents, and a rule for each."""

    def __init__(self, value, parents=()):
        self.value = value
        self.parents = parents  # pairs (parent, rule), with rule(∂L/∂self) = ∂L/∂parent
        self.depth = 1 + max((parent.depth for parent, _ in parents), default=-1)

    def __add__(self, other):
        return Node(
            self.value + other.value,
            [
                (self, lambda g: sum_to(g, self.value.shape)),
                (other, lambda g: sum_to(g, other.value.shape)),
            ],
        )

    def __mul__(self, other):  # element by element, of one shape
        return Node(
            self.value * other.value,
            [(self, lambda g: g * other.value), (other, lambda g: g * self.value)],
        )

    def __matmul__(self, other):
        return Node(
            self.value @ other.value,
            [(self, lambda g: g @ other.value.T), (other, lambda g: self.value.T @ g)],
        )

    def tanh(self):
        out = np.tanh(self.value)
        return Node(out, [(self, lambda g: g * (1 - out**2))])

    def log_softmax(self):  # log(e^z_k / Σ_c e^z_c) = z_k − log Σ_c e^z_c, along each row
        out = self.value - np.log(np.exp(self.value).sum(axis=1, keepdims=True))
        return Node(out, [(self, lambda g: g - np.exp(out) * g.sum(axis=1, keepdims=True))])

    def sum(self):
        return Node(self.value.sum(), [(self, lambda g: np.full_like(self.value, g))])


def sum_to(g, shape):
    """g summed over the leading axes that ``shape`` lacks: (N, H) -> (H,)."""
    return g.sum(axis=tuple(range(g.ndim - len(shape))))


def backward(loss, inputs):
    """∂loss/∂input for each input: the same walk, with rules in the place of slopes."""
    gradient = defaultdict(float, {loss: 1.0})
    for node in topological_order(loss):
        for parent, rule in node.parents:
            gradient[parent] = gradient[parent] + rule(gradient[node])
    return [gradient[node] for node in inputs]


bias = Node(np.zeros(3))
total = (Node(np.ones((5, 3))) + bias).sum()
print("a bias repeated for 5 rows:", backward(total, [bias])[0])

# %% [markdown]
# The library's `tinyadv.grad` is this with more operations, and with a walk that goes only along
# paths to what was asked for. The two losses, ours and the library's, and their gradients for all
# the weights and for x:


# %%
def our_loss(x, W0, b0, W1, b1):
    h = (x @ W0 + b0).tanh()  # (N, 2) @ (2, H) + (H,) -> (N, H)
    z = h @ W1 + b1  # (N, H) @ (H, K) + (K,) -> (N, K)
    return (z.log_softmax() * Node(-y / N)).sum()  # −Σ_c y_c log out_c, averaged


def logits(x, W0, b0, W1, b1):
    return ops.tanh(x @ W0 + b0) @ W1 + b1


def library_loss(x, *weights):
    return losses.cross_entropy(logits(x, *weights), label)


def largest_difference(one, other):
    return max(float(abs(a - to_numpy(b)).max()) for a, b in zip(one, other, strict=True))


start = initial_weights(H)
ours = [Node(array) for array in (x, *start)]
theirs = [Tensor(xp.asarray(array)) for array in (x, *start)]
our_gradients = backward(our_loss(*ours), ours)
their_gradients = grad(library_loss(*theirs), theirs)
apart = largest_difference(our_gradients, their_gradients)
numbers["our_gradient_against_tinyadv"] = apart
print("shapes of the gradients:", *[g.shape for g in our_gradients])
print(f"largest difference {apart:.1e}")
assert apart < 1e-12

# %% [markdown]
# ## Training
#
# W ← W − η ∂Loss/∂W, for all weights at once, on both tapes from the same start.

# %%
W = list(start)  # ours
V = [xp.asarray(array) for array in start]  # the library's
points = Tensor(xp.asarray(x))
curve = []
for _ in range(STEPS):
    nodes = [Node(array) for array in W]
    loss = our_loss(Node(x), *nodes)
    W = [w - ETA * g for w, g in zip(W, backward(loss, nodes), strict=True)]

    tensors = [Tensor(array) for array in V]
    V = [v - ETA * g for v, g in zip(V, grad(library_loss(points, *tensors), tensors), strict=True)]

    curve.append(float(loss.value))

x_new, label_new = two_moons(1000)  # points that it was not trained on
accuracy = float((network(x_new, *W).argmax(axis=1) == label_new).mean())
apart = largest_difference(W, V)
numbers |= {"first_loss": curve[0], "last_loss": curve[-1], "accuracy": accuracy}
numbers["our_weights_against_tinyadv"] = apart
for step in np.linspace(0, STEPS - 1, 5).astype(int):
    print(f"step {step + 1:4}   loss {curve[step]:.4f}")
print(f"accuracy on new points: {100 * accuracy:.1f} %")
print(f"weights, ours against tinyadv's: largest difference {apart:.1e}")
assert accuracy > (0.85 if args.quick else 0.97)
assert apart < 1e-10

# %% [markdown]
# ## How exact, and at what price
#
# A finite difference has two errors. Truncation: the curve is no straight line, an error of the
# order δ² (with one side only, δ). Rounding: the two losses agree in most of their digits, an error
# of the order 10⁻¹⁶ / δ. So there is a best δ, and even there a third of the digits are lost.


# %%
def loss_of(weights):
    return cross_entropy(softmax(network(x, *weights)), y)


def distance(one, other):
    """‖one − other‖ / ‖other‖ over all weights together."""
    one, other = (np.concatenate([to_numpy(g).ravel() for g in gs]) for gs in (one, other))
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


exact = our_gradients[1:]  # of the weights; [0] is that of x
widths = 10.0 ** np.arange(-12, 0.1, 2 if args.quick else 0.5)
two_sided, one_sided = (
    [distance(finite_differences(loss_of, start, d, both), exact) for d in widths]
    for both in (True, False)
)
best = int(np.argmin(two_sided))
numbers["best_difference"] = {"delta": widths[best], "relative_error": two_sided[best]}
print(f"best finite difference: δ = {widths[best]:.0e}, relative error {two_sided[best]:.0e}")
print(f"our tape against tinyadv: relative error {distance(our_gradients, their_gradients):.0e}")
assert 1e-12 < two_sided[best] < 1e-6
assert two_sided[0] > 1e-6 and two_sided[-1] > 1e-3

# %% [markdown]
# The price: the walk back does for each operation about twice the work of its forward, and gets the
# gradient for all weights at once. Finite differences take two forwards for each weight. (Measured:
# the first two columns of times. Calculated: the third.)


# %%
def best_time(f, repeats=5 if args.quick else 30):
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        f()
        times.append(time.perf_counter() - started)
    return min(times)


rows, numbers["cost"] = [], []
inputs = xp.asarray(x.astype(np.float32))
for width in (16, 64, 256):
    model = models.mlp((2, width, width, K), args.seed, activation="tanh").to(args.backend)
    weights = model.parameters()

    def forward(model=model):
        return losses.cross_entropy(model(inputs), label)

    # float() waits for a GPU to finish
    forward_time = best_time(lambda f=forward: float(f()))
    gradient_time = best_time(lambda f=forward, w=weights: float(grad(f(), w)[0].sum()))
    count = sum(w.size for w in weights)
    times = gradient_time / forward_time
    rows.append([
        count,
        f"{1000 * forward_time:.2f} ms",
        f"{1000 * gradient_time:.2f} ms",
        f"{times:.1f}",
        f"{2 * count * forward_time:.2f} s",
    ])  # fmt: skip
    numbers["cost"].append({"weights": count, "gradient_in_forwards": times})
    assert times < count / 5  # ten times cheaper at least, on however busy a machine
common.table(rows, ["weights", "forward", "with gradient", "ratio", "finite differences"])

# %% [markdown]
# ## The gradient of the gradient
#
# Our rules compute with arrays, so what they return remembers nothing. tinyadv's rules are written
# in the library's operations: that of tanh is `lambda g, y, x: g * (1 - y * y)`. Given arrays it
# returns an array. Given tensors, as by `grad(…, create_graph=True)`, it records as every operation
# does, and the gradient comes with a tape of its own. For y = x³ at x = 2:

# %%
t = Tensor(xp.asarray(2.0))
cube = t**3
(first,) = grad(cube, [t], create_graph=True)
(second,) = grad(first, [t], create_graph=True)
(third,) = grad(second, [t])
print(f"3x² = {float(first):g}, 6x = {float(second):g}, 6 = {float(third):g}")
assert [float(first), float(second), float(third)] == [12, 12, 6]

# %% [markdown]
# For a network with P weights the second derivatives are a matrix (P, P), the Hessian. Its product
# with a vector v is the gradient of the number ∂Loss/∂W · v: two walks, and the matrix itself is
# never made.

# %%
v = [xp.asarray(rng.standard_normal(w.shape)) for w in V]
tensors = [Tensor(w) for w in V]
slopes = grad(library_loss(points, *tensors), tensors, create_graph=True)
along_v = sum((s * d).sum() for s, d in zip(slopes, v, strict=True))  # ∂Loss/∂W · v
product = [to_numpy(part) for part in grad(along_v, tensors)]


def gradient_at(t):
    """The gradient at the weights V + t·v."""
    moved = [Tensor(w + t * d) for w, d in zip(V, v, strict=True)]
    return [to_numpy(g) for g in grad(library_loss(points, *moved), moved)]


ahead, behind = gradient_at(delta), gradient_at(-delta)
difference = [(a - b) / (2 * delta) for a, b in zip(ahead, behind, strict=True)]
numbers["hessian_vector_against_differences"] = distance(product, difference)
print("Hessian · v, against finite differences of the gradient:")
print(f"relative difference {distance(product, difference):.1e}")
assert distance(product, difference) < 1e-6

# %% [markdown]
# ## The same gradient, for x
#
# Nothing in the walk back knows what a weight is. Asked for x, it says where the input would have
# to move for the loss to rise: ∂Loss/∂x. Every attack in the lessons to come starts here. Take a
# point that the network gets right, and walk along the gradient until the answer changes. With two
# classes that is where the loss passes log 2 = 0.693, the loss of a probability of one half.


# %%
def answer(x):
    """The class that the trained network gives to points: (n, 2) -> (n,)."""
    return to_numpy(logits(xp.asarray(x), *V)).argmax(axis=1)


def input_gradient(x, label):
    """∂Loss/∂x for points (n, 2), and their losses (n,)."""
    moving = Tensor(xp.asarray(x))
    loss = losses.cross_entropy(logits(moving, *V), label, reduction="none")
    return to_numpy(grad(loss.sum(), [moving])[0]), to_numpy(loss)


PACE = 0.02  # the length of one step
path, rows = [x[label == 0][x[label == 0, 0].argmin()]], []  # from the left end of class 0
while len(path) < 100:
    point = path[-1][None]  # (1, 2)
    g, loss = input_gradient(point, [0])  # (1, 2), (1,)
    crossed = answer(point)[0] == 1
    if crossed or len(path) % 5 == 1:
        place = [f"{coordinate:.2f}" for coordinate in path[-1]]
        rows.append([len(path) - 1, *place, f"{loss[0]:.4f}", answer(point)[0]])
    if crossed:
        break
    path.append(path[-1] + PACE * g[0] / np.linalg.norm(g))
common.table(rows, ["step", "x[0]", "x[1]", "loss", "answer"])
path = np.array(path)  # (steps + 1, 2)
assert answer(path[:1])[0] == 0 and answer(path[-1:])[0] == 1

# %% [markdown]
# Is that direction anything special? Look at all points of circles around the start: how near is
# the other answer at its nearest, and how many directions reach it over the length of the path?

# %%
turn = np.linspace(0, 2 * np.pi, 720, endpoint=False)
directions = np.stack([np.cos(turn), np.sin(turn)], axis=1)  # (720, 2)
length = PACE * (len(path) - 1)
nearest = next(r for r in np.arange(0, 3, 0.005) if answer(path[0] + r * directions).any())
share = float(answer(path[0] + length * directions).mean())
numbers |= {"path_length": length, "nearest_other_answer": nearest, "share_of_directions": share}
print(f"length of the path: {length:.2f}; the nearest point with the other answer: {nearest:.2f}")
print(f"at the length of the path, {100 * share:.0f} % of all directions reach the other answer")
assert length < 1.25 * nearest + PACE and share < 0.25

# %% [markdown]
# ## The figure


# %%
def draw_gradient_for_x(ax):
    sides = [np.linspace(-1.5, 2.5, 200), np.linspace(-1.15, 1.65, 140)]
    grid = np.stack(np.meshgrid(*sides), axis=-1)  # (140, 200, 2)
    z = to_numpy(logits(xp.asarray(grid.reshape(-1, 2)), *V))  # (28000, K)
    p = softmax(z)[:, 1].reshape(grid.shape[:2])  # probability of class 1, (140, 200)
    pale = LinearSegmentedColormap.from_list("", ["#cfe6f5", "white", "#fbe3c0"])
    ax.imshow(p, extent=(-1.5, 2.5, -1.15, 1.65), origin="lower", cmap=pale, aspect="auto")
    ax.contour(*sides, p, levels=[0.5], colors="black", linewidths=1.2)
    for k, colour in enumerate([common.BLUE, common.RED]):
        ax.plot(*x[label == k].T, "o", color=colour, markersize=3, alpha=0.5, markeredgewidth=0)
    some = np.arange(0, N, 5)
    g, _ = input_gradient(x[some], label[some])
    g *= 0.25 / np.linalg.norm(g, axis=1, keepdims=True)
    ax.quiver(*x[some].T, *g.T, angles="xy", scale_units="xy", scale=1, width=0.004, color="0.35")
    ax.plot(*path.T, color="black", linewidth=3)
    ax.plot(*path[0], "o", color="white", markeredgecolor="black", markersize=9)
    ax.plot(*path[-1], "X", color="white", markeredgecolor="black", markersize=11)
    ax.text(-1.4, 1.4, "answer 0", color=common.BLUE)
    ax.text(2.4, -1.0, "answer 1", color=common.RED, ha="right")
    ax.set(xticks=[], yticks=[], title="∂Loss/∂x leads to the other answer")
    ax.set_xlabel("arrows: ∂Loss/∂x;  ○–✕: the walk of one point")
    ax.spines[["left", "bottom"]].set_visible(False)


def draw_step_sizes(ax):
    ax.loglog(widths, one_sided, "s-", color=common.ORANGE, markersize=3.5)
    ax.loglog(widths, two_sided, "o-", color=common.BLUE, markersize=3.5)
    ax.text(3e-5, 4e-4, "one side", color=common.ORANGE, ha="right")
    ax.text(1e-4, 2e-11, "both sides", color=common.BLUE)
    ax.axhline(distance(our_gradients, their_gradients), color=common.GREEN)
    ax.text(1e-12, 4e-16, "backprop, ours and tinyadv's", color=common.GREEN)
    ax.set(xlabel="step δ of the difference", ylabel="relative error", ylim=(3e-17, 3))
    ax.set_title("Finite differences lose digits")


def draw_walks(ax):
    columns = {a: 6.0, b: 7.9, c: 9.8}  # where each number of the tape stands
    for (node, at), name in zip(columns.items(), "abc", strict=True):
        ax.text(at, 8.3, name, ha="center", va="center", fontsize=14, fontstyle="italic",
                bbox={"boxstyle": "circle,pad=0.35", "facecolor": "white"})  # fmt: skip
        ax.text(at, 6.9, f"{node.value:g}", ha="center", va="center", color=common.GREY)
        ax.text(at, 5.7, f"∂c/∂{name}", ha="center", va="center")
    for left, right in [(6.0, 7.9), (7.9, 9.8)]:
        for bend in ("arc3,rad=0.5", "arc3,rad=-0.5"):  # each is made of the one before twice
            style = {"arrowstyle": "-|>", "connectionstyle": bend, "fc": "black", "shrinkA": 12}
            ax.annotate("", (right, 8.3), (left, 8.3), arrowprops=style | {"shrinkB": 12})
    ax.text(0, 8.3, "b = a + a\nc = b + b", va="center", fontstyle="italic")
    ax.text(0, 6.9, "value", va="center", color=common.GREY)
    ax.text(0, 5.7, "walk", va="center")
    ax.axhline(5.1, color="black", linewidth=0.8)
    for row, (how, gradient) in enumerate(walks.items()):
        height = 4.3 - 1.75 * row
        ax.text(0, height, how.replace(", ", ",\n"), va="center")
        for node, at in columns.items():
            right = gradient[node] == walks["each once, children first"][node]
            ax.text(at, height, f"{gradient[node]:g}", ha="center", va="center", fontsize=14,
                    color=common.GREEN if right else common.RED,
                    fontweight="bold" if node is a else "normal")  # fmt: skip
    ax.set(xlim=(0, 10.5), ylim=(0, 9.4), title="Only one walk is right")
    ax.set_axis_off()


fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained", width_ratios=[1.35, 1, 1])
draw_gradient_for_x(axes[0])
draw_step_sizes(axes[1])
draw_walks(axes[2])
common.save_figure(fig, args, NAME)
common.record(args, NAME, numbers)

# %% [markdown]
# ## Try next
#
# - Replace tanh by ReLU everywhere, and look at the boundary and at the finite differences.
# - Give `Node` a method `relu` and a product with broadcasting, and check them.
# - Write an operation of your own for the library, with `tinyadv.primitive` and `tinyadv.defvjp`,
#   and let `tinyadv.check_grads` look at it.
# - Let a chain b = a + a be 30 long, and count how often each walk multiplies.
# - Walk along −∂Loss/∂x: where does the network feel safest?
