"""How many kernels a GPU would launch, counted on the stand-in for CuPy (no GPU is needed).

    python tests/benchmarks/launches.py                       # prints the counts
    python tests/benchmarks/launches.py --out launches.json   # also keeps them

For each network a training step with Adam, a gradient for the images, and an attack: PGD with ten
steps. The size of the batch does not matter.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import strict_cupy

from tinyadv import grad, models, optim
from tinyadv.attacks import pgd
from tinyadv.attacks.shared import input_gradient
from tinyadv.balls import Linf
from tinyadv.losses import cross_entropy

NETWORKS = ("slides_cnn", "fast_cnn", "madry_cnn", "interval_cnn")


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


def attack(model, x, y, steps=10):
    with strict_cupy.count() as counted:
        pgd(model, x, y, ball=Linf(0.3), steps=steps)
    return counted


def counts(net):
    """The launches of each task on a network, by name."""
    tasks = {
        "training step": training_step, "input gradient": gradient_for_the_images, "PGD-10": attack
    }  # fmt: skip
    return {name: task(*on_the_device(net, 32)).launches for name, task in tasks.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    found = {net: counts(net) for net in NETWORKS}
    for net, numbers in found.items():
        print(f"{net:13}", *(f"{name} {number:4}" for name, number in numbers.items()), sep="  ")
    if options.out:
        options.out.write_text(json.dumps({"launches": found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
