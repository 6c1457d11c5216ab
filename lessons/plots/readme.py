"""The picture at the top of the README: ``python -m lessons.plots.readme``."""

from pathlib import Path

import numpy as np

from tinyadv import attacks, data, fit, inputs, models, ops, optim, viz
from tinyadv.balls import Linf

from .style import INK

FIGURE = Path(__file__).parents[1] / "figures" / "readme.png"


def image_perturbation_prediction(x, x_adv, before, after, path=FIGURE):
    """An image, the perturbation and their sum, with the prediction for both images.

    x, x_adv : (28, 28)
    before, after : (class, probability)
    """
    names, confidences = zip(before, after, strict=True)
    answers = [f"“{name}”" for name in names]
    figure = viz.triptych(x, x_adv, answers=answers, confidences=confidences, cmap=INK)
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
