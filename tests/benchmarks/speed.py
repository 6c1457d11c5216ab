"""How fast the engine is, beside PyTorch eager where that is installed.

    python tests/benchmarks/speed.py                      # all tables, about ten minutes
    python tests/benchmarks/speed.py --nets slides_cnn    # one network
    python tests/benchmarks/speed.py --sections defenses  # one table
    python tests/benchmarks/speed.py --backend cupy       # on a GPU, beside PyTorch on the same one
    python tests/benchmarks/speed.py --out speed.json     # also keep the numbers, beside those of
                                                          # sections that the file has already

Each library lives in a process of its own, with the threads that it uses by default on this
machine, and the two take turns: a few runs of one, the same of the other, and so on. A *ratio* is
the median over the turns of (tinyadv's time / PyTorch's time), so what slows the machine down for a
while slows both sides of a pair. PyTorch's column is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

NETS = {"mlp": 128, "slides_cnn": 128, "fast_cnn": 128, "madry_cnn": 50}  # and their batch sizes
TASKS = {
    "forward": "logits",
    "input gradient": "gradient of the loss for the images",
    "training step": "gradient for the weights, RMSprop",
    "40 input gradients": "a PGD loop: step along the sign, clip",
    "penalty step": "training step with a squared norm of the input gradient in the loss",
}
BOUNDED = {"interval_cnn": 128}  # a network that is trained on interval bounds
DEFENSES = {  # and the networks that each is timed on; weights by Adam
    "PGD-10 training step": ("slides_cnn", "fast_cnn", "madry_cnn"),
    "fast FGSM training step": ("slides_cnn", "fast_cnn", "madry_cnn"),
    "interval-bound training step": ("slides_cnn", "fast_cnn", "interval_cnn"),
}
EPSILON, KAPPA = 0.3, 0.5
SECTIONS = ("tasks", "defenses", "growth", "memory", "import")
GROWTH = (32, 128, 512, 1024)  # batch sizes
SECONDS = 0.15  # that a library's turn takes, about; three runs at least


# ----------------------------------------------------------------- the tasks, once in each library


def tinyadv_tasks(net: str, batch: int, backend: str) -> tuple:
    from tinyadv import Tensor, get_backend, grad, models, optim
    from tinyadv.losses import cross_entropy

    xp = get_backend(backend)
    model = getattr(models, net)()
    model.to(backend)
    x, y = (xp.asarray(array) for array in examples(batch))
    parameters = model.parameters()
    optimizer = optim.RMSprop(parameters, lr=1e-5)

    frozen = model.frozen()  # without a tape, as `predict` does it; the arrays are the model's

    def forward():
        return frozen(x)

    def input_gradient(x=x):
        t = Tensor(x)
        return grad(cross_entropy(model(t), y), [t])[0]

    def training_step():
        optimizer.step(grad(cross_entropy(model(x), y), parameters))

    def pgd():
        x_adv = x
        for _ in range(40):
            x_adv = xp.clip(x_adv + 0.01 * xp.sign(input_gradient(x_adv)), 0, 1)
        return x_adv

    def penalty_step():
        t = Tensor(x)
        loss = cross_entropy(model(t), y)
        (g,) = grad(loss, [t], create_graph=True)
        optimizer.step(grad(loss + 0.1 * (g * g).sum(), parameters))

    wait = (lambda: None) if backend == "numpy" else xp.cuda.get_current_stream().synchronize
    return named(forward, input_gradient, training_step, pgd, penalty_step), wait


def torch_net(net: str):
    from torch import nn

    def conv(*args, **kwargs):
        return [nn.Conv2d(*args, **kwargs), nn.ReLU()]

    layers = {
        "mlp": [nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(),
                nn.Linear(200, 10)],
        "slides_cnn": [*conv(1, 10, 5), nn.MaxPool2d(2), *conv(10, 20, 5), nn.MaxPool2d(2),
                       nn.Flatten(), nn.Linear(320, 100), nn.ReLU(), nn.Linear(100, 10)],
        "fast_cnn": [*conv(1, 16, 4, 2, 1), *conv(16, 32, 4, 2, 1), nn.Flatten(),
                     nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10)],
        "madry_cnn": [*conv(1, 32, 5, padding=2), nn.MaxPool2d(2), *conv(32, 64, 5, padding=2),
                      nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3136, 1024), nn.ReLU(),
                      nn.Linear(1024, 10)],
        "interval_cnn": [*conv(1, 16, 4, 2), *conv(16, 32, 4), nn.Flatten(), nn.Linear(3200, 100),
                      nn.ReLU(), nn.Linear(100, 10)],
    }  # fmt: skip
    return nn.Sequential(*layers[net])


def torch_tasks(net: str, batch: int, backend: str) -> tuple:
    import torch
    from torch.nn.functional import cross_entropy

    device = "cuda" if backend == "cupy" else "cpu"
    model = torch_net(net).to(device)
    x, y = (torch.from_numpy(array).to(device) for array in examples(batch))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-5, alpha=0.9, eps=1e-7)

    def forward():
        with torch.no_grad():
            return model(x)

    def input_gradient(x=x):
        model.requires_grad_(False)  # an attack needs no gradients for the weights
        t = x.clone().requires_grad_()
        return torch.autograd.grad(cross_entropy(model(t), y), t)[0]

    def training_step():
        model.requires_grad_(True)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    def pgd():
        x_adv = x
        for _ in range(40):
            x_adv = (x_adv + 0.01 * input_gradient(x_adv).sign()).clamp(0, 1)
        return x_adv

    def penalty_step():
        model.requires_grad_(True)
        optimizer.zero_grad()
        t = x.clone().requires_grad_()
        loss = cross_entropy(model(t), y)
        (g,) = torch.autograd.grad(loss, t, create_graph=True)
        (loss + 0.1 * (g * g).sum()).backward()
        optimizer.step()

    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    return named(forward, input_gradient, training_step, pgd, penalty_step), wait


def named(*functions) -> dict:
    return dict(zip(TASKS, functions, strict=True))


# ---------------------------------------------------------- the defences, once in each library
# Each step returns its loss, from before the weights change.


def tinyadv_defenses(net: str, batch: int, backend: str, model=None) -> tuple:
    from tinyadv import defenses, get_backend, grad, models, optim
    from tinyadv.balls import Linf
    from tinyadv.losses import cross_entropy

    xp = get_backend(backend)
    model = model or getattr(models, net)()
    model.to(backend)
    x, y = (xp.asarray(array) for array in examples(batch))
    parameters = model.parameters()
    optimizer = optim.Adam(parameters, lr=1e-5)
    by_pgd, by_fgsm = defenses.MinMax(Linf(EPSILON), steps=10), defenses.Fast(Linf(EPSILON))
    by_bounds = defenses.IntervalBound(EPSILON, ramp=(0, 0), kappa=KAPPA)

    def learn(loss):
        optimizer.step(grad(loss, parameters))
        return loss.value

    def pgd_step():
        return learn(cross_entropy(model(by_pgd(model, x, y)), y))

    def fgsm_step():
        return learn(cross_entropy(model(by_fgsm(model, x, y)), y))

    def bound_step():
        loss, _ = by_bounds(model, x, y)
        return learn(loss)

    wait = (lambda: None) if backend == "numpy" else xp.cuda.get_current_stream().synchronize
    return dict(zip(DEFENSES, (pgd_step, fgsm_step, bound_step), strict=True)), wait


def torch_defenses(net: str, batch: int, backend: str, model=None, start=None) -> tuple:
    import torch
    from torch import nn
    from torch.nn.functional import conv2d, cross_entropy, linear

    device = "cuda" if backend == "cupy" else "cpu"
    model = (model or torch_net(net)).to(device).train()
    x, y = (torch.from_numpy(array).to(device) for array in examples(batch))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    low, high = (x - EPSILON).clamp(min=0), (x + EPSILON).clamp(max=1)

    def climb(steps, step_size):
        """PGD from a random start; ball and box are one interval for each pixel."""
        x_adv = x + torch.empty_like(x).uniform_(-EPSILON, EPSILON) if start is None else x + start
        x_adv = x_adv.clamp(low, high)
        for _ in range(steps):
            x_adv.requires_grad_()
            (g,) = torch.autograd.grad(cross_entropy(model(x_adv), y), x_adv)
            x_adv = (x_adv.detach() + step_size * g.sign()).clamp(low, high)
        return x_adv

    def learn(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def pgd_step():
        return learn(cross_entropy(model(climb(10, EPSILON / 4)), y))

    def fgsm_step():
        return learn(cross_entropy(model(climb(1, 1.25 * EPSILON)), y))

    def bound_step():
        lower, upper = low, high
        for layer in model[:-1]:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                middle, radius = (lower + upper) / 2, (upper - lower) / 2
                if isinstance(layer, nn.Conv2d):
                    size = layer.weight.abs()
                    spread = conv2d(radius, size, None, layer.stride, layer.padding)
                else:
                    spread = linear(radius, layer.weight.abs())
                middle = layer(middle)
                lower, upper = middle - spread, middle + spread
            else:
                lower, upper = layer(lower), layer(upper)
        # The last layer joined to the difference of each class and the label.
        w, b = model[-1].weight, model[-1].bias
        c = w - w[y][:, None]  # (N, K, I)
        middle, radius = (lower + upper) / 2, (upper - lower) / 2
        worst = (c @ middle[:, :, None] + c.abs() @ radius[:, :, None])[:, :, 0] + b - b[y][:, None]
        plain = cross_entropy(model(x), y)
        return learn(KAPPA * plain + (1 - KAPPA) * cross_entropy(worst, y))

    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    return dict(zip(DEFENSES, (pgd_step, fgsm_step, bound_step), strict=True)), wait


def examples(batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((batch, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, batch)


# ------------------------------------------------------------------ one library, in its own process


def worker(library: str, backend: str) -> None:
    """Answer each line of input, a JSON request, with a line of output."""
    makers = {
        "tinyadv": (tinyadv_tasks, tinyadv_defenses),
        "torch": (torch_tasks, torch_defenses),
    }[library]
    ready: dict = {}
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        if what == "memory":
            answer = peak_memory()
        else:
            key = (request["net"], request["batch"], request["task"] in DEFENSES)
            if key not in ready:
                ready.clear()
                *what, is_defense = key
                ready[key] = makers[is_defense](*what, backend)
            tasks, wait = ready[key]
            answer = timed(tasks[request["task"]], wait)
        print(json.dumps(answer), flush=True)


def timed(run, wait, least: int = 3, warm_up: bool = True) -> float:
    """The median time of a run in milliseconds, after one that does not count."""
    if warm_up:
        run()
        wait()
    times: list[float] = []
    while len(times) < least or sum(times) < SECONDS:
        started = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def peak_memory() -> float:
    """The most memory that this process has held so far, in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Worker:
    """A process that runs one library and waits, idle, while the other one is asked."""

    def __init__(self, script: str, library: str, backend: str):
        command = [sys.executable, script, "--worker", library, "--backend", backend]
        root = Path(__file__).resolve().parents[2]
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip

    def ask(self, do: str, **request) -> float:
        self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("a worker process ended: its error stands above")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


# ------------------------------------------------------------------------------------- the tables


def compare(workers: dict[str, Worker], rounds: int, **request) -> dict:
    """Median milliseconds of each library, and the median, lowest and highest ratio of a pair."""
    times = {library: [] for library in workers}
    for _ in range(rounds):
        for library, process in workers.items():
            times[library].append(process.ask("time", **request))
    result = {library: statistics.median(values) for library, values in times.items()}
    if "torch" in times:
        ratios = [a / b for a, b in zip(times["tinyadv"], times["torch"], strict=True)]
        result["ratio"] = statistics.median(ratios)
        result["ratios"] = [min(ratios), max(ratios)]
    return result


def line(label: str, result: dict) -> str:
    text = f"{label:42} {result['tinyadv']:9.2f}"
    if "torch" in result:
        text += f" {result['torch']:9.2f} {result['ratio']:7.2f}"
        if "ratios" in result:
            low, high = result["ratios"]
            text += f"   {low:.2f}–{high:.2f}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=("numpy", "cupy"), default="numpy")
    every = [*NETS, *BOUNDED]
    parser.add_argument("--nets", nargs="+", choices=every, default=every)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=9, help="pairs for each number")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--worker", choices=("tinyadv", "torch"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args.backend)

    libraries = ["tinyadv"] + ["torch"] * (importlib.util.find_spec("torch") is not None)
    header = f"{'':42} {'tinyadv':>9}"
    header += f" {'PyTorch':>9} {'ratio':>7}   lowest–highest" if len(libraries) == 2 else ""
    load = os.getloadavg()[0]
    print(f"{device(args.backend)}, NumPy {np.__version__}, load before the run {load:.2f}")
    print(f"milliseconds, median of {args.rounds} turns\n\n{header}")
    report: dict = {"device": device(args.backend), "load": {}}
    nets = [net for net in args.nets if net in NETS]

    workers = {library: Worker(__file__, library, args.backend) for library in libraries}
    for section in args.sections:
        report["load"][section] = load
        if section == "tasks":
            cases = [
                (f"{net}: {task}", net, NETS[net], task) for net in nets for task in args.tasks
            ]
            rounds = args.rounds
        elif section == "defenses":
            print("\na step of adversarial training")
            cases = [
                (f"{net}: {task}", net, (NETS | BOUNDED)[net], task)
                for task, on in DEFENSES.items()
                for net in on
                if net in args.nets
            ]
            rounds = args.rounds
        elif section == "growth":
            print("\na training step, by batch size")
            cases = [(f"{net}: {n}", net, n, "training step") for net in nets for n in GROWTH]
            rounds = max(3, args.rounds // 3)
        else:
            continue
        report[section] = {}
        for label, net, batch, task in cases:
            result = compare(workers, rounds, net=net, batch=batch, task=task)
            report[section][label] = result
            print(line(label, result), flush=True)
    for process in workers.values():
        process.close()

    if "memory" in args.sections:  # it only ever rises, so each network gets processes of its own
        print("\npeak memory of the process, MB")
        report["memory"] = {}
        for net in nets:
            result = {}
            for library in libraries:
                process = Worker(__file__, library, args.backend)
                for _ in range(3):
                    process.ask("time", net=net, batch=NETS[net], task="training step")
                result[library] = process.ask("memory")
                process.close()
            report["memory"][net] = with_ratio(result)
            print(line(f"{net}: training steps", result), flush=True)
    if "import" in args.sections:
        report["import"] = with_ratio({library: import_seconds(library) for library in libraries})
        print("\nseconds, of a process of its own\n" + line("import", report["import"]))
    if args.out:
        write(args.out, report)


def write(path: Path, report: dict) -> None:
    """Keep the numbers, and those of other sections that the file holds, from the same device."""
    old = json.loads(path.read_text()) if path.exists() else {}
    if old.get("device") == report["device"]:
        load = old.get("load", {})
        if not isinstance(load, dict):  # one number for all sections, once
            load = {section: load for section in SECTIONS if section in old}
        report = {**old, **report, "load": {**load, **report["load"]}}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(temporary, path)


def import_seconds(library: str) -> float:
    """The median time of importing a library in a fresh process, NumPy's import included."""
    code = f"import time; t = time.perf_counter(); import {library}; print(time.perf_counter() - t)"
    root = str(Path(__file__).resolve().parents[2])
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
        for _ in range(5)
    ]
    return statistics.median(float(run.stdout) for run in runs)


def with_ratio(result: dict) -> dict:
    if "torch" in result:
        result["ratio"] = result["tinyadv"] / result["torch"]
    return result


def device(backend: str) -> str:
    if backend == "cupy":
        import cupy

        return cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x.split(":")[1] for x in info.read_text().splitlines() if "model name" in x]
        name = names[0].strip() if names else name
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    main()
