"""Every lesson runs with --quick, its assertions hold, and it is a notebook as well."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LESSONS = sorted((Path(__file__).parents[1] / "lessons").glob("[0-9][0-9]_*.py"))
ROOT = LESSONS[0].parents[1]


def run(lesson: Path, *flags, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error", str(lesson), *flags],
        capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_holds_what_it_claims(lesson, tmp_path):
    done = run(lesson, "--quick", "--record", "--seed", "0", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
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
    files = (ROOT / "lessons" / "results").glob(f"{lesson.stem}*.json")
    numbers = [n for f in files for n in every_number(json.loads(f.read_text())["numbers"])]
    text = ast.get_docstring(ast.parse(lesson.read_text()))
    found = re.findall(r"((?:[\d.]+(?:, and |, | and | or | to ))*[\d.]+) %", text)
    quoted = {q for some in found for q in re.findall(r"\d+(?:\.\d+)?", some)}
    for q in quoted - OTHERS.get(lesson.stem, set()):
        half = 0.5 * 10.0 ** -len(q.partition(".")[2]) + 1e-9  # of the last digit
        assert any(abs(100 * n - float(q)) <= half or n == float(q) for n in numbers), f"{q} %"


def p(share, digits=0):
    return f"{100 * share:.{digits}f}"


def said_of_the_penalty(n, full):
    rows, curve = n["table"], n["curves"]
    natural, penalty, robust = rows["natural"], rows["λ = 3"], rows["min-max"]
    at = n["radii"].index(0.2)
    yield f"from {p(natural['FGSM'])} to {p(penalty['FGSM'])} % under FGSM"
    yield f"from {p(natural['PGD'])} to {p(penalty['PGD'])} % under PGD"
    yield f"at ε = 0.2 PGD leaves {p(curve['λ = 3']['PGD'][at])} %"
    yield f"{p(robust['PGD'])} % under PGD at 0.1, and {p(curve['min-max']['PGD'][at])} % at 0.2"
    rows, curve = full["table"], full["curves"]
    natural, penalty = rows["natural"], rows["λ = 8"]
    yield f"FGSM at 0.1 leaves {p(penalty['FGSM'], 1)} % instead of {p(natural['FGSM'], 1)} %"
    smooth = rows["smooth, λ = 8"]["FGSM"], rows["smooth, natural"]["FGSM"]
    yield "(with softplus {} % instead of {} %)".format(*(p(share, 1) for share in smooth))
    yield f"and PGD {p(penalty['PGD'], 1)} % instead of {p(natural['PGD'], 1)} %"
    yield f"the penalty leaves {p(rows['noise, λ = 8']['FGSM'], 1)} % under FGSM at 0.1"
    yield f"noise without a penalty leaves {p(rows['noise']['FGSM'], 1)} %"
    left = (p(curve[name]["PGD"][at]) for name in ("λ = 8", "min-max"))
    yield "PGD at 0.2 leaves {} %, and {} % after min-max training".format(*left)


def said_of_capacity(n, full):
    def row(training, test):
        return n["accuracy"][f"{training} training, {test} examples"]

    natural, most = row("natural", "natural"), max(row("natural", "PGD"))
    yield f"{p(natural[0], 1)} and {p(natural[-1], 1)} % of the printed digits"
    yield f"{p(most, 1)} % under PGD at any width"
    stands, losses = (p(share) for share in row("PGD", "PGD")), n["training_loss"]["PGD"]
    yield "{}, {} and {} % under PGD".format(*stands)
    yield "at a loss of {:.2f}, {:.2f} and {:.2f}".format(*losses)
    yield "{}, {} and {} % under FGSM".format(*(p(share) for share in row("FGSM", "FGSM")))
    yield f"{p(max(row('FGSM', 'PGD')))} % or less under PGD"
    yield f"it reads {p(n['abrupt']['accuracy'])} % of the clean images"
    yield f"and {p(n['abrupt']['accuracy_pgd'])} % of PGD's examples"


def said_of_evaluating(n, full):
    fast, networks = n["networks"]["fast"], n["networks"]
    yield f"a single step leaves {p(fast['single_step'], 1)} % of the printed digits"
    yield f"50 steps from each of ten starts leave {p(fast['naive'], 1)} %"
    yield f"the ensemble {p(fast['true'], 1)} %"
    older = p(networks["distilled"]["naive"]), p(networks["squeezed"]["naive"])
    yield "Two older defences keep {} % and {} % under PGD".format(*older)
    yield f"and so {p(n['squeezed_to_one_bit_under_bpda'], 1)} % of the printed digits"
    fast = full["networks"]["fast"]
    yield f"keeps {p(fast['naive'], 1)} % under PGD and {p(fast['true'], 1)} % under the ensemble"
    proved, stands = full["between"]["committee"]
    yield f"reads {p(proved, 1)} % of the images rightly whatever is done to them within ε"
    yield f"the attacks leave {p(stands, 1)} %"


@pytest.mark.parametrize(
    "stem, said",
    [
        ("08_gradient_regularisation", said_of_the_penalty),
        ("09_capacity", said_of_capacity),
        ("12_evaluating_honestly", said_of_evaluating),
    ],
)
def test_an_introduction_says_of_each_number_what_it_is(stem, said):
    text = " ".join(ast.get_docstring(ast.parse((ROOT / f"lessons/{stem}.py").read_text())).split())
    files = (ROOT / "lessons" / "results" / f"{stem}{kind}.json" for kind in ("", "-mnist-full"))
    for sentence in said(*(json.loads(file.read_text())["numbers"] for file in files)):
        assert sentence in text


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
