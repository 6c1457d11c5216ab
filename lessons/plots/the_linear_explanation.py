"""The figures of lesson 04."""

import matplotlib.pyplot as plt

from .style import BLUE, GREEN, GREY, RED, images, percent


def worst_case(radii, errors, weights):
    """Worst-case errors over the radii (R,), {training: (R,)}, and weights, {training: (784,)}."""
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
    """Image + perturbation = adversarial image: (28, 28) each, and (class, probability) pairs."""
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.8))
    titles = [f"{name[:8]}, {100 * p:.1f} %" for name, p in (before, after)]
    images(axes[[0, 2]], [x, x_adv], titles)
    images(
        axes[[1]],
        [x_adv - x],
        [f"FGSM’s perturbation, ε = {epsilon}"],
        low=-0.2,
        high=0.2,
        cmap="RdBu_r",
    )
    for ax, sign in zip(axes, "+=", strict=False):
        ax.text(1.11, 0.5, sign, transform=ax.transAxes, ha="center", va="center", fontsize=20)
    axes[2].title.set_color(RED)
    return figure


def same_norm(pictures, accuracy):
    """One image under perturbations of the same 2-norm: {name: (28, 28)}, {name: accuracy}."""
    figure, axes = plt.subplots(1, len(pictures), figsize=(9, 2.45))
    titles = [f"{name}\naccuracy {100 * accuracy[name]:.1f} %" for name in pictures]
    images(axes, pictures.values(), titles)
    for ax, name in zip(axes, pictures, strict=True):
        ax.title.set_color(RED if name.startswith("FG") else GREY)
    figure.suptitle("Five perturbations of the same 2-norm: only the direction of the gradient "
                    "fools the network", x=0.01, ha="left", fontsize=12)  # fmt: skip
    return figure
