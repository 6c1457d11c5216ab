"""What makes a network easier to certify? Other losses, other networks, and more time.

    python -m lessons.experiments.certified_training

trains convolutional networks on MNIST for certificates at ε = 0.3 (lesson 14), without thresholds
in front of them: each for some two minutes on two cores, and the last two for much longer. All
10,000 test images are then certified by interval bounds. The networks are kept, and a training that
was interrupted continues.
"""

from functools import partial

import numpy as np

from lessons.support import cli, zoo
from tinyadv import attacks, defenses, evaluate, layers, verify
from tinyadv.balls import Linf

# Arguments of ``certified``; the numbers of epochs are chosen for about the same training time.
GOWAL = {"stride": 1, "crop": 0, "epochs": 4}  # the small network of Gowal et al. (2018)
CHEAP = {"kappa": 0.0, "epochs": 12}
RUNS = {
    "intervals, small network of Gowal et al., κ = ½": GOWAL,
    "κ = 0": {**GOWAL, "kappa": 0.0, "epochs": 5},
    "κ = 0, stride 2, inner 24×24 pixels": CHEAP,
    "the same with twice the learning rate": {**CHEAP, "peak": 0.006},
    "MTL-IBP instead": {"kind": "MTL-IBP", "peak": 0.006, "epochs": 5},
    "SABR instead": {**CHEAP, "kind": "SABR", "peak": 0.006, "epochs": 6},
    "CROWN-IBP instead": {**CHEAP, "kind": "CROWN-IBP", "peak": 0.006, "epochs": 1},
}
LONG = {
    "κ = 0, twice the width and the learning rate": {
        "kappa": 0.0, "peak": 0.006, "width": 2, "epochs": 32
    },
    "κ = ½, twice the width, 28×28 pixels": {"crop": 0, "width": 2, "epochs": 40},
}  # fmt: skip


class Middle(layers.Module):
    """The image without ``border`` pixels on each side: (N, C, H, W) -> (N, C, H - 2b, W - 2b)."""

    by_example = True

    def __init__(self, border):
        self.border = border

    def __call__(self, x):
        inside = slice(self.border, -self.border or None)
        return x[:, :, inside, inside]


@verify.interval_rule(Middle)
def middle(layer, low, high, outward):
    """It only selects, so nothing is rounded."""
    return layer(low), layer(high)


@zoo.trained_once
def certified(
    digits, kind="intervals", kappa=0.5, stride=2, crop=2, width=1, peak=0.003, epochs=12, seed=0,
    state=None,
):  # fmt: skip
    """Two convolutions and two dense layers, trained on bounds; ``kind`` says on which."""
    epsilon, how = zoo.EPSILON[digits.name], {"rng": np.random.default_rng(seed)}
    how["init"] = "interval_normal"
    side = (28 - 2 * crop - 4) // 2 + 1
    side = (side - 4) // stride + 1
    model = layers.Sequential(
        Middle(crop),
        layers.Conv2d(1, 16 * width, 4, stride=2, **how), layers.ReLU(),
        layers.Conv2d(16 * width, 32 * width, 4, stride=stride, **how), layers.ReLU(),
        layers.Flatten(), layers.Dense(32 * width * side * side, 100, **how), layers.ReLU(),
        layers.Dense(100, 10, **how),
    )  # fmt: skip
    yield model
    ramp = (0.0, 0.2 * epochs)  # as the attack's
    attack = defenses.MinMax(Linf(epsilon), steps=5, warm_up=ramp[1], rng=seed)
    crown_ibp = partial(verify.linear_worst_logits, hidden="interval")
    own = {
        "intervals": {}, "CROWN-IBP": {"bound": crown_ibp}, "MTL-IBP": {"attack": attack},
        "SABR": {"attack": attack, "box": 0.6},
    }  # fmt: skip
    objective = defenses.IntervalBound(epsilon, ramp=ramp, kappa=kappa, **own[kind])
    zoo.train(model, digits, epochs, seed, state, objective=objective, peak=peak)


def main() -> None:
    run = cli.start(
        "certified_training", __doc__, data=("mnist", "glyphs", "fashion"), experiment=True
    )
    digits = run.load(train=200 if run.quick else None, test=100 if run.quick else None)
    epsilon = zoo.EPSILON[digits.name]
    x, y = digits.x_test, digits.y_test
    few = slice(0, None, max(1, len(x) // 500))

    def found(**settings):
        settings |= {"seed": run.seed} | ({"epochs": 1} if run.quick else {})

        def compute():
            model = certified(digits, **settings)
            x_adv = attacks.pgd(model, x[few], y[few], ball=Linf(epsilon), steps=20, rng=run.seed)
            return {
                "epochs": settings["epochs"], "seconds": model.training_seconds["cpu"],
                "clean": evaluate.accuracy(model, x, y),
                "PGD": evaluate.accuracy(model, x_adv, y[few]),
                "certified": verify.certified_accuracy(model, x, y, epsilon),
            }  # fmt: skip

        key = {"network": certified.key(digits, **settings), "attack": "PGD-20 on 500 images"}
        return run.kept(key, compute)

    rows = {name: found(**settings) for name, settings in RUNS.items()}
    if not run.quick:
        rows |= {name: found(**settings) for name, settings in LONG.items()}
    columns = "epochs", "seconds", "clean", "PGD", "certified"
    cli.table(
        ["", *columns],
        [
            [name, row["epochs"], f"{row['seconds']:.0f}", *(row[key] for key in columns[2:])]
            for name, row in rows.items()
        ],
    )
    run.record(epsilon=epsilon, networks=rows)


if __name__ == "__main__":
    main()
