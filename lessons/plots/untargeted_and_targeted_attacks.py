"""The figures of lesson 05."""

import matplotlib.pyplot as plt
import numpy as np

from .style import BLUE, PURPLE, RED, SKY, images


def climb(points, probabilities, names):
    """The first image after some steps: {steps: (N, 1, H, W)}, {steps: (N, K)}."""
    figure, axes = plt.subplots(1, len(points), figsize=(9, 2.7))
    images(axes, [x[0, 0] for x in points.values()])
    label = probabilities[0][0].argmax()
    for ax, (steps, p) in zip(axes, probabilities.items(), strict=True):
        k, share = p[0].argmax(), f"{100 * p[0].max():.1f} %"
        share = "> 99.9 %" if p[0].max() > 0.9995 else share
        ax.set_title(f"{steps} steps", loc="center", fontsize=11)
        ax.set_xlabel(f"“{names[k]}”, {share}", color=BLUE if k == label else RED, fontsize=11)
    figure.suptitle(
        "Once the predicted class has changed, further steps raise the confidence",
        x=0.01, ha="left", fontsize=12,
    )  # fmt: skip
    return figure


def grid(sources, pictures, success, names):
    """Each class as each other one: (K, 1, H, W), (K (K - 1), 1, H, W), (K (K - 1),) of bool."""
    classes, _, height, width = sources.shape
    side, gap = height, 2
    mosaic = np.full((classes * (side + gap) - gap, classes * (width + gap) - gap), 0.2)
    figure, ax = plt.subplots(figsize=(7, 7.4))
    found = iter(zip(pictures, success, strict=True))
    for row, column in np.ndindex(classes, classes):
        picture, reached = (sources[row], True) if row == column else next(found)
        top, left = row * (side + gap), column * (width + gap)
        mosaic[top : top + side, left : left + width] = picture[0]
        if row == column or not reached:
            colour = SKY if row == column else RED
            frame = plt.Rectangle((left - 1, top - 1), width + 1, side + 1, fill=False)
            frame.set(edgecolor=colour, linewidth=2.5)
            ax.add_patch(frame)
    ax.imshow(mosaic, vmin=0, vmax=1)
    centres = np.arange(classes) * (side + gap) + side / 2
    names = [name[:8] for name in names]
    ax.set_xticks(centres, names, rotation=90 if max(map(len, names)) > 1 else 0)
    ax.set_yticks(centres, names)
    ax.tick_params(length=0, top=True, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    missed = "" if np.all(success) else "; red frames: target not reached"
    ax.set(ylabel="true class", xlabel="blue frames: the original images" + missed)
    ax.set_title("Every column is classified as the class above it\n", loc="center")
    return figure


def depth(medians, label="median ‖δ‖₂ at the first error"):
    """A distance over the depth: {"family, hidden layers": one number for each seed}."""
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
