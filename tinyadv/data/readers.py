"""Read MNIST's IDX files and CIFAR-10's binary archive, and say exactly what is wrong with one.

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
    dict with ``x_train``, ``x_test``: uint8 (N, 3, 32, 32), and ``y_train``, ``y_test``: int64 (N,)

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
