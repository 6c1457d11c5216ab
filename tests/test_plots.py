"""Each figure of a lesson is described in words, which stand for it where it cannot be seen."""

import ast
import re
from pathlib import Path

import pytest

from tinyadv import viz

FILES = sorted((Path(__file__).parents[1] / "lessons" / "plots").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_figure_is_described_in_a_sentence_or_two(path):
    for function in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(function, ast.FunctionDef) and function.name not in ("main", "draw"):
            words = " ".join((ast.get_docstring(function) or "").split("\n\n")[0].split())
            assert 30 < len(words) < 200, (function.name, words)
            assert words.count(". ") <= 1, (function.name, words)
            assert not re.search(r"\{|\([NRMST],", words), f"a shape, not a picture: {words}"


def test_the_colours_are_named_in_one_place():
    hexadecimal = re.compile(r'"#[0-9A-F]{6}"')
    named = {name for name, value in vars(viz).items() if hexadecimal.fullmatch(f'"{value}"')}
    assert {"BLUE", "VERMILLION", "GREEN", "ORANGE", "PURPLE", "SKY", "GREY"} <= named
    text = next(path for path in FILES if path.stem == "style").read_text(encoding="utf-8")
    assert not hexadecimal.search(text)
