"""The networks that lessons and experiments attack, each trained once and then kept.

A recipe is a generator function: it yields the untrained network, and what follows trains it.

    @trained_once
    def standard(digits, seed=0):
        model = models.slides_cnn(seed)
        yield model
        fit(model, digits, optim.RMSprop(model.parameters()), epochs=10, rng=seed)

    model = standard(digits)

The second call, even in another process, takes the weights from the cache and trains nothing. The
key is the source of the recipe and of the functions that it calls, its arguments, ``EPSILON``, and
the name and labels of the data set (of a file, its images too), so a changed recipe trains again.
The cache lies in ``models`` below :func:`tinyadv.data.cache_folder`; delete it if you change
tinyadv.

A recipe that takes hours has an argument ``state``: a file for ``fit(checkpoint=state,
resume=True)``, from which it goes on after an interruption.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import json
import sys
import textwrap
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

import tinyadv
from tinyadv import attacks, broken_defenses, defenses, fit, layers, models, optim
from tinyadv.balls import Linf
from tinyadv.checkpoint import CheckpointError, load_state, load_weights, save_state

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
MADE_BY = "0.1.0"  # weights of this version and later ones are still good


class Radii(dict):
    """ε by the name of a data set; 0.1 for a file of your own."""

    def __missing__(self, name: str) -> float:
        return 0.1


# The radius of the L∞ ball in which the lessons attack: Madry's for MNIST, and smaller for images
# that leave less room.
EPSILON = Radii(glyphs=0.2, mnist=0.3, fashion=0.1)


def trained_once(recipe: Callable) -> Callable:
    """A function that returns the network of a recipe, trained now or taken from the cache.

    The network has an attribute ``training_seconds``, ``{"wall": …, "cpu": …}``, of the run that
    trained it. ``function.key(digits, **arguments)`` is a digest of what the weights depend on.
    """
    signature = inspect.signature(recipe)
    resumable = "state" in signature.parameters

    def settings(digits, arguments) -> dict:
        bound = signature.bind(digits, **arguments)
        bound.apply_defaults()
        chosen = dict(list(bound.arguments.items())[1:])
        chosen.pop("state", None)
        return chosen

    def key(digits, **arguments) -> str:
        data = [digits.name, len(digits.y_train), checksum(digits.y_train)]
        if digits.name not in tinyadv.data.NAMES:  # a file, which may have changed
            data.append(checksum(digits.x_train))
        content = {
            "recipe": code(recipe), "settings": settings(digits, arguments),
            "data": data, "tinyadv": MADE_BY, "epsilon": EPSILON[digits.name],
        }  # fmt: skip
        text = json.dumps(content, sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @functools.wraps(recipe)
    def network(digits, **arguments):
        folder = tinyadv.data.cache_folder()
        name = f"{recipe.__name__}-{digits.name}-{key(digits, **arguments)}.npz"
        path, state = folder / "models" / name, folder / "training" / name

        def train(state):
            steps = recipe(digits, **arguments, **({"state": state} if resumable else {}))
            model = next(steps)
            next(steps, None)
            return model

        if path.exists():
            model = next(recipe(digits, **arguments))  # before any training
            try:
                load_weights(path, model)
                model.training_seconds = load_state(path)["seconds"]
                print(f"network “{recipe.__name__}” from an earlier run: {path}")
                return model
            except (CheckpointError, KeyError) as error:
                print(f"{error}; the network is trained again", file=sys.stderr)
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            model = train(state)
        except CheckpointError as error:  # of the state of an interrupted run
            print(f"{error}; the training begins again", file=sys.stderr)
            state.unlink(missing_ok=True)
            model = train(state)
        except OSError as error:
            print(f"the training cannot be resumed if it is interrupted: {error}", file=sys.stderr)
            model = train(None)
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        model.training_seconds = seconds
        try:
            save_state(path, {"weights": model.state_dict(), "seconds": seconds})
            state.unlink(missing_ok=True)
        except OSError as error:
            print(f"the trained network could not be kept: {error}", file=sys.stderr)
        return model

    network.key = key
    return network


def checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def code(recipe: Callable) -> list[str]:
    """The code of a recipe, and of the functions and classes beside it that it uses."""
    names = recipe.__code__.co_names
    used = [recipe.__globals__.get(name) for name in sorted(names)]
    used = [part for part in used if inspect.isfunction(part) or inspect.isclass(part)]
    own = [part for part in used if part.__module__ == recipe.__module__]
    return [source(part) for part in (recipe, *own)]


def source(part: Callable) -> str:
    """The code of a function or class without comments, docstrings and layout."""
    if inspect.isclass(part):  # inspect does not find those of a module that runpy has started
        method = next(each for each in vars(part).values() if inspect.isfunction(each))
        module = ast.parse(Path(method.__code__.co_filename).read_text(encoding="utf-8"))
        classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
        (tree,) = (node for node in classes if node.name == part.__name__)
    else:
        tree = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body = node.body[1:]
    return ast.unparse(ast.Module(tree.body, []))


# --------------------------------------------------------------- the networks of most lessons


@trained_once
def standard(digits, seed=0, backend="numpy", epochs=None):
    """The slides' CNN, trained by RMSprop as in lesson 02: 10 epochs on MNIST, otherwise 4."""
    model = models.slides_cnn(seed).to(backend)
    yield model
    rmsprop = optim.RMSprop(model.parameters(), lr=0.001, rho=0.9, epsilon=1e-7)
    epochs = epochs or (10 if digits.name == "mnist" else 4)
    fit(model, digits, rmsprop, epochs, batch_size=128, validate=False, rng=seed)


@trained_once
def robust(digits, seed=0, backend="numpy", epochs=None, steps=None):
    """The slides' CNN, trained on PGD's examples at ``EPSILON``, as lesson 10 trains others."""
    model = models.slides_cnn(seed).to(backend)
    yield model
    few = len(digits.x_train) <= 1000  # with --quick
    epochs = epochs or (1 if few else 6 if digits.name == "mnist" else 4)
    steps = steps or (5 if digits.name == "mnist" else 4)
    adversary = defenses.MinMax(Linf(EPSILON[digits.name]), steps=steps, warm_up=1, rng=seed)
    adam = optim.Adam(model.parameters())
    rate = optim.piecewise_linear([(0, 5e-4), (0.4 * epochs, 5e-3), (epochs, 1e-4)])
    fit(
        model, digits, adam, epochs, adversary, schedule=rate, batch_size=128, validate=False,
        rng=seed,
    )  # fmt: skip


# ------------------------------------------------------ the networks of the min-max experiment


def train(model, digits, epochs, seed, state, *, peak=0.002, batch_size=100, points=None, **how):
    """Adam, with a learning rate that rises to ``peak`` over 30 % of the training and then falls.

    ``points`` are other (share of the training, learning rate) points; ``how`` are arguments of
    ``fit``.
    """
    points = points or [(0, peak / 10), (0.3, peak), (1, peak / 100)]
    rate = optim.piecewise_linear([(share * epochs, at) for share, at in points])
    adam = optim.Adam(model.parameters())
    fit(
        model, digits, adam, epochs, schedule=rate, batch_size=batch_size, rng=seed,
        checkpoint=state, resume=state is not None, validate=False, **how,
    )  # fmt: skip


@trained_once
def standard_fast(digits, seed=0, epochs=5, backend="numpy", state=None):
    """Standard training of the fast CNN, by Adam (lessons 10 and 14)."""
    model = models.fast_cnn(seed).to(backend)
    yield model
    train(model, digits, epochs, seed, state)


@trained_once
def gradient_penalty(
    digits, seed=0, epochs=10, weight=0.2, norm=1, warm_up=1.0, backend="numpy", state=None
):
    """The loss plus ``weight`` times the norm of the input gradient (lesson 11)."""
    model = models.fast_cnn(seed).to(backend)
    yield model
    penalty = defenses.GradientPenalty(weight=weight, norm=norm, warm_up=warm_up * epochs / 10)
    train(model, digits, epochs, seed, state, objective=penalty)


@trained_once
def fast(digits, seed=0, epochs=10, watch=250, backend="numpy", state=None):
    """FGSM from a random start, with the first weights and learning rates of Wong et al. (2020).

    Images are shifted by up to a pixel. The last ``watch`` training images are held out, and
    training switches to PGD while the network overfits. Without watching them some seeds end in
    catastrophic overfitting, and without the warm-up some never leave the constant prediction.
    """
    model = models.fast_cnn(seed, init="fan_in_uniform").to(backend)
    yield model
    x, y = digits.x_train, digits.y_train
    count = len(x) - min(watch, len(x) // 2)
    rest = dataclasses.replace(digits, x_train=x[:count], y_train=y[:count])
    adversary = defenses.Fast(
        Linf(EPSILON[digits.name]), watch=(x[count:], y[count:]), every=50, gap=0.05,
        warm_up=epochs / 10, rng=seed,
    )  # fmt: skip
    train(
        model, rest, epochs, seed, state, perturb=adversary, batch_size=128,
        points=[(0, 0.0), (0.4, 0.005), (1, 0.0001)], augment=tinyadv.data.random_shift(1),
    )  # fmt: skip


@trained_once
def pgd(digits, seed=0, epochs=12, steps=7, warm_up=1.5, peak=0.002, backend="numpy", state=None):
    """Min-max training on the examples of PGD."""
    model = models.fast_cnn(seed).to(backend)
    yield model
    adversary = defenses.MinMax(
        Linf(EPSILON[digits.name]), steps=steps, warm_up=warm_up * epochs / 12, rng=seed
    )
    train(model, digits, epochs, seed, state, perturb=adversary, peak=peak)


@trained_once
def trades(
    digits, seed=0, epochs=10, steps=7, warm_up=1.5, beta=3.0, peak=0.002, backend="numpy",
    state=None,
):  # fmt: skip
    """TRADES: the loss, plus β times how far an attack moves the prediction."""
    model = models.fast_cnn(seed).to(backend)
    yield model
    objective = defenses.Trades(
        Linf(EPSILON[digits.name]), steps=steps, warm_up=warm_up * epochs / 10, beta=beta, rng=seed
    )
    train(model, digits, epochs, seed, state, objective=objective, peak=peak)


@trained_once
def interval_bounds(digits, seed=0, epochs=25, ramp=(0.5, 5.0), backend="numpy", state=None):
    """Training of ``models.interval_cnn`` on interval bounds (lesson 14)."""
    model = models.interval_cnn(seed).to(backend)
    yield model
    share = epochs / 25
    objective = defenses.IntervalBound(EPSILON[digits.name], ramp=[share * at for at in ramp])
    train(model, digits, epochs, seed, state, objective=objective, peak=0.003)


@trained_once
def larger(digits, seed=0, epochs=12, backend="numpy", state=None):
    """PGD training at 1.1 ε with twice the filters and 512 hidden units, then half precision."""
    model = models.fast_cnn(seed, width=2, hidden=512).to(backend)
    yield model
    adversary = defenses.MinMax(
        Linf(1.1 * EPSILON[digits.name]), steps=7, warm_up=1.5 * epochs / 12, rng=seed
    )
    train(
        model, digits, epochs, seed, state, perturb=adversary,
        augment=tinyadv.data.random_shift(1),
    )  # fmt: skip
    model.load_state_dict(halved(model))


@trained_once
def thresholds(digits, seed=0, epochs=25, backend="numpy", state=None):
    """Training on interval bounds of a network behind thresholds, at first 0.35 and 0.65."""
    model = models.interval_cnn(seed, hidden=256, thresholds=(0.35, 0.65)).to(backend)
    yield model
    objective = defenses.IntervalBound(EPSILON[digits.name], ramp=[epochs / 50, epochs / 5])
    train(model, digits, epochs, seed, state, objective=objective, peak=0.003)


@trained_once
def perceptron(digits, training="standard", epsilon=0.05, seed=0, epochs=10):
    """784-50-50-10, small enough for exact answers (lesson 16).

    ``training`` is "standard", "PGD" or "intervals", the latter two in the L∞ ball of ``epsilon``.
    """
    init = "interval_normal" if training == "intervals" else "he_normal"
    model = models.mlp((784, 50, 50, 10), seed, init=init)
    yield model
    how = {
        "standard": {},
        "PGD": {"perturb": defenses.MinMax(Linf(epsilon), steps=5, warm_up=0.4 * epochs, rng=seed)},
        "intervals": {"objective": defenses.IntervalBound(epsilon, ramp=(0, 0.5 * epochs))},
    }
    train(model, digits, epochs, seed, None, **how[training])


@trained_once
def small_cnn(digits, epsilon=0.1, seed=0, epochs=4):
    """Min-max training of a small convolutional network, with 2402 ReLUs (lesson 16)."""
    rng = np.random.default_rng(seed)
    model = layers.Sequential(
        layers.Conv2d(1, 8, 4, stride=2, padding=1, rng=rng), layers.ReLU(),
        layers.Conv2d(8, 16, 4, stride=2, padding=1, rng=rng), layers.ReLU(),
        layers.Flatten(), layers.Dense(784, 50, rng=rng), layers.ReLU(),
        layers.Dense(50, 10, rng=rng),
    )  # fmt: skip
    yield model
    adversary = defenses.MinMax(Linf(epsilon), steps=7, warm_up=0.1 * epochs, rng=seed)
    train(model, digits, epochs, seed, None, perturb=adversary)


@trained_once
def noisy(digits, sigma=0.25, seed=0, epochs=5):
    """The fast CNN, trained on images with normal noise for randomised smoothing (lesson 16)."""
    model = models.fast_cnn(seed)
    yield model

    def with_noise(x, rng):
        return x + sigma * rng.standard_normal(x.shape, x.dtype)

    train(model, digits, epochs, seed, None, augment=with_noise)


def thresholds_ensemble(digits, seed=0, **arguments):
    """The mean logits of two networks behind thresholds, in half precision."""
    members = [thresholds(digits, seed=s, **arguments) for s in (seed, seed + 1)]
    model = layers.Average(*members)
    model.load_state_dict(halved(model))
    model.training_seconds = {
        clock: sum(member.training_seconds[clock] for member in members)
        for clock in ("wall", "cpu")
    }
    return model


def halved(model) -> dict[str, np.ndarray]:
    """The weights of ``model``, rounded to half precision."""
    weights = model.state_dict().items()
    return {name: tinyadv.to_numpy(array).astype(np.float16) for name, array in weights}


# ---------------------------------------------------------------------- the defence of lesson 13


@trained_once
def distilled(digits, seed=0, backend="numpy", epochs=None):
    """Defensive distillation at T = 100: the student, of the same architecture as its teacher."""
    model = models.slides_cnn(seed).to(backend)
    yield model
    epochs = epochs or (5 if digits.name == "mnist" else 3)
    rate = optim.piecewise_linear([(0, 0.003), (0.5 * epochs, 0.003), (epochs, 0.00015)])
    _, student = broken_defenses.distill(
        lambda: models.slides_cnn(seed).to(backend), digits, optim.Adam, epochs, temperature=100.0,
        schedule=rate, batch_size=100, rng=seed, validate=False,
    )  # fmt: skip
    model.load_state_dict(student.state_dict())


# ------------------------------------------------------ shallow and deep networks (lesson 05)


@trained_once
def dense_net(digits, hidden, seed=0, epochs=8, backend="numpy"):
    """A network of ``hidden`` dense layers of 100 units each."""
    model = models.mlp((784,) + (100,) * hidden + (len(digits.classes),), seed).to(backend)
    yield model
    cosine(model, digits, epochs, seed)


@trained_once
def conv_net(digits, hidden, seed=0, epochs=8, backend="numpy"):
    """``hidden`` - 1 convolutions with 10 maps each, a dense layer of 100 units, and the output."""
    how = {"rng": np.random.default_rng(seed), "init": "he_normal"}
    net = [layers.Conv2d(1, 10, 5, **how), layers.ReLU(), layers.MaxPool2d(2)]  # (N, 10, 12, 12)
    for _ in range(hidden - 2):
        net += [layers.Conv2d(10, 10, 3, padding=1, **how), layers.ReLU()]
    net += [layers.MaxPool2d(2), layers.Flatten(), layers.Dense(360, 100, **how), layers.ReLU()]
    model = layers.Sequential(*net, layers.Dense(100, len(digits.classes), **how)).to(backend)
    yield model
    cosine(model, digits, epochs, seed)


def cosine(model, digits, epochs, seed):
    """Adam in batches of 64, with a learning rate that falls along a cosine."""
    adam, rate = optim.Adam(model.parameters(), lr=0.001), optim.cosine(0.001, epochs)
    fit(
        model, digits, adam, epochs, schedule=rate, batch_size=64, rng=seed, validate=False,
        progress=False,
    )  # fmt: skip


# ------------------------------------------------------ the widened networks of lesson 12


def widened(width: int, seed=0):
    """Madry's MNIST network with ``width``/16 of its filters and hidden units: ×1 is smallest."""
    how, w = {"rng": np.random.default_rng(seed)}, width
    return layers.Sequential(
        layers.Conv2d(1, 2 * w, 5, padding=2, **how),  # (N, 1, 28, 28) -> (N, 2w, 28, 28)
        layers.ReLU(),
        layers.MaxPool2d(2),  # -> (N, 2w, 14, 14)
        layers.Conv2d(2 * w, 4 * w, 5, padding=2, **how),  # -> (N, 4w, 14, 14)
        layers.ReLU(),
        layers.MaxPool2d(2),  # -> (N, 4w, 7, 7)
        layers.Flatten(),  # -> (N, 196w)
        layers.Dense(196 * w, 64 * w, **how),
        layers.ReLU(),
        layers.Dense(64 * w, 10, **how),
    )


class FgsmFromTheImage:
    """FGSM as the inner maximisation, from the image itself; ε grows over ``warm_up`` epochs."""

    def __init__(self, epsilon: float, warm_up: float):
        self.epsilon, self.warm_up, self.share = epsilon, warm_up, 1.0

    def at(self, epoch):
        self.share = defenses.ramp(epoch, 0, self.warm_up)

    def __call__(self, model, x, y):
        ball = Linf(self.share * self.epsilon)
        return attacks.fgsm(model, x, y, ball=ball, random_start=False)


@trained_once
def capacity(
    digits, width, training, seed=0, backend="numpy", warm_up=1.0, epochs=5, steps=7,
    batch_size=128,
):  # fmt: skip
    """A widened network after ``training``: "standard", "FGSM" or "PGD"."""
    model = widened(width, seed).to(backend)
    yield model
    epsilon, perturb = EPSILON[digits.name], None
    if training == "FGSM":
        perturb = FgsmFromTheImage(epsilon, warm_up)
    elif training == "PGD":
        perturb = defenses.MinMax(Linf(epsilon), steps=steps, warm_up=warm_up, rng=seed)
    adam = optim.Adam(model.parameters())
    rate = optim.piecewise_linear([(0, 5e-4), (0.4 * epochs, 5e-3), (epochs, 1e-4)])
    fit(
        model, digits, adam, epochs, perturb, schedule=rate, batch_size=batch_size,
        validate=False, progress=False, rng=seed,
    )  # fmt: skip


# ------------------------------------------------------------- robust networks in this repository


def robust_mnist():
    """:func:`larger`, trained on MNIST: from ``lessons/weights``, not trained here."""
    return load_weights_of(models.fast_cnn(width=2, hidden=512), "mnist_robust.npz")


def certified_mnist():
    """:func:`thresholds_ensemble`, trained on MNIST: from ``lessons/weights``."""
    build = functools.partial(models.interval_cnn, hidden=256, thresholds=(0.35, 0.65))
    return load_weights_of(layers.Average(build(), build()), "mnist_certified.npz")


def load_weights_of(model, name: str):
    """``model`` with the weights of a file in ``lessons/weights``."""
    load_weights(WEIGHTS / name, model)
    return model


def save_weights(model, name: str, folder: Path = WEIGHTS) -> None:
    """Write the weights of ``model`` in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    save_state(folder / name, {"weights": halved(model)})
