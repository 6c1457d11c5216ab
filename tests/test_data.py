"""Datasets: what comes in is what was written, and whatever is broken is named. No network."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests
import strict_cupy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tinyadv.data import (
    NAMES,
    DataError,
    Dataset,
    batches,
    cache_folder,
    data_folder,
    download,
    glyphs,
    load,
    random_shift,
    readers,
)
from tinyadv.data.__main__ import main
from tinyadv.data.readers import parse_cifar10, parse_idx, read_cifar10, read_npz, unpack

IDX_FILES = (
    *("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    *("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
)


# ---- making files -------------------------------------------------------------------------------


def idx(array):
    """An array of unsigned bytes as an unpacked IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def cifar_tar(batches, mode="w:gz"):
    """A tar file like CIFAR-10's, of {file name: (images, labels)} or {file name: bytes}."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        tar.addfile(tarfile.TarInfo("cifar-10-batches-bin/readme.html"))
        for name, batch in batches.items():
            if not isinstance(batch, bytes):
                images, labels = batch
                records = np.column_stack([labels, images.reshape(len(images), -1)])
                batch = records.astype(np.uint8).tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(batch)
            tar.addfile(member, io.BytesIO(batch))
    return file.getvalue()


def images_and_labels(n, shape, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *shape), np.uint8), np.arange(n, dtype=np.uint8) % 10


@pytest.fixture
def small(monkeypatch, tmp_path):
    """``small(name)`` writes a tiny MNIST or Fashion-MNIST into ``tmp_path``; returns its arrays.

    What the library expects of MNIST (counts, SHA-256) is set to what was written.
    """

    def write(name):
        x_train, y_train = images_and_labels(20, (28, 28), seed=1)
        x_test, y_test = images_and_labels(10, (28, 28), seed=2)
        contents = [idx(array) for array in (x_train, y_train, x_test, y_test)]
        folder = tmp_path / name
        folder.mkdir()
        archives = []
        for file, content in zip(IDX_FILES, contents, strict=True):
            packed = gzip.compress(content)
            (folder / file).write_bytes(packed)
            digests = [hashlib.sha256(data).hexdigest() for data in (packed, content)]
            archives.append(download.Archive(file, *digests[: 2 if name == "mnist" else 1]))
        source = dataclasses.replace(
            download.SOURCES[name], archives=tuple(archives), counts=(20, 10)
        )
        monkeypatch.setitem(download.SOURCES, name, source)
        return x_train, y_train, x_test, y_test

    return write


@pytest.fixture
def internet(monkeypatch):
    """A fake internet, {address: bytes or an exception}; the addresses asked are in its "asked"."""
    answers = {"asked": []}

    def get(self, url, output_file, pooch, check_only=False):
        answers["asked"].append(url)
        answer = answers.get(url, requests.ConnectionError("unreachable"))
        if isinstance(answer, Exception):
            raise answer
        Path(output_file).write_bytes(answer)

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", get)
    return answers


@pytest.fixture
def few_glyphs(monkeypatch):
    """Glyphs of which making costs nothing."""
    monkeypatch.setitem(glyphs.SETTINGS, "train", 130)
    monkeypatch.setitem(glyphs.SETTINGS, "test", 40)


# ---- readers ------------------------------------------------------------------------------------


@given(arrays(np.uint8, array_shapes(max_dims=4, min_side=0, max_side=6)))
def test_idx_round_trip(array):
    read = parse_idx(idx(array), array.ndim, Path("file"))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array, strict=True)


@given(arrays(np.uint8, array_shapes(max_dims=3, max_side=5)), st.data())
def test_idx_with_bytes_missing_or_added(array, data):
    content = idx(array)
    cut = data.draw(st.integers(0, len(content) - 1))
    for broken in (content[:cut], content + b"\0"):
        with pytest.raises(DataError, match="file"):
            parse_idx(broken, array.ndim, Path("file"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected the first bytes 00 00 08 03, got none"),
        (b"\0\0\x0d\x03" + bytes(16), "expected the first bytes 00 00 08 03, got 00 00 0d 03"),
        (idx(np.zeros(5, np.uint8)), "expected the first bytes 00 00 08 03, got 00 00 08 01"),
        (b"\0\0\x08\x03" + bytes(5), "expected a header of 16 bytes, got 9"),
        (idx(np.zeros((2, 3, 4), np.uint8))[:-1], "announces 2×3×4 = 24 bytes of data, but 23"),
        # The product of the sizes is 0 in 32 and in 64 bits.
        (b"\0\0\x08\x03" + b"\x80\0\0\0" * 3, "but 0 follow"),
    ],
)
def test_idx_errors(content, expected):
    with pytest.raises(DataError, match=re.escape(expected)) as error:
        parse_idx(content, 3, Path("some/file"))
    assert "some/file" in str(error.value)
    assert "delete the file" in str(error.value)


@pytest.mark.parametrize("name", ["a.gz", "a"])
def test_unpack_goes_by_content(tmp_path, name):
    path = tmp_path / name
    for stored in (b"content", gzip.compress(b"content")):
        path.write_bytes(stored)
        assert unpack(path) == b"content"


def damaged(packed):
    """A gzip file cut off, and with a byte changed in its data, in its checksum, in its header."""
    for cut in (3, len(packed) // 2, len(packed) - 1):
        yield packed[:cut]
    for place in (len(packed) // 2, -8, 2):
        changed = bytearray(packed)
        changed[place] ^= 0xFF
        yield bytes(changed)


def test_unpack_damaged(tmp_path):
    path = tmp_path / "images.gz"
    for broken in damaged(gzip.compress(np.random.default_rng(0).bytes(2000))):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"images\.gz is a damaged or cut-off gzip file"):
            unpack(path)


def test_unpack_stops_at_more_than_any_data_set_has(tmp_path, monkeypatch):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(1000)))
    monkeypatch.setattr(readers, "LARGEST", 1000)
    assert unpack(path) == bytes(1000)
    monkeypatch.setattr(readers, "LARGEST", 999)
    with pytest.raises(DataError, match=r"unpacks to more than 999 bytes"):
        unpack(path)


def test_unpack_web_page(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(b"\n<!DOCTYPE html><title>Log in to the network</title>")
    with pytest.raises(DataError, match=r"images\.gz is a web page.*DOCTYPE"):
        unpack(path)


def small_cifar():
    names = ("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin")
    names = (*names, "data_batch_5.bin", "test_batch.bin")
    return {name: images_and_labels(3, (3, 32, 32), seed) for seed, name in enumerate(names)}


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_cifar10_round_trip(tmp_path, mode):
    files = small_cifar()
    path = tmp_path / "archive"
    backwards = dict(reversed(files.items()))  # the archive's order does not matter
    path.write_bytes(cifar_tar(backwards, mode))
    data = read_cifar10(path)
    *train, test = files.values()
    np.testing.assert_array_equal(data["x_train"], np.concatenate([x for x, _ in train]))
    np.testing.assert_array_equal(data["y_train"], np.concatenate([y for _, y in train]))
    np.testing.assert_array_equal(data["x_test"], test[0])
    np.testing.assert_array_equal(data["y_test"], test[1])
    assert {name: array.dtype for name, array in data.items()} == {
        **{"x_train": np.uint8, "y_train": np.int64},
        **{"x_test": np.uint8, "y_test": np.int64},
    }


@given(st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_cifar10_records_round_trip(n, seed):
    images, labels = images_and_labels(n, (3, 32, 32), seed)
    content = b"".join(
        bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)
    )
    read = parse_cifar10(content, "file")
    np.testing.assert_array_equal(read[0], images)
    np.testing.assert_array_equal(read[1], labels)


def test_cifar10_broken(tmp_path):
    path = tmp_path / "cifar.tar.gz"
    files = small_cifar()

    def message(content):
        path.write_bytes(content)
        with pytest.raises(DataError, match="delete the file") as error:
            read_cifar10(path)
        assert str(path) in str(error.value)
        return str(error.value)

    for broken in damaged(cifar_tar(files)):
        assert "damaged or cut-off" in message(broken)
    assert "damaged or cut-off" in message(cifar_tar(files, "w")[:20_000])
    assert "damaged or cut-off" in message(b"")
    assert "web page" in message(b"<html>Moved</html>")
    assert "multiple of the 3073" in message(cifar_tar(files | {"data_batch_2.bin": bytes(3074)}))
    del files["data_batch_3.bin"]
    assert "lacks data_batch_3.bin" in message(cifar_tar(files))


# ---- public datasets: files that are there ------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_load_idx_dataset(small, tmp_path, name):
    x_train, y_train, x_test, y_test = small(name)
    data = load(name, tmp_path)
    assert (data.name, len(data.classes)) == (name, 10)
    for images, labels, x, y in (
        (x_train, y_train, data.x_train, data.y_train),
        (x_test, y_test, data.x_test, data.y_test),
    ):
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        assert x.flags.c_contiguous
        np.testing.assert_array_equal(x, (images[:, None] / 255).astype(np.float32), strict=True)
        np.testing.assert_array_equal(y, labels)


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_files_may_be_packed_in_another_way_or_not_at_all(small, tmp_path, name):
    small(name)
    expected = load(name, tmp_path)
    for i, file in enumerate(IDX_FILES):
        path = tmp_path / name / file
        content = gzip.decompress(path.read_bytes())
        if i % 2:
            path.write_bytes(gzip.compress(content, compresslevel=1, mtime=1))
        else:
            path.rename(path.with_suffix("")).write_bytes(content)
    data = load(name, tmp_path)
    np.testing.assert_array_equal(data.x_train, expected.x_train)
    np.testing.assert_array_equal(data.y_test, expected.y_test)


@pytest.mark.parametrize(
    ("file", "array", "expected"),
    [
        (0, np.zeros((20, 28, 27), np.uint8), "images of shape (1, 28, 27), expected (1, 28, 28)"),
        (0, np.zeros((19, 28, 28), np.uint8), "has 19 images but "),
        (1, np.zeros(21, np.uint8), " has 21 labels: delete both files"),
        (3, np.array([0, 9, 200, *range(7)], np.uint8), "has the label 200 (of image 2)"),
        (3, np.full(10, 10, np.uint8), "expected 0 to 9"),
    ],
)
@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_files_with_the_wrong_content(small, tmp_path, name, file, array, expected):
    small(name)
    path = tmp_path / name / IDX_FILES[file]
    path.write_bytes(gzip.compress(idx(array)))
    with pytest.raises(DataError, match=re.escape(expected)) as error:
        load(name, tmp_path)
    assert str(path) in str(error.value)


def test_too_few_examples(small, tmp_path):
    small("fashion")
    for file, array in ((0, np.zeros((4, 28, 28), np.uint8)), (1, np.zeros(4, np.uint8))):
        (tmp_path / "fashion" / IDX_FILES[file]).write_bytes(idx(array))
    with pytest.raises(DataError, match="has 4 images, expected 20"):
        load("fashion", tmp_path)


def test_content_that_was_changed(small, tmp_path):
    x_train, *_ = small("mnist")
    x_train[5, 6, 7] ^= 1
    path = tmp_path / "mnist" / IDX_FILES[0]
    path.write_bytes(idx(x_train))
    with pytest.raises(DataError, match=r"is not the file of mnist: expected the SHA-256") as error:
        load("mnist", tmp_path)
    assert str(path) in str(error.value)
    assert hashlib.sha256(idx(x_train)).hexdigest() in str(error.value)


def test_files_of_mnist_in_the_folder_of_fashion(small, tmp_path):
    small("mnist")
    small("fashion")
    name = IDX_FILES[2]
    (tmp_path / "fashion" / name).write_bytes((tmp_path / "mnist" / name).read_bytes())
    with pytest.raises(DataError, match=r"is a file of MNIST, expected one of fashion"):
        load("fashion", tmp_path)


@pytest.mark.parametrize("file", ["cifar-10-binary.tar.gz", "cifar-10-binary.tar"])
def test_load_cifar10(monkeypatch, tmp_path, file):
    source = dataclasses.replace(download.SOURCES["cifar10"], counts=(15, 3))
    monkeypatch.setitem(download.SOURCES, "cifar10", source)
    files = small_cifar()
    path = tmp_path / "cifar10" / file
    path.parent.mkdir()
    path.write_bytes(cifar_tar(files))
    data = load("cifar10", tmp_path)
    assert data.x_train.shape == (15, 3, 32, 32)
    assert data.x_train.flags.c_contiguous and data.x_test.flags.c_contiguous
    images, labels = files["test_batch.bin"]
    np.testing.assert_array_equal(data.x_test, (images / 255).astype(np.float32))
    np.testing.assert_array_equal(data.y_test, labels)

    labels[1] = 10
    path.write_bytes(cifar_tar(files))
    with pytest.raises(DataError, match=r"has the label 10 \(of image 1\), expected 0 to 9"):
        load("cifar10", tmp_path)


# ---- public datasets: downloads -----------------------------------------------------------------


def test_download_from_the_second_mirror(small, internet, tmp_path):
    expected = small("mnist")
    wrong, right = download.SOURCES["mnist"].mirrors
    for i, file in enumerate(IDX_FILES):
        internet[right + file] = (tmp_path / "mnist" / file).read_bytes()
        internet[wrong + file] = b"<html>" if i % 2 else requests.HTTPError("404")
    new = tmp_path / "new" / "folder"
    data = load("mnist", new)
    np.testing.assert_array_equal(data.y_train, expected[1])
    assert internet["asked"] == [m + file for file in IDX_FILES for m in (wrong, right)]
    # Fetched once, and nothing half-done left lying about.
    internet["asked"].clear()
    load("mnist", new)
    assert internet["asked"] == []
    assert sorted(path.name for path in (new / "mnist").iterdir()) == sorted(IDX_FILES)


def test_download_with_the_wrong_checksum(small, internet, tmp_path):
    small("mnist")
    packed = gzip.compress(idx(np.zeros((20, 28, 28), np.uint8)))
    for mirror in download.SOURCES["mnist"].mirrors:
        internet[mirror + IDX_FILES[0]] = packed
    with pytest.raises(DataError, match=hashlib.sha256(packed).hexdigest()):
        load("mnist", tmp_path / "new")
    assert not (tmp_path / "new" / "mnist").exists()


@pytest.mark.parametrize("name", ["mnist", "fashion", "cifar10"])
def test_no_network(internet, tmp_path, name):
    with pytest.raises(DataError) as error:
        load(name, tmp_path)
    message = str(error.value)
    source = download.SOURCES[name]
    file = source.archives[0].name
    assert internet["asked"] == [mirror + file for mirror in source.mirrors]
    assert all(f"{url} (no connection)" in message for url in internet["asked"])
    assert f"cannot get {file}" in message
    assert str(tmp_path / name) in message
    assert "--data glyphs" in message
    assert not (tmp_path / name).exists()  # no empty folder is left behind


def test_no_place_for_a_download(internet, tmp_path):
    (tmp_path / "fashion").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot get .* no address gave it"):
        load("fashion", tmp_path)


def test_sources_are_complete():
    for source in download.SOURCES.values():
        assert len(source.classes) == 10
        for archive in source.archives:
            for digest in (archive.sha256, archive.content_sha256 or archive.sha256):
                assert re.fullmatch("[0-9a-f]{64}", digest)


# ---- load and the folder ------------------------------------------------------------------------


def test_unknown_name(tmp_path):
    with pytest.raises(ValueError, match=r"glyphs, mnist, fashion, cifar10.*got 'emnist'"):
        load("emnist", tmp_path)


def test_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYADV_DATA", str(tmp_path / "a"))
    assert data_folder() == tmp_path / "a"
    assert data_folder(tmp_path / "b") == data_folder(str(tmp_path / "b")) == tmp_path / "b"
    assert data_folder("~/x") == Path.home() / "x"
    monkeypatch.setenv("TINYADV_DATA", "")
    monkeypatch.setenv("TINYADV_CACHE", str(tmp_path / "c"))
    assert data_folder() == cache_folder() == tmp_path / "c"
    monkeypatch.delenv("TINYADV_DATA")
    monkeypatch.delenv("TINYADV_CACHE")
    assert data_folder() == cache_folder() == Path(pooch.os_cache("tinyadv"))


def test_glyphs_are_kept_in_the_cache_folder_and_not_among_the_data(
    few_glyphs, monkeypatch, tmp_path
):
    monkeypatch.setenv("TINYADV_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TINYADV_CACHE", str(tmp_path / "cache"))
    load("glyphs")
    assert glyphs.cache_file(cache_folder()).is_file()
    assert not (tmp_path / "data").exists()


def test_importing_is_cheap():
    """None of the large packages comes in before it is needed."""
    code = "import sys, tinyadv.data; print({'pooch', 'scipy', 'matplotlib'} & set(sys.modules))"
    assert run_python("-c", code).stdout.strip() == "set()"


def run_python(*arguments, **environment):
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"} | environment,
        capture_output=True,
        encoding="utf-8",
    )


# ---- a file of one's own -------------------------------------------------------------------------

OWN = {
    "x_train": np.arange(6 * 8 * 7).reshape(6, 8, 7) % 256,
    "y_train": np.arange(6) % 4,
    "x_test": np.arange(2 * 8 * 7).reshape(2, 8, 7) % 256,
    "y_test": np.array([1, 3]),
}


def own(tmp_path, **changed):
    path = tmp_path / "mine.npz"
    arrays = {**OWN, **changed}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@given(
    channels=st.sampled_from([1, 3]),
    layout=st.sampled_from(["first", "last", "none"]),
    kind=st.sampled_from([np.uint8, np.int64, np.float16, np.float32, np.float64]),
    column=st.booleans(),
    seed=st.integers(0, 99),
)
def test_own_images_come_out_alike_however_they_are_kept(
    channels, layout, kind, column, seed, tmp_path_factory
):
    channels = 1 if layout == "none" else channels
    rng = np.random.default_rng(seed)
    images = {n: rng.integers(0, 256, (n, channels, 5, 6)) for n in (4, 2)}  # train, test
    changed = {}
    for split, x in (("train", images[4]), ("test", images[2])):
        kept = {"first": x, "last": x.transpose(0, 2, 3, 1), "none": x[:, 0]}[layout]
        kept = (kept / 255).astype(kind) if np.issubdtype(kind, np.floating) else kept.astype(kind)
        y = np.arange(len(x)) % 3
        changed |= {f"x_{split}": kept, f"y_{split}": y[:, None] if column else y}
    data = load(own(tmp_path_factory.mktemp("own"), **changed))
    assert (data.name, data.classes) == ("mine.npz", ("0", "1", "2"))
    for x, found in ((images[4], data.x_train), (images[2], data.x_test)):
        assert found.dtype == np.float32 and found.flags.c_contiguous
        np.testing.assert_allclose(found, x / 255, atol=1e-3 if kind is np.float16 else 1e-7)
    assert data.y_train.dtype == np.int64 and data.y_train.shape == (4,)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"y_test": None}, ["lacks y_test", "x_train, y_train, x_test"]),
        ({"x_train": np.zeros((6, 8))}, ["x_train", "(6, 8)", "(N, H, W)"]),
        ({"x_train": np.zeros((6, 8, 7, 2))}, ["(6, 8, 7, 2)", "C = 1 or 3"]),
        ({"x_train": np.zeros((6, 3, 7, 3))}, ["(6, 3, 7, 3)", "either"]),
        ({"x_train": np.zeros((0, 8, 7))}, ["no images"]),
        ({"x_train": np.zeros((6, 8, 7), complex)}, ["complex128", "0–255"]),
        ({"x_train": np.full((6, 8, 7), 300)}, ["300", "0–255"]),
        ({"x_train": np.full((6, 8, 7), -1)}, ["-1", "0–255"]),
        ({"x_train": np.ones((6, 8, 7), int)}, ["1 and 1", "multiply"]),
        ({"x_train": np.full((6, 8, 7), 255.0)}, ["255", "scaling"]),
        ({"x_train": np.full((6, 8, 7), -0.5)}, ["-0.5", "scaling"]),
        ({"x_train": np.full((6, 8, 7), np.nan)}, ["nan", "scaling"]),
        ({"x_test": np.zeros((2, 8, 8))}, ["(1, 8, 7)", "(1, 8, 8)"]),
        ({"y_train": np.eye(6)}, ["(6, 6)", "argmax"]),
        ({"y_train": np.arange(5)}, ["6 images", "5 labels"]),
        ({"y_train": np.array([0, 1, 2, -1, 0, 0])}, ["whole numbers"]),
        ({"y_train": np.array([0, 1, 2, 0.5, 0, 0])}, ["whole numbers"]),
        ({"y_train": np.array(list("abcdef"))}, ["whole numbers", "'a'"]),
        ({"y_train": np.array([0, 1, 2, np.inf, 0, 0])}, ["whole numbers"]),
        ({"y_train": np.array([0, 1, 2, 10**9, 0, 0])}, ["10,000"]),
        ({"y_train": np.array([None] * 6)}, ["Python objects"]),
    ],
)
def test_what_is_wrong_with_a_file_of_ones_own(changed, words, tmp_path):
    with pytest.raises(DataError) as error:
        load(own(tmp_path, **changed))
    assert "mine.npz" in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 cut off", b"\x93NUMPY"])
def test_a_file_that_numpy_did_not_write(content, tmp_path):
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="mine"):
        read_npz(path)
    with pytest.raises(DataError, match="no file"):
        load(tmp_path / "other.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(path)
    with pytest.raises(DataError, match="mine"):
        read_npz(path)


def test_a_cut_off_file(tmp_path):
    path = own(tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="mine"):
        load(path)


def test_command_checks_a_file_of_ones_own(tmp_path, capsys):
    assert main([str(own(tmp_path))]) == 0
    assert "mine.npz: 6 training and 2 test images (1×8×7) of 4 classes" in capsys.readouterr().out
    assert main([str(own(tmp_path, x_test=None))]) == 1
    assert "lacks x_test" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["letters"])
    assert "glyphs" in capsys.readouterr().err


# ---- MNIST itself -------------------------------------------------------------------------------


def test_real_mnist():
    folder = os.environ.get("TINYADV_DATA")
    if not folder or not (Path(folder) / "mnist").is_dir():
        pytest.skip("needs MNIST: set TINYADV_DATA to a folder that has mnist/")
    data = load("mnist")
    assert (data.x_train.shape, data.x_test.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert data.y_train[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.x_train.mean() == pytest.approx(0.1307, abs=5e-5)
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    assert np.bincount(data.y_train).tolist() == (
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    )


# ---- glyphs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_glyphs(tmp_path_factory):
    return load("glyphs", tmp_path_factory.mktemp("glyphs"))


def test_glyphs(full_glyphs):
    data = full_glyphs
    assert isinstance(data, Dataset)
    assert data.classes == tuple("0123456789")
    for x, y, n in ((data.x_train, data.y_train, 10_000), (data.x_test, data.y_test, 2_000)):
        assert (x.shape, x.dtype, x.flags.c_contiguous) == ((n, 1, 28, 28), np.float32, True)
        assert (y.shape, y.dtype) == ((n,), np.int64)
        assert np.bincount(y).tolist() == [n // 10] * 10
        assert (x.min(), x.max()) == (0, 1)
        assert (x.max((1, 2, 3)) > 0.8).all()  # every image has ink in it ...
        assert 0.1 < x.mean() < 0.2  # ... about as much as MNIST's
        assert x[:, :, [0, -1]].mean() < 0.02  # and seldom runs into the border
        assert len(np.unique(x.reshape(n, -1), axis=0)) == n
    assert len(repr(data)) < 200


def test_glyphs_are_learnable_but_not_trivial(full_glyphs):
    """Least squares on pixels gets most of the held-out faces right, but by far not all."""
    data = full_glyphs
    x_train, x_test = (
        np.column_stack([x.reshape(len(x), -1), np.ones(len(x))])
        for x in (data.x_train, data.x_test)
    )
    gram = x_train.T @ x_train + np.eye(785)
    weights = np.linalg.solve(gram, x_train.T @ np.eye(10)[data.y_train])
    accuracy = ((x_test @ weights).argmax(1) == data.y_test).mean()
    assert 0.7 < accuracy < 0.95


def test_glyphs_are_the_same_every_time(few_glyphs, tmp_path):
    made, again = glyphs.make(), glyphs.make()
    cached = [glyphs.load(tmp_path) for _ in range(2)]
    for name, array in made.items():
        for other in (again, *cached):
            np.testing.assert_array_equal(array, other[name], strict=True)


def test_glyphs_do_not_depend_on_hash_order():
    code = (
        "import hashlib, pathlib; from tinyadv.data import glyphs;"
        "glyphs.SETTINGS.update(train=50, test=20);"
        "print(hashlib.sha256(glyphs.make()['x_train']).hexdigest());"
        "print(glyphs.cache_file(pathlib.Path()))"
    )
    runs = [run_python("-c", code, PYTHONHASHSEED=seed).stdout for seed in "12"]
    assert len(runs[0]) > 64
    assert runs[0] == runs[1]


def test_test_faces_are_held_out(few_glyphs, monkeypatch):
    assert set(glyphs.TEST_FACES) < set(glyphs.FACES)
    monkeypatch.setattr(glyphs, "distort", lambda bitmaps, rng: bitmaps)
    data = glyphs.make()
    bitmaps = glyphs.base_bitmaps()  # (F, 10, 28, 28)

    def faces(images, labels):
        found = (bitmaps[:, labels] == images[:, 0]).all((2, 3))  # (F, N)
        assert found.any(0).all()
        return {face for face, row in zip(glyphs.FACES, found, strict=True) if row.any()}

    train, test = faces(data["x_train"], data["y_train"]), faces(data["x_test"], data["y_test"])
    assert test == set(glyphs.TEST_FACES)
    assert train == set(glyphs.FACES) - test


UNDISTORTED = {
    **{"rotation": 0.0, "shear": 0.0, "log_scale": 0.0, "shift": 0.0, "elastic_rms": (0.0, 0.0)},
    **{"blur": 0.0, "threshold": (0.0, 0.0), "edge": 1.0, "brightness": (1.0, 1.0)},
}


def test_no_distortion_gives_the_bitmaps_back(monkeypatch):
    monkeypatch.setattr(glyphs, "SETTINGS", glyphs.SETTINGS | UNDISTORTED)
    bitmaps = glyphs.base_bitmaps()[3]  # (10, 28, 28)
    np.testing.assert_array_equal(glyphs.distort(bitmaps, 0), bitmaps, strict=True)


@pytest.mark.parametrize("name", [*UNDISTORTED, "elastic_sigma"])
def test_every_setting_of_the_distortion_counts(monkeypatch, name):
    bitmaps = glyphs.base_bitmaps()[3]
    before, path = glyphs.distort(bitmaps, 0), glyphs.cache_file(Path())
    monkeypatch.setitem(glyphs.SETTINGS, name, UNDISTORTED.get(name, 2.0))
    after = glyphs.distort(bitmaps, 0)
    assert (before != after).any((1, 2)).all()
    assert glyphs.cache_file(Path()) != path


def test_seed_of_the_distortion():
    bitmaps = glyphs.base_bitmaps()[3]
    first, same, other = (glyphs.distort(bitmaps, seed) for seed in (0, 0, 1))
    generator = glyphs.distort(bitmaps, np.random.default_rng(0))
    assert (first == same).all() and (first == generator).all()
    assert (first != other).any((1, 2)).all()


def test_distortions_do_not_mix_images():
    """Each image depends on its own bitmap alone."""
    bitmaps = glyphs.base_bitmaps()[:2].reshape(20, 28, 28)
    all_at_once = glyphs.distort(bitmaps, 0)
    blanked = bitmaps.copy()
    blanked[::2] = 0
    some = glyphs.distort(blanked, 0)
    assert not some[::2].any()
    np.testing.assert_array_equal(some[1::2], all_at_once[1::2])


def test_cache_is_used(few_glyphs, monkeypatch, tmp_path):
    first = load("glyphs", tmp_path)
    monkeypatch.setattr(glyphs, "make", None)  # it cannot be called now
    np.testing.assert_array_equal(load("glyphs", tmp_path).x_train, first.x_train)
    assert [path.name for path in (tmp_path / "glyphs").iterdir()] == [
        glyphs.cache_file(tmp_path).name
    ]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "other"])
def test_broken_cache_is_made_again(few_glyphs, tmp_path, damage):
    first = load("glyphs", tmp_path)
    path = glyphs.cache_file(tmp_path)
    sound = path.read_bytes()
    if damage == "other":
        np.savez(path, x_train=np.zeros(3))
    else:
        middle = len(sound) // 2
        flipped = sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :]
        broken = {"empty": b"", "cut": sound[:middle], "flipped": flipped, "text": b"no"}
        path.write_bytes(broken[damage])
    np.testing.assert_array_equal(load("glyphs", tmp_path).x_train, first.x_train)
    assert path.read_bytes() == sound


def test_cache_folder_that_cannot_be_written(few_glyphs, monkeypatch, tmp_path):
    # A file where the folder should be, because root may write into any folder.
    (tmp_path / "glyphs").write_text("not a folder")
    first = load("glyphs", tmp_path)
    np.testing.assert_array_equal(load("glyphs", tmp_path).x_train, first.x_train)

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    load("glyphs", tmp_path / "full")
    assert list((tmp_path / "full" / "glyphs").iterdir()) == []


def test_base_bitmaps(monkeypatch, tmp_path):
    bitmaps = glyphs.base_bitmaps()
    assert (bitmaps.shape, bitmaps.dtype) == ((len(glyphs.FACES), 10, 28, 28), np.uint8)
    assert glyphs.BASE_FILE.stat().st_size < 25_000
    ink = bitmaps / bitmaps.sum((2, 3), keepdims=True)
    pixel = np.arange(28) - 13.5
    assert abs(ink.sum(3) @ pixel).max() < 0.15  # the centre of mass is in the middle
    assert abs(ink.sum(2) @ pixel).max() < 0.15
    rows = bitmaps.any(3).sum(2)
    assert rows.min() >= 20 and rows.max() <= 22  # 20 pixels high, whichever way they fall
    # Made again by another matplotlib, the edges may differ a little.
    monkeypatch.setattr(glyphs, "FACES", glyphs.FACES[::5])  # a face of each family
    made = glyphs.make_base_bitmaps(tmp_path / "bitmaps.npz")
    assert abs(made.astype(int) - bitmaps[::5]).mean() < 2
    with np.load(tmp_path / "bitmaps.npz") as file:
        np.testing.assert_array_equal(file["bitmaps"], made)


# ---- batches ------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(1, 50), st.none() | st.integers(0, 9))
def test_each_example_comes_once(n, batch_size, rng):
    x, y = np.arange(2 * n).reshape(n, 2), np.arange(n)
    parts = list(batches(x, y, batch_size, rng))
    assert [len(part) for part, _ in parts[:-1]] == [batch_size] * (len(parts) - 1)
    assert all(0 < len(part) <= batch_size for part, _ in parts)
    seen = np.concatenate([np.empty(0, int), *(labels for _, labels in parts)])
    assert sorted(seen) == list(range(n))
    for part, labels in parts:
        np.testing.assert_array_equal(part, x[labels])
    if rng is None:
        assert seen.tolist() == y.tolist()


def order(rng, n=100):
    return [int(i) for _, y in batches(np.zeros(n), np.arange(n), 7, rng) for i in y]


def test_batches_are_shuffled_by_seed():
    assert order(0) == order(0) == order(np.random.default_rng(0))
    assert order(0) != order(1)
    assert order(0) != list(range(100))
    generator = np.random.default_rng(0)
    assert order(generator) != order(generator)  # another epoch, another order


@pytest.mark.parametrize(
    ("y", "batch_size", "expected"),
    [
        (np.zeros(4), 2, "x and y must have the same length, got 5 and 4"),
        (np.zeros(5), 0, "batch_size must be an integer ≥ 1, got 0"),
        (np.zeros(5), -1, "batch_size must be an integer ≥ 1, got -1"),
        (np.zeros(5), 1.5, r"batch_size must be an integer ≥ 1, got 1\.5"),
    ],
)
def test_batches_errors(y, batch_size, expected):
    with pytest.raises(ValueError, match=expected):  # at the call, not at the first batch
        batches(np.zeros(5), y, batch_size)


@pytest.mark.parametrize("rng", [None, 3])
def test_batches_on_a_device(rng):
    x, y = np.arange(22.0).reshape(11, 2), np.arange(11)
    on_device = strict_cupy.asarray(x), strict_cupy.asarray(y)
    with strict_cupy.count() as counts:
        parts = list(batches(*on_device, 4, rng))
    assert counts.syncs == 0
    assert counts.transfers <= 2  # the order, for x and for y, not once a batch
    for (x_b, y_b), (x_host, y_host) in zip(parts, batches(x, y, 4, rng), strict=True):
        np.testing.assert_array_equal(strict_cupy.asnumpy(x_b), x_host, strict=True)
        np.testing.assert_array_equal(strict_cupy.asnumpy(y_b), y_host, strict=True)


# ---- augmentation -------------------------------------------------------------------------------


@given(st.integers(0, 3), st.integers(0, 5), st.tuples(*[st.integers(1, 6)] * 2))
def test_random_shift_moves_each_image_by_whole_pixels(pixels, n, size):
    x = np.random.default_rng(0).random((n, 2, *size), np.float32) + 1
    moved = random_shift(pixels)(x, np.random.default_rng(1))
    assert moved.dtype == x.dtype and moved.shape == x.shape
    down, right = np.random.default_rng(1).integers(-pixels, pixels + 1, (2, n))
    for image, before, i, j in zip(moved, x, down, right, strict=True):
        framed = np.pad(before, ((0, 0), (pixels, pixels), (pixels, pixels)))
        expected = framed[:, pixels + i :, pixels + j :][:, : size[0], : size[1]]
        np.testing.assert_array_equal(image, expected)


def test_random_shift_on_a_device():
    x = np.random.default_rng(0).random((6, 1, 5, 4), np.float32)
    moved = random_shift(2)(strict_cupy.asarray(x), np.random.default_rng(1))
    np.testing.assert_array_equal(
        strict_cupy.asnumpy(moved), random_shift(2)(x, np.random.default_rng(1))
    )
    assert not np.array_equal(strict_cupy.asnumpy(moved), x)


@pytest.mark.parametrize("pixels", [-1, 0.5, None])
def test_random_shift_refuses(pixels):
    with pytest.raises(ValueError, match="pixels must be an integer ≥ 0"):
        random_shift(pixels)


# ---- python -m tinyadv.data ---------------------------------------------------------------------


def test_command(small, few_glyphs, tmp_path, capsys):
    small("fashion")
    assert main(["glyphs", "fashion", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "glyphs: 130 training and 40 test images (1×28×28) of 10 classes, "
        f"in {tmp_path / 'glyphs'}",
        "fashion: 20 training and 10 test images (1×28×28) of 10 classes, "
        f"in {tmp_path / 'fashion'}",
    ]


def test_command_without_network(internet, tmp_path, capsys):
    assert main(["mnist", "--folder", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("error: cannot get train-images-idx3-ubyte.gz of mnist")


def test_command_line(tmp_path):
    (tmp_path / "mnist").mkdir()
    for file in IDX_FILES:
        (tmp_path / "mnist" / file).write_text("<html>")
    run = run_python("-m", "tinyadv.data", "mnist", TINYADV_DATA=str(tmp_path))
    assert run.returncode == 1
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1
    assert "is a web page" in run.stderr

    run = run_python("-m", "tinyadv.data", "emnist")
    assert run.returncode == 2
    assert all(name in run.stderr for name in NAMES)
