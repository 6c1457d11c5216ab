"""The figures of lesson 09."""

import matplotlib.pyplot as plt
import numpy as np

from .style import ORANGE, PURPLE, RED, SKY, headline, image_grid


def worst(x, moved, y, predicted, classes):
    """An image of each class, and below it the rotated and shifted copy that is misclassified.

    x and moved (N, 1, 28, 28), their labels y (N,) and predicted classes (N,).
    """
    chosen = [np.flatnonzero((y == k) & (predicted != y)) for k in range(len(classes))]
    chosen = [found[0] for found in chosen if len(found)]
    count, names = len(chosen), [classes[y[k]][:8] for k in chosen]
    pictures = np.concatenate([x[chosen, 0], moved[chosen, 0]])
    figure = image_grid(pictures, names + [""] * count, columns=count, size=(9, 2.7))
    for ax, k in zip(figure.axes[count:], chosen, strict=True):
        ax.set_xlabel(classes[predicted[k]][:8], color=RED)
    figure.axes[0].set_ylabel("clean")
    figure.axes[count].set_ylabel("worst")
    headline(figure, "Rotated and shifted digits are misclassified (predicted class in red)")
    return figure


def landscape(loss, wrong, maxima, path, errors):
    """The loss of one image over angle and shift, its local maxima, and paths of gradient ascent.

    Shapes: (A, S), (A, S) bool, (A, S) bool, (steps + 1, n, 2), (steps + 1, n) bool.
    """
    angles, shifts = (np.linspace(-m, m, k) for m, k in zip((30, 3), loss.shape, strict=True))
    figure, ax = plt.subplots(figsize=(8, 4.4))
    shown = ax.pcolormesh(
        angles,
        shifts,
        np.maximum(loss.T, 1e-5),
        norm="log",
        alpha=0.75,
        linewidth=0,
        rasterized=True,
    )
    if wrong.any() and not wrong.all():
        ax.contour(angles, shifts, wrong.T, [0.5], colors=[RED], linewidths=2)
    i, j = np.nonzero(maxima)
    ax.plot(angles[i], shifts[j], "x", color=PURPLE, markersize=8, markeredgewidth=2,
            clip_on=False, label="local maximum")  # fmt: skip
    labels = {ORANGE: "ascent that finds an error", SKY: "ascent that finds none"}
    for k in range(path.shape[1]):
        found = errors[:, k].any()
        end = errors[:, k].argmax() if found else len(path) - 1  # up to the first error
        colour = ORANGE if found else SKY
        ax.plot(*path[: end + 1, k].T, color=colour, linewidth=1.6, clip_on=False)
        ax.plot(*path[end, k], "o", color=colour, markersize=6, markeredgecolor="black",
                clip_on=False, zorder=3, label=labels.pop(colour, None))  # fmt: skip
    figure.colorbar(shown, ax=ax, label="loss")
    ax.set(xlabel="angle in degrees", ylabel="shift to the right, in pixels")
    found = errors.any(axis=0).sum()
    ax.set_title(f"{found} of {path.shape[1]} ascents find an error (beyond the red line)")
    ax.spines[:].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, fontsize=10)
    return figure
