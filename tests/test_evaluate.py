"""Predictions and accuracies against counting by hand."""

import copy
import json
import sys
import threading
import warnings
from functools import partial

import numpy as np
import pytest

from tinyadv import Tensor, array_module, attacks, evaluate, models, ops, to_numpy
from tinyadv.attacks import AttackWarning
from tinyadv.balls import L1, Linf
from tinyadv.evaluate import accuracy, predict

RNG = np.random.default_rng(0)
X = RNG.random((23, 1, 3, 3), np.float32)
MODEL = models.mlp((9, 8, 4), rng=1)
LOGITS = MODEL(X).value
RIGHT = LOGITS.argmax(1)
Y = np.where(np.arange(23) % 3 == 0, (RIGHT + 1) % 4, RIGHT)  # 8 of 23 are wrong


def on(xp):
    """The model, the images and the labels on the backend ``xp``."""
    model = models.mlp((9, 8, 4), rng=1)
    for p in model.parameters():
        p.value = xp.asarray(p.value)
    return model, xp.asarray(X), xp.asarray(Y)


@pytest.mark.parametrize("batch_size", [1, 5, 23, 1000])
def test_by_hand_with_any_batch_size(xp, batch_size):
    model, x, y = on(xp)
    labels = predict(model, x, batch_size=batch_size)
    assert array_module(labels) is xp and labels.dtype == np.int64
    np.testing.assert_array_equal(to_numpy(labels), RIGHT)
    assert accuracy(model, x, y, batch_size=batch_size) == pytest.approx(15 / 23)


def test_defaults_and_plain_functions():
    assert accuracy(MODEL, X, RIGHT) == 1.0
    assert accuracy(MODEL, X, (RIGHT + 1) % 4) == 0.0
    assert accuracy(lambda x: LOGITS[: len(x)], X, Y) == pytest.approx(15 / 23)  # arrays, no tensor
    assert type(accuracy(MODEL, X, Y)) is float
    assert accuracy(MODEL, X, Y.tolist()) == accuracy(MODEL, X, Y.astype(np.uint8))
    assert accuracy(MODEL, list(X), Y.tolist()) == accuracy(MODEL, X, Y)


def test_batch_size_bounds_the_memory():
    sizes = []

    def model(x):
        sizes.append(len(x))
        return MODEL(x)

    predict(model, X, batch_size=10)
    accuracy(model, X, Y, batch_size=10)
    assert sizes == [10, 10, 3] * 2


@pytest.mark.parametrize("by_example", [True, False])
def test_only_a_model_that_allows_it_is_given_parts_of_a_large_batch(by_example):
    sizes, given = [], []

    def model(x):
        sizes.append(len(x))
        return threshold(x)

    def attack(model, x, y):
        given.append(len(x))
        return x

    model.by_example = by_example
    x, y = np.full((2100, 2), 0.4, np.float32), np.zeros(2100, int)
    accuracy(model, x, y, attack)
    assert given == sizes == ([500] * 4 + [100] if by_example else [2100])
    sizes.clear(), given.clear()
    evaluate.robustness(model, x, y, {"none": attack})
    evaluate.robustness_curve(model, x, y, lambda epsilon: attack, [0.1])
    assert given == ([1000, 1000, 100] if by_example else [2100]) * 2
    assert max(sizes) == (500 if by_example else 2100)


def test_an_attack_is_given_copies():
    x, y = X.copy(), Y.copy()

    def vandal(model, xb, yb):
        result = xb.copy()
        xb[:], yb[:] = 0.5, 3
        return result

    assert accuracy(MODEL, x, y, vandal, batch_size=10) == pytest.approx(15 / 23)
    found = evaluate.robustness(MODEL, x, y, {"vandal": vandal}, batch_size=10)
    assert found.worst_case == pytest.approx(15 / 23)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


def test_labels_on_the_host_and_one_wait_for_all(device):
    model, x, _ = on(device)
    assert accuracy(model, x, Y) == pytest.approx(15 / 23)
    if hasattr(device, "count"):
        with device.count() as c:
            accuracy(model, x, device.asarray(Y), batch_size=5)
        assert c.syncs == 1


def test_the_attack_comes_first(xp):
    model, x, y = on(xp)
    seen = []

    def attack(attacked, xb, yb):
        assert attacked is model
        seen.append((to_numpy(xb), to_numpy(yb)))
        return xp.asarray(X[:1]) + 0 * xb  # the first example, whatever came

    got = accuracy(model, x, y, attack=attack, batch_size=10)
    assert got == pytest.approx((Y == RIGHT[0]).mean())
    np.testing.assert_array_equal(np.concatenate([xb for xb, _ in seen]), X)
    np.testing.assert_array_equal(np.concatenate([yb for _, yb in seen]), Y)


def test_errors():
    with pytest.raises(ValueError, match="at least one example"):
        accuracy(MODEL, X[:0], Y[:0])
    for labels in (Y[1:], Y[:, None], Y[0]):
        with pytest.raises(ValueError, match=r"integers of shape \(23,\).*got int64 of shape \("):
            accuracy(MODEL, X, labels)
    for labels in (Y.astype(float), Y == 1, np.eye(4)[Y]):
        with pytest.raises(ValueError, match=r"y must be integers.*got (float64|bool)"):
            accuracy(MODEL, X, labels)
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match=r"batch_size must be .*1, got"):
            accuracy(MODEL, X, Y, batch_size=batch_size)
        with pytest.raises(ValueError, match=r"batch_size must be .*1, got"):
            predict(MODEL, X, batch_size=batch_size)


def test_no_examples_have_no_predictions(xp):
    model, x, _ = on(xp)
    labels = predict(model, x[:0])
    assert labels.shape == (0,) and labels.dtype == np.int64 and array_module(labels) is xp


# ------------------------------------------------------------------------- logits that are NaN


def lost(x, every=1):
    """NaN among the logits of every second example, or of each; otherwise class 0."""
    xp = array_module(x)
    z = xp.zeros((len(x), 4))
    z[:, 0] = 5
    z[::every, -1] = np.nan
    return z


@pytest.mark.parametrize("every, right", [(1, 0), (2, 11)])
@pytest.mark.parametrize("label", [0, 3])
def test_nan_is_never_correct(every, right, label, xp):
    model, x, y = partial(lost, every=every), xp.asarray(X), xp.full(23, label)
    nothing = lambda model, x, y: x
    for how in ({}, {"attack": nothing}, {"batch_size": 23}):
        with pytest.warns(AttackWarning, match=rf"NaN for {23 - right} of 23") as caught:
            assert accuracy(model, x, y, **how) == (right / 23 if label == 0 else 0)
        assert [warning.filename for warning in caught] == [__file__]
    for call in (
        lambda: evaluate.robustness(model, x, y, {"none": nothing}),
        lambda: evaluate.robustness_curve(model, x, y, lambda epsilon: nothing, [0.1]),
    ):
        with pytest.raises(ValueError, match=rf"NaN .*for {23 - right} of 23"):
            call()


def test_infinite_logits_are_predictions():
    z = np.array([[0, np.inf], [-np.inf, 0], [np.inf, 0]])
    assert accuracy(lambda x: z, np.zeros((3, 2)), [1, 1, 1]) == 2 / 3


# ------------------------------------------------------------------------------- several attacks


def nudge(size, which=None, forward=1):
    """An attack that adds ``size`` to every pixel of the examples whose first pixel is ``which``.

    With ``THRESHOLD`` as the model, size 0.3 turns what is below 0.5 and above 0.2.
    """

    def attack(model, x, y):
        for _ in range(forward):
            model(x)
        chosen = 1.0 if which is None else (abs(x[:, :1] - which) < 0.01).astype(x.dtype)
        return array_module(x).clip(x + size * chosen, 0, 1)

    return attack


def threshold(x):
    """Class 1 where the first of two pixels is above a half: logits (N, 2)."""
    score = (x[:, :1] - 0.5) * 10
    return ops.concatenate([0 * score, score], axis=1)


#           right, and how much it takes:  0.1  0.2  0.3  0.4 | wrong already | 0.05
PIXELS = np.array([[0.42, 0.5], [0.32, 0.5], [0.22, 0.5], [0.12, 0.5], [0.9, 0.5], [0.47, 0.2]])
PIXELS = PIXELS.astype(np.float32)
LABELS = np.zeros(6, int)


def test_robustness_by_hand(xp):
    x, y = xp.asarray(PIXELS), xp.asarray(LABELS)
    attacks = {"small": nudge(0.1), "large": nudge(0.25), "one": nudge(0.6, which=0.12)}
    got = evaluate.robustness(threshold, x, y, attacks)
    np.testing.assert_array_equal(got.correct, [1, 1, 1, 1, 0, 1])
    assert got.clean_accuracy == pytest.approx(5 / 6)  # the wrong one stays in the denominator
    small, large, one = got.attacks.values()
    np.testing.assert_array_equal(small.attacked, got.correct)
    np.testing.assert_array_equal(small.succeeded, [1, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(large.succeeded, [1, 1, 0, 0, 0, 1])
    np.testing.assert_array_equal(one.survived, [1, 1, 1, 0, 0, 1])
    assert [r.accuracy for r in (small, large, one)] == pytest.approx([3 / 6, 2 / 6, 4 / 6])
    assert [r.success_rate for r in (small, large, one)] == pytest.approx([2 / 5, 3 / 5, 1 / 5])
    np.testing.assert_array_equal(got.survived, [0, 0, 1, 0, 0, 0])
    assert got.worst_case == pytest.approx(1 / 6)
    # The perturbation is 0.1 on each of two pixels; of the successes alone.
    assert small.median == pytest.approx({"Linf": 0.1, "L2": 0.1 * 2**0.5, "L1": 0.2}, rel=1e-5)
    np.testing.assert_array_equal(np.isnan(small.sizes["L1"]), ~small.succeeded)
    assert large.largest["L1"] == pytest.approx(0.5, rel=1e-5)


def test_the_median_and_the_largest_are_those_of_the_successes():
    def attack(model, x, y):  # 0.1, 0.2, 0.3, 0.4: just enough; 0.01 more for the last
        return np.concatenate([np.clip(0.52 + 0 * x[:, :1], 0, 1), x[:, 1:]], axis=1)

    result = evaluate.robustness(threshold, PIXELS, LABELS, {"just": attack}).attacks["just"]
    sizes = np.array([0.1, 0.2, 0.3, 0.4, 0.05])
    for norm in ("Linf", "L2", "L1"):
        assert result.median[norm] == pytest.approx(np.median(sizes), rel=1e-5)
        assert result.largest[norm] == pytest.approx(0.4, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batches_bound_what_an_attack_gets_and_change_nothing_else(batch_size):
    sizes = []

    def attack(model, x, y):
        sizes.append(len(x))
        assert y.shape == (len(x),)
        return nudge(0.25)(model, x, y)

    got = evaluate.robustness(threshold, PIXELS, LABELS, {"a": attack}, batch_size=batch_size)
    assert max(sizes) == min(5, batch_size) and sum(sizes) == 5
    assert got.attacks["a"].queries == 1
    np.testing.assert_array_equal(got.survived, [0, 0, 1, 1, 0, 0])


def test_a_cascade_finds_the_same_worst_case_and_attacks_only_what_survives():
    attacks = {"small": nudge(0.1), "large": nudge(0.25, forward=4), "one": nudge(0.6, 0.12)}
    every = evaluate.robustness(threshold, PIXELS, LABELS, attacks)
    after = evaluate.robustness(threshold, PIXELS, LABELS, attacks, cascade=True)
    np.testing.assert_array_equal(after.survived, every.survived)
    assert [int(r.attacked.sum()) for r in every.attacks.values()] == [5, 5, 5]
    assert [int(r.attacked.sum()) for r in after.attacks.values()] == [5, 3, 2]
    assert after.attacks["large"].success_rate == pytest.approx(1 / 3)
    assert after.attacks["large"].queries == 4  # for each attacked example
    assert after.attacks["one"].accuracy == after.worst_case


def test_which_attack_broke_which_example():
    attacks = {"small": nudge(0.1), "large": nudge(0.25), "one": nudge(0.6, which=0.12)}
    for cascade in (False, True):
        got = evaluate.robustness(threshold, PIXELS, LABELS, attacks, cascade=cascade)
        np.testing.assert_array_equal(got.broken_by, [0, 1, 3, 2, -1, 0])
        assert got.broken_by.dtype.kind == "i"
        np.testing.assert_array_equal(got.survived, got.broken_by == 3)
        assert got.robust_accuracy == got.worst_case == pytest.approx(1 / 6)


def test_nan_after_an_attack_is_misclassified_as_well():
    def lost(x):  # the logits of what the attack returns
        z = threshold(x)
        return np.where(x[:, :1] == 1, np.nan, z.value if isinstance(z, Tensor) else z)

    whiten = lambda model, x, y: np.ones_like(x)
    for ball, correct in ((None, 0), (Linf(1.0), 0), (Linf(1e-3), 5 / 6)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            got = evaluate.robustness(lost, PIXELS, LABELS, {"lost": whiten}, ball=ball)
        assert got.robust_accuracy == correct and got.clean_accuracy == 5 / 6
        assert [w.filename for w in caught] == [__file__] * (correct == 0)
    with pytest.warns(AttackWarning, match="NaN for 5 .*'lost'"):
        evaluate.robustness(lost, PIXELS, LABELS, {"lost": whiten}, cascade=True)
    with pytest.warns(AttackWarning, match="NaN for 6 of 6"):
        assert accuracy(lost, PIXELS, LABELS, whiten) == 0
    with pytest.raises(ValueError, match=r"NaN .* for 1 of 1 images"):
        evaluate.robustness(lost, np.ones((1, 2)), LABELS[:1], {"lost": whiten})


def test_an_attack_waits_for_the_device_twice(device):
    """For the range of the pixels, and for all that is measured."""
    if hasattr(device, "count"):
        x, y = device.asarray(PIXELS), device.asarray(LABELS)
        syncs = []
        for n in (1, 3):
            attacks = {str(i): lambda model, x, y: x for i in range(n)}
            with device.count() as c:
                evaluate.robustness(threshold, x, y, attacks, ball=Linf(0.1))
            syncs.append(c.syncs)
        assert syncs[1] - syncs[0] == 2 * 2


def test_a_frozen_counted_model_adds_to_the_same_counts():
    counted = evaluate.Counted(MODEL)
    frozen = counted.frozen()
    assert isinstance(frozen(X[:2]), np.ndarray) and isinstance(counted(X[:3]), Tensor)
    frozen(Tensor(X[:4]))
    assert counted.queries == frozen.queries == 5 and counted.gradients == frozen.gradients == 4
    assert counted.by_example and frozen.by_example
    plain = evaluate.Counted(threshold)
    plain.frozen()(X[:2].reshape(2, -1))
    assert plain.queries == 2 and not getattr(plain, "by_example", False)


def test_probabilities_are_noticed_where_robustness_is_called():
    softmax = lambda x: ops.softmax(threshold(x), axis=1)
    nothing = {"none": lambda model, x, y: x}
    with pytest.warns(AttackWarning, match="probabilities") as caught:
        evaluate.robustness(softmax, PIXELS, LABELS, nothing)
    with pytest.warns(AttackWarning, match="probabilities") as curve:
        evaluate.robustness_curve(softmax, PIXELS, LABELS, lambda epsilon: nothing["none"], [0.1])
    assert caught[0].filename == curve[0].filename == __file__


def test_a_ball_decides_what_counts():
    attacks = {"small": nudge(0.1), "large": nudge(0.25)}
    for ball, survivors in [(Linf(0.2), 3), (Linf(0.1), 3), (Linf(0.09), 5), (L1(0.5), 2)]:
        got = evaluate.robustness(threshold, PIXELS, LABELS, attacks, ball=ball)
        assert got.survived.sum() == survivors, ball
        assert got.attacks["large"].accuracy == (2 if ball == L1(0.5) else 5) / 6


def test_passes_are_counted_with_arrays_and_with_tensors_in_several_threads(xp):
    model, x, y = on(xp)
    attack = partial(attacks.pgd, ball=Linf(0.05), steps=3)
    got = evaluate.robustness(model, x, y, {"PGD": attack}).attacks["PGD"]
    # One more gradient for the first look at the model, shared by all 15 examples.
    assert got.gradients == pytest.approx(3 + 1 / 15) and got.queries == 0
    restarts = partial(attack, restarts=2)
    got = evaluate.robustness(model, x, y, {"PGD": restarts}).attacks["PGD"]
    assert got.gradients == pytest.approx(6 + 1 / 15) and got.queries == 2


def test_no_pass_is_lost_between_threads():
    counted = evaluate.Counted(lambda x: x)
    switch, rounds = sys.getswitchinterval(), 3000
    sys.setswitchinterval(1e-6)
    try:

        def work():
            for _ in range(rounds):
                counted(X[:2])
                counted(Tensor(X[:3]))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert (counted.queries, counted.gradients) == (4 * rounds * 2, 4 * rounds * 3)


def test_a_counted_model_has_what_the_model_has():
    counted = evaluate.Counted(MODEL)
    assert counted.parameters()[0] is MODEL.parameters()[0]
    with pytest.raises(AttributeError, match="colour"):
        counted.colour  # noqa: B018
    assert copy.copy(counted).model is MODEL
    np.testing.assert_array_equal(counted(X).value, LOGITS)


def test_what_an_attack_claims_does_not_count():
    """It wrote into its input, and what it returns is classified correctly."""

    def boaster(model, x, y):
        x[:] = 0.9
        return x * 0

    kept = PIXELS.copy()
    got = evaluate.robustness(threshold, PIXELS, LABELS, {"boaster": boaster})
    assert got.attacks["boaster"].success_rate == 0
    np.testing.assert_array_equal(PIXELS, kept)

    def in_place(model, x, y):
        x += 0.25
        return np.clip(x, 0, 1, out=x)

    result = evaluate.robustness(threshold, PIXELS, LABELS, {"in place": in_place}).attacks
    assert result["in place"].largest["Linf"] == pytest.approx(0.25, rel=1e-5)


def test_an_attack_that_does_nothing(xp):
    x, y = xp.asarray(PIXELS), xp.asarray(LABELS)
    got = evaluate.robustness(threshold, x, y, {"none": lambda model, x, y: x})
    assert got.worst_case == got.clean_accuracy == got.attacks["none"].accuracy
    result = got.attacks["none"]
    assert result.success_rate == 0 and all(np.isnan(v) for v in result.median.values())
    assert "–" in str(got) and "nan" not in str(got)
    numbers = got.as_dict()["attacks"]["none"]
    assert numbers["median"] == numbers["largest"] == dict.fromkeys(["Linf", "L2", "L1"])
    json.dumps(got.as_dict(), allow_nan=False)  # which JSON does not have


def test_no_example_is_right():
    def never(model, x, y):
        raise AssertionError("there is nothing to attack")

    got = evaluate.robustness(threshold, PIXELS, 1 - (PIXELS[:, 0] > 0.5), {"a": never})
    assert got.clean_accuracy == got.worst_case == got.attacks["a"].accuracy == 0
    assert np.isnan(got.attacks["a"].success_rate) and got.attacks["a"].queries == 0
    assert "nan" not in got.table() and got.as_dict()["attacks"]["a"]["success_rate"] is None


def test_the_table_and_the_numbers():
    attacks = {"small": nudge(0.1, forward=3), "large": nudge(0.25)}
    got = evaluate.robustness(threshold, PIXELS, LABELS, attacks)
    assert repr(got) == str(got) == got.table()  # notebooks show the repr
    assert repr(got.attacks["small"]).startswith(
        "AttackResult(accuracy=0.5, success_rate=0.4, queries=3, gradients=0, seconds="
    )
    lines = str(got).splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "no attack", "small", "large", "all attacks"
    ]  # fmt: skip
    assert "83.3 %" in lines[2] and "33.3 %" in lines[-1]
    for cell in ("50.0 %", "40.0 %", "0.1, 0.1", "0.2, 0.2", "0.141, 0.141", "3.0", "0.0"):
        assert cell in lines[3]
    assert len(set(map(len, lines[:2] + lines[3:5]))) == 1  # aligned
    numbers = got.as_dict()
    assert numbers == json.loads(json.dumps(numbers))
    assert numbers["examples"] == 6 and numbers["worst_case"] == pytest.approx(2 / 6)
    assert numbers["attacks"]["small"]["success_rate"] == pytest.approx(0.4)
    assert numbers["attacks"]["small"]["median"]["L1"] == pytest.approx(0.2, rel=1e-5)
    assert list(numbers["attacks"]["small"]) == [
        "accuracy", "success_rate", "median", "largest", "queries", "gradients", "seconds"
    ]  # fmt: skip
    assert numbers["attacks"]["small"]["seconds"] >= 0


@pytest.mark.parametrize(
    "answer, error, words",
    [
        (lambda x: x[:-1], ValueError, r"'bad' must return float32 of shape \(5, 2\).*got.*\(4, 2"),
        (lambda x: x.astype(np.float64), ValueError, r"'bad' must return float32.*got float64"),
        (
            lambda x: x + 1,
            ValueError,
            r"'bad' returned.*from 0 to 1, got values from 1\.12 to 1\.5",
        ),
        (lambda x: x - 1, ValueError, r"'bad' returned.*from 0 to 1, got values from -0\.88"),
        (lambda x: x * np.float32(np.nan), ValueError, "'bad' returned.*got NaN"),
        (lambda x: x * np.float32(np.inf), ValueError, "'bad' returned.*got values from inf"),
        (Tensor, TypeError, "'bad' must return an array.*got Tensor"),
        (lambda x: None, TypeError, "'bad' must return an array.*got NoneType"),
    ],
)
def test_what_an_attack_returns_is_checked(answer, error, words):
    with pytest.raises(error, match=words):
        evaluate.robustness(
            threshold, PIXELS, LABELS, {"good": nudge(0.1), "bad": lambda model, x, y: answer(x)}
        )


def test_an_attack_that_raises_is_named():
    def broken(model, x, y):
        raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError, match="inside") as caught:
        evaluate.robustness(threshold, PIXELS, LABELS, {"fine": nudge(0.1), "broken": broken})
    assert caught.value.__notes__ == ["while the attack 'broken' was running"]


def test_errors_of_robustness():
    fine = {"a": nudge(0.1)}
    with pytest.raises(TypeError, match=r"attacks must be a dict.*got function"):
        evaluate.robustness(threshold, PIXELS, LABELS, nudge(0.1))
    with pytest.raises(ValueError, match="at least one attack"):
        evaluate.robustness(threshold, PIXELS, LABELS, {})
    with pytest.raises(ValueError, match="at least one example"):
        evaluate.robustness(threshold, PIXELS[:0], LABELS[:0], fine)
    with pytest.raises(ValueError, match=r"integers of shape \(6,\)"):
        evaluate.robustness(threshold, PIXELS, LABELS[1:], fine)
    with pytest.raises(ValueError, match=r"x must have .* from 0 to 1, got.*0\.48 to 3\.6"):
        evaluate.robustness(threshold, 4 * PIXELS, LABELS, fine)
    with pytest.raises(ValueError, match=r"batch_size must be .*1, got"):
        evaluate.robustness(threshold, PIXELS, LABELS, fine, batch_size=0)


@pytest.mark.parametrize("labels", [LABELS - 1, LABELS + 2, LABELS + 100])
def test_labels_that_the_model_does_not_have(labels, xp):
    x, y = xp.asarray(PIXELS), xp.asarray(labels)
    words = f"y must be from 0 to 1,.* 2 logits; got y from {labels[0]} to {labels[0]}"
    with pytest.raises(ValueError, match=words):
        evaluate.robustness(threshold, x, y, {"a": nudge(0.1)})
    with pytest.raises(ValueError, match=words):
        evaluate.robustness_curve(threshold, x, y, nudge, [0.1])


@pytest.mark.parametrize("ball", [0.3, "Linf", Linf])
def test_a_ball_is_one(ball):
    with pytest.raises(TypeError, match=r"ball must be Linf.*L2.*L1.*got "):
        evaluate.robustness(threshold, PIXELS, LABELS, {"a": nudge(0.1)}, ball=ball)


@pytest.mark.parametrize("dtype, shown", [("f4", "1.0000001"), ("f8", "1.0000000000000002")])
def test_a_rounding_error_can_be_seen_in_the_message(dtype, shown, xp):
    x = PIXELS.astype(dtype)
    x[0, 1] = np.nextafter(np.ones((), dtype), 2)
    with pytest.raises(ValueError, match=rf"to {shown}: np\.clip"):
        evaluate.robustness(threshold, xp.asarray(x), xp.asarray(LABELS), {"a": nudge(0.1)})


def test_a_bar_is_shown_only_when_asked_for(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    evaluate.robustness(threshold, PIXELS, LABELS, {"nudged": nudge(0.1)})
    assert capsys.readouterr().err == ""
    evaluate.robustness(threshold, PIXELS, LABELS, {"nudged": nudge(0.1)}, progress=True)
    assert "nudged" in capsys.readouterr().err
    evaluate.robustness_curve(threshold, PIXELS, LABELS, nudge, [0.25], progress=True)
    assert "ε = 0.25" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- over epsilon


def test_a_curve_by_hand(xp):
    x, y = xp.asarray(PIXELS), xp.asarray(LABELS)
    epsilons, accuracies = evaluate.robustness_curve(
        threshold, x, y, nudge, [0.25, 0, 0.1, 0.5], batch_size=2
    )
    assert type(epsilons) is type(accuracies) is np.ndarray
    np.testing.assert_array_equal(epsilons, [0.25, 0, 0.1, 0.5])
    np.testing.assert_allclose(accuracies, np.array([2, 5, 3, 0]) / 6)


def test_a_curve_too_gives_an_attack_no_more_than_a_batch():
    sizes = []

    def attack(epsilon):
        return lambda model, x, y: sizes.append(len(x)) or x

    evaluate.robustness_curve(threshold, PIXELS, LABELS, attack, [0.1, 0.2], batch_size=2)
    assert sizes == [2, 2, 1] * 2


def test_at_zero_nothing_is_attacked():
    def attack(epsilon):
        raise AssertionError("ε = 0 is no attack")

    _, accuracies = evaluate.robustness_curve(threshold, PIXELS, LABELS, attack, [0.0])
    assert accuracies.tolist() == [5 / 6]


@pytest.mark.parametrize("cascade, right", [(False, [3, 5, 4]), (True, [3, 3, 4])])
def test_a_cascade_never_rises(cascade, right):
    given = []

    def attack(epsilon):
        def fails_if_large(model, x, y):
            given.append(len(x))
            return nudge(epsilon if epsilon < 0.2 else 0.0)(model, x, y)

        return fails_if_large

    _, accuracies = evaluate.robustness_curve(
        threshold, PIXELS, LABELS, attack, [0.15, 0.3, 0.05], cascade=cascade
    )
    np.testing.assert_allclose(accuracies, np.array(right) / 6)
    assert given == ([5, 4, 3] if cascade else [5, 5, 5])


def test_errors_of_a_curve():
    for bad in ([0.1, -0.1], [np.nan]):
        with pytest.raises(ValueError, match="epsilons must be ≥ 0, got"):
            evaluate.robustness_curve(threshold, PIXELS, LABELS, nudge, bad)
    with pytest.raises(ValueError, match="at least one example"):
        evaluate.robustness_curve(threshold, PIXELS[:0], LABELS[:0], nudge, [0.1])
    with pytest.raises(ValueError, match="'ε = 2' returned"):
        evaluate.robustness_curve(
            threshold, PIXELS, LABELS, lambda epsilon: lambda model, x, y: x + epsilon, [2]
        )


def test_a_folder_that_cannot_be_written_is_noticed_before_the_first_attack(tmp_path):
    (tmp_path / "file").touch()
    x, y = np.random.default_rng(0).random((4, 1, 28, 28)), np.zeros(4, int)
    model, calls = models.slides_cnn(), []
    attack = {"watched": lambda model, x, y: calls.append(x)}
    with pytest.raises(OSError):
        evaluate.robustness(model, x, y, attack, checkpoint=tmp_path / "file")
    assert not calls
