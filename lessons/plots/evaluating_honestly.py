"""The figures of lesson 13."""

import matplotlib.pyplot as plt
import numpy as np

from .style import BLUE, GREY, ORANGE, RED, headline, percent


def masks(margins, low, high):
    """Three flat functions in which the gradient is lost: softmax, rounding, and thresholds.

    ``margins`` is {network: median margin of clean images}.
    """
    figure, (softmax, stairs, steep) = plt.subplots(1, 3, figsize=(9, 3.4))

    zero = 1e-55  # where 0 is drawn, on an axis of powers of ten

    def others(margin):  # the probability of another class, in float32
        return np.maximum(np.exp(-np.float32(margin)), zero, dtype=float)

    margin = np.linspace(0, max(150, 1.2 * max(margins.values())), 1001)
    softmax.plot(margin, others(margin), color=GREY)
    for (name, at), colour in zip(margins.items(), (BLUE, ORANGE), strict=True):
        softmax.plot(at, others(at), "o", color=colour, markersize=9, label=name)
    softmax.set(yscale="log", ylim=(1e-58, 100), xlabel="margin of the true class")
    softmax.set_yticks([1, 1e-20, 1e-40, zero], ["1", "$10^{-20}$", "$10^{-40}$", "0"])
    softmax.minorticks_off()
    softmax.set_title("softmax: size of $p - e_y$")
    softmax.legend(loc="upper right", fontsize=10, title="median image", title_fontsize=10)

    x = np.linspace(0, 1, 1001)
    middle = (low + high) / 2
    clip = np.clip((x - low) / (high - low), 0, 1)
    slope = (x - middle) / (high - low) + 0.5
    shown = ((stairs, np.rint(7 * x) / 7, x, "rounding"), (steep, clip, slope, "thresholds"))
    for ax, value, line, title in shown:
        ax.plot(x, value, color=GREY, label="forward pass")
        ax.plot(x, line, "--", color=RED, label="slope of the\nadaptive attack")
        ax.set(xlabel="pixel", title=f"{title}: new pixel", ylim=(-0.08, 1.08), xlim=(0, 1))
    stairs.legend(loc="upper left", fontsize=10, borderaxespad=0)
    headline(figure, "Three flat functions: PGD loses its gradient in each")
    return figure


def reported_and_adaptive(results):
    """The robust accuracy of each defence as PGD reports it, and under an adaptive attack.

    {network: {"PGD": …, "adaptive": …}}.
    """
    figure, ax = plt.subplots(figsize=(7, 3.4))
    for at, row in enumerate(reversed(results.values())):
        for shift, key, colour in ((0.18, "PGD", ORANGE), (-0.18, "adaptive", RED)):
            ax.barh(at + shift, row[key], 0.32, color=colour)
            text = f"{100 * row[key]:.3g} %"
            ax.text(row[key] + 0.01, at + shift, text, va="center", fontsize=10)
    ax.barh([0], [0], color=ORANGE, label="PGD as reported")
    ax.barh([0], [0], color=RED, label="adaptive attack")
    ax.set_yticks(range(len(results)), [*reversed(results)])
    percent(ax, "x")
    ax.set(xlim=(0, 1.1), xlabel="robust accuracy")
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
    headline(figure, "Adaptive attacks break two defences and weaken the third")
    return figure
