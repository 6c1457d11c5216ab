"""The exercises: solutions pass, stubs fail, and usual mistakes get their hints."""

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

from lessons.exercises import __main__ as command
from lessons.exercises.checker import EXERCISES, Exercise, check, exercises, load

ROOT = Path(__file__).parents[1]
NUMBERS = [path.stem for path in sorted((EXERCISES / "checks").glob("[0-9][0-9].py"))]
ALL = [(number, e) for number in NUMBERS for e in exercises(number)]
names = [f"{number} {e.name}" for number, e in ALL]
of_each_exercise = pytest.mark.parametrize(("number", "e"), ALL, ids=names)
of_each_lesson = pytest.mark.parametrize("number", NUMBERS)


def test_every_lesson_has_exercises():
    assert NUMBERS == [path.stem[:2] for path in sorted((ROOT / "lessons").glob("[0-9][0-9]_*.py"))]


@pytest.fixture(autouse=True)
def attempts(monkeypatch, tmp_path):
    """The folder of the reader's own attempts."""
    monkeypatch.setattr(command, "ATTEMPTS", tmp_path / "attempts")
    return tmp_path / "attempts"


@of_each_lesson
def test_solutions_pass(number):
    verdicts = check(number, EXERCISES / "solutions" / f"{number}.py")
    assert len(verdicts) >= 3
    assert not any(verdicts.values()), verdicts


@of_each_lesson
def test_stubs_fail_with_a_sentence(number):
    stubs = EXERCISES / f"{number}.py"
    for verdict in check(number, stubs).values():
        line = int(re.search(rf"not written yet.* {number}.py, line (\d+)", verdict)[1])
        assert stubs.read_text().splitlines()[line - 1].startswith("def ")


@of_each_exercise
def test_each_mistake_gets_its_own_hint(number, e):
    hints = [hint for hint, _ in e.mistakes]
    assert len(set(hints)) == len(hints) >= 2
    for hint, function in e.mistakes:
        assert e.check(function) == hint


@of_each_exercise
def test_the_answer_passes_and_rubbish_does_not(number, e):
    assert e.check(e.answer) == ""
    for rubbish in ("something", {}, (), np.nan, np.full((3, 1, 4), 7.0)):
        assert e.check(lambda *_, it=rubbish: it)


@of_each_lesson
def test_lesson_stubs_solutions_and_checks_list_the_same_exercises(number):
    listed = exercises(number)
    stubs, solutions = (
        [node for node in ast.parse((folder / f"{number}.py").read_text()).body
         if isinstance(node, ast.FunctionDef)]
        for folder in (EXERCISES, EXERCISES / "solutions")
    )  # fmt: skip
    assert [node.name for node in stubs] == [e.name for e in listed]
    assert [e.name for e in listed if e.name in {node.name for node in solutions}] == [
        e.name for e in listed
    ]
    of_solutions = {node.name: node for node in solutions}
    for i, (stub, e) in enumerate(zip(stubs, listed, strict=True), 1):
        arguments = list(inspect.signature(e.answer).parameters)
        assert arguments == [a.arg for a in stub.args.args]
        assert arguments == [a.arg for a in of_solutions[e.name].args.args]
        assert ast.get_docstring(stub).startswith(f"{i}. ")
        assert ast.get_docstring(of_solutions[e.name])
    (lesson,) = (ROOT / "lessons").glob(f"{number}_*.py")
    section = re.search(r"## Exercises\n(.*?)\n# ## References", lesson.read_text(), re.DOTALL)[1]
    assert len(re.findall(r"^# \d\. ", section, re.MULTILINE)) == len(listed)
    assert f"python -m lessons.exercises {number}" in section


# ---------------------------------------------------------------------------- the checker


@pytest.fixture
def doubled():
    e = Exercise(lambda x: 2 * x, lambda: [(np.ones(3),), (np.full(3, 2.0),)], "Twice as much.")
    e.mistake("That is the square.")(lambda x: x**2)
    return e


def test_a_mistake_must_explain_every_case(doubled):
    assert doubled.check(lambda x: 2 * x) == ""
    assert doubled.check(lambda x: x**2) == "That is the square."
    assert doubled.check(lambda x: x * x[0]) == "That is the square."
    verdict = doubled.check(lambda x: x**2 + (x > 1))
    assert "That is the square." not in verdict and "Twice as much." in verdict


def test_results_agree_up_to_rounding_and_kind(doubled):
    assert doubled.check(lambda x: (2 * x).astype(np.float32)) == ""
    assert doubled.check(lambda x: [float(2 * v) for v in x]) == ""
    assert "shape (1, 3)" in doubled.check(lambda x: 2 * x[None])
    assert "NaN" in doubled.check(lambda x: x * np.nan)


def test_a_forgotten_return_is_not_a_stub(doubled):
    def attempt(x):
        y = 2 * x  # noqa: F841

    def stub(x):
        """Twice as much."""
        ...

    assert "`return`" in doubled.check(attempt) and "not written" not in doubled.check(attempt)
    assert "not written" in doubled.check(stub)


def test_an_argument_must_not_be_changed(doubled):
    def attempt(x):
        x *= 2
        return x

    assert "in place" in doubled.check(attempt)


@pytest.mark.parametrize(
    "text, words",
    [
        ("def other(): ...", ["no such function", "def allowed(x, x_adv, epsilon)"]),
        ("def allowed(x): return x", ["TypeError", "argument"]),
        ("\n\ndef allowed(x, x_adv, epsilon):\n    return x + missing", ["line 4", "missing"]),
        ("\ndef allowed(:", ["line 2", "syntax"]),
        ("import nothing_like_it", ["line 1", "nothing_like_it"]),
        ("raise SystemExit('bye')", ["line 1", "bye"]),
        ("def allowed(x, x_adv, epsilon): exit()", ["SystemExit"]),
        ("def allowed(x, x_adv, epsilon): return 1j * x", ["array"]),
    ],
)
def test_a_file_that_does_not_work_is_answered_in_a_sentence(
    text, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(text)
    assert command.main(["06", "--file", "mine.py"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    for word in words:
        assert word in printed


def test_the_command_counts_what_is_solved(capsys):
    assert command.main(["06", "--solutions"]) == 0
    number = len(exercises("06"))
    assert f"{number} of {number} exercises solved" in capsys.readouterr().out
    assert command.main(["06"]) == 1
    assert f"0 of {number} exercises solved" in capsys.readouterr().out


def test_stubs_are_copied_once_to_be_completed(attempts, capsys):
    assert command.main(["6"]) == 1
    assert (attempts / "06.py").read_bytes() == (EXERCISES / "06.py").read_bytes()
    assert "Complete the functions" in capsys.readouterr().out
    (attempts / "06.py").write_bytes((EXERCISES / "solutions" / "06.py").read_bytes())
    assert command.main(["06"]) == 0
    assert "Complete the functions" not in capsys.readouterr().out
    assert command.main([]) == 1  # of all lessons, one is solved
    assert [path.name for path in attempts.iterdir()] == ["06.py"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["99"], ["x"], ["--file", "x.py"], ["06", "--file", "none"], ["06", "--seconds", "5"],
        ["capstone", "--seconds", "0"],
    ],
)  # fmt: skip
def test_the_command_refuses_what_it_does_not_know(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err


def test_a_module_is_loaded_from_a_file_with_any_name(tmp_path):
    (tmp_path / "06 copy.py").write_text("x = 3")
    assert load(tmp_path / "06 copy.py").x == 3
