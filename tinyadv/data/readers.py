"""Read data files, and say exactly what is wrong with one: MNIST's, CIFAR-10's, or your own.

IDX (MNIST, Fashion-MNIST), big-endian, http://yann.lecun.com/exdb/mnist:

    0 0 8 d | d sizes of 4 bytes each | the values, one byte each, last axis fastest

where 8 means "unsigned bytes" and d is the number of axes: 3 for images, 1 for labels.

CIFAR-10, binary version, https://www.cs.toronto.edu/~kriz/cifar.html: five training files and one
test file, each of records of 1 + 3072 bytes: the label, then 32×32 red, green and blue values.
"""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

CIFAR10_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR10_TEST = "test_batch.bin"
LARGEST = 1 << 28  # bytes; the largest content, of CIFAR-10's archive, has 184 million
REMEDY = "delete the file, and it will be downloaded again"


class DataError(RuntimeError):
    """A dataset cannot be had, or a file of it is broken. The message says what to do."""


def unpack(path: Path) -> bytes:
    """The content of a file, unpacked if it is a gzip file (by its first bytes, not its name).

    Raises
    ------
    DataError
        If the file is cut off or damaged, is a web page, or unpacks to more than any of the data
        sets; no more than that is unpacked.
    """
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        # Instead of a file that is gone, or behind a log-in page, a server may send HTML.
        if raw.lstrip()[:1] == b"<":
            raise DataError(f"{path} is a web page (it begins {raw[:40]!r}), not data: {REMEDY}")
        return raw
    try:
        content = gzip.open(io.BytesIO(raw)).read(LARGEST + 1)
    except (EOFError, OSError, zlib.error) as error:
        what = f"damaged or cut-off gzip file of {len(raw):,} bytes"
        raise DataError(f"{path} is a {what} ({error}): {REMEDY}") from None
    if len(content) > LARGEST:
        raise DataError(f"{path} unpacks to more than {LARGEST:,} bytes: {REMEDY}")
    return content


def parse_idx(content: bytes, ndim: int, path: Path) -> np.ndarray:
    """The array in an unpacked IDX file of unsigned bytes.

    Parameters
    ----------
    content : bytes
    ndim : int
        The number of axes that are expected: 3 for images, 1 for labels.
    path : path
        Where ``content`` came from: the error messages name it.

    Returns
    -------
    uint8 array with ``ndim`` axes, read-only

    Raises
    ------
    DataError
        If the magic number is another one, or there are more or fewer values than announced.
    """
    magic = bytes([0, 0, 8, ndim])
    if content[:4] != magic:
        raise DataError(
            f"{path} is not an IDX file with {ndim} axes: expected the first bytes "
            f"{magic.hex(' ')}, got {content[:4].hex(' ') or 'none'}: {REMEDY}"
        )
    header = 4 + 4 * ndim  # bytes
    if len(content) < header:
        raise DataError(
            f"{path} is cut off: expected a header of {header} bytes, got {len(content)}: {REMEDY}"
        )
    shape = np.frombuffer(content, ">u4", ndim, offset=4).tolist()
    values = len(content) - header
    if values != math.prod(shape):
        raise DataError(
            f"{path} announces {'×'.join(map(str, shape))} = {math.prod(shape):,} bytes of data, "
            f"but {values:,} follow: {REMEDY}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_cifar10(path: Path) -> dict[str, np.ndarray]:
    """The images and labels in CIFAR-10's binary archive (a tar file, gzip-compressed or not).

    Returns
    -------
    arrays : dict
        ``x_train`` and ``x_test`` uint8 (N, 3, 32, 32); ``y_train`` and ``y_test`` int64 (N,).

    Raises
    ------
    DataError
        If the archive is damaged or cut off, is a web page, lacks a file, or has one that is not
        made of whole records.
    """
    names, batches = (*CIFAR10_TRAIN, CIFAR10_TEST), {}
    content = unpack(path)  # by itself, tarfile would stop short of gzip's checksum at the end
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if member.isfile() and name in names:
                    batches[name] = parse_cifar10(tar.extractfile(member).read(), f"{path}: {name}")
    except tarfile.TarError as error:
        raise DataError(f"{path} is a damaged or cut-off archive ({error}): {REMEDY}") from None
    missing = [name for name in names if name not in batches]
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(missing)}: expected CIFAR-10 in the binary version "
            f"(cifar-10-binary.tar.gz), not for Python or Matlab: {REMEDY}"
        )
    images, labels = zip(*(batches[name] for name in CIFAR10_TRAIN), strict=True)
    train = {"x_train": np.concatenate(images), "y_train": np.concatenate(labels)}
    return train | dict(zip(("x_test", "y_test"), batches[CIFAR10_TEST], strict=True))


def parse_cifar10(content: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 (N, 3, 32, 32), and labels, int64 (N,), of one file of records.

    ``source`` names the file in the error message, a ``DataError``.
    """
    record = 1 + 3 * 32 * 32
    if len(content) % record:
        got = f"{len(content):,} bytes"
        raise DataError(f"{source} has {got}, not a multiple of the {record} of a record: {REMEDY}")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)  # (N, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The images and labels in a file of one's own, as Keras keeps them.

    Parameters
    ----------
    path : path
        Of a file that ``numpy.savez`` wrote, with the arrays ``x_train``, ``y_train``, ``x_test``,
        ``y_test``. Images: (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3, integers 0–255
        or floats 0–1. Labels: (N,) or (N, 1), whole numbers from 0.

    Returns
    -------
    arrays : dict
        ``x_train`` and ``x_test`` float32 (N, C, H, W); ``y_train`` and ``y_test`` int64 (N,).

    Raises
    ------
    DataError
        If there is no such file, an array is missing, or its shape or its values are other ones.
    """
    names = ("x_train", "y_train", "x_test", "y_test")
    if path.exists() and not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not a file that numpy.savez wrote, or it is cut off")
    try:
        with open(path, "rb") as raw, np.load(raw) as file:  # no pickles: loading runs no code
            arrays = {name: file[name] for name in names if name in file}
            found = ", ".join(file) or "nothing"
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        what = "is damaged, or has Python objects instead of numbers"
        raise DataError(f"{path} {what} ({type(error).__name__})") from None
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(missing)}: expected the arrays {', '.join(names)}, "
            f"got {found}"
        )
    for split in ("train", "test"):
        x, y = f"x_{split}", f"y_{split}"
        arrays[x] = as_images(arrays[x], f"{path}: {x}")
        arrays[y] = as_labels(arrays[y], f"{path}: {y}")
        if len(arrays[x]) != len(arrays[y]):
            lengths = f"{len(arrays[x]):,} images and {len(arrays[y]):,} labels"
            raise DataError(f"{path} has {lengths} in {x} and {y}: expected one label per image")
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        shapes = " and ".join(str(arrays[x].shape[1:]) for x in ("x_train", "x_test"))
        raise DataError(
            f"{path} has images of two shapes (C, H, W) in x_train and x_test: {shapes}"
        )
    return arrays


def as_images(x: np.ndarray, source: str) -> np.ndarray:
    """Images as float32 (N, C, H, W), 0–1; ``source`` names them in the error, a ``DataError``."""
    shape = x.shape
    if x.ndim == 3:
        x = x[:, None]  # (N, H, W) -> (N, 1, H, W)
    elif x.ndim == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
    elif x.ndim != 4 or shape[1] not in (1, 3) or shape[3] in (1, 3):
        expected = "(N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3"
        either = x.ndim == 4 and shape[1] in (1, 3) and shape[3] in (1, 3)
        why = ", and this may be either of the last two" if either else ""
        raise DataError(f"{source} has shape {shape}: expected {expected}{why}")
    if x.size == 0:
        raise DataError(f"{source} has shape {shape}: there are no images")
    if x.dtype.kind not in "buif":
        raise DataError(f"{source} has dtype {x.dtype}: expected integers 0–255 or floats 0–1")
    low, high = x.min(), x.max()  # NaN if there is one
    if x.dtype.kind in "ui" and high <= 1:
        remedy = "multiply them by 255, or convert them to floats"
        raise DataError(f"{source} has no integers but {low} and {high}, of 0–255: {remedy}")
    largest = 255 if x.dtype.kind in "ui" else 1
    if not (low >= 0 and high <= largest):
        raise DataError(
            f"{source} has values from {low:.4g} to {high:.4g}: expected integers 0–255 or floats "
            "0–1; undo any other scaling before you save them"
        )
    return np.divide(x, np.float32(largest), dtype=np.float32, order="C")


def as_labels(y: np.ndarray, source: str) -> np.ndarray:
    """Labels as int64 (N,); ``source`` names them in the error, a ``DataError``."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        hint = "; of one-hot labels take argmax(axis=1)" if y.ndim == 2 else ""
        raise DataError(f"{source} has shape {y.shape}: expected (N,){hint}")
    if y.dtype.kind not in "uif" or not ((y >= 0) & (y < 10_000) & (y == np.trunc(y))).all():
        got = f"got {y[:5].tolist()} …"
        raise DataError(f"{source} must be whole numbers from 0 to K − 1, below 10,000, {got}")
    return y.astype(np.int64)
