"""How fast the attacks are, beside the same loops in PyTorch eager where that is installed.

    python tests/benchmarks/attacks.py                         # the whole table, ten minutes or so
    python tests/benchmarks/attacks.py --tasks PGD-40          # one attack
    python tests/benchmarks/attacks.py --backend cupy          # on a GPU, beside PyTorch on it
    python tests/benchmarks/attacks.py --out attacks.json      # also keep the numbers

1,000 test images of MNIST (or printed digits, where MNIST is not at hand) through ``slides_cnn``,
trained for two epochs, with the same weights on both sides. What PyTorch runs is written below, as
one would write it, its weights frozen. It is given all images at once, and once more in batches of
250, which suit its caches better here: the ratio is to the faster of the two. As in ``speed.py``
each library has a process of its own, and they take turns.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from speed import Worker, device, timed

IMAGES, TORCH_BATCH = 1000, 250
EPSILON, SMALL = 0.3, 0.1  # with 0.1 most images hold out to the end of Square
STEP = 2.5 * EPSILON / 40
CW_STEPS, CW_SEARCH, CW_C, CW_LR = 50, 3, 1.0, 0.05
QUERIES = 300
ANGLES = np.linspace(-30, 30, 31)
SHIFTS = np.linspace(-3, 3, 5)

TASKS = {
    "PGD-40": "Linf(0.3), random start",
    "C&W": f"L2, {CW_SEARCH} values of c, {CW_STEPS} steps each, no early end",
    "Square": f"Linf({SMALL}), {QUERIES} queries, who is fooled stops",
    "spatial grid": "31 angles × 25 shifts, the worst of them",
}


# ------------------------------------------------------------------------------------- the tasks


def tinyadv_task(task: str, folder: str, images: int, steps: int, restarts: int, backend: str):
    from tinyadv import attacks, get_backend, models
    from tinyadv.balls import Linf

    xp, model = get_backend(backend), models.slides_cnn()
    with np.load(Path(folder) / "weights.npz") as weights:
        model.load_state_dict(dict(weights))
    model.to(backend)
    x, y = (xp.asarray(a) for a in examples(folder, images))
    run = {
        "PGD-40": lambda: attacks.pgd(
            model, x, y, ball=Linf(EPSILON), step_size=STEP, steps=steps, restarts=restarts
        ),
        "C&W": lambda: attacks.carlini_wagner(
            model, x, y, steps=CW_STEPS, search_steps=CW_SEARCH, initial_c=CW_C,
            learning_rate=CW_LR, abort_early=False,
        ),
        "Square": lambda: attacks.square(model, x, y, ball=Linf(SMALL), queries=QUERIES),
        "spatial grid": lambda: attacks.spatial_grid(model, x, y, exhaustive=True),
    }[task]  # fmt: skip
    return run, (lambda: None) if xp is np else xp.cuda.get_current_stream().synchronize


def torch_task(task: str, folder: str, images: int, steps: int, restarts: int, backend: str):
    import torch
    from torch import nn

    on = "cuda" if backend == "cupy" else "cpu"
    model = nn.Sequential(
        nn.Conv2d(1, 10, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(10, 20, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(320, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    with np.load(Path(folder) / "weights.npz") as weights:
        model.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights})
    model.to(on).requires_grad_(False)  # an attack needs no gradients for the weights
    x, y = (torch.from_numpy(a).to(on) for a in examples(folder, images))
    attack = {
        "PGD-40": functools.partial(torch_pgd, steps=steps, restarts=restarts),
        "C&W": torch_carlini_wagner,
        "Square": torch_square,
        "spatial grid": torch_spatial_grid,
    }[task]
    wait = torch.cuda.synchronize if on == "cuda" else (lambda: None)
    return lambda batch: [
        attack(model, xb, yb) for xb, yb in zip(x.split(batch), y.split(batch), strict=True)
    ], wait


def torch_pgd(model, x, y, steps, restarts):
    import torch
    from torch.nn.functional import cross_entropy

    worst, worst_loss = x, torch.full_like(y, -torch.inf, dtype=x.dtype)
    for _ in range(restarts):
        x_adv = (x + EPSILON * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        for _ in range(steps):
            x_adv.requires_grad_()
            (g,) = torch.autograd.grad(cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
            x_adv = x_adv.detach() + STEP * g.sign()
            x_adv = torch.min(torch.max(x_adv, x - EPSILON), x + EPSILON).clamp(0, 1)
        if restarts == 1:
            return x_adv
        with torch.no_grad():
            loss = cross_entropy(model(x_adv), y, reduction="none")
        better = loss > worst_loss
        worst = torch.where(better[:, None, None, None], x_adv, worst)
        worst_loss = torch.where(better, loss, worst_loss)
    return worst


def torch_carlini_wagner(model, x, y):
    import torch

    label = torch.nn.functional.one_hot(y, 10).bool()
    start = torch.atanh((2 * x - 1) * 0.999999)
    c = torch.full_like(y, CW_C, dtype=x.dtype)
    low, high = torch.zeros_like(c), torch.full_like(c, 1e10)
    best, best_distance = x.clone(), torch.full_like(c, torch.inf)
    for _ in range(CW_SEARCH):
        w = start.clone().requires_grad_()
        adam = torch.optim.Adam([w], lr=CW_LR)
        fooled = torch.zeros_like(y, dtype=torch.bool)
        for _ in range(CW_STEPS):
            x_adv = (torch.tanh(w) + 1) / 2
            logits = model(x_adv)
            gap = logits[label] - logits.masked_fill(label, -torch.inf).amax(1)
            distance = ((x_adv - x) ** 2).sum((1, 2, 3))
            adam.zero_grad()
            (distance + c * gap.clamp(min=0)).sum().backward()
            adam.step()
            with torch.no_grad():
                wrong = gap < 0
                fooled |= wrong
                better = wrong & (distance < best_distance)
                best_distance = torch.where(better, distance, best_distance)
                best = torch.where(better[:, None, None, None], x_adv, best)
        high = torch.where(fooled, torch.min(high, c), high)
        low = torch.where(fooled, low, torch.max(low, c))
        c = torch.where(high < 1e9, (low + high) / 2, 10 * c)
    return best


def torch_square(model, x, y):
    import torch

    def gap(x, y):  # the label's logit minus the largest other: below 0, the image is misread
        logits = model(x)
        label = torch.nn.functional.one_hot(y, 10).bool()
        return logits[label] - logits.masked_fill(label, -torch.inf).amax(1)

    with torch.no_grad():
        side = x.shape[-1]
        stripes = random_sign(torch, (len(x), 1, 1, side), x.device) * SMALL
        x_adv = (x + stripes).clamp(0, 1)
        value = gap(x_adv, y)
        for query in range(1, QUERIES):
            (standing,) = torch.where(value >= 0)
            if len(standing) == 0:
                break
            square = max(1, round((square_share(query) * side * side) ** 0.5))
            xs, new = x[standing], x_adv[standing].clone()
            row, column = (
                torch.randint(0, side - square + 1, (len(xs), 1), device=x.device) for _ in "rc"
            )
            pixel = torch.arange(side, device=x.device)
            in_rows = (pixel >= row) & (pixel < row + square)
            in_columns = (pixel >= column) & (pixel < column + square)
            inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
            sign = random_sign(torch, (len(xs), 1, 1, 1), x.device)
            before = new
            new = torch.where(inside, (xs + SMALL * sign).clamp(0, 1), before)
            same = (new == before).all((1, 2, 3))  # tells nothing: the other sign then
            turned = torch.where(inside, (xs - SMALL * sign).clamp(0, 1), before)
            new = torch.where(same[:, None, None, None], turned, new)
            new_value = gap(new, y[standing])
            better = new_value < value[standing]
            x_adv[standing] = torch.where(better[:, None, None, None], new, x_adv[standing])
            value[standing] = torch.where(better, new_value, value[standing])
    return x_adv


def random_sign(torch, shape, device):
    return 2.0 * torch.randint(0, 2, shape, device=device) - 1


def square_share(query: int) -> float:
    """The share of the image that a square covers, halved on the paper's schedule."""
    halvings = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    return 0.8 / 2 ** sum((query - 1) * 10000 // QUERIES > at for at in halvings)


def torch_spatial_grid(model, x, y):
    import torch
    from torch.nn import functional as F

    side, device = x.shape[-1], x.device
    worst, worst_value = x, torch.full((len(x),), -torch.inf, device=device)
    with torch.no_grad():
        for angle in np.radians(ANGLES):
            for right in SHIFTS:
                for down in SHIFTS:
                    cos, sin = np.cos(angle), np.sin(angle)
                    matrix = torch.tensor(
                        [[cos, -sin, -2 * right / side], [sin, cos, -2 * down / side]],
                        dtype=x.dtype, device=device,
                    )  # fmt: skip
                    grid = F.affine_grid(
                        matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False
                    )
                    moved = F.grid_sample(x, grid, align_corners=False)
                    value = F.cross_entropy(model(moved), y, reduction="none")
                    better = value > worst_value
                    worst = torch.where(better[:, None, None, None], moved, worst)
                    worst_value = torch.where(better, value, worst_value)
    return worst


# ------------------------------------------------------------------------- the network and images


def prepare(folder: str) -> str:
    """Train the network and write its weights and the images into ``folder``."""
    from tinyadv import data, evaluate, fit, models, optim

    try:
        digits = data.load("mnist")
    except data.DataError as error:
        print(f"{error}\nusing the printed digits")
        digits = data.load("glyphs")
    model = models.slides_cnn()
    fit(model, digits, optim.RMSprop(model.parameters()), epochs=2, validate=False, progress=False)
    np.savez(Path(folder) / "weights.npz", **model.state_dict())
    x, y = digits.x_test, digits.y_test.astype(np.int64)
    np.savez(Path(folder) / "images.npz", x=x, y=y)
    share = evaluate.accuracy(model, x[:IMAGES], y[:IMAGES])
    return f"{digits.name}, {100 * share:.1f} % of the first {IMAGES} test images read correctly"


def examples(folder: str, images: int):
    """The first ``images`` test images that repeat as often as it takes, and their labels."""
    with np.load(Path(folder) / "images.npz") as file:
        x, y = file["x"], file["y"]
    return np.resize(x, (images, *x.shape[1:])), np.resize(y, images)


# -------------------------------------------------------------------------------- one library each


def worker(library: str, backend: str) -> None:
    """Answer each line of input, a JSON request, with a line of output."""
    make = {"tinyadv": tinyadv_task, "torch": torch_task}[library]
    ready = functools.lru_cache(maxsize=1)(make)
    for line in sys.stdin:
        request = json.loads(line)
        request.pop("do")
        batch = request.pop("batch", None)
        run, wait = ready(**request, backend=backend)
        run = run if batch is None else functools.partial(run, batch)
        print(json.dumps(timed(run, wait, least=1, warm_up=False)), flush=True)


def compare(workers: dict, rounds: int, images: int = IMAGES, **request) -> dict:
    """Median seconds of each, and the median of the ratios to PyTorch's faster way."""
    times: dict = {name: [] for name in workers}
    if "torch" in workers:
        times["torch, batches"] = []
    for _ in range(rounds):
        for name in times:
            extra = {}
            if name != "tinyadv":
                extra = {"batch": TORCH_BATCH if "batches" in name else images}
            process = workers[name.split(",")[0]]
            times[name].append(process.ask("time", images=images, **extra, **request) / 1000)
    result = {name: statistics.median(seconds) for name, seconds in times.items()}
    if "torch" in workers:
        fastest = min((name for name in times if name != "tinyadv"), key=result.get)
        ratios = [a / b for a, b in zip(times["tinyadv"], times[fastest], strict=True)]
        result["ratio"] = statistics.median(ratios)
        result["ratios"] = [min(ratios), max(ratios)]
    return result


def line(label: str, result: dict) -> str:
    text = f"{label:32} {result['tinyadv']:9.2f}"
    if "ratio" in result:
        low, high = result["ratios"]
        text += f" {result['torch']:9.2f} {result['torch, batches']:12.2f} "
        text += f"{result['ratio']:7.2f}   {low:.2f}–{high:.2f}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=("numpy", "cupy"), default="numpy")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=3, help="pairs for each number")
    parser.add_argument("--no-growth", action="store_true", help="leave out how PGD grows")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--worker", choices=("tinyadv", "torch"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args.backend)

    with tempfile.TemporaryDirectory() as folder:
        images = prepare(folder)
        load = os.getloadavg()[0]
        print(f"{device(args.backend)}, NumPy {np.__version__}, load before the run {load:.2f}")
        print(f"{images}\nseconds, median of {args.rounds} turns\n")
        libraries = ["tinyadv"] + ["torch"] * (importlib.util.find_spec("torch") is not None)
        header = f"{'':32} {'tinyadv':>9}"
        if len(libraries) == 2:
            header += f" {'PyTorch':>9} {'batches ' + str(TORCH_BATCH):>12} {'ratio':>7}"
            header += "   lowest–highest"
        print(header)
        report = {"device": device(args.backend), "load": load, "images": images}
        report |= {"tasks": {}, "growth": {}}
        workers = {name: Worker(__file__, name, args.backend) for name in libraries}
        one = {"folder": folder, "steps": 40, "restarts": 1}
        for task in args.tasks:
            result = compare(workers, args.rounds, task=task, **one)
            report["tasks"][task] = result
            print(line(task, result), flush=True)
        if not args.no_growth:
            print("\nhow PGD grows")
            growth = [{"images": n} for n in (100, 1000, 10_000)]
            growth += [{"steps": n} for n in (10, 100)] + [{"restarts": n} for n in (2, 5)]
            for change in growth:
                label = ", ".join(f"{n:,} {what}" for what, n in change.items())
                result = compare(workers, 1, task="PGD-40", **{**one, **change})
                report["growth"][label] = result
                print(line(label, result), flush=True)
        for process in workers.values():
            process.close()
    if args.out:
        temporary = args.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(temporary, args.out)


if __name__ == "__main__":
    main()
