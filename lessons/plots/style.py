"""The look of all figures; importing this module sets it.

The colours are those of Okabe and Ito (2008), which people with any colour vision can tell apart.
In all lessons blue is a standard network or clean images, and red an attack; green is a robust
network.
"""

import matplotlib.pyplot as plt

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, GREY = "#56B4E9", "#CC79A7", "#767676"

plt.rcParams.update(
    {
        "figure.dpi": 100,
        "savefig.dpi": 160,
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
        "image.cmap": "gray_r",  # ink is dark, as on paper
    }
)


def images(axes, pictures, titles=(), *, low=0, high=1, cmap=None):
    """Show one picture (H, W) in each of ``axes``, without ticks."""
    for ax, picture in zip(axes, pictures, strict=True):
        ax.imshow(picture, vmin=low, vmax=high, cmap=cmap)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=True, color="0.8")
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title, fontsize=10)


def percent(ax, axis="y"):
    """An axis for shares between 0 and 1, labelled 0 % to 100 %."""
    which = ax.yaxis if axis == "y" else ax.xaxis
    which.set_major_formatter(plt.matplotlib.ticker.PercentFormatter(1, symbol=" %"))
    (ax.set_ylim if axis == "y" else ax.set_xlim)(-0.03, 1.03)
