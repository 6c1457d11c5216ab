"""FAB and AutoAttack: exact projections, known distances, a naive loop, and what adds up."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import strict_cupy
from scipy.optimize import linprog
from scipy.sparse import block_diag, coo_array

from tinyadv import Tensor, evaluate, inputs, losses, models, ops, parallel, to_numpy
from tinyadv.attacks import AttackWarning, apgd, auto
from tinyadv.attacks.auto import auto_attack
from tinyadv.attacks.blackbox import square
from tinyadv.attacks.boundary import fab, onto_hyperplane
from tinyadv.attacks.minimal import deepfool
from tinyadv.attacks.shared import ranked_others
from tinyadv.balls import L1, L2, Ball, Linf
from tinyadv.evaluate import accuracy, predict

close = np.testing.assert_allclose
same = np.testing.assert_array_equal

ORDER = {Linf: np.inf, L2: 2, L1: 1}
DUAL = {Linf: 1, L2: 2, L1: np.inf}
every_norm = pytest.mark.parametrize("norm", ORDER, ids=lambda norm: norm.__name__)


def size(norm, delta):
    return np.linalg.norm(delta.reshape(len(delta), -1), ORDER[norm], axis=1)


class Net:
    """V tanh(W x + b): a user's own class, on any backend."""

    by_example = True

    def __init__(self, xp=np, inputs=16, classes=5, dtype=np.float64, seed=0):
        rng = np.random.default_rng(seed)
        w = rng.standard_normal((12, inputs)) * 2 / inputs**0.5
        b, v = -w.sum(1) / 2, rng.standard_normal((classes, 12))
        self.w, self.b, self.v = (xp.asarray(a.astype(dtype)) for a in (w, b, v))

    def __call__(self, x):
        hidden = ops.tanh(ops.dense(ops.reshape(x, (len(x), -1)), self.w, self.b))
        return ops.dense(hidden, self.v)

    def gradients(self, x):
        """The logits of one image, and their gradients, by hand: (K,), (K, D)."""
        hidden = np.tanh(self.w @ x + self.b)
        return self.v @ hidden, self.v @ ((1 - hidden**2)[:, None] * self.w)


NET = Net()


def images(n=12, shape=(1, 4, 4), dtype=np.float64, seed=0, low=0.0, high=1.0):
    """Noise; where it is black or white, some pixels are exactly so."""
    u = np.random.default_rng(seed).uniform(-0.1, 1.1, (n, *shape))
    return (low + (high - low) * np.clip(u, 0, 1)).astype(dtype)


# ---- the hyperplane and the box ------------------------------------------------------------------


def planes(n, dimension, seed=0):
    """Images, normals with some zeros and some ties, and the c of a point within the box."""
    rng = np.random.default_rng(seed)
    x = np.clip(rng.uniform(-0.3, 1.3, (n, dimension)), 0, 1)
    w = rng.standard_normal((n, dimension)) * 10.0 ** rng.integers(-3, 3, (n, 1))
    w[rng.random(w.shape) < 0.15] = 0
    w[:, -1] = w[:, 0]
    point = np.clip(rng.uniform(-0.3, 1.3, x.shape), 0, 1)
    towards = rng.random((n, 1)) ** 2  # near and far
    return x, w, ((towards * (point - x)) * w).sum(1)


def blocks(rows):
    """One constraint of each example: a row in a matrix that is zero elsewhere."""
    return block_diag([coo_array(row[None]) for row in rows])


def least_linear(cost, x, w, c):
    """min <cost, δ> with <w, δ> = c and 0 ≤ x + δ ≤ 1, for many examples in one linear program."""
    result = linprog(
        cost.ravel(), A_eq=blocks(w), b_eq=c,
        bounds=np.stack([-x.ravel(), 1 - x.ravel()], axis=1),
    )  # fmt: skip
    assert result.status == 0
    return (cost * result.x.reshape(cost.shape)).sum(1)


def smallest_linf(x, w, c):
    """min s with |δ_i| ≤ s: variables δ and s for each example."""
    n, d = x.shape
    limits = np.block([[np.eye(d), -np.ones((d, 1))], [-np.eye(d), -np.ones((d, 1))]])
    bounds = np.concatenate([np.stack([-x, 1 - x], 2), np.tile([[[0, 2]]], (n, 1, 1))], axis=1)
    result = linprog(
        np.tile(np.r_[np.zeros(d), 1], n),
        A_ub=block_diag([coo_array(limits)] * n), b_ub=np.zeros(2 * d * n),
        A_eq=blocks(np.c_[w, np.zeros(n)]), b_eq=c, bounds=bounds.reshape(-1, 2),
    )  # fmt: skip
    assert result.status == 0
    return result.x.reshape(n, d + 1)[:, -1]


def smallest_l1(x, w, c):
    """min Σ (up + down) with δ = up - down, both ≥ 0."""
    n, d = x.shape
    bounds = np.stack([np.zeros((n, 2 * d)), np.concatenate([1 - x, x], axis=1)], axis=2)
    result = linprog(
        np.ones(2 * n * d), A_eq=blocks(np.c_[w, -w]), b_eq=c,
        bounds=bounds.reshape(-1, 2),
    )  # fmt: skip
    assert result.status == 0
    return result.x.reshape(n, 2 * d).sum(1)


@every_norm
@pytest.mark.parametrize("dimension", [1, 2, 7])
def test_the_projection_is_the_smallest_of_all(norm, dimension):
    """Against SciPy's linear programs: 2,100 random cases for each norm.

    For L2, which is no linear program: δ is the smallest if and only if no other point within lies
    farther in the direction of -δ.
    """
    x, w, c = planes(700, dimension)
    w = w / abs(w).max(1, keepdims=True).clip(1e-9)  # for the solver's tolerance
    c = np.where((w == 0).all(1), 0, c / abs(planes(700, dimension)[1]).max(1).clip(1e-9))
    delta = onto_hyperplane(norm(0.3), x, w, c)
    close((w * delta).sum(1), c, atol=1e-12)
    assert (x + delta >= -1e-12).all() and (x + delta <= 1 + 1e-12).all()
    if norm is L2:
        close((delta**2).sum(1), least_linear(delta, x, w, c), atol=1e-7)
    else:
        smallest = {Linf: smallest_linf, L1: smallest_l1}[norm]
        close(size(norm, delta), smallest(x, w, c), atol=1e-7)


@every_norm
def test_a_hyperplane_beyond_the_box_leads_to_its_nearest_corner(norm):
    x, w, _ = planes(500, 6)
    for sign in (-1, 1):
        c = sign * (abs(w).sum(1) + 1e-6)
        delta = onto_hyperplane(norm(0.3), x, w, c)
        up = np.sign(w) * sign
        close(x + delta, np.where(up > 0, 1, np.where(up < 0, 0, x)), atol=1e-15)


@every_norm
def test_no_normal_and_no_distance_ask_for_no_step(norm):
    x, w, c = planes(50, 6)
    same(onto_hyperplane(norm(0.3), x, 0 * w, c), np.zeros_like(x))
    same(abs(onto_hyperplane(norm(0.3), x, w, 0 * c)), np.zeros_like(x))


@every_norm
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_projection_of_large_images_and_tiny_gradients(norm, dtype):
    x, w, c = (a.astype(dtype) for a in planes(50, 3072))
    for scale in (1e-30, 1, 1e30):
        w_, c_ = (w * dtype(scale), c * dtype(scale))
        delta = onto_hyperplane(norm(0.3), x, w_, c_)
        assert delta.dtype == dtype
        close((w.astype(float) * delta).sum(1), c, rtol=1e-3, atol=1e-5 * abs(w).sum(1).max())


@every_norm
def test_the_projection_on_any_backend(norm, device):
    x, w, c = planes(40, 6)
    with _count(device) as counts:
        got = onto_hyperplane(norm(0.3), *(device.asarray(a) for a in (x, w, c)))
    assert counts is None or counts.syncs == 0
    close(to_numpy(got), onto_hyperplane(norm(0.3), x, w, c), atol=1e-12)


def _count(device):
    from contextlib import nullcontext

    return strict_cupy.count() if device is strict_cupy else nullcontext()


# ---- FAB: known distances ------------------------------------------------------------------------


def linear(classes, inputs=16, seed=0):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((classes, inputs))
    b = -w.sum(1) / 2
    return (lambda x: ops.dense(ops.reshape(x, (len(x), -1)), w, b)), w


@every_norm
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("settings", [{}, {"targets": 9}], ids=["all", "targets"])
def test_on_a_linear_model_the_distance_is_exact(norm, classes, settings):
    """min_k |f_k| / ‖w_k‖ in the dual norm, for images in the middle of a wide box."""
    model, w = linear(classes)
    x = images(30, low=0.48, high=0.52)
    z, y = to_numpy(model(x)), predict(model, x)
    differences = w[None] - w[y][:, None]  # (N, K, D)
    lengths = np.linalg.norm(differences, DUAL[norm], axis=2)
    exact = (z[np.arange(30), y][:, None] - z) / np.where(lengths > 0, lengths, 1)
    exact = np.where(lengths > 0, exact, np.inf).min(1)
    x_adv, found = fab(model, x, y, ball=norm(0.3), steps=40, details=True, **settings)
    assert found.success.all()
    close(found.distance, exact, rtol=1e-5)
    close(found.distance, size(norm, x_adv - x), rtol=1e-12)


@every_norm
def test_on_a_linear_model_in_a_box_it_comes_near(norm):
    model, w = linear(2)
    x = images(200)
    y = predict(model, x)
    z, c = to_numpy(model(x)), w[1] - w[0]
    away = np.where(y == 0, 1, -1)[:, None] * c
    f = z[np.arange(200), 1 - y] - z[np.arange(200), y]
    exact = size(norm, onto_hyperplane(norm(0.3), x.reshape(200, -1), away, -f))
    _, found = fab(model, x, y, ball=norm(0.3), details=True)
    assert (found.distance >= exact * (1 - 1e-9)).all()
    assert np.median(found.distance / exact) < 1.0001
    assert (found.distance <= 1.01 * exact).mean() > 0.95


@pytest.mark.parametrize(("norm", "name"), [(L2, "l2"), (Linf, "linf")])
def test_it_comes_nearer_than_deepfool(norm, name):
    x = images(60)
    y = predict(NET, x)
    _, ours = fab(NET, x, y, ball=norm(0.3), targets=4, steps=30, details=True)
    _, other = deepfool(NET, x, y, norm=name, details=True)
    assert (ours.distance <= other.distance * 1.005).mean() > 0.97
    assert (ours.distance < other.distance * 0.99).mean() > 0.3
    assert ours.distance.mean() < 0.98 * other.distance.mean()


# ---- FAB: its algorithm --------------------------------------------------------------------------


def slow_projection(norm, x, w, c):
    """By bisection on τ; in L1 one pixel after the other."""
    sign = np.sign(w) * np.sign(c)
    room, gain = np.where(sign > 0, 1 - x, x), abs(w)
    if norm is L1:
        t, rest = np.zeros_like(x), abs(c)
        for i in np.argsort(-gain):
            t[i] = min(room[i], rest / gain[i])
            rest -= gain[i] * t[i]
        return sign * t
    speed = gain if norm is L2 else np.ones_like(gain)
    move = lambda tau: np.minimum(room, tau * speed)
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if (gain * move(middle)).sum() > abs(c) else (middle, high)
    return sign * move(high)


def slow_fab(norm, x, c, classes, start, steps, alpha_max=0.1, eta=1.05, beta=0.9):
    """One image through algorithm 1, with the nearest of ``classes`` in each step."""
    p = lambda delta: np.linalg.norm(delta, ORDER[norm])
    lead = lambda x: max(np.delete(NET.gradients(x)[0], c)) - NET.gradients(x)[0][c]
    point, best = start, None
    for _ in range(steps):
        z, g = NET.gradients(point)
        dual = lambda s: np.linalg.norm(g[s] - g[c], DUAL[norm])  # noqa: B023
        s = min(classes, key=lambda s: abs(z[s] - z[c]) / dual(s))
        f, w = z[s] - z[c], g[s] - g[c]
        d = slow_projection(norm, point, w, -f)
        d_orig = slow_projection(norm, x, w, -(f + w @ (x - point)))
        alpha = min(p(d) / (p(d) + p(d_orig)), alpha_max)
        point = (1 - alpha) * (point + eta * d) + alpha * (x + eta * d_orig)
        point = np.clip(point, 0, 1)
        if lead(point) > 0:
            if best is None or p(point - x) < p(best - x):
                best = point
            point = (1 - beta) * x + beta * point
    right, wrong = x, best
    for _ in range(3):
        share = (lead(right) - 0.01 * lead(wrong)) / (lead(right) - lead(wrong))
        between = right + share * (wrong - right)
        if lead(between) > 0:
            wrong = between
        else:
            right = between
    return wrong


@every_norm
@pytest.mark.parametrize("settings", [{}, {"alpha_max": 0.4, "eta": 1.3, "beta": 0.6}], ids=str)
def test_fab_is_a_naive_loop(norm, settings):
    x = images(15)
    y = predict(NET, x)
    got, found = fab(NET, x, y, ball=norm(0.3), steps=9, details=True, **settings)
    assert found.success.all()
    same(found.passes, 9)
    for i in range(15):
        classes = [k for k in range(5) if k != y[i]]
        row = x[i].ravel()
        expected = slow_fab(norm, row, y[i], classes, row, 9, **settings)
        close(got[i].ravel(), expected, atol=1e-7)


@pytest.mark.filterwarnings("ignore:no perturbation was found")
def test_towards_single_classes_it_keeps_the_best_of_them():
    x = images(20)
    y = predict(NET, x)
    others = ranked_others(to_numpy(NET(x)), y)
    run = lambda **settings: fab(NET, x, y, steps=20, details=True, **settings)[1]
    one, all_of_them = run(targets=1), run(targets=9)
    same(one.passes, 20)
    same(all_of_them.passes, 80)  # four other classes
    assert (all_of_them.distance <= one.distance * (1 + 1e-6)).all()
    assert (all_of_them.distance < one.distance * 0.999).any()
    # Towards a target, only the target counts.
    for j in range(4):
        x_adv, reached = fab(NET, x, y, target=others[:, j], steps=20, details=True)
        same(predict(NET, x_adv)[reached.success], others[reached.success, j])
        assert reached.success.mean() >= 0.9
        assert (reached.distance >= all_of_them.distance * (1 - 1e-2)).all()


@every_norm
def test_steps_that_shrink_still_reach_the_boundary(norm):
    """Nor does rounding keep them short of what counts as an error, as large logits make it."""
    x, net = images(100), Net(dtype=np.float32)
    y = predict(NET, x)
    exact = fab(NET, x, y, ball=norm(0.3), targets=1, details=True)[1].distance
    shifted = lambda x: net(x) + np.float32(300)
    found = fab(shifted, x.astype(np.float32), y, ball=norm(0.3), targets=1, details=True)[1]
    assert found.success.all()
    close(found.distance, exact, atol=1e-3)


def test_classes_are_ranked_by_their_logits():
    z = np.array([[3.0, 1, 2, 0], [0, 5, -1, 2]])
    same(ranked_others(z, np.array([0, 3])), [[2, 1, 3], [1, 0, 2]])


def test_more_effort_never_leads_farther_away():
    x = images(60)
    run = lambda **settings: fab(NET, x, details=True, **settings)[1].distance
    for few, many in (
        (run(steps=5), run(steps=50)),
        (run(steps=20), run(steps=20, restarts=4)),
        (run(steps=20, targets=1), run(steps=20, targets=3)),
    ):
        assert (many <= few * 1.001).all()
        assert (many < few * 0.9999).any()


@every_norm
def test_restarts_begin_around_the_image(norm):
    """Half as far away as the nearest error so far, and ε/2 at most."""
    x, seen = images(8, low=0.4, high=0.6), []
    y = predict(NET, x)

    def watched(x):
        if isinstance(x, Tensor) and len(x) > 1:
            seen.append(x.value)
        return NET(x)

    settings = {"steps": 10, "restarts": 2, "rng": 3}
    first = fab(NET, x, y, ball=norm(0.3), **settings | {"restarts": 1})
    for epsilon in (1e-3, 9.0):
        seen.clear()
        fab(watched, x, y, ball=norm(epsilon), **settings)
        starts = seen[11]  # after the check of the model, and the steps of the first run
        distance = size(norm, starts - x)
        expected = np.minimum(size(norm, first - x), epsilon) / 2
        assert (distance <= expected * 1.1).all() and (distance >= expected * 0.9).all()
    assert not np.array_equal(starts, x)


# ---- FAB: what every attack promises -------------------------------------------------------------


@every_norm
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_result_is_an_image_like_x_that_is_misread(norm, dtype):
    x = images(20, dtype=dtype)
    y = predict(NET, x)
    before = x.copy()
    x_adv, found = fab(NET, x, y, ball=norm(0.3), steps=20, details=True)
    assert x_adv.dtype == dtype and x_adv.shape == x.shape and x_adv.flags.c_contiguous
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert accuracy(NET, x_adv, y) == 0 and found.success.all()
    same(x, before)
    same(fab(NET, x, ball=norm(0.3), steps=20), x_adv)  # y: the model's own answers


def test_the_parameters_stay_as_they_are():
    model, x = models.mlp((16, 8, 5)), images(dtype=np.float32)
    before = {name: p.copy() for name, p in model.state_dict().items()}
    fab(model, x, steps=5)
    auto_attack(model, x, steps=3, queries=5, targets=2)
    assert all(before[name].tobytes() == p.tobytes() for name, p in model.state_dict().items())


def test_misread_images_come_back_and_cost_nothing():
    x = images(20)
    y = predict(NET, x)
    wrong = np.arange(20) % 3 == 0
    labels = np.where(wrong, (y + 1) % 5, y)
    x_adv, found = fab(NET, x, labels, steps=10, details=True)
    same(x_adv[wrong], x[wrong])
    same(found.distance[wrong], 0)
    same(found.passes, np.where(wrong, 0, 10))
    assert found.success.all()
    close(x_adv[~wrong], fab(NET, x[~wrong], y[~wrong], steps=10), atol=1e-12)
    everything = fab(NET, x, (y + 1) % 5, steps=10)
    assert everything.tobytes() == x.tobytes()


def test_what_fails_comes_back_and_is_told():
    constant = lambda x: ops.dense(ops.reshape(x, (len(x), -1)), np.zeros((3, 16)), np.arange(3.0))
    x = images(4)
    with pytest.warns(AttackWarning, match="4 of 4 examples") as caught:
        x_adv, found = fab(constant, x, steps=3, details=True)
    assert caught[0].filename == __file__
    assert x_adv.tobytes() == x.tobytes()
    assert not found.success.any() and np.isinf(found.distance).all()


@pytest.mark.parametrize("settings", [{}, {"targets": 2, "restarts": 2}], ids=str)
def test_any_number_of_threads_gives_the_same_bits(settings):
    x, results = images(300, dtype=np.float32), []
    for threads in (1, 2, 3):
        with parallel.limit(threads):
            results.append(fab(NET, x, steps=4, **settings))
    same(results[1], results[0])
    same(results[2], results[0])


def test_an_image_does_not_depend_on_the_others():
    x = images(200)
    y = predict(NET, x)
    whole = fab(NET, x, y, steps=15)
    for part in (slice(1), slice(3), slice(64, 193)):
        close(fab(NET, x[part], y[part], steps=15), whole[part], atol=1e-8)


def test_the_seed_decides_the_restarts():
    x = images(40)
    run = lambda rng, n=3: fab(NET, x, ball=L2(0.3), steps=20, restarts=n, rng=rng)
    same(run(0), run(np.random.default_rng(0)))
    assert not np.array_equal(run(0), run(1))
    same(run(0, 1), run(1, 1))


@pytest.mark.parametrize(
    ("name", "value"), [("alpha_max", 0.5), ("eta", 1.5), ("beta", 0.5), ("steps", 3)]
)
def test_every_setting_matters(name, value):
    x = images()
    assert not np.array_equal(fab(NET, x, steps=8), fab(NET, x, **{"steps": 8, name: value}))


@pytest.mark.parametrize("shape", [(7,), (4, 3), (3, 5, 5)], ids=str)
def test_inputs_of_any_shape(shape):
    model, x = Net(inputs=int(np.prod(shape))), images(6, shape)
    y = predict(model, x)
    assert accuracy(model, fab(model, x, y, steps=20), y) == 0


@every_norm
@pytest.mark.parametrize("settings", [{}, {"targets": 2, "restarts": 2}, {"target": 1}], ids=str)
@pytest.mark.filterwarnings("ignore:no perturbation was found")
def test_fab_on_any_backend(norm, settings, device):
    x = images(10)
    y = np.where(predict(NET, x) == 1, 0, predict(NET, x))
    run = lambda net, x, steps: fab(
        net, x, y, ball=norm(0.3), steps=steps, details=True, **settings
    )
    expected, told = run(NET, x, 4)
    syncs = []
    for steps in (4, 8):
        with _count(device) as counts:
            got, found = run(Net(device), device.asarray(x), steps)
        syncs.append(counts and counts.syncs)
        if steps == 4:
            close(to_numpy(got), expected, atol=1e-9)
            close(to_numpy(found.distance), told.distance, atol=1e-9)
    assert syncs[0] == syncs[1], "steps wait for the device"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"ball": Ball(0.3)}, TypeError, "for Linf or L2 or L1, got Ball"),
        ({"ball": L2(np.inf)}, ValueError, "must be finite.*inf"),
        *[
            ({name: value}, ValueError, f"{name} must be an integer ≥ 1, got {value}")
            for name in ("steps", "restarts", "targets")
            for value in (0, 1.5)
        ],
        *[
            ({name: value}, ValueError, f"{name} must be .*from 0 to 1, got {value}")
            for name in ("alpha_max", "beta")
            for value in (-0.1, 1.1, np.nan)
        ],
        *[
            ({"eta": value}, ValueError, f"eta must be a number ≥ 1, got {value}")
            for value in (0.99, np.nan, np.inf)
        ],
    ],
)
def test_bad_settings_of_fab(settings, error, message):
    x = images(4)
    y = predict(NET, x)
    with pytest.raises(error, match=message):
        fab(NET, x, y, **settings)


def test_a_target_and_targets():
    x = images(4)
    with pytest.raises(ValueError, match=r"target.*targets"):
        fab(NET, x, target=(predict(NET, x) + 1) % 5, targets=3)


@pytest.mark.parametrize("attack", [fab, auto_attack], ids=lambda f: f.__name__)
def test_a_model_without_a_gradient(attack):
    with pytest.raises(TypeError, match=r"must return a Tensor.*got ndarray"):
        attack(lambda x: to_numpy(NET(x)), images(4))


# ---- AutoAttack --------------------------------------------------------------------------------

SHORT = {"steps": 12, "queries": 40}
BALLS = [Linf(0.08), L2(0.25)]  # about half of the images survive
every_ball = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: type(ball).__name__)


def labelled(n=40, net=NET, dtype=np.float64):
    """Images with their labels, some of them wrong."""
    x = images(n, dtype=dtype)
    y = predict(net, x)
    return x, np.where(np.arange(n) % 10 == 7, (y + 1) % 2, y)


@every_ball
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_result_is_in_the_ball_and_images_that_survive_are_unchanged(ball, dtype):
    x, y = labelled(dtype=dtype)
    before = x.copy()
    x_adv, report = auto_attack(NET, x, y, ball=ball, details=True, **SHORT)
    assert x_adv.dtype == dtype and x_adv.shape == x.shape and x_adv.min() >= 0 <= x_adv.max() <= 1
    slack = {np.float64: 1e-12, np.float32: 3e-6}[dtype]
    assert (size(type(ball), x_adv.astype(float) - x) <= ball.epsilon + slack).all()
    unchanged = (report.broken_by == -1) | report.survived
    assert 0 < report.survived.sum() < unchanged.sum() < len(x)
    assert x_adv[unchanged].tobytes() == x[unchanged].tobytes()
    same(predict(NET, x_adv) == y, report.survived)
    same(x, before)


def test_the_report_adds_up():
    x, y = labelled()
    x_adv, report = auto_attack(NET, x, y, ball=Linf(0.08), details=True, **SHORT)
    assert list(report.attacks) == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    left = predict(NET, x) == y
    same(report.correct, left)
    for number, result in enumerate(report.attacks.values()):
        same(result.attacked, left)
        left = result.survived
        same(result.succeeded, report.broken_by == number)
        assert result.seconds > 0
    same(left, report.survived)
    assert report.clean_accuracy == accuracy(NET, x, y)
    assert report.robust_accuracy == report.worst_case == accuracy(NET, x_adv, y) == left.mean()
    lines = str(report).splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "no attack", *report.attacks, "all attacks"
    ]  # fmt: skip


def test_sizes_and_passes_are_those_of_the_results():
    x, y = labelled()
    x_adv, report = auto_attack(NET, x, y, ball=L2(0.25), details=True, **SHORT)
    ce, on_target, boundary, search = report.attacks.values()
    moved = size(L2, x_adv - x)
    for result in report.attacks.values():
        found = result.succeeded
        close(result.sizes["L2"][found], moved[found], rtol=1e-12)
        assert np.isnan(result.sizes["Linf"][~found]).all()
    # Of APGD the gradients at the start and after each step, and no queries.
    assert (ce.gradients, ce.queries) == (13, 0)
    assert 12 < on_target.gradients <= 4 * 13 and on_target.queries == 0
    assert boundary.gradients > 12 and search.gradients == 0
    assert 1 < search.queries <= SHORT["queries"] + 2


def test_it_is_the_cascade_of_robustness():
    x, y = labelled()
    _, report = auto_attack(NET, x, y, ball=Linf(0.08), details=True, rng=3, **SHORT)
    seeds = np.random.default_rng(3)
    first = lambda model, x, y: apgd(
        model, x, y, ball=Linf(0.08), steps=12, rng=int(seeds.integers(2**63))
    )
    other = evaluate.robustness(NET, x, y, {"APGD-CE": first}, cascade=True, ball=Linf(0.08))
    assert type(other) is type(report)
    same(other.attacks["APGD-CE"].survived, report.attacks["APGD-CE"].survived)
    for norm, sizes in other.attacks["APGD-CE"].sizes.items():
        same(sizes, report.attacks["APGD-CE"].sizes[norm])


def test_the_inputs_are_checked_once(device, monkeypatch):
    """The pixels once, and no attack checks its images again."""
    pixels, again = [], []
    check, given = inputs.check_pixels, inputs.checked

    def checked(model, x, y=None, target=None):
        if not isinstance(x, inputs.Checked):
            again.append(x)
        return given(model, x, y, target)

    monkeypatch.setattr(inputs, "check_pixels", lambda x, *a: pixels.append(x) or check(x, *a))
    for name in ("gradient", "boundary", "blackbox"):
        monkeypatch.setattr(f"tinyadv.attacks.{name}.checked", checked)
    x, y = labelled(20)
    settings = {"ball": Linf(0.08), "steps": 3, "queries": 4, "targets": 2, "details": True}
    x = device.asarray(x)
    _, report = auto_attack(Net(device), x, device.asarray(y), **settings)
    assert all(result.attacked.any() for result in report.attacks.values())
    assert len(pixels) == 1 and pixels[0] is x and not again
    auto_attack(Net(device), x, **settings)  # without labels as well
    assert len(pixels) == 2 and not again
    auto_attack(Net(device), inputs.Checked(x, device.asarray(y)), **settings)
    assert len(pixels) == 2 and not again


def test_one_pass_gives_predictions_and_targets():
    """Then there are four more, to see whether the model is random."""
    sizes = []

    class Watched(Net):
        def __call__(self, x):
            if not isinstance(x, Tensor):
                sizes.append(len(x))
            return super().__call__(x)

    x = images(8)
    auto_attack(Watched(), x, (predict(NET, x) + 1) % 5, steps=1, queries=1)
    assert sizes == [8] * 5  # all are misclassified, so nothing is attacked


def test_a_model_that_looks_at_the_whole_batch_gets_it():
    sizes = set()

    def normalised(x):
        sizes.add(len(x))
        return NET(x - ops.mean(x, axis=0, keepdims=True) + 0.5)

    x = images(150)
    auto_attack(normalised, x, ball=Linf(1e-6), steps=2, queries=2, targets=1)
    assert sizes == {150}


@pytest.mark.parametrize("member", ["apgd", "fab", "square"])
def test_an_attack_that_writes_into_its_input_changes_nothing(member, monkeypatch):
    def vandal(model, inputs, details=False, **settings):
        result = getattr(kept, member)(model, inputs, details=details, **settings)
        inputs.x[:], inputs.y[:] = 0.5, 0
        return result

    kept = type("kept", (), {"apgd": staticmethod(lambda *a, details, **k: apgd(*a, **k)),
                             "fab": staticmethod(fab), "square": staticmethod(
        lambda *a, details, **k: square(*a, **k))})  # fmt: skip
    x, y = labelled(20)
    settings = {"ball": Linf(0.08), "steps": 3, "queries": 4, "targets": 2, "details": True}
    x_before, y_before = x.copy(), y.copy()
    expected, told = auto_attack(NET, x, y, **settings)
    monkeypatch.setattr(auto, member, vandal)
    got, report = auto_attack(NET, x, y, **settings)
    same(x, x_before)
    same(y, y_before)
    same(got, expected)
    same(report.broken_by, told.broken_by)


def test_what_an_attack_claims_does_not_count(monkeypatch):
    """Points beyond the ball, and points that are classified correctly, are not successes."""
    x, y = labelled(20)
    for claim in (lambda x: np.ones_like(x), lambda x: x):
        for name in ("apgd", "square"):
            monkeypatch.setattr(auto, name, lambda model, i, claim=claim, **settings: claim(i.x))
        found = lambda model, i, claim=claim, **settings: (
            claim(i.x), type("Found", (), {"distance": np.zeros(len(i.x))}))  # fmt: skip
        monkeypatch.setattr(auto, "fab", found)
        x_adv, report = auto_attack(NET, x, y, ball=Linf(0.01), details=True)
        same(report.survived, report.correct)
        same(x_adv, x)


def test_an_attack_that_raises_is_named(monkeypatch):
    def broken(*args, **settings):
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(auto, "fab", broken)
    with pytest.raises(ZeroDivisionError, match="inside") as caught:
        auto_attack(NET, images(4), ball=Linf(1e-6), steps=2, queries=2, targets=1)
    assert "FAB-T" in caught.value.__notes__[0]


@every_ball
def test_it_is_never_better_for_the_model_than_one_of_its_attacks(ball):
    x, y = labelled(100)
    _, report = auto_attack(NET, x, y, ball=ball, details=True, **SHORT)
    assert 0 < report.robust_accuracy < report.clean_accuracy - 0.2
    others = ranked_others(to_numpy(NET(x)), y)
    nearest, found = fab(NET, x, y, ball=ball, targets=9, steps=12, details=True)
    alone = {
        "APGD-CE": apgd(NET, x, y, ball=ball, steps=12),
        "FAB-T": np.where((found.distance <= ball.epsilon)[:, None, None, None], nearest, x),
        "Square": square(NET, x, y, ball=ball, queries=40),
    }
    for j in range(4):
        alone[f"APGD-T {j}"] = apgd(
            NET, x, y, ball=ball, steps=12, loss=losses.dlr, target=others[:, j]
        )
    for name, x_adv in alone.items():
        assert report.robust_accuracy <= accuracy(NET, x_adv, y), name


def recorded(monkeypatch, **fakes):
    """What the members are called with; a member in ``fakes`` is replaced."""
    calls = []
    for name in ("apgd", "fab", "square"):
        attack = fakes.get(name, getattr(auto, name))

        def member(model, given, name=name, attack=attack, **settings):
            x, y, target = given
            if target is not None:
                settings["target"] = target
            calls.append((name, x.copy(), y, settings))
            return attack(model, x, y, **settings)

        monkeypatch.setattr(auto, name, member)
    return calls


def test_later_attacks_get_only_what_survives(monkeypatch):
    calls = recorded(monkeypatch)
    x, y = labelled()
    settings = {"ball": Linf(0.08), "details": True, "steps": 3, "queries": 4}
    _, report = auto_attack(NET, x, y, targets=3, **settings)
    assert [name for name, *_ in calls] == ["apgd"] * 4 + ["fab", "square"]
    first = report.broken_by >= 0
    same(calls[0][1], x[first])
    later = [report.broken_by > number for number in (0, 1, 2)]
    same(calls[1][1], x[later[0]])
    same(calls[4][1], x[later[1]])
    same(calls[5][1], x[later[2]])
    same(calls[5][2], y[later[2]])
    for (_, x_before, *_), (_, x_after, *_) in pairwise(calls):
        rows = {row.tobytes() for row in x_before}
        assert all(row.tobytes() in rows for row in x_after)
    assert len(calls[1][1]) > len(calls[4][1]), "APGD-T found nothing"


def test_the_members_get_the_settings(monkeypatch):
    calls = recorded(monkeypatch)
    x, y = labelled(12)
    auto_attack(NET, x, y, ball=L2(1e-3), steps=4, queries=6, targets=3)
    others = ranked_others(to_numpy(NET(x)), y)[predict(NET, x) == y]
    for name, _, _, settings in calls:
        assert settings["ball"] == L2(1e-3) and settings["progress"] is False, name
    ce, *on_target, boundary, search = [settings for *_, settings in calls]
    assert ce["steps"] == 4 and ce["loss"] is losses.cross_entropy and "target" not in ce
    for j, settings in enumerate(on_target):
        assert settings["steps"] == 4 and settings["loss"] is losses.dlr
        same(settings["target"], others[:, j])
    assert len(on_target) == boundary["targets"] == 3 and boundary["steps"] == 4
    assert search["queries"] == 6
    assert len({settings["rng"] for *_, settings in calls}) == 6, "each has a seed of its own"


def test_the_defaults_are_autoattacks(monkeypatch):
    nothing = lambda model, x, y, **settings: x
    found = lambda model, x, y, **settings: fab(model, x, y, ball=Linf(0.3), steps=1, details=True)
    calls = recorded(monkeypatch, apgd=nothing, square=nothing, fab=found)
    net = Net(classes=12)
    auto_attack(net, images(4), ball=Linf(1e-6))
    settings = [settings for *_, settings in calls]
    assert [s.get("steps") for s in settings] == [100] * 11 + [None]
    assert settings[-2]["targets"] == 9 and settings[-1]["queries"] == 5000
    assert [name for name, *_ in calls] == ["apgd"] * 10 + ["fab", "square"]


@every_ball
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_with_few_classes(ball, classes, monkeypatch):
    """The targeted DLR loss needs four; below that it is the margin."""
    calls = recorded(monkeypatch)
    net = Net(classes=classes)
    x, y = labelled(40, net)
    _, report = auto_attack(net, x, y, ball=ball, details=True, **SHORT)
    assert 0 < report.robust_accuracy < report.clean_accuracy
    loss = losses.dlr if classes >= 4 else losses.margin
    on_target = [settings for *_, settings in calls if "target" in settings]
    assert [settings["loss"] for settings in on_target] == [loss] * (classes - 1)


def test_a_point_beyond_the_ball_is_no_success_of_fab(monkeypatch):
    nothing = lambda model, x, y, **settings: x
    recorded(monkeypatch, apgd=nothing, square=nothing)
    x, y = labelled()
    _, found = fab(NET, x, y, targets=9, steps=12, details=True)
    _, report = auto_attack(NET, x, y, ball=Linf(0.08), steps=12, details=True)
    same(report.survived, (predict(NET, x) == y) & (found.distance > 0.08))
    assert set(report.broken_by.tolist()) == {-1, 2, 4}


@every_ball
def test_with_epsilon_0_the_images_come_back_bit_by_bit(ball):
    x, y = labelled(10)
    x_adv = auto_attack(NET, x, y, ball=type(ball)(0.0), steps=3, queries=5, targets=2)
    assert x_adv.tobytes() == x.tobytes()


def test_a_single_image_and_a_batch_that_is_all_wrong():
    x, y = labelled(10)
    x_adv, report = auto_attack(NET, x[:1], y[:1], ball=Linf(0.5), details=True, **SHORT)
    assert x_adv.shape == (1, 1, 4, 4) and report.robust_accuracy == 0
    x_adv, report = auto_attack(NET, x, (predict(NET, x) + 1) % 5, details=True, **SHORT)
    assert x_adv.tobytes() == x.tobytes()
    same(report.broken_by, -1)
    assert report.clean_accuracy == 0
    assert not any(result.attacked.any() for result in report.attacks.values())


def test_the_seed_and_the_threads_of_auto_attack(monkeypatch):
    monkeypatch.setattr(parallel, "CORES", 3)
    cut = Net()
    cut.by_example = True
    x, y = labelled(150, dtype=np.float32)

    def run(rng=0, threads=1):
        with parallel.limit(threads):
            return auto_attack(cut, x, y, ball=Linf(0.08), steps=4, queries=8, targets=2, rng=rng)

    same(run(), run(np.random.default_rng(0)))
    assert not np.array_equal(run(), run(1))
    for threads in (2, 3):
        same(run(), run(threads=threads))


def test_more_effort_never_helps_the_model():
    x, y = labelled(100)
    run = lambda **settings: auto_attack(
        NET, x, y, ball=Linf(0.08), details=True, **({"steps": 3, "queries": 10} | settings)
    )[1]
    weak, strong = run(), run(steps=30, queries=60)
    assert strong.robust_accuracy <= weak.robust_accuracy
    smaller = auto_attack(NET, x, y, ball=Linf(0.04), details=True, steps=30, queries=60)[1]
    assert strong.robust_accuracy < smaller.robust_accuracy


@every_ball
def test_auto_attack_on_any_backend(ball, device):
    x, y = labelled(20)
    settings = {"ball": ball, "steps": 4, "queries": 6, "targets": 2, "details": True}
    expected, told = auto_attack(NET, x, y, **settings)
    got, report = auto_attack(Net(device), device.asarray(x), y, **settings)
    close(to_numpy(got), expected, atol=1e-9)
    same(report.broken_by, told.broken_by)


def test_gradients_that_lead_nowhere_are_noticed():
    """A model whose gradients are zero: only the attack that needs none gets anywhere."""
    masked = lambda x: (
        to_numpy(NET(to_numpy(x)))
        + 0 * ops.dense(ops.reshape(x, (len(x), -1)), NET.v[:, :1] * np.ones(16))
    )
    x = images(60)
    with pytest.warns(AttackWarning, match=r"Square, which uses no gradients, broke \d+ of"):
        _, report = auto_attack(masked, x, ball=Linf(0.15), details=True, steps=3, queries=100)
    assert not report.attacks["FAB-T"].succeeded.any() and (report.broken_by == 3).any()
    assert report.robust_accuracy == (report.broken_by == 4).mean()


@pytest.mark.parametrize("broken, warns", [(0, False), (1, False), (2, True)])
def test_square_may_break_one_in_a_hundred(broken, warns, monkeypatch):
    """Of 100 images Square breaks so many, and the attacks with gradients none."""
    x = images(100)

    def search(model, given, **settings):
        step = np.where(np.arange(len(given.x)) < broken, 1, 0)[:, None, None, None]
        return given.x + step * (other - given.x)

    y = predict(NET, x)
    other = x[[int(np.flatnonzero(y != label)[0]) for label in y]]
    nothing = lambda model, given, **settings: given.x
    monkeypatch.setattr(auto, "apgd", nothing)
    found = type("Found", (), {"distance": np.full(100, np.inf)})
    monkeypatch.setattr(auto, "fab", lambda model, given, **settings: (given.x, found))
    monkeypatch.setattr(auto, "square", search)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, report = auto_attack(NET, x, y, ball=Linf(1.0), details=True)
    assert report.survived.sum() == 100 - broken
    assert [w.filename for w in caught] == [__file__] * warns


def test_nan_is_not_a_prediction_that_survives():
    def lost(x):  # five of six rows are NaN, and their label is the first class
        return NET(x) * np.array([[1.0]] + 5 * [[np.nan]])[: len(x)]

    with pytest.raises(ValueError, match=r"NaN .* for 5 of 6 images"):
        auto_attack(lost, images(6), np.zeros(6, int), ball=Linf(0.1))


def test_an_epsilon_of_0_to_255_is_noticed():
    with pytest.warns(AttackWarning, match="ε = 8 .* 255") as caught:
        auto_attack(NET, images(3), ball=Linf(8), steps=2, queries=2, targets=1)
    assert {warning.filename for warning in caught} == {__file__}


def test_a_random_model_is_noticed():
    rng = np.random.default_rng(0)
    noisy = lambda x: NET(x + 0.1 * rng.standard_normal((len(x), 1, 4, 4)))
    with pytest.warns(AttackWarning, match="changed by up to .* seems to be random") as caught:
        auto_attack(noisy, images(10), ball=Linf(0.5), steps=2, queries=2, targets=1)
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"ball": L1(0.3)}, TypeError, "for Linf or L2.*got L1"),
        ({"ball": Linf(np.inf)}, ValueError, "must be finite"),
        *[
            ({name: value}, ValueError, f"{name} must be an integer ≥ 1, got {value}")
            for name in ("steps", "targets", "queries")
            for value in (0, 1.5)
        ],
    ],
)
def test_bad_settings_of_auto_attack(settings, error, message):
    with pytest.raises(error, match=message):
        auto_attack(NET, images(4), **settings)


def test_auto_attack_needs_images():
    with pytest.raises(ValueError, match=r"needs images \(N, C, H, W\).*got shape \(4, 16\)"):
        auto_attack(NET, images(4, (16,)))
