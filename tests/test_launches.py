"""How many kernels a step launches, on the stand-in for CuPy.

On a GPU a step of these networks takes as long as the host needs to launch its kernels, so their
number is the speed. A ceiling here is a number that was reached, and some room.
"""

import numpy as np
import pytest
import strict_cupy

from tinyadv import Tensor, grad, models, optim, parallel
from tinyadv.attacks import pgd
from tinyadv.attacks.shared import input_gradient
from tinyadv.balls import Linf
from tinyadv.losses import cross_entropy

# network: training step, input gradient, PGD with ten steps
CEILINGS = {
    "slides_cnn": (88, 78, 870),
    "fast_cnn": (86, 70, 790),
    "madry_cnn": (96, 82, 920),
    "interval_cnn": (78, 66, 740),
}
every_network = pytest.mark.parametrize("net", CEILINGS)


def on_the_device(net, count):
    model, rng = getattr(models, net)(), np.random.default_rng(0)
    for p in model.parameters():
        p.value = strict_cupy.asarray(p.value)
    x = rng.random((count, 1, 28, 28), dtype=np.float32)
    return model, strict_cupy.asarray(x), strict_cupy.asarray(rng.integers(0, 10, count))


def training_step(model, x, y):
    optimizer = optim.Adam(model.parameters())
    with strict_cupy.count() as counted:
        optimizer.step(grad(cross_entropy(model(x), y), optimizer.params))
    return counted


def gradient_for_the_images(model, x, y):
    with strict_cupy.count() as counted:
        input_gradient(model, x, y, loss=cross_entropy)
    return counted


def attack(model, x, y, steps):
    with strict_cupy.count() as counted:
        pgd(model, x, y, ball=Linf(0.3), steps=steps)
    return counted


@every_network
def test_a_step_stays_below_its_ceiling_and_never_waits(net):
    model, x, y = on_the_device(net, 32)
    step, gradient, climb = CEILINGS[net]
    for counted, ceiling in [
        (training_step(model, x, y), step), (gradient_for_the_images(model, x, y), gradient)
    ]:  # fmt: skip
        assert counted.launches <= ceiling
        assert counted.syncs == counted.transfers == 0
    counted, start = attack(model, x, y, 10), attack(model, x, y, 1)
    assert counted.launches <= climb
    # What waits is the check of arguments and results, not a step. The random start is drawn on
    # the host.
    assert (counted.syncs, counted.transfers) == (start.syncs, start.transfers)


@every_network
def test_many_examples_launch_no_more_kernels_than_few(net):
    few, many = on_the_device(net, 32), on_the_device(net, 256)
    assert training_step(*few).launches == training_step(*many).launches
    assert gradient_for_the_images(*few).launches == gradient_for_the_images(*many).launches
    assert attack(*few, 2).launches == attack(*many, 2).launches


@pytest.mark.parametrize("make", [
    optim.SGD,
    lambda params: optim.SGD(params, momentum=0.9),
    lambda params: optim.SGD(params, momentum=0.9, nesterov=True),
    optim.RMSprop,
    optim.Adam,
])  # fmt: skip
@every_network
def test_an_optimizer_launches_a_kernel_for_each_parameter(net, make):
    model, x, y = on_the_device(net, 2)
    gradients = grad(cross_entropy(model(x), y), model.parameters())
    optimizer = make(model.parameters())
    with strict_cupy.count() as counted:
        optimizer.step(gradients)
    assert counted.launches <= len(gradients) + 2
    assert counted.syncs == counted.transfers == 0


def test_an_optimizer_leaves_large_arrays_whole_and_the_blas_alone(monkeypatch):
    monkeypatch.setattr(parallel, "one_blas_thread", None)
    monkeypatch.setattr(optim, "PIECE", 10)
    params = [Tensor(strict_cupy.ones((40, 50))), Tensor(strict_cupy.ones((50, 40)).T)]
    optimizer, arrays = optim.Adam(params, lr=0.25), [p.value for p in params]
    with strict_cupy.count() as counted:
        optimizer.step([strict_cupy.ones((40, 50)).T.T, strict_cupy.ones((50, 40)).T])
    assert counted.launches == 2 + 2
    for p, array in zip(params, arrays, strict=True):
        assert p.value is array and strict_cupy.allclose(array, 0.75)


def test_weight_decay_is_one_more_for_each_parameter():
    params = [Tensor(strict_cupy.ones(shape)) for shape in [(2, 3), (4,)]]
    optimizer = optim.Adam(params, weight_decay=0.1)
    with strict_cupy.count() as counted:
        optimizer.step([p.value for p in params])
    assert counted.launches == 2 * len(params)
