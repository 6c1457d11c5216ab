"""The figures of lesson 16."""

import matplotlib.pyplot as plt
import numpy as np

from .style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, percent

OUTLINES = {
    "intervals": GREY, "CROWN": BLUE, "linear program": PURPLE, "exact": "black",
}  # fmt: skip


def relu_and_lines(low, high):
    """A ReLU between the chord above and lines of several slopes below, for low ≤ v ≤ high."""
    figure, ax = plt.subplots(figsize=(5.4, 3.4))
    v = np.array([low, 0, high])
    shaded = {"color": BLUE, "alpha": 0.12, "linewidth": 0, "label": "the area between for s = 1"}
    ax.fill_between(v, v, high * (v - low) / (high - low), **shaded)
    ax.plot([low, high], [0, high], color=BLUE, label="the line above")
    for slope in (0, 0.5, 1):
        label = "lines below: s = 0, ½, 1" if not slope else None
        ax.plot([low, high], [slope * low, slope * high], "--", color=GREEN, label=label)
    ax.plot(v, np.maximum(v, 0), color="black", linewidth=2.5, label="relu(v)")
    ax.set_xticks([low, 0, high], ["l", "0", "u"])
    ax.set(yticks=[0], xlabel="v, what goes in", ylabel="what comes out")
    ax.set_title("With bounds on v, a ReLU lies between two lines")
    ax.legend()
    return figure


def _polygon(directions, bounds):
    """The corners of a convex set in the plane, given how far it reaches in many directions.

    The set where <d, z> ≤ bound for all directions d (M, 2); returns (V, 2).
    """
    size = 4 * np.abs(bounds).max()
    corners = size * np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    for d, bound in zip(directions, bounds, strict=True):
        inside, kept = corners @ d - bound, []
        for a, b, p, q in zip(
            inside, np.roll(inside, -1), corners, np.roll(corners, -1, axis=0), strict=True
        ):
            if a <= 0:
                kept.append(p)
            if (a < 0 < b) or (b < 0 < a):
                kept.append(p + (q - p) * a / (a - b))
        corners = np.array(kept)
    return corners


def outlines(directions, bounds, points, names):
    """What each method cannot exclude, in the plane of two logit gaps; and what PGD reaches.

    {method: (M,)} bounds on <d, z> for the directions d (M, 2), or for every n-th of them, from
    loose to tight; points (P, 2); the two gaps' names. In its other directions, a method with fewer
    is as tight as the one before it.
    """
    figure, (ax, inset) = plt.subplots(1, 2, figsize=(9, 4.2))
    tightest = np.full(len(directions), np.inf)
    for method, bound in bounds.items():
        tightest[:: len(directions) // len(bound)] = bound
        corners = _polygon(directions, tightest)
        closed = np.concatenate([corners, corners[:1]])
        for part in (ax, inset):
            part.fill(*corners.T, color=OUTLINES[method], alpha=0.08, linewidth=0)
            part.plot(*closed.T, color=OUTLINES[method], label=method)
    for part in (ax, inset):
        part.plot(*points.T, ".", color=RED, markersize=5, label="end points of PGD")
        part.axhline(0, color=ORANGE, linewidth=1)
        part.axvline(0, color=ORANGE, linewidth=1, label="decision boundaries")
        part.set(xlabel=names[0], ylabel=names[1])
    around = _polygon(directions, bounds["CROWN"])
    low, high = around.min(0), around.max(0)
    margin = 0.12 * (high - low)
    inset.set_xlim(low[0] - margin[0], max(high[0], 0) + margin[0])
    inset.set_ylim(low[1] - margin[1], max(high[1], 0) + margin[1])
    ax.set_title("Each outline contains the next one …")
    inset.set_title("… and the inner ones enlarged")
    figure.legend(*inset.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def accuracies(epsilons, found):
    """Attack, exact answers and bounds over ε; what bound and attack leave open is shaded.

    {network: {method: (E,)}}.
    """
    figure, axes = plt.subplots(1, len(found), figsize=(3.4 * len(found), 3.6), sharey=True)
    styles = {
        "PGD": ("o-", RED), "branch and bound": (":", "black"), "CROWN": ("s-", BLUE),
        "intervals": ("^-", GREY),
    }  # fmt: skip
    for ax, (name, curves) in zip(axes, found.items(), strict=True):
        ax.fill_between(epsilons, curves["CROWN"], curves["PGD"], color=PURPLE, alpha=0.15,
                        linewidth=0, label="left open by CROWN and PGD")  # fmt: skip
        for method, (style, colour) in styles.items():
            if method in curves:
                ax.plot(epsilons, curves[method], style, color=colour, label=method, markersize=5)
        ax.set(title=name, xlabel="ε")
    percent(axes[0])
    axes[0].set_ylabel("share of the test images")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure
