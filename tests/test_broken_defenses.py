"""Two broken defenses: they do what the papers say, and the attacks on them succeed."""

import warnings

import numpy as np
import pytest
from scipy.ndimage import median_filter

from tinyadv import (
    Tensor,
    broken_defenses,
    checks,
    grad,
    inputs,
    layers,
    losses,
    models,
    ops,
    optim,
    parallel,
    to_numpy,
)
from tinyadv.attacks import pgd
from tinyadv.balls import L2, Linf
from tinyadv.broken_defenses import (
    Detector,
    Distillation,
    at_temperature,
    bit_depth,
    cross_thresholds,
    distill,
    evade,
    in_turn,
    median,
    squeezed,
    straight_through,
    without_gradient,
)
from tinyadv.data import Dataset
from tinyadv.evaluate import accuracy, predict

close = np.testing.assert_allclose
same = np.testing.assert_array_equal


def images(n=40, size=6, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).random((n, 1, size, size)).astype(dtype)


def stripes(n=400, seed=0):
    """Images whose brightest row of four is their class: learnt in a moment, and far apart."""
    rng = np.random.default_rng(seed)
    y = rng.integers(4, size=n)
    x = 0.25 * rng.random((n, 1, 4, 4))
    x[np.arange(n), 0, y] += 0.7
    return x.astype(np.float32), y


def data():
    (x, y), (x_test, y_test) = stripes(), stripes(100, seed=1)
    return Dataset("stripes", x, y, x_test, y_test, tuple("abcd"))


def network(seed=0):
    return models.mlp((16, 16, 4), seed)


def adam(parameters):
    return optim.Adam(parameters, lr=0.01)


@pytest.fixture(scope="module")
def pair():
    """A teacher and a student, at T = 100."""
    return distill(network, data(), adam, 50, temperature=100, batch_size=50, progress=False)


# ---- distillation --------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1, 7.5, 100])
def test_the_objective_is_the_formula(temperature):
    x, y = stripes(10)
    student, teacher = network(1), network(2)
    loss, logits = Distillation(temperature)(student, x, y)
    assert isinstance(loss, Tensor) and isinstance(logits, Tensor)
    z = student(x).value.astype(float)
    same(logits.value, student(x).value)  # as in use, at T = 1
    log_p = z / temperature - np.log(np.exp(z / temperature).sum(1, keepdims=True))
    close(loss.value, -log_p[np.arange(10), y].mean(), rtol=1e-5)

    loss, _ = Distillation(temperature, teacher)(student, x, y)
    soft = np.exp(teacher(x).value.astype(float) / temperature)
    soft /= soft.sum(1, keepdims=True)
    close(loss.value, -(soft * log_p).sum(1).mean(), rtol=1e-5)


def test_the_teacher_does_not_learn():
    x, y = stripes(10)
    student, teacher = network(1), network(2)
    loss, _ = Distillation(20, teacher)(student, x, y)
    assert all(abs(g).max() == 0 for g in grad(loss, teacher.parameters()))
    assert any(abs(g).max() > 0 for g in grad(loss, student.parameters()))


def test_distillation_saturates_the_softmax_and_changes_few_predictions(pair):
    x, y = stripes(100, seed=1)
    for model in pair:
        assert accuracy(model, x, y) == 1
    student = pair[1]
    with pytest.warns(checks.MaskingWarning, match="zero gradients"):
        found = checks.zero_gradients(student, x, y)
    assert "exactly 0" in found.measured
    # A gradient of 0 stops the attack where it starts.
    stopped = pgd(student, x, y, ball=Linf(0.6), random_start=False)
    assert accuracy(student, stopped, y) > 0.6


def test_distillation_is_broken_with_the_logits(pair):
    x, y = stripes(100, seed=1)
    student, ball = pair[1], Linf(0.6)
    settings = {"ball": ball, "random_start": False}
    assert accuracy(student, pgd(student, x, y, loss=losses.margin, **settings), y) < 0.05
    divided = pgd(at_temperature(student, 100), x, y, **settings)
    assert accuracy(student, divided, y) < 0.05


def test_a_student_learns_from_the_teacher_at_the_same_temperature(pair, monkeypatch):
    seen = []

    class Watched(Distillation):
        def __init__(self, temperature=100.0, teacher=None):
            super().__init__(temperature, teacher)
            seen.append((temperature, teacher))

    monkeypatch.setattr(broken_defenses, "Distillation", Watched)
    teacher, student = distill(
        network, data(), adam, 1, temperature=30, batch_size=100, progress=False
    )
    assert teacher is not student
    assert seen[0] == (30, None) and seen[1][0] == 30 and seen[1][1] is teacher


def test_teacher_and_student_are_interrupted_each_by_itself(tmp_path):
    seeds = iter((1, 2, 1, 2))
    build = lambda: network(next(seeds))
    path = tmp_path / "pair.npz"
    how = {"temperature": 10, "batch_size": 100, "progress": False}
    teacher, student = distill(build, data(), adam, 2, checkpoint=path, **how)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "pair-student.npz", "pair-teacher.npz",
    ]  # fmt: skip
    again = distill(build, data(), adam, 2, checkpoint=path, resume=True, **how)
    for model, resumed in zip((teacher, student), again, strict=True):
        for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
            same(a.value, b.value)
    pairs = zip(teacher.parameters(), student.parameters(), strict=True)
    assert any((a.value != b.value).any() for a, b in pairs)


def test_a_higher_temperature_makes_larger_logits():
    x, _ = stripes(100, seed=1)
    sizes = []
    for temperature in (1, 10):
        _, student = distill(
            network, data(), adam, 20, temperature=temperature, batch_size=50, progress=False
        )
        sizes.append(abs(to_numpy(student(x))).max())
    assert sizes[1] > 2 * sizes[0]


@pytest.mark.parametrize("temperature", [0, -1, np.nan, np.inf])
def test_a_temperature_must_be_above_zero(temperature):
    for make in (Distillation, lambda t: at_temperature(network(), t)):
        with pytest.raises(ValueError, match="temperature must be"):
            make(temperature)


def test_the_predictions_at_a_temperature_are_the_same():
    x = images(size=4)
    model = network()
    same(predict(at_temperature(model, 100), x), predict(model, x))
    close(at_temperature(model, 4)(x).value, model(x).value / 4)
    assert isinstance(at_temperature(model, 4)(Tensor(x)), Tensor)


# ---- squeezers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_bits_are_the_nearest_of_so_many_values(xp, bits):
    x = images()
    got = to_numpy(bit_depth(bits)(xp.asarray(x)))
    levels = np.linspace(0, 1, 2**bits)
    nearest = levels[abs(x[..., None] - levels).argmin(-1)]
    close(got, nearest, atol=1e-6)
    assert got.dtype == x.dtype and len(np.unique(got)) <= 2**bits
    again = bit_depth(bits)(xp.asarray(got))
    close(to_numpy(again), got, atol=1e-7)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_the_median_is_scipys(xp, size):
    x = images(8, size=7)
    got = median(size)(xp.asarray(x))
    same(to_numpy(got), median_filter(x, (1, 1, size, size), mode="reflect"))
    assert got.dtype == x.dtype


def test_the_median_of_a_window_as_large_as_the_image_and_of_oblong_ones():
    x = np.random.default_rng(0).random((3, 2, 4, 9))
    for size in (2, 3, 4):
        same(median(size)(x), median_filter(x, (1, 1, size, size), mode="reflect"))
    with pytest.raises(ValueError, match=r"5 × 5 .* \(3, 2, 4, 9\)"):
        median(5)(x)
    with pytest.raises(ValueError, match="images"):
        median(2)(x.reshape(3, -1))


@pytest.mark.parametrize("squeeze", [bit_depth, median])
@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_bits_and_sizes_are_counts(squeeze, number):
    with pytest.raises(ValueError, match="integer ≥ 1"):
        squeeze(number)


def test_more_bits_than_a_float_has_are_refused():
    assert abs(bit_depth(16)(images()) - images()).max() < 1e-4
    with pytest.raises(ValueError, match=r"bits must be 16 or less, .*got 200"):
        bit_depth(200)


def test_in_turn_is_one_after_the_other():
    def half(x):
        return x / 2

    x = images()
    same(in_turn(half, np.square)(x), (x / 2) ** 2)
    same(in_turn(np.square, half)(x), x**2 / 2)
    same(in_turn(bit_depth(2), median(2))(x), median(2)(bit_depth(2)(x)))


# ---- gradients, and none -------------------------------------------------------------------------


def slope(squeeze, x):
    """∂/∂x of Σ w·squeeze(x), with w = 1, 2, 3 …"""
    leaf = Tensor(x)
    w = np.arange(1, x.size + 1).reshape(x.shape).astype(x.dtype)
    return grad(ops.sum(w * squeeze(leaf)), [leaf])[0], w


@pytest.mark.parametrize("squeeze", [bit_depth(2), median(2), in_turn(bit_depth(1), median(3))])
def test_a_squeezer_has_no_gradient_and_bpda_has_that_of_the_identity(squeeze):
    x = images(3)
    wire = straight_through(squeeze)
    same(wire(x), squeeze(x))  # forward the same, bit by bit, for arrays and for tensors
    same(wire(Tensor(x)).value, squeeze(x))
    same(squeeze(Tensor(x)).value, squeeze(x))
    same(slope(squeeze, x)[0], np.zeros_like(x))
    same(*slope(wire, x))


def test_any_function_of_arrays_will_do():
    x = images(3)
    same(without_gradient(np.floor)(x), np.floor(x))
    same(slope(without_gradient(np.floor), x)[0], 0 * x)
    same(*slope(straight_through(np.floor), x))


@pytest.fixture(scope="module")
def trained():
    from tinyadv import fit

    model = network(3)
    fit(model, data(), adam(model.parameters()), 20, batch_size=50, progress=False)
    return model


def test_squeezing_hides_the_gradient_and_bpda_finds_it(trained):
    x, y = stripes(100, seed=1)
    squeeze, ball = in_turn(bit_depth(2), median(1)), Linf(0.5)
    model = squeezed(trained, squeeze)
    assert accuracy(model, x, y) == 1
    with pytest.warns(checks.MaskingWarning, match="100 of 100 images exactly 0"):
        checks.zero_gradients(model, x, y)
    assert accuracy(model, pgd(model, x, y, ball=ball), y) > 0.5
    x_adv = pgd(squeezed(trained, straight_through(squeeze)), x, y, ball=ball)
    assert accuracy(model, x_adv, y) < 0.1


# ---- the detector --------------------------------------------------------------------------------


def test_the_score_is_the_largest_l1_distance(xp):
    x = images(30, size=4)
    model = network().to("numpy")
    squeezers = {"bits": bit_depth(1), "median": median(2)}
    p = [to_numpy(ops.softmax(model(a), axis=1)) for a in (x, bit_depth(1)(x), median(2)(x))]
    expected = np.max([abs(p[0] - q).sum(1) for q in p[1:]], axis=0)
    if xp is not np:
        weights = [xp.asarray(w.value) for w in model.parameters()]

        def model(x):
            hidden = ops.relu(ops.dense(ops.reshape(x, (len(x), -1)), *weights[:2]))
            return ops.dense(hidden, *weights[2:])

    got = Detector(model, squeezers).scores(xp.asarray(x))
    close(to_numpy(got), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [0, 0.05, 0.3, 1])
def test_the_threshold_refuses_no_more_clean_images_than_it_may(trained, share):
    x, _ = stripes(200, seed=4)
    detector = Detector(trained, {"bits": bit_depth(1)}).calibrate(x, share)
    refused = detector.refuses(x).mean()
    assert share - 0.01 <= refused <= share
    assert not Detector(trained, {"bits": bit_depth(1)}).refuses(x).any()  # not calibrated


def test_a_detector_needs_squeezers_and_a_share():
    with pytest.raises(ValueError, match="at least one squeezer"):
        Detector(network(), {})
    with pytest.raises(ValueError, match="share from 0 to 1"):
        Detector(network(), {"bits": bit_depth(1)}).calibrate(images(size=4), 5)
    with pytest.raises(ValueError, match="some clean images, got none"):
        Detector(network(), {"bits": bit_depth(1)}).calibrate(images(size=4)[:0])


@pytest.fixture(scope="module")
def detector(trained):
    x, _ = stripes(200, seed=4)
    squeezers = {"bits": bit_depth(2), "median": median(1)}
    return Detector(trained, squeezers).calibrate(x, 0.05)


def test_the_adaptive_attack_succeeds_and_is_not_noticed(detector):
    x, y = stripes(100, seed=1)
    ball = Linf(0.5)

    def through(x_adv):
        return ((predict(detector.model, x_adv) != y) & ~detector.refuses(x_adv)).mean()

    x_adv = evade(detector, x, y, ball=ball)
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert abs(x_adv - x).max() <= ball.epsilon + 1e-6
    # Just beyond the boundary the network is not confident, which the detector notices.
    short = pgd(detector.model, x, y, ball=Linf(0.31), steps=40)
    assert through(x_adv) > 0.9
    assert through(x_adv) > through(short)


def test_the_settings_of_evade_matter(detector):
    x, y = stripes(30, seed=1)
    first = evade(detector, x, y, ball=Linf(0.3), steps=5)
    with parallel.limit(1):
        same(first, evade(detector, x, y, ball=Linf(0.3), steps=5))
    others = ({"steps": 6}, {"step_size": 0.01}, {"rng": 1}, {"targets": 1}, {"ball": Linf(0.2)})
    for change in others:
        assert (evade(detector, x, y, **{"ball": Linf(0.3), "steps": 5, **change}) != first).any()
    same(evade(detector, x, y, ball=Linf(0.0), steps=5), x)
    same(evade(detector, x, ball=Linf(0.3), steps=5), first)  # all are classified correctly
    with pytest.raises(ValueError, match="targets"):
        evade(detector, x, y, targets=0)


def test_of_several_finds_the_first_that_passes_counts(trained):
    """Nothing is refused here, so the first wrong class that is reached is the answer."""
    x, y = stripes(40, seed=1)
    nobody = Detector(trained, {"bits": bit_depth(8)})  # not calibrated: it refuses nothing
    one, three = (evade(nobody, x, y, ball=Linf(0.6), targets=n) for n in (1, 3))
    reached = predict(trained, one) != y
    assert reached.mean() > 0.5
    same(three[reached], one[reached])


def test_more_targets_never_find_less(detector):
    x, y = stripes(60, seed=1)

    def through(targets):
        x_adv = evade(detector, x, y, ball=Linf(0.36), steps=10, targets=targets)
        wrong = predict(detector.model, x_adv) != y
        return wrong.sum() + (wrong & ~detector.refuses(x_adv)).sum()

    found = [through(targets) for targets in (1, 2, 3)]
    assert found == sorted(found) and found[-1] > 0


def test_evade_on_any_backend(trained, device):
    x, y = stripes(12, seed=1)
    x = x.astype(np.float64)

    def run(xp):
        weights = [xp.asarray(p.value.astype(np.float64)) for p in trained.parameters()]

        def model(x):
            hidden = ops.relu(ops.dense(ops.reshape(x, (len(x), -1)), *weights[:2]))
            return ops.dense(hidden, *weights[2:])

        squeezers = {"bits": bit_depth(2), "median": median(2)}
        detector = Detector(model, squeezers).calibrate(xp.asarray(x), 0.1)
        x_adv = evade(detector, xp.asarray(x), xp.asarray(y), ball=Linf(0.3), steps=5)
        return detector.threshold, to_numpy(x_adv)

    for got, expected in zip(run(device), run(np), strict=True):
        close(got, expected, atol=1e-9)


def test_evade_touches_no_parameter(detector):
    x, y = stripes(10, seed=1)
    before = [p.value.copy() for p in detector.model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evade(detector, x, y, ball=Linf(0.3), steps=3)
    for was, now in zip(before, detector.model.parameters(), strict=True):
        same(was, now.value)


# ---- wrappers are treated like the model ---------------------------------------------------------


class Batchwise(layers.Module):
    """Its logits depend on the whole batch."""

    def __call__(self, x):
        return ops.reshape(x - ops.mean(x, axis=0, keepdims=True), (len(x), -1))


WRAPPERS = [lambda model: at_temperature(model, 2), lambda model: squeezed(model, bit_depth(2))]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["at_temperature", "squeezed"])
def test_a_wrapped_model_may_be_cut_if_the_model_may(wrap):
    assert parallel.may_cut(wrap(network()))
    for whole in (Batchwise(), lambda x: network()(x)):
        assert not parallel.may_cut(wrap(whole))


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["at_temperature", "squeezed"])
def test_a_frozen_wrapper_records_no_tape(wrap):
    x, model = images(size=4), wrap(network())
    assert isinstance(model(x), Tensor)
    same(model.frozen()(x), model(x).value)
    assert isinstance(model.frozen()(x), np.ndarray)
    assert isinstance(
        model.frozen()(Tensor(x)), Tensor
    )  # the way back to the pixels is still there


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["at_temperature", "squeezed"])
def test_an_attack_on_a_wrapped_model_is_cut_into_pieces(wrap):
    sizes = []

    class Watched(layers.Module):
        by_example = True
        inner = network()

        def __call__(self, x):
            sizes.append(len(x))
            return self.inner(x)

    x, y = stripes(300)
    pgd(wrap(Watched()), x, y, ball=Linf(0.1), steps=1)
    assert max(sizes) <= 128 and sum(sizes) == 301  # with the first look
    sizes.clear()
    Watched.by_example = False
    pgd(wrap(Watched()), x, y, ball=Linf(0.1), steps=1)
    assert set(sizes) == {300}


def test_evade_is_cut_into_pieces_and_checks_its_inputs_once(trained, monkeypatch):
    x, y = stripes(300, seed=1)
    sizes, checked, check = [], [], inputs.check_pixels

    class Watched(layers.Module):
        by_example = True

        def __call__(self, x):
            if isinstance(x, Tensor):
                sizes.append(len(x))
            return trained(x)

    monkeypatch.setattr(inputs, "check_pixels", lambda x, *a: checked.append(x) or check(x, *a))
    evade(Detector(Watched(), {"bits": bit_depth(2)}), x, y, ball=Linf(0.1), steps=1, targets=2)
    assert max(sizes) <= 128 and sum(sizes) == 2 * 2 * 300  # two targets, two views
    assert len(checked) == 1


def test_the_teacher_of_a_distillation_records_no_tape(monkeypatch):
    x, y = stripes(10)
    student, teacher = network(1), network(2)
    made, init = [], Tensor.__init__

    def counted(self, value, operation=None, *rest, **settings):
        made.append(operation)
        init(self, value, operation, *rest, **settings)

    monkeypatch.setattr(Tensor, "__init__", counted)
    Distillation(20)(student, x, y)
    alone = sum(operation is not None for operation in made)
    made.clear()
    Distillation(20, teacher)(student, x, y)
    assert sum(operation is not None for operation in made) == alone


# ---- thresholds ----------------------------------------------------------------------------------


def behind_thresholds(seed=0, low=0.35, high=0.65):
    """A network that reads four pixels, black and white but for thresholds."""
    rng = np.random.default_rng(seed)
    return layers.Sequential(
        *models.threshold_layers(low, high), layers.Flatten(),
        layers.Dense(16, 12, rng=rng), layers.ReLU(), layers.Dense(12, 4, rng=rng),
    )  # fmt: skip


def black_and_white(n=60, seed=0):
    x = (np.random.default_rng(seed).random((n, 1, 4, 4)) < 0.5).astype(np.float32)
    return 0.06 + 0.88 * x


def test_crossed_thresholds_have_the_same_values_and_a_slope_everywhere():
    front = layers.Sequential(*models.threshold_layers(0.25, 0.75))
    close(broken_defenses.live_range(front), (0.25, 0.75, 2), atol=1e-3)
    crossing = straight_through(lambda x: front(x).value, slope=2)
    x = np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 1, 4, 4)
    image = Tensor(x)
    out = crossing(image)
    same(out.value, front(x).value)
    same(crossing(x), front(x).value)
    (g,) = grad(ops.sum(out), [image])
    close(g, np.full_like(x, 2), rtol=1e-3)


@pytest.mark.parametrize("ensemble", [False, True])
def test_more_is_found_through_the_thresholds_than_by_pgd(ensemble, device):
    net = behind_thresholds()
    if ensemble:
        net = layers.Average(net, behind_thresholds(1, 0.33, 0.6))
    x, ball = black_and_white(30), Linf(0.32)
    y, how = predict(net, x), {"ball": ball, "steps": 15, "starts": 3, "hops": 2, "queries": 8}
    x_adv = cross_thresholds(net, x, y, **how)
    assert abs(x_adv - x).max() <= np.float32(0.32) + 1e-6
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and x_adv.dtype == np.float32
    by_pgd = pgd(net, x, y, ball=ball, steps=30, restarts=4)
    ours = accuracy(net, x_adv, y)
    assert ours < accuracy(net, by_pgd, y) and ours < 0.9
    x, y, how = x[:8], y[:8], {**how, "steps": 5, "starts": 2, "hops": 1}
    x_adv = cross_thresholds(net, x, y, **how)
    same(cross_thresholds(net, x, **how), x_adv)
    for p in net.parameters():
        p.value = device.asarray(p.value)
    there = cross_thresholds(net, device.asarray(x), device.asarray(y), **how)
    close(to_numpy(there), x_adv, atol=1e-5)


def test_it_finds_what_exhaustive_search_finds():
    """All corners of the ranges of twelve pixels: 4,096 points."""
    net, x = behind_thresholds(2), black_and_white(12, seed=2)
    x[:, :, 3] = 0.0  # four pixels that cannot reach a threshold
    y, ball = predict(net, x), Linf(0.32)
    corners = np.array(np.meshgrid(*[[0, 1]] * 12, indexing="ij"), np.float32).reshape(12, -1).T
    broken = []
    for image, label in zip(x, y, strict=True):
        low, high = np.clip(image - 0.32, 0, 1), np.clip(image + 0.32, 0, 1)
        points = np.repeat(low[None], len(corners), axis=0)
        points[:, 0, :3] += corners.reshape(-1, 3, 4) * (high - low)[0, :3]
        broken.append(bool((predict(net, points) != label).any()))
    assert 0.1 < np.mean(broken) < 1
    how = {"steps": 15, "starts": 5, "hops": 5, "queries": 10}
    found = predict(net, cross_thresholds(net, x, y, ball=ball, **how)) != y
    same(found | np.array(broken), found)


def test_the_settings_of_cross_thresholds_matter():
    net = layers.Average(behind_thresholds(4), behind_thresholds(54, 0.33, 0.6))
    x = black_and_white(200, seed=3)
    y, how = predict(net, x), {"ball": Linf(0.31), "steps": 2, "starts": 1, "hops": 0, "queries": 0}

    def found(**changes):
        return (predict(net, cross_thresholds(net, x, y, **(how | changes))) != y).mean()

    least = found()
    assert 0 < least < found(steps=30)
    assert least < found(starts=8) and least < found(hops=8) and least < found(queries=40)
    assert least < found(ball=Linf(0.4))
    random = {"steps": 1, "starts": 3}
    first, second = (cross_thresholds(net, x, y, **(how | random), rng=i) for i in (0, 1))
    assert (first != second).any()
    same(cross_thresholds(net, x, y, **(how | random), rng=0, progress=True), first)
    alone = net.members[0]
    longer = layers.Sequential(*alone.layers[:4], layers.ReLU(), *alone.layers[4:])
    same(cross_thresholds(longer, x, y, **how, front=5), cross_thresholds(alone, x, y, **how))


def test_cross_thresholds_leaves_misclassified_images_as_they_are():
    net, x = behind_thresholds(), black_and_white()
    x_adv = cross_thresholds(net, x, (predict(net, x) + 1) % 4, starts=1, hops=0)
    close(x_adv, x, atol=1e-7)


def test_what_cross_thresholds_refuses():
    net, x = behind_thresholds(), black_and_white(4)
    with pytest.raises(TypeError, match="L∞"):
        cross_thresholds(net, x, ball=L2(1))

    class Twice(layers.Sequential):
        def __call__(self, x):
            return 2 * super().__call__(x)

    others = layers.Sequential(*net.layers[:3]), layers.Average(abs), Twice(*net.layers)
    for model in (lambda x: net(x), *others):
        with pytest.raises(TypeError, match="begins with 4 layers"):
            cross_thresholds(model, x)
    with pytest.raises(ValueError, match="grey pixel"):
        two = layers.Sequential(layers.Conv2d(1, 2, 1), layers.Flatten(), layers.Dense(32, 4))
        cross_thresholds(two, x, front=1)
    flat = layers.Sequential(*models.threshold_layers(0.3, 0.6), *net.layers[4:])
    flat[2].weight.value[...] = 0
    with pytest.raises(ValueError, match="same for all grey values"):
        cross_thresholds(flat, x)
    for wrong in ({"steps": 0}, {"starts": 0}, {"front": 0}, {"hops": -1}, {"queries": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            cross_thresholds(net, x, **wrong)
