"""Where the public datasets come from, how they are fetched, and what they are checked against."""

from __future__ import annotations

import hashlib
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyadv.data.readers import REMEDY, DataError, parse_idx, read_cifar10, unpack


@dataclass(frozen=True)
class Archive:
    """A published file, with the SHA-256 of the archive and of its unpacked content."""

    name: str
    sha256: str
    content_sha256: str | None = None  # None where it has not been published


def idx_archives(*sha256: str, contents: tuple = (None,) * 4) -> tuple[Archive, ...]:
    """The four files of MNIST and of Fashion-MNIST, which have the same names."""
    kinds = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(map(Archive, [f"{kind}-ubyte.gz" for kind in kinds], sha256, contents))


@dataclass(frozen=True)
class Source:
    """A public dataset: addresses, which are tried in order; files; and their contents."""

    mirrors: tuple[str, ...]
    archives: tuple[Archive, ...]
    classes: tuple[str, ...]
    counts: tuple[int, int] = (60_000, 10_000)  # training images, test images
    shape: tuple[int, int, int] = (1, 28, 28)  # of an image: (C, H, W)


SOURCES = {
    # LeCun, Cortes & Burges, "The MNIST database of handwritten digits", 1998
    "mnist": Source(
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        archives=idx_archives(
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            contents=(
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
        classes=tuple("0123456789"),
    ),
    # Xiao, Rasul & Vollgraf, "Fashion-MNIST", 2017, https://arxiv.org/abs/1708.07747
    "fashion": Source(
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        archives=idx_archives(
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
        classes=tuple(
            "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
        ),
    ),
    # Krizhevsky, "Learning multiple layers of features from tiny images", 2009
    "cifar10": Source(
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        archives=(
            Archive(
                "cifar-10-binary.tar.gz",
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        classes=tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
        counts=(50_000, 10_000),
        shape=(3, 32, 32),
    ),
}


def fetch(name: str, archive: Archive, folder: Path) -> Path:
    """The path of one file of a dataset, downloaded first if it is not there.

    A file that is already in ``folder/name``, compressed or not, is taken as it is; ``load``
    checks it. A download is checked against the archive's SHA-256 before it gets its name.

    Raises
    ------
    DataError
        If no mirror could be reached, or none has the right file.
    """
    place = folder / name
    for path in (place / archive.name, place / archive.name.removesuffix(".gz")):
        if path.is_file():
            return path

    import pooch
    import requests  # which pooch depends on

    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=1 << 16)
    failures = []
    for mirror in SOURCES[name].mirrors:
        url = mirror + archive.name
        try:
            path = pooch.retrieve(
                url, f"sha256:{archive.sha256}", archive.name, place, downloader=downloader
            )
            return Path(path)
        except requests.ConnectionError:
            failures.append(f"{url} (no connection)")
        except (OSError, ValueError) as error:  # HTTP or the disk; a wrong checksum
            failures.append(f"{url} ({error})")
    with suppress(OSError):  # there is something in it
        place.rmdir()  # pooch made it before it tried
    raise DataError(
        f"cannot get {archive.name} of {name}: it is not in {place}, and no address gave it: "
        f"{'; '.join(failures)}. Put it there by hand, or use --data glyphs: it needs no download"
    )


def load(name: str, folder: Path) -> dict[str, np.ndarray]:
    """One of ``SOURCES``, from ``folder/name`` or downloaded to there, and checked.

    Returns
    -------
    arrays : dict
        ``x_train``, ``x_test``: uint8 (N, C, H, W), and ``y_train``, ``y_test``: int64 (N,)

    Raises
    ------
    DataError
        If a file cannot be downloaded, or has the wrong content.
    """
    source = SOURCES[name]
    paths = [fetch(name, archive, folder) for archive in source.archives]
    if name == "cifar10":
        # A copy that was packed again has another SHA-256, and no SHA-256 of the files inside is
        # published: such an archive is accepted if its content is well-formed.
        arrays = read_cifar10(paths[0])
        paths *= 4
    else:
        contents = [unpack(path) for path in paths]
        x_train, y_train, x_test, y_test = map(parse_idx, contents, (3, 1, 3, 1), paths)
        arrays = {
            "x_train": x_train[:, None],  # (N, H, W) -> (N, 1, H, W)
            "y_train": y_train.astype(np.int64),
            "x_test": x_test[:, None],
            "y_test": y_test.astype(np.int64),
        }
    train, test = source.counts
    check_split(arrays["x_train"], arrays["y_train"], train, source, *paths[:2])
    check_split(arrays["x_test"], arrays["y_test"], test, source, *paths[2:])
    # After the checks above, because their messages say more.
    if name != "cifar10":
        for archive, content, path in zip(source.archives, contents, paths, strict=True):
            check_content(name, archive, content, path)
    return arrays


def check_split(
    images: np.ndarray, labels: np.ndarray, count: int, source: Source, *paths: Path
) -> None:
    """Raise a ``DataError`` unless there are ``count`` images and as many labels, all possible.

    ``paths`` are the files of the images and of the labels.
    """
    (image_path, label_path), shape = paths, images.shape[1:]
    if shape != source.shape:
        expected = f"expected {source.shape}"
        raise DataError(f"{image_path} has images of shape {shape}, {expected}: {REMEDY}")
    if len(images) != len(labels):
        raise DataError(
            f"{image_path} has {len(images):,} images but {label_path} has {len(labels):,} "
            "labels: delete both files, and they will be downloaded again"
        )
    if len(images) != count:
        raise DataError(f"{image_path} has {len(images):,} images, expected {count:,}: {REMEDY}")
    where, classes = int(labels.argmax()), len(source.classes)  # the largest label
    if labels[where] >= classes:
        got = f"the label {labels[where]} (of image {where})"
        raise DataError(f"{label_path} has {got}, expected 0 to {classes - 1}: {REMEDY}")


def check_content(name: str, archive: Archive, content: bytes, path: Path) -> None:
    """Raise a ``DataError`` unless an unpacked file is the one that was published.

    Only the SHA-256 of the archives of Fashion-MNIST is published, and a copy that was packed
    again has another one. So a well-formed file passes there, unless it is one of MNIST's: those
    have the same names, and end up in the wrong folder easily.
    """
    digest = hashlib.sha256(content).hexdigest()
    if archive.content_sha256 is not None:
        if digest != archive.content_sha256:
            raise DataError(
                f"{path} is not the file of {name}: expected the SHA-256 {archive.content_sha256} "
                f"of its unpacked content, got {digest}: {REMEDY}"
            )
    elif digest in {other.content_sha256 for other in SOURCES["mnist"].archives}:
        raise DataError(f"{path} is a file of MNIST, expected one of {name}: {REMEDY}")
