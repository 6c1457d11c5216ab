"""A network as linear parts and ReLUs, which can be stopped at, bounded and looked into.

Linear bounds and exact verification treat a network in the same way: what is between the ReLUs is
linear, and the ReLUs are where the work is. :func:`opened` copies a network so that each ReLU is a
:class:`Relu`, which keeps what went in and out, and lies between two lines if bounds on what goes
in are known. Max pooling becomes a tournament of ReLUs, max(a, b) = b + relu(a - b). Everything
else must be linear: convolutions, dense layers, average pooling, sums of branches. Whether it is
shows on the tape, so networks of your own need no rules here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyadv import conv, layers, ops
from tinyadv.backend import array_module
from tinyadv.layers import rebuilt
from tinyadv.parallel import may_cut, uncut
from tinyadv.tensor import Array, Tensor, defvjp, primitive, tape, value_of
from tinyadv.verify.interval import interval_bounds, interval_rule, kind_of
from tinyadv.verify.rounding import Bounds, magnitude, rounded_outward, rounding_error

# ------------------------------------------------------------------------- a ReLU between two lines


@primitive
def relu_between(v: Array, *, slopes: tuple) -> Array:
    """relu(v), whose gradient rule applies the slopes of two lines, ``(above, below)``.

    A positive gradient is multiplied by the slope of the line above, a negative one by the slope of
    the line below. See :mod:`tinyadv.verify.linear`. The value does not depend on the slopes, so no
    gradient goes through this call to them. The gradient of v does, and where it is differentiated
    again the slopes may be tensors.
    """
    return ops.relu(v)


def _between(g, y, v, *, slopes):
    above, below = slopes if isinstance(g, Tensor) else map(value_of, slopes)
    return g * ops.where(g > 0, above, below)


defvjp(relu_between, _between)


def lines(low: Array, high: Array, slope: Array | None = None) -> tuple[Array, Array]:
    """The slopes of the lines above and below relu(v) for low ≤ v ≤ high.

    The line above is the chord. ``slope``, from 0 to 1, is the slope of the line below where
    low < 0 < high; by default 0 or 1, whichever leaves the smaller area between the lines.
    """
    down, up = 0.5 * ops.minimum(low, 0), 0.5 * ops.maximum(high, 0)  # no difference overflows
    dtype = value_of(up).dtype
    below = (high > -low).astype(dtype)
    if slope is not None:
        below = ops.where(unstable(low, high), slope, below)
    return up / (up - down + float(np.finfo(dtype).tiny)), below


def unstable(low: Array, high: Array) -> Array:
    """Where a ReLU may be on either side of its kink, as an array of bool."""
    return (low < 0) & (high > 0)


USED_TWICE = "linear bounds need a ReLU of its own at each place: a module is used twice"


class Reached(Exception):
    """Carries what goes into a ReLU out of the network."""


class Relu(layers.Module):
    """A ReLU that keeps what went through it.

    Parameters
    ----------
    bounds : (low, high), optional
        Bounds on what goes in, each (R, …), with which it lies between two lines. Without them it
        is an ordinary ReLU.
    slope : (R, …), optional
        Of the line below, see :func:`lines`.
    stop : bool
        Raise :class:`Reached` with what goes in.
    found : function, optional
        ``found(low, high)`` is told the interval bounds on what goes in, and returns better ones.
    cut : bool
        Return a leaf: gradients end here.

    Attributes
    ----------
    v, h : Tensor (R, …)
        What went in and came out, or ``None``.
    g : (R, …)
        The gradient at its output, which :func:`tinyadv.verify.linear.linear_bound` sets.
    """

    def __init__(
        self, bounds: Any = None, slope: Any = None, stop: bool = False,
        found: Callable | None = None, cut: bool = False,
    ):  # fmt: skip
        self.bounds, self.slope, self.stop, self.found, self.cut = bounds, slope, stop, found, cut
        self.v: Any = None
        self.h: Any = None
        self.g: Any = None

    def __call__(self, v: Any) -> Any:
        if self.stop:
            raise Reached(v)
        if self.bounds is None:
            return ops.relu(v)
        if self.h is not None:
            raise ValueError(USED_TWICE)
        if self.cut:
            self.v, self.h = v, Tensor(ops.relu(value_of(v)))
            return self.h
        low, high = self.bounds
        self.above, self.below = lines(low, high, self.slope)
        self.v, self.h = v, relu_between(v, slopes=(self.above, self.below))
        return self.h

    def gap(self, g: Any, convert: Callable = lambda t: t) -> Any:
        """How far the chosen line lies above relu(v): the upper one where g > 0, else the lower.

        ``convert`` is applied to what went in and out, and to the lines. With bounds for a single
        row, all rows are of the same example.
        """
        low, _ = self.bounds
        v, h = (convert(t[: len(low)]) for t in (self.v, self.h))
        above, below = convert(self.above), convert(self.below)
        return ops.where(g > 0, above * (v - ops.minimum(low, 0)), below * v) - h


class MaxPoolOfRelus(layers.Module):
    """Max pooling as a tournament: max(a, b) = b + relu(a - b), and so on with the winners."""

    def __init__(self, pool: layers.MaxPool2d, new_relu: Callable):
        self.kernel_size, self.stride = pool.kernel_size, pool.stride
        pixels = math.prod(conv.pair(pool.kernel_size, "kernel_size", 1))
        self.relus = [new_relu() for _ in range(math.ceil(math.log2(pixels)))]

    def windows(self, x: Any) -> list:
        """The pixels of each window: (N, C, H, W) -> kh · kw times (N, C, P, Q)."""
        return [x[at] for at in conv.window_offsets(x.shape[2:], self.kernel_size, self.stride)]

    def tournament(self, rivals: list, play: Callable) -> Any:
        """The last of the ``rivals``; ``play(relu, first, second)`` is a round, for all pairs."""
        for relu in self.relus:
            pairs = len(rivals) // 2
            winners = play(relu, rivals[:pairs], rivals[pairs : 2 * pairs])
            rivals = [*winners, *rivals[2 * pairs :]]
        return rivals[0]

    def __call__(self, x: Any) -> Any:
        def play(relu, first, second):
            a, b = ops.concatenate(first, axis=1), ops.concatenate(second, axis=1)
            return _split(b + relu(a - b), len(first))

        return self.tournament(self.windows(x), play)


def _split(x, parts):  # (N, parts · C, P, Q) -> parts times (N, C, P, Q)
    c = x.shape[1] // parts
    return [x[:, i * c : (i + 1) * c] for i in range(parts)]


@interval_rule(Relu)
def _relu(relu, low, high, outward):
    if relu.found is not None:
        low, high = relu.found(low, high)
    return ops.relu(low), ops.relu(high)


@interval_rule(MaxPoolOfRelus)
def _max_pool(pool, low, high, outward):
    def joined(side):  # pairs of bounds -> two arrays
        return [ops.concatenate(bounds, axis=1) for bounds in zip(*side, strict=True)]

    def play(relu, first, second):
        (a, above_a), (b, above_b) = joined(first), joined(second)
        gap = a - above_b, above_a - b
        if outward:
            gap = rounded_outward(*gap, 2, magnitude(a, above_a) + magnitude(b, above_b))
        interval_bounds(relu, *gap, outward)  # which tells the ReLU
        best = ops.maximum(a, b), ops.maximum(above_a, above_b)
        return list(zip(*(_split(bound, len(first)) for bound in best), strict=True))

    rivals = list(zip(pool.windows(low), pool.windows(high), strict=True))
    return pool.tournament(rivals, play)


# ----------------------------------------------------------------------------------- the network


def opened(
    model: layers.Module, hidden: Sequence[Bounds | None] = (), slopes: Sequence | None = None,
    stop: int | None = None, found: Callable | None = None, cut: bool = False,
) -> tuple[layers.Module, list[Relu]]:  # fmt: skip
    """A copy of a network in which each ReLU is a :class:`Relu`, and the list of these.

    Parameters
    ----------
    model : Module
    hidden, slopes : lists, optional
        The ``bounds`` and the ``slope`` of each ReLU.
    stop : int, optional
        The number of the ReLU at which a pass stops.
    found : function, optional
        ``found(k, low, high)``, as for a :class:`Relu`, with its number.
    cut : bool
        As for a :class:`Relu`.

    Raises
    ------
    TypeError
        If the network does not promise that it treats each example on its own.
    """
    if not may_cut(model):
        raise TypeError(
            "linear bounds need a network that treats each example on its own: set by_example = "
            "True in the classes of your own for which that holds"
        )
    relus: list[Relu] = []

    def new_relu():
        k = len(relus)
        told = None if found is None else lambda low, high: found(k, low, high)
        bounds = hidden[k] if k < len(hidden) else None
        relus.append(Relu(bounds, slopes and slopes[k], k == stop, told, cut))
        return relus[-1]

    def change(part):
        kind = kind_of(part) if isinstance(part, layers.Module) else None
        if kind is layers.MaxPool2d:
            return MaxPoolOfRelus(part, new_relu)
        return new_relu() if kind is layers.Activation and part.name == "relu" else None

    return rebuilt(model, change), relus


def run(network: layers.Module, image: Tensor) -> Any:
    """What an opened network returns, or what goes into the ReLU at which the pass stops."""
    try:
        with uncut():
            y = network(image)
    except Reached as reached:
        y = reached.args[0]
    if not isinstance(y, Tensor):
        raise TypeError("the network ignores its input: there is nothing to bound")
    return y


def widen(nodes: list[Tensor], rows: int) -> None:
    """Let the tape of one example stand for many rows: a gradient may then differ in each of them.

    The way forward is the same for all rows, so nothing is computed or copied.
    """
    for node in nodes:
        node.value = ops.broadcast_to(node.value[:1], (rows, *node.shape[1:]))


# ---------------------------------------------------------------- what is linear, and how it rounds

# How many numbers each linear operation adds up, given its result and its arguments.
TERMS: dict[Any, Callable] = {
    ops.add: lambda y, a, b: 2,
    ops.subtract: lambda y, a, b: 2,
    ops.multiply: lambda y, a, b: 1,
    ops.divide: lambda y, a, b: 1,
    ops.sum: lambda y, x, *args, **how: x.size // max(y.size, 1),
    ops.dense: lambda y, x, w, b=None: w.shape[1],
    ops._matmul: lambda y, a, b: a.shape[-1],
    conv.conv2d: lambda y, x, w, b=None, **how: w[0].size,
    conv.avg_pool2d: lambda y, x, *, kernel_size, **how: np.prod(conv.pair(kernel_size, "", 1)),
    **dict.fromkeys(
        (ops.negative, ops.reshape, ops.transpose, ops.getitem, ops.broadcast_to, ops.put_at,
         ops._concatenate, relu_between),
        lambda y, *args, **how: 0,
    ),
}  # fmt: skip
# How many the gradient of an argument adds up, where that is not the ratio of the sizes.
TERMS_BACK: dict[Any, Callable] = {
    conv.conv2d: lambda y, x, w, b=None, **how: w[:, 0].size,
    conv.avg_pool2d: TERMS[conv.avg_pool2d],
    ops.getitem: lambda y, x, index: int(
        ops.put_at(array_module(y).ones_like(y), index, x.shape).max()
    ),
    ops.put_at: lambda y, *args: 1,
}
EPS = float(np.finfo(np.float64).eps)
PRODUCTS = (ops.multiply, ops.divide, ops.dense, ops._matmul, conv.conv2d)


def linear_nodes(y: Tensor, image: Tensor) -> list[Tensor]:
    """The tensors that lie between the image and ``y``, both included, oldest first.

    Raises
    ------
    TypeError
        If an operation between them is neither linear nor a ReLU that was opened, or the first axis
        of its result does not number the examples.
    """
    nodes, moving = [], {id(image)}
    for node in tape(y):
        arguments = [i for i, arg in enumerate(node.args) if id(arg) in moving]
        if not arguments:
            continue
        name = getattr(node.operation, "__name__", "?")
        if node.operation not in TERMS:
            raise TypeError(
                f"no linear bounds for {name}: a network must consist of linear operations in one "
                "dtype and of layers ReLU and MaxPool2d"
            )
        both = node.operation in PRODUCTS and len(arguments) > 1
        if both or (node.operation is ops.divide and arguments == [1]):
            raise TypeError(f"no linear bounds for {name} where both arguments depend on the image")
        if node.shape[:1] != image.shape[:1]:
            raise TypeError(
                "linear bounds need a network in which the first axis always numbers the "
                f"examples, but for {len(image)} of them {name} returned something of shape "
                f"{node.shape}"
            )
        moving.add(id(node))
        nodes.append(node)
    return [image, *nodes]


def rounding_errors(y: Tensor, image: Tensor, low: Array, high: Array, relus: list[Relu]) -> list:
    """How far rounding can move each of the :func:`linear_nodes`, for all low ≤ x ≤ high.

    A list of (N, …), of the shapes of the nodes. An operation whose result is computed with an
    error δ is an exact one with a perturbation δ behind it. So the errors count like the image's
    perturbation: with backprop's gradient g there, they move the output by no more than Σ |g| |δ|.
    This is true of the network and of the bounds on it. |δ| is at most γ times the sum of the
    magnitudes of what is added up, see :mod:`tinyadv.verify.rounding`; twice for the pass forward
    and twice for the pass back, whose errors at a node are sums of the same magnitudes.
    """
    bounds = {id(relu.h): relu.bounds for relu in relus if relu.h is not None}
    nodes, largest, errors = linear_nodes(y, image), {}, []
    # How many numbers a bound adds up, in float64.
    numbers = sum(node.size for node in nodes) // max(len(low), 1)
    uses = Counter(id(arg) for node in nodes for arg in node.args)  # whose gradients add up
    for node in nodes:
        terms = 1, 1
        if node is image:
            size = largest[id(node)] = magnitude(low, high)
        elif id(node) in bounds:
            size, largest[id(node)] = magnitude(*bounds[id(node)]), ops.relu(bounds[id(node)][1])
        else:
            terms = _terms(node, [arg for arg in node.args if id(arg) in largest], uses)
            size = largest[id(node)] = _of_magnitudes(node, largest)
        forward, back = (rounding_error(n, size) for n in terms)
        errors.append(forward + back + numbers * EPS * size)
    return errors


def _terms(node, arguments, uses):
    """How many numbers are added up forward, and at most back to one of these arguments."""
    given = node.value, *map(value_of, node.args)
    forward = TERMS[node.operation](*given, **node.kwargs)
    if node.operation in TERMS_BACK:
        back = TERMS_BACK[node.operation](*given, **node.kwargs)
    else:
        back = max(max(forward, 1) * node.size // arg.size for arg in arguments)
    return forward, back + max(uses[id(arg)] for arg in arguments)


def _of_magnitudes(node, largest):
    """An upper bound on |node|, if ``largest`` has those on the arguments that depend on x."""
    args = [largest.get(id(arg), value_of(arg)) for arg in node.args]
    operation = ops.add if node.operation is ops.subtract else node.operation
    if operation is ops.negative:
        return args[0]
    if operation in (*PRODUCTS, ops.add, ops._concatenate):
        args = [None if arg is None else abs(arg) for arg in args]
    return operation(*args, **node.kwargs)
