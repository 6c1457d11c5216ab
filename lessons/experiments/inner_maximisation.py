"""Lesson 06 on MNIST: PGD in three norms, its starts and its end points.

    python -m lessons.experiments.inner_maximisation

attacks the first 1,000 test images, and four of them from 100 random starts. It takes about four
minutes on two cores once the two networks are trained.
"""

import numpy as np

from lessons.support import cli, zoo
from tinyadv import Tensor, array_module, attacks, evaluate, grad, to_numpy
from tinyadv.balls import L1, L2, Linf
from tinyadv.losses import cross_entropy


def loss_and_gradient(model, x, y):
    """The loss of each image and its gradient: (N,), (N, 1, 28, 28)."""
    image = Tensor(x)
    loss = cross_entropy(model(image), y, reduction="none")
    (g,) = grad(loss.sum(), [image])
    return loss.value, g


def unnormalised(model, x, y, ball, alpha, steps):
    """PGD with steps along the gradient itself, from the images."""
    delta = 0 * x
    for _ in range(steps):
        _, g = loss_and_gradient(model, x + delta, y)
        delta = ball.project(delta + alpha * g, low=-x, high=1 - x)
    return x + delta


def landscape(model, x, y, starts, **options) -> dict:
    """The losses at the starts and at the ends, for each of the images (C, 1, 28, 28)."""
    count, ball, xp = len(x), options["ball"], array_module(x)
    x, y = xp.repeat(x, starts, axis=0), xp.repeat(y, starts)
    begin = x + ball.random(x, np.random.default_rng(options["rng"]))  # where PGD starts as well
    end = attacks.pgd(model, x, y, **options)
    first, last = (
        to_numpy(loss_and_gradient(model, a, y)[0]).reshape(count, starts) for a in (begin, end)
    )
    begin, end = (to_numpy(a).reshape(count, starts, -1) for a in (begin, end))
    apart = [mean_distance(b) / mean_distance(a) for a, b in zip(begin, end, strict=True)]
    return {
        "start": first.mean(axis=1),
        "end": last.mean(axis=1),
        "spread": last.std(axis=1) / last.mean(axis=1),
        "apart": apart,
    }


def mean_distance(points) -> float:
    """The mean ‖a − b‖₂ over all pairs of points: (S, D)."""
    i, j = np.triu_indices(len(points), 1)
    return float(np.linalg.norm(points[i] - points[j], axis=1).mean())


def main() -> None:
    run = cli.start(
        "inner_maximisation", __doc__, data=("mnist", "glyphs", "fashion"), experiment=True,
        backend=True, images=(1000, "test images"), starts=(100, "random starts"),
    )  # fmt: skip
    digits, xp = run.load(), run.xp
    epsilon = zoo.EPSILON[digits.name]
    count, steps = (40, 10) if run.quick else (run.options.images, 40)
    starts = 5 if run.quick else run.options.starts
    networks = {
        "standard": zoo.standard(digits, seed=run.seed, backend=run.backend),
        "robust": zoo.robust(digits, seed=run.seed, backend=run.backend),
    }
    x_test, y_test = xp.asarray(digits.x_test), xp.asarray(digits.y_test)
    x, y = x_test[:count], y_test[:count]
    numbers = {"epsilon": epsilon}

    for name, model in networks.items():
        size = to_numpy(abs(loss_and_gradient(model, x, y)[1]).max(axis=(1, 2, 3))).astype(float)
        numbers[f"clean_{name}"] = evaluate.accuracy(model, x_test, y_test)
        numbers[f"gradients_{name}"] = np.quantile(size, [0.05, 0.5, 0.95])
        print(f"{name}: accuracy {numbers[f'clean_{name}']:.1%}")

    model, ball = networks["standard"], Linf(epsilon)
    raw = [unnormalised(model, x, y, ball, alpha, steps) for alpha in (0.01, 1.0, 100.0)]
    numbers["raw"] = [evaluate.accuracy(model, x_adv, y) for x_adv in raw]
    normalised = attacks.pgd(model, x, y, ball=ball, steps=steps, random_start=False)
    numbers["normalised"] = evaluate.accuracy(model, normalised, y)

    rows = []
    for ball in (Linf(epsilon), L2(1.5), L1(12.0, pixels=20)):
        for name, model in networks.items():
            options = {"ball": ball, "steps": steps, "rng": run.seed}
            adversarial = {
                "one step": attacks.fgsm(model, x, y, ball=ball),
                "PGD": attacks.pgd(model, x, y, **options),
                "PGD, 3 starts": attacks.pgd(model, x, y, restarts=3, **options),
            }
            share = {key: evaluate.accuracy(model, x_adv, y) for key, x_adv in adversarial.items()}
            numbers[f"accuracy_{type(ball).__name__}_{name}"] = share
            rows.append([f"{name}, {ball}", *share.values()])
    cli.table(["robust accuracy", *share], rows)

    both, labels = np.ones(count, bool), to_numpy(y)
    for model in networks.values():
        both &= to_numpy(evaluate.predict(model, x)) == labels
    if run.quick:
        both[:] = True  # the robust network has not learnt anything yet
    chosen = [np.flatnonzero(both & (labels == k))[0] for k in np.unique(labels[both])[:4]]
    for name, model in networks.items():
        options = {"ball": Linf(epsilon), "steps": steps, "rng": run.seed}
        found = landscape(model, x[xp.asarray(chosen)], y[xp.asarray(chosen)], starts, **options)
        numbers[f"landscape_{name}"] = found
        print(f"{name}: deviation of the final losses, relative to their mean: ", end="")
        print(", ".join(f"{spread:.1%}" for spread in found["spread"]))
    run.record(**numbers)


if __name__ == "__main__":
    main()
