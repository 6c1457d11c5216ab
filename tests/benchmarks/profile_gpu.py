"""Where the time of a step goes on a GPU: one session of at most eight minutes.

    python tests/benchmarks/profile_gpu.py --out profile.json                     # on a GPU
    python tests/benchmarks/profile_gpu.py --out profile.json --backend strict    # a rehearsal

The parts, one after another:

    correctness    the tests of convolutions, optimizers and primitives; if they fail, that is all
    calibration    what single calls cost: a sum, a product, a fused function, a layer with a tape
    convolutions   every convolution of the networks: forward, its adjoint for the images, in two
                   variants, and its adjoint for the filters
    steps          training step, input gradient and more, beside PyTorch where that is installed,
                   both with TF32 products and without

Times of single calls are given twice, in microseconds: ``enqueue_us`` until the call returns, which
is the work of the host, and ``total_us`` until the GPU is done as well, both as an average over
calls in a row. If the two are equal, the host is what limits the speed.

Every part has a deadline. What is not begun by then is listed under ``left_out``. The file is
written anew after each result, so a session that is cut short leaves what it has measured. The
rehearsal runs all parts but the steps on the tests' stand-in for CuPy; its times mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import select
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
NETS = {"slides_cnn": 128, "fast_cnn": 128, "madry_cnn": 50, "interval_cnn": 128}  # batch sizes
SECONDS = 460  # of a session; if a call hangs, it is ended 20 s later
DEADLINES = {"correctness": 180, "calibration": 40, "convolutions": 100, "steps": 240}  # seconds
TESTS = ("test_conv.py", "test_optim.py", "test_primitives.py", "test_balls.py")
TASKS = ("training step", "input gradient", "PGD-10 training step", "interval-bound training step")
ROUNDS = 5  # of which the median counts


# ------------------------------------------------------------------------------------ the session


class Session:
    """Results and deadlines.

    Parameters
    ----------
    out : Path
        The JSON file.
    seconds : float
        Until the end of the session, which no part exceeds by more than one of its measurements.
    clock : callable
        Returns seconds.
    """

    def __init__(self, out: Path, seconds: float = SECONDS, clock: Callable = time.monotonic):
        self.out, self.clock, self.end = out, clock, clock() + seconds
        self.report: dict[str, Any] = {"parts": {}}
        self.deadline = self.end

    def left(self) -> float:
        """Seconds until the deadline of the part that runs."""
        return self.deadline - self.clock()

    def part(self, name: str, cases: dict[str, Callable], seconds: float) -> dict:
        """Take the measurements ``cases`` one after another; returns the results by name.

        A measurement that raises an error is recorded as ``{"error": …}``.
        """
        started = self.clock()
        self.deadline = min(started + seconds, self.end)
        part: dict[str, Any] = {"results": {}, "left_out": [], "seconds": 0}
        self.report["parts"][name] = part
        self.save()
        for case, measure in cases.items():
            if self.left() <= 0:
                part["left_out"].append(case)
            else:
                try:
                    part["results"][case] = measure()
                except Exception as error:
                    part["results"][case] = {"error": f"{type(error).__name__}: {error}"}
                print(f"{name}: {case}: {part['results'][case]}", flush=True)
            part["seconds"] = self.clock() - started
            self.save()
        return part["results"]

    def save(self) -> None:
        """Write the file; it is complete at any time."""
        partial_file = self.out.with_name(self.out.name + ".part")
        partial_file.write_text(json.dumps(self.report, indent=1) + "\n", encoding="utf-8")
        os.replace(partial_file, self.out)


def timed(run: Callable, wait: Callable, clock: Callable = time.perf_counter) -> dict[str, float]:
    """Microseconds of ``run()``: until it returns, and until the device has done its work."""
    run()  # compiles
    wait()
    started = clock()
    run()
    wait()
    # A row of calls that takes some 10 ms. A GPU queues about a thousand kernels before the host
    # has to wait, so there are not many calls of a hundred kernels in a row.
    calls = max(1, min(10, int(0.01 / max(clock() - started, 1e-9))))
    enqueue, total = [], []
    for _ in range(ROUNDS):
        started = clock()
        for _ in range(calls):
            run()
        enqueue.append((clock() - started) / calls)
        wait()
        total.append((clock() - started) / calls)
    return {
        "enqueue_us": 1e6 * statistics.median(enqueue),
        "total_us": 1e6 * statistics.median(total),
    }


# -------------------------------------------------------------------------------------- the parts


def run_tests(backend: str, seconds: float) -> dict:
    """Whether the tests pass on this backend, and the end of what they print."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--backend", backend]
    root = HERE.parents[1]
    ran = subprocess.run(
        [*command, *(str(HERE.parent / name) for name in TESTS)],
        cwd=root, timeout=seconds, capture_output=True, text=True,
        env={**os.environ, "HYPOTHESIS_PROFILE": "quick", "PYTHONPATH": str(root)},
    )  # fmt: skip
    return {"passed": ran.returncode == 0, "says": (ran.stdout + ran.stderr)[-2000:]}


def calibration(xp: Any, wait: Callable) -> dict[str, Callable]:
    """Single calls, on arrays as large as the activations of 128 examples."""
    from tinyadv import Tensor, ops, optim
    from tinyadv.backend import array_module, elementwise

    a, b = xp.ones((10, 12, 12, 128), np.float32), xp.ones((10, 12, 12, 128), np.float32)
    out, filters = xp.empty(a.shape, np.float32), xp.ones((20, 250), np.float32)
    columns, batch = xp.ones((250, 8192), np.float32), xp.ones((8, 250, 1024), np.float32)
    examples_first = a.transpose(3, 0, 1, 2)
    tensor, gradient = Tensor(examples_first), xp.ones(100, np.float32)
    adam = optim.Adam([Tensor(xp.ones(100, np.float32))])

    @elementwise
    def largest(*parts):
        xp = array_module(*parts)
        for part in parts[1:]:
            parts = (xp.maximum(parts[0], part),)
        return parts[0]

    calls = {
        "add": lambda: a + b,
        "add into an array": lambda: xp.add(a, b, out=out),
        "zeros": lambda: xp.zeros(a.shape, np.float32),
        "view": lambda: a.transpose(3, 0, 1, 2),
        "copy into another order": lambda: examples_first.copy(),
        "sum over all but channels": lambda: a.sum((1, 2, 3)),
        "product of matrices": lambda: filters @ columns,
        "products, one operand repeated": lambda: filters @ batch,
        "fused, 2 arrays in C order": lambda: largest(a, b),
        "fused, 2 arrays, examples first": lambda: largest(examples_first, examples_first),
        "fused, 8 arrays": lambda: largest(*[a, b] * 4),
        "Adam, one parameter": lambda: adam.step([gradient]),
        "relu": lambda: ops.relu(examples_first),
        "relu with a tape": lambda: ops.relu(tensor),
    }
    return {name: partial(timed, call, wait) for name, call in calls.items()}


def convolutions(xp: Any, wait: Callable, nets: dict[str, int]) -> dict[str, Callable]:
    """Every convolution of the networks, on as many examples as ``nets`` says."""
    from tinyadv import models
    from tinyadv.layers import Conv2d
    from tinyadv.tensor import value_of

    cases: dict[str, Callable] = {}
    for net, n in nets.items():
        x = np.zeros((1, 1, 28, 28), np.float32)
        for layer in getattr(models, net)().layers:
            y = value_of(layer(x))
            if isinstance(layer, Conv2d):
                run = partial(_convolution, xp, wait, layer, (n, *x.shape[1:]), (n, *y.shape[1:]))
                for face in ("forward", "dx", "dx as a convolution", "dw"):
                    if face != "dx as a convolution" or layer.stride in (1, (1, 1)):
                        cases[f"{net}, {layer!r}: {face}"] = partial(run, face)
            x = y
    return cases


def _convolution(xp, wait, layer, x_shape, y_shape, face):
    from tinyadv import conv

    rng = np.random.default_rng(0)

    def activations(shape):  # stored as the library stores them, with the examples last
        n, *rest = shape
        stored = xp.asarray(rng.standard_normal((*rest, n), dtype=np.float32))
        return stored.transpose(3, 0, 1, 2)

    x, g, w = activations(x_shape), activations(y_shape), xp.asarray(layer.weight.value)
    how = {"stride": layer.stride, "padding": layer.padding}
    # For stride 1 the adjoint is a convolution with the filters turned by 180°.
    turned = w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3).copy()
    p, q = conv.pair(layer.padding, "padding", 0)
    around = (w.shape[2] - 1 - p, w.shape[3] - 1 - q)
    calls = {
        "forward": lambda: conv.conv2d(x, w, **how),
        "dx": lambda: conv.conv2d_dx(g, w, size=x_shape[2:], **how),
        "dx as a convolution": lambda: conv.conv2d(g, turned, padding=around),
        "dw": lambda: conv.conv2d_dw(x, g, kernel_size=w.shape[2:], **how),
    }
    return timed(calls[face], wait)


# ------------------------------------------------------------------------- steps, beside PyTorch


class Worker:
    """A process with one library and one setting of TF32; see ``speed.worker``."""

    def __init__(self, library: str, tf32: bool):
        command = [sys.executable, __file__, "--worker", library]
        path = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "CUPY_TF32": str(int(tf32))},
        )  # fmt: skip

    def ask(self, seconds: float, **request: Any) -> float:
        """The answer to a request. If it takes longer than ``seconds``, the process is ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        if select.select([self.process.stdout], [], [], max(0, seconds))[0]:
            if line := self.process.stdout.readline():
                return json.loads(line)
        self.process.kill()
        raise TimeoutError("no answer before the deadline, or the process ended")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def be_a_worker(library: str) -> None:
    import speed  # lies beside this file

    if library == "torch":
        import torch

        tf32 = os.environ["CUPY_TF32"] == "1"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    speed.worker(library, "cupy")


def steps(
    left: Callable[[], float], nets: dict[str, int], workers: dict, libraries: list[str]
) -> dict[str, Callable]:
    """Milliseconds of the steps in each library, and their ratio: the median of three turns.

    The processes are put into ``workers``; the caller closes them.
    """

    def answer(library: str, tf32: bool, **request: Any) -> float:
        if (library, tf32) not in workers:
            workers[library, tf32] = Worker(library, tf32)
        try:
            return workers[library, tf32].ask(left(), **request)
        except OSError:  # no answer: the next request gets a new process
            workers.pop((library, tf32)).close()
            raise

    def measure(net: str, n: int, task: str, tf32: bool) -> dict:
        times: dict[str, list[float]] = {library: [] for library in libraries}
        for _ in range(3):
            for library, values in times.items():
                values.append(answer(library, tf32, do="time", net=net, batch=n, task=task))
        result = {library: statistics.median(values) for library, values in times.items()}
        if "torch" in times:
            pairs = zip(times["tinyadv"], times["torch"], strict=True)
            result["ratio"] = statistics.median(a / b for a, b in pairs)
        return result

    return {
        f"{net}: {task}, TF32 {'on' if tf32 else 'off'}": partial(measure, net, n, task, tf32)
        for net, n in nets.items()
        for task in TASKS
        for tf32 in (False, True)
        if task != "interval-bound training step" or net != "madry_cnn"
    }


# ----------------------------------------------------------------------------------------- main


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--backend", choices=("cupy", "strict"), default="cupy")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--parts", nargs="+", choices=DEADLINES, default=list(DEADLINES))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the session, at most")
    parser.add_argument("--worker", choices=("tinyadv", "torch"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        return be_a_worker(args.worker)
    if args.out is None:
        parser.error("--out is needed")

    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]  # run from anywhere
    from tinyadv.backend import BackendError, get_backend

    rehearsal = args.backend == "strict"
    try:
        xp = importlib.import_module("strict_cupy") if rehearsal else get_backend("cupy")
    except BackendError as error:
        raise SystemExit(f"nothing to measure: {error}; --backend strict is a rehearsal") from None
    wait = xp.cuda.get_current_stream().synchronize
    nets = {net: 2 if rehearsal else NETS[net] for net in args.nets}

    session = Session(args.out, args.seconds)
    workers: dict[Any, Worker] = {}

    def give_up():  # a call hangs: the file that is there must do
        for worker in list(workers.values()):
            worker.process.kill()
        os._exit(3)

    guard = threading.Timer(args.seconds + 20, give_up)
    guard.daemon = True
    guard.start()
    session.report["device"] = device(xp)
    session.report["numpy"] = np.__version__
    session.report["backend"] = getattr(xp, "__version__", args.backend)
    session.save()
    parts: dict[str, Callable[[], dict[str, Callable]]] = {
        "correctness": lambda: {"tests": lambda: run_tests(args.backend, session.left())},
        "calibration": lambda: calibration(xp, wait),
        "convolutions": lambda: convolutions(xp, wait, nets),
        "steps": lambda: {} if rehearsal else steps(session.left, nets, workers, libraries),
    }
    libraries = ["tinyadv"] + ["torch"] * (importlib.util.find_spec("torch") is not None)
    try:
        for name in args.parts:
            results = session.part(name, parts[name](), DEADLINES[name])
            if name == "correctness" and not results.get("tests", {}).get("passed"):
                raise SystemExit("the tests failed or were not done in time: see the file")
    finally:
        for worker in workers.values():
            worker.close()
        guard.cancel()
    print(f"wrote {args.out}")


def device(xp: Any) -> str:
    """The name of the GPU."""
    properties = getattr(getattr(xp.cuda, "runtime", None), "getDeviceProperties", None)
    return properties(0)["name"].decode() if properties else "a stand-in on the CPU"


if __name__ == "__main__":
    main()
