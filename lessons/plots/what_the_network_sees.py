"""The figures of lesson 03."""

import matplotlib.pyplot as plt
import numpy as np

from .style import BLUE, GREY, RED, headline, image_grid, images


def what_must_change(before, saliency, after, sources, targets, classes):
    """Images, their saliency maps, the changes, and the images that are now misclassified.

    One row for each of R pairs: images (R, 1, 28, 28), saliency (R, 784), classes (R,).
    """
    before, saliency, after = (a.reshape(-1, 28, 28) for a in (before, saliency, after))
    figure, axes = plt.subplots(len(before), 4, figsize=(7, 1.85 * len(before)))
    for row, x, s, x_changed, source, target in zip(
        axes, before, saliency, after, sources, targets, strict=True
    ):
        delta = x_changed - x
        images(
            row[[0, 3]],
            [x, x_changed],
            [f"predicted: {classes[source][:8]}", f"predicted: {classes[target][:8]}"],
        )
        images(row[[1]], [s], ["saliency map"], high=s.max(), cmap="Blues")
        largest = abs(delta).max()
        title = [f"change, at most {largest:.2f}"]
        images(row[[2]], [delta], title, low=-largest, high=largest, cmap="RdBu_r")
    headline(figure, "The prediction changes, and we still see the first digit")
    return figure


def ten_fakes(fakes, probabilities, classes):
    """A fake image of each class: noise to our eyes, with the predicted class and its probability.

    Fakes of class 0, then of class 1, …: (K·N, 1, 28, 28), (K·N,); K names. The first of each.
    """
    every = len(fakes) // len(classes)  # the first of each class
    names = [name[:8] for name in classes]
    figure = image_grid(
        fakes[::every, 0], names, confidences=probabilities[::every], columns=5, size=(7.5, 4.1)
    )
    headline(figure, "Ten steps from the same noise: the predicted class and its probability")
    return figure


def saturation(p_start, ends):
    """The gradients of both losses over the probability of the target, and what ten steps reach.

    The probability before and after ten steps: (M,), {loss: (M,)}.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    looks = {"cross-entropy": (BLUE, "o"), "swapped": (RED, "x")}
    p = np.logspace(-6, 0, 400)
    sizes = {"cross-entropy": 1 - p, "swapped": 3.206 * p * (1 - p)}
    for name, (colour, marker) in looks.items():
        left.plot(p, sizes[name], color=colour, label=name)
        right.plot(
            p_start, ends[name], marker, color=colour, markersize=4, alpha=0.5, mew=1, label=name
        )
    left.set(xscale="log", xlabel="$p_t$", ylabel=r"$|\partial L/\partial z_t|$")
    left.set_title("The swapped loss is flat at a small $p_t$")
    left.legend()
    right.axhline(0.99, color=GREY, linewidth=1, linestyle=":")
    right.set(xscale="log", xlabel="$p_t$ of the noise", ylabel="$p_t$ after ten steps")
    right.set_xlim(left=max(p_start.min() / 2, 1e-10))
    right.set_title("From there, it does not reach the target")
    return figure
