"""Rotations and translations: the sampling against SciPy, its gradients, and the three attacks."""

from functools import partial
from itertools import pairwise, product

import numpy as np
import pytest
import strict_cupy
import tqdm
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from tinyadv import Tensor, check_grads, grad, layers, losses, ops, parallel, to_numpy
from tinyadv.attacks import spatial
from tinyadv.attacks.spatial import (
    rotate_translate,
    spatial_first_order,
    spatial_grid,
    spatial_random,
)
from tinyadv.evaluate import predict

close = np.testing.assert_allclose
same = np.testing.assert_array_equal

# With few trials: enough for most tests.
SHORT = {
    spatial_grid: {"angles": 5, "shifts": 3},
    spatial_random: {"k": 4},
    spatial_first_order: {"steps": 5, "step_size": 0.2},
}
every_attack = pytest.mark.parametrize("attack", SHORT, ids=lambda f: f.__name__)


def images(n=12, shape=(1, 7, 7), dtype=np.float64, seed=0):
    """Noise, some of it exactly black or white."""
    u = np.random.default_rng(seed).uniform(-0.1, 1.1, (n, *shape))
    return np.clip(u, 0, 1).astype(dtype)


class Net:
    """V tanh(W x): a user's own class, on any backend, with answers of all kinds."""

    by_example = True

    def __init__(self, xp=np, inputs=49, dtype=np.float64, seed=0):
        rng = np.random.default_rng(seed)
        w, v = rng.standard_normal((12, inputs)) / inputs**0.5, rng.standard_normal((5, 12))
        self.w, self.v = (xp.asarray(a.astype(dtype)) for a in (w, v))

    def __call__(self, x):
        return ops.dense(ops.tanh(ops.dense(ops.reshape(x, (len(x), -1)), self.w)), self.v)


NET = Net()


def conv_net(dtype=np.float32):
    model = layers.Sequential(
        layers.Conv2d(1, 4, 3, rng=0), layers.ReLU(), layers.Flatten(), layers.Dense(100, 5, rng=1)
    )
    for p in model.parameters():
        p.value = p.value.astype(dtype)
    return model


def raised(model, x, y, target=None, loss=losses.cross_entropy):
    logits = to_numpy(model(x))
    sign, label = (1, y) if target is None else (-1, target)
    return sign * loss(logits, np.broadcast_to(label, len(x)), "none")


# ---- the sampling --------------------------------------------------------------------------------


def by_scipy(image, angle, shift):
    """One image (H, W). SciPy reads at matrix @ (row, column) + offset."""
    a, centre = np.deg2rad(angle), (np.array(image.shape) - 1) / 2
    matrix = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    offset = centre - matrix @ (centre + np.array(shift)[::-1])
    return ndimage.affine_transform(image, matrix, offset, order=1, mode="grid-constant")


@st.composite
def transformations(draw):
    """Images and an angle and a shift for each of them, or one for all; also far outside."""
    shape = tuple(draw(st.integers(1, n)) for n in (4, 3, 8, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    angle_shape, shift_shape = draw(st.sampled_from([((), ()), (shape[:1], ()), ((), shape[:1])]))
    far = draw(st.sampled_from([1, 4, 30]))
    angle = rng.uniform(-180, 180, angle_shape)
    return rng.random(shape), angle, rng.uniform(-far, far, (*shift_shape, 2))


@given(transformations())
def test_the_sampling_is_scipys(case):
    x, angle, shift = case
    moved = rotate_translate(x, angle, shift)
    angles, shifts = np.broadcast_to(angle, len(x)), np.broadcast_to(shift, (len(x), 2))
    expected = [
        [by_scipy(channel, a, s) for channel in image]
        for image, a, s in zip(x, angles, shifts, strict=True)
    ]
    close(moved, expected, atol=1e-12)


def test_it_turns_as_scipy_does_when_it_rotates():
    (image,) = x = images(1, (1, 9, 9))
    inside = np.pad(image[0], 4)  # black around, where the modes of SciPy differ
    expected = ndimage.rotate(inside, 25, reshape=False, order=1)
    close(rotate_translate(inside[None, None], 25, (0, 0))[0, 0], expected, atol=1e-12)
    assert not np.allclose(rotate_translate(x, 25, (0, 0)), rotate_translate(x, -25, (0, 0)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 7, 7), (3, 6, 9), (2, 1, 5)])
def test_whole_pixels_are_moved_bit_by_bit(dtype, shape):
    x = images(5, shape, dtype)
    assert rotate_translate(x, 0, (0, 0)).tobytes() == x.tobytes()
    h, w = shape[1:]
    for right, down in [(2, 0), (0, 1), (-1, 3), (-3, -2), (20, 0), (0, -20)]:
        expected = np.zeros_like(x)
        rows, columns = np.arange(h) - down, np.arange(w) - right
        i, j = np.meshgrid(rows, columns, indexing="ij")
        inside = (i >= 0) & (i < h) & (j >= 0) & (j < w)
        expected[..., inside] = x[..., i[inside], j[inside]]
        same(rotate_translate(x, 0, (right, down)), expected)
        each = rotate_translate(x, np.zeros(5), np.tile([right, down], (5, 1)))
        same(each, expected)
        assert each.dtype == dtype


@given(transformations(), st.sampled_from([np.float32, np.float64]))
def test_pixels_stay_in_the_box(case, dtype):
    x, angle, shift = case
    moved = rotate_translate(np.round(x).astype(dtype), angle, shift)
    assert moved.dtype == dtype and moved.min() >= 0 and moved.max() <= 1
    white = rotate_translate(np.ones((1, 1, 21, 21), dtype), angle.ravel()[0], (0.3, 0.1))
    assert white.max() <= 1 and abs(white[0, 0, 7:14, 7:14] - 1).max() < 1e-6


@given(transformations())
def test_one_for_all_is_the_same_as_each_its_own_bit_by_bit(case):
    x, angle, shift = case
    angle, shift = angle.ravel()[0], shift.reshape(-1, 2)[0]
    for dtype in (np.float32, np.float64):
        each = np.full(len(x), angle), np.tile(shift, (len(x), 1))
        shared = rotate_translate(x.astype(dtype), angle, tuple(shift))
        same(rotate_translate(x.astype(dtype), *each), shared)


@pytest.mark.parametrize("seed", range(6))  # fixed: no pixel is read just where the slope jumps
@pytest.mark.parametrize("each", [False, True])
def test_gradients_of_the_image_of_the_angle_and_of_the_shift(seed, each):
    rng, many = np.random.default_rng(seed), (3,) if each else ()
    angle, shift = rng.uniform(-90, 90, many), rng.uniform(-3, 3, (*many, 2))
    case = [rng.random((3, 2, 6, 5)), np.asarray(angle), shift]
    check_grads(rotate_translate, case, order=3, step=1e-6, tolerance=(1e-6, 1e-5, 1e-3))


def test_the_gradient_of_a_shift_is_the_slope_between_pixels():
    """On an image that rises by 0.1 to the right, a shift to the right lowers each pixel by 0.1."""
    x = np.tile(np.arange(8) / 10, (8, 1))[None, None]
    angle, shift = Tensor(np.zeros(1)), Tensor(np.full((1, 2), 0.25))
    inner = rotate_translate(x, angle, shift)[0, 0, 4, 4]
    g_angle, g_shift = grad(inner, [angle, shift])
    close(g_shift, [[-0.1, 0]], atol=1e-12)
    # Below the centre, turning counter-clockwise moves pixels to the right, by their height × θ.
    close(g_angle, [-0.1 * (4 - 3.5 - 0.25) * np.pi / 180], atol=1e-12)


def test_a_gpu_samples_the_same_with_the_same_gradients(device):
    x, rng = images(4, (2, 6, 5), np.float32), np.random.default_rng(0)
    angle, shift = rng.uniform(-40, 40, 4), rng.uniform(-3, 3, (4, 2))

    def everything(xp):
        each = [Tensor(xp.asarray(a.astype(np.float32))) for a in (x, angle, shift)]
        y = rotate_translate(*each)
        shared = rotate_translate(xp.asarray(x), 10.0, (1.5, -2))
        return [y.value, *grad((y * y).sum(), each), shared]

    for result, expected in zip(everything(device), everything(np), strict=True):
        assert type(result) is device.ndarray and result.dtype == np.float32
        close(to_numpy(result), expected, rtol=1e-4, atol=1e-5)
    if device is strict_cupy:
        with strict_cupy.count() as counted:
            everything(device)
        assert counted.syncs == 0


@pytest.mark.parametrize(
    "x, angle, shift, error, words",
    [
        (np.zeros((2, 3)), 0, (0, 0), ValueError, r"images \(N, C, H, W\), got .*\(2, 3\)"),
        ([[0.0]], 0, (0, 0), ValueError, r"images \(N, C, H, W\), got .*\(1, 1\)"),
        (np.zeros((2, 1, 3, 3), int), 0, (0, 0), TypeError, "floating-point numbers.*int64"),
        (np.zeros((2, 1, 3, 3)), np.zeros(3), (0, 0), ValueError, r"for 2 images .* got \(3,\)"),
        (np.zeros((2, 1, 3, 3)), 0, (0, 0, 0), ValueError, r"right and down; got \(\) and \(3,\)"),
        (np.zeros((2, 1, 3, 3)), 0, np.zeros((3, 2)), ValueError, r"and \(3, 2\)"),
    ],
)
def test_the_sampling_says_what_it_takes(x, angle, shift, error, words):
    with pytest.raises(error, match=words):
        rotate_translate(x, angle, shift)


# ---- what every attack promises ------------------------------------------------------------------


@every_attack
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("target", [None, 2])
def test_the_result_is_the_image_moved_within_the_limits(attack, dtype, target):
    x, y = images(20, dtype=dtype), np.arange(20) % 2
    before = x.copy()
    limits = np.array([20.0, 1.5, 1.5])
    how = {"max_angle": 20.0, "max_shift": 1.5, "target": target, **SHORT[attack]}
    x_adv, t = attack(NET, x, y, details=True, **how)
    assert x_adv.shape == x.shape and x_adv.dtype == dtype and x_adv.flags.c_contiguous
    assert t.shape == (20, 3) and t.dtype == dtype and (abs(t) <= limits * (1 + 1e-6)).all()
    same(x_adv, rotate_translate(x, t[:, 0], t[:, 1:]))
    same(x_adv, attack(NET, x, y, **how))
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and abs(t).max(0).min() > 0
    same(x, before)


@every_attack
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_with_no_room_the_images_come_back_bit_by_bit(attack, dtype):
    x = images(dtype=dtype)
    assert attack(NET, x, max_angle=0, max_shift=0, **SHORT[attack]).tobytes() == x.tobytes()


@every_attack
def test_each_limit_is_for_its_own_numbers(attack):
    x = images()
    _, turned = attack(NET, x, max_angle=10, max_shift=0, details=True, **SHORT[attack])
    _, moved = attack(NET, x, max_angle=0, max_shift=2, details=True, **SHORT[attack])
    assert turned[:, 0].any() and not turned[:, 1:].any()
    assert moved[:, 1].any() and moved[:, 2].any() and not moved[:, 0].any()


@every_attack
def test_the_parameters_stay_as_they_are(attack):
    model, x = conv_net(), images(dtype=np.float32)
    before = [p.value.copy() for p in model.parameters()]
    attack(model, x, **SHORT[attack])
    for p, old in zip(model.parameters(), before, strict=True):
        assert p.value.tobytes() == old.tobytes()


@every_attack
@pytest.mark.parametrize("n", [129, 300])
def test_any_number_of_threads_gives_the_same_bits(attack, n):
    x, model = images(n, dtype=np.float32), conv_net()
    results = []
    for threads in (1, 2, 3):
        with parallel.limit(threads):
            results.append(attack(model, x, details=True, **SHORT[attack]))
    for one, *others in zip(*results, strict=True):
        for other in others:
            same(one, other)


@every_attack
def test_a_batch_of_any_size_is_its_examples(attack):
    x = images(300)
    y = predict(NET, x)
    _, whole = attack(NET, x, y, details=True, **SHORT[attack])
    for n in (1, 2, 127, 129):
        _, some = attack(NET, x[:n], y[:n], details=True, **SHORT[attack])
        if attack is spatial_first_order:
            # Rounding differs with the piece, and a sign may turn where a gradient is almost 0.
            assert (abs(some - whole[:n]).max(1) < 1e-9).mean() > 0.9
        else:
            same(some, whole[:n])


@every_attack
def test_labels_are_the_models_own_answers_if_not_given(attack):
    x = images()
    same(attack(NET, x, **SHORT[attack]), attack(NET, x, predict(NET, x), **SHORT[attack]))


@every_attack
def test_a_gpu_gives_the_same(attack, device):
    x, y = images(6, dtype=np.float32), np.arange(6) % 5
    expected, t = attack(Net(dtype=np.float32), x, y, details=True, **SHORT[attack])
    model, x, y = Net(device, dtype=np.float32), device.asarray(x), device.asarray(y)
    x_adv, t_device = attack(model, x, y, details=True, **SHORT[attack])
    assert type(x_adv) is type(t_device) is device.ndarray and x_adv.dtype == np.float32
    close(to_numpy(t_device), t, atol=1e-3)
    close(to_numpy(x_adv), expected, atol=1e-3)


def test_a_gpu_is_waited_for_once_in_a_round_and_never_in_a_step():
    x, y = strict_cupy.asarray(images(6, dtype=np.float32)), strict_cupy.asarray(np.zeros(6, int))
    model = Net(strict_cupy, dtype=np.float32)

    def syncs(attack, **how):
        with strict_cupy.count() as counted:
            attack(model, x, y, **how)
        return counted.syncs

    assert syncs(spatial_random, k=2) == syncs(spatial_random, k=9)
    assert syncs(spatial_first_order, steps=2) == syncs(spatial_first_order, steps=9)
    all_of_them = partial(syncs, spatial_grid, exhaustive=True)
    assert all_of_them(angles=3, shifts=1) == all_of_them(angles=3, shifts=5)
    hard = spatial_grid(model, x, y, max_angle=0, max_shift=0)  # the look at x itself is a round
    assert hard.shape == x.shape
    assert syncs(spatial_grid, angles=3, shifts=5) <= all_of_them(angles=3, shifts=5) + 4


@every_attack
def test_a_loss_and_a_target_are_followed(attack):
    x, how = images(40), {"max_angle": 40, "max_shift": 3, **SHORT[attack]}
    y = predict(NET, x)
    if attack is spatial_grid:
        how["exhaustive"] = True
    by_loss = {f: attack(NET, x, y, loss=f, **how) for f in (losses.cross_entropy, losses.margin)}
    assert not np.array_equal(*by_loss.values())
    for target in (1, (y + 1) % 5):
        reached = attack(NET, x, y, target=target, **how)
        lower = -raised(NET, reached, y, target).mean()
        assert lower < -raised(NET, x, y, target).mean()
        assert (predict(NET, reached) == target).sum() > (predict(NET, x) == target).sum()


MISTAKES = [
    (every, {"max_angle": -1.0}, "max_angle must be a number ≥ 0, got -1.0") for every in SHORT
]
MISTAKES += [(every, {"max_shift": np.inf}, "max_shift must be a number ≥ 0") for every in SHORT]
MISTAKES += [
    (spatial_grid, {"angles": 0}, "angles must be an integer ≥ 1, got 0"),
    (spatial_grid, {"shifts": 2.5}, "shifts must be an integer ≥ 1, got 2.5"),
    (spatial_random, {"k": 0}, "k must be an integer ≥ 1, got 0"),
    (spatial_first_order, {"steps": 0}, "steps must be an integer ≥ 1, got 0"),
    (spatial_first_order, {"step_size": -0.1}, "step_size must be a number ≥ 0, got -0.1"),
    (spatial_first_order, {"step_size": np.nan}, "step_size must be a number ≥ 0, got nan"),
]


@pytest.mark.parametrize("attack, how, words", MISTAKES)
def test_mistakes_are_named(attack, how, words):
    with pytest.raises(ValueError, match=words):
        attack(NET, images(), **how)


@every_attack
def test_images_have_four_axes(attack):
    with pytest.raises(ValueError, match=r"images \(N, C, H, W\), got shape \(3, 49\)"):
        attack(NET, images().reshape(-1, 49)[:3])


def worst_of(candidates, image, label):
    """The worst of (angle, right, down) for one image (H, W), by a loop."""
    results = []
    for angle, *shift in candidates:
        logits = NET(by_scipy(image, angle, shift)[None, None])[0]
        loss = np.log(np.exp(logits).sum()) - logits[label]
        results.append((logits.argmax() != label, loss, (angle, *shift)))
    return max(results)[2]


# ---- the grid ------------------------------------------------------------------------------------


def test_the_grid_is_that_of_the_paper():
    grid = spatial._grid(np.array([30.0, 3, 3]), 31, 5)
    expected = {
        (a, r, d)
        for a in np.linspace(-30, 30, 31).round(9)
        for r in np.linspace(-3, 3, 5)
        for d in np.linspace(-3, 3, 5)
    }
    assert len(grid) == 775 and {tuple(t.round(9) + 0.0) for t in grid} == expected
    assert not grid[0].any() and abs(grid[1]).tolist() == [30, 3, 3]
    assert len(spatial._grid(np.array([30.0, 3, 3]), 2, 2)) == 9  # the image itself is one more
    assert len(spatial._grid(np.array([0.0, 3, 3]), 31, 5)) == 25
    assert len(spatial._grid(np.array([30.0, 3, 3]), 1, 1)) == 1


def test_the_exhaustive_grid_finds_what_a_loop_finds():
    x, y = images(15), np.arange(15) % 5
    _, t = spatial_grid(NET, x, y, angles=4, shifts=3, exhaustive=True, details=True)
    shifts = (-3, 0, 3)
    grid = [(0, 0, 0), *product((-30, -10, 10, 30), shifts, shifts)]
    for i in range(15):
        close(t[i], worst_of(grid, x[i, 0], y[i]), atol=1e-9)


def test_stopping_early_fools_the_same_images_with_fewer_queries():
    x, y, asked = images(60), np.arange(60) % 2, []

    def model(images):
        asked.append(len(images))
        return NET(images)

    model.by_example = True
    results, cost = [], []
    for exhaustive in (False, True):
        asked.clear()
        results.append(spatial_grid(model, x, y, exhaustive=exhaustive))
        cost.append(sum(asked))
    early, full = results
    same(predict(NET, early) == y, predict(NET, full) == y)
    # Each image with each transformation, and one image for the number of classes.
    assert cost[1] == 60 * 775 + 1 and cost[0] < cost[1] / 2
    lower = raised(NET, early, y) <= raised(NET, full, y) + 1e-12
    assert lower.all()


def test_what_is_misread_already_comes_back_as_it_is():
    x = images(20)
    wrong = (predict(NET, x) + 1) % 5
    x_adv, t = spatial_grid(NET, x, wrong, details=True)
    assert x_adv.tobytes() == x.tobytes() and not t.any()


# ---- worst of k, and first order -----------------------------------------------------------------


def test_k_random_ones_are_drawn_evenly_and_the_worst_is_kept():
    draws = spatial._random(2000, 3, np.array([30.0, 3, 2]), 0)
    assert draws.shape == (2000, 3, 3)
    close(abs(draws).max((0, 1)), [30, 3, 2], rtol=0.01)
    close(draws.std((0, 1)), np.array([30, 3, 2]) / 3**0.5, rtol=0.05)
    assert abs(np.corrcoef(draws.reshape(-1, 3).T) - np.eye(3)).max() < 0.05
    same(draws[:7, :2], spatial._random(7, 2, np.array([30.0, 3, 2]), 0))

    x, y = images(30), np.arange(30) % 5
    draws = spatial._random(30, 6, np.array([30.0, 3, 3]), 5)
    _, t = spatial_random(NET, x, y, k=6, rng=5, details=True)
    for i in range(30):
        close(t[i], worst_of(draws[i], x[i, 0], y[i]))


def test_more_trials_never_help_the_model():
    x = images(80)
    y = predict(NET, x)
    right = [(predict(NET, spatial_random(NET, x, y, k=k)) == y) for k in (1, 2, 5, 20)]
    for fewer, more in pairwise(right):
        assert (more <= fewer).all()
    assert right[-1].sum() < right[0].sum()
    steps = [predict(NET, spatial_first_order(NET, x, y, steps=n)) == y for n in (1, 10, 40)]
    for fewer, more in pairwise(steps):
        assert (more <= fewer).all()
    assert steps[-1].sum() < steps[0].sum()


@pytest.mark.parametrize("attack", [spatial_random, spatial_first_order])
def test_the_seed_decides_the_draws(attack):
    x, how = images(), SHORT[attack]
    same(attack(NET, x, rng=3, **how), attack(NET, x, rng=np.random.default_rng(3), **how))
    assert not np.array_equal(attack(NET, x, rng=3, **how), attack(NET, x, rng=4, **how))
    once = np.random.default_rng(3)
    first = attack(NET, x, rng=once, **how)
    assert not np.array_equal(first, attack(NET, x, rng=once, **how)), "a generator goes on"


def test_the_first_order_attack_is_a_loop_of_sign_steps():
    x, y = images(8), np.arange(8) % 5
    limits = np.array([30.0, 3, 3])
    t = spatial._random(8, 1, limits, 2)[:, 0]
    worst = [(False, -np.inf, None)] * 8
    for _ in range(4):  # the start, and what three steps lead to
        moved = Tensor(t)
        logits = NET(rotate_translate(x, moved[:, 0], moved[:, 1:]))
        loss = losses.cross_entropy(logits, y, "none")
        found = zip(logits.value.argmax(1) != y, loss.value, t, strict=True)
        worst = [max(pair, key=lambda p: p[:2]) for pair in zip(worst, found, strict=True)]
        (g,) = grad(loss.sum(), [moved])
        t = np.clip(t + 0.1 * limits * np.sign(g), -limits, limits)
    _, got = spatial_first_order(NET, x, y, steps=3, step_size=0.1, rng=2, details=True)
    close(got, [t for _, _, t in worst], atol=1e-9)


def test_it_is_an_inner_maximisation():
    """As `fit` calls it: a batch of arrays, no keywords, new draws at each step."""
    perturb = partial(spatial_random, rng=np.random.default_rng(0), k=2)
    x, y = images(5, dtype=np.float32), np.arange(5)
    model = conv_net()
    first, second = perturb(model, x, y), perturb(model, x, y)
    assert first.shape == x.shape and not np.array_equal(first, second)


@every_attack
def test_a_bar_on_a_terminal_changes_nothing(attack, monkeypatch):
    names = []

    class Bar(tqdm.tqdm):
        def __init__(self, *args, disable=None, desc=None, **how):
            names.append((disable, desc))
            super().__init__(*args, disable=True, **how)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    x = images()
    same(attack(NET, x, progress=True, **SHORT[attack]), attack(NET, x, **SHORT[attack]))
    shown = {desc for disable, desc in names if disable is None}  # None: on terminals
    assert any("grid" in d or "worst of" in d or "first order" in d for d in shown)
