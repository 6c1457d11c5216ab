"""Balls: their points, their steepest directions, their projections."""

import re
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import strict_cupy
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import kstest

from tinyadv import to_numpy
from tinyadv.balls import L1, L2, Ball, Linf

BALLS = [Linf, L2, L1]
DUAL = {Linf: 1, L2: 2, L1: np.inf}  # the norm that says how much a step of length 1 can gain


def rows(a):
    return a.reshape(len(a), -1)


def norm(ball, delta):
    return np.linalg.norm(rows(delta), {Linf: np.inf, L2: 2, L1: 1}[type(ball)], axis=1)


@st.composite
def cases(draw):
    """A ball, images in [0, 1] (some pixels at the limits), and perturbations of any size."""
    ball = draw(st.sampled_from(BALLS))(draw(st.sampled_from([0.0, 1e-3, 0.1, 0.5, 2.0, 50.0])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.sampled_from([(1, 1), (4, 7), (3, 1, 2, 3)]))
    x = np.clip(rng.uniform(-0.3, 1.3, shape), 0, 1)
    delta = rng.standard_normal(shape) * draw(st.sampled_from([1e-4, 0.3, 1.0, 30.0]))
    delta[rng.random(shape) < 0.2] = 0
    limits = (-x, 1 - x) if draw(st.booleans()) else ()
    return ball, delta, limits, rng


def assert_within(ball, delta, limits, slack=1e-9):
    assert (norm(ball, delta) <= ball.epsilon * (1 + slack) + 1e-15).all()
    if limits:
        assert (limits[0] <= delta).all() and (delta <= limits[1]).all()


@given(cases())
def test_a_projection_is_within_and_the_second_one_changes_nothing(case):
    ball, delta, limits, _ = case
    once = ball.project(delta, *limits)
    assert once.shape == delta.shape and once.dtype == delta.dtype
    assert_within(ball, once, limits)
    np.testing.assert_allclose(ball.project(once, *limits), once, rtol=1e-9, atol=1e-12)


@given(cases())
def test_points_inside_stay_as_they_are_bit_by_bit(case):
    ball, delta, limits, _ = case
    inside = 0.9 * ball.project(delta, *limits)
    np.testing.assert_array_equal(ball.project(inside, *limits), inside)


@given(cases())
def test_no_point_within_is_nearer(case):
    ball, delta, limits, rng = case
    nearest = ball.project(delta, *limits)
    distance = (rows(nearest - delta) ** 2).sum(1)
    for scale in (1e-3, 0.1, 1.0):
        other = ball.project(nearest + scale * rng.standard_normal(delta.shape), *limits)
        assert ((rows(other - delta) ** 2).sum(1) >= distance * (1 - 1e-9) - 1e-12).all()


def by_root_finding(ball, v, low, high):
    """The projection by solving for its multiplier numerically, one example at a time."""
    shapes = {
        L2: lambda t: np.clip(v / (1 + t), low, high),
        L1: lambda t: np.clip(np.sign(v) * np.maximum(abs(v) - t, 0), low, high),
    }
    point, order = shapes[type(ball)], {L2: 2, L1: 1}[type(ball)]
    excess = lambda t: np.linalg.norm(point(t), order) - ball.epsilon
    if excess(0.0) <= 0:
        return point(0.0)
    return point(brentq(excess, 0.0, 1e4, xtol=1e-13, rtol=1e-14))


@pytest.mark.parametrize("boxed", [False, True], ids=["ball", "ball and box"])
@pytest.mark.parametrize("kind", [L2, L1])
def test_a_thousand_projections_agree_with_a_slow_exact_solver(kind, boxed):
    rng, ball = np.random.default_rng(0), kind(0.8)
    x, v = rng.random((1000, 6)), rng.standard_normal((1000, 6))
    v[rng.random(v.shape) < 0.1] = 0
    x = np.where(rng.random(v.shape) < 0.1, np.round(x), x)  # some pixels lie at their limits
    low, high = (-x, 1 - x) if boxed else (np.full_like(x, -np.inf), np.full_like(x, np.inf))
    expected = [by_root_finding(ball, *example) for example in zip(v, low, high, strict=True)]
    np.testing.assert_allclose(ball.project(v, low, high), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", BALLS)
def test_a_random_point_is_in_the_ball_and_in_the_box(kind):
    rng = np.random.default_rng(0)
    x = np.clip(rng.uniform(-0.2, 1.2, (500, 1, 3, 3)), 0, 1).astype(np.float32)
    delta = kind(0.3).random(x, 0)
    assert delta.dtype == np.float32 and delta.shape == x.shape
    assert_within(kind(0.3), delta.astype(float), (), slack=1e-5)
    assert (x + delta >= -1e-7).all() and (x + delta <= 1 + 1e-7).all()
    np.testing.assert_array_equal(delta, kind(0.3).random(x, np.random.default_rng(0)))
    assert not np.array_equal(delta, kind(0.3).random(x, 1))
    assert not kind(0.0).random(x, 0).any()


@pytest.mark.parametrize("kind", BALLS)
def test_random_points_are_uniform_in_the_ball_and_not_on_its_shell(kind):
    """The share of the volume within radius r is (r / ε)^D."""
    x, ball = np.full((4000, 3), 0.5), kind(0.4)
    delta = ball.random(x, 0)
    assert kstest((norm(ball, delta) / ball.epsilon) ** 3, "uniform").pvalue > 1e-3
    assert abs(delta.mean(0)).max() < 0.02


@given(cases())
def test_the_steepest_direction_has_length_1_and_gains_the_dual_norm(case):
    ball, g, _, _ = case
    d = ball.steepest(g)
    gain, best = (rows(d) * rows(g)).sum(1), np.linalg.norm(rows(g), DUAL[type(ball)], axis=1)
    np.testing.assert_allclose(gain, best, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(norm(ball, d), (best > 0).astype(float), rtol=1e-9)


def test_the_steepest_direction_of_tiny_and_of_zero_gradients():
    tiny = np.full((1, 4), 1e-30, np.float32)
    for kind in BALLS:
        assert norm(kind(1), kind(1).steepest(tiny))[0] == pytest.approx(1, rel=1e-5)
        assert not kind(1).steepest(0 * tiny).any()


def test_the_l1_direction_may_be_shared_among_the_largest():
    g = np.array([[3.0, -2.0, 2.0, 0.5]])
    np.testing.assert_array_equal(L1(1, pixels=1).steepest(g), [[1, 0, 0, 0]])
    np.testing.assert_array_equal(L1(1, pixels=2).steepest(g), [[0.5, -0.5, 0, 0]])
    np.testing.assert_allclose(L1(1, pixels=9).steepest(g), np.sign(g) / 4)
    assert L1(1, pixels=2) != L1(1, pixels=3) and L1(1) == L1(1) and L1(1) != L2(1)


@pytest.mark.parametrize("kind", BALLS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("radius", [0.7, np.inf])
@pytest.mark.parametrize("each", [False, True], ids=["one size", "a size for each example"])
def test_a_step_is_the_steepest_direction_and_then_the_projection(kind, dtype, radius, each, xp):
    rng, ball = np.random.default_rng(0), kind(radius)
    x, g = rng.random((5, 1, 3, 4)).astype(dtype), rng.standard_normal((5, 1, 3, 4))
    delta = ball.project((x - 0.5).astype(dtype), -x, 1 - x)
    size = np.linspace(0, 1, 5).reshape(5, 1, 1, 1).astype(dtype) if each else 0.4
    expected = ball.project(delta + size * ball.steepest(g).astype(dtype), -x, 1 - x)
    size = xp.asarray(size) if each else size
    got = ball.step(*map(xp.asarray, (delta, g)), size, *map(xp.asarray, (-x, 1 - x)))
    assert got.dtype == dtype
    tolerance = 0 if xp is np else 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(to_numpy(got), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", BALLS)
def test_a_gpu_gives_the_same_and_is_never_waited_for(kind, device):
    rng, ball = np.random.default_rng(0), kind(0.7)
    x = rng.random((5, 1, 3, 4), dtype=np.float32)
    v = rng.standard_normal(x.shape).astype(np.float32)
    on_device = device.asarray(x), device.asarray(v)

    def everything(x, v):
        step = ball.step(ball.random(x, 0), v, 0.3, -x, 1 - x)
        projected = [ball.project(v), ball.project(v, -x, 1 - x)]
        return [ball.random(x, 0), ball.steepest(v), *projected, step]

    if device is strict_cupy:
        with strict_cupy.count() as counted:
            results = everything(*on_device)
        assert counted.syncs == 0
    else:
        results = everything(*on_device)
    for result, expected in zip(results, everything(x, v), strict=True):
        np.testing.assert_allclose(to_numpy(result), expected, rtol=1e-5, atol=1e-6)
        assert result.dtype == np.float32


@pytest.mark.parametrize("epsilon", [-0.1, np.nan, "a", "0.3", None, True, np.True_, [0.3], 1j])
@pytest.mark.parametrize("kind", BALLS)
def test_a_radius_is_a_number_and_not_negative(kind, epsilon):
    with pytest.raises(ValueError, match=rf"epsilon .*≥ 0.* got {re.escape(repr(epsilon))}"):
        kind(epsilon)


@pytest.mark.parametrize("kind", BALLS)
def test_a_radius_may_be_any_kind_of_number(kind, xp):
    for epsilon in (1, np.float32(1), np.int64(1), xp.asarray(1.0), Fraction(1)):
        ball = kind(epsilon)
        assert ball == kind(1.0) and type(ball.epsilon) is float
    assert kind(np.inf).epsilon == np.inf


@pytest.mark.parametrize("pixels", [0, -1, 1.5, 2.0, True, "1", None])
def test_pixels_are_counted(pixels):
    with pytest.raises(ValueError, match=rf"pixels .*got {re.escape(repr(pixels))}"):
        L1(1, pixels=pixels)


# ------------------------------------------------------------------------ any dtype and any scale

SLACK = {np.float16: 0, np.float32: 5e-6, np.float64: 1e-13}


@pytest.mark.parametrize("boxed", [False, True], ids=["ball", "ball and box"])
@pytest.mark.parametrize("dtype", SLACK)
@pytest.mark.parametrize("kind", BALLS)
def test_a_projection_is_in_the_ball_in_its_own_precision(kind, dtype, boxed, xp):
    """In float16 exactly: |δ| is summed in float64 here, and ε is no number of float16."""
    rng = np.random.default_rng(0)
    for epsilon, scale in product((8 / 255, 0.3, 3.0, 40.0), (0.1, 1, 30)):
        x = rng.random((9, 3, 16, 16)).astype(dtype)
        v = (scale * epsilon * rng.standard_normal(x.shape)).astype(dtype)
        limits = (-x, 1 - x) if boxed else ()
        near = kind(epsilon).project(*(xp.asarray(a) for a in (v, *limits)))
        assert near.dtype == dtype
        near = to_numpy(near)
        assert_within(kind(epsilon), near.astype(np.float64), limits, SLACK[dtype])
        # It is as near as the numbers of float32 or float64 allow, up to rounding.
        wide = kind(epsilon).project(*(a.astype(np.float64) for a in (v, *limits)))
        eps = np.finfo(dtype).eps
        np.testing.assert_allclose(near, wide, rtol=4 * eps, atol=50 * eps * epsilon)


@pytest.mark.parametrize("kind", BALLS)
def test_float16_is_drawn_and_steered_as_float32_is(kind):
    x = np.random.default_rng(0).random((40, 3, 16, 16)).astype(np.float16)
    ball = kind(0.3)
    delta = ball.random(x, 0)
    assert delta.dtype == np.float16
    assert_within(ball, delta.astype(np.float64), (), 0)
    np.testing.assert_allclose(delta, ball.random(x.astype(np.float32), 0), rtol=2e-3, atol=1e-3)
    for scale in (6e-5, 1, 3e4):  # squares of these are 0 or infinite in float16, and sums too
        g = (scale * np.random.default_rng(1).uniform(-1, 1, x.shape)).astype(np.float16)
        expected = ball.steepest(g.astype(np.float64))
        assert ball.steepest(g).dtype == np.float16
        np.testing.assert_allclose(ball.steepest(g), expected, rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(ball.norm(g), norm(ball, g.astype(np.float64)), rtol=1e-5)


@pytest.mark.parametrize("boxed", [False, True], ids=["ball", "ball and box"])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e3, 1e6, 1e8, 1e15, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_l1_projection_keeps_its_digits_however_long_delta_is(dtype, scale, boxed):
    rng = np.random.default_rng(0)
    for epsilon in (0.01, 1.0, 30.0):
        x = rng.random((20, 300)).astype(dtype)
        v = (scale * epsilon * rng.standard_normal(x.shape)).astype(dtype)
        limits = (-x, 1 - x) if boxed else ()
        near = L1(epsilon).project(v, *limits).astype(np.float64)
        assert_within(L1(epsilon), near, limits, 1e-6)
        shortened = norm(L1(1), np.clip(v, *limits) if boxed else v) > epsilon
        if scale <= 1e8:
            np.testing.assert_allclose(norm(L1(1), near)[shortened], epsilon, rtol=1e-5)


def test_an_l1_projection_of_equal_numbers_shares_the_radius():
    v = np.full((1, 784), 1e5, np.float32)
    low, high = np.zeros_like(v), np.full_like(v, 1e-4)
    high[0, :10] = 0.5
    # 774 pixels end at their limit, 0.0774 in all; ten share what is left of ε.
    expected = np.where(high == 0.5, (0.1 - 774e-4) / 10, 1e-4)
    np.testing.assert_allclose(L1(0.1).project(v, low, high), expected, rtol=1e-5)
    np.testing.assert_allclose(L1(0.1).project(v), np.full_like(v, 0.1 / 784), rtol=1e-5)


@pytest.mark.parametrize("kind", [Linf, L2])
@pytest.mark.parametrize("scale", [1e3, 1e6, 1e12])
def test_other_projections_keep_their_digits(kind, scale):
    rng, ball = np.random.default_rng(0), kind(0.5)
    x, v = rng.random((20, 300), np.float32), rng.standard_normal((20, 300))
    v = (scale * v).astype(np.float32)
    for limits in ((), (-x, 1 - x)):
        near = ball.project(v, *limits)
        np.testing.assert_allclose(norm(ball, near), 0.5, rtol=1e-5)


@pytest.mark.parametrize("kind", BALLS)
def test_no_example_and_swapped_bytes(kind, xp):
    ball, none = kind(0.3), xp.zeros((0, 1, 3, 4), np.float32)
    assert ball.norm(none).shape == (0,)
    for result in (ball.random(none, 0), ball.steepest(none), ball.project(none),
                   ball.project(none, none, none)):  # fmt: skip
        assert result.shape == none.shape and result.dtype == np.float32
    for dtype in (np.float16, np.float32, np.float64):
        x = np.random.default_rng(0).random((3, 1, 3, 4)).astype(dtype)
        other = x.astype(x.dtype.newbyteorder())
        np.testing.assert_array_equal(ball.project(other, -other, 1 - other),
                                      ball.project(x, -x, 1 - x))  # fmt: skip
        np.testing.assert_array_equal(ball.steepest(other), ball.steepest(x))
        np.testing.assert_array_equal(ball.random(other, 0), ball.random(x, 0))
        np.testing.assert_array_equal(ball.norm(other), ball.norm(x))


@pytest.mark.parametrize("kind", BALLS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_limits_may_be_numbers_or_on_one_side_alone(kind, dtype):
    ball, v = kind(0.8), np.random.default_rng(0).standard_normal((5, 12)).astype(dtype)
    low, high = np.full_like(v, -0.1), np.full_like(v, 0.05)
    far = np.full_like(v, np.inf)
    for numbers, arrays in [
        ({"low": -0.1, "high": 0.05}, (low, high)),
        ({"low": -0.1}, (low, far)),
        ({"high": high}, (-far, high)),
        ({}, (-far, far)),
    ]:
        got = ball.project(v, **numbers)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, ball.project(v, *arrays))
        assert not np.array_equal(got, v)


def test_mistakes_of_other_kinds():
    for method in ("norm", "steepest", "project"):
        with pytest.raises(NotImplementedError):
            getattr(Ball(1.0), method)(np.ones((1, 2)))
