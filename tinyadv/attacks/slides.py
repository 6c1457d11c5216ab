"""The attacks of Shusen Wang's slides "Data Evasion Attacks": gradient descent on the pixels.

Training descends a loss with respect to the weights. Here the weights are frozen, and the same
descent changes the image:

    fake_image   x ← x - η g           g = ∂/∂x Loss(target)                   from noise
    untargeted   x ← x + α g / max|g|  g = ∂/∂x Loss(y)                        away from y
    targeted     x ← x - α g / max|g|  g = ∂/∂x [Loss(target) + λ ‖x - x*‖]    close to x*

No ball limits the perturbation. What keeps it small is the number of steps, or the distance in the
loss. The symbols are those in the slides: y the label, x* the image, x̃ the result (``x_adv``).
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np

from tinyadv import inputs, ops
from tinyadv.attacks import shared
from tinyadv.attacks.shared import input_gradient, is_fooled, normalised, per_example, worse
from tinyadv.backend import array_module
from tinyadv.balls import Linf, wide
from tinyadv.inputs import Checked, Model, checked, frozen, lent
from tinyadv.losses import Loss, cross_entropy, one_hot, swapped_binary_cross_entropy
from tinyadv.parallel import by_examples, may_cut
from tinyadv.tensor import RNG, Array, Tensor, value_of

# -------------------------------------------------------------------------------- from noise


class Trace(NamedTuple):
    """The course of :func:`fake_image`: a row for the start, and one for each step."""

    loss: Array
    """(steps + 1, N)"""
    probability: Array
    """(steps + 1, N): the softmax probability of the target."""


def fake_image(
    model: Model, target: Array | int, x: Array | None = None, *,
    shape: tuple[int, ...] = (1, 28, 28), learning_rate: float = 0.5, steps: int = 10,
    loss: Loss = swapped_binary_cross_entropy, clip: bool = False, details: bool = False,
    rng: RNG = 0, progress: bool = False,
) -> Array:  # fmt: skip
    """An image of the target class, for the model, made from noise: x ← x - η ∂Loss(target)/∂x.

    The slides' fake image. Szegedy et al. (2014), "Intriguing properties of neural networks",
    look for an image close to a given one; here the start is noise, and nothing keeps it close. As
    in the slides, pixels may leave [0, 1], unless ``clip`` keeps them there.

    Parameters that are not described here: see :mod:`tinyadv.attacks`.

    Parameters
    ----------
    target : integer, or (N,) integers
        The class to make, or one for each of N images.
    x : (N, …) of a floating-point type, optional
        Where to start, pixel values 0–1. By default each image starts as noise, uniform in [0, 1]:
        float32, on the backend of the model's parameters, or of ``target`` if it has none.
    shape : tuple
        Of one image of noise. Neither this nor ``rng`` is used if ``x`` is given.
    learning_rate : float
        η. The gradient is neither normalised nor averaged over the images.
    steps : int
    loss : callable
        The slides' loss is linear in the target's probability p, and its gradient is 3.206 p times
        the gradient of ``cross_entropy``: if p is close to 0 at the start, nothing happens.
        ``cross_entropy`` does not get stuck there.
    clip : bool
        Clip the pixels to [0, 1] after each step.

    Returns
    -------
    x_fake : (N, …)
        In the shape and dtype of the start; in [0, 1] only with ``clip=True``.
    trace : Trace
        Only with ``details=True``.

    Examples
    --------
    >>> from tinyadv import models
    >>> x_fake, trace = fake_image(models.slides_cnn(), 3, details=True)
    >>> x_fake.shape, bool(trace.loss[-1] < trace.loss[0])
    ((1, 1, 28, 28), True)
    """
    x, target = _start(model, target, x, shape, rng)
    inputs.check_counts(steps=steps)
    inputs.check_numbers(learning_rate=learning_rate)
    run = partial(_fake_image, lent(model), learning_rate=learning_rate, steps=steps, loss=loss,
                  clip=clip, details=details)  # fmt: skip
    with shared.pieces(model, x, progress, "fake image") as how:
        result = by_examples(run, x, target, **how)
    if not details:
        return shared.check_finite(result)
    x, losses, probabilities = result
    shared.check_finite(x)
    return x, Trace(losses.T, probabilities.T)  # (N, steps + 1) -> (steps + 1, N)


def _start(model, target, x, shape, rng):
    """Noise, unless x is given, and a target for each image of it."""
    if x is None:
        parameters = model.parameters() if hasattr(model, "parameters") else []
        xp = array_module(parameters[0].value if parameters else target)
        count = 1 if isinstance(target, (int, np.integer)) else len(target)
        noise = np.random.default_rng(rng).random((count, *shape))
        x = xp.asarray(noise.astype(np.float32))
    inputs.check_pixels(x)
    x = inputs.native(x)
    # Not `checked`, which would warn if the model already predicts the target for the noise.
    some = x[:1] if may_cut(model) else x
    classes = inputs.check_logits(value_of(frozen(model)(Tensor(some.copy()))), len(some))
    return x, inputs.check_target(target, x, classes)


def _fake_image(model, x, target, *, learning_rate, steps, loss, clip, details):
    """The loop of :func:`fake_image` alone; with details, both parts of a trace, (N, steps + 1)."""
    xp, losses, probabilities = array_module(x), [], []

    def note(value, logits):
        losses.append(value)
        probabilities.append((ops.softmax(logits, axis=1) * one_hot(target, logits)).sum(1))

    for _ in range(steps):
        g, value, logits = input_gradient(model, x, target, loss=loss)
        note(value, logits)
        x = (x - learning_rate * g).astype(x.dtype, copy=False)
        x = xp.clip(x, 0, 1) if clip else x
    if not details:
        return x
    logits = value_of(model(x))
    note(value_of(shared.to_raise(loss, logits, target)), logits)
    return x, xp.stack(losses, axis=1), xp.stack(probabilities, axis=1)


# ------------------------------------------------------------------------------ from an image


def untargeted(
    model: Model, x: Array | Checked, y: Array | None = None, *,
    step_size: float = 0.05, steps: int = 20, loss: Loss = cross_entropy,
    stop_when_wrong: bool = False, progress: bool = False,
) -> Array:  # fmt: skip
    """Ascent on the loss of the label: x ← clip(x + α g / max|g|), g = ∂Loss(y)/∂x.

    The slides' untargeted attack. Because the gradient is divided by its largest entry, a gradient
    of any size changes one pixel by α and the others by less. If the loss is exactly flat, g is 0,
    and the image stays as it is.

    Parameters that are not described here: see :mod:`tinyadv.attacks`.

    Parameters
    ----------
    step_size : float
        α: the largest change of a pixel in one step, in pixel values 0–1.
    steps : int
        No pixel is changed by more than ``steps * step_size``.
    stop_when_wrong : bool
        Leave each image at the first point that is misclassified, which may be x itself. The steps
        that follow are masked, so this shortens the perturbation and does not save time.

    Returns
    -------
    x_adv : (N, …)

    Examples
    --------
    >>> from tinyadv import models
    >>> x = np.random.default_rng(0).random((2, 1, 28, 28))
    >>> x_adv = untargeted(models.slides_cnn(), x, steps=5)
    >>> x_adv.shape, bool(abs(x_adv - x).max() <= 5 * 0.05 + 1e-9)
    ((2, 1, 28, 28), True)
    """
    x, y, _ = checked(model, x, y)
    inputs.check_counts(steps=steps)
    inputs.check_numbers(step_size=step_size)
    run = partial(_untargeted, lent(model), step_size=step_size, steps=steps, loss=loss,
                  stop_when_wrong=stop_when_wrong)  # fmt: skip
    with shared.pieces(model, x, progress, "untargeted") as how:
        return shared.check_finite(by_examples(run, x, y, **how))


def _untargeted(model, x, y, *, step_size, steps, loss, stop_when_wrong):
    """The loop of :func:`untargeted` alone."""
    xp = array_module(x)
    for _ in range(steps):
        g, _, logits = input_gradient(model, x, y, loss=loss)
        moved = xp.clip(x + step_size * normalised(g, Linf(1)), 0, 1).astype(x.dtype, copy=False)
        if stop_when_wrong:  # an image that stays is misclassified in the next step too, and stays
            moved = xp.where(per_example(is_fooled(logits, y), x), x, moved)
        x = moved
    return x


def targeted(
    model: Model, x: Array | Checked, y: Array | None = None, *,
    target: Array | int, distance: str = "l1", weight: float = 30.0, reduction: str = "mean",
    step_size: float = 0.1, steps: int = 50, keep: str = "best", loss: Loss = cross_entropy,
    progress: bool = False,
) -> Array:  # fmt: skip
    """Descent on Loss(target) + λ ‖x̃ - x*‖, from x* = ``x``: another class, but close to x*.

    The slides' targeted attack. Steps are x ← clip(x - α g / max|g|) with g the gradient of the
    sum. The derivative of |·| at 0 is taken as 0, so that the loss alone makes the first step.

    Once the target is reached, its loss is flat and only the gradient of the distance remains.
    Because the steps do not get shorter, the image then crosses the boundary back and forth. The
    last point is often not classified as the target, so the best one is kept.

    Parameters that are not described here: see :mod:`tinyadv.attacks`.

    Parameters
    ----------
    y : (N,) integers, optional
        Labels, by default the model's own predictions: they decide which images have their own
        label as target, for the warning, and are part of the DLR loss.
    target : (N,) integers or one integer
        The class to reach.
    distance : {"l1", "l2"}
        |x̃ - x*| or (x̃ - x*)², for all pixels of an image.
    weight : float
        λ. The slides' 30 belongs to the mean.
    reduction : {"mean", "sum"}
        Of the distance, over the pixels: for D pixels, a sum with λ / D is a mean with λ.
    step_size : float
        α: the largest change of a pixel in one step, in pixel values 0–1.
    steps : int
    keep : {"best", "last"}
        ``"best"`` returns, of all points on the way and x* itself, the one with the smallest
        objective among those that are classified as the target, or among all if there is none.
        ``"last"`` returns the last point.

    Returns
    -------
    x_adv : (N, …)

    Examples
    --------
    >>> from tinyadv import models
    >>> model, x = models.slides_cnn(), np.random.default_rng(0).random((2, 1, 28, 28))
    >>> x_adv = targeted(model, x, target=np.array([3, 4]), weight=1.0)
    >>> model(x_adv).value.argmax(1)
    array([3, 4])
    """
    x, y, target = checked(model, x, y, target)
    if target is None:
        raise ValueError("target must be a class, or one for each image, got None")
    inputs.check_counts(steps=steps)
    inputs.check_choice(("l1", "l2"), distance=distance)
    inputs.check_choice(("mean", "sum"), reduction=reduction)
    inputs.check_choice(("best", "last"), keep=keep)
    inputs.check_numbers(weight=weight, step_size=step_size)
    # The λ that belongs to a sum over the pixels.
    scale = weight / math.prod(x.shape[1:]) if reduction == "mean" else weight
    run = partial(_targeted, lent(model), far=partial(_far, distance, scale), steps=steps,
                  step_size=step_size, keep=keep, loss=loss)  # fmt: skip
    with shared.pieces(model, x, progress, "targeted") as how:
        return shared.check_finite(by_examples(run, x, y, target, **how))


def _targeted(model, x, y, target, *, far, step_size, steps, keep, loss):
    """The loop of :func:`targeted` alone; ``far`` gives the weighted distance and its gradient."""
    xp, original, best = array_module(x), x, None
    for _ in range(steps):
        towards_target, value, logits = input_gradient(model, x, y, target, loss=loss)
        size, away = far(wide(x) - original)
        if keep == "best":
            best = worse(best, (x, is_fooled(logits, y, target), value - size))
        step = step_size * normalised(away - towards_target, Linf(1))
        x = xp.clip(x - step, 0, 1).astype(x.dtype, copy=False)
    if keep == "last":
        return x
    logits = value_of(model(x))
    value = value_of(shared.to_raise(loss, logits, y, target)) - far(wide(x) - original)[0]
    return worse(best, (x, is_fooled(logits, y, target), value))[0]


def _far(distance: str, scale: float, delta: Array) -> tuple[Array, Array]:
    """λ‖δ‖ and its gradient: (N, …) -> (N,), (N, …)"""
    xp, pixels = array_module(delta), tuple(range(1, delta.ndim))
    if distance == "l1":
        return scale * abs(delta).sum(pixels), scale * xp.sign(delta)
    return scale * (delta * delta).sum(pixels), 2 * scale * delta
