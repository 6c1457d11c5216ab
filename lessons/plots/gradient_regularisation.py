"""The figures of lesson 11."""

import matplotlib.pyplot as plt

from tinyadv import viz

from .style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED

COLOURS = {"standard": BLUE, "penalty": PURPLE, "min-max": GREEN}


def walk(t, walks):
    """The penalty while a number t is added to all biases, and the sum of its derivatives.

    t (T,) and {activation: (R, sum of derivatives)}.
    """
    figure, axes = plt.subplots(1, len(walks), figsize=(9, 3.4))
    titles = {"relu": "ReLU: all of the change is in jumps", "softplus": "softplus: no jumps"}
    for ax, (activation, (R, summed)) in zip(axes, walks.items(), strict=True):
        ax.plot(t, R, color=GREY, label="R = ‖g‖²")
        ax.plot(t, summed, "--", color=ORANGE, label="start + sum of derivatives")
        ax.set(
            xlabel="t, added to every bias", ylabel="R", title=titles.get(activation, activation)
        )
        ax.set_ylim(0, 1.3 * max(R.max(), summed.max()))
        ax.legend(fontsize=10, loc="upper left")
    return figure


def radii(epsilons, found):
    """The accuracy under PGD over the radius ε, after three kinds of training.

    {training: {"clean": …, "curve": [{"PGD": …}, …]}}.
    """
    _, ax = plt.subplots(figsize=(5.8, 3.6))
    ax.set_title("The penalty helps at small radii, and less at large ones")
    labels = {"penalty": "gradient penalty", "min-max": "min-max training"}
    curves = {
        labels.get(name, "standard training"): (
            [0, *epsilons],
            [row["clean"], *(at["PGD"] for at in row["curve"])],
        )
        for name, row in found.items()
    }
    figure = viz.robustness_curves(curves, colours=[COLOURS[name] for name in found], axes=ax)
    ax.set(xlabel="ε, largest change of a pixel", ylabel="robust accuracy under PGD, %")
    return figure


def tangent(epsilons, promised, found):
    """The mean loss after FGSM over the radius ε, and its linearisation L + ε‖g‖₁.

    Three sequences of length R: the radii, the linearisation and the loss.
    """
    figure, ax = plt.subplots(figsize=(5.8, 3.4))
    ax.plot(epsilons, found, "o-", color=RED, label="loss after FGSM")
    ax.plot(epsilons, promised, "--", color=BLUE, label="L + ε‖g‖₁")
    ax.set(
        xlabel="ε, largest change of a pixel",
        ylabel="mean loss",
        title="The loss rises faster than its linearisation",
    )
    ax.legend(loc="upper left")
    return figure
