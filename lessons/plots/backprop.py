"""The figure of lesson 01."""

import matplotlib.pyplot as plt
import numpy as np

from .style import BLUE, PURPLE, RED


def input_gradients(points, labels, at, arrows, path, predict):
    """Points of two classes, arrows along ∂L/∂x, and the path of a point into the other class.

    Points (N, 2) with labels (N,); arrows (n, 2) at the points ``at`` (n, 2); the path (steps + 1,
    2); ``predict`` maps points (m, 2) to classes (m,).
    """
    side = np.linspace(-1.15, 1.15, 300)
    grid = np.stack(np.meshgrid(side, side), axis=-1)  # (300, 300, 2)
    above = predict(grid.reshape(-1, 2)).reshape(300, 300)
    arrows = 0.16 * arrows / np.linalg.norm(arrows, axis=1, keepdims=True)
    figure, ax = plt.subplots(figsize=(7.6, 5.2))
    ax.contourf(side, side, above, levels=[-0.5, 0.5, 1.5], colors=["#e4eff7", "#f6eaf1"])
    ax.contour(side, side, above, levels=[0.5], colors="black", linewidths=1.2)
    for k, colour in enumerate((BLUE, PURPLE)):
        ax.plot(
            *points[labels == k].T, "o", color=colour, markersize=4, alpha=0.6, label=f"class {k}"
        )
    ax.quiver(
        *at.T, *arrows.T, angles="xy", scale_units="xy", scale=1, width=0.004, color="0.25",
        label="∂L/∂x",
    )  # fmt: skip
    ax.plot(*path.T, color=RED, linewidth=3, label="path along ∂L/∂x")
    ax.plot(*path[0], "o", color=RED, markersize=9)
    ax.set(xlabel="first coordinate", ylabel="second coordinate", aspect="equal")
    ax.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15))
    ax.set_title("The gradient with respect to x leads to the other class")
    figure.legend(loc="outside right center")
    return figure
