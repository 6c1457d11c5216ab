"""Every primitive, by one declaration: how to draw arguments for it.

``CASES`` says for each operation of the library what random arguments look like: shapes that
broadcast, axes, strides, paddings, memory orders, and values away from kinks. All that should hold
of any operation is then tested of each one in turn.
"""

import importlib
import pkgutil
import sys

import numpy as np
import pytest
import strict_cupy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tinyadv
from tinyadv import (
    Tensor,
    array_module,
    check_grads,
    conv,
    defvjp,
    grad,
    ops,
    primitive,
    tensor,
    to_numpy,
)
from tinyadv.tensor import PRIMITIVES, value_of

# ---- what arguments are made of: functions of Hypothesis's `draw` --------------------------------

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)
SIDES = st.integers(1, 4)


def seed(draw):
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


def between(low, high, sign=False):
    """Makes a function that draws an array with values from ``low`` to ``high``, or minus that."""

    def values(draw, shape=None):
        rng, shape = seed(draw), draw(SHAPES) if shape is None else shape
        x = rng.uniform(low, high, shape) * (rng.choice([-1.0, 1.0], shape) if sign else 1.0)
        return np.asarray(x, order=draw(st.sampled_from("CF")))

    return values


anything, positive = between(-2, 2), between(0.5, 2)
away_from_0 = between(0.1, 2, sign=True)


def far_apart(draw, shape=None, parity=0):
    """Values at least 0.05 from each other, and from those of the other parity."""
    rng, shape = seed(draw), draw(SHAPES) if shape is None else shape
    size = int(np.prod(shape))
    grid = 2 * (rng.permutation(size) - size // 2) + parity
    return (0.1 * grid + rng.uniform(-0.02, 0.02, size)).reshape(shape)


def unary(values):
    return lambda draw: ((values(draw),), {})


def binary(a, b):
    """Two arrays that broadcast, or an array and a Python number on either side."""

    def case(draw):
        shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3)).input_shapes
        left, right = a(draw, shapes[0]), b(draw, shapes[1])
        number = draw(st.sampled_from(["neither", "neither", "left", "right"]))
        if number == "left":
            left = float(a(draw, ()))
        if number == "right":
            right = float(b(draw, ()))
        return (left, right), {}

    return case


def axis_of(draw, ndim, several=True):
    one = st.integers(-ndim, ndim - 1) if ndim else st.none()
    if not several:
        return draw(one)
    many = st.lists(st.integers(0, ndim - 1), unique=True) if ndim else st.just([])
    many = many.flatmap(lambda axes: st.tuples(*[st.sampled_from([i, i - ndim]) for i in axes]))
    return draw(st.none() | one | many.filter(len))


def reduction(values):
    def case(draw):
        x = values(draw)
        return (x,), {"axis": axis_of(draw, x.ndim), "keepdims": draw(st.booleans())}

    return case


def along_axis(draw):
    x = anything(draw, draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)))
    return (x,), {"axis": axis_of(draw, x.ndim, several=False)}


def reshape(draw):
    x = anything(draw)
    shape = draw(st.permutations([n for n in x.shape if n > 1] + [1]))
    if draw(st.booleans()):
        shape[draw(st.integers(0, len(shape) - 1))] = -1
    return (x, tuple(shape)), {}


def transpose(draw):
    x = anything(draw)
    axes = [i - draw(st.sampled_from([0, x.ndim])) for i in range(x.ndim)]
    return (x, draw(st.none() | st.permutations(axes).map(tuple))), {}


def broadcast_to(draw):
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=1, base_shape=draw(SHAPES)))
    return (anything(draw, shapes.input_shapes[0]), shapes.result_shape), {}


def power(draw):
    if draw(st.booleans()):
        return (away_from_0(draw), draw(st.sampled_from([-2, -1, 0, 1, 2, 3, 2.0]))), {}
    return binary(positive, anything)(draw)


def where(draw):
    (a, b), _ = binary(anything, anything)(draw)
    shape = np.broadcast_shapes(np.shape(a), np.shape(b))
    shape = draw(hnp.mutually_broadcastable_shapes(num_shapes=1, base_shape=shape)).input_shapes[0]
    return (np.asarray(seed(draw).random(shape) < 0.5), a, b), {}


def masked(draw):
    x, mask = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3)).input_shapes
    return (anything(draw, x), np.asarray(seed(draw).random(mask) < 0.5)), {}


def relu_dx(draw):
    g = anything(draw)
    return (g, seed(draw).integers(-1, 2, g.shape)), {}


def clip(draw):
    x = far_apart(draw)  # never near an odd multiple of 0.1
    return (x, *sorted(0.1 * (2 * draw(st.integers(-6, 6)) + 1) for _ in range(2))), {}


def leaky_relu(draw):
    return (away_from_0(draw), *draw(st.sampled_from([(), (0.2,)]))), {}


def relu_between(draw):
    """With lines whose slopes are the derivative: with others the rule is not, on purpose."""
    v = away_from_0(draw)
    slope = np.asarray(1.0 * (v > 0))
    return (v,), {"slopes": (slope, slope.copy())}


def matmul(draw):
    n, k, m = draw(st.tuples(SIDES, SIDES, SIDES))
    batches = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2)).input_shapes
    return (anything(draw, (*batches[0], n, k)), anything(draw, (*batches[1], k, m))), {}


def dense(draw):
    n, i, o = draw(st.tuples(SIDES, SIDES, SIDES))
    b = [anything(draw, (o,))] if draw(st.booleans()) else []
    return (anything(draw, (n, i)), anything(draw, (o, i)), *b), {}


def dense_adjoint(face):
    def case(draw):
        (x, w, *_), _ = dense(draw)
        g = anything(draw, (len(x), len(w)))
        return ((g, w) if face == "dx" else (x, g)), {}

    return case


def index(draw, shape):
    """Slices, integers, Ellipsis and None; or integer arrays, which may repeat themselves."""
    if not shape or draw(st.booleans()):
        return draw(hnp.basic_indices(shape, max_dims=5, allow_newaxis=True))
    picked = draw(st.integers(1, len(shape)))
    broadcast = draw(hnp.mutually_broadcastable_shapes(num_shapes=picked, max_dims=2)).input_shapes
    return tuple(
        seed(draw).integers(-n, n, size) for n, size in zip(shape, broadcast, strict=False)
    )


def getitem(draw):
    x = anything(draw)
    return (x, index(draw, x.shape)), {}


def put_at(draw):
    shape = draw(SHAPES)
    where = index(draw, shape)
    return (anything(draw, np.empty(shape)[where].shape), where, shape), {}


def concatenate(draw):
    shape = draw(hnp.array_shapes(max_dims=3, max_side=3))
    axis = axis_of(draw, len(shape), several=False)
    lengths = draw(st.lists(SIDES, min_size=1, max_size=3))
    shapes = [
        tuple(np.where(np.arange(len(shape)) == axis % len(shape), n, shape)) for n in lengths
    ]
    return tuple(anything(draw, s) for s in shapes), {"axis": axis}


def either(draw, pair):
    """A pair, or where its numbers are equal perhaps one number."""
    return pair[0] if pair[0] == pair[1] and draw(st.booleans()) else pair


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


def convolution(face):
    """Arguments of ``conv2d`` and of its two adjoints, from one drawn geometry."""

    def case(draw):
        n, c, o = draw(st.tuples(*[st.integers(1, 3)] * 3))
        kernel, stride, padding = draw(pairs(1, 3)), draw(pairs(1, 3)), draw(pairs(0, 2))
        size = tuple(
            draw(st.integers(max(1, k - 2 * p), 6)) for k, p in zip(kernel, padding, strict=True)
        )
        out = tuple(
            (s + 2 * p - k) // d + 1
            for s, k, d, p in zip(size, kernel, stride, padding, strict=True)
        )
        x, w = anything(draw, (n, c, *size)), anything(draw, (o, c, *kernel))
        g = anything(draw, (n, o, *out))
        how = {"stride": either(draw, stride), "padding": either(draw, padding)}
        if face == "conv2d":
            b = [anything(draw, (o,))] if draw(st.booleans()) else []
            return (x, w, *b), how
        if face == "dx":
            return (g, w), how | {"size": size}
        return (x, g), how | {"kernel_size": kernel}

    return case


def pooling(face):
    """Arguments of the pooling operations: windows that tile, overlap, or leave gaps."""

    def case(draw):
        kernel = draw(pairs(1, 3))
        stride = draw(st.none() | pairs(1, 4))
        size = tuple(draw(st.integers(k, 7)) for k in kernel)
        x = far_apart(draw, (*draw(pairs(1, 3)), *size))
        how = {"kernel_size": either(draw, kernel), "stride": stride and either(draw, stride)}
        if face == "pool":
            return (x,), how
        y = conv.max_pool2d(x, **how)
        winners, g = conv._winners(x, y, **how), anything(draw, y.shape)
        return {
            "take": ((anything(draw, x.shape), winners), how),
            "put": ((g, winners), how | {"size": size}),
            "average's adjoint": ((g,), how | {"size": size}),
        }[face]

    return case


CASES = {
    "masked": masked,
    "reshape": reshape,
    "transpose": transpose,
    "broadcast_to": broadcast_to,
    "astype": lambda draw: ((anything(draw), np.dtype(np.float64)), {}),
    "sum": reduction(anything),
    "add": binary(anything, anything),
    "subtract": binary(anything, anything),
    "multiply": binary(anything, anything),
    "divide": binary(anything, away_from_0),
    "negative": unary(anything),
    "power": power,
    "exp": unary(anything),
    "log": unary(positive),
    "sqrt": unary(positive),
    "abs": unary(away_from_0),
    "maximum": binary(far_apart, lambda draw, shape: far_apart(draw, shape, parity=1)),
    "minimum": binary(far_apart, lambda draw, shape: far_apart(draw, shape, parity=1)),
    "where": where,
    "clip": clip,
    "relu": unary(away_from_0),
    "relu_dx": relu_dx,
    "leaky_relu": leaky_relu,
    "sin": unary(anything),
    "cos": unary(anything),
    "tanh": unary(anything),
    "softplus": unary(anything),
    "sigmoid": unary(anything),
    "max": reduction(far_apart),
    "logsumexp": reduction(anything),
    "softmax": along_axis,
    "log_softmax": along_axis,
    "_matmul": matmul,
    "dense": dense,
    "dense_dx": dense_adjoint("dx"),
    "dense_dw": dense_adjoint("dw"),
    "getitem": getitem,
    "put_at": put_at,
    "_concatenate": concatenate,
    "conv2d": convolution("conv2d"),
    "conv2d_dx": convolution("dx"),
    "conv2d_dw": convolution("dw"),
    "max_pool2d": pooling("pool"),
    "pool_take": pooling("take"),
    "pool_put": pooling("put"),
    "avg_pool2d": pooling("pool"),
    "avg_pool2d_dx": pooling("average's adjoint"),
    "relu_between": relu_between,
}

# What is linear, and in which arguments: in each alone, in some together, in all together.
FIRST, EACH, ALL = ((0,),), ((0,), (1,)), (range(9),)
LINEAR = {
    **dict.fromkeys(
        "reshape transpose broadcast_to astype sum getitem put_at masked".split(), FIRST
    ),
    **dict.fromkeys("divide relu_dx avg_pool2d avg_pool2d_dx pool_take pool_put".split(), FIRST),
    **dict.fromkeys("multiply _matmul dense_dx dense_dw conv2d_dx conv2d_dw".split(), EACH),
    **dict.fromkeys("add subtract negative _concatenate".split(), ALL),
    **dict.fromkeys("dense conv2d".split(), ((0, 2), (1, 2))),  # x wᵀ + b: in x and b, w and b
    "where": ((1, 2),),
}


def library_primitives():
    """The operations that the library's modules define, not those of doctests and tests."""
    for module in pkgutil.walk_packages(tinyadv.__path__, "tinyadv."):
        importlib.import_module(module.name)
    return {
        name
        for name, operation in PRIMITIVES.items()
        if operation.__module__.startswith("tinyadv.")
        and getattr(sys.modules[operation.__module__], name, None) is operation
    }


def test_every_primitive_has_a_case():
    assert set(CASES) == library_primitives()


every_primitive = pytest.mark.parametrize("name", CASES)
fewer = settings(max_examples=settings.default.max_examples // 4)  # where many are alike


# ---- tools ---------------------------------------------------------------------------------------


def convert(tree, array):
    """``tree`` (arguments, and lists, tuples and dicts) with ``array`` applied to its arrays."""
    if isinstance(tree, np.ndarray):
        return array(tree)
    if type(tree) is dict:
        return {key: convert(part, array) for key, part in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)([convert(part, array) for part in tree])
    return tree


class Call:
    """A primitive with all its arguments, as a function ``f`` of the differentiable ones."""

    def __init__(self, name, args, kwargs):
        self.operation, self.args, self.kwargs = PRIMITIVES[name], args, kwargs
        self.places = [
            i for i, x in enumerate(args) if hasattr(x, "astype") and x.dtype.kind == "f"
        ]
        self.inputs = [args[i] for i in self.places]

    def f(self, *inputs):
        args = list(self.args)
        for i, x in zip(self.places, inputs, strict=True):
            args[i] = x
        return self.operation(*args, **self.kwargs)

    def pull_back(self, u):
        """The value, and the gradients of ⟨u, f⟩."""
        tensors = [Tensor(x) for x in self.inputs]
        y = self.f(*tensors)
        return y.value, grad(y, tensors, u)


def normal_like(x):
    return np.asarray(np.random.default_rng(0).standard_normal(np.shape(x)))


def slope(f, t=1e-3):
    """f'(0) by differences between four points: the error is of order t⁴ = 1e-12."""
    return (8 * (f(t) - f(-t)) - (f(2 * t) - f(-2 * t))) / (12 * t)


def direction(arrays, rng):
    vs = [rng.standard_normal(x.shape) for x in arrays]
    length = np.sqrt(inner(vs, vs))
    return [v / length for v in vs]


def inner(xs, ys):
    return sum((x * y).sum() for x, y in zip(xs, ys, strict=True))


# ---- what holds of every primitive ---------------------------------------------------------------


@every_primitive
@given(data=st.data())
def test_derivatives_agree_with_finite_differences(name, data):
    """By hand: no word of ``check_grads`` here, so that it is not its own judge."""
    call = Call(name, *CASES[name](data.draw))
    rng = np.random.default_rng(0)
    u, v = direction(call.inputs, rng), direction(call.inputs, rng)
    weights = normal_like(call.f(*call.inputs))

    def loss(xs):  # bent, so that what flows back into the rule depends on the inputs, too
        y = call.f(*xs)
        return ((y + 0.5 * y * y) * weights).sum()

    def gradients(xs, **how):
        tensors = [Tensor(x) for x in xs]
        return grad(loss(tensors), tensors, **how), tensors

    def along(v, t):
        return [x + t * d for x, d in zip(call.inputs, v, strict=True)]

    first = slope(lambda t: loss(along(v, t)))
    np.testing.assert_allclose(inner(gradients(call.inputs)[0], v), first, rtol=1e-6, atol=1e-9)

    second = slope(lambda t: inner(gradients(along(u, t))[0], v))
    graph, tensors = gradients(call.inputs, create_graph=True)
    got = inner(grad(inner(graph, v), tensors), u)
    np.testing.assert_allclose(got, second, rtol=1e-4, atol=1e-8)


@every_primitive
@fewer
@given(data=st.data())
def test_derivatives_pass_check_grads(name, data):
    call = Call(name, *CASES[name](data.draw))
    check_grads(call.f, call.inputs, order=2, tolerance=(1e-6, 1e-4))


@every_primitive
@fewer
@given(data=st.data())
def test_a_tensor_holds_what_the_arrays_give_and_nothing_is_changed(name, data):
    call = Call(name, *CASES[name](data.draw))
    before = [x.copy() for x in call.inputs]
    y = call.f(*call.inputs)
    value, _ = call.pull_back(normal_like(y))
    assert not isinstance(y, Tensor)
    np.testing.assert_array_equal(value, np.asarray(y), strict=True)
    for x, old in zip(call.inputs, before, strict=True):
        np.testing.assert_array_equal(x, old)


@every_primitive
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@fewer
@given(data=st.data())
def test_values_and_gradients_of_any_order_keep_their_precision(name, dtype, data):
    def lower(x):
        return x.astype(dtype) if x.dtype == np.float64 else x

    args, kwargs = convert(CASES[name](data.draw), lower)
    args = [np.dtype(dtype) if isinstance(x, np.dtype) else x for x in args]
    call = Call(name, args, kwargs)
    assert call.f(*call.inputs).dtype == dtype
    tensors = [Tensor(x) for x in call.inputs]
    with np.errstate(all="ignore"):  # squares that float16 does not hold
        y = call.f(*tensors)
        first = grad((y * y).sum(), tensors, create_graph=True)
        second = grad(sum((g * g).sum() for g in first), tensors)
    for gradient in (grad(y, tensors, np.ones(y.shape, dtype)), first, second):
        for g, x in zip(gradient, call.inputs, strict=True):
            assert (g.dtype, g.shape) == (dtype, x.shape)


@every_primitive
@fewer
@given(data=st.data())
def test_a_device_gives_the_same_and_never_waits(name, device, data):
    args, kwargs = CASES[name](data.draw)
    here = Call(name, args, kwargs)
    there = Call(name, *convert((args, kwargs), device.asarray))
    u = normal_like(here.f(*here.inputs))
    u_there = device.asarray(u)
    value, gradients = here.pull_back(u)
    with strict_cupy.count() as counts:
        value_there, gradients_there = there.pull_back(u_there)
    assert (counts.syncs, counts.transfers) == (0, 0)
    for a, b in zip([value_there, *gradients_there], [value, *gradients], strict=True):
        assert type(a) is device.ndarray
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(to_numpy(a), b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LINEAR)
@fewer
@given(data=st.data())
def test_gradients_of_linear_operations_are_adjoints(name, data):
    """⟨u, A x⟩ = ⟨Aᵀu, x⟩"""
    args, kwargs = CASES[name](data.draw)
    call = Call(name, [np.asarray(x) if isinstance(x, float) else x for x in args], kwargs)
    u = normal_like(call.f(*call.inputs))
    y, gradients = call.pull_back(u)
    for together in LINEAR[name]:
        parts = [
            (g * x).sum()
            for i, g, x in zip(call.places, gradients, call.inputs, strict=True)
            if i in together
        ]
        np.testing.assert_allclose(sum(parts), (u * y).sum(), rtol=1e-11, atol=1e-11)


# ---- the checker is itself checked ---------------------------------------------------------------


def cube(rule):
    @primitive
    def cube(x):
        return x**3

    defvjp(cube, rule)
    return cube


@pytest.mark.parametrize(
    ("rule", "order"),
    [
        (lambda g, y, x: g * (2 * x**2), 1),
        (lambda g, y, x: g * (3 * x**2) * 1.00001, 1),
        (lambda g, y, x: g * (3 * value_of(x) ** 2), 2),  # ∂/∂x of the rule is lost
        (lambda g, y, x: value_of(g) * (3 * x**2), 2),  # ∂/∂g of the rule is lost
    ],
)
def test_check_grads_catches_a_rule_that_is_wrong_from_some_order_on(rule, order, monkeypatch):
    monkeypatch.setattr(tensor, "PRIMITIVES", {})
    inputs = [np.array([0.5, -1.0, 2.0])]
    if order > 1:
        check_grads(cube(rule), inputs, order=order - 1)
    with pytest.raises(AssertionError, match="gradient along a random direction"):
        check_grads(cube(rule), inputs, order=order)


@pytest.mark.parametrize("rule", [lambda g, y, x: (g * (3 * x**2))[None], lambda g, y, x: 1.0])
def test_a_rule_that_returns_another_shape_is_named(monkeypatch, rule):
    monkeypatch.setattr(tensor, "PRIMITIVES", {})
    with pytest.raises(ValueError, match=r"rule of cube for argument 0 must .*shape \(2,\)"):
        check_grads(cube(rule), [np.array([0.5, -1.0])], order=1)


def test_a_rule_in_numpy_is_found_at_second_order(monkeypatch):
    monkeypatch.setattr(tensor, "PRIMITIVES", {})
    operation = cube(lambda g, y, x: g * np.multiply(3, np.square(x)))
    check_grads(operation, [np.array([0.5, -1.0])], order=1)
    with pytest.raises(TypeError) as caught:
        check_grads(operation, [np.array([0.5, -1.0])])
    assert "write it with tinyadv.ops" in caught.value.__notes__[0]


def test_check_grads_needs_float64():
    with pytest.raises(TypeError, match="check_grads needs float64 arrays: input 1 is float32"):
        check_grads(ops.add, [np.ones(2), np.ones(2, np.float32)])
    with pytest.raises(TypeError, match="input 0 is list"):
        check_grads(ops.exp, [[1.0, 2.0]])
    with pytest.raises(TypeError, match="expected a list of input arrays"):
        check_grads(ops.exp, np.ones(2))
    with pytest.raises(ValueError, match="order must be 1 or more"):
        check_grads(ops.exp, [np.ones(2)], order=0)


def test_a_small_network_is_right_to_third_order(xp):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 2, 6, 6)), rng.standard_normal((3, 2, 3, 3))

    def network(x, w):
        y = ops.max_pool2d(ops.conv2d(x, w, padding=1), kernel_size=2)
        return ops.log_softmax(ops.reshape(y, (2, -1)))

    check_grads(network, [xp.asarray(x), xp.asarray(w)], order=3, tolerance=(1e-6, 1e-6, 1e-5))


ROWS = np.array([True, False, False, True])


@pytest.mark.parametrize("index", [
    ROWS, (ROWS,), (ROWS, slice(1, None)), (ROWS, 2), (ROWS, np.array([True, False, True])),
    (ROWS, np.array([2, 2])), (np.array([True, False, False, False]), np.array([2, 2])),
    np.eye(4, 3, dtype=bool),
])  # fmt: skip
def test_put_at_takes_masks(index):
    x = np.arange(12.0).reshape(4, 3)
    expected = np.zeros_like(x)
    np.add.at(expected, index, x[index])
    np.testing.assert_array_equal(ops.put_at(x[index], index, x.shape), expected)


# ---- a mask is no product: 0 · ∞ -----------------------------------------------------------------


def like(x, numbers):
    return array_module(x.value).asarray(np.array(numbers, x.dtype))


def images(*pixels):
    return np.array(pixels).reshape(1, 1, 2, -1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("f", "x", "at"),  # √f has an infinite slope at 0, and x has no influence on f at these places
    [
        (ops.relu, [-1.0, 0.0, 4.0], [0, 1]),
        (lambda x: ops.leaky_relu(x, 0.0), [-1.0, 4.0], [0]),
        (ops.abs, [0.0, 4.0], [0]),
        (lambda x: ops.clip(x, 0, 1), [-1.0, 0.5], [0]),
        (lambda x: ops.maximum(x, 0), [-1.0, 4.0], [0]),
        (lambda x: ops.maximum(0, x), [-1.0, 0.0, 4.0], [0, 1]),
        (lambda x: -ops.minimum(-x, 0), [-1.0, 4.0], [0]),
        (lambda x: -ops.minimum(0, -x), [-1.0, 0.0, 4.0], [0, 1]),
        (lambda x: ops.where(x > 0, x, 0), [-1.0, 4.0], [0]),
        (lambda x: ops.where(x <= 0, 0, x), [-1.0, 4.0], [0]),
        (lambda x: x**0 - 1, [-1.0, 0.0, 4.0], [0, 1, 2]),
        (lambda x: x ** like(x, [0, 0, 0, 1]) - like(x, [1, 1, 1, 0]),
         [-1.0, 0.0, np.inf, 4.0], [0, 1, 2]),
        (lambda x: ops.masked(x, x > 0), [-1.0, 4.0], [0]),
        (lambda x: ops.max(x, axis=0), [-1.0, 0.0, -2.0], [0, 2]),
        (lambda x: ops.min(x, axis=0), [1.0, 0.0, 2.0], [0, 2]),
        (lambda x: ops.max_pool2d(x, kernel_size=2), images(-1.0, -1.0, 0.0, -1.0), [0, 1, 3]),
        (
            lambda x: ops.max_pool2d(x, kernel_size=2, stride=1),
            images(-1.0, -1.0, -1.0, -1.0, 0.0, -1.0),
            [0, 1, 2, 3, 5],
        ),
    ],
)  # fmt: skip
def test_an_infinite_slope_stops_where_the_input_has_no_influence(xp, f, x, at, dtype):
    t = Tensor(xp.asarray(np.array(x, dtype)))
    with np.errstate(all="ignore"):
        y = ops.sqrt(f(t))
        [first] = grad(y, [t], xp.ones(y.shape, dtype), create_graph=True)
        [second] = grad(first, [t], xp.ones(t.shape, dtype))
    for g in first, second:
        np.testing.assert_array_equal(to_numpy(g).reshape(-1)[at], 0)


def test_logsumexp_of_minus_infinity_has_a_finite_gradient(xp):
    x = Tensor(xp.asarray([[-np.inf, -np.inf], [0.0, -np.inf]]))
    with np.errstate(divide="ignore"):
        y = ops.logsumexp(x, axis=1)
    [g] = grad(y, [x], xp.ones(2))
    np.testing.assert_array_equal(to_numpy(y), [-np.inf, 0])
    np.testing.assert_array_equal(to_numpy(g), [[0, 0], [1, 0]])


def test_the_exponent_of_a_power_of_0_has_no_gradient(xp):
    b = Tensor(xp.asarray([-1.0, 0.0, 2.0]))
    with np.errstate(all="ignore"):
        [g] = grad((0.0**b).sum(), [b])
        [h] = grad((xp.asarray([0.0, 0.0, 0.0]) ** b).sum(), [b])
    np.testing.assert_array_equal([to_numpy(g), to_numpy(h)], 0)


@pytest.mark.parametrize("a", [0.5, 2.0])
def test_a_power_of_0_has_its_mixed_derivative(xp, a):
    x, b = Tensor(xp.asarray([a])), Tensor(xp.asarray([0.0]))
    [slope] = grad(x**b, [x], create_graph=True)  # b · xᵇ⁻¹
    [mixed] = grad(slope, [b])
    np.testing.assert_allclose([to_numpy(slope), to_numpy(mixed)], [[0], [1 / a]])


def test_a_longer_precision_has_no_gradient():
    x = Tensor(np.ones(2, np.longdouble))
    if x.dtype != np.float64:  # as on Windows
        with pytest.raises(TypeError, match="float16, float32 or float64"):
            grad(ops.relu(x).sum(), [x])


def test_masked_leaves_every_bit_of_what_it_keeps(xp):
    x = np.array([-0.0, np.inf, -np.inf, np.nan, 1e-45, 3.0], np.float32)
    for mask, expected in (np.ones(6, bool), x), (np.zeros(6, bool), np.zeros(6, np.float32)):
        got = to_numpy(ops.masked(xp.asarray(x), xp.asarray(mask)))
        assert got.tobytes() == expected.tobytes()
    np.testing.assert_array_equal(ops.masked(x.astype(">f4"), x > 0), [0, np.inf, 0, 0, x[4], 3])


@pytest.mark.parametrize("mask", [np.array([1, 0]), np.array([1.0, 0.0])])
def test_masked_takes_no_numbers_for_a_mask(xp, mask):
    with pytest.raises(TypeError, match="mask of bool"):
        ops.masked(Tensor(xp.ones(2)), xp.asarray(mask))


@pytest.mark.parametrize("function", [ops.max, lambda x, **how: -ops.min(-x, **how)])
def test_the_gradient_of_a_largest_element_that_is_nan_goes_to_it(xp, function):
    x = Tensor(xp.asarray([[1.0, np.nan, 3.0], [2.0, 2.0, 1.0]]))
    y = function(x, axis=1)
    np.testing.assert_array_equal(to_numpy(y), [np.nan, 2])
    [g] = grad(y.sum(), [x])
    np.testing.assert_array_equal(to_numpy(g), [[0, 1, 0], [0.5, 0.5, 0]])


# ---- in float16 sums neither overflow nor get stuck ----------------------------------------------

HALF = np.float16
ROW, COLUMN = np.full((1, 90_000), 2, HALF), np.full((90_000, 1), 2, HALF)


@pytest.mark.parametrize(
    ("f", "x", "value", "slope"),
    [
        (ops.mean, ROW, 2, 1 / 90_000),
        (lambda x: ops.mean(x, axis=0), COLUMN, 2, 1 / 90_000),
        (lambda x: ops.mean(x, axis=1, keepdims=True), ROW, 2, 1 / 90_000),
        (lambda x: ops.sum(x, axis=0), np.full((20_000, 1), 2, HALF), 40_000, 1),
        (ops.logsumexp, ROW, 2 + np.log(90_000), 1 / 90_000),
        (ops.softmax, ROW, 1 / 90_000, 0),
        (lambda x: ops.log_softmax(x)[:, :1], ROW, -np.log(90_000), [1] + 89_999 * [-1 / 90_000]),
        (lambda x: ops.max(x, axis=1), ROW, 2, 1 / 90_000),
        (lambda x: ops.getitem(x, (np.zeros(20_000, int), 0)), np.ones((1, 1), HALF), 1, 20_000),
        (lambda x: x * np.ones((20_000, 1), HALF), np.ones((1, 1), HALF), 1, 20_000),
        (lambda x: ops.matmul(np.ones((1, 20_000), HALF), x), COLUMN[:20_000], 40_000, 1),
        (lambda x: ops.dense(x, np.ones((1, 20_000), HALF)), ROW[:, :20_000], 40_000, 1),
        (lambda x: ops.dense(COLUMN[:9000], x), np.ones((1, 1), HALF), 2, 18_000),
        (lambda x: ops.avg_pool2d(x, kernel_size=(60, 90)),
         np.full((1, 1, 60, 90), 20, HALF), 20, 1 / 5400),
        (lambda x: ops.avg_pool2d(x, kernel_size=(3000, 1), stride=1),
         np.ones((1, 1, 5999, 1), HALF), 1, (3000 - abs(np.arange(-2999, 3000))) / 3000),
        (lambda w: ops.conv2d(np.ones((1, 1, 5000, 1), HALF), w),
         np.ones((1, 1, 1, 1), HALF), 1, 5000),
    ],
)  # fmt: skip
def test_half_precision_adds_up_in_single_precision(f, x, value, slope):
    t = Tensor(x)
    y = f(t)
    [g] = grad(y, [t], np.ones(y.shape, HALF))
    assert y.dtype == g.dtype == HALF
    np.testing.assert_allclose(y.value.astype(float), value, rtol=1e-2)
    np.testing.assert_allclose(g.astype(float).ravel(), slope, rtol=1e-2, atol=1e-6)


def test_half_precision_with_a_higher_one_is_the_higher_one(xp):
    x, w = xp.ones((2, 3, 5, 5), HALF), xp.ones((4, 3, 2, 2), np.float32)
    assert ops.conv2d(x, w).dtype == ops.conv2d(w, x[:1, :, :1, :1]).dtype == np.float32
    assert ops.sum(to_numpy(x).astype(">f2")).dtype == HALF


# ---- far out, nothing overflows ------------------------------------------------------------------

both_precisions = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@both_precisions
@pytest.mark.parametrize(
    ("f", "limits", "slopes"),
    [
        (ops.relu, (0, 1e4), (0, 1)),
        (ops.leaky_relu, (-100, 1e4), (0.01, 1)),
        (ops.softplus, (0, 1e4), (0, 1)),
        (ops.sigmoid, (0, 1), (0, 0)),
        (ops.tanh, (-1, 1), (0, 0)),
    ],
)
def test_functions_reach_their_limits_at_ten_thousand(xp, f, limits, slopes, dtype):
    x = Tensor(xp.asarray(np.array([-1e4, 1e4], dtype)))
    y = f(x)
    [first] = grad(y, [x], xp.ones(2, dtype), create_graph=True)
    [second] = grad(first, [x], xp.ones(2, dtype))
    for got, expected in zip((y.value, first.value, second), (limits, slopes, 0), strict=True):
        np.testing.assert_array_equal(to_numpy(got), np.asarray(expected, dtype))


@both_precisions
@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (ops.logsumexp, [1e4]),
        (ops.softmax, [0, 0, 1]),
        (ops.log_softmax, [-2e4, -1e4, 0]),
    ],
)
def test_softmax_and_its_logarithms_hold_at_ten_thousand(xp, f, expected, dtype):
    x = Tensor(xp.asarray(np.array([[-1e4, 0, 1e4]], dtype)))
    y = f(x, axis=1)
    np.testing.assert_allclose(to_numpy(y)[0], expected, rtol=1e-6)
    weights = xp.asarray(np.arange(1, y.size + 1, dtype=dtype).reshape(y.shape))
    [g] = grad(y, [x], weights)
    at_the_top = {ops.logsumexp: [0, 0, 1], ops.softmax: [0, 0, 0], ops.log_softmax: [1, 2, -3]}
    np.testing.assert_allclose(to_numpy(g)[0], at_the_top[f], atol=1e-6)


@both_precisions
def test_sigmoid_and_softplus_are_exact_in_their_tails(xp, dtype):
    x = np.linspace(-80, 80, 1001).astype(dtype)
    z = x.astype(np.float64)
    e = np.exp(-np.abs(z))
    tolerance = 200 * np.finfo(dtype).eps  # |x| is rounded before it is the exponent of e
    for f, exact in [
        (ops.sigmoid, np.where(z > 0, 1, e) / (1 + e)),
        (ops.softplus, np.maximum(z, 0) + np.log1p(e)),
    ]:
        np.testing.assert_allclose(to_numpy(f(xp.asarray(x))), exact, rtol=tolerance)
