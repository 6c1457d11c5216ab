"""Checks for masking: sound networks raise no alarm, and each kind of masking its own."""

import warnings
from functools import cache, partial
from math import comb

import numpy as np
import pytest

from tinyadv import Tensor, checks, defvjp, inputs, losses, ops, parallel, primitive
from tinyadv.attacks import AttackWarning, pgd
from tinyadv.balls import L1, L2, Linf
from tinyadv.broken_defenses import straight_through, without_gradient
from tinyadv.checks import MaskingWarning, masking
from tinyadv.evaluate import predict

BALL = Linf(0.15)
FEW = {"ball": BALL, "steps": 16, "queries": 80}


class Net:
    """V tanh(W x + b), for images (N, 1, 6, 6): 5 classes, known and smooth, on any backend."""

    def __init__(self, xp=np, seed=0, dtype=np.float32):
        rng = np.random.default_rng(seed)
        w, v = rng.standard_normal((20, 36)) / 4, rng.standard_normal((5, 20))
        self.w, self.b, self.v = (xp.asarray(a.astype(dtype)) for a in (w, -w.sum(1) / 2, v))

    def __call__(self, x):
        hidden = ops.tanh(ops.dense(ops.reshape(x, (len(x), -1)), self.w, self.b))
        return ops.dense(hidden, self.v)


NET = Net()


@cache
def images(n=120):
    """Those of which the network is most confident, with its own predictions as labels."""
    x = np.random.default_rng(1).random((4 * n, 1, 6, 6)).astype(np.float32)
    margin = -losses.margin(NET(x), predict(NET, x), "none")
    x = x[np.argsort(-margin)[:n]]
    return x, predict(NET, x)


def quietly(check, *args, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MaskingWarning)
        return check(*args, **keywords)


# ---- models with something wrong -----------------------------------------------------------------


def saturated(x):  # distillation's symptom
    return NET(x) * 1e4


def rounded(x):  # squeezing's: a staircase, but a gradient would still lead over it
    return NET(without_gradient(lambda x: np.round(x * 7) / 7)(x))


def arrays_only(x):
    return NET(x.value if isinstance(x, Tensor) else x)


def knows_no_tensor(x):
    return NET(np.asarray(x))


def ends_in_softmax(x):
    return ops.softmax(NET(x), axis=1)


class Noisy:
    """Other logits each time."""

    def __init__(self, size=1.0):
        self.rng, self.size = np.random.default_rng(0), size

    def __call__(self, x):
        z = NET(x)
        return z + (self.size * self.rng.standard_normal(z.shape)).astype(z.dtype)


@primitive
def at_an_edge(x):
    return x


defvjp(at_an_edge, lambda g, y, x: g * np.nan)


def not_finite(x):
    return NET(at_an_edge(x))


def astray(x):
    """Forward the network, backward its gradient turned around: down is up."""
    turned = 2 * (x.value if isinstance(x, Tensor) else x) - x
    return NET(turned)


def wiggly(x):
    """The gradient is that of a fine wave, of no height to speak of."""
    return NET(x + 1e-4 * ops.sin(1e6 * x))


# ---- what raises no alarm ------------------------------------------------------------------------


@pytest.mark.parametrize("ball", [Linf(0.15), Linf(0.03), L2(0.5)], ids=str)
def test_a_sound_network_raises_no_alarm(ball):
    x, y = images()
    report = masking(NET, x, y, **{**FEW, "ball": ball}, sources=[Net(seed=1), NET])
    assert not report.masked and report.alarms == ()
    names = [finding.check for finding in report.findings]
    assert names == ["zero gradients", "random answers", "probabilities", "more steps", "larger ε",
                     "unbounded", "black box", "transfer"]  # fmt: skip
    assert all(finding.verdict == "ok" for finding in report.findings)
    assert "not a proof" in str(report)


@pytest.mark.parametrize("seed", range(4))
def test_nor_does_any_other_sound_network(seed):
    net = Net(seed=seed)
    x, _ = images()
    assert masking(net, x, **FEW).alarms == ()


def test_a_network_with_a_wide_margin_raises_no_alarm():
    """Nothing is found within ε by any attack, and yet the unbounded one works."""
    x, y = images()
    report = masking(NET, x, y, **{**FEW, "ball": Linf(1e-4)})
    assert report.alarms == ()
    assert "all steps 0.0%" in report["more steps"].measured


def test_float64_and_l1_work_too():
    x, y = (images()[0][:20].astype(np.float64), images()[1][:20])
    report = masking(Net(dtype=np.float64), x, y, **{**FEW, "ball": L1(2.0, pixels=4)})
    assert report.alarms == ()
    assert report["black box"].verdict == "not run" and "Square" in report["black box"].explanation


# ---- each kind of masking, and its alarm ---------------------------------------------------------


@pytest.mark.parametrize(
    "model, alarms",
    [
        (saturated, {"zero gradients", "black box", "unbounded", "transfer"}),
        (rounded, {"zero gradients", "black box", "unbounded", "transfer"}),
        (arrays_only, {"no gradient", "black box", "transfer"}),
        (knows_no_tensor, {"no gradient", "black box", "transfer"}),
        (not_finite, {"no gradient", "black box", "transfer"}),
        (ends_in_softmax, {"probabilities"}),
        (Noisy(), {"random answers"}),
        (astray, {"unbounded", "black box", "transfer"}),
        (wiggly, {"black box", "transfer"}),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_each_kind_of_masking_is_caught(model, alarms):
    x, y = images()
    with pytest.warns(MaskingWarning) as caught:
        report = masking(model, x, y, **FEW, sources=[NET])
    assert report.masked and alarms <= set(report.alarms)
    # A warning for each alarm, at the line that called, with its name and what to do.
    said = [str(w.message) for w in caught if issubclass(w.category, MaskingWarning)]
    assert len(said) == len(report.alarms)
    for name, text in zip(report.alarms, said, strict=True):
        assert text.startswith(name + ": ") and report[name].explanation in text
    assert {w.filename for w in caught} == {__file__}
    for name in report.alarms:
        assert f"{name}  " in str(report) and "ALARM" in str(report)


def test_a_softmax_alone_and_noise_alone_raise_no_other_alarm():
    x, y = images()
    assert quietly(masking, ends_in_softmax, x, y, **FEW).alarms == ("probabilities",)
    assert quietly(masking, Noisy(0.05), x, y, **FEW).alarms == ("random answers",)


def test_what_undoes_the_masking_silences_the_alarm():
    x, y = images()
    assert "zero gradients" in quietly(masking, saturated, x, y, **FEW).alarms
    assert masking(saturated, x, y, **FEW, loss=losses.margin).alarms == ()

    def wired(x):
        return NET(straight_through(lambda x: np.round(x * 7) / 7)(x))

    assert masking(wired, x, y, **FEW).alarms == ()


def test_gradients_that_lie_from_some_distance_on_make_longer_attacks_worse():
    """From x the gradient is right, farther than ε/2 away it is turned around."""
    x, y = images()

    def trap(image):
        at = image.value if isinstance(image, Tensor) else image
        far = np.abs(at[:, None] - x[None, :, :]).max((2, 3, 4)).min(1) > 0.6 * BALL.epsilon
        sign = np.where(far, -1, 1).astype(np.float32)[:, None, None, None]
        return NET(sign * image + (1 - sign) * at)

    found = quietly(checks.more_steps, trap, x, y, ball=BALL, steps=16)
    assert found.alarm and "one step" in found.measured
    wide = Linf(0.5)
    found = quietly(checks.larger_epsilon, trap, x, y, ball=Linf(0.16), steps=16)
    assert found.alarm and "ε/2" in found.measured
    assert not checks.more_steps(NET, x, y, ball=wide, steps=16).alarm


def test_twice_the_radius_is_the_whole_box_at_most(monkeypatch):
    x, y = images()
    seen = []
    monkeypatch.setattr(checks, "pgd", lambda *a, ball, **how: seen.append(ball) or pgd(
        *a, ball=ball, **how))  # fmt: skip
    checks.larger_epsilon(NET, x, y, ball=Linf(0.8), steps=2)
    assert sorted(ball.epsilon for ball in seen) == [0.4, 0.8, 1.0]


def test_other_networks_are_attacked_with_the_same_loss():
    """A saturated source has no gradient of the cross-entropy, and one of the margin."""
    x, y = images()
    how = {"sources": saturated, "ball": BALL, "steps": 8}
    by_loss = [
        quietly(checks.transferred, astray, x, y, loss=loss, **how)
        for loss in (losses.cross_entropy, losses.margin)
    ]
    assert not by_loss[0].alarm and by_loss[1].alarm


def test_nan_is_not_a_prediction():
    x, y = images()
    first = x[0, 0, 0, 0]
    count = int((x[:, 0, 0, 0] != first).sum())

    def broken(x):  # right about the first image, which is all that the attacks look at beforehand
        value = x.value if isinstance(x, Tensor) else x
        lost = value[:, 0, 0, :1] != first
        return NET(x) * np.where(lost, np.nan, 1).astype(np.float32)

    asked = [partial(checks.random_answers, broken, x)]
    asked += [partial(check, broken, x, y) for check in (checks.black_box, masking)]
    for ask in asked:
        with pytest.raises(ValueError, match=f"NaN .*for {count} of {len(x)} images"):
            ask()


def test_what_is_compared_must_be_an_attack_on_all_images():
    x, y = images()
    for wrong, words in ((x[:3], r"\(3, "), ([1, 2], "builtins.list")):
        with pytest.raises(ValueError, match=f"direct must be the result .* got .*{words}"):
            checks.more_steps(NET, x, y, ball=BALL, direct=wrong)


def test_masking_asks_about_a_finite_epsilon():
    with pytest.raises(ValueError, match="needs a finite ε"):
        masking(NET, *images(), ball=Linf(np.inf))


# ---- each check by itself ------------------------------------------------------------------------


def test_zero_gradients_are_counted():
    x, y = images()

    def half_saturated(x):  # the scale of an image depends on its first pixel
        value = x.value if isinstance(x, Tensor) else x
        return NET(x) * np.where(value[:, 0, 0, :1] > 0.5, 1e4, 1).astype(np.float32)

    count = int((x[:, 0, 0, 0] > 0.5).sum())
    with pytest.warns(MaskingWarning, match=f"{count} of {len(x)} images exactly 0, 0 almost"):
        checks.zero_gradients(half_saturated, x, y)

    def tiny(x):
        return NET(x) * np.float32(1e-33)

    found = quietly(checks.zero_gradients, tiny, x, y)
    assert found.alarm and f"0 of {len(x)} images exactly 0, {len(x)} almost" in found.measured
    assert not checks.zero_gradients(NET, x, y).alarm
    assert not checks.zero_gradients(half_saturated, x, y, loss=losses.margin).alarm


def test_two_flat_images_are_no_alarm():
    x, y = images()
    x, y = x[:100], y[:100]

    def flat_for(count):
        def model(image):
            value = image.value if isinstance(image, Tensor) else image
            flat = np.isin(value[:, 0, 0, 0], x[:count, 0, 0, 0])
            return NET(image) * np.where(flat, 1e5, 1).astype(np.float32)[:, None]

        return model

    assert not checks.zero_gradients(flat_for(2), x, y).alarm
    assert quietly(checks.zero_gradients, flat_for(3), x, y).alarm


def test_random_answers_that_are_rare():
    """One of two networks answers, each time with probability 1/2; a single query misses half."""
    x, _ = images()
    rng = np.random.default_rng(0)

    def either(x):
        return (1 if rng.random() < 0.5 else 2) * NET(x)

    assert all(quietly(checks.random_answers, either, x).alarm for _ in range(50))
    assert not checks.random_answers(NET, x).alarm


def test_random_answers_by_their_size():
    x, _ = images()
    assert not checks.random_answers(NET, x).alarm
    assert not checks.random_answers(Noisy(1e-5), x).alarm
    with pytest.warns(MaskingWarning, match="EOT"):
        checks.random_answers(Noisy(0.1), x)


def test_probabilities_of_all_images():
    x, _ = images()
    with pytest.warns(MaskingWarning, match="softmax"):
        checks.probabilities(ends_in_softmax, x)

    def some(x):  # the first row alone looks like probabilities
        z = ops.softmax(NET(x), axis=1)
        z[1:] *= 3
        return z

    assert not checks.probabilities(some, x).alarm
    assert not checks.probabilities(NET, x).alarm


def test_unbounded_tells_chance_from_more():
    """A model which answers 0 for black, and else like the network for a share of the images."""
    x, y = images()

    def stubborn(share):
        fixed = x[: round(share * len(x)), 0, 0, 0]

        def model(image):
            value = image.value if isinstance(image, Tensor) else image
            return NET(image) * 1.0 if not share else _frozen(image, value, fixed)

        return model

    def _frozen(image, value, fixed):
        # No gradient for these, so PGD leaves them where they are.
        moves = ~np.isin(value[:, 0, 0, 0], fixed)
        mask = moves.astype(np.float32)[:, None, None, None]
        return NET(mask * image + (1 - mask) * value)

    assert not checks.unbounded(stubborn(0), x, y, steps=20).alarm
    assert not checks.unbounded(stubborn(0.2), x, y, steps=20).alarm  # that is chance
    found = quietly(checks.unbounded, stubborn(0.4), x, y, steps=20)
    assert found.alarm and found.measured.startswith("accuracy 40.0%")
    assert found.measured.endswith("guessing 20.0%")


def test_steps_queries_ball_and_rng_matter():
    x, y = images()

    def measured(check, **keywords):
        return quietly(check, NET, x, y, **keywords).measured

    small = Linf(0.05)
    for check in (checks.more_steps, checks.larger_epsilon, checks.black_box):
        assert measured(check, ball=small, steps=4) != measured(check, ball=BALL, steps=4)
    assert measured(checks.more_steps, ball=small, steps=4) != measured(
        checks.more_steps, ball=small, steps=8
    )
    zero, again, one = (
        str(quietly(masking, NET, x, y, ball=Linf(0.05), steps=2, queries=20, rng=rng))
        for rng in (0, 0, 1)
    )
    assert zero == again != one
    few, many = (measured(checks.black_box, ball=BALL, steps=4, queries=n) for n in (5, 100))
    assert few.startswith("fooled: Square, 5 queries") and few.split(",")[1] != many.split(",")[1]


def test_an_attack_of_ones_own_is_compared():
    """``direct`` is the attack that is judged: one that does nothing is found out."""
    x, y = images()
    for check in (checks.black_box, checks.more_steps, checks.larger_epsilon):
        assert quietly(check, NET, x, y, ball=BALL, steps=8, direct=x).alarm
        strong = pgd(NET, x, y, ball=BALL, steps=8)
        assert not check(NET, x, y, ball=BALL, steps=8, direct=strong).alarm
    transferred = {"ball": BALL, "steps": 8, "sources": NET}
    assert quietly(checks.transferred, NET, x, y, direct=x, **transferred).alarm
    assert not checks.transferred(NET, x, y, **transferred).alarm


def test_the_worst_of_all_sources_counts():
    x, y = images()
    weak = Net(seed=5)
    assert not checks.transferred(astray, x, y, sources=[astray], ball=BALL, steps=8).alarm
    assert quietly(
        checks.transferred, astray, x, y, sources=[astray, weak, NET], ball=BALL, steps=8
    ).alarm


def test_misclassified_images_are_left_out():
    x, y = images()
    wrong = y.copy()
    wrong[::2] = (wrong[::2] + 1) % 5
    found = checks.zero_gradients(NET, x, wrong)
    assert f"of {len(x) // 2} images" in found.measured
    half = checks.black_box(NET, x, wrong, ball=BALL, steps=4, queries=10, direct=pgd(NET, x, y))
    assert "the gradient 100.0%" in half.measured
    with pytest.raises(ValueError, match="none of the 120 images"):
        masking(NET, x, (y + 1) % 5)


def test_labels_may_be_left_out():
    x, y = images()
    assert str(masking(NET, x, **FEW)) == str(masking(NET, x, y, **FEW))


# ---- the statistics ------------------------------------------------------------------------------


def fooled(both, weak, strong, neither):
    """By the weaker attack, and by the stronger one, for so many images of each kind."""
    counts = (both, weak, strong, neither)
    by_weak, by_strong = [True, True, False, False], [True, False, True, False]
    return np.repeat(by_weak, counts), np.repeat(by_strong, counts)


@pytest.mark.parametrize(
    "counts, alarm",
    [
        ((0, 0, 0, 100), False),
        ((0, 6, 0, 94), False),  # six coins on one side: 1/64
        ((0, 7, 0, 93), True),  # seven: 1/128 < 0.01
        ((50, 7, 0, 43), True),
        ((0, 0, 7, 93), False),  # the other way round is as it should be
        ((0, 12, 2, 86), True),
        ((0, 10, 5, 85), False),
        ((0, 30, 10, 1960), False),  # sure, but just 1 % of the images
        ((0, 30, 10, 900), True),
        ((1, 0, 0, 0), False),
    ],
)
def test_the_threshold_of_a_comparison(counts, alarm):
    weak, strong = fooled(*counts)
    assert checks._compare("name", [("weak", weak, strong)], "strong", "no", "yes").alarm is alarm


def test_two_comparisons_ask_for_more():
    pair = ("weak", *fooled(0, 7, 0, 93))
    none = ("weak", *fooled(0, 0, 0, 100))
    assert not checks._compare("name", [pair, none], "strong", "no", "yes").alarm
    assert checks._compare("name", [("weak", *fooled(0, 8, 0, 92)), none], "s", "n", "y").alarm


@pytest.mark.parametrize(
    "k, n, p", [(0, 0, 0.5), (3, 3, 0.5), (7, 20, 0.1), (1, 9, 0.3), (0, 5, 0.2)]
)
def test_the_binomial_tail(k, n, p):
    tail = sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
    np.testing.assert_allclose(checks._at_least(k, n, p), tail, rtol=1e-12)


# ---- the report, and what comes in ---------------------------------------------------------------


def test_the_report_as_a_table():
    x, y = images()
    report = quietly(masking, saturated, x, y, **FEW)
    lines = str(report).splitlines()
    assert lines[0].split() == ["check", "measured", "verdict"] and set(lines[1]) == {"-", " "}
    assert len({line.rfind("  ") for line in lines[:2]}) == 1
    assert max(map(len, lines)) <= 110 and repr(report) == str(report)
    assert report["zero gradients"].verdict == "ALARM"
    with pytest.raises(KeyError, match="no check 'zero'"):
        report["zero"]


def test_a_batch_of_one_and_a_single_step():
    x, y = images()
    report = masking(NET, x[:1], y[:1], ball=BALL, steps=1, queries=1)
    assert report.alarms == ()


def test_any_number_of_threads_gives_the_same_report():
    x, y = images()
    net = Net()
    net.by_example = True
    reports = []
    for n in (1, 2):
        with parallel.limit(n):
            reports.append(str(masking(net, x, y, **FEW, sources=net)))
    assert reports[0] == reports[1]


@pytest.mark.parametrize("sources", [(), [NET, Net(seed=1)]], ids=["alone", "sources"])
def test_the_pixels_are_checked_once(sources, monkeypatch):
    x, y = images()
    calls, check = [], inputs.check_pixels
    monkeypatch.setattr(inputs, "check_pixels", lambda x, *a: calls.append(x) or check(x, *a))
    masking(NET, x, y, **FEW, sources=sources)
    assert len(calls) == 1 and calls[0] is x


def test_a_single_check_takes_one_look_at_the_images(monkeypatch):
    x, y = images()
    calls, check = [], inputs.check_pixels
    monkeypatch.setattr(inputs, "check_pixels", lambda x, *a: calls.append(x) or check(x, *a))
    how = {"steps": 2, "ball": BALL}
    single = [
        partial(checks.random_answers, NET, x), partial(checks.probabilities, NET, x),
        partial(checks.zero_gradients, NET, x, y), partial(checks.unbounded, NET, x, y, steps=2),
        partial(checks.more_steps, NET, x, y, **how),
        partial(checks.larger_epsilon, NET, x, y, **how),
        partial(checks.black_box, NET, x, y, queries=2, **how),
        partial(checks.transferred, NET, x, y, sources=[NET, NET], **how),
    ]  # fmt: skip
    for ask in single:
        calls.clear()
        quietly(ask)
        assert len(calls) == 1, ask.func.__name__


def test_a_case_brings_the_settings_of_the_attack():
    x, y = images()
    how = {"ball": Linf(0.05), "steps": 4, "rng": 1, "loss": losses.margin}
    case = checks.the_case(NET, x, y, **how)
    assert checks.more_steps(NET, case).measured == checks.more_steps(NET, x, y, **how).measured
    assert checks.the_case(NET, case) is case and case.fooled is case.fooled  # PGD ran once
    np.testing.assert_array_equal(case.examples.y, y)
    with pytest.raises(TypeError, match="epsilon"):
        checks.more_steps(NET, x, y, epsilon=0.1)


def test_pgd_runs_once_for_all_comparisons(monkeypatch):
    x, y = images()
    runs = []
    monkeypatch.setattr(checks, "pgd", lambda *a, **how: runs.append(how) or pgd(*a, **how))
    masking(NET, x, y, **FEW, sources=NET)
    # Itself, one step and a quarter of the steps, ε/2 and 2 ε, without a limit, on the source.
    assert len(runs) == 7


def test_a_model_that_looks_at_the_whole_batch_is_not_taken_for_random():
    x, y = images()
    y = np.where(np.arange(len(y)) % 2, y, (y + 1) % 5)  # half of the images are left out

    def normalised(x):
        return NET(x) - 0.1 * ops.mean(NET(x), axis=0, keepdims=True)

    assert not quietly(masking, normalised, x, y, **FEW)["random answers"].alarm


def test_a_source_with_other_classes_is_named():
    x, y = images()
    with pytest.raises(ValueError, match=r"y must be from 0 to 1, .* 2 logits"):
        checks.transferred(NET, x, y, sources=lambda x: NET(x)[:, :2], ball=BALL, steps=2)


def test_a_check_warns_of_probabilities_where_it_was_called():
    x, y = images()
    with pytest.warns(AttackWarning, match="probabilities") as caught:
        checks.more_steps(ends_in_softmax, x, y, ball=BALL, steps=2)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"ball": 0.3}, TypeError, "Linf"),
        ({"steps": 0}, ValueError, "steps"),
        ({"queries": 2.5}, ValueError, "queries"),
        ({"x": np.zeros((2, 1, 6, 6), int)}, TypeError, "floating-point"),
        ({"y": np.zeros(3, int)}, ValueError, "one for each"),
    ],
)
def test_bad_input_is_named(change, error, words):
    x, y = images()
    settings = {"x": x, "y": y, "ball": BALL, "steps": 2, "queries": 2, **change}
    with pytest.raises(error, match=words):
        masking(NET, **settings)


def test_an_attack_on_other_images_is_refused():
    x, y = images()
    with pytest.raises(ValueError, match="direct must be"):
        checks.black_box(NET, x, y, direct=x[:5])


def test_parameters_and_images_are_not_touched():
    x, y = images()
    before = [a.copy() for a in (NET.w, NET.b, NET.v, x, y)]
    masking(NET, x, y, **FEW)
    for was, now in zip(before, (NET.w, NET.b, NET.v, x, y), strict=True):
        np.testing.assert_array_equal(was, now)


def test_the_same_findings_on_any_backend(device):
    x, y = images()
    net = Net(device)
    x, y = x[:40], y[:40]
    got = masking(net, device.asarray(x), device.asarray(y), **FEW, sources=net)
    expected = masking(NET, x, y, **FEW, sources=NET)
    assert got.alarms == expected.alarms == ()
    for ours, theirs in zip(got.findings, expected.findings, strict=True):
        assert ours.check == theirs.check
        if ours.check not in ("probabilities", "random answers"):
            assert ours.measured == theirs.measured


def test_a_masking_warning_is_an_attack_warning():
    assert issubclass(MaskingWarning, AttackWarning)
