"""Interval bounds: nothing gets out of them, and what they certify no attack breaks."""

import copy
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyadv import Tensor, grad, layers, models, ops, to_numpy
from tinyadv.attacks import pgd
from tinyadv.balls import Linf
from tinyadv.evaluate import accuracy, predict
from tinyadv.losses import cross_entropy
from tinyadv.verify import (
    certified,
    certified_accuracy,
    interval,
    interval_bounds,
    interval_rule,
    rounded_outward,
    worst_logits,
)


def conv_net(rng=0, dtype=np.float64):
    rng = np.random.default_rng(rng)
    return layers.Sequential(
        layers.Conv2d(1, 3, 3, stride=2, padding=1, rng=rng),  # 8×8 -> 4×4
        layers.ReLU(),
        layers.MaxPool2d(2),
        layers.Flatten(),
        layers.Dense(12, 6, rng=rng),
        layers.Activation("tanh"),
        layers.Dense(6, 4, rng=rng),
    ).astype(dtype)


def images(n=5, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).random((n, 1, 8, 8)).astype(dtype)


@given(seed=st.integers(0, 10_000), radius=st.sampled_from([0.0, 0.01, 0.2, 1.0]))
def test_nothing_gets_out(seed, radius):
    net, x, rng = conv_net(seed), images(seed=seed), np.random.default_rng(seed)
    low, high = interval_bounds(net, x - radius, x + radius)
    for _ in range(10):
        corner = radius * rng.choice([-1, 1, rng.random()], x.shape)
        z = net(x + corner).value
        assert (low.value - 1e-9 <= z).all() and (z <= high.value + 1e-9).all()


@pytest.mark.parametrize("layer, shape", [
    (layers.Conv2d(2, 3, 3, stride=2, padding=1, rng=1), (2, 2, 5, 5)),
    (layers.Dense(7, 3, rng=1), (2, 7)),
    (layers.AvgPool2d(2), (2, 2, 4, 4)),
    (layers.MaxPool2d(2), (2, 2, 4, 4)),
    (layers.ReLU(), (2, 9)),
])  # fmt: skip
def test_the_bounds_of_one_layer_are_reached(layer, shape):
    """For each output the worst input is found by its gradient's sign: the bounds are exact."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    low, high = x - 0.1, x + 0.1
    bounds = interval_bounds(layer, low, high, outward=False)
    wide = [to_numpy(bound) for bound in interval_bounds(layer, low, high)]
    assert (wide[0] <= to_numpy(bounds[0])).all() and (wide[1] >= to_numpy(bounds[1])).all()
    np.testing.assert_allclose(wide, [to_numpy(bound) for bound in bounds], atol=1e-4)
    out = layer(Tensor(x))
    for i in np.ndindex(out.shape):
        if isinstance(layer, (layers.Conv2d, layers.Dense, layers.AvgPool2d)):
            image = Tensor(x)
            (g,) = grad(layer(image)[i], [image])
            worst = layer(np.where(g > 0, high, low))
            best = layer(np.where(g > 0, low, high))
        else:  # monotone
            worst, best = layer(high), layer(low)
        assert to_numpy(worst)[i] == pytest.approx(to_numpy(bounds[1])[i], abs=1e-5)
        assert to_numpy(best)[i] == pytest.approx(to_numpy(bounds[0])[i], abs=1e-5)


def test_thresholds_leave_black_and_white_no_interval():
    first = layers.Sequential(*models.threshold_layers(0.35, 0.65))
    x = np.array([0, 0.04, 0.96, 1, 0.5, 0.2], np.float32).reshape(1, 1, 1, 6)
    bounds = interval_bounds(first, np.clip(x - 0.3, 0, 1), np.clip(x + 0.3, 0, 1), outward=False)
    low, high = (bound.value.ravel() for bound in bounds)
    np.testing.assert_allclose(low, [0, 0, 1, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(high, [0, 0, 1, 1, 1, 0.5], atol=1e-6)


@given(seed=st.integers(0, 10_000))
def test_worst_logits(seed):
    net, x, y = conv_net(seed), images(seed=seed), np.arange(5) % 4
    z = net(x).value
    still = worst_logits(net, x, x, y).value
    np.testing.assert_allclose(still, z - z[np.arange(5), y][:, None], atol=1e-9)
    low, high = x - 0.05, x + 0.05
    worst = worst_logits(net, low, high, y).value
    assert (worst[np.arange(5), y] == 0).all() and (worst >= still - 1e-9).all()
    # Tighter than the difference of two bounds, or the same.
    bottom, top = (to_numpy(b) for b in interval_bounds(net, low, high))
    loose = top - bottom[np.arange(5), y][:, None]
    loose[np.arange(5), y] = 0
    assert (worst <= loose + 1e-9).all()


@pytest.mark.parametrize("n", [15, 16, 150])
def test_a_batch_of_any_size_is_its_examples(n):
    """From 16 on it is cut into pieces; labels go with their images."""
    net, x, y = conv_net(), images(n), np.arange(n) % 4
    whole = worst_logits(net, x - 0.05, x + 0.05, y).value
    for i in (0, 7, n // 2, n - 1):
        one = slice(i, i + 1)
        alone = worst_logits(net, x[one] - 0.05, x[one] + 0.05, y[one]).value
        np.testing.assert_allclose(whole[one], alone, atol=1e-12)


@given(seed=st.integers(0, 10_000))
def test_an_average_is_bounded_by_its_members(seed):
    members = [conv_net(seed), conv_net(seed + 1)]
    net, x, y, rows = layers.Average(*members), images(seed=seed), np.arange(5) % 4, np.arange(5)
    rng, low, high = np.random.default_rng(seed), x - 0.05, x + 0.05
    bottom, top = (to_numpy(bound) for bound in interval_bounds(net, low, high))
    worst = worst_logits(net, low, high, y).value
    for _ in range(10):
        z = net(x + 0.05 * rng.choice([-1, 1, rng.random()], x.shape)).value
        assert (bottom - 1e-9 <= z).all() and (z <= top + 1e-9).all()
        assert (z - z[rows, y][:, None] <= worst + 1e-9).all()
    alone = [worst_logits(member, low, high, y).value for member in members]
    np.testing.assert_allclose(worst, np.mean(alone, axis=0), atol=1e-12)
    # What both prove, the average proves.
    y = predict(net, x)
    both = certified(members[0], x, y, 0.001) & certified(members[1], x, y, 0.001)
    assert certified(net, x, y, 0.001)[both].all()


def test_a_linear_model_is_certified_exactly():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((2, 16)).astype(np.float32)
    net = layers.Sequential(layers.Flatten(), layers.Dense(16, 2, rng=0))
    net.load_state_dict({"1.weight": w, "1.bias": np.zeros(2, np.float32)})
    x = rng.uniform(0.3, 0.7, (50, 1, 4, 4)).astype(np.float32)
    y = to_numpy(predict(net, x))
    z = to_numpy(net(x))
    margin = abs(z[:, 0] - z[:, 1])
    for epsilon in (0.01, 0.05, 0.2):
        exact = margin > epsilon * abs(w[0] - w[1]).sum()
        np.testing.assert_array_equal(certified(net, x, y, epsilon), exact)
        assert certified_accuracy(net, x, y, epsilon, batch_size=7) == exact.mean()


# ------------------------------------------------------------------------- rules of one's own


class Residual(layers.Sequential):
    by_example = True

    def __call__(self, x):
        return x + super().__call__(x)


class Scaled(layers.Dense):
    def __call__(self, x):
        return super().__call__(3 * x)


class MinPool(layers.MaxPool2d):
    pool = staticmethod(lambda x, **how: -layers.MaxPool2d.pool(-x, **how))


class Twice:
    def __call__(self, x):
        return 2 * super().__call__(x)


class TwiceTheNetwork(Twice, layers.Sequential):
    pass


class ByProperty(layers.Dense):
    __call__ = property(lambda self: lambda x: 2 * layers.Dense.__call__(self, x))


class Reversed(Residual):
    def __getitem__(self, index):
        return layers.Sequential(*self.layers[::-1])


class Hidden(layers.Dense):
    def __getattribute__(self, name):
        return super().__getattribute__(name)


def pooling_with(pool):
    layer = layers.MaxPool2d(2)
    layer.pool = pool
    return layer


class Committee(layers.Average):
    def __call__(self, x):
        return self.members[0](x)


class Sine(layers.Module):
    def __call__(self, x):
        return ops.sin(x)


def dense(*sizes):
    return [layers.Dense(*size, rng=i) for i, size in enumerate(pairwise(sizes))]


@pytest.mark.parametrize("model, name", [
    (Residual(*dense(4, 4)), "Residual"),
    (layers.Sequential(Residual(*dense(4, 4)), *dense(4, 3)), "Residual"),
    (layers.Sequential(layers.ReLU(), Scaled(4, 3)), "Scaled"),
    (layers.Sequential(Scaled(4, 5), layers.Dense(5, 3)), "Scaled"),
    (TwiceTheNetwork(*dense(4, 3)), "TwiceTheNetwork"),
    (Committee(*dense(4, 3)), "Committee"),
    (layers.Average(Residual(*dense(4, 4))), "Residual"),
    (layers.Sequential(MinPool(2), layers.Flatten(), *dense(1, 2)), "MinPool"),
    (layers.Sequential(pooling_with(MinPool.pool), layers.Flatten(), *dense(1, 2)), "MaxPool2d"),
    (layers.Sequential(ByProperty(4, 3)), "ByProperty"),
    (layers.Sequential(Reversed(*dense(4, 4))), "Reversed"),
    (layers.Sequential(Hidden(4, 3)), "Hidden"),
    (layers.Sequential(abs, *dense(4, 3)), "builtin_function_or_method"),
    (layers.Sequential(Sine(), *dense(4, 3)), "Sine"),
])  # fmt: skip
def test_a_class_that_computes_something_else_is_refused(model, name):
    x = np.full((2, 1, 2, 2) if "Pool" in name else (2, 4), 0.5, np.float32)
    y = np.zeros(2, int)
    for prove in (
        lambda: interval_bounds(model, x, x),
        lambda: worst_logits(model, x, x, y),
        lambda: certified(model, x, y, 0.1),
        lambda: certified_accuracy(model, x, y, 0.1),
    ):
        with pytest.raises(TypeError, match=f"no interval rule for {name}.*interval_rule"):
            prove()


def test_a_rule_holds_for_subclasses_that_compute_the_same(own_rules):
    interval_rule(Residual)(lambda model, low, high, outward: (low, high))

    class Sub(Residual):
        pass

    x = np.full((2, 4), 0.5, np.float32)
    assert interval_bounds(Sub(*dense(4, 4)), x, x)[0] is x
    with pytest.raises(TypeError, match="no interval rule for Reversed"):
        interval_bounds(Reversed(*dense(4, 4)), x, x)


def test_a_class_with_a_new_constructor_has_the_rule_of_its_base():
    class Net(layers.Sequential):
        """A network as users write it."""

        def __init__(self, hidden):
            super().__init__(layers.Flatten(), *dense(64, hidden, 4))

        size: int = 64

        def __repr__(self):
            return "Net()"

        def further(self):
            return self.size

    copy.copy(Net(5)), copy.copy(layers.Sequential())  # Python notes something in the classes
    net, x, y = Net(5), images(), np.arange(5) % 4
    bounds = worst_logits(net, x - 0.1, x + 0.1, y).value
    plain = worst_logits(layers.Sequential(*net.layers), x - 0.1, x + 0.1, y).value
    np.testing.assert_array_equal(bounds, plain)


@given(seed=st.integers(0, 10_000))
def test_a_rule_of_ones_own(seed, own_rules):
    @interval_rule(Residual)
    def residual(model, low, high, outward):
        within = interval_bounds(model[:], low, high, outward)
        sums = low + within[0], high + within[1]
        if not outward:
            return sums
        return rounded_outward(*sums, 2, abs(sums[0]) + abs(sums[1]))

    block = Residual(layers.Dense(6, 6, rng=seed), layers.ReLU(), layers.Dense(6, 6, rng=seed + 1))
    net = layers.Sequential(layers.Flatten(), layers.Dense(64, 6, rng=seed), block)
    for model in (net, layers.Sequential(*net.layers, layers.Dense(6, 4, rng=seed))):
        model.astype(np.float64)
        x, rng, y = images(seed=seed), np.random.default_rng(seed), np.arange(5) % 4
        low, high = x - 0.05, x + 0.05
        bottom, top = (to_numpy(bound) for bound in interval_bounds(model, low, high))
        worst = to_numpy(worst_logits(model, low, high, y))
        tight = to_numpy(worst_logits(model, low, high, y, outward=False))
        np.testing.assert_allclose(tight, worst, atol=1e-9)
        assert (tight <= worst).all() and (worst[np.arange(5), y] == 0).all()
        for _ in range(10):
            z = model(x + 0.05 * rng.choice([-1, 1, rng.random()], x.shape)).value
            assert (bottom <= z).all() and (z <= top).all()
            assert (z - z[np.arange(5), y][:, None] <= worst).all()


@pytest.fixture(scope="module")
def own_rules():
    before = dict(interval.RULES)
    yield
    interval.RULES.clear()
    interval.RULES.update(before)


# ---------------------------------------------------------------------------------- rounding


def cancelling(dtype=np.float32):
    """h = relu([x, 1e7, 1e7]), z = [0.595, h0 + h1 - h2]: in float32 h0 is lost in h1."""
    net = layers.Sequential(layers.Dense(1, 3), layers.ReLU(), layers.Dense(3, 2))
    net.load_state_dict({
        "0.weight": np.array([[1], [0], [0]]), "0.bias": np.array([0, 1e7, 1e7]),
        "2.weight": np.array([[0, 0, 0], [1, 1, -1]]), "2.bias": np.array([0.595, 0]),
    })  # fmt: skip
    return net.astype(dtype)


def test_a_proof_holds_in_spite_of_rounding():
    x, y = np.array([[0.45]], np.float32), np.array([0])
    # In exact arithmetic z = [0.595, x], and x may become 0.7.
    assert not certified(cancelling(), x, y, 0.25).any()
    assert not certified(cancelling(np.float64), x.astype(float), y, 0.25).any()
    assert certified(cancelling(np.float64), x.astype(float), y, 0.14).all()
    average = layers.Average(cancelling(), cancelling())
    assert not certified(average, x, y, 0.25).any()


def test_the_network_need_not_be_exact_either():
    """1e8 + x - 1e8: 0 or 8 in float32 for every x in [0, 1], depending on the order."""
    net = layers.Sequential(layers.Dense(3, 2))
    net.load_state_dict({
        "0.weight": np.array([[0, 0, 0], [1e8, 1, -1e8]]), "0.bias": np.array([1.5, 0])
    })  # fmt: skip
    x, y = np.array([[1, 0.4, 1]], np.float32), np.array([0])
    assert not certified(net, x, y, 0).any()


def with_weights(*matrices, dtype, between=layers.ReLU):
    """Dense layers with these weights and biases, and a layer between two of them."""
    net = []
    for w, b in matrices:
        dense = layers.Dense(len(w[0]), len(w))
        dense.weight, dense.bias = Tensor(np.array(w, dtype)), Tensor(np.array(b, dtype))
        net += [dense, between()]
    return layers.Sequential(*net[:-1])


@pytest.mark.parametrize("dtype, big", [(np.float32, 1.69e38), (np.float16, 32000)])
def test_sums_of_bounds_that_overflow_prove_nothing(dtype, big):
    """h = [1.03 b, b]; low + high is infinite for h0, and finite for h1."""
    w = 0.2 * np.array([[1, -1.05], [-1, 1.05]])
    net = with_weights(([[0], [0]], [1.03 * big, big]), (w, [0, 0]), dtype=dtype)
    x = np.array([[0.5]], dtype)
    assert to_numpy(predict(net, x)) == [1]
    with np.errstate(all="ignore"):
        assert not certified(net, x, np.array([0]), 0).any()


def test_sums_of_gaps_that_overflow_prove_nothing():
    """One member's gap is -60,000; the mean of both is the half, and their sum infinite."""
    net = with_weights(([[30_000], [-30_000]], [0, 0]), dtype=np.float16)
    x = np.ones((1, 1), np.float16)
    with np.errstate(all="ignore"):
        worst = worst_logits(layers.Average(net, net), x, x, np.array([0]))
    assert not to_numpy(worst)[0, 1] < -60_000


def test_sums_that_overflow_in_another_order_prove_nothing():
    """0 in exact arithmetic, NaN in some orders, and tanh is bounded all the same."""
    w = [[3e38] * 4 + [-3e38] * 4, [0] * 8]
    tanh = lambda: layers.Activation("tanh")
    end = ([[0, 0], [1, 0]], [1.5, 0])
    net = with_weights((w, [0, 0]), end, dtype=np.float32, between=tanh)
    x = np.ones((1, 8), np.float32)
    with np.errstate(all="ignore"):
        assert not certified(net, x, np.array([0]), 0).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bounds_of_subnormal_inputs_hold(dtype):
    info = np.finfo(dtype)
    low, high = (k * info.smallest_subnormal.reshape(1, 1) for k in (1, 2))
    net = with_weights(([[info.max / 2]], [0]), dtype=dtype)
    bottom, top = (to_numpy(bound) for bound in interval_bounds(net, low, high))
    for x in (low, high):
        assert bottom <= net(x).value <= top


@pytest.mark.parametrize("image, weights", [
    (np.float32, np.float64), (np.float64, np.float32), (np.float16, np.float32),
])  # fmt: skip
@given(seed=st.integers(0, 10_000))
def test_bounds_of_several_precisions_hold(image, weights, seed):
    rng, y = np.random.default_rng(seed), np.arange(50) % 3
    net = with_weights((1e4 * rng.standard_normal((3, 4)), np.zeros(3)), dtype=weights)
    low = rng.random((50, 4)).astype(image)
    high = np.nextafter(low, image(2))
    bottom, top = (to_numpy(bound) for bound in interval_bounds(net, low, high))
    worst = to_numpy(worst_logits(net, low, high, y))
    exact = copy.deepcopy(net).astype(np.float64)
    for x in (low, high, np.where(rng.random(low.shape) < 0.5, low, high)):
        z = exact(x.astype(float)).value
        assert (bottom <= z).all() and (z <= top).all()
        assert (z - z[np.arange(50), y][:, None] <= worst).all()


def test_an_average_of_several_precisions_rounds_like_the_coarsest():
    """In float32 each addition to a sum above 512 is rounded up by 2**-16."""
    x, number = np.ones((1, 1), np.float32), 1 + 0.75 * 2**-14
    single, double = (with_weights(([[number]], [0]), dtype=d) for d in (np.float32, np.float64))
    net = layers.Average(*[single] * 1000, double)
    bottom, top = (to_numpy(bound) for bound in interval_bounds(net, x, x))
    assert bottom <= number <= top


@pytest.mark.parametrize("end", ["dense", "average", "no dense"])
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0, 2, 4, 7]))
def test_nothing_gets_out_by_rounding(seed, scale, end):
    """Weights of very different sizes: the bounds in float32 hold for float64, and for float32."""
    rng = np.random.default_rng(seed)

    def wild(*shape):
        return (rng.standard_normal(shape) * 10 ** rng.uniform(0, scale, shape)).astype(np.float32)

    def network():
        net = layers.Sequential(
            layers.Conv2d(1, 3, 3, padding=1), layers.ReLU(), layers.AvgPool2d(2), layers.Flatten(),
            layers.Dense(12, 20), layers.Activation("leaky_relu"), layers.Dense(20, 3),
        )  # fmt: skip
        net.load_state_dict({name: wild(*p.shape) for name, p in net.named_parameters()})
        return net

    net = layers.Average(network(), network()) if end == "average" else network()
    if end == "no dense":
        net = layers.Sequential(*net.layers, layers.Activation("leaky_relu"))
    x, y = rng.random((4, 1, 4, 4)).astype(np.float32), np.arange(4) % 3
    low, high = x - np.float32(0.01), x + np.float32(0.01)
    bottom, top = (to_numpy(b) for b in interval_bounds(net, low, high))
    worst = to_numpy(worst_logits(net, low, high, y))
    exact = copy.deepcopy(net).astype(np.float64)
    for _ in range(5):
        x_in = np.where(rng.random(x.shape) < rng.random(), low, high)
        for z in (exact(x_in.astype(float)).value, net(x_in).value.astype(float)):
            assert (bottom <= z).all() and (z <= top).all()
            gaps = z - z[np.arange(4), y][:, None]
            assert (gaps <= worst).all()


def test_sums_too_long_for_half_precision_are_refused():
    net = layers.Sequential(layers.Flatten(), layers.Dense(1024, 2)).astype(np.float16)
    x = np.full((1, 1, 32, 32), 0.5, np.float16)
    y = to_numpy(predict(net, x))
    with pytest.raises(ValueError, match=r"sums of 1024 numbers in float16.*float32"):
        certified(net, x, y, 0)
    small = layers.Sequential(layers.Dense(4, 2, rng=0)).astype(np.float16)
    few = np.full((1, 4), 0.5, np.float16)
    assert certified(small, few, to_numpy(predict(small, few)), 0.001).all()


@pytest.mark.parametrize("net", [conv_net(), layers.Average(conv_net(), conv_net(1))])
@pytest.mark.parametrize("epsilon", [0.003, 0.01])
def test_no_attack_breaks_what_is_certified(net, epsilon):
    x = images(40)
    y = predict(net, x)
    safe = certified(net, x, y, epsilon)
    assert 0 < safe.mean() < 1
    x_adv = pgd(net, x[safe], y[safe], ball=Linf(epsilon), restarts=5)
    assert accuracy(net, x_adv, y[safe]) == 1
    assert not certified(net, x, (y + 1) % 4, 0).any()


def test_gradients_for_the_weights():
    net, x, y = conv_net(), images(3), np.array([0, 1, 2])
    parameters = net.parameters()
    gradients = grad(cross_entropy(worst_logits(net, x - 0.1, x + 0.1, y), y), parameters)
    rng, h = np.random.default_rng(0), 1e-6
    for p, g in zip(parameters, gradients, strict=True):
        d = rng.standard_normal(p.shape)
        values = []
        for step in (h, -h):
            start, p.value = p.value, p.value + step * d
            values.append(float(cross_entropy(worst_logits(net, x - 0.1, x + 0.1, y), y)))
            p.value = start
        assert (values[0] - values[1]) / (2 * h) == pytest.approx((g * d).sum(), rel=1e-4, abs=1e-7)


def test_on_the_device(device):
    net = layers.Average(conv_net(dtype=np.float32), conv_net(1, dtype=np.float32))
    x, y = images(dtype=np.float32), np.arange(5) % 4
    host = certified(net, x, y, 0.01)
    for p in net.parameters():
        p.value = device.asarray(p.value)
    there = certified(net, device.asarray(x), device.asarray(y), 0.01)
    np.testing.assert_array_equal(to_numpy(there), host)


def test_lists_and_an_epsilon_of_numpy():
    net, x = conv_net(dtype=np.float32), images(dtype=np.float32)
    y = predict(net, x)
    expected = certified(net, x, y, 0.003)
    np.testing.assert_array_equal(certified(net, list(x), y.tolist(), np.float64(0.003)), expected)
    assert certified_accuracy(net, list(x), y.tolist(), 0.003) == expected.mean()
    np.testing.assert_array_equal(certified(net, x, y, np.inf), certified(net, x, y, 1.0))


def test_no_tape_is_recorded(monkeypatch):
    net, x, y = layers.Average(conv_net(), conv_net(1)), images(20), np.arange(20) % 4
    bounds = certified(net, x, y, 0.003)
    made = []
    init = Tensor.__init__

    def counted(self, value, operation=None, *rest, **settings):
        made.append(operation)
        init(self, value, operation, *rest, **settings)

    monkeypatch.setattr(Tensor, "__init__", counted)
    np.testing.assert_array_equal(certified(net, x, y, 0.003), bounds)
    assert certified_accuracy(net, x, y, 0.003, batch_size=7) == bounds.mean()
    assert not any(made)
    worst_logits(net, x, x, y)  # this one can be differentiated
    assert any(made)


def test_the_pixels_are_checked_once(monkeypatch):
    calls = []
    check = interval.check_pixels
    monkeypatch.setattr(interval, "check_pixels", lambda x: calls.append(len(x)) or check(x))
    certified_accuracy(conv_net(), images(20), np.zeros(20, int), 0.01, batch_size=7)
    assert calls == [20]


def test_errors():
    x, y = images(), np.zeros(5, int)
    with pytest.raises(TypeError, match="no interval rule for Sine"):
        interval_bounds(layers.Sequential(Sine()), x, x)
    sine = layers.ReLU()
    sine.name = "sin"
    with pytest.raises(TypeError, match=r"no interval rule for ReLU.*monotone"):
        interval_bounds(sine, x, x)
    with pytest.raises(ValueError, match=r"logits \(N, K\), got \(5, 1, 8, 8\)"):
        worst_logits(layers.Sequential(), x, x, y)
    with pytest.raises(ValueError, match="must return one shape"):
        worst_logits(layers.Average(conv_net(), layers.Flatten()), x, x, y)
    with pytest.raises(ValueError, match="expected low ≤ high"):
        worst_logits(conv_net(), x + 0.1, x, y)
    for judge in (certified, certified_accuracy):
        with pytest.raises(ValueError, match="epsilon must be ≥ 0"):
            judge(conv_net(), x, y, -0.1)
        with pytest.raises(TypeError, match="epsilon must be a number or a ball"):
            judge(conv_net(), x, y, None)
        with pytest.raises(TypeError, match="bound must be a function"):
            judge(conv_net(), x, y, 0.1, bound="linear")
        with pytest.raises(ValueError, match="pixel values from 0 to 1"):
            judge(conv_net(), 255 * x, y, 0.1)
        with pytest.raises(ValueError, match="y must be from 0 to 3"):
            judge(conv_net(), x, y + 4, 0.1)
        with pytest.raises(ValueError, match=r"at least one example.*\(0, 1, 8, 8\)"):
            judge(conv_net(), x[:0], y[:0], 0.1)
        with pytest.raises(ValueError, match=r"y must be integers of shape \(5,\)"):
            judge(conv_net(), x, y[:, None], 0.1)
    for batch_size in (0, 1.5):
        with pytest.raises(ValueError, match=f"batch_size must be .*{batch_size}"):
            certified_accuracy(conv_net(), x, y, 0.1, batch_size=batch_size)
