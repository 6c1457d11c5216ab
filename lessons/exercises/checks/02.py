"""Checks of the exercises of lesson 02."""

import numpy as np

from lessons.exercises.checker import exercise
from tinyadv import Tensor, grad, ops, optim

rng = np.random.default_rng(0)
NETWORK = [(5, 1), (2, 2), (5, 1), (2, 2)]  # of the lesson
G = rng.standard_normal((3, 4, 5))
GRADIENTS = np.array([2.0, -0.02, 200.0])
W = rng.standard_normal((2, 3, 3, 2))
STRIDED = [(rng.standard_normal((2, 3, 3)), W, (7, 6), 2),  # windows overlap
           (rng.standard_normal((2, 2, 2)), W, (8, 6), 3),  # pixels in no window
           (rng.standard_normal((2, 4, 3)), W, (6, 4), 1)]  # fmt: skip


@exercise(
    cases=lambda: [(NETWORK,), ([(3, 1)] * 3,), ([(3, 2), (3, 2), (2, 1)],)],
    hint="Keep two numbers: the width so far, and how many pixels of the image lie between two "
    "neighbouring numbers of the current map.",
)
def receptive_field(layers):
    image = y = Tensor(np.ones((1, 1, 40, 40)))
    for kernel, stride in layers:
        y = ops.conv2d(y, np.ones((1, 1, kernel, kernel)), stride=stride)
    (g,) = grad(y[0, 0, 0, 0], [image])
    return (g[0, 0, 0] != 0).sum()


@receptive_field.mistake(
    "You added up the k − 1, as if all strides were 1. After a stride of 2, neighbours in the map "
    "are two pixels apart, and a window reaches twice as far."
)
def _(layers):
    return 1 + sum(kernel - 1 for kernel, _ in layers)


@receptive_field.mistake(
    "A window's own stride does not widen it. It counts for the layers that come later."
)
def _(layers):
    width, distance = 1, 1
    for kernel, stride in layers:
        distance *= stride
        width += (kernel - 1) * distance
    return width


@receptive_field.mistake(
    "This is the number of pixels. The exercise asks how wide the square is: take the root."
)
def _(layers):
    return receptive_field.answer(layers) ** 2


@receptive_field.mistake(
    "You multiplied the kernels. Neighbouring windows overlap, so a layer widens the field by "
    "(k − 1) times the distance of its inputs only."
)
def _(layers):
    return int(np.prod([kernel for kernel, _ in layers]))


@exercise(
    cases=lambda: [(G,)],
    hint="The mean of four numbers: what is its derivative with respect to one of them?",
)
def average_pool_backward(g):
    c, p, q = g.shape
    x = Tensor(np.zeros((1, c, 2 * p, 2 * q)))
    return grad((ops.avg_pool2d(x, kernel_size=2) * g).sum(), [x])[0][0]


@average_pool_backward.mistake("The mean of a block is a quarter of the sum: a factor is missing.")
def _(g):
    return g.repeat(2, axis=1).repeat(2, axis=2)


@average_pool_backward.mistake(
    "Only one pixel of each block has a gradient in your result, as in max pooling. All four are "
    "part of the mean."
)
def _(g):
    dx = np.zeros((len(g), 2 * g.shape[1], 2 * g.shape[2]))
    dx[:, ::2, ::2] = g
    return dx


@average_pool_backward.mistake(
    "You put copies of g side by side. A block consists of neighbouring pixels: repeat each number "
    "of g, not the whole of g. (Hint: np.repeat, not np.tile.)"
)
def _(g):
    return np.tile(g / 4, (1, 2, 2))


@exercise(
    cases=lambda: [(GRADIENTS, 6, 0.001, 0.9), (-GRADIENTS, 3, 0.5, 0.99)],
    hint="Start with s = 0. In each step update s first, and then move by −η g / (√s + 10⁻⁷).",
)
def rmsprop_steps(g, steps, eta, rho):
    w = Tensor(np.zeros_like(g))
    rmsprop = optim.RMSprop([w], lr=eta, rho=rho, epsilon=1e-7)
    places = [w.value.copy()]
    for _ in range(steps):
        rmsprop.step([g])
        places.append(w.value.copy())
    return np.diff(places, axis=0)


def steps_with(g, steps, eta, s):
    """The steps for a function s of t = 1, 2, …"""
    return np.array([-eta * g / (np.sqrt(s(t)) + 1e-7) for t in range(1, steps + 1)])


@rmsprop_steps.mistake("These are the steps upwards. RMSprop subtracts them from the weights.")
def _(g, steps, eta, rho):
    return -rmsprop_steps.answer(g, steps, eta, rho)


@rmsprop_steps.mistake(
    "All your steps have the length η. But s starts at 0, and needs some steps to approach g²."
)
def _(g, steps, eta, rho):
    return steps_with(g, steps, eta, lambda t: g**2)


@rmsprop_steps.mistake("You took the step before updating s, so the first step divides by 10⁻⁷.")
def _(g, steps, eta, rho):
    return steps_with(g, steps, eta, lambda t: (1 - rho ** (t - 1)) * g**2)


@rmsprop_steps.mistake(
    "You divided by s instead of √s, so weights with small gradients take longer steps."
)
def _(g, steps, eta, rho):
    return steps_with(g, steps, eta, lambda t: ((1 - rho**t) * g**2) ** 2)


@rmsprop_steps.mistake(
    "You exchanged ρ and 1 − ρ: the running mean keeps the share ρ of s, and adds 1 − ρ of g²."
)
def _(g, steps, eta, rho):
    return steps_with(g, steps, eta, lambda t: (1 - (1 - rho) ** t) * g**2)


@rmsprop_steps.mistake(
    "You added 10⁻⁷ under the root. There it is large compared with the s of a small gradient; the "
    "lesson adds it to √s."
)
def _(g, steps, eta, rho):
    t = np.arange(1, steps + 1)[:, None]
    return -eta * g / np.sqrt((1 - rho**t) * g**2 + 1e-7)


@rmsprop_steps.mistake("These are places, not steps: return what each single step adds.")
def _(g, steps, eta, rho):
    return rmsprop_steps.answer(g, steps, eta, rho).cumsum(axis=0)


@exercise(
    cases=lambda: STRIDED,
    hint="Which window of the image was y_opq computed from? Add g_opq times the filter there.",
)
def strided_backward(g, w, size, stride):
    x = Tensor(np.zeros((1, w.shape[1], *size)))
    return grad((ops.conv2d(x, w, stride=stride) * g).sum(), [x])[0][0]


def scattered(g, w, size, stride):
    """The right answer, with what a mistake needs."""
    dx = np.zeros((w.shape[1], *size))
    for o, p, q in np.ndindex(g.shape):
        top, left = stride * p, stride * q
        dx[:, top : top + w.shape[2], left : left + w.shape[3]] += g[o, p, q] * w[o]
    return dx


@strided_backward.mistake(
    "Your windows lie side by side, one pixel apart, as if the stride were 1. The window of y_opq "
    "begins at row t p and column t q."
)
def _(g, w, size, stride):
    return scattered(g, w, size, 1)


@strided_backward.mistake(
    "You overwrite what is there. A pixel may lie in several windows and under several filters: "
    "its gradient is the sum over all uses."
)
def _(g, w, size, stride):
    dx = np.zeros((w.shape[1], *size))
    for o, p, q in np.ndindex(g.shape):
        top, left = stride * p, stride * q
        dx[:, top : top + w.shape[2], left : left + w.shape[3]] = g[o, p, q] * w[o]
    return dx


@strided_backward.mistake(
    "This is the result for the flipped filter. If you add g_opq times the filter to its window, "
    "do not flip the filter. If you convolve g, with zeros between and around its numbers, flip it."
)
def _(g, w, size, stride):
    return scattered(g, w[:, :, ::-1, ::-1], size, stride)


@strided_backward.mistake(
    "Your result is only as large as the windows reach. The image may be larger: begin with zeros "
    "of the given size, which remain at pixels in no window."
)
def _(g, w, size, stride):
    reached = [stride * (n - 1) + k for n, k in zip(g.shape[1:], w.shape[2:], strict=True)]
    return scattered(g, w, reached, stride)
