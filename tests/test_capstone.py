"""The capstone's scores: honest attempts get what they deserve, and cheating does not pay."""

import dataclasses
import itertools

import numpy as np
import pytest

from lessons.exercises import __main__ as command
from lessons.exercises import capstone_scoring as scoring
from lessons.exercises.checker import EXERCISES, load
from tinyadv import attacks, data, evaluate, fit, layers, models, optim
from tinyadv.balls import Linf

EPSILON = 0.1  # a little training is enough to survive some of it
EFFORT = {"steps": 3, "targets": 1, "queries": 5}
STUBS, SOLUTION = EXERCISES / "capstone.py", EXERCISES / "solutions" / "capstone.py"
FIRST = EXERCISES / "solutions" / "capstone_first_attempt.py"


@pytest.fixture(scope="module")
def digits():
    full = data.load("glyphs")
    few = {"x_train": full.x_train[:2000], "y_train": full.y_train[:2000]}
    few |= {"x_test": full.x_test[:60], "y_test": full.y_test[:60]}
    return dataclasses.replace(full, **few)


@pytest.fixture(scope="module")
def network(digits):
    model = models.slides_cnn(0)
    adam = optim.Adam(model.parameters(), lr=0.003)
    fit(model, digits, adam, epochs=1, rng=0, validate=False, progress=False)
    return model


def judged(network, digits, took=1.0, epsilon=EPSILON):
    x, y = digits.x_test[30:], digits.y_test[30:]
    return scoring.judge(network, x, y, epsilon, took, 60, EFFORT)


# -------------------------------------------------------------------------------------- training


def test_a_network_is_scored_by_its_worst_case(network, digits):
    score = judged(network, digits)
    x, y = digits.x_test[30:], digits.y_test[30:]
    x_adv = attacks.pgd(network, x, y, ball=Linf(EPSILON), steps=3)
    clean, under_pgd = (evaluate.accuracy(network, images, y) for images in (x, x_adv))
    assert 0 <= score.share <= under_pgd + 0.1 < clean
    assert f"clean {clean:.1%}" in score.remarks[0] and "AutoAttack" in score.remarks[0]
    assert "1 s of 60 s" in score.remarks[1]
    assert judged(network, digits, epsilon=0.0).share == clean


def test_a_training_that_takes_too_long_scores_nothing(network, digits):
    assert judged(network, digits, took=60 * scoring.LATE, epsilon=0).share > 0.5
    late = judged(network, digits, took=67, epsilon=0)
    assert late.share == 0
    assert "67 s of 60 s" in late.remarks[0] and "score is 0" in late.remarks[0]


@pytest.mark.parametrize("took, passes", [(50, True), (90, False)])
def test_the_clock_runs_while_the_network_is_trained(network, digits, took, passes):
    clock = itertools.count(1000, took).__next__
    seen = []

    def train(digits, epsilon, seconds):
        seen.append((digits, epsilon, seconds))
        return network

    score = scoring.score_training(train, digits, 0.0, 60, clock=clock, images=20, effort=EFFORT)
    assert (score.share > 0.5) == passes
    ((given, epsilon, seconds),) = seen
    assert (epsilon, seconds) == (0.0, 60)
    assert np.array_equal(given.x_test, digits.x_test[:30])  # the other half is the score's
    assert np.array_equal(given.y_test, digits.y_test[:30])


class Constant(layers.Module):
    by_example = True

    def __call__(self, x):
        return (x * 0).sum(axis=(1, 2, 3))[:, None] + np.eye(10, dtype=np.float32)[3]


def test_a_constant_network_scores_nothing(digits):
    score = judged(Constant(), digits)
    assert score.share == 0 and "of the clean images" in score.remarks[0]


def test_masked_networks_score_nothing(network, digits):
    for masked in (
        scoring.masked(network),
        lambda x: 1e4 * network(x),
        lambda x: network(np.asarray(getattr(x, "value", x))).value,  # no gradient at all
    ):
        score = judged(masked, digits)
        assert score.share == 0
        assert "masked" in score.remarks[0] and "gradient" in score.remarks[0]


@pytest.mark.parametrize(
    "result, words",
    [
        (None, "returns nothing"),
        (..., "returns nothing"),
        ("a network", "must return a network, not str"),
        (lambda x: x, "does not work"),
    ],
)
def test_what_is_no_network_is_answered_in_a_sentence(digits, result, words):
    score = scoring.score_training(lambda *_: result, digits, EPSILON, effort=EFFORT)
    assert score.share == 0 and words in score.remarks[0]


def test_the_solution_returns_a_network_within_its_time(digits):
    """How long it takes is not measured here, since machines differ."""
    network = load(SOLUTION).train(digits, 0.2, 0.3)
    assert network(digits.x_test[:2]).shape == (2, 10)


# ---------------------------------------------------------------------------------------- attack


def fooled(attack, network, digits, epsilon=0.2):
    return scoring.score_attack(
        attack, scoring.masked(network), digits.x_test, digits.y_test, epsilon
    )


def test_the_masked_defence_is_the_network_before_the_rounding(network, digits):
    defence = scoring.masked(network)
    rounded = 1 - np.rint(7 * (1 - digits.x_test)) / 7
    assert np.array_equal(
        evaluate.predict(defence, digits.x_test),
        evaluate.predict(network, rounded.astype(np.float32)),
    )


def test_the_solution_breaks_what_plain_pgd_does_not(network, digits):
    solution = fooled(load(SOLUTION).attack, network, digits)
    first = fooled(load(FIRST).attack, network, digits)
    assert solution.share >= scoring.PASS["attack"] > first.share + 0.3
    assert not solution.remarks and not first.remarks


def outside(model, x, y, epsilon):
    """The opposite of the image: it fools every network, and lies far outside the ball."""
    return 1 - x


def no_image(model, x, y, epsilon):
    return x + epsilon * np.where(x > 0.5, 1, -1)


def not_a_number(model, x, y, epsilon):
    return np.full_like(x, np.nan)


@pytest.mark.parametrize(
    "cheat, words",
    [(outside, "in the ball"), (no_image, "in [0, 1]"), (not_a_number, "in the ball")],
)
def test_what_breaks_the_threat_model_does_not_count(network, digits, cheat, words):
    score = fooled(cheat, network, digits)
    assert score.share == 0
    assert f"results are not {words}" in score.remarks[0]


def test_the_attack_cannot_change_the_defence_or_the_images(network, digits):
    def cheat(model, x, y, epsilon):
        for parameter in model.network.parameters():
            parameter.value[...] = 0
        x_adv = x.copy()
        x[...], y[...] = 0, 9
        return x_adv

    assert fooled(cheat, network, digits).share == 0


def test_only_the_results_outside_are_left_out(network, digits):
    solution = load(SOLUTION).attack

    def half(model, x, y, epsilon):
        x_adv = solution(model, x, y, epsilon)
        x_adv[::2] = 1 - x[::2]
        return x_adv

    score = fooled(half, network, digits)
    assert 0.4 < score.share <= 0.5 and "do not count" in score.remarks[0]


def test_an_attack_that_is_missing_or_misshapen_is_answered_in_a_sentence(network, digits):
    assert "not written yet" in fooled(load(STUBS).attack, network, digits).remarks[0]
    wrong = fooled(lambda model, x, y, epsilon: x[:3], network, digits)
    assert wrong.share == 0 and "must return an array of shape" in wrong.remarks[0]


# --------------------------------------------------------------------------------------- command


@pytest.fixture
def prepared(monkeypatch, network, digits):
    """The command with a small data set, and a network that need not be trained."""
    monkeypatch.setattr(scoring.data, "load", lambda name: digits)
    monkeypatch.setattr(scoring.zoo, "standard", lambda digits: network)
    monkeypatch.setattr(scoring, "UNSEEN", 0)


def test_the_stubs_fail_with_a_sentence(prepared, capsys):
    assert command.main(["capstone"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("not written yet: replace the `...` in capstone.py, line") == 2
    assert "0 of 2 tasks passed" in printed
    for others in scoring.RECORDED.values():
        for name, share in others.items():
            assert f"{name} {share:.1%}" in printed


def test_a_file_that_does_not_work_is_answered_in_a_sentence(prepared, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("def train(digits, epsilon, seconds):\n    return missing\n")
    assert command.main(["capstone", "--file", str(file), "--seconds", "5"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "line 2: NameError" in printed and "no function `attack`" in printed


def test_pass_marks_lie_between_the_first_attempt_and_the_solution():
    for task, mark in scoring.PASS.items():
        first, solution = scoring.RECORDED[task].values()
        assert first < mark < solution
