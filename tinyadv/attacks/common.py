"""What all attacks share: the gradient for the pixels, a look at what comes in, pieces of a batch.

    x       (N, …)   images, pixel values 0–1
    y       (N,)     their labels
    target  (N,)     the classes to reach, or None for "anything but y"
    δ       (N, …)   the perturbation: the network sees x + δ
    g       (N, …)   the gradient of what the attack raises, for the pixels

An attack is written for a piece of a batch, with arrays alone. Examples do not depend on each
other, so each thread takes a piece through the whole attack, with no waiting between the steps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from tinyadv import losses, ops
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import Ball, Linf
from tinyadv.evaluate import predict
from tinyadv.tensor import Array, Tensor, _value, grad
from tinyadv.threads import in_threads, one_blas_thread

# The most examples in a piece. On a CPU: enough to outweigh Python's share of a step, few enough
# for the caches. On a GPU a launch costs the same for one example and for many: what memory allows.
LARGEST_PIECE = {"cpu": 128, "gpu": 1024}


class AttackWarning(UserWarning):
    """The attack runs, but its result may not mean what one thinks."""


# ------------------------------------------------------------------------------------ the gradient


def to_raise(loss: Callable, logits, y: Array, target: Array | None = None):
    """What an attack climbs, for each example: (N, K) -> (N,).

    The loss of the label; or, to reach a target, minus the loss of the target. The DLR loss has a
    form of its own for targets.
    """
    if target is None:
        return loss(logits, y, reduction="none")
    if loss is losses.dlr:
        return losses.dlr_targeted(logits, y, target, reduction="none")
    return -loss(logits, target, reduction="none")


def input_gradient(model: Callable, x: Array, y: Array, target=None, *, loss: Callable):
    """The gradient that every attack here is made of, and what comes with it.

    Parameters
    ----------
    model : callable
        Takes (N, …) tensors, returns logits (N, K), each example on its own.
    x, y, target : (N, …), (N,), (N,) or None
    loss : callable
        ``loss(logits, labels, reduction="none")`` gives (N,), as in :mod:`tinyadv.losses`.

    Returns
    -------
    g : (N, …)
        ∂/∂x of what the attack raises, see :func:`to_raise`. No gradient of a weight is computed.
    value : (N,)
        What is raised, at x.
    logits : (N, K)

    Raises
    ------
    TypeError
        If the model returns a plain array: it then has no gradient.
    ValueError
        If the loss does not return one number for each example.
    """
    image = Tensor(x)
    logits = tensor_logits(model, image)
    value = to_raise(loss, logits, y, target)  # (N,)
    if value.shape != (len(x),):
        raise ValueError(
            f"the loss must return one number for each of the {len(x)} examples, for it is called "
            f"with reduction='none'; got shape {value.shape}"
        )
    # An example's pixels act on its own loss alone, so the sum has all gradients at once.
    (g,) = grad(ops.sum(value), [image])
    return g, value.value, logits.value


def tensor_logits(model: Callable, image: Tensor) -> Tensor:
    """``model(image)``, (N, K), or a TypeError if there is no way back from it to the pixels."""
    logits = model(image)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model must return a Tensor when it is given one, got {type(logits).__name__}: "
            "compute with tinyadv.ops, which remembers how to go back to the pixels"
        )
    return logits


def is_fooled(logits: Array, y: Array, target: Array | None = None) -> Array:
    """Whether the attack has what it wants, for each example: (N, K) -> (N,) of bool.

    NaN is no answer, and nobody is fooled by it.
    """
    answer, valid = logits.argmax(1), ~array_module(logits).isnan(logits).any(1)
    return valid & (answer != y if target is None else answer == target)


def ranked_others(logits: Array, y: Array) -> Array:
    """All classes but the label, the most likely one first: (N, K) -> (N, K - 1)."""
    xp = array_module(logits)
    return xp.argsort(xp.where(losses.one_hot(y, logits) > 0, xp.inf, -logits), axis=1)[:, :-1]


def answers_only(model: Callable) -> Callable:
    """The model as one sees it from outside: asked with arrays, it answers with arrays."""
    return lambda x: _value(model(_value(x)))


def all_logits(model: Callable, x: Array, batch_size: int = 500) -> Array:
    """The logits of any number of images, some at a time: (N, …) -> (N, K)."""
    parts = [_value(model(x[i : i + batch_size])) for i in range(0, len(x), batch_size)]
    return array_module(x).concatenate(parts)


def asked_again(model: Callable, x: Array) -> tuple[bool, float, float]:
    """Whether the logits of the same images are others the second time, their change, their size.

    The change is that of one logit at most, and counts if it is above a thousandth of the largest.
    Raises ValueError if there is NaN among them.
    """
    first, again = all_logits(model, x), all_logits(model, x)
    check_answers(first)
    change, size = float(abs(first - again).max()), float(abs(first).max())
    return change > 1e-3 * size, change, size


def check_answers(logits: Array) -> None:
    """Raise ValueError if a logit, (N, K), is NaN: argmax would take it for class 0."""
    lost = int(array_module(logits).isnan(logits).any(1).sum())
    if lost:
        raise ValueError(
            f"the model's logits are NaN for {lost} of {len(logits)} images: look for a division "
            "by zero, or a logarithm or a root of zero, in the model, and for NaN in its weights"
        )


def seem_probabilities(logits: Array) -> bool:
    """Whether all rows, (N, K), are ≥ 0 and add up to 1."""
    low, off = float(logits.min()), float(abs(logits.sum(1) - 1).max())
    return logits.shape[1] > 1 and low >= 0 and off < 1e-3


def per_example(a: Array, x: Array) -> Array:
    """A number for each example, shaped to go with images: (N,) -> (N, 1, …, 1)."""
    return a.reshape((-1,) + (1,) * (x.ndim - 1))


def worse(a: tuple | None, b: tuple) -> tuple:
    """Of two results the worse one for the model, for each example.

    Parameters
    ----------
    a, b : (result, fooled, value, …)
        Rows for each example: what was found, whether it fools the model (N,), what is raised (N,),
        and whatever else goes with it. ``a`` may be ``None``: no result yet.
    """
    if a is None:
        return b
    xp, (_, fooled_a, value_a, *_), (_, fooled_b, value_b, *_) = array_module(b[1]), a, b
    take_b = xp.where(fooled_a == fooled_b, value_b > value_a, fooled_b)  # (N,)
    return tuple(
        xp.where(per_example(take_b, old), new, old) for old, new in zip(a, b, strict=True)
    )


# ------------------------------------------------------------------------------ what comes in


def checked(model: Callable, x: Array, y: Array | None, target: Array | int | None = None):
    """The inputs of an attack, on the backend of ``x``, after a look at each.

    Parameters
    ----------
    model : callable
    x : (N, …) of a floating-point type, from 0 to 1
    y : (N,) integers, optional
        By default the model's own predictions: the attack then looks for what changes the answer,
        right or wrong, and needs to know nothing that its user does not know.
    target : (N,) integers or one integer, optional

    Returns
    -------
    x, y, target

    Raises
    ------
    TypeError
        If ``x`` is no array of floating-point numbers.
    ValueError
        If there are no examples, pixels are outside [0, 1] or NaN, the model does not return
        finite logits (N, K), or labels are not N integers from 0 to K - 1.

    Warns
    -----
    AttackWarning
        If the model seems to return probabilities, or a target is the label itself.
    """
    _check_pixels(x)
    first = _value(model(Tensor(x[:1])))
    classes = _check_logits(first)
    y = predict(model, x) if y is None else _labels(y, x, classes, "y")
    if target is not None:
        target = [target] * len(x) if isinstance(target, (int, np.integer)) else target
        target = _labels(target, x, classes, "target")
        same = int(to_numpy((target == y).sum()))
        if same:
            warnings.warn(
                f"the target of {same} of {len(x)} examples is their label y: nothing is to be "
                "changed there; choose another class",
                AttackWarning,
                stacklevel=3,
            )
    return x, y, target


def _check_pixels(x) -> None:
    kind = getattr(getattr(x, "dtype", None), "kind", None)
    if isinstance(x, Tensor) or kind is None:
        raise TypeError(f"x must be an array (N, …), got {type(x).__name__}: an attack takes "
                        "arrays and returns arrays")  # fmt: skip
    if kind != "f":
        raise TypeError(
            f"x must hold floating-point numbers from 0 to 1, got {x.dtype}: "
            "convert with x.astype('float32'), and divide by 255 if that is the brightest pixel"
        )
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(
            f"x must be a batch (N, …) of one example or more, got shape {x.shape}: "
            "x[None] makes a batch of a single image"
        )
    low, high = to_numpy(array_module(x).stack([x.min(), x.max()])).tolist()
    if not (low >= 0 and high <= 1):  # NaN compares as false
        raise ValueError(
            f"pixels must be from 0 to 1, got values from {low:.9g} to {high:.9g}: "
            + ("remove the NaN" if low != low else "scale the images (np.clip takes off what is "
               "due to rounding), and let the model's first layer do any other normalisation")
        )  # fmt: skip


def _check_logits(logits) -> int:
    if getattr(logits, "ndim", 0) != 2 or len(logits) != 1:
        raise ValueError(
            f"the model must return logits (N, K), a row for each image; for 1 image it returned "
            f"{getattr(logits, 'shape', type(logits).__name__)}"
        )
    row = to_numpy(logits)[0]
    if not np.isfinite(row).all():
        raise ValueError(f"the model returned NaN or infinity for the first image: {row}")
    if seem_probabilities(row[None]):
        warnings.warn(
            "the model seems to return probabilities: its numbers are ≥ 0 and add up to 1. Give it "
            "without its softmax. Behind a softmax gradients vanish where the network is sure, "
            "and the attack looks weaker than it is",
            AttackWarning,
            stacklevel=4,
        )
    return len(row)


def _labels(labels, x, classes: int, name: str):
    xp = array_module(x)
    host = to_numpy(labels)
    if host.shape != (len(x),) or host.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be integers of shape ({len(x)},), one for each example, "
            f"got {host.dtype} of shape {host.shape}"
        )
    if not 0 <= host.min() <= host.max() < classes:
        raise ValueError(
            f"{name} must be from 0 to {classes - 1}, the model returns {classes} logits; "
            f"got {name} from {host.min()} to {host.max()}"
        )
    return xp.asarray(labels if array_module(labels) is xp else host)


def check_ball(ball) -> None:
    """Raise TypeError unless ``ball`` is one; warn if it holds every image."""
    if not isinstance(ball, Ball):
        raise TypeError(f"ball must be Linf(ε), L2(ε) or L1(ε) of tinyadv.balls, got {ball!r}")
    if isinstance(ball, Linf) and 1 < ball.epsilon < math.inf:
        warnings.warn(
            f"ε = {ball.epsilon:g} allows every image, for pixels are from 0 to 1: ε of 0–255 must "
            "be divided by 255",
            AttackWarning,
            stacklevel=3,
        )


def check_finite(x_adv: Array) -> Array:
    """``x_adv``, or a ValueError if there is NaN in it: the model's gradient was not finite."""
    if not bool(array_module(x_adv).isfinite(x_adv).all()):
        raise ValueError(
            "the attack ended with pixels that are NaN: the model or the loss has no finite "
            "gradient for some of the images that it was shown"
        )
    return x_adv


def check_numbers(**numbers) -> None:
    """Raise ValueError unless all of ``numbers`` are finite and 0 or more."""
    for name, number in numbers.items():
        if not 0 <= number < math.inf:
            raise ValueError(f"{name} must be a number ≥ 0, got {number}")


def check_counts(**counts) -> None:
    """Raise ValueError unless all of ``counts`` are integers of 1 or more."""
    for name, count in counts.items():
        if not isinstance(count, (int, np.integer)) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be an integer ≥ 1, got {count!r}")


def step_or_default(step_size: float | None, ball: Ball, steps: int) -> float:
    """α: that which is given, or 2.5 ε / steps and ε at most, by which an attack gets about.

    Raises
    ------
    ValueError
        If it is no number ≥ 0, or if none is given and the ball is infinite.
    """
    if step_size is None:
        if ball.epsilon == math.inf:
            raise ValueError(f"give step_size: {ball} has no edge to measure a step by")
        step_size = min(2.5 / steps, 1) * ball.epsilon
    check_numbers(step_size=step_size)
    return float(step_size)  # a NumPy number would make float64 of float32 images


# ------------------------------------------------------------------------------ pieces of a batch


def by_pieces(
    run: Callable,
    x: Array,
    *others: Array | None,
    workers: int | None = None,
    progress: bool = False,
    name: str = "attack",
):
    """``run(x, *others)``, piece by piece, shared out over the cores.

    How the batch is cut depends on its size alone, and not on how many threads share the work;
    neither does the result.

    Parameters
    ----------
    run : function
        Takes a piece of each array; returns an array with a row for each example, or a tuple of
        such arrays.
    x : (N, …)
    *others : (N, …) or None
        What is ``None`` is passed on as ``None``.
    workers : int, optional
        Threads; by default one for each core. On a GPU it makes no difference.
    progress : bool
        Whether to show a progress bar, on terminals.
    name : str
        What the bar is called.

    Returns
    -------
    what ``run`` returns, for the whole batch
    """
    from tqdm import tqdm

    if workers is not None:
        check_counts(workers=workers)
    xp = array_module(x)
    pieces = [slice(*edge) for edge in pairwise(_edges(len(x), xp is np))]
    bar = tqdm(total=len(x), desc=name, unit="", leave=False, disable=None if progress else True)

    def work(piece):
        rows = [_examples_last(xp, a[piece]) if a is not None else None for a in (x, *others)]
        result = run(*rows)
        bar.update(len(rows[0]))
        return result

    with bar:
        if xp is np:
            with one_blas_thread:
                results = in_threads(work, pieces, workers)
        else:
            results = [work(piece) for piece in pieces]
    if isinstance(results[0], tuple):
        return tuple(_whole(xp, parts) for parts in zip(*results, strict=True))
    return _whole(xp, results)


def _edges(n: int, on_cpu: bool) -> list[int]:
    """Where a batch of n is cut: on a CPU into an even number of pieces, for two cores at least."""
    count = (
        2 * math.ceil(n / 2 / LARGEST_PIECE["cpu"])
        if on_cpu
        else math.ceil(n / LARGEST_PIECE["gpu"])
    )
    return sorted({n * i // count for i in range(count + 1)})


def _examples_last(xp, a):
    """The same array, stored with its examples last, as convolutions store theirs.

    NumPy's elementwise functions are several times slower on arrays that are stored differently.
    """
    if xp is not np or a.ndim < 2:
        return a
    return np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0)


def _whole(xp, parts):
    """The pieces as one array, stored row by row."""
    return xp.ascontiguousarray(xp.concatenate(parts))
