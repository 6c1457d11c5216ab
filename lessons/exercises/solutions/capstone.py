"""A solution of the capstone."""

import time

import numpy as np

from tinyadv import attacks, broken_defenses, data, defenses, grad, losses, models, optim
from tinyadv.balls import Linf


def train(digits, epsilon, seconds):
    """Min-max training in which time replaces epochs.

    A small strided network makes each step cheap. Two steps of PGD leave time for many updates of
    the weights, and images shifted by up to a pixel keep the network from learning its training
    images by heart. Both the learning rate and ε follow the share of the time that has passed: ε
    grows first, because a network that meets the full ε at once may learn to ignore the image, and
    the learning rate falls to almost 0 by the end. So the training ends in time on any machine; a
    slower one takes fewer steps.
    """
    begin, rng = time.perf_counter(), np.random.default_rng(0)
    model = models.fast_cnn(0)
    adam = optim.Adam(model.parameters())
    rate = optim.piecewise_linear([(0, 4e-4), (0.3, 4e-3), (1, 8e-5)])
    inner = defenses.MinMax(Linf(epsilon), steps=2, warm_up=0.2, rng=rng)
    shifted = data.random_shift(1)
    while True:
        for x, y in data.batches(digits.x_train, digits.y_train, 64, rng):
            share = (time.perf_counter() - begin) / (0.97 * seconds)  # a reserve of 3 %
            if share >= 1:
                return model
            adam.lr = rate(share)
            inner.at(share)
            x = shifted(x, rng)
            loss = losses.cross_entropy(model(inner(model, x, y)), y)
            adam.step(grad(loss, model.parameters()))


def attack(model, x, y, epsilon):
    """The gradient is lost twice, and a third trap is the sign.

    The rounding has the slope 0, so the backward pass must leave it out (BPDA). The front also
    inverts the image: it falls by 1 where x rises by 1, so the slope to put there is −1. With the
    identity's slope 1, every step would go the wrong way. Last, the logits are so large that the
    softmax saturates: the margin as the loss ignores their scale. The forward pass stays as it is,
    so what fools the followed network fools the defence.
    """
    front = broken_defenses.straight_through(model.front, slope=-1)
    return attacks.pgd(
        lambda image: model.network(front(image)), x, y, ball=Linf(epsilon), steps=20,
        restarts=2, loss=losses.margin,
    )  # fmt: skip
