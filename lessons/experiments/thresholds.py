"""How robust is the ensemble behind thresholds? Certificates, and an attack adapted to it.

    python -m lessons.experiments.thresholds

attacks all 10,000 test images of MNIST with ``broken_defenses.cross_thresholds`` (lesson 13). It
takes some five minutes on two cores, for the ensemble whose weights are in ``lessons/weights`` and
for its first member alone.
"""

from lessons.support import cli, zoo
from tinyadv import array_module, checks, evaluate, layers, verify
from tinyadv.balls import Linf
from tinyadv.broken_defenses import cross_thresholds, live_range
from tinyadv.inputs import quiet

ADAPTED = {"steps": 40, "starts": 20, "hops": 40, "queries": 40}
QUICK = {"steps": 5, "starts": 2, "hops": 1, "queries": 2}


def live_pixels(model, x, epsilon: float = 0.3) -> dict:
    """Between which grey values the network has a slope, and the share of pixels within reach."""
    members = model.members if isinstance(model, layers.Average) else [model]
    ranges = [live_range(layers.Sequential(*member.layers[:4])) for member in members]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    reached = (x + epsilon > low) & (x - epsilon < high)
    return {"low": low, "high": high, "pixels": float(reached.mean())}


def adapted(model, x, y, epsilon: float = 0.3, seed: int = 0, **settings) -> dict:
    """The shares that are correct, certified, and correct under the adapted attack."""
    correct, certified = evaluate.predict(model, x) == y, verify.certified(model, x, y, epsilon)
    survives, left = correct.copy(), array_module(x).nonzero(correct & ~certified)[0]
    if len(left):
        x_adv = cross_thresholds(
            model, x[left], y[left], ball=Linf(epsilon), rng=seed, progress=True, **settings
        )
        survives[left] = evaluate.predict(model, x_adv) == y[left]
    shares = {"clean": correct, "certified": certified, "adapted": survives}
    return {name: float(share.mean()) for name, share in shares.items()} | {"images": len(x)}


def alarms(model, x, y, epsilon: float = 0.3, seed: int = 0, **settings) -> list[str]:
    """The checks for masked gradients that raise an alarm."""
    with quiet():
        report = checks.masking(model, x, y, ball=Linf(epsilon), rng=seed, **settings)
    print(report)
    return list(report.alarms)


def main() -> None:
    run = cli.start(
        "thresholds", __doc__, data=("mnist", "glyphs", "fashion"), experiment=True, backend=True,
        images=(10_000, "test images"),
    )  # fmt: skip
    digits = run.load()
    epsilon = zoo.EPSILON[digits.name]
    images = cli.spread(digits.x_test, digits.y_test, 20 if run.quick else run.options.images)
    x, y = map(run.xp.asarray, images)
    if digits.name == "mnist" and not run.quick:
        ensemble = zoo.certified_mnist().to(run.backend)
    else:
        ensemble = zoo.thresholds_ensemble(
            digits, seed=run.seed, backend=run.backend, epochs=1 if run.quick else 25
        )
    settings = QUICK if run.quick else ADAPTED
    effort = {"steps": 5, "queries": 10} if run.quick else {"steps": 20, "queries": 300}
    numbers = {"epsilon": epsilon, "settings": settings}
    for name, model in {"ensemble": ensemble, "first member": ensemble.members[0]}.items():
        some = slice(0, None, max(1, len(x) // 1000))
        found = alarms(model, x[some], y[some], epsilon, run.seed, **effort)
        numbers[name] = live_pixels(model, x, epsilon) | {"alarms": found}
        numbers[name] |= adapted(model, x, y, epsilon, run.seed, **settings)
        print(name, {key: value for key, value in numbers[name].items() if key != "alarms"})
    run.record(**numbers)


if __name__ == "__main__":
    main()
