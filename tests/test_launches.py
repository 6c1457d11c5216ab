"""How many kernels a step launches, on the stand-in for CuPy.

On a GPU a step of these networks takes as long as the host needs to launch its kernels, so their
number is the speed. A ceiling here is a number that was reached, and some room.
"""

import json
from pathlib import Path

import pytest
import strict_cupy
from benchmarks import launches
from benchmarks.launches import attack, gradient_for_the_images, on_the_device, training_step

from tinyadv import Tensor, grad, optim, parallel
from tinyadv.losses import cross_entropy

# network: training step, input gradient, PGD with ten steps
CEILINGS = {
    "slides_cnn": (88, 78, 870),
    "fast_cnn": (86, 70, 790),
    "madry_cnn": (96, 82, 920),
    "interval_cnn": (78, 66, 740),
}
every_network = pytest.mark.parametrize("net", CEILINGS)


def test_the_recorded_counts_are_those_of_this_version():
    path = Path(launches.__file__).with_suffix(".json")
    recorded = json.loads(path.read_text(encoding="utf-8"))["launches"]
    assert recorded == {net: launches.counts(net) for net in launches.NETWORKS}


@every_network
def test_a_step_stays_below_its_ceiling_and_never_waits(net):
    model, x, y = on_the_device(net, 32)
    step, gradient, climb = CEILINGS[net]
    for counted, ceiling in [
        (training_step(model, x, y), step), (gradient_for_the_images(model, x, y), gradient)
    ]:  # fmt: skip
        assert counted.launches <= ceiling
        assert counted.syncs == counted.transfers == 0
    counted, start = attack(model, x, y), attack(model, x, y, 1)
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
