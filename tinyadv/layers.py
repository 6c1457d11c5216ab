"""Layers: an operation together with the weights that it is used with.

A :class:`Module` is anything with parameters that can be called. Its parameters are tensors, found
by looking through its attributes in the order of their definition. There is no training mode, no
``.grad``, nothing to register and nothing to reset.

Names and shapes of parameters are PyTorch's: a state dict made here loads into the same
``torch.nn.Sequential``, and vice versa.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.random import Generator
from numpy.typing import DTypeLike

from tinyadv import conv, ops
from tinyadv.backend import array_module, get_backend, to_numpy
from tinyadv.conv import Pair
from tinyadv.inputs import check_choice, check_counts
from tinyadv.parallel import by_examples, may_cut, worth_cutting
from tinyadv.tensor import RNG, Array, Shape, Tensor

# ------------------------------------------------------------------------------ initialisation


def he_normal(rng: Generator, shape: Shape, fan_in: int, fan_out: int) -> np.ndarray:
    """Normal with variance 2 / fan_in, which keeps the scale of activations through ReLUs.

    He et al. (2015), "Delving Deep into Rectifiers", equation 10.
    """
    return rng.standard_normal(shape) * np.sqrt(2 / fan_in)


def glorot_uniform(rng: Generator, shape: Shape, fan_in: int, fan_out: int) -> np.ndarray:
    """Uniform with variance 2 / (fan_in + fan_out): what Keras uses by default.

    Glorot & Bengio (2010), "Understanding the difficulty of training deep feedforward neural
    networks", equation 16.
    """
    limit = np.sqrt(6 / (fan_in + fan_out))
    return rng.uniform(-limit, limit, shape)


def fan_in_uniform(rng: Generator, shape: Shape, fan_in: int, fan_out: int) -> np.ndarray:
    """Uniform between ±1 / √fan_in, a sixth of He's variance: what PyTorch uses by default.

    The biases are drawn from the same distribution; with the other initialisers they start at 0.
    """
    limit = 1 / np.sqrt(fan_in)
    return rng.uniform(-limit, limit, shape)


def interval_normal(rng: Generator, shape: Shape, fan_in: int, fan_out: int) -> np.ndarray:
    """Normal with standard deviation √(2π) / fan_in, which keeps the width of interval bounds.

    An interval of radius r becomes one of radius Σ|w| r, because the contributions of the inputs
    all add up in a bound, while they partly cancel in a value. With E|w| = 2 / fan_in this is 2 r,
    and a ReLU halves it on average. Under other initialisations it grows with √fan_in in each
    layer. Shi et al. (2021), "Fast certified robust training with short warmup".
    """
    return rng.standard_normal(shape) * np.sqrt(2 * np.pi) / fan_in


INITIALISERS = {f.__name__: f for f in (he_normal, glorot_uniform, fan_in_uniform, interval_normal)}


def _initial_parameters(
    rng: RNG | None, shape: Shape, init: str, bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Weights of this shape, and (with ``bias``) as many biases as there are outputs."""
    check_counts(inputs=shape[1], outputs=shape[0])
    check_choice(tuple(INITIALISERS), init=init)
    window = int(np.prod(shape[2:]))  # 1 for a dense layer
    fan_in, fan_out = shape[1] * window, shape[0] * window
    rng = np.random.default_rng(rng)
    weights, biases = INITIALISERS[init](rng, shape, fan_in, fan_out), np.zeros(shape[0])
    if init == "fan_in_uniform":
        biases = fan_in_uniform(rng, shape[:1], fan_in, fan_out)
    return Tensor(weights.astype(np.float32)), Tensor(biases.astype(np.float32)) if bias else None


# -------------------------------------------------------------------------------------- module


class Module:
    """Something with parameters that can be called. Subclasses write ``__call__``.

    >>> class Scale(Module):
    ...     def __init__(self):
    ...         self.factor = Tensor(np.ones(1, np.float32))
    ...     def __call__(self, x):
    ...         return self.factor * x
    >>> Scale().state_dict()
    {'factor': array([1.], dtype=float32)}

    Parameters may also lie in lists, tuples and dictionaries of any depth, alone or in modules:
    ``self.parts = {"key": [Scale()]}`` has the parameter ``parts.key.0.factor``. A tensor that an
    operation made, such as an activation kept as an attribute, is not a parameter. The input of a
    network may be a tensor that no operation made: keep its ``.value``. A module may refer back to
    one that holds it: that one is not entered a second time.

    A class that writes its own ``__call__`` may set ``by_example = True``. It then promises that it
    treats each example on its own, so that a batch may be cut into pieces, and that it computes
    with operators and :mod:`tinyadv.ops` alone, so that its parameters may be arrays where no
    gradient is needed. Leave it False in a layer that looks at the whole batch, such as batch
    normalisation, or draws random numbers.
    """

    by_example = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        # The promise of a base class does not hold for a ``__call__`` that came later.
        makers = (base for base in cls.__mro__ if {"__call__", "by_example"} & vars(base).keys())
        if "by_example" not in vars(next(makers)):
            cls.by_example = False

    @overload
    def __call__(self, x: Tensor) -> Tensor: ...
    @overload
    def __call__(self, x: Array) -> Array: ...
    def __call__(self, x: Array) -> Array:
        raise NotImplementedError(f"{type(self).__name__} needs a method __call__(self, x)")

    def children(self) -> Iterator[tuple[str, object]]:
        """Names and attributes; the items of lists, tuples and dictionaries one by one."""
        for name, value in vars(self).items():
            yield from _parts(name, value)

    def modules(self) -> Iterator[Module]:
        """This module and all modules within it, each once."""
        found, seen = [self], {id(self)}
        for module in found:  # the list grows while the loop runs
            yield module
            for _, part in module.children():
                if isinstance(part, Module) and id(part) not in seen:
                    seen.add(id(part))
                    found.append(part)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Names such as ``"0.weight"`` and the parameters, in the order of their definition."""
        yield from _leaves("", self, ())

    def parameters(self) -> list[Tensor]:
        """All parameters, in the order of their definition; each once, even if it is used twice."""
        return list(dict.fromkeys(parameter for _, parameter in self.named_parameters()))

    def frozen(self) -> Module:
        """A copy with arrays instead of tensors, which records no tape unless x is a tensor.

        It shares the arrays, so it follows an optimizer's steps; after ``load_state_dict``, ``to``
        or ``astype``, which bring other arrays, make a new copy. A module of a class that does not
        promise ``by_example`` is used as it is, with its tensors.
        """
        return rebuilt(self, _as_array)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the parameters as NumPy arrays, by name."""
        return {name: to_numpy(p.value).copy() for name, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Set all parameters from arrays by name: of either backend, or CPU tensors of PyTorch.

        The module keeps its own dtype and backend.

        Raises
        ------
        ValueError
            If names are missing or unknown, a shape differs, or an array does not hold real
            numbers. Nothing is changed then.
        """
        parameters = dict(self.named_parameters())
        missing, unknown = parameters.keys() - state.keys(), state.keys() - parameters.keys()
        other = "these weights belong to another network"
        if missing or unknown:
            raise ValueError(f"{other}: missing {sorted(missing)}, unknown {sorted(unknown)}")
        arrays = {name: to_numpy(state[name]) for name in parameters}
        for name, p in parameters.items():
            shape, dtype = arrays[name].shape, arrays[name].dtype
            if shape != p.shape:
                raise ValueError(f"{other}: {name} has shape {shape}, this network needs {p.shape}")
            if not np.can_cast(dtype, p.dtype, "same_kind"):
                raise ValueError(f"{other}: {name} holds {dtype}, this network needs {p.dtype}")
        for name, p in parameters.items():
            p.value = array_module(p.value).asarray(arrays[name].astype(p.dtype))

    def to(self, backend: str) -> Module:
        """Move all parameters to ``"numpy"`` or ``"cupy"``; returns the module itself."""
        xp = get_backend(backend)
        for p in self.parameters():
            p.value = xp.asarray(to_numpy(p.value))
        return self

    def astype(self, dtype: DTypeLike) -> Module:
        """Change all parameters to a floating-point ``dtype``; returns the module itself.

        Raises
        ------
        TypeError
            If ``dtype`` is not a floating-point type.
        """
        for p in self.parameters():
            p.value = ops.astype(p.value, dtype)
        return self


def _leaves(prefix: str, module: Module, holders: tuple) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a module by name; ``holders`` are the modules that hold it."""
    holders = (*holders, module)
    for name, value in module.children():
        if isinstance(value, Tensor) and value.operation is None:
            yield prefix + name, value
        elif isinstance(value, Module) and not any(value is holder for holder in holders):
            yield from _leaves(f"{prefix}{name}.", value, holders)


def _as_array(part: Any) -> Any:
    """What a frozen module has in place of this part; None if it is only copied."""
    if isinstance(part, Tensor):
        return part.value
    return part if isinstance(part, Module) and type(part).by_example is False else None


def rebuilt(value: Any, change: Callable[[Any], Any], twins: dict | None = None) -> Any:
    """A copy of a module with other parts; the module itself stays as it is.

    Parameters
    ----------
    value : Module
        Its parts, and theirs, are looked at in lists, tuples and dictionaries, too.
    change : function
        ``change(part)`` returns the replacement of a module, a tensor or another attribute.
        ``None`` means that a module is copied, and anything else is shared.
    twins : dict, optional
        The copies so far, by the ``id`` of the original: a module that is met again is copied once.
    """
    twins = {} if twins is None else twins
    changed = change(value)
    if changed is not None:
        return changed
    if isinstance(value, Module):
        if id(value) not in twins:
            twin = twins[id(value)] = copy.copy(value)
            vars(twin).update({name: rebuilt(v, change, twins) for name, v in vars(value).items()})
        return twins[id(value)]
    if not isinstance(value, (list, tuple, dict)):
        return value
    held = list(value.values() if isinstance(value, dict) else value)
    parts = [rebuilt(part, change, twins) for part in held]
    if all(a is b for a, b in zip(parts, held, strict=True)):
        return value  # nothing in it is changed, as in a list that ``__call__`` appends to
    if isinstance(value, dict):
        copied = copy.copy(value)  # of its own class, such as OrderedDict
        copied.update(zip(value, parts, strict=True))
        return copied
    return getattr(value, "_make", type(value))(parts)  # for a named tuple


def _parts(name: str, value: Any) -> Iterator[tuple[str, object]]:
    """``value``, or what it holds if it is a list, a tuple or a dictionary, with names."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _parts(f"{name}.{key}", part)
    else:
        yield name, value


def _all_promise(held: str) -> property:
    """``by_example`` of a container: what it was set to, else whether all that it holds promise it.

    ``held`` names the attribute with the list of them.
    """
    return property(
        lambda self: vars(self).get(
            "by_example", all(getattr(f, "by_example", False) for f in getattr(self, held))
        ),
        lambda self, promise: vars(self).update(by_example=promise),
    )


class Sequential(Module):
    """The layers one after another, named by their position.

    With a :class:`Conv2d` anywhere within, a large batch is cut into pieces that several cores work
    on, at the outermost ``Sequential``. It stays whole if one of the modules within does not allow
    it (``by_example``), or is a plain function, about which nothing is known; or if ``by_example``
    of the container itself is set to False.
    """

    def __init__(self, *layers: Module):
        self.layers = list(layers)

    by_example = _all_promise("layers")

    def children(self) -> Iterator[tuple[str, object]]:
        return ((name.removeprefix("layers."), part) for name, part in super().children())

    @overload
    def __call__(self, x: Tensor) -> Tensor: ...
    @overload
    def __call__(self, x: Array) -> Array: ...
    def __call__(self, x: Array) -> Array:
        if worth_cutting(x) and self._convolves() and may_cut(self):
            return by_examples(self, x)
        for layer in self.layers:
            x = layer(x)
        return x

    def _convolves(self) -> bool:
        """NumPy convolves on one core; products of matrices use all cores by themselves."""
        return any(isinstance(module, Conv2d) for module in self.modules())

    def __getitem__(self, index: Any) -> Any:
        """A layer, or for a slice a :class:`Sequential` of the same layers."""
        part = self.layers[index]
        return Sequential(*part) if isinstance(index, slice) else part

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        lines = [f"  ({i}) {layer!r}" for i, layer in enumerate(self.layers)]
        return "\n".join(["Sequential(", *lines, ")"])


class Average(Module):
    """The mean of the logits of several networks: an ensemble.

    (N, …) -> (N, K). Networks trained from different initial weights err on different images, so a
    mistake of a single one is often outvoted. Perrone & Cooper (1993), "When networks disagree:
    ensemble methods for hybrid neural networks".

    Parameters
    ----------
    *members : Module
        At least one; they take the same images and return the same shape, (N, K).

    Raises
    ------
    TypeError
        If a member cannot be called.
    ValueError
        If there are no members; when called, if they return different shapes.
    """

    def __init__(self, *members: Module):
        if not members:
            raise ValueError("Average needs at least one network: Average(first, second, …)")
        for member in members:
            if not callable(member):
                got = f"got a {type(member).__name__}"
                raise TypeError(f"expected networks, {got}: Average(a, b) or Average(*networks)")
        self.members = list(members)

    by_example = _all_promise("members")

    def __call__(self, x: Array) -> Array:
        return mean_of([member(x) for member in self.members])

    def __repr__(self) -> str:
        return f"Average({', '.join(map(repr, self.members))})"


def mean_of(tensors: Sequence[Array | Tensor]) -> Any:
    """The mean of what the members of an :class:`Average` return, all of one shape."""
    first, *others = tensors
    for other in others:
        if other.shape != first.shape:  # adding them could broadcast
            got = f"{first.shape} and {other.shape}"
            raise ValueError(f"the members of an Average must return one shape, got {got}")
    mean = ops.in_float32(lambda *same: sum(same[1:], same[0]) * (1 / len(same)))
    return mean(*tensors)


# -------------------------------------------------------------------------- layers with weights


class Conv2d(Module):
    """Convolution: (N, in_channels, H, W) -> (N, out_channels, P, Q).

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, padding : int or (int, int)
        In pixels; see :func:`tinyadv.conv.conv2d`.
    bias : bool
    init : {"he_normal", "glorot_uniform", "fan_in_uniform", "interval_normal"}
    rng : numpy.random.Generator or int, optional
        Makes the weights reproducible. By default every layer draws other ones. Give the layers of
        a network one generator: the same int would give them equal weights.
    """

    by_example = True

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Pair, *, stride: Pair = 1,
                 padding: Pair = 0, bias: bool = True, init: str = "he_normal",
                 rng: RNG | None = None):  # fmt: skip
        kh, kw = conv.pair(kernel_size, "kernel_size", 1)
        conv.pair(stride, "stride", 1), conv.pair(padding, "padding", 0)  # errors here, not later
        shape = (out_channels, in_channels, kh, kw)
        self.weight, self.bias = _initial_parameters(rng, shape, init, bias)
        self.stride, self.padding = stride, padding

    def __call__(self, x: Array) -> Array:
        return conv.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding)

    def __repr__(self) -> str:
        o, c, kh, kw = self.weight.shape
        return f"Conv2d({c}, {o}, ({kh}, {kw}), stride={self.stride}, padding={self.padding})"


class Dense(Module):
    """Fully connected layer: (N, in_features) -> (N, out_features).

    Parameters as for :class:`Conv2d`.
    """

    by_example = True

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True,
                 init: str = "he_normal", rng: RNG | None = None):  # fmt: skip
        self.weight, self.bias = _initial_parameters(rng, (out_features, in_features), init, bias)

    def __call__(self, x: Array) -> Array:
        if x.ndim != 2 or x.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"{self!r} takes (N, {self.weight.shape[1]}), got {x.shape}: "
                "put Flatten() before it, or check the image size"
            )
        return ops.dense(x, self.weight, self.bias)

    def __repr__(self) -> str:
        return f"Dense({self.weight.shape[1]}, {self.weight.shape[0]})"


# ----------------------------------------------------------------------- layers without weights


class Pooling(Module):
    """What :class:`MaxPool2d` and :class:`AvgPool2d` share: a function of every window."""

    by_example = True
    pool: Callable[..., Any]

    def __init__(self, kernel_size: Pair, *, stride: Pair | None = None):
        conv.pair(kernel_size, "kernel_size", 1)  # an error here, not when the layer is called
        conv.pair(kernel_size if stride is None else stride, "stride", 1)
        self.kernel_size, self.stride = kernel_size, stride

    def __call__(self, x: Array) -> Array:
        return self.pool(x, kernel_size=self.kernel_size, stride=self.stride)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kernel_size}, stride={self.stride})"


class MaxPool2d(Pooling):
    """The largest pixel of every window: (N, C, H, W) -> (N, C, P, Q)."""

    pool = staticmethod(conv.max_pool2d)


class AvgPool2d(Pooling):
    """The mean of every window: (N, C, H, W) -> (N, C, P, Q)."""

    pool = staticmethod(conv.avg_pool2d)


class Flatten(Module):
    """(N, C, H, W) -> (N, C·H·W)."""

    by_example = True

    def __call__(self, x: Array) -> Array:
        return ops.reshape(x, (x.shape[0], math.prod(x.shape[1:])))

    def __repr__(self) -> str:
        return "Flatten()"


class Activation(Module):
    """An elementwise function as a layer, by its name in ``tinyadv.ops``."""

    by_example = True

    def __init__(self, name: str):
        check_choice(ACTIVATIONS, activation=name)
        self.name = name

    def __call__(self, x: Array) -> Array:
        return getattr(ops, self.name)(x)

    def __repr__(self) -> str:
        return f"Activation({self.name!r})"


ACTIVATIONS = ("relu", "leaky_relu", "sigmoid", "tanh", "softplus")


class ReLU(Activation):
    """max(x, 0), the piecewise linear activation of the networks here."""

    def __init__(self) -> None:
        super().__init__("relu")

    def __repr__(self) -> str:
        return "ReLU()"
