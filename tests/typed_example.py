"""A user's program with types: mypy checks it, and ``test_types.py`` runs it."""

import dataclasses
from functools import partial
from typing import Any, assert_type

import numpy as np
from matplotlib.figure import Figure

from tinyadv import Tensor, attacks, data, fit, grad, models, ops, optim, viz
from tinyadv.balls import Linf
from tinyadv.evaluate import accuracy, robustness_curve
from tinyadv.layers import Conv2d, Dense, Flatten, Module, ReLU, Sequential
from tinyadv.losses import cross_entropy


class Scaled(Module):
    """A layer of one's own."""

    def __init__(self, factor: float):
        self.factor = Tensor(np.array(factor, np.float32))

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factor


def arithmetic(t: Tensor) -> Tensor:
    assert_type(t + 1, Tensor)
    assert_type(2 * t, Tensor)
    assert_type(t @ t, Tensor)
    assert_type(1 - t / 2, Tensor)
    assert_type(-(abs(t) ** 2), Tensor)
    assert_type(t[0], Tensor)
    assert_type(t.sum(), Tensor)
    assert_type(t.mean(axis=0, keepdims=True), Tensor)
    assert_type(t.reshape(-1, 1), Tensor)
    assert_type(t.T, Tensor)
    assert_type(t.shape, tuple[int, ...])
    assert_type(ops.relu(t), Tensor)
    assert_type(ops.softmax(t, axis=-1), Tensor)
    assert_type(ops.relu(np.zeros(3)), np.ndarray[tuple[int], np.dtype[np.float64]])
    return t


def network() -> Sequential:
    layers = [Conv2d(1, 4, 5, stride=(4, 4), rng=0), ReLU(), Flatten(), Dense(144, 10, rng=0)]
    return Sequential(Scaled(1.0), *layers)


def train_attack_evaluate(images: int = 200) -> tuple[float, float]:
    digits = data.load("glyphs")
    x_train, y_train = digits.x_train[:images], digits.y_train[:images]
    digits = dataclasses.replace(digits, x_train=x_train, y_train=y_train)
    model = network()
    assert_type(model.parameters(), list[Tensor])
    history = fit(model, digits, optim.Adam(model.parameters()), 1, validate=False, progress=False)
    assert_type(history.loss, list[float])

    x, y = digits.x_test[:50], digits.y_test[:50]
    pixels = Tensor(x)
    logits = model(pixels)
    assert_type(logits, Tensor)
    assert_type(model(x), Any)
    loss = cross_entropy(logits, y)
    assert_type(loss, Tensor)
    (g,) = grad(loss, [pixels])
    step = x + 0.1 * np.sign(g)

    x_adv = attacks.pgd(model, x, y, ball=Linf(0.1), steps=3)
    assert_type(x_adv, Any)
    found, details = attacks.square(model, x, y, ball=Linf(0.1), queries=10, details=True)
    assert step.shape == (x_adv - x).shape == found.shape and len(details.success) == len(x)
    _, curve = robustness_curve(
        model, x, y, lambda epsilon: partial(attacks.fgsm, ball=Linf(epsilon)), [0, 0.1]
    )
    assert_type(curve, np.ndarray)
    assert_type(viz.image_grid(x, labels=y), Figure)
    return accuracy(model, x, y), accuracy(model, x_adv, y)


if __name__ == "__main__":
    arithmetic(Tensor(np.eye(2)))
    print(train_attack_evaluate(), models.slides_cnn())
