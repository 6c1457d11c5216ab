"""Lesson 05 on MNIST: what a larger λ changes, and whether deep networks are easier to attack.

    python -m lessons.experiments.slides_attacks

The targeted attack turns one image of each class into each other class, for several λ. Dense and
convolutional networks of several depths, each with five seeds, are attacked with PGD in the L∞
ball.
"""

from functools import partial

import numpy as np

from lessons.plots import untargeted_and_targeted_attacks as plots
from lessons.support import cli, zoo
from tinyadv import attacks, evaluate
from tinyadv.balls import Linf

EPSILONS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.12, 0.2)
WEIGHTS = (0, 3, 10, 30, 100, 300, 1000)


def distances(model, digits, xp, weights) -> dict:
    """The share of targets reached and the mean change, for each distance and λ."""
    classes = len(digits.classes)
    x, y = xp.asarray(digits.x_test), xp.asarray(digits.y_test)
    right = evaluate.predict(model, x) == y
    images = xp.stack([x[right & (y == k)][0] for k in range(classes)])  # (K, 1, 28, 28)
    source, target = xp.nonzero(~xp.eye(classes, dtype=bool))
    found = {"lambda": weights}
    for distance in ("l1", "l2"):
        reached, change = [], []
        for weight in weights:
            x_adv = attacks.targeted(
                model, images[source], source, target=target, distance=distance, weight=weight
            )
            reached.append(evaluate.accuracy(model, x_adv, target))
            change.append(float(abs(x_adv - images[source]).mean()))
            print(f"{distance}, λ = {weight}: {reached[-1]:.1%} reached, {change[-1]:.4f}")
        found[distance] = {"reached": reached, "mean_change": change}
    return found


def median_radius(model, x, y) -> tuple[list, float]:
    """The accuracy over ε, and the ε at which half of the correct images are misclassified."""
    attack = lambda epsilon: partial(attacks.pgd, ball=Linf(epsilon), steps=10)
    _, curve = evaluate.robustness_curve(model, x, y, attack, EPSILONS, cascade=True)
    return curve.tolist(), float(np.interp(-curve[0] / 2, -curve, EPSILONS))  # wants rising x


def main() -> None:
    run = cli.start(
        "slides_attacks", __doc__, data=("mnist", "glyphs", "fashion"), experiment=True,
        backend=True, images=(500, "test images attacked with PGD"),
        seeds=(5, "seeds of each network"),
    )  # fmt: skip
    digits = run.load()
    standard = zoo.standard(digits, seed=run.seed, backend=run.backend)
    run.record(weights=distances(standard, digits, run.xp, WEIGHTS[::3] if run.quick else WEIGHTS))

    few = run.load() if run.quick else run.load(10_000, 1000)
    x, y = run.xp.asarray(few.x_test), run.xp.asarray(few.y_test)
    depths = {"dense": (zoo.dense_net, (1, 2, 4, 8)), "convolutional": (zoo.conv_net, (2, 4, 6))}
    depth, medians = [], {}
    for family, (recipe, depths_of_family) in depths.items():
        for hidden in depths_of_family[: 1 if run.quick else None]:
            for seed in range(run.seed, run.seed + (1 if run.quick else run.options.seeds)):
                model = recipe(
                    few, hidden=hidden, seed=seed, epochs=1 if run.quick else 10,
                    backend=run.backend,
                )  # fmt: skip
                victims = slice(20 if run.quick else run.options.images)
                curve, half = median_radius(model, x[victims], y[victims])
                depth.append({
                    "family": family, "h": hidden, "seed": seed, "half_misclassified": half,
                    "accuracy": evaluate.accuracy(model, x, y), "curve": curve,
                })  # fmt: skip
                medians.setdefault(f"{family}, {hidden}", []).append(half)
                print(f"{family}, {hidden} hidden layers: half are misclassified at ε = {half:.4f}")
    run.show(plots.depth(medians, "ε at which half are misclassified"), "depth")
    run.record(depth=depth)


if __name__ == "__main__":
    main()
