"""The README and the pages of the book: their code runs as printed, their links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "lessons" / "book").glob("*.md"))]


@pytest.mark.parametrize("number", [0, 1])
def test_the_code_prints_what_stands_below_it(number):
    examples = re.findall(r"```python\n(.*?)```\n((?:\n    [^\n]*)*)", README, re.DOTALL)
    assert len(examples) == 2
    code, printed = examples[number]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    now, before = (re.findall(r"-?[\d.]+", text) for text in (done.stdout, printed))
    assert len(now) == len(before) >= 4
    # Training ends with other weights on another processor.
    assert list(map(float, now)) == pytest.approx(list(map(float, before)), abs=6)
    if number == 1:
        assert now == before


def test_the_page_on_your_own_model_prints_what_stands_below_its_code(tmp_path):
    page = (ROOT / "lessons" / "book" / "own_model.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```\n((?:\n    [^\n]*)*)", page, re.DOTALL)
    other = [code for code, _ in blocks if code.startswith(("# PyTorch", "# JAX"))]
    assert len(other) == 2
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "".join(c for c, _ in blocks if c not in other)],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = "\n".join(line for _, text in blocks for line in text.split("\n    ") if line.strip())
    assert done.stdout.strip() == printed.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_scripts_that_it_names_exist(page):
    text = page.read_text()
    scripts = re.findall(r"python (?:-O )?((?:lessons|tests)/\S+\.py)", text)
    modules = re.findall(r"python -m (lessons\.[\w.]+)", text)
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for script in scripts:
        assert (ROOT / script).is_file(), script
