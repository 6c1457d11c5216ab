"""The figures of lesson 14."""

import matplotlib.pyplot as plt

from .style import BLUE, GREEN, GREY, PURPLE, RED, percent


def reachable(hidden, hidden_bounds, outputs, output_bounds):
    """What two neurons and two outputs reach on a grid of inputs, inside their interval bounds.

    Values (M, 2) of both layers, and their bounds: pairs of (1, 2).
    """
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 4))
    parts = (
        ("Hidden neurons: every side is reached", "neuron", hidden, hidden_bounds),
        ("Outputs: the right half is empty", "output", outputs, output_bounds),
    )
    for ax, (title, name, values, (low, high)) in zip(axes, parts, strict=True):
        ax.plot(*values.T, ".", color=BLUE, markersize=3)
        ax.plot([], [], "o", color=BLUE, label="reached on the grid")
        (a, b), (c, d) = low[0], high[0]
        ax.plot([a, c, c, a, a], [b, b, d, d, b], color="black", label="interval bounds")
        ax.set(title=title, xlabel=f"{name} 1", ylabel=f"{name} 2", aspect="equal")
        ax.xaxis.set_major_locator(plt.MultipleLocator(0.4))
        ax.yaxis.set_major_locator(plt.MultipleLocator(0.4))
        ax.margins(0.12)
    axes[1].legend(loc="lower right", bbox_to_anchor=(1.0, 1.1), ncols=2)
    return figure


def widths(growth):
    """The relative width of the intervals after each linear layer, for three networks.

    {network: (layers,)}.
    """
    figure, ax = plt.subplots(figsize=(6.2, 3.6))
    for (name, width), colour in zip(growth.items(), (BLUE, GREEN, PURPLE), strict=True):
        ax.plot(range(1, len(width) + 1), width, "o-", color=colour, label=name)
    ax.axhline(1, color=GREY, linewidth=1, linestyle=":")
    ax.set_yscale("log")
    ax.set(xticks=range(1, len(width) + 1), xlabel="linear layer")
    ax.set_ylabel("width of the interval\n/ spread over the images")
    ax.set_title("The intervals grow from layer to layer, unless trained not to")
    ax.legend()
    return figure


def sandwich(table):
    """A bar for each network, from its certified accuracy to its accuracy under PGD.

    {network: {"PGD": …, "certified": …}}.
    """
    figure, ax = plt.subplots(figsize=(7, 2.6))
    for i, found in enumerate(table.values()):
        low, high = found["certified"], found["PGD"]
        ax.plot([low, high], [i, i], color="0.8", linewidth=9, solid_capstyle="butt", zorder=0)
        ax.plot(high, i, "o", color=RED, markersize=9, label="upper bound: PGD" if not i else None)
        ax.plot(
            low, i, "|", color="black", markersize=18, markeredgewidth=3,
            label="lower bound: certified" if not i else None,
        )  # fmt: skip
    ax.set_yticks(range(len(table)), list(table))
    ax.set_ylim(len(table) - 0.5, -0.6)
    percent(ax, "x")
    ax.set_title("The robust accuracy lies somewhere on the grey bar")
    ax.set_xlabel("share of the test images")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
