"""Optimisers against their formulas written out, and schedules."""

import re

import numpy as np
import pytest
import strict_cupy
from hypothesis import assume, given
from hypothesis import strategies as st

from tinyadv import Tensor, optim, parallel, to_numpy
from tinyadv.optim import (
    SGD,
    Adam,
    Optimizer,
    RMSprop,
    WeightAverage,
    constant,
    cosine,
    piecewise_linear,
)

SHAPES = [(3, 4), (5,), (), (2, 3, 2, 2), (0, 3)]
STEPS = 6


def numbers(seed, dtype=np.float64):
    """An array for each of SHAPES."""
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def parameters(xp=np, dtype=np.float64):
    return [Tensor(xp.asarray(array)) for array in numbers(100, dtype)]


def take_steps(optimizer, seeds, xp=np):
    for seed in seeds:
        optimizer.step([xp.asarray(g) for g in numbers(seed, optimizer.params[0].dtype)])
    return [to_numpy(p) for p in optimizer.params]


def assert_same_bits(a, b):
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


# ---- the formulas, one number at a time: gradients g₁, g₂ … of a weight w -----------------------


def naive_sgd(w, gradients, lr=0.01, momentum=0.0, nesterov=False, weight_decay=0.0):
    v = 0.0
    for g in gradients:
        g = g + weight_decay * w
        v = momentum * v + g
        w = w - lr * (g + momentum * v if nesterov else v)
    return w


def naive_rmsprop(w, gradients, lr=0.001, rho=0.9, epsilon=1e-7, weight_decay=0.0):
    s = 0.0
    for g in gradients:
        g = g + weight_decay * w
        s = rho * s + (1 - rho) * g**2
        w = w - lr * g / (s**0.5 + epsilon)
    return w


def naive_adam(w, gradients, lr=0.001, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0):
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        g = g + weight_decay * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        w = w - lr * m_hat / (v_hat**0.5 + epsilon)
    return w


CASES = {
    "SGD": (SGD, naive_sgd, {}),
    "SGD lr": (SGD, naive_sgd, {"lr": 0.3}),
    "SGD decay": (SGD, naive_sgd, {"weight_decay": 0.2}),
    "SGD momentum": (SGD, naive_sgd, {"momentum": 0.8}),
    "SGD nesterov": (SGD, naive_sgd, {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "SGD all": (SGD, naive_sgd, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.2}),
    "RMSprop": (RMSprop, naive_rmsprop, {}),
    "RMSprop lr": (RMSprop, naive_rmsprop, {"lr": 0.01}),
    "RMSprop rho": (RMSprop, naive_rmsprop, {"rho": 0.5}),
    "RMSprop epsilon": (RMSprop, naive_rmsprop, {"epsilon": 0.1}),
    "RMSprop decay": (RMSprop, naive_rmsprop, {"weight_decay": 0.2}),
    "Adam": (Adam, naive_adam, {}),
    "Adam lr": (Adam, naive_adam, {"lr": 0.01}),
    "Adam beta1": (Adam, naive_adam, {"beta1": 0.5}),
    "Adam beta2": (Adam, naive_adam, {"beta2": 0.9}),
    "Adam epsilon": (Adam, naive_adam, {"epsilon": 0.1}),
    "Adam decay": (Adam, naive_adam, {"weight_decay": 0.2}),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_the_formula(case, xp):
    kind, naive, options = case
    params = parameters(xp)
    before = [to_numpy(p).copy() for p in params]
    got = take_steps(kind(params, **options), range(STEPS), xp)
    for i, w in enumerate(before):
        by_hand = naive(w, [numbers(seed)[i] for seed in range(STEPS)], **options)
        np.testing.assert_allclose(got[i], by_hand, rtol=1e-12, atol=1e-12)
        assert got[i].shape == w.shape


def test_the_options_of_the_cases_matter():
    for kind in (SGD, RMSprop, Adam):
        results = [
            take_steps(kind(parameters(), **options), range(STEPS))[0].tobytes()
            for other, _, options in CASES.values()
            if other is kind
        ]
        assert len(set(results)) == len(results)


def test_the_learning_rate_may_change_on_the_way():
    optimizer = SGD(parameters(), lr=0.5)
    (w, *_), g = numbers(100), [numbers(seed)[0] for seed in range(2)]
    take_steps(optimizer, [0])
    optimizer.lr = 0.25
    got = take_steps(optimizer, [1])[0]
    np.testing.assert_allclose(got, w - 0.5 * g[0] - 0.25 * g[1], rtol=1e-12)


# ---- how a step is taken ------------------------------------------------------------------------


def test_pieces_change_no_bit(case, monkeypatch):
    kind, _, options = case
    whole = take_steps(kind(parameters(dtype=np.float32), **options), range(STEPS))
    monkeypatch.setattr(optim, "PIECE", 5)
    pieces = take_steps(kind(parameters(dtype=np.float32), **options), range(STEPS))
    assert_same_bits(whole, pieces)
    monkeypatch.setattr(optim, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(parallel, "CORES", 3)
    shares = []
    shared = lambda work, items: shares.append(len(items)) or parallel.in_threads(work, items)
    monkeypatch.setattr(optim, "in_threads", shared)
    in_threads = take_steps(kind(parameters(dtype=np.float32), **options), range(STEPS))
    assert_same_bits(whole, in_threads)
    assert shares == [3] * STEPS


def test_a_step_changes_the_parameters_in_place_and_nothing_else(case):
    kind, _, options = case
    params = parameters()
    arrays, gradients = [p.value for p in params], numbers(1)
    kind(params, **options).step(gradients)
    assert all(p.value is array for p, array in zip(params, arrays, strict=True))
    assert not np.array_equal(arrays[0], numbers(100)[0])
    assert_same_bits(gradients, numbers(1))


MEMORY_ORDERS = {
    "Fortran": lambda a: np.array(a, order="F"),
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a.copy(),
    "backwards": lambda a: np.flip(np.flip(a).copy()),
}


@pytest.mark.parametrize("order", MEMORY_ORDERS)
def test_any_memory_order(case, order):
    kind, _, options = case
    relay = MEMORY_ORDERS[order]
    expected = take_steps(kind(parameters(), **options), range(STEPS))
    params = [Tensor(relay(array)) for array in numbers(100)]
    assert not all(p.value.flags.c_contiguous for p in params)
    optimizer = kind(params, **options)
    for seed in range(STEPS):
        optimizer.step([relay(g) for g in numbers(seed)])
    assert_same_bits(expected, [p.value for p in params])


def test_float32_stays_float32_whatever_the_number(case):
    kind, _, options = case
    lr = options.get("lr", 0.01)
    expected = take_steps(kind(parameters(dtype=np.float32), **options | {"lr": lr}), range(STEPS))
    params = parameters(dtype=np.float32)
    got = take_steps(kind(params, **options | {"lr": np.float64(lr)}), range(STEPS))
    assert_same_bits(expected, got)


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1.0, 1000.0])  # of the gradients
def test_half_precision_is_computed_in_single_precision(case, xp, scale):
    """Squares of 1e-3 and an ε of 1e-8 are 0 in float16, and squares of 1,000 are infinite."""
    kind, naive, options = case
    params = parameters(xp, np.float16)
    expected = [to_numpy(p).astype(float) for p in params]
    optimizer, kept = kind(params, **options), [p.value for p in params]
    for seed in range(STEPS):
        gradients = [xp.asarray(np.asarray(scale * g, np.float16)) for g in numbers(seed)]
        optimizer.step(gradients)
    for i, (p, array) in enumerate(zip(params, kept, strict=True)):
        seen = [np.asarray(scale * numbers(seed)[i], np.float16) for seed in range(STEPS)]
        by_hand = naive(expected[i], [g.astype(float) for g in seen], **options)
        np.testing.assert_allclose(to_numpy(p), by_hand, rtol=0, atol=1e-3 * STEPS * max(1, scale))
        assert p.value is array and p.dtype == np.float16 and np.isfinite(to_numpy(p)).all()
    assert all(slot.dtype == np.float32 for slots in optimizer.slots for slot in slots)


def test_a_step_does_not_wait_for_the_device(case):
    kind, _, options = case
    optimizer = kind(parameters(strict_cupy), **options)
    gradients = [strict_cupy.asarray(g) for g in numbers(1)]
    with strict_cupy.count() as c:
        optimizer.step(gradients)
    assert c.launches > 0 and c.syncs == c.transfers == 0


def test_an_optimizer_of_ones_own():
    class SignSGD(Optimizer):
        slot_names = ("seen",)

        def __init__(self, params, lr=0.1):
            super().__init__(params, lr, weight_decay=0.0)

        def _update(self, xp, w, dw, seen):
            seen += 1
            w -= self.lr * xp.sign(dw)

    optimizer = SignSGD(parameters())
    got = take_steps(optimizer, [0, 1])[0]
    by_hand = numbers(100)[0] - 0.1 * np.sign(numbers(0)[0]) - 0.1 * np.sign(numbers(1)[0])
    np.testing.assert_allclose(got, by_hand, rtol=1e-12)
    assert (optimizer.state_dict()["slots"]["0.seen"] == 2).all()
    with pytest.raises(NotImplementedError):
        Optimizer(parameters(), 0.1, 0.0).step(numbers(1))


# ---- states -------------------------------------------------------------------------------------


def test_a_state_continues_bit_by_bit(case, xp):
    kind, _, options = case
    optimizer = kind(parameters(xp, np.float32), **options)
    take_steps(optimizer, [0, 1], xp)
    optimizer.lr *= 0.5
    state = optimizer.state_dict()
    weights = [to_numpy(p).copy() for p in optimizer.params]
    expected = take_steps(optimizer, [2, 3], xp)  # after the state was taken: it holds copies
    assert all(type(slot) is np.ndarray for slot in state["slots"].values())

    resumed = kind([Tensor(xp.asarray(w)) for w in weights], **options)
    resumed.load_state_dict(state)
    assert (resumed.lr, resumed.steps) == (optimizer.lr, 2)
    assert_same_bits(expected, take_steps(resumed, [2, 3], xp))


def test_another_learning_rate_is_kept(case):
    kind, _, options = case
    optimizer = kind(parameters(), **options)
    optimizer.lr *= 0.5
    other = kind(parameters(), **options | {"lr": 0.7})
    other.load_state_dict(optimizer.state_dict())
    assert other.lr == 0.7
    again = kind(parameters(), **options | {"lr": 0.7})
    again.load_state_dict(other.state_dict() | {"lr": 0.6})  # it ran on, down to 0.6
    assert again.lr == 0.6


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SGD, {"momentum": 0.6}),
        (SGD, {"momentum": 0.5, "nesterov": True}),
        (SGD, {"momentum": 0.5, "weight_decay": 0.1}),
        (RMSprop, {"rho": 0.6}),
        (RMSprop, {"epsilon": 0.6}),
        (Adam, {"beta1": 0.6}),
        (Adam, {"beta2": 0.6}),
        (Adam, {"epsilon": 0.6}),
    ],
)
def test_a_state_with_other_options_changes_nothing(kind, options):
    optimizer = kind(parameters(), **{"momentum": 0.5} if kind is SGD else {})
    other = kind(parameters(), **options)
    take_steps(other, [0])
    name, value = list(options.items())[-1]
    with pytest.raises(ValueError, match=f"'{name}': {value}.*this one has .*'{name}': "):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.steps == 0
    assert not any(slot.any() for slots in optimizer.slots for slot in slots)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Adam(parameters()), "kind = Adam, .*kind = SGD"),
        (SGD(parameters()), "'momentum': 0.0.*'momentum': 0.5"),
        (SGD(parameters()[:2], momentum=0.5), r"slots lacks .*'2.velocity'"),
        (SGD([*parameters(), Tensor(np.ones(1))], momentum=0.5), r"unknown .*'5.velocity'"),
        (
            SGD(parameters()[::-1], momentum=0.5),
            r"0.velocity must .*\(3, 4\).*\(0, 3\)",
        ),
    ],
    ids=["kind", "options", "fewer", "more", "other shapes"],
)
def test_a_state_of_something_else_changes_nothing(other, message):
    optimizer = SGD(parameters(), lr=0.1, momentum=0.5)
    take_steps(optimizer, [0])
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(other.state_dict())
    after = optimizer.state_dict()
    assert_same_bits(before.pop("slots").values(), after.pop("slots").values())
    options = {"momentum": 0.5, "nesterov": False, "weight_decay": 0.0}
    own = {"kind": "SGD", "options": options, "initial_lr": 0.1, "lr": 0.1, "steps": 1}
    assert before == after == own


def test_a_state_is_checked_without_being_loaded():
    optimizer = Adam(parameters())
    optimizer.load_state_dict(Adam(parameters(), lr=7).state_dict())
    with pytest.raises(ValueError, match=r"kind = SGD, .*kind = Adam"):
        optimizer.load_state_dict(SGD(parameters()).state_dict())
    assert optimizer.steps == 0


def wrong_copies(state):
    """States with one field missing, of another type, or out of range; and which field it is."""
    for name in state:
        yield name, {other: value for other, value in state.items() if other != name}
        for value in ("x" if name != "kind" else 1, -1, np.nan, None, [1]):
            yield name, {**state, name: value}
    arrays = next(name for name in state if name in ("slots", "means"))
    for name, array in state[arrays].items():
        for value in (array[None], array.astype(complex), array + np.nan, None, "x", array > 0):
            if array.size:
                yield f"{arrays}.{name}", {**state, arrays: {**state[arrays], name: value}}


@pytest.mark.parametrize("make", [Adam, RMSprop, WeightAverage])
def test_each_field_of_a_state_is_checked(make):
    owner = make(parameters())
    before = owner.state_dict()
    for name, state in wrong_copies(before):
        with pytest.raises(ValueError, match=re.escape(name)):
            owner.load_state_dict(state)
    with pytest.raises(ValueError, match="must be a dictionary"):
        owner.load_state_dict(None)
    assert repr(owner.state_dict()) == repr(before)


# ---- an average of the weights -------------------------------------------------------------------


def averaged(decay, seeds, xp=np, dtype=np.float64):
    """The average, and the weights after each step."""
    params = parameters(xp, dtype)
    average, weights = WeightAverage(params, decay), []
    for seed in seeds:
        for p, w in zip(params, numbers(seed, dtype), strict=True):
            p.value = xp.asarray(w)
        average.update()
        weights.append(numbers(seed, dtype))
    return average, weights


@pytest.mark.parametrize("decay", [0, 0.3, 0.9, 1])
def test_the_average_is_its_formula(xp, decay):
    average, weights = averaged(decay, range(STEPS), xp)
    for i, mean in enumerate(average.means):
        expected = 0.0
        for t, now in enumerate(weights):
            d = min(decay, t / (t + 1))
            expected = d * expected + (1 - d) * now[i]
        np.testing.assert_allclose(to_numpy(mean), expected, rtol=1e-12, atol=1e-12)
        assert mean.shape == SHAPES[i]
    if decay == 1:
        np.testing.assert_allclose(
            to_numpy(average.means[0]), np.mean([now[0] for now in weights], axis=0), rtol=1e-12
        )


def test_an_average_in_half_precision_does_not_stand_still(xp):
    """In float16 a thousandth of the way to the weights is rounded to nothing."""
    p = Tensor(xp.asarray(np.full(3, 1.0, np.float16)))
    average, expected = WeightAverage([p], 0.999), 0.0
    for t in range(2000):
        p.value = xp.asarray(np.full(3, 1.0 if t < 1000 else 1.5, np.float16))
        average.update()
        d = min(0.999, t / (t + 1))
        expected = d * expected + (1 - d) * (1.0 if t < 1000 else 1.5)
    assert 1.3 < expected < 1.32
    np.testing.assert_allclose(to_numpy(average.means[0]), expected, rtol=1e-4)
    average.swap()
    assert p.dtype == np.float16 and abs(to_numpy(p) - expected).max() < 1e-3
    average.swap()
    np.testing.assert_array_equal(to_numpy(p), np.float16(1.5))


def test_swapping_twice_changes_nothing(xp):
    average, weights = averaged(0.5, [0, 1], xp)
    means = [to_numpy(mean).copy() for mean in average.means]
    average.swap()
    assert_same_bits([to_numpy(p) for p in average.params], means)
    average.swap()
    assert_same_bits([to_numpy(p) for p in average.params], weights[-1])
    assert_same_bits([to_numpy(mean) for mean in average.means], means)


def test_an_average_continues_bit_by_bit(xp):
    average, _ = averaged(0.9, [0, 1], xp, np.float32)
    resumed = WeightAverage(average.params, 0.9)
    resumed.load_state_dict(average.state_dict())
    for each in (average, resumed):
        each.update()
    assert_same_bits(*([to_numpy(mean) for mean in each.means] for each in (average, resumed)))
    assert all(mean.dtype == np.float32 for mean in resumed.means) and resumed.steps == 3
    assert WeightAverage(parameters()).decay == 0.999


def test_an_average_of_something_else_changes_nothing():
    average, _ = averaged(0.9, [0, 1])
    before = average.state_dict()
    for other, message in [
        (WeightAverage(parameters(), 0.8), "decay = 0.8.*0.9"),
        (WeightAverage(parameters()[:2], 0.9), r"means lacks .*'2', '3', '4'"),
    ]:
        with pytest.raises(ValueError, match=message):
            average.load_state_dict(other.state_dict())
    assert average.steps == 2
    assert_same_bits(before["means"].values(), average.state_dict()["means"].values())


def test_an_update_of_the_average_does_not_wait_for_the_device():
    average = WeightAverage(parameters(strict_cupy), 0.9)
    with strict_cupy.count() as c:
        average.update()
    assert c.launches > 0 and c.syncs == c.transfers == 0


@pytest.mark.parametrize("decay", [-0.1, 1.1, np.nan, np.inf, True, "a", None])
def test_a_decay_is_a_share(decay):
    with pytest.raises(ValueError, match=f"from 0 to 1.* got {decay!r}"):
        WeightAverage(parameters(), decay)


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [[], [np.ones(2)], [Tensor(np.ones(2)), 3]])
def test_an_optimizer_takes_tensors(params):
    with pytest.raises(TypeError, match=r"list of Tensors, such as model.parameters\(\)"):
        WeightAverage(params)
    with pytest.raises(TypeError, match=r"list of Tensors, such as model.parameters\(\)"):
        Adam(params)


@pytest.mark.parametrize("kind", [SGD, RMSprop, Adam])
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", [-1, np.nan, np.inf, "a", None, 1j, [0.1]])
def test_rates_are_finite_and_not_negative(kind, name, value):
    with pytest.raises(ValueError, match=re.escape(name) + ".*≥ 0, got " + re.escape(f"{value!r}")):
        kind(parameters(), **{name: value})


@pytest.mark.parametrize("lr", [-1, np.nan, np.inf, "a", None])
def test_a_rate_that_is_set_later_is_checked_as_well(lr):
    optimizer = SGD(parameters())
    optimizer.lr = lr
    with pytest.raises(ValueError, match=f"lr must be a number ≥ 0, got {lr!r}"):
        take_steps(optimizer, [0])
    assert optimizer.steps == 0
    assert_same_bits([p.value for p in optimizer.params], numbers(100))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "momentum must be ≥ 0 and < 1, got 1.0"),
        ({"momentum": -0.1}, "momentum must be ≥ 0 and < 1"),
        ({"nesterov": True}, "needs a momentum above 0"),
    ],
)
def test_momentum_errors(options, message):
    with pytest.raises(ValueError, match=message):
        SGD(parameters(), **options)


@pytest.mark.parametrize(("kind", "name"), [(RMSprop, "rho"), (Adam, "beta1"), (Adam, "beta2")])
def test_ranges_of_running_means(kind, name):
    kind(parameters(), **{name: 0.0})
    for value in (-0.1, 1.0, np.nan, np.inf, "a", None):
        with pytest.raises(ValueError, match=f"{name} must be ≥ 0 and < 1, got {value!r}"):
            kind(parameters(), **{name: value})
    for value in (0, -1e-8, np.nan, np.inf, "a", None):
        with pytest.raises(ValueError, match=f"epsilon must be .*> 0, got {value!r}"):
            kind(parameters(), epsilon=value)


def test_no_parameter_twice():
    params = parameters()
    with pytest.raises(ValueError, match="given twice"):
        SGD([*params, params[0]])


def test_gradients_are_arrays():
    optimizer = SGD(parameters())
    with pytest.raises(TypeError, match=r"arrays, got Tensors"):
        optimizer.step(parameters())
    assert optimizer.steps == 0


@pytest.mark.parametrize(
    "gradients", [numbers(0)[:-1], [*numbers(0), np.ones(1)], numbers(0)[::-1]]
)
def test_gradients_fit_the_parameters(gradients):
    optimizer = Adam(parameters())
    with pytest.raises(ValueError, match="expected gradients of shapes"):
        optimizer.step(gradients)
    assert optimizer.steps == 0
    assert_same_bits([p.value for p in optimizer.params], numbers(100))


# ---- schedules ----------------------------------------------------------------------------------

RATES = st.floats(0, 10)
TIMES = st.integers(0, 800).map(lambda eighths: eighths / 8)


@pytest.mark.parametrize("wrong", [-1, np.nan, np.inf, "a", None])
def test_what_schedules_are_made_of_is_checked(wrong):
    for make in (
        lambda: constant(wrong),
        lambda: cosine(wrong, 10),
        lambda: cosine(0.1, wrong),
        lambda: piecewise_linear([(0, 0.1), (1, wrong)]),
        lambda: piecewise_linear([(wrong, 0.1), (20, 0.1)]),
        lambda: piecewise_linear(np.array([(0, 0.1), (1, wrong)], object)),
    ):
        with pytest.raises(ValueError, match=f"must be a number .*got {wrong!r}"):
            make()


def test_constant():
    assert {constant(0.3)(epoch) for epoch in (0, 0.5, 7, 1000)} == {0.3}


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [(-1, 0.1), (0, 0.1), (1, 0.3), (2, 0.5), (2.5, 0.375), (3, 0.25), (4, 0.0), (9, 0.0)],
)
def test_piecewise_linear(epoch, lr):
    assert piecewise_linear([(0, 0.1), (2, 0.5), (4, 0.0)])(epoch) == pytest.approx(lr)


@given(points=st.lists(st.tuples(TIMES, RATES), min_size=1, unique_by=lambda p: p[0]), epoch=TIMES)
def test_piecewise_linear_goes_through_its_points(points, epoch):
    points.sort()
    schedule = piecewise_linear(points)
    rates = [lr for _, lr in points]
    assert [schedule(e) for e, _ in points] == pytest.approx(rates)
    assert min(rates) - 1e-12 <= schedule(epoch) <= max(rates) + 1e-12
    assert schedule(epoch) == pytest.approx(np.interp(epoch, *zip(*points, strict=True)), abs=1e-9)


@pytest.mark.parametrize("points", [[], [(1, 0.1), (0, 0.2)], [(0, 0.1), (0, 0.2)]])
def test_piecewise_linear_needs_rising_points(points):
    with pytest.raises(ValueError, match=r"\(epoch, lr\) pairs in increasing order"):
        piecewise_linear(points)


def test_cosine():
    schedule = cosine(0.4, epochs=10)
    rates = [schedule(epoch) for epoch in (0, 5, 10, 25)]
    assert rates == pytest.approx([0.4, 0.2, 0, 0], abs=1e-15)
    assert schedule(10 / 3) == pytest.approx(0.3)  # the cosine of 60° is a half


@pytest.mark.parametrize("epochs", [0, -1, np.nan])
def test_cosine_needs_time(epochs):
    with pytest.raises(ValueError, match=f"epochs must be .*> 0, got {epochs}"):
        cosine(0.4, epochs)


@given(lr=RATES, epochs=st.floats(0.1, 100), times=st.tuples(TIMES, TIMES))
def test_cosine_falls(lr, epochs, times):
    assume(times[0] < times[1])
    early, late = (cosine(lr, epochs)(t) for t in times)
    assert lr >= early >= late >= 0
