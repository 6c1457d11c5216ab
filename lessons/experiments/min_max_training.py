"""Nine ways to train an MNIST network, judged by attacks and by proofs (lessons 10 and 14).

    python -m lessons.experiments.min_max_training

trains the networks of ``lessons/support/zoo.py`` and attacks them at ε = 0.3. It takes some twelve
hours of one core, four of them for the attacks on the largest network. Networks, and counts of
every 1,000 images, are kept in the cache, so it can be stopped and started again. ``--keep``
computes only rows that are not recorded yet. ``--record`` also writes the weights of two networks
to ``lessons/weights``.
"""

import numpy as np

from lessons.plots import min_max_training as plots
from lessons.support import cli, zoo
from lessons.support.judge import COLUMNS, judge, settings
from tinyadv import Tensor, grad, ops, to_numpy, verify
from tinyadv.losses import cross_entropy

NETWORKS = {
    "standard": zoo.standard_fast,
    "gradient penalty": zoo.gradient_penalty,
    "fast": zoo.fast,
    "PGD": zoo.pgd,
    "TRADES": zoo.trades,
    "interval bounds": zoo.interval_bounds,
    "PGD, larger": zoo.larger,
    "interval bounds, thresholds": zoo.thresholds,
    "interval bounds, thresholds, ensemble": zoo.thresholds_ensemble,
}
WEIGHTS = {  # kept in this repository, for the lessons
    "PGD, larger": "mnist_robust.npz",
    "interval bounds, thresholds, ensemble": "mnist_certified.npz",
}
# Judged on ten times as many images: the attacks end early, or the figures are the ones to quote.
MORE_IMAGES = {
    "standard", "gradient penalty", "interval bounds", "interval bounds, thresholds", *WEIGHTS
}  # fmt: skip
SHORT = {"steps": 20, "targets": 3, "queries": 200}  # a shorter AutoAttack
QUICK = {"steps": 2, "targets": 1, "queries": 5}  # with --quick, and no PGD-100
LENGTHS = {"PGD": (3, 6, 12), "PGD, larger": (6, 12, 24), "interval bounds": (12, 25, 50)}  # epochs
PAPERS = {  # Madry et al. (2018), with 20 starts of PGD-100; AutoAttack: Croce & Hein (2020)
    "Madry et al., standard": {"clean": 0.992, "FGSM": 0.064},
    "Madry et al., PGD": {
        "clean": 0.988, "FGSM": 0.956, "PGD-40": 0.932, "PGD-100": 0.893, "AutoAttack": 0.885
    },
}  # fmt: skip


def key_of(name, digits, seed=0, **arguments):
    """A digest of all that the weights of a network depend on."""
    if NETWORKS[name] is zoo.thresholds_ensemble:
        return [zoo.thresholds.key(digits, seed=s, **arguments) for s in (seed, seed + 1)]
    return NETWORKS[name].key(digits, seed=seed, **arguments)


def row(run, digits, name, seed, **how):
    """A row of the table: the shares of the images that survive, and the seconds of training."""
    count = run.options.images * (10 if name in MORE_IMAGES else 1)
    x, y = map(run.xp.asarray, cli.spread(digits.x_test, digits.y_test, count))
    arguments = {"seed": seed, "backend": run.backend} | ({"epochs": 1} if run.quick else {})
    epsilon, how = zoo.EPSILON[digits.name], {"seed": seed, **how}

    def compute():
        model = NETWORKS[name](digits, **arguments)
        keep = run.options.record and name in WEIGHTS and digits.name == "mnist"
        if keep and seed == 0 and not run.quick:
            zoo.save_weights(model, WEIGHTS[name], run.options.out / "weights")
        seconds = model.training_seconds
        shares = judge(model, x, y, epsilon, **how)
        return shares | {"seconds": seconds["wall"], "cpu_seconds": seconds["cpu"]}

    network = key_of(name, digits, **arguments)
    return run.kept({"network": network, **settings(len(x), epsilon, **how)}, compute)


def after(run, digits, name, epochs):
    """The seconds of a training of this length, and what survives: certified, or AutoAttack."""
    proved = NETWORKS[name] is zoo.interval_bounds
    count = run.options.images * (10 if proved else 1)
    x, y = map(run.xp.asarray, cli.spread(digits.x_test, digits.y_test, count))
    arguments = {"seed": run.seed, "epochs": epochs, "backend": run.backend}
    epsilon = zoo.EPSILON[digits.name]
    how = {"starts": 0, "autoattack": QUICK if run.quick else SHORT, "seed": run.seed}

    def compute():
        model = NETWORKS[name](digits, **arguments)
        if proved:
            found = {"certified": verify.certified_accuracy(model, x, y, epsilon)}
        else:
            found = {"short AutoAttack": judge(model, x, y, epsilon, **how)["AutoAttack"]}
        return {"cpu_seconds": model.training_seconds["cpu"], **found}

    key = {"network": key_of(name, digits, **arguments), "certified": proved}
    return run.kept({**key, **settings(len(x), epsilon, **how)}, compute)


def input_gradient(model, x, y):
    """∂L/∂x on the host: (N, 1, 28, 28)."""
    image = Tensor(x)
    (g,) = grad(cross_entropy(model(image), y, reduction="sum"), [image])
    return to_numpy(g)


def near_strokes(x):
    """The pixels on strokes and up to two pixels beside them: (N, 1, 28, 28) of bool."""
    padded = np.pad(to_numpy(x), ((0, 0), (0, 0), (2, 2), (2, 2)))
    return to_numpy(ops.max_pool2d(padded, kernel_size=5, stride=1)) > 0.5


def largest_tenth(model):
    """Of all absolute weights of the first layer, the share that its largest tenth sums up to."""
    weights = np.sort(abs(to_numpy(model.parameters()[0].value)).ravel())[::-1]
    return float(weights[: len(weights) // 10].sum() / weights.sum())


def main():
    run = cli.start(
        "min_max_training", __doc__, data=("mnist", "glyphs", "fashion"), experiment=True,
        backend=True, images=(1000, "test images; ten times as many for six of the networks"),
    )  # fmt: skip
    digits = run.load(*((200, 20) if run.quick else ()))
    how = {"autoattack": QUICK, "starts": 0} if run.quick else {}
    run.record(epsilon=zoo.EPSILON[digits.name])

    networks = {name: row(run, digits, name, run.seed, **how) for name in NETWORKS}
    rows = [
        [name, *(found[column] for column in COLUMNS), found["images"],
         f"{found['cpu_seconds']:.0f}"]
        for name, found in networks.items()
    ]  # fmt: skip
    if digits.name == "mnist":
        for name, found in PAPERS.items():
            rows.append([name, *(found.get(column, "") for column in COLUMNS), 10_000, ""])
    cli.table(["robust accuracy", *COLUMNS, "images", "seconds"], rows)
    run.record(networks=networks)

    print("\nPGD with other random numbers")
    seeds = range(run.seed, run.seed + (2 if run.quick else 3))
    seeds = {seed: row(run, digits, "PGD", seed, **how) for seed in seeds}
    cli.table(["seed", *COLUMNS], [[s, *map(found.get, COLUMNS)] for s, found in seeds.items()])
    run.record(seeds=seeds)

    print("\nshorter and longer training")
    lengths = {"PGD": (1, 2), "interval bounds": (1, 2)} if run.quick else LENGTHS
    more_time = {
        name: {epochs: after(run, digits, name, epochs) for epochs in lengths[name]}
        for name in lengths
    }
    columns = "short AutoAttack", "certified"
    rows = [
        [name, epochs, f"{found['cpu_seconds']:.0f}", *map(found.get, columns, ("", ""))]
        for name, curve in more_time.items() for epochs, found in curve.items()
    ]  # fmt: skip
    cli.table(["trained", "epochs", "seconds", "short AutoAttack", "certified"], rows)
    run.show(plots.training_length(more_time), "training length")
    run.record(more_time=more_time)

    print("\nwhat the networks look at")
    x, y = map(run.xp.asarray, cli.spread(digits.x_test, digits.y_test, run.options.images))
    x, y = x[:200], y[:200]
    near, on_strokes, tenth, gradients = near_strokes(x), {}, {}, {}
    chosen = [int(np.flatnonzero(to_numpy(y) == digit)[0]) for digit in np.unique(to_numpy(y))[:5]]
    arguments = {"seed": run.seed, "backend": run.backend} | ({"epochs": 1} if run.quick else {})
    for name in ("standard", "PGD", "interval bounds"):
        model = NETWORKS[name](digits, **arguments)
        g = input_gradient(model, x, y)
        gradients[name], g = g[chosen, 0], abs(g)
        share = (g * near).sum((1, 2, 3)) / (g.sum((1, 2, 3)) + 1e-30)
        on_strokes[name], tenth[name] = float(share.mean()), largest_tenth(model)
    on_strokes["all pixels"] = float(near.mean())
    header = ["", "gradient on or beside strokes", "largest tenth of the filters' weights"]
    cli.table(header, [[name, on_strokes[name], tenth.get(name, "")] for name in on_strokes])
    pictures = to_numpy(x)[chosen, 0]
    run.show(plots.input_gradients(pictures, gradients), "input gradients")
    run.record(largest_tenth=tenth, gradient_on_strokes=on_strokes)


if __name__ == "__main__":
    main()
