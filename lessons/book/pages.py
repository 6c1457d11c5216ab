"""The pages of the book, made from the files of the repository.

    README.md                     index               the home page
    lessons/NN_name.py            NN_name             a notebook
    lessons/exercises/NN.py       exercises/NN        its exercises, with folded solutions
    lessons/exercises/capstone.py exercises/capstone  likewise
    lessons/experiments/NAME.py   experiments/NAME    what it measures, and what was recorded
    lessons/book/NAME.md          NAME
    tinyadv/NAME.py               api/tinyadv.NAME    the reference

Links between the files become links between the pages. A file without a page is a download.
"""

from __future__ import annotations

import ast
import base64
import importlib
import inspect
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat

import tinyadv
from lessons.support.cli import DPI

ROOT = Path(__file__).parents[2]
LESSONS = ROOT / "lessons"
SCRIPTS = sorted(LESSONS.glob("[0-9][0-9]_*.py"))
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
NOT_PROSE = re.compile(
    r"(```.*?```|`[^`]*`|\[[^\]]*\]\([^)]*\)|\$\$.*?\$\$|<!--.*?-->|^ {4}[^\n]*$)",
    re.DOTALL | re.MULTILINE,
)
PARTS = {  # of the navigation, and the pages in them; lessons are sorted in by number
    "I Gradients": ("01", "02", "03"),
    "II Attacks": ("04", "05", "06", "07", "08", "09"),
    "III Defences": ("10", "11", "12", "13"),
    "IV Proofs": ("14", "16"),
    "V Scale": ("15",),
    "Results": ("results", "experiments", "performance"),
    "Using the library": ("data", "own_model", "architecture", "api/index"),
}


# ------------------------------------------------------------------------------------- links


def page_of(path: Path) -> str | None:
    """The page that shows a file of the repository, or ``None``."""
    name = path.relative_to(ROOT).as_posix()
    if name == "README.md":
        return "index"
    if found := re.fullmatch(r"lessons/(\d\d_\w+)\.py", name):
        return found[1]
    if found := re.fullmatch(
        r"lessons/(exercises/\d\d|exercises/capstone|experiments/\w+)\.py", name
    ):
        return found[1]
    if found := re.fullmatch(r"lessons/book/(\w+)\.md", name):
        return found[1]
    if found := re.fullmatch(r"(tinyadv(?:/\w+)*?)(?:/__init__)?\.py", name):
        return f"api/{found[1].replace('/', '.')}"
    return None


def linked(text: str, file: Path, page: str, source: Path) -> str:
    """Markdown of ``file``, with links for the page that shows it; copies what is downloaded."""

    def link(match: re.Match) -> str:
        image, words, target, anchor = match.groups("")
        path = (file.parent / target).resolve()
        if not path.exists():  # no link, but code or a formula
            return match[0]
        if path.is_dir():
            return words
        to = page_of(path)
        if to is not None:
            to += ".ipynb" if path in SCRIPTS else ".md"
        else:
            to = path.relative_to(ROOT).as_posix()
            copy(path, source / to)
        return f"{image}[{words}]({os.path.relpath(to, os.path.dirname(page) or '.')}{anchor})"

    def lesson(match: re.Match) -> str:
        (script,) = (s for s in SCRIPTS if s.stem.startswith(match[2]))
        if script == file:
            return match[0]
        to = os.path.relpath(f"{script.stem}.ipynb", os.path.dirname(page) or ".")
        return f"[{match[1]}]({to})"

    text = LINK.sub(link, text)
    parts = NOT_PROSE.split(text)
    parts[::2] = (re.sub(r"\b([Ll]esson\s+(\d\d))\b", lesson, part) for part in parts[::2])
    return set_indices("".join(parts))


def set_indices(text: str) -> str:
    """z_k and e^(z_k) with a subscript and a superscript, wherever they are not code."""
    parts = NOT_PROSE.split(text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"\^\(([^()]*)\)", r"{sup}`\1`", parts[i])
        parts[i] = re.sub(
            r"(?<![A-Za-z_`])((?:max|min|out|in|[^\W\d_])̂?)_(?:\{([^}]+)\}|([A-Za-z0-9]+))",
            lambda found: f"{found[1]}{{sub}}`{found[2] or found[3]}`",
            parts[i],
        )
    return "".join(parts)


def copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------- lessons


def write_lesson(source: Path, lesson: Path, notebook: nbformat.NotebookNode) -> None:
    """The page of a lesson, with downloads, and alternative texts for its figures."""
    page, number = lesson.stem, lesson.stem[:2]
    copy(lesson, source / "files" / lesson.name)
    write(source / "files" / f"{page}.ipynb", nbformat.writes(notebook))
    drawings = docstrings_of_plots(lesson)
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            exercises = f"lessons/exercises/{number}.py"
            text = cell.source.replace(f"`{exercises}`", f"[`{exercises}`](exercises/{number}.py)")
            cell.source = linked(text, lesson, page, source)
            if i == 0:
                title, rest = cell.source.split("\n", 1)
                downloads = f"{{download}}`script <files/{lesson.name}>`"
                downloads += f", {{download}}`notebook <files/{page}.ipynb>`"
                words = f"*Download: {downloads}; to be run in the folder `lessons`.*"
                cell.source = f"{title}\n\n{words}\n{rest}"
        else:
            drawn = [text for name, text in drawings.items() if f"plots.{name}(" in cell.source]
            if drawn:
                cell.metadata["mystnb"] = {"image": {"alt": " ".join(drawn)} | size(cell)}
            for output in cell.get("outputs", []):
                if output.output_type == "stream":  # without the folders of this machine
                    output.text = re.sub(r"^network “.*\n", "", output.text, flags=re.MULTILINE)
            if cell.source.startswith("run.record("):
                cell.metadata["tags"] = ["remove-cell"]
    write(source / f"{page}.ipynb", nbformat.writes(notebook))


def size(cell: nbformat.NotebookNode) -> dict[str, str]:
    """The width of a cell's figure: its pixels are smaller than those of most screens."""
    images = [output.data["image/png"] for output in cell.get("outputs", []) if "data" in output]
    if len(images) != 1:
        return {}
    width = int.from_bytes(base64.b64decode(images[0])[16:20], "big")  # in PNG's header
    return {"width": f"{width * 100 // DPI}px"}


def docstrings_of_plots(lesson: Path) -> dict[str, str]:
    """The first sentence about each figure of a lesson."""
    path = LESSONS / "plots" / f"{lesson.stem[3:]}.py"
    functions = (
        f
        for f in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(f, ast.FunctionDef)
    )
    return {
        f.name: " ".join((ast.get_docstring(f) or f.name).split("\n\n")[0].split())
        for f in functions
    }


def write_exercises(source: Path) -> None:
    """A page for each lesson, and for the capstone: the tasks, and the solutions, folded."""
    for lesson in SCRIPTS:
        number, title = (
            lesson.stem[:2],
            lesson.read_text(encoding="utf-8").split("\n")[2].removeprefix("# "),
        )
        begin = f"# Exercises {number}:{title.removeprefix(number)}\n\n"
        begin += f"They belong to [lesson {number}](../{lesson.stem}.ipynb). "
        write_tasks(source, number, begin)
    write_tasks(source, "capstone", "# Capstone\n\nTrain a network, and break another. ")


def write_tasks(source: Path, name: str, begin: str) -> None:
    stubs = LESSONS / "exercises" / f"{name}.py"
    tasks, solved = functions(stubs), functions(LESSONS / "exercises" / "solutions" / stubs.name)
    copy(stubs, source / "files" / stubs.name)
    text = [
        f"{begin}In the folder of the repository,",
        f"```shell\npython -m lessons.exercises {name}\n```",
        f"copies the stubs ({{download}}`{name}.py <../files/{name}.py>`) to "
        f"`lessons/out/exercises/{name}.py`. Complete the functions there, and check them with the "
        "same command.",
    ]
    for function, (why, body, signature) in solved.items():
        if function not in tasks:
            continue
        first, _, rest = prose(tasks[function][0], signature).partition("\n\n")
        text += [
            f"## {' '.join(first.split())}",
            f"```python\n{signature}\n```",
            rest,
            "<details><summary>Solution</summary>",
            prose(why, signature),
            f"```python\n{body}\n```",
            "</details>",
        ]
    write(source / "exercises" / f"{name}.md", "\n\n".join(text) + "\n")


def prose(docstring: str, signature: str) -> str:
    """A docstring as Markdown, with the names of the function's arguments as code."""
    text = docstring.replace("``", "`")
    for name in re.findall(r"\b[A-Za-z]+_\w+", signature.partition("(")[2]):
        text = re.sub(rf"(?<![`\w]){name}(?![`\w])", f"`{name}`", text)
    return set_indices(text)


def functions(path: Path) -> dict[str, tuple[str, str, str]]:
    """For each function of a file: its docstring, its code without that, and its first line."""
    text, found = path.read_text(encoding="utf-8"), {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            lines = ast.get_source_segment(text, node).split("\n")
            head = node.body[0].lineno - node.lineno
            end = node.body[0].end_lineno - node.lineno + 1
            signature = "\n".join(lines[:head])
            found[node.name] = (
                ast.get_docstring(node) or "", "\n".join(lines[:head] + lines[end:]), signature
            )  # fmt: skip
    return found


# ------------------------------------------------------------------------------- other pages


def write_others(source: Path) -> None:
    """All pages but the lessons."""
    readme = ROOT / "README.md"
    write(
        source / "index.md",
        linked(readme.read_text(encoding="utf-8"), readme, "index", source) + navigation(),
    )
    for path in sorted((LESSONS / "book").glob("*.md")):
        write(source / path.name, linked(path.read_text(encoding="utf-8"), path, path.stem, source))
    write_exercises(source)
    write_experiments(source)
    write_reference(source)


def navigation() -> str:
    """What Sphinx makes the navigation of, at the end of the home page."""
    text = ""
    for part, names in PARTS.items():
        pages = [next((s.stem for s in SCRIPTS if s.stem[:2] == name), name) for name in names]
        text += f"\n```{{toctree}}\n:hidden:\n:caption: {part}\n\n" + "\n".join(pages) + "\n```\n"
    numbers = "\n".join(f"exercises/{s.stem[:2]}" for s in SCRIPTS) + "\nexercises/capstone"
    return text + f"\n```{{toctree}}\n:hidden:\n:caption: Exercises\n\n{numbers}\n```\n"


def write_experiments(source: Path) -> None:
    """A page for each experiment: its docstring, and the numbers that it recorded."""
    names = sorted(path.stem for path in (LESSONS / "experiments").glob("*.py"))
    for name in names:
        script = LESSONS / "experiments" / f"{name}.py"
        recorded = LESSONS / "results" / f"{name}-mnist.json"
        content = json.loads(recorded.read_text(encoding="utf-8"))
        copy(script, source / "files" / script.name)
        copy(recorded, source / "files" / recorded.name)
        docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
        page = f"experiments/{name}"
        minutes = content["seconds"] / 60
        time = f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
        text = [
            f"# Experiment: {name.replace('_', ' ')}",
            linked(docstring.replace("``", "`"), script, page, source),
            "## What was recorded",
            f"By `{content['command']}` on {content['device']}, in {time}"
            + (f" ({content['note']})" if "note" in content else "")
            + f". Download: {{download}}`script <../files/{script.name}>`, "
            f"{{download}}`numbers <../files/{recorded.name}>`.",
            *tables(content["numbers"]),
        ]
        write(source / f"{page}.md", "\n\n".join(text) + "\n")
    listed = "\n".join(f"experiments/{name}" for name in names)
    with open(source / "experiments.md", "a", encoding="utf-8") as file:
        file.write(f"\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n")


def tables(numbers: dict[str, Any], title: str = "") -> list[str]:
    """Recorded numbers as tables: one for each group whose members have the same keys."""
    single = {key: value for key, value in numbers.items() if not nested(value)}
    text = [table(["", ""], [[words(k), cell(v)] for k, v in single.items()])] if single else []
    for key, group in numbers.items():
        if not nested(group):
            continue
        name = f"{title}{words(key)}" if title else words(key)[0].upper() + words(key)[1:]
        rows = group if isinstance(group, dict) else dict(enumerate(group, 1))
        length = {len(row) if isinstance(row, list) else 0 for row in rows.values()}
        if length != {0} and len(length) == 1:  # lists of numbers, one of which may be the header
            (count,) = length
            header = [str(i) for i in range(1, count + 1)]
            for label, value in single.items():
                if isinstance(value, list) and len(value) == count:
                    name, header = f"{name} by {words(label)}", list(map(cell, value))
                    break
            body = [[words(k), *map(cell, row)] for k, row in rows.items()]
            text += [f"### {name}", table(["", *header], body)]
        elif all(isinstance(r, dict) and not any(map(nested, r.values())) for r in rows.values()):
            columns = list(dict.fromkeys(column for row in rows.values() for column in row))
            columns = [column for column in columns if column not in ("key", "device")]
            body = [[words(k), *(cell(r.get(c, "")) for c in columns)] for k, r in rows.items()]
            text += [f"### {name}", table(["", *map(words, columns)], body)]
        else:
            text += [f"### {name}", *tables(rows, f"{name}, ")]
    return text


def nested(value: Any) -> bool:
    """Whether a recorded value is a group of its own, not a number or a list of numbers."""
    if isinstance(value, list):
        return any(isinstance(part, dict) for part in value)
    return isinstance(value, dict)


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def words(key: Any) -> str:
    return str(key).replace("_", " ")


def cell(value: Any) -> str:
    """A recorded value with four digits; lists in one line."""
    if isinstance(value, list):
        return ", ".join(map(cell, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_reference(source: Path) -> None:
    """A page for each module of the library, in the order in which one learns them."""
    modules = [path for path in sorted((ROOT / "tinyadv").rglob("*.py")) if path.stem != "__main__"]
    names = {page_of(path).removeprefix("api/"): path for path in modules}
    order = {name: i for i, name in enumerate(re.findall(r"\w+", tinyadv.__doc__))}
    names = sorted(names, key=lambda name: (order.get((name.split(".") + [""])[1], -1), name))
    for name in names:
        text = f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n"
        text += "   :members:\n   :ignore-module-all:\n```\n"
        write(source / "api" / f"{name}.md", text)
    first_lines = (inspect.getdoc(importlib.import_module(name)).split("\n")[0] for name in names)
    rows = [
        [f"[{name}]({name}.md)", re.sub(r":\w+:(?=`)", "", line)]  # without roles
        for name, line in zip(names, first_lines, strict=True)
    ]
    listed = "\n".join(names)
    text = "# Reference\n\n" + table(["module", "what it is for"], rows)
    text += f"\n\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"
    write(source / "api" / "index.md", text)
