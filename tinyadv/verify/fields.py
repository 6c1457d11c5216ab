"""Receptive fields, which let one pass bound several neurons.

A neuron of a convolution depends on a few pixels, and on the few ReLUs between the pixels and the
neuron. So a linear bound on it is a sum of few terms that are not zero, and two neurons that have
none of these in common can share a row: their gradients travel back through the network side by
side, and the bound on each is the sum of its own terms.

Which terms these are is found with a gradient of NaN at the neuron: whatever becomes NaN depends on
it, in every image, because even a slope of 0 times NaN is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from tinyadv.backend import array_module, to_numpy
from tinyadv.tensor import Array, value_of

ROWS = 128  # the most that one pass takes


class Fields:
    """The terms that the neurons at some positions of a convolution depend on.

    The channels at a position count as one, because they have the same receptive field.

    Parameters
    ----------
    ask : callable
        ``ask(c, total)`` returns ``total(parts)``: the parts are arrays (R, …), in which each row
        adds up to the bound for a direction c (R, C, H, W).
    like : (N, C, H, W)
        What is bounded.
    positions : (P,) integers in ascending order
        Of the H · W.

    Attributes
    ----------
    parts : list of (T, P) bool
        For each part, which of its T terms belong to a position.
    overlap : (P, P) of bool
        Whether two positions have a term in common.
    """

    def __init__(self, ask: Callable, like: Array, positions: np.ndarray):
        xp, (_, channels, *size) = array_module(like), like.shape
        self.positions, self.area, found = positions, int(np.prod(size)), []
        for some in np.split(positions, range(ROWS, len(positions), ROWS)):
            c = xp.zeros((len(some), channels, self.area), like.dtype)
            c[xp.arange(len(some)), :, xp.asarray(some)] = np.nan
            found.append(ask(c.reshape(-1, channels, *size), _what_is_nan))
        self.parts = [xp.concatenate(rows).T for rows in zip(*found, strict=True)]
        counts = (part.astype(np.float32) for part in self.parts)
        self.overlap = to_numpy(sum(part.T @ part for part in counts)) > 0

    def columns(self, neurons: np.ndarray) -> np.ndarray:
        """The number in ``positions`` of the position of each neuron, a number below C · H · W."""
        return np.searchsorted(self.positions, neurons % self.area)

    def rows(self, neurons: np.ndarray) -> np.ndarray:
        """A row for each of these neurons, (Q,), such that no two in a row overlap."""
        columns, rows = self.columns(neurons), np.empty(len(neurons), int)
        taken = np.zeros((len(neurons), len(self.positions)), bool)
        for j in np.argsort(columns, kind="stable"):
            rows[j] = np.argmin(taken[:, columns[j]])  # the first row that has room
            taken[rows[j]] |= self.overlap[columns[j]]
        return rows

    def sums(self, parts: Iterable) -> Array:
        """What the terms of each position add up to, in each row: (R, P)."""
        pairs = zip(map(_flat, parts), self.parts, strict=True)
        return sum(part @ own.astype(part.dtype) for part, own in pairs)


def _flat(part):
    return value_of(part).reshape(len(part), -1)


def _what_is_nan(parts):
    return [array_module(part).isnan(part) for part in map(_flat, parts)]
