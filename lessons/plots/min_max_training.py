"""The figures of lesson 10 and of its experiment."""

import matplotlib.pyplot as plt
import numpy as np

from .style import GREEN, GREY, ORANGE, PURPLE, RED, headline, images, percent


def training_loss(curves):
    """The loss on attacked images over the training steps, with and without a warm-up of ε.

    {name: (steps,)}, the failed run first.
    """
    figure, ax = plt.subplots(figsize=(6.4, 3.4))
    for (name, losses), colour in zip(curves.items(), (GREY, GREEN), strict=True):
        smooth = np.convolve(losses, np.ones(5) / 5, "valid")  # a running mean of 5 steps
        ax.plot(np.arange(len(smooth)) + 3, smooth, color=colour, label=name)
    ax.axhline(np.log(10), color="0.2", linewidth=1, linestyle=":")
    ax.text(len(smooth), np.log(10) + 0.04, "ln 10", ha="right", va="bottom")
    ax.set(xlabel="training step", ylabel="loss on attacked images", ylim=(0, 3.2))
    ax.set_title("With the full ε from the start, the loss stays near ln 10")
    ax.legend(loc="lower left")
    return figure


def overfitting(looks):
    """The robust accuracy of one-step training over its steps: under that one step, and under PGD.

    On held-out images: rows of (step, under the training's step, under FGSM, under PGD).
    """
    step, own, _, pgd = np.array(looks).T
    figure, ax = plt.subplots(figsize=(6.4, 3.4))
    ax.plot(step, own, "s-", color=ORANGE, markersize=4, label="one step, as in training")
    ax.plot(step, pgd, "o-", color=RED, markersize=4, label="PGD, 10 steps")
    percent(ax)
    ax.set(xlabel="training step", ylabel="robust accuracy")
    ax.set_title("Trained on one step: robust to it, and not to PGD")
    ax.legend(loc="best")
    return figure


def input_gradients(pictures, gradients):
    """Images, and below them the gradient of the loss with respect to their pixels, per network.

    Pictures (M, 28, 28) and {network: (M, 28, 28)}.
    """
    rows, columns = 1 + len(gradients), len(pictures)
    figure, axes = plt.subplots(rows, columns, figsize=(1.35 * columns, 1.45 * rows), squeeze=False)
    images(axes[0], pictures)
    axes[0, 0].set_ylabel("x")
    for row, (name, g) in zip(axes[1:], gradients.items(), strict=True):
        for ax, one in zip(row, g, strict=True):
            limit = np.quantile(abs(one), 0.99) or 1.0
            images([ax], [one], low=-limit, high=limit, cmap="RdBu_r")
        row[0].set_ylabel(name)
    headline(figure, "Input gradients: all over the image if standard, on the strokes if robust")
    return figure


def training_length(curves):
    """The share of robust test images over the minutes of training, for each network.

    {network: {epochs: {"cpu_seconds": …, and the share}}}.
    """
    figure, ax = plt.subplots(figsize=(6.4, 3.6))
    for (name, curve), colour in zip(curves.items(), (GREEN, PURPLE, ORANGE), strict=False):
        minutes = [found["cpu_seconds"] / 60 for found in curve.values()]
        shares = [found.get("certified", found.get("short AutoAttack")) for found in curve.values()]
        by = "certified" if "certified" in next(iter(curve.values())) else "under AutoAttack"
        ax.plot(minutes, shares, "o-", color=colour, label=f"{name}, {by}")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    percent(ax)
    ax.set_ylim(min(0.75, ax.dataLim.y0 - 0.03), 1)
    ax.set(xlabel="minutes of training on one core", ylabel="share of the test images")
    ax.set_title("Longer training helps, up to a point")
    ax.legend(loc="lower right")
    return figure
