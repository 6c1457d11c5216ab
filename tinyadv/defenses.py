"""Defences: what is plugged into :func:`tinyadv.fit` to train a network that is hard to fool.

Ordinary training minimises E[L(f(x), y)]. Here each example is first made as bad as it can be:

    min over θ of  E[ max over δ in a ball of  L(f_θ(x + δ), y) ]

    MinMax            perturb=     the inner maximum by PGD                   Madry et al. 2018
    Fast              perturb=     by a single step, watched                  Wong et al. 2020
    Free              perturb=     by the gradient that training has anyway   Shafahi et al. 2019
    WorstOfK          perturb=     over rotations and translations            Engstrom et al. 2019
    Trades            objective=   the loss, and how far the answer moves     Zhang et al. 2019
    GradientPenalty   objective=   the loss, and the norm of its gradient     Drucker & LeCun 1992
    IntervalBound     objective=   a proven bound on the inner maximum        Gowal et al. 2018

    x, x′  (N, …)   images and their perturbed versions, pixel values 0–1
    y      (N,)     labels
    z      (N, K)   logits

Each of them has some of these, by which ``fit`` knows it: ``at(epoch)`` is told the time, for what
grows during training; ``state_dict`` and ``load_state_dict`` keep in the checkpoint what a resumed
run needs; with ``replays`` a batch is used so many times, and ``learn(g)`` is told the gradient for
its pixels every time (``Free``). Bad arguments raise a TypeError or ValueError at once, images and
labels that make no sense do so when the first batch comes. Each belongs to one training: take a new
one for the next, for some remember where the last has ended (``Fast``, ``Free``, all random draws).

ε should grow from 0: a network that meets all of it at once may find that the same answer for every
image, at a loss of ln K, is the best that it can do, and stay there.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np

from tinyadv import ops
from tinyadv.attacks.common import (
    AttackWarning,
    by_pieces,
    check_ball,
    check_counts,
    check_numbers,
    checked,
    step_or_default,
)
from tinyadv.attacks.gradient import climb, pgd
from tinyadv.attacks.spatial import spatial_random
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import Ball, Linf
from tinyadv.checkpoint import generator_state, set_generator_state
from tinyadv.evaluate import accuracy
from tinyadv.losses import cross_entropy, soft_cross_entropy
from tinyadv.tensor import Array, Tensor, grad
from tinyadv.verify import worst_logits


def ramp(epoch: float, start: float, end: float) -> float:
    """From 0 at ``start`` up to 1 at ``end``, straight; if they are the same, in a single jump."""
    if end <= start:
        return float(epoch >= start)
    return float(min(1, max(0, (epoch - start) / (end - start))))


class _Part:
    """What all have in common: an ε that grows, random numbers, and a look at the first batch."""

    def __init__(self, *, warm_up: float = 0.0, rng: np.random.Generator | int = 0):
        check_numbers(warm_up=warm_up)
        self.warm_up, self.share = warm_up, 1.0
        self.rng, self.looked = np.random.default_rng(rng), False

    def at(self, epoch: float) -> None:
        """Called by ``fit`` before each step with the epochs done, fractions included."""
        self.share = ramp(epoch, 0, self.warm_up)  # of ε, and of whatever grows with it

    def state_dict(self) -> dict:
        """What a resumed run goes on with."""
        return {"rng": generator_state(self.rng)}

    def load_state_dict(self, state: dict) -> None:
        set_generator_state(self.rng, state["rng"])

    def _scaled(self, ball: Ball) -> Ball:
        return dataclasses.replace(ball, epsilon=self.share * ball.epsilon if self.share else 0.0)

    def _look_once(self, model, x, y) -> None:
        """Check the first batch only: a look at each would stop a GPU every time."""
        if isinstance(x, Tensor):
            raise TypeError(
                f"{type(self).__name__} needs images as an array and got a tensor: it does not go "
                "together with Free"
            )
        if not self.looked:
            checked(model, x, y)
            self.looked = True


# ------------------------------------------------------------------------ perturb=: other examples


class MinMax(_Part):
    """Madry's adversarial training: each step learns from PGD's examples instead of the images.

    x′ = argmax of L(f(x′), y) over the ball, by ``steps`` steps of PGD from a random start. By
    Danskin's theorem the gradient of L at the maximiser for the weights, with it held fixed, is the
    gradient of the inner maximum; PGD's x′ stands in for the maximiser. The labels stay the true
    ones.

    Madry et al. (2018), "Towards deep learning models resistant to adversarial attacks", equation
    2.1.

    Parameters
    ----------
    ball : Ball
        With ε in pixel values 0–1.
    steps : int
    step_size : float, optional
        α, in the ball's norm; by default 2.5 ε / steps, and ε at most. While ε grows, so does α.
    warm_up : float
        Epochs in which ε grows from 0.
    loss : callable
        What the inner maximisation raises.
    rng : numpy.random.Generator or int
        For the random starts. The draws are part of the checkpoint.

    Raises
    ------
    TypeError, ValueError
        If an argument, or the first batch, makes no sense.

    Examples
    --------
    >>> from tinyadv import data, fit, models, optim
    >>> model = models.slides_cnn()
    >>> adam = optim.Adam(model.parameters())
    >>> adversary = MinMax(Linf(0.2), steps=5, warm_up=2)
    >>> history = fit(model, data.load("glyphs"), adam, epochs=0, perturb=adversary)  # more, in use
    """

    def __init__(
        self,
        ball: Ball = Linf(0.3),
        *,
        steps: int = 10,
        step_size: float | None = None,
        warm_up: float = 0.0,
        loss: Callable = cross_entropy,
        rng: np.random.Generator | int = 0,
    ):
        super().__init__(warm_up=warm_up, rng=rng)
        check_ball(ball)
        check_counts(steps=steps)
        self.ball, self.steps, self.loss = ball, steps, loss
        self.step_size = step_or_default(step_size, ball, steps)

    def __call__(self, model: Callable, x: Array, y: Array) -> Array:
        """x′: (N, …) -> (N, …)."""
        self._look_once(model, x, y)
        return self._climb(model, x, y, self.steps, self.step_size, self.rng)

    def _start(self, x, rng):
        return self._scaled(self.ball).random(x, rng)

    def _climb(self, model, x, y, steps, step_size, rng):
        ball = self._scaled(self.ball)

        def run(x, y, start):
            return climb(
                model, x, y, None, start, ball=ball, step_size=self.share * step_size, steps=steps,
                loss=self.loss,
            )  # fmt: skip

        return by_pieces(run, x, y, self._start(x, rng))


class Fast(MinMax):
    """Adversarial training with a single step: an epoch costs two ordinary ones. And a watch.

    x′ = x + project(u + 1.25 ε sign(∇L at x + u)), u random in the ball, its numbers from -0.5 to
    0.5. Wong, Rice & Kolter (2020), "Fast is better than free: revisiting adversarial training",
    algorithm 3.

    x + u may leave [0, 1], as in the paper, and x′ may not. A black pixel that had to start between
    0 and ε would always be at one of the two after a step of 1.25 ε.

    A network may learn to be right exactly where a single step ends and nowhere else: accuracy
    under that step goes up while that under PGD falls to 0, within a few hundred steps
    (catastrophic overfitting). With ``watch``, some images that are not trained on are attacked now
    and then: with the training's own step, with the same from a start within [0, 1] (called FGSM
    here), and with 10 steps of PGD. When PGD's accuracy falls ``gap`` below FGSM's, training goes
    on with ``rescue_steps`` steps of PGD until it is back: after Li et al. (2020), "Towards
    understanding fast adversarial training", who look at a drop of PGD's accuracy. Black and white
    pixels end at the edge of the ball by FGSM, which on such images is about as strong as PGD as
    long as all is well; the training's own step is weaker from the first.

    Parameters
    ----------
    ball : Ball
    step_size : float, optional
        By default 1.25 ε.
    warm_up, loss, rng
        As for :class:`MinMax`.
    watch : (x, y), optional
        Some hundred images (M, …) and their labels, not among the training images. ``None``: not
        watched.
    every : int
        Steps between two looks.
    gap : float
        How much accuracy, between 0 and 1, PGD may take below FGSM.
    rescue_steps : int
        Of PGD, while the network is overfitted.

    Attributes
    ----------
    looks : list of (step, accuracy under the training's own step, under FGSM, under PGD)
    overfitted : bool
        Whether the last look found it so.

    Raises
    ------
    TypeError
        If ``watch`` is no pair.
    ValueError
        If ``watch`` has no image, or not a label for each.

    Warns
    -----
    AttackWarning
        When overfitting is found first.
    """

    def __init__(
        self,
        ball: Ball = Linf(0.3),
        *,
        step_size: float | None = None,
        warm_up: float = 0.0,
        loss: Callable = cross_entropy,
        watch: tuple[Array, Array] | None = None,
        every: int = 100,
        gap: float = 0.2,
        rescue_steps: int = 5,
        rng: np.random.Generator | int = 0,
    ):
        super().__init__(ball, steps=1, step_size=step_size, warm_up=warm_up, loss=loss, rng=rng)
        if step_size is None:
            self.step_size = 1.25 * ball.epsilon
        check_counts(every=every, rescue_steps=rescue_steps)
        check_numbers(gap=gap)
        if watch is not None:
            if not isinstance(watch, (tuple, list)) or len(watch) != 2:
                kind = type(watch).__name__
                raise TypeError(f"watch must be a pair (images, labels), got {kind}")
            images, labels = map(len, watch)
            if not images == labels > 0:
                raise ValueError(
                    f"watch needs images, and a label for each; got {images} and {labels} labels"
                )
        self.watch, self.every, self.gap, self.rescue_steps = watch, every, gap, rescue_steps
        self.step, self.looks, self.overfitted = 0, [], False

    def __call__(self, model: Callable, x: Array, y: Array) -> Array:
        """x′: (N, …) -> (N, …), after a look at the watched images if it is time."""
        self._look_once(model, x, y)
        if self.watch is not None and self.step % self.every == 0:
            self._look(model, array_module(x))
        self.step += 1
        if not self.overfitted:
            return super().__call__(model, x, y)
        step_size = step_or_default(None, self.ball, self.rescue_steps)
        return self._climb(model, x, y, self.rescue_steps, step_size, self.rng)

    def _start(self, x, rng):
        grey = array_module(x).full_like(x, 0.5)  # where 0 and 1 are far away
        return super()._start(grey, rng)

    def _look(self, model, xp):
        x, y = (xp.asarray(part) for part in self.watch)
        # With seeds of their own, so that watching changes nothing as long as nothing is found.
        attack = partial(pgd, model, x, y, ball=self._scaled(self.ball), loss=self.loss, rng=0)
        single, fgsm, full = (
            accuracy(model, x_adv, y)
            for x_adv in (
                self._climb(model, x, y, 1, self.step_size, 0),
                attack(steps=1, step_size=self.share * self.step_size),
                attack(steps=10),
            )
        )
        self.looks.append((self.step, single, fgsm, full))
        before, self.overfitted = self.overfitted, fgsm - full > self.gap
        if self.overfitted and not before:
            warnings.warn(
                f"catastrophic overfitting at step {self.step}: {fgsm:.0%} right under FGSM, "
                f"{full:.0%} under PGD. Training goes on with {self.rescue_steps} steps of PGD "
                "until that is over; a smaller step_size or learning rate may prevent it",
                AttackWarning,
                stacklevel=3,
            )

    def state_dict(self):
        own = {name: getattr(self, name) for name in ("step", "looks", "overfitted")}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.step, self.overfitted = state["step"], state["overfitted"]
        self.looks = [tuple(look) for look in state["looks"]]


class Free(_Part):
    """Free adversarial training: one pass backward gives the weights' gradient, and the pixels'.

    Each batch is used ``replays`` times in a row, and every time δ ← project(δ + α·steepest(∂L/∂x))
    with the gradient of the same pass that changed the weights. δ is kept for the next batch. So
    there is no inner loop at all, and ``replays`` times as many steps in an epoch: take fewer
    epochs. Shafahi et al. (2019), "Adversarial training for free!", algorithm 1.

    Parameters
    ----------
    ball : Ball
    replays : int
        m in the paper.
    step_size : float, optional
        α; by default ε, as in the paper.
    warm_up : float
        Epochs in which ε grows from 0.

    Raises
    ------
    ValueError
        If images of another size come than those of the batches before.

    Notes
    -----
    The objective is given a tensor instead of an array. The usual one takes both.
    """

    def __init__(
        self,
        ball: Ball = Linf(0.3),
        *,
        replays: int = 8,
        step_size: float | None = None,
        warm_up: float = 0.0,
    ):
        super().__init__(warm_up=warm_up)
        check_ball(ball)
        check_counts(replays=replays)
        self.ball, self.replays, self.delta = ball, replays, None
        self.step_size = step_or_default(step_size, ball, 1)

    def __call__(self, model: Callable, x: Array, y: Array) -> Tensor:
        """x + δ as a tensor: ``fit`` then takes its gradient as well, and calls :meth:`learn`."""
        self._look_once(model, x, y)
        xp = array_module(x)
        if self.delta is None:
            self.delta = xp.zeros_like(x)
        if self.delta.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"the perturbations kept are of shape {self.delta.shape[1:]}, these images have "
                f"{x.shape[1:]}: take a new Free for another training"
            )
        n, kept = len(x), xp.asarray(self.delta)
        if n > len(kept):  # the first batches had been smaller
            kept = xp.concatenate([kept, xp.zeros_like(x[len(kept) :])])
        ball = self._scaled(self.ball)
        # The same δ meets other images: what fits into [0, 1] differs.
        delta = ball.project(kept[:n], -x, 1 - x)
        self.x, self.delta = x, xp.concatenate([delta, kept[n:]])
        return Tensor(x + delta)

    def learn(self, g: Array) -> None:
        """One step of δ along the gradient for the pixels, (N, …)."""
        ball, n = self._scaled(self.ball), len(g)
        delta = self.delta[:n] + self.share * self.step_size * ball.steepest(g)
        delta = ball.project(delta, -self.x, 1 - self.x)
        self.delta = array_module(g).concatenate([delta, self.delta[n:]])

    def state_dict(self) -> dict:
        return {"delta": None if self.delta is None else to_numpy(self.delta)}

    def load_state_dict(self, state: dict) -> None:
        self.delta = state["delta"]


class WorstOfK(_Part):
    """Training against rotations and translations: the worst of ``k`` random ones.

    Engstrom et al. (2019), "Exploring the landscape of spatial robustness"; ``k=1`` is ordinary
    data augmentation. See :func:`tinyadv.attacks.spatial_random`.

    Parameters
    ----------
    k : int
    max_angle : float
        In degrees, to either side.
    max_shift : float
        In pixels, in each direction.
    rng : numpy.random.Generator or int
    """

    def __init__(
        self,
        k: int = 10,
        *,
        max_angle: float = 30.0,
        max_shift: float = 3.0,
        rng: np.random.Generator | int = 0,
    ):
        super().__init__(rng=rng)
        check_counts(k=k)
        check_numbers(max_angle=max_angle, max_shift=max_shift)
        self.how = {"k": k, "max_angle": max_angle, "max_shift": max_shift}

    def __call__(self, model: Callable, x: Array, y: Array) -> Array:
        """x′: (N, C, H, W) -> (N, C, H, W)."""
        return spatial_random(model, x, y, **self.how, rng=self.rng)


# ------------------------------------------------------------------------ objective=: other losses


class Trades(_Part):
    """The loss of the images, and how far the answer can be moved nearby.

    CE(f(x), y) + β · max over x′ in the ball of KL(p(x) ‖ p(x′)), p = softmax ∘ f. The first term
    asks for right answers, the second for answers that stay: β trades one for the other. Zhang et
    al. (2019), "Theoretically principled trade-off between robustness and accuracy", equation 5
    and algorithm 1 (β is 1/λ there).

    The inner maximum starts near x, and not at x, where the divergence is 0, its smallest value,
    and has a gradient of exactly 0.

    Parameters
    ----------
    ball, steps, step_size, warm_up, rng
        As for :class:`MinMax`.
    beta : float
        The authors' code has 1 for MNIST and 6 for CIFAR-10.
    start : float
        Standard deviation of the random start, in pixel values 0–1.
    """

    def __init__(
        self,
        ball: Ball = Linf(0.3),
        *,
        beta: float = 1.0,
        steps: int = 10,
        step_size: float | None = None,
        warm_up: float = 0.0,
        start: float = 0.001,
        rng: np.random.Generator | int = 0,
    ):
        super().__init__(warm_up=warm_up, rng=rng)
        check_ball(ball)
        check_counts(steps=steps)
        check_numbers(beta=beta, start=start)
        self.ball, self.beta, self.steps, self.start = ball, float(beta), steps, float(start)
        self.step_size = step_or_default(step_size, ball, steps)

    def __call__(self, model: Callable, x: Array, y: Array) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the logits of the images (N, K)."""
        self._look_once(model, x, y)
        logits = model(x)
        x_adv = self.furthest(model, x, ops.softmax(logits.value, axis=1))
        # Here p(x) is no constant: its gradient is what makes the two answers move together.
        divergence = kl(logits, model(x_adv))
        return cross_entropy(logits, y) + self.beta * divergence, logits

    def furthest(self, model: Callable, x: Array, p: Array) -> Array:
        """x′: where in the ball the answer is furthest from the probabilities p (N, K)."""
        xp, ball = array_module(x), self._scaled(self.ball)
        noise = self.start * self.rng.standard_normal(x.shape).astype(x.dtype)
        start = ball.project(xp.asarray(noise), -x, 1 - x)

        def run(x, p, start):
            # -Σ p log p(x′) is the divergence but for the entropy of p, which x′ does not change.
            return climb(
                model, x, p, None, start, ball=ball, step_size=self.share * self.step_size,
                steps=self.steps, loss=soft_cross_entropy,
            )  # fmt: skip

        return by_pieces(run, x, p, start)


def kl(logits, other_logits):
    """The mean of KL(p ‖ q) = Σ_c p_c (log p_c - log q_c) for two answers, (N, K) and (N, K)."""
    log_p, log_q = (ops.log_softmax(z, axis=1) for z in (logits, other_logits))
    return ops.mean(ops.sum(ops.exp(log_p) * (log_p - log_q), axis=1))


class GradientPenalty(_Part):
    """The loss, and the size of its own gradient for the pixels: L + λ · E‖∂L/∂x‖.

    To lower the second term, ∂/∂θ of ∂L/∂x is needed: the gradient of a gradient. Drucker & LeCun
    (1992), "Improving generalization performance using double backpropagation"; Ross & Doshi-Velez
    (2018), "Improving the adversarial robustness and interpretability of deep neural networks by
    regularizing their input gradients". With ``norm=1`` and λ = ε it is min-max training in L∞ to
    first order, for max over ‖δ‖∞ ≤ ε of L(x + δ) ≈ L(x) + ε ‖∂L/∂x‖₁.

    Parameters
    ----------
    weight : float
        λ.
    norm : {2, 1}
        ``2`` takes ‖·‖₂², and ``1`` takes ‖·‖₁.
    warm_up : float
        Epochs in which λ grows from 0: a new network could shrink all gradients by ignoring x.
    """

    def __init__(self, weight: float, *, norm: int = 2, warm_up: float = 0.0):
        super().__init__(warm_up=warm_up)
        check_numbers(weight=weight)
        if norm not in (1, 2):
            raise ValueError(f"norm must be 2 (for ‖·‖₂²) or 1, got {norm!r}")
        self.weight, self.norm = float(weight), norm

    def __call__(self, model: Callable, x: Array, y: Array) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the logits of the images (N, K)."""
        if not isinstance(x, Tensor):  # Free has looked at its own
            self._look_once(model, x, y)
        image = x if isinstance(x, Tensor) else Tensor(x)
        logits = model(image)
        loss = cross_entropy(logits, y)
        # Each image's gradient of its own loss, which has a share of 1/N in the mean.
        (g,) = grad(len(y) * loss, [image], create_graph=True)  # (N, …)
        size = ops.sum(g * g if self.norm == 2 else ops.abs(g)) / len(y)
        return loss + self.share * self.weight * size, logits


class IntervalBound(_Part):
    """Training on interval bounds: no attack at all, and the result can be certified.

    κ · CE(f(x), y) + (1 - κ) · CE(ẑ, y), with ẑ the worst logits that interval arithmetic allows
    for ‖δ‖∞ ≤ ε (:func:`tinyadv.verify.worst_logits`): an upper bound on the inner maximum. Gowal
    et al. (2018), "On the effectiveness of interval bound propagation for training verifiably
    robust models", equation 12.

    The bounds of a new network are far too wide to learn from, so ε grows from 0 and κ sinks from
    1, both linearly, while the network learns to keep them narrow.

    Parameters
    ----------
    epsilon : float
        In pixel values 0–1. The paper trains with a little more than it certifies.
    ramp : (start, end)
        Epochs between which ε goes from 0 to ``epsilon``, and κ from 1 to ``kappa``.
    kappa : float
        The share of the ordinary loss at the end.
    attack : callable, optional
        ``attack(model, x, y) -> x′`` such as :class:`MinMax`: the first term then is CE(f(x′), y),
        a lower bound on the inner maximum beside the upper one, if its ε and warm-up go with these.
        De Palma et al. (2024), "Expressive losses for verified robustness via convex combinations"
        (MTL-IBP).

    Raises
    ------
    TypeError
        If ``ramp`` is no pair, ``attack`` is a :class:`Free`, or the network has a layer without an
        interval rule.
    ValueError
        If an argument is not in its range, or a checkpoint was written with an attack and this has
        none, or the other way round.
    """

    def __init__(
        self,
        epsilon: float = 0.3,
        *,
        ramp: tuple[float, float] = (1.0, 10.0),
        kappa: float = 0.5,
        attack: Callable | None = None,
    ):
        super().__init__()
        check_numbers(epsilon=epsilon)
        check_ball(Linf(epsilon))
        if not isinstance(ramp, (tuple, list)) or len(ramp) != 2:
            raise TypeError(f"ramp must be a pair of epochs (start, end), got {ramp!r}")
        if not 0 <= ramp[0] <= ramp[1] < math.inf or not 0 <= kappa <= 1:
            raise ValueError(
                f"expected epochs 0 ≤ start ≤ end in ramp and 0 ≤ kappa ≤ 1, got {ramp} and {kappa}"
            )
        if hasattr(attack, "replays"):
            raise TypeError(
                f"{type(attack).__name__} learns from the weights' own pass, and that is of the "
                "bounds here: take MinMax or Fast as the attack"
            )
        self.epsilon, self.kappa = float(epsilon), float(kappa)
        self.ramp, self.attack = ramp, attack

    def at(self, epoch: float) -> None:
        self.share = ramp(epoch, *self.ramp)
        if hasattr(self.attack, "at"):
            self.attack.at(epoch)

    def __call__(self, model: Callable, x: Array, y: Array) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the logits (N, K) of what the first term is about."""
        if not self.looked:
            self._look_once(model, x, y)
            if self.kappa < 1:  # is there a rule for every layer?
                worst_logits(model, x[:1], x[:1], y[:1])
        logits = model(x if self.attack is None else self.attack(model, x, y))
        loss = cross_entropy(logits, y)
        kappa = 1 - self.share * (1 - self.kappa)
        if kappa == 1:  # nothing of the bound is asked for yet
            return loss, logits
        xp, epsilon = array_module(x), self.share * self.epsilon
        low, high = xp.clip(x - epsilon, 0, 1), xp.clip(x + epsilon, 0, 1)
        bound = cross_entropy(worst_logits(model, low, high, y), y)
        return kappa * loss + (1 - kappa) * bound, logits

    def state_dict(self) -> dict:
        own = hasattr(self.attack, "state_dict")
        return super().state_dict() | ({"attack": self.attack.state_dict()} if own else {})

    def load_state_dict(self, state: dict) -> None:
        own = hasattr(self.attack, "load_state_dict")
        if own != ("attack" in state):
            raise ValueError(
                f"this state belongs to IntervalBound {'without' if own else 'with'} an attack: "
                "make it with the same attack="
            )
        super().load_state_dict(state)
        if own:
            self.attack.load_state_dict(state["attack"])
