"""Files of weights and states: what comes back is what went in, or an error that helps."""

import errno
import os
import re

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
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1 :])
        try:
            state = load_state(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            noticed += 1
        else:
            assert same(state, STATE)  # a date, a permission …
    assert noticed > len(whole) / 2


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


@pytest.mark.parametrize("write", [lambda f: np.savez(f, a=np.ones(3)), lambda f: np.save(f, 1.0)])
def test_an_array_file_from_elsewhere(tmp_path, write):
    path = tmp_path / "a.npz"
    with open(path, "wb") as file:
        write(file)
    with pytest.raises(CheckpointError, match=re.escape(f"{path} was not written by tinyadv")):
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
            "another network: 1.weight has shape",
        ),
        (lambda: {"weights": models.fast_cnn().state_dict()}, "another network: missing"),
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
