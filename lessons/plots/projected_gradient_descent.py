"""The figures of lesson 06."""

import matplotlib.pyplot as plt

from .style import BLUE, GREEN, ORANGE, RED, percent


def attack_strength(radii, single, many):
    """Robust accuracy over the radius, for one step and for many: three sequences of length R."""
    figure, ax = plt.subplots(figsize=(5.6, 3.4))
    ax.plot(radii, single, "s-", color=ORANGE, label="FGSM, one step")
    ax.plot(radii, many, "o-", color=RED, label="PGD, 20 steps")
    ax.set(xlabel="ε, largest change of a pixel", ylabel="robust accuracy")
    ax.set_title("Many small steps fool more images than one large step")
    percent(ax)
    ax.legend()
    return figure


def landscape(curves):
    """The loss of one image on the way from many random starts: {network: (steps + 1, S)}."""
    figure, axes = plt.subplots(1, len(curves), figsize=(9, 3.4))
    for ax, (name, curve), colour in zip(axes, curves.items(), (BLUE, GREEN), strict=True):
        ax.plot(curve, color=colour, alpha=0.3, linewidth=1)
        ax.set(xlabel="step", ylabel="loss of one image", title=f"{name} network")
        ax.set_ylim(bottom=0)
    figure.suptitle(
        f"From all {curve.shape[1]} random starts, PGD ends at a similar loss",
        x=0.01, ha="left", fontsize=12,
    )  # fmt: skip
    return figure
