"""The figure of lesson 15."""

import matplotlib.pyplot as plt

from .style import BLUE, GREY, RED, percent

COLOURS = {"standard": BLUE, "PGD-10": RED}


def efficiency(rows, curves, threshold):
    """The efficiency of a step over the rows of each rank: weak scaling.

    Rows per rank (R,), {training: (R,)}, and the efficiency at which more ranks pay.
    """
    figure, ax = plt.subplots(figsize=(7, 3.4))
    for name, values in curves.items():
        ax.plot(rows, values, color=COLOURS[name], label=f"{name} training")
    ax.axhline(threshold, color=GREY, linewidth=1, linestyle="--")
    ax.set_xscale("log", base=2)
    ax.set_xticks(rows[::2], [f"{n:g}" for n in rows[::2]])
    ax.minorticks_off()
    ax.set(xlabel="images per rank and step", ylabel="efficiency of 64 ranks")
    percent(ax)
    ax.legend(loc="lower right")
    return figure
