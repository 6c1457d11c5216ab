"""Finite differences, Jacobian-vector and Hessian-vector products.

check_grads   is a gradient right? Compare it with finite differences, to any order
jvp           J v, the slope of f along v: what forward mode computes
hvp           H v, the slope of the gradient along v
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyadv import ops
from tinyadv.backend import array_module
from tinyadv.inputs import native
from tinyadv.tensor import RNG, Array, Tensor, checked_list, grad


def check_grads(
    f: Callable, inputs: Sequence[Array], order: int = 2, *,
    step: float = 1e-5, tolerance: tuple[float, ...] = (1e-6, 1e-4), rng: RNG = 0,
) -> None:  # fmt: skip
    """Check the gradients of ``f`` against central finite differences, up to ``order``.

    Along a random direction v, with a random cotangent u, the slope of t ↦ uᵀ f(x + t·v) at 0 must
    equal (uᵀ ∂f/∂x) v. For the next order the gradient itself is the function that is checked.

    Parameters
    ----------
    f : function
        Takes as many tensors as there are inputs and returns a tensor, of any shape. Stay away
        from kinks: a finite difference across one means nothing.
    inputs : list of array
        float64; in lower precision rounding errors hide the differences.
    order : int
        1 checks the gradient, 2 also the gradient of the gradient, and so on.
    step : float
        h of the finite difference, in units of the inputs.
    tolerance : tuple of float
        Relative error allowed at first order, second order …; the last one applies to all higher
        orders.
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
    inputs = [native(x) for x in checked_list(inputs)]
    for position, x in enumerate(inputs):
        kind = str(getattr(x, "dtype", type(x).__name__))
        if kind != "float64":
            raise TypeError(f"check_grads needs float64 arrays: input {position} is {kind}")
    xp = array_module(*inputs)
    tensors = [Tensor(x) for x in inputs]
    y = _output(f, tensors)
    u = xp.asarray(rng.standard_normal(y.shape))
    # Directions of length 1, so that the step is a length whatever the number of inputs.
    directions = [rng.standard_normal(x.shape) for x in inputs]
    length = np.sqrt(sum((v**2).sum() for v in directions)) or 1.0
    directions = [xp.asarray(v / length) for v in directions]

    def along(t: float) -> float:
        moved = _output(f, [Tensor(x + t * v) for x, v in zip(inputs, directions, strict=True)])
        return float((u * moved.value).sum())

    expected = (along(step) - along(-step)) / (2 * step)
    gradients = grad(y, tensors, u)
    got = sum(float((g * v).sum()) for g, v in zip(gradients, directions, strict=True))
    # Rounding errors in `along` are relative to the intermediate values, and the step divides them.
    # Those values are as large as the output, or as 1 where a small output is a difference.
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
            """All gradients in one vector, with a tape; it also depends on the cotangent u."""
            parts = grad(f(*xs), xs, u, create_graph=True)
            return ops.concatenate([ops.reshape(part, (-1,)) for part in parts])

        tolerance = tolerance[1:] or tolerance
        check_grads(gradient, [u, *inputs], order - 1, step=step, tolerance=tolerance, rng=rng)


def jvp(f: Callable, inputs: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
    """The Jacobian-vector product: f(x), and its slope J v along the direction v.

    Forward mode computes J v in one pass without a tape. Here it comes from two backward passes:
    the vector-Jacobian product u ↦ Jᵀ u is linear in u, so the gradient of <Jᵀ u, v> with respect
    to u is J v, for any u. Griewank & Walther (2008), "Evaluating Derivatives", chapter 3.

    Parameters
    ----------
    f : function
        Takes as many tensors as there are inputs and returns a tensor, of any shape.
    inputs : list of array
        Of floating-point numbers.
    tangents : list of array
        v: a direction for each input, of its shape.

    Returns
    -------
    value : array
        f(x).
    tangent : array
        J v, of the shape of f(x).

    Raises
    ------
    ValueError
        If there is not a tangent for each input, of the same shape.

    Examples
    --------
    >>> x, v = np.array([1.0, 2.0]), np.array([1.0, 0.0])
    >>> jvp(lambda x: x * x, [x], [v])
    (array([1., 4.]), array([2., 0.]))
    """
    tensors, tangents = _matching(inputs, tangents)
    y = _output(f, tensors)
    u = Tensor(array_module(y.value).zeros_like(y.value))
    along = _dot(grad(y, tensors, u, create_graph=True), tangents)
    (tangent,) = grad(along, [u])
    return y.value, tangent


def hvp(f: Callable, inputs: Sequence[Array], vector: Sequence[Array]) -> list[Array]:
    """The Hessian-vector product H v of a scalar function: the gradient of <∇f, v>.

    H has as many rows and columns as f has inputs; H v costs two backward passes and never forms
    it. Pearlmutter (1994), "Fast exact multiplication by the Hessian".

    Parameters
    ----------
    f : function
        Takes as many tensors as there are inputs and returns a scalar tensor.
    inputs : list of array
        Of floating-point numbers.
    vector : list of array
        v: an array for each input, of its shape.

    Returns
    -------
    list of array
        H v, in the order and the shapes of ``inputs``.

    Raises
    ------
    ValueError
        If f does not return a scalar, or there is not an array for each input, of the same shape.

    Examples
    --------
    >>> x, v = np.array([1.0, 2.0]), np.array([1.0, 1.0])
    >>> hvp(lambda x: (x * x * x).sum(), [x], [v])
    [array([ 6., 12.])]
    """
    tensors, vector = _matching(inputs, vector)
    along = _dot(grad(_output(f, tensors), tensors, create_graph=True), vector)
    return grad(along, tensors)


def _output(f: Callable, tensors: list[Tensor]) -> Tensor:
    """f of the tensors, or a TypeError if that is not a tensor."""
    y = f(*tensors)
    if not isinstance(y, Tensor):
        got = type(y).__name__
        raise TypeError(f"f must return a Tensor and returned {got}: use tinyadv.ops, not .value")
    return y


def _matching(inputs: Any, directions: Any) -> tuple[list[Tensor], list[Array]]:
    """The inputs as tensors, if there is a direction of the same shape for each."""
    tensors = [Tensor(x) for x in checked_list(inputs)]
    xp = array_module(*(x.value for x in tensors))
    directions = [v if hasattr(v, "dtype") else xp.asarray(v) for v in checked_list(directions)]
    shapes, got = [x.shape for x in tensors], [v.shape for v in directions]
    if got != shapes:
        raise ValueError(f"expected a direction for each input, of shapes {shapes}, got {got}")
    return tensors, directions


def _dot(tensors, arrays):
    products = [ops.sum(t * a) for t, a in zip(tensors, arrays, strict=True)]
    return sum(products[1:], products[0])
