"""Check your solutions of a lesson's exercises: ``python -m lessons.exercises 06``.

The first call copies the stubs, ``lessons/exercises/06.py``, to ``lessons/out/exercises/06.py``.
Complete the functions there. Solutions are in ``lessons/exercises/solutions/06.py``.

``python -m lessons.exercises capstone`` scores both functions of the capstone in two minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from lessons.exercises import capstone_scoring
from lessons.exercises.checker import EXERCISES, check
from tinyadv.checkpoint import replacing

ATTEMPTS = EXERCISES.parent / "out" / "exercises"
LESSONS = sorted(path.stem for path in EXERCISES.glob("[0-9][0-9].py"))


def two_digits(text: str) -> str:
    """ "6" as "06"."""
    return text.zfill(2) if text.isdigit() else text


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one lesson, or all, and print a verdict for each exercise; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lessons.exercises",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "lesson", nargs="?", choices=[*LESSONS, "capstone"], metavar="lesson", type=two_digits,
        help=f"{LESSONS[0]} to {LESSONS[-1]}, or capstone; default: all lessons",
    )  # fmt: skip
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--file", type=Path, help="check this file instead of the lesson's own")
    where.add_argument("--solutions", action="store_true", help="check the solutions instead")
    parser.add_argument(
        "--seconds", type=float, metavar="S",
        help=f"of training in the capstone; default: {capstone_scoring.SECONDS:g}",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.file and not options.lesson:
        parser.error("--file needs the number of its lesson")
    if options.file and not options.file.is_file():
        parser.error(f"there is no file {options.file}")

    if options.seconds is not None and (options.lesson != "capstone" or options.seconds <= 0):
        parser.error("--seconds is for the capstone, and more than 0")

    def path_of(lesson: str) -> Path:
        if options.file or options.solutions:
            return options.file or EXERCISES / "solutions" / f"{lesson}.py"
        stubs, attempt = EXERCISES / f"{lesson}.py", ATTEMPTS / f"{lesson}.py"
        if lesson == options.lesson and not attempt.exists():
            with replacing(attempt) as file:
                file.write(stubs.read_bytes())
            print(f"Complete the functions in {os.path.relpath(attempt)}, and check them again.")
        return attempt if attempt.exists() else stubs

    if options.lesson == "capstone":
        seconds = options.seconds or capstone_scoring.SECONDS
        return capstone_scoring.main(path_of("capstone"), seconds)
    solved = []
    for lesson in [options.lesson] if options.lesson else LESSONS:
        path = path_of(lesson)
        print(os.path.relpath(path))
        verdicts = check(lesson, path)
        width = max(map(len, verdicts))
        for number, (name, verdict) in enumerate(verdicts.items(), 1):
            before = f"  {number}  {name.ljust(width)}  "
            print(textwrap.fill(verdict or "correct", 99, initial_indent=before,
                                subsequent_indent=" " * len(before)))  # fmt: skip
            solved.append(not verdict)
    print(f"{sum(solved)} of {len(solved)} exercises solved")
    return 0 if all(solved) else 1


if __name__ == "__main__":
    sys.exit(main())
