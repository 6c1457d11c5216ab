"""Lesson 13 on MNIST: seven networks and defences under PGD, AutoAttack and adaptive attacks.

    python -m lessons.experiments.evaluation

takes some five hours of one core, most of them for the two networks in ``lessons/weights``, which
are attacked with all 10,000 test images (``--robust-images 1000`` takes fewer, ``--keep`` takes
their rows from the recorded results). The other five are attacked with 1,000:

    standard    lesson 02
    distilled   defensive distillation at T = 100
    squeezed    pixels rounded to two bits, and a median of 2×2 pixels, before the standard network
    detector    the standard network, with images rejected if squeezing changes the prediction
    fast        trained on a single step, and on PGD while it overfits
"""

import zlib
from functools import partial

from lessons.support import cli, zoo
from lessons.support.judge import judge
from tinyadv import (
    Tensor,
    attacks,
    broken_defenses,
    checks,
    evaluate,
    grad,
    losses,
    to_numpy,
)
from tinyadv.balls import Linf
from tinyadv.inputs import quiet

BITS, WINDOW, FALSE_POSITIVES = 2, 2, 0.05


def under_auto_attack(model, x, y, **settings) -> evaluate.Robustness:
    """The report of AutoAttack; of a masked gradient it need not warn."""
    with quiet():
        return attacks.auto_attack(model, x, y, details=True, **settings)[1]


def without_gradient(model, x, y) -> float:
    """The share of images (N, …) whose gradient is exactly 0 in every pixel."""
    image = Tensor(x)
    loss = losses.cross_entropy(model(image), y, reduction="none")
    (g,) = grad(loss.sum(), [image])
    return float((abs(g).reshape(len(x), -1).max(axis=1) == 0).mean())


def behind_squeezers(standard, x, y, pgd, auto_attack) -> tuple:
    """Feature squeezing as a defence: the squeezed network, and its row."""
    two_bits, one_bit = (
        broken_defenses.in_turn(broken_defenses.bit_depth(bits), broken_defenses.median(WINDOW))
        for bits in (BITS, 1)
    )
    model, black_white = (broken_defenses.squeezed(standard, s) for s in (two_bits, one_bit))
    followed, followed_too = (  # the same networks, with a gradient: BPDA
        broken_defenses.squeezed(standard, broken_defenses.straight_through(s))
        for s in (two_bits, one_bit)
    )
    return model, {
        "clean": evaluate.accuracy(model, x, y),
        "PGD": evaluate.accuracy(model, pgd(model, x, y), y),
        "adaptive": evaluate.accuracy(model, pgd(followed, x, y), y),
        "AutoAttack": auto_attack(followed, x, y).worst_case,
        "one bit, adaptive": evaluate.accuracy(black_white, pgd(followed_too, x, y), y),
    }


def behind_a_detector(standard, x, y, unseen, pgd, **attack) -> dict:
    """Feature squeezing as a detector, calibrated on clean images ``unseen``, (M, 1, 28, 28)."""
    squeezers = {"bits": broken_defenses.bit_depth(BITS), "median": broken_defenses.median(WINDOW)}
    detector = broken_defenses.Detector(standard, squeezers).calibrate(unseen, FALSE_POSITIVES)
    accepted = ~detector.refuses(x)
    row = {"clean": float(((evaluate.predict(standard, x) == y) & accepted).mean())}
    adaptive = broken_defenses.evade(detector, x, y, **attack)
    for name, x_adv in {"PGD": pgd(standard, x, y), "adaptive": adaptive}.items():
        wrong = evaluate.predict(standard, x_adv) != y
        row[name] = 1 - float((wrong & ~detector.refuses(x_adv)).mean())  # not misclassified unseen
    return row | {"threshold": float(detector.threshold)}


def main() -> None:
    run = cli.start(
        "evaluation", __doc__, data=("mnist", "glyphs", "fashion"), experiment=True, backend=True,
        images=(1000, "test images"), robust_images=(10_000, "test images for robust networks"),
    )  # fmt: skip
    quick, xp, seed = run.quick, run.xp, run.seed
    digits = run.load()
    ball = Linf(zoo.EPSILON[digits.name])
    count = 25 if quick else run.options.images
    x, y = map(xp.asarray, cli.spread(digits.x_test, digits.y_test, count))
    effort = {"steps": 100, "targets": 9, "queries": 5000}
    steps, starts, pgd_steps = 50, 10, 40
    if quick:
        effort = {"steps": 3, "targets": 2, "queries": 10}
        steps, starts, pgd_steps = 5, 2, 5
    pgd = partial(attacks.pgd, ball=ball, steps=pgd_steps, random_start=False)
    auto_attack = partial(under_auto_attack, ball=ball, rng=seed, **effort)

    how = {"seed": seed, "backend": run.backend}
    short = {"epochs": 1} if quick else {}
    standard, distilled, fast = (
        recipe(digits, **how, **short) for recipe in (zoo.standard, zoo.distilled, zoo.fast)
    )
    if digits.name == "mnist" and not quick:
        networks = {"robust": zoo.robust_mnist(), "certified": zoo.certified_mnist()}
        networks = {name: model.to(run.backend) for name, model in networks.items()}
    else:
        networks = {
            "robust": zoo.pgd(digits, **how, **short),
            "certified": zoo.interval_bounds(digits, **how, **short),
        }

    rows, models = {}, {"fast": fast, "standard": standard, "distilled": distilled}
    for name, model in models.items():
        report = auto_attack(model, x, y)
        rows[name] = {"clean": report.clean_accuracy, "AutoAttack": report.worst_case}
        if name != "fast":
            rows[name]["PGD"] = evaluate.accuracy(model, pgd(model, x, y), y)
            continue
        after = {attack: found.accuracy for attack, found in report.attacks.items()}
        single = attacks.fgsm(model, x, y, ball=ball)
        rows[name]["one step"] = evaluate.accuracy(model, single, y)
        many = attacks.pgd(model, x, y, ball=ball, steps=steps, restarts=starts, rng=seed)
        rows[name]["PGD"] = evaluate.accuracy(model, many, y)
    on_margin = pgd(distilled, x, y, loss=losses.margin)
    rows["distilled"]["adaptive"] = evaluate.accuracy(distilled, on_margin, y)
    models["squeezed"], rows["squeezed"] = behind_squeezers(standard, x, y, pgd, auto_attack)
    unseen = xp.asarray(digits.x_test[1 :: max(2, len(digits.x_test) // count)][:500])
    rows["detector"] = behind_a_detector(
        standard, x, y, unseen, pgd, ball=ball, steps=pgd_steps, rng=seed
    )

    many = 25 if quick else run.options.robust_images
    many = tuple(map(xp.asarray, cli.spread(digits.x_test, digits.y_test, many)))
    settings = {"starts": 2 if quick else 20, "seed": seed, **effort}
    for name, model in networks.items():
        weights = [zlib.crc32(to_numpy(a).tobytes()) for a in model.state_dict().values()]
        key = {"weights": weights, "images": len(many[0]), "epsilon": ball.epsilon, **settings}
        how = {"starts": settings["starts"], "autoattack": effort, "seed": seed}
        rows[name] = run.kept(key, partial(judge, model, *many, ball.epsilon, **how))

    models["robust"] = networks["robust"]
    for name, model in models.items():
        if not rows[name]["clean"]:
            continue  # hardly trained, with --quick
        with quiet():
            report = checks.masking(
                model, x, y, ball=ball, steps=5 if quick else 20, queries=10 if quick else 300,
                sources=[] if name == "standard" else [standard], rng=seed,
            )  # fmt: skip
        rows[name]["alarms"] = list(report.alarms)
        print(f"--- {name}\n{report}\n")
    columns = ["clean", "PGD", "PGD-100", "AutoAttack", "adaptive", "certified"]
    cli.table(["", *columns], [[n, *(r.get(c, "–") for c in columns)] for n, r in rows.items()])
    run.record(
        epsilon=ball.epsilon,
        images=len(x),
        AutoAttack=effort,
        fast_after_each={"clean": rows["fast"]["clean"], **after},
        networks=rows,
        gradient_exactly_zero={
            name: without_gradient(models[name], x, y)
            for name in ("standard", "distilled", "squeezed")
        },
    )


if __name__ == "__main__":
    main()
