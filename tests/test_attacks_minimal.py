"""The smallest perturbations: against exact distances, a naive loop, and their promises."""

import functools
import threading
import warnings

import numpy as np
import pytest
import strict_cupy
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyadv import Tensor, layers, ops, parallel, to_numpy
from tinyadv.attacks import AttackWarning, minimal
from tinyadv.attacks.minimal import carlini_wagner, deepfool
from tinyadv.evaluate import predict

close = np.testing.assert_allclose
same = np.testing.assert_array_equal

SHORT = {"steps": 60, "search_steps": 4, "initial_c": 0.1}
short_cw = functools.partial(carlini_wagner, **SHORT)
ATTACKS = {
    "deepfool": deepfool,
    "deepfool_linf": functools.partial(deepfool, norm="linf"),
    "carlini_wagner": short_cw,
    "carlini_wagner_from_image": functools.partial(short_cw, start="image", initial_c=1.0),
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


class Net:
    """V tanh(W x + b): a user's own class, on any backend. Its gradient is below, by hand."""

    by_example = True

    def __init__(self, xp=np, dtype=np.float64, inputs=25, classes=5):
        rng = np.random.default_rng(0)
        w = rng.standard_normal((12, inputs)) * 2 / inputs**0.5
        b, v = -w.sum(1) / 2, rng.standard_normal((classes, 12))
        self.w, self.b, self.v = (xp.asarray(a.astype(dtype)) for a in (w, b, v))

    def __call__(self, x):
        hidden = ops.tanh(ops.dense(ops.reshape(x, (len(x), -1)), self.w, self.b))
        return ops.dense(hidden, self.v)

    def lead(self, x, y):
        """max_{i≠y} z_i - z_y of one example, and its gradient for the pixels."""
        hidden = np.tanh(self.w @ x.ravel() + self.b)
        z = self.v @ hidden
        rival = max((i for i in range(len(z)) if i != y), key=lambda i: z[i])
        row = self.v[rival] - self.v[y]
        return z[rival] - z[y], (self.w.T @ ((1 - hidden**2) * row)).reshape(x.shape)


NET = Net()


def images(n=12, dtype=np.float64, shape=(1, 5, 5), seed=0):
    """Noise; some pixels are exactly black or white."""
    u = np.random.default_rng(seed).uniform(-0.1, 1.1, (n, *shape))
    return np.clip(u, 0, 1).astype(dtype)


def lengths(delta, order=2):
    return np.linalg.norm(to_numpy(delta).reshape(len(delta), -1), order, axis=1)


def leads(model, x, y):
    z, rows = to_numpy(model(x)).copy(), np.arange(len(x))
    own = z[rows, y]
    z[rows, y] = -np.inf
    return z.max(1) - own


class Linear:
    """W x + b around mid-grey, with a known distance to each boundary."""

    def __init__(self, classes=5):
        rng = np.random.default_rng(1)
        self.w = rng.standard_normal((classes, 16)) * np.linspace(0.3, 3, classes)[:, None]
        self.x = rng.uniform(0.4, 0.6, (20, 16))
        self.b = -self.w @ np.full(16, 0.5) + 0.1 * rng.standard_normal(classes)

    def __call__(self, x):
        return ops.dense(x, self.w, self.b)

    def distances(self, x, dual):
        """To the boundary with each class, in the norm with that dual: (N, K), ∞ for its own."""
        z = self(x)
        y = z.argmax(1)
        gap = z[np.arange(len(x)), y][:, None] - z
        slopes = np.linalg.norm(self.w[None] - self.w[y][:, None], dual, axis=2)
        return np.where(slopes > 0, gap / np.where(slopes > 0, slopes, 1), np.inf), z


LINEAR = Linear()


# ---- against exact answers -----------------------------------------------------------------------


@pytest.mark.parametrize("norm, order, dual", [("l2", 2, 2), ("linf", np.inf, 1)])
def test_deepfool_is_exact_on_a_linear_model(norm, order, dual):
    to_each, _ = LINEAR.distances(LINEAR.x, dual)
    for overshoot in (0.02, 0.5):
        x_adv, found = deepfool(LINEAR, LINEAR.x, norm=norm, overshoot=overshoot, details=True)
        close(lengths(x_adv - LINEAR.x, order), (1 + overshoot) * to_each.min(1), rtol=1e-6)
        close(found.distance, lengths(x_adv - LINEAR.x, order), rtol=1e-12)
        assert found.success.all() and (found.passes == 1).all()


def test_deepfool_looks_at_as_many_classes_as_it_is_told():
    to_each, z = LINEAR.distances(LINEAR.x, 2)
    second = np.argsort(-z, axis=1)[:, 1]
    expected = to_each[np.arange(len(z)), second]
    x_adv = deepfool(LINEAR, LINEAR.x, candidates=2)
    close(lengths(x_adv - LINEAR.x), 1.02 * expected, rtol=1e-6)
    assert (expected > 1.01 * to_each.min(1)).any()  # the second largest is not always the nearest
    same(deepfool(LINEAR, LINEAR.x, candidates=5), deepfool(LINEAR, LINEAR.x, candidates=99))


@pytest.mark.parametrize("start", ["deepfool", "image"])
def test_carlini_wagner_finds_the_nearest_point_of_a_linear_model(start):
    exact = LINEAR.distances(LINEAR.x, 2)[0].min(1)
    _, found = carlini_wagner(LINEAR, LINEAR.x, steps=400, start=start, details=True)
    assert found.success.all()
    assert (found.distance >= exact * (1 - 1e-9)).all()
    assert np.median(found.distance / exact) < 1.01
    # From the image itself descent may head for another class than the nearest.
    assert (found.distance <= exact * (1.02 if start == "deepfool" else 3.0) + 1e-4).all()


def naive_carlini_wagner(x, y, *, steps, search_steps, c, rate, confidence, abort_early):
    """The attack of the paper on one image, as plainly as can be."""
    start = np.arctanh((2 * x - 1) * 0.999999)
    low, high, best, best_distance = 0.0, np.inf, x, np.inf
    for _ in range(search_steps):
        w, m, v, found = start.copy(), 0 * x, 0 * x, False
        smallest = before = np.inf
        for t in range(1, steps + 1):
            x_adv = (1 + np.tanh(w)) / 2
            lead, gradient = NET.lead(x_adv, y)
            distance = ((x_adv - x) ** 2).sum()
            smallest = min(smallest, distance + c * max(-lead, -confidence))
            if lead > confidence:
                found = True
                if distance < best_distance:
                    best, best_distance = x_adv, distance
            g = 2 * (x_adv - x) - (c * gradient if lead <= confidence else 0)
            g = g * (1 - np.tanh(w) ** 2) / 2
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            w = w - rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-8)
            if abort_early and t % (steps // 10) == 0:
                if smallest > 0.9999 * before:
                    break
                before = smallest
        low, high = (low, c) if found else (c, high)
        c = (low + high) / 2 if np.isfinite(high) else 10 * c
    return best


@pytest.mark.parametrize(
    "abort_early, confidence, steps", [(True, 0.0, 50), (False, 0.5, 50), (False, 0.0, 25)]
)
def test_carlini_wagner_from_the_image_is_the_papers(abort_early, confidence, steps):
    x = np.clip(images(6), 0.05, 0.95)
    y = predict(NET, x)
    options = {"steps": steps, "search_steps": 5, "confidence": confidence}
    options["abort_early"] = abort_early
    ours = carlini_wagner(NET, x, y, start="image", initial_c=0.01, learning_rate=0.02, **options)
    naive = [
        naive_carlini_wagner(*pair, c=0.01, rate=0.02, **options) for pair in zip(x, y, strict=True)
    ]
    assert not np.array_equal(ours, x)
    close(ours, naive, rtol=0, atol=1e-6)


# ---- what all of them promise --------------------------------------------------------------------


@every_attack
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from([np.float32, np.float64]))
def test_what_is_returned_is_what_is_said(attack, seed, dtype):
    rng = np.random.default_rng(seed)
    x, net = images(rng.integers(1, 7), dtype, seed=seed), Net(dtype=dtype)
    y = np.where(rng.random(len(x)) < 0.3, rng.integers(0, 5, len(x)), predict(net, x))
    x_before, wrong = x.copy(), predict(net, x) != y
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)
        x_adv, found = attack(net, x, y, details=True)
    same(x, x_before)
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype and found.distance.dtype == x.dtype
    assert (x_adv >= 0).all() and (x_adv <= 1).all()
    same(found.success, predict(net, x_adv) != y)
    same(x_adv[wrong | ~found.success], x[wrong | ~found.success])  # bit by bit
    same(found.distance == 0, wrong)
    same(found.passes == 0, wrong)
    same(np.isinf(found.distance), ~found.success)
    order = np.inf if "linf" in str(attack) else 2
    ok = found.success
    close(found.distance[ok], lengths(x_adv - x, order)[ok], rtol=1e-5)


@every_attack
def test_the_model_stays_as_it_was_and_results_repeat(attack):
    model = layers.Sequential(layers.Flatten(), layers.Dense(25, 8, rng=0), layers.ReLU(),
                              layers.Dense(8, 5, rng=1))  # fmt: skip
    before = [p.value.copy() for p in model.parameters()]
    x = images(5, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)
        first = attack(model, x)
        same(first, attack(model, x))
    for p, value in zip(model.parameters(), before, strict=True):
        same(p.value, value)


@every_attack
def test_the_number_of_threads_changes_nothing(attack):
    threads_seen = set()

    def model(x):
        threads_seen.add(threading.get_ident())
        return NET(x)

    model.by_example = True
    x, y = images(40), predict(NET, images(40))
    with parallel.limit(1):
        one, ones = attack(model, x, y, details=True)
    assert len(threads_seen) == 1
    with parallel.limit(2):
        two, twos = attack(model, x, y, details=True)
    assert len(threads_seen) > 1
    same(one, two)
    for a, b in zip(ones, twos, strict=True):
        same(a, b)


@every_attack
def test_an_example_does_not_depend_on_the_others(attack):
    x, y = images(9), predict(NET, images(9))
    together = attack(NET, x, y)
    alone = np.concatenate([attack(NET, x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    close(alone, together, rtol=0, atol=1e-6)


@every_attack
def test_examples_that_are_all_wrong_come_back(attack):
    x = images(4)
    x_adv, found = attack(NET, x, (predict(NET, x) + 1) % 5, details=True)
    same(x_adv, x)
    assert found.success.all() and not found.distance.any() and not found.passes.any()


@every_attack
def test_a_failure_is_told_and_comes_back_as_it_was(attack):
    flat = layers.Sequential(layers.Flatten(), layers.Dense(25, 5, rng=0))
    flat.parameters()[0].value = np.zeros((5, 25))  # the logits are the biases
    flat.parameters()[1].value = np.arange(5.0)
    x = images(3)
    with pytest.warns(AttackWarning, match="3 of 3 examples"):
        x_adv, found = attack(flat, x, details=True)
    same(x_adv, x)
    assert not found.success.any() and np.isinf(found.distance).all()
    with pytest.warns(AttackWarning, match="3 of 3 examples"):
        same(attack(flat, x), x)


@every_attack
def test_success_is_decided_by_a_pass_on_what_is_returned(attack, monkeypatch):
    """The model has a good day for the search, and tells the truth in the end."""
    lies, verify, x = [True], minimal.verified, images(3)
    y = predict(NET, x)

    def verified(*args, **keywords):
        lies.clear()
        warnings.simplefilter("ignore")  # only the result matters: this adds a frame to the stack
        return verify(*args, **keywords)

    monkeypatch.setattr(minimal, "verified", verified)

    def model(x):
        return NET(x) if lies else np.eye(5)[np.zeros(len(x), int) + y[: len(x)]]

    with warnings.catch_warnings():
        x_adv, found = attack(model, x, y, details=True)
    same(x_adv, x)
    assert not found.success.any()


@every_attack
def test_progress_shows_a_bar(attack, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, desc, disable, **_):
            self.done, self.seen = 0, (total, disable)
            bars.append(self)

        def update(self, n):
            self.done += n

        __enter__ = lambda self: self
        __exit__ = lambda self, *error: None

    monkeypatch.setattr("tqdm.tqdm", Bar)
    attack(NET, images(5), progress=True)
    attack(NET, images(5))
    assert [bar.seen for bar in bars] == [(5, None)]  # None: on terminals
    assert all(bar.done == 5 for bar in bars)


# ---- each argument -------------------------------------------------------------------------------


def test_carlini_wagner_is_never_farther_than_deepfool():
    x = images(30, seed=3)
    _, far = deepfool(NET, x, details=True)
    _, near = short_cw(NET, x, details=True)
    assert (near.distance <= far.distance * (1 + 1e-9)).all()
    assert (near.distance < 0.999 * far.distance).mean() > 0.3


def test_deepfool_stops_after_its_steps_and_when_it_is_done():
    x = images(30, seed=3)
    _, found = deepfool(NET, x, details=True)
    assert 1 <= found.passes.min() < found.passes.max() < 50
    first = int(found.passes.min())
    with pytest.warns(AttackWarning):
        _, fewer = deepfool(NET, x, steps=first, details=True)
    same(fewer.success, found.passes == first)
    same(fewer.distance[fewer.success], found.distance[fewer.success])


def test_labels_are_the_models_own_unless_given():
    x = images(6)
    same(deepfool(NET, x), deepfool(NET, x, predict(NET, x)))
    same(short_cw(NET, x), short_cw(NET, x, predict(NET, x)))


@pytest.mark.parametrize("start", ["deepfool", "image"])
def test_a_target_is_reached(start):
    x = images(8)
    y = predict(NET, x)
    attack = functools.partial(carlini_wagner, steps=80, search_steps=5, initial_c=0.1)
    x_adv, found = attack(NET, x, y, target=(y + 1) % 5, start=start, details=True)
    same(found.success, predict(NET, x_adv) == (y + 1) % 5)
    assert found.success.all()
    _, untargeted = attack(NET, x, y, details=True)
    assert (untargeted.distance <= found.distance * 1.02).all()
    already, there = attack(NET, x[y == y[0]], target=int((y[0] + 1) % 5), details=True)
    assert (predict(NET, already) == (y[0] + 1) % 5).all() and (there.distance > 0).all()


@pytest.mark.filterwarnings("ignore:the target of 3")
def test_a_target_that_is_the_answer_already_changes_nothing():
    x = images(3)
    same(short_cw(NET, x, target=predict(NET, x)), x)


def test_the_start_is_deepfools_for_the_target():
    """After a single step with a tiny c nothing else has been found."""
    x = images(8)
    y = predict(NET, x)
    one_step = functools.partial(carlini_wagner, steps=1, search_steps=1, initial_c=1e-9)
    close(one_step(NET, x, y), deepfool(NET, x, y), rtol=0, atol=1e-6)
    x_adv, found = one_step(NET, x, y, target=(y + 1) % 5, details=True)
    assert found.success.all()
    same(predict(NET, x_adv), (y + 1) % 5)
    _, alone = deepfool(NET, x, y, details=True)
    _, both = one_step(NET, x, y, details=True)
    same(both.passes, alone.passes + 1)


def test_a_confidence_that_is_out_of_reach_is_a_failure_even_for_a_misread_image():
    x = images(2)
    with pytest.warns(AttackWarning, match="2 of 2"):
        x_adv, found = short_cw(NET, x, (predict(NET, x) + 1) % 5, confidence=1e6, details=True)
    same(x_adv, x)
    assert not found.success.any()


@pytest.mark.parametrize("start", ["deepfool", "image"])
def test_confidence_is_a_lead(start):
    x = images(8)
    y = predict(NET, x)
    attack = functools.partial(short_cw, steps=60, search_steps=5, start=start, details=True)
    plain, sure = attack(NET, x, y), attack(NET, x, y, confidence=0.8)
    assert sure[1].success.all() and (leads(NET, sure[0], y) >= 0.8).all()
    assert (leads(NET, plain[0], y) < 0.4).all()
    assert (sure[1].distance > plain[1].distance).all()
    # What is misread already, but not surely enough, is not left as it is.
    again = attack(NET, plain[0], y, confidence=0.8)
    assert (again[1].distance > 0).all() and (leads(NET, again[0], y) >= 0.8).all()


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 0.05}, {"steps": 30}, {"search_steps": 2}, {"initial_c": 5.0},
     {"start": "image"}],
    ids=str,
)  # fmt: skip
def test_every_setting_matters(change):
    x = images(6)
    options = {**SHORT, "initial_c": 1.0}
    a = carlini_wagner(NET, x, **options)
    assert not np.allclose(a, carlini_wagner(NET, x, **{**options, **change}), rtol=0, atol=1e-9)


def test_more_values_of_c_never_lead_farther_away():
    x = images(10)
    distances = [
        carlini_wagner(NET, x, steps=50, search_steps=n, initial_c=1.0, details=True)[1].distance
        for n in (1, 2, 4)
    ]
    assert (distances[1] <= distances[0]).all() and (distances[2] <= distances[1]).all()


def test_aborting_early_saves_passes_for_each_example_on_its_own():
    x = images(10)
    options = {"steps": 200, "search_steps": 4, "start": "image", "initial_c": 1e-4}
    options["details"] = True
    with pytest.warns(AttackWarning):
        _, full = carlini_wagner(NET, x, abort_early=False, **options)
    with pytest.warns(AttackWarning):
        _, short = carlini_wagner(NET, x, **options)
    assert (full.passes == 800).all()
    assert (short.passes < 800).all() and len(set(short.passes.tolist())) > 1


@pytest.mark.parametrize("steps", [1, 7, 25])
def test_any_number_of_steps_works(steps):
    _, found = carlini_wagner(NET, images(3), steps=steps, search_steps=2, details=True)
    assert found.success.all()


@pytest.mark.parametrize(
    "attack, wrong, words",
    [
        (deepfool, {"norm": "l7"}, "norm must be one of"),
        (deepfool, {"steps": 0}, "steps must be an integer ≥ 1"),
        (deepfool, {"candidates": 1}, "candidates must be .*≥ 2.*got 1"),
        (deepfool, {"overshoot": -0.1}, "overshoot must be a number ≥ 0"),
        (carlini_wagner, {"steps": 2.5}, "steps must be an integer"),
        (carlini_wagner, {"search_steps": 0}, "search_steps must be an integer"),
        (carlini_wagner, {"confidence": float("nan")}, "confidence must be a number ≥ 0"),
        (carlini_wagner, {"learning_rate": 0}, "learning_rate must be a number > 0"),
        (carlini_wagner, {"initial_c": -1}, "initial_c must be a number > 0"),
        (carlini_wagner, {"start": "nowhere"}, "start must be one of.*deepfool.*image.*nowhere"),
        (carlini_wagner, {"target": 5}, "target must be from 0 to 4"),
    ],
)
def test_mistakes_are_answered(attack, wrong, words):
    with pytest.raises(ValueError, match=words):
        attack(NET, images(2), **wrong)


# ---- on a GPU ------------------------------------------------------------------------------------


@every_attack
def test_a_gpu_gives_the_same(attack, device):
    x = images(8, np.float64)
    y = predict(NET, x)
    expected, found = attack(NET, x, y, details=True)
    on_device, there = attack(Net(device), device.asarray(x), device.asarray(y), details=True)
    assert isinstance(on_device, device.ndarray)
    close(to_numpy(on_device), expected, rtol=0, atol=1e-6)
    close(to_numpy(there.distance), found.distance, rtol=1e-5)
    same(to_numpy(there.success), found.success)
    assert abs(to_numpy(there.passes) - found.passes).max() <= 1  # by rounding


def test_a_gpu_reaches_a_target(device):
    x = images(4)
    y = (predict(NET, x) + 1) % 5
    expected = short_cw(NET, x, target=y)
    close(to_numpy(short_cw(Net(device), device.asarray(x), target=y)), expected, atol=1e-6)


def test_a_gpu_is_asked_once_in_a_step_or_a_tenth_of_the_steps():
    x = strict_cupy.asarray(images(3))
    model = Net(strict_cupy)

    def syncs(attack, **options):
        with strict_cupy.count() as counted:
            _, found = attack(model, x, details=True, **options)
        return counted.syncs, int(to_numpy(found.passes).max())

    options = {"search_steps": 2, "initial_c": 10.0, "abort_early": False, "start": "image"}
    few, _ = syncs(carlini_wagner, steps=20, **options)
    many, _ = syncs(carlini_wagner, steps=40, **options)
    assert few == many
    more, _ = syncs(carlini_wagner, steps=40, **{**options, "search_steps": 3})
    assert more == many + 10  # ten looks for each c
    quick, one = syncs(deepfool, overshoot=0.5)
    slow, some = syncs(deepfool, overshoot=0.0001)
    assert some > one and slow - quick == some - one


def test_a_tie_is_left():
    """At x two classes have the same logit, so the linear step there is zero.

    Their logits, 1.0, are numbers of float32, so the step goes beyond what is rounding there.
    """
    x = np.full((1, 4), 0.5)
    w = np.array([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    _, found = deepfool(lambda x: ops.dense(x, w), x, [0], details=True)
    assert found.success.all() and found.distance[0] < 1e-5


def test_tensors_are_not_images():
    with pytest.raises(TypeError, match="x must be an array"):
        deepfool(NET, Tensor(images(1)))
