"""The whole engine: a tensor that remembers how it was made, and a walk back along that memory.

Three ideas, in this order:

1. An *operation* is a NumPy function marked with :func:`primitive`. Given arrays, it is that
   function and nothing more. Given a :class:`Tensor`, it returns a tensor that remembers the
   operation and its arguments: a *node* of the *tape*.
2. Under each operation stand its *gradient rules*, one for each argument, put there by
   :func:`defvjp`. A rule is a vector-Jacobian product: it takes g = ∂L/∂y, the output y and the
   arguments, and returns ∂L/∂argument.
3. :func:`grad` walks the tape from the output back to the inputs that were asked for and applies
   the rules on the way, so that each is applied only once all that g is made of has arrived.

Rules are written in the same operations. So when the walk hands them tensors instead of arrays
(``create_graph=True``), the gradient comes out with a tape of its own, and can be differentiated
again: there is no separate machinery for second derivatives.

>>> import numpy as np
>>> x = Tensor(np.array([1.0, 2.0, 3.0]))
>>> y = (x * x).sum()
>>> grad(y, [x])
[array([2., 4., 6.])]

An operation of your own takes five lines, and :func:`check_grads` checks it:

>>> @primitive
... def cube(x):
...     return x**3
>>> defvjp(cube, lambda g, y, x: g * (3 * x**2))
>>> check_grads(cube, [np.array([0.5, -1.0])])
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyadv.backend import array_module
from tinyadv.threads import side_by_side

Array = Any  # an array of the backend in use: numpy.ndarray or cupy.ndarray

PRIMITIVES: dict[str, Callable] = {}  # every operation, by name: what the tests go through
BRANCHING: set[Callable] = set()  # operations whose arguments are worth a thread each in `grad`


# ------------------------------------------------------------------------------ the operations


def primitive(fun: Callable) -> Callable:
    """Make an operation of ``fun``, a function of arrays.

    Positional arguments can be differentiated, keyword arguments cannot. Called with arrays
    alone, the operation is ``fun``; with a tensor among its positional arguments it returns a
    :class:`Tensor` that remembers the call.
    """

    @functools.wraps(fun)
    def operation(*args, **kwargs):
        for name, arg in kwargs.items():
            if isinstance(arg, Tensor):
                raise TypeError(
                    f"{fun.__name__} takes tensors by position alone: keyword arguments, such as "
                    f"{name}=, are not differentiated"
                )
        for arg in args:
            if isinstance(arg, Tensor):
                break
        else:
            return fun(*args, **kwargs)
        values = [arg.value if isinstance(arg, Tensor) else arg for arg in args]
        return Tensor(fun(*values, **kwargs), operation, args, kwargs)

    operation.rules = ()
    PRIMITIVES[fun.__name__] = operation
    return operation


def defvjp(operation: Callable, *rules: Callable | None, variadic: Callable | None = None) -> None:
    """Give ``operation`` its gradient rules.

    Parameters
    ----------
    operation : function made by :func:`primitive`
    *rules : function or None
        The rule of the first argument, of the second, and so on, each
        ``rule(g, y, *args, **kwargs) -> ∂L/∂argument``, where g = ∂L/∂y has the output's shape,
        and y is the output. ``None`` stands for an argument that cannot be differentiated.
    variadic : function, optional
        For an operation of any number of arguments, instead of ``rules``:
        ``variadic(i, g, y, *args, **kwargs)`` is the rule of argument i.
    """
    operation.rules = rules if variadic is None else _VariadicRules(variadic)


class _VariadicRules:
    """The rules of an operation of any number of arguments, looked up like a tuple of rules."""

    def __init__(self, rule: Callable):
        self.rule = rule

    def __len__(self) -> int:
        return 1 << 30  # there is a rule for every argument

    def __getitem__(self, i: int) -> Callable:
        return functools.partial(self.rule, i)


# ---------------------------------------------------------------------------------- the tensor


class Tensor:
    """An array, and the call that it came from.

    Parameters
    ----------
    value : array
        A NumPy or CuPy array, or what ``numpy.asarray`` takes. It is not copied.

    Attributes
    ----------
    value : array
    operation, args, kwargs
        The call that made it; ``operation`` is ``None`` for a tensor that you made: a *leaf*.
    depth : int
        The length of the longest path from a leaf. Every argument has a smaller depth than the
        result, so an order by depth is a topological order.

    Notes
    -----
    The usual operators record; comparisons (``>``, ``==`` …) return plain arrays, for they have no
    gradient. A tensor is never changed by an operation, and holds no gradient of its own.
    """

    __slots__ = ("__weakref__", "args", "depth", "kwargs", "operation", "value")
    # `array + tensor` is left to the tensor's own `__radd__`, by NumPy and CuPy alike.
    __array_ufunc__ = None
    __array_priority__ = 1000

    def __init__(self, value, operation=None, args=(), kwargs=None):
        if isinstance(value, Tensor):
            raise TypeError("Tensor() takes an array and got a Tensor: use it as it is, or .value")
        if isinstance(value, (int, float, list, tuple, np.generic)):
            value = np.asarray(value)
        self.value = value
        self.operation = operation
        self.args = args
        self.kwargs = kwargs
        self.depth = 0
        for arg in args:
            if isinstance(arg, Tensor) and arg.depth >= self.depth:
                self.depth = arg.depth + 1

    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)

    def __repr__(self) -> str:
        made_by = "" if self.operation is None else f", made by {self.operation.__name__}"
        return f"Tensor({self.value!r}{made_by})"

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __float__(self) -> float:
        return float(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __array__(self, *args, **kwargs):
        raise TypeError("a Tensor is no array: use .value for its numbers, tinyadv.ops to compute")

    # Comparisons give plain arrays. `==` compares numbers too, so hashing goes by identity.
    def __gt__(self, other):
        return self.value > _value(other)

    def __ge__(self, other):
        return self.value >= _value(other)

    def __lt__(self, other):
        return self.value < _value(other)

    def __le__(self, other):
        return self.value <= _value(other)

    def __eq__(self, other):
        return self.value == _value(other)

    def __ne__(self, other):
        return self.value != _value(other)

    __hash__ = object.__hash__
    # The arithmetic operators and methods such as .sum() are put in place by ops.py, under the
    # operations that they stand for.


def _value(x):
    return x.value if isinstance(x, Tensor) else x


# --------------------------------------------------------------------------------- the gradient


def grad(
    y: Tensor,
    inputs: Sequence[Tensor],
    cotangent: Array | Tensor | None = None,
    *,
    create_graph: bool = False,
    unused: str = "zeros",
) -> list:
    """The gradients ∂y/∂input, for each of ``inputs``: reverse-mode differentiation.

    Parameters
    ----------
    y : Tensor
        The output; a scalar, unless ``cotangent`` is given.
    inputs : list of Tensor
        Leaves or inner nodes, with floating-point values.
    cotangent : array or Tensor, optional
        For an output that is no scalar: g of y's shape, to get gᵀ ∂y/∂input.
    create_graph : bool
        Return tensors that can be differentiated again, instead of arrays.
    unused : {"zeros", "raise"}
        What to do for an input that ``y`` does not depend on.

    Returns
    -------
    list of array (of Tensor with ``create_graph=True``)
        In the order, shapes and dtypes of ``inputs``. They may share memory with each other and
        with the cotangent, as a sum's gradient is one number seen many times: do not write to them.

    Raises
    ------
    TypeError
        If ``y`` or one of the inputs is no tensor, or an input does not hold floating-point
        numbers, or the path to it runs through an argument that has no gradient rule.
    ValueError
        If ``y`` is no scalar and there is no cotangent, if the cotangent's shape is not y's, or,
        with ``unused="raise"``, if ``y`` does not depend on an input.
    """
    g = _checked_cotangent(y, inputs, cotangent, unused)
    if create_graph:
        g = g if isinstance(g, Tensor) else Tensor(g)
    else:
        g = _value(g)

    # Forward: every node below y, deepest last, and whether it depends on one of the inputs.
    nodes = _nodes_below(y)
    asked_for = {id(x) for x in inputs}
    needed = set(asked_for)
    for node in nodes:
        for arg in node.args:
            if id(arg) in needed:
                needed.add(id(node))
                break

    gradients = _Walk(nodes, needed, asked_for, create_graph).back_from(y, g)

    results = []
    for position, x in enumerate(inputs):
        g = gradients.get(id(x))
        if g is None:
            if unused == "raise":
                raise ValueError(f"the output does not depend on input {position}: {x!r}")
            g = array_module(x.value).zeros_like(x.value)
            g = Tensor(g) if create_graph else g
        results.append(g)
    return results


class _Walk:
    """The way back through a tape.

    A node's turn comes when everything that uses it has passed on its *share* of the node's
    gradient; then the shares are added up, and the node passes on what its rules make of the sum.
    Nodes whose turn has come do not depend on each other, so several threads may take them.
    """

    def __init__(self, nodes: list[Tensor], needed: set, asked_for: set, create_graph: bool):
        self.needed, self.asked_for, self.create_graph = needed, asked_for, create_graph
        self.place = {id(node): place for place, node in enumerate(nodes)}
        self.to_come = dict.fromkeys(self.place, 0)  # how many shares a node still waits for
        for node in nodes:
            if id(node) in needed:
                for arg in node.args:
                    if id(arg) in needed:
                        self.to_come[id(arg)] += 1
        self.shares: dict[int, list] = {}
        self.gradients: dict[int, Any] = {}
        self.ready: list[Tensor] = []  # a stack: a thread follows one path as far as it goes
        self.busy = 0  # threads that have taken a node and may make others ready
        self.lock = threading.Lock()  # for all of the above
        self.changed = threading.Condition(self.lock)
        # A thread costs more than it brings unless the tape has long branches, cut on purpose.
        self.branches = max((len(n.args) for n in nodes if n.operation in BRANCHING), default=1)

    def back_from(self, y: Tensor, g) -> dict[int, Any]:
        """The gradients of the nodes that were asked for, by id."""
        if id(y) in self.needed:
            self.shares[id(y)] = [(0, 0, g)]
            self.ready.append(y)
            side_by_side(self.take_nodes, self.branches)
        return self.gradients

    def take_nodes(self) -> None:
        """Take one ready node after the other until the walk is over."""
        while True:
            with self.lock:
                while self.busy and not self.ready:
                    self.changed.wait()
                if not self.ready:
                    return
                node = self.ready.pop()
                self.busy += 1
            shares: list = []
            try:
                shares = self.pass_on(node)
            finally:  # after an error nothing is ready any more, and every thread comes to its end
                with self.lock:
                    for parent, share in shares:
                        self.shares.setdefault(id(parent), []).append(share)
                        self.to_come[id(parent)] -= 1
                        if self.to_come[id(parent)] == 0:
                            self.ready.append(parent)
                    self.busy -= 1
                    if self.branches > 1:
                        self.changed.notify_all()

    def pass_on(self, node: Tensor) -> list:
        """Apply the rules of a node: pairs of an argument and its share."""
        shares = self.shares.pop(id(node))
        if len(shares) > 1:
            # In the order of the tape, whichever thread came first: sums of floating-point numbers
            # depend on their order.
            shares.sort(key=lambda share: share[:2])
        g = functools.reduce(operator.add, [share for _, _, share in shares])
        if id(node) in self.asked_for:
            self.gradients[id(node)] = g
        if self.create_graph:
            output, args = node, node.args
        else:
            output, args = node.value, [_value(arg) for arg in node.args]
        place, result = self.place[id(node)], []
        for i, parent in enumerate(node.args):
            if isinstance(parent, Tensor) and id(parent) in self.needed:
                result.append((parent, (place, i, self.share(node, i, g, output, args))))
        return result

    def share(self, node: Tensor, i: int, g, output, args):
        """What argument ``i`` of a node gets, in that argument's shape and dtype."""
        rule, name = _rule(node.operation, i), node.operation.__name__
        try:
            share = rule(g, output, *args, **node.kwargs)
        except TypeError as error:
            if self.create_graph:
                error.add_note(
                    f"The rule of {name} for argument {i} was given tensors, for a gradient of "
                    "the gradient: write it with tinyadv.ops, not with NumPy."
                )
            raise
        if getattr(share, "shape", None) != node.args[i].shape:
            raise ValueError(
                f"the rule of {name} for argument {i} must return a gradient of that argument's "
                f"shape {node.args[i].shape}, got {share!r:.80}"
            )
        dtype = node.args[i].dtype
        return share if share.dtype == dtype else share.astype(dtype)


def _nodes_below(y: Tensor) -> list[Tensor]:
    """``y`` and all that it was made from, every node after its arguments.

    A loop, not a recursion: Python's stack ends after some thousand calls, a tape may be longer.
    """
    seen = {id(y)}
    nodes = [y]
    for node in nodes:  # the list grows while the loop runs
        for arg in node.args:
            if isinstance(arg, Tensor) and id(arg) not in seen:
                seen.add(id(arg))
                nodes.append(arg)
    return sorted(nodes, key=lambda node: node.depth)


def _rule(operation: Callable, i: int) -> Callable:
    rule = operation.rules[i] if i < len(operation.rules) else None
    if rule is None:
        raise TypeError(
            f"{operation.__name__} has no gradient rule for its argument {i}: "
            f"pass an array there instead of a Tensor, or give it a rule with defvjp"
        )
    return rule


def _checked_cotangent(y, inputs, cotangent, unused):
    """The gradient of y with respect to itself, after a look at what ``grad`` was given."""
    if not isinstance(y, Tensor):
        raise TypeError(
            f"grad differentiates a Tensor and got {type(y).__name__}: "
            "an output becomes one when one of the operation's arguments is a Tensor"
        )
    if isinstance(inputs, Tensor):
        raise TypeError("grad takes a list of inputs: write grad(y, [x])")
    for position, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            raise TypeError(
                f"input {position} must be a Tensor that the output was computed from, "
                f"got {type(x).__name__}"
            )
        if x.dtype.kind != "f":
            raise TypeError(f"input {position} must hold floating-point numbers, not {x.dtype}")
    if unused not in ("zeros", "raise"):
        raise ValueError(f'unused must be "zeros" or "raise", got {unused!r}')
    if cotangent is None:
        if y.size != 1:
            raise ValueError(
                f"grad needs a scalar output and got shape {y.shape}: "
                "reduce it (.sum(), .mean()), or give a cotangent of that shape"
            )
        return array_module(y.value).ones_like(y.value)
    if not hasattr(cotangent, "dtype"):  # a number or a list
        cotangent = array_module(y.value).asarray(cotangent)
    if cotangent.shape != y.shape:
        raise ValueError(f"the cotangent must have shape {y.shape}, got {cotangent.shape}")
    return cotangent if cotangent.dtype == y.dtype else cotangent.astype(y.dtype)


def value_and_grad(f: Callable, inputs: Sequence[Array], **options) -> tuple[Array, list[Array]]:
    """The value of ``f(*inputs)``, a scalar, and its gradient for each input.

    Parameters
    ----------
    f : function
        Takes as many tensors as there are inputs, returns a tensor.
    inputs : list of array
    **options
        Passed on to :func:`grad`.

    Returns
    -------
    value : array
    gradients : list of array
        In the order and the shapes of ``inputs``.
    """
    tensors = [Tensor(x) for x in _checked_list(inputs)]
    y = f(*tensors)
    gradients = grad(y, tensors, **options)
    return y.value, gradients


def _checked_list(inputs) -> Sequence[Array]:
    if not isinstance(inputs, (list, tuple)):
        raise TypeError(f"expected a list of input arrays, got {type(inputs).__name__}: write [x]")
    return inputs


# ------------------------------------------------------------------------------------ the check


def check_grads(
    f: Callable,
    inputs: Sequence[Array],
    order: int = 2,
    *,
    step: float = 1e-5,
    tolerance: tuple[float, ...] = (1e-6, 1e-4),
    rng: np.random.Generator | int = 0,
) -> None:
    """Check the gradients of ``f`` against central finite differences, up to ``order``.

    Along a random direction v, with a random cotangent u, the slope of t ↦ uᵀ f(x + t·v) at 0 must
    equal (uᵀ ∂f/∂x) v. For the next order, the gradient itself is the function that is checked.

    Parameters
    ----------
    f : function
        Takes as many tensors as there are inputs and returns a tensor, of any shape. Away from
        kinks: a finite difference across one means nothing.
    inputs : list of array
        float64, or the differences drown in rounding.
    order : int
        1 checks the gradient, 2 also the gradient of the gradient, and so on.
    step : float
        t of the finite difference, in units of the inputs.
    tolerance : tuple of float
        Relative error allowed at first order, second order …; the last one holds from there on.
    rng : numpy.random.Generator or int

    Raises
    ------
    AssertionError
        If they differ, with both numbers.
    TypeError
        If an input is not a float64 array.
    """
    rng = np.random.default_rng(rng)
    if order < 1:
        raise ValueError(f"order must be 1 or more, got {order}")
    for position, x in enumerate(_checked_list(inputs)):
        if getattr(x, "dtype", None) != np.float64:
            kind = getattr(x, "dtype", type(x).__name__)
            raise TypeError(f"check_grads needs float64 arrays: input {position} is {kind}")
    xp = array_module(*inputs)
    tensors = [Tensor(x) for x in inputs]
    y = f(*tensors)
    u = xp.asarray(rng.standard_normal(y.shape))
    # Directions of length 1, so that the step is a length whatever the number of inputs.
    directions = [rng.standard_normal(x.shape) for x in inputs]
    length = np.sqrt(sum((v**2).sum() for v in directions)) or 1.0
    directions = [xp.asarray(v / length) for v in directions]

    def along(t: float) -> float:
        moved = f(*[Tensor(x + t * v) for x, v in zip(inputs, directions, strict=True)])
        return float((u * moved.value).sum())

    expected = (along(step) - along(-step)) / (2 * step)
    gradients = grad(y, tensors, u)
    got = sum(float((g * v).sum()) for g, v in zip(gradients, directions, strict=True))
    # Rounding in `along` is relative to the numbers on the way, and the step divides it. They are
    # as large as the output, or as 1, of which a small output may be what did not cancel.
    size = float((abs(u) * (abs(y.value) + 1)).sum())
    scale = max(abs(expected), abs(got), 1e-10 * size / step)
    if not abs(got - expected) <= tolerance[0] * scale:
        raise AssertionError(
            f"gradient along a random direction: {got!r}, by finite differences {expected!r} "
            f"(relative error {abs(got - expected) / scale:.1e}, allowed {tolerance[0]:.0e})"
        )
    for g, x in zip(gradients, inputs, strict=True):
        if g.shape != x.shape or g.dtype != x.dtype:
            raise AssertionError(f"gradient {g.shape} {g.dtype} of an input {x.shape} {x.dtype}")

    if order > 1:

        def gradient(u, *xs):
            """All gradients in one vector, with a tape: a function of the cotangent, too."""
            from tinyadv import ops  # ops.py is built on this file

            parts = grad(f(*xs), xs, u, create_graph=True)
            return ops.concatenate([ops.reshape(part, (-1,)) for part in parts])

        tolerance = tolerance[1:] or tolerance
        check_grads(gradient, [u, *inputs], order - 1, step=step, tolerance=tolerance, rng=rng)
