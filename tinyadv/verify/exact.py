"""The exact answer from a solver: a mixed-integer linear program, one for each image and class.

A ReLU h = relu(v) with l ≤ v ≤ u is a set of linear constraints with a choice a of 0 or 1:

    h ≥ v,   h ≥ 0,   h ≤ v - l (1 - a),   h ≤ u a

For a = 1 they say h = v ≥ 0, for a = 0 they say h = 0 ≥ v. The rest of the network is linear, so
the largest <c, f(x)> over a box is a mixed-integer linear program: Tjeng, Xiao & Tedrake (2019),
"Evaluating robustness of neural networks with mixed integer programming". Its *relaxation*, in
which a is any number from 0 to 1, is a linear program. Its optimum is a bound on the same number.

The tighter l and u, the less there is to search, so they are linear bounds. A stable ReLU needs
no variables: h is v or 0. The coefficients come from the tape. Each ReLU's output is made a leaf;
then the gradients of v, one row for each neuron, are the coefficients of what v is computed from.

The solver is HiGHS, by way of :func:`scipy.optimize.milp`. Its answers are exact up to its
tolerance and are about the network in exact arithmetic. The tolerance is absolute, about 1e-6, so
h and its constraints are in units of the largest |v|, and <c, f(x)> in units of its largest term.
The solver knows nothing of networks and is slower than :mod:`tinyadv.verify.split`, against which
it is tested.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyadv import inputs, layers
from tinyadv.balls import Linf
from tinyadv.layers import rebuilt
from tinyadv.tensor import Array, Tensor, grad, tape, value_of
from tinyadv.verify.interval import box
from tinyadv.verify.linear import hidden_bounds, linear_worst_logits
from tinyadv.verify.relus import opened, run, unstable, widen
from tinyadv.verify.split import CERTAIN, INFEASIBLE, Verdict, attacked, check_numpy, radius


@dataclass(frozen=True)
class Optimum:
    """What the solver found about the largest <c, f(x)>.

    Attributes
    ----------
    bound : float
        No input reaches more; -∞ if none reaches what was asked for.
    value : float
        What ``x`` reaches; -∞ without one. Equal to ``bound``, up to the solver's tolerance, if it
        had time enough and was not asked for ``at_least`` something. For a relaxation it is the
        bound, which need not be reached.
    x : (…) array or None
        The best input that was found.
    nodes : int
        How many nodes the solver's own branch and bound has looked at.
    """

    bound: float
    value: float
    x: Array | None
    nodes: int


class Program:
    """The program for one image and all directions.

    Parameters
    ----------
    model : Module
        As for :func:`tinyadv.verify.hidden_bounds`.
    low, high : (1, …)
        NumPy arrays, the box in which the inputs lie.

    Attributes
    ----------
    choices : int
        How many ReLUs are unstable; each has a variable 0 or 1.

    Raises
    ------
    TypeError
        As for :func:`tinyadv.verify.hidden_bounds`; or if the arrays are not NumPy's.
    ValueError
        If there is not exactly one image, a lower bound is above the upper one, or bounds on hidden
        neurons overflow.
    """

    def __init__(self, model: layers.Module, low: Array, high: Array):
        check_numpy(low, high)
        if len(low) != 1 or low.shape != high.shape:
            got = f"{low.shape} and {high.shape}"
            raise ValueError(f"expected the bounds on one image, each (1, …), got {got}")
        model = rebuilt(inputs.frozen(model), _in_float64)
        low, high = low.astype(np.float64), high.astype(np.float64)
        hidden = hidden_bounds(model, low, high)
        if not all(np.isfinite(bound).all() for bounds in hidden for bound in bounds):
            raise ValueError("bounds on hidden neurons overflow: look for huge or NaN weights")
        network, relus = opened(model, hidden, cut=True)
        image = Tensor(0.5 * (low + high))
        z = run(network, image)
        relus = sorted((relu for relu in relus if relu.h is not None), key=lambda r: r.h.number)
        pixels, self.shape = low.size, low.shape[1:]
        self.choices = sum(int(unstable(*relu.bounds).sum()) for relu in relus)
        # The variables: pixels, then h and then a of the unstable ReLUs.
        n, at = pixels + 2 * self.choices, pixels
        self.low, self.high = np.zeros(n), np.ones(n)
        self.low[:pixels], self.high[:pixels] = low.reshape(-1), high.reshape(-1)
        self.whole = np.arange(n) >= pixels + self.choices
        self.rows, self.limits = [np.zeros((0, n))], [np.zeros(0)]  # rows @ variables ≤ limits
        # What each leaf of the tape is, as a linear function of the variables.
        known = {id(image): (np.eye(pixels, n), np.zeros(pixels))}
        leaves = [image]
        for relu in relus:
            W, b = self._function(relu.v, leaves, known)  # of v: (neurons, n), (neurons,)
            least, most = (bound.reshape(-1) for bound in relu.bounds)  # l and u
            open_, on = np.flatnonzero(unstable(least, most)), least >= 0
            unit = np.maximum(-least, most)[open_]  # of h, a column each
            v, constant = W[open_] / unit[:, None], b[open_] / unit
            least, most = least[open_] / unit, most[open_] / unit
            h, a = np.zeros((2, len(open_), n))
            columns, each = at + np.arange(len(open_)), np.arange(len(open_))
            h[each, columns] = a[each, columns + self.choices] = 1
            self.high[columns], at = most, at + len(open_)
            self.rows += [v - h, h - v - least[:, None] * a, h - most[:, None] * a]
            self.limits += [-constant, constant - least, np.zeros(len(open_))]
            W, b = W * on[:, None], b * on
            W[open_] = unit[:, None] * h
            known[id(relu.h)] = W, b
            leaves.append(relu.h)
        self.logits = self._function(z, leaves, known)  # (K, n), (K,)

    @staticmethod
    def _function(y, leaves, known):
        """``y`` (1, …) as a linear function of the variables."""
        nodes, size = tape(y), y.size
        leaves = [leaf for leaf in leaves if any(leaf is node for node in nodes)]
        constant = y.value[:1].reshape(-1)
        values = [leaf.value[:1].reshape(-1) for leaf in leaves]
        widen(nodes, size)
        gradients = grad(y, leaves, np.eye(size).reshape(size, *y.shape[1:]))
        W, b = 0, constant
        for leaf, value, g in zip(leaves, values, gradients, strict=True):
            g = g.reshape(size, -1)
            matrix, offset = known[id(leaf)]
            W, b = W + g @ matrix, b - g @ value + g @ offset
        return W, b

    def largest(
        self, c: Array, *, relaxed: bool = False, at_least: float | None = None,
        seconds: float = 60.0,
    ) -> Optimum:  # fmt: skip
        """The largest <c, f(x)>.

        Parameters
        ----------
        c : (K,)
        relaxed : bool
            Solve the relaxation, a linear program.
        at_least : float, optional
            Only whether any input reaches this, up to 1e-6 of the largest term, and stop at the
            first that does: this is faster.
        seconds : float
            The solver's limit of time.

        Raises
        ------
        ValueError
            If ``c`` has another shape, or ``seconds`` is not above 0.
        """
        inputs.check_positive(seconds=seconds)
        if np.shape(c) != self.logits[1].shape:
            raise ValueError(f"c must be {self.logits[1].shape}, got {np.shape(c)}")
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        W, b = c @ self.logits[0], float(c @ self.logits[1])
        size = float((abs(W) * np.maximum(abs(self.low), abs(self.high))).max()) or 1.0
        rows, limits = self.rows, self.limits
        options: dict[str, Any] = {"time_limit": seconds}
        if at_least is not None:
            rows = [*rows, -W[None] / size]
            limits = [*limits, np.array([(b - at_least) / size + CERTAIN])]
            options["mip_rel_gap"] = np.inf
        constraints = LinearConstraint(csr_array(np.concatenate(rows)), ub=np.concatenate(limits))
        result = milp(
            -W / size, integrality=self.whole & (not relaxed), bounds=Bounds(self.low, self.high),
            constraints=constraints, options=options,
        )  # fmt: skip
        nodes = int(result.get("mip_node_count") or 0)
        if result.status == INFEASIBLE:
            return Optimum(-np.inf, -np.inf, None, nodes)
        value = -np.inf if result.x is None else float(W @ result.x + b)
        dual = result.fun if relaxed else result.get("mip_dual_bound")
        bound = np.inf if dual is None else max(b - size * dual, value)
        x = None if result.x is None else result.x[: np.prod(self.shape, dtype=int)]
        return Optimum(bound, value, x if x is None else x.reshape(self.shape), nodes)


def _in_float64(part):
    known = isinstance(part, np.ndarray) and part.dtype.kind == "f"
    return part.astype(np.float64) if known else None


def relaxed_worst_logits(model: layers.Module, low: Array, high: Array, y: Array) -> Array:
    """For each class k the largest z_k - z_y that the linear relaxation allows: (N, K) float64.

    A bound up to the solver's tolerance, with 0 for the label. It is as tight as linear bounds with
    the best slopes, or tighter; only behind max pooling intervals may be tighter still.

    Parameters
    ----------
    model : Module
        As for :func:`tinyadv.verify.hidden_bounds`.
    low, high : (N, …)
        NumPy arrays, the box in which the inputs lie.
    y : (N,) integers

    Raises
    ------
    TypeError, ValueError
        As for :class:`Program`.
    """
    worst = []
    for i in range(len(low)):
        program = Program(model, low[i : i + 1], high[i : i + 1])
        unit = np.eye(len(program.logits[1]))
        found = [program.largest(c - unit[y[i]], relaxed=True).bound for c in unit]
        worst.append(np.where(unit[y[i]], 0, found))
    return np.array(worst)


def solve(
    model: layers.Module, x: Array, y: Array, epsilon: float | Linf, *, seconds: float = 60.0
) -> list[Verdict]:
    """As :func:`tinyadv.verify.decide`, by mixed-integer programs: slower, and independent of it.

    PGD first, then linear bounds, then a program for each class that they leave open.

    Parameters
    ----------
    model, x, y, epsilon
        As for :func:`tinyadv.verify.decide`.
    seconds : float
        For each program; if it takes longer the answer may be "open".

    Returns
    -------
    list of Verdict
        ``domains`` counts the nodes of the solver's branch and bound.

    Raises
    ------
    TypeError, ValueError
        As for :func:`tinyadv.verify.decide` and :class:`Program`, and if ``seconds`` is not above
        0.
    """
    inputs.check_positive(seconds=seconds)
    x, y, x_adv, broken = attacked(model, x, y, epsilon)
    model, verdicts, epsilon = inputs.frozen(model), [], radius(epsilon)
    low, high = box(x, epsilon)
    worst = value_of(linear_worst_logits(model, low, high, y))
    unit = np.eye(worst.shape[1])
    for i in range(len(x)):
        rivals = [k for k in np.argsort(-worst[i]) if k != y[i] and not worst[i, k] < 0]
        if broken[i] or not rivals:
            answer = "broken" if broken[i] else "proved"
            verdicts.append(Verdict(answer, x_adv[i] if broken[i] else None, 0, 0.0))
            continue
        began, nodes, answer, found = time.thread_time(), 0, "proved", None
        program = Program(model, low[i : i + 1], high[i : i + 1])
        for k in rivals:
            optimum = program.largest(unit[k] - unit[y[i]], at_least=0.0, seconds=seconds)
            nodes += optimum.nodes
            if optimum.bound < 0:
                continue
            answer = "open"
            if optimum.x is not None:
                near = np.clip(optimum.x.astype(x.dtype), x[i] - epsilon, x[i] + epsilon)
                near = np.clip(near, 0, 1)
                if inputs.predict(model, near[None])[0] != y[i]:
                    answer, found = "broken", near
                    break
        verdicts.append(Verdict(answer, found, nodes, time.thread_time() - began))
    return verdicts
