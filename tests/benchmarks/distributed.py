"""Two ranks on two cores, beside one process on one core.

    python tests/benchmarks/distributed.py                        # both tasks, ten minutes or so
    python tests/benchmarks/distributed.py --tasks training       # one of them
    python tests/benchmarks/distributed.py --ranks 1 2 4          # on a machine with more cores
    python tests/benchmarks/distributed.py --out distributed.json # also keep the numbers

training     ``madry_cnn``, batches of 256 images, ten steps of PGD each: the time of a step
AutoAttack   200 images, ``slides_cnn`` at an ε that many of them survive: the time of the sweep

Each rank has one thread. A last row is one process with as many threads as there were ranks. All of
them take turns; the figure is the median, and the speed-up is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

TASKS = ("training", "AutoAttack")
BATCH, EPSILON, IMAGES = 256, 0.02, 200
QUERIES, STEPS = 1000, 50  # of AutoAttack; 5000 and 100 are the authors'


def training(comm, steps: int) -> list[float]:
    """The seconds of each step, after one that is not counted."""
    from tinyadv import data, defenses, fit, models, optim
    from tinyadv.balls import Linf

    digits, model, times = data.load("glyphs"), models.madry_cnn(), []
    count = BATCH * (steps + 2)
    few = data.Dataset("few", digits.x_train[:count], digits.y_train[:count], None, None, ())
    adversary = defenses.MinMax(Linf(0.2), steps=10)
    schedule = lambda epoch: times.append(time.perf_counter()) or 1e-4  # called before each step
    adam = optim.Adam(model.parameters())
    how = {"batch_size": BATCH, "validate": False, "progress": False, "schedule": schedule}
    fit(model, few, adam, 1, adversary, comm=comm, **how)
    return [b - a for a, b in pairwise(times[1:])]


def sweep(comm) -> list[float]:
    """The seconds of one sweep."""
    from tinyadv import data, fit, models, optim
    from tinyadv.attacks import auto_attack
    from tinyadv.balls import Linf

    digits, model = data.load("glyphs"), models.slides_cnn()
    fit(model, digits, optim.Adam(model.parameters()), 1, validate=False, progress=False)
    x, y = digits.x_test[:IMAGES], digits.y_test[:IMAGES]
    began = time.perf_counter()
    how = {"ball": Linf(EPSILON), "steps": STEPS, "queries": QUERIES, "details": True}
    _, report = auto_attack(model, x, y, comm=comm, **how)
    print(f"{report.robust_accuracy:.1%} survive", file=sys.stderr)
    return [time.perf_counter() - began]


def worker(task: str, steps: int) -> None:
    comm = None
    if os.environ.get("TINYADV_RANKS") != "1":
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
    seconds = training(comm, steps) if task == "training" else sweep(comm)
    if comm is None or comm.Get_rank() == 0:
        print(json.dumps(seconds))


def measured(task: str, ranks: int, threads: int, steps: int) -> list[float]:
    """The same in processes of their own."""
    root = Path(__file__).parents[2]
    command = [sys.executable, __file__, "--worker", task, "--steps", str(steps)]
    if ranks > 1:
        mpiexec = Path(sys.executable).with_name("mpiexec")
        command = [str(mpiexec) if mpiexec.exists() else "mpiexec", "-n", str(ranks), *command]
    own = dict.fromkeys(("TINYADV_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    own["TINYADV_RANKS"] = str(ranks)
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **own, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="of the training, in each repeat")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=TASKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options.worker, options.steps)
    import numpy as np
    import speed

    most = max(options.ranks)
    rows = {str(ranks): (ranks, 1) for ranks in options.ranks}
    rows[f"1, with {most} threads"] = 1, most
    results: dict = {}
    for task in options.tasks:
        seconds: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(options.repeats):
            for name, (ranks, threads) in rows.items():
                seconds[name] += measured(task, ranks, threads, options.steps)
        medians = {name: statistics.median(found) for name, found in seconds.items()}
        first = next(iter(medians.values()))
        results[task] = {
            name: {"seconds": median, "speed-up": first / median}
            for name, median in medians.items()
        }
        for name, found in results[task].items():
            print(f"{task:12} {name:16} {found['seconds']:7.2f} s  {found['speed-up']:.2f}×")
    if options.out:
        device = {"device": speed.device("numpy"), "numpy": np.__version__}
        content = {"device": device, "repeats": options.repeats, "results": results}
        options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
