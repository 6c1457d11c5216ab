"""The figures of lesson 04."""

import matplotlib.pyplot as plt

from tinyadv import viz

from .style import BLUE, GREEN, GREY, INK, RED, headline, image_grid, images, percent


def worst_case(radii, errors, weights):
    """The worst-case error of two linear models over the radius ε, and the weights of both.

    Radii (R,), errors {training: (R,)} and weights {training: (784,)}.
    """
    figure, axes = plt.subplots(1, 3, figsize=(9, 3), width_ratios=[1.5, 1, 1])
    for (name, curve), colour in zip(errors.items(), (BLUE, GREEN), strict=True):
        axes[0].plot(radii, curve, color=colour, label=name)
    axes[0].set(xlabel="ε, largest change of a pixel", ylabel="worst-case error")
    axes[0].set_title("Robust training lowers the error")
    percent(axes[0])
    axes[0].legend()
    for ax, (name, w) in zip(axes[1:], weights.items(), strict=True):
        largest = abs(w).max()
        title = [f"weights, {name} training"]
        images([ax], [w.reshape(28, 28)], title, low=-largest, high=largest, cmap="RdBu_r")
    return figure


def panda(x, x_adv, epsilon, before, after):
    """An image plus the perturbation of FGSM is an adversarial image, with both predictions.

    x, x_adv (28, 28); before and after are pairs (class, probability).
    """
    names, confidences = zip(before, after, strict=True)
    answers = [name[:8] for name in names]
    figure = viz.triptych(x, x_adv, answers=answers, confidences=confidences, cmap=INK)
    figure.axes[2].set_title(f"FGSM’s perturbation, ε = {epsilon}", fontsize=11, loc="center")
    return figure


def same_norm(pictures, accuracy):
    """One image under five perturbations of the same 2-norm, and the accuracy under each.

    Pictures {name: (28, 28)}, {name: accuracy}.
    """
    titles = [f"{name}\naccuracy {100 * accuracy[name]:.1f} %" for name in pictures]
    figure = image_grid(pictures.values(), titles, size=(9, 2.6))
    for ax, name in zip(figure.axes, pictures, strict=True):
        ax.title.set_color(RED if name.startswith("FG") else GREY)
    headline(figure, "Five perturbations of the same 2-norm: only the direction of the gradient "
                     "fools the network")  # fmt: skip
    return figure
