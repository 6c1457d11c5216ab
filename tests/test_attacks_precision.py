"""Attacks in any precision of images, network and logits; and arrays that are lent."""

import functools
import inspect
import itertools
import threading
import warnings

import numpy as np
import pytest
from test_attacks import EVERY, conv_net, images, run_any

from tinyadv import Tensor, attacks, evaluate, inputs, layers, losses, ops, to_numpy
from tinyadv.attacks import AttackWarning, blackbox
from tinyadv.attacks.shared import moved
from tinyadv.balls import L1, L2, Linf
from tinyadv.tensor import value_of

same = np.testing.assert_array_equal
quietly = pytest.mark.filterwarnings("ignore::tinyadv.attacks.AttackWarning")
of_the_package = pytest.mark.parametrize("attack", EVERY, ids=lambda f: f.__name__)

# The dtypes of images, of the weights, and the number type that the logits are multiplied with.
PRECISIONS = [
    (np.float16, np.float16, np.float64),
    (np.float16, np.float32, float),
    (np.float32, np.float32, np.float64),
    (np.float32, np.float16, float),
    (np.float64, np.float32, float),
]


def network(dtype, factor=float, xp=np):
    """A small convolutional network, and its logits times one."""
    model, one = conv_net(xp, dtype=dtype), factor(1)

    def with_factor(x):
        return model(x) * one

    with_factor.by_example = True
    return with_factor


def some(dtype, n=12):
    return images(n, (1, 8, 8), dtype=np.float64).astype(dtype)


SMALLEST = {  # with the order of the norm that each one measures
    "deepfool": (2, attacks.deepfool),
    "deepfool-linf": (np.inf, functools.partial(attacks.deepfool, norm="linf")),
    "carlini_wagner": (2, functools.partial(attacks.carlini_wagner, steps=30, search_steps=2)),
    "carlini_wagner-image": (
        2,
        functools.partial(
            attacks.carlini_wagner, steps=100, search_steps=2, start="image", initial_c=10.0
        ),
    ),
    "fab": (np.inf, functools.partial(attacks.fab, steps=10)),
    "fab-l2": (2, functools.partial(attacks.fab, steps=10, ball=L2(1.0), restarts=2)),
    "fab-l1": (1, functools.partial(attacks.fab, steps=20, ball=L1(3.0), targets=3)),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_perturbation_is_found_in_any_precision(name):
    """As small as in float64, up to the rounding of the pixels, and judged as it is returned."""
    order, attack = SMALLEST[name]
    exact, x16 = network(np.float64), some(np.float16, 6)
    labels = evaluate.predict(exact, x16)
    _, best = attack(exact, x16.astype(float), labels, details=True)
    for dtype, weights, factor in PRECISIONS:
        x, model = x16.astype(dtype), network(weights, factor)
        x_adv, found = attack(model, x, labels, details=True)
        assert x_adv.dtype == dtype and x_adv.shape == x.shape
        assert found.success.all()
        assert (evaluate.predict(model, x_adv) != labels).all()
        size = np.linalg.norm((x_adv.astype(float) - x).reshape(len(x), -1), order, axis=1)
        np.testing.assert_allclose(found.distance, size, rtol=1e-5)
        allowed = 1.1 if np.float16 in (dtype, weights) else 1.01
        assert np.median(size / best.distance) < allowed


@pytest.mark.parametrize(
    ("name", "inner", "outer"),
    [
        *[(name, np.float32, np.float64) for name in SMALLEST],
        *[(name, np.float16, np.float32) for name in ("deepfool", "deepfool-linf")],
    ],
)
def test_a_network_that_computes_in_fewer_digits_than_it_is_given(name, inner, outer):
    inside = conv_net(dtype=inner)

    def model(x):
        if isinstance(x, Tensor):
            return ops.astype(inside(ops.astype(x, inner)), outer)
        return value_of(inside(x.astype(inner))).astype(outer)

    model.by_example = True
    x = some(outer, 60)
    x_adv, found = SMALLEST[name][1](model, x, details=True)
    assert found.success.all()
    assert (evaluate.predict(model, x_adv) != evaluate.predict(model, x)).all()


@quietly
@of_the_package
def test_every_attack_returns_the_precision_that_it_was_given(attack):
    for dtype, weights, factor in PRECISIONS:
        x = some(dtype, 3)
        result = run_any(attack, network(weights, factor), x)
        x_adv = result[0] if isinstance(result, tuple) else result
        assert x_adv.dtype == dtype and x_adv.shape == x.shape and np.isfinite(x_adv).all()


@quietly
@of_the_package
def test_a_gpu_keeps_the_precision_as_well(attack, device):
    x = some(np.float16, 4)
    got = run_any(attack, conv_net(device, dtype=np.float32), device.asarray(x))
    expected = run_any(attack, conv_net(dtype=np.float32), x)
    for a, b in zip(_arrays(got), _arrays(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(to_numpy(a), b, atol=2e-3)


IN_A_BALL = {
    "fgsm": attacks.fgsm,
    "pgd": functools.partial(attacks.pgd, steps=5, restarts=2),
    "pgd-momentum": functools.partial(attacks.pgd, steps=5, momentum=1.0),
    "apgd": functools.partial(attacks.apgd, steps=8),
    "square": functools.partial(attacks.square, queries=30),
    "auto_attack": functools.partial(attacks.auto_attack, steps=4, queries=10, targets=2),
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("ball", [Linf(0.3), L2(0.7), L1(3.0, pixels=5)], ids=repr)
@pytest.mark.parametrize("name", IN_A_BALL)
def test_no_attack_leaves_the_ball_by_more_than_rounding(name, ball, dtype):
    if isinstance(ball, L1) and name in ("square", "auto_attack"):
        return  # they have no such ball
    x, model = some(dtype), network(np.float32)
    x_adv = IN_A_BALL[name](model, x, evaluate.predict(model, x), ball=ball)
    size = ball.norm(x_adv.astype(float) - x.astype(float))
    slack = 1e-7 if dtype == np.float16 else 64 * np.finfo(dtype).eps
    assert (size <= ball.epsilon + slack).all()
    assert size.max() > 0.9 * ball.epsilon or name == "auto_attack"
    found = evaluate.robustness(
        model, x, evaluate.predict(model, x), {"it": lambda *given: x_adv}, ball=ball
    )
    same(found.attacks["it"].survived, evaluate.predict(model, x_adv) == evaluate.predict(model, x))


def test_a_sum_in_float16_is_rounded_towards_the_image(xp):
    rng = np.random.default_rng(0)
    x = rng.random((50, 40)).astype(np.float16)
    for size in (1e-6, 1e-3, 0.3):
        delta = np.clip(size * rng.uniform(-1, 1, x.shape), -x.astype(float), 1.0 - x)
        delta = delta.astype(np.float16)
        sums = to_numpy(moved(xp.asarray(x), xp.asarray(delta)))
        assert sums.dtype == np.float16
        exact = x.astype(float) + delta
        gap = abs(sums.astype(float) - exact)
        assert (abs(sums.astype(float) - x) <= abs(delta.astype(float))).all()
        assert (gap < np.spacing(np.maximum(sums, x)).astype(float)).all()
    wide = x.astype(np.float32)
    same(moved(wide, wide / 3), wide + wide / 3)


def test_positions_are_told_apart_in_float16(xp):
    """In float16 the numbers around 28 are 0.016 apart, and around 30° as well."""
    x = np.random.default_rng(0).random((5, 2, 30, 30)).astype(np.float16)
    angle = np.linspace(-29.5, 29.7, 5)
    shift = np.random.default_rng(1).uniform(-2, 2, (5, 2))
    got = attacks.rotate_translate(xp.asarray(x), xp.asarray(angle), xp.asarray(shift))
    right = attacks.rotate_translate(x.astype(float), angle, shift)
    assert got.dtype == np.float16
    np.testing.assert_allclose(to_numpy(got), right, atol=5e-4)


@quietly
@pytest.mark.parametrize("name", ["spatial_grid", "spatial_random", "spatial_first_order"])
def test_the_transformation_that_is_returned_is_the_one_that_was_judged(name):
    x, how = some(np.float16), EVERY[getattr(attacks, name)]
    x_adv, t = getattr(attacks, name)(network(np.float32), x, details=True, **how)
    same(x_adv, attacks.rotate_translate(x, t[:, 0], t[:, 1:]))
    _, wide = getattr(attacks, name)(network(np.float32), x.astype(float), details=True, **how)
    if name != "spatial_first_order":
        np.testing.assert_allclose(t, wide, rtol=1e-6)


# --------------------------------------------------------------------------- what counts as within


@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.8), L1(3.0)], ids=repr)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_success_counts_within_the_ball_up_to_the_precision_of_the_images(dtype, ball):
    """A perturbation of length ε, rounded pixel by pixel, counts; a longer one does not."""
    x = np.random.default_rng(0).uniform(0.3, 0.6, (20, 5, 8)).astype(dtype)
    way = np.sign(np.random.default_rng(1).standard_normal(x.shape))
    way /= ball.norm(way[:1])

    def model(images):  # only x itself belongs to class 0
        changed = (images != x[: len(images)]).any((1, 2))
        return np.eye(2)[changed.astype(int)] * 9 - 3

    def survivors(length):
        x_adv = (x + length * way).astype(dtype)
        attack = {"it": lambda model, x, y: x_adv}
        return evaluate.robustness(model, x, np.zeros(20, int), attack, ball=ball).survived.sum()

    eps = float(np.finfo(dtype).eps)
    pixels = {Linf: 1, L2: 40**0.5, L1: 40}[type(ball)]  # each may be rounded by eps / 4 twice
    assert survivors(ball.epsilon) == 0
    assert survivors(ball.epsilon * (1 + 20 * eps) + pixels * eps) == 20


# ------------------------------------------------------------------------------- arrays on loan


class Scribbler(layers.Module):
    """Subtracts the mean in place, if it is given arrays."""

    by_example = True

    def __init__(self, model):
        self.model = model

    def __call__(self, x):
        value_of(x)[...] -= 0.5
        return self.model(x)


@quietly
@of_the_package
def test_a_model_may_write_into_what_it_is_given(attack, xp):
    plain = conv_net(xp, dtype=np.float32)

    def minus_half(x):
        value_of(x)[...] -= 0.5
        return x

    x = xp.asarray(some(np.float32, 4))
    before = to_numpy(x).copy()
    expected = run_any(attack, lambda x: plain(x - 0.5), x)
    for model in (
        Scribbler(plain),
        lambda x: plain(minus_half(x)),
        layers.Sequential(minus_half, plain),
    ):
        result = run_any(attack, model, x)
        same(to_numpy(x), before)
        for got, right in zip(_arrays(result), _arrays(expected), strict=True):
            np.testing.assert_allclose(to_numpy(got), to_numpy(right), rtol=1e-5, atol=1e-6)


@quietly
@pytest.mark.parametrize(
    "attack",
    [f for f in EVERY if "loss" in inspect.signature(f).parameters],
    ids=lambda f: f.__name__,
)
def test_a_loss_may_write_into_the_labels_that_it_is_given(attack):
    x, y = some(np.float32, 4), np.array([1, 2, 3, 4])

    def scribble(logits, labels, reduction):
        value = losses.cross_entropy(logits, labels.copy(), reduction=reduction)
        labels[...] = 0
        return value

    for name in ("y", "target"):
        if name not in inspect.signature(attack).parameters:
            continue
        labels = y.copy()
        first = (conv_net(dtype=np.float32), x)
        given = {name: labels}
        if attack is attacks.fake_image:
            given, first = {"x": x}, (first[0], labels)
        attack(*first, **(EVERY[attack] | {"loss": scribble} | given))
        same(labels, y)


def _arrays(result):
    if isinstance(result, tuple):
        return [array for part in result for array in _arrays(part)]
    return [result]


def test_evaluation_lends_copies(xp):
    plain = conv_net(xp, dtype=np.float32)
    x = xp.asarray(some(np.float32))
    y = evaluate.predict(lambda x: plain(x - 0.5), x)
    before = to_numpy(x).copy()
    model = Scribbler(plain)
    assert evaluate.accuracy(model, x, y) == 1
    same(to_numpy(evaluate.predict(model, x)), to_numpy(y))
    assert evaluate.robustness(model, x, y, {"none": lambda model, x, y: x}).worst_case == 1
    curve = evaluate.robustness_curve(model, x, y, lambda e: lambda model, x, y: x, [0, 0.1])
    same(curve[1], [1, 1])
    same(to_numpy(x), before)


def test_layers_of_the_library_need_no_copies():
    model = conv_net()
    assert type(inputs.lent(model)) is type(model)
    foreign = layers.Sequential(np.tanh, layers.Flatten())
    for other in (lambda x: x, Scribbler(model), layers.Sequential(lambda x: x), foreign):
        assert not isinstance(inputs.lent(other), layers.Module)


def test_a_loan_is_stored_as_the_original_is():
    seen = []
    x = np.moveaxis(np.zeros((3, 4, 5)), -1, 0)
    inputs.lent(lambda x: seen.append(x))(x)
    assert seen[0] is not x and seen[0].strides == x.strides


@pytest.mark.parametrize("what", ["x", "y", "target"])
def test_transfer_lends_each_source_its_own_arrays(what):
    model, x = conv_net(), some(np.float64)
    y = evaluate.predict(model, x)
    target = (y + 1) % 5

    def scribble(source, x, y, target, **keywords):
        result = attacks.pgd(source, x, y, target=target, steps=3)
        {"x": x, "y": y, "target": target}[what][:] = 0
        return result

    given = {"x": x, "y": y, "target": target}[what].copy()
    how = {"sources": [conv_net(), conv_net()], "target": target, "details": True}
    got, found = attacks.transfer(model, x, y, attack=scribble, **how)
    expected, right = attacks.transfer(model, x, y, attack=attacks.pgd, steps=3, **how)
    same(got, expected)
    same(found.success, right.success)
    same({"x": x, "y": y, "target": target}[what], given)


RETURNED = {
    "another shape": (lambda x: x[:, :, 1:], ValueError, "shape"),
    "fewer examples": (lambda x: x[:1], ValueError, "shape"),
    "another dtype": (lambda x: x.astype(np.float32), ValueError, "float64.*float32"),
    "NaN": (lambda x: x * np.nan, ValueError, "NaN"),
    "infinity": (lambda x: x + np.inf, ValueError, "0 to 1"),
    "bright": (lambda x: x + 0.1, ValueError, "0 to 1"),
    "a list": (lambda x: x.tolist(), TypeError, "list"),
    "a tensor": (Tensor, TypeError, "Tensor"),
    "nothing": (lambda x: None, TypeError, "NoneType"),
}


@pytest.mark.parametrize("name", RETURNED)
def test_what_a_users_attack_returns_is_checked_everywhere(name):
    change, error, words = RETURNED[name]
    model, x = conv_net(), some(np.float64)
    y = evaluate.predict(model, x)
    attack = lambda model, x, y: change(x)
    for call in (
        lambda: evaluate.accuracy(model, x, y, attack),
        lambda: evaluate.robustness(model, x, y, {"it": attack}),
        lambda: evaluate.robustness_curve(model, x, y, lambda epsilon: attack, [0.1]),
        lambda: attacks.transfer(model, x, y, sources=model, attack=attack),
    ):
        with pytest.raises(error, match=rf"attack.*{words}"):
            call()


# -------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("attack", "names"),
    [
        (attacks.fgsm, ["step_size"]),
        (attacks.pgd, ["step_size", "momentum"]),
        (attacks.apgd, ["momentum", "rho"]),
        (attacks.deepfool, ["overshoot"]),
        (attacks.carlini_wagner, ["confidence", "learning_rate", "initial_c"]),
        (attacks.fab, ["alpha_max", "eta", "beta"]),
        (attacks.square, ["p"]),
        (attacks.spatial_grid, ["max_angle", "max_shift"]),
        (attacks.spatial_first_order, ["step_size"]),
        (attacks.untargeted, ["step_size"]),
        (functools.partial(attacks.targeted, target=1), ["weight", "step_size"]),
    ],
)
def test_settings_are_numbers(attack, names):
    model, x = conv_net(), some(np.float64, 2)
    for name, wrong in itertools.product(names, ["0.5", None, True, np.nan, np.inf, -1.0, [0.5]]):
        if name == "step_size" and wrong is None:
            continue  # the default of some
        with pytest.raises(ValueError, match=rf"{name} must be .*got "):
            attack(model, x, **{name: wrong})


# ---------------------------------------------------------------------------------- byte order


@quietly
@of_the_package
def test_images_in_another_byte_order_are_the_same_images(attack):
    for dtype in (np.float16, np.float32):
        x, model = some(dtype, 4), conv_net(dtype=np.float32)
        other = x.astype(x.dtype.newbyteorder())
        for got, right in zip(
            _arrays(run_any(attack, model, other)), _arrays(run_any(attack, model, x)), strict=True
        ):
            assert np.asarray(got).dtype.isnative
            same(got, right)


def test_evaluation_takes_any_byte_order():
    model, x = conv_net(dtype=np.float32), some(np.float32)
    y = evaluate.predict(model, x)
    other, labels = x.astype(x.dtype.newbyteorder()), y.astype(y.dtype.newbyteorder())
    attack = functools.partial(attacks.pgd, ball=Linf(0.1), steps=2)
    same(evaluate.predict(model, other), y)
    assert evaluate.accuracy(model, other, labels) == 1
    assert evaluate.accuracy(model, other, labels, attack) == evaluate.accuracy(model, x, y, attack)
    for ball in (None, Linf(0.1)):
        same(evaluate.robustness(model, other, labels, {"pgd": attack}, ball=ball).survived,
             evaluate.robustness(model, x, y, {"pgd": attack}, ball=ball).survived)  # fmt: skip
    same(attacks.pgd(model, other, labels, target=(labels + 1) % 5, steps=2),
         attacks.pgd(model, x, y, target=(y + 1) % 5, steps=2))  # fmt: skip


# ------------------------------------------------------------------------------ infinite slopes


def steep(x):
    """Its slope is infinite where a pixel is 0, and its logits are finite everywhere."""
    root = ops.sqrt(ops.reshape(x, (len(x), -1)))
    total = ops.sum(root, axis=1, keepdims=True)
    return total * np.array([1.0, -1.0, 0.5, 0.2, 0.1])


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::tinyadv.attacks.AttackWarning")
@pytest.mark.parametrize(
    "attack",
    [
        attacks.untargeted,
        functools.partial(attacks.untargeted, stop_when_wrong=True),
        functools.partial(attacks.targeted, target=1, keep="last"),
        lambda model, x, y: attacks.fake_image(model, 1, x),
        lambda model, x, y: attacks.fake_image(model, 1, x, clip=True),
        lambda model, x, y: attacks.fake_image(model, 1, x, clip=True, details=True),
        functools.partial(attacks.pgd, ball=L2(1.0), random_start=False),
        functools.partial(attacks.fgsm, ball=L2(1.0)),
    ],
)
def test_what_is_not_finite_is_not_returned(attack):
    def undefined(x):  # 0 · ∞ in the gradient, where the pixels are 0
        return steep(x * 0.0) + steep(x)

    with pytest.raises(ValueError, match=r"NaN.*gradient"):
        attack(undefined, np.zeros((3, 1, 2, 2)), np.zeros(3, int))


# --------------------------------------------------------------------------------- and warnings


def test_no_filter_of_warnings_is_changed():
    """Several threads at once: each filter is still there afterwards, and warnings still come."""
    model, x = conv_net(), some(np.float64, 4)
    how = {"ball": Linf(1e-6), "steps": 2, "queries": 4, "targets": 1}
    before = list(warnings.filters)
    started = threading.Barrier(4)

    def work():
        started.wait()
        for _ in range(3):
            attacks.auto_attack(model, x, **how)

    team = [threading.Thread(target=work) for _ in range(4)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    assert warnings.filters == before
    with pytest.warns(AttackWarning, match="no perturbation"):
        attacks.deepfool(model, x, steps=1, overshoot=0.0)


def test_quiet_is_for_this_thread_alone():
    heard = []

    def elsewhere():
        with pytest.warns(AttackWarning, match="loud") as caught:
            inputs.warn("loud")
        heard.extend(caught)

    with inputs.quiet():
        inputs.warn("silent")
        with inputs.quiet():
            inputs.warn("silent")
        inputs.warn("silent")
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert len(heard) == 1
    with pytest.warns(AttackWarning, match="loud"):
        inputs.warn("loud")


@pytest.mark.parametrize("call", [
    lambda x: attacks.fgsm(conv_net(), x, ball=Linf(8.0)),
    lambda x: attacks.fgsm(conv_net(), x, ball=Linf(0.1), step_size=0.2),
    lambda x: attacks.pgd(conv_net(), x, restarts=2, random_start=False),
    lambda x: attacks.apgd(conv_net(), x, steps=2, restarts=2, random_start=False),
    lambda x: attacks.fgsm(lambda x: ops.softmax(conv_net()(x), axis=1), x),
    lambda x: attacks.square(lambda x: ops.softmax(conv_net()(x), axis=1), x, queries=2),
    lambda x: attacks.targeted(conv_net(), x, np.zeros(4, int), target=0, steps=1),
    lambda x: evaluate.robustness(
        conv_net(), x, evaluate.predict(conv_net(), x),
        {"FGSM": functools.partial(attacks.fgsm, ball=Linf(2.0))},
    ),
    lambda x: attacks.transfer(
        conv_net(), x, sources=conv_net(), attack=attacks.fgsm, ball=Linf(2.0)
    ),
    lambda x: attacks.fab(conv_net(), x, steps=1, eta=1.0),
])  # fmt: skip
def test_a_warning_points_to_the_line_of_the_user(call):
    with pytest.warns(AttackWarning) as caught:
        call(some(np.float64, 4))
    assert {warning.filename for warning in caught} == {__file__}


# ------------------------------------------------------------------------------ Square's schedule


def test_the_schedule_of_square_inside_auto_attack_is_not_rescaled(monkeypatch):
    """The sides of the squares on 28 × 28 pixels, for 600 queries, by their definition."""
    sides = []
    search = blackbox._search
    monkeypatch.setattr(
        blackbox, "_search", lambda *a: (sides.extend(a[3].tolist()), search(*a))[1]
    )

    def stubborn(x):
        return ops.reshape(0 * ops.sum(x, axis=(1, 2, 3)), (-1, 1)) + np.array([3.0, 0, 0, 0])

    def expected(queries, scale):
        halvings = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
        behind = [sum(int(i * scale) > at for at in halvings) for i in range(-1, queries - 1)]
        return [max(1, round((0.8 / 2**n * 28 * 28) ** 0.5)) for n in behind]

    x = np.random.default_rng(0).random((1, 1, 28, 28))
    attacks.square(stubborn, x, queries=600)
    assert sides == expected(600, 10_000 / 600)
    sides.clear()
    attacks.square(stubborn, x, queries=600, rescale=False)
    assert sides == expected(600, 1) and sides != expected(600, 10_000 / 600)
    sides.clear()
    attacks.auto_attack(stubborn, x, np.zeros(1, int), steps=1, targets=1, queries=300)
    assert sides == expected(300, 1)
