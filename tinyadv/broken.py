"""Two defences that did not last, written to be read, and what undid each of them.

Both were published with good numbers, and both had only made the gradient useless:

    distillation   logits a hundred times too large: the softmax saturates, the gradient of the
                   cross-entropy is 0 in float32         undone by a loss of the logits
    squeezing      pixels rounded, then smoothed: a staircase, whose gradient is 0
                                                         undone by a gradient that leaves it out

    T   temperature: softmax(z / T) is soft for a large T
    z   (N, K)      logits
    p   (N, K)      probabilities, soft labels
    s   (N, …)      a squeezed image

A gradient of 0 does not mean that nothing is near. :mod:`tinyadv.checks` tells the two apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tinyadv import ops
from tinyadv.attacks.common import (
    all_logits,
    answers_only,
    check_counts,
    checked,
    per_example,
    ranked_others,
)
from tinyadv.attacks.gradient import pgd
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import Ball, Linf
from tinyadv.data import Dataset
from tinyadv.losses import cross_entropy, one_hot, soft_cross_entropy
from tinyadv.tensor import Array, Tensor, _value, defvjp, primitive
from tinyadv.train import fit

# ------------------------------------------------------------------------ defensive distillation


def at_temperature(model: Callable, temperature: float) -> Callable:
    """The model with logits z / T: the same answers, and softer probabilities for T > 1.

    Distillation trains a network in this form. Attacked in this form, a distilled network has
    gradients again, though nothing of it has changed.

    Raises
    ------
    ValueError
        If the temperature is not above 0.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be a number above 0, got {temperature}")
    return lambda x: model(x) / temperature


class Distillation:
    """The objective of a teacher, or of a student, at temperature T: for ``fit(objective=…)``.

    The cross-entropy of softmax(z / T), with the labels or with the teacher's probabilities, which
    are also taken at T. Papernot et al. (2016), "Distillation as a defense to adversarial
    perturbations against deep neural networks", section IV.

    In use T is 1. The student has learnt logits T times as large as usual, so its softmax is 1 and
    0, exactly, in float32, and the gradient of its cross-entropy is 0.

    Parameters
    ----------
    temperature : float
        T; the paper's is 100 for MNIST.
    teacher : callable, optional
        Returns logits. Without one the labels are learnt: that is how a teacher is made.

    Examples
    --------
    >>> from tinyadv import data, fit, models, optim
    >>> teacher = models.slides_cnn()
    >>> adam = optim.Adam(teacher.parameters())
    >>> history = fit(teacher, data.load("glyphs"), adam, 0, objective=Distillation(100))
    """

    def __init__(self, temperature: float = 100.0, teacher: Callable | None = None):
        at_temperature(teacher, temperature)  # an error now, not in the first step
        self.temperature, self.teacher = temperature, teacher

    def __call__(self, model: Callable, x: Array, y: Array) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the logits as they are in use, at T = 1: (N, K)."""
        logits = model(x)
        if self.teacher is None:
            p = one_hot(y, logits)
        else:  # asked with arrays: nothing of the teacher is learnt any more
            p = ops.softmax(_value(self.teacher(x)) / self.temperature, axis=1)
        return soft_cross_entropy(logits / self.temperature, p), logits


def distill(
    build: Callable,
    data: Dataset,
    optimizer: Callable,
    epochs: int,
    *,
    temperature: float = 100.0,
    checkpoint: str | os.PathLike | None = None,
    **options,
) -> tuple:
    """Train a teacher at temperature T, and a student of the same shape with its soft labels.

    Parameters
    ----------
    build : function
        Returns an untrained network; called twice.
    data : Dataset
    optimizer : function
        Makes the optimiser of the parameters: ``lambda parameters: RMSprop(parameters, lr=0.001)``.
    epochs : int
        For each of the two.
    temperature : float
    checkpoint : path, optional
        The states of the two trainings are kept in two files beside it, ``NAME-teacher.npz`` and
        ``NAME-student.npz`` if it is ``NAME.npz``.
    **options
        For :func:`tinyadv.fit`, such as ``batch_size`` and ``rng``.

    Returns
    -------
    teacher, student
    """

    def train(role, objective):
        if checkpoint is not None:  # in one file, the student would go on where the teacher ended
            path = Path(checkpoint)
            options["checkpoint"] = path.with_name(f"{path.stem}-{role}{path.suffix}")
        model = build()
        fit(model, data, optimizer(model.parameters()), epochs, objective=objective, **options)
        return model

    teacher = train("teacher", Distillation(temperature))
    return teacher, train("student", Distillation(temperature, teacher))


# ------------------------------------------------------------------------------ feature squeezing


def without_gradient(squeeze: Callable) -> Callable:
    """An operation that nothing comes back through: the slope of each step of a staircase is 0.

    Parameters
    ----------
    squeeze : function
        Takes an array (N, …), returns one of the same shape.

    Returns
    -------
    squeeze : function
        The same for arrays and tensors, (N, …) -> (N, …).
    """

    @primitive
    def staircase(x):
        return squeeze(x)

    defvjp(staircase, lambda g, y, x: 0 * g)
    return staircase


def straight_through(squeeze: Callable) -> Callable:
    """Forward the squeezer, backward nothing but a wire: BPDA with the identity.

    What a squeezer returns is nearly what it was given, so its gradient is taken to be the
    identity's. Athalye et al. (2018), "Obfuscated gradients give a false sense of security",
    section 4.1 (backward pass differentiable approximation).

    Parameters
    ----------
    squeeze : function
        As for :func:`without_gradient`; also one that :func:`bit_depth` or :func:`median` made.

    Returns
    -------
    squeeze : function
        The same for arrays and tensors, (N, …) -> (N, …).
    """

    @primitive
    def wire(x):
        return squeeze(x)

    defvjp(wire, lambda g, y, x: g)
    return wire


def bit_depth(bits: int) -> Callable:
    """A squeezer: pixels rounded to 2ᵇ values from 0 to 1.

    Xu et al. (2018), "Feature squeezing: detecting adversarial examples in deep neural networks",
    section III.A; with one bit an image is black and white.

    Raises
    ------
    ValueError
        If ``bits`` is no integer from 1 to 16.
    """
    check_counts(bits=bits)
    if bits > 16:
        raise ValueError(f"bits must be 16 or less, as float32 has few more, got {bits}")
    levels = 2**bits - 1
    return without_gradient(lambda x: array_module(x).rint(x * levels) / levels)


def median(size: int = 2) -> Callable:
    """A squeezer: each pixel becomes the median of a window, ``size`` × ``size``.

    Xu et al. (2018), section III.B; 2 × 2 was their choice for MNIST. At the edges the image is
    mirrored. Of an even number of pixels the upper of the two in the middle is taken. The same as
    ``scipy.ndimage.median_filter(x, (1, 1, size, size))``, on either backend. A median has a
    gradient, in fact, that of the pixel that it is; the filter in the paper has none to offer, nor
    has this one.

    Raises
    ------
    ValueError
        If ``size`` is no integer ≥ 1, or an image is smaller than that.
    """
    check_counts(size=size)

    def smooth(x):  # (N, C, H, W) -> (N, C, H, W)
        if x.ndim != 4 or min(x.shape[2:]) < size:
            raise ValueError(
                f"a median of {size} × {size} needs images (N, C, H, W) at least as large, "
                f"got shape {x.shape}"
            )
        xp = array_module(x)
        rows, columns = (_mirrored(length, size) for length in x.shape[2:])
        window = [x[:, :, xp.asarray(i)][:, :, :, xp.asarray(j)] for i in rows for j in columns]
        return xp.sort(xp.stack(window), axis=0)[size * size // 2]  # (size², N, C, H, W)

    return without_gradient(smooth)


def _mirrored(length: int, size: int) -> list[np.ndarray]:
    """For each place in the window, which pixel of a row stands there: size × (length,)."""
    at = [np.arange(length) + offset - size // 2 for offset in range(size)]
    at = [np.where(i < 0, -1 - i, i) for i in at]  # the edge itself is repeated: 1 0 | 0 1 2
    return [np.where(i >= length, 2 * length - 1 - i, i) for i in at]


def in_turn(*squeezers: Callable) -> Callable:
    """A squeezer that applies several, the first one first."""

    def squeeze(x):
        for each in squeezers:
            x = each(x)
        return x

    return squeeze


def squeezed(model: Callable, squeeze: Callable) -> Callable:
    """The model as it reads squeezed images: arrays or tensors (N, …) -> logits (N, K)."""
    return lambda x: model(squeeze(x))


class Detector:
    """Says whether an image was tampered with: squeezing then changes the answer.

    score(x) = max over the squeezers s of ‖softmax(f(x)) - softmax(f(s(x)))‖₁, from 0 to 2, and
    where it is above a threshold the image is refused. Xu et al. (2018), section V.

    Parameters
    ----------
    model : callable
        Returns logits.
    squeezers : dict
        Name → squeezer.
    threshold : float
        Set by :meth:`calibrate`; until then no image is refused.

    Raises
    ------
    ValueError
        If there are no squeezers.
    """

    def __init__(self, model: Callable, squeezers: Mapping[str, Callable], threshold: float = 2.0):
        if not squeezers:
            raise ValueError("a detector needs one squeezer at least, got none")
        self.model, self.squeezers, self.threshold = model, dict(squeezers), threshold

    def calibrate(self, x: Array, false_positives: float = 0.05) -> Detector:
        """Set the threshold so that this share of the clean images is refused, at most.

        Parameters
        ----------
        x : (N, …)
            Images that the detector is not judged by later.
        false_positives : float

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the share is not from 0 to 1, or there are no images.
        """
        if not 0 <= false_positives <= 1:
            raise ValueError(f"false_positives must be a share from 0 to 1, got {false_positives}")
        if len(x) == 0:
            raise ValueError("calibrate needs some clean images, got none")
        scores = np.sort(to_numpy(self.scores(x)))[::-1]
        may_be_refused = int(false_positives * len(x))
        # What lies above the threshold is refused: the scores before this one, at most.
        self.threshold = float(scores[may_be_refused]) if may_be_refused < len(x) else -1.0
        return self

    def scores(self, x: Array) -> Array:
        """(N, …) -> (N,)"""

        def probabilities(x):
            return ops.softmax(all_logits(self.model, x), axis=1)

        p, xp = probabilities(x), array_module(x)
        moved = [abs(p - probabilities(s(x))).sum(1) for s in self.squeezers.values()]
        return xp.stack(moved).max(0)

    def refuses(self, x: Array) -> Array:
        """Which images are taken for adversarial ones: (N, …) -> (N,) of bool."""
        return self.scores(x) > self.threshold


def evade(
    detector: Detector,
    x: Array,
    y: Array | None = None,
    *,
    ball: Ball = Linf(0.3),
    step_size: float | None = None,
    steps: int = 40,
    targets: int = 3,
    rng: np.random.Generator | int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Array:
    """An attack that knows the detector: the image, and all squeezed versions of it, shall agree.

    The detector compares answers. So one wrong class is raised for the image and its squeezed
    versions alike, with gradients straight through the squeezers: when all are sure of it, there
    is nothing to be seen. After He et al. (2017), "Adversarial example defenses: ensembles of weak
    defenses are not strong", who attacked a detector and its network together.

    Parameters
    ----------
    detector : Detector
    x, y, ball, step_size, steps, rng, workers, progress
        As for :func:`tinyadv.attacks.pgd`.
    targets : int
        How many wrong classes are tried, those with the largest logits at ``x``.

    Returns
    -------
    x_adv : (N, …)
        For each image the first that is misread and not refused; else the first that is misread;
        else the first.
    """
    model, views = detector.model, [straight_through(s) for s in detector.squeezers.values()]
    x, y, _ = checked(answers_only(model), x, y)
    check_counts(targets=targets)
    xp, rng = array_module(x), np.random.default_rng(rng)
    logits = all_logits(model, x)
    classes, others = logits.shape[1], ranked_others(logits, y)[:, :targets]  # (N, targets)

    def all_views(x):  # (n, …) -> (n, (1 + S) K)
        return ops.concatenate([model(x), *(model(view(x)) for view in views)], axis=1)

    def mean_loss(logits, labels, reduction):
        parts = [logits[:, i : i + classes] for i in range(0, logits.shape[1], classes)]
        return sum(cross_entropy(z, labels, reduction) for z in parts) / len(parts)

    found, rank = x, xp.full(y.shape, -1)
    for j in range(others.shape[1]):
        x_adv = pgd(
            all_views, x, y, ball=ball, step_size=step_size, steps=steps, loss=mean_loss,
            target=others[:, j], rng=rng, workers=workers, progress=progress,
        )  # fmt: skip
        wrong = all_logits(model, x_adv).argmax(1) != y
        unnoticed = ~detector.refuses(x_adv)
        now = xp.where(wrong, 1 + unnoticed, 0)  # 2: what is looked for, 1: misread, 0: neither
        better = now > rank
        found = xp.where(per_example(better, x), x_adv, found)
        rank = xp.where(better, now, rank)
    return found
