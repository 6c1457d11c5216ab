"""Linear bounds: no attack beats them, in spite of rounding; and they are as tight as CROWN's."""

import copy
from fractions import Fraction
from itertools import pairwise, product
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyadv import Tensor, check_grads, grad, layers, ops, to_numpy
from tinyadv.balls import L1, L2, Ball, Linf
from tinyadv.evaluate import predict
from tinyadv.losses import cross_entropy
from tinyadv.tensor import value_of
from tinyadv.verify import (
    certified,
    certified_accuracy,
    interval,
    interval_bounds,
    interval_rule,
    relus,
    worst_logits,
)
from tinyadv.verify.fields import Fields
from tinyadv.verify.interval import magnitude, rounded_outward
from tinyadv.verify.linear import Region, hidden_bounds, linear_bound, linear_worst_logits
from tinyadv.verify.relus import lines, opened, relu_between, run

fewer = settings(max_examples=max(2, settings.default.max_examples // 7))
few = settings(max_examples=max(2, settings.default.max_examples // 10))
DTYPES = [np.float32, np.float64]

# ------------------------------------------------------------------------- random networks


class Residual(layers.Sequential):
    by_example = True

    def __call__(self, x):
        return x + super().__call__(x)


@pytest.fixture(scope="module", autouse=True)
def rule_of_residual():
    before = dict(interval.RULES)

    @interval_rule(Residual)
    def residual(model, low, high, outward):
        within = interval_bounds(model[:], low, high, outward)
        sums = low + within[0], high + within[1]
        if not outward:
            return sums
        return rounded_outward(*sums, 2, magnitude(low, high) + magnitude(*within))

    yield
    interval.RULES.clear()
    interval.RULES.update(before)


def randomised(net, rng, scale=1.0):
    for p in net.parameters():
        p.value = (scale * rng.standard_normal(p.shape) * rng.choice([0.3, 1, 3])).astype(p.dtype)
    return net


def perceptron(rng, inputs=3, classes=3, depth=None, width=5):
    sizes = [inputs, *rng.integers(1, width + 1, depth or rng.integers(1, 4)), classes]
    net = [layers.Dense(*pair) for pair in pairwise(sizes)]
    return layers.Sequential(*[part for layer in net for part in (layer, layers.ReLU())][:-1])


def residual(rng):
    width = rng.integers(2, 5)
    block = lambda: Residual(layers.Dense(width, 3), layers.ReLU(), layers.Dense(3, width))
    parts = [layers.Dense(3, width), block(), layers.ReLU(), block(), layers.Dense(width, 3)]
    return layers.Sequential(*parts)


def convolutional(rng, pool=None):
    """6×6 pixels; windows that overlap, tile or leave gaps."""
    if pool is None:
        kinds = [layers.AvgPool2d, layers.MaxPool2d, layers.MaxPool2d, layers.MaxPool2d]
        size = [1, 2, 3, (1, 3), (3, 2)][rng.integers(5)]
        pool = kinds[rng.integers(4)](size, stride=[None, 1, 2, 3][rng.integers(4)])
    conv = layers.Conv2d(1, 2, 3, stride=int(rng.integers(1, 3)), padding=1)
    parts = [conv, layers.ReLU(), pool] if rng.random() < 0.5 else [conv, pool, layers.ReLU()]
    if rng.random() < 0.5:
        parts[1:1] = [layers.ReLU(), layers.Conv2d(2, 2, 2, padding=1)]
    parts.append(layers.Flatten())
    n = layers.Sequential(*parts)(np.zeros((1, 1, 6, 6), np.float32)).shape[1]
    return layers.Sequential(*parts, layers.Dense(n, 4), layers.ReLU(), layers.Dense(4, 3))


def average(rng):
    return layers.Average(perceptron(rng), residual(rng), perceptron(rng))


KINDS = {f.__name__: f for f in (perceptron, residual, convolutional, average)}


def random_case(kind, seed, dtype=np.float64, n=4, scale=1.0):
    """A random network, images and a radius: (net, x, ε, labels)."""
    rng = np.random.default_rng(seed)
    net = randomised(KINDS[kind](rng), rng, scale).astype(dtype)
    shape = (n, 1, 6, 6) if kind == "convolutional" else (n, 3)
    return (
        net,
        rng.random(shape).astype(dtype),
        float(rng.choice([0, 0.02, 0.1, 0.4])),
        (rng.integers(0, 3, n)),
    )


def boxed(x, epsilon):
    epsilon = x.dtype.type(epsilon)
    return np.clip(x - epsilon, 0, 1), np.clip(x + epsilon, 0, 1)


def attacks(f, x, low, high, rng, ball=None):
    """Inputs (A, N, …) in the box and the ball that may be bad for each output of f (M, …)."""
    ball = ball or Linf(2.0)
    room = low - x, high - x
    found = [x]
    for _ in range(4):
        corner = np.where(rng.random(x.shape) < 0.5, low, high)
        found += [corner, low + rng.random(x.shape).astype(x.dtype) * (high - low)]
    found = [x + ball.project(some - x, *room) for some in found]
    outputs = f(x).size // len(x)
    for k in range(min(outputs, 6)):
        for sign in (1, -1):
            x_in = x
            for step in (1, 0.5, 0.25):
                image = Tensor(x_in)
                z = ops.reshape(f(image), (len(x), -1))
                (g,) = grad(sign * z[:, k].sum(), [image])
                size = step * min(ball.epsilon, float((high - low).max()))
                x_in = x + ball.step(x_in - x, g, size, *room)
                found.append(x_in)
    return np.clip(np.stack(found), low, high)


def values(f, inputs):
    """f of each of (A, N, …): (A, N, …)"""
    a, n = inputs.shape[:2]
    out = to_numpy(f(inputs.reshape(a * n, *inputs.shape[2:])))
    return out.reshape(a, n, *out.shape[1:])


def gaps(z, y):
    """(A, N, K) -> z_k - z_y"""
    return z - np.take_along_axis(z, y[None, :, None], axis=2)


class ExactPool(relus.MaxPoolOfRelus):
    """Its winners are not rounded, as those of MaxPool2d, where b + relu(a - b) would be."""

    def __call__(self, x):
        def play(relu, first, second):
            if relu.stop:
                relu(ops.concatenate(first, axis=1) - ops.concatenate(second, axis=1))
            return [ops.maximum(a, b) for a, b in zip(first, second, strict=True)]

        return self.tournament(self.windows(x), play)


def into_relu(net, k):
    """What goes into a ReLU, as a function."""
    with mock.patch.object(relus, "MaxPoolOfRelus", ExactPool):
        network, _ = opened(net, stop=k)
    return lambda x: run(network, x if isinstance(x, Tensor) else Tensor(x))


# ------------------------------------------------------------------------------- soundness


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32), how=st.sampled_from(["", "", "steps", "interval", L2, L1, Linf]))
@fewer
def test_no_attack_beats_a_bound(kind, dtype, seed, how):
    """Neither the network as it is computed nor in float64."""
    scale = [0.1, 1, 1, 100][seed % 4]
    net, x, epsilon, y = random_case(kind, seed, dtype, scale=scale)
    rng, (low, high), ball = np.random.default_rng(seed), boxed(x, epsilon), None
    options = {"steps": {"steps": 3}, "interval": {"hidden": "interval"}}.get(how, {})
    if isinstance(how, type):
        ball = how(epsilon * (1.0 if how is Linf else 1.5) + 1e-3)
        options = {"within": (type(ball)(ball.epsilon * (1 + 1e-5)), x)}
    worst = linear_worst_logits(net, low, high, y, **options)
    assert worst.dtype == dtype and (worst[np.arange(len(y)), y] == 0).all()
    exact = copy.deepcopy(net).astype(np.float64)
    difference = lambda t: net(t) - net(t)[np.arange(len(t)), y][:, None]
    inputs = attacks(difference, x, low, high, rng, ball)
    for z in (values(net, inputs).astype(float), values(exact, inputs.astype(float))):
        assert (gaps(z, y) <= worst).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32), ball=st.sampled_from([None, None, L2, L1]))
@few
def test_what_goes_into_each_relu_lies_within_its_bounds(kind, dtype, seed, ball):
    net, x, epsilon, _ = random_case(kind, seed, dtype, n=2)
    rng, (low, high) = np.random.default_rng(seed), boxed(x, epsilon)
    ball = ball and ball(1.5 * epsilon + 1e-3)
    within = ball and (type(ball)(ball.epsilon * (1 + 1e-5)), x)
    exact = copy.deepcopy(net).astype(np.float64)
    for k, (bottom, top) in enumerate(hidden_bounds(net, low, high, within=within)):
        f = into_relu(net, k)
        inputs = attacks(f, x, low, high, rng, ball)
        single, double = values(f, inputs), values(into_relu(exact, k), inputs.astype(float))
        for v in (single.astype(float), double):
            assert (bottom <= v).all() and (v <= top).all()


def with_weights(*matrices, dtype=np.float32, between=layers.ReLU):
    """Dense layers with these weights and biases, and a layer between two of them."""
    net = []
    for w, b in matrices:
        dense = layers.Dense(len(w[0]), len(w))
        dense.weight, dense.bias = Tensor(np.array(w, dtype)), Tensor(np.array(b, dtype))
        net += [dense, between()]
    return layers.Sequential(*net[:-1])


def exact_gap(net, x, y):
    """z_k - z_y in rational arithmetic."""
    h = [Fraction(float(p)) for p in x]
    for layer in net.layers:
        if isinstance(layer, layers.ReLU):
            h = [max(v, Fraction(0)) for v in h]
            continue
        h = [
            sum((Fraction(float(a)) * v for a, v in zip(row, h, strict=True)), Fraction(float(b)))
            for row, b in zip(layer.weight.value, layer.bias.value, strict=True)
        ]
    return [z - h[y] for z in h]


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0, 2, 4, 7]), on=st.booleans())
@fewer
def test_bounds_hold_in_spite_of_rounding(dtype, seed, scale, on):
    """All ReLUs are stable, so a bound is reached at a corner, up to what is rounded."""
    rng, n = np.random.default_rng(seed), 3

    def wild(*shape):
        return rng.standard_normal(shape) * 10 ** rng.uniform(0, scale, shape)

    first = wild(4, n)
    bias = (np.maximum(-first, 0).sum(1) + 0.1) * 10 ** rng.uniform(0, scale, 4)
    second = wild(5, 4)
    far = 1.1 * abs(second) @ (abs(first).sum(1) + bias) * (1 if on else -1)
    net = with_weights((first, bias), (second, far), (wild(3, 5), wild(3)), dtype=dtype)
    x, y = rng.random((1, n)).astype(dtype), np.array([rng.integers(3)])
    low, high = boxed(x, 0.1)
    worst = linear_worst_logits(net, low, high, y)[0]
    corners = np.array(list(product(*zip(low[0], high[0], strict=True))), dtype)
    computed = gaps(net(corners).value[:, None].astype(float), y)[:, 0]
    assert (computed <= worst).all()
    exact = np.array([exact_gap(net, corner, y[0]) for corner in corners]).max(0)
    assert all(Fraction(float(w)) >= e for w, e in zip(worst, exact, strict=True))
    if scale == 0:
        np.testing.assert_allclose(worst, exact.astype(float), atol=1e5 * np.finfo(dtype).eps)


def cancelling(dtype=np.float32):
    """h = relu([x, 1e7, 1e7]), z = [0.595, h0 + h1 - h2]: in float32 h0 is lost in h1."""
    first, second = ([[1], [0], [0]], [0, 1e7, 1e7]), ([[0, 0, 0], [1, 1, -1]], [0.595, 0])
    return with_weights(first, second, dtype=dtype)


def test_a_proof_holds_in_spite_of_cancellation():
    x, y = np.array([[0.45]], np.float32), np.array([0])
    prove = lambda net, x, epsilon: certified(net, x, y, epsilon, linear_worst_logits)
    assert not prove(cancelling(), x, 0.25).any()
    assert not prove(cancelling(np.float64), x.astype(float), 0.25).any()
    assert prove(cancelling(np.float64), x.astype(float), 0.14).all()
    assert not prove(layers.Average(cancelling(), cancelling()), x, 0.25).any()


@pytest.mark.parametrize("dtype, big", [(np.float32, 2e38), (np.float16, 4e4)])
def test_what_overflows_proves_nothing(dtype, big):
    """high - low overflows, although both are finite: z1 becomes 2 > 1.5."""
    net = with_weights(([[big]], [0]), ([[0], [1 / big]], [0.5, 0]), dtype=dtype)
    low, high, y = np.full((1, 1), -1, dtype), np.ones((1, 1), dtype), np.array([0])
    above, _ = lines(dtype([-big]), dtype([big]))
    np.testing.assert_allclose(above, 0.5, rtol=1e-2)
    with np.errstate(all="ignore"):
        assert not linear_worst_logits(net, low, high, y)[0, 1] < 0.5
        w = [[3e38] * 4 + [-3e38] * 4]
        nan = with_weights((w, [0]), ([[0], [1]], [1.5, 0]))
        x = np.ones((1, 8), np.float32)
        assert not certified(nan, x, y, 0, linear_worst_logits).any()


@pytest.mark.parametrize("image, weights", [
    (np.float32, np.float64), (np.float64, np.float32), (np.float16, np.float32),
])  # fmt: skip
@given(seed=st.integers(0, 10_000))
@fewer
def test_bounds_of_several_precisions_hold(image, weights, seed):
    net, x, _, y = random_case("perceptron", seed, weights, n=8)
    if seed % 2:
        other = random_case("perceptron", seed + 1, np.float64)[0]
        net = layers.Average(net, other)
    low = x.astype(image)
    high = np.nextafter(low, image(2))
    worst = linear_worst_logits(net, low, high, y)
    exact = copy.deepcopy(net).astype(np.float64)
    for some in (low, high, np.where(x < 0.5, low, high)):
        for z in (exact(some.astype(float)).value, net(some).value.astype(float)):
            assert (gaps(z[None], y) <= worst).all()


class Appended(layers.Sequential):
    """Appends a large negative number to what goes in."""

    by_example = True

    def __call__(self, x):
        return super().__call__(ops.concatenate([x, self.number(x)], axis=1))

    def number(self, x):
        return np.full((len(x), 1), -1e7, np.float32)


def test_a_negative_constant_counts_by_its_magnitude(rule_of_residual):
    @interval_rule(Appended)
    def appended(model, low, high, outward):
        both = (ops.concatenate([side, model.number(side)], axis=1) for side in (low, high))
        return interval_bounds(model[:], *both, outward)

    net = Appended(layers.Dense(2, 3, rng=0))
    low, high = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
    for error in Region(net, low, high).errors():
        assert (error >= 0).all()


@pytest.mark.parametrize("net, shape, terms", [
    (layers.Dense(1, 10_000, rng=0), (1, 1), 10_000),
    (layers.Conv2d(1, 100, 3, rng=0), (1, 1, 3, 3), 900),
    (layers.Average(*[layers.Dense(1, 1, rng=0)] * 1000), (1, 1), 1000),
    (layers.Dense(10_000, 1, rng=0), (1, 10_000), 10_000),
])  # fmt: skip
def test_sums_forward_and_back_are_counted(net, shape, terms):
    """The gradient at a pixel is a sum of so many numbers, or the output is."""
    x = np.ones(shape, np.float32)
    node = Region(layers.Sequential(net), x, x).errors()[1]
    layer = net.members[0] if isinstance(net, layers.Average) else net
    size = to_numpy(interval._in_size(layer, x))
    assert (node >= terms * np.finfo(np.float32).eps * size).all()


# -------------------------------------------------------------------------------- tightness


@pytest.mark.parametrize("hidden", ["linear", "interval"])
@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32))
@fewer
def test_linear_bounds_are_never_looser_than_intervals(kind, hidden, seed):
    net, x, epsilon, y = random_case(kind, seed)
    low, high = boxed(x, epsilon)
    loose = to_numpy(worst_logits(net, low, high, y))
    worst = linear_worst_logits(net, low, high, y, hidden=hidden)
    assert (worst <= loose + 1e-12 * (1 + abs(loose))).all()  # sums in another order
    plain = linear_worst_logits(net, low, high, y, outward=False, hidden=hidden).value
    assert (plain <= worst).all()
    # Rounding moves the bounds on hidden neurons as well, and the lines with them.
    np.testing.assert_allclose(plain, worst, rtol=1e-6, atol=1e-6)


@given(seed=st.integers(0, 2**32))
@fewer
def test_first_hidden_bounds_and_those_of_linear_networks_are_exact(seed):
    rng = np.random.default_rng(seed)
    net = randomised(perceptron(rng, depth=1), rng).astype(np.float64)
    x = rng.random((3, 3))
    low, high = boxed(x, 0.2)
    ((bottom, top),) = hidden_bounds(net, low, high)
    w, b = net.layers[0].weight.value, net.layers[0].bias.value
    np.testing.assert_allclose(top, np.maximum(w * high[:, None], w * low[:, None]).sum(2) + b)
    np.testing.assert_allclose(bottom, np.minimum(w * high[:, None], w * low[:, None]).sum(2) + b)

    for layer, size in ((net.layers[0], 1e2), (net.layers[2], 1e4)):  # stable: all on, or all off
        layer.bias.value = layer.bias.value + rng.choice([-size, size], layer.bias.shape)
    linear = layers.Sequential(*net.layers, layers.ReLU(), randomised(layers.Dense(3, 3), rng))
    linear.astype(np.float64)
    y = rng.integers(0, 3, 3)
    corners = np.array(list(product([0, 1], repeat=3)))[:, None]
    z = values(linear, np.where(corners, high, low))
    worst = linear_worst_logits(linear, low, high, y)
    np.testing.assert_allclose(worst, gaps(z, y).max(0), rtol=1e-9, atol=1e-9)


def crown(weights, low, high, c, hidden):
    """<c, f(x)> of a perceptron, for one example; A and b are what is left of the network: A h + b.

    Zhang et al. (2018), section 3.2, layer by layer from the end.
    """
    a, b = c @ weights[-1][0], c @ weights[-1][1]
    for (w, bias), (bottom, top) in zip(weights[-2::-1], hidden[::-1], strict=True):
        slope_up, offset_up, slope_down = np.zeros((3, len(w)))
        for j in range(len(w)):
            if bottom[j] >= 0:
                slope_up[j] = slope_down[j] = 1
            elif top[j] > 0:
                slope_up[j] = top[j] / (top[j] - bottom[j])
                offset_up[j] = -slope_up[j] * bottom[j]
                slope_down[j] = float(top[j] > -bottom[j])
        positive, negative = np.maximum(a, 0), np.minimum(a, 0)
        b = b + positive @ offset_up
        a = positive * slope_up + negative * slope_down
        a, b = a @ w, b + a @ bias
    return np.maximum(a, 0) @ high + np.minimum(a, 0) @ low + b


@given(seed=st.integers(0, 2**32))
@fewer
def test_crown_written_out(seed):
    rng = np.random.default_rng(seed)
    net = randomised(perceptron(rng, inputs=4, depth=3, width=6), rng).astype(np.float64)
    weights = [(p.weight.value, p.bias.value) for p in net.layers[::2]]
    x, y = rng.random((3, 4)), rng.integers(0, 3, 3)
    low, high = x - 0.1, x + 0.1
    found = hidden_bounds(net, low, high, outward=False)
    worst = to_numpy(linear_worst_logits(net, low, high, y, outward=False))
    loose = to_numpy(worst_logits(net, low, high, y, outward=False))
    for i in range(3):
        hidden = []
        bottom, top = low[i], high[i]
        for k, (w, b) in enumerate(weights[:-1]):
            # The first layer by intervals, the others by intervals and by CROWN.
            middle, radius = (bottom + top) / 2, (top - bottom) / 2
            v = [w @ middle + b - abs(w) @ radius, w @ middle + b + abs(w) @ radius]
            for j in np.flatnonzero((v[0] < 0) & (v[1] > 0)) if k else []:
                c, part = np.eye(len(w))[j], (weights[: k + 1], low[i], high[i])
                v[1][j] = min(v[1][j], crown(*part, c, hidden))
                v[0][j] = max(v[0][j], -crown(*part, -c, hidden))
            hidden.append(v)
            bottom, top = np.maximum(v, 0)
            for got, expected in zip(found[k], v, strict=True):
                np.testing.assert_allclose(to_numpy(got)[i], expected, rtol=1e-10, atol=1e-10)
        for k in range(3):
            c = np.eye(3)[k] - np.eye(3)[y[i]]
            expected = crown(weights, low[i], high[i], c, hidden)
            rows = [(bottom[None], top[None]) for bottom, top in hidden]
            got, _, _ = linear_bound(net, low[i][None], high[i][None], c[None], rows)
            np.testing.assert_allclose(to_numpy(got), expected, rtol=1e-10, atol=1e-10)
            # The intervals are those that know the hidden bounds.
            assert worst[i, k] <= min(expected, loose[i, k]) + 1e-10 * (1 + abs(expected))


class FlatReLU(layers.Module):
    """A ReLU that has no positions, so that each neuron is bounded by a pass of its own."""

    by_example = True

    def __init__(self):
        self.relu = layers.ReLU()

    def __call__(self, x):
        return ops.reshape(self.relu(ops.reshape(x, (len(x), -1))), x.shape)


@given(seed=st.integers(0, 2**32), outward=st.booleans())
@fewer
def test_neurons_that_share_a_row_have_the_same_bounds(seed, outward, rule_of_residual):
    @interval_rule(FlatReLU)
    def flat(layer, low, high, outward):
        sides = (ops.reshape(side, (len(side), -1)) for side in (low, high))
        return [ops.reshape(b, low.shape) for b in interval_bounds(layer.relu, *sides, outward)]

    def network(relu):
        rng = np.random.default_rng(seed)
        parts = [
            layers.Conv2d(1, 2, 3, stride=int(rng.integers(1, 3)), padding=1), relu(),
            layers.Conv2d(2, 3, 2, padding=int(rng.integers(2))), relu(),
            *([layers.AvgPool2d(2)] if rng.random() < 0.5 else []),
            layers.Conv2d(3, 2, (1, 2), stride=(2, 1)), relu(),
        ]  # fmt: skip
        return randomised(layers.Sequential(*parts), rng).astype(np.float64), rng

    together, rng = network(layers.ReLU)
    alone, _ = network(FlatReLU)
    low, high = boxed(rng.random((3, 1, 12, 12)), 0.1)
    found, expected = (hidden_bounds(net, low, high, outward=outward) for net in (together, alone))
    for bounds, own in zip(found, expected, strict=True):
        size = max(abs(value_of(side)).max() for side in own)
        for side, other in zip(bounds, own, strict=True):
            side, other = value_of(side), value_of(other).reshape(side.shape)
            np.testing.assert_allclose(side, other, atol=1e-9 * size, rtol=0)


def test_positions_overlap_where_their_pixels_do():
    """Windows of 3 + 2·(4 - 1) = 9 pixels, 2 apart: positions overlap if less than 4.5 apart."""
    net = layers.Sequential(
        layers.Conv2d(1, 2, 3, stride=2), layers.ReLU(), layers.Conv2d(2, 3, 4), layers.ReLU()
    )
    net[2].weight.value[:, :, 1:3, 1:3] = 0  # a weight of zero counts as any other
    low, high = boxed(np.full((1, 1, 24, 24), 0.5, np.float32), 0.1)
    region = Region(net, low, high)
    region.find(interval_bounds, True)
    fields = Fields(region.asking(0, 1), region.hidden[1][0], np.arange(64))
    at = np.stack(np.unravel_index(np.arange(64), (8, 8)))  # of each position
    apart = abs(at[:, :, None] - at[:, None]).max(0)
    np.testing.assert_array_equal(fields.overlap, 2 * apart < 9)
    neurons = np.random.default_rng(0).permutation(3 * 64)[:100]
    rows = fields.rows(neurons)
    same_row = (rows[:, None] == rows) & ~np.eye(100, dtype=bool)
    assert not fields.overlap[np.ix_(neurons % 64, neurons % 64)][same_row].any()
    assert rows.max() < 50
    few = Fields(region.asking(0, 1), region.hidden[1][0], np.array([3, 17, 60]))
    np.testing.assert_array_equal(few.overlap, fields.overlap[np.ix_([3, 17, 60], [3, 17, 60])])
    np.testing.assert_array_equal(few.columns(np.array([60, 64 + 3, 128 + 17])), [2, 0, 1])


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32), hidden=st.sampled_from(["linear", "interval"]))
@few
def test_more_steps_never_loosen_a_bound(kind, seed, hidden):
    """The best slopes of fewer steps are among those of more."""
    net, x, epsilon, y = random_case(kind, seed, n=2)
    low, high = boxed(x, epsilon + 0.05)
    before = linear_worst_logits(net, low, high, y, hidden=hidden)
    for steps in (1, 2, 6):
        after = linear_worst_logits(net, low, high, y, hidden=hidden, steps=steps)
        assert (after <= before + 1e-9 * (1 + abs(before))).all()
        before = after


def test_steps_tighten_a_bound():
    net, x, y = trained(perceptron, np.float64)
    low, high = boxed(x, 0.3)
    bounds = [linear_worst_logits(net, low, high, y, steps=n).mean() for n in (0, 2, 20)]
    assert bounds[0] > bounds[1] > bounds[2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_any_size_is_its_examples(kind):
    net, x, _, y = random_case(kind, 7, n=50)
    low, high = boxed(x, 0.1)
    whole = linear_worst_logits(net, low, high, y)
    bounds = hidden_bounds(net, low, high)
    for i in (0, 7, 49):
        one = slice(i, i + 1)
        alone = linear_worst_logits(net, low[one], high[one], y[one])
        np.testing.assert_allclose(whole[one], alone, rtol=1e-9, atol=1e-9)
        for both, own in zip(bounds, hidden_bounds(net, low[one], high[one]), strict=True):
            for a, b in zip(both, own, strict=True):
                np.testing.assert_allclose(a[one], b, rtol=1e-9, atol=1e-9)


def test_a_smaller_ball_has_tighter_bounds():
    net, x, _, y = random_case("convolutional", 4, n=10)
    low, high = boxed(x, 0.3)
    box = linear_worst_logits(net, low, high, y)
    for kind in (L2, L1, Linf):
        bounds = [box]
        for radius in (np.inf, 0.3, 0.1, 0.01):
            bounds.append(linear_worst_logits(net, low, high, y, within=(kind(radius), x)))
            assert (bounds[-1] <= bounds[-2] + 1e-9 * (1 + abs(box))).all()
        np.testing.assert_allclose(bounds[1], box, rtol=1e-9, atol=1e-9)
        assert bounds[-1].mean() < box.mean()
    small = linear_worst_logits(net, low, high, y, within=(Linf(0.01), x))
    np.testing.assert_allclose(
        small, linear_worst_logits(net, *boxed(x, 0.01), y), rtol=0.2, atol=0.3
    )


# ------------------------------------------------------------------------------ certificates


def trained(kind=convolutional, dtype=np.float32, n=16):
    """A random network that predicts several classes, images, and the predicted classes."""
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        net = randomised(kind(rng), rng).astype(dtype)
        x = rng.random((n, 1, 6, 6) if kind is convolutional else (n, 3)).astype(dtype)
        y = to_numpy(predict(net, x))
        at_most = np.bincount(y).max()
        if at_most < 0.7 * n and certified_accuracy(net, x, y, 0.05) < 0.5:
            return net, x, y
    raise AssertionError("no such network")


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("ball", [Linf, L2, L1])
def test_certificates(kind, ball):
    """Never fewer than with intervals, and no attack breaks one."""
    net, x, y = trained(kind)
    shares, rng = [], np.random.default_rng(0)
    for epsilon in (0.001, 0.02):
        threat = ball(epsilon)
        safe = certified(net, x, y, threat, linear_worst_logits)
        assert (safe >= certified(net, x, y, threat)).all()
        shares.append(certified_accuracy(net, x, y, threat, 7, linear_worst_logits))
        assert shares[-1] == safe.mean()
        if not safe.any():
            continue
        still = x[safe]
        inputs = attacks(net, still, np.zeros_like(still), np.ones_like(still), rng, threat)
        assert (values(net, inputs).argmax(2) == y[safe]).all()
    assert shares == sorted(shares, reverse=True) and shares[0] > 0
    if ball is Linf:
        a = certified(net, x, y, 0.03, linear_worst_logits)
        np.testing.assert_array_equal(certified(net, x, y, Linf(0.03), linear_worst_logits), a)


def test_l2_and_l1_balls_are_certified_beyond_their_boxes():
    net, x, y = trained()
    for ball, epsilon in ((L2, 0.05), (L1, 0.1)):
        proved = certified(net, x, y, ball(epsilon), linear_worst_logits).sum()
        assert proved > certified(net, x, y, Linf(epsilon), linear_worst_logits).sum()


# -------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 12])  # from 16 rows on they are cut into pieces
def test_gradients_for_the_weights(kind, n):
    net, x, _, y = random_case(kind, 2, n=n)
    low, high = boxed(x, 0.05)
    parameters = net.parameters()

    def value():
        worst = linear_worst_logits(net, low, high, y, False, hidden="interval")
        return cross_entropy(worst, y)

    gradients = grad(value(), parameters)
    rng, h = np.random.default_rng(0), 1e-6
    for p, g in zip(parameters, gradients, strict=True):
        d, found, start = rng.standard_normal(p.shape), [], p.value
        for step in (h, -h):
            p.value = start + step * d
            found.append(float(value()))
        p.value = start
        assert (found[0] - found[1]) / (2 * h) == pytest.approx((g * d).sum(), rel=1e-4, abs=1e-6)
    assert any(abs(g).max() > 1e-3 for g in gradients)


def test_gradients_for_slopes_and_multipliers():
    net, x, _, _ = random_case("perceptron", 4, n=3)
    low, high = boxed(x, 0.3)
    hidden, rng = hidden_bounds(net, low, high), np.random.default_rng(0)
    slopes = [rng.uniform(0.2, 0.8, b.shape) for b, _ in hidden]
    multipliers = [0.1 * rng.standard_normal(b.shape) for b, _ in hidden]
    c = rng.standard_normal((3, 3))

    def bound(*both):
        n = len(hidden)
        how = {"slopes": both[:n], "multipliers": both[n:], "create_graph": True}
        return linear_bound(net, low, high, c, hidden, **how)[0].sum()

    check_grads(bound, [*slopes, *multipliers], order=1)


@pytest.mark.parametrize("hidden", ["linear", "interval"])
def test_a_network_is_trained_on_linear_bounds(hidden):
    net, x, y = trained(perceptron, np.float32)
    low, high = boxed(x, 0.05)

    def loss():
        worst = linear_worst_logits(net, low, high, y, outward=False, hidden=hidden)
        return cross_entropy(worst, y)

    before = float(loss())
    for _ in range(5):
        gradients = grad(loss(), net.parameters())
        for p, g in zip(net.parameters(), gradients, strict=True):
            p.value = p.value - np.float32(0.02) * g / max(1, abs(g).max())
    assert float(loss()) < before


# ---------------------------------------------------------------------- ReLUs and their lines


@given(seed=st.integers(0, 2**32))
def test_a_relu_lies_between_its_lines(seed):
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.uniform(-1, 1, (2, 50)), axis=0)
    slope = rng.random(50)
    v = low + rng.random((20, 50)) * (high - low)
    for chosen in (None, slope):
        above, below = lines(low, high, chosen)
        relu = np.maximum(v, 0)
        assert (below * v <= relu + 1e-12).all()
        assert (relu <= above * (v - np.minimum(low, 0)) + 1e-12).all()
    either = (low < 0) & (high > 0)
    np.testing.assert_array_equal(below[either], slope[either])
    np.testing.assert_array_equal(below[~either], high[~either] > -low[~either])


def test_the_gradient_of_a_relu_between_lines_takes_their_slopes(xp):
    """Not the derivative: the line above where the gradient is positive, else the one below."""
    v, above, below = (Tensor(xp.asarray(a)) for a in ([-1.0, 2, -3, 4], [0.5] * 4, [0.25] * 4))
    cotangent = xp.asarray([2.0, 2, -2, -2])
    h = relu_between(v, slopes=(above.value, below.value))
    np.testing.assert_array_equal(to_numpy(h), [0, 2, 0, 4])
    (gradient,) = grad(h, [v], cotangent)
    np.testing.assert_array_equal(to_numpy(gradient), [1, 1, -0.5, -0.5])

    h = relu_between(v, slopes=(above, below))  # which may themselves be differentiated
    (gradient,) = grad(h, [v], cotangent, create_graph=True)
    by_above, by_below = grad(gradient.sum(), [above, below])
    np.testing.assert_array_equal(to_numpy(by_above), [2, 2, 0, 0])
    np.testing.assert_array_equal(to_numpy(by_below), [0, 0, -2, -2])
    for unmoved in grad(h, [above, below], cotangent):
        np.testing.assert_array_equal(to_numpy(unmoved), np.zeros(4))


@given(seed=st.integers(0, 2**32))
@fewer
def test_an_opened_network_computes_the_same(seed):
    for kind in KINDS:
        net, x, _, _ = random_case(kind, seed)
        network, relus = opened(net)
        assert len(relus) == len(hidden_bounds(net, x, x))
        np.testing.assert_allclose(run(network, Tensor(x)).value, net(x).value, atol=1e-9)


# ------------------------------------------------------------------------------------ devices


@pytest.mark.parametrize("how", [
    {}, {"steps": 2}, {"hidden": "interval"}, {"outward": False}, {"within": L2(0.2)},
    {"within": L1(0.5)},
])  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_on_the_device(kind, how, device):
    net, x, _, y = random_case(kind, 1, np.float32)
    low, high = boxed(x, 0.1)

    def bounds(xp):
        there = dict(how)
        if "within" in how:
            there["within"] = how["within"], xp.asarray(x)
        arrays = (xp.asarray(a) for a in (low, high, y))
        return to_numpy(linear_worst_logits(net, *arrays, **there))

    host = bounds(np)
    for p in net.parameters():
        p.value = device.asarray(p.value)
    np.testing.assert_allclose(bounds(device), host, rtol=1e-4, atol=1e-3)
    for ball in (Linf(0.01), L2(0.01)):
        device_x, device_y = device.asarray(x), device.asarray(y)
        assert type(certified(net, device_x, device_y, ball, linear_worst_logits)) is device.ndarray


# ------------------------------------------------------------------------------------- errors


def dense(*sizes):
    return [layers.Dense(*pair, rng=i) for i, pair in enumerate(pairwise(sizes))]


class Own(layers.Module):
    """Passes through ``f(self, x)``; the interval rule only fits the well-behaved ones."""

    by_example = True

    def __init__(self, f):
        self.f, self.relu = f, layers.ReLU()

    def __call__(self, x):
        return self.f(self, x)


class Promises(layers.Sequential):
    """The same as a Sequential, but it does not say that examples are treated on their own."""

    def __call__(self, x):
        return super().__call__(x)


@pytest.fixture(scope="module")
def rule_of_own(rule_of_residual):
    @interval_rule(Own)
    def own(model, low, high, outward):
        low, high = interval_bounds(model.relu, low, high, outward)
        return low - 10, high + 10

    @interval_rule(Promises)
    def promises(model, low, high, outward):
        return interval_bounds(model[:], low, high, outward)


@pytest.mark.parametrize("f, error, message", [
    (lambda m, x: ops.tanh(m.relu(x)), TypeError, "no linear bounds for tanh: a network must"),
    (lambda m, x: m.relu(x) + ops.relu(x), TypeError, "no linear bounds for relu"),
    (lambda m, x: m.relu(x) + abs(x), TypeError, "no linear bounds for abs"),
    (lambda m, x: m.relu(x) + x**2, TypeError, "no linear bounds for power"),
    (lambda m, x: m.relu(x) * x, TypeError, "multiply where both arguments depend on the image"),
    (lambda m, x: m.relu(x) + x * x, TypeError, "multiply where both arguments depend"),
    (lambda m, x: m.relu(x) + 1 / (2 + x), TypeError, "divide where both arguments depend"),
    (lambda m, x: m.relu(x) + m.relu(x), ValueError, "a module is used twice"),
])  # fmt: skip
def test_what_is_not_linear_is_refused(f, error, message, rule_of_own):
    net = layers.Sequential(*dense(3, 3), Own(f), *dense(3, 4), layers.ReLU(), *dense(4, 3))
    x, y = np.full((2, 3), 0.5, np.float32), np.zeros(2, int)
    for prove in (
        lambda: linear_worst_logits(net, x - 0.1, x + 0.1, y),
        lambda: linear_worst_logits(net, x - 0.1, x + 0.1, y, hidden="interval"),
        lambda: linear_worst_logits(net, x - 0.1, x + 0.1, y, outward=False),
        lambda: certified(net, x, y, 0.1, linear_worst_logits),
    ):
        with pytest.raises(error, match=message):
            prove()


def test_the_first_axis_is_that_of_the_examples(rule_of_own):
    weight = np.eye(3, dtype=np.float32)
    turned = Own(lambda m, x: ops.transpose(ops.matmul(weight, ops.transpose(m.relu(x)))))
    net = layers.Sequential(*dense(3, 3), turned, layers.ReLU(), *dense(3, 3))
    x = np.full((2, 3), 0.5, np.float32)
    with pytest.raises(TypeError, match=r"first axis .* of shape \(3, 2\)"):
        hidden_bounds(net, x - 0.1, x + 0.1)


def test_few_neurons_do_not_need_fields(monkeypatch):
    convs = layers.Conv2d(1, 4, 3, rng=0), layers.Conv2d(4, 4, 3, rng=1)
    net = layers.Sequential(convs[0], layers.ReLU(), convs[1], layers.ReLU())
    x, made = np.full((1, 1, 12, 12), 0.5, np.float32), []
    net[2].bias.value[0] -= to_numpy(net[:3](x))[0, 0, 0, 0]  # a channel that is unstable
    net[2].bias.value[1:] = 0.1
    monkeypatch.setattr("tinyadv.verify.linear.Fields", lambda *args: made.append(Fields(*args)))
    for radius, several in ((0.3, True), (1e-3, False)):
        made.clear()
        _, (low, high) = hidden_bounds(net, x - np.float32(radius), x + np.float32(radius))
        assert bool(made) == several and ((low < 0) & (high > 0)).any()


def test_what_is_linear_is_allowed(rule_of_own):
    x, y = np.full((2, 3), 0.5, np.float32), np.zeros(2, int)
    for f in (
        lambda m, x: m.relu(x) / 2 - x.mean(axis=1, keepdims=True),
        lambda m, x: ops.matmul(m.relu(x), np.eye(3, dtype=np.float32))[:, ::-1],
        lambda m, x: -m.relu(x)[:, [0, 0, 2]] * ops.broadcast_to(x[:, :1], x.shape).shape[1],
    ):
        net = layers.Sequential(layers.Dense(3, 3, rng=0), Own(f), layers.Dense(3, 3, rng=1))
        worst = linear_worst_logits(net, x - 0.1, x + 0.1, y)
        plain = linear_worst_logits(net, x - 0.1, x + 0.1, y, outward=False).value
        np.testing.assert_allclose(worst, plain, atol=1e-3)
        z = values(net, x + np.random.default_rng(0).uniform(-0.1, 0.1, (50, 2, 3)).astype(x.dtype))
        assert (gaps(z, y) <= worst).all()


class OtherBall(Ball):
    pass


def test_errors(rule_of_own):
    rng = np.random.default_rng(0)
    net, x, y = perceptron(rng), np.full((2, 3), 0.5, np.float32), np.zeros(2, int)
    for prove in (hidden_bounds, lambda *box, **how: linear_worst_logits(*box, y, **how)):
        with pytest.raises(TypeError, match=r"no linear bounds for OtherBall.*Linf, L2 or L1"):
            prove(net, x, x, within=(OtherBall(0.1), x))
        with pytest.raises(TypeError, match="within must be a pair"):
            prove(net, x, x, within=L2(0.1))
        with pytest.raises(ValueError, match="expected low ≤ high: 1 of 6"):
            prove(net, x, x - np.eye(2, 3, dtype=np.float32)[[0, 0]] * [[1], [0]])
        block = layers.Sequential(layers.Dense(3, 3), layers.ReLU())
        with pytest.raises(ValueError, match="a module is used twice"):
            prove(layers.Sequential(block, block), x, x)
        with pytest.raises(TypeError, match="treats each example on its own: set by_example"):
            prove(layers.Sequential(Promises(*net.layers)), x, x)
        with pytest.raises(TypeError, match="no interval rule for Plain"):
            prove(layers.Sequential(Plain()), x, x)
        unused = layers.Sequential(Own(lambda m, x: x), layers.Dense(3, 3))
        unused.layers[0].another = layers.ReLU()
        with pytest.raises(ValueError, match=r"ReLU number 1 of the network .* has no bounds"):
            prove(unused, x, x)
    tanh = layers.Sequential(*net.layers, layers.Activation("tanh"))
    with pytest.raises(TypeError, match="no linear bounds for tanh"):
        linear_worst_logits(tanh, x, x, y)
    with pytest.raises(TypeError, match="no linear bounds for OtherBall"):
        certified(net, x, y, OtherBall(0.1), linear_worst_logits)
    for steps in (-1, 1.5):
        with pytest.raises(ValueError, match=f"steps must be .*{steps}"):
            linear_worst_logits(net, x, x, y, steps=steps)
    with pytest.raises(ValueError, match="hidden must be"):
        linear_worst_logits(net, x, x, y, hidden="exact")
    image = np.zeros((1, 1, 6, 6), np.float32)
    with pytest.raises(ValueError, match=r"logits \(N, K\)"):
        linear_worst_logits(layers.Sequential(layers.Conv2d(1, 1, 3)), image, image, y[:1])


class Plain(layers.Module):
    by_example = True

    def __call__(self, x):
        return x


def test_one_relu_at_two_places_of_a_sequential_is_two():
    relu = layers.ReLU()
    shared = layers.Sequential(
        layers.Dense(3, 3, rng=0), relu, layers.Dense(3, 3, rng=1), relu, layers.Dense(3, 3, rng=2)
    )
    own = layers.Sequential(*[layers.ReLU() if p is relu else p for p in shared.layers])
    x, y = np.full((2, 3), 0.5, np.float32), np.zeros(2, int)
    a, b = (linear_worst_logits(net, x - 0.3, x + 0.3, y) for net in (shared, own))
    np.testing.assert_array_equal(a, b)
