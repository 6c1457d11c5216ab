"""Transfer between five networks, and the Square attack with 5,000 queries (lesson 08).

    python -m lessons.experiments.transfer

attacks the first 1,000 test images of MNIST: two standard networks of the same architecture, a
standard network of another, and two robust networks. It takes a few minutes on two cores once the
networks are trained.
"""

import numpy as np

from lessons.support import cli, zoo
from tinyadv import attacks, evaluate, fit, models, optim, to_numpy
from tinyadv.attacks.blackbox import square, transfer
from tinyadv.balls import Linf

STANDARD = "standard A", "standard B", "other architecture"
ROBUST = "robust A", "robust B"


@zoo.trained_once
def other_architecture(digits, seed=0, backend="numpy", epochs=4):
    """Standard training, as in lesson 02, of the fast CNN."""
    model = models.fast_cnn(seed).to(backend)
    yield model
    rmsprop = optim.RMSprop(model.parameters(), lr=0.001, rho=0.9, epsilon=1e-7)
    fit(model, digits, rmsprop, epochs, batch_size=128, validate=False, rng=seed)


def five_networks(run, digits) -> dict:
    """The networks by name; robust B is trained on the first half of the images only."""
    how = {"backend": run.backend}
    half = run.load(train=len(digits.x_train) // 2)
    return {
        "standard A": zoo.standard(digits, seed=run.seed, **how),
        "standard B": zoo.standard(digits, seed=run.seed + 1, epochs=4, **how),
        "other architecture": other_architecture(digits, seed=run.seed, **how),
        "robust A": zoo.robust(digits, seed=run.seed, **how),
        "robust B": zoo.robust(half, seed=run.seed + 1, **how),
    }


def transfer_matrix(networks, x, y, *, ball, steps, rng=0) -> dict:
    """Accuracy on PGD's examples: {source: [one for each victim]}."""
    matrix = {}
    for name, source in networks.items():
        x_adv = attacks.pgd(source, x, y, ball=ball, steps=steps, rng=rng)
        matrix[name] = [evaluate.accuracy(victim, x_adv, y) for victim in networks.values()]
    return matrix


def groups(networks, matrix) -> dict:
    """Means over pairs of networks of the same kind."""
    names, (a, b, other), (ra, rb) = list(networks), STANDARD, ROBUST

    def mean(pairs):
        return float(np.mean([matrix[source][names.index(victim)] for source, victim in pairs]))

    return {
        "white box, standard": mean((name, name) for name in STANDARD),
        "white box, robust": mean((name, name) for name in ROBUST),
        "standard → its copy": mean([(a, b), (b, a)]),
        "other architecture → standard": mean([(other, a), (other, b)]),
        "robust → standard": mean((source, victim) for source in ROBUST for victim in (a, b)),
        "standard → robust": mean((source, victim) for source in STANDARD for victim in ROBUST),
        "robust → its copy": mean([(ra, rb), (rb, ra)]),
    }


def worst_of_four(networks, x, y, *, victims, ball, steps) -> dict:
    """Accuracy of each victim if one image of any of the other networks is enough to fool it."""
    found = {}
    for victim in victims:
        sources = [model for name, model in networks.items() if name != victim]
        x_adv = transfer(networks[victim], x, y, sources=sources, ball=ball, steps=steps)
        found[victim] = evaluate.accuracy(networks[victim], x_adv, y)
    return found


def by_queries(model, x, y, *, ball, queries, rng=0) -> dict:
    """Accuracy under Square, and the median of the queries that its successes took."""
    _, details = square(model, x, y, ball=ball, queries=queries, rng=rng, details=True)
    success = to_numpy(details.success)
    needed = to_numpy(details.queries)[success]
    median = float(np.median(needed)) if len(needed) else None
    return {"accuracy": float(1 - success.mean()), "median_queries": median}


def main() -> None:
    run = cli.start(
        "transfer", __doc__, data=("mnist", "glyphs", "fashion"), experiment=True, backend=True,
        images=(1000, "test images"), queries=(5000, "of Square, for each image"),
    )  # fmt: skip
    digits = run.load()
    networks = five_networks(run, digits)
    count, queries = run.options.images, run.options.queries
    if run.quick:
        count, queries = min(count, 40), min(queries, 60)
    x, y = (run.xp.asarray(a[:count]) for a in (digits.x_test, digits.y_test))
    epsilon, steps = zoo.EPSILON[digits.name], 10 if run.quick else 40
    ball = Linf(epsilon)

    clean = {name: evaluate.accuracy(model, x, y) for name, model in networks.items()}
    matrix = transfer_matrix(networks, x, y, ball=ball, steps=steps, rng=run.seed)
    rows = [["no attack", *clean.values()], *([name, *row] for name, row in matrix.items())]
    cli.table(["examples made on ↓, accuracy of →", *networks], rows)
    means = groups(networks, matrix)
    cli.table(["source → victim", "accuracy"], [*means.items()])
    worst = worst_of_four(
        networks, x, y, victims=("standard A", "robust A"), ball=ball, steps=steps
    )
    cli.table(["victim", "accuracy, worst of four sources"], [*worst.items()])
    run.record(
        epsilon=epsilon, images=len(x), queries=queries, clean=clean, matrix=matrix, groups=means,
        worst_of_four_sources=worst,
    )  # fmt: skip
    for name in ("standard A", "other architecture", "robust A"):
        found = by_queries(networks[name], x, y, ball=ball, queries=queries, rng=run.seed)
        print(f"{name} under Square: {found}")
        run.record(**{f"square_{name}": found})


if __name__ == "__main__":
    main()
