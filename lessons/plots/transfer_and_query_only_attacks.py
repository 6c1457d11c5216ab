"""The figures of lesson 08."""

import matplotlib.pyplot as plt
import numpy as np

from .style import BLUE, GREEN, headline, image_grid, images, percent


def gradients(image, of):
    """An image, and the gradients of its margin for two standard and two robust networks.

    The image (28, 28) and {network: (28, 28)}.
    """
    figure, axes = plt.subplots(1, 1 + len(of), figsize=(9, 2.5))
    images(axes[:1], [image], ["image"])
    for ax, (name, g) in zip(axes[1:], of.items(), strict=True):
        most = np.percentile(abs(g), 99.5)
        images([ax], [g], [name], low=-most, high=most, cmap="PuOr_r")
    headline(figure, "Gradients of the margin: alike for two robust networks, less so for two "
                     "standard ones")  # fmt: skip
    return figure


def stages(pictures):
    """The best image of the Square attack after more and more queries, with its margin.

    {queries: ((28, 28), margin)}.
    """
    titles = [f"query {q}\nmargin {m:.2f}".replace("-", "−") for q, (_, m) in pictures.items()]
    figure = image_grid([picture for picture, _ in pictures.values()], titles, size=(9, 2.6))
    headline(figure, "Square: stripes first, then smaller and smaller squares")
    return figure


def queries(after, pgd):
    """The accuracy under the Square attack over the number of queries, and under PGD.

    After 0, 1, 2, … queries, {network: (Q + 1,)}, and under PGD, {network: share}.
    """
    figure, ax = plt.subplots(figsize=(8.6, 3.6))
    for (name, curve), colour in zip(after.items(), (BLUE, GREEN), strict=True):
        ax.plot(np.arange(1, len(curve)), curve[1:], color=colour, label=f"{name}, Square")
        ax.axhline(pgd[name], color=colour, linestyle=":", label=f"{name}, PGD with gradients")
    ax.set(xscale="log", xlabel="queries for each image", ylabel="accuracy")
    ax.set_title("A few hundred queries do almost what gradients do")
    percent(ax)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=10)
    return figure
