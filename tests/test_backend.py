"""Choosing a backend, finding an array's own, coming back to the host; and what an import costs."""

import ctypes
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import strict_cupy

from tinyadv import Tensor, backend, get_backend, to_numpy
from tinyadv.backend import BackendError, array_module, elementwise


def python(*arguments, **environment):
    """Runs Python on its own, with this process's paths."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)} | environment,
    )


# ---- get_backend ---------------------------------------------------------------------------------


def cupy_with(devices):
    return SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: devices > 0))


def test_numpy_is_numpy():
    assert get_backend("numpy") is np


def test_cupy_is_cupy_where_there_is_a_device(monkeypatch):
    cupy = cupy_with(devices=1)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert get_backend("cupy") is cupy


@pytest.mark.parametrize("name", ["torch", "CuPy", "", None])
def test_other_names_are_refused_with_those_that_there_are(name):
    with pytest.raises(ValueError, match=rf"one of \('numpy', 'cupy'\), got {name!r}"):
        get_backend(name)


@pytest.mark.parametrize(
    ("cupy", "message"),
    [
        (None, r"needs CuPy .*pip install 'cupy-cuda13x\[ctk\]' .* or use --backend numpy$"),
        (cupy_with(devices=0), "finds no CUDA device here: .* or use --backend numpy$"),
    ],
    ids=["not installed", "no device"],
)
def test_without_a_gpu_one_sentence_says_what_to_do(monkeypatch, cupy, message):
    monkeypatch.setitem(sys.modules, "cupy", cupy)  # None: importing it is an ImportError
    with pytest.raises(BackendError, match=message) as caught:
        get_backend("cupy")
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None  # no traceback


def test_pytest_says_the_same_instead_of_running():
    command = "import sys, pytest; sys.modules['cupy'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    result = python("-c", command, "--backend", "cupy", __file__)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("ERROR: the cupy backend needs CuPy")


# ---- array_module and to_numpy -------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.ones(2), np.float32(1), 1, 1.0, True, [1.0], (1.0,), None])
def test_what_lives_on_the_host_is_numpys(value):
    assert array_module(value) is np
    assert array_module(value, strict_cupy.ones(1)) is strict_cupy
    assert array_module(strict_cupy.ones(1), value) is strict_cupy


def test_no_arrays_are_numpys():
    assert array_module() is np


def test_every_array_has_its_module(xp):
    assert array_module(xp.ones(2)) is xp


@pytest.mark.parametrize("wrap", [lambda x: x, Tensor, lambda x: Tensor(x) * 1.0])
def test_to_numpy_takes_arrays_and_tensors(xp, wrap):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    got = to_numpy(wrap(xp.asarray(x)))
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, x, strict=True)


@pytest.mark.parametrize("value", [1, 1.5, [1, 2], (1.0, 2.0), np.float32(3), np.bool_(True)])
def test_to_numpy_takes_numbers_and_lists(value):
    got = to_numpy(value)
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, np.asarray(value), strict=True)


def test_to_numpy_copies_nothing_that_is_on_the_host():
    x = np.ones(3)
    assert to_numpy(x) is x
    assert to_numpy(Tensor(x)) is x


# ---- elementwise ---------------------------------------------------------------------------------


@elementwise
def step(x, g, size, limit):
    if limit is not None:
        x = array_module(x).minimum(x, limit)
    return x + size * g, x > g


@elementwise
def grow(x, *others):
    for other in others:
        x += other


@elementwise
def twice_as_much(x):
    grow(x, x)
    return 1 * x


@pytest.mark.parametrize("limit", [None, 5.0])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 1, 2), (0, 3, 2, 1), (2, 3, 0, 1)])
def test_elementwise_keeps_the_memory_order_and_is_one_launch(xp, order, limit):
    rng = np.random.default_rng(0)
    x, g = (np.moveaxis(rng.random((2, 3, 4, 5)), range(4), order) for _ in range(2))
    x, g = x.copy(order="K"), g.copy()  # the second one in C order
    on_device = [xp.asarray(np.moveaxis(x, order, range(4))), xp.asarray(g)]
    on_device[0] = xp.moveaxis(on_device[0], tuple(range(4)), order)
    with strict_cupy.count() as counted:
        results = step(*on_device, 0.5, limit)
    assert counted.launches == (xp is strict_cupy)
    for result, expected in zip(results, step(x, g, 0.5, limit), strict=True):
        assert result.dtype == expected.dtype
        if xp is not np:  # which decides by itself where its arguments differ
            assert [s // result.itemsize for s in result.strides] == [s // 8 for s in x.strides]
        np.testing.assert_allclose(to_numpy(result), expected)


def test_elementwise_writes_into_arguments_of_any_order(xp):
    x, y = (xp.asarray(np.arange(12.0).reshape(3, 4)).T for _ in range(2))
    assert grow(x, y, 1, y) is None
    np.testing.assert_array_equal(to_numpy(x), 3 * np.arange(12).reshape(3, 4).T + 1)
    np.testing.assert_array_equal(to_numpy(twice_as_much(x)), to_numpy(x))


@pytest.mark.parametrize("count", [23, 24, 100])
def test_elementwise_runs_one_by_one_what_does_not_fit_into_a_kernel(count):
    x = strict_cupy.ones((1, 2, 1, 2))
    with strict_cupy.count() as counted:
        grow(x, *[strict_cupy.ones((1, 2, 1, 2))] * count)
    assert (x == count + 1).all()
    assert counted.launches == 1 + (1 if count < backend.MOST_ARRAYS else count)


def test_elementwise_takes_arrays_of_different_dimensions(xp):
    x, g = np.arange(6.0).reshape(2, 3).T, np.arange(2.0)
    results = step(xp.asarray(x), xp.asarray(g), 2, None)
    for result, expected in zip(results, step(x, g, 2, None), strict=True):
        np.testing.assert_array_equal(to_numpy(result), expected, strict=True)
    assert step.__name__ == "step"


# ---- memory --------------------------------------------------------------------------------------


@pytest.fixture
def mallopt(monkeypatch):
    """A C library that notes what it is asked for, and grants it."""
    calls = []
    library = SimpleNamespace(mallopt=lambda name, value: calls.append((name, value)) or 1)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.delenv("TINYADV_KEEP_MEMORY", raising=False)
    return calls


def test_freed_memory_is_kept_with_two_settings_of_glibc(mallopt):
    m_trim_threshold, m_mmap_max = -1, -4
    assert backend.keep_freed_memory() is True
    settings = dict(mallopt)
    assert settings.keys() == {m_trim_threshold, m_mmap_max}
    assert settings[m_mmap_max] == 0
    assert settings[m_trim_threshold] >= 1 << 30


def test_an_environment_variable_leaves_the_c_library_alone(mallopt, monkeypatch):
    monkeypatch.setenv("TINYADV_KEEP_MEMORY", "0")
    assert backend.keep_freed_memory() is False
    assert mallopt == []


@pytest.mark.parametrize("library", [SimpleNamespace(), OSError("no libc.so.6")])
def test_without_glibc_nothing_is_set(monkeypatch, library):
    def load(name):
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert backend.keep_freed_memory() is False


# ---- import --------------------------------------------------------------------------------------


def test_importing_tinyadv_imports_nothing_slow():
    slow = "matplotlib scipy pooch tqdm requests cupy".split()
    command = f"import sys, tinyadv; print([name for name in {slow} if name in sys.modules])"
    result = python("-W", "error", "-c", command)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")
