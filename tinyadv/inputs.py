"""The inputs of every public function: one check, with one wording, for pixels, labels and logits.

    checked          the images, labels and targets of an attack, after a check of each
    checked_logits   the same for a function that needs the logits of all images anyway
    check_…          the parts of these checks, which other modules use as well
    all_logits       the logits of any number of images
    predict          their predicted classes

A public function checks its arguments once. It passes them on to other functions of the library as
:class:`Checked`, and these do not check them again.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import Ball, Linf
from tinyadv.parallel import may_cut
from tinyadv.tensor import Array, Tensor, value_of

BATCH = 500  # images in one pass of predict and all_logits, if the batch may be cut


class AttackWarning(UserWarning):
    """The attack runs, but its result may not mean what it seems to mean."""


# ------------------------------------------------------------------------------------- an attack


class Checked(NamedTuple):
    """Images, labels and targets that have been checked.

    An attack accepts it instead of ``x``, ``y`` and ``target``, and does not check them again:
    ``pgd(model, Checked(x, y))``.
    """

    x: Array
    """(N, …)"""
    y: Array
    """(N,)"""
    target: Array | None = None
    """(N,), or None for an untargeted attack"""


def checked(
    model: Callable, x: Array | Checked, y: Array | None = None, target: Array | int | None = None
) -> Checked:
    """The inputs of an attack, on the backend of ``x``, after a check of each.

    Parameters
    ----------
    model : callable
        Given tensors (n, …), returns logits (n, K).
    x : (N, …) of a floating-point type, from 0 to 1; or Checked
    y : (N,) integers, optional
        By default the model's own predictions: the attack then changes the predicted class, whether
        or not it was correct, and needs no labels.
    target : (N,) integers or one integer, optional

    Returns
    -------
    Checked
        x, y, target

    Raises
    ------
    TypeError
        If ``x`` is not an array of floating-point numbers.
    ValueError
        If there are no examples, pixels are outside [0, 1] or NaN, the model does not return
        finite logits (N, K), or labels are not N integers from 0 to K - 1.

    Warns
    -----
    AttackWarning
        If the model seems to return probabilities, or a target is the label itself.
    """
    if isinstance(x, Checked):
        _check_same(x, y, target)
        return x
    check_pixels(x)
    # One image shows the shape; a model that looks at the whole batch must be given all of it.
    some = x[:1] if may_cut(model) else x
    logits = value_of(frozen(model)(Tensor(some)))
    classes = check_logits(logits, len(some))
    if y is None:
        y = predict(model, x) if may_cut(model) else logits.argmax(1)
    else:
        y = check_labels(y, x, classes)
    if target is not None:
        target = [target] * len(x) if isinstance(target, (int, np.integer)) else target
        target = check_labels(target, x, classes, "target")
        same = int(to_numpy((target == y).sum()))
        if same:
            text = f"the target of {same} of {len(x)} images is their label y: choose another class"
            warnings.warn(text, AttackWarning, stacklevel=3)
    return Checked(x, y, target)


def _check_same(x: Checked, y, target=None) -> None:
    """Raise TypeError if there are other labels or targets beside those that ``x`` holds."""
    for given, held in ((y, x.y), (target, x.target)):
        if given is not None and given is not held:
            raise TypeError("give y and target to Checked(x, y, target), and not beside it")


def checked_logits(
    model: Callable,
    x: Array,
    y: Array | None = None,
    batch_size: int | None = None,
    *,
    stacklevel: int = 4,
) -> tuple[Checked, Array]:
    """As :func:`checked`, and the logits of all images, which come from a single pass.

    Parameters
    ----------
    model, x, y
        As for :func:`checked`. The model is given arrays only, so it need not have a gradient.
    batch_size : int, optional
        As for :func:`all_logits`.
    stacklevel : int
        Which caller a warning points to, see :func:`warnings.warn`.

    Returns
    -------
    inputs : Checked
        Without a target, unless ``x`` is Checked and has one.
    logits : (N, K)

    Raises
    ------
    TypeError, ValueError
        As :func:`checked`, and ValueError if a logit of any image is NaN or infinite.

    Warns
    -----
    AttackWarning
        If the model seems to return probabilities.
    """
    if isinstance(x, Checked):
        _check_same(x, y)
        return x, all_logits(model, x.x, batch_size)
    check_pixels(x)
    logits = all_logits(model, x, batch_size)
    classes = check_logits(logits, len(x), stacklevel=stacklevel)
    y = logits.argmax(1) if y is None else check_labels(y, x, classes)
    return Checked(x, y), logits


# --------------------------------------------------------------------------------- pixels, labels


def as_arrays(x, y) -> tuple[Array, Array]:
    """Images and labels as arrays: lists become NumPy arrays, arrays stay as they are."""
    x, y = (a if hasattr(a, "shape") else np.asarray(a) for a in (x, y))
    return x, y


def check_pixels(x, name: str = "x") -> None:
    """Raise an error unless ``x`` is a batch (N, …) of floating-point numbers from 0 to 1."""
    kind = getattr(getattr(x, "dtype", None), "kind", None)  # a tensor of PyTorch has none
    if isinstance(x, Tensor) or kind is None:
        remedy = "take its .value" if isinstance(x, Tensor) else "convert it with numpy.asarray"
        raise TypeError(f"{name} must be an array (N, …), got {type(x).__name__}: {remedy}")
    if kind != "f":
        raise TypeError(
            f"{name} must hold floating-point numbers from 0 to 1, got {x.dtype}: "
            "convert with x.astype('float32'), and divide by 255 if that is the brightest pixel"
        )
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(
            f"{name} must be a batch (N, …) of at least one example, got shape {x.shape}: "
            "x[None] makes a batch of a single image"
        )
    check_range(x, name)


def check_range(x: Array, name: str = "x") -> None:
    """Raise ValueError unless all numbers are from 0 to 1."""
    low, high = to_numpy(array_module(x).stack([x.min(), x.max()]))
    if low != low:
        raise ValueError(f"{name} must have pixel values from 0 to 1, got NaN: remove it")
    if not 0 <= low <= high <= 1:
        # str shows all digits that the dtype has: 1.0000001 is not 1.
        raise ValueError(
            f"{name} must have pixel values from 0 to 1, got values from {low!s} to {high!s}: "
            "np.clip(x, 0, 1) removes rounding errors; scale images of 0–255, and let the model's "
            "first layer do any other normalisation"
        )


def check_labels(labels, x, classes: int | None = None, name: str = "y") -> Array:
    """``labels`` on the backend of ``x``, or a ValueError unless there is one class per example.

    ``classes`` is K. Without it the values are not looked at, and nothing waits for a GPU.
    """
    labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
    if len(x) == 0:
        raise ValueError("x must hold at least one example, got none")
    # Labels of shape (N, 1) would be compared with the predictions of all examples.
    if labels.shape != (len(x),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be integers of shape ({len(x)},), one for each example, "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    if classes is not None:
        host = to_numpy(labels)
        low, high = host.min(), host.max()
        if not 0 <= low <= high < classes:
            raise ValueError(
                f"{name} must be from 0 to {classes - 1}, because the model returns {classes} "
                f"logits; got {name} from {low} to {high}"
            )
    xp = array_module(x)
    return labels if array_module(labels) is xp else xp.asarray(to_numpy(labels))


# ------------------------------------------------------------------------------------- logits


def check_logits(logits, n: int, *, stacklevel: int = 4) -> int:
    """K, the number of classes, or a ValueError unless these are finite logits (n, K).

    Warns with an AttackWarning if they seem to be probabilities. ``stacklevel`` says which caller
    the warning points to.
    """
    if getattr(logits, "ndim", 0) != 2 or len(logits) != n:
        got = getattr(logits, "shape", type(logits).__name__)
        images = f"{n} image{'s' * (n > 1)}"
        raise ValueError(f"the model must return logits (N, K): for {images} it returned {got}")
    rows = to_numpy(logits)
    wrong = rows[~np.isfinite(rows).all(1)]
    if len(wrong):
        raise ValueError(
            f"the model returned NaN or infinity for {len(wrong)} of {n} images, like {wrong[0]}: "
            "look for a division, logarithm or root of zero in it, and for NaN in its weights"
        )
    if seem_probabilities(rows):
        text = (
            "the model seems to return probabilities: its outputs are ≥ 0 and add up to 1. Remove "
            "its softmax, behind which gradients vanish and attacks look weaker than they are"
        )
        warnings.warn(text, AttackWarning, stacklevel=stacklevel)
    return rows.shape[1]


def seem_probabilities(logits: Array) -> bool:
    """Whether all entries of (N, K) are ≥ 0 and each row adds up to 1."""
    low, off = float(logits.min()), float(abs(logits.sum(1) - 1).max())
    return logits.shape[1] > 1 and low >= 0 and off < 1e-3


def all_logits(model: Callable, x: Array, batch_size: int | None = None) -> Array:
    """The logits of any number of images, without a tape: (N, …) -> (N, K).

    Parameters
    ----------
    model : callable
        Takes (n, …) images, returns (n, K) logits.
    x : (N, …)
    batch_size : int, optional
        Images in one pass, which bounds the memory. By default 500, or all of them if the model
        does not promise to treat each example on its own (``by_example``).

    Raises
    ------
    ValueError
        If ``batch_size`` is not an integer ≥ 1.
    """
    batch_size = size_of_a_batch(model, x, batch_size)
    model = frozen(model)
    # An empty batch takes one pass as well: its logits have the shape (0, K).
    starts = range(0, max(len(x), 1), batch_size)
    parts = [value_of(model(x[i : i + batch_size])) for i in starts]
    return parts[0] if len(parts) == 1 else array_module(x).concatenate(parts)


def size_of_a_batch(model: Callable, x: Array, batch_size: int | None, default: int = BATCH) -> int:
    """``batch_size``; if it is None ``default``, or all of ``x`` if its batch may not be cut.

    Raises ValueError if it is not an integer ≥ 1.
    """
    if batch_size is None:
        return default if may_cut(model) else max(len(x), 1)
    check_counts(batch_size=batch_size)
    return batch_size


def predict(model: Callable, x: Array, batch_size: int | None = None) -> Array:
    """The predicted class of each example: the one with the largest logit.

    Parameters
    ----------
    model, x, batch_size
        As for :func:`all_logits`.

    Returns
    -------
    (N,) int64, on the backend of ``x``

    Raises
    ------
    ValueError
        If ``batch_size`` is not an integer ≥ 1.
    """
    if len(x) == 0 and size_of_a_batch(model, x, batch_size):
        return array_module(x).zeros(0, np.int64)
    return all_logits(model, x, batch_size).argmax(1)


def logits_change(model: Callable, x: Array, logits: Array) -> tuple[bool, float, float]:
    """Whether another query changes the logits, by how much, and the size of the largest one.

    The change is the largest change of a logit, and counts if it is above a thousandth of the
    largest logit. ``logits`` (N, K) are the model's for ``x`` (N, …).
    """
    change, size = float(abs(logits - all_logits(model, x)).max()), float(abs(logits).max())
    return not change <= 1e-3 * size, change, size  # NaN is a change


def frozen(model: Callable) -> Callable:
    """The model with its weights as arrays, so that it records nothing: see ``Module.frozen``."""
    return model.frozen() if hasattr(model, "frozen") else model


# ------------------------------------------------------------------------------------- settings


def check_ball(ball) -> None:
    """Raise TypeError unless ``ball`` is a ball; warn if it holds every image."""
    if not isinstance(ball, Ball):
        raise TypeError(f"ball must be Linf(ε), L2(ε) or L1(ε) of tinyadv.balls, got {ball!r}")
    if isinstance(ball, Linf) and 1 < ball.epsilon < math.inf:
        text = f"ε = {ball.epsilon:g} allows every image of pixels 0–1: divide an ε of 0–255 by 255"
        warnings.warn(text, AttackWarning, stacklevel=3)


def check_numbers(**numbers) -> None:
    """Raise ValueError unless all of ``numbers`` are finite and 0 or more."""
    for name, number in numbers.items():
        if not 0 <= number < math.inf:
            raise ValueError(f"{name} must be a number ≥ 0, got {number}")


def check_positive(**numbers) -> None:
    """Raise ValueError unless all of ``numbers`` are finite and above 0."""
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name} must be a number > 0, got {number}")


def check_shares(**shares) -> None:
    """Raise ValueError unless all of ``shares`` are from 0 to 1."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must be a share from 0 to 1, got {share}")


def check_counts(least: int = 1, **counts) -> None:
    """Raise ValueError unless all of ``counts`` are integers, and at least ``least``."""
    for name, count in counts.items():
        if not isinstance(count, (int, np.integer)) or isinstance(count, bool) or count < least:
            raise ValueError(f"{name} must be an integer ≥ {least}, got {count!r}")


def check_choice(choices: tuple, **values) -> None:
    """Raise ValueError unless all of ``values`` are among ``choices``."""
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {choices}, got {value!r}")
