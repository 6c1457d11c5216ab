"""Defenses that hide the gradient, and the attacks adapted to them.

The first two were published with high robust accuracies, and had only made the gradient useless.
The third makes a network more robust, and hides how robust it is:

    distillation   logits a hundred times too large: the softmax saturates, and the gradient of the
                   cross-entropy is 0 in float32   broken by a loss of the logits
    squeezing      pixels rounded, then smoothed: a step function, whose gradient is 0
                                                   broken by a gradient that skips this part
    thresholds     nearly black is black, nearly white is white: most pixels have no gradient
                                                   attacked where the thresholds are not flat

    T               temperature: softmax(z / T) is soft for a large T
    z   (N, K)      logits
    p   (N, K)      probabilities, soft labels
    s   (N, …)      a squeezed image

A gradient of 0 does not mean that there is no adversarial example nearby: :mod:`tinyadv.checks`
tells the two cases apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from tinyadv import inputs, ops
from tinyadv.attacks import shared
from tinyadv.attacks.gradient import pgd
from tinyadv.attacks.shared import input_gradient, is_fooled, per_example
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import Ball, Linf
from tinyadv.data import Dataset
from tinyadv.inputs import Model
from tinyadv.layers import Average, Module, Sequential
from tinyadv.losses import cross_entropy, margin, one_hot, soft_cross_entropy
from tinyadv.parallel import may_cut
from tinyadv.tensor import RNG, Array, Tensor, defvjp, primitive, value_of
from tinyadv.train import fit


class Wrapped:
    """A model with something before or after it: calls ``wrapper(model, x)``.

    Attacks treat it like the model itself: they cut a batch into pieces if the model allows it, and
    record no tape for its weights.

    Parameters
    ----------
    model : callable
    wrapper : function
        ``wrapper(model, x)`` for arrays or tensors (N, …), each example on its own.
    """

    by_example = property(lambda self: may_cut(self.model))

    def __init__(self, model: Model, wrapper: Callable):
        self.model, self.wrapper = model, wrapper

    def __call__(self, x: Array) -> Array:
        return self.wrapper(self.model, x)

    def frozen(self) -> Wrapped:
        """The same with a frozen model, see :meth:`tinyadv.layers.Module.frozen`."""
        return Wrapped(inputs.frozen(self.model), self.wrapper)


# ------------------------------------------------------------------------ defensive distillation


def at_temperature(model: Model, temperature: float) -> Model:
    """The model with logits z / T: the same predictions, and softer probabilities for T > 1.

    Distillation trains a network in this form. When it is attacked in this form, a distilled
    network has gradients again, although its predictions are the same.

    Raises
    ------
    ValueError
        If the temperature is not above 0.
    """
    inputs.check_positive(temperature=temperature)
    return Wrapped(model, lambda model, x: model(x) / temperature)


class Distillation:
    """The objective of a teacher or a student at temperature T, for ``fit(objective=…)``.

    The cross-entropy of softmax(z / T) with the labels, or with the teacher's probabilities at the
    same T. Papernot et al. (2016), "Distillation as a defense to adversarial perturbations against
    deep neural networks", section IV.

    At test time T is 1. The student has learned logits T times as large as usual, so in float32 its
    softmax is exactly 1 and 0, and the gradient of its cross-entropy is 0.

    Parameters
    ----------
    temperature : float
        T; the paper takes 100 for MNIST.
    teacher : callable, optional
        Returns logits. Without one the network learns the labels, as the teacher itself does.

    Examples
    --------
    >>> from tinyadv import data, fit, models, optim
    >>> teacher = models.slides_cnn()
    >>> adam = optim.Adam(teacher.parameters())
    >>> history = fit(teacher, data.load("glyphs"), adam, 0, objective=Distillation(100))
    """

    def __init__(self, temperature: float = 100.0, teacher: Callable | None = None):
        inputs.check_positive(temperature=temperature)
        self.temperature, self.teacher = temperature, teacher

    def __call__(self, model: Model, x: Array, y: Array) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the logits at T = 1, (N, K)."""
        logits = model(x)
        if self.teacher is None:
            p = one_hot(y, logits)
        else:  # frozen: the teacher does not learn any more
            p = ops.softmax(value_of(inputs.frozen(self.teacher)(x)) / self.temperature, axis=1)
        return soft_cross_entropy(logits / self.temperature, p), logits


def distill(
    build: Callable, data: Dataset, optimizer: Callable, epochs: int, *,
    temperature: float = 100.0, checkpoint: str | os.PathLike | None = None, **options: Any,
) -> tuple:  # fmt: skip
    """Train a teacher at temperature T, and a student of the same architecture on its soft labels.

    Parameters
    ----------
    build : function
        Returns an untrained network; called twice.
    data : Dataset
    optimizer : function
        Returns the optimizer of the parameters:
        ``lambda parameters: RMSprop(parameters, lr=0.001)``.
    epochs : int
        Epochs for each of the two.
    temperature : float
    checkpoint : path, optional
        For ``NAME.npz`` the states of the two trainings are saved as ``NAME-teacher.npz`` and
        ``NAME-student.npz`` in the same folder.
    **options
        Passed to :func:`tinyadv.fit`, such as ``batch_size`` and ``rng``.

    Returns
    -------
    teacher, student
    """

    def train(role, objective):
        if checkpoint is not None:  # with a single file the student would resume the teacher's run
            path = Path(checkpoint)
            options["checkpoint"] = path.with_name(f"{path.stem}-{role}{path.suffix}")
        model = build()
        fit(model, data, optimizer(model.parameters()), epochs, objective=objective, **options)
        return model

    teacher = train("teacher", Distillation(temperature))
    return teacher, train("student", Distillation(temperature, teacher))


# ------------------------------------------------------------------------------ feature squeezing


def without_gradient(squeeze: Callable) -> Callable:
    """The squeezer as an operation whose gradient is 0, as the gradient of a step function is.

    Parameters
    ----------
    squeeze : function
        Takes an array (N, …), returns one of the same shape.

    Returns
    -------
    squeeze : function
        The same for arrays and tensors, (N, …) -> (N, …).
    """

    return straight_through(squeeze, slope=0)


def straight_through(squeeze: Callable, slope: float = 1.0) -> Callable:
    """The squeezer in the forward pass, a constant slope in the backward pass: BPDA.

    A squeezer approximately returns its input, so its gradient is approximated by the gradient of
    the identity. Athalye et al. (2018), "Obfuscated gradients give a false sense of security",
    section 4.1 (backward pass differentiable approximation).

    Parameters
    ----------
    squeeze : function
        As for :func:`without_gradient`; also one that :func:`bit_depth` or :func:`median` made.
    slope : float
        By default 1, the slope of the identity.

    Returns
    -------
    squeeze : function
        The same for arrays and tensors, (N, …) -> (N, …).
    """

    @primitive
    def wire(x):
        return squeeze(x)

    defvjp(wire, lambda g, y, x: slope * g if slope != 1 else g)
    return wire


def bit_depth(bits: int) -> Callable:
    """A squeezer: pixels rounded to 2ᵇ values from 0 to 1.

    Xu et al. (2018), "Feature squeezing: detecting adversarial examples in deep neural networks",
    section III.A; with one bit an image is black and white.

    Raises
    ------
    ValueError
        If ``bits`` is not an integer from 1 to 16.
    """
    inputs.check_counts(bits=bits)
    if bits > 16:
        raise ValueError(f"bits must be 16 or less, because float32 has 24, got {bits}")
    levels = 2**bits - 1
    return without_gradient(lambda x: array_module(x).rint(x * levels) / levels)


def median(size: int = 2) -> Callable:
    """A squeezer: each pixel becomes the median of a window, ``size`` × ``size``.

    Xu et al. (2018), section III.B; they took 2 × 2 for MNIST. The image is mirrored at its edges.
    If the number of pixels is even, the median is the upper one of the two in the middle. The
    result equals ``scipy.ndimage.median_filter(x, (1, 1, size, size))``, on either backend.
    A median does have a gradient, which is 1 for the pixel that it selects; the filter in the
    paper does not provide it, and neither does this one.

    Raises
    ------
    ValueError
        If ``size`` is not an integer ≥ 1, or an image is smaller than the window.
    """
    inputs.check_counts(size=size)

    def smooth(x):  # (N, C, H, W) -> (N, C, H, W)
        if x.ndim != 4 or min(x.shape[2:]) < size:
            raise ValueError(
                f"a median of {size} × {size} needs larger images (N, C, H, W), got {x.shape}"
            )
        xp = array_module(x)
        rows, columns = (_mirrored(length, size) for length in x.shape[2:])
        window = [x[:, :, xp.asarray(i)][:, :, :, xp.asarray(j)] for i in rows for j in columns]
        return xp.sort(xp.stack(window), axis=0)[size * size // 2]  # (size², N, C, H, W)

    return without_gradient(smooth)


def _mirrored(length: int, size: int) -> list[np.ndarray]:
    """For each position in the window the numbers of its pixels in a row: size × (length,)."""
    # The edge itself is repeated: 1 0 | 0 1 2.
    pixels = np.pad(np.arange(length), (size // 2, size - 1 - size // 2), mode="symmetric")
    return [pixels[offset : offset + length] for offset in range(size)]


def in_turn(*squeezers: Callable) -> Callable:
    """A squeezer that applies several squeezers, from the first to the last."""

    def squeeze(x):
        for each in squeezers:
            x = each(x)
        return x

    return squeeze


def squeezed(model: Model, squeeze: Callable) -> Model:
    """The model behind a squeezer: arrays or tensors (N, …) -> logits (N, K).

    The squeezer must treat each image on its own, as all squeezers here do.
    """
    return Wrapped(model, lambda model, x: model(squeeze(x)))


class Detector:
    """Detects adversarial examples: squeezing them changes the predicted probabilities.

    score(x) = max over the squeezers s of ‖softmax(f(x)) - softmax(f(s(x)))‖₁, from 0 to 2. An
    image whose score is above a threshold is rejected. Xu et al. (2018), section V.

    Parameters
    ----------
    model : callable
        Returns logits.
    squeezers : dict
        Name → squeezer.
    threshold : float
        Set by :meth:`calibrate`; with the default no image is rejected.

    Raises
    ------
    ValueError
        If there are no squeezers.
    """

    def __init__(self, model: Model, squeezers: Mapping[str, Callable], threshold: float = 2.0):
        if not squeezers:
            raise ValueError("a detector needs at least one squeezer, got none")
        self.model, self.squeezers, self.threshold = model, dict(squeezers), threshold

    def calibrate(self, x: Array, false_positives: float = 0.05) -> Detector:
        """Set the threshold: at most this share of the clean images is rejected.

        Parameters
        ----------
        x : (N, …)
            Clean images, other ones than those on which the detector is evaluated.
        false_positives : float
            From 0 to 1.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the share is not from 0 to 1, or there are no images.
        """
        inputs.check_shares(false_positives=false_positives)
        if len(x) == 0:
            raise ValueError("calibrate needs some clean images, got none")
        scores = np.sort(to_numpy(self.scores(x)))[::-1]
        allowed = int(false_positives * len(x))
        # Images above the threshold are rejected: those that come before this score, at most.
        self.threshold = float(scores[allowed]) if allowed < len(x) else -1.0
        return self

    def scores(self, x: Array) -> Array:
        """The score of each image: (N, …) -> (N,)."""

        def probabilities(x):
            return ops.softmax(inputs.all_logits(self.model, x), axis=1)

        p, xp = probabilities(x), array_module(x)
        moved = [abs(p - probabilities(s(x))).sum(1) for s in self.squeezers.values()]
        return xp.stack(moved).max(0)

    def refuses(self, x: Array) -> Array:
        """Which images are rejected as adversarial: (N, …) -> (N,) of bool."""
        return self.scores(x) > self.threshold


def evade(
    detector: Detector, x: Array, y: Array | None = None, *,
    ball: Ball = Linf(0.3), step_size: float | None = None, steps: int = 40, targets: int = 3,
    rng: RNG = 0, progress: bool = False,
) -> Array:  # fmt: skip
    """An adaptive attack on a detector: the model should predict one wrong class in all its views.

    The detector compares the probabilities of an image with those of its squeezed versions. PGD
    raises the same wrong class for all of them, with gradients straight through the squeezers:
    when the model is confident of it in all views, the score is small. After He et al. (2017),
    "Adversarial example defenses: ensembles of weak defenses are not strong", who attacked a
    detector and its network together.

    Parameters
    ----------
    detector : Detector
    x, y, ball, step_size, steps, rng, progress
        As for :func:`tinyadv.attacks.pgd`.
    targets : int
        How many wrong classes are tried: those with the largest logits at ``x``.

    Returns
    -------
    x_adv : (N, …)
        For each image the first result that is misclassified and not rejected; otherwise the first
        that is misclassified; otherwise the first one.
    """
    inputs.check_counts(targets=targets)
    model, squeezers = detector.model, [straight_through(s) for s in detector.squeezers.values()]
    (x, y, _), logits = inputs.checked_logits(model, x, y)
    rng = np.random.default_rng(rng)
    classes, others = logits.shape[1], shared.ranked_others(logits, y)[:, :targets]  # (N, targets)

    def views(model, x):  # (n, …) -> (n, (1 + S) K)
        return ops.concatenate([model(x), *(model(squeeze(x)) for squeeze in squeezers)], axis=1)

    def mean_loss(logits, labels, reduction):
        parts = [logits[:, i : i + classes] for i in range(0, logits.shape[1], classes)]
        return sum(cross_entropy(z, labels, reduction) for z in parts) / len(parts)

    best = None
    for j in range(others.shape[1]):
        x_adv = pgd(
            Wrapped(model, views), inputs.Checked(x, y, others[:, j]), ball=ball, steps=steps,
            step_size=step_size, loss=mean_loss, rng=rng, progress=progress,
        )  # fmt: skip
        wrong = is_fooled(inputs.all_logits(model, x_adv), y)
        best = shared.worse(best, (x_adv, wrong, wrong & ~detector.refuses(x_adv)))
    return x if best is None else best[0]


# ------------------------------------------------------------------------------------ thresholds


def live_range(front: Module) -> tuple[float, float, float]:
    """Between which grey values layers that treat each pixel on its own have a slope.

    Parameters
    ----------
    front : Module
        (N, 1, H, W) -> (N, 1, H, W), such as :func:`tinyadv.models.threshold_layers`.

    Returns
    -------
    low, high : float
        Pixel values 0–1. Below ``low`` the result is constant, and so it is above ``high``.
    slope : float
        The mean slope between them.

    Raises
    ------
    ValueError
        If ``front`` returns the same for all grey values, or does not map a pixel to a pixel.
    """
    xp = array_module(*(p.value for p in front.parameters()))
    grey = np.linspace(0, 1, 4097, dtype=np.float32)
    response = to_numpy(value_of(front(xp.asarray(grey.reshape(-1, 1, 1, 1))))).ravel()
    if response.shape != grey.shape:
        raise ValueError(
            f"the front must map a grey pixel to a grey pixel, but it made {response.size} of "
            f"{grey.size}: how many layers are the thresholds?"
        )
    changes = np.flatnonzero(np.diff(response))
    if not len(changes):
        raise ValueError("the layers in front return the same for all grey values")
    first, last = changes[0], changes[-1] + 1
    low, high = float(grey[first]), float(grey[last])
    return low, high, float(response[last] - response[first]) / (high - low)


def cross_thresholds(
    model: Module, x: Array, y: Array | None = None, *,
    ball: Ball = Linf(0.3), front: int = 4, steps: int = 60, starts: int = 20, hops: int = 20,
    queries: int = 40, rng: RNG = 0, progress: bool = False,
) -> Array:  # fmt: skip
    """An adaptive attack on networks behind thresholds (:func:`tinyadv.models.threshold_layers`).

    A threshold is flat below and above its slope: a pixel there has no gradient, and PGD's steps
    and random starts are spent on values among which the network sees no difference. This attack
    changes only pixels that can come into the range between the thresholds, moves them only within
    it, and gives the thresholds a constant slope for the backward pass (BPDA). It climbs the margin
    from the middle of each pixel's range, from random points and from random corners; then from
    the best point so far with a share of its pixels drawn anew. After each climb it sets random
    blocks of pixels to one end of their ranges, and keeps what helps.

    Parameters
    ----------
    model : Sequential or Average
        Begins with threshold layers, or is the average of such networks.
    x, y, ball, rng, progress
        As for :func:`tinyadv.attacks.pgd`, with a ball in L∞ and grey images (N, 1, H, W).
    front : int
        The number of layers that are the thresholds.
    steps : int
        Of each climb.
    starts, hops : int
        The number of climbs from new points, and of those from the best point so far.
    queries : int
        Blocks that are tried after each climb.

    Returns
    -------
    x_adv : (N, 1, H, W)
        The point with the largest margin, in the ball and in [0, 1].

    Raises
    ------
    TypeError
        If the model is not such a network, or the ball is not in L∞.
    ValueError
        If the first layers have no thresholds, or an argument is out of range.
    """
    inputs.check_ball(ball)
    inputs.check_counts(front=front, steps=steps, starts=starts)
    inputs.check_counts(0, hops=hops, queries=queries)
    if not isinstance(ball, Linf):
        raise TypeError(f"expected a ball in L∞, got {ball}")
    # A subclass with a __call__ of its own is another network.
    average = type(model).__call__ is Average.__call__
    members: Any = cast(Average, model).members if average else [model]
    for member in members:
        if type(member).__call__ is not Sequential.__call__ or len(member) <= front:
            raise TypeError(
                f"expected a Sequential that begins with {front} layers of thresholds, or an "
                f"Average of such networks, got {type(member).__name__}"
            )
    x, y, _ = inputs.checked(model, x, y)
    fronts = [Sequential(*member.layers[:front]) for member in members]
    lows, highs, slopes = zip(*map(live_range, fronts), strict=True)
    wired = Average(*(
        Sequential(_crossed(f, slope), *member.layers[front:])
        for f, slope, member in zip(fronts, slopes, members, strict=True)
    )).frozen()  # fmt: skip
    xp, rng = array_module(x), np.random.default_rng(rng)
    bottom, top = xp.clip(x - ball.epsilon, 0, 1), xp.clip(x + ball.epsilon, 0, 1)
    low, high = (xp.clip(xp.full_like(x, end), bottom, top) for end in (min(lows), max(highs)))
    best, lead = x.copy(), _lead(inputs.all_logits(wired, x), y)

    with shared.bar(progress, starts + hops, "thresholds") as counter:
        for run in range(starts + hops):
            left = np.flatnonzero(to_numpy(lead <= 0))
            if not len(left):
                break
            left = xp.asarray(left)
            within, labels = (low[left], high[left]), y[left]
            point = _start(run - starts, best[left], *within, rng) if run else sum(within) / 2
            point, value = _climb(wired, point, *within, labels, steps)
            point, value = _set_blocks(wired, point, value, *within, labels, queries, rng)
            best[left], lead[left] = _better((best[left], lead[left]), (point, value))
            counter.update(1)
    return x + ball.project(best - x, -x, 1 - x)


def _crossed(front: Any, slope: float) -> Any:
    """The layers in the forward pass, a constant slope in the backward pass."""
    front = inputs.frozen(front)
    crossed: Any = straight_through(lambda x: value_of(front(x)), slope)
    crossed.by_example = True
    return crossed


def _start(hop, best, low, high, rng):
    """Where a climb begins: random points and corners in turn; from hop 0 on, near the best."""
    xp, share = array_module(low), rng.random(low.shape)
    share = np.round(share) if hop >= 0 or hop % 2 else share
    point = low + xp.asarray(share.astype(low.dtype)) * (high - low)
    if hop < 0:
        return point
    drawn = rng.random(low.shape) < rng.choice([0.05, 0.1, 0.2, 0.4], (len(low), 1, 1, 1))
    return xp.where(xp.asarray(drawn), point, xp.clip(best, low, high))


def _lead(logits, y):
    """The margin of each example, less what rounding may explain: above 0 the attack succeeds."""
    return margin(logits, y, "none") - shared.rounding(logits)


def _better(old, new):
    """For each example, the point with the larger lead, and that lead."""
    (x, lead), (x_new, lead_new) = old, new
    xp, better = array_module(x), lead_new > lead
    return xp.where(per_example(better, x), x_new, x), xp.where(better, lead_new, lead)


def _climb(model, x, low, high, y, steps):
    """PGD with momentum, its steps shares of each pixel's range: the best point and its lead."""
    xp, before, best = array_module(x), x, None
    for t in range(steps):
        g, _, logits = input_gradient(model, x, y, loss=margin)
        here = x, _lead(logits, y)
        best = here if best is None else _better(best, here)
        size = (0.5 * (1 - t / steps) + 0.01) * (high - low)
        step = xp.clip(x + size * xp.sign(g), low, high)
        x, before = xp.clip(x + 0.75 * (step - x) + 0.25 * (x - before), low, high), x
    return _better(best, (x, _lead(inputs.all_logits(model, x), y)))


def _set_blocks(model, x, lead, low, high, y, queries, rng):
    """Set a block of pixels around a random one that matters to one end; keep what helps."""
    xp, (n, _, rows, columns) = array_module(x), x.shape
    matters = to_numpy(high > low).reshape(n, -1)
    for _ in range(queries):
        middle = (rng.random(matters.shape) * matters).argmax(1)
        reach = rng.integers(0, 3, (n, 1))  # blocks of 1, 3 and 5 pixels
        row = abs(np.arange(rows) - middle[:, None] // columns) <= reach
        column = abs(np.arange(columns) - middle[:, None] % columns) <= reach
        block = (row[:, :, None] & column[:, None, :])[:, None]  # (n, 1, H, W)
        end = xp.where(xp.asarray(rng.integers(0, 2, (n, 1, 1, 1)) == 1), high, low)
        tried = xp.where(xp.asarray(block), end, x)
        x, lead = _better((x, lead), (tried, _lead(inputs.all_logits(model, tried), y)))
    return x, lead
