"""What the attacks share: the input gradient, the success test, the worst of several results.

    x       (N, …)   images, pixel values 0–1
    y       (N,)     their labels
    target  (N,)     the classes to reach, or None for "any class but y"
    δ       (N, …)   the perturbation: the network sees x + δ
    g       (N, …)   the gradient of the attack's objective with respect to the pixels

The loop of an attack works on a piece of a batch, with plain arrays. Examples do not depend on each
other, so each thread takes its piece through the whole attack and does not wait between the steps.

An image that is given to the model always has the dtype of x, so the returned image is digit by
digit the one that fooled it. A gradient has the precision of the model. So has a direction, but at
least float32; the point that it leads to is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np

from tinyadv import losses, ops
from tinyadv.backend import array_module
from tinyadv.balls import Ball, narrowed, per_example, wide
from tinyadv.inputs import Model, all_logits, check_numbers, lent
from tinyadv.losses import Loss
from tinyadv.parallel import examples_last, may_cut, stop_point
from tinyadv.tensor import Array, Tensor, grad, value_of

# The most examples in a piece. On a CPU: enough that Python's overhead per step does not matter,
# few enough for the caches. On a GPU a launch costs the same for one example and for many, so as
# many as memory allows.
LARGEST_PIECE = {"cpu": 128, "gpu": 1024}


# ------------------------------------------------------------------------------------ the gradient


def to_raise(loss: Loss, logits: Array, y: Array, target: Array | None = None) -> Array:
    """The objective that an attack raises, for each example: (N, K) -> (N,).

    The loss of the label; or, to reach a target, minus the loss of the target. The DLR loss has a
    form of its own for targets.
    """
    if target is None:
        return loss(logits, y, reduction="none")
    if loss is losses.dlr:
        return losses.dlr_targeted(logits, y, target, reduction="none")
    return -loss(logits, target, reduction="none")


def input_gradient(
    model: Model, x: Array, y: Array, target: Array | None = None, *, loss: Loss
) -> Array:
    """The gradient of an attack's objective with respect to the pixels.

    Parameters
    ----------
    model : callable
        Takes a tensor (N, …), returns logits (N, K), each example on its own.
    x, y, target : (N, …), (N,), (N,) or None
    loss : callable
        ``loss(logits, labels, reduction="none")`` gives (N,), as in :mod:`tinyadv.losses`.

    Returns
    -------
    g : (N, …)
        ∂/∂x of the objective, see :func:`to_raise`. No gradient of the weights is computed.
    value : (N,)
        The objective at x.
    logits : (N, K)

    Raises
    ------
    TypeError
        If the model returns a plain array, which has no gradient.
    ValueError
        If the loss does not return one number for each example.
    """
    image = Tensor(x)
    logits = with_a_tape(model(image))
    value = to_raise(loss, logits, y, target)  # (N,)
    if value.shape != (len(x),):
        raise ValueError(
            f"the loss must return one number for each of the {len(x)} examples with "
            f"reduction='none', got shape {value.shape}"
        )
    # An example's pixels affect its own loss only, so the gradient of the sum holds all gradients.
    (g,) = grad(ops.sum(value), [image])
    return g, value.value, logits.value


def with_a_tape(logits: Array) -> Tensor:
    """``logits``, or a TypeError unless they are a tensor: an array has no gradient."""
    stop_point()
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model must return a Tensor when it is given one, got {type(logits).__name__}: "
            "compute with tinyadv.ops, which records how the logits depend on the pixels"
        )
    return logits


# -------------------------------------------------------------------------------------- success


def is_fooled(logits: Array, y: Array, target: Array | None = None) -> Array:
    """Whether the attack succeeds, for each example: (N, K) -> (N,) of bool.

    NaN is not a prediction, so it does not count as a success.
    """
    predicted, valid = logits.argmax(1), ~array_module(logits).isnan(logits).any(1)
    return valid & (predicted != y if target is None else predicted == target)


def ranked_others(logits: Array, y: Array) -> Array:
    """All classes except the label, by descending logit: (N, K) -> (N, K - 1)."""
    xp = array_module(logits)
    return xp.argsort(xp.where(losses.one_hot(y, logits) > 0, xp.inf, -logits), axis=1)[:, :-1]


def lead(logits: Array, y: Array, target: Array | None = None) -> tuple[Array, Array]:
    """By how much the wrong class is ahead, and the direction of the logits in which this grows.

    Untargeted: max_{i≠y} z_i - z_y; with a target t: z_t - max_{i≠t} z_i. Above 0 the attack
    succeeds.

    Returns
    -------
    lead : (N,)
    direction : (N, K)
        1 for the class that is to win, -1 for the one that is to lose.
    """
    xp, own = array_module(logits), losses.one_hot(y if target is None else target, logits)
    rival = losses.one_hot(xp.where(own > 0, -xp.inf, logits).argmax(1), logits)
    direction = rival - own if target is None else own - rival
    return (direction * logits).sum(1), direction


def rounding(logits: Array, *images: Array) -> Array:
    """The largest lead that rounding alone may explain, e.g. in a batch of another size: (N,).

    The model may round like the images although its logits have more digits. And if logits of
    float64 are all numbers of float32, it was in float32 that they were computed.
    """
    xp, eps = array_module(logits), max(float(np.finfo(a.dtype).eps) for a in (logits, *images))
    if logits.dtype == np.float64:
        single = (logits == logits.astype(np.float32)).all(1)
        eps = xp.where(single, max(eps, float(np.finfo(np.float32).eps)), eps)
    return 16 * eps * abs(logits).max(1)


def worse(a: tuple | None, b: tuple) -> tuple:
    """Of two results the one that is worse for the model, for each example.

    Parameters
    ----------
    a, b : (result, fooled, value, …)
        Rows for each example: the result, whether it fools the model (N,), the objective (N,),
        and whatever else goes with it. ``a`` may be ``None``: no result yet.
    """
    if a is None:
        return b
    xp, (_, fooled_a, value_a, *_), (_, fooled_b, value_b, *_) = array_module(b[1]), a, b
    take_b = xp.where(fooled_a == fooled_b, value_b > value_a, fooled_b)  # (N,)
    return tuple(
        xp.where(per_example(take_b, old), new, old) for old, new in zip(a, b, strict=True)
    )


def judged(model: Model, x_adv: Array, y: Array, target: Array | int | None, loss: Loss) -> tuple:
    """A result with its success (N,) and its objective (N,), as :func:`worse` takes it."""
    logits = all_logits(model, x_adv)
    return x_adv, is_fooled(logits, y, target), value_of(to_raise(loss, logits, y, target))


def check_finite(x_adv: Array) -> Array:
    """``x_adv``, or a ValueError if there is NaN in it: the model's gradient was not finite."""
    if not bool(array_module(x_adv).isfinite(x_adv).all()):
        raise ValueError(
            "the attack ended with pixels that are NaN: look for an infinite gradient in the model "
            "or in the loss"
        )
    return x_adv


# ------------------------------------------------------------------------- numbers for each example


def dot(a: Array, b: Array) -> Array:
    """The inner product of each example, in float32 at least: (N, …), (N, …) -> (N,)."""
    return (wide(a) * b).reshape(len(a), -1).sum(1)


def moved(x: Array, delta: Array) -> Array:
    """x + δ in the dtype of x. In float16 it is rounded towards x, so that it stays in the ball."""
    return narrowed(wide(x) + delta, x.dtype, x)


def normalised(g: Array, ball: Ball) -> Array:
    """Each example divided by its length in the ball's norm; zero stays zero: (N, …) -> (N, …)."""
    size = per_example(ball.norm(g), g)
    return g / array_module(g).where(size > 0, size, 1)


def only(index: np.ndarray, *arrays: Array | None) -> list:
    """Some examples of each array, by their numbers, which are on the host and ascending.

    ``None`` stays ``None``.
    """
    return [
        a if a is None or len(a) == len(index) else examples_last(a[array_module(a).asarray(index)])
        for a in arrays
    ]


# ------------------------------------------------------------------------------------- settings


class QueryOnly:
    """The model as a query-only attack sees it: arrays in, arrays out, and no gradient."""

    def __init__(self, model: Model):
        self.model = lent(model)
        self.by_example = may_cut(model)

    def __call__(self, x: Array) -> Array:
        stop_point()
        return value_of(self.model(value_of(x)))


def check_images(x: Array, name: str) -> None:
    """Raise ValueError unless ``x`` is (N, C, H, W), as the function ``name`` needs it."""
    if getattr(x, "ndim", None) != 4:
        got = np.shape(x)
        raise ValueError(f"{name} needs images (N, C, H, W), got shape {got}: reshape them")


def check_radius(ball: Ball, name: str, *norms: type[Ball]) -> None:
    """Raise TypeError unless the ball is in one of these norms, ValueError if ε is infinite."""
    if not isinstance(ball, norms):
        allowed = " or ".join(norm.__name__ for norm in norms)
        raise TypeError(f"{name} is for {allowed}, got {ball!r}")
    if math.isinf(ball.epsilon):
        raise ValueError(f"the ε of {name} must be finite, got {ball!r}: Linf(1) allows all images")


def step_or_default(step_size: float | None, ball: Ball, steps: int) -> float:
    """α as given, or by default 2.5 ε / steps, but at most ε.

    Raises
    ------
    ValueError
        If it is not a number ≥ 0, or if none is given and the ball is infinite.
    """
    if step_size is None:
        if ball.epsilon == math.inf:
            raise ValueError(f"give step_size: it cannot be derived from the radius of {ball}")
        step_size = min(2.5 / steps, 1) * ball.epsilon
    check_numbers(step_size=step_size)
    return float(step_size)  # a NumPy number would turn float32 images into float64


@contextmanager
def pieces(
    model: Model, x: Array, progress: bool = False, name: str = "", run: int = 0, runs: int = 1
) -> Iterator[dict]:
    """How :func:`tinyadv.parallel.by_examples` is to cut the batch ``x``, as keyword arguments.

    The batch stays whole unless the model allows cutting it (``by_example``). While the context is
    open and ``progress`` is true, a bar on terminals counts the examples. It is called ``name``,
    followed by the number of the run if there are several.
    """
    on_cpu = array_module(x) is np
    most = LARGEST_PIECE["cpu" if on_cpu else "gpu"]
    least = (2 if on_cpu else most + 1) if may_cut(model) else math.inf
    name = f"{name} {run + 1}/{runs}" if runs > 1 else name
    with bar(progress, len(x), name) as counter:
        yield {"least": least, "most": most, "done": counter.update}


def bar(progress: bool, total: int, name: str) -> AbstractContextManager:
    """A context with a progress bar on terminals; without ``progress`` its updates do nothing.

    Even a hidden bar of tqdm takes a lock, which Ctrl-C may leave locked for other threads.
    """
    if not progress:
        return nullcontext(SimpleNamespace(update=lambda count: None))
    from tqdm import tqdm

    return tqdm(total=total, desc=name, unit="", leave=False, disable=None)
