"""The figures of lesson 05."""

import matplotlib.pyplot as plt
import numpy as np

from tinyadv import viz

from .style import BLUE, INK, PURPLE, RED, headline, image_grid


def climb(points, probabilities, names):
    """An image after more and more steps of the untargeted attack, with the predicted class.

    The first image of each batch: {steps: (N, 1, H, W)}, {steps: probabilities (N, K)}.
    """
    titles = [f"{steps} steps" for steps in points]
    figure = image_grid([x[0, 0] for x in points.values()], titles, size=(9, 2.7))
    label = probabilities[0][0].argmax()
    for ax, (p, *_) in zip(figure.axes, probabilities.values(), strict=True):
        k, share = p.argmax(), f"{100 * p.max():.1f} %"
        share = "> 99.9 %" if p.max() > 0.9995 else share
        ax.set_xlabel(f"“{names[k]}”, {share}", color=BLUE if k == label else RED, fontsize=11)
    headline(figure, "Once the predicted class has changed, further steps raise the confidence")
    return figure


def grid(sources, pictures, success, names):
    """An image of each class, changed until it is classified as each other class.

    The row is the true class, the column the target. Sources (K, 1, H, W), their changed pictures
    (K (K - 1), 1, H, W), row by row, and whether each reached its target, (K (K - 1),) of bool.
    """
    count, same = len(sources), np.eye(len(sources), dtype=bool)
    square, reached = np.empty((count, count, *sources.shape[1:])), same.copy()
    square[same], square[~same], reached[~same] = sources, pictures, success
    names = [name[:8] for name in names]
    figure = viz.source_target_grid(square, classes=names, reached=reached, cmap=INK)
    missed = "" if np.all(success) else " (crossed out: it is not)"
    headline(figure, f"Every column is classified as the class above it{missed}")
    return figure


def depth(medians, label="median ‖δ‖₂ at the first error"):
    """The distance to the first error over the depth, for dense and for convolutional networks.

    {"family, hidden layers": one number for each seed}.
    """
    figure, ax = plt.subplots(figsize=(5.8, 3.5))
    for family, colour, marker in (("dense", BLUE, "o"), ("convolutional", PURPLE, "s")):
        found = {int(k.split(", ")[1]): v for k, v in medians.items() if k.startswith(family)}
        ax.plot(found.keys(), [np.mean(values) for values in found.values()], color=colour)
        for hidden, values in found.items():
            ax.plot([hidden] * len(values), values, marker, color=colour)
        ax.plot([], [], marker + "-", color=colour, label=family)
    ax.set(xlabel="hidden layers", ylabel=label)
    ax.set_ylim(0, 1.1 * max(max(values) for values in medians.values()))
    ax.set_title("Depth makes dense networks easier to attack")
    ax.legend(loc="lower left")
    return figure
