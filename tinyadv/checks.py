"""Is this network robust, or is its gradient of no use? Checks for *gradient masking*.

An attack that fails means one of two things: there is no adversarial example within ε, or the
attack did not find it. Many published defenses had only made the gradient useless. Each of these
symptoms gives such a defense away:

    no gradient      the model is not a chain of differentiable operations
    zero gradients   the loss is flat, exactly or almost, at the images
    random answers   the same image gets other logits when the model is queried again
    probabilities    the model ends in a softmax, behind which gradients vanish
    more steps       a longer attack finds less than a shorter one
    larger ε         an attack in a larger ball finds less than one in a smaller ball
    unbounded        an attack that may change every pixel at will fails for some images
    black box        a query-only attack finds what the gradient does not
    transfer         adversarial examples of another network work better than the network's own

Athalye, Carlini & Wagner (2018), "Obfuscated gradients give a false sense of security", section
3.1; Carlini et al. (2019), "On evaluating adversarial robustness"; Croce & Hein (2020), "Reliable
evaluation of adversarial robustness". :func:`masking` runs all of them. If none of them raises an
alarm, this does not prove robustness: only an attack designed for the defense, or a proof
(:mod:`tinyadv.verify`), says more.

How two attacks are compared
----------------------------
Both attack the same images, those that the model classifies correctly. Let b be the number of
images that fool it only in the attack that should be weaker, and c the number that do so only in
the other attack. If both attacks were equally good, each of the b + c images would belong to either
side with probability 1/2 (McNemar's test). It is an alarm if so large a b has a probability below
0.01 (0.005 for each of two comparisons in one check), and if b - c is more than 2 % of the images,
because differences as small as that are common between sound attacks. Fewer than seven images that
tell the two attacks apart are therefore never an alarm: a small sample can miss a masked gradient,
but will rarely raise a false alarm.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tinyadv import inputs
from tinyadv.attacks.blackbox import square, transfer
from tinyadv.attacks.gradient import pgd
from tinyadv.attacks.shared import QueryOnly, input_gradient, is_fooled, pieces
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import L2, Ball, Linf
from tinyadv.inputs import Model
from tinyadv.losses import Loss, cross_entropy
from tinyadv.parallel import by_examples, may_cut
from tinyadv.tensor import RNG, Array, Tensor

LEVEL = 0.01  # how improbable a difference must be to be an alarm
SLACK = 0.02  # and how large, as a share of the images
TINY = 1e-30  # smaller gradients count as zero: float32 ends at 1e-38, and products come before


class MaskingWarning(inputs.AttackWarning):
    """The network may look more robust than it is."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

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
    """The results of all checks; ``print`` shows them as a table."""

    findings: tuple[Finding, ...]

    @property
    def alarms(self) -> tuple[str, ...]:
        """The names of the checks that raised an alarm."""
        return tuple(finding.check for finding in self.findings if finding.alarm)

    @property
    def masked(self) -> bool:
        """Whether any check raised an alarm."""
        return bool(self.alarms)

    def __getitem__(self, check: str) -> Finding:
        """The finding of a check, by its name."""
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(f"no check {check!r}, only {[f.check for f in self.findings]}")

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("check", "measured", "verdict")]
        rows += [(f.check, f.measured, f.verdict) for f in self.findings]
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, tuple("-" * width for width in wide))
        lines = ["  ".join(map(str.ljust, row, wide)).rstrip() for row in rows]
        for finding in self.findings:
            if finding.alarm is not False:
                text = f"{finding.check}: {finding.explanation}"
                lines += ["", *textwrap.wrap(text, 100, subsequent_indent="    ")]
        if not self.masked:
            lines += ["", "No sign of masking. This is not a proof of robustness."]
        return "\n".join(lines)

    __repr__ = __str__


@dataclass(frozen=True)
class Case:
    """The images of the checks, and the attack that the other attacks are compared with.

    A check accepts it instead of ``x``. It then takes the settings of the attack from it as well,
    and checks nothing again.

    Attributes
    ----------
    model : callable
    examples : Checked
        The images that the model classifies correctly, (N, …), and their labels, (N,).
    logits : (N, K)
        The model's logits for them.
    attack : dict
        The settings of PGD: ``ball``, ``steps``, ``loss``, and ``rng`` as a generator.
    known : (N,) bool, on the host, optional
        Which images are fooled by the attack that the others are compared with, if this is not PGD.
    """

    model: Model
    examples: inputs.Checked
    logits: Array
    attack: dict
    known: np.ndarray | None = None

    def fooled_by(self, x_adv: Array) -> np.ndarray:
        """Which images the model misclassifies when it is given arrays: (N,) bool, on the host."""
        return to_numpy(is_fooled(inputs.all_logits(QueryOnly(self.model), x_adv), self.examples.y))

    def fooled_by_pgd(self, **changes: Any) -> np.ndarray:
        """The same after PGD, with other settings where ``changes`` has them."""
        return self.fooled_by(pgd(self.model, self.examples, **{**self.attack, **changes}))

    @cached_property
    def fooled(self) -> np.ndarray:
        """The same after the attack that the others are compared with, which runs once."""
        return self.fooled_by_pgd() if self.known is None else self.known


def the_case(
    model: Model, x: Array | Case, y: Array | None = None, *,
    ball: Ball = Linf(0.3), steps: int = 40, loss: Loss = cross_entropy,
    rng: RNG = 0, direct: Array | None = None,
) -> Case:  # fmt: skip
    """The correctly classified images, and the attack that the others are compared with.

    Parameters
    ----------
    model, x, y, ball, steps, loss, rng
        As for :func:`masking`.
    direct : (N, …), optional
        The result of an attack on all of ``x``, to be compared instead of the result of PGD.

    Raises
    ------
    ValueError
        If the model does not classify any image correctly, ``direct`` is not like ``x``, and for
        the reasons of :func:`tinyadv.inputs.checked_logits`.
    """
    if isinstance(x, Case):
        return x
    (x, y, _), logits = inputs.checked_logits(model, x, y)
    correct = np.flatnonzero(to_numpy(logits.argmax(1) == y))
    if not len(correct):
        raise ValueError(
            f"the model classifies none of the {len(x)} images correctly: check that the labels "
            "belong to the images, and that the model is trained"
        )
    if direct is not None and (type(direct) is not type(x) or direct.shape != x.shape):
        kind = type(direct)
        got = f"{getattr(direct, 'shape', '')} of {kind.__module__}.{kind.__name__}"
        raise ValueError(f"direct must be the result of an attack on x, {x.shape}, got {got}")
    correct = array_module(x).asarray(correct)
    x, y = x[correct], y[correct]
    # The logits of a model that looks at the whole batch depend on the images beside them.
    logits = logits[correct] if may_cut(model) else inputs.all_logits(model, x)
    attack = {"ball": ball, "steps": steps, "loss": loss, "rng": np.random.default_rng(rng)}
    case = Case(model, inputs.Checked(x, y), logits, attack)
    if direct is None:
        return case
    return dataclasses.replace(case, known=case.fooled_by(direct[correct]))


def masking(
    model: Model, x: Array, y: Array | None = None, *,
    ball: Ball = Linf(0.3), sources: Model | Sequence[Model] = (), steps: int = 40,
    queries: int = 500, loss: Loss = cross_entropy, rng: RNG = 0,
) -> Report:  # fmt: skip
    """All checks of this module, in one report.

    Parameters
    ----------
    model : callable
        Takes images, arrays or tensors (n, …), and returns logits (n, K). It may be any function
        from arrays to arrays: the first finding is then that it has no gradient.
    x : (N, …) of a floating-point type
        Images, pixel values 0–1; some hundreds, so that differences become visible.
    y : (N,) integers, optional
        Their labels; by default the model's own predictions. Images that are misclassified without
        any attack are left out.
    ball : Ball
        The threat model in which robustness is claimed, ε in pixel values 0–1.
    sources : callable, or sequence of callables
        Other networks for the same task, ideally one with standard and one with robust training.
    steps : int
        Steps of PGD, with whose result the other attacks are compared.
    queries : int
        Queries of the Square Attack, for each image.
    loss : callable
        The loss that PGD raises: take the loss of the attack whose result you want to check.
    rng : numpy.random.Generator or int

    Returns
    -------
    Report

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, ε is infinite, a logit is not finite, or the model does
        not classify any of the images correctly.

    Warns
    -----
    MaskingWarning
        For each check that raises an alarm, with the likely mistake and what to do.

    Examples
    --------
    >>> from tinyadv import models
    >>> x = np.random.default_rng(0).random((20, 1, 28, 28))
    >>> masking(models.slides_cnn(), x, steps=5, queries=20).alarms
    ()
    """
    inputs.check_ball(ball)
    if not ball.epsilon < np.inf:
        raise ValueError("masking needs a finite ε, the one at which robustness is claimed")
    inputs.check_counts(steps=steps, queries=queries)
    sources = [sources] if callable(sources) else list(sources)
    with inputs.quiet():  # the checks cover what the attacks would warn of
        case = the_case(model, x, y, ball=ball, steps=steps, loss=loss, rng=rng)
        first = zero_gradients(model, case)
        findings = [first, random_answers(model, case), probabilities(model, case)]
        if first.check == "no gradient":
            # The attack that cannot be made has changed nothing.
            case = dataclasses.replace(case, known=np.zeros(len(case.logits), bool))
            reason = "needs a gradient, and the model has none"
            names = ("more steps", "larger ε", "unbounded")
            findings += [Finding(name, "–", None, reason) for name in names]
        else:
            findings += [check(model, case) for check in (more_steps, larger_epsilon, unbounded)]
        findings.append(black_box(model, case, queries=queries))
        if sources:
            findings.append(transferred(model, case, sources=sources))
    for finding in findings:
        _warn(finding)
    return Report(tuple(findings))


# ------------------------------------------------------------------------------------ at the images


def zero_gradients(
    model: Model, x: Array, y: Array | None = None, *, loss: Loss = cross_entropy
) -> Finding:
    """For how many images the gradient of the loss is zero, so that no attack can follow it.

    In float32 the softmax of logits that lie more than 104 apart is exactly 1 and 0; the gradient
    of the cross-entropy is then 0. Rounding has a slope of 0 as well, and a model that computes
    with arrays has no gradient at all: the finding is then called ``"no gradient"``. It is an alarm
    if the largest entry of the gradient is below 1e-30 for more than 1 % of the images and more
    than two of them, or not finite for any.

    Parameters
    ----------
    model, x, y, loss
        As for :func:`masking`.
    """
    case = the_case(model, x, y, loss=loss)
    problem = _no_tensor(model, case.examples.x)
    if problem:
        return _warn(Finding("no gradient", problem, True, NO_GRADIENT))

    def largest(x, y):
        g, _, _ = input_gradient(model, x, y, loss=case.attack["loss"])
        return abs(g).reshape(len(x), -1).max(1)  # (n, …) -> (n,)

    x, y, _ = case.examples
    n = len(x)
    with pieces(model, x) as how:
        size = to_numpy(by_examples(largest, x, y, **how)).astype(float)
    zero, tiny, broken = (
        int(each.sum()) for each in (size == 0, (size > 0) & (size < TINY), ~np.isfinite(size))
    )
    if broken:
        measured = f"NaN or infinite for {broken} of {n} images"
        return _warn(Finding("no gradient", measured, True, NOT_FINITE))
    measured = f"{zero} of {n} images exactly 0, {tiny} almost"
    alarm = zero + tiny > max(2, 0.01 * n)
    fine = "every image has a gradient to follow"
    return _warn(Finding("zero gradients", measured, alarm, ZERO if alarm else fine))


def random_answers(model: Model, x: Array) -> Finding:
    """Whether ten more queries with the same images return other logits.

    It is an alarm if a logit changes by more than a thousandth of the largest one.

    Parameters
    ----------
    model, x
        As for :func:`masking`.

    Raises
    ------
    ValueError
        If a logit is not finite.
    """
    case = the_case(model, x)
    alarm, change, size = inputs.logits_change(QueryOnly(model), case.examples.x, case.logits)
    measured = f"logits up to {size:.3g} change by {change:.2g}"
    explanation = RANDOM if alarm else "the same logits each time"
    return _warn(Finding("random answers", measured, alarm, explanation))


def probabilities(model: Model, x: Array) -> Finding:
    """Whether the model returns probabilities: numbers ≥ 0 that add up to 1, for every image.

    Parameters
    ----------
    model, x
        As for :func:`masking`.
    """
    with inputs.quiet():  # about the same
        logits = the_case(model, x).logits
    alarm = inputs.seem_probabilities(logits)
    measured = f"from {float(logits.min()):.3g} to {float(logits.max()):.3g}"
    return _warn(Finding("probabilities", measured, alarm, SOFTMAX if alarm else "logits"))


# ------------------------------------------------------------------------ attacks against attacks


def more_steps(model: Model, x: Array, y: Array | None = None, **attack: Any) -> Finding:
    """Whether one step, or a quarter of the steps, finds more than all of them.

    Parameters
    ----------
    model, x, y
        As for :func:`masking`.
    **attack
        ``ball``, ``steps``, ``loss``, ``rng`` and ``direct``, as for :func:`the_case`.
    """
    case = the_case(model, x, y, **attack)
    steps, full = case.attack["steps"], case.fooled
    if steps == 1:
        return Finding("more steps", "–", None, "there are no fewer steps than one")
    pairs = []
    for count in sorted({1, max(1, steps // 4)}):
        # A single step goes from x itself and as far as ε: this is FGSM.
        fooled = case.fooled_by_pgd(steps=count, random_start=count > 1)
        pairs.append((f"{count} of {steps} steps" if count > 1 else "one step", fooled, full))
    return _warn(_compare("more steps", pairs, "all steps", STEPS, "more steps find more"))


def larger_epsilon(model: Model, x: Array, y: Array | None = None, **attack: Any) -> Finding:
    """Whether PGD finds more in a ball of half the radius, or less in a ball of twice the radius.

    Parameters as for :func:`more_steps`.
    """
    case = the_case(model, x, y, **attack)
    ball, full = case.attack["ball"], case.fooled

    def at(share):
        epsilon = share * ball.epsilon
        epsilon = min(1.0, epsilon) if isinstance(ball, Linf) else epsilon
        return case.fooled_by_pgd(ball=dataclasses.replace(ball, epsilon=epsilon))

    pairs = [("ε/2", at(0.5), full), ("ε", full, at(2))]
    return _warn(_compare("larger ε", pairs, "2 ε", EPSILON, "a larger ε finds more"))


def unbounded(
    model: Model, x: Array, y: Array | None = None, *,
    steps: int = 40, loss: Loss = cross_entropy, rng: RNG = 0,
) -> Finding:  # fmt: skip
    """Whether more images than guessing would explain survive PGD that may change every pixel.

    In ``Linf(1)``, from x. Without a constraint the attack should always succeed; it is an alarm
    only if more than 1/K of the images survive, and if their number has a probability below
    0.01 when each image survives with probability 1/K.

    Parameters
    ----------
    model, x, y, steps, loss, rng
        As for :func:`masking`.
    """
    case = the_case(model, x, y, steps=steps, loss=loss, rng=rng)
    fooled = case.fooled_by_pgd(ball=Linf(1.0), random_start=False)
    n, chance = len(fooled), 1 / case.logits.shape[1]
    survived = int((~fooled).sum())
    alarm = survived > 0 and _at_least(survived, n, chance) < LEVEL
    measured = f"accuracy {survived / n:.1%} at ε = 1, guessing {chance:.1%}"
    explanation = UNBOUNDED if alarm else "no image is out of reach"
    return _warn(Finding("unbounded", measured, alarm, explanation))


def black_box(
    model: Model, x: Array, y: Array | None = None, *, queries: int = 500, **attack: Any
) -> Finding:
    """Whether the Square Attack, which uses queries only, finds more than PGD.

    Parameters
    ----------
    model, x, y, **attack
        As for :func:`more_steps`.
    queries : int
        Queries of the Square Attack, for each image.
    """
    case = the_case(model, x, y, **attack)
    ball, rng = case.attack["ball"], case.attack["rng"]
    if case.examples.x.ndim != 4 or not isinstance(ball, Linf | L2):
        reason = "the Square Attack needs images (N, C, H, W), and Linf or L2"
        return Finding("black box", "–", None, reason)
    full = case.fooled
    x_adv = square(model, case.examples, ball=ball, queries=queries, rng=rng)
    pairs = [(f"Square, {queries} queries", case.fooled_by(x_adv), full)]
    fine = "gradients find at least as much as queries alone"
    return _warn(_compare("black box", pairs, "the gradient", BLACK_BOX, fine))


def transferred(
    model: Model, x: Array, y: Array | None = None, *,
    sources: Model | Sequence[Model], **attack: Any,
) -> Finding:  # fmt: skip
    """Whether adversarial examples of other networks fool this one more often than its own.

    Parameters
    ----------
    model, x, y, **attack
        As for :func:`more_steps`.
    sources : callable, or sequence of callables
        Networks for the same task. For each image the worst of their examples counts.
    """
    case = the_case(model, x, y, **attack)
    full = case.fooled

    def on_source(source, x, y, **settings):  # everything but its number of classes is checked
        inputs.check_labels(y, x, inputs.all_logits(source, x).shape[-1])
        return pgd(source, inputs.Checked(x, y), **settings)

    x_adv = transfer(model, case.examples, sources=sources, attack=on_source, **case.attack)
    pairs = [("from other networks", case.fooled_by(x_adv), full)]
    fine = "the network's own adversarial examples work best"
    return _warn(_compare("transfer", pairs, "its own", TRANSFER, fine))


# ----------------------------------------------------------------------------------- explanations

NO_GRADIENT = (
    "the model returns no Tensor when it is given one, so it has no gradient. Write it with "
    "tinyadv.ops, or approximate the gradient of a part (BPDA, broken_defenses.straight_through)."
)
NOT_FINITE = (
    "no attack can follow such a gradient. Look for a division by zero, or a logarithm or a root "
    "of zero, in the model; attack with a loss of the logits."
)
ZERO = (
    "an attack that follows a gradient of zero does not move. If the softmax is saturated, attack "
    "the logits (margin or DLR loss), or divide them by a number. If the model rounds, let the "
    "gradient pass straight through (BPDA, broken_defenses.straight_through)."
)
RANDOM = (
    "an attack sees another network at each step. Take the gradient of a mean over many draws "
    "(EOT), and count an image as robust only if it is classified correctly in each of many draws."
)
SOFTMAX = (
    "the model ends in a softmax, and a loss that applies a softmax again is almost flat where the "
    "network is confident. Remove the softmax and attack the logits."
)
STEPS = (
    "a longer attack should find at least as much. The gradient misleads it, as it may after "
    "training with single steps: take its mean over noise (EOT), smaller steps, or BPDA."
)
EPSILON = (
    "an attack in a larger ball should find at least as much. Check the step size, and try more "
    "steps and restarts, another loss (margin, DLR), or an approximate gradient (BPDA)."
)
UNBOUNDED = (
    "any image can become one of another class, so it is the attack that fails. Attack the logits "
    "(margin or DLR loss), take more steps, or approximate the gradient (BPDA)."
)
BLACK_BOX = (
    "queries alone give less information than gradients, so the gradient is masked or the attack "
    "is weak: try the margin or the DLR loss, BPDA, more steps and restarts, and auto_attack."
)
TRANSFER = (
    "adversarial examples of other networks should work less well than its own. The gradient of "
    "this network is masked: attack with the gradients of the others, BPDA, or the margin loss."
)


def _no_tensor(model: Model, x: Array) -> str:
    """What is wrong with the model's result for a tensor; empty if it is a tensor."""
    try:
        result = model(Tensor(x[:1] if may_cut(model) else x))
    except (TypeError, AttributeError) as error:  # the model may not support tensors
        return f"a tensor makes it raise {type(error).__name__}"
    return "" if isinstance(result, Tensor) else f"it returns {type(result).__name__} for a tensor"


def _compare(check: Any, pairs: Any, other: Any, warning: Any, fine: Any) -> Finding:
    """The finding of McNemar's test for (name, fooled by the weaker, fooled by the stronger)."""
    alarm, measured = False, []
    for name, weak, strong in pairs:
        b, c = int((weak & ~strong).sum()), int((strong & ~weak).sum())
        # With several comparisons each must be the more improbable.
        sure = _at_least(b, b + c, 0.5) < LEVEL / len(pairs)
        alarm = alarm or (sure and b - c > SLACK * len(weak))
        measured.append(f"{name} {weak.mean():.1%}")
    measured.append(f"{other} {pairs[-1][2].mean():.1%}")
    return Finding(check, "fooled: " + ", ".join(measured), alarm, warning if alarm else fine)


def _at_least(k: int, n: int, p: float) -> float:
    """The probability of k or more of n, each with probability p."""
    from scipy.special import bdtrc  # half a second to import, so not before it is needed

    return 1.0 if k == 0 else float(bdtrc(k - 1, n, p))


def _warn(finding: Finding) -> Finding:
    if finding.alarm:
        text = f"{finding.check}: {finding.measured}. Masked gradients? {finding.explanation}"
        inputs.warn(text, MaskingWarning)
    return finding
