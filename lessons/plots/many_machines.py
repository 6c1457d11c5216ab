"""The figure of lesson 15."""

import matplotlib.pyplot as plt

from .style import BLUE, GREY, RED

COLOURS = {"standard": BLUE, "PGD-10": RED}


def speed_up(rows, curves, size):
    """How much faster many ranks are than one rank with the same batch, over the rows of each.

    Rows per rank (R,), {training: (R,)}, and the number of ranks.
    """
    figure, ax = plt.subplots(figsize=(7, 3.4))
    for name, values in curves.items():
        style = "-" if name == "standard" else "--"  # the curves may lie on each other
        ax.plot(rows, values, style, color=COLOURS[name], label=f"{name} training")
    ax.axhline(size / 2, color=GREY, linewidth=1, linestyle="--")
    ax.set_xscale("log", base=2)
    ax.set_xticks(rows[::2], [f"{n:g}" for n in rows[::2]])
    ax.minorticks_off()
    ax.set(xlabel="images per rank and step", ylabel=f"speed-up of {size} ranks", ylim=(0, size))
    ax.legend(loc="lower right")
    return figure
