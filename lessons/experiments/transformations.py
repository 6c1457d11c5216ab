"""Rotations and translations on 1,000 images, and longer training against them (lesson 09).

    python -m lessons.experiments.transformations

attacks the first 1,000 test images of MNIST, and trains on all training images for ten epochs, on
one random transformation of each and on the worst of ten. The two trainings take most of the time.
"""

from functools import partial
from itertools import product

import numpy as np

from lessons.support import cli, zoo
from tinyadv import (
    Tensor,
    array_module,
    defenses,
    evaluate,
    fit,
    grad,
    losses,
    models,
    optim,
    to_numpy,
)
from tinyadv.attacks.spatial import (
    rotate_translate,
    spatial_first_order,
    spatial_grid,
    spatial_random,
)

LIMITS = np.array([30.0, 3.0, 3.0])  # degrees, pixels to the right, pixels down


@zoo.trained_once
def worst_of_k(digits, k=10, seed=0, backend="numpy", epochs=10):
    """Training on the worst of ``k`` random transformations; with k = 1, data augmentation."""
    model = models.slides_cnn(seed).to(backend)
    yield model
    rate = optim.piecewise_linear([(0, 0.0005), (0.4 * epochs, 0.005), (epochs, 0.0001)])
    fit(
        model, digits, optim.Adam(model.parameters(), lr=0.005), epochs,
        defenses.WorstOfK(k, rng=seed), schedule=rate, validate=False, rng=seed,
    )  # fmt: skip


def all_alike(model, x, y) -> dict:
    """Accuracy if all images are moved in the same way: {"(angle, right, down)": share}."""
    accuracy = {}
    for t in [(0, 0, 0), (15, 0, 0), (30, 0, 0), (0, 3, 0), (0, 0, 3), (0, 3, 3), (30, 3, 3)]:
        accuracy[str(t)] = evaluate.accuracy(model, rotate_translate(x, t[0], t[1:]), y)
    return accuracy


def slices(model, x, y, *, shape, steps, starts, rng) -> dict:
    """Local maxima of the loss over angle and shift to the right, and ascents on it.

    ``shape`` is (A, S), the number of angles and shifts. Ascents begin at ``starts`` random points
    of each image's slice; a slice is vulnerable if the model is wrong at one of its points.
    """
    xp, limits = array_module(x), LIMITS * (1, 1, 0)
    ticks = (np.linspace(-limit, limit, n) for limit, n in zip((30, 3), shape, strict=True))
    points = np.array([(*t, 0) for t in product(*ticks)], np.float32)  # (A·S, 3)
    maxima, reached = [], []
    for image, label in zip(x, to_numpy(y), strict=True):

        def logits(t, image=image):
            many = xp.broadcast_to(image, (len(t), *image.shape))
            return model(rotate_translate(many, t[:, 0], t[:, 1:]))

        z = to_numpy(logits(Tensor(xp.asarray(points))).value)
        loss = losses.cross_entropy(z, np.full(len(z), label), "none").reshape(shape)
        around = np.pad(loss, 1, constant_values=-np.inf)
        near = [around[i:, j:][: shape[0], : shape[1]] for i, j in np.ndindex(3, 3)]
        maxima.append(int(np.all([loss > a for a in near[:4] + near[5:]], axis=0).sum()))
        if (z.argmax(1) == label).all():
            continue
        t = xp.asarray((limits * rng.uniform(-1, 1, (starts, 3))).astype(np.float32))
        most, wrong = xp.asarray(limits.astype(np.float32)), np.zeros(starts, bool)
        labels = xp.asarray(np.full(starts, label))
        for _ in range(steps + 1):
            point = Tensor(t)
            z = logits(point)
            wrong |= to_numpy(z.value.argmax(1) != labels)
            (g,) = grad(losses.cross_entropy(z, labels, "sum"), [point])
            t = xp.clip(t + np.float32(0.01) * most * xp.sign(g), -most, most)
        reached.append(float(wrong.mean()))
    return {
        "maxima_of_a_slice": float(np.mean(maxima)), "slices": len(maxima),
        "vulnerable": len(reached), "ascents_that_fool": float(np.mean(reached or [1.0])),
    }  # fmt: skip


def main() -> None:
    run = cli.start(
        "transformations", __doc__, data=("mnist", "glyphs", "fashion"), experiment=True,
        backend=True, images=(1000, "test images"), epochs=(10, "of training"),
        worst_of=(10, "transformations in a training step"),
    )  # fmt: skip
    digits, how = run.load(), {"seed": run.seed, "backend": run.backend}
    count, epochs, k = run.options.images, run.options.epochs, run.options.worst_of
    angles, shifts, steps, shape, chosen = 31, 5, 200, (61, 31), 20
    if run.quick:
        count, epochs, k = min(count, 30), 1, 2
        angles, shifts, steps, shape, chosen = 7, 3, 20, (21, 13), 4
    x, y = (run.xp.asarray(a[:count]) for a in (digits.x_test, digits.y_test))
    standard = zoo.standard(digits, **how)
    grid = partial(spatial_grid, angles=angles, shifts=shifts)
    tries = {
        "one random": partial(spatial_random, k=1, rng=run.seed),
        "worst of 10": partial(spatial_random, k=10, rng=run.seed),
        "first-order": partial(spatial_first_order, steps=steps, rng=run.seed),
        "grid": grid,
    }

    def table(model, names):
        attacked = {name: evaluate.accuracy(model, x, y, tries[name]) for name in names}
        return {"clean": evaluate.accuracy(model, x, y), **attacked}

    alike, found = all_alike(standard, x, y), {"clean": evaluate.accuracy(standard, x, y)}
    for name, attack in tries.items():  # all images at once, so each has random numbers of its own
        found[name] = evaluate.accuracy(standard, attack(standard, x, y), y)
    cli.table(["all images moved by", "accuracy"], [*alike.items()])
    cli.table(["attack on the standard network", "accuracy"], [*found.items()])
    sizes = {}
    for angle, shift in ((30, 1), (10, 3), (30, 3)):
        attack = partial(grid, max_angle=angle, max_shift=shift)
        sizes[f"{angle}°, {shift} px"] = evaluate.accuracy(standard, x, y, attack)
    cli.table(["limits of the grid", "accuracy"], [*sizes.items()])
    correct = np.flatnonzero(to_numpy(evaluate.predict(standard, x) == y))[:chosen]
    landscape = slices(
        standard, x[correct], y[correct], shape=shape, steps=steps, starts=24,
        rng=np.random.default_rng(run.seed),
    )  # fmt: skip
    print(landscape)
    run.record(images=len(x), all_alike=alike, grid_of_size=sizes, standard=found, **landscape)

    networks = {
        "standard": standard,
        "robust in L∞": zoo.robust(digits, **how),
        "augmented": worst_of_k(digits, k=1, epochs=epochs, **how),
        f"worst of {k}": worst_of_k(digits, k=k, epochs=epochs, **how),
    }
    names = "one random", "worst of 10", "grid"
    result = {name: table(model, names) for name, model in networks.items()}
    rows = [[name, *row.values()] for name, row in result.items()]
    cli.table(["network", "clean", *names], rows)
    run.record(networks=result)


if __name__ == "__main__":
    main()
