"""The picture at the top of the README: ``python -m lessons.plots.readme``."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from tinyadv import attacks, data, fit, inputs, models, ops, optim
from tinyadv.balls import Linf

from .style import GREY, RED

FIGURE = Path(__file__).parents[1] / "figures" / "readme.png"


def image_perturbation_prediction(x, x_adv, before, after, path=FIGURE):
    """An image, the perturbation and their sum, each with the prediction and its probability.

    x, x_adv : (28, 28)
    before, after : (class, probability)
    """
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.75), layout="constrained")
    delta = x_adv - x
    largest = abs(delta).max()
    axes[0].imshow(x, cmap="gray_r", vmin=0, vmax=1)
    axes[0].set_title(f"“{before[0]}”, {before[1]:.1%}", color=GREY)
    axes[1].imshow(delta, cmap="RdBu_r", vmin=-largest, vmax=largest)
    axes[1].set_title(f"perturbation, ±{largest:.2g} per pixel", color=GREY)
    axes[2].imshow(x_adv, cmap="gray_r", vmin=0, vmax=1)
    axes[2].set_title(f"“{after[0]}”, {after[1]:.1%}", color=RED)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(color="0.8")
    for left, sign in zip(axes, "+=", strict=False):
        left.text(1.09, 0.5, sign, transform=left.transAxes, ha="center", va="center", fontsize=20)
    figure.savefig(path, dpi=160)
    return figure


def main():
    digits = data.load("glyphs")
    model = models.slides_cnn(rng=0)
    fit(model, digits, optim.RMSprop(model.parameters()), epochs=4, progress=False)
    x, y = digits.x_test[:200], digits.y_test[:200]
    x_adv = attacks.pgd(model, x, y, ball=Linf(0.1), steps=40)
    p, p_adv = (ops.softmax(inputs.all_logits(model, images), axis=1) for images in (x, x_adv))
    fooled = (p.argmax(1) == y) & (p_adv.argmax(1) != y)
    sure = np.where(fooled, np.minimum(p.max(1), p_adv.max(1)), 0)
    chosen = int(sure.argmax())  # the network is sure of both predictions
    before, after = ((digits.classes[q[chosen].argmax()], q[chosen].max()) for q in (p, p_adv))
    image_perturbation_prediction(x[chosen, 0], x_adv[chosen, 0], before, after)
    print(f"written: {FIGURE.name}, image {chosen}: {before[0]} -> {after[0]}")


if __name__ == "__main__":
    main()
