"""The tape and its gradients; then what operations do with axes, shapes, indices and ties.

That each rule is right is tested in test_primitives.py. Here: that rules are applied to the right
nodes, once, in the right order, and that NumPy's ways of calling an operation all work.
"""

import gc
import warnings
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinyadv import (
    Tensor,
    check_grads,
    defvjp,
    grad,
    ops,
    parallel,
    primitive,
    tensor,
    to_numpy,
    value_and_grad,
)
from tinyadv.tensor import tape

equal = np.testing.assert_array_equal
close = np.testing.assert_allclose


def leaf(*values, dtype=np.float64):
    return Tensor(np.array(values, dtype))


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape)


@pytest.fixture
def own_primitives(monkeypatch):
    """Operations made in a test are not added to the library's."""
    monkeypatch.setattr(tensor, "PRIMITIVES", {})


# ---- the walk ------------------------------------------------------------------------------------


def test_every_use_of_an_input_adds_up():
    x = leaf(3.0)
    equal(grad(x * x * x + x, [x]), [[28.0]])


def test_a_node_waits_for_everything_that_uses_it():
    """Walked in the wrong order, c = b + b = 4a passes on b's gradient when it is half complete."""
    a = leaf(1.0)
    b = a + a
    c = b + b
    equal(grad(c, [a]), [[4.0]])
    equal(grad(c + b, [a, b]), [[6.0], [3.0]])
    equal(grad(b * c, [a, b]), [[16.0], [8.0]])  # b · 2b


def test_diamonds_agree_with_finite_differences():
    def diamond(x, y):
        left, right = ops.tanh(x), x * y
        middle = left * right
        return middle * left + ops.exp(right) * middle + y

    check_grads(diamond, [random(3), random(3, seed=1)], order=3)


def test_inner_nodes_get_gradients_like_leaves_also_when_both_are_asked_for():
    x = leaf(2.0)
    inner = x * x
    y = inner * inner * x
    expected = [5 * 2.0**4, 2 * 2.0**2 * 2.0, 1.0]
    for chosen in ([0, 1, 2], [2, 0], [1], [1, 0]):
        everything = [x, inner, y]
        got = grad(y, [everything[i] for i in chosen])
        equal(got, [[expected[i]] for i in chosen])


def test_an_input_may_be_asked_for_twice():
    x = leaf(2.0, 3.0)
    equal(grad((x * x).sum(), [x, x]), [[4.0, 6.0], [4.0, 6.0]])


def test_unused_inputs_get_zeros_or_an_error(xp):
    x, unused = Tensor(xp.ones(2)), Tensor(xp.ones((3, 1), np.float32))
    for create_graph in False, True:
        g = grad(x.sum(), [x, unused], create_graph=create_graph)[1]
        assert isinstance(g, Tensor) is create_graph
        equal(to_numpy(g), np.zeros((3, 1), np.float32), strict=True)
    with pytest.raises(ValueError, match="does not depend on input 1"):
        grad(x.sum(), [x, unused], unused="raise")


def test_an_output_with_a_shape_needs_a_cotangent_of_that_shape():
    x = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match=r"scalar output and got shape \(2,\)"):
        grad(x * x, [x])
    for wrong in np.ones(3), np.ones((2, 1)), Tensor(np.ones(1)):
        with pytest.raises(ValueError, match=r"cotangent must have shape \(2,\)"):
            grad(x * x, [x], wrong)
    for cotangent in np.array([1.0, 10.0]), leaf(1.0, 10.0):
        equal(grad(x * x, [x], cotangent), [[2.0, 40.0]])


def test_a_gradient_can_be_differentiated_for_its_cotangent():
    x, u = leaf(1.0, 2.0), leaf(3.0, 4.0)
    [g] = grad(x * x * x, [x], u, create_graph=True)  # 3 x² u
    equal(grad(g.sum(), [u, x]), [[3.0, 12.0], [18.0, 48.0]])


def test_derivatives_of_any_order():
    x = leaf(0.5)
    y = ops.exp(2.0 * x)
    for n in range(1, 6):
        [y] = grad(y, [x], create_graph=True)
        close(y.value, [2.0**n * np.exp(1.0)])


def test_rules_run_only_along_paths_to_what_was_asked_for(own_primitives):
    """An attack, which asks for x, pays for no weight's gradient; training for no image's."""
    calls = []

    @primitive
    def times(x, w):
        return x * w

    defvjp(
        times,
        lambda g, y, x, w: calls.append("x") or g * w,
        lambda g, y, x, w: calls.append("w") or g * x,
    )
    x, w1, w2 = leaf(2.0), leaf(3.0), leaf(5.0)
    y = times(times(x, w1), w2)
    for asked, expected in [([x], "xx"), ([w1], "xw"), ([w2], "w"), ([x, w1], "xxw"), ([], "")]:
        calls.clear()
        grad(y, asked)
        assert sorted(calls) == sorted(expected)


def test_a_chain_of_30_000_operations_is_walked_and_freed_without_recursion():
    x = y = leaf(1.0)
    for _ in range(30_000):
        y = y * 1.00001
    close(grad(y, [x]), [[1.00001**30_000]])
    [g] = grad(y, [x], create_graph=True)
    assert len(tape(g)) > 29_000
    del y, g
    gc.collect()


def test_a_graph_with_exponentially_many_paths_is_walked_once():
    x = y = leaf(1.0)
    for _ in range(60):
        y = y + y
    equal(grad(y, [x]), [[2.0**60]])


def test_a_tape_is_freed_as_soon_as_nothing_uses_it():
    """No reference cycles: memory does not have to wait for the garbage collector."""
    gc.disable()
    try:
        x = leaf(1.0, 2.0)
        inner = ops.exp(x) * x
        y = inner.sum()
        [g] = grad(y, [x], create_graph=True)
        grad(g.sum(), [x])
        watched = [weakref.ref(t) for t in (inner, y, g)]
        del inner, y, g
        assert [r() for r in watched] == [None] * 3
    finally:
        gc.enable()


def smooth_graph(draw):
    """A random expression of two inputs, in which every step may use every earlier one."""
    unary = [ops.tanh, ops.sigmoid, ops.softplus, lambda x: 0.5 * x, lambda x: -x, ops.logsumexp]
    binary = [ops.add, ops.subtract, ops.multiply, lambda a, b: a / (2 + b * b)]
    steps = [
        (
            draw(st.sampled_from(unary + binary)),
            draw(st.integers(0, i + 1)),
            draw(st.integers(0, i + 1)),
        )
        for i in range(draw(st.integers(1, 12)))
    ]

    def function(*nodes):
        nodes = list(nodes)
        for f, i, j in steps:
            nodes.append(f(nodes[i], nodes[j]) if f in binary else f(nodes[i]))
        return nodes[-1] + nodes[-2] * nodes[0]

    return function


@given(data=st.data())
def test_random_graphs_agree_with_finite_differences(data):
    check_grads(smooth_graph(data.draw), [random(3), random(2, 1, seed=1)], order=2)


# ---- a batch in pieces ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [15, 16, 17, 150])
def test_a_batch_cut_into_pieces_gives_what_the_whole_gives(xp, n):
    """Values, gradients, and gradients of gradients. How threads share it: test_threads.py."""

    def layer(x, w):
        return ops.tanh(x @ w)

    def results(f):
        x, w = Tensor(xp.asarray(random(n, 4))), Tensor(xp.asarray(random(4, 3, seed=1)))
        y = f(x, w)
        first = grad((y * y).sum(), [x, w], create_graph=True)
        second = grad(sum((g * g).sum() for g in first), [x, w])
        return [to_numpy(a) for a in (y, *first, *second)]

    in_pieces = results(lambda x, w: parallel.by_examples(lambda piece: layer(piece, w), x))
    for got, expected in zip(in_pieces, results(layer), strict=True):
        close(got, expected, rtol=1e-12, atol=1e-13)


# ---- what grad refuses ---------------------------------------------------------------------------

X = leaf(1.0, 2.0)
LABELS = Tensor(np.array([1, 2]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: grad(np.ones(1), [X]), TypeError, "differentiates a Tensor and got ndarray"),
        (lambda: grad(X.sum(), X), TypeError, r"write grad\(y, \[x\]\)"),
        (lambda: grad(X.sum(), [X, np.ones(2)]), TypeError, "input 1 must be a Tensor .* ndarray"),
        (lambda: grad((LABELS * X).sum(), [LABELS]), TypeError, "input 0 .* not int64"),
        (lambda: grad(X.sum(), [X], unused="none"), ValueError, '"zeros" or "raise", got \'none\''),
        (lambda: grad(ops.clip(1.0, X, 3.0).sum(), [X]), TypeError, "clip has no .* argument 1"),
        (lambda: grad(ops.where(X, X, 0.0).sum(), [X]), TypeError, "where has no .* argument 0"),
        (lambda: Tensor(X), TypeError, "takes an array and got a Tensor"),
        (lambda: np.asarray(X), TypeError, "use .value for its numbers"),
        (lambda: np.exp(X), TypeError, "does not support ufuncs"),
        (lambda: np.sum(X), TypeError, "use .value .* tinyadv.ops"),
        (lambda: np.mean(X, axis=0), TypeError, "use .value .* tinyadv.ops"),
        (lambda: np.concatenate([X, X]), TypeError, "use .value .* tinyadv.ops"),
        (lambda: np.array_equal(X, X), TypeError, "use .value .* tinyadv.ops"),
        (lambda: np.linalg.norm(X), TypeError, "use .value .* tinyadv.ops"),
        (lambda: Tensor(None), TypeError, "array of numbers, got NoneType"),
        (lambda: Tensor("12"), TypeError, "array of numbers, got str"),
        (lambda: Tensor(i for i in range(3)), TypeError, "array of numbers, got generator"),
        (lambda: value_and_grad(lambda x: 0.0, [np.ones(2)]), TypeError, "got float"),
        (lambda: iter(leaf(1.0).sum()), TypeError, "unsized"),
    ],
)
def test_mistakes_are_answered_with_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_argument_without_a_rule_is_no_obstacle_off_the_path():
    equal(grad(ops.where(Tensor(np.array([True, False])), X, 0.0).sum(), [X]), [[1.0, 0.0]])


# ---- the tensor ----------------------------------------------------------------------------------

OPERATORS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "**": lambda a, b: a**b,
    "@": lambda a, b: a @ b,
}


@pytest.mark.parametrize("sign", OPERATORS)
def test_operators_take_tensors_and_arrays_on_either_side(xp, sign):
    f = OPERATORS[sign]
    here = random(3, 3), random(3, 3, seed=1)
    a, b = (xp.asarray(x) for x in here)
    for left, right in [(Tensor(a), b), (a, Tensor(b)), (Tensor(a), Tensor(b))]:
        y = f(left, right)
        assert isinstance(y, Tensor)
        close(to_numpy(y), f(*here), rtol=1e-13)
        inputs = [x for x in (left, right) if isinstance(x, Tensor)]
        assert all(type(g) is type(a) for g in grad(y.sum(), inputs))


@pytest.mark.parametrize("sign", [s for s in OPERATORS if s != "@"])
@pytest.mark.parametrize("number", [2, 2.0, np.float32(2), np.float64(2), np.int64(2)])
def test_operators_take_numbers_on_either_side(xp, sign, number):
    f, x = OPERATORS[sign], np.array([1.5, 2.5], np.float32)
    for call in (lambda x: f(x, number)), (lambda x: f(number, x)):
        t = Tensor(xp.asarray(x))
        y = call(t)
        equal(y.dtype, call(xp.asarray(x)).dtype)
        close(to_numpy(y), call(x), rtol=1e-6)
        [g] = grad(y.sum(), [t])
        assert g.dtype == np.float32
        check_grads(call, [xp.asarray(x.astype(np.float64))])


@pytest.mark.parametrize("number", [2, 2.0, True])
def test_a_python_number_never_changes_the_precision(xp, number):
    t = Tensor(xp.asarray(np.array([1.5, 2.5], np.float32)))
    for f in OPERATORS.values():
        if f is not OPERATORS["@"]:
            assert f(t, number).dtype == f(number, t).dtype == np.float32


def test_comparisons_give_arrays(xp):
    a = xp.asarray(np.array([1.0, 2.0, 3.0]))
    t, limit = Tensor(a), xp.asarray(np.array([2.0, 2.0, 2.0]))
    for other in limit, Tensor(limit), 2.0, np.float64(2.0):
        for got, expected in [
            (t > other, [False, False, True]),
            (t >= other, [False, True, True]),
            (t < other, [True, False, False]),
            (t <= other, [True, True, False]),
            (t == other, [False, True, False]),
            (t != other, [True, False, True]),
            (other < t, [False, False, True]),
            (other >= t, [True, True, False]),
        ]:
            assert type(got) is type(a)
            equal(to_numpy(got), expected)


def test_a_tensor_looks_like_its_array(xp):
    t = Tensor(xp.asarray(np.arange(6, dtype=np.float32).reshape(2, 3)))
    assert (t.shape, t.dtype, t.ndim, t.size, len(t)) == ((2, 3), np.float32, 2, 6, 2)
    assert [to_numpy(row).tolist() for row in t] == [[0, 1, 2], [3, 4, 5]]
    assert float(t[1, 2]) == 5.0
    assert bool(t[0, 0]) is False
    assert "array" in repr(t)
    assert repr(t.sum()).endswith("made by sum)")
    assert {t: "by identity"}[t] == "by identity"
    assert t.operation is None
    assert (t * t).operation is ops.multiply


@pytest.mark.parametrize(
    "value",
    [3.0, 3, [1.0, 2.0], (1.0, 2.0), np.float32(2.0), True, range(3), memoryview(b"ab"), 2j],
)
def test_a_tensor_can_be_made_of_what_numpy_takes(value):
    equal(Tensor(value).value, np.asarray(value), strict=True)


def test_what_numpy_knows_without_the_numbers():
    t = leaf([1.0, 2.0])
    assert (np.shape(t), np.ndim(t), np.size(t), np.size(t, axis=1)) == ((1, 2), 2, 2, 2)
    assert (np.shape(a=t), np.ndim(a=t), np.size(axis=0, a=t)) == ((1, 2), 2, 1)


def test_the_array_in_a_tensor_is_not_copied():
    x = np.ones(2)
    assert Tensor(x).value is x


def test_methods_are_the_operations(xp):
    here = random(2, 3, 4)
    t = Tensor(xp.asarray(here))
    for got, expected in [
        (t.sum((0, 2), keepdims=True), here.sum((0, 2), keepdims=True)),
        (t.mean(axis=-1), here.mean(axis=-1)),
        (t.max(1), here.max(1)),
        (t.min(), here.min()),
        (t.reshape(6, -1), here.reshape(6, -1)),
        (t.reshape((4, 6)), here.reshape(4, 6)),
        (t.reshape([24]), here.reshape(24)),
        (t.transpose(2, 0, 1), here.transpose(2, 0, 1)),
        (t.transpose((2, 0, 1)), here.transpose(2, 0, 1)),
        (t.transpose(), here.T),
        (t.T, here.T),
        (t.astype(np.float32), here.astype(np.float32)),
        (-t, -here),
        (abs(-t), here),
    ]:
        close(to_numpy(got), expected, rtol=1e-6)
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)


def test_gradients_come_back_in_the_precision_of_their_input():
    """Also where precisions are mixed, and where the cotangent has another one."""
    single, double = leaf(1.0, 2.0, dtype=np.float32), leaf(1.0, 2.0)
    mixed = [
        ops.multiply(single, double),
        ops.dense(single.reshape(1, 2), double.reshape(1, 2)),
        ops.dense(double.reshape(1, 2), single.reshape(1, 2)),
        ops.conv2d(single.reshape(2, 1, 1, 1), double.reshape(2, 1, 1, 1)),
        ops.conv2d(double.reshape(2, 1, 1, 1), single.reshape(2, 1, 1, 1)),
        ops.relu(single) * ops.relu(ops.astype(double, np.float32)),
    ]
    for y in mixed:
        for dtype in np.float32, np.float64:
            gradients = grad(y, [single, double], np.ones(y.shape, dtype))
            assert [g.dtype for g in gradients] == [np.float32, np.float64]
            assert all(g.any() for g in gradients)


def test_value_and_grad_gives_arrays(xp):
    a, b = xp.asarray(random(3)), xp.asarray(random(3, seed=1))
    value, gradients = value_and_grad(lambda a, b: (a * b).sum(), [a, b])
    assert type(value) is type(a)
    close(to_numpy(value), random(3) @ random(3, seed=1))
    equal([to_numpy(g) for g in gradients], [to_numpy(b), to_numpy(a)])
    _, [_, g] = value_and_grad(lambda a, b: a.sum(), [a, b], create_graph=True)
    assert isinstance(g, Tensor)
    with pytest.raises(ValueError, match="does not depend on input 1"):
        value_and_grad(lambda a, b: a.sum(), [a, b], unused="raise")


# ---- operations of one's own ---------------------------------------------------------------------


def test_an_operation_of_ones_own_takes_five_lines(own_primitives):
    @primitive
    def cube(x):
        return x**3

    defvjp(cube, lambda g, y, x: g * (3 * x**2))

    equal(cube(2.0), 8.0)
    check_grads(cube, [random(4)], order=3)
    assert tensor.PRIMITIVES == {"cube": cube}
    assert cube.__name__ == "cube"


def test_an_operation_may_take_any_number_of_arguments_and_keywords(own_primitives):
    @primitive
    def weighted_sum(*xs, weight):
        return sum(weight**i * x for i, x in enumerate(xs))

    defvjp(weighted_sum, variadic=lambda i, g, y, *xs, weight: g * weight**i)
    for n in 1, 2, 5:
        check_grads(lambda *xs: weighted_sum(*xs, weight=3.0), [random(2)] * n)


def test_an_argument_may_have_no_rule(own_primitives):
    @primitive
    def scaled(x, by):
        return x * by

    defvjp(scaled, lambda g, y, x, by: g * by)
    equal(grad(scaled(X, 2.0).sum(), [X]), [[2.0, 2.0]])
    with pytest.raises(TypeError, match="scaled has no gradient rule for its argument 1"):
        grad(scaled(2.0, X).sum(), [X])


# ---- reductions ----------------------------------------------------------------------------------

AXES = [None, 0, -1, 1, (0,), (0, 2), (-1, 0), (2, -2), (0, 1, 2), ()]


def numpy_logsumexp(x, **how):
    return np.log(np.exp(x).sum(**how))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(
    ("f", "numpys"),
    [
        (ops.sum, np.sum),
        (ops.mean, np.mean),
        (ops.max, np.max),
        (ops.min, np.min),
        (ops.logsumexp, numpy_logsumexp),
    ],
)
def test_reductions_take_all_of_numpys_axes(xp, f, numpys, axis, keepdims):
    x = random(2, 3, 4)
    y = f(xp.asarray(x), axis=axis, keepdims=keepdims)
    expected = numpys(x, axis=axis, keepdims=keepdims)
    assert y.shape == expected.shape
    close(to_numpy(y), expected, rtol=1e-13)
    check_grads(lambda x: f(x, axis, keepdims), [xp.asarray(x)])


@pytest.mark.parametrize("f", [ops.max, ops.min])
def test_ties_share_the_gradient_of_a_maximum(xp, f):
    x = Tensor(xp.asarray(np.array([[1.0, 1.0, 1.0], [2.0, 3.0, 2.0]])))
    [g] = grad(f(x, axis=1).sum(), [x])
    second = [0, 1, 0] if f is ops.max else [1 / 2, 0, 1 / 2]
    close(to_numpy(g), [[1 / 3, 1 / 3, 1 / 3], second])


@pytest.mark.parametrize("f", [ops.maximum, ops.minimum])
def test_equal_arguments_give_the_gradient_to_the_first(xp, f):
    a, b = Tensor(xp.ones(2)), Tensor(xp.ones(2))
    equal([to_numpy(g) for g in grad(f(a, b).sum(), [a, b])], [[1, 1], [0, 0]])


@pytest.mark.parametrize(
    ("f", "x", "slope"),
    [
        (ops.relu, 0.0, 0.0),
        (ops.leaky_relu, 0.0, 0.01),
        (ops.abs, 0.0, 0.0),
        (lambda x: ops.clip(x, -1.0, 1.0), 1.0, 1.0),
        (lambda x: ops.clip(x, -1.0, 1.0), -1.0, 1.0),
        (lambda x: x**0, 0.0, 0.0),
        (lambda x: x**1, 0.0, 1.0),
        (lambda x: x**2, 0.0, 0.0),
        (lambda x: x ** np.array([0.0]), 0.0, 0.0),
        (lambda x: x ** np.array([0.0, 1.0, 2.0]), 0.0, 1.0),
        (lambda b: 0.0**b, 2.0, 0.0),
    ],
)
def test_slopes_at_kinks_and_zeros(f, x, slope):
    x = leaf(x)
    equal(grad(ops.sum(f(x)), [x]), [[slope]])


# ---- shapes and indices --------------------------------------------------------------------------

INDICES = [
    1,
    -1,
    (1, 2, 3),
    slice(1, None),
    slice(None, None, -1),
    (slice(None, None, -2), slice(2, 0, -1)),
    (Ellipsis, 0),
    (slice(0, 0),),
    None,
    (0, None, slice(None), None),
    (Ellipsis, None, slice(1, 3)),
    np.array([0, 0, 1, 0]),
    np.array([[0, -1], [-2, 1]]),
    (np.array([0, 1, 0]), slice(None), np.array([3, 3, 3])),
    (np.array([0, 1]), 2),
    (slice(None), np.array([2, 2])),
    np.arange(24).reshape(2, 3, 4) % 5 == 0,
    np.array([False, True]),
    (slice(None), np.array([True, False, True])),
    np.zeros((2, 3, 4), bool),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing_is_numpys_and_repeated_places_add_up(xp, index):
    def move(i):
        return xp.asarray(i) if isinstance(i, np.ndarray) else i

    there = tuple(map(move, index)) if isinstance(index, tuple) else move(index)
    x = random(2, 3, 4)
    t = Tensor(xp.asarray(x))
    part = t[there]
    equal(to_numpy(part), x[index])
    u = random(*x[index].shape, seed=1)
    expected = np.zeros_like(x)
    np.add.at(expected, index, u)
    close(to_numpy(grad(part, [t], xp.asarray(u))[0]), expected, rtol=1e-13)
    check_grads(lambda x: x[there], [xp.asarray(x)])


@pytest.mark.parametrize("index", [[0, 0, 1], np.int64(1), True], ids=str)
def test_on_numpy_lists_and_numpys_numbers_are_indices_too(index):
    x = random(2, 3)
    equal(Tensor(x)[index].value, x[index])
    check_grads(lambda x: x[index], [x])


@settings(max_examples=settings.default.max_examples // 2)  # on each backend
@given(
    shapes=hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=2, min_side=1)
)
def test_matmul_is_numpys_for_all_shapes(xp, shapes):
    a, b = random(*shapes.input_shapes[0]), random(*shapes.input_shapes[1], seed=1)
    there = [xp.asarray(a), xp.asarray(b)]
    y = ops.matmul(*there)
    assert y.shape == np.matmul(a, b).shape
    close(to_numpy(y), np.matmul(a, b), rtol=1e-12)
    check_grads(ops.matmul, there)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_concatenate_and_stack_take_any_axis(xp, axis):
    here = [random(2, 3, 4, seed=i) for i in range(3)]
    there = [xp.asarray(x) for x in here]
    for f, numpys in [(ops.concatenate, np.concatenate), (ops.stack, np.stack)]:
        equal(to_numpy(f(there, axis=axis)), numpys(here, axis=axis))
        check_grads(lambda *xs, f=f: f(xs, axis=axis), there)


def test_stack_takes_axes_that_a_row_more_has_and_refuses_others():
    xs = [np.arange(3.0), np.arange(3.0)]
    for axis in 1, -2:
        equal(ops.stack([Tensor(xs[0]), xs[1]], axis).value, np.stack(xs, axis))
    for axis in 2, -3:
        with pytest.raises(IndexError):  # NumPy's AxisError is one
            ops.stack(xs, axis)


def test_pad_puts_zeros_around(xp):
    x, widths = random(2, 3), [(0, 2), 1]
    equal(to_numpy(ops.pad(xp.asarray(x), widths)), np.pad(x, [(0, 2), (1, 1)]))
    check_grads(lambda x: ops.pad(x, widths), [xp.asarray(x)])


@pytest.mark.parametrize("widths", [[(1, 1)], [1, 1, 1], [(0, -1), (0, 0)], [-1, 1]])
def test_pad_says_what_it_takes(widths):
    with pytest.raises(ValueError, match="pair of widths ≥ 0 for each of 2 axes"):
        ops.pad(np.ones((2, 3)), widths)


def test_shapes_that_do_not_go_together_are_numpys_errors(xp):
    a, b = Tensor(xp.ones((2, 3))), Tensor(xp.ones((2, 4)))
    for call in [
        lambda: a + b,
        lambda: a @ b,
        lambda: a.reshape(4, 2),
        lambda: ops.concatenate([a, b]),
        lambda: ops.broadcast_to(a, (3, 2)),
    ]:
        with pytest.raises(ValueError):
            call()


def test_tensors_by_keyword_are_refused():
    x = Tensor(np.ones(2))
    with pytest.raises(TypeError, match=r"where takes tensors.*a="):
        ops.where(x.value > 0, a=x, b=0.0)


@pytest.mark.parametrize("bounds", [(np.zeros((2, 1)), np.ones((2, 1))), (0.0, None), (None, 1.0)])
def test_clip_broadcasts_its_limits(xp, bounds):
    x = np.array([-0.5, 0.3, 1.5])
    low, high = (b if b is None or isinstance(b, float) else xp.asarray(b) for b in bounds)
    t = Tensor(xp.asarray(x))
    y = ops.clip(t, low, high)
    np.testing.assert_array_equal(to_numpy(y), np.clip(x, *bounds))
    repeats = to_numpy(y).size // 3
    expected = repeats * (np.clip(x, *(b if b is None else np.min(b) for b in bounds)) == x)
    np.testing.assert_array_equal(to_numpy(grad(y.sum(), [t])[0]), expected)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"), [((0, 3), 0), ((0, 3), 1), ((0, 3), None), ((0,), 0), ((2, 0, 3), (0, 2))]
)
def test_the_mean_over_an_axis_of_length_0_is_numpys(xp, shape, axis, keepdims):
    t = Tensor(xp.zeros(shape))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.mean(np.zeros(shape), axis, keepdims=keepdims)
    y = ops.mean(t, axis, keepdims)
    equal(to_numpy(y), expected, strict=True)
    equal(to_numpy(grad(y.sum(), [t])[0]), np.zeros(shape))


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
def test_the_other_byte_order_gives_the_same(dtype):
    def f(x):
        y = ops.relu(ops.conv2d(x, x[:, :, :2, :2])) + ops.clip(x[:, :, 1:, 1:], 0.3, 0.6)
        return ops.log_softmax(ops.mean(ops.max_pool2d(y, kernel_size=2), (2, 3)))[:, 0]

    x = random(3, 3, 6, 6).astype(dtype)
    t, native = Tensor(x), Tensor(x.astype(x.dtype.newbyteorder("=")))
    equal(f(t).value, f(native).value)
    got, expected = grad(f(t).sum(), [t]), grad(f(native).sum(), [native])
    equal(got, expected)


def test_astype_is_for_floating_point_numbers():
    with pytest.raises(TypeError, match="between floating-point types"):
        Tensor(np.ones(2)).astype(int)


def test_a_cotangent_may_be_a_list_or_a_number():
    x = Tensor(np.ones(2, np.float32))
    (g,) = grad(x * 2, [x], [1.0, 3.0])
    np.testing.assert_array_equal(g, [2.0, 6.0])
    assert g.dtype == np.float32
    assert grad((x * 2).sum(), [x], 2.0)[0].tolist() == [4.0, 4.0]
