"""What every lesson and experiment needs besides its subject: flags, images, files.

    run = cli.start("06_projected_gradient_descent", __doc__)
    digits = run.load()                        the images of ``--data``
    run.show(figure, "attack strength")        saves the figure, and shows it in a notebook
    run.record(clean=0.99, table=rows)         saves numbers, with ``--record`` only

Files are written below ``--out``, by default ``lessons/out``, and with ``--record`` below
``lessons``. Settings that differ from the defaults are part of a file's name
(``06_attack_strength-mnist.png``), so two runs never overwrite each other's files.

Under ``mpiexec -n 2 python -m mpi4py lessons/…`` two processes train the networks together, and the
first one alone prints, draws and records.

In a notebook the flags are those in the environment variable ``TINYADV_FLAGS``, such as
``--quick --data mnist``, and figures are shown below their cells instead of saved.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import tinyadv
from tinyadv.checkpoint import check_writable, replacing
from tinyadv.distributed import is_first
from tinyadv.parallel import CORES

LESSONS = Path(__file__).resolve().parents[1]
GREY_IMAGES = ("glyphs", "mnist", "fashion")  # 28×28, as the networks of the lessons take them
NOT_IN_NAMES = ("record", "keep", "out", "show")  # flags that change no number
IN_NOTEBOOK = "ipykernel" in sys.modules
DPI = 160  # pixels per inch of a figure: enough for most screens


@dataclasses.dataclass
class Run:
    """One run of a lesson or an experiment.

    Attributes
    ----------
    quick : bool
        Whether a few seconds are enough, to see that everything works.
    seed : int
        Of the random numbers of this run; the networks of :mod:`zoo` have seeds of their own.
    backend, xp : str, module
        ``"numpy"`` or ``"cupy"``, and that module.
    options : argparse.Namespace
        All flags.
    comm : mpi4py.MPI.Comm or None
        The processes that ``mpiexec`` has started, if there are several: an argument of ``fit``.
    """

    name: str
    command: str
    options: argparse.Namespace
    changed: dict[str, Any]  # the flags that differ from their defaults
    xp: Any
    comm: Any = None
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    started: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def quick(self) -> bool:
        return self.options.quick

    @property
    def seed(self) -> int:
        return self.options.seed

    @property
    def backend(self) -> str:
        return self.options.backend

    def load(self, train: int | None = None, test: int | None = None) -> tinyadv.data.Dataset:
        """The images of ``--data``, or the first ``train`` and ``test`` of them.

        With ``--quick`` these are 1,000 and 200, if nothing else is asked for.
        """
        if self.quick:
            train, test = train or 1000, test or 200
        try:
            digits = tinyadv.data.load(self.options.data)
        except tinyadv.data.DataError as error:
            stop(error)
        shape, classes = digits.x_train.shape[1:], len(digits.classes)
        if (shape, classes) != ((1, 28, 28), 10):
            got = f"got {classes} classes of {'×'.join(map(str, shape))}"
            stop(f"{self.options.data}: expected ten classes of images of 1×28×28 pixels, {got}")
        return dataclasses.replace(
            digits,
            x_train=digits.x_train[:train],
            y_train=digits.y_train[:train],
            x_test=digits.x_test[:test],
            y_test=digits.y_test[:test],
        )

    def show(self, figure: matplotlib.figure.Figure, title: str) -> None:
        """Save a figure as ``figures/NN_TITLE.png``; with ``--show``, open it in a window."""
        if not is_first(self.comm):
            return plt.close(figure)
        if IN_NOTEBOOK:
            figure.set_dpi(DPI)
            plt.show()
            return plt.close(figure)
        number = self.name.partition("_")[0]
        stem = f"{number if number.isdigit() else self.name}_{title.replace(' ', '_')}"
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
        try:
            write(self.options.out / "figures" / f"{self._named(stem)}.png", picture.getvalue())
        except OSError as error:
            print(f"the figure could not be saved: {error}", file=sys.stderr)
        if self.options.show:
            plt.show()
        plt.close(figure)

    def record(self, **numbers: Any) -> None:
        """Add to the recorded numbers; with ``--record``, write them to ``results/NAME.json``."""
        self.numbers |= numbers
        if not self.options.record or not is_first(self.comm):
            return
        flags = []
        for key, value in self.changed.items():
            flags.append("--" + key.replace("_", "-") + ("" if value is True else f" {value}"))
        content = {
            "command": " ".join([self.command, "--record", *flags]),
            "numbers": plain(self.numbers),
            "seed": self.seed,
            "seconds": round(time.perf_counter() - self.started, 1),
            "device": device_name(self.xp),
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                self.xp.__name__: self.xp.__version__,
                "tinyadv": tinyadv.__version__,
            },
        }
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        text = re.sub(r"\[[^][{}\"]*\]", lambda found: " ".join(found[0].split()), text)  # one line
        try:
            write(self.options.out / "results" / f"{self._named(self.name)}.json", text.encode())
        except OSError as error:
            stop(f"the results could not be saved: {error}")

    def kept(self, key: dict[str, Any], compute: Callable[[], dict]) -> dict:
        """``compute()``, or with ``--keep`` what the recorded results hold under the same key.

        For a table that takes hours, when one of its rows has changed. The result has two more
        entries: the ``"device"`` that computed it, and its ``"key"``, a digest.

        Parameters
        ----------
        key : dict
            All settings that the numbers depend on; of a network, ``recipe.key(digits, …)``.
        compute : function
            Returns a dictionary of numbers.
        """
        text = json.dumps(plain(key), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        if self.options.keep:
            for path in sorted((LESSONS / "results").glob(f"{self.name}*.json")):
                found = find(json.loads(path.read_text(encoding="utf-8")), digest)
                if found is not None:
                    print(f"recorded before: {found}")
                    return found
        return {**compute(), "device": device_name(self.xp), "key": digest}

    def _named(self, stem: str) -> str:
        for key, value in self.changed.items():
            if key == "data":
                stem += f"-{Path(value).name}"  # of "mnist", or "FOLDER/FILE.npz"
            else:
                stem += f"-{key}" if value is True else f"-{key}{value}"
        return stem


def start(
    name: str,
    doc: str,
    *,
    data: Sequence[str] = GREY_IMAGES,
    backend: bool = False,
    experiment: bool = False,
    **counts: tuple[int, str],
) -> Run:
    """Read the flags of a lesson or an experiment.

    Parameters
    ----------
    name : str
        The file's name without ``.py``.
    doc : str
        What ``--help`` prints: the docstring.
    data : sequence of str
        What ``--data`` may be besides a file, the default first; empty where there are no images.
    backend : bool
        Whether there is a ``--backend``.
    experiment : bool
        Whether this is a module of ``lessons.experiments``. The data set is then always part of
        the names of its files, and ``--keep`` takes rows from the recorded results.
    **counts : (default, help)
        Further flags: ``images=(500, "test images")`` makes ``--images N``, with N at least 1. The
        number is ``run.options.images``.

    Returns
    -------
    run : Run
        If a setting is impossible here, the program ends with exit code 2 and a sentence instead.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    flag = parser.add_argument
    if data:
        names = ", ".join(data)
        flag(
            "--data", type=one_of(data), default=data[0], metavar="NAME",
            help=f"the images: {names}, or FILE.npz with your own; default: {data[0]}",
        )  # fmt: skip
    flag("--seed", type=at_least(0), default=0, metavar="N", help="of the random numbers; 0")
    flag("--quick", action="store_true", help="a few seconds, to see that it runs")
    if backend:
        flag("--backend", choices=tinyadv.backend.BACKENDS, default="numpy", help="numpy")
    flag("--record", action="store_true", help="write lessons/figures and lessons/results")
    if experiment:
        flag("--keep", action="store_true", help="compute only what is not recorded yet")
    flag("--out", type=Path, metavar="DIR", help="write there; default: lessons/out")
    flag("--show", action="store_true", help="open the figures in a window")
    for key, (default, text) in counts.items():
        option, text = "--" + key.replace("_", "-"), f"{text}; default: {default}"
        flag(option, type=at_least(1), default=default, metavar="N", help=text)

    flags = shlex.split(os.environ.get("TINYADV_FLAGS", "")) if IN_NOTEBOOK else None
    options = parser.parse_args(flags)
    changed = {
        key: value
        for key, value in vars(options).items()
        if key not in NOT_IN_NAMES and value != parser.get_default(key)
    }
    if experiment and data:
        changed = {"data": options.data, **changed}
    if not backend:
        options.backend = "numpy"
    options.out = options.out or (LESSONS if options.record else LESSONS / "out")
    try:
        for folder in ("figures", "results")[: 1 + options.record]:
            check_writable(options.out / folder / "name")
    except OSError as error:
        stop(f"cannot write to {options.out} ({error}): choose another folder with --out")
    try:
        xp = tinyadv.get_backend(options.backend)
    except tinyadv.backend.BackendError as error:
        stop(error)
    if not options.show and not IN_NOTEBOOK:
        matplotlib.use("Agg")  # draws into files, needs no screen
    file = f"-m lessons.experiments.{name}" if experiment else f"lessons/{name}.py"
    return Run(name, f"python {file}", options, changed, xp, world())


def world() -> Any:
    """The communicator of several processes, which then train together; None for one process."""
    counts = (os.environ.get(name, "1") for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"))
    if set(counts) == {"1"}:
        return None
    from mpi4py import MPI

    from . import zoo

    comm = MPI.COMM_WORLD
    zoo.fit = functools.partial(tinyadv.fit, comm=comm, exact=True)
    os.environ.setdefault("TINYADV_THREADS", str(max(1, CORES // comm.Get_size())))
    if not is_first(comm):
        sys.stdout = open(os.devnull, "w")
    usual = sys.excepthook

    def end_all(*error):  # the others would wait for this process forever
        usual(*error)
        comm.Abort(1)

    sys.excepthook = end_all
    return comm


def at_least(least: int):
    """Reads a flag's integer, which must not be less."""

    def read(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be ≥ {least}, got {text}")
        return int(text)

    read.__name__ = "int"  # argparse then says "invalid int value: 'x'"
    return read


def one_of(names: Sequence[str]):
    """Reads a flag's data set: one of ``names``, or a file ``….npz``."""

    def read(text: str) -> str:
        try:
            tinyadv.data.check_name(text, names)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return read


def stop(reason: object) -> None:
    """End the program with one sentence on stderr, and exit code 2."""
    print(f"error: {reason}", file=sys.stderr)
    raise SystemExit(2)


def spread(x, y, count: int) -> tuple:
    """``count`` examples at equal distances, or all if there are fewer: (count, …), (count,).

    Use it to choose test images. The two halves of MNIST's test set are by different writers, and
    its first images are easier to attack than its last.
    """
    count = min(count, len(x))
    chosen = np.arange(count) * len(x) // count
    return x[chosen], y[chosen]


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
    """Print an aligned table; a number between 0 and 1 is printed as a percentage."""
    lines = [[cell(value) for value in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    for first, *others in lines:
        cells = [first.ljust(widths[0])]
        cells += [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


def cell(value: object) -> str:
    """The text of a table's cell: 0.987 as "98.7 %", any other number with three digits."""
    if isinstance(value, (float, np.floating)):
        return f"{100 * value:.1f} %" if 0 <= value <= 1 else f"{value:.3g}"
    return str(value)


# ------------------------------------------------------------------------------------- files


def find(numbers: dict, digest: str) -> dict | None:
    """The part of recorded numbers that has this key."""
    if numbers.get("key") == digest:
        return numbers
    parts = (find(part, digest) for part in numbers.values() if isinstance(part, dict))
    return next((part for part in parts if part is not None), None)


def plain(value: Any) -> Any:
    """``value`` for JSON: arrays become lists; NaN and infinity, which JSON lacks, ``null``."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if not isinstance(value, (str, int, float, type(None))):
        return plain(tinyadv.to_numpy(value).tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, move it to ``path``, and print ``path``."""
    with replacing(path) as file:
        file.write(content)
    print(f"written: {os.path.relpath(path)}")


def device_name(xp) -> str:
    """The name of the processor that the arrays live on."""
    if xp is not np:
        return xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)["name"].decode()
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):  # Linux, where platform does not know the model
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        name = found[1] if found else name
    return f"{name}, {os.cpu_count()} cores"
