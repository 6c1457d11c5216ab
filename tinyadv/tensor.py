"""The engine: a tensor that remembers how it was computed, and a backward pass over that record.

Three ideas, in this order:

1. An *operation* is a NumPy function marked with :func:`primitive`. Called with arrays, it is that
   function and nothing more. Called with a :class:`Tensor`, it returns a tensor that remembers the
   operation and its arguments. Such a tensor is a *node*, and the nodes below an output are its
   *tape*.
2. :func:`defvjp` gives an operation its *gradient rules*, one for each argument. A rule is a
   vector-Jacobian product: it takes g = ∂L/∂y, the output y and the arguments, and returns
   ∂L/∂argument.
3. :func:`grad` goes through the tape from the output back to the inputs and applies the rules on
   the way. Newer nodes come first, so a node's gradient is complete before its rule is applied.

The rules are written in the same operations. If the backward pass hands them tensors instead of
arrays (``create_graph=True``), the gradient has a tape of its own and can be differentiated again.
There is no separate machinery for second derivatives.

>>> import numpy as np
>>> x = Tensor(np.array([1.0, 2.0, 3.0]))
>>> y = (x * x).sum()
>>> grad(y, [x])
[array([2., 4., 6.])]

An operation of your own takes five lines, and :func:`tinyadv.check_grads` checks it:

>>> @primitive
... def cube(x):
...     return x**3
>>> defvjp(cube, lambda g, y, x: g * (3 * x**2))
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import numpy as np

from tinyadv.backend import Function, array_module

Array = Any  # an array of the backend in use: numpy.ndarray or cupy.ndarray
RNG = np.random.Generator | int  # a generator of random numbers, or a seed for one
Shape = tuple[int, ...]
Axis = int | Sequence[int] | None  # of a sum: one axis, several, or all
Same = TypeVar("Same", bound=Any)  # array or Tensor: the function returns what it is given

PRIMITIVES: dict[str, Callable] = {}  # every operation by name; the tests go through all of them
_counter = itertools.count()  # numbers the tensors in the order in which they are made


# ------------------------------------------------------------------------------ the operations


def primitive(fun: Function) -> Function:
    """Turn ``fun``, a function of arrays, into an operation.

    It is differentiable with respect to its positional arguments, not its keyword arguments. Called
    with arrays only, the operation is ``fun``; with a tensor among its positional arguments it
    returns a :class:`Tensor` that remembers the call. Annotate its arguments as ``Array``: a type
    checker takes them to be the same in both cases.
    """

    @functools.wraps(fun)
    def operation(*args, **kwargs):
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                raise TypeError(
                    f"{fun.__name__} takes tensors as positional arguments only: {name}= and other "
                    "keyword arguments are not differentiated"
                )
        for arg in args:
            if isinstance(arg, Tensor):
                values = [a.value if isinstance(a, Tensor) else a for a in args]
                return Tensor(fun(*values, **kwargs), operation, args, kwargs)
        return fun(*args, **kwargs)

    defvjp(operation)  # no rules yet
    PRIMITIVES[fun.__name__] = operation
    return cast(Function, operation)


def defvjp(operation: Any, *rules: Callable | None, variadic: Callable | None = None) -> None:
    """Give ``operation`` its gradient rules.

    Parameters
    ----------
    operation : function made by :func:`primitive`
    *rules : function or None
        The rule of the first argument, of the second, and so on, each
        ``rule(g, y, *args, **kwargs) -> ∂L/∂argument``, where g = ∂L/∂y has the output's shape
        and y is the output. ``None`` stands for an argument that cannot be differentiated.
    variadic : function, optional
        For an operation with any number of arguments, instead of ``rules``:
        ``variadic(i, g, y, *args, **kwargs)`` is the rule of argument i.
    """

    def vjp(wanted, g, y, *args, **kwargs):
        """The gradients of the arguments whose numbers are in ``wanted``."""
        if variadic is not None:
            return [variadic(i, g, y, *args, **kwargs) for i in wanted]
        for i in wanted:
            if i >= len(rules) or rules[i] is None:
                raise TypeError(
                    f"{operation.__name__} has no gradient rule for its argument {i}: pass an "
                    "array there instead of a Tensor, or give it a rule with defvjp"
                )
        return [rules[i](g, y, *args, **kwargs) for i in wanted]

    operation.vjp = vjp


# ---------------------------------------------------------------------------------- the tensor


class Tensor:
    """An array, and the call that computed it.

    Parameters
    ----------
    value : array
        A NumPy or CuPy array, or anything that ``numpy.asarray`` accepts. It is not copied.

    Attributes
    ----------
    value : array
    operation, args, kwargs
        The call that made it; ``operation`` is ``None`` for a tensor that you made: a *leaf*.
    number : int
        Counts the tensors as they are made. The arguments of an operation exist before its result,
        so sorting by number gives a topological order.

    Notes
    -----
    The usual operators are recorded; comparisons (``>``, ``==`` …) return plain arrays because they
    have no gradient. No operation changes a tensor, and a tensor holds no gradient of its own.
    """

    __slots__ = ("__weakref__", "args", "kwargs", "number", "operation", "value")
    # `array + tensor` is left to the tensor's own `__radd__`, by NumPy and CuPy alike.
    __array_ufunc__ = None
    __array_priority__ = 1000

    def __init__(self, value: Any, operation: Any = None, args: tuple = (), kwargs: Any = None):
        if isinstance(value, Tensor):
            raise TypeError("Tensor() takes an array and got a Tensor: use it as it is, or .value")
        if not hasattr(value, "dtype") or isinstance(value, np.generic):
            given, value = type(value).__name__, np.asarray(value)
            if value.dtype.kind not in "biufc":
                raise TypeError(f"Tensor() takes an array of numbers, got {given}")
        self.value, self.number = value, next(_counter)
        self.operation, self.args, self.kwargs = operation, args, kwargs

    @property
    def shape(self) -> Shape:
        return self.value.shape

    @property
    def dtype(self) -> np.dtype:
        return self.value.dtype

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def size(self) -> int:
        return self.value.size

    def __repr__(self) -> str:
        made_by = "" if self.operation is None else f", made by {self.operation.__name__}"
        return f"Tensor({self.value!r}{made_by})"

    __len__ = lambda self: len(self.value)
    __float__ = lambda self: float(self.value)
    __bool__ = lambda self: bool(self.value)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("a Tensor is not an array: use .value for its numbers, or tinyadv.ops")

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function in (np.shape, np.ndim, np.size):  # known without the numbers
            return function(*map(value_of, args), **{k: value_of(v) for k, v in kwargs.items()})
        return self.__array__()

    # Comparisons give plain arrays. `==` compares numbers too, so hashing goes by identity.
    __gt__ = lambda self, other: self.value > value_of(other)
    __ge__ = lambda self, other: self.value >= value_of(other)
    __lt__ = lambda self, other: self.value < value_of(other)
    __le__ = lambda self, other: self.value <= value_of(other)
    __eq__: Any = lambda self, other: self.value == value_of(other)
    __ne__: Any = lambda self, other: self.value != value_of(other)
    __hash__ = object.__hash__

    if TYPE_CHECKING:  # ops.py adds these, below the operations that they stand for

        def __add__(self, other: Array | Tensor) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def sum(self, axis: Axis = None, keepdims: bool = False) -> Tensor: ...
        def reshape(self, *shape: Any) -> Tensor: ...
        def transpose(self, *axes: Any) -> Tensor: ...
        def astype(self, dtype: Any) -> Tensor: ...

        T: Tensor
        __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __add__
        __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __add__
        __abs__, mean, max, min = __neg__, sum, sum, sum


def value_of(x: Any) -> Any:
    """The array of a tensor; anything else as it is."""
    return x.value if isinstance(x, Tensor) else x


# --------------------------------------------------------------------------------- the gradient


def grad(
    y: Tensor, inputs: Sequence[Tensor], cotangent: Array | Tensor | None = None, *,
    create_graph: bool = False, unused: str = "zeros",
) -> list:  # fmt: skip
    """The gradient ∂y/∂input with respect to each of ``inputs``, by reverse-mode differentiation.

    Parameters
    ----------
    y : Tensor
        The output; a scalar, unless ``cotangent`` is given.
    inputs : list of Tensor
        Leaves or inner nodes, with values of float16, float32 or float64.
    cotangent : array or Tensor, optional
        For an output that is not a scalar: g of y's shape, to get gᵀ ∂y/∂input.
    create_graph : bool
        Return tensors that can be differentiated again, instead of arrays.
    unused : {"zeros", "raise"}
        What to do about an input that ``y`` does not depend on.

    Returns
    -------
    list of array (of Tensor with ``create_graph=True``)
        In the order, shapes and dtypes (except the byte order) of ``inputs``. They may share
        memory with each other and with the cotangent, because the gradient of a sum is a single
        number, broadcast: do not write into them.

    Raises
    ------
    TypeError
        If ``y`` or one of the inputs is not a tensor, if an input has another dtype,
        or if the path to it runs through an argument that has no gradient rule.
    ValueError
        If ``y`` is not a scalar and there is no cotangent, if the cotangent's shape is not y's, or,
        with ``unused="raise"``, if ``y`` does not depend on an input.
    """
    inputs = inputs if isinstance(inputs, Tensor) else list(inputs)
    g = _checked_cotangent(y, inputs, cotangent, unused)
    if create_graph:
        g = g if isinstance(g, Tensor) else Tensor(g)
    else:
        g = value_of(g)
    gradients = walk_back(tape(y), y, g, inputs, create_graph)
    for position, x in enumerate(inputs):
        if gradients[position] is None:
            if unused == "raise":
                raise ValueError(f"the output does not depend on input {position}: {x!r}")
            zeros = array_module(x.value).zeros_like(x.value)
            gradients[position] = Tensor(zeros) if create_graph else zeros
    return gradients


def tape(y: Tensor, since: int = 0) -> list[Tensor]:
    """``y`` and every tensor that it was computed from, oldest first.

    Tensors with a number below ``since`` are left out. This is a loop and not a recursion because
    Python allows about a thousand nested calls, and a tape may be longer.
    """
    seen, nodes = {id(y)}, [y]
    for node in nodes:  # the list grows while the loop runs
        for arg in node.args:
            if isinstance(arg, Tensor) and arg.number >= since and id(arg) not in seen:
                seen.add(id(arg))
                nodes.append(arg)
    return sorted(nodes, key=lambda node: node.number)


def walk_back(nodes: list, y: Tensor, g: Any, inputs: Sequence[Tensor], create_graph: bool) -> list:
    """The gradients of ``y`` with respect to ``inputs``, ``None`` for one that is not on the tape.

    ``g`` is y's own gradient. Nothing is checked: this is the loop of :func:`grad`.
    """
    # Which nodes lead to what was asked for?
    asked = {id(x) for x in inputs}
    needed = set(asked)
    for node in nodes:
        if any(id(arg) in needed for arg in node.args):
            needed.add(id(node))

    gradients = {id(y): g}
    for node in reversed(nodes):
        if id(node) in needed:
            g = gradients[id(node)] if id(node) in asked else gradients.pop(id(node))
            wanted = [i for i, arg in enumerate(node.args) if id(arg) in needed]
            for i, share in zip(wanted, _shares(node, wanted, g, create_graph), strict=True):
                key = id(node.args[i])
                gradients[key] = gradients[key] + share if key in gradients else share
    return [gradients[id(x)] if id(x) in needed and id(x) in gradients else None for x in inputs]


def _shares(node: Tensor, wanted: list[int], g: Any, create_graph: bool) -> list:
    """The gradient that each ``wanted`` argument of a node receives, in its shape and dtype."""
    if not wanted:
        return []
    y, args = (node, node.args) if create_graph else (node.value, map(value_of, node.args))
    try:
        shares = node.operation.vjp(wanted, g, y, *args, **node.kwargs)
    except TypeError as error:
        if create_graph:
            error.add_note(
                f"The rule of {node.operation.__name__} was given tensors, because its result is "
                "to be differentiated again: write it with tinyadv.ops, not with NumPy."
            )
        raise
    for k, (i, share) in enumerate(zip(wanted, shares, strict=True)):
        x = node.args[i]
        if getattr(share, "shape", None) != x.shape:
            raise ValueError(
                f"the rule of {node.operation.__name__} for argument {i} must return a gradient of "
                f"that argument's shape {x.shape}, got {share!r:.80}"
            )
        if share.dtype != x.dtype:
            shares[k] = share.astype(x.dtype)
    return shares


def _checked_cotangent(y, inputs, cotangent, unused):
    """The gradient of y with respect to itself, after a check of the arguments of ``grad``."""
    if not isinstance(y, Tensor):
        raise TypeError(
            f"grad differentiates a Tensor and got {type(y).__name__}: an operation returns one if "
            "one of its arguments is a Tensor"
        )
    if isinstance(inputs, Tensor):
        raise TypeError("grad takes a list of inputs: write grad(y, [x])")
    for position, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            got = type(x).__name__
            raise TypeError(f"input {position} must be a Tensor that y depends on, got {got}")
        if x.dtype.char not in "efd":
            raise TypeError(f"input {position} must be float16, float32 or float64, not {x.dtype}")
    if unused not in ("zeros", "raise"):
        raise ValueError(f'unused must be "zeros" or "raise", got {unused!r}')
    if cotangent is None:
        if y.size != 1:
            hint = "reduce it (.sum(), .mean()), or give a cotangent"
            raise ValueError(f"grad needs a scalar output and got shape {y.shape}: {hint}")
        return array_module(y.value).ones_like(y.value)
    if not hasattr(cotangent, "dtype"):  # a number or a list
        cotangent = array_module(y.value).asarray(cotangent)
    if cotangent.shape != y.shape:
        raise ValueError(f"the cotangent must have shape {y.shape}, got {cotangent.shape}")
    return cotangent if cotangent.dtype == y.dtype else cotangent.astype(y.dtype)


def value_and_grad(f: Callable, inputs: Sequence[Array], **options: Any) -> tuple[Array, list]:
    """The value of ``f(*inputs)``, a scalar, and its gradient with respect to each input.

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
    tensors = [Tensor(x) for x in checked_list(inputs)]
    y = f(*tensors)
    gradients = grad(y, tensors, **options)  # first, because it says what is wrong with y
    return y.value, gradients


def checked_list(inputs: Any) -> Sequence[Array]:
    """``inputs``, or a TypeError if it is not a list or a tuple."""
    if not isinstance(inputs, (list, tuple)):
        raise TypeError(f"expected a list of input arrays, got {type(inputs).__name__}: write [x]")
    return inputs
