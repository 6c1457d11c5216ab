"""Linear bounds (CROWN): backprop with another rule at the ReLU.

    c      (R, …)   directions: what is bounded is <c, f(x)> for all low ≤ x ≤ high
    l, u   (R, …)   bounds on v, what goes into a ReLU
    g      (R, …)   the gradient there: how much <c, f(x)> grows with the ReLU's output

Each of the R rows is one question: an example and a direction. Where l < 0 < u a ReLU lies between
two lines,

    s v  ≤  relu(v)  ≤  u (v - l) / (u - l)        with any slope 0 ≤ s ≤ 1,

and elsewhere it is a line itself, v or 0. Where g > 0 an upper bound on <c, f(x)> takes the line
above, where g < 0 the line below. With a line at each ReLU the network is linear. So backprop, if
it applies the slopes of these lines instead of the derivatives, returns a g at the image for which

    <c, f(x)>  ≤  <g, x> + constant        for all x in the box,

and the worst corner of a box is known. The constant need not be kept. At the middle of the box the
right-hand side is what the network returns there, plus g times the distance of the line from each
ReLU. Zhang et al. (2018), "Efficient neural network robustness certification with general
activation functions".

What goes into the first ReLU is bounded by intervals. What goes into the second is bounded by the
same pass, begun there, and so on through the network. Any slope s gives a valid bound, so gradient
descent on the bound may look for better ones (α-CROWN): Xu et al. (2021), "Fast and complete:
enabling complete verification with rapid and massively parallel incomplete verifiers".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from tinyadv import layers, ops, optim
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import L1, L2, Ball, Linf, per_example
from tinyadv.inputs import check_choice, check_counts, frozen
from tinyadv.losses import is_label
from tinyadv.parallel import by_examples, examples_last, in_threads
from tinyadv.tensor import Array, Tensor, grad, value_of
from tinyadv.verify.fields import ROWS, Fields
from tinyadv.verify.interval import check_bounds, interval_bounds, worst_logits
from tinyadv.verify.relus import (
    USED_TWICE,
    Relu,
    linear_nodes,
    lines,
    opened,
    rounding_errors,
    run,
    unstable,
    widen,
)
from tinyadv.verify.rounding import Bounds


def linear_bound(
    model: layers.Module, low: Any, high: Any, c: Array, hidden: Sequence[Bounds], *,
    of: int | None = None, slopes: Sequence | None = None, multipliers: Sequence = (),
    within: tuple[Ball, Array] | None = None, errors: Sequence[Array] = (),
    create_graph: bool = False, total: Callable | None = None,
) -> tuple[Any, Any, list[Relu]]:  # fmt: skip
    """An upper bound on <c, f(x)> for all low ≤ x ≤ high: a pass between lines, forward and back.

    Parameters
    ----------
    model : Module
    low, high : (R, …)
        Or (1, …), if all rows are of one example; so may be all other arrays but ``c``.
    c : (R, …)
    hidden : list of (low, high), each (R, …)
        Bounds on what goes into each ReLU.
    of : int, optional
        Bound <c, v> for what goes into the ReLU with this number instead.
    slopes : list of (R, …), optional
        Of the lines below; by default 0 or 1.
    multipliers : list of (R, …), optional
        Add Σ <multiplier, v> over the ReLUs to what is bounded.
    within : (Ball, x), optional
        The inputs also lie in this ball around x (R, …).
    errors : list of (R, …), optional
        From :func:`tinyadv.verify.relus.rounding_errors`: the bound then holds in spite of
        rounding, and is float64.
    create_graph : bool
        Return tensors that can be differentiated.
    total : callable, optional
        What to do with the parts (R, …) of the bound, instead of adding up each row.

    Returns
    -------
    bound : (R,)
    g : (R, …)
        The gradient at the image.
    relus : list of Relu
        What the pass went through, each with the gradient at its output as ``g`` (R, …).
    """
    precise = (lambda t: value_of(t).astype(np.float64)) if errors else (lambda t: t)
    network, relus = opened(model, hidden, slopes, stop=of)
    middle, radius = 0.5 * (low + high), 0.5 * (high - low)
    image = Tensor(value_of(middle))
    y = run(network, image)
    relus, nodes = [relu for relu in relus if relu.h is not None], linear_nodes(y, image)
    if len(middle) < len(c):
        widen(nodes, len(c))
    terms = [(y, c), *((relu.v, m) for relu, m in zip(relus, multipliers, strict=False))]
    out = row_sums(v * m for v, m in terms)

    asked, ones = [image, *(relu.h for relu in relus)], array_module(out.value).ones_like(out.value)
    gradients = grad(out, [*asked, *nodes] if errors else asked, ones, create_graph=create_graph)
    g, *at_relus = map(precise, gradients[: len(asked)])
    for relu, g_relu in zip(relus, at_relus, strict=True):
        relu.g = g_relu
    g_nodes = zip(gradients[len(asked) :], errors, strict=True)
    parts = chain(
        (precise(v) * m for v, m in terms),
        [_reach(g, middle, radius, within)],
        (relu.g * relu.gap(relu.g, precise) for relu in relus),
        (abs(g_node) * error for g_node, error in g_nodes),
    )
    return (total or row_sums)(parts), g, relus


def row_sums(parts: Iterable) -> Any:
    """What each row of some arrays (R, …) adds up to: (R,)."""
    return sum(ops.sum(ops.reshape(t, (t.shape[0], -1)), axis=1) for t in parts)


def _reach(g: Any, middle: Any, radius: Any, within: tuple | None) -> Any:
    """What adds up to the largest <g, x - middle> for the inputs x, or more: (R, …)."""
    box = ops.abs(g) * radius
    if within is None or within[0].epsilon == math.inf:  # an infinite radius times a gradient of 0
        return box
    ball, x = within
    in_ball = row_sums([g * (x - middle)]) + ball.epsilon * _dual_norm(ball, g)
    return ops.minimum(row_sums([box]), in_ball)


def _dual_norm(ball: Ball, g: Any) -> Any:
    """The largest <g, δ> for ‖δ‖ ≤ 1: (R,)."""
    if isinstance(ball, L2):
        return ops.sqrt(row_sums([g * g]) + float(np.finfo(value_of(g).dtype).tiny))
    size = ops.reshape(ops.abs(g), (g.shape[0], -1))
    return ops.max(size, axis=1) if isinstance(ball, L1) else ops.sum(size, axis=1)


# ---------------------------------------------------------------------------------- whole networks


class Region:
    """A network and what may go into it, with bounds on what then goes into its ReLUs.

    Parameters
    ----------
    model : Module
    low, high : (N, …)
    within : (Ball, x), optional
        The inputs also lie in this ball around x (N, …).
    outward : bool
        Whether bounds are to hold in spite of rounding.
    linear : bool
        Whether to tighten the intervals by linear bounds, where these leave open which side of its
        kink a ReLU is on.

    Attributes
    ----------
    hidden : list of (low, high), each (N, …)
    network : Module
        The opened network: its interval bounds fill ``hidden``.
    """

    def __init__(
        self, model: layers.Module, low: Array, high: Array, within: Any = None,
        outward: bool = True, linear: bool = True,
    ):  # fmt: skip
        self.model, self.low, self.high = model, low, high
        self.within, self.outward, self.linear = within, outward, linear
        if within is not None:
            if not isinstance(within, (tuple, list)) or len(within) != 2:
                raise TypeError(f"within must be a pair (ball, x), got {within!r}")
            if not isinstance(within[0], (Linf, L2, L1)):
                raise TypeError(f"no linear bounds for {within[0]!r}: use Linf, L2 or L1")
        if outward:
            check_bounds(low, high)
        self.network, relus = opened(model, found=self._found)
        self.hidden: list[Any] = [None] * len(relus)
        self._errors: dict[int | None, list[Array]] = {}

    def find(self, bounds: Callable, *args: Any) -> Any:
        """``bounds(network, low, high, *args)``, interval bounds that also fill ``hidden``."""
        found = bounds(self.network, self.low, self.high, *args)
        if None in self.hidden:
            raise ValueError(
                f"ReLU number {self.hidden.index(None)} of the network (from 0) has no bounds: its "
                "class must use it, and its interval rule must call interval_bounds with it"
            )
        return found

    def rows(self, which: Array | slice) -> dict[str, Any]:
        """The arguments of :func:`linear_bound` for these examples."""
        return {
            "model": self.model, "low": _take(self.low, which), "high": _take(self.high, which),
            "hidden": [b and (_take(b[0], which), _take(b[1], which)) for b in self.hidden],
            "within": self.within and (self.within[0], _take(self.within[1], which)),
        }  # fmt: skip

    def errors(self, of: int | None = None) -> list[Array]:
        """What rounding adds to a bound at each node of its tape: (N, …)."""
        if not self.outward:
            return []
        if of in self._errors:
            return self._errors[of]
        network, relus = opened(self.model, self.hidden, stop=of)
        image = Tensor(0.5 * (self.low + self.high))
        found = rounding_errors(run(network, image), image, self.low, self.high, relus)
        self._errors[of] = found
        return found

    def asking(self, i: int, of: int | None = None) -> Callable:
        """``ask(c, total)``: :func:`linear_bound` for many directions, but one example."""
        one = slice(i, i + 1)
        row = {**self.rows(one), "of": of, "errors": [error[one] for error in self.errors(of)]}
        return lambda c, total=row_sums: linear_bound(**row, c=c, total=total)[0]

    def _found(self, k, low, high):
        if self.hidden[k] is not None:
            raise ValueError(USED_TWICE)
        self.hidden[k] = low, high
        if self.linear and (any(self.hidden[:k]) or self.within is not None):
            self.hidden[k] = self._tightened(k, value_of(low), value_of(high))
        return self.hidden[k]

    def _tightened(self, k, low, high):
        """The tighter of these bounds and linear ones at each neuron that may be unstable."""
        self.hidden[k], xp = None, array_module(low)
        self.errors(of=k)  # now, and not in each thread
        either, low, high = to_numpy(unstable(low, high)), low.copy(), high.copy()
        flat_low, flat_high = low.reshape(len(low), -1), high.reshape(len(low), -1)  # views
        images = np.flatnonzero(either.reshape(len(low), -1).any(1))

        fields = None
        if self.within is None and low.ndim == 4:
            positions = np.flatnonzero(either.reshape(*low.shape[:2], -1).any((0, 1)))
            if either.sum() > 2 * len(positions):  # fewer passes, even with those for the fields
                fields = Fields(self.asking(images[0], k), low, positions)

        def tighten(i):
            neurons, ask = np.flatnonzero(either[i]), self.asking(i, k)
            rows = fields.rows(neurons) if fields else np.arange(len(neurons))
            count = int(rows.max()) + 1
            for these in np.array_split(np.arange(count), math.ceil(2 * count / ROWS)):
                here = np.isin(rows, these)
                some, row = xp.asarray(neurons[here]), xp.asarray(rows[here] - these[0])
                unit = xp.zeros((len(these), flat_low.shape[1]), low.dtype)
                unit[row, some] = 1
                c = xp.concatenate([unit, -unit]).reshape(-1, *low.shape[1:])
                if fields:
                    bound = ask(c, fields.sums).reshape(2, len(unit), -1)
                    bound = bound[:, row, xp.asarray(fields.columns(neurons[here]))]
                else:
                    bound = value_of(ask(c)).reshape(2, -1)
                top, bottom = _rounded_up(bound, low.dtype)
                flat_high[i, some] = xp.minimum(flat_high[i, some], top)
                flat_low[i, some] = xp.maximum(flat_low[i, some], -bottom)

        in_threads(tighten, images) if xp is np else list(map(tighten, images))
        return low, high

    def worst_logits(self, y: Array, steps: int = 0) -> Any:
        """As :func:`linear_worst_logits`."""
        worst = self.find(worst_logits, y, self.outward)
        xp, (n, k), errors = array_module(value_of(worst)), worst.shape, self.errors()
        c = xp.eye(k, dtype=worst.dtype) - is_label(y, worst)[:, None, :]  # (N, K, K): z_k - z_y

        def bound(which, c):
            row = {**self.rows(which), "c": c}
            slopes = best_slopes(row, steps) if steps and self.hidden else None
            own = [_take(error, which) for error in errors]
            how = {"errors": own, "create_graph": not self.outward}
            return linear_bound(**row, slopes=slopes, **how)[0]

        which, c = xp.repeat(xp.arange(n), k), c.reshape(n * k, k)
        found = by_examples(bound, which, c, least=16, most=ROWS)
        if self.outward:
            found = _rounded_up(value_of(found), value_of(worst).dtype)
        return ops.minimum(worst, ops.reshape(found, (n, k)))


def _take(a, which):
    """Rows of an array, in the memory order that convolutions use, or of a tensor."""
    return a[which] if isinstance(a, Tensor) else examples_last(a[which])


def _rounded_up(a, dtype):
    near, xp = a.astype(dtype), array_module(a)
    return xp.where(near < a, xp.nextafter(near, dtype.type(np.inf)), near)


def hidden_bounds(
    model: layers.Module, low: Array, high: Array, *, within: tuple[Ball, Array] | None = None,
    outward: bool = True,
) -> list[Bounds]:  # fmt: skip
    """Bounds on what goes into each ReLU, linear ones or those of intervals if they are tighter.

    Parameters
    ----------
    model : Module
        Of linear layers, ``ReLU`` and ``MaxPool2d``, of which each round of a tournament counts as
        a ReLU.
    low, high : (N, …)
        The box in which the inputs lie.
    within : (Ball, x), optional
        They also lie in this ball around x (N, …).
    outward : bool
        Whether the bounds hold in spite of rounding.

    Returns
    -------
    list of (low, high), each (N, …)

    Raises
    ------
    TypeError
        If the network is not linear between its ReLUs, has no interval rule, or does not promise
        ``by_example``; or if ``within`` is not a pair of an L∞, L2 or L1 ball and x.
    ValueError
        With ``outward``, if a lower bound is above the upper one.
    """
    region = Region(frozen(model), low, high, within, outward)
    region.find(interval_bounds, outward)
    return region.hidden


def linear_worst_logits(
    model: layers.Module, low: Array, high: Array, y: Array, outward: bool = True, *,
    steps: int = 0, hidden: str = "linear", within: tuple[Ball, Array] | None = None,
) -> Any:  # fmt: skip
    """For each class k an upper bound on z_k - z_y, with 0 for the label: (N, K).

    It is the tighter of the linear bound (CROWN) and the bound by intervals, which takes the bounds
    on hidden neurons into account. It can take the place of :func:`tinyadv.verify.worst_logits` in
    :func:`tinyadv.verify.certified` and in :class:`tinyadv.defenses.IntervalBound`.

    Parameters
    ----------
    model : Module
        As for :func:`hidden_bounds`.
    low, high : (N, …)
    y : (N,) integers
    outward : bool
        Whether the bounds hold in spite of rounding. If not, they are tensors, which can be
        differentiated: so a network can be trained on them.
    steps : int
        Steps of gradient descent that look for better slopes of the lines below (α-CROWN).
    hidden : {"linear", "interval"}
        Where the bounds on hidden neurons come from. With intervals it takes a single pass, and
        training differentiates them as well (CROWN-IBP): Zhang et al. (2020), "Towards stable and
        efficient training of verifiably robust neural networks".
    within : (Ball, x), optional
        The inputs also lie in this ball, L∞, L2 or L1, around x (N, …).

    Returns
    -------
    (N, K) array, or Tensor if not ``outward``

    Raises
    ------
    TypeError
        As for :func:`hidden_bounds`.
    ValueError
        As for :func:`hidden_bounds`, if an argument is out of range, or if the network does not
        return logits (N, K).
    """
    check_counts(0, steps=steps)
    check_choice(("linear", "interval"), hidden=hidden)
    model = frozen(model) if outward else model
    region = Region(model, low, high, within, outward, linear=hidden == "linear")
    return region.worst_logits(y, steps)


def best_slopes(row: dict, steps: int, rate: float = 0.2) -> list[Array]:
    """The slopes of the lines below at which the bound of each row was lowest.

    Adam on the bound, which is differentiated with respect to the slopes, and projection onto
    [0, 1].

    Parameters
    ----------
    row : dict
        The arguments of :func:`linear_bound`.
    steps : int
    rate : float
        The learning rate, which decays by 3 % in each step.
    """
    slopes = [Tensor(lines(*bounds)[1]) for bounds in row["hidden"]]
    best, kept = math.inf, [slope.value for slope in slopes]
    adam = optim.Adam(slopes)
    for step in range(steps + 1):
        bound, _, _ = linear_bound(**row, slopes=slopes, create_graph=True)
        better = bound.value < best
        best = ops.minimum(bound.value, best)
        kept = [
            ops.where(per_example(better, slope), slope.value, k)
            for slope, k in zip(slopes, kept, strict=True)
        ]
        if step == steps:
            break
        adam.lr = rate * 0.97**step
        adam.step(grad(bound.sum(), slopes))
        for slope in slopes:
            slope.value = ops.clip(slope.value, 0, 1)
    return kept
