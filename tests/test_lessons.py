"""Every lesson and every experiment runs with --quick, and its assertions hold."""

import io
import json
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import processes
import pytest

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "lessons").glob("[0-9][0-9]_*.py"))
EXPERIMENTS = sorted((ROOT / "lessons" / "experiments").glob("[a-z]*.py"))


def main(script: Path, flags, environment, errors):
    """The whole process of ``python -W error SCRIPT FLAGS``, or of ``-m`` for an experiment."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv, sys.stdout, sys.stderr = [str(script), *flags], io.StringIO(), open(errors, "w")
    sys.path.insert(0, str(ROOT if script in EXPERIMENTS else script.parent))
    warnings.simplefilter("error")
    if script in EXPERIMENTS:
        runpy.run_module(f"lessons.experiments.{script.stem}", run_name="__main__")
    else:
        runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("script", [*LESSONS, *EXPERIMENTS], ids=lambda path: path.stem)
def test_a_lesson_holds_what_it_claims(script, tmp_path):
    flags = ["--quick", "--record", "--seed", "0", "--out", str(tmp_path)]
    flags += ["--data", "glyphs"] if script in EXPERIMENTS else []
    errors = tmp_path / "errors"
    args = (script, flags, dict(os.environ), errors)
    process = processes.fast.Process(target=main, args=args)
    process.start()
    process.join()
    assert process.exitcode == 0, errors.read_text()
    if script in LESSONS:
        assert list(tmp_path.glob(f"figures/{script.stem[:2]}_*.png"))
    (result,) = tmp_path.glob(f"results/{script.stem}*.json")
    assert json.loads(result.read_text())["numbers"]
    assert str(tmp_path) not in result.read_text()


def markdown(lesson: Path) -> str:
    """The text of a lesson, without its code."""
    cells = re.split(r"^# %%", lesson.read_text(), flags=re.MULTILINE)
    return "\n".join(cell for cell in cells if cell.startswith(" [markdown]"))


# Percentages in the prose that were not measured here: those of papers, and of settings.
PUBLISHED = {
    "02": {"99.5", "99.1"},
    "04": {"83", "86", "2", "57.7", "99.3"},
    "08": {"95"},
    "09": {"99", "1"},
    "10": {"98.8", "95.6", "93.2", "91.8", "89.3", "99.2", "6.4", "98.5", "88.8", "82.9"},
    "14": {"8.05", "2.2", "7.0", "6.4"},
}


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_measured_number_in_the_prose_says_where_it_was_recorded(lesson):
    """``python -m lessons.support.report --check`` then compares it; here none is forgotten."""
    text = re.sub(r"[\d.,]+ %\s*<!-- = .+? -->", "", markdown(lesson), flags=re.DOTALL)
    text = text.replace("\n# ", " ")
    quoted = set(re.findall(r"(\d+(?:\.\d+)?) ?%", text))
    assert quoted <= PUBLISHED.get(lesson.stem[:2], set())


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_is_short_and_has_its_parts(lesson):
    lines = lesson.read_text().splitlines()
    assert len(lines) <= 330
    text = markdown(lesson)
    for part in ("**Question.**", "**Predict first.**", "Limits", "## Exercises", "## References"):
        assert part in text
    code = [line for line in lines if line and not line.startswith("#")]
    assert not any(re.match(r"import (argparse|matplotlib|json)", line) for line in code)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_is_a_notebook(lesson):
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.read(lesson)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds.count("markdown") >= 3 and kinds.count("code") >= 3


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_needs_earlier_ones_only(lesson):
    needed = re.search(r"\*\*You\s+need\*\*(.*?)\*\*After", lesson.read_text(), re.DOTALL)[1]
    numbers = [int(number) for number in re.findall(r"\b(\d\d)\b", needed)]
    assert all(number < int(lesson.stem[:2]) for number in numbers)
    assert numbers or lesson is LESSONS[0]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_default_run_is_recorded_and_takes_about_a_minute(lesson):
    recorded = json.loads((ROOT / "lessons" / "results" / f"{lesson.stem}.json").read_text())
    assert recorded["command"] == f"python lessons/{lesson.name} --record"
    assert recorded["seconds"] < 66


def run(lesson: Path, *flags, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error", str(lesson), *flags],
        capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    "flags, code, words",
    [
        (["--backend", "cupy"], 2, ["--backend numpy"]),
        (["--data", "mnist"], 2, ["mnist", "delete the file"]),
        (["--data", "letters"], 2, ["letters", "glyphs"]),
    ],
)
def test_a_setting_that_cannot_be_is_answered_in_a_sentence(flags, code, words, tmp_path):
    hidden = tmp_path / "cupy.py"  # so that the test holds on a machine with a GPU as well
    hidden.write_text("raise ImportError('no CuPy here')\n")
    broken = tmp_path / "mnist"  # so that nothing is downloaded
    broken.mkdir()
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (broken / f"{part}-ubyte.gz").write_text("<html>not found</html>")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = run(LESSONS[1], *flags, PYTHONPATH=path, TINYADV_DATA=str(tmp_path))
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
