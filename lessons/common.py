"""What all lessons share: flags, data, a table, a figure, a record of the numbers, a model cache.

    args = common.arguments(__doc__)       the flags; `--help` shows the lesson's docstring
    xp = args.xp                           numpy or cupy
    data = common.load_data(args)          the images of `--data`
    common.table(rows, header)             an aligned table
    common.save_figure(fig, args, NAME)    OUT/figures/NAME.png
    common.record(args, NAME, numbers)     OUT/results/NAME.json, with `--record` only

OUT is `--out`, or else `lessons/out`, and with `--record` the folder `lessons` itself. To NAME is
added what differs from the default settings, as in `02_train_a_cnn-mnist-full`, so that runs with
different settings do not overwrite each other's files.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import tinyadv
from tinyadv import defenses
from tinyadv.balls import Linf
from tinyadv.checkpoint import (
    CheckpointError,
    check_like,
    check_writable,
    load_state,
    load_weights,
    replacing,
    save_state,
)

START = time.perf_counter()
REUSED = []  # files of earlier runs that this one takes networks and numbers from
WRITTEN = set()  # files of the cache that this run has written itself
LESSONS = Path(__file__).resolve().parent

# Colours that people with any colour vision can tell apart (Okabe & Ito 2008).
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, GREY = "#56B4E9", "#CC79A7", "#767676"

GREY_IMAGES = ("glyphs", "mnist", "fashion")  # 28×28, as the networks of most lessons take them

STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.size": 11,
    "axes.titlesize": 12,
    "figure.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.formatter.min_exponent": 4,  # on a log axis 0.6, and not 6 × 10⁻¹
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=[BLUE, RED, GREEN, ORANGE, PURPLE, SKY, GREY]),
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "image.cmap": "gray",
}


def arguments(
    doc: str,
    datasets: Sequence[str] = GREY_IMAGES,
    keep: bool = False,
    **counts: tuple[int, str],
):
    """The flags of a lesson, as an ``argparse.Namespace``; also sets the style of the figures.

    Parameters
    ----------
    doc : str
        The lesson's docstring.
    datasets : sequence of str
        What ``--data`` may be, the default first; empty for a lesson that uses no images.
    keep : bool
        Whether there is a ``--keep``: see :func:`recorded`.
    **counts : (default, help)
        The lesson's own flags: ``epochs=(10, "passes over the data")`` makes ``--epochs N``, with N
        at least 1.

    Returns
    -------
    args
        ``args.backend``, ``args.seed`` and so on, and ``args.xp``, the array module. When the
        backend cannot be used here, or OUT cannot be written to, the program ends with exit code 2
        and a sentence that says why.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    flag = parser.add_argument
    names = datasets or GREY_IMAGES
    used = f"the images; default: {names[0]}" if datasets else "not used in this lesson"
    flag("--data", choices=names, default=names[0], help=used)
    flag("--seed", type=_at_least(0), default=0, metavar="N",
         help="of all random numbers; default: 0")  # fmt: skip
    flag("--quick", action="store_true", help="a few seconds, to see that it runs")
    flag("--full", action="store_true", help="the long run")
    flag("--backend", choices=tinyadv.backend.BACKENDS, default="numpy", help="default: numpy")
    flag("--record", action="store_true", help="write lessons/figures and lessons/results")
    flag("--out", type=Path, metavar="DIR", help="write there; default: lessons/out")
    flag("--show", action="store_true", help="open the figure in a window")
    if keep:
        text = "take what was recorded with the same settings, and compute the rest"
        flag("--keep", action="store_true", help=text)
    for name, (default, text) in counts.items():
        option, text = "--" + name.replace("_", "-"), f"{text}; default: {default}"
        flag(option, type=_at_least(1), default=default, metavar="N", help=text)

    in_notebook = "ipykernel" in sys.modules
    args = parser.parse_args(["--show"] if in_notebook else None)
    if args.quick and args.full:
        parser.error("--quick and --full exclude each other")
    # What differs from the defaults: it goes into the names of files and the recorded command.
    args.given = {
        name: value
        for name, value in vars(args).items()
        if name not in ("record", "keep", "out", "show") and value != parser.get_default(name)
    }
    if not datasets:
        args.given.pop("data", None)
    args.out = args.out or (LESSONS if args.record else LESSONS / "out")
    try:
        for folder in ("figures", "results")[: 1 + args.record]:
            check_writable(args.out / folder / "name")
    except OSError as error:
        stop(f"cannot write to {args.out} ({error}): choose another folder with --out")
    try:
        args.xp = tinyadv.get_backend(args.backend)
    except tinyadv.backend.BackendError as error:
        stop(error)
    if not args.show:
        matplotlib.use("Agg")  # draws into files, needs no screen
    plt.rcParams.update(STYLE)
    return args


def _at_least(least: int):
    """Reads a flag's integer, which must not be less."""

    def read(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be ≥ {least}, got {text}")
        return int(text)

    read.__name__ = "int"  # argparse then says "invalid int value: 'x'"
    return read


def stop(reason) -> None:
    """End the program with one sentence on stderr, and exit code 2."""
    print(f"error: {reason}", file=sys.stderr)
    raise SystemExit(2)


def load_data(args, train: int | None = None, test: int | None = None) -> tinyadv.data.Dataset:
    """The images of ``--data``, or the first ``train`` and ``test`` of them."""
    try:
        data = tinyadv.data.load(args.data)
    except tinyadv.data.DataError as error:
        stop(error)
    return dataclasses.replace(
        data,
        x_train=data.x_train[:train],
        y_train=data.y_train[:train],
        x_test=data.x_test[:test],
        y_test=data.y_test[:test],
    )


def test_images(args, data: tinyadv.data.Dataset, count: int) -> tuple:
    """``count`` test images and their labels, from all over the test set: (N, C, H, W), (N,).

    They are on ``--backend``, and all there are if ``count`` is more. The two halves of MNIST's
    test set are by different writers, and its first images stand attacks less well than its last:
    the first 1,000 say little about all.
    """
    count = min(count, len(data.x_test))
    chosen = np.arange(count) * len(data.x_test) // count  # at equal distances
    return args.xp.asarray(data.x_test[chosen]), args.xp.asarray(data.y_test[chosen])


def table(rows: Sequence[Sequence], header: Sequence[str]) -> None:
    """Print an aligned table: the first column to the left, the others to the right."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    for first, *others in lines:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


def claim(text: str, holds: bool) -> None:
    """Print what a lesson says and whether its numbers bear it out; if not, it ends here."""
    print(("holds:  " if holds else "FAILS:  ") + text)
    assert holds, text


# --------------------------------------------------------------------------------- what is written


def file_name(args, name: str) -> str:
    """``name`` and the settings that are not the default, as in ``02_topic-mnist-full``."""
    for key, value in args.given.items():
        if value is True:
            name += f"-{key}"
        else:
            name += f"-{value}" if isinstance(value, str) else f"-{key}{value}"
    return name


def save_figure(fig, args, name: str) -> Path:
    """Save ``fig`` as OUT/figures/NAME.png and print its path; shown only with ``--show``."""
    picture = io.BytesIO()
    fig.savefig(picture, format="png", metadata={"Software": None})
    path = args.out / "figures" / f"{file_name(args, name)}.png"
    try:
        _write(path, picture.getvalue())
    except OSError as error:
        print(f"the figure could not be saved: {error}", file=sys.stderr)
    if args.show:
        plt.show()
    plt.close(fig)
    return path


def record(args, name: str, numbers: dict) -> None:
    """With ``--record``, write ``numbers`` and how they were made to OUT/results/NAME.json.

    ``seconds`` are those of this run. ``reused`` says how many networks and parts of the numbers
    had been computed in earlier runs, and so are not in it.
    """
    if not args.record:
        return
    command = ["python", f"lessons/{name}.py", "--record"]
    command += ["--keep"] if getattr(args, "keep", False) else []
    for key, value in args.given.items():
        command.append("--" + key.replace("_", "-") + ("" if value is True else f" {value}"))
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        args.xp.__name__: args.xp.__version__,
        "tinyadv": tinyadv.__version__,
    }
    content = {
        "lesson": name,
        "command": " ".join(command),
        "numbers": _plain(numbers),
        "seed": args.seed,
        "seconds": round(time.perf_counter() - START, 1),
        "reused": len(REUSED),
        "device": device_name(args.xp),
        "versions": versions,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A list of numbers on one line instead of one line for each.
    text = re.sub(r"\[[^][{}\"]*\]", lambda found: " ".join(found[0].split()), text)
    try:
        _write(args.out / "results" / f"{file_name(args, name)}.json", text.encode())
    except OSError as error:
        stop(f"the results could not be recorded: {error}")


def _plain(value):
    """``value`` for JSON: arrays become lists; NaN and infinity, which JSON lacks, ``null``."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if not isinstance(value, (str, int, float, type(None))):
        return _plain(tinyadv.to_numpy(value).tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def device_name(xp) -> str:
    """The name of the processor that the arrays live on."""
    if xp is not np:
        return xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)["name"].decode()
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):  # Linux, where platform does not know the model
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        name = found[1] if found else name
    return f"{name}, {os.cpu_count()} cores"


def _write(path: Path, content: bytes, quiet: bool = False) -> None:
    """Write a file, and print its path."""
    with replacing(path) as file:
        file.write(content)
    if not quiet:
        print(f"written: {os.path.relpath(path)}")


def _read_json(path: Path) -> dict:
    """What a JSON file holds; empty if it is not there or, which a sentence says, broken."""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("no dictionary")
        return content
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        print(f"{path} cannot be used ({error}); it is computed again", file=sys.stderr)
        return {}


# --------------------------------------------------------------------------------- trained once


def cached_model(key: dict, build: Callable, train: Callable, *, seconds: bool = False):
    """``build()`` after ``train(model)``, or with the weights of an earlier such training.

    Parameters
    ----------
    key : dict
        Everything that the weights depend on: network, data, epochs, seed, backend …
    build : function
        Returns the network, not trained.
    train : function
        Trains the network that it is given, in place. It may return such seconds as below.
    seconds : bool
        Return also how long the training took when it ran: ``(model, {"wall": …, "cpu": …})``,
        the latter added up over the cores.
    """
    text, path = _cache_file(key, "models", ".npz")
    model = build()
    took = None
    try:
        if os.path.exists(path):
            load_weights(path, model)
            took = load_state(path).get("seconds")
            known = isinstance(took, dict) and set(took) == {"wall", "cpu"}
            if not (known and all(isinstance(clock, (int, float)) for clock in took.values())):
                took = {"wall": math.nan, "cpu": math.nan}
            print(f"the network {text} was trained before (delete it if code has changed): {path}")
            _reuse(path)
    except CheckpointError as error:
        print(f"{error}; it is trained again", file=sys.stderr)
    if took is None:
        wall, cpu = time.perf_counter(), time.process_time()
        known = train(model)
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        took |= known if isinstance(known, dict) else {}
        try:
            save_state(path, {"weights": model.state_dict(), "seconds": took})
            WRITTEN.add(path)
        except OSError as error:
            print(f"the trained network could not be kept: {error}", file=sys.stderr)
    return (model, took) if seconds else model


def _reuse(path: Path) -> None:
    if path not in WRITTEN:
        REUSED.append(path)


def fitted(args, data, key: dict, build: Callable, epochs: int, lr: Sequence[tuple], **how):
    """``build()`` after a training by Adam in batches of 128, once, and then kept.

    Parameters
    ----------
    key : dict
        What the weights depend on beside data, schedule, seed and backend, which are added.
    build : function
        As for :func:`cached_model`.
    epochs : int
    lr : sequence of (epoch, learning rate)
        With straight lines between.
    **how
        Arguments of ``fit``, such as ``perturb``.
    """

    def train(model):
        tinyadv.fit(
            model, data, tinyadv.optim.Adam(model.parameters()), epochs, batch_size=BATCH,
            schedule=tinyadv.optim.piecewise_linear(lr), rng=args.seed, validate=False, **how,
        )  # fmt: skip

    key = {**key, "optimizer": "Adam", "lr": lr, **_shared_key(args, data, epochs)}
    return cached_model(key, build, train)


def _shared_key(args, data, epochs: int) -> dict:
    """What the weights of every network depend on that is trained in batches of 128."""
    return {
        "batch_size": BATCH, "data": data.name, "images": len(data.x_train), "epochs": epochs,
        "seed": args.seed, "backend": args.backend,
    }  # fmt: skip


def cached_numbers(key: dict, compute: Callable[[], dict]) -> dict:
    """``compute()``, or what it returned before: for evaluations that take hours.

    Parameters
    ----------
    key : dict
        Everything that the numbers depend on.
    compute : function
        Returns a dictionary of numbers, lists, strings and such dictionaries.
    """
    _, path = _cache_file(key, "numbers", ".json")
    if numbers := _read_json(path):
        print(f"these numbers were computed before (delete them if code has changed): {path}")
        _reuse(path)
        return numbers
    numbers = _plain(compute())
    try:
        _write(path, json.dumps(numbers).encode(), quiet=True)
        WRITTEN.add(path)
    except OSError as error:
        print(f"the numbers could not be kept: {error}", file=sys.stderr)
    return numbers


def recorded(args, name: str, key: dict, compute: Callable[[], dict]) -> dict:
    """``compute()``, or with ``--keep`` what any recorded results of lesson ``name`` hold of it.

    For a table that takes hours, when one of its rows has changed. Into the result go the
    ``"device"`` that it was computed on, and the ``"key"``: a digest, by which it is found again.
    The cache cannot serve for that. Other machines do not have it, and on another processor a
    training ends with other weights.

    Parameters
    ----------
    key : dict
        All settings that the numbers depend on.
    compute : function
        Returns a dictionary.
    """
    _, digest = _text_and_digest(key)
    for path in sorted((LESSONS / "results").glob(f"{name}*.json")) if args.keep else ():
        found = _find(_read_json(path), digest)
        if found is not None:
            print(f"recorded before (without --keep it is computed again): {os.path.relpath(path)}")
            REUSED.append(path)
            return {name: math.nan if part is None else part for name, part in found.items()}
    return {**compute(), "device": device_name(args.xp), "key": digest}


def _find(numbers: dict, digest: str) -> dict | None:
    """The part of recorded numbers that has this key."""
    if numbers.get("key") == digest:
        return numbers
    parts = (_find(part, digest) for part in numbers.values() if isinstance(part, dict))
    return next((part for part in parts if part is not None), None)


# Networks and recorded rows of this version are still good: what came later changed the last bits
# of a convolution and nothing else. Each results file names the version that computed it.
COMPUTED_LIKE = "0.1.0"


def _cache_file(key: dict, folder: str, suffix: str) -> tuple[str, Path]:
    """The key as text, and the file that belongs to it."""
    text, digest = _text_and_digest(key)
    return text, tinyadv.data.cache_folder() / folder / (digest + suffix)


def _text_and_digest(key: dict) -> tuple[str, str]:
    text = json.dumps({**key, "tinyadv": COMPUTED_LIKE}, sort_keys=True)
    return text, hashlib.sha256(text.encode()).hexdigest()[:16]


RMSPROP = {"lr": 0.001, "rho": 0.9, "epsilon": 1e-7}  # Keras's defaults
BATCH = 128  # images in a step


def train_cnn(model, data: tinyadv.data.Dataset, epochs: int, seed: int) -> tinyadv.train.History:
    """The training of lesson 02, and of the slides: RMSprop with Keras's defaults, batches of 128.

    Parameters
    ----------
    model : Module
        Trained in place.
    data : Dataset
    epochs : int
        10 in the slides.
    seed : int
        Of the shuffling.
    """
    rmsprop = tinyadv.optim.RMSprop(model.parameters(), **RMSPROP)
    return tinyadv.fit(model, data, rmsprop, epochs, batch_size=BATCH, rng=seed)


def trained_cnn(args, data: tinyadv.data.Dataset):
    """The network of lesson 02, trained once for each data set, seed and backend, and then kept."""
    epochs, init = 3 if args.quick else 10, "he_normal"

    def build():
        return tinyadv.models.slides_cnn(args.seed, init=init).to(args.backend)

    key = {
        "network": "slides_cnn",
        "init": init,
        "optimizer": "RMSprop",
        **RMSPROP,
        **_shared_key(args, data, epochs),
    }
    return cached_model(key, build, lambda model: train_cnn(model, data, epochs, args.seed))


# The radius of the ℓ∞ ball in which the lessons attack, in pixel values 0–1: Madry's for MNIST, and
# smaller where the images leave less room.
EPSILON = {"glyphs": 0.2, "mnist": 0.3, "fashion": 0.1}


# How the networks of lessons 07 and 12 are trained. Plain data, so that a key can name all of it:
#     network    a name in tinyadv.models, and its options
#     defence    a name in tinyadv.defenses, and its options. watch=N stands for the last N training
#                images, which are then not trained on
#     epsilon    of the training; by default that of EPSILON
#     shift      images are moved by up to so many pixels at random
#     lr         of Adam: (share of the epochs, learning rate) points with straight lines between;
#                a number is the highest of them, which is then reached after 30 %
#     half       the trained weights are rounded to half precision
#     members    so many networks, trained with one seed after the other; they answer by the mean of
#                their logits
RECIPES = {
    "natural": {"network": ["fast_cnn", {}], "defence": None, "epochs": 3},
    "gradient penalty": {
        "network": ["fast_cnn", {}],
        "defence": ["GradientPenalty", {"weight": 0.3}],
        "epochs": 3,
    },
    "fast": {
        "network": ["fast_cnn", {}],
        "defence": ["Fast", {"warm_up": 1}],
        "epochs": 4,
        "lr": 0.004,
    },
    "PGD": {
        "network": ["fast_cnn", {}],
        "defence": ["MinMax", {"warm_up": 1, "steps": 4}],
        "epochs": 4,
        "lr": 0.004,
    },
    "TRADES": {
        "network": ["fast_cnn", {}],
        "defence": ["Trades", {"warm_up": 1, "steps": 3, "beta": 3.0}],
        "epochs": 4,
        "lr": 0.004,
    },
    "interval bounds": {
        "network": ["fast_cnn", {"init": "interval_normal"}],
        "defence": ["IntervalBound", {"ramp": [0.2, 2.4]}],
        "epochs": 4,
        "lr": 0.007,
    },
}
MNIST_RECIPES = {
    "natural": {"network": ["fast_cnn", {}], "defence": None, "epochs": 5},
    "gradient penalty": {
        "network": ["fast_cnn", {}],
        "defence": ["GradientPenalty", {"weight": 0.2, "norm": 1, "warm_up": 1.0}],
        "epochs": 10,
    },
    # The first weights and the learning rates of Wong et al. Without the watch some seeds overfit
    # for good, and without the warm-up some stay with the same answer for every image.
    "fast": {
        "network": ["fast_cnn", {"init": "fan_in_uniform"}],
        "defence": ["Fast", {"watch": 250, "every": 50, "gap": 0.05, "warm_up": 1.0}],
        "epochs": 10,
        "shift": 1,
        "batch_size": BATCH,
        "lr": [[0, 0.0], [0.4, 0.005], [1, 0.0001]],
    },
    "PGD": {
        "network": ["fast_cnn", {}],
        "defence": ["MinMax", {"steps": 7, "warm_up": 1.5}],
        "epochs": 12,
    },
    "TRADES": {
        "network": ["fast_cnn", {}],
        "defence": ["Trades", {"steps": 7, "warm_up": 1.5, "beta": 3.0}],
        "epochs": 10,
    },
    "interval bounds": {
        "network": ["interval_cnn", {}],
        "defence": ["IntervalBound", {"ramp": [0.5, 5.0]}],
        "epochs": 25,
        "lr": 0.003,
    },
    # Trained with a little more than it is judged by.
    "PGD, larger": {
        "network": ["fast_cnn", {"width": 2, "hidden": 512}],
        "defence": ["MinMax", {"steps": 7, "warm_up": 1.5}],
        "epochs": 12,
        "shift": 1,
        "epsilon": 0.33,
        "half": True,
    },
    "bounds, thresholds": {
        "network": ["interval_cnn", {"hidden": 256, "thresholds": [0.35, 0.65]}],
        "defence": ["IntervalBound", {"ramp": [0.5, 5.0]}],
        "epochs": 25,
        "lr": 0.003,
    },
}
MNIST_RECIPES["bounds, committee"] = {
    **MNIST_RECIPES["bounds, thresholds"],
    "members": 2,
    "half": True,
}
WEIGHTS = LESSONS / "weights"
# The recipes whose networks lie there, in half precision, and the names of the files.
KEPT = {"PGD, larger": "mnist_robust.npz", "bounds, committee": "mnist_certified.npz"}
ROBUST_IMAGES = (
    10_000,
    "MNIST test images that networks in lessons/weights are judged by, with --full",
)


def recipes(args, data: tinyadv.data.Dataset) -> dict[str, dict]:
    """Name → recipe, with all that the weights depend on but the seed."""
    chosen = MNIST_RECIPES if data.name == "mnist" else RECIPES
    return {name: _completed(recipe, args, data) for name, recipe in chosen.items()}


def _completed(recipe: dict, args, data: tinyadv.data.Dataset) -> dict:
    shared = {
        "lr": 0.002, "batch_size": 100, "epsilon": EPSILON[data.name], "data": data.name,
        "images": len(data.x_train), "backend": args.backend,
    }  # fmt: skip
    return {**shared, **recipe, **({"epochs": 2} if args.quick else {})}


def of_length(recipe: dict, epochs: int) -> dict:
    """The recipe of the same training in so many epochs: ``warm_up`` and ``ramp`` in proportion."""
    share = epochs / recipe["epochs"]
    if recipe["defence"] is None or share == 1:
        return {**recipe, "epochs": epochs}
    name, options = recipe["defence"]
    options = dict(options)
    if "warm_up" in options:
        options["warm_up"] = share * options["warm_up"]
    if "ramp" in options:
        options["ramp"] = [share * epoch for epoch in options["ramp"]]
    return {**recipe, "epochs": epochs, "defence": [name, options]}


def defended(
    args,
    data: tinyadv.data.Dataset,
    name: str,
    seed: int | None = None,
    epochs: int | None = None,
):
    """A network trained by one of the recipes, once, and then kept.

    Parameters
    ----------
    name : str
        Of the recipe.
    seed : int, optional
        Of the weights, the shuffling and the attacks; by default ``--seed``.
    epochs : int, optional
        By default the recipe's.

    Returns
    -------
    model, seconds
        As from :func:`cached_model` with ``seconds=True``.
    """
    recipe = recipes(args, data)[name]
    return _trained(args, data, of_length(recipe, epochs) if epochs else recipe, seed)


def robust_cnn(args, data: tinyadv.data.Dataset, seed: int | None = None):
    """The network of lesson 02, trained on PGD's examples instead of the images, and then kept.

    ``seed`` as for :func:`defended`. Lesson 07 writes the training out.
    """
    recipe = {
        "network": ["slides_cnn", {}],
        "defence": ["MinMax", {"steps": 5, "warm_up": 1 if data.name == "mnist" else 2}],
        "epochs": 6,
        "lr": [[0, 0.0005], [0.4, 0.005], [1, 0.0001]],
        "batch_size": BATCH,
    }
    return _trained(args, data, _completed(recipe, args, data), seed)[0]


def _trained(args, data, recipe: dict, seed: int | None):
    seed = args.seed if seed is None else seed
    if "members" in recipe:
        return _committee(args, data, recipe, seed)
    (network, sizes), epochs, lr = recipe["network"], recipe["epochs"], recipe["lr"]
    points = lr if isinstance(lr, list) else [(0, lr / 10), (0.3, lr), (1, lr / 100)]
    schedule = tinyadv.optim.piecewise_linear([(share * epochs, at) for share, at in points])

    key = {**recipe, "seed": seed}
    _, state = _cache_file(key, "training", ".npz")  # an interrupted training goes on from it

    def train(model):
        unknown = {"cpu": math.nan} if os.path.exists(state) else {}
        first = model.state_dict()

        def fit(**keep):
            model.load_state_dict(first)
            adam = tinyadv.optim.Adam(model.parameters())
            rest, defence = plugged(recipe, data, seed)
            return tinyadv.fit(
                model, rest, adam, epochs, **defence, batch_size=recipe["batch_size"],
                schedule=schedule, rng=seed, **keep,
                augment=tinyadv.data.random_shift(recipe["shift"]) if "shift" in recipe else None,
            )  # fmt: skip

        history = _resumed(fit, state)
        with suppress(OSError):
            state.unlink()
        if recipe.get("half"):
            model.load_state_dict(_halved(model))
        return {"wall": sum(history.seconds), **unknown}

    build = getattr(tinyadv.models, network)
    return cached_model(key, lambda: build(seed, **sizes).to(args.backend), train, seconds=True)


def _resumed(fit: Callable, state: Path):
    """``fit`` from the state in a file, if there is one, and keeping it there, if that is possible.

    When it is not, a sentence says why, and the training begins again.
    """
    for keep in ({"checkpoint": state, "resume": True}, {"checkpoint": state}):
        try:
            return fit(**keep)
        except CheckpointError as error:
            print(f"{error}; the training begins again", file=sys.stderr)
        except OSError as error:
            print(f"no state is kept ({error}); the training begins again", file=sys.stderr)
            break
    return fit()


def _committee(args, data, recipe: dict, seed: int):
    """The mean of several networks, and the seconds that all their trainings took."""
    alone = {name: part for name, part in recipe.items() if name not in ("members", "half")}
    seeds = range(seed, seed + recipe["members"])
    members, seconds = zip(*(_trained(args, data, alone, s) for s in seeds), strict=True)
    model = tinyadv.layers.Average(*members)
    if recipe.get("half"):
        model.load_state_dict(_halved(model))
    return model, {clock: sum(took[clock] for took in seconds) for clock in ("wall", "cpu")}


def _halved(model) -> dict:
    """The weights of ``model``, rounded to half precision."""
    weights = model.state_dict().items()
    return {name: tinyadv.to_numpy(array).astype(np.float16) for name, array in weights}


def keep_weights(args, name: str, model) -> None:
    """Write the weights of ``KEPT[name]`` to OUT/weights, and of what network they are."""
    path, recipe = args.out / WEIGHTS.name / KEPT[name], MNIST_RECIPES[name]
    state = {part: recipe[part] for part in ("network", "members") if part in recipe}
    try:
        save_state(path, {"weights": _halved(model), **state})
    except OSError as error:
        stop(f"the weights could not be kept: {error}")
    print(f"written: {os.path.relpath(path)}")


def kept_weights(args, name: str):
    """A robust MNIST network of ``KEPT``, whose weights lie beside the lessons; see lesson 07.

    They are stored in half precision; the network computes in single precision.
    """
    path, recipe = WEIGHTS / KEPT[name], MNIST_RECIPES[name]
    (network, sizes), members = recipe["network"], recipe.get("members")
    build = getattr(tinyadv.models, network)
    if members is None:
        model = build(**sizes)
    else:
        model = tinyadv.layers.Average(*(build(**sizes) for _ in range(members)))
    try:
        made_of = {part: recipe[part] for part in ("network", "members") if part in recipe}
        own = {**made_of, "weights": None}  # they are checked next
        check_like(load_state(path), own, f"{path}: the recipe", equal=made_of)
        load_weights(path, model.to(args.backend))
    except ValueError as error:
        stop(error)
    return model


def plugged(recipe: dict, data: tinyadv.data.Dataset, seed: int) -> tuple:
    """What to train on, and what a recipe's defence is to ``fit``: an argument of it, or none."""
    if recipe["defence"] is None:
        return data, {}
    name, options = recipe["defence"]
    defence, epsilon = getattr(defenses, name), recipe["epsilon"]
    if name == "GradientPenalty":
        return data, {"objective": defence(**options)}
    if name == "IntervalBound":
        return data, {"objective": defence(epsilon, **options)}
    if "watch" in options:
        x, y = data.x_train, data.y_train
        count = len(x) - min(options["watch"], len(x) // 2)
        options = {**options, "watch": (x[count:], y[count:])}
        data = dataclasses.replace(data, x_train=x[:count], y_train=y[:count])
    role = "objective" if name == "Trades" else "perturb"
    return data, {role: defence(Linf(epsilon), rng=seed, **options)}
