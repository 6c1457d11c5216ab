"""Is this network robust, or is its gradient of no use? Checks for *gradient masking*.

An attack that fails says one of two things: that there is nothing to find within ε, or that the
attack looked in the wrong place. Many defences that were published with good numbers had only made
the gradient useless. Each of these symptoms gives such a defence away:

    no gradient      the model is no chain of operations that a gradient goes back through
    zero gradients   the loss is flat, exactly or nearly, where the images are
    random answers   the same image twice gets two answers
    probabilities    the model ends in a softmax, behind which gradients vanish
    more steps       a longer attack finds less than a shorter one
    larger ε         an attack in a larger ball finds less than one in a smaller ball
    unbounded        an attack that may change everything leaves some images right
    black box        a search with no gradient finds what the gradient does not
    transfer         images made on another network do better than those made on this one

Athalye, Carlini & Wagner (2018), "Obfuscated gradients give a false sense of security", section
3.1; Carlini et al. (2019), "On evaluating adversarial robustness"; Croce & Hein (2020), "Reliable
evaluation of adversarial robustness". :func:`masking` runs all of them. That none fires is no
proof: only an attack made for the defence, or a proof (:mod:`tinyadv.verify`), says more.

How two attacks are compared
----------------------------
Both get the same images, those that the model reads rightly. Let b be those that fool it only in
the attack that should be the weaker one, and c those that do so only in the other one. Were both
equally good, each of the b + c images would fall to either side like a coin (McNemar's test). It is
an alarm if a coin falls so often on the wrong side with a probability below 0.01 (0.005 for each of
two comparisons in one check), and if b - c is more than 2 % of the images, since a difference as
small as that is common between sound attacks. So less than seven images that tell the two attacks
apart are never an alarm, and a small sample can miss a masked gradient, but hardly accuse a sound
one.
"""

from __future__ import annotations

import dataclasses
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tinyadv.attacks.blackbox import square, transfer
from tinyadv.attacks.common import (
    AttackWarning,
    all_logits,
    answers_only,
    asked_again,
    by_pieces,
    check_answers,
    check_ball,
    check_counts,
    checked,
    input_gradient,
    is_fooled,
    seem_probabilities,
)
from tinyadv.attacks.gradient import pgd
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import L2, Ball, Linf
from tinyadv.losses import cross_entropy
from tinyadv.tensor import Array, Tensor

LEVEL = 0.01  # how improbable a difference must be to be an alarm
SLACK = 0.02  # and how large, as a share of the images
TINY = 1e-30  # gradients below are as good as zero: float32 ends at 1e-38, and products come before


class MaskingWarning(AttackWarning):
    """The network may look more robust than it is."""


@dataclass(frozen=True)
class Finding:
    """What one check saw.

    Attributes
    ----------
    check : str
        Its name.
    measured : str
        The numbers.
    alarm : bool or None
        Whether the gradient seems to be masked; None if the check could not be made.
    explanation : str
        What that means, and, after an alarm, what to do.
    """

    check: str
    measured: str
    alarm: bool | None
    explanation: str

    @property
    def verdict(self) -> str:
        """``"ok"``, ``"ALARM"`` or ``"not run"``."""
        return {True: "ALARM", False: "ok", None: "not run"}[self.alarm]


@dataclass(frozen=True)
class Report:
    """What all checks saw; ``print`` shows it as a table."""

    findings: tuple[Finding, ...]

    @property
    def alarms(self) -> tuple[str, ...]:
        """The names of the checks that fired."""
        return tuple(finding.check for finding in self.findings if finding.alarm)

    @property
    def masked(self) -> bool:
        """Whether any of them did."""
        return bool(self.alarms)

    def __getitem__(self, check: str) -> Finding:
        """The finding of a check, by its name."""
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(f"no check {check!r}, only {[f.check for f in self.findings]}")

    def __str__(self) -> str:
        rows = [("check", "measured", "verdict")]
        rows += [(f.check, f.measured, f.verdict) for f in self.findings]
        wide = [max(len(row[i]) for row in rows) for i in range(3)]
        rows.insert(1, tuple("-" * width for width in wide))
        lines = [
            f"{check:{wide[0]}}  {measured:{wide[1]}}  {verdict}".rstrip()
            for check, measured, verdict in rows
        ]
        for finding in self.findings:
            if finding.alarm is not False:
                text = f"{finding.check}: {finding.explanation}"
                lines += ["", *textwrap.wrap(text, 100, subsequent_indent="    ")]
        if not self.masked:
            lines += ["", "No sign of masking. That is no proof of robustness."]
        return "\n".join(lines)

    __repr__ = __str__


def masking(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    ball: Ball = Linf(0.3),
    sources: Callable | Sequence[Callable] = (),
    steps: int = 40,
    queries: int = 500,
    loss: Callable = cross_entropy,
    rng: np.random.Generator | int = 0,
    workers: int | None = None,
) -> Report:
    """All checks of this module, in one report.

    Parameters
    ----------
    model : callable
        Takes images, arrays or tensors (n, …), and returns logits (n, K). It may be anything that
        answers arrays with arrays: that it has no gradient is then what the report says first.
    x : (N, …) of a floating-point type
        Images, pixel values 0–1; some hundreds, so that differences show.
    y : (N,) integers, optional
        Their labels; by default the model's own predictions. Images that are misread as they are
        are left out.
    ball : Ball
        In which the robustness is claimed, ε in pixel values 0–1.
    sources : callable, or sequence of callables
        Other networks for the same task, best one trained in the ordinary way and one robustly.
    steps : int
        Of PGD, whose result is what the others are compared with.
    queries : int
        Of the Square Attack, for each image.
    loss : callable
        What the gradients are of. Take the loss of the attack whose result you want to believe.
    rng : numpy.random.Generator or int
    workers : int, optional
        Threads that share the images; the result does not depend on it.

    Returns
    -------
    Report

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, ε is infinite, there is NaN among the model's logits, or
        it reads none of the images rightly.

    Warns
    -----
    MaskingWarning
        For each check that fires, with the likely mistake and what to do.

    Examples
    --------
    >>> from tinyadv import models
    >>> x = np.random.default_rng(0).random((20, 1, 28, 28))
    >>> masking(models.slides_cnn(), x, steps=5, queries=20).alarms
    ()
    """
    check_ball(ball)
    if not ball.epsilon < np.inf:
        raise ValueError("masking needs a finite ε, the one at which robustness is claimed")
    check_counts(steps=steps, queries=queries)
    sources = [sources] if callable(sources) else list(sources)
    rng = np.random.default_rng(rng)
    with warnings.catch_warnings():  # what the attacks warn of is what is looked at here
        warnings.simplefilter("ignore", AttackWarning)
        x, y = _rightly_read(model, x, y)
        shared = {"steps": steps, "loss": loss, "rng": rng, "workers": workers}
        first = zero_gradients(model, x, y, loss=loss, workers=workers)
        findings = [first, random_answers(model, x), probabilities(model, x)]
        if first.check == "no gradient":
            direct = x  # the attack that cannot be made has changed nothing
            findings += [
                Finding(name, "–", None, "needs a gradient, and there is none to follow")
                for name in ("more steps", "larger ε", "unbounded")
            ]
        else:
            direct = pgd(model, x, y, ball=ball, **shared)
            findings.append(more_steps(model, x, y, ball=ball, direct=direct, **shared))
            findings.append(larger_epsilon(model, x, y, ball=ball, direct=direct, **shared))
            findings.append(unbounded(model, x, y, **shared))
        shared |= {"ball": ball, "direct": direct}
        findings.append(black_box(model, x, y, queries=queries, **shared))
        if sources:
            findings.append(transferred(model, x, y, sources=sources, **shared))
    for finding in findings:
        _warn(finding, stacklevel=3)
    return Report(tuple(findings))


# ------------------------------------------------------------------------------------ at the images


def zero_gradients(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    loss: Callable = cross_entropy,
    workers: int | None = None,
) -> Finding:
    """For how many images the gradient of the loss is zero, so that no attack can follow it.

    In float32 the softmax of logits that lie more than 104 apart is 1 and 0, exactly; the gradient
    of the cross-entropy then is 0. Rounding has a slope of 0 as well, and a model that computes
    with arrays has no gradient at all: then the finding is called ``"no gradient"``. An alarm if
    the gradient's largest number is below 1e-30 for more than 1 % of the images and more than two
    of them, or not finite for any.

    Parameters
    ----------
    model, x, y, loss, workers
        As for :func:`masking`.
    """
    x, y = _rightly_read(model, x, y)
    n, problem = len(x), _no_tensor(model, x)
    if problem:
        return _warn(Finding("no gradient", problem, True, NO_GRADIENT))

    def largest(x, y):
        g, _, _ = input_gradient(model, x, y, loss=loss)
        return abs(g).reshape(len(x), -1).max(1)  # (n, …) -> (n,)

    size = to_numpy(by_pieces(largest, x, y, workers=workers)).astype(float)
    zero, tiny, broken = (
        int(count.sum()) for count in (size == 0, (size > 0) & (size < TINY), ~np.isfinite(size))
    )
    if broken:
        measured = f"NaN or infinite for {broken} of {n} images"
        return _warn(Finding("no gradient", measured, True, NOT_FINITE))
    measured = f"{zero} of {n} images exactly 0, {tiny} nearly"
    alarm = zero + tiny > max(2, 0.01 * n)
    return _warn(Finding("zero gradients", measured, alarm, ZERO if alarm else FLAT_NOWHERE))


def random_answers(model: Callable, x: Array) -> Finding:
    """Whether the same images get other logits when the model is asked again.

    An alarm if a logit changes by more than a thousandth of the largest one.

    Parameters
    ----------
    model, x
        As for :func:`masking`.

    Raises
    ------
    ValueError
        If there is NaN among the model's logits.
    """
    alarm, change, size = asked_again(answers_only(model), x)
    measured = f"logits up to {size:.3g} change by {change:.2g}"
    return _warn(Finding("random answers", measured, alarm, RANDOM if alarm else "always the same"))


def probabilities(model: Callable, x: Array) -> Finding:
    """Whether what the model returns are probabilities: ≥ 0, and 1 together, for every image.

    Parameters
    ----------
    model, x
        As for :func:`masking`.
    """
    logits = all_logits(answers_only(model), x)
    alarm = seem_probabilities(logits)
    measured = f"from {float(logits.min()):.3g} to {float(logits.max()):.3g}"
    return _warn(Finding("probabilities", measured, alarm, SOFTMAX if alarm else "logits"))


# ------------------------------------------------------------------------- attacks against attacks


def more_steps(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    ball: Ball = Linf(0.3),
    steps: int = 40,
    loss: Callable = cross_entropy,
    direct: Array | None = None,
    rng: np.random.Generator | int = 0,
    workers: int | None = None,
) -> Finding:
    """Whether one step, or a quarter of the steps, finds more than all of them.

    Parameters
    ----------
    model, x, y, ball, steps, loss, rng, workers
        As for :func:`masking`.
    direct : (N, …), optional
        The result of an attack on all of ``x``, to be compared instead of that of PGD.
    """
    x, y, direct, rng = _start(model, x, y, direct, rng)
    shared = {"ball": ball, "loss": loss, "workers": workers}
    full = _fooled(model, _direct(model, x, y, direct, steps, rng, shared), y)
    if steps == 1:
        return Finding("more steps", "–", None, "there is no less than one step")
    counts = sorted({1, max(1, steps // 4)})
    pairs = []
    for count in counts:
        # A single step goes from x itself and as far as ε: that is FGSM.
        x_adv = pgd(model, x, y, steps=count, random_start=count > 1, rng=rng, **shared)
        pairs.append((f"{count} of {steps} steps" if count > 1 else "one step",
                      _fooled(model, x_adv, y), full))  # fmt: skip
    return _warn(_compare("more steps", pairs, "all steps", STEPS, "more steps find more"))


def larger_epsilon(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    ball: Ball = Linf(0.3),
    steps: int = 40,
    loss: Callable = cross_entropy,
    direct: Array | None = None,
    rng: np.random.Generator | int = 0,
    workers: int | None = None,
) -> Finding:
    """Whether PGD finds more in a ball of half the radius, or less in one of twice the radius.

    Parameters as for :func:`more_steps`.
    """
    x, y, direct, rng = _start(model, x, y, direct, rng)
    shared = {"loss": loss, "workers": workers}
    full = _fooled(model, _direct(model, x, y, direct, steps, rng, {"ball": ball, **shared}), y)

    def at(share):
        epsilon = share * ball.epsilon
        epsilon = min(1.0, epsilon) if isinstance(ball, Linf) else epsilon
        around = dataclasses.replace(ball, epsilon=epsilon)
        return _fooled(model, pgd(model, x, y, ball=around, steps=steps, rng=rng, **shared), y)

    pairs = [("ε/2", at(0.5), full), ("ε", full, at(2))]
    return _warn(_compare("larger ε", pairs, "twice that", EPSILON, "a larger ε finds more"))


def unbounded(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    steps: int = 40,
    loss: Callable = cross_entropy,
    rng: np.random.Generator | int = 0,
    workers: int | None = None,
) -> Finding:
    """Whether PGD that may change every pixel as it likes leaves more right than guessing does.

    In ``Linf(1)``, from x. With nothing in its way it should fool the model always; an alarm only
    if more than 1/K of the images stand, and with a probability below 0.01 if each stood with
    probability 1/K.

    Parameters
    ----------
    model, x, y, steps, loss, rng, workers
        As for :func:`masking`.
    """
    x, y, _, rng = _start(model, x, y, None, rng)
    x_adv = pgd(
        model, x, y, ball=Linf(1.0), steps=steps, random_start=False, loss=loss, rng=rng,
        workers=workers,
    )  # fmt: skip
    logits = all_logits(answers_only(model), x[:1])
    n, stands, chance = len(x), int((~_fooled(model, x_adv, y)).sum()), 1 / logits.shape[1]
    alarm = stands > 0 and _at_least(stands, n, chance) < LEVEL
    measured = f"{stands / n:.1%} right at ε = 1, guessing {chance:.1%}"
    explanation = UNBOUNDED if alarm else "no image is out of reach"
    return _warn(Finding("unbounded", measured, alarm, explanation))


def black_box(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    ball: Ball = Linf(0.3),
    steps: int = 40,
    queries: int = 500,
    loss: Callable = cross_entropy,
    direct: Array | None = None,
    rng: np.random.Generator | int = 0,
    workers: int | None = None,
) -> Finding:
    """Whether the Square Attack, which asks for answers only, finds more than PGD.

    Parameters
    ----------
    model, x, y, ball, steps, loss, direct, rng, workers
        As for :func:`more_steps`.
    queries : int
        Of the Square Attack, for each image.
    """
    x, y, direct, rng = _start(model, x, y, direct, rng)
    if x.ndim != 4 or not isinstance(ball, Linf | L2):
        reason = "the Square Attack is for images (N, C, H, W), in Linf and L2"
        return Finding("black box", "–", None, reason)
    shared = {"ball": ball, "loss": loss, "workers": workers}
    full = _fooled(model, _direct(model, x, y, direct, steps, rng, shared), y)
    x_adv = square(model, x, y, ball=ball, queries=queries, rng=rng, workers=workers)
    pairs = [(f"Square, {queries} queries", _fooled(model, x_adv, y), full)]
    fine = "gradients find at least as much as a search without"
    return _warn(_compare("black box", pairs, "the gradient", BLACK_BOX, fine))


def transferred(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    sources: Callable | Sequence[Callable],
    ball: Ball = Linf(0.3),
    steps: int = 40,
    loss: Callable = cross_entropy,
    direct: Array | None = None,
    rng: np.random.Generator | int = 0,
    workers: int | None = None,
) -> Finding:
    """Whether images that PGD made on other networks fool this one more often than its own.

    Parameters
    ----------
    model, x, y, ball, steps, loss, direct, rng, workers
        As for :func:`more_steps`.
    sources : callable, or sequence of callables
        Networks for the same task. The worst of their images counts.
    """
    x, y, direct, rng = _start(model, x, y, direct, rng)
    shared = {"ball": ball, "loss": loss, "workers": workers}
    full = _fooled(model, _direct(model, x, y, direct, steps, rng, shared), y)
    x_adv = transfer(model, x, y, sources=sources, steps=steps, rng=rng, **shared)
    pairs = [("from other networks", _fooled(model, x_adv, y), full)]
    fine = "what is made on the network itself works best"
    return _warn(_compare("transfer", pairs, "its own", TRANSFER, fine))


# ------------------------------------------------------------------------------------- what it says

NO_GRADIENT = (
    "the model does not return a Tensor for a Tensor, so nothing was attacked with a gradient. "
    "Write it with tinyadv.ops, or put a differentiable stand-in in the place of the part that "
    "has no gradient, for the backward pass only (BPDA, broken.straight_through)."
)
NOT_FINITE = (
    "an attack that follows such a gradient goes nowhere. Look for a division by zero, or a "
    "logarithm or a root of zero, in the model; attack with a loss of the logits."
)
ZERO = (
    "an attack that follows a gradient of zero stays where it is. If the softmax is saturated "
    "(logits far apart), attack the logits: the margin or the DLR loss, or logits divided by a "
    "number. If the model rounds or quantises, let the gradient pass straight through (BPDA, "
    "broken.straight_through)."
)
FLAT_NOWHERE = "every image has a gradient to follow"
RANDOM = (
    "an attack sees another network at each step, and what fools the model once need not do so "
    "again. Attack the average answer: the gradient of a mean over many draws (EOT), and count an "
    "image as robust only if it is read rightly in all of many draws."
)
SOFTMAX = (
    "the model ends in a softmax, and a loss that takes a softmax of that is nearly flat where the "
    "network is sure. Take the softmax off and attack the logits."
)
STEPS = (
    "a longer attack should find at least as much. Gradients that change from one point to the "
    "next lead it astray: take the gradient's mean over noise (EOT), smaller steps, or a "
    "differentiable stand-in (BPDA). A network trained on single steps may have bent the loss "
    "around them."
)
EPSILON = (
    "the larger ball has all of the smaller one in it. The gradient leads to points that are worse "
    "than some that are nearer: check the step size, and take more steps and restarts, another "
    "loss (margin, DLR), or a differentiable stand-in (BPDA)."
)
UNBOUNDED = (
    "with every pixel free, any image can become one of another class: it is the attack that "
    "fails. Find out why before you believe what it says about a smaller ε: attack the logits "
    "(margin or DLR loss), take more steps, or let the gradient pass straight through what has "
    "none (BPDA)."
)
BLACK_BOX = (
    "a search with answers alone knows less than an attack with gradients, and should find less. "
    "The gradient is masked, or the attack is set up badly: try the margin or the DLR loss, BPDA, "
    "more steps and restarts, and attacks.auto_attack."
)
TRANSFER = (
    "images made on other networks know nothing of this one, and should do worse. The gradient of "
    "this network is masked: attack with the others' gradients, with BPDA, or with the margin loss."
)


def _rightly_read(model, x, y, direct=None) -> tuple:
    """x, y and, if given, ``direct``, for the images that the model reads rightly."""
    ask = answers_only(model)
    x, y, _ = checked(ask, x, y)
    logits = all_logits(ask, x)
    check_answers(logits)
    right = np.flatnonzero(to_numpy(logits.argmax(1) == y))
    if not len(right):
        raise ValueError(
            f"the model reads none of the {len(x)} images rightly, so there is nothing to attack: "
            "check that the labels belong to the images, and that the model is trained"
        )
    if direct is not None and (type(direct) is not type(x) or direct.shape != x.shape):
        kind = type(direct)
        raise ValueError(
            f"direct must be the result of an attack on all images, {x.shape}, as x is; "
            f"got {getattr(direct, 'shape', '')} of {kind.__module__}.{kind.__name__}"
        )
    right = array_module(x).asarray(right)
    return (x[right], y[right]) if direct is None else (x[right], y[right], direct[right])


def _start(model, x, y, direct, rng) -> tuple:
    """The images that are read rightly, their labels, ``direct`` for them, and a generator."""
    parts = _rightly_read(model, x, y, direct)
    return *parts[:2], parts[2] if direct is not None else None, np.random.default_rng(rng)


def _direct(model, x, y, direct, steps, rng, shared) -> Array:
    return pgd(model, x, y, steps=steps, rng=rng, **shared) if direct is None else direct


def _fooled(model, x_adv, y) -> np.ndarray:
    """Which images are misread, when the model is asked again: (N,) of bool, on the host."""
    return to_numpy(is_fooled(all_logits(answers_only(model), x_adv), y))


def _no_tensor(model, x) -> str:
    """What is wrong with the model's answer to a tensor; nothing if it is a tensor."""
    try:
        answer = model(Tensor(x[:1]))
    except (TypeError, AttributeError) as error:  # it may not know what a tensor is
        return f"a tensor makes it raise {type(error).__name__}"
    return "" if isinstance(answer, Tensor) else f"a tensor gets {type(answer).__name__} back"


def _compare(check, pairs, other, warning, fine) -> Finding:
    """The finding of McNemar's test for (name, fooled by the weaker, fooled by the stronger)."""
    alarms, measured = [], []
    for name, weak, strong in pairs:
        b, c = int((weak & ~strong).sum()), int((strong & ~weak).sum())
        # Several questions at once: each must be the more improbable.
        sure = _at_least(b, b + c, 0.5) < LEVEL / len(pairs)
        alarms.append(sure and b - c > SLACK * len(weak))
        measured.append(f"{name} {weak.mean():.1%}")
    measured.append(f"{other} {pairs[-1][2].mean():.1%}")
    alarm = any(alarms)
    return Finding(check, "fooled: " + ", ".join(measured), alarm, warning if alarm else fine)


def _at_least(k: int, n: int, p: float) -> float:
    """The probability of k or more of n, each with probability p."""
    from scipy.special import bdtrc  # half a second to import, so not before it is needed

    return 1.0 if k == 0 else float(bdtrc(k - 1, n, p))


def _warn(finding: Finding, stacklevel: int = 3) -> Finding:
    if finding.alarm:
        text = f"{finding.check}: {finding.measured}. Masked gradients? {finding.explanation}"
        warnings.warn(text, MaskingWarning, stacklevel=stacklevel)
    return finding
