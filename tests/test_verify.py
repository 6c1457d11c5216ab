"""Interval bounds: nothing gets out of them, and what they certify no attack breaks."""

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
    bounds = interval_bounds(layer, low, high)
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
    bounds = interval_bounds(first, np.clip(x - 0.3, 0, 1), np.clip(x + 0.3, 0, 1))
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
    net = layers.Sequential(layers.Flatten(), layers.Dense(16, 2))
    net.load_state_dict({"1.weight": w, "1.bias": np.zeros(2, np.float32)})
    x = rng.uniform(0.3, 0.7, (50, 1, 4, 4)).astype(np.float32)
    y = to_numpy(predict(net, x))
    z = to_numpy(net(x))
    margin = abs(z[:, 0] - z[:, 1])
    for epsilon in (0.01, 0.05, 0.2):
        exact = margin > epsilon * abs(w[0] - w[1]).sum()
        np.testing.assert_array_equal(certified(net, x, y, epsilon), exact)
        assert certified_accuracy(net, x, y, epsilon, batch_size=7) == exact.mean()


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
    for model, end in (
        (layers.Sequential(layers.Flatten()), "that ends in Flatten"),
        (layers.Sequential(), "got Sequential$"),
        (layers.Sequential(layers.Average(conv_net())), "that ends in Average"),
    ):
        with pytest.raises(TypeError, match=f"that ends in a Dense, or an Average of such.*{end}"):
            worst_logits(model, x, x, y)
    with pytest.raises(TypeError, match=r"an Average of such.*got Flatten"):
        worst_logits(layers.Average(conv_net(), layers.Flatten()), x, x, y)
    for judge in (certified, certified_accuracy):
        with pytest.raises(ValueError, match="epsilon must be ≥ 0"):
            judge(conv_net(), x, y, -0.1)
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


class Sine(layers.Module):
    def __call__(self, x):
        return ops.sin(x)
