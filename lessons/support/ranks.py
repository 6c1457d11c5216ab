"""Two processes that train one network together, for lesson 15, with MPI or without.

:func:`measure` starts them, and returns how long a training step takes. Without MPI the second
process is a child of the first, at the other end of a pipe. Each process computes on one core.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve()


class Pair:
    """The communicator of two processes, each at one end of a pipe.

    It has those methods of ``mpi4py.MPI.Comm`` that ``fit`` calls.
    """

    def __init__(self, rank, pipe):
        self.rank, self.pipe = rank, pipe

    def allgather(self, mine):
        if self.rank == 0:  # one sends while the other receives, or both would wait
            self.pipe.send(mine)
            return [mine, self.pipe.recv()]
        theirs = self.pipe.recv()
        self.pipe.send(mine)
        return [theirs, mine]

    def Allreduce(self, mine, total):
        np.add(*self.allgather(mine), out=total)

    Get_rank = lambda self: self.rank
    Get_size = lambda self: 2
    bcast = lambda self, thing: self.allgather(thing)[0]
    allreduce = lambda self, mine: sum(self.allgather(mine))
    Barrier = lambda self: self.allgather(None)
    Abort = lambda self, code: os._exit(code)


def has_mpi() -> bool:
    return bool(mpiexec().exists() and importlib.util.find_spec("mpi4py"))


def mpiexec() -> Path:
    """The command of the MPI that pip installs beside Python."""
    return Path(sys.executable).with_name("mpiexec")


def measure(ranks: int, rows: list[int], attack_steps: list[int], epsilon: float) -> dict:
    """The seconds of a training step, measured in ``ranks`` processes (1 or 2) of one core each.

    Returns
    -------
    {"step": {attack_steps: {rows per rank: seconds}}, "allreduce": seconds}
    """
    settings = {"ranks": ranks, "rows": rows, "attack_steps": attack_steps, "epsilon": epsilon}
    settings["mpi"] = ranks == 2 and has_mpi()
    command = [sys.executable, str(HERE), json.dumps(settings)]
    if settings["mpi"]:
        command = [str(mpiexec()), "-n", "2", *command]
    one_core = {"TINYADV_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    path = os.pathsep.join([str(HERE.parents[2]), os.environ.get("PYTHONPATH", "")])
    mine = ("PMI_", "OMPI_", "PMIX_")  # of an mpiexec that has started this process
    here = {key: value for key, value in os.environ.items() if not key.startswith(mine)}
    environment = {**here, **one_core, "PYTHONPATH": path, "HYDRA_LAUNCHER": "fork"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the processes failed: {done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    by_rows = {
        int(steps): {int(n): seconds for n, seconds in column.items()}
        for steps, column in found["step"].items()
    }
    return {"step": by_rows, "allreduce": found["allreduce"]}


# ------------------------------------------------------------------------------- in the processes


def step_time(comm, rows: int, attack_steps: int, epsilon: float) -> float:
    """The median seconds of a step of the fast CNN, with ``rows`` images per rank."""
    from tinyadv import data, defenses, fit, models, optim
    from tinyadv.balls import Linf

    size = 1 if comm is None else comm.Get_size()
    batch, model, times = rows * size, models.fast_cnn(), []
    steps = 2 + max(3, 400 // (rows * (1 + attack_steps)))
    rng = np.random.default_rng(0)
    x, y = rng.random((batch * steps, 1, 28, 28), np.float32), rng.integers(0, 10, batch * steps)
    digits = data.Dataset("noise", x, y, None, None, ())  # what is on them costs nothing
    adversary = defenses.MinMax(Linf(epsilon), steps=attack_steps) if attack_steps else None
    fit(
        model, digits, optim.Adam(model.parameters()), 1, adversary, batch_size=batch, comm=comm,
        schedule=lambda epoch: times.append(time.perf_counter()) or 1e-4,  # before each step
        validate=False, progress=False,
    )  # fmt: skip
    return statistics.median(b - a for a, b in pairwise(times[1:]))


def allreduce_time(comm, numbers: int) -> float:
    """The median seconds of the sum of two arrays (numbers,)."""
    if comm is None:
        return 0.0
    mine, total, times = np.ones(numbers, np.float32), np.zeros(numbers, np.float32), []
    for _ in range(20):
        comm.Barrier()
        began = time.perf_counter()
        comm.Allreduce(mine, total)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def report(comm, settings: dict) -> None:
    found = {
        steps: {n: step_time(comm, n, steps, settings["epsilon"]) for n in settings["rows"]}
        for steps in settings["attack_steps"]
    }
    seconds = allreduce_time(comm, numbers=166_406)  # the parameters of the fast CNN
    if comm is None or comm.Get_rank() == 0:
        print(json.dumps({"step": found, "allreduce": seconds}))


def second(pipe, settings: dict) -> None:
    report(Pair(1, pipe), settings)


def main() -> None:
    settings = json.loads(sys.argv[1])
    if settings["ranks"] == 1:
        return report(None, settings)
    if settings["mpi"]:
        from mpi4py import MPI

        return report(MPI.COMM_WORLD, settings)
    here, there = multiprocessing.Pipe()
    other = multiprocessing.get_context("spawn").Process(target=second, args=(there, settings))
    other.start()
    report(Pair(0, here), settings)
    other.join()


if __name__ == "__main__":
    main()
