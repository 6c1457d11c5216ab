"""Layers: an operation together with the weights that it is used with.

A :class:`Module` is anything with parameters that can be called. Its parameters are tensors, found
by looking through its attributes in the order of their definition. There is no training mode, no
``.grad``, nothing to register and nothing to reset.

Names and shapes of parameters are PyTorch's: a state dict made here loads into the same
``torch.nn.Sequential``, and the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from tinyadv import conv, ops
from tinyadv.backend import array_module, get_backend, to_numpy
from tinyadv.tensor import Array, Tensor

# ------------------------------------------------------------------------------ initialisation


def he_normal(rng: np.random.Generator, shape, fan_in: int, fan_out: int) -> np.ndarray:
    """Normal with variance 2 / fan_in, which keeps the scale of activations through ReLUs.

    He et al. (2015), "Delving Deep into Rectifiers", equation 10.
    """
    return rng.standard_normal(shape) * np.sqrt(2 / fan_in)


def glorot_uniform(rng: np.random.Generator, shape, fan_in: int, fan_out: int) -> np.ndarray:
    """Uniform with variance 2 / (fan_in + fan_out): what Keras uses by default.

    Glorot & Bengio (2010), "Understanding the difficulty of training deep feedforward neural
    networks", equation 16.
    """
    limit = np.sqrt(6 / (fan_in + fan_out))
    return rng.uniform(-limit, limit, shape)


def fan_in_uniform(rng: np.random.Generator, shape, fan_in: int, fan_out: int) -> np.ndarray:
    """Uniform between ±1 / √fan_in, a sixth of He's variance: what PyTorch uses by default.

    The biases are drawn from the same; with the others they begin at 0.
    """
    limit = 1 / np.sqrt(fan_in)
    return rng.uniform(-limit, limit, shape)


def interval_normal(rng: np.random.Generator, shape, fan_in: int, fan_out: int) -> np.ndarray:
    """Normal with standard deviation √(2π) / fan_in, which keeps the width of interval bounds.

    An interval of radius r becomes one of radius Σ|w| r, for bounds add up what values average out.
    With E|w| = 2 / fan_in, that is 2 r, and a ReLU halves it again on the average. Under other
    initialisations it grows with √fan_in in each layer. Shi et al. (2021), "Fast certified robust
    training with short warmup".
    """
    return rng.standard_normal(shape) * np.sqrt(2 * np.pi) / fan_in


INITIALISERS = {
    "he_normal": he_normal,
    "glorot_uniform": glorot_uniform,
    "fan_in_uniform": fan_in_uniform,
    "interval_normal": interval_normal,
}


def _initial_parameters(rng, shape, init: str, bias: bool) -> tuple[Tensor, Tensor | None]:
    """Weights of this shape, and (with ``bias``) as many biases as there are outputs."""
    if init not in INITIALISERS:
        raise ValueError(f"init must be one of {tuple(INITIALISERS)}, got {init!r}")
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
    ``self.parts = {"key": [Scale()]}`` has the parameter ``parts.key.0.factor``.

    ``by_example`` says that a module treats each example on its own, so that a batch may be cut
    into pieces. Set it to False in a layer that looks at the whole batch, such as batch
    normalisation, or draws random numbers: pieces would each have their own mean, and draw in the
    order in which threads come to them.
    """

    by_example = True

    def __call__(self, x):
        raise NotImplementedError(f"{type(self).__name__} needs a method __call__(self, x)")

    def children(self) -> Iterator[tuple[str, object]]:
        """The attributes, with their names; what lists, tuples and dictionaries hold one by one."""
        for name, value in vars(self).items():
            yield from _parts(name, value)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Names such as ``"0.weight"`` and the parameters, in the order of their definition."""
        for name, value in self.children():
            if isinstance(value, Tensor):
                yield name, value
            elif isinstance(value, Module):
                for inner, parameter in value.named_parameters():
                    yield f"{name}.{inner}", parameter

    def _all_by_example(self) -> bool:
        """``by_example`` of this module and of all modules in it."""
        inner = (value for _, value in self.children() if isinstance(value, Module))
        return self.by_example and all(module._all_by_example() for module in inner)

    def parameters(self) -> list[Tensor]:
        """All parameters, in the order of their definition; one that is used twice, once."""
        return list(dict.fromkeys(parameter for _, parameter in self.named_parameters()))

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the parameters as NumPy arrays, by name."""
        return {name: to_numpy(p.value).copy() for name, p in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Set all parameters from arrays by name: of either backend, or CPU tensors of PyTorch.

        The module keeps its own dtype and backend.

        Raises
        ------
        ValueError
            If names are missing or unknown, or a shape differs. Nothing is changed then.
        """
        parameters = dict(self.named_parameters())
        missing, unknown = parameters.keys() - state.keys(), state.keys() - parameters.keys()
        if missing or unknown:
            raise ValueError(
                f"these weights belong to another network: "
                f"missing {sorted(missing)}, unknown {sorted(unknown)}"
            )
        arrays = {}
        for name, p in parameters.items():
            arrays[name] = to_numpy(state[name]).astype(p.dtype)
            if arrays[name].shape != p.shape:
                raise ValueError(
                    f"these weights belong to another network: {name} has shape "
                    f"{arrays[name].shape}, this one needs {p.shape}"
                )
        for name, p in parameters.items():
            p.value = array_module(p.value).asarray(arrays[name])

    def to(self, backend: str) -> Module:
        """Move all parameters to ``"numpy"`` or ``"cupy"``; returns the module itself."""
        xp = get_backend(backend)
        for p in self.parameters():
            p.value = xp.asarray(to_numpy(p.value))
        return self

    def astype(self, dtype) -> Module:
        """Change all parameters to a floating-point ``dtype``; returns the module itself."""
        for p in self.parameters():
            p.value = p.value.astype(dtype)
        return self


def _parts(name: str, value) -> Iterator[tuple[str, object]]:
    """``value``, or what it holds if it is a list, a tuple or a dictionary, with names."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _parts(f"{name}.{key}", part)
    else:
        yield name, value


class Sequential(Module):
    """The layers one after another, named by their position.

    With a :class:`Conv2d` among them, a large batch is cut into pieces that several cores work on;
    it stays whole if a layer, or a module inside one, has ``by_example = False`` or is a plain
    function, of which nothing is known.
    """

    def __init__(self, *layers: Module):
        self.layers = list(layers)

    def children(self):
        return ((str(i), layer) for i, layer in enumerate(self.layers))

    def __call__(self, x):
        # Convolution and pooling use one core; products of matrices use all by themselves.
        slow = any(isinstance(layer, Conv2d) for layer in self.layers)
        known = all(isinstance(layer, Module) for layer in self.layers)
        if slow and known and self._all_by_example():
            return ops.by_examples(self._apply, x)
        return self._apply(x)

    def _apply(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def __getitem__(self, index):
        """A layer, or for a slice a :class:`Sequential` of the same layers."""
        part = self.layers[index]
        return Sequential(*part) if isinstance(index, slice) else part

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        lines = [f"  ({i}) {layer!r}" for i, layer in enumerate(self.layers)]
        return "\n".join(["Sequential(", *lines, ")"])


class Average(Module):
    """The mean of what several networks return for the same images: a committee.

    (N, …) -> (N, K). Networks that were trained from other first weights err on other images, and a
    mistake that one makes alone is often outweighed. Perrone & Cooper (1993), "When networks
    disagree: ensemble methods for hybrid neural networks".

    Parameters
    ----------
    *members : Module
        One at least; they take the same images and return the same shape, (N, K).

    Raises
    ------
    TypeError
        If a member cannot be called.
    ValueError
        If there is no member; when called, if they return different shapes.
    """

    def __init__(self, *members: Module):
        if not members:
            raise ValueError("Average needs one network at least: Average(first, second, …)")
        for member in members:
            if not callable(member):
                raise TypeError(
                    f"expected networks, got a {type(member).__name__}: Average(first, second, …), "
                    "or Average(*networks)"
                )
        self.members = list(members)

    def __call__(self, x):
        return _mean([member(x) for member in self.members])

    def __repr__(self) -> str:
        return f"Average({', '.join(map(repr, self.members))})"


def _mean(tensors):
    first, *others = tensors
    for other in others:
        if other.shape != first.shape:  # adding them could broadcast
            raise ValueError(
                f"the members of an Average must return one shape, got {first.shape} and "
                f"{other.shape}: take networks with the same classes"
            )
    return sum(others, first) * (1 / len(tensors))


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
    rng : numpy.random.Generator or int
    """

    def __init__(self, in_channels, out_channels, kernel_size, *, stride=1, padding=0,
                 bias=True, init="he_normal", rng=0):  # fmt: skip
        kh, kw = conv._pair(kernel_size, "kernel_size", 1)
        conv._pair(stride, "stride", 1), conv._pair(padding, "padding", 0)  # errors here, not later
        shape = (out_channels, in_channels, kh, kw)
        self.weight, self.bias = _initial_parameters(rng, shape, init, bias)
        self.stride, self.padding = stride, padding

    def __call__(self, x):
        return conv.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding)

    def __repr__(self) -> str:
        o, c, kh, kw = self.weight.shape
        return f"Conv2d({c}, {o}, ({kh}, {kw}), stride={self.stride}, padding={self.padding})"


class Dense(Module):
    """Fully connected layer: (N, in_features) -> (N, out_features).

    Parameters as for :class:`Conv2d`.
    """

    def __init__(self, in_features, out_features, *, bias=True, init="he_normal", rng=0):
        self.weight, self.bias = _initial_parameters(rng, (out_features, in_features), init, bias)

    def __call__(self, x):
        if x.ndim != 2 or x.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"{self!r} takes (N, {self.weight.shape[1]}), got {x.shape}: "
                "put Flatten() before it, or check the image size"
            )
        return ops.dense(x, self.weight, self.bias)

    def __repr__(self) -> str:
        return f"Dense({self.weight.shape[1]}, {self.weight.shape[0]})"


# ----------------------------------------------------------------------- layers without weights


def _check_windows(kernel_size, stride) -> None:
    """Raise ValueError when the layer is made, not when it is first called."""
    conv._pair(kernel_size, "kernel_size", 1)
    if stride is not None:
        conv._pair(stride, "stride", 1)


class MaxPool2d(Module):
    """The largest pixel of every window: (N, C, H, W) -> (N, C, P, Q)."""

    def __init__(self, kernel_size, *, stride=None):
        _check_windows(kernel_size, stride)
        self.kernel_size, self.stride = kernel_size, stride

    def __call__(self, x):
        return conv.max_pool2d(x, kernel_size=self.kernel_size, stride=self.stride)

    def __repr__(self) -> str:
        return f"MaxPool2d({self.kernel_size}, stride={self.stride})"


class AvgPool2d(Module):
    """The mean of every window: (N, C, H, W) -> (N, C, P, Q)."""

    def __init__(self, kernel_size, *, stride=None):
        _check_windows(kernel_size, stride)
        self.kernel_size, self.stride = kernel_size, stride

    def __call__(self, x):
        return conv.avg_pool2d(x, kernel_size=self.kernel_size, stride=self.stride)

    def __repr__(self) -> str:
        return f"AvgPool2d({self.kernel_size}, stride={self.stride})"


class Flatten(Module):
    """(N, C, H, W) -> (N, C·H·W)."""

    def __call__(self, x):
        return ops.reshape(x, (x.shape[0], math.prod(x.shape[1:])))

    def __repr__(self) -> str:
        return "Flatten()"


class Activation(Module):
    """An elementwise function as a layer; the name is that of the operation in ``tinyadv.ops``."""

    def __init__(self, name: str):
        if name not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {ACTIVATIONS}, got {name!r}")
        self.name = name

    def __call__(self, x):
        return getattr(ops, self.name)(x)

    def __repr__(self) -> str:
        return f"Activation({self.name!r})"


ACTIVATIONS = ("relu", "leaky_relu", "sigmoid", "tanh", "softplus")


class ReLU(Activation):
    """max(x, 0), the piecewise linear activation of the networks here."""

    def __init__(self):
        super().__init__("relu")

    def __repr__(self) -> str:
        return "ReLU()"
