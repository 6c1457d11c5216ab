"""The attacks of Shusen Wang's slides "Data Evasion Attacks": descend, for the pixels.

Training descends a loss for the weights. Here the weights are frozen, and the same descent runs for
the image:

    fake_image   x ← x - η g           g = ∂/∂x Loss(target)                   from noise
    untargeted   x ← x + α g / max|g|  g = ∂/∂x Loss(y)                       away from y
    targeted     x ← x - α g / max|g|  g = ∂/∂x [Loss(target) + λ ‖x - x*‖]   and near to x*

No ball limits the perturbation. What keeps it small is the number of steps, or the distance in the
loss. The names are those of the slides: y the label, x* the image, x̃ the result (here ``x_adv``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tinyadv import ops
from tinyadv.attacks.common import (
    _check_logits,
    _check_pixels,
    _labels,
    by_pieces,
    check_counts,
    check_numbers,
    checked,
    input_gradient,
    is_fooled,
    per_example,
    to_raise,
    worse,
)
from tinyadv.backend import array_module
from tinyadv.losses import cross_entropy, one_hot, swapped_binary_cross_entropy
from tinyadv.tensor import Array, Tensor, _value

DISTANCES = ("l1", "l2")
REDUCTIONS = ("mean", "sum")
KEEP = ("best", "last")


# -------------------------------------------------------------------------------- from noise


class Trace(NamedTuple):
    """How a fake image came about: a row for the start, and one for each step.

    Attributes
    ----------
    loss : (steps + 1, N)
    probability : (steps + 1, N)
        What softmax gives to the target.
    """

    loss: Array
    probability: Array


def fake_image(
    model: Callable,
    target: Array | int,
    x: Array | None = None,
    *,
    shape: tuple[int, ...] = (1, 28, 28),
    learning_rate: float = 0.5,
    steps: int = 10,
    loss: Callable = swapped_binary_cross_entropy,
    clip: bool = False,
    details: bool = False,
    rng: np.random.Generator | int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Array | tuple[Array, Trace]:
    """What the model takes for the target, made of noise: x ← x - η ∂Loss(target)/∂x.

    The slides' fake image. Szegedy et al. (2014), "Intriguing properties of neural networks", ask
    for an image near to a given one; here the start is noise, and nothing keeps it near. As in the
    slides, pixels may leave [0, 1], unless ``clip`` keeps them there.

    Parameters
    ----------
    model : callable
        Takes images, arrays or tensors (n, …), and returns logits (n, K), each image on its own.
    target : integer, or (N,) integers
        The class to make, or one for each of N images.
    x : (N, …) of a floating-point type, optional
        Where to start, pixel values 0–1. By default each image starts as noise, uniform in [0, 1]:
        float32, on the backend of the model's parameters, or of ``target`` if it has none.
    shape : tuple
        Of one image of noise; not used if ``x`` is given.
    learning_rate : float
        η. The gradient is neither normalised nor averaged over the images.
    steps : int
    loss : callable
        ``loss(logits, labels, reduction="none") -> (N,)``. The slides' is linear in the target's
        probability p, and its gradient is 3.206 p times that of ``cross_entropy``: where p is
        nearly 0 at the start, nothing happens. ``cross_entropy`` does not get stuck there.
    clip : bool
        Put pixels back into [0, 1] after each step.
    details : bool
        Return ``(x_fake, Trace)`` instead of ``x_fake``.
    rng : numpy.random.Generator or int
        For the noise, drawn on the host; not used if ``x`` is given.
    workers : int, optional
        Threads that share the images; the result does not depend on it.
    progress : bool
        Show a bar on terminals.

    Returns
    -------
    x_fake : (N, …)
        In the shape and dtype of the start; in [0, 1] with ``clip=True`` alone.

    Raises
    ------
    TypeError, ValueError
        If the inputs are not as described, or a number is out of range. The message says what came.

    Warns
    -----
    AttackWarning
        If the model seems to return probabilities.

    Examples
    --------
    >>> from tinyadv import models
    >>> x_fake, trace = fake_image(models.slides_cnn(), 3, details=True)
    >>> x_fake.shape, bool(trace.loss[-1] < trace.loss[0])
    ((1, 1, 28, 28), True)
    """
    x, target = _start(model, target, x, shape, rng)
    check_counts(steps=steps)
    check_numbers(learning_rate=learning_rate)

    def run(x, target):
        xp, losses, probabilities = array_module(x), [], []

        def note(value, logits):
            losses.append(value)
            probabilities.append((ops.softmax(logits, axis=1) * one_hot(target, logits)).sum(1))

        for _ in range(steps):
            g, value, logits = input_gradient(model, x, target, loss=loss)
            note(value, logits)
            x = x - learning_rate * g
            x = xp.clip(x, 0, 1) if clip else x
        if not details:
            return x
        logits = _value(model(x))
        note(to_raise(loss, logits, target), logits)
        return x, xp.stack(losses, axis=1), xp.stack(probabilities, axis=1)  # (N, steps + 1)

    result = by_pieces(run, x, target, workers=workers, progress=progress, name="fake image")
    if not details:
        return result
    x, losses, probabilities = result
    return x, Trace(losses.T, probabilities.T)


def _start(model, target, x, shape, rng):
    """Noise, unless there is an x, and a target for each image of it."""
    if x is None:
        parameters = model.parameters() if hasattr(model, "parameters") else []
        xp = array_module(parameters[0].value if parameters else target)
        count = 1 if isinstance(target, (int, np.integer)) else len(target)
        noise = np.random.default_rng(rng).random((count, *shape))
        x = xp.asarray(noise.astype(np.float32))
    _check_pixels(x)
    classes = _check_logits(_value(model(Tensor(x[:1]))))
    # Not `checked`: that a target is what the model says to the noise is nothing to warn of.
    target = [target] * len(x) if isinstance(target, (int, np.integer)) else target
    return x, _labels(target, x, classes, "target")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


# ------------------------------------------------------------------------------ from an image


def untargeted(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    step_size: float = 0.05,
    steps: int = 20,
    loss: Callable = cross_entropy,
    stop_when_wrong: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> Array:
    """Ascent on the loss of the label: x ← clip(x + α g / max|g|), g = ∂Loss(y)/∂x.

    The slides' untargeted attack. Divided by the largest of its numbers, a gradient of any size
    changes one pixel by α and the others by less. A loss that is flat to the last bit has no
    gradient: then g / max|g| is 0 / 0, and the image stays as it is.

    Parameters
    ----------
    model : callable
        Takes images, arrays or tensors (n, …), and returns logits (n, K), each image on its own.
    x : (N, …) of a floating-point type
        Images, pixel values 0–1.
    y : (N,) integers, optional
        Their labels; by default the model's own predictions.
    step_size : float
        α: the largest change of a pixel in one step, in pixel values 0–1.
    steps : int
        No pixel is changed by more than ``steps * step_size``.
    loss : callable
        ``loss(logits, labels, reduction="none") -> (N,)``.
    stop_when_wrong : bool
        Leave each image at the first point where the model does not say y, which may be x itself.
        The answer is masked, not waited for: it saves distance, and no time.
    workers : int, optional
        Threads that share the images; the result does not depend on it.
    progress : bool
        Show a bar on terminals.

    Returns
    -------
    x_adv : (N, …)
        In [0, 1], of the shape and dtype of ``x``.

    Raises
    ------
    TypeError, ValueError
        If the inputs are not as described, or a number is out of range. The message says what came.

    Warns
    -----
    AttackWarning
        If the model seems to return probabilities.

    Examples
    --------
    >>> from tinyadv import models
    >>> x = np.random.default_rng(0).random((2, 1, 28, 28))
    >>> x_adv = untargeted(models.slides_cnn(), x, steps=5)
    >>> x_adv.shape, bool(abs(x_adv - x).max() <= 5 * 0.05 + 1e-9)
    ((2, 1, 28, 28), True)
    """
    x, y, _ = checked(model, x, y)
    check_counts(steps=steps)
    check_numbers(step_size=step_size)

    def run(x, y):
        xp = array_module(x)
        for _ in range(steps):
            g, _, logits = input_gradient(model, x, y, loss=loss)
            moved = xp.clip(x + step_size * _at_unit_max(g), 0, 1)
            # An image that stays is misread in the next step again, and stays again.
            x = (
                xp.where(per_example(is_fooled(logits, y), x), x, moved)
                if stop_when_wrong
                else moved
            )
        return x

    return by_pieces(run, x, y, workers=workers, progress=progress, name="untargeted")


def targeted(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    target: Array | int,
    distance: str = "l1",
    weight: float = 30.0,
    reduction: str = "mean",
    step_size: float = 0.1,
    steps: int = 50,
    keep: str = "best",
    loss: Callable = cross_entropy,
    workers: int | None = None,
    progress: bool = False,
) -> Array:
    """Descent on Loss(target) + λ ‖x̃ - x*‖, from x* = ``x``: another class, and still like x*.

    The slides' targeted attack. Steps are x ← clip(x - α g / max|g|) with g the gradient of the
    sum. That of |·| is taken as 0 at 0, so that the loss alone makes the first step.

    Once the target is reached, its loss is flat and the gradient of the distance is all that is
    left. As steps do not get shorter, the image then falls back across the boundary and returns, to
    and fro. Its last point is often not the target, so the best one is kept.

    Parameters
    ----------
    model, x, loss, workers, progress
        As for :func:`untargeted`. The DLR loss has a form of its own for targets.
    y : (N,) integers, optional
        Labels, by default the model's own predictions: they say which images have their own label
        as target, for the warning, and are part of the DLR loss.
    target : (N,) integers or one integer
        The class that each image is to be taken for.
    distance : {"l1", "l2"}
        |x̃ - x*| or (x̃ - x*)², of all pixels of an image.
    weight : float
        λ. The slides' 30 belongs to the mean.
    reduction : {"mean", "sum"}
        Of the distance, over the pixels: a sum with λ / D is a mean with λ, for D pixels.
    step_size : float
        α: the largest change of a pixel in one step, in pixel values 0–1.
    steps : int
    keep : {"best", "last"}
        Of all points that it went through, x* included, return the one with the smallest objective
        that is read as the target, and if there is none, the one with the smallest objective; or
        the last point.

    Returns
    -------
    x_adv : (N, …)
        In [0, 1], of the shape and dtype of ``x``.

    Raises
    ------
    TypeError, ValueError
        If the inputs are not as described, or a number is out of range. The message says what came.

    Warns
    -----
    AttackWarning
        If the model seems to return probabilities, or a target is the label itself.

    Examples
    --------
    >>> from tinyadv import models
    >>> model, x = models.slides_cnn(), np.random.default_rng(0).random((2, 1, 28, 28))
    >>> x_adv = targeted(model, x, target=np.array([3, 4]), weight=1.0)
    >>> model(x_adv).value.argmax(1)
    array([3, 4])
    """
    if target is None:
        raise ValueError("target must be a class, or one for each image, got None")
    x, y, target = checked(model, x, y, target)
    check_counts(steps=steps)
    _check_choice("distance", distance, DISTANCES)
    _check_choice("reduction", reduction, REDUCTIONS)
    _check_choice("keep", keep, KEEP)
    check_numbers(weight=weight)
    check_numbers(step_size=step_size)
    # λ, for the sum over the pixels
    scale = weight / math.prod(x.shape[1:]) if reduction == "mean" else weight

    def away(delta):
        """λ‖δ‖ and its gradient: (N, …) -> (N,), (N, …)"""
        xp, pixels = array_module(delta), tuple(range(1, delta.ndim))
        if distance == "l1":
            return scale * abs(delta).sum(pixels), scale * xp.sign(delta)
        return scale * (delta * delta).sum(pixels), 2 * scale * delta

    def run(x, y, target):
        xp, original, best = array_module(x), x, None
        for _ in range(steps):
            towards_target, value, logits = input_gradient(model, x, y, target, loss=loss)
            far, from_original = away(x - original)
            if keep == "best":
                point = (x, is_fooled(logits, y, target), value - far)
                best = worse(best, point)
            g = from_original - towards_target
            x = xp.clip(x - step_size * _at_unit_max(g), 0, 1)
        if keep == "last":
            return x
        logits = _value(model(x))
        far, _ = away(x - original)
        point = (x, is_fooled(logits, y, target), to_raise(loss, logits, y, target) - far)
        return worse(best, point)[0]

    return by_pieces(run, x, y, target, workers=workers, progress=progress, name="targeted")


def _at_unit_max(g):
    """Each image's gradient divided by its largest number; zero stays zero."""
    largest = abs(g).max(tuple(range(1, g.ndim)), keepdims=True)  # (N, …) -> (N, 1, …, 1)
    return g / array_module(g).where(largest > 0, largest, 1)
