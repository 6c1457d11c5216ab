"""The figures of lesson 06."""

import matplotlib.pyplot as plt

from tinyadv import viz

from .style import BLUE, GREEN, ORANGE, RED, headline


def attack_strength(radii, single, many):
    """The robust accuracy over the radius ε, under one step of FGSM and under 20 steps of PGD.

    Three sequences of length R: the radii, and the two accuracies.
    """
    _, ax = plt.subplots(figsize=(5.6, 3.4))
    ax.set_title("Many small steps fool more images than one large step")
    curves = {"FGSM, one step": (radii, single), "PGD, 20 steps": (radii, many)}
    figure = viz.robustness_curves(curves, colours=(ORANGE, RED), axes=ax)
    ax.set(xlabel="ε, largest change of a pixel", ylabel="robust accuracy, %")
    return figure


def landscape(curves):
    """The loss of one image over the steps of PGD, from many random starts, for two networks.

    {network: (steps + 1, S)}, S starts.
    """
    figure, axes = plt.subplots(1, len(curves), figsize=(9, 3.4))
    for ax, (name, curve), colour in zip(axes, curves.items(), (BLUE, GREEN), strict=True):
        ax.plot(curve, color=colour, alpha=0.3, linewidth=1)
        ax.set(xlabel="step", ylabel="loss of one image", title=f"{name} network")
        ax.set_ylim(bottom=0)
    headline(figure, f"From all {curve.shape[1]} random starts, PGD ends at a similar loss")
    return figure
