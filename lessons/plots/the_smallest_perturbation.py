"""The figures of lesson 07."""

import matplotlib.pyplot as plt
import numpy as np

from .style import BLUE, GREEN, GREY, RED, headline, percent

COLOURS = {"standard": BLUE, "robust": GREEN}


def planes(a, margins, distances, other_class):
    """Where two networks err in a plane through an image, and how far the nearest error is.

    The plane (A,), margins {network: (A, A)}, distances {network: ‖δ‖₂}, and a float.
    """
    figure, axes = plt.subplots(1, len(margins), figsize=(9, 4.6), sharey=True)
    for ax, (name, m) in zip(axes, margins.items(), strict=True):
        levels = [m.min() - 1, 0, m.max() + 1]
        ax.contourf(a, a, m, levels, colors=[RED, COLOURS[name]], alpha=0.25)
        ax.contour(a, a, m, [0], colors=[RED], linewidths=1.8)
        ax.add_patch(plt.Circle((0, 0), other_class, fill=False, color=GREY, linestyle="--"))
        ax.plot(0, 0, "o", color=COLOURS[name])
        ax.plot(distances[name], 0, "x", color=RED, markersize=8, markeredgewidth=2)
        ax.set(xlabel="along the smallest perturbation", title=f"{name} network", aspect="equal")
    axes[0].set_ylabel("along a random direction")
    headline(figure, "Errors (red) are near in one direction and far in a random one.\n"
                     "Dashed: the distance of the nearest image of another class")  # fmt: skip
    return figure


def every_radius(near, other_class, radii, pgd):
    """The robust accuracy of two networks over ε, and the images with no other class within ε.

    Distances {network: (N,)} and to another class (N,); R radii and {network: R accuracies}.
    """
    figure, ax = plt.subplots(figsize=(6.6, 4.4))
    top = 1.1 * other_class.max()
    for name, distance in near.items():
        curve(ax, distance, top, color=COLOURS[name], label=f"{name} network")
        ax.plot(radii, pgd[name], "x", color=RED, markersize=7, markeredgewidth=2)
    curve(ax, other_class, top, color=GREY, linestyle="--", label="no image of another class")
    ax.plot([], [], "x", color=RED, markeredgewidth=2, label="under PGD at one ε")
    ax.set(xlabel="ε, in the 2-norm", ylabel="robust accuracy", xlim=(0, top))
    ax.set_title("The boundary is much nearer than the next class")
    percent(ax)
    figure.legend(loc="outside lower center", ncols=2, fontsize=10)
    return figure


def curve(ax, distance, top, **style):
    """The share of distances that are above ε, a curve of steps over ε from 0 to ``top``."""
    at = np.concatenate([[0], np.sort(distance), [top]])
    share = np.concatenate([[1], 1 - np.arange(1, len(distance) + 1) / len(distance), [0]])
    share[-1] = share[-2]
    ax.step(np.minimum(at, top), share, where="post", **style)
