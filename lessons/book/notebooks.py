"""Lessons as executed notebooks, each kept in the cache until its code or the library changes."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import jupytext
import matplotlib
import nbformat
import numpy as np
from nbclient import NotebookClient

import tinyadv
from tinyadv.checkpoint import replacing

LESSONS = Path(__file__).parents[1]


def executed(lesson: Path, flags: str = "") -> nbformat.NotebookNode:
    """The notebook of a lesson with its output.

    Parameters
    ----------
    lesson : Path
        The script.
    flags : str
        The flags of the script, such as ``"--quick"``.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If an assertion of the lesson does not hold. The message has the cell and the error.
    """
    kept = tinyadv.data.cache_folder() / "book" / f"{lesson.stem}-{digest(lesson, flags)}.ipynb"
    if kept.exists():
        return nbformat.read(kept, as_version=4)
    notebook = jupytext.read(lesson)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(lesson.parent)}},  # as a script finds its neighbours
        extra_arguments=["--log-level=ERROR"],
    )
    one_core = {"TINYADV_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # several run side by side
    client.execute(env={**os.environ, **one_core, "TINYADV_FLAGS": flags, "TQDM_DISABLE": "1"})
    with replacing(kept) as file:
        file.write(nbformat.writes(notebook).encode())
    return notebook


def digest(lesson: Path, flags: str) -> str:
    """A digest of everything that the output of a lesson depends on."""
    package = Path(tinyadv.__file__).parent
    files = [lesson]
    for folder in (package, LESSONS / "support", LESSONS / "plots"):
        files += sorted(folder.rglob("*.py"))
    versions = f"{flags} {sys.version} {np.__version__} {matplotlib.__version__}"
    text = versions.encode() + b"".join(path.read_bytes() for path in files)
    return hashlib.sha256(text).hexdigest()[:16]


def as_written(lesson: Path) -> nbformat.NotebookNode:
    """The notebook of a lesson without output."""
    notebook = jupytext.read(lesson)
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    return notebook
