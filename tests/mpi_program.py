"""What the tests of tinyadv.distributed run under ``mpiexec``: ``mpi_program.py FOLDER TASK …``.

Without mpiexec the same code runs in one process, and gives what to compare with.
"""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from tinyadv import attacks, defenses, evaluate, fit, optim
from tinyadv.attacks import auto_attack, pgd
from tinyadv.balls import L2, Linf
from tinyadv.data import Dataset
from tinyadv.layers import Conv2d, Dense, Flatten, Module, ReLU, Sequential
from tinyadv.losses import cross_entropy

if os.environ.get("TINYADV_TEST_MPI"):  # mpiexec has started this process
    from mpi4py import MPI

    COMM = MPI.COMM_WORLD
else:
    COMM = None
RANK = 0 if COMM is None else COMM.Get_rank()


def images(n, seed):
    """Three classes of images (n, 1, 8, 8): patterns of grey, and noise."""
    patterns = np.random.default_rng(0).random((3, 1, 8, 8))
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return (0.5 * patterns[y] + 0.5 * rng.random((n, 1, 8, 8))).astype(np.float32), y


DATA = Dataset("patterns", *images(301, seed=1), *images(90, seed=2), classes=("a", "b", "c"))
BATCH = 150  # four pieces; and a last batch of a single example


def cnn(rng=1):
    rng = np.random.default_rng(rng)
    layers = [Conv2d(1, 4, 3, rng=rng), ReLU(), Flatten(), Dense(144, 3, rng=rng)]
    return Sequential(*layers)


def train(epochs=3, perturb=None, model=None, data=DATA, **options):
    """The weights, one after another, and the history, of a training with Adam."""
    model = model or cnn(1 + RANK)  # rank 0 decides
    how = {"batch_size": BATCH, "progress": False, "comm": COMM} | options
    adam = optim.Adam(model.parameters(), 0.01)
    history = fit(model, data, adam, epochs, perturb, **how)
    columns = {name: values for name, values in vars(history).items() if name != "seconds"}
    return np.concatenate([p.value.ravel() for p in model.parameters()]), columns


def penalty(model, x, y):
    loss, logits = defenses.GradientPenalty(0.1)(model, x, y)
    return loss, logits, {"mean": x.mean()}


class Noise:
    """An objective of a user, which draws numbers and has no ``state_dict``."""

    def __init__(self):
        self.rng = np.random.default_rng(3)

    def __call__(self, model, x, y):
        logits = model(x + self.rng.normal(0, 0.1, x.shape).astype(x.dtype))
        return cross_entropy(logits, y), logits


BALL = Linf(0.1)
TRAININGS = {
    "standard": {},
    "min-max": {"perturb": lambda: defenses.MinMax(BALL, steps=3), "epochs": 2},
    "L2": {"perturb": lambda: partial(pgd, ball=L2(0.5), steps=2), "epochs": 2},
    "generators": {
        "perturb": lambda: partial(pgd, ball=L2(0.5), steps=2, rng=np.random.default_rng(7)),
        "objective": Noise,
        "epochs": 2,
    },
    "TRADES": {"objective": lambda: defenses.Trades(BALL, steps=2), "epochs": 2},
    "penalty": {"objective": lambda: penalty, "average": lambda: 0.9, "epochs": 2},
    "rotations": {"perturb": lambda: defenses.WorstOfK(2, max_shift=1), "epochs": 1},
    "bounds": {
        "objective": lambda: defenses.IntervalBound(
            0.1, ramp=(0, 1), attack=partial(pgd, ball=BALL, steps=1)
        ),
        "epochs": 2,
    },
}
EXACTLY = {
    "fifty steps": {"perturb": lambda: defenses.MinMax(BALL, steps=2), "epochs": 17},
    "free": {"perturb": lambda: defenses.Free(BALL, replays=2), "epochs": 2},
}


def settings(options):
    return {k: v() if callable(v) else v for k, v in options.items()}


def trainings(folder, exact):
    found, folder = {}, folder / ("exact" if exact else "rows")
    folder.mkdir(exist_ok=True)
    for name, options in {**TRAININGS, **(EXACTLY if exact or COMM is None else {})}.items():
        found[name], history = train(exact=exact, **settings(options))
        if RANK == 0:
            (folder / f"{name}.json").write_text(json.dumps(history))
            np.save(folder / f"{name}.npy", found[name])
        if COMM is not None:
            assert len(set(COMM.allgather(found[name].tobytes()))) == 1, name


def rows(folder):
    trainings(folder, exact=False)


def exact(folder):
    trainings(folder, exact=True)


def trained():
    model = cnn()
    fit(model, DATA, optim.Adam(model.parameters(), 0.01), 3, progress=False)
    return model


def sweeps(folder, checkpoint=None):
    """The tables and the examples of both functions."""
    model, x, y = trained(), DATA.x_test, DATA.y_test
    suite = {
        "PGD": partial(pgd, ball=BALL, steps=5, restarts=2),
        "FAB": partial(attacks.fab, ball=BALL, steps=5),
        "own": lambda model, x, y: pgd(model, x, y, ball=BALL, steps=2),
    }
    how = {"comm": COMM, "checkpoint": checkpoint}
    table = evaluate.robustness(model, x, y, suite, ball=BALL, batch_size=50, **how)
    cascade = evaluate.robustness(model, x, y, suite, ball=BALL, cascade=True, **how)
    few = {"steps": 5, "targets": 2, "queries": 60, "details": True}
    x_adv, report = auto_attack(model, x, y, ball=BALL, **few, **how)
    if RANK == 0:
        np.savez(folder / "sweeps.npz", x_adv=x_adv, broken_by=report.broken_by)
        tables = [numbers(each) for each in (table, cascade, report)]
        (folder / "sweeps.json").write_text(json.dumps(tables))


def numbers(report):
    """All that one process finds as well."""
    found = report.as_dict()
    for result in found["attacks"].values():
        del result["seconds"]
    return found


def interrupted_sweep(folder):
    """A sweep of ten shares that take a while; the last rank is killed in the fifth, at first."""
    from tinyadv import distributed

    distributed.KEEP_AFTER = 0.0
    model, x, y = trained(), DATA.x_test, DATA.y_test
    first = not (folder / "killed").exists()
    calls = []

    def slow(model, x, y):
        calls.append(len(x))
        if first and len(calls) == 5 and COMM.Get_rank() == COMM.Get_size() - 1:
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return pgd(model, x, y, ball=BALL, steps=3)

    counted = Counts(model)
    how = {"batch_size": 18, "comm": COMM, "checkpoint": folder / "shares"}
    report = evaluate.robustness(counted, x, y, {"slow": slow}, **how)
    if RANK == 0:
        table = {"table": numbers(report), "passes": sum(counted.passes)}
        (folder / "resumed.json").write_text(json.dumps(table))


class Counts(Module):
    """A network that counts the examples of which a gradient is computed."""

    by_example = True

    def __init__(self, net):
        self.net, self.passes = net, []

    def __call__(self, x):
        if not isinstance(x, np.ndarray):
            self.passes.append(len(x))
        return self.net(x)


def killed(folder):
    """A training to be killed at any moment, which leaves a checkpoint after each step."""
    (folder / f"pid-{RANK}").write_text(str(os.getpid()))
    how = {"checkpoint": folder / "state.npz", "checkpoint_steps": 1, "resume": True}
    perturb = defenses.MinMax(BALL, steps=2)
    weights, _ = train(8, perturb, batch_size=50, exact=True, **how)
    if RANK == 0:
        np.save(folder / "end.npy", weights)


def resumed(folder):
    """Two epochs, of which an earlier program may have done some."""
    weights, _ = train(4, checkpoint=folder / "state.npz", resume=True, exact=True)
    if RANK == 0:
        np.save(folder / "end.npy", weights)


def half(folder):
    train(2, checkpoint=folder / "state.npz", exact=True)


def ctrl_c(folder):
    """One rank alone is asked to stop, and all of them do after the same step or validation."""

    def attempt(rank, at, **options):
        """The message, and the numbers of the steps and the validations that were done."""
        done = {"steps": 0, "validations": 0}

        def count(what, result):
            done[what] += 1
            if RANK == rank and done == at:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            return result

        try:
            train(
                2, lambda model, x, y: count("steps", x), checkpoint=folder / "state.npz",
                validate=lambda model: count("validations", 0.5), **options,
            )  # fmt: skip
            return ["not stopped", done]
        except KeyboardInterrupt as error:
            return [str(error), done]

    last = COMM.Get_size() - 1
    found = [
        attempt(last, {"steps": 3, "validations": 0}, batch_size=40),
        attempt(0, {"steps": 3, "validations": 0}, batch_size=1),  # rank 0 has no rows of its own
        attempt(last, {"steps": 6, "validations": 2}),
    ]
    (folder / f"stopped-{RANK}.json").write_text(json.dumps(found))


def failing(folder, error=ZeroDivisionError, where="perturb"):
    """An error in one rank alone."""

    def fails(result):
        if RANK == 1:
            raise error("in this rank alone")
        return result

    places = {
        "perturb": lambda model, x, y: fails(x),
        "augment": lambda x, rng: fails(x),
        "validate": lambda model: fails(0.5),
    }
    train(1, **{where: places[where]})


overflow = partial(failing, error=FloatingPointError)
second_ctrl_c = partial(failing, error=KeyboardInterrupt)
in_augment = partial(failing, error=FloatingPointError, where="augment")
in_validate = partial(failing, error=KeyboardInterrupt, where="validate")


def nested(folder):
    """The training of another network, within the validation, diverges in one rank."""

    def validate(model):
        train(1, comm=None, model=cnn(), schedule=lambda epoch: [0.01, 1e30][RANK])
        return 0.5

    train(1, validate=validate)


def other_rates(folder, **how):
    train(1, schedule=lambda epoch: 0.01 * (1 + RANK * (epoch > 0)), **how)


other_rates_exact = partial(other_rates, exact=True)


def other_numbers(folder):
    """Each rank has another name for a number of its objective."""

    def objective(model, x, y):
        logits = model(x)
        loss = cross_entropy(logits, y)
        return loss, logits, {f"number_{RANK}": loss}

    train(1, objective=objective)


def messages(*attempts):
    """The message of the error that each attempt raises."""
    found = []
    for attempt in attempts:
        try:
            attempt()
            found.append("nothing")
        except (TypeError, ValueError) as error:
            found.append(str(error))
    return found


def disagreeing(folder):
    """Ranks that call ``fit`` with other arguments, or find another checkpoint."""
    x, y = DATA.x_train, DATA.y_train
    own = {"checkpoint": folder / f"state-{RANK}.npz"}
    if RANK == 0:
        train(1, comm=None, **own)
    COMM.Barrier()
    without = Dataset("without", x, y, DATA.x_test, None, DATA.classes)
    short = Dataset("short", x[:50], y[:50], DATA.x_test, DATA.y_test, DATA.classes)
    x, y = DATA.x_test, DATA.y_test
    attack = {"PGD": partial(pgd, ball=Linf(0.1 * (1 + RANK)), steps=2)}
    found = messages(
        lambda: train(data=without if RANK == 1 else DATA),
        lambda: train(data=short if RANK == 1 else DATA),
        lambda: train(epochs=2 + RANK),
        lambda: train(resume=True, **own),
        lambda: evaluate.robustness(cnn(), x, y, attack, comm=COMM),
        lambda: auto_attack(cnn(RANK), x, y, ball=BALL, steps=2, queries=2, comm=COMM),
        lambda: auto_attack(cnn(), x + 2 * RANK, y, ball=BALL, steps=2, queries=2, comm=COMM),
    )
    (folder / f"disagreeing-{RANK}.json").write_text(json.dumps(found))


def refused(folder):
    """What cannot be shared, and the sentences that say so."""

    class Whole(Module):
        def __call__(self, x):
            return x - x.mean()

    found = messages(
        lambda: train(model=Sequential(Whole(), *cnn().layers)),
        lambda: train(perturb=defenses.Free(BALL)),
        lambda: train(perturb=partial(pgd, ball=BALL, rng=5)),
        lambda: evaluate.robustness(
            Sequential(Whole(), *cnn().layers), DATA.x_test, DATA.y_test, {"PGD": pgd}, comm=COMM
        ),
    )
    (folder / f"refused-{RANK}.json").write_text(json.dumps(found))


def device(folder):
    """The arrays of the stand-in for CuPy, which travel through the host."""
    import strict_cupy

    model = cnn()
    for p in model.parameters():
        p.value = strict_cupy.asarray(p.value)
    adam = optim.Adam(model.parameters(), 0.01)
    fit(model, DATA, adam, 2, batch_size=BATCH, progress=False, comm=COMM)
    if RANK == 0:
        weights = [array.ravel() for array in model.state_dict().values()]
        np.save(folder / "device.npy", np.concatenate(weights))


def lesson(folder):
    """What a lesson does: train a network that others use, print, draw and record."""
    sys.argv = ["lesson.py", "--quick", "--record", "--out", str(folder)]
    os.environ["TINYADV_CACHE"] = str(folder)
    from lessons.support import cli, zoo

    run = cli.start("06_a_lesson", "A lesson.")
    x, y = np.random.default_rng(0).random((300, 1, 28, 28), np.float32), np.arange(300) % 10
    model = zoo.standard(Dataset("noise", x, y, x, y, classes=tuple("0123456789")), epochs=1)
    print("accuracy", evaluate.accuracy(model, x, y))
    run.record(processes=1 if run.comm is None else run.comm.Get_size())


if __name__ == "__main__":
    for task in sys.argv[2:]:
        globals()[task](Path(sys.argv[1]))
