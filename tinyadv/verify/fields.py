"""Receptive fields, which let one pass bound several neurons.

A neuron of a convolution depends on a few pixels, and on the few ReLUs between these and it. So a
linear bound on it is a sum of few terms that are not zero, and two neurons that have none of these
in common can share a row: their gradients travel back through the network side by side, and the
bound on each is the sum of its own terms.

Which terms these are is found with a gradient of NaN at the neuron: whatever becomes NaN has to do
with it, because even 0 · NaN is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from tinyadv.backend import array_module, to_numpy
from tinyadv.tensor import Array, value_of

ROWS = 128  # the most that one pass takes


class Fields:
    """The terms that the neurons at each position of a convolution depend on.

    The channels at a position count as one, because they have the same receptive field.

    Parameters
    ----------
    ask : callable
        ``ask(c, total)`` returns ``total(parts)``: the parts are arrays (R, …), in which each row
        adds up to the bound for a direction c (R, C, H, W).
    like : (N, C, H, W)
        What is bounded.

    Attributes
    ----------
    parts : list of (T, H · W)
        For each part, 1 where one of its T terms belongs to a position, and otherwise 0.
    overlap : (H · W, H · W) of bool
        Whether two positions have a term in common.
    """

    def __init__(self, ask: Callable, like: Array):
        xp, (_, channels, *size) = array_module(like), like.shape
        positions, found = int(np.prod(size)), []
        for some in np.split(np.arange(positions), range(ROWS, positions, ROWS)):
            c = xp.zeros((len(some), channels, positions), like.dtype)
            c[xp.arange(len(some)), :, xp.asarray(some)] = np.nan
            found.append(ask(c.reshape(-1, channels, *size), _what_is_nan))
        self.parts = [xp.concatenate(rows).T for rows in zip(*found, strict=True)]
        self.overlap = to_numpy(sum(part.T @ part for part in self.parts)) > 0

    def rows(self, neurons: np.ndarray) -> np.ndarray:
        """A row for each of these neurons, (Q,), such that no two in a row overlap."""
        positions, rows = neurons % len(self.overlap), np.empty(len(neurons), int)
        taken = np.zeros((len(neurons), len(self.overlap)), bool)
        for j in np.argsort(positions, kind="stable"):
            rows[j] = np.argmin(taken[:, positions[j]])  # the first row that has room
            taken[rows[j]] |= self.overlap[positions[j]]
        return rows

    def sums(self, parts: Iterable) -> Array:
        """What the terms of each position add up to, in each row: (R, H · W)."""
        return sum(_flat(part) @ own for part, own in zip(parts, self.parts, strict=True))


def _flat(part):
    return value_of(part).reshape(len(part), -1)


def _what_is_nan(parts):
    return [array_module(part).isnan(part).astype(part.dtype) for part in map(_flat, parts)]
