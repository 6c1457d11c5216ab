"""Optimisers, learning-rate schedules, and a running average of the weights.

    w    a parameter                    dw   its gradient g
    η    the learning rate, ``lr``

An optimiser changes parameters in place: ``optimizer.step(grads)`` takes the list that ``grad``
returned. A schedule is a function that maps the time in epochs, including fractions, to a learning
rate; :func:`tinyadv.train.fit` sets ``optimizer.lr`` to its value before every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from tinyadv.backend import array_module, elementwise, to_numpy
from tinyadv.checkpoint import check_like
from tinyadv.inputs import check_each, check_numbers, check_positive, check_shares
from tinyadv.parallel import in_threads, threads
from tinyadv.tensor import Array, Tensor

Schedule = Callable[[float], float]  # epochs since the start -> learning rate

# A formula makes several passes over its arrays. Large arrays are updated piece by piece, so that
# only the first pass reads from memory and the others read from the cache. In numbers, not bytes.
# On a GPU the formula is one kernel, and arrays stay whole.
PIECE = 1 << 16
WORTH_A_THREAD = 16  # pieces


class Optimizer:
    """The base class of all optimisers: parameters, a learning rate, and *slots*.

    Slots are arrays that an optimiser keeps for each parameter, such as a running mean of its
    gradients. For parameters in half precision the slots are float32, and so is the arithmetic of a
    step. A subclass names them in ``slot_names``, passes the constants of its formula on as
    ``options``, and writes the formula in ``_update``.

    Parameters
    ----------
    params : list of Tensor
        :meth:`step` changes their arrays in place. Layers whose parameters are not in the list stay
        as they are.
    lr : float
        The initial learning rate η; the attribute ``lr`` may be set at any time.
    weight_decay : float
        Adds weight_decay · w to each gradient, which is an L2 penalty of weight_decay/2 · ‖w‖².
    **options
        They become attributes. A state can only be loaded by an optimiser with the same options.

    Raises
    ------
    TypeError
        If ``params`` is not a list of tensors.
    ValueError
        If a parameter is given twice, or a number is out of range.
    """

    slot_names: tuple[str, ...] = ()
    weight_decay: float

    def __init__(self, params: Sequence[Tensor], lr: float, weight_decay: float, **options: float):
        self.params = _checked_params(params)
        check_numbers(lr=lr, weight_decay=weight_decay)
        self.option_names = (*options, "weight_decay")
        vars(self).update(options, weight_decay=weight_decay)
        self.lr = self.initial_lr = float(lr)
        self.steps = 0  # taken so far
        self.slots = [
            [array_module(p.value).zeros(p.shape, _wide(p.dtype)) for _ in self.slot_names]
            for p in self.params
        ]

    def step(self, grads: Sequence[Array]) -> None:
        """Update every parameter with its gradient.

        Parameters
        ----------
        grads : list of array
            In the order of the parameters, and with their shapes.

        Raises
        ------
        TypeError
            If the gradients are tensors.
        ValueError
            If the number of gradients or one of their shapes is wrong, or the learning rate is not
            a finite number ≥ 0.
        """
        if any(isinstance(g, Tensor) for g in grads):
            raise TypeError("gradients must be arrays, got Tensors: take the .value of each")
        shapes, expected = [g.shape for g in grads], [p.shape for p in self.params]
        if shapes != expected:
            raise ValueError(f"expected gradients of shapes {expected}, got {shapes}")
        check_numbers(lr=self.lr)
        self.steps += 1
        self.lr = float(self.lr)  # a NumPy float64 would turn float32 weights into float64
        pieces = []
        for p, g, slots in zip(self.params, grads, self.slots, strict=True):
            xp = array_module(p.value)
            if xp is not np:
                pieces.append((xp, p.value, g, *slots))
                continue
            if not p.value.flags.c_contiguous:  # reshape(-1) must return a view
                p.value = np.ascontiguousarray(p.value)
            flat = [array.reshape(-1) for array in (p.value, g, *slots)]
            for start in range(0, p.size, PIECE):
                pieces.append((xp, *(array[start : start + PIECE] for array in flat)))
        several = threads() if len(pieces) > WORTH_A_THREAD and xp is np else 1
        in_threads(self._update_all, [pieces[i::several] for i in range(several)])

    def _update_all(self, pieces):
        for xp, w, dw, *state in pieces:
            narrow, wide = w, _wide(w.dtype)
            if w.dtype.itemsize < wide.itemsize:
                w, dw = w.astype(wide), dw.astype(wide)
            if self.weight_decay:
                dw = _plus(dw, self.weight_decay, w)
            self._update(xp, w, dw, *state)
            if w is not narrow:
                narrow[...] = w

    def _update(self, xp, w, dw, *state):
        """Change ``w`` and ``state`` in place."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """Everything that :meth:`load_state_dict` needs to continue with the same numbers."""
        return {
            "kind": type(self).__name__,
            "options": {name: getattr(self, name) for name in self.option_names},
            "initial_lr": self.initial_lr,
            "lr": self.lr,
            "steps": self.steps,
            "slots": {name: to_numpy(array).copy() for name, array in self._named_slots().items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state.

        This includes the learning rate, unless this optimiser was made with a different initial
        learning rate: then it keeps its own.

        Raises
        ------
        ValueError
            If the state belongs to an optimiser of another class, with other options or with
            parameters of other shapes. Nothing is changed then.
        """
        check_like(state, self.state_dict(), "optimizer", equal=("kind", "options"))
        for name, array in self._named_slots().items():
            array[...] = array_module(array).asarray(state["slots"][name])
        self.steps = state["steps"]
        if state["initial_lr"] == self.initial_lr:
            self.lr = state["lr"]

    def _named_slots(self) -> dict[str, Array]:
        return {
            f"{i}.{name}": array
            for i, arrays in enumerate(self.slots)
            for name, array in zip(self.slot_names, arrays, strict=True)
        }


@elementwise
def _plus(a, factor, b):
    return a + factor * b


def _wide(dtype):
    """float32 instead of float16, in which squares of gradients and an ε of 1e-8 are 0."""
    return np.result_type(dtype, np.float32)


def _checked_params(params: Sequence[Tensor]) -> list[Tensor]:
    """The parameters as a list, or an error unless they are different tensors."""
    params = list(params)
    if not params or not all(isinstance(p, Tensor) for p in params):
        raise TypeError("expected a list of Tensors, such as model.parameters()")
    if len(set(map(id, params))) < len(params):
        raise ValueError("a parameter is given twice, and would be changed twice: remove one")
    return params


def _check_factors(**factors: float) -> None:
    """Raise ValueError unless these may be factors of a running mean."""
    check_each("≥ 0 and < 1", lambda factor: 0 <= factor < 1, **factors)


# The formulas. Numbers are combined outside, see ``backend.elementwise``.


@elementwise
def _sgd(w, v, dw, lr, momentum, ahead):
    if v is not None:
        v *= momentum
        v += dw
        dw = v if ahead is None else dw + ahead * v
    w -= lr * dw


@elementwise
def _rmsprop(w, s, dw, lr, rho, rest, epsilon):
    s *= rho
    s += rest * dw * dw
    w -= lr * dw / (array_module(w).sqrt(s) + epsilon)


@elementwise
def _adam(w, m, v, dw, lr, beta1, rest1, beta2, rest2, v_correction, epsilon):
    m *= beta1
    m += rest1 * dw
    v *= beta2
    v += rest2 * dw * dw
    w -= lr * m / (array_module(w).sqrt(v) / v_correction + epsilon)


class SGD(Optimizer):
    """Stochastic gradient descent: w ← w - η·v with v ← momentum·v + g.

    Parameters
    ----------
    params, lr, weight_decay
        As for :class:`Optimizer`.
    momentum : float
        0 is plain gradient descent.
    nesterov : bool
        Nesterov momentum: step along g + momentum·v. Sutskever et al. (2013), "On the importance of
        initialization and momentum in deep learning".
    """

    momentum: float
    nesterov: bool

    def __init__(self, params: Sequence[Tensor], lr: float = 0.01, *, momentum: float = 0.0,
                 nesterov: bool = False, weight_decay: float = 0.0):  # fmt: skip
        _check_factors(momentum=momentum)
        if nesterov and momentum == 0:
            raise ValueError("nesterov=True needs a momentum above 0")
        self.slot_names = ("velocity",) if momentum else ()
        super().__init__(params, lr, weight_decay, momentum=momentum, nesterov=nesterov)

    def _update(self, xp, w, dw, v=None):
        _sgd(w, v, dw, self.lr, self.momentum, self.momentum if self.nesterov else None)


class RMSprop(Optimizer):
    """w ← w - η·g / (√s + ε), where s ← ρ·s + (1 - ρ)·g² is a running mean of g².

    Tieleman & Hinton (2012), lecture 6.5 of "Neural Networks for Machine Learning". The defaults
    are Keras's.

    Parameters
    ----------
    params, lr, weight_decay
        As for :class:`Optimizer`.
    rho, epsilon : float
        ρ and ε, which is above 0 and prevents 0 / 0.
    """

    slot_names = ("square",)
    rho: float
    epsilon: float

    def __init__(self, params: Sequence[Tensor], lr: float = 0.001, *, rho: float = 0.9,
                 epsilon: float = 1e-7, weight_decay: float = 0.0):  # fmt: skip
        _check_factors(rho=rho)
        check_positive(epsilon=epsilon)
        super().__init__(params, lr, weight_decay, rho=rho, epsilon=epsilon)

    def _update(self, xp, w, dw, s):
        _rmsprop(w, s, dw, self.lr, self.rho, 1 - self.rho, self.epsilon)


class Adam(Optimizer):
    """w ← w - η·m̂ / (√v̂ + ε), where m and v are running means of g and g².

    m̂ = m / (1 - β₁ᵗ) and v̂ = v / (1 - β₂ᵗ) correct the bias that comes from starting at 0. Kingma &
    Ba (2015), "Adam: a method for stochastic optimization", algorithm 1.

    Parameters
    ----------
    params, lr, weight_decay
        As for :class:`Optimizer`.
    beta1, beta2, epsilon : float
        β₁, β₂ and ε, which is above 0 and prevents 0 / 0.
    """

    slot_names = ("mean", "square")
    beta1: float
    beta2: float
    epsilon: float

    def __init__(self, params: Sequence[Tensor], lr: float = 0.001, *, beta1: float = 0.9,
                 beta2: float = 0.999, epsilon: float = 1e-8,
                 weight_decay: float = 0.0):  # fmt: skip
        _check_factors(beta1=beta1, beta2=beta2)
        check_positive(epsilon=epsilon)
        super().__init__(params, lr, weight_decay, beta1=beta1, beta2=beta2, epsilon=epsilon)

    def _update(self, xp, w, dw, m, v):
        lr = self.lr / (1 - self.beta1**self.steps)  # m̂ = m / (1 - β₁ᵗ)
        v_correction = math.sqrt(1 - self.beta2**self.steps)
        _adam(w, m, v, dw, lr, self.beta1, 1 - self.beta1, self.beta2, 1 - self.beta2,
              v_correction, self.epsilon)  # fmt: skip


# -------------------------------------------------------------------------- average of the weights


class WeightAverage:
    """A running average of the weights, which often generalises better than the last weights.

    After each step w̄ ← d·w̄ + (1 - d)·w with d = min(decay, t / (t + 1)), where t counts the steps
    before. So w̄ is at first the mean of all weights so far, and from step 1 / (1 - decay) on an
    exponential moving average. With ``decay=1`` it stays the mean. Polyak & Juditsky (1992),
    "Acceleration of stochastic approximation by averaging"; for adversarial training Gowal et al.
    (2020), "Uncovering the limits of adversarial training against norm-bounded adversarial
    examples".

    Parameters
    ----------
    params : list of Tensor
    decay : float
        From 0 (no average) to 1.

    Attributes
    ----------
    means : list of array
        w̄ of each parameter, in float32 if the parameter has half precision.
    steps : int
        Updates so far.

    Raises
    ------
    TypeError
        If ``params`` is not a list of tensors.
    ValueError
        If ``decay`` is out of range.
    """

    def __init__(self, params: Sequence[Tensor], decay: float = 0.999):
        check_shares(decay=decay)
        self.params, self.decay, self.steps = _checked_params(params), float(decay), 0
        self.means = [p.value.astype(_wide(p.dtype)) for p in self.params]
        self.weights: list[Array] | None = None  # w, while the average is swapped in

    def update(self) -> None:
        """Take in the weights after a step."""
        d = min(self.decay, self.steps / (self.steps + 1))
        for p, mean in zip(self.params, self.means, strict=True):
            mean *= d
            mean += (1 - d) * p.value.astype(mean.dtype, copy=False)
        self.steps += 1

    def swap(self) -> None:
        """Give the parameters their averages; the next call gives them their own weights back."""
        before = [p.value for p in self.params]
        after = self.means if self.weights is None else self.weights
        for p, value in zip(self.params, after, strict=True):
            p.value = value.astype(p.dtype, copy=False)
        self.weights = before if self.weights is None else None

    def state_dict(self) -> dict:
        """Everything that :meth:`load_state_dict` needs to continue with the same numbers."""
        means = {str(i): to_numpy(mean).copy() for i, mean in enumerate(self.means)}
        return {"decay": self.decay, "steps": self.steps, "means": means}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a state.

        Raises
        ------
        ValueError
            If its decay or the shapes of its parameters differ. Nothing is changed then.
        """
        check_like(state, self.state_dict(), "average", equal=("decay",))
        self.steps = state["steps"]
        for i, mean in enumerate(self.means):
            mean[...] = array_module(mean).asarray(state["means"][str(i)])


# ------------------------------------------------------------------------------------ schedules


def constant(lr: float) -> Schedule:
    """The same learning rate at all times."""
    check_numbers(lr=lr)
    return lambda epoch: lr


def piecewise_linear(points: Sequence[tuple[float, float]]) -> Schedule:
    """Linear between the points ``(epoch, lr)``; constant before the first and after the last.

    >>> lr = piecewise_linear([(0, 0.0), (4, 0.005), (10, 0.0)])
    >>> lr(2), lr(7), lr(12)
    (0.0025, 0.0025, 0.0)
    """
    points = [(epoch, lr) for epoch, lr in points]
    epochs = [epoch for epoch, _ in points]
    for epoch, lr in points:
        check_numbers(epoch=epoch, lr=lr)
    if not points or any(a >= b for a, b in pairwise(epochs)):
        raise ValueError(
            f"points must be (epoch, lr) pairs in increasing order of the epoch, got {points}"
        )

    def schedule(epoch: float) -> float:
        if epoch <= epochs[0]:
            return points[0][1]
        for (e0, lr0), (e1, lr1) in pairwise(points):
            if epoch <= e1:
                return lr0 + (lr1 - lr0) * (epoch - e0) / (e1 - e0)
        return points[-1][1]

    return schedule


def cosine(lr: float, epochs: float) -> Schedule:
    """Half a period of a cosine: from ``lr`` down to 0 after ``epochs``.

    Loshchilov & Hutter (2017), "SGDR", equation 5, without restarts.
    """
    check_numbers(lr=lr)
    check_positive(epochs=epochs)
    return lambda epoch: lr * 0.5 * (1 + math.cos(math.pi * min(epoch / epochs, 1.0)))
