"""Branch and bound: it decides what enumeration decides, and its answers are never wrong."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from test_linear_bounds import (
    KINDS,
    Own,
    dense,
    into_relu,
    perceptron,
    random_case,
    randomised,
    rule_of_own,
    rule_of_residual,
    with_weights,
)

from tinyadv import Tensor, layers, ops, to_numpy
from tinyadv.attacks import pgd
from tinyadv.balls import L2, Linf
from tinyadv.evaluate import accuracy, predict
from tinyadv.verify import certified
from tinyadv.verify.linear import Region, hidden_bounds, linear_worst_logits
from tinyadv.verify.split import Search, Verdict, decide, exact_accuracy

__all__ = ["rule_of_own", "rule_of_residual"]  # fixtures
few = settings(max_examples=max(2, settings.default.max_examples // 10))


# -------------------------------------------------------------------- the truth, by enumeration


def exact_worst(net, low, high, y):
    """The largest z_k - z_y of a perceptron for one box, k ≠ y: a linear program for each pattern.

    Where the ReLUs are on (1) or off (0) is fixed for the whole network; then it is A x + b, and so
    is what goes into each ReLU.
    """
    weights = [(p.weight.value.astype(float), p.bias.value.astype(float)) for p in net.layers[::2]]
    bounds = hidden_bounds(net, low[None], high[None])
    free = [((bottom < 0) & (top > 0))[0] for bottom, top in bounds]
    size, best = sum(int(f.sum()) for f in free), -np.inf
    rivals = [k for k in range(len(weights[-1][1])) if k != y]
    for pattern in product([0, 1], repeat=size):
        left = iter(pattern)
        a, b, rows, limits = np.eye(len(low)), np.zeros(len(low)), [], []
        for (w, bias), open_, (_, top) in zip(weights, free, bounds, strict=False):
            a, b = w @ a, w @ b + bias
            on = np.array([next(left) if o else t > 0 for o, t in zip(open_, top[0], strict=True)])
            sign = np.where(on, -1, 1)[:, None]  # on: A x + b ≥ 0
            rows.append(sign * a)
            limits.append(-sign[:, 0] * b)
            a, b = on[:, None] * a, on * b
        w, bias = weights[-1]
        a, b = w @ a, w @ b + bias
        box = np.stack([low, high], axis=1)
        for k in rivals:
            c = a[k] - a[y]
            result = linprog(-c, np.concatenate(rows), np.concatenate(limits), bounds=box)
            if result.status == 0:
                best = max(best, -result.fun + b[k] - b[y])
    return best


def test_enumeration_itself():
    """max |x - 0.4| over [0, 1] is 0.6."""
    net = with_weights(([[1], [-1]], [-0.4, 0.4]), ([[0, 0], [1, 1]], [0.5, 0]), dtype=np.float64)
    found = exact_worst(net, np.zeros(1), np.ones(1), 0)
    assert found == pytest.approx(0.1, abs=1e-7)


def checked(net, x, y, epsilon, verdicts):
    """What holds of any verdicts."""
    assert len(verdicts) == len(x)
    for i, verdict in enumerate(verdicts):
        assert isinstance(verdict, Verdict) and verdict.seconds >= 0
        assert (verdict.x_adv is None) == (verdict.answer != "broken")
        if verdict.answer == "broken":
            x_adv = verdict.x_adv
            assert (x_adv.shape, x_adv.dtype) == (x[i].shape, x.dtype)
            assert (x_adv >= 0).all() and (x_adv <= 1).all()
            distance = abs(x_adv.astype(float) - x[i].astype(float)).max()
            assert distance <= epsilon + 2 * np.finfo(x.dtype).eps
            assert to_numpy(predict(net, x_adv[None])) != y[i]
    return [verdict.answer for verdict in verdicts]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=max(2, settings.default.max_examples // 4))
def test_the_answers_of_enumeration(dtype, seed):
    rng = np.random.default_rng(seed)
    net = randomised(perceptron(rng, depth=2, width=3), rng).astype(dtype)
    x = rng.random((2, 3)).astype(dtype)
    y, epsilon = to_numpy(predict(net, x)), rng.choice([0.05, 0.2, 0.5])
    verdicts = decide(net, x, y, epsilon)
    for answer, x_i, y_i in zip(checked(net, x, y, epsilon, verdicts), x, y, strict=True):
        box = np.clip(x_i.astype(float) - epsilon, 0, 1), np.clip(x_i.astype(float) + epsilon, 0, 1)
        worst = exact_worst(net, *box, y_i)
        if abs(worst) > 1e-4:
            assert answer == ("broken" if worst > 0 else "proved")


def undecided(kind, dtype=np.float32, count=3):
    """A random network and images that neither PGD nor linear bounds decide, and ε."""
    for seed in range(1000):
        net, x, _, _ = random_case(kind, seed, dtype, n=16)
        y = to_numpy(predict(net, x))
        for epsilon in (0.1, 0.3):
            x_adv = pgd(net, x, y, ball=Linf(epsilon), steps=10, rng=0)
            hard = to_numpy(predict(net, x_adv)) == y
            hard &= ~certified(net, x, y, epsilon, linear_worst_logits)
            if hard.sum() >= count:
                return net, x[hard][:count], y[hard][:count], epsilon
    raise AssertionError("no such network")


def strong_attack(net, x, y, epsilon, rng):
    """Corners, random points and PGD from many of them: whether any of it succeeds, for each."""
    low, high = np.clip(x - epsilon, 0, 1), np.clip(x + epsilon, 0, 1)
    broken = np.zeros(len(x), bool)
    for n in range(100):
        share = rng.random(x.shape) if n % 2 else rng.random(x.shape) < 0.5
        broken |= to_numpy(predict(net, (low + share * (high - low)).astype(x.dtype))) != y
    x_adv = pgd(net, x, y, ball=Linf(epsilon), steps=20, restarts=3, rng=0)
    return broken | (to_numpy(predict(net, x_adv)) != y)


@pytest.mark.parametrize("kind, dtype", [
    ("perceptron", np.float32), ("perceptron", np.float64), ("residual", np.float32),
    ("convolutional", np.float32), ("average", np.float64),
])  # fmt: skip
def test_hard_images_are_decided(kind, dtype):
    """Of each kind of network: max pooling, residual blocks, an average."""
    net, x, y, epsilon = undecided(kind, dtype, count=2)
    answers = checked(net, x, y, epsilon, decide(net, x, y, epsilon, domains=200))
    assert answers.count("open") < len(x)
    broken = strong_attack(net, x, y, epsilon, np.random.default_rng(0))
    assert not (broken & (np.array(answers) == "proved")).any()
    # A smaller budget may leave images open. It never changes an answer.
    for budget in (0, 3):
        fewer = decide(net, x, y, epsilon, domains=budget)
        for answer, verdict in zip(answers, fewer, strict=True):
            assert verdict.answer in ("open", answer) or answer == "open"
            assert verdict.domains <= budget
        checked(net, x, y, epsilon, fewer)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32), budget=st.sampled_from([0, 20]))
@few
def test_no_attack_contradicts_an_answer(kind, seed, budget):
    dtype = [np.float32, np.float64][seed % 2]
    net, x, epsilon, y = random_case(kind, seed, dtype, n=8)
    answers = checked(net, x, y, epsilon, decide(net, x, y, epsilon, domains=budget, steps=3))
    broken = strong_attack(net, x, y, epsilon, np.random.default_rng(0))
    assert not (broken & (np.array(answers) == "proved")).any()
    wrong = to_numpy(predict(net, x)) != y
    assert all(answer == "broken" for answer, w in zip(answers, wrong, strict=True) if w)
    if epsilon == 0:
        margins = np.sort(net(x).value, axis=1)
        clear = (margins[:, -1] - margins[:, -2] > 1e-2) & ~wrong
        assert all(answer == "proved" for answer, c in zip(answers, clear, strict=True) if c)
    proved = certified(net, x, y, epsilon, linear_worst_logits)
    assert all(answer == "proved" for answer, p in zip(answers, proved, strict=True) if p)


def test_more_steps_need_fewer_domains():
    net, x, y, epsilon = undecided("perceptron", count=3)
    domains = [
        sum(verdict.domains for verdict in decide(net, x, y, epsilon, domains=100, steps=steps))
        for steps in (1, 12)
    ]
    assert domains[0] >= domains[1] > 0


def test_exact_accuracy():
    net, x, _, _ = random_case("perceptron", 3, n=40)
    y = to_numpy(predict(net, x))
    y[:5] = (y[:5] + 1) % 3
    for epsilon in (0.0, 0.05, 0.3):
        proved, unbroken = exact_accuracy(net, x, y, epsilon)
        assert proved == unbroken  # all is decided
        least, most = exact_accuracy(net, x, y, epsilon, domains=0, steps=1)
        assert least <= proved <= most
        x_adv = pgd(net, x, y, ball=Linf(epsilon), rng=0)
        assert proved <= accuracy(net, x_adv, y) <= 1 - 5 / 40
        assert certified(net, x, y, epsilon, linear_worst_logits).mean() <= proved
    assert exact_accuracy(net, x[:5], y[:5], 0.1) == (0, 0)


# ------------------------------------------------------------------------------ special networks


@pytest.mark.parametrize("bias", [-100, 100])
def test_a_network_of_stable_relus_is_decided_by_its_first_bounds(bias):
    net = with_weights((np.eye(3), [bias] * 3), ([[1, 0, 0], [0, 1, 0.0]], [0.3, 0]))
    x = np.array([[0.5, 0.5, 0.5], [0.5, 0.7, 0], [0.1, 0.9, 1]], np.float32)
    y = to_numpy(predict(net, x))
    verdicts = decide(net, x, y, 0.1)
    assert [verdict.domains for verdict in verdicts] == [0, 0, 0]
    expected = ["proved", "broken", "proved"] if bias > 0 else ["proved"] * 3
    assert checked(net, x, y, 0.1, verdicts) == expected


def test_a_network_without_relus():
    net, x = layers.Sequential(*dense(2, 3)), np.random.default_rng(0).random((150, 2))
    net.astype(np.float64)
    y = to_numpy(predict(net, x))
    answers = checked(net, x, y, 0.05, decide(net, x, y, 0.05))
    w, z = net.layers[0].weight.value, net(x).value
    gaps = np.array([
        max(z[i, k] - z[i, t] + reach(w[k] - w[t], x[i], 0.05) for k in range(3) if k != t)
        for i, t in enumerate(y)
    ])  # fmt: skip
    assert answers == ["broken" if gap > 0 else "proved" for gap in gaps]


def reach(w, x, epsilon):
    """max <w, δ> for ‖δ‖∞ ≤ ε, pixels in [0, 1]"""
    return np.maximum(
        w * (np.clip(x - epsilon, 0, 1) - x), w * (np.clip(x + epsilon, 0, 1) - x)
    ).sum()


@pytest.mark.parametrize("x", [0.25, 0.25 - 1e-7, 0.25 - 1e-6, 0.25 - 1e-3])
@pytest.mark.parametrize("hidden", [[], [([[1.0], [0]], [1, 1])]])
def test_a_near_tie(x, hidden):
    """z1 - z0 = 2 (x - 0.5) at its largest: 0, or less by what may be lost in rounding."""
    end = [1.5, 0] if hidden else [0.5, 0]
    last = ([[0, 0], [1.0, 0]], end) if hidden else ([[0], [1.0]], end)
    net = with_weights(*hidden, last)
    x, y = np.array([[x]], np.float32), np.array([0])
    (answer,) = checked(net, x, y, 0.25, decide(net, x, y, 0.25))
    assert answer == "proved" if x[0, 0] < 0.2499 else answer != "broken"


def test_the_budget():
    """z1 - z0 = 0.3 (x - 0.5) - |x - 0.5| - 0.02. By its first lines it may be 0.12 at x = 0.3."""
    first = ([[1], [-1], [1]], [-0.5, 0.5, 0])
    net = with_weights(first, ([[0, 0, 0], [-1, -1, 0.3]], [0.17, 0]))
    x, y = np.array([[0.6]], np.float32), np.array([0])
    (verdict,) = decide(net, x, y, 0.3, domains=0)
    assert (verdict.answer, verdict.domains) == ("open", 0)
    (verdict,) = decide(net, x, y, 0.3)
    assert verdict.answer == "proved" and verdict.domains > 0
    assert exact_accuracy(net, x, y, 0.3, domains=0) == (0, 1)
    assert exact_accuracy(net, x, y, 0.3) == (1, 1)


def test_what_overflows_is_not_proved():
    w = [[3e38] * 4 + [-3e38] * 4]
    net = with_weights((w, [0]), ([[0], [1]], [1.5, 0]))
    x, y = np.ones((1, 8), np.float32), np.array([0])
    with np.errstate(all="ignore"):
        for budget in (0, 10):
            (verdict,) = decide(net, x, y, 0, domains=budget)
            assert verdict.answer != "proved"


def test_all_images_are_misclassified():
    net, x, _, _ = random_case("convolutional", 0, np.float32, n=5)
    y = (to_numpy(predict(net, x)) + 1) % 3
    verdicts = decide(net, x, y, 0.1)
    assert checked(net, x, y, 0.1, verdicts) == ["broken"] * 5
    for verdict, image in zip(verdicts, x, strict=True):
        np.testing.assert_array_equal(verdict.x_adv, image)


def test_one_image_many_images_lists_and_infinite_epsilon():
    net, x, _, _ = random_case("perceptron", 4, np.float32, n=130)
    y = to_numpy(predict(net, x))
    many = [verdict.answer for verdict in decide(net, x, y, 0.03)]
    for i in (0, 99, 100, 129):
        assert decide(net, x[i : i + 1], y[i : i + 1], 0.03)[0].answer == many[i]
    few = decide(net, list(x[:3]), y[:3].tolist(), np.float64(0.03))
    assert [verdict.answer for verdict in few] == many[:3]
    everything = (decide(net, x[:3], y[:3], epsilon) for epsilon in (1, np.inf, Linf(np.inf)))
    assert len({tuple(v.answer for v in verdicts) for verdicts in everything}) == 1
    as_ball = decide(net, x[:3], y[:3], Linf(0.03))
    assert [verdict.answer for verdict in as_ball] == many[:3]


@pytest.mark.parametrize("kind", ["perceptron", "residual"])
def test_the_bound_of_a_domain_holds_where_its_constraints_do(kind):
    """And so do its linear functions of x, with which linear programs are made."""
    net, x, y, epsilon = undecided(kind, np.float64, count=1)
    low, high = np.clip(x - epsilon, 0, 1), np.clip(x + epsilon, 0, 1)
    region, rng = Region(net.frozen(), low, high), np.random.default_rng(0)
    worst = region.worst_logits(y)
    search = Search(region, 0, x[0], int(y[0]), epsilon, worst[0])
    points = low + rng.random((5000, 3)) * (high - low)
    z = net(points).value
    v = [into_relu(net, k)(points).value[:, at] for k, at in enumerate(search.at)]
    v, domains, seen = np.concatenate(v, axis=1), search.whole(), 0
    for depth in range(min(4, v.shape[1])):
        before = domains.bounds.copy()
        search.bound(domains, steps=4)
        assert (domains.bounds <= before).all()
        for d in range(len(domains)):
            inside = (v * domains.signs[d] >= 0).all(1)
            gaps = z[inside, domains.rivals[d]] - z[inside, y[0]]
            seen += len(gaps)
            assert (gaps <= domains.bounds[d]).all()
            g, constant = search.linear_function(domains.take(slice(d, d + 1)))
            assert (gaps <= points[inside] @ g[0] + constant[0]).all()
        parents, whole = domains, len(domains)
        domains = domains.split(np.full(whole, depth))
        for half, sign in ((slice(whole), 1), (slice(whole, None), -1)):
            assert (domains.signs[half, depth] == sign).all()
            np.testing.assert_array_equal(domains.bounds[half], parents.bounds)
    assert len(domains) > 1 and seen > 5000


# ------------------------------------------------------------------------------------- errors


def test_networks_that_are_refused(rule_of_own):
    x, y = np.full((2, 3), 0.5, np.float32), np.zeros(2, int)
    tail = [*dense(3, 4), layers.ReLU(), *dense(4, 2)]
    tail[-1].bias = Tensor(np.array([100, 0], np.float32))  # so that the attack does not succeed
    for f, error, message in (
        (lambda m, x: ops.tanh(m.relu(x)), TypeError, "no linear bounds for tanh"),
        (lambda m, x: m.relu(x) + ops.relu(x), TypeError, "no linear bounds for relu"),
        (lambda m, x: m.relu(x) + x * x, TypeError, "multiply where both arguments depend"),
        (lambda m, x: m.relu(x) + m.relu(x), ValueError, "a module is used twice"),
    ):
        with pytest.raises(error, match=message):
            decide(layers.Sequential(*dense(3, 3), Own(f), *tail), x, y, 0.1)
    with pytest.raises(TypeError, match="set by_example"):
        decide(layers.Sequential(Secret(*tail)), x, y, 0.1)
    tanh = layers.Sequential(*dense(3, 4), layers.Activation("tanh"), *tail[-1:])
    with pytest.raises(TypeError, match="no linear bounds for tanh"):
        decide(tanh, x, y, 0.1)


class Secret(layers.Sequential):
    """As a Sequential, but without the promise of ``by_example``."""

    def __call__(self, x):
        return super().__call__(x)


def test_arguments_that_are_refused():
    net, x, _, _ = random_case("perceptron", 0, np.float32)
    y = np.zeros(len(x), int)
    for name, values in {"domains": (-1, 1.5), "steps": (0, -1, 2.5)}.items():
        for value in values:
            for function in (decide, exact_accuracy):
                with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
                    function(net, x, y, 0.1, **{name: value})
    for epsilon in (-0.1, np.nan):
        with pytest.raises(ValueError, match="epsilon must be ≥ 0"):
            decide(net, x, y, epsilon)
    for epsilon in (None, "0.1"):
        with pytest.raises(TypeError, match="epsilon must be a number or a ball"):
            decide(net, x, y, epsilon)
    with pytest.raises(TypeError, match=r"L∞ balls only, got L2"):
        decide(net, x, y, L2(0.1))
    with pytest.raises(ValueError, match="pixel values from 0 to 1"):
        decide(net, 255 * x, y, 0.1)
    with pytest.raises(ValueError, match="y must be from 0 to 2"):
        decide(net, x, y + 3, 0.1)
    with pytest.raises(ValueError, match="at least one example"):
        decide(net, x[:0], y[:0], 0.1)


def test_arrays_of_a_device_are_refused(device):
    net, x, _, _ = random_case("perceptron", 0, np.float32)
    y = np.zeros(len(x), int)
    for p in net.parameters():
        p.value = device.asarray(p.value)
    with pytest.raises(TypeError, match="expected NumPy arrays, got"):
        decide(net, device.asarray(x), device.asarray(y), 0.1)
