"""Branch and bound: split ReLUs until linear bounds decide.

    a domain   some ReLUs of a network fixed to one side of their kink, v ≥ 0 or v ≤ 0
    s v ≥ 0    these constraints, with the sign s of each
    β ≥ 0      a multiplier for each of them
    D, U       the number of domains, and of unstable ReLUs

A ReLU between two lines is what makes a linear bound loose. On one side of its kink it is a line
itself. So where the bound of :mod:`tinyadv.verify.linear` does not decide, the question is split in
two: v ≥ 0 and v ≤ 0. If both halves are proved, so is the whole; otherwise they are split again.
After enough splits the network is linear, and only the constraints are missing from the bound: a
linear program adds them.

A constraint helps in two ways. It makes the ReLU a line. And it may be added to what is bounded,

    max_{x: s v ≥ 0}  <c, f(x)>   ≤   max_x  <c, f(x)> + β s v       for any β ≥ 0,

because β s v is never negative where the constraint holds. The gradient of the bound finds good
multipliers and slopes in the same descent. Wang et al. (2021), "Beta-CROWN: efficient bound
propagation with per-neuron split constraints for neural network robustness verification".

Each bound has a corner of the box at which its linear function is largest: a candidate for an
attack. If the search may go on long enough, it ends with a proof or with an adversarial example,
unless what is to be proved is smaller than the rounding errors.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np

from tinyadv import inputs, layers, ops, optim
from tinyadv.attacks import pgd
from tinyadv.balls import Ball, Linf, per_example
from tinyadv.parallel import in_threads
from tinyadv.tensor import Array, Tensor, grad, value_of
from tinyadv.verify.interval import box, checked_for_proof
from tinyadv.verify.linear import Region, linear_bound
from tinyadv.verify.relus import Relu, lines, unstable

IMAGES = 100  # whose first bounds are computed at a time
BATCH = 128  # domains that are bounded at a time
TRIED = 8  # ReLUs at which a split is tried
RATE = 0.2  # of Adam, for slopes and multipliers
SOLVED, INFEASIBLE = 0, 2  # the status that linprog returns
CERTAIN = 1e-6  # to which a solver is trusted, in units of the largest term; HiGHS's is 1e-7


@dataclass(frozen=True)
class Verdict:
    """What is known of one image.

    Attributes
    ----------
    answer : {"proved", "broken", "open"}
        No perturbed image is misclassified; one is, perhaps x itself; the search ended before it
        knew, or what is left to prove is smaller than the rounding errors.
    x_adv : (…) array or None
        For "broken", an image within ε that is misclassified.
    domains : int
        How many were bounded.
    seconds : float
        Of the processor, without what all images of a batch share: the first attack and bounds.
    """

    answer: str
    x_adv: Array | None
    domains: int
    seconds: float


def decide(
    model: layers.Module, x: Array, y: Array, epsilon: float | Linf, *,
    domains: int = 20_000, steps: int = 3,
) -> list[Verdict]:  # fmt: skip
    """Whether any x + δ with ‖δ‖∞ ≤ ε and pixels in [0, 1] is misclassified.

    PGD first, then linear bounds, then branch and bound.

    Parameters
    ----------
    model : Module
        As for :func:`tinyadv.verify.hidden_bounds`.
    x : (N, …), pixel values 0–1
        NumPy arrays.
    y : (N,) integers
    epsilon : float or Linf
        In pixel values 0–1.
    domains : int
        The most to be bounded for an image; the answer may then be "open". With 0 there are only
        the attack and the first bounds.
    steps : int
        Steps of gradient descent on the bound of a domain.

    Returns
    -------
    list of Verdict
        One for each image. A proof holds in spite of rounding, see
        :mod:`tinyadv.verify.rounding`, apart from linear programs, which are trusted up to 1e-6 of
        their largest term.

    Raises
    ------
    TypeError
        As for :func:`tinyadv.verify.hidden_bounds`; or if the arrays are not NumPy's, or ε is
        another ball.
    ValueError
        As for :func:`tinyadv.verify.certified`, or if ``domains`` or ``steps`` is out of range.
    """
    inputs.check_counts(0, domains=domains)
    inputs.check_counts(steps=steps)
    x, y, x_adv, broken = attacked(model, x, y, epsilon)
    model, found, epsilon = inputs.frozen(model), np.zeros(len(x), object), radius(epsilon)
    for i in np.flatnonzero(broken):
        found[i] = Verdict("broken", x_adv[i], 0, 0.0)
    left = np.flatnonzero(~broken)
    for start in range(0, len(left), IMAGES):
        some = left[start : start + IMAGES]
        region = Region(model, *box(x[some], epsilon))
        worst = region.worst_logits(y[some])

        def search(k, some=some, region=region, worst=worst):
            i = some[k]
            one = Search(region, k, x[i], int(y[i]), epsilon, worst[k])
            return one.decide(domains, steps)

        found[some] = in_threads(search, range(len(some)))
    return list(found)


def radius(epsilon: float | Ball) -> float:
    """The radius of an L∞ ball, at most 1: pixels cannot change more. TypeError for others."""
    if isinstance(epsilon, Linf):
        epsilon = epsilon.epsilon
    if isinstance(epsilon, Ball):
        raise TypeError(f"exact answers are for L∞ balls only, got {epsilon!r}")
    return min(float(epsilon), 1.0)


def check_numpy(*arrays: Array) -> None:
    """Raise TypeError unless these are NumPy arrays: solvers take no others."""
    for a in arrays:
        if not isinstance(a, np.ndarray):
            got = type(a).__module__
            raise TypeError(
                f"expected NumPy arrays, got {got}: use to_numpy, and model.to('numpy')"
            )


def attacked(
    model: layers.Module, x: Array, y: Array, epsilon: float | Ball
) -> tuple[Array, Array, Array, Array]:
    """Images and labels as arrays, PGD's examples (N, …), and which are misclassified (N,).

    Arguments and errors as for :func:`decide`. Where x is misclassified, the example is x itself.
    """
    x, y = checked_for_proof(model, x, y, epsilon)
    check_numpy(x)
    x_adv = pgd(inputs.frozen(model), x, y, ball=Linf(radius(epsilon)), steps=40, restarts=2)
    x_adv = np.where(per_example(inputs.predict(model, x) != y, x), x, x_adv)
    return x, y, x_adv, inputs.predict(model, x_adv) != y


def exact_accuracy(
    model: layers.Module, x: Array, y: Array, epsilon: float | Linf, **how: int
) -> tuple[float, float]:
    """Two numbers between which the robust accuracy lies: what is proved, and what is not broken.

    They are equal if :func:`decide` decides every image.

    Parameters
    ----------
    model, x, y, epsilon, **how
        As for :func:`decide`.

    Returns
    -------
    low, high : float
        Shares of the N images, between 0 and 1.

    Raises
    ------
    TypeError, ValueError
        As for :func:`decide`.
    """
    answers = [verdict.answer for verdict in decide(model, x, y, epsilon, **how)]
    return answers.count("proved") / len(x), 1 - answers.count("broken") / len(x)


# ----------------------------------------------------------------------------- a single image


@dataclass
class Domains:
    """D domains of one image; U of its ReLUs may be on either side of their kink."""

    signs: Array  # (D, U): 1 for v ≥ 0, -1 for v ≤ 0, 0 where there is no constraint
    slopes: Array  # (D, U): of the lines below
    betas: Array  # (D, U)
    rivals: Array  # (D,): the class k that is compared with the label
    bounds: Array  # (D,): on z_k - z_y

    def __len__(self) -> int:
        return len(self.rivals)

    def take(self, index: Any) -> Domains:
        """Some of them."""
        return Domains(*(getattr(self, field.name)[index] for field in fields(self)))

    def joined(self, others: Domains) -> Domains:
        """These and the others."""
        parts = ((getattr(d, field.name) for d in (self, others)) for field in fields(self))
        return Domains(*(np.concatenate(list(part)) for part in parts))

    def split(self, at: Array) -> Domains:
        """Two halves of each of them, at the ReLUs with these numbers (D,)."""
        halves = [self.take(slice(None)), self.take(slice(None))]
        for half, sign in zip(halves, (1, -1), strict=True):
            half.signs = half.signs.copy()
            half.signs[np.arange(len(at)), at] = sign
        return halves[0].joined(halves[1])


class Search:
    """Branch and bound for one image.

    Parameters
    ----------
    region : Region
        With the bounds of all images.
    i : int
        The number of the image there.
    x : (…)
    y : int
    epsilon : float
    worst : (K,)
        The first bounds on z_k - z_y.
    """

    def __init__(self, region: Region, i: int, x: Array, y: int, epsilon: float, worst: Array):
        row = region.rows(np.array([i]))
        self.model, self.low, self.high, self.hidden = (
            row[name] for name in ("model", "low", "high", "hidden")
        )
        self.region, self.i = region, i
        self.y, self.limits = y, (np.clip(x - epsilon, 0, 1), np.clip(x + epsilon, 0, 1))
        self.worst = worst
        # For each layer, a mask of its unstable ReLUs; and in which columns of (D, U) these are.
        self.at = [unstable(*bounds).reshape(-1) for bounds in self.hidden]
        ends = np.cumsum([0, *map(np.sum, self.at)])
        self.columns = [slice(*pair) for pair in pairwise(ends)]

    def decide(self, budget: int, steps: int) -> Verdict:
        """The answer, or what is known after this many domains."""
        began, spent = time.thread_time(), 0
        queue = self.whole()
        answer, x_adv = "proved", None
        while len(queue) and answer == "proved":
            if spent >= budget:
                answer = "open"
                break
            order, most = np.argsort(-queue.bounds), min(BATCH, budget - spent)  # the worst first
            domains, queue = queue.take(order[:most]), queue.take(order[most:])
            corners, scores = self.bound(domains, steps)
            spent += len(domains)
            x_adv = self.broken_by(corners)
            alive, leaf = ~(domains.bounds < 0), scores.max(1, initial=-1) < 0
            for k in np.flatnonzero(alive & leaf):
                alive[k], corner = self.solve(domains.take(slice(k, k + 1)))
                x_adv = corner if x_adv is None else x_adv
            if x_adv is not None:
                answer = "broken"
            elif (alive & leaf).any():
                answer = "open"
            split = np.flatnonzero(alive & ~leaf)
            if answer == "proved" and len(split):
                parents = domains.take(split)
                queue = queue.joined(parents.split(self.chosen(parents, scores[split])))
        return Verdict(answer, x_adv, spent, time.thread_time() - began)

    def whole(self) -> Domains:
        """One domain without constraints for each class that the first bounds leave open."""
        worst = self.worst
        rivals = np.flatnonzero(~(worst < 0) & (np.arange(len(worst)) != self.y))
        below = [
            lines(*bounds)[1].reshape(-1)[at]
            for bounds, at in zip(self.hidden, self.at, strict=True)
        ]
        slopes = np.tile(np.concatenate([np.zeros(0, worst.dtype), *below]), (len(rivals), 1))
        zeros = np.zeros_like(slopes)
        return Domains(zeros.astype(np.int8), slopes, zeros, rivals, worst[rivals])

    def row(self, d: Domains) -> dict[str, Any]:
        """The arguments of :func:`linear_bound`, a row for each domain."""
        hidden = []
        for (low, high), at, columns in zip(self.hidden, self.at, self.columns, strict=True):
            signs = self.spread(d.signs.T[columns], at, low)
            hidden.append((np.where(signs > 0, 0, low), np.where(signs < 0, 0, high)))
        label, rival = (np.arange(len(self.worst)) == k for k in (self.y, d.rivals[:, None]))
        row = {"model": self.model, "low": self.low, "high": self.high, "hidden": hidden}
        return {**row, "c": rival.astype(self.low.dtype) - label}

    @staticmethod
    def spread(values: Any, at: Array, like: Array) -> Any:
        """(U, D) -> (D, …): values at the unstable ReLUs of a layer, zeros at the others."""
        shape, n = like.shape[1:], values.shape[1]
        full = ops.reshape(ops.put_at(values, at, (like[0].size, n)), (*shape, n))
        return ops.transpose(full, (len(shape), *range(len(shape))))

    def on_layers(self, values: Any) -> list:
        """(D, U) -> for each layer (D, …)"""
        by_relu = ops.transpose(values)
        parts = zip(self.columns, self.at, self.hidden, strict=True)
        return [self.spread(by_relu[columns], at, low) for columns, at, (low, _) in parts]

    def bound(self, d: Domains, steps: int) -> tuple[Array, Array]:
        """Find slopes and multipliers with a low bound, and set the bounds of the domains.

        Returns
        -------
        corners : (D, …)
            Images at which the linear functions are largest.
        scores : (D, U)
            How much a split may gain; below 0 where there is nothing to split.
        """
        row, best = self.row(d), d.bounds + np.inf
        slopes, betas = Tensor(d.slopes.copy()), Tensor(d.betas.copy())
        adam = optim.Adam([slopes, betas])
        for step in range(steps):
            how = self.lines_of(d, slopes, betas)
            bound, _, _ = linear_bound(**row, **how, create_graph=True)
            better = bound.value < best
            best = np.where(better, bound.value, best)
            d.slopes = np.where(better[:, None], slopes.value, d.slopes)
            d.betas = np.where(better[:, None], betas.value, d.betas)
            if (best < 0).all():
                break
            adam.lr = RATE * 0.97**step
            adam.step(grad(bound.sum(), [slopes, betas]))
            slopes.value, betas.value = ops.clip(slopes.value, 0, 1), ops.maximum(betas.value, 0)

        how = self.lines_of(d, d.slopes, d.betas)
        bound, g, relus = linear_bound(**row, **how, errors=self.errors())
        d.bounds = np.fmin(d.bounds, bound)
        scores = [self.score(relu, at) for relu, at in zip(relus, self.at, strict=True)]
        corners = np.where(g > 0, self.limits[1], self.limits[0])
        return corners, np.concatenate([d.slopes[:, :0], *scores], axis=1)  # there may be no ReLU

    def lines_of(self, d: Domains, slopes: Any, betas: Any) -> dict[str, Any]:
        """Slopes and multipliers (D, U) as arguments of :func:`linear_bound`."""
        return {"slopes": self.on_layers(slopes), "multipliers": self.on_layers(betas * d.signs)}

    @staticmethod
    def score(relu: Relu, at: Array) -> Array:
        """What the lines of each unstable ReLU may cost: (D, n), -1 where it is decided.

        With g > 0 that is g times the chord's distance at v = 0. With g < 0 the line below is off
        by at most min(-l, u), and half of that is counted. Bunel et al. (2020), "Branch and bound
        for piecewise linear neural network verification", score by such distances as well.
        """
        low, high, g, above = (
            a.reshape(len(a), -1)[:, at] for a in (*relu.bounds, relu.g, relu.above)
        )
        cost = np.where(g > 0, -g * above * low, -g * np.minimum(-low, high) / 2)
        return np.where(unstable(low, high), cost, -1)

    def chosen(self, d: Domains, scores: Array) -> Array:
        """The ReLU at which each domain is split: (D,).

        Of those with the highest scores, the one whose halves have the lowest bounds: what remains
        to be proved, Σ max(bound, 0) over both halves, counts. De Palma et al. (2021), "Improved
        branch and bound for neural network verification via Lagrangian decomposition".
        """
        tried = np.argsort(-scores, 1)[:, :TRIED]  # (D, T)
        halves = d.take(np.repeat(np.arange(len(d)), tried.shape[1])).split(tried.reshape(-1))
        remaining = []
        for part in (halves.take(slice(i, i + BATCH)) for i in range(0, len(halves), BATCH)):
            how = self.lines_of(part, part.slopes, part.betas)
            bound = value_of(linear_bound(**self.row(part), **how)[0])
            remaining.append(np.clip(bound, 0, part.bounds))
        total = np.concatenate(remaining).reshape(2, *tried.shape).sum(0)
        total[np.take_along_axis(scores, tried, 1) < 0] = np.inf  # decided already
        return np.take_along_axis(tried, total.argmin(1)[:, None], 1)[:, 0]

    def broken_by(self, corners: Array) -> Array | None:
        """The first of these images that is misclassified."""
        corners = corners.astype(self.low.dtype)
        wrong = np.flatnonzero(inputs.predict(self.model, corners) != self.y)
        return corners[wrong[0]] if len(wrong) else None

    def solve(self, d: Domains) -> tuple[bool, Array | None]:
        """A domain with no ReLU left to split: whether it is open, and an image that breaks it.

        The network is linear there, and so are the constraints: a linear program.
        """
        from scipy.optimize import linprog  # not at the top, because it takes a while

        (g,), (constant,) = self.linear_function(d)
        rows, limits = [], []
        for layer, columns in enumerate(self.columns):
            signs = d.signs[0, columns]
            split, (low, _) = np.flatnonzero(signs), self.hidden[layer]
            if len(split):
                c = np.zeros((len(split), low[0].size), low.dtype)
                c[np.arange(len(split)), np.flatnonzero(self.at[layer])[split]] = signs[split]
                c = c.reshape(-1, *low.shape[1:])
                found = self.linear_function(d.take(np.zeros(len(split), int)), c=c, of=layer)
                rows.append(found[0])
                limits.append(found[1])
        low, high = self.low.reshape(-1), self.high.reshape(-1)
        a, b = -np.concatenate([g[None], *rows]), np.concatenate([constant[None], *limits])
        # The solver's tolerance is absolute, so each row is in units of its largest term.
        size = np.fmax((abs(a) * np.maximum(abs(low), abs(high))).max(1), abs(b))
        size = np.where(size > 0, size, 1)
        a, b = a / size[:, None], b / size
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return True, None
        result = linprog(a[0], a[1:], b[1:] + CERTAIN, bounds=np.stack([low, high], axis=1))
        if result.status == INFEASIBLE or (
            result.status == SOLVED and b[0] - result.fun < -CERTAIN
        ):
            return False, None
        if result.status != SOLVED:
            return True, None
        x = result.x.reshape(self.low.shape).astype(self.low.dtype)
        return True, self.broken_by(np.clip(x, *self.limits))

    def errors(self, of: int | None = None) -> list[Array]:
        """What rounding adds to a bound at each node of its tape: (1, …)."""
        return [error[self.i : self.i + 1] for error in self.region.errors(of)]

    def linear_function(self, d: Domains, **how: Any) -> tuple[Array, Array]:
        """g (D, pixels) and constants (D,) with <c, v> ≤ <g, x> + constant, in spite of rounding.

        Without unstable ReLUs, both sides are equal up to rounding.
        """
        row = {**self.row(d), **how}
        bound, g, _ = linear_bound(**row, errors=self.errors(how.get("of")))
        middle, radius = (0.5 * (row["high"] + sign * row["low"]) for sign in (1, -1))
        constant = bound - (abs(g) * radius + g * middle).reshape(len(g), -1).sum(1)
        return g.reshape(len(g), -1), constant
