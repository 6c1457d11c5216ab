"""Defences: arguments of :func:`tinyadv.fit` that train a network to resist adversarial examples.

Standard training minimises E[L(f(x), y)]. Adversarial training first makes the loss of each example
as large as possible:

    min over θ of  E[ max over δ in a ball of  L(f_θ(x + δ), y) ]

    MinMax            perturb=     the inner maximum by PGD                   Madry et al. 2018
    Fast              perturb=     by a single step                           Wong et al. 2020
    Free              perturb=     by the gradients that training computes    Shafahi et al. 2019
    WorstOfK          perturb=     over rotations and translations            Engstrom et al. 2019
    Trades            objective=   the loss + a divergence of predictions     Zhang et al. 2019
    GradientPenalty   objective=   the loss + the norm of its gradient        Drucker & LeCun 1992
    IntervalBound     objective=   a proven bound on the inner maximum        Gowal et al. 2018

    x, x′  (N, …)   images and their perturbed versions, pixel values 0–1
    y      (N,)     labels
    z      (N, K)   logits

What all of them share (parameters, errors, what ``fit`` calls) is described at :class:`Defense`.

ε should grow from 0. A network that meets the full ε from the beginning may learn to give the same
logits for every image, at a loss of ln K, and stay there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from numbers import Real
from typing import Any

import numpy as np

from tinyadv import inputs, ops
from tinyadv.attacks.gradient import climb, pgd
from tinyadv.attacks.shared import pieces, step_or_default
from tinyadv.attacks.spatial import spatial_random
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import Ball, Linf
from tinyadv.checkpoint import check_like, check_random_state, is_json_number
from tinyadv.evaluate import accuracy
from tinyadv.inputs import Model
from tinyadv.layers import Module
from tinyadv.losses import Loss, cross_entropy, soft_cross_entropy
from tinyadv.optim import Optimizer
from tinyadv.parallel import by_examples
from tinyadv.tensor import RNG, Array, Same, Tensor, grad
from tinyadv.train import with_generator
from tinyadv.verify import worst_logits
from tinyadv.verify.interval import check_bound


def ramp(epoch: float, start: float, end: float) -> float:
    """Linear from 0 at ``start`` to 1 at ``end``; a step from 0 to 1 if they are equal."""
    if end <= start:
        return float(epoch >= start)
    return float(min(1, max(0, (epoch - start) / (end - start))))


class Defense:
    """The base class: an ε that grows, random numbers, and a check of the first batch.

    ``fit`` calls ``at(epoch)`` before each step, and keeps ``state_dict()`` in its checkpoint. A
    defence belongs to one training run, because some of them remember how it went; make a new one
    for the next run.

    Parameters
    ----------
    ball : Ball, optional
        The threat model, with ε in pixel values 0–1; None for a defence that needs none.
    steps : int
        Gradient steps of the inner maximisation.
    step_size : float, optional
        α, in the ball's norm; by default 2.5 ε / steps, but at most ε. It grows with ε.
    warm_up : float
        The number of epochs in which ε grows linearly from 0.
    loss : callable
        What the inner maximisation raises; see :mod:`tinyadv.losses`.
    rng : numpy.random.Generator or int
        For the random starts. Its state is part of the checkpoint.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or, when called for the first time, if the images, the
        labels or the logits are not: see :func:`tinyadv.inputs.checked`.
    """

    def __init__(
        self, *, ball: Ball | None = None, steps: int = 1, step_size: float | None = None,
        warm_up: float = 0.0, loss: Loss = cross_entropy, rng: RNG = 0,
    ):  # fmt: skip
        inputs.check_numbers(warm_up=warm_up)
        inputs.check_counts(steps=steps)
        self.ball, self.steps, self.loss, self.warm_up = ball, steps, loss, warm_up
        self.step_size = None if ball is None else step_or_default(step_size, ball, steps)
        self.rng, self.share, self.looked = np.random.default_rng(rng), 1.0, False

    def at(self, epoch: float) -> None:
        """Set the time: the number of epochs done, including fractions."""
        self.share = ramp(epoch, 0, self.warm_up)  # of ε, and of whatever grows with it

    def state_dict(self) -> dict:
        """What a resumed run needs to continue with the same numbers."""
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state; ValueError if it does not belong to such a defence."""
        self.check_state(state)
        self.rng.bit_generator.state = state["rng"]

    def check_state(self, state: dict) -> None:
        """Raise ValueError unless the state could belong to such a defence."""
        name, own = type(self).__name__, self.state_dict()
        # Each object checks the dictionaries that belong to it.
        own = {key: {} if isinstance(part, dict) else part for key, part in own.items()}
        check_like(state, own, name)
        check_random_state(state["rng"], self.rng, f"{name}.rng")

    def _scaled_ball(self):
        epsilon = self.share * self.ball.epsilon if self.share else 0.0
        return dataclasses.replace(self.ball, epsilon=epsilon)

    def _climb(self, model: Model, x: Array, y: Array, start: Array, **changes: Any) -> Array:
        """x′ by PGD from x + start, with the settings of this defence or with others."""
        how = {"steps": self.steps, "step_size": self.step_size, **changes}
        how["step_size"] *= self.share
        run = partial(climb, inputs.frozen(model), ball=self._scaled_ball(), loss=self.loss, **how)
        with pieces(model, x) as how:
            return by_examples(run, x, y, None, start, **how)

    def _check_once(self, model: Model, x: Array, y: Array) -> None:
        """Check only the first batch, because each check makes a GPU wait."""
        if isinstance(x, Tensor):
            name = type(self).__name__
            raise TypeError(f"{name} needs an array, got a Tensor: do not combine it with Free")
        if not self.looked:
            inputs.checked(model, x, y)
            self.looked = True


# ------------------------------------------------------------------------ perturb=: other examples


class MinMax(Defense):
    """Madry's adversarial training: train on PGD's adversarial examples instead of the images.

    x′ approximates the maximum of L(f(x′), y) over the ball, by PGD from a random start. By
    Danskin's theorem the gradient of the inner maximum with respect to the weights is the gradient
    of L at the maximiser, which is held fixed.

    Madry et al. (2018), "Towards deep learning models resistant to adversarial attacks", equation
    2.1.

    Parameters
    ----------
    ball, steps, step_size, warm_up, loss, rng
        As for :class:`Defense`.

    Examples
    --------
    >>> from tinyadv import data, fit, models, optim
    >>> model = models.slides_cnn()
    >>> adam = optim.Adam(model.parameters())
    >>> adversary = MinMax(Linf(0.2), steps=5, warm_up=2)
    >>> history = fit(model, data.load("glyphs"), adam, epochs=0, perturb=adversary)  # use epochs=5
    """

    ball: Ball

    def __init__(
        self, ball: Ball = Linf(0.3), *, steps: int = 10, step_size: float | None = None,
        warm_up: float = 0.0, loss: Loss = cross_entropy, rng: RNG = 0,
    ):  # fmt: skip
        inputs.check_ball(ball)
        how: dict[str, Any] = {"step_size": step_size, "warm_up": warm_up, "loss": loss, "rng": rng}
        super().__init__(ball=ball, steps=steps, **how)

    def __call__(self, model: Model, x: Array, y: Array) -> Array:
        """x′: (N, …) -> (N, …)."""
        self._check_once(model, x, y)
        return self._climb(model, x, y, self._start(x, self.rng))

    def _start(self, x, rng):
        return self._scaled_ball().random(x, rng)


class Fast(MinMax):
    """Adversarial training with a single step: an epoch costs as much as two standard epochs.

    x′ = x + project(u + α sign(∇L at x + u)), where u is uniform in the ball and α = 1.25 ε. Wong,
    Rice & Kolter (2020), "Fast is better than free: revisiting adversarial training", algorithm 3.

    As in the paper x + u may leave [0, 1], but x′ may not. If it had to stay inside, black pixels
    would start between 0 and ε, and after a step of 1.25 ε they would always be at one of the two.

    The network may learn to classify correctly exactly where a single step ends and nowhere else:
    accuracy under this step rises, and accuracy under PGD falls to 0 within a few hundred steps
    (catastrophic overfitting). With ``watch``, held-out images are attacked from time to time: with
    the training step, with the same step from a start within [0, 1] (called FGSM here), and with 10
    steps of PGD. While PGD's accuracy is more than ``gap`` below FGSM's, training uses
    ``rescue_steps`` steps of PGD. This follows Li et al. (2020), "Towards understanding fast
    adversarial training", who monitor PGD's accuracy. FGSM is the reference because, on images of
    black and white pixels, it is about as strong as PGD unless the network overfits; the training
    step is weaker from the beginning.

    Parameters
    ----------
    ball, warm_up, loss, rng
        As for :class:`Defense`.
    step_size : float, optional
        α; by default 1.25 ε.
    watch : (x, y), optional
        A few hundred images (M, …) that are not trained on, and their labels. By default nothing
        is watched.
    every : int
        Training steps between two attacks on them.
    gap : float
        The accepted difference between the two accuracies, which are from 0 to 1.
    rescue_steps : int
        Steps of PGD while the network overfits.

    Attributes
    ----------
    looks : list of (step, accuracy under the training step, under FGSM, under PGD)
    overfitted : bool
        Whether the network was overfitted at the last look.

    Raises
    ------
    TypeError
        If ``watch`` is not a pair.
    ValueError
        If ``watch`` has no images, or the number of labels differs.

    Warns
    -----
    AttackWarning
        When overfitting begins.
    """

    looks: list[tuple[int, float, float, float]]

    def __init__(
        self, ball: Ball = Linf(0.3), *, step_size: float | None = None, warm_up: float = 0.0,
        loss: Loss = cross_entropy, watch: tuple[Array, Array] | None = None,
        every: int = 100, gap: float = 0.2, rescue_steps: int = 5, rng: RNG = 0,
    ):  # fmt: skip
        super().__init__(ball, steps=1, step_size=step_size, warm_up=warm_up, loss=loss, rng=rng)
        if step_size is None:
            self.step_size = 1.25 * ball.epsilon
        inputs.check_counts(every=every, rescue_steps=rescue_steps)
        inputs.check_numbers(gap=gap)
        if watch is not None:
            if not isinstance(watch, (tuple, list)) or len(watch) != 2:
                raise TypeError(f"watch must be (images, labels), got {type(watch).__name__}")
            n, m = map(len, watch)
            if not n == m > 0:
                raise ValueError(f"watch needs a label for each image, got {n} images, {m} labels")
        self.watch, self.every, self.gap, self.rescue_steps = watch, every, gap, rescue_steps
        self.step, self.looks, self.overfitted = 0, [], False

    def __call__(self, model: Model, x: Array, y: Array) -> Array:
        """x′: (N, …) -> (N, …); from time to time the watched images are attacked first."""
        self._check_once(model, x, y)
        if self.watch is not None and self.step % self.every == 0:
            self._look(model, array_module(x))
        self.step += 1
        if not self.overfitted:
            return super().__call__(model, x, y)
        step_size = step_or_default(None, self.ball, self.rescue_steps)
        start = self._start(x, self.rng)
        return self._climb(model, x, y, start, steps=self.rescue_steps, step_size=step_size)

    def _start(self, x, rng):
        grey = array_module(x).full_like(x, 0.5)  # far from 0 and 1, so the start is not clipped
        return super()._start(grey, rng)

    def _look(self, model, xp):
        x, y = (xp.asarray(part) for part in self.watch)
        # Seeds of their own: watching does not change the training unless overfitting is found.
        attack = partial(pgd, model, x, y, ball=self._scaled_ball(), loss=self.loss, rng=0)
        attacked = (
            self._climb(model, x, y, self._start(x, 0)),
            attack(steps=1, step_size=self.share * self.step_size),
            attack(steps=10),
        )
        single, fgsm, full = (accuracy(model, x_adv, y) for x_adv in attacked)
        self.looks.append((self.step, single, fgsm, full))
        before, self.overfitted = self.overfitted, fgsm - full > self.gap
        if self.overfitted and not before:
            inputs.warn(
                f"catastrophic overfitting at step {self.step}: accuracy is {fgsm:.0%} under FGSM "
                f"and {full:.0%} under PGD. Training continues with {self.rescue_steps} steps of "
                "PGD until the gap is closed; a smaller step_size or learning rate may prevent it"
            )

    def state_dict(self) -> dict:
        own = {name: getattr(self, name) for name in ("step", "looks", "overfitted")}
        return {**super().state_dict(), **own}

    def check_state(self, state: dict) -> None:
        super().check_state(state)
        for look in state["looks"]:
            if not isinstance(look, (list, tuple)) or [*map(is_json_number, look)] != [True] * 4:
                raise ValueError(f"Fast.looks must hold rows of four numbers, got {look!r:.60}")

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.step, self.overfitted = state["step"], state["overfitted"]
        self.looks = [tuple(look) for look in state["looks"]]


class Free(Defense):
    """Free adversarial training: one backward pass gives the gradients of weights and pixels.

    Each batch is used ``replays`` times in a row. Every time the same backward pass gives ∂L/∂θ for
    a step of the weights and ∂L/∂x for a step of δ, which is kept for the next batch. There is no
    inner loop, but an epoch has ``replays`` times as many steps; take fewer epochs. Shafahi et al.
    (2019), "Adversarial training for free!", algorithm 1.

    Parameters
    ----------
    ball, warm_up
        As for :class:`Defense`.
    replays : int
        m in the paper.
    step_size : float, optional
        α; by default ε, as in the paper.

    Attributes
    ----------
    delta : (N, …) or None
        δ, one for each image of the largest batch so far.

    Raises
    ------
    ValueError
        If the images differ in size from those of earlier batches, or if a checkpoint was written
        with another number of replays.

    Notes
    -----
    The objective gets the images as a tensor instead of an array; the default one and
    :class:`GradientPenalty` accept both.
    """

    step_size: float

    def __init__(
        self, ball: Ball = Linf(0.3), *, replays: int = 8, step_size: float | None = None,
        warm_up: float = 0.0,
    ):  # fmt: skip
        inputs.check_ball(ball)
        inputs.check_counts(replays=replays)
        super().__init__(ball=ball, step_size=step_size, warm_up=warm_up)
        self.replays, self.delta = replays, None

    def train_batch(
        self, model: Model, x: Array, y: Array, objective: Callable, optimizer: Optimizer,
        begin: Callable,
    ) -> Iterator:  # fmt: skip
        """Take m steps on one batch; arguments as for :func:`tinyadv.train.train_step`."""
        self._check_once(model, x, y)
        low, high = -x, 1 - x  # so that 0 ≤ x + δ ≤ 1
        delta, rest = self._kept(x)
        for k in range(self.replays):
            begin(k, self.replays)
            ball = self._scaled_ball()
            delta = ball.project(delta, low, high)  # it comes from other images, and ε may differ
            image = Tensor(x + delta)
            result = objective(model, image, y)
            *gradients, g = grad(result.loss, [*optimizer.params, image])
            optimizer.step(gradients)
            delta = ball.step(delta, g, self.share * self.step_size, low, high)
            yield result
        self.delta = array_module(x).concatenate([delta, rest])

    def _kept(self, x: Array) -> tuple[Array, Array]:
        """The δ of earlier batches for the images x, and those for batches that are larger."""
        xp, n = array_module(x), len(x)
        kept = xp.zeros_like(x) if self.delta is None else xp.asarray(self.delta, x.dtype)
        if kept.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"Free keeps δ of shape {kept.shape[1:]}, got {x.shape[1:]} now: make a new Free"
            )
        if n > len(kept):  # the batches before were smaller
            kept = xp.concatenate([kept, xp.zeros_like(x[len(kept) :])])
        return kept[:n], kept[n:]

    def state_dict(self) -> dict:
        delta = None if self.delta is None else to_numpy(self.delta)
        return {"delta": delta, "replays": self.replays}

    def load_state_dict(self, state: dict) -> None:
        own = {"replays": self.replays, "delta": None}
        check_like(state, own, "Free", equal=("replays",))
        if (delta := state["delta"]) is not None:
            check_like(delta, np.zeros(np.shape(delta), np.float32), "Free.delta")
        self.delta = state["delta"]


class WorstOfK(Defense):
    """Training against rotations and translations: the worst of ``k`` random ones.

    Engstrom et al. (2019), "Exploring the landscape of spatial robustness"; ``k=1`` is ordinary
    data augmentation. See :func:`tinyadv.attacks.spatial_random`.

    Parameters
    ----------
    k : int
    max_angle : float
        In degrees, in either direction.
    max_shift : float
        In pixels, in each direction.
    rng
        As for :class:`Defense`.
    """

    def __init__(
        self, k: int = 10, *, max_angle: float = 30.0, max_shift: float = 3.0, rng: RNG = 0,
    ):  # fmt: skip
        super().__init__(rng=rng)
        inputs.check_counts(k=k)
        inputs.check_numbers(max_angle=max_angle, max_shift=max_shift)
        self.how: dict[str, Any] = {"k": k, "max_angle": max_angle, "max_shift": max_shift}

    def __call__(self, model: Model, x: Array, y: Array) -> Array:
        """x′: (N, C, H, W) -> (N, C, H, W)."""
        self._check_once(model, x, y)
        return spatial_random(model, inputs.Checked(x, y), **self.how, rng=self.rng)


# ------------------------------------------------------------------------ objective=: other losses


class Trades(Defense):
    """TRADES: the loss of the clean images, and how far predictions change in the ball.

    CE(f(x), y) + β · max over x′ in the ball of KL(p(x) ‖ p(x′)), p = softmax ∘ f. The first term
    rewards accuracy, the second predictions that do not change, and β trades one for the other.
    Zhang et al. (2019), "Theoretically principled trade-off between robustness and accuracy",
    equation 5 and algorithm 1 (β is 1/λ there).

    The inner maximisation starts near x instead of at x, because there the divergence has its
    minimum 0 and its gradient vanishes.

    Parameters
    ----------
    ball, steps, step_size, warm_up, rng
        As for :class:`Defense`.
    beta : float
        The authors' code has 1 for MNIST and 6 for CIFAR-10.
    start : float
        Standard deviation of the random start, in pixel values 0–1.
    """

    def __init__(
        self, ball: Ball = Linf(0.3), *, beta: float = 1.0, steps: int = 10,
        step_size: float | None = None, warm_up: float = 0.0, start: float = 0.001, rng: RNG = 0,
    ):  # fmt: skip
        inputs.check_ball(ball)
        inputs.check_numbers(beta=beta, start=start)
        # -Σ p log p(x′) is the divergence plus the entropy of p, which does not depend on x′.
        how: dict[str, Any] = {"step_size": step_size, "warm_up": warm_up, "rng": rng}
        super().__init__(ball=ball, steps=steps, loss=soft_cross_entropy, **how)
        self.beta, self.start = float(beta), float(start)

    def __call__(self, model: Model, x: Array, y: Array) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the logits of the clean images (N, K)."""
        self._check_once(model, x, y)
        logits = model(x)
        x_adv = self.furthest(model, x, ops.softmax(logits.value, axis=1))
        # p(x) is not a constant here: both predictions have a gradient.
        divergence = kl(logits, model(x_adv))
        return cross_entropy(logits, y) + self.beta * divergence, logits

    def furthest(self, model: Model, x: Array, p: Array) -> Array:
        """x′, where in the ball the prediction diverges most from the probabilities p (N, K)."""
        noise = self.start * self.rng.standard_normal(x.shape).astype(x.dtype)
        start = self._scaled_ball().project(array_module(x).asarray(noise), -x, 1 - x)
        return self._climb(model, x, p, start)


def kl(logits: Same, other_logits: Same) -> Same:
    """The mean of KL(p ‖ q) = Σ_c p_c (log p_c - log q_c), from logits (N, K) and (N, K)."""
    log_p, log_q = (ops.log_softmax(z, axis=1) for z in (logits, other_logits))
    return ops.mean(ops.sum(ops.exp(log_p) * (log_p - log_q), axis=1))


class GradientPenalty(Defense):
    """The loss, and the norm of its input gradient: L + λ · E‖∂L/∂x‖.

    Training needs the derivative of the second term with respect to the weights: the gradient of a
    gradient. Drucker & LeCun (1992), "Improving generalization performance using double
    backpropagation"; Ross & Doshi-Velez (2018), "Improving the adversarial robustness and
    interpretability of deep neural networks by regularizing their input gradients". With
    ``norm=1`` and λ = ε it is min-max training in L∞ to first order, because the maximum of
    L(x + δ) over ‖δ‖∞ ≤ ε is approximately L(x) + ε ‖∂L/∂x‖₁.

    Parameters
    ----------
    weight : float
        λ.
    norm : {2, 1}
        ``2`` takes ‖·‖₂², and ``1`` takes ‖·‖₁.
    warm_up : float
        The number of epochs in which λ grows from 0, because an untrained network can reduce all
        gradients by ignoring x.
    """

    def __init__(self, weight: float, *, norm: int = 2, warm_up: float = 0.0):
        super().__init__(warm_up=warm_up)
        inputs.check_numbers(weight=weight)
        inputs.check_choice((2, 1), norm=norm)
        self.weight, self.norm = float(weight), norm

    def __call__(self, model: Model, x: Array | Tensor, y: Array) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the logits (N, K)."""
        if not isinstance(x, Tensor):  # the tensors of Free have been checked
            self._check_once(model, x, y)
        image = x if isinstance(x, Tensor) else Tensor(x)
        logits = model(image)
        loss = cross_entropy(logits, y)
        # The loss is a mean: N times its gradient is each image's gradient of its own loss.
        (g,) = grad(len(y) * loss, [image], create_graph=True)  # (N, …)
        size = ops.sum(g * g if self.norm == 2 else ops.abs(g)) / len(y)
        return loss + self.share * self.weight * size, logits


class IntervalBound(Defense):
    """Training on interval bounds: no attack is needed, and the network can be certified.

    κ · CE(f(x), y) + (1 - κ) · CE(ẑ, y), where ẑ are the worst logits that interval arithmetic
    allows for ‖δ‖∞ ≤ ε (:func:`tinyadv.verify.worst_logits`): an upper bound on the inner maximum.
    Gowal et al. (2018), "On the effectiveness of interval bound propagation for training verifiably
    robust models", equation 12.

    The bounds of an untrained network are far too wide to learn from, so ε grows linearly from 0
    and κ falls linearly from 1, while the network learns to keep the bounds tight.

    With ``attack`` and ``box`` it is one of a family:

        attack   box = λ   κ     the loss
        none     1         κ     the bound beside the standard loss            Gowal et al. 2018
        x*       1         κ     the bound beside a lower one, CE(f(x*), y)    MTL-IBP
        x*       < 1       0     the bound for a small box that contains x*    SABR

    Parameters
    ----------
    epsilon : float
        In pixel values 0–1. The paper trains with a slightly larger ε than it certifies.
    ramp : (start, end)
        The epochs between which ε grows from 0 to ``epsilon``, and κ falls from 1 to ``kappa``.
    kappa : float
        The final weight κ of the standard loss, from 0 to 1.
    attack : callable, optional
        ``attack(model, x, y) -> x*`` such as :class:`MinMax`. The first term is then CE(f(x*), y),
        a lower bound on the inner maximum beside the upper one, if ε and the warm-up of the attack
        match. If it takes an ``rng`` that is not set, it is given the generator of this defence.
        De Palma et al. (2024), "Expressive losses for verified robustness via convex combinations"
        (MTL-IBP).
    box : float
        λ, the radius of the box that is bounded, as a share of ε: 0 < λ ≤ 1. By default it is the
        whole ball. A smaller box, ‖x + δ - x′‖∞ ≤ λε, needs an attack, which searches the whole
        ball as for MTL-IBP: x′ is the point nearest to x* within (1 - λ)ε of x. The box therefore
        lies in the ball, and x* in the box, whose bound is tighter but proves nothing about the
        rest of the ball. Müller et al. (2023), "Certified training: small boxes are all you need"
        (SABR), section 3; they take κ = 0, and λ = 0.6 for MNIST at ε = 0.3.
    bound : callable
        ``bound(model, low, high, y, outward=False) -> ẑ``, a tensor (N, K) with the bounds that
        :func:`tinyadv.verify.worst_logits` describes, for other bounds than those of intervals.

    Raises
    ------
    TypeError
        If ``ramp`` is not a pair, ``attack`` is a :class:`Free`, ``bound`` is not a function, or
        the network has a layer without an interval rule.
    ValueError
        If an argument is out of range, ``box`` is below 1 without an attack, or a checkpoint was
        written with an attack and there is none now, or vice versa.
    """

    attack: Any  # it may have at(), state_dict() and load_state_dict()

    def __init__(
        self, epsilon: float = 0.3, *, ramp: tuple[float, float] = (1.0, 10.0), kappa: float = 0.5,
        attack: Callable | None = None, box: float = 1.0, bound: Callable = worst_logits,
    ):  # fmt: skip
        super().__init__()
        inputs.check_numbers(epsilon=epsilon)
        inputs.check_shares(kappa=kappa)
        inputs.check_each("a share, 0 < box ≤ 1", lambda share: 0 < share <= 1, box=box)
        inputs.check_ball(Linf(epsilon))
        if not isinstance(ramp, (tuple, list)) or len(ramp) != 2:
            raise TypeError(f"ramp must be a pair of epochs (start, end), got {ramp!r}")
        numbers = all(isinstance(epoch, Real) for epoch in ramp)
        if not (numbers and 0 <= ramp[0] <= ramp[1] < math.inf):
            raise ValueError(f"ramp must be two epochs 0 ≤ start ≤ end, got {ramp}")
        if hasattr(attack, "train_batch"):
            name = type(attack).__name__
            raise TypeError(f"attack must return images, not train as {name}: use MinMax or Fast")
        if box < 1 and attack is None:
            raise ValueError(f"box={box:g} needs an attack that says where the box is: give attack")
        check_bound(bound)
        self.epsilon, self.kappa, self.box = float(epsilon), float(kappa), float(box)
        self.ramp, self.attack, self.bound = ramp, attack, bound

    def at(self, epoch: float) -> None:
        self.share = ramp(epoch, *self.ramp)
        if hasattr(self.attack, "at"):
            self.attack.at(epoch)

    def __call__(self, model: Module, x: Array, y: Array) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the logits (N, K) of the first term."""
        if not self.looked:
            self._check_once(model, x, y)
            if self.kappa < 1:  # raises an error now if a layer has no interval rule
                self.bound(model, x[:1], x[:1], y[:1], outward=False)
        kappa = 1 - self.share * (1 - self.kappa)
        if kappa < 1:  # otherwise the bound has no weight
            xp, epsilon = array_module(x), self.share * self.epsilon
            low, high = xp.clip(x - epsilon, 0, 1), xp.clip(x + epsilon, 0, 1)
            if self.box < 1:  # its centre is to be between these
                room = (1 - self.box) * epsilon
                least, most = xp.clip(x - room, 0, 1), xp.clip(x + room, 0, 1)
        if self.attack is not None:
            x = with_generator(self.attack, self.rng)(model, x, y)
        # Where the first term has no weight, its logits are only counted: they need no gradient.
        logits = model(x) if kappa > 0 else Tensor(inputs.frozen(model)(x))
        if kappa == 1:
            return cross_entropy(logits, y), logits
        if self.box < 1:
            centre, radius = xp.clip(x, least, most), self.box * epsilon
            low, high = xp.maximum(low, centre - radius), xp.minimum(high, centre + radius)
        bound = cross_entropy(self.bound(model, low, high, y, outward=False), y)
        if kappa == 0:
            return bound, logits
        return kappa * cross_entropy(logits, y) + (1 - kappa) * bound, logits

    def state_dict(self) -> dict:
        own = hasattr(self.attack, "state_dict")
        return super().state_dict() | ({"attack": self.attack.state_dict()} if own else {})

    def load_state_dict(self, state: dict) -> None:
        self.check_state(state)
        if "attack" in state:
            self.attack.load_state_dict(state["attack"])
        super().load_state_dict(state)
