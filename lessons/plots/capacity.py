"""The figures of lesson 12."""

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from .style import BLUE, GREEN, GREY, ORANGE, RED, percent

COLOURS = {"clean": BLUE, "FGSM": ORANGE, "PGD": RED}
MARKERS = {"clean": "o", "FGSM": "s", "PGD": "^"}


def squares(points, sign, epsilon, f):
    """Points of two classes with their balls: a line separates the points, a bent curve the balls.

    Points (n, 2), their signs (n,), and the curve f(x) = 0.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.5), sharey=True)
    last = len(points) - 1
    for ax in axes:
        for (a, b), cls in zip(points, sign, strict=True):
            corner = (a - epsilon, b - epsilon)
            ax.add_patch(Rectangle(corner, 2 * epsilon, 2 * epsilon, fc="0.9", ec="0.5"))
            ax.plot(a, b, "o", color="black", mfc="black" if cls > 0 else "white", zorder=3)
    for (a, b), cls in zip(points, sign, strict=True):  # the part on the wrong side of the line
        low, high = (b - epsilon, 0) if cls > 0 else (0, b + epsilon)
        axes[0].add_patch(Rectangle((a - epsilon, low), 2 * epsilon, high - low, fc=RED, alpha=0.6))
    axes[0].plot([-0.8, last + 0.8], [0, 0], color=BLUE)
    axes[0].set_title("A line separates the points, not the balls")
    x1, x2 = np.meshgrid(np.linspace(-0.8, last + 0.8, 661), np.linspace(-1.15, 1.15, 231))
    values = f(np.stack([x1.ravel(), x2.ravel()], axis=1)).reshape(x1.shape)
    axes[1].contour(x1, x2, values, levels=[0], colors=[GREEN], linewidths=1.8)
    axes[1].set_title("A boundary that separates the balls must bend")
    for ax in axes:
        ax.set(xlabel="x₁", xlim=(-0.8, last + 0.8), ylim=(-1.15, 1.15))
        ax.set_aspect("equal")
    axes[0].set_ylabel("x₂")
    axes[0].plot([], [], "o", color="black", label="class +1")
    axes[0].plot([], [], "o", color="black", mfc="white", label="class −1")
    axes[0].legend(loc="upper center", ncols=2)
    return figure


def width_axis(ax, widths):
    """A logarithmic axis of widths, labelled ×1, ×2, ×4, …"""
    ax.set_xscale("log", base=2)
    ax.set_xticks(widths, [f"×{w}" for w in widths])
    ax.minorticks_off()
    ax.set_xlabel("width")


def training_loss(widths, loss):
    """The loss on training images over the width of the network, for three kinds of training.

    Widths (W,) and {training: (W,)}.
    """
    figure, ax = plt.subplots(figsize=(7, 3.4))
    labels = {"standard": "clean", "FGSM": "FGSM", "PGD": "PGD"}
    for training, values in loss.items():
        key = labels[training]
        ax.plot(
            widths, values, MARKERS[key] + "-", color=COLOURS[key], label=f"{training} training"
        )
    ax.axhline(math.log(10), color=GREY, linestyle=":", label="ln 10: the image is ignored")
    ax.set_ylim(bottom=0)
    ax.set_ylabel("loss on training images")
    ax.set_title("Wider networks fit the attacked images better")
    width_axis(ax, widths)
    ax.legend(fontsize=10, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def accuracies(widths, accuracy):
    """The test accuracy over the width of the network, on clean images and under two attacks.

    Widths (W,) and {training: {attack: (W,)}}: one part of the figure for each training.
    """
    figure, axes = plt.subplots(1, len(accuracy), figsize=(9, 3.5), sharey=True)
    for ax, (training, rows) in zip(axes, accuracy.items(), strict=True):
        for attack, values in rows.items():
            ax.plot(
                widths, values, MARKERS[attack] + "-", color=COLOURS[attack],
                label="clean images" if attack == "clean" else attack, clip_on=False,
            )  # fmt: skip
        ax.set_title(f"{training} training")
        width_axis(ax, widths)
        percent(ax)
    axes[0].set_ylabel("test accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
