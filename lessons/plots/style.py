"""The look of all figures; importing this module sets it.

The colours are those of :mod:`tinyadv.viz`, which people with any colour vision can tell apart. In
all lessons blue is a standard network or clean images, and red an attack; green is a robust
network.
"""

import matplotlib.pyplot as plt
import numpy as np

from tinyadv import viz
from tinyadv.viz import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from tinyadv.viz import VERMILLION as RED

INK = "gray_r"  # ink is dark, as on paper

plt.rcParams.update(
    {
        "figure.dpi": 100,
        "figure.constrained_layout.use": True,
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.titlelocation": "left",
        "axes.formatter.min_exponent": 4,  # on a log axis 0.6, not 6 × 10⁻¹
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": plt.cycler(color=[BLUE, RED, GREEN, ORANGE, PURPLE, SKY, GREY]),
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "image.cmap": INK,
    }
)


def headline(figure, text):
    """One sentence above the whole figure: what it shows."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=12)


def image_grid(pictures, titles, *, size, **how):
    """Pictures (H, W) in rows, in a figure of this size in inches; see ``tinyadv.viz``."""
    pictures = np.clip(np.array(list(pictures)), 0, 1)
    return viz.image_grid(pictures, labels=titles, cmap=INK, figure=plt.figure(figsize=size), **how)


def images(axes, pictures, titles=(), *, low=0, high=1, cmap=INK):
    """One picture (H, W) in each of ``axes``: several kinds of pictures in one figure."""
    for ax, picture in zip(axes, pictures, strict=True):
        viz.show(ax, picture, low=low, high=high, cmap=cmap)
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title, fontsize=10)


def percent(ax, axis="y"):
    """An axis for shares between 0 and 1, labelled 0 % to 100 %."""
    which = ax.yaxis if axis == "y" else ax.xaxis
    which.set_major_formatter(plt.matplotlib.ticker.PercentFormatter(1, symbol=" %"))
    (ax.set_ylim if axis == "y" else ax.set_xlim)(-0.03, 1.03)
