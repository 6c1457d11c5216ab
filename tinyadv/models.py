"""The networks, by name. All take images (N, C, H, W) and return logits (N, K): no softmax.

:func:`threshold_layers` is only the first part of a network. :func:`summary` prints the layers of a
network and their sizes.

``rng`` is a seed or a generator, or ``None`` for weights that differ with every call. It is 0 by
default: two calls give the same network, and an ensemble needs seeds, ``slides_cnn(rng=1)``.
``init`` names an initialisation of :mod:`tinyadv.layers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tinyadv.backend import array_module
from tinyadv.layers import Activation, Conv2d, Dense, Flatten, MaxPool2d, Module, ReLU, Sequential
from tinyadv.tensor import RNG, Array, Shape, value_of


def slides_cnn(rng: RNG | None = 0, *, init: str = "he_normal") -> Sequential:
    """The CNN of Shusen Wang's slides on evasion attacks, for 28×28 grey images: 38,390 parameters.

    The slides do not name an initialisation. He's is made for ReLUs; with Keras's default,
    ``"glorot_uniform"``, accuracy on MNIST was one or two tenths of a percentage point lower.
    """
    how: dict[str, Any] = {"rng": np.random.default_rng(rng), "init": init}
    return Sequential(
        Conv2d(1, 10, 5, **how),  # (N, 1, 28, 28) -> (N, 10, 24, 24)
        ReLU(),
        MaxPool2d(2),  # -> (N, 10, 12, 12)
        Conv2d(10, 20, 5, **how),  # -> (N, 20, 8, 8)
        ReLU(),
        MaxPool2d(2),  # -> (N, 20, 4, 4)
        Flatten(),  # -> (N, 320)
        Dense(320, 100, **how),
        ReLU(),
        Dense(100, 10, **how),
    )


def fast_cnn(rng: RNG | None = 0, *, width: int = 1, hidden: int = 100,
             init: str = "he_normal") -> Sequential:  # fmt: skip
    """The small strided CNN of Wong et al. (2020), "Fast is better than free": 166,406 parameters.

    For 28×28 grey images. Strides do what pooling does elsewhere. ``width`` multiplies the number
    of filters, ``hidden`` is the size of the dense layer.
    """
    how: dict[str, Any] = {"rng": np.random.default_rng(rng), "init": init}
    c = 16 * width
    return Sequential(
        Conv2d(1, c, 4, stride=2, padding=1, **how),  # (N, 1, 28, 28) -> (N, 16, 14, 14)
        ReLU(),
        Conv2d(c, 2 * c, 4, stride=2, padding=1, **how),  # -> (N, 32, 7, 7)
        ReLU(),
        Flatten(),  # -> (N, 1568)
        Dense(2 * c * 49, hidden, **how),
        ReLU(),
        Dense(hidden, 10, **how),
    )


def threshold_layers(low: float, high: float) -> list[Module]:
    """Layers to put in front of a network: clip((x - low) / (high - low), 0, 1), for grey images.

    Two 1×1 convolutions and their ReLUs, 4 parameters, pixel by pixel. Training changes them like
    all others; at first they compute

        a = relu(high - x)                0 for white pixels, and all above ``high``
        b = relu(1 - a / (high - low))    0 for black ones, and all below ``low``

    A black pixel that changes by ``low`` at most comes out as if nothing had happened, and so does
    a white one that changes by 1 - ``high``; interval bounds see that. Values between the two come
    out further apart. So this helps if most pixels are nearly black or white. Training on
    PGD's examples finds such thresholds by itself: Madry et al. (2018) saw them in the first layer
    of their MNIST network.

    Parameters
    ----------
    low, high : float
        In pixel values 0–1.

    Returns
    -------
    list of Module
        (N, 1, H, W) -> (N, 1, H, W), one after the other.

    Raises
    ------
    ValueError
        If not 0 ≤ low < high ≤ 1.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"expected thresholds 0 ≤ low < high ≤ 1, got {low} and {high}")
    layers = [Conv2d(1, 1, 1), ReLU(), Conv2d(1, 1, 1), ReLU()]
    parameters = [p for layer in layers for p in layer.parameters()]
    for p, value in zip(parameters, (-1, high, -1 / (high - low), 1), strict=True):
        p.value[...] = value
    return layers


def interval_cnn(
    rng: RNG | None = 0, *, hidden: int = 100, thresholds: tuple[float, float] | None = None,
    init: str = "interval_normal",
) -> Sequential:  # fmt: skip
    """The small network of Gowal et al. (2018), who train on interval bounds: 329,606 parameters.

    The number holds for the defaults and 28×28 grey images. Unlike theirs it starts from the
    initialisation of Shi et al. (2021), which makes the bounds of a new network narrow enough to
    train on.
    ``hidden`` is the size of the dense layer; ``thresholds=(low, high)`` puts
    :func:`threshold_layers` in front.
    """
    how: dict[str, Any] = {"rng": np.random.default_rng(rng), "init": init}
    return Sequential(
        *(threshold_layers(*thresholds) if thresholds is not None else ()),
        Conv2d(1, 16, 4, stride=2, **how),  # (N, 1, 28, 28) -> (N, 16, 13, 13)
        ReLU(),
        Conv2d(16, 32, 4, **how),  # -> (N, 32, 10, 10)
        ReLU(),
        Flatten(),  # -> (N, 3200)
        Dense(3200, hidden, **how),
        ReLU(),
        Dense(hidden, 10, **how),
    )


def madry_cnn(rng: RNG | None = 0, *, init: str = "he_normal") -> Sequential:
    """The MNIST network of Madry et al. (2018), 28×28 grey images: 3,274,634 parameters."""
    how: dict[str, Any] = {"rng": np.random.default_rng(rng), "init": init}
    return Sequential(
        Conv2d(1, 32, 5, padding=2, **how),  # (N, 1, 28, 28) -> (N, 32, 28, 28)
        ReLU(),
        MaxPool2d(2),  # -> (N, 32, 14, 14)
        Conv2d(32, 64, 5, padding=2, **how),  # -> (N, 64, 14, 14)
        ReLU(),
        MaxPool2d(2),  # -> (N, 64, 7, 7)
        Flatten(),  # -> (N, 3136)
        Dense(3136, 1024, **how),
        ReLU(),
        Dense(1024, 10, **how),
    )


def mlp(
    sizes: Sequence[int] = (784, 200, 200, 10), rng: RNG | None = 0, *,
    activation: str = "relu", init: str = "he_normal",
) -> Sequential:  # fmt: skip
    """A multilayer perceptron: ``sizes`` from the number of pixels to the number of classes.

    Parameters
    ----------
    sizes : sequence of int
        Two at least; with just two it is a linear model.
    rng : numpy.random.Generator, int or None
    activation : {"relu", "leaky_relu", "sigmoid", "tanh", "softplus"}
        Between the layers.
    init : str
    """
    if len(sizes) < 2:
        raise ValueError(f"mlp needs two sizes or more, from inputs to outputs, got {sizes!r}")
    how: dict[str, Any] = {"rng": np.random.default_rng(rng), "init": init}
    layers: list[Module] = [Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [Dense(inputs, outputs, **how), Activation(activation)]
    return Sequential(*layers[:-1])


def linear(inputs: int = 784, outputs: int = 10, rng: RNG | None = 0, *,
           init: str = "glorot_uniform") -> Sequential:  # fmt: skip
    """A linear model: logits W x + b."""
    return mlp((inputs, outputs), rng, init=init)


def summary(model: Module, shape: Shape) -> None:
    """Print the layers of a network, with the output shape and the number of parameters of each.

    Parameters
    ----------
    model : Module
        The layers of a :class:`Sequential` have a line each, and so have the layers of one within
        it. Any other module has one line. It is called once, on its own backend, with a batch of
        one image of zeros. A layer of your own that changes with every batch, such as batch
        normalisation with running means, changes with this one as well. The total counts a
        parameter that two layers share once.
    shape : (C, H, W)
        Of an image.

    Raises
    ------
    ValueError
        If a layer does not take images of this shape, or what the layer before it returns. The
        message names the layer, what it expects and what it was given.

    Examples
    --------
    >>> summary(mlp((784, 30, 10)), (1, 28, 28))
    Flatten()           (N, 784)       0
    Dense(784, 30)      (N, 30)   23,550
    Activation('relu')  (N, 30)        0
    Dense(30, 10)       (N, 10)      310
    total                         23,860
    """
    parameters = model.parameters()
    dtype = parameters[0].dtype if parameters else np.float32
    x = array_module(*(p.value for p in parameters)).zeros((1, *shape), dtype)
    rows = []
    for layer in _one_by_one(model):
        name = repr(layer)
        if "\n" in name or " at 0x" in name:  # several lines, or an address
            name = getattr(layer, "__name__", type(layer).__name__)
        try:
            y = value_of(layer(x))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} does not take {_of_shape(x)}: {error}") from error
        count = sum(p.size for p in layer.parameters()) if isinstance(layer, Module) else 0
        rows.append((name, _of_shape(y), f"{count:,}"))
        x = y
    rows.append(("total", "", f"{sum(p.size for p in parameters):,}"))
    a, b, c = (max(map(len, column)) for column in zip(*rows, strict=True))
    for name, output, size in rows:
        print(f"{name:<{a}}  {output:<{b}}  {size:>{c}}")


def _one_by_one(model: Any) -> list:
    """The layers of a ``Sequential``, and of those within it; ``[model]`` for any other module."""
    if type(model).__call__ is not Sequential.__call__:  # a subclass may have its own
        return [model]
    return [layer for part in model.layers for layer in _one_by_one(part)]


def _of_shape(x: Array) -> str:
    return f"({', '.join(['N', *map(str, x.shape[1:])])})"
