"""Optimisers, and learning rates that change on the way.

An optimiser changes parameters in place: ``optimizer.step(grads)`` takes what ``grad`` returned.
A schedule is a function of the time in epochs, fractions included, that returns a learning rate;
:func:`tinyadv.train.fit` sets ``optimizer.lr`` to it before every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from tinyadv.backend import array_module, to_numpy
from tinyadv.tensor import Array, Tensor

Schedule = Callable[[float], float]  # epochs since the start -> learning rate

# A formula makes several passes over its arrays. Large ones are updated piece by piece, so that
# only the first pass reads from memory and the others from the cache. In numbers, not bytes.
PIECE = 1 << 16


class Optimizer:
    """What all optimisers share: parameters, a learning rate, and *slots*.

    Slots are arrays that an optimiser keeps for each parameter, such as a running mean of its
    gradients. A subclass names them in ``slot_names``, names the numbers of its formula in
    ``option_names``, and writes the formula in ``_update``.

    Parameters
    ----------
    params : list of Tensor
        Their arrays are changed in place by :meth:`step`.
    lr : float
        The learning rate at the start; the attribute ``lr`` may be set at any time.
    weight_decay : float
        Adds weight_decay · parameter to each gradient: an L2 penalty of half that factor.
    """

    slot_names: tuple[str, ...] = ()
    option_names: tuple[str, ...] = ("weight_decay",)

    def __init__(self, params: Sequence[Tensor], lr: float, weight_decay: float):
        self.params = list(params)
        if not self.params or not all(isinstance(p, Tensor) for p in self.params):
            raise TypeError("an optimizer takes a list of Tensors, such as model.parameters()")
        if len(set(map(id, self.params))) < len(self.params):
            raise ValueError("a parameter is given twice, and would be changed twice in a step")
        if not lr >= 0 or not weight_decay >= 0:
            raise ValueError(f"lr and weight_decay must be ≥ 0, got {lr} and {weight_decay}")
        self.weight_decay = weight_decay
        self.lr = self.initial_lr = float(lr)
        self.steps = 0  # how many have been taken
        self.slots = [
            [array_module(p.value).zeros_like(p.value, order="C") for _ in self.slot_names]
            for p in self.params
        ]

    def step(self, grads: Sequence[Array]) -> None:
        """Change every parameter by its gradient.

        Parameters
        ----------
        grads : list of array
            In the order and the shapes of the parameters.

        Raises
        ------
        TypeError
            If the gradients are tensors.
        ValueError
            If there are more or fewer gradients than parameters, or a shape differs.
        """
        if any(isinstance(g, Tensor) for g in grads):
            raise TypeError(
                "expected gradients that are arrays, got Tensors, as grad(…, create_graph=True) "
                "returns them: take the .value of each"
            )
        shapes, expected = [g.shape for g in grads], [p.shape for p in self.params]
        if shapes != expected:
            raise ValueError(f"expected gradients of shapes {expected}, got {shapes}")
        self.steps += 1
        self.lr = float(self.lr)  # float32 times a NumPy number would be float64
        for p, g, slots in zip(self.params, grads, self.slots, strict=True):
            xp = array_module(p.value)
            if not p.value.flags.c_contiguous:  # the flat views below must write through
                p.value = xp.ascontiguousarray(p.value)
            flat = [array.reshape(-1) for array in (p.value, g, *slots)]
            for start in range(0, p.size, PIECE):
                w, dw, *state = (array[start : start + PIECE] for array in flat)
                if self.weight_decay:
                    dw = dw + self.weight_decay * w
                self._update(xp, w, dw, *state)

    def _update(self, xp, w, dw, *state) -> None:
        """Change ``w`` and ``state`` in place."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """All that :meth:`load_state_dict` needs to go on as if nothing had happened."""
        return {
            "kind": type(self).__name__,
            "options": self._options(),
            "initial_lr": self.initial_lr,
            "lr": self.lr,
            "steps": self.steps,
            "slots": {name: to_numpy(array).copy() for name, array in self._named_slots().items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Take over a state.

        The learning rate is taken over as well, unless this optimiser was made with another one
        than that of the state: then it keeps its own, and training goes on with that.

        Raises
        ------
        ValueError
            If the state is that of another kind of optimiser, of one with other options, or of
            other parameters. Nothing is changed then.
        """
        self._check_state(state)
        for name, array in self._named_slots().items():
            array[...] = array_module(array).asarray(state["slots"][name])
        self.steps = state["steps"]
        if state["initial_lr"] == self.initial_lr:
            self.lr = state["lr"]

    def _check_state(self, state: dict) -> None:
        if state.get("kind") != type(self).__name__:
            raise ValueError(
                f"this state belongs to {state.get('kind')}, not to {type(self).__name__}"
            )
        saved, options = state.get("options"), self._options()
        if saved != options:
            raise ValueError(
                f"this state belongs to {type(self).__name__} with {saved}, this one has "
                f"{options}: make the optimizer with the same options"
            )
        expected = {name: array.shape for name, array in self._named_slots().items()}
        shapes = {name: array.shape for name, array in state["slots"].items()}
        if shapes != expected:
            raise ValueError(
                f"this state belongs to other parameters: it has slots {shapes}, "
                f"this optimizer needs {expected}"
            )

    def _options(self) -> dict:
        return {name: getattr(self, name) for name in self.option_names}

    def _named_slots(self) -> dict[str, Array]:
        return {
            f"{i}.{name}": array
            for i, arrays in enumerate(self.slots)
            for name, array in zip(self.slot_names, arrays, strict=True)
        }


def _check_share(**values: float) -> None:
    """Of what a running mean keeps of its past."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"expected 0 ≤ {name} < 1, got {value}")


def _check_epsilon(epsilon: float) -> None:
    if not epsilon > 0:
        raise ValueError(f"epsilon must be > 0, for it guards against 0 / 0, got {epsilon}")


class SGD(Optimizer):
    """Stochastic gradient descent: w ← w - lr·v with v ← momentum·v + g.

    Parameters
    ----------
    params : list of Tensor
    lr : float
    momentum : float
        0 is plain gradient descent.
    nesterov : bool
        Step along g + momentum·v, the gradient looked up ahead. Sutskever et al. (2013), "On the
        importance of initialization and momentum in deep learning".
    weight_decay : float
    """

    option_names = ("momentum", "nesterov", "weight_decay")

    def __init__(self, params, lr=0.01, *, momentum=0.0, nesterov=False, weight_decay=0.0):
        _check_share(momentum=momentum)
        if nesterov and momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        self.momentum, self.nesterov = momentum, nesterov
        self.slot_names = ("velocity",) if momentum else ()
        super().__init__(params, lr, weight_decay)

    def _update(self, xp, w, dw, v=None):
        if v is not None:
            v *= self.momentum
            v += dw
            dw = dw + self.momentum * v if self.nesterov else v
        w -= self.lr * dw


class RMSprop(Optimizer):
    """w ← w - lr·g / (√s + ε), with s a running mean of g²: s ← ρ·s + (1 - ρ)·g².

    Tieleman & Hinton (2012), lecture 6.5 of "Neural Networks for Machine Learning". The defaults
    are Keras's.

    Parameters
    ----------
    params : list of Tensor
    lr, rho, epsilon, weight_decay : float
    """

    slot_names = ("square",)
    option_names = ("rho", "epsilon", "weight_decay")

    def __init__(self, params, lr=0.001, *, rho=0.9, epsilon=1e-7, weight_decay=0.0):
        _check_share(rho=rho)
        _check_epsilon(epsilon)
        self.rho, self.epsilon = rho, epsilon
        super().__init__(params, lr, weight_decay)

    def _update(self, xp, w, dw, s):
        s *= self.rho
        s += (1 - self.rho) * dw * dw
        w -= self.lr * dw / (xp.sqrt(s) + self.epsilon)


class Adam(Optimizer):
    """w ← w - lr·m̂ / (√v̂ + ε), with running means m of g and v of g², freed from their start at 0.

    Kingma & Ba (2015), "Adam: a method for stochastic optimization", algorithm 1.

    Parameters
    ----------
    params : list of Tensor
    lr, beta1, beta2, epsilon, weight_decay : float
    """

    slot_names = ("mean", "square")
    option_names = ("beta1", "beta2", "epsilon", "weight_decay")

    def __init__(self, params, lr=0.001, *, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0):
        _check_share(beta1=beta1, beta2=beta2)
        _check_epsilon(epsilon)
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        super().__init__(params, lr, weight_decay)

    def _update(self, xp, w, dw, m, v):
        m *= self.beta1
        m += (1 - self.beta1) * dw
        v *= self.beta2
        v += (1 - self.beta2) * dw * dw
        m_correction = 1 - self.beta1**self.steps
        v_correction = math.sqrt(1 - self.beta2**self.steps)
        w -= self.lr / m_correction * m / (xp.sqrt(v) / v_correction + self.epsilon)


# ------------------------------------------------------------------------------------ schedules


def constant(lr: float) -> Schedule:
    """The same learning rate at all times."""
    return lambda epoch: lr


def piecewise_linear(points: Sequence[tuple[float, float]]) -> Schedule:
    """Straight lines between ``(epoch, lr)`` points; constant before the first and after the last.

    >>> lr = piecewise_linear([(0, 0.0), (4, 0.005), (10, 0.0)])
    >>> lr(2), lr(7), lr(12)
    (0.0025, 0.0025, 0.0)
    """
    epochs = [epoch for epoch, _ in points]
    if not points or any(a >= b for a, b in pairwise(epochs)):
        raise ValueError(f"points must be (epoch, lr) pairs in rising order, got {points}")

    def schedule(epoch: float) -> float:
        if epoch <= epochs[0]:
            return points[0][1]
        for (e0, lr0), (e1, lr1) in pairwise(points):
            if epoch <= e1:
                return lr0 + (lr1 - lr0) * (epoch - e0) / (e1 - e0)
        return points[-1][1]

    return schedule


def cosine(lr: float, epochs: float) -> Schedule:
    """From ``lr`` down to 0 after ``epochs``, along half a cosine.

    Loshchilov & Hutter (2017), "SGDR", equation 5, without restarts.
    """
    if not epochs > 0:
        raise ValueError(f"epochs must be > 0, got {epochs}")
    return lambda epoch: lr * 0.5 * (1 + math.cos(math.pi * min(epoch / epochs, 1.0)))
