"""The book: it builds without a warning, its links lead somewhere, and it needs no network."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tinyadv.data import cache_folder

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("sphinx")

from lessons.book import notebooks, pages  # noqa: E402
from lessons.book.__main__ import main  # noqa: E402

ROOT = Path(__file__).parents[1]
MATH = 1_300_000  # bytes of MathJax with its fonts, which pages with formulas load


class Page(HTMLParser):
    """The links, images, anchors and text of an HTML page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loaded, self.images, self.anchors, self.text = [], [], [], set(), ""
        self.tags, self.outputs, self.code, self.prose = [], 0, 0, ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.outputs += "cell_output" in (found.get("class") or "").split()
        self.code += tag in ("code", "pre", "script", "style", "title")
        self.anchors |= {found.get("id"), found.get("name")}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in ("img", "script") and "src" in found:
            self.loaded.append(found["src"])
        elif tag == "link" and found.get("rel") == "stylesheet":
            self.loaded.append(found["href"])
        if tag == "img":
            self.images.append(found)

    def handle_endtag(self, tag):
        self.code -= tag in ("code", "pre", "script", "style", "title")

    def handle_data(self, data):
        self.text += data
        self.prose += "" if self.code else data


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The book with two executed lessons."""
    folder = tmp_path_factory.mktemp("book")
    done = subprocess.run(
        [sys.executable, "-m", "lessons.book", "--only", "01", "04", "--quick",
         "--out", str(folder / "html")],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(folder.glob(".book-*"))
    return {path: Page(path) for path in sorted((folder / "html").rglob("*.html"))}


def of(book, name) -> Page:
    return next(page for path, page in book.items() if path.match(f"html/{name}"))


def test_links_lead_somewhere(book):
    for path, page in book.items():
        for link in [*page.links, *page.loaded]:
            scheme, host, target, _, anchor = urlsplit(link)
            if scheme or host:
                continue
            to = (path.parent / unquote(target)).resolve() if target else path
            assert to.exists(), f"{path.name}: {link}"
            if anchor and to in book:
                assert unquote(anchor) in book[to].anchors, f"{path.name}: {link}"


def test_nothing_is_loaded_from_the_network(book):
    for path, page in book.items():
        assert not [link for link in page.loaded if urlsplit(link).netloc], path.name


def test_no_markup_is_left_in_the_text(book):
    for path, page in book.items():
        if "_modules" not in path.parts:
            found = re.search(r".*(\{su[bp]\}|``|:(func|class|mod|meth):).*", page.prose)
            assert not found, f"{path.name}: {found[0]}"


def test_styles_load_nothing_from_the_network(book):
    for style in (next(iter(book)).parent / "_static").rglob("*.css"):
        assert not re.search(r"url\(.?https?:|@import", style.read_text()), style.name


def test_every_file_has_its_page(book):
    names = {path.relative_to(next(iter(book)).parent).as_posix() for path in book}
    listed = [*(ROOT / "lessons").glob("[0-9]*.py"), *(ROOT / "lessons").glob("e*s/[a-z0-9]*.py")]
    listed += [*(ROOT / "lessons" / "book").glob("*.md"), *(ROOT / "tinyadv").rglob("*.py")]
    expected = {pages.page_of(path) for path in listed if path.stem != "__main__"} - {None}
    assert {f"{page}.html" for page in expected} <= names


@pytest.mark.parametrize("name", ["01_backprop.html", "04_the_linear_explanation.html"])
def test_a_lesson_is_shown_with_its_output(book, name):
    page = of(book, name)
    figures = [image for image in page.images if image["src"].startswith("_images/")]
    assert figures
    assert all(len(image["alt"]) > 20 and "width" in image["style"] for image in figures)
    assert page.outputs >= 5
    assert "written:" not in page.text and str(cache_folder()) not in page.text
    folder = next(iter(book)).parent
    size = (folder / name).stat().st_size + MATH
    size += sum((folder / image["src"]).stat().st_size for image in figures)
    assert size < 2_000_000
    downloads = [link for link in page.links if "_downloads" in link]
    assert {Path(link).suffix for link in downloads} >= {".py", ".ipynb"}
    notebook = next(folder / link for link in downloads if link.endswith(".ipynb"))
    cells = nbformat.read(notebook, as_version=4).cells
    assert any(cell.get("outputs") for cell in cells)


def test_exercises_have_folded_solutions(book):
    page = of(book, "exercises/06.html")
    assert page.tags.count("details") >= 3 and page.text.count("Solution") >= 3
    assert "python -m lessons.exercises 06" in page.text


def test_experiments_show_what_was_recorded(book):
    page = of(book, "experiments/transformations.html")
    assert "worst of 10" in page.text and "0.853" in page.text


def test_the_reference_has_docstrings_and_sources(book):
    page = of(book, "api/tinyadv.attacks.gradient.html")
    assert "Madry" in page.text and "[source]" in page.text


def test_mathematics_and_indices():
    text = pages.set_indices("p_c = e^(z) of `p_c`, $$p_c$$, max_{k≠y} z_k and steps_to_it")
    assert text == (
        "p{sub}`c` = e{sup}`z` of `p_c`, $$p_c$$, max{sub}`k≠y` z{sub}`k` and steps_to_it"
    )


def test_recorded_numbers_become_tables():
    numbers = {"radii": [1, 2], "loss": {"a": [0.5, 0.25]}, "rows": {"x": {"n": 3}, "y": {"m": 4}}}
    text = "\n".join(pages.tables(numbers))
    assert "### Loss by radii" in text and "| a | 0.5 | 0.25 |" in text
    assert re.search(r"\|  ?\| n \| m \|", text) and "| y |  | 4 |" in text


def test_a_notebook_is_executed_again_only_if_something_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYADV_CACHE", str(tmp_path))
    lesson = tmp_path / "01_tiny.py"
    lesson.write_text('import os\n\nprint(os.environ["TINYADV_FLAGS"], os.getpid())\n')
    first, again = notebooks.executed(lesson, "--quick"), notebooks.executed(lesson, "--quick")
    assert first.cells[-1].outputs == again.cells[-1].outputs
    other = notebooks.executed(lesson, "--seed 3")
    assert other.cells[-1].outputs[0].text.startswith("--seed 3 ")
    lesson.write_text(lesson.read_text() + "\n")
    assert notebooks.executed(lesson, "--quick").cells[-1].outputs != first.cells[-1].outputs


def test_a_folder_that_is_no_book_is_not_replaced(tmp_path, capsys):
    (tmp_path / "precious").write_text("")
    (tmp_path / "index.html").write_text("")  # of another site
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path)])
    assert str(tmp_path) in capsys.readouterr().err
    assert (tmp_path / "precious").exists()
