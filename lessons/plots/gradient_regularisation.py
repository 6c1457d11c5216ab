"""The figures of lesson 11."""

import matplotlib.pyplot as plt

from .style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, percent

COLOURS = {"standard": BLUE, "penalty": PURPLE, "min-max": GREEN}


def walk(t, walks):
    """The penalty while t (T,) is added to all biases: {activation: (R, sum of derivatives)}."""
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
    """Accuracy under PGD over the radius: {training: {"clean": …, "curve": [{"PGD": …}, …]}}."""
    figure, ax = plt.subplots(figsize=(5.8, 3.6))
    labels = {"penalty": "gradient penalty", "min-max": "min-max training"}
    for name, row in found.items():
        values = [row["clean"], *(at["PGD"] for at in row["curve"])]
        label = labels.get(name, "standard training")
        ax.plot([0, *epsilons], values, "o-", color=COLOURS[name], label=label)
    ax.set(xlabel="ε, largest change of a pixel", ylabel="robust accuracy under PGD")
    ax.set_title("The penalty helps at small radii, and less at large ones")
    percent(ax)
    ax.legend(loc="lower left")
    return figure


def tangent(epsilons, promised, found):
    """The mean loss after FGSM and L + ε‖g‖₁, over the radius: three sequences of length R."""
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
