"""Convolution and pooling against loops that say what they are.

N, C, H, W: images; O, kh, kw: filters; P, Q: rows and columns of window positions.
"""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyadv import Tensor, check_grads, conv, grad, ops, to_numpy

on_each_backend = settings(max_examples=settings.default.max_examples // 2)

# ---- loops ---------------------------------------------------------------------------------------


def as_pair(value):
    return (value, value) if isinstance(value, int) else value


def windows(size, kernel, stride):
    """For each window that lies in an image of this size: its place p, q, and its pixels."""
    (h, w), (kh, kw), (sh, sw) = size, as_pair(kernel), as_pair(stride)
    for p, q in product(range((h - kh) // sh + 1), range((w - kw) // sw + 1)):
        yield p, q, (..., slice(p * sh, p * sh + kh), slice(q * sw, q * sw + kw))


def out_size(size, kernel, stride):
    *_, (p, q, _) = windows(size, kernel, stride)
    return p + 1, q + 1


def padded(x, padding):
    ph, pw = as_pair(padding)
    return np.pad(x, [(0, 0), (0, 0), (ph, ph), (pw, pw)])


def slow_conv2d(x, w, b=None, *, stride=1, padding=0):
    x, kernel = padded(x, padding), w.shape[2:]
    y = np.empty((len(x), len(w), *out_size(x.shape[2:], kernel, stride)))
    for n, o in product(range(len(x)), range(len(w))):
        for p, q, window in windows(x.shape[2:], kernel, stride):
            y[n, o, p, q] = (x[n][window] * w[o]).sum() + (0 if b is None else b[o])
    return y


def slow_conv2d_dx(g, w, *, size, stride=1, padding=0):
    x = padded(np.zeros((len(g), w.shape[1], *size)), padding)
    for n, o in product(range(len(g)), range(len(w))):
        for p, q, window in windows(x.shape[2:], w.shape[2:], stride):
            x[n][window] += g[n, o, p, q] * w[o]
    (ph, pw), (h, wd) = as_pair(padding), size
    return x[:, :, ph : ph + h, pw : pw + wd]


def slow_conv2d_dw(x, g, *, kernel_size, stride=1, padding=0):
    x, w = padded(x, padding), np.zeros((g.shape[1], x.shape[1], *kernel_size))
    for n, o in product(range(len(g)), range(len(w))):
        for p, q, window in windows(x.shape[2:], kernel_size, stride):
            w[o] += g[n, o, p, q] * x[n][window]
    return w


def slow_pool2d(reduce):
    def pool(x, *, kernel_size, stride=None):
        stride = kernel_size if stride is None else stride
        y = np.empty((*x.shape[:2], *out_size(x.shape[2:], kernel_size, stride)))
        for p, q, window in windows(x.shape[2:], kernel_size, stride):
            y[:, :, p, q] = reduce(x[window], axis=(2, 3))
        return y

    return pool


def slow_avg_pool2d_dx(g, *, size, kernel_size, stride=None):
    x = np.zeros((*g.shape[:2], *size))
    for p, q, window in windows(size, kernel_size, kernel_size if stride is None else stride):
        x[window] += g[:, :, p, q, None, None] / np.prod(as_pair(kernel_size))
    return x


# ---- what is drawn -------------------------------------------------------------------------------

LAYOUTS = {
    "rows": lambda xp, x: xp.asarray(x),
    "examples last": lambda xp, x: xp.asarray(x.transpose(1, 2, 3, 0).copy()).transpose(3, 0, 1, 2),
    "every other": lambda xp, x: xp.asarray(np.repeat(np.repeat(x, 2, 0), 2, 3))[::2, :, :, ::2],
    "backwards": lambda xp, x: xp.asarray(x[:, :, ::-1].copy())[:, :, ::-1],
    "read-only": lambda xp, x: np.broadcast_to(x, x.shape) if xp is np else xp.asarray(x),
}


def number_or_pair(low, high):
    number = st.integers(low, high)
    return number | st.tuples(number, number)


@st.composite
def geometries(draw, padding=True):
    """Sizes, where the windows need not reach the edge, may overlap, or leave gaps."""
    kernel, stride = draw(number_or_pair(1, 4)), draw(number_or_pair(1, 5))
    padding = draw(number_or_pair(0, 2)) if padding else 0
    size = tuple(
        draw(st.integers(max(1, k - 2 * p), k + 5))
        for k, p in zip(as_pair(kernel), as_pair(padding), strict=True)
    )
    n, c, o = draw(st.sampled_from([1, 2, 5])), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return n, c, o, size, kernel, stride, padding


layouts = st.sampled_from(sorted(LAYOUTS)).map(LAYOUTS.get)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def convolution_arrays(geometry):
    n, c, o, size, kernel, stride, padding = geometry
    x, w, b = normal(n, c, *size), normal(o, c, *as_pair(kernel), seed=1), normal(o, seed=2)
    how = {"stride": stride, "padding": padding}
    g = normal(*slow_conv2d(x, w, **how).shape, seed=3)
    return x, w, b, g, how


def equal(got, expected):
    assert got.shape == expected.shape
    np.testing.assert_allclose(to_numpy(got), expected, rtol=1e-11, atol=1e-11)


# ---- the loops agree -----------------------------------------------------------------------------


@on_each_backend
@given(geometries(), layouts, layouts)
def test_conv2d_and_its_adjoints_are_the_loops(xp, geometry, first, second):
    x, w, b, g, how = convolution_arrays(geometry)
    dx, dw = how | {"size": x.shape[2:]}, how | {"kernel_size": w.shape[2:]}
    bias = xp.asarray(b)
    equal(conv.conv2d(first(xp, x), second(xp, w), **how), slow_conv2d(x, w, **how))
    equal(conv.conv2d(first(xp, x), second(xp, w), bias, **how), slow_conv2d(x, w, b, **how))
    equal(conv.conv2d_dx(first(xp, g), second(xp, w), **dx), slow_conv2d_dx(g, w, **dx))
    equal(conv.conv2d_dw(first(xp, x), second(xp, g), **dw), slow_conv2d_dw(x, g, **dw))


@on_each_backend
@given(geometries())
def test_conv2d_is_one_trilinear_form_with_three_faces(xp, geometry):
    """⟨g, conv2d(x, w)⟩ = ⟨conv2d_dx(g, w), x⟩ = ⟨conv2d_dw(x, g), w⟩"""
    x, w, _, g, how = convolution_arrays(geometry)
    size, kernel = x.shape[2:], w.shape[2:]
    x, w, g = (xp.asarray(a) for a in (x, w, g))
    faces = [
        (g * conv.conv2d(x, w, **how)).sum(),
        (conv.conv2d_dx(g, w, size=size, **how) * x).sum(),
        (conv.conv2d_dw(x, g, kernel_size=kernel, **how) * w).sum(),
    ]
    np.testing.assert_allclose([float(f) for f in faces], float(faces[0]), rtol=1e-9, atol=1e-9)


@on_each_backend
@given(geometries(padding=False), layouts, st.booleans())
def test_pooling_is_the_loops(xp, geometry, layout, tiles):
    n, c, _, size, kernel, stride, _ = geometry
    how = {"kernel_size": kernel} if tiles else {"kernel_size": kernel, "stride": stride}
    x = normal(n, c, *size)
    average = slow_pool2d(np.mean)(x, **how)
    equal(conv.max_pool2d(layout(xp, x), **how), slow_pool2d(np.max)(x, **how))
    equal(conv.avg_pool2d(layout(xp, x), **how), average)
    g, how = normal(*average.shape, seed=1), how | {"size": size}
    equal(conv.avg_pool2d_dx(layout(xp, g), **how), slow_avg_pool2d_dx(g, **how))


@on_each_backend
@given(geometries(padding=False), layouts)
def test_max_pooling_gives_each_gradient_to_the_first_of_the_largest(xp, geometry, layout):
    n, c, _, size, kernel, stride, _ = geometry
    x = np.random.default_rng(0).integers(0, 2, (n, c, *size)).astype(float)  # ties everywhere
    g = normal(n, c, *out_size(size, kernel, stride), seed=1)
    expected = np.zeros_like(x)
    for p, q, window in windows(size, kernel, stride):
        for image, channel in product(range(n), range(c)):
            pixels = x[image, channel][window]
            first = np.unravel_index(pixels.argmax(), pixels.shape)  # argmax: the first
            expected[image, channel][window][first] += g[image, channel, p, q]
    t = Tensor(layout(xp, x))
    y = conv.max_pool2d(t, kernel_size=kernel, stride=stride)
    equal(grad(y, [t], xp.asarray(g))[0], expected)


@on_each_backend
@given(geometries(), layouts)
def test_gradients_of_a_convolution_and_a_pooling_with_any_layout(xp, geometry, layout):
    x, w, b, _, how = convolution_arrays(geometry)

    def network(x, w, b):
        y = ops.tanh(conv.conv2d(x, w, b, **how))
        return conv.avg_pool2d(y, kernel_size=1, stride=2)

    check_grads(network, [layout(xp, x), layout(xp, w), xp.asarray(b)])


@pytest.mark.parametrize("stride", [None, 1])
@pytest.mark.parametrize("place", range(6))
def test_max_pooling_passes_on_nan_and_its_gradient(xp, place, stride):
    x = np.array([3.0, 1.0, 2.0, 0.0, 5.0, 4.0])
    x[place] = np.nan
    x, how = x.reshape(1, 1, 2, 3), {"kernel_size": 2, "stride": stride}
    t = Tensor(xp.asarray(x))
    y = conv.max_pool2d(t, **how)
    equal(y.value, slow_pool2d(np.max)(x, **how))
    expected = np.zeros(6)
    for _, _, window in windows((2, 3), 2, 2 if stride is None else stride):
        pixels = np.arange(6).reshape(1, 1, 2, 3)[window].ravel()
        expected[pixels[x[window].argmax()]] += 1  # argmax: the first NaN, if there is one
    [g] = grad(y, [t], xp.ones(y.shape), create_graph=True)
    equal(g.value.reshape(6), expected)
    [taken] = grad(g, [t], xp.ones(x.shape))  # it is constant
    equal(taken, np.zeros(x.shape))


# ---- special cases -------------------------------------------------------------------------------


def test_a_1x1_convolution_mixes_channels_and_nothing_else(xp):
    x, w = normal(2, 3, 4, 5), normal(6, 3, 1, 1, seed=1)
    y = conv.conv2d(xp.asarray(x), xp.asarray(w))
    equal(y, np.einsum("nchw,oc->nohw", x, w[:, :, 0, 0]))


def test_no_channels_and_no_filters(xp):
    for c, o in (0, 3), (2, 0):
        x, w = Tensor(xp.ones((2, c, 4, 4))), Tensor(xp.ones((o, c, 3, 3)))
        y = conv.conv2d(x, w)
        equal(y.value, np.zeros((2, o, 2, 2)))
        dx, dw = grad(y.sum(), [x, w])
        equal(dx, np.zeros(x.shape)), equal(dw, np.zeros(w.shape))


def test_windows_as_large_as_the_image_leave_one_pixel(xp):
    x, w = xp.asarray(normal(2, 3, 4, 5)), xp.asarray(normal(1, 3, 4, 5, seed=1))
    equal(conv.conv2d(x, w)[:, 0, 0, 0], (to_numpy(x) * to_numpy(w)).sum((1, 2, 3)))
    equal(conv.max_pool2d(x, kernel_size=(4, 5))[:, :, 0, 0], to_numpy(x).max((2, 3)))


def test_an_empty_batch_has_empty_gradients(xp):
    x, w = Tensor(xp.ones((0, 2, 6, 6))), Tensor(xp.ones((3, 2, 3, 3)))
    for pool in conv.max_pool2d, conv.avg_pool2d:
        y = pool(conv.conv2d(x, w, padding=1), kernel_size=2)
        assert y.shape == (0, 3, 3, 3)
        dx, dw = grad(y.sum(), [x, w])
        assert dx.shape == x.shape
        equal(dw, np.zeros((3, 2, 3, 3)))


def test_what_is_computed_shares_no_memory_with_what_came_in():
    x, w = normal(2, 1, 3, 3), np.ones((1, 1, 1, 1))
    for result in [
        conv.conv2d(x, w),
        conv.conv2d_dx(x, w, size=(3, 3)),
        conv.conv2d_dw(x, x, kernel_size=(1, 1)),
        conv.avg_pool2d(x, kernel_size=1),
        conv.max_pool2d(x, kernel_size=1),
        conv.max_pool2d(x, kernel_size=1, stride=2),
        conv.avg_pool2d_dx(x, size=(3, 3), kernel_size=1),
    ]:
        assert not np.shares_memory(result, x)
        assert not np.shares_memory(result, w)


@pytest.mark.parametrize("name", ["conv2d", "max_pool2d", "avg_pool2d"])
def test_they_can_be_reached_from_ops(name):
    assert getattr(ops, name) is getattr(conv, name)


# ---- how the work is cut up changes nothing ------------------------------------------------------


# ---- what is refused -----------------------------------------------------------------------------

X, W = np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conv.conv2d(X[0], W), r"same C, got \(3, 8, 8\) and \(4, 3, 3, 3\)"),
        (lambda: conv.conv2d(X, W[0]), r"got \(2, 3, 8, 8\) and \(3, 3, 3\)"),
        (lambda: conv.conv2d(X[:, :2], W), r"got \(2, 2, 8, 8\) and \(4, 3, 3, 3\)"),
        (lambda: conv.conv2d(X, W, stride=0), "stride must be an int ≥ 1 or a pair .* got 0"),
        (lambda: conv.conv2d(X, W, stride=(1, 2, 3)), "stride must be"),
        (lambda: conv.conv2d(X, W, stride=(1, 1.5)), "stride must be"),
        (lambda: conv.conv2d(X, W, padding=-1), "padding must be an int ≥ 0"),
        (lambda: conv.conv2d(X[:, :, :2], W), r"\(3, 3\) does not fit .* \(2, 8\) with padding"),
        (lambda: conv.conv2d(X[..., :2], W), r"\(3, 3\) does not fit .* \(8, 2\)"),
        (lambda: conv.max_pool2d(X, kernel_size=0), "kernel_size must be an int ≥ 1"),
        (lambda: conv.max_pool2d(X, kernel_size=2, stride=0), "stride must be an int ≥ 1"),
        (lambda: conv.max_pool2d(X, kernel_size=(9, 1)), r"\(9, 1\) does not fit"),
        (lambda: conv.avg_pool2d(X, kernel_size=(1, 9)), r"\(1, 9\) does not fit"),
    ],
)
def test_mistakes_are_answered_with_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integer_images_are_refused_and_numpy_integers_are_ints():
    x, w = np.ones((2, 1, 5, 5)), np.ones((3, 1, 2, 2))
    with pytest.raises(TypeError, match="not uint8: divide bytes by 255"):
        conv.conv2d(x.astype(np.uint8), w)
    same = conv.conv2d(x, w, stride=np.int64(2), padding=(np.int32(1), 0))
    np.testing.assert_array_equal(same, conv.conv2d(x, w, stride=2, padding=(1, 0)))


def test_mixed_precision_gives_the_higher_one():
    x, w = np.ones((2, 1, 5, 5), np.float32), np.ones((3, 1, 2, 2))
    assert conv.conv2d(x, w).dtype == np.float64


@pytest.mark.parametrize("shape", [(5, 4), (1, 4), (4, 1), (1, 1)])
def test_the_adjoints_need_a_size_that_fits(shape):
    x, w, g = np.ones((1, 1, 5, 5)), np.ones((3, 1, 2, 2)), np.ones((1, 3, *shape))
    winners = [np.ones((1, 3, 4, 4), bool)] * 4
    for call in [
        lambda: conv.conv2d_dx(g, w, size=(5, 5)),
        lambda: conv.conv2d_dw(x, g, kernel_size=(2, 2)),
        lambda: conv.avg_pool2d_dx(g, size=(5, 5), kernel_size=2, stride=1),
        lambda: conv.pool_put(g, winners, size=(5, 5), kernel_size=2, stride=1),
    ]:
        with pytest.raises(ValueError, match=r"have \(4, 4\) windows.*got \(1, 3, "):
            call()


@pytest.mark.parametrize("pool", [conv.max_pool2d, conv.avg_pool2d])
def test_pooling_needs_images(pool):
    with pytest.raises(ValueError, match=r"images \(N, C, H, W\), got \(1, 28, 28\)"):
        pool(np.ones((1, 28, 28)), kernel_size=2)
