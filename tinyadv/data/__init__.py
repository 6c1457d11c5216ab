"""Datasets: images in [0, 1] with labels, and the batches that training and attacks go through.

``glyphs`` needs no download; ``python -m tinyadv.data mnist fashion cifar10`` fetches the others
beforehand. A file of your own, ``load("FILE.npz")``, is a dataset, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyadv.backend import array_module
from tinyadv.data import download, glyphs
from tinyadv.data.readers import DataError, read_npz
from tinyadv.inputs import check_counts

__all__ = [
    "NAMES", "DataError", "Dataset", "batches", "cache_folder", "data_folder", "load",
    "random_shift",
]  # fmt: skip

NAMES = ("glyphs", *download.SOURCES)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, split into training and test.

    Images are float32 arrays (N, C, H, W), C-contiguous, with values from 0 to 1; labels are int64
    arrays (N,) that index ``classes``.
    """

    name: str
    x_train: np.ndarray = field(repr=False)
    y_train: np.ndarray = field(repr=False)
    x_test: np.ndarray = field(repr=False)
    y_test: np.ndarray = field(repr=False)
    classes: tuple[str, ...]


def load(name: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> Dataset:
    """A dataset by name, downloaded or made the first time, or from a file of your own.

    Parameters
    ----------
    name : {"glyphs", "mnist", "fashion", "cifar10"}, or the path of a file ``….npz``
        10,000 + 2,000 distorted printed digits (28×28, no download); 60,000 + 10,000 handwritten
        digits, or pieces of clothing (28×28 both); 50,000 + 10,000 photographs (3×32×32). A file
        has the arrays ``x_train``, ``y_train``, ``x_test`` and ``y_test``, as Keras keeps them: see
        :func:`tinyadv.data.readers.read_npz`. Its dataset has the name of the file,
        and the classes "0" to "K-1", where K - 1 is the largest label.
    folder : path, optional
        Where the files of a named dataset are, in a folder of its own name; see ``data_folder``.

    Raises
    ------
    ValueError
        If there is no dataset of that name.
    DataError
        If a file cannot be downloaded, or has the wrong content.
    """
    check_name(name)
    if name not in NAMES:
        path = Path(name).expanduser()
        arrays = read_npz(path)
        count = 1 + max(int(arrays[y].max()) for y in ("y_train", "y_test"))
        return Dataset(path.name, **arrays, classes=tuple(map(str, range(count))))
    if name == "glyphs":
        # Not in $TINYADV_DATA: these files can be made again, and that folder may be shared.
        arrays, classes = glyphs.load(Path(folder or cache_folder())), glyphs.CLASSES
    else:
        arrays, classes = download.load(name, data_folder(folder)), download.SOURCES[name].classes
    for split in ("x_train", "x_test"):  # from bytes, 0 to 255, to float32, 0 to 1
        arrays[split] = np.divide(arrays[split], np.float32(255), dtype=np.float32, order="C")
    return Dataset(name, **arrays, classes=classes)


def check_name(name: str | os.PathLike[str], names: Sequence[str] = NAMES) -> None:
    """ValueError if ``name`` is neither one of ``names`` nor the path of a file ``….npz``."""
    if name not in names and not os.fspath(name).lower().endswith(".npz"):
        listed = ", ".join(names)
        raise ValueError(f"must be {listed} or the path of a file ….npz, got {name!r}")


def data_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """``folder``, or else ``$TINYADV_DATA``, or else the platform's cache folder."""
    return Path(folder or os.environ.get("TINYADV_DATA") or cache_folder()).expanduser()


def cache_folder() -> Path:
    """Where things are kept that can be made again: ``$TINYADV_CACHE``, or the platform's."""
    folder = os.environ.get("TINYADV_CACHE")
    if not folder:
        import pooch

        folder = pooch.os_cache("tinyadv")
    return Path(folder).expanduser()


def batches(
    x: Any, y: Any, batch_size: int, rng: np.random.Generator | int | None = None
) -> Iterator[tuple[Any, Any]]:
    """Go through ``x`` and ``y`` once, ``batch_size`` examples at a time.

    Parameters
    ----------
    x, y : arrays (N, ...) of either backend
    batch_size : int
        The last batch may be smaller.
    rng : numpy.random.Generator or int, optional
        Shuffles; an int gives the same order at every call, so an epoch needs a generator. Without
        it the order is kept, and the batches are views.

    Raises
    ------
    ValueError
        If ``x`` and ``y`` have different lengths, or ``batch_size`` is not an integer ≥ 1.
    """
    n = x.shape[0]
    if y.shape[0] != n:
        raise ValueError(f"x and y must have the same length, got {n} and {y.shape[0]}")
    check_counts(batch_size=batch_size)
    slices = (slice(i, i + batch_size) for i in range(0, n, batch_size))
    if rng is None:
        return ((x[part], y[part]) for part in slices)
    # Shuffled on the host, so that both backends see the same order, and moved once.
    order = np.random.default_rng(rng).permutation(n)
    x_order, y_order = array_module(x).asarray(order), array_module(y).asarray(order)
    return ((x[x_order[part]], y[y_order[part]]) for part in slices)


def random_shift(pixels: int) -> Callable:
    """Augmentation for ``fit(augment=…)``: each image moved by whole pixels, black coming in.

    Parameters
    ----------
    pixels : int
        The largest shift to each side, and up and down.

    Returns
    -------
    function
        ``f(x, rng) -> x``, (N, C, H, W) -> (N, C, H, W). It draws on the host.
    """
    check_counts(0, pixels=pixels)

    def shift(x, rng):
        xp, (n, c, h, w) = array_module(x), x.shape
        by = xp.asarray(rng.integers(0, 2 * pixels + 1, (2, n)))
        rows = by[0][:, None] + xp.arange(h)  # (N, H)
        columns = by[1][:, None] + xp.arange(w)  # (N, W)
        framed = xp.pad(x, ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)))
        image, channel = xp.arange(n)[:, None, None, None], xp.arange(c)[None, :, None, None]
        return framed[image, channel, rows[:, None, :, None], columns[:, None, None, :]]

    return shift
