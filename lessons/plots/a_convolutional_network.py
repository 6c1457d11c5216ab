"""The figures of lesson 02 and of ``lessons.experiments.training``."""

import matplotlib.pyplot as plt
import numpy as np

from .style import BLUE, PURPLE, headline, image_grid

SLIDES = {"training": 0.995, "test": 0.991}  # on MNIST


def curves(histories, dataset):
    """The training loss, and the accuracies on training and test images, after each epoch.

    Thin lines for each history, thick ones for their mean; for MNIST, dashed, what the slides give.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4))

    def draw(ax, name, colour, marker, first=0):
        epoch = histories[0].epoch[first:]
        values = np.array([getattr(history, name)[first:] for history in histories])  # (S, epochs)
        if len(values) > 1:
            ax.plot(epoch, values.T, color=colour, linewidth=0.9, alpha=0.5)
        ax.xaxis.set_major_locator(plt.matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1))
        return ax.plot(epoch, values.mean(axis=0), marker, color=colour, markersize=4)[0]

    draw(left, "loss", BLUE, "o-")
    left.set(title="The training loss falls", xlabel="epoch", ylabel="cross-entropy", yscale="log")
    lines = {
        "training": draw(right, "train_accuracy", BLUE, "o-", first=1),
        "test": draw(right, "test_accuracy", PURPLE, "s-", first=1),
    }
    if dataset == "mnist":
        for name, accuracy in SLIDES.items():
            colour = lines[name].get_color()
            line = right.axhline(accuracy, color=colour, linestyle="--", linewidth=1.2)
            lines[f"{name}, slides"] = line
    right.set(
        title="The test accuracy rises, but fluctuates",
        xlabel="epoch",
        ylabel="accuracy from epoch 2 on",
    )
    right.yaxis.set_major_formatter(plt.matplotlib.ticker.PercentFormatter(1, symbol=" %"))
    right.legend(lines.values(), lines.keys(), loc="lower right")
    return figure


def mistakes(pictures, names, confidence):
    """The most confident mistakes: test images, with true class → predicted class and confidence.

    The first 16 of N: pictures (N, 28, 28), names "true → predicted", and confidences (N,).
    """
    figure = image_grid(
        pictures[:16], names[:16], confidences=confidence[:16], columns=8, size=(9, 3.3)
    )
    headline(figure, "The most confident mistakes: true class → predicted class, confidence")
    return figure
