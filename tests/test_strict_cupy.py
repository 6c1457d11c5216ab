"""The stand-in for CuPy refuses, imitates and counts what it says.

What should hold of CuPy as well is asserted of both, so that a machine with a GPU checks the
stand-in itself. The signatures are compared wherever CuPy can be imported, GPU or not.
"""

import copy
import inspect
import pickle
import warnings

import numpy as np
import pytest
import strict_cupy

from tinyadv.backend import array_module, to_numpy


def import_cupy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("cupy", exc_type=ImportError)


NOISY = pytest.mark.filterwarnings("ignore::UserWarning")  # CuPy says so if it finds no toolkit


@pytest.fixture(params=["strict_cupy", pytest.param("cupy", marks=NOISY)])
def xp(request):
    """The stand-in and, where there is a device, CuPy."""
    if request.param == "strict_cupy":
        return strict_cupy
    cupy = import_cupy()
    if not cupy.cuda.is_available():
        pytest.skip("CuPy finds no device")
    return cupy


@pytest.fixture
def a(xp):
    return xp.asarray(np.arange(12, dtype=np.float32).reshape(3, 4))


HOST = np.ones((3, 4), np.float32)
LEFT = strict_cupy.asarray(HOST)  # for the tests of the stand-in alone


# ---- what is refused ----------------------------------------------------------------------------


def add_in_place(a, b):
    a += b


def assign(a, key, value):
    a[key] = value


@pytest.mark.parametrize("call", [
    lambda xp, a: np.asarray(a),
    lambda xp, a: np.array([a, a]),
    lambda xp, a: a + HOST,
    lambda xp, a: HOST + a,
    lambda xp, a: a * np.array(3.0),
    lambda xp, a: a @ HOST.T,
    lambda xp, a: a + [1, 2, 3, 4],
    lambda xp, a: a + object(),
    lambda xp, a: add_in_place(a, HOST),
    lambda xp, a: add_in_place(HOST.copy(), a),
    lambda xp, a: assign(a, ..., HOST),
    lambda xp, a: assign(a, 0, [1, 2, 3, 4]),
    lambda xp, a: assign(HOST.copy(), 0, a[0]),
    lambda xp, a: xp.maximum(a, HOST),
    lambda xp, a: xp.where(a > 0, HOST, a),
    lambda xp, a: xp.concatenate([a, HOST]),
    lambda xp, a: xp.dot(a, 2.0),
    lambda xp, a: xp.exp(a, out=HOST.copy()),
    lambda xp, a: xp.exp(a, where=a > 0),
    lambda xp, a: xp.sum(a, where=a > 0),
    lambda xp, a: xp.sum(a, initial=0.0),
    lambda xp, a: a.max(initial=0.0),
    lambda xp, a: xp.clip(a, min=0, max=1),
    lambda xp, a: xp.reshape(a, shape=(4, 3)),
    lambda xp, a: xp.argsort(a, kind="quicksort"),
    lambda xp, a: xp.add.at(a.astype(xp.uint8), xp.arange(3), 1),
    lambda xp, a: xp.subtract.at(a, xp.arange(3), 1.0),
    lambda xp, a: a[a],
    lambda xp, a: [1, 2, 3][xp.asarray(1)],
    lambda xp, a: {a: 1},
    lambda xp, a: bool(a),
    lambda xp, a: a.item(),
    lambda xp, a: list(a.sum()),
    lambda xp, a: len(a.sum()),
    lambda xp, a: a[3],
])  # fmt: skip
def test_refused(xp, a, call):
    with pytest.raises((TypeError, ValueError, IndexError)):
        call(xp, a)


@pytest.mark.parametrize("call", [
    lambda a: np.sum(a),
    lambda a: np.maximum(a, 0),
    lambda a: np.concatenate([a, a]),
    lambda a: a[np.array([0, 1])],
    lambda a: a[[0, 1]],
    lambda a: a[HOST > 0],
    lambda a: a[True],
    lambda a: assign(a, strict_cupy.arange(3), HOST),
    lambda a: strict_cupy.sum([1.0, 2.0]),
    lambda a: strict_cupy.where(HOST),
    lambda a: strict_cupy.take(a, [0, 1], axis=0),
    lambda a: strict_cupy.stack([a, object()]),
    lambda a: strict_cupy.zeros(np.array([2, 3])),
    lambda a: strict_cupy.asarray(["a", "b"]),
])  # fmt: skip
def test_refused_by_the_stand_in_alone(call):
    with pytest.raises(TypeError):
        call(LEFT)


def test_an_error_says_what_to_do():
    with pytest.raises(TypeError, match=r"Unsupported type <class 'numpy.ndarray'>.*asarray"):
        LEFT * HOST
    with pytest.raises(TypeError, match=r"Please use `.get\(\)`"):
        np.asarray(LEFT)
    with pytest.raises(TypeError, match=r"share is sum\(a, axis, dtype, out, keepdims\)"):
        strict_cupy.sum(LEFT, where=LEFT > 0)
    with pytest.raises(TypeError, match=r"numpy.sum .* array_module\(a\).sum"):
        np.sum(LEFT)
    with pytest.raises(AttributeError, match="if NumPy and CuPy both have it, add it"):
        strict_cupy.no_such_function  # noqa: B018
    with pytest.raises(AttributeError, match="has no 'ctypes'"):
        LEFT.ctypes  # noqa: B018


@pytest.mark.parametrize("package", ["strict_cupy", "cupy"])
def test_what_cupy_lacks(package):  # which needs no device
    module = strict_cupy if package == "strict_cupy" else import_cupy()
    for name in ("errstate", "block", "insert", "vecdot", "geterr"):
        assert not hasattr(module, name)
    for name in ("__index__", "__imatmul__", "__contains__", "__array_interface__", "ctypes"):
        assert not hasattr(module.ndarray, name)
    assert module.ndarray.__hash__ is None


@pytest.mark.parametrize("name", ["normal", "permutation", "choice", "shuffle"])
def test_methods_that_a_generator_lacks(xp, name):
    assert not hasattr(xp.random.default_rng(0), name)


# ---- what is imitated ---------------------------------------------------------------------------


def test_the_module_is_found_by_the_array(xp, a):
    assert array_module(a) is xp
    assert xp.get_array_module(a, 1) is xp and xp.get_array_module(HOST) is np


@pytest.mark.parametrize("name", "sum prod mean max min any all argmax argmin var std".split())
def test_reductions_are_0d_arrays(xp, a, name):
    for result in (getattr(xp, name)(a), getattr(a, name)()):
        assert type(result) is xp.ndarray and result.shape == ()
    np.testing.assert_allclose(to_numpy(result), getattr(np, name)(to_numpy(a)), rtol=1e-6)


def test_one_element_is_a_0d_view(xp, a):
    one = a[1, 2]
    assert type(one) is xp.ndarray and one.shape == ()
    one += 100
    assert float(a[1, 2]) == 106
    assert [type(row) for row in a] == [xp.ndarray] * 3


def test_index_arrays_wrap_around(xp):
    x = xp.arange(5)
    far = xp.asarray([5, 7, -1, -6])
    assert x[far].tolist() == [0, 2, 4, 4]
    assert xp.take(x, far).tolist() == [0, 2, 4, 4]
    assert xp.take_along_axis(x, far, axis=0).tolist() == [0, 2, 4, 4]
    assert int(xp.take(x, 6)) == 1
    assert int(xp.arange(300)[xp.asarray([44], dtype=xp.uint8)][0]) == 44
    x[xp.asarray([6])] = 10
    xp.add.at(x, xp.asarray([5, 0, 10]), 1)  # three times the first
    xp.put_along_axis(x, xp.asarray([7]), 20, axis=0)
    assert x.tolist() == [3, 10, 20, 3, 4]
    grid = xp.arange(6).reshape(2, 3)
    assert grid[xp.asarray([2, 3]), xp.asarray([3, 4])].tolist() == [0, 4]
    assert grid[None, ..., xp.asarray([3])].tolist() == [[[0], [3]]]
    assert grid[:, None, xp.asarray([3])].tolist() == [[[0]], [[3]]]
    for index in (5, -6):
        with pytest.raises(IndexError):
            x[index]


@pytest.mark.parametrize("other, dtype", [
    (lambda xp: 2, "float32"),
    (lambda xp: 2.0, "float32"),
    (lambda xp: np.float32(2), "float32"),
    (lambda xp: np.float64(2), "float64"),
    (lambda xp: xp.float64(2), "float64"),
    (lambda xp: xp.asarray(2.0), "float64"),
    (lambda xp: xp.asarray(2.0).sum(), "float64"),
    (lambda xp: xp.float32(2) * 3.0, "float32"),
])  # fmt: skip
def test_promotion(xp, a, other, dtype):
    other = other(xp)
    assert type(xp.exp(2.0)) is xp.ndarray
    for result in (a * other, other * a, xp.multiply(a, other), xp.maximum(other, a)):
        assert type(result) is xp.ndarray and result.dtype == dtype
    assert xp.where(a > 1, a, other).dtype == dtype
    assert xp.result_type(a, other) == dtype
    a += other  # keeps its type
    assert a.dtype == "float32"


def test_results_are_c_contiguous(xp, a):
    for result in (
        a.T + 1,
        xp.exp(a.T),
        xp.where(a.T > 1, a.T, 0),
        a.T.copy(),
        a.T > 1,
        xp.clip(a.T, 0, 1),
        a.T[xp.asarray([0, 1])],
        xp.asarray(HOST[::2].T),
    ):
        assert result.flags.c_contiguous
    assert not a.T.flags.c_contiguous and a.T.flags.f_contiguous


def test_views_and_themselves(xp, a):
    assert xp.asarray(a) is a and a.astype(a.dtype, copy=False) is a
    assert xp.ascontiguousarray(a) is a and a.astype(a.dtype) is not a
    for view in (
        a.reshape(4, 3),
        a.T,
        a[1:],
        a[::-1],
        a.view(xp.int32),
        xp.expand_dims(a, 0),
        xp.moveaxis(a, 0, 1),
        a.ravel(),
        a.squeeze(),
        xp.flip(a),
        xp.split(a, 3)[0],
    ):
        assert xp.may_share_memory(a, view)
    tile = xp.lib.stride_tricks.as_strided(a, shape=(2, 2, 2), strides=(16, 4, 4))
    tile[0, 1, 1] = 50
    a.reshape(-1)[3] = 60
    assert a[0].tolist() == [0, 1, 50, 60] and tile[0].tolist() == [[0, 1], [1, 50]]


def test_the_host_never_shares_memory():
    host = HOST.copy()
    device = strict_cupy.asarray(host)
    back = device.get()
    device += 1
    assert (host == 1).all() and (back == 1).all() and (strict_cupy.asnumpy(device) == 2).all()


def test_no_floating_point_warnings(xp):
    zero = xp.zeros(3)
    assert not xp.isfinite(xp.log(zero)).any() and xp.isnan(zero / zero).all()
    zero /= 0
    zero[:] = xp.asarray([np.inf, np.nan, 1e300])
    assert zero.astype(xp.float32).shape == (3,)


def test_an_operand_may_take_over(xp, a):
    class Tensor:
        __array_ufunc__ = None
        __radd__ = __rmatmul__ = __lt__ = lambda self, other: "mine"

    assert a + Tensor() == a @ Tensor() == (a > Tensor()) == "mine"
    with pytest.raises(TypeError):
        a += Tensor()


@pytest.mark.parametrize("f", [
    lambda xp, a: a[a > 5],
    lambda xp, a: a[:, a[0] > 1],
    lambda xp, a: xp.stack(xp.nonzero(a > 5)),
    lambda xp, a: xp.stack(xp.where(a > 5)),
    lambda xp, a: xp.argwhere(a > 5),
    lambda xp, a: xp.unique(a % 3),
    lambda xp, a: xp.where(a > 5, a, 0),
    lambda xp, a: (assign(a, a > 5, 0), a)[1],
    lambda xp, a: (assign(a, a > 5, a[a < 6]), a)[1],
    lambda xp, a: (assign(a, slice(1, None), a[0]), a)[1],
    lambda xp, a: (xp.copyto(a, 0, where=a > 5), a)[1],
    lambda xp, a: xp.add(a, 1, a) + a,
    lambda xp, a: 2 - a / 3 // 1 % 2 + (-a) ** 2 @ a.T.dot(a),
    lambda xp, a: (a > 1) & ~(a == 3) | (a != 2) ^ (1 >= a),
    lambda xp, a: xp.tensordot(a, a, axes=((0, 1), (0, 1))),
    lambda xp, a: xp.einsum("ij,kj->ik", a, a),
    lambda xp, a: xp.concatenate([a, a[::-1]], axis=1),
    lambda xp, a: xp.broadcast_to(a, (2, 3, 4)) + xp.broadcast_arrays(a, a[0])[1],
    lambda xp, a: xp.pad(a, ((1, 0), (0, 2)), constant_values=3),
    lambda xp, a: a.transpose(1, 0).reshape(2, 6).argsort(axis=-1, kind="stable"),
    lambda xp, a: xp.cumsum(xp.sort(-a, axis=0), axis=1),
    lambda xp, a: a.clip(2, 5) + xp.clip(a, None, 3) - a.clip(min=1),
    lambda xp, a: xp.full_like(a, 2) + xp.full((3, 4), a.max()) - xp.zeros_like(a, dtype=xp.int32),
    lambda xp, a: xp.linspace(0, 1, 4) + xp.eye(3, 4) + xp.arange(4),
    lambda xp, a: xp.count_nonzero(a > 1, axis=0) + xp.argmax(a, axis=0),
    lambda xp, a: xp.allclose(a, a + 1e-9) & xp.array_equal(a, a),
    lambda xp, a: xp.lib.stride_tricks.sliding_window_view(a, (2, 2)).sum(axis=(2, 3)),
    lambda xp, a: xp.meshgrid(a[0], a[:, 0], indexing="ij")[1],
])  # fmt: skip
def test_values_as_numpy_has_them(xp, a, f):
    result, expected = f(xp, a.copy()), np.asarray(f(np, to_numpy(a)))
    assert type(result) is xp.ndarray and result.dtype == expected.dtype
    np.testing.assert_allclose(to_numpy(result), expected, rtol=1e-6)


@pytest.mark.parametrize("name", strict_cupy._UFUNCS.split())
def test_every_elementwise_function(name):
    function = getattr(np, name)
    dtype = "int32" if "i->i" in function.types and "f->f" not in function.types else "float32"
    if function.nin == 2 and "ff->f" not in function.types and "ff->?" not in function.types:
        dtype = "int32"
    host = [np.array([1, 2, 3], dtype), np.array([2, 2, 2], dtype)][: function.nin]
    result = getattr(strict_cupy, name)(*map(strict_cupy.asarray, host))
    with np.errstate(all="ignore"):
        expected = function(*host)
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result.get(), expected)


def test_copies_and_conversions(xp, a):
    for twin in (copy.copy(a), copy.deepcopy([a])[0], pickle.loads(pickle.dumps(a)), xp.array(a)):
        assert twin is not a and not xp.may_share_memory(twin, a)
        assert twin.tolist() == a.tolist()
    one = a[1, 1]
    assert float(one) == int(one) == one.item() == one and bool(one)
    assert f"{one:.2f}" == "5.00" and str(one) == "5.0"
    assert xp.array([one, a[0, 0]]).tolist() == [5, 0]


# ---- what is counted ----------------------------------------------------------------------------

MASK, ROWS = LEFT > 0, strict_cupy.asarray([0, 1])
SQUARE, STACK = strict_cupy.zeros((3, 3), np.float32), strict_cupy.zeros((2, 3, 4), np.float32)


@pytest.mark.parametrize("call, launches, syncs, transfers", [
    # views are free
    (lambda xp, a: a.reshape(4, 3).T[1:, None].swapaxes(0, 1), 0, 0, 0),
    (lambda xp, a: xp.broadcast_to(xp.moveaxis(a, 0, 1)[..., None], (4, 3, 2)), 0, 0, 0),
    (lambda xp, a: xp.lib.stride_tricks.as_strided(a, (2, 2), (4, 4)), 0, 0, 0),
    (lambda xp, a: (a.shape, len(a), a[0, 0], list(a), xp.empty(3), xp.asarray(a)), 0, 0, 0),
    (lambda xp, a: a.T.ravel(), 1, 0, 0),  # not a view: a copy
    (lambda xp, a: a.T.astype(a.dtype), 1, 0, 0),
    # arithmetic
    (lambda xp, a: a + 1, 1, 0, 0),
    (lambda xp, a: xp.exp(a, out=a), 1, 0, 0),
    (lambda xp, a: add_in_place(a[0], 1), 1, 0, 0),
    (lambda xp, a: assign(a, 0, a[1]), 1, 0, 0),
    (lambda xp, a: assign(a, 0, a[0]), 0, 0, 0),
    (lambda xp, a: a.sum(axis=0), 1, 0, 0),
    (lambda xp, a: (a @ a.T).mean(), 2, 0, 0),
    (lambda xp, a: xp.where(MASK, a, 0), 1, 0, 0),
    (lambda xp, a: a[ROWS], 1, 0, 0),
    (lambda xp, a: assign(a, ROWS, 0), 1, 0, 0),
    (lambda xp, a: xp.add.at(a, ROWS, 1), 1, 0, 0),
    (lambda xp, a: xp.copyto(a, 0, where=MASK), 1, 0, 0),
    # products: a copy of an operand, or of a result, that cuBLAS does not take as it is
    (lambda xp, a: a.T @ a, 1, 0, 0),
    (lambda xp, a: a[:, ::2] @ a[:2], 2, 0, 0),
    (lambda xp, a: xp.matmul(a, a.T, out=SQUARE), 1, 0, 0),
    (lambda xp, a: xp.matmul(a, a.T, out=SQUARE.T), 2, 0, 0),
    (lambda xp, a: a.dot(a.astype(xp.float64).T), 3, 0, 0),  # astype, and what becomes float64
    (lambda xp, a: STACK @ STACK.swapaxes(1, 2), 2, 0, 0),
    (lambda xp, a: a @ STACK.reshape(2, 4, 3), 4, 0, 0),  # the addresses of all matrices
    (lambda xp, a: a @ STACK.reshape(2, 1, 4, 3), 7, 0, 0),
    # what is joined: a copy for each of a few arrays, or a kernel that is given their addresses
    (lambda xp, a: xp.concatenate([a, a, a]), 3, 0, 0),
    (lambda xp, a: xp.stack(8 * [a]), 8, 0, 0),
    (lambda xp, a: xp.concatenate(9 * [a]), 1, 0, 1),
    (lambda xp, a: xp.concatenate([*8 * [a], a[:1]]), 1, 0, 3),
    (lambda xp, a: xp.concatenate([*8 * [a], a[::2]], axis=0), 1, 0, 3),
    (lambda xp, a: xp.concatenate([*8 * [a], MASK]), 9, 0, 0),
    # what is fused
    (lambda xp, a: xp.fuse(kernel_name="f")(lambda x, y: x * x + y)(a, a[0]), 1, 0, 0),
    (lambda xp, a: xp.fuse(kernel_name="f")(lambda x: (x, x > 0, x + 1))(a.T), 1, 0, 0),
    # what waits for the device
    (lambda xp, a: float(a[0, 0]), 0, 1, 0),
    (lambda xp, a: int(a[0, 0]) + bool(a[0, 1]) + a[0, 2].item(), 0, 3, 0),
    (lambda xp, a: (a.get(), xp.asnumpy(a), a.tolist(), str(a), repr(a), f"{a}"), 0, 6, 0),
    (lambda xp, a: bool((a > 0).any()), 2, 1, 0),
    (lambda xp, a: a[MASK], 1, 1, 0),
    (lambda xp, a: a[:, MASK[0]], 1, 1, 0),
    (lambda xp, a: assign(a, MASK, 0.0), 1, 1, 0),
    (lambda xp, a: assign(a, MASK, a.ravel()), 1, 1, 0),
    (lambda xp, a: (a.nonzero(), xp.nonzero(a), xp.where(MASK), xp.argwhere(a)), 4, 4, 0),
    (lambda xp, a: (xp.flatnonzero(a), xp.unique(a), xp.bincount(ROWS)), 3, 3, 0),
    (lambda xp, a: xp.lib.stride_tricks.sliding_window_view(a, (2, 2)), 2, 2, 1),
    (lambda xp, a: xp.cuda.get_current_stream().synchronize(), 0, 1, 0),
    # what is moved to it
    (lambda xp, a: (xp.asarray(HOST), xp.array([1.0, 2.0])), 0, 0, 2),
    (lambda xp, a: xp.asarray(3.0), 1, 0, 0),
    (lambda xp, a: xp.random.default_rng(0).random(3), 1, 0, 0),
])  # fmt: skip
def test_counts(call, launches, syncs, transfers):
    a = strict_cupy.asarray(HOST)
    with strict_cupy.count() as c:
        call(strict_cupy, a)
    assert (c.launches, c.syncs, c.transfers) == (launches, syncs, transfers)


def test_counts_nest_and_end():
    with strict_cupy.count() as outer:
        LEFT + 1
        with strict_cupy.count() as inner:
            LEFT + 1
        LEFT + 1
    LEFT + 1
    assert (outer.launches, inner.launches) == (3, 1)


# ---- what is fused ------------------------------------------------------------------------------


def write(x, y):
    x += y
    x[...] = 2 * x


@pytest.mark.parametrize("f", [
    lambda xp, x, y, s: x * 2 + s - y / 3,
    lambda xp, x, y, s: xp.where(x > y, s, -x) ** 2,
    lambda xp, x, y, s: xp.clip(x, s, xp.inf) + xp.sign(y),
    lambda xp, x, y, s: (xp.maximum(x, y), (x < y) ^ ~(x == s), xp.exp(x)),
    lambda xp, x, y, s: x.astype(xp.int32) % 3 + (x > 1).astype(x.dtype, copy=False),
    lambda xp, x, y, s: xp.multiply(x, y, out=x),
    lambda xp, x, y, s: write(x, y),
    lambda xp, x, y, s: (write(x, y), x.copy())[1:],
    lambda xp, x, y, s: xp.fuse(kernel_name="f")(lambda u: u + 1)(x),
])  # fmt: skip
@pytest.mark.parametrize("other", ["row", "whole"])
def test_fused_functions_give_what_they_give_without_fuse(xp, a, f, other):
    y = a[1:2] if other == "row" else a[::-1]
    alone, fused = a.copy(), a.copy()
    expected = f(xp, alone, y, 1.5)
    result = xp.fuse(kernel_name="f")(lambda x, y, s: f(xp, x, y, s))(fused, y, 1.5)
    np.testing.assert_array_equal(to_numpy(fused), to_numpy(alone))
    assert type(result) is type(expected)
    if not isinstance(result, tuple):
        result, expected = (result,), (expected,)
    for got, value in zip(result, expected, strict=True):
        if got is value is None:
            continue
        assert type(got) is xp.ndarray and got.dtype == value.dtype and got.flags.c_contiguous
        np.testing.assert_allclose(to_numpy(got), to_numpy(value), rtol=1e-6)


def test_fused_results_have_the_shape_of_all_arguments(xp, a):
    assert xp.fuse(kernel_name="f")(lambda x, y: y + 1)(a, a[0]).shape == a.shape
    assert (
        xp.fuse(kernel_name="f")(lambda x, none, s: x if none is None else s)(a, None, 2).shape
        == a.shape
    )
    assert xp.fuse(kernel_name="f")(lambda s: s + 1)(2) == 3  # no array: it is called


def test_a_kernel_needs_a_name():
    with pytest.raises(TypeError, match="'<lambda>': use def, or give a kernel_name"):
        strict_cupy.fuse(lambda x: x)


FACTOR = 2.0  # constants of a module may be read once


@pytest.mark.parametrize("f, message", [
    (lambda x, s: x * (1 - s), "a number is combined with a number"),
    (lambda x, s: x * -s, "a number is combined with a number"),
    (lambda x, s: x + np.float64(2), "Python's numbers"),
    (lambda x, s: x.sum(), "has no 'sum'"),
    (lambda x, s: strict_cupy.sum(x), "Unsupported type"),
    (lambda x, s: x.T, "has no 'T'"),
    (lambda x, s: x[0], "not subscriptable"),
    (lambda x, s: x.reshape(-1), "has no 'reshape'"),
    (lambda x, s: x.shape, "has no 'shape'"),
    (lambda x, s: x if x > 0 else -x, "does not branch"),
    (lambda x, s: abs(x), "bad operand"),
    (lambda x, s: 2**x, "unsupported operand"),
    (lambda x, s: x @ x, "unsupported operand"),
    (lambda x, s: x + strict_cupy.ones(4), "makes other arrays"),
    (lambda x, s: x + LEFT, "combines its arguments"),
    (lambda x, s: strict_cupy.where(x, x, s), "condition of bool"),
    (lambda x, s: strict_cupy.clip(x, None, s), "Python's numbers"),
    (lambda x, s: strict_cupy.exp(x, dtype="float64"), "unexpected keyword"),
    (lambda x, s: strict_cupy.add(x, 1, out=LEFT), "writes to its arrays only"),
    (lambda x, s: strict_cupy.copyto(x, 1), "Unsupported type"),
    (lambda x, s: assign(x, 0, 1), r"x\[...\] only"),
    (lambda x, s: s, "returns arrays"),
    (lambda x, s: [x], "returns arrays"),
    (lambda x, s: 100 * (x + 1,), "too many"),
])  # fmt: skip
def test_what_cupy_would_fuse_wrongly_or_slowly_is_refused(f, message):
    with pytest.raises((TypeError, AttributeError), match=message):
        strict_cupy.fuse(kernel_name="f")(f)(strict_cupy.asarray(HOST), 0.5)
    assert (
        strict_cupy.fuse(kernel_name="f")(lambda x: x * FACTOR)(LEFT) == 2
    ).all()  # and nothing is left behind


def test_a_fused_function_writes_to_whole_arrays_of_a_kind_that_fits():
    a = strict_cupy.asarray(HOST)
    with pytest.raises(TypeError, match=r"writes to \(1, 4\), its arrays are \(3, 4\)"):
        strict_cupy.fuse(kernel_name="f")(lambda x, y: add_in_place(x, 1))(a[:1], a)
    with pytest.raises(TypeError, match="float64 does not fit into int64"):
        strict_cupy.fuse(add_in_place)(strict_cupy.zeros((3, 4), np.int64), a)
    for overlapping in (a, a[::-1]):
        with pytest.raises(TypeError, match="overlaps with another argument"):
            strict_cupy.fuse(add_in_place)(a, overlapping)
    strict_cupy.fuse(add_in_place)(a[::2], a[1:2])
    strict_cupy.fuse(add_in_place)(a[:, ::2], a[:, 1::2])
    for wrong in (HOST, np.float32(2), [1.0]):
        with pytest.raises(TypeError, match="takes arrays, Python's numbers and None"):
            strict_cupy.fuse(add_in_place)(a, wrong)


@pytest.mark.parametrize("frozen", [2, 2.5, HOST, LEFT, [1], object(), "a"])
def test_a_closure_over_what_may_change_is_refused(frozen):
    with pytest.raises(TypeError, match=r"(?s)closes over frozen .* make it an argument"):
        strict_cupy.fuse(kernel_name="f")(lambda x: x * frozen)


# ---- what is shared -----------------------------------------------------------------------------


def disagreements(ours, theirs):
    """Where a call that fits the signature ``ours`` might not fit ``theirs``."""
    p = inspect.Parameter
    kinds = [q.kind for q in theirs.parameters.values()]
    by_position = [q.name for q in theirs.parameters.values() if q.kind <= p.POSITIONAL_OR_KEYWORD]
    by_name = {
        q.name
        for q in theirs.parameters.values()
        if q.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    for i, q in enumerate(ours.parameters.values()):
        if q.kind <= p.POSITIONAL_OR_KEYWORD and p.VAR_POSITIONAL not in kinds:
            if i >= len(by_position):
                yield f"{q.name}: not by position"
            elif q.kind == p.POSITIONAL_OR_KEYWORD and by_position[i] != q.name:
                yield f"{q.name}: {by_position[i]} by position"
        if q.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.VAR_KEYWORD not in kinds:
            if q.name not in by_name:
                yield f"{q.name}: not by name"


@pytest.mark.parametrize("package", ["numpy", "cupy"])
def test_signatures_are_shared(package):
    module = np if package == "numpy" else import_cupy()
    compared = 0
    for name in dir(strict_cupy):
        ours = getattr(getattr(strict_cupy, name), "__signature__", None)
        if ours is None:
            continue
        try:
            theirs = inspect.signature(getattr(module, name))
        except (TypeError, ValueError):  # compiled, with no signature to read
            continue
        compared += 1
        assert not list(disagreements(ours, theirs)), (name, str(ours), str(theirs))
    assert compared > 70
    assert not [
        name
        for name in strict_cupy._names
        if not name.startswith("_") and not hasattr(module, name)
    ]
    # strides and the like are attributes of an array: of the class, for the methods
    methods = strict_cupy._METHODS.split() + list(strict_cupy._OWN_METHODS)
    assert not [name for name in methods if not hasattr(module.ndarray, name)]
