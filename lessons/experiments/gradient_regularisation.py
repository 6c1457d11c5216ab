"""What does a gradient penalty gain, with ReLU and with softplus, and with noise on the images?

    python -m lessons.experiments.gradient_regularisation

trains nine networks on MNIST and attacks all test images: about half an hour on two cores. The
networks are kept, so a run that was interrupted continues where it stopped.
"""

import numpy as np

from lessons.plots import gradient_regularisation as plots
from lessons.support import cli, zoo
from tinyadv import Tensor, array_module, attacks, defenses, evaluate, fit, grad, models, optim
from tinyadv.balls import Linf
from tinyadv.layers import Activation, ReLU
from tinyadv.losses import cross_entropy

EPSILON = 0.1  # at which the networks are compared, and of min-max training
RADII = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # ε of the curves
GROWTH = (0.001, 0.01, 0.03, 0.1, 0.2)  # ε of the comparison with the linear approximation
NOISE = 0.2  # each pixel is moved at random by at most this


@zoo.trained_once
def network(
    digits, seed=0, backend="numpy", epochs=10, weight=0.0, norm=2, noise=0.0, smooth=False,
    minmax=0.0,
):  # fmt: skip
    """The slides' CNN, trained with a penalty, on noisy images, or by min-max training."""
    model = models.slides_cnn(seed).to(backend)
    if smooth:
        layers = [Activation("softplus") if isinstance(a, ReLU) else a for a in model.layers]
        model.layers = layers
    yield model
    how, generator = {}, np.random.default_rng(seed)
    if weight:
        how["objective"] = defenses.GradientPenalty(weight, norm=norm, warm_up=1.0)
    if noise:

        def noisy(model, x, y):
            xp = array_module(x)
            moved = generator.uniform(-noise, noise, x.shape).astype(x.dtype)
            return xp.clip(x + xp.asarray(moved), 0, 1)

        how["perturb"] = noisy
    if minmax:
        how["perturb"] = defenses.MinMax(Linf(minmax), steps=5, warm_up=1.0, rng=seed)
    rate = optim.piecewise_linear([(0, 5e-4), (0.4 * epochs, 5e-3), (epochs, 1e-4)])
    adam = optim.Adam(model.parameters())
    fit(model, digits, adam, epochs, schedule=rate, batch_size=128, validate=False, rng=seed, **how)


def trainings(weak, strong, absolute):
    """The nine trainings of the table: {name: arguments of ``network``}."""
    return {
        "standard": {},
        f"λ = {weak:g}": {"weight": weak},
        f"λ = {strong:g}": {"weight": strong},
        f"‖g‖₁, λ = {absolute:g}": {"weight": absolute, "norm": 1},
        "noise": {"noise": NOISE},
        f"noise, λ = {strong:g}": {"noise": NOISE, "weight": strong},
        "smooth, standard": {"smooth": True},
        f"smooth, λ = {strong:g}": {"smooth": True, "weight": strong},
        "min-max": {"minmax": EPSILON},
    }


def loss_and_gradient(model, x, y):
    """L and ∂L/∂x of each image: (N,), (N, 1, 28, 28)."""
    image = Tensor(x)
    loss = cross_entropy(model(image), y, reduction="none")
    (g,) = grad(loss.sum(), [image])
    return loss.value, g


def growth(model, x, y, epsilon):
    """L + ε‖g‖₁, the loss after FGSM, and the ratio of their growths: means over the images."""
    loss, g = loss_and_gradient(model, x, y)
    there, _ = loss_and_gradient(model, x + epsilon * array_module(x).sign(g), y)
    here, rise = float(loss.mean()), epsilon * float(abs(g).sum(axis=(1, 2, 3)).mean())
    return here + rise, float(there.mean()), (float(there.mean()) - here) / rise


def main() -> None:
    run = cli.start(
        "gradient_regularisation", __doc__, data=("mnist", "glyphs", "fashion"), experiment=True,
        backend=True, images=(1000, "test images of the curves"),
    )  # fmt: skip
    digits, xp = run.load(), run.xp
    strong = f"λ = {8:g}"
    chosen = trainings(weak=1.0, strong=8.0, absolute=0.2)
    if run.quick:
        chosen = {name: chosen[name] for name in ("standard", strong, "min-max")}
    epochs, steps = (1, 5) if run.quick else (10, 20)
    images, labels = cli.spread(digits.x_test, digits.y_test, run.options.images)
    x, y = xp.asarray(images), xp.asarray(labels)
    x_all, y_all = xp.asarray(digits.x_test), xp.asarray(digits.y_test)

    def fgsm(epsilon):
        return lambda model, x, y: attacks.fgsm(model, x, y, ball=Linf(epsilon))

    def pgd(epsilon):
        how = {"ball": Linf(epsilon), "steps": steps, "rng": run.seed}
        return lambda model, x, y: attacks.pgd(model, x, y, **how)

    networks = {
        name: network(digits, seed=run.seed, backend=run.backend, epochs=epochs, **how)
        for name, how in chosen.items()
    }
    table, curves, first_order = {}, {}, {}
    for name, model in networks.items():
        _, g = loss_and_gradient(model, x, y)
        table[name] = {
            "clean": evaluate.accuracy(model, x_all, y_all),
            "FGSM": evaluate.accuracy(model, x_all, y_all, fgsm(EPSILON)),
            "PGD": evaluate.accuracy(model, x_all, y_all, pgd(EPSILON)),
            "length": float(xp.sqrt((g * g).sum(axis=(1, 2, 3))).mean()),
        }
    rows = [[*row.values()][:3] + [f"{row['length']:.3f}"] for row in table.values()]
    header = ["training", "clean", f"FGSM, ε = {EPSILON}", f"PGD, ε = {EPSILON}", "mean ‖g‖₂"]
    cli.table(header, [[name, *row] for name, row in zip(table, rows, strict=True)])

    for name in ("standard", strong, "min-max"):
        curves[name] = {
            label: [evaluate.accuracy(networks[name], x, y, attack(radius)) for radius in RADII]
            for label, attack in (("FGSM", fgsm), ("PGD", pgd))
        }
    found = {
        key: {
            "clean": evaluate.accuracy(networks[name], x, y),
            "curve": [{"PGD": value} for value in curves[name]["PGD"]],
        }
        for key, name in (("standard", "standard"), ("penalty", strong), ("min-max", "min-max"))
    }
    run.show(plots.radii(RADII, found), "robust accuracy")

    for name in [name for name in networks if name == "standard" or name.startswith("‖g‖₁")]:
        first_order[name] = [[r, *growth(networks[name], x, y, r)[:2]] for r in GROWTH]
    gains = {
        kind: {key: table[after][key] - table[before][key] for key in table[after]}
        for kind, before, after in (
            ("ReLU", "standard", strong),
            ("with noise", "standard", f"noise, {strong}"),
            ("softplus", "smooth, standard", f"smooth, {strong}"),
        )
        if after in table
    }
    run.record(
        epsilon=EPSILON, radii=RADII, first_order=first_order, table=table, curves=curves,
        gains=gains, growth_at_epsilon=[growth(networks[n], x, y, EPSILON)[2] for n in first_order],
    )  # fmt: skip


if __name__ == "__main__":
    main()
