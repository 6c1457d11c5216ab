"""Files of weights and states: what comes back is what went in, or an error that helps."""

import copy
import errno
import io
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinyadv import Tensor, checkpoint, models
from tinyadv.checkpoint import CheckpointError, load_state, load_weights, save_state, save_weights

STATE = {
    "weights": {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(3, np.float32)},
    "steps": 3,
    "names": ["x", None],
}


def same(a, b):
    """Equal values of equal types, NaN included; for arrays also the dtype and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    return a == b or (a != a and b != b)


@pytest.fixture
def path(tmp_path):
    """A file that holds STATE, alone in its folder."""
    save_state(tmp_path / "state.npz", STATE)
    return tmp_path / "state.npz"


def files_beside(path):
    return os.listdir(path.parent)


# ---- round trips --------------------------------------------------------------------------------

KEYS = st.one_of(
    st.text(max_size=5).filter(lambda key: key.isprintable() and "/" not in key),
    st.sampled_from(["", "x", "x.npy", "file", "allow_pickle", checkpoint.INFO, "..", "state"]),
)
ARRAYS = hnp.arrays(
    st.sampled_from(["f2", "f4", "f8", ">f4", "i1", "i8", "u1", "u4", "?", "c8", "U3", "S2"]),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3),
    max_leaves=5,
)
STATES = st.recursive(
    st.dictionaries(KEYS, ARRAYS | VALUES, max_size=4),
    lambda states: st.dictionaries(KEYS, ARRAYS | VALUES | states, max_size=4),
    max_leaves=4,
)


@given(state=STATES)
def test_what_comes_back_is_what_went_in(state, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any_state.npz"
    save_state(path, state)
    assert same(load_state(path), state)


def test_arrays_in_any_memory_order(tmp_path):
    array = np.arange(24).reshape(2, 3, 4)
    state = {"F": np.asfortranarray(array), "T": array.T, "part": array[:, ::2], "empty": {}}
    save_state(tmp_path / "new" / "folder" / "a.npz", state)  # folders are made
    assert same(load_state(str(tmp_path / "new" / "folder" / "a.npz")), state)


def test_tuples_come_back_as_lists(tmp_path):
    save_state(tmp_path / "a.npz", {"t": (1, 2)})
    assert load_state(tmp_path / "a.npz") == {"t": [1, 2]}


def test_numbers_of_numpy_come_back_as_numbers_of_python(tmp_path):
    state = {"a": np.float32(0.5), "b": [np.int64(3), np.float64(0.1)], "c": {"d": np.bool_(True)}}
    save_state(tmp_path / "a.npz", state)
    assert same(load_state(tmp_path / "a.npz"), {"a": 0.5, "b": [3, 0.1], "c": {"d": True}})


@pytest.mark.skipif(os.name != "posix", reason="permissions as on Unix")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_decides_who_may_read(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_state(tmp_path / "a.npz", STATE)
        (tmp_path / "b").touch()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert (tmp_path / "a.npz").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_nothing_is_pickled(path):
    with np.load(path, allow_pickle=False) as file:
        assert len(file.files) == 3
        assert all(file[name].dtype.kind in "uf" for name in file.files)


# ---- what cannot be saved ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"a/b": 1}, ValueError, "printable string without '/', got 'a/b'"),
        ({"a": {"b/": np.ones(1)}}, ValueError, "without '/', got 'b/'"),
        ({"a\0": np.ones(1)}, ValueError, "printable string"),
        ({"\ud800": np.ones(1)}, ValueError, "printable string"),
        ({1: 2}, ValueError, "got 1"),
        ({"a": {1, 2}}, TypeError, "cannot hold a set"),
        ({"a": np.complex64(1)}, TypeError, "complex64"),
        ({"a": [np.ones(2)]}, TypeError, "ndarray"),
        ({"a": Tensor(np.ones(2))}, TypeError, "Tensor"),
        ({"a": np.array([{}, None])}, TypeError, "'a' holds Python objects"),
        ({"a": {"b": np.zeros(2, "i4, O")}}, TypeError, "'b' holds Python objects"),
    ],
)
def test_what_cannot_be_saved_is_refused(path, state, error, message):
    with pytest.raises(error, match=message):
        save_state(path, state)
    assert same(load_state(path), STATE)
    assert files_beside(path) == ["state.npz"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", ["writing", "flushing", "moving"])
def test_a_failure_leaves_the_old_file_whole(path, monkeypatch, error, at):
    def fail(*args, **kwargs):
        if at == "writing":
            args[0].write(b"PK\x03\x04 half a file")
        raise error

    module, name = {"writing": (np, "savez"), "flushing": (os, "fsync"), "moving": (os, "replace")}[
        at
    ]
    monkeypatch.setattr(module, name, fail)
    with pytest.raises(type(error)):
        save_state(path, {"new": np.zeros(1000)})
    assert same(load_state(path), STATE)
    assert files_beside(path) == ["state.npz"]


def test_a_new_file_takes_the_place_of_the_old_one(path):
    save_state(path, {"new": 1})
    assert load_state(path) == {"new": 1}
    assert files_beside(path) == ["state.npz"]


posix = pytest.mark.skipif(os.name != "posix", reason="locks and limits as on Unix")


@posix
def test_what_a_killed_program_left_is_deleted(path):
    killed = path.with_name(".state.npz.0123456789abcdef.tmp")
    others = [path.with_name(name) for name in (".state.npz.old.npz", ".other.npz.01.tmp")]
    for file in (killed, *others):
        file.write_bytes(b"half a file")
    with checkpoint.replacing(path) as file:  # while another one writes, and is alive
        save_state(path, {"new": 1})
        assert not killed.exists() and all(other.exists() for other in others)
        file.write(b"complete")
    assert path.read_bytes() == b"complete"
    assert sorted(files_beside(path)) == sorted(["state.npz", *(other.name for other in others)])


@posix
def test_a_full_disk_is_named(path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=re.escape(str(path))) as info:
            save_state(path, {"large": np.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert info.value.errno == errno.EFBIG and info.value.filename == str(path)
    assert same(load_state(path), STATE) and files_beside(path) == ["state.npz"]


@pytest.mark.parametrize("name", ["folder", "a" * 300])
def test_a_path_that_cannot_be_a_file_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as info:
        save_state(tmp_path / name, STATE)
    assert str(info.value).endswith(f"'{tmp_path / name}'")
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("at", ["folder", "moving"])
def test_an_error_of_the_disk_names_the_file_that_was_asked_for(path, monkeypatch, at):
    def full(*args, **how):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(*{"folder": (Path, "mkdir"), "moving": (os, "replace")}[at], full)
    with pytest.raises(OSError, match=re.escape(str(path))) as info:
        save_state(path, {"new": 1})
    assert info.value.errno == errno.ENOSPC and same(load_state(path), STATE)
    assert str(info.value).endswith(f"'{path}'")  # and no other file


# ---- broken files --------------------------------------------------------------------------------


def test_a_file_cut_short_at_any_length(path):
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"not an intact .npz file") as info:
            load_state(path)
        assert str(path) in str(info.value)


@pytest.mark.parametrize("flip", [0x01, 0x40, 0xFF])
def test_a_flipped_byte_is_noticed_where_it_matters(path, flip):
    whole = path.read_bytes()
    noticed = 0
    for i in range(flip % 2, len(whole), 2):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1 :])
        try:
            state = load_state(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            noticed += 1
        else:
            assert same(state, STATE)  # a date, a permission …
    assert noticed > len(whole) / 4


@pytest.mark.parametrize(
    "content",
    [b"", b"<!DOCTYPE html><title>404</title>", b"\x93NUMPY\x01\x00", b"PK\x05\x06", bytes(1000)],
    ids=["empty", "page", "header", "zip", "zeros"],
)
def test_something_else_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(f"{path} is not an intact")):
        load_state(path)


def info(text):
    """The arrays of a file whose JSON is ``text``."""
    return {checkpoint.INFO: np.frombuffer(text.encode(), np.uint8)}


@pytest.mark.parametrize(
    "write",
    [
        lambda f: np.savez(f, a=np.ones(3)),
        lambda f: np.save(f, 1.0),
        lambda f: np.savez(f, **info("3")),
        lambda f: np.savez(f, **info("[]")),
        lambda f: np.savez(f, **info("{")),
        lambda f: np.savez(f, **info("{}"), a=np.ones(3)),
        lambda f: np.savez(f, **info("{}"), **{"state/a/b": np.ones(3)}),
        lambda f: np.savez(f, **info('{"a": 1}'), **{"state/a": np.ones(3)}),
        lambda f: np.savez(f, **info('{"a": [1]}'), **{"state/a/b": np.ones(3)}),
    ],
)
def test_an_array_file_from_elsewhere(tmp_path, write):
    path = tmp_path / "a.npz"
    with open(path, "wb") as file:
        write(file)
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        load_state(path)


def header(*shape):
    """The beginning of an .npy file of float32 numbers."""
    file = io.BytesIO()
    how = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, how)
    return file.getvalue()


@pytest.mark.parametrize("lie", ["compressed", "header", "shared"])
def test_a_small_file_of_a_large_array_is_not_read(tmp_path, monkeypatch, lie):
    path, size = tmp_path / "a.npz", 1 << 16
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if lie == "compressed" else 0) as archive:
        archive.writestr("a.npy", header(1 << 30 if lie == "header" else size // 4) + bytes(size))
        for i in range(40 if lie == "shared" else 0):  # entries that share their bytes
            twin = copy.copy(archive.infolist()[0])
            twin.filename = f"{i}.npy"
            archive.filelist.append(twin)
    if lie != "header":  # then NumPy asks for memory, but writes only what is there
        monkeypatch.setattr(np.lib.format, "read_array", lambda *args, **how: pytest.fail("read"))
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        load_state(path)


def test_no_pickle_is_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a pickle was loaded",)

    path = tmp_path / "a.npz"
    array = np.array([Trap()], object)
    np.savez(path, **{checkpoint.INFO: np.frombuffer(b"{}", np.uint8), "state/a": array})
    with pytest.raises(CheckpointError, match="not an intact"):
        load_state(path)


def test_a_missing_file(tmp_path):
    path = tmp_path / "nowhere.npz"
    with pytest.raises(CheckpointError, match=re.escape(f"no file {path}")):
        load_state(path)
    with pytest.raises(CheckpointError, match="not an intact"):
        load_state(tmp_path)  # a folder


# ---- weights -------------------------------------------------------------------------------------


def test_weights_round_trip(tmp_path):
    path = tmp_path / "weights.npz"
    model, other = models.slides_cnn(rng=1), models.slides_cnn(rng=2)
    save_weights(path, model)
    load_weights(path, other)
    assert same(other.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda: {"weights": models.mlp((4, 5)).state_dict()},
            r"1.weight must be an array \(3, 4\).*got float32 \(5, 4\)",
        ),
        (lambda: {"weights": models.fast_cnn().state_dict()}, "lacks .*1.bias.* unknown .*0.bias"),
        (lambda: {"steps": 1, "rng": {}}, r"holds no weights, only \['rng', 'steps'\]"),
    ],
    ids=["shape", "names", "none"],
)
def test_weights_of_another_network(tmp_path, content, message):
    path = tmp_path / "weights.npz"
    save_state(path, content())
    model = models.mlp((4, 3), rng=1)
    model.parameters()[1].value[:] = 7
    before = model.state_dict()
    with pytest.raises(CheckpointError, match=message) as info:
        load_weights(path, model)
    assert str(path) in str(info.value)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w * np.nan,
        lambda w: np.where(w == w.max(), np.inf, w),
        lambda w: w.astype(np.float64) + 1e300,  # too large for float32
        lambda w: w.astype(complex),
        lambda w: w.astype(np.int64),
        lambda w: w.astype(str),
        lambda w: w > 0,
        lambda w: w[None],
        lambda w: w.tolist(),
        lambda w: None,
        lambda w: {},
    ],
)
def test_weights_that_are_not_finite_numbers(tmp_path, change):
    path, model = tmp_path / "weights.npz", models.mlp((4, 3), rng=1)
    before = model.state_dict()
    save_state(path, {"weights": before | {"1.weight": change(before["1.weight"] + 1)}})
    with pytest.raises(CheckpointError, match=re.escape(str(path)) + r".*1\.weight"):
        load_weights(path, model)
    assert same(model.state_dict(), before)
    save_state(path, {"weights": [1, 2]})
    with pytest.raises(CheckpointError, match=r"weights must be a dictionary"):
        load_weights(path, model)


def test_weights_of_other_floats_are_converted(tmp_path):
    path, model = tmp_path / "weights.npz", models.mlp((4, 3), rng=1)
    before = model.state_dict()
    save_state(path, {"weights": {name: w.astype(">f8") for name, w in before.items()}})
    load_weights(path, model.astype(np.float32))
    assert same(model.state_dict(), before)
