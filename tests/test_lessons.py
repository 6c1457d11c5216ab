"""Every lesson runs with --quick, its assertions hold, and it is a notebook as well."""

import ast
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

LESSONS = sorted((Path(__file__).parents[1] / "lessons").glob("[0-9][0-9]_*.py"))
ROOT = LESSONS[0].parents[1]


def main(lesson: Path, flags, environment, errors):
    """The whole process of ``python -W error LESSON FLAGS``."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv, sys.stdout, sys.stderr = [str(lesson), *flags], io.StringIO(), open(errors, "w")
    sys.path.insert(0, str(lesson.parent))
    warnings.simplefilter("error")
    runpy.run_path(str(lesson), run_name="__main__")


def run(lesson: Path, *flags, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error", str(lesson), *flags],
        capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_holds_what_it_claims(lesson, tmp_path):
    flags = ["--quick", "--record", "--seed", "0", "--out", str(tmp_path)]
    errors = tmp_path / "errors"
    args = (lesson, flags, dict(os.environ), errors)
    process = processes.fast.Process(target=main, args=args)
    process.start()
    process.join()
    assert process.exitcode == 0, errors.read_text()
    assert len(list(tmp_path.glob(f"figures/{lesson.stem}*.png"))) == 1
    (result,) = tmp_path.glob(f"results/{lesson.stem}*.json")
    assert json.loads(result.read_text())["numbers"]
    assert str(tmp_path) not in result.read_text()


# Percentages in the lessons' introductions that are not of the recorded runs.
OTHERS = {
    "02_train_a_cnn": {"99.5"},  # the slides'
    "03_what_does_the_network_see": {"70"},  # of --data mnist without --full
    "04_the_linear_explanation": {"86"},  # the tutorial's
    "11_simple_transformations": {"30"},  # the paper's
    "12_evaluating_honestly": {"88.8", "82.9"},  # the papers'
}


def every_number(value):
    parts = value.values() if isinstance(value, dict) else value
    if isinstance(value, (dict, list)):
        for part in parts:
            yield from every_number(part)
    elif isinstance(value, (int, float)):
        yield abs(value)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_an_introduction_quotes_recorded_numbers(lesson):
    results = ROOT / "lessons" / "results"
    files = [*results.glob(f"{lesson.stem}*.json"), results / "thresholds-mnist.json"]
    numbers = [n for f in files for n in every_number(json.loads(f.read_text())["numbers"])]
    text = ast.get_docstring(ast.parse(lesson.read_text()))
    found = re.findall(r"((?:[\d.]+(?:, and |, | and | or | to ))*[\d.]+) %", text)
    quoted = {q for some in found for q in re.findall(r"\d+(?:\.\d+)?", some)}
    for q in quoted - OTHERS.get(lesson.stem, set()):
        half = 0.5 * 10.0 ** -len(q.partition(".")[2]) + 1e-9  # of the last digit
        assert any(abs(100 * n - float(q)) <= half or n == float(q) for n in numbers), f"{q} %"


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_is_a_notebook(lesson):
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.read(lesson)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds.count("markdown") >= 3 and kinds.count("code") >= 3


@pytest.mark.parametrize(
    "flags, code, words",
    [
        (["--backend", "cupy"], 2, ["--backend numpy"]),
        (["--data", "mnist"], 2, ["mnist", "delete the file"]),
        (["--data", "letters"], 2, ["letters", "glyphs"]),
        (["--quick", "--full"], 2, ["--quick", "--full"]),
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
