"""Predictions and accuracies against counting by hand."""

import numpy as np
import pytest

from tinyadv import array_module, models, to_numpy
from tinyadv.evaluate import accuracy, predict

RNG = np.random.default_rng(0)
X = RNG.random((23, 1, 3, 3), np.float32)
MODEL = models.mlp((9, 8, 4), rng=1)
LOGITS = MODEL(X).value
RIGHT = LOGITS.argmax(1)
Y = np.where(np.arange(23) % 3 == 0, (RIGHT + 1) % 4, RIGHT)  # 8 of 23 are wrong


def on(xp):
    """The model, the images and the labels on the backend ``xp``."""
    model = models.mlp((9, 8, 4), rng=1)
    for p in model.parameters():
        p.value = xp.asarray(p.value)
    return model, xp.asarray(X), xp.asarray(Y)


@pytest.mark.parametrize("batch_size", [1, 5, 23, 1000])
def test_by_hand_with_any_batch_size(xp, batch_size):
    model, x, y = on(xp)
    labels = predict(model, x, batch_size=batch_size)
    assert array_module(labels) is xp and labels.dtype == np.int64
    np.testing.assert_array_equal(to_numpy(labels), RIGHT)
    assert accuracy(model, x, y, batch_size=batch_size) == pytest.approx(15 / 23)


def test_defaults_and_plain_functions():
    assert accuracy(MODEL, X, RIGHT) == 1.0
    assert accuracy(MODEL, X, (RIGHT + 1) % 4) == 0.0
    assert accuracy(lambda x: LOGITS[: len(x)], X, Y) == pytest.approx(15 / 23)  # arrays, no tensor
    assert type(accuracy(MODEL, X, Y)) is float
    assert accuracy(MODEL, X, Y.tolist()) == accuracy(MODEL, X, Y.astype(np.uint8))
    assert accuracy(MODEL, list(X), Y.tolist()) == accuracy(MODEL, X, Y)


def test_batch_size_bounds_the_memory():
    sizes = []

    def model(x):
        sizes.append(len(x))
        return MODEL(x)

    predict(model, X, batch_size=10)
    accuracy(model, X, Y, batch_size=10)
    assert sizes == [10, 10, 3] * 2


def test_labels_on_the_host_and_one_wait_for_all(device):
    model, x, _ = on(device)
    assert accuracy(model, x, Y) == pytest.approx(15 / 23)
    if hasattr(device, "count"):
        with device.count() as c:
            accuracy(model, x, device.asarray(Y), batch_size=5)
        assert c.syncs == 1


def test_the_attack_comes_first(xp):
    model, x, y = on(xp)
    seen = []

    def attack(attacked, xb, yb):
        assert attacked is model
        seen.append((to_numpy(xb), to_numpy(yb)))
        return xp.asarray(X[:1]) + 0 * xb  # the first example, whatever came

    got = accuracy(model, x, y, attack=attack, batch_size=10)
    assert got == pytest.approx((Y == RIGHT[0]).mean())
    np.testing.assert_array_equal(np.concatenate([xb for xb, _ in seen]), X)
    np.testing.assert_array_equal(np.concatenate([yb for _, yb in seen]), Y)


def test_errors():
    with pytest.raises(ValueError, match="needs one example at least"):
        accuracy(MODEL, X[:0], Y[:0])
    for labels in (Y[1:], Y[:, None], Y[0]):
        with pytest.raises(ValueError, match=r"integers of shape \(23,\).*got int64 of shape \("):
            accuracy(MODEL, X, labels)
    for labels in (Y.astype(float), Y == 1, np.eye(4)[Y]):
        with pytest.raises(ValueError, match=r"labels must be integers.*got (float64|bool)"):
            accuracy(MODEL, X, labels)
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            accuracy(MODEL, X, Y, batch_size=batch_size)
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            predict(MODEL, X, batch_size=batch_size)


def test_no_examples_have_no_predictions(xp):
    model, x, _ = on(xp)
    labels = predict(model, x[:0])
    assert labels.shape == (0,) and labels.dtype == np.int64 and array_module(labels) is xp
