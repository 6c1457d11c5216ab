"""The numbers in the prose are those that were recorded."""

import json

import pytest

from lessons.support import report


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page that quotes a file of results, in a folder of its own."""
    (tmp_path / "results").mkdir()
    found = {"seconds": 90.0, "numbers": {"share": 0.98765, "runs": [{"a, b": 1234}]}}
    (tmp_path / "results" / "lesson.json").write_text(json.dumps(found))
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "pages", lambda: [tmp_path / "page.md"])
    monkeypatch.setattr(report, "TABLES", {"small": lambda: report.rows(["", "n"], [["x", 1]])})
    report.load.cache_clear()
    yield tmp_path / "page.md"
    report.load.cache_clear()


RIGHT = """Accuracy 98.8 %<!-- = lesson / share --> (or 98.77 %<!-- = lesson / share -->,
0.99<!-- = lesson /
share -->) after 1.5 min<!-- = lesson / seconds --> and
1,234<!-- = lesson / runs / 0 / a, b --> steps.

<!-- table: small -->
| | n |
| --- | --- |
| x | 1 |
<!-- end of table -->
"""


def test_right_numbers_stay(page):
    page.write_text(RIGHT)
    assert report.main(["--check"]) == 0
    assert report.main([]) == 0
    assert page.read_text() == RIGHT


@pytest.mark.parametrize(
    "right, wrong",
    [("98.8 %", "98.9 %"), ("0.99", "0.98"), ("1.5 min", "1.6 min"), ("1,234", "1,235"),
     ("| x | 1 |", "| x | 2 |")],
)  # fmt: skip
def test_a_wrong_number_is_found_and_rewritten(page, right, wrong, capsys):
    page.write_text(RIGHT.replace(right, wrong))
    assert report.main(["--check"]) == 1
    assert "page.md:" in capsys.readouterr().err
    assert report.main([]) == 0
    assert page.read_text() == RIGHT


@pytest.mark.parametrize("wrong", ["lesson / nothing", "nothing / share", "lesson / runs / 7"])
def test_a_reference_must_lead_somewhere(page, wrong, capsys):
    page.write_text(f"1 %<!-- = {wrong} -->")
    assert report.main(["--check"]) == 1
    assert "leads nowhere" in capsys.readouterr().err


def test_every_page_quotes_what_was_recorded(capsys):
    assert report.main(["--check"]) == 0, capsys.readouterr().err


def test_the_pages_quote_numbers():
    quoted = {path.name: len(report.NUMBER.findall(path.read_text())) for path in report.pages()}
    assert quoted["README.md"] > 10 and quoted["results.md"] > 10
    tables = [
        name for path in report.pages() for _, name, _ in report.TABLE.findall(path.read_text())
    ]
    assert set(tables) == set(report.TABLES)
