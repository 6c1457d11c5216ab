"""Build the book: ``python -m lessons.book``. Its first page is ``lessons/out/book/index.html``.

Every lesson is executed, which takes seven minutes on two cores, and again only after the lesson or
the library has changed. Needs ``pip install -e '.[book]'``, and no network.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

from tqdm import tqdm

try:
    from sphinx.cmd.build import build_main

    from lessons.book import notebooks, pages
except ImportError as error:
    sys.exit(f"error: {error}: the book needs pip install -e '.[book]'")

HERE = Path(__file__).parent
MARK = ".tinyadv-book"  # a file in every book: a folder without it is not replaced


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the pages, and let Sphinx turn them into HTML; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lessons.book",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    numbers = [lesson.stem[:2] for lesson in pages.SCRIPTS]
    parser.add_argument(
        "--only", nargs="*", choices=numbers, default=numbers, metavar="NN",
        help="execute these lessons only; the others are shown without output",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="the output of lessons with --quick")
    parser.add_argument(
        "--out", type=Path, default=HERE.parent / "out" / "book", metavar="DIR",
        help="write there; default: lessons/out/book",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.out.exists() and not (options.out / MARK).exists():
        parser.error(f"{options.out} exists and is not a book: choose another folder with --out")

    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out.parent, prefix=".book-") as folder:
        source, built = Path(folder, "source"), Path(folder, "html")
        chosen = [lesson for lesson in pages.SCRIPTS if lesson.stem[:2] in options.only]
        flags = "--quick" if options.quick else ""
        with ProcessPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
            found = pool.map(notebooks.executed, chosen, repeat(flags))
            for lesson, notebook in zip(chosen, tqdm(found, "lessons", len(chosen)), strict=True):
                pages.write_lesson(source, lesson, notebook)
        for lesson in set(pages.SCRIPTS) - set(chosen):
            pages.write_lesson(source, lesson, notebooks.as_written(lesson))
        pages.write_others(source)
        code = build_main(["-W", "--keep-going", "-q", "-c", str(HERE), str(source), str(built)])
        if code:
            return code
        (built / MARK).touch()
        if options.out.exists():
            shutil.rmtree(options.out)
        built.rename(options.out)
    print(f"written: {os.path.relpath(options.out / 'index.html')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
