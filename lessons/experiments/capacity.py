"""Madry's capacity figure: five widths, trained on clean images, on FGSM's and on PGD's examples.

    python -m lessons.experiments.capacity

trains sixteen networks on 20,000 images of MNIST: about half an hour on two cores. The networks are
kept, so a run that was interrupted continues where it stopped.
"""

import math

import numpy as np

from lessons.plots import capacity as plots
from lessons.support import cli, zoo
from tinyadv import attacks, evaluate, to_numpy
from tinyadv.balls import Linf
from tinyadv.losses import cross_entropy

WIDTHS = (1, 2, 4, 8, 16)
TRAININGS = ("standard", "FGSM", "PGD")


def mean_loss(model, x, y, attack):
    """The mean loss on images (N, 1, 28, 28), attacked 200 at a time unless ``attack`` is None."""
    losses = []
    for i in range(0, len(x), 200):
        images, labels = x[i : i + 200], y[i : i + 200]
        if attack is not None:
            images = attack(model, images, labels)
        losses.append(to_numpy(cross_entropy(model(images), labels, reduction="none")))
    return float(np.concatenate(losses).mean())


def main() -> None:
    run = cli.start(
        "capacity", __doc__, data=("mnist", "glyphs", "fashion"), experiment=True, backend=True,
        images=(1000, "test images, and training images for the loss"),
    )  # fmt: skip
    widths = (1, 2) if run.quick else WIDTHS
    digits, xp = run.load(train=500 if run.quick else 20_000), run.xp
    ball = Linf(zoo.EPSILON[digits.name])
    count = 100 if run.quick else run.options.images
    x, y = map(xp.asarray, cli.spread(digits.x_test, digits.y_test, count))
    x_train, y_train = xp.asarray(digits.x_train[:count]), xp.asarray(digits.y_train[:count])
    how = {"epochs": 1, "steps": 2} if run.quick else {"epochs": 5, "steps": 7}
    how |= {"seed": run.seed, "backend": run.backend}

    def fgsm(model, x, y):
        return attacks.fgsm(model, x, y, ball=ball)

    def pgd(model, x, y):
        return attacks.pgd(model, x, y, ball=ball, steps=5 if run.quick else 40, rng=run.seed)

    tests = {"clean": None, "FGSM": fgsm, "PGD": pgd}
    networks = {
        (training, width): zoo.capacity(digits, width=width, training=training, **how)
        for training in TRAININGS
        for width in widths
    }
    accuracy = {training: {test: [] for test in tests} for training in TRAININGS}
    loss = {training: [] for training in TRAININGS}
    rows = []
    for (training, width), model in networks.items():
        own = {"standard": None, "FGSM": fgsm, "PGD": pgd}[training]
        loss[training].append(mean_loss(model, x_train, y_train, own))
        for test, attack in tests.items():
            accuracy[training][test].append(evaluate.accuracy(model, x, y, attack))
        found = [accuracy[training][test][-1] for test in tests]
        rows.append([f"{training} training, ×{width}", f"{loss[training][-1]:.3f}", *found])
    cli.table(["", "training loss", *tests], rows)
    run.show(plots.training_loss(widths, loss), "training loss")
    run.show(plots.accuracies(widths, accuracy), "accuracies")

    first, *_, last = accuracy["standard"]["FGSM"]  # does width help without adversarial training?
    error = math.sqrt(sum(a * (1 - a) for a in (first, last)) / len(x))
    abrupt = zoo.capacity(digits, width=1, training="PGD", warm_up=0.0, **how)
    without = {
        "loss": mean_loss(abrupt, x_train, y_train, pgd),
        "clean": evaluate.accuracy(abrupt, x, y),
        "PGD": evaluate.accuracy(abrupt, x, y, pgd),
        "predicted_classes": len(np.unique(to_numpy(evaluate.predict(abrupt, x)))),
    }
    transfer = [
        evaluate.accuracy(networks["PGD", width], pgd(networks["standard", width], x, y), y)
        for width in widths
    ]
    run.record(
        epsilon=ball.epsilon, widths=widths, training_loss=loss, accuracy=accuracy,
        width_alone={"change": last - first, "standard_error": error},
        without_warm_up=without, transfer=transfer,
    )  # fmt: skip


if __name__ == "__main__":
    main()
