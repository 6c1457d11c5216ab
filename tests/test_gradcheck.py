"""Jacobian-vector and Hessian-vector products, against finite differences and matrices."""

import numpy as np
import pytest

from tinyadv import check_grads, hvp, jvp, models, ops, to_numpy, value_and_grad
from tinyadv.losses import cross_entropy

close = np.testing.assert_allclose


def matrix(n, m, seed=0):
    return np.random.default_rng(seed).standard_normal((n, m))


def test_jvp_of_a_linear_function_is_the_function():
    a, x, v = matrix(3, 4), matrix(4, 2, 1), matrix(4, 2, 2)
    value, tangent = jvp(lambda x: ops.matmul(a, x), [x], [v])
    close(value, a @ x), close(tangent, a @ v)


def test_jvp_of_several_inputs_is_the_slope_along_all_of_them():
    f = lambda x, w: ops.tanh(ops.matmul(x, w)) / (1 + ops.exp(w[0]))
    inputs, v, h = [matrix(3, 2), matrix(2, 2, 1)], [matrix(3, 2, 2), matrix(2, 2, 3)], 1e-6
    value, tangent = jvp(f, inputs, v)
    moved = [f(*(a + t * b for a, b in zip(inputs, v, strict=True))) for t in (h, -h)]
    close(value, f(*inputs))
    close(tangent, (moved[0] - moved[1]) / (2 * h), rtol=1e-6, atol=1e-9)


def test_jvp_with_an_input_that_is_not_used():
    _, tangent = jvp(lambda x, y: 3 * x, [np.ones(2), np.ones(5)], [np.ones(2), np.ones(5)])
    close(tangent, [3.0, 3.0])


def test_jvp_runs_on_every_backend(xp):
    x, v = xp.asarray([1.0, 2.0]), xp.asarray([1.0, 0.0])
    _, tangent = jvp(lambda x: x * x, [x], [v])
    assert type(tangent) is type(x) and tangent.shape == (2,)
    assert float(tangent[0]) == 2 and float(tangent[1]) == 0


def test_hvp_is_the_hessian_times_the_vector():
    a = matrix(4, 4)
    symmetric = a + a.T
    f = lambda x: 0.5 * ops.sum(x * ops.matmul(symmetric, x))
    x, v = matrix(4, 1)[:, 0], matrix(4, 1, 1)[:, 0]
    (product,) = hvp(f, [x], [v])
    close(product, symmetric @ v)


def test_hvp_of_a_network_is_the_change_of_its_gradient():
    model, rng = (
        models.mlp((6, 5, 3), activation="tanh").astype(np.float64),
        np.random.default_rng(0),
    )
    x, y = rng.random((20, 6)), rng.integers(0, 3, 20)
    w1, b1, w2, b2 = (p.value for p in model.parameters())

    def loss(w1, b1, w2, b2):
        return cross_entropy(ops.dense(ops.tanh(ops.dense(x, w1, b1)), w2, b2), y)

    weights = [w1, b1, w2, b2]
    v = [rng.standard_normal(w.shape) for w in weights]
    got = hvp(loss, weights, v)

    h = 1e-5
    up, down = (
        value_and_grad(loss, [w + t * d for w, d in zip(weights, v, strict=True)])[1]
        for t in (h, -h)
    )
    for product, a, b in zip(got, up, down, strict=True):
        close(product, (a - b) / (2 * h), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("convert", [float, lambda x: [x], lambda x: np.array(x, ">f8")])
def test_products_take_numbers_and_lists(convert):
    inputs, v = [convert(2.0), convert(3.0)], [convert(1.0), convert(-1.0)]
    value, tangent = jvp(lambda x, y: x * y, inputs, v)
    close(np.reshape([value, tangent], -1), [6, 1])  # y - x
    products = hvp(lambda x, y: (x * x * y).sum(), inputs, v)
    close(np.reshape(products, -1), [2 * 3 - 2 * 2, 2 * 2])  # the Hessian is [[2y, 2x], [2x, 0]]


def test_a_list_with_inputs_on_a_device(device):
    value, tangent = jvp(lambda x: x * x, [device.asarray([1.0, 2.0])], [[1.0, 0.0]])
    close(to_numpy(tangent), [2, 0])
    assert type(value) is type(tangent) is device.ndarray


@pytest.mark.parametrize("returned", [lambda x: x.value, lambda x: 1.0, lambda x: (x, x)])
@pytest.mark.parametrize(
    "call",
    [
        lambda f: check_grads(f, [np.ones(2)]),
        lambda f: jvp(f, [np.ones(2)], [np.ones(2)]),
        lambda f: hvp(f, [np.ones(2)], [np.ones(2)]),
    ],
)
def test_a_function_that_returns_no_tensor_is_named(call, returned):
    with pytest.raises(
        TypeError, match=r"f must return a Tensor and returned (ndarray|float|tuple)"
    ):
        call(returned)


def test_check_grads_takes_either_byte_order():
    check_grads(lambda x: ops.exp(x) * x, [np.ones(3, ">f8")])


@pytest.mark.parametrize("product", [jvp, hvp])
def test_directions_must_match_the_inputs(product):
    f = lambda x: ops.sum(x * x)
    x = np.ones(3)
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        product(f, [x], [np.ones(2)])
    with pytest.raises(ValueError, match=r"\(3,\)"):
        product(f, [x], [])
    with pytest.raises(TypeError, match="list"):
        product(f, x, [x])


def test_hvp_needs_a_scalar():
    with pytest.raises(ValueError, match="scalar"):
        hvp(lambda x: x * x, [np.ones(3)], [np.ones(3)])
