"""Attacks, exact answers and bounds on the same images, and what an exact answer costs.

    python -m lessons.experiments.bounds

measures on MNIST how many of 100 test images survive PGD, and how many are certified exactly, by
linear bounds and by intervals: for three perceptrons, and for a small convolutional network at
three radii (lesson 16). Branch and bound is compared with a solver of mixed-integer programs on the
first images that PGD and linear bounds leave undecided. Linear bounds are also computed for the
larger PGD network of the min-max experiment. Finally, two networks are trained on noisy images, and
their votes on noisy copies are certified. It takes some twenty minutes on two cores; the networks
are kept.
"""

import time
from functools import partial

import numpy as np

from lessons.support import cli, zoo
from tinyadv import attacks, evaluate, verify
from tinyadv.balls import Linf

RADII = {"standard": (0.02,), "PGD": (0.1,), "intervals": (0.1,)}  # of the perceptrons
NAMES = {"standard": "standard", "PGD": "min-max", "intervals": "interval bounds"}
CONV_RADII = (0.05, 0.07, 0.1)
DOMAINS = {"perceptron": 20_000, "small CNN": 5_000}  # the most for an image; then it stays open


def by_steps(steps):
    """Linear bounds with slopes that this many steps of descent have improved."""
    return lambda *args: verify.linear_worst_logits(*args, steps=steps)


def timed(compute):
    """What a function returns, and the processor time that it takes, in seconds."""
    began = time.process_time()
    return compute(), time.process_time() - began


def compared(model, x, y, epsilon, domains, steps):
    """The share of images that each method finds robust, and the seconds that it takes."""
    x_adv = attacks.pgd(model, x, y, ball=Linf(epsilon), steps=40)
    began = time.perf_counter()
    verdicts, seconds = timed(lambda: verify.decide(model, x, y, epsilon, domains=domains))
    elapsed = time.perf_counter() - began
    answers = [verdict.answer for verdict in verdicts]
    found = {
        "PGD": evaluate.accuracy(model, x_adv, y),
        "proved": answers.count("proved") / len(x),
        "open": answers.count("open") / len(x),
        "seconds": seconds,
        "elapsed": elapsed,
    }
    bounds = {"α-CROWN": by_steps(steps), "CROWN": by_steps(0), "intervals": verify.worst_logits}
    for name, bound in bounds.items():
        found[name], found[f"seconds of {name}"] = timed(
            lambda bound=bound: verify.certified_accuracy(model, x, y, epsilon, bound=bound)
        )
    return found


def against_solver(model, x, y, epsilon, count, seconds):
    """Branch and bound and the solver, on the first images that neither PGD nor CROWN decides."""
    first = [verdict.answer for verdict in verify.decide(model, x, y, epsilon, domains=0)]
    hard = [i for i, answer in enumerate(first) if answer == "open"][:count] or [0]
    pairs = list(
        zip(
            verify.decide(model, x[hard], y[hard], epsilon),
            verify.solve(model, x[hard], y[hard], epsilon, seconds=seconds),
            strict=True,
        )
    )
    answers = [(ours.answer, theirs.answer) for ours, theirs in pairs]
    return {
        "images": len(hard),
        "the same answer": sum(ours == theirs for ours, theirs in answers),
        "left open by the solver": sum(theirs == "open" for _, theirs in answers),
        "contradictions": sum({"proved", "broken"} == set(pair) for pair in answers),
        "domains": [ours.domains for ours, _ in pairs],
        "seconds": {
            "branch and bound": float(np.median([ours.seconds for ours, _ in pairs])),
            "solver": float(np.median([theirs.seconds for _, theirs in pairs])),
        },
    }


def smoothed(model, x, y, sigma, n, seed):
    """Certified accuracy of the vote on n noisy copies, at L2 radii up to the largest."""
    (classes, radii), seconds = timed(
        lambda: verify.smoothed_radius(model, x, sigma=sigma, n=n, rng=seed, progress=True)
    )
    right = classes == y
    certified = {f"{r:g}": float((right & (radii > r)).mean()) for r in (0, 0.25, 0.5, 1, 1.5)}
    abstains, largest = float((classes < 0).mean()), verify.largest_radius(sigma, n, 0.001)
    return {"certified": certified, "abstains": abstains, "largest": largest, "seconds": seconds}


def main() -> None:
    run = cli.start(
        "bounds", __doc__, data=("mnist", "glyphs", "fashion"), experiment=True,
        images=(100, "test images"),
    )  # fmt: skip
    digits = run.load(train=500 if run.quick else None)
    x, y = cli.spread(digits.x_test, digits.y_test, 8 if run.quick else run.options.images)
    how = {"epsilon": 0.1, "seed": run.seed, "epochs": 1 if run.quick else 8}
    kinds = {
        f"perceptron, {NAMES[training]}": (zoo.perceptron, {"training": training, **how}, radii)
        for training, radii in RADII.items()
    }
    how |= {"epochs": 1 if run.quick else 4}
    kinds["small CNN, min-max"] = (zoo.small_cnn, how, CONV_RADII[: 1 if run.quick else None])
    networks = {}
    for name, (recipe, settings, radii) in kinds.items():
        domains = 4 if run.quick else DOMAINS[name.partition(",")[0]]
        for epsilon in radii:
            compute = partial(
                compared, recipe(digits, **settings), x, y, epsilon, domains, 1 if run.quick else 12
            )
            key = {"network": recipe.key(digits, **settings), "images": len(x), "domains": domains}
            networks[f"{name}, ε = {epsilon}"] = run.kept({**key, "epsilon": epsilon}, compute)
            print(f"{name}, ε = {epsilon}: {networks[f'{name}, ε = {epsilon}']}")
            run.record(images=len(x), networks=networks)
    shown = ("PGD", "proved", "open", "α-CROWN", "CROWN", "intervals")
    rows = [
        [name, *(row[key] for key in shown), f"{row['seconds']:.1f}"]
        for name, row in networks.items()
    ]
    cli.table(["", *shown, "seconds"], rows)

    recipe, settings, (epsilon,) = kinds["perceptron, min-max"]
    count, seconds = (1, 1) if run.quick else (15, 30)
    solver = against_solver(recipe(digits, **settings), x, y, epsilon, count, seconds)
    print("branch and bound, and a solver:", solver)

    recorded, few = zoo.robust_mnist(), slice(0, 1 if run.quick else 10)
    share, seconds = timed(
        lambda: verify.certified_accuracy(recorded, x[few], y[few], 0.15, bound=by_steps(0))
    )
    large = {"images": len(x[few]), "CROWN": share, "seconds": seconds}
    print("the larger PGD network, ε = 0.15:", large)
    run.record(solver=solver, large=large)

    votes = {}
    for sigma in (0.25, 0.5):
        model = zoo.noisy(digits, sigma=sigma, seed=run.seed, epochs=1 if run.quick else 5)
        n = 200 if run.quick else 10_000
        votes[f"{sigma:g}"] = smoothed(model, x, y, sigma, n, run.seed)
        print(f"votes on noisy copies, σ = {sigma:g}: {votes[f'{sigma:g}']}")
    run.record(smoothed=votes)


if __name__ == "__main__":
    main()
