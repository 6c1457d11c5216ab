"""The inputs of every public function: one check, with one wording, for pixels, labels and logits.

    checked          the images, labels and targets of an attack, after a check of each
    checked_logits   the same for a function that needs the logits of all images anyway
    check_…          the parts of these checks, which other modules use as well
    check_returned   what an attack returned
    all_logits       the logits of any number of images
    predict          their predicted classes
    warn, quiet      warnings that point to the caller's line, and code that needs none

A public function checks its arguments once. It passes them on to other functions of the library as
:class:`Checked`, and these do not check them again.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import Ball, Linf, is_number, wide
from tinyadv.parallel import may_cut, setting
from tinyadv.tensor import Array, Tensor, value_of

Model = Callable[[Any], Any]  # images (n, …) -> logits (n, K): arrays or tensors in and out
BATCH = 500  # images in one pass of predict and all_logits, if the batch may be cut


class AttackWarning(UserWarning):
    """The attack runs, but its result may be misleading."""


_quiet = ContextVar("quiet", default=False)  # of this thread only, unlike a filter of warnings
_PACKAGE = os.path.dirname(__file__) + os.sep


@contextmanager
def quiet() -> Iterator[None]:
    """:func:`warn` is silent in this context and this thread: the code in it needs no warnings."""
    with setting(_quiet, True):
        yield


def warn(text: str, category: type[Warning] = AttackWarning) -> None:
    """Warn of what a user should know, at the line outside of this package that led here."""
    if _quiet.get():
        return
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


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
    model: Model, x: Array | Checked, y: Array | None = None, target: Array | int | None = None
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
    x = native(x)
    # One image shows the shape; a model that looks at the whole batch must be given all of it.
    some = x[:1] if may_cut(model) else x
    logits = value_of(frozen(model)(Tensor(some.copy())))
    classes = check_logits(logits, len(some))
    if y is None:
        logits = all_logits(model, x) if may_cut(model) else logits
        _check_finite(logits)
        y = logits.argmax(1)
    else:
        y = check_labels(y, x, classes).copy()  # a user's loss may write into it
    if target is not None:
        target = check_target(target, x, classes)
        same = int(to_numpy((target == y).sum()))
        if same:
            warn(f"the target of {same} of {len(x)} images is their label y: choose another class")
    return Checked(x, y, target)


def _check_same(x: Checked, y: Any, target: Any = None) -> None:
    """Raise TypeError if other labels or targets are given than those that ``x`` holds."""
    for given, held in ((y, x.y), (target, x.target)):
        if given is not None and given is not held:
            raise TypeError("x is Checked: give y and target to it, as Checked(x, y, target)")


def checked_logits(
    model: Model, x: Array, y: Array | None = None, batch_size: int | None = None
) -> tuple[Checked, Array]:
    """As :func:`checked`, and the logits of all images, which come from a single pass.

    Parameters
    ----------
    model, x, y
        As for :func:`checked`. The model is given arrays only, so it need not have a gradient.
    batch_size : int, optional
        As for :func:`all_logits`.

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
    x = native(x)
    logits = all_logits(model, x, batch_size)
    classes = check_logits(logits, len(x))
    y = logits.argmax(1) if y is None else check_labels(y, x, classes)
    return Checked(x, y), logits


# --------------------------------------------------------------------------------- pixels, labels


def as_arrays(x: Any, y: Any) -> tuple[Array, Array]:
    """Images and labels as arrays: lists become NumPy arrays, arrays stay as they are."""
    x, y = (native(a if hasattr(a, "shape") else np.asarray(a)) for a in (x, y))
    return x, y


def native(a: Array) -> Array:
    """``a`` in the byte order of this machine; some files, such as MNIST's, have the other one."""
    dtype: Any = getattr(a, "dtype", None)
    return a if getattr(dtype, "isnative", True) else a.astype(dtype.newbyteorder("="))


def check_pixels(x: Any, name: str = "x") -> None:
    """Raise an error unless ``x`` is a batch (N, …) of floating-point numbers from 0 to 1."""
    kind = getattr(getattr(x, "dtype", None), "kind", None)  # a tensor of PyTorch has none
    if isinstance(x, Tensor) or kind is None:
        remedy = "take its .value" if isinstance(x, Tensor) else "convert it with numpy.asarray"
        raise TypeError(f"{name} must be an array (N, …), got {type(x).__name__}: {remedy}")
    if kind != "f" or x.dtype.itemsize > 8:
        raise TypeError(
            f"{name} must hold floating-point numbers from 0 to 1, in 64 bits at most, "
            f"got {x.dtype}: use x.astype('float32'), and divide by 255 if that is the maximum"
        )
    if x.ndim < 2 or x.size == 0:
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
            "np.clip(x, 0, 1) removes rounding; scale images of 0–255, and normalise in the model"
        )


def check_labels(labels: Any, x: Array, classes: int | None = None, name: str = "y") -> Array:
    """``labels`` on the backend of ``x``, or a ValueError unless there is one class per example.

    ``classes`` is K. Without it the values are not looked at, and nothing waits for a GPU.
    """
    labels = native(labels if hasattr(labels, "dtype") else np.asarray(labels))
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


def check_target(target: Any, x: Array, classes: int) -> Array:
    """A target for each example, (N,), as a copy; ``target`` may be a single class for all."""
    target = [target] * len(x) if isinstance(target, (int, np.integer)) else target
    return check_labels(target, x, classes, "target").copy()


def check_returned(x_adv: Any, x: Array, name: str = "the attack") -> None:
    """Raise an error that names the attack unless it returned images like those it was given."""
    if type(x_adv) is not type(x):
        raise TypeError(
            f"{name} must return an array like its input, {type(x)}, "
            f"got {type(x_adv).__name__} of {type(x_adv).__module__}"
        )
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        raise ValueError(
            f"{name} must return {x.dtype} of shape {x.shape}, like its input, "
            f"got {x_adv.dtype} of shape {x_adv.shape}"
        )
    check_range(x_adv, f"what {name} returned")


# ------------------------------------------------------------------------------------- logits


def check_logits(logits: Any, n: int) -> int:
    """K, the number of classes, or a ValueError unless these are finite logits (n, K).

    Warns with an AttackWarning if they seem to be probabilities.
    """
    _check_shape(logits, n)
    rows = _check_finite(logits)
    if seem_probabilities(rows):
        warn(
            "the model seems to return probabilities: its outputs are ≥ 0 and add up to 1. Remove "
            "its softmax: behind it gradients vanish, and attacks seem weaker than they are"
        )
    return rows.shape[1]


def _check_shape(logits, n):
    """``logits``, or a ValueError unless they are an array (n, K) of numbers."""
    dtype, shape = getattr(logits, "dtype", None), getattr(logits, "shape", ())
    numbers = dtype is not None and dtype.kind in "fiub" and dtype.itemsize <= 8
    if not numbers or len(shape) != 2 or shape[0] != n or shape[1] == 0:
        got = type(logits).__name__ if dtype is None else f"{dtype} of shape {shape}"
        images = f"{n} image{'s' * (n > 1)}"
        raise ValueError(f"the model must return logits (N, K): for {images} it returned {got}")
    return logits


NOT_FINITE = "look for a division, logarithm or root of zero in it, and for NaN in its weights"


def _check_finite(logits: Array) -> np.ndarray:
    """The logits on the host, or a ValueError if one of them is not finite."""
    rows = to_numpy(logits)
    wrong = rows[~np.isfinite(rows).all(1)]
    if len(wrong):
        raise ValueError(
            f"the model returned NaN or infinity for {len(wrong)} of {len(rows)} images, such as "
            f"{wrong[0]}: {NOT_FINITE}"
        )
    return rows


def warn_of_nan(count: int, examples: str) -> None:
    """Warn if the model has returned NaN for ``count`` of these examples."""
    if count:
        warn(
            f"the model returned NaN for {count} of {examples}, which count as misclassified: "
            f"{NOT_FINITE}"
        )


def seem_probabilities(logits: Array) -> bool:
    """Whether all entries of (N, K) are ≥ 0 and each row adds up to 1."""
    low, off = float(logits.min()), float(abs(wide(logits).sum(1) - 1).max())
    return logits.shape[1] > 1 and low >= 0 and off < 1e-3 + _eps(logits)


def _eps(logits: Array) -> float:
    """The relative rounding error of their dtype; for integers it is negligible."""
    return float(np.finfo(np.result_type(logits.dtype, np.float16)).eps)


def all_logits(model: Model, x: Array, batch_size: int | None = None) -> Array:
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
        If ``batch_size`` is not an integer ≥ 1, or the model does not return logits (n, K).
    """
    batch_size = size_of_a_batch(model, x, batch_size)
    model = lent(model)
    # An empty batch takes one pass as well: its logits have the shape (0, K).
    pieces = [x[i : i + batch_size] for i in range(0, max(len(x), 1), batch_size)]
    parts = [_check_shape(value_of(model(piece)), len(piece)) for piece in pieces]
    return parts[0] if len(parts) == 1 else array_module(x).concatenate(parts)


def size_of_a_batch(model: Model, x: Array, batch_size: int | None, default: int = BATCH) -> int:
    """``batch_size``; if it is None ``default``, or all of ``x`` if its batch may not be cut.

    Raises ValueError if it is not an integer ≥ 1.
    """
    if batch_size is None:
        return default if may_cut(model) else max(len(x), 1)
    check_counts(batch_size=batch_size)
    return batch_size


def predict(model: Model, x: Array, batch_size: int | None = None) -> Array:
    """The predicted class of each example: the one with the largest logit.

    Parameters
    ----------
    model, x, batch_size
        As for :func:`all_logits`.

    Returns
    -------
    (N,) int64, on the backend of ``x``; -1, which is not a class, where a logit is NaN

    Raises
    ------
    ValueError
        As for :func:`all_logits`.
    """
    xp = array_module(x)
    if len(x) == 0 and size_of_a_batch(model, x, batch_size):
        return xp.zeros(0, np.int64)
    logits = all_logits(model, x, batch_size)
    return xp.where(xp.isnan(logits).any(1), -1, logits.argmax(1))


def logits_change(
    model: Model, x: Array, logits: Array, queries: int = 10
) -> tuple[bool, float, float]:
    """Whether another query changes the logits, by how much, and the size of the largest logit.

    The change is the largest change of a logit, and counts if it is above a thousandth of the
    largest logit, or in float16 a sixtieth, which may be rounding. ``logits`` (N, K) are the
    model's for ``x`` (N, …). It is queried up to ``queries`` times: a model that returns the same
    logits every second time is missed once in a thousand times.
    """
    change, size = 0.0, float(abs(logits).max())
    for _ in range(queries):
        change = float(abs(logits - all_logits(model, x)).max())
        if not change <= max(1e-3, 16 * _eps(logits)) * size:  # NaN is a change
            return True, change, size
    return False, change, size


def frozen(model: Any) -> Any:
    """The model with its weights as arrays, so that it records nothing: see ``Module.frozen``."""
    return model.frozen() if hasattr(model, "frozen") else model


def lent(model: Any) -> Model:
    """The frozen model, which is given a copy of each input, so that the caller's never change.

    A user's model may write into its input, as in ``x -= mean``. A network that consists of this
    library's layers alone does not, and is given the inputs themselves.
    """
    modules = list(model.modules()) if hasattr(model, "modules") else []
    held = [value for module in modules for value in vars(module).values()]
    parts = [part for value in held for part in (value if isinstance(value, list) else [value])]
    own = [
        str(getattr(part, "__module__", None)).startswith("tinyadv.")
        for part in [*modules, *filter(callable, parts)]
    ]
    model = frozen(model)
    if own and all(own):
        return model
    # x + 0 is a copy on the tape; with "K" an array is stored in the same way.
    return lambda x: model(x + 0 if isinstance(x, Tensor) else x.copy("K"))


# ------------------------------------------------------------------------------------- settings


def check_ball(ball: Any) -> None:
    """Raise TypeError unless ``ball`` is a ball; warn if it holds every image."""
    if not isinstance(ball, Ball):
        raise TypeError(f"ball must be Linf(ε), L2(ε) or L1(ε) of tinyadv.balls, got {ball!r}")
    if isinstance(ball, Linf) and 1 < ball.epsilon < math.inf:
        warn(f"ε = {ball.epsilon:g} allows every image of pixels 0–1: divide an ε of 0–255 by 255")


def check_numbers(**numbers: Any) -> None:
    """Raise ValueError unless all of ``numbers`` are finite and 0 or more."""
    check_each("a number ≥ 0", lambda number: 0 <= number < math.inf, **numbers)


def check_positive(**numbers: Any) -> None:
    """Raise ValueError unless all of ``numbers`` are finite and above 0."""
    check_each("a number > 0", lambda number: 0 < number < math.inf, **numbers)


def check_shares(**shares: Any) -> None:
    """Raise ValueError unless all of ``shares`` are from 0 to 1."""
    check_each("a share from 0 to 1", lambda share: 0 <= share <= 1, **shares)


def check_each(described: str, holds: Callable[[float], bool], /, **numbers: Any) -> None:
    """Raise ValueError unless all of ``numbers`` are numbers for which ``holds`` is true."""
    for name, number in numbers.items():
        if not (is_number(number) and holds(number)):
            raise ValueError(f"{name} must be {described}, got {number!r}")


def check_counts(least: int = 1, **counts: Any) -> None:
    """Raise ValueError unless all of ``counts`` are integers, and at least ``least``."""
    for name, count in counts.items():
        if not isinstance(count, (int, np.integer)) or isinstance(count, bool) or count < least:
            raise ValueError(f"{name} must be an integer ≥ {least}, got {count!r}")


def check_choice(choices: tuple, **values: Any) -> None:
    """Raise ValueError unless all of ``values`` are among ``choices``."""
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {choices}, got {value!r}")
