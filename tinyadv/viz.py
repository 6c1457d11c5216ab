"""Pictures: images with their labels, perturbations, losses on a plane, accuracies over ε.

    image_grid          images side by side, with labels, predictions and confidences
    triptych            image + perturbation = adversarial image
    source_target_grid  from each class to each other class
    loss_on_plane       numbers for loss_landscape, which draws them
    robustness_curves   what evaluate.robustness_curve returns, for several models or attacks
    show                one picture in axes of your own

Images are arrays of either backend, tensors or lists: (N, C, H, W) with one channel or three, or
(N, H, W); pixel values 0–1, with a warning where they are not. ``cmap="gray_r"`` draws grey images
with dark ink, as on paper. A function makes a figure of its own, or draws in the ``figure`` (also a
part of one, a SubFigure) or the ``axes`` that it is given, so that several can be put together. It
returns the figure. Nothing is displayed or saved here.

Colours can be told apart with any colour vision: Okabe & Ito's for lines, cividis for losses, and
for what may be positive or negative red and blue, white at zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from tinyadv.backend import array_module, to_numpy
from tinyadv.inputs import Model, check_counts, check_labels, check_positive, warn
from tinyadv.losses import Loss, cross_entropy
from tinyadv.tensor import Array, value_of

BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"  # Okabe & Ito (2008)
PURPLE, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
CYCLE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS, DASHES = "os^Dv<>", ("-", "--", "-.", ":")  # so that curves differ without colours too
GREY = "#767676"

OneEach = Array | Sequence | None  # a number or a name for each image: an array, a list or a tuple


# ------------------------------------------------------------------------------------- images


def image_grid(
    images: Array, *, labels: OneEach = None, predictions: OneEach = None,
    confidences: OneEach = None, columns: int | None = None, cmap: str = "gray", figure: Any = None,
) -> Figure:  # fmt: skip
    """Images in rows, each with its class above and the model's confidence below.

    Parameters
    ----------
    images : (N, C, H, W) or (N, H, W)
    labels, predictions : N numbers or names, optional
        With both the title reads ``label → prediction``, in colour where they differ.
    confidences : N numbers from 0 to 1, optional
    columns : int, optional
        By default 10 at most.
    cmap : str
        Matplotlib's name of the colours of grey images.
    figure : Figure or SubFigure, optional

    Returns
    -------
    figure

    Raises
    ------
    ValueError
        If there are no images, their shape is another one, or there are not N labels.
    """
    pictures = _pictures(images)
    count = len(pictures)
    words = labels is not None or predictions is not None
    height = 1.02 + 0.27 * words + 0.22 * (confidences is not None)  # of a row, in inches
    labels = _listed(labels, count, "labels")
    predictions = _listed(predictions, count, "predictions")
    confidences = _listed(confidences, count, "confidences")
    columns = min(count, 10) if columns is None else columns
    check_counts(columns=columns)
    rows = -(-count // columns)
    figure = _figure(figure, (max(1.06 * columns, 2), height * rows))
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for i, ax in enumerate(axes[:count]):
        show(ax, pictures[i], cmap=cmap)
        title, colour = _title(labels[i], predictions[i])
        ax.set_title(title, color=colour, fontsize=10, loc="center", pad=3)
        if confidences[i] is not None:
            ax.set_xlabel(_percent(confidences[i]), fontsize=9, labelpad=2)
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure


def triptych(
    x: Array, x_adv: Array, *, answers: OneEach = None, confidences: OneEach = None,
    cmap: str = "gray", figure: Any = None,
) -> Figure:  # fmt: skip
    """The form of the panda picture: image + perturbation = adversarial image.

    Goodfellow et al. (2015), "Explaining and harnessing adversarial examples", figure 1. The middle
    panel shows x_adv - x on a scale of its own, because it would be invisible on the scale of the
    images: red is brighter, blue is darker. For a colour image zero is grey in each channel.

    Parameters
    ----------
    x, x_adv : (C, H, W) or (H, W), or a batch of one
    answers : pair of numbers or names, optional
        The predicted classes of both.
    confidences : pair of numbers from 0 to 1, optional
        The probabilities of these classes.
    cmap : str
        Matplotlib's name of the colours of grey images.
    figure : Figure or SubFigure, optional

    Returns
    -------
    figure
    """
    before, after = _single(x, "x"), _single(x_adv, "x_adv")
    if before.shape != after.shape:
        raise ValueError(f"x and x_adv must have one shape, got {before.shape} and {after.shape}")
    before, after = _pictures(np.stack([before, after]))
    answers = _listed(answers, 2, "answers", "")
    confidences = _listed(confidences, 2, "confidences")
    delta = after.astype(float) - before
    largest = float(abs(delta).max())

    figure = _figure(figure, (7.4, 3.0))
    left, plus, middle, equals, right = figure.subplots(1, 5, width_ratios=[1, 0.1, 1, 0.1, 1])
    for i, (ax, picture) in enumerate([(left, before), (right, after)]):
        show(ax, picture, cmap=cmap)
        changed = str(answers[i]) != str(answers[0])
        share = "" if confidences[i] is None else _percent(confidences[i])
        words = f"{answers[i]}  {share}".strip()
        ax.set_title(words, fontsize=11, loc="center", color=VERMILLION if changed else "black")
    scale = largest or 1.0
    if delta.ndim == 2:
        drawn = show(middle, delta, low=-scale, high=scale, cmap="RdBu_r")
        below = middle.inset_axes([0, -0.1, 1, 0.05])  # takes no room from the image itself
        bar = figure.colorbar(drawn, cax=below, orientation="horizontal")
        bar.set_ticks([-scale, 0, scale], labels=[f"−{scale:.3g}", "0", f"{scale:.3g}"])
        bar.ax.tick_params(labelsize=9)
        bar.outline.set_visible(False)
    else:
        show(middle, 0.5 + delta / (2 * scale))
    middle.set_title(f"largest change {largest:.3g}", fontsize=11, loc="center")
    for ax, sign in ((plus, "+"), (equals, "=")):
        ax.text(0.5, 0.5, sign, fontsize=20, ha="center", va="center", transform=ax.transAxes)
        ax.set_axis_off()
    return figure


def source_target_grid(
    images: Array, *, classes: OneEach = None, reached: Array | None = None,
    cmap: str = "gray", figure: Any = None,
) -> Figure:  # fmt: skip
    """A square of images: the row is the class that an image is of, the column the target.

    Parameters
    ----------
    images : (K, K, C, H, W) or (K, K, H, W)
        images[i, j] is made from an image of class i, with class j as the target. The diagonal has
        the original images, in a frame.
    classes : K names, optional
        By default 0 … K - 1.
    reached : (K, K) bool, optional
        Where the model predicts the target; other images are crossed out.
    cmap : str
        Matplotlib's name of the colours of grey images.
    figure : Figure or SubFigure, optional

    Returns
    -------
    figure
    """
    images = to_numpy(images)
    count = len(images)
    if images.ndim not in (4, 5) or images.shape[1] != count:
        got = f"got shape {images.shape}"
        raise ValueError(f"images must be (K, K, C, H, W) or (K, K, H, W), {got}")
    pictures = _pictures(images.reshape(count * count, *images.shape[2:]))
    classes = _listed(range(count) if classes is None else classes, count, "classes")
    reached = np.ones((count, count), bool) if reached is None else to_numpy(reached)
    if reached.shape != (count, count):
        raise ValueError(f"reached must be of shape {(count, count)}, got {reached.shape}")
    if figure is None:
        figure = _figure(figure, (0.62 * count + 0.8, 0.62 * count + 0.9))
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    axes = figure.subplots(count, count, squeeze=False)
    for i, row in enumerate(axes):
        for j, ax in enumerate(row):
            show(ax, pictures[i * count + j], cmap=cmap)
            if i == j:
                ax.spines[:].set(color=SKY, linewidth=3)
            elif not reached[i, j]:
                cross = [0, 1], [0, 1], [0, 1], [1, 0]  # two lines
                ax.plot(*cross, color=VERMILLION, transform=ax.transAxes, linewidth=1.5)
        row[0].set_ylabel(classes[i], rotation=0, ha="right", va="center", fontsize=10, labelpad=6)
    for ax, name in zip(axes[0], classes, strict=True):
        turned = 90 if len(str(name)) > 5 else 0
        ax.set_title(name, fontsize=10, loc="center", pad=4, rotation=turned)
    figure.supxlabel("target: what the model should say", fontsize=11)
    figure.supylabel("source: what the image is", fontsize=11)
    return figure


def show(ax: Any, picture: Array, *, low: float = 0, high: float = 1, cmap: str = "gray") -> Any:
    """Draw one picture, (H, W) or (H, W, 3), in a thin frame; returns what ``imshow`` returns."""
    drawn = ax.imshow(np.clip(picture, low, high), cmap=cmap, vmin=low, vmax=high)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color="0.8")
    return drawn


# -------------------------------------------------------------------------------------- losses


def loss_on_plane(
    model: Model, x: Array, y: Array, d1: Array, d2: Array, *,
    reach: float = 1.0, points: int = 41, loss: Loss = cross_entropy, batch_size: int = 500,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The mean loss at x + a·d1 + b·d2, where a and b lie on a square grid.

    With d1 = ε·sign(∂L/∂x) and a random d2 of the same size it shows what an attack climbs. Points
    are not clipped to [0, 1]: the plane is the network's, not the images'.

    Parameters
    ----------
    model : callable
        Takes (n, …) images, returns (n, K) logits.
    x, y : (N, …), (N,)
        One example or more.
    d1, d2 : the shape of ``x``
        Two directions for each example.
    reach : float
        a and b go from -reach to reach.
    points : int
        Along each of the two.
    loss : callable
        ``loss(logits, labels, reduction="none") -> (n,)``.
    batch_size : int
        Images in one pass.

    Returns
    -------
    a, b : (points,), values : (points, points)
        ``values[i, j]`` is the loss at a[j], b[i], on the host.
    """
    x, y, d1, d2 = (value_of(v) for v in (x, y, d1, d2))
    xp = array_module(x, d1, d2)
    x, d1, d2 = (xp.asarray(v) for v in (x, d1, d2))
    y = check_labels(y, x)
    check_counts(2, points=points)
    check_counts(batch_size=batch_size)
    check_positive(reach=reach)
    if not x.shape == d1.shape == d2.shape:
        raise ValueError(f"x, d1, d2 must have one shape, got {x.shape}, {d1.shape}, {d2.shape}")
    a = b = np.linspace(-reach, reach, points)
    n, values = len(x), []
    places = [(s, t) for t in b.tolist() for s in a.tolist()]  # (points², 2)
    together = max(1, batch_size // n)
    for i in range(0, len(places), together):
        some = places[i : i + together]
        images = xp.concatenate([x + s * d1 + t * d2 for s, t in some])
        labels = xp.concatenate([y] * len(some))
        each = loss(value_of(model(images)), labels, reduction="none")
        values.append(to_numpy(value_of(each)).reshape(len(some), n).mean(1))  # (·n,) -> (·,)
    return a, b, np.concatenate(values).reshape(points, points)


def loss_landscape(
    a: Array, b: Array, values: Array, *, surface: bool = False,
    names: tuple[str, str] = ("adversarial direction", "random direction"), axes: Any = None,
) -> Figure:  # fmt: skip
    """Draw what :func:`loss_on_plane` returns: contours, or a surface in perspective.

    Parameters
    ----------
    a, b : (A,), (B,)
    values : (B, A)
    surface : bool
        ``axes``, if given, must then have ``projection="3d"``.
    names : pair of str
        Of the two directions.
    axes : matplotlib axes, optional

    Returns
    -------
    figure
    """
    a, b, values = to_numpy(a), to_numpy(b), to_numpy(values)
    if values.shape != (len(b), len(a)):
        raise ValueError(f"values must be of shape {(len(b), len(a))}, got {values.shape}")
    if axes is None:
        axes = _figure(None, (5.6, 4.3)).add_subplot(projection="3d" if surface else None)
    if surface:
        grid = np.meshgrid(a, b)
        axes.plot_surface(*grid, values, cmap="cividis", rstride=1, cstride=1, linewidth=0)
        axes.set_zlabel("loss", fontsize=10)
        axes.view_init(elev=28, azim=-125)
        axes.locator_params(nbins=5)
    else:
        drawn = axes.contourf(a, b, values, levels=20, cmap="cividis")
        # No line at the lowest level: on flat ground it would draw the rounding.
        axes.contour(a, b, values, levels=drawn.levels[1:], colors="white", linewidths=0.4)
        axes.plot(0, 0, "o", color="white", markeredgecolor="black", markersize=7)
        axes.figure.colorbar(drawn, ax=axes, label="loss", format="{x:.3g}")
        axes.set_box_aspect(1)
    axes.set_xlabel(names[0], fontsize=10)
    axes.set_ylabel(names[1], fontsize=10)
    return axes.figure


# ---------------------------------------------------------------------------------- accuracies


def robustness_curves(
    curves: Mapping[str, tuple[Array, Array]], *, chance: float | None = None,
    colours: Sequence[str] = CYCLE, axes: Any = None,
) -> Figure:  # fmt: skip
    """The accuracy over ε: one curve per model or attack.

    Parameters
    ----------
    curves : dict
        Name → (epsilons, accuracies), as :func:`tinyadv.evaluate.robustness_curve` returns them.
    chance : float, optional
        The accuracy of a guess, 0.1 for ten classes: a dotted line.
    colours : sequence of str
        Of the curves, one after another.
    axes : matplotlib axes, optional

    Returns
    -------
    figure
    """
    if axes is None:
        axes = _figure(None, (6, 3.8)).add_subplot()
    if chance is not None:
        axes.axhline(100 * chance, color=GREY, linestyle=":", linewidth=1.2, label="guessing")
    for i, (name, (epsilons, accuracies)) in enumerate(curves.items()):
        epsilons, accuracies = to_numpy(epsilons), to_numpy(accuracies)
        order = np.argsort(epsilons)
        axes.plot(
            epsilons[order], 100 * accuracies[order], color=colours[i % len(colours)], label=name,
            marker=MARKERS[i % len(MARKERS)], linestyle=DASHES[i % len(DASHES)],
            markersize=5, linewidth=1.8, clip_on=False, zorder=3,
        )  # fmt: skip
    axes.set(xlabel="ε, in pixel values 0–1", ylabel="accuracy, %", xlim=(0, None), ylim=(0, 100))
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return axes.figure


# --------------------------------------------------------------------------------- shared parts


def _figure(figure: Any, size: tuple[float, float]) -> Figure:
    return plt.figure(figsize=size, layout="constrained") if figure is None else figure


def _pictures(images: Any) -> np.ndarray:
    """What imshow takes for each image: (N, H, W) grey, or (N, H, W, 3)."""
    images = to_numpy(images)
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]  # (N, 1, H, W) -> (N, H, W)
    elif images.ndim == 4 and images.shape[1] == 3:
        images = images.transpose(0, 2, 3, 1)  # (N, 3, H, W) -> (N, H, W, 3)
    elif images.ndim != 3:
        raise ValueError(
            f"images must be (N, C, H, W) with C = 1 or 3, or (N, H, W), got shape {images.shape}"
        )
    if len(images) == 0:
        raise ValueError("there are no images to draw")
    low, high = images.min(), images.max()
    if low < -1e-3 or high > 1 + 1e-3:  # by more than rounding
        text = f"pixel values are 0–1 here, got {low:.4g} to {high:.4g}: others are drawn as 0 or 1"
        warn(f"{text}; divide images of 0–255 by 255", UserWarning)
    return images


def _single(x: Any, name: str) -> np.ndarray:
    """One image: (C, H, W) or (H, W)."""
    x = to_numpy(x)
    if x.ndim == 4 and len(x) == 1:
        x = x[0]
    if x.ndim not in (2, 3):
        raise ValueError(f"{name} must be one image, (C, H, W) or (H, W), got shape {x.shape}")
    return x


def _listed(values: Any, count: int, name: str, default: Any = None) -> list:
    """``values`` as a list of ``count``; of ``default`` if there are none."""
    if values is None:
        return [default] * count
    values = list(values) if isinstance(values, (list, tuple)) else to_numpy(values).tolist()
    if len(values) != count:
        raise ValueError(f"{name} must be {count}, one for each, got {len(values)}")
    return values


def _title(label: Any, prediction: Any) -> tuple[str, str]:
    """The title of an image, and its colour."""
    if label is None or prediction is None:
        return str(next((v for v in (label, prediction) if v is not None), "")), "black"
    label, prediction = str(label), str(prediction)  # 7 and "7" are the same class
    return (label, "black") if label == prediction else (f"{label} → {prediction}", VERMILLION)


def _percent(share: float) -> str:
    """A confidence in per cent: 99.98 % is not 100 %."""
    share = 100 * float(share)
    if share >= 99.995:
        return "> 99.99 %"
    return f"{share:.1f} %" if share < 99.95 else f"{share:.2f} %"
