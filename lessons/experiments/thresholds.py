"""How robust is the ensemble behind thresholds? Certificates, and an attack adapted to it.

    python lessons/experiments/thresholds.py

attacks all 10,000 test images of MNIST, as lesson 12 explains, and writes
``lessons/results/thresholds-mnist.json``. It takes some five minutes on two cores, for the
ensemble whose weights are in ``lessons/weights`` and for its first member alone.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

LESSONS = Path(__file__).parents[1]
sys.path.insert(0, str(LESSONS))

import common  # noqa: E402

import tinyadv  # noqa: E402
from tinyadv import array_module, checks, data, evaluate, layers, verify  # noqa: E402
from tinyadv.balls import Linf  # noqa: E402
from tinyadv.broken_defenses import cross_thresholds, live_range  # noqa: E402
from tinyadv.inputs import quiet  # noqa: E402

EPSILON = 0.3
ADAPTED = {"steps": 40, "starts": 20, "hops": 40, "queries": 40}


def live_pixels(model, x) -> dict:
    """Between which grey values the network has a slope, and the share of pixels within reach."""
    members = model.members if isinstance(model, layers.Average) else [model]
    ranges = [live_range(layers.Sequential(*member.layers[:4])) for member in members]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    reached = (x + EPSILON > low) & (x - EPSILON < high)
    return {"low": low, "high": high, "pixels": float(reached.mean())}


def adapted(model, x, y, seed: int = 0, **settings) -> dict:
    """The shares that are correct, certified, and correct under the adapted attack."""
    correct, certified = evaluate.predict(model, x) == y, verify.certified(model, x, y, EPSILON)
    survives, left = correct.copy(), array_module(x).nonzero(correct & ~certified)[0]
    if len(left):
        x_adv = cross_thresholds(
            model, x[left], y[left], ball=Linf(EPSILON), rng=seed, progress=True, **settings
        )
        survives[left] = evaluate.predict(model, x_adv) == y[left]
    shares = {"clean": correct, "certified": certified, "adapted": survives}
    return {name: float(share.mean()) for name, share in shares.items()} | {"images": len(x)}


def alarms(model, x, y, seed: int = 0) -> list[str]:
    """The checks for masked gradients that raise an alarm."""
    with quiet():
        report = checks.masking(model, x, y, ball=Linf(EPSILON), steps=20, queries=300, rng=seed)
    print(report)
    return list(report.alarms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000, help="test images (10,000)")
    parser.add_argument("--out", type=Path, default=LESSONS, help="the folder of results/")
    options = parser.parse_args()
    digits = data.load("mnist")
    x, y = digits.x_test[: options.images], digits.y_test[: options.images]
    ensemble = common.kept_weights(argparse.Namespace(backend="numpy"), "bounds, committee")
    numbers, start = {"epsilon": EPSILON, "settings": ADAPTED}, time.perf_counter()
    for name, model in {"ensemble": ensemble, "first member": ensemble.members[0]}.items():
        some = slice(0, None, max(1, len(x) // 1000))
        numbers[name] = live_pixels(model, x) | {"alarms": alarms(model, x[some], y[some])}
        numbers[name] |= adapted(model, x, y, **ADAPTED)
        print(name, {key: value for key, value in numbers[name].items() if key != "alarms"})
    content = {
        "command": "python lessons/experiments/thresholds.py",
        "numbers": numbers,
        "seconds": round(time.perf_counter() - start, 1),
        "device": common.device_name(np),
        "versions": {"numpy": np.__version__, "tinyadv": tinyadv.__version__},
    }
    path = options.out / "results" / "thresholds-mnist.json"
    with tinyadv.checkpoint.replacing(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    print(f"written: {path.name}")


if __name__ == "__main__":
    main()
