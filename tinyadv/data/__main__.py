"""Fetch and check datasets beforehand: ``python -m tinyadv.data mnist --folder data``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tinyadv.data import NAMES, DataError, cache_folder, check_name, data_folder, load


def main(arguments: Sequence[str] | None = None) -> int:
    """Load each dataset that is named and say what it holds; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tinyadv.data", description="Fetch and check datasets beforehand."
    )
    parser.add_argument(
        "names", nargs="+", metavar="name",
        help=f"{', '.join(NAMES)}, or FILE.npz, which is only checked",
    )  # fmt: skip
    parser.add_argument(
        "--folder", help="where to keep them (default: $TINYADV_DATA, or else the cache folder)"
    )
    options = parser.parse_args(arguments)
    for name in options.names:
        try:
            check_name(name)
        except ValueError as error:
            parser.error(f"argument name: {error}")
    for name in options.names:
        try:
            data = load(name, options.folder)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        shape = "×".join(map(str, data.x_train.shape[1:]))
        if name in NAMES:
            folder = options.folder or (cache_folder() if name == "glyphs" else data_folder())
            where = Path(folder) / name
        else:
            where = Path(name)
        print(
            f"{data.name}: {len(data.x_train):,} training and {len(data.x_test):,} test images "
            f"({shape}) of {len(data.classes)} classes, in {where}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
