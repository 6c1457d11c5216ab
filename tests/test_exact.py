"""Mixed-integer programs: equal to enumeration, between attacks and bounds, never against split."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from tinyadv import layers, models, verify
from tinyadv.verify.interval import interval_rule, rounded_outward
from tinyadv.verify.rounding import magnitude


class Branch(layers.Sequential):
    """x + f(x)."""

    by_example = True

    def __call__(self, x):
        return x + super().__call__(x)


@pytest.fixture(autouse=True)
def own_rule():
    before = dict(verify.interval.RULES)

    @interval_rule(Branch)
    def branch(model, low, high, outward):
        inner = verify.interval_bounds(model[:], low, high, outward)
        sums = low + inner[0], high + inner[1]
        if not outward:
            return sums
        return rounded_outward(*sums, 2, magnitude(low, high) + magnitude(*inner))

    yield
    verify.interval.RULES.clear()
    verify.interval.RULES.update(before)


def perceptron(seed):
    return models.mlp((3, 4, 3, 3), seed).astype(np.float64)


def network(kind, seed):
    """A tiny network of 64 bits with random biases, and the shape of what it takes."""
    model, shape = untrained(kind, seed)
    rng = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.value[...] = 0.3 * rng.standard_normal(p.shape)
    return model, shape


def untrained(kind, seed):
    rng = np.random.default_rng(seed)
    dense = lambda *sizes: layers.Dense(*sizes, rng=rng)
    if kind == "perceptron":
        return perceptron(seed), (3,)
    if kind == "average":
        return layers.Average(perceptron(seed), models.mlp((3, 3, 3), seed + 1).astype(float)), (3,)
    if kind == "residual":
        inner = Branch(dense(3, 4), layers.ReLU(), dense(4, 3))
        return layers.Sequential(dense(3, 3), inner, layers.ReLU(), dense(3, 3)).astype(float), (3,)
    pooled = layers.Sequential(
        layers.Conv2d(1, 1, 2, rng=rng), layers.MaxPool2d(2), layers.Flatten(), dense(1, 3),
    )  # fmt: skip
    return pooled.astype(np.float64), (1, 3, 3)


KINDS = ("perceptron", "average", "residual", "max pooling")


def box(shape, seed, radius=0.3):
    x = np.random.default_rng(seed).random((1, *shape))
    return x, np.clip(x - radius, 0, 1), np.clip(x + radius, 0, 1)


def enumerated(program, c):
    """The largest <c, f(x)> with every choice of all a, a linear program for each."""
    W, b = c @ program.logits[0], c @ program.logits[1]
    rows, limits = np.concatenate(program.rows), np.concatenate(program.limits)
    best = -np.inf
    for choice in itertools.product((0, 1), repeat=program.choices):
        low, high = program.low.copy(), program.high.copy()
        low[program.whole] = high[program.whole] = choice
        result = linprog(-W, rows, limits, bounds=np.stack([low, high], axis=1))
        if result.status == 0:
            best = max(best, b - result.fun)
    return best


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_largest_gap_is_that_of_all_choices_and_is_reached(kind, seed):
    model, shape = network(kind, seed)
    _, low, high = box(shape, seed)
    program = verify.Program(model, low, high)
    for c in np.eye(3) - np.eye(3)[0]:
        found = program.largest(c)
        assert found.bound == pytest.approx(enumerated(program, c), abs=1e-6)
        assert found.value == pytest.approx(found.bound, abs=1e-6)
        assert (low[0] - 1e-9 <= found.x).all() and (found.x <= high[0] + 1e-9).all()
        assert c @ model.frozen()(found.x[None])[0] == pytest.approx(found.value, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_attacks_exact_answers_and_bounds_are_in_order(kind):
    for seed in range(4):
        model, shape = network(kind, seed)
        x, low, high = box(shape, seed)
        y = model.frozen()(x).argmax(1)
        program = verify.Program(model, low, high)
        exact = [program.largest(c).bound for c in np.eye(3) - np.eye(3)[y[0]]]
        relaxed = verify.relaxed_worst_logits(model, low, high, y)[0]
        linear = verify.linear_worst_logits(model, low, high, y, steps=20)[0]
        corners = np.random.default_rng(seed).choice([0, 1], (500, *shape))
        z = model.frozen()(np.where(corners, high, low))
        reached = (z - z[:, y]).max(0)
        order = (reached, exact, relaxed, linear)
        if kind == "max pooling":  # where intervals, which linear bounds never exceed, may be best
            order = (reached, exact, linear)
        for lower, upper in itertools.pairwise(order):
            assert (np.array(lower) <= np.array(upper) + 1e-6).all()
        assert (np.array(exact) <= relaxed + 1e-6).all()
        assert relaxed[y[0]] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_it_never_contradicts_branch_and_bound(kind):
    answers = []
    for seed in range(6):
        model, shape = network(kind, seed)
        x = np.random.default_rng(seed).random((3, *shape))
        y, epsilon = model.frozen()(x).argmax(1), (0.05, 0.15, 0.4)[seed % 3]
        exact, split = (f(model, x, y, epsilon) for f in (verify.solve, verify.decide))
        for a, b in zip(exact, split, strict=True):
            assert {a.answer, b.answer} != {"proved", "broken"}
            answers += [a.answer, b.answer]
    assert {"proved", "broken"} == set(answers) - {"open"}
    assert answers.count("open") <= 2


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1.0, 1e6, 1e10, 1e20])
def test_no_scale_of_the_weights_makes_a_false_proof(scale):
    """The solver's tolerances are absolute, so constraints have to be scaled."""
    for seed in (0, 1):
        model, rng = models.mlp((3, 4, 4, 3), seed).astype(np.float64), np.random.default_rng(seed)
        for p in model.parameters():
            if p.ndim == 1:
                p.value[...] = 0.3 * rng.standard_normal(p.shape)
        for p in model[1].parameters():
            p.value *= scale
        x = rng.random((20, 3))
        y = model.frozen()(x).argmax(1)
        exact, split = (f(model, x, y, 0.3) for f in (verify.solve, verify.decide))
        for a, b in zip(exact, split, strict=True):
            assert {a.answer, b.answer} != {"proved", "broken"}
        assert sum("open" in (a.answer, b.answer) for a, b in zip(exact, split, strict=True)) < 4


def test_bounds_that_overflow_are_refused():
    model = models.mlp((3, 4, 4, 3), 1).astype(np.float64)
    for p in model.parameters():
        p.value *= 1e160
    refused = pytest.raises(ValueError, match="bounds on hidden neurons overflow")
    with np.errstate(all="ignore"), refused:
        verify.Program(model, np.zeros((1, 3)), np.ones((1, 3)))


def test_a_network_that_ignores_its_input_is_refused():
    class Constant(layers.Module):
        by_example = True

        def __call__(self, x):
            return np.zeros((len(x), 3))

    @interval_rule(Constant)
    def constant(model, low, high, outward):
        return np.zeros((len(low), 3)), np.zeros((len(low), 3))

    with pytest.raises(TypeError, match="ignores its input"):
        verify.linear_worst_logits(Constant(), np.zeros((1, 3)), np.ones((1, 3)), np.array([0]))


def test_an_image_that_breaks_is_within_epsilon():
    model, x = network("perceptron", 3)[0], np.random.default_rng(3).random((20, 3))
    y = model.frozen()(x).argmax(1)
    for image, label, verdict in zip(x, y, verify.solve(model, x, y, 0.2), strict=True):
        if verdict.answer == "broken":
            assert abs(verdict.x_adv - image).max() <= 0.2 + 1e-12
            assert model.frozen()(verdict.x_adv[None]).argmax() != label


def test_only_whether_a_value_is_reached():
    model, shape = network("perceptron", 0)
    _, low, high = box(shape, 0)
    program, c = verify.Program(model, low, high), np.array([1.0, -1, 0])
    most = program.largest(c).bound
    assert program.largest(c, at_least=most + 0.01).bound == -np.inf
    found = program.largest(c, at_least=most - 0.01)
    assert found.value >= most - 0.01 - 1e-6 and found.bound >= found.value


def test_without_time_there_is_no_answer():
    """With so little time the solver has no bound, and that proves nothing."""
    model = models.mlp((30, 60, 60, 3), 0).astype(np.float64)
    low, high = np.zeros((1, 30)), np.ones((1, 30))
    found = verify.Program(model, low, high).largest(np.array([1.0, -1, 0]), seconds=1e-3)
    assert found.bound > 0


def test_errors():
    model, x = perceptron(0), np.full((1, 3), 0.5)
    with pytest.raises(ValueError, match="seconds must be a number > 0"):
        verify.solve(model, x, [0], 0.1, seconds=0)
    with pytest.raises(ValueError, match="epsilon must be ≥ 0"):
        verify.solve(model, x, [0], -0.1)
    with pytest.raises(ValueError, match=r"one image, each \(1, …\), got \(2, 3\)"):
        verify.Program(model, *np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match="expected low ≤ high: 3 of 3"):
        verify.Program(model, x, x - 0.1)
    program = verify.Program(model, x - 0.1, x + 0.1)
    with pytest.raises(ValueError, match="seconds must be a number > 0"):
        program.largest(np.array([1.0, -1, 0]), seconds=-1)
    with pytest.raises(ValueError, match=r"c must be \(3,\), got \(2,\)"):
        program.largest(np.array([1.0, -1]))
    sigmoid = layers.Sequential(layers.Dense(3, 2, rng=0), layers.Activation("sigmoid"))
    with pytest.raises(TypeError, match="no linear bounds for sigmoid"):
        verify.solve(layers.Sequential(sigmoid, layers.Dense(2, 2, rng=0)), x, [0], 0.1)
