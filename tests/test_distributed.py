"""Several processes compute what one does: training, sweeps, and what happens if a process dies."""

import copy
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import mpi_program as program
import numpy as np
import pytest

from tinyadv import attacks, distributed, models
from tinyadv.attacks import auto_attack, pgd
from tinyadv.balls import L2, Linf
from tinyadv.checkpoint import load_state
from tinyadv.distributed import DRAWS, Alone, RowsGenerator, _rows
from tinyadv.evaluate import robustness
from tinyadv.parallel import setting

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("TINYADV_KILLS", 2))  # random moments at which a rank is killed

same = np.testing.assert_array_equal


def mpiexec() -> str | None:
    """The command of the MPI that belongs to this Python."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


needs_mpi = pytest.mark.skipif(
    mpiexec() is None or not __import__("importlib.util").util.find_spec("mpi4py"),
    reason="needs MPI: pip install 'tinyadv[mpi]'",
)


def start(ranks: int, folder: Path, *tasks: str) -> subprocess.Popen:
    """The program on `ranks` ranks; 0 is one process without MPI."""
    folder.mkdir(exist_ok=True)
    path = [str(ROOT), str(ROOT / "tests"), *sys.path]
    once = {"OPENBLAS_NUM_THREADS": "1", "TINYADV_THREADS": "1"}
    own = {"HYDRA_LAUNCHER": "fork", "OMPI_ALLOW_RUN_AS_ROOT": "1",
           "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # fmt: skip
    environment = {**os.environ, **once, **own, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, str(ROOT / "tests" / "mpi_program.py"), str(folder), *tasks]
    if ranks:
        command = [str(mpiexec()), "-n", str(ranks), *command]
        environment["TINYADV_TEST_MPI"] = "1"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def run(ranks: int, folder: Path, *tasks: str, fails: bool = False) -> str:
    """What it prints; it must succeed, or fail, within a minute."""
    process = start(ranks, folder, *tasks)
    try:
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode != 0) is fails, output + errors
    return output + errors


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders with the results of one process, of two ranks and of three."""
    root = tmp_path_factory.mktemp("ranks")
    for ranks in (0, 2, 3):
        tasks = ("exact", "sweeps", "device", *(("rows", "refused") if ranks else ()))
        run(ranks, root / str(ranks), *tasks)
    return root


def history(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


# ---- training ------------------------------------------------------------------------------------


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", [*program.TRAININGS, *program.EXACTLY])
def test_an_exact_training_has_the_bits_of_one_process(name, ranks, folders):
    one, several = folders / "0" / "exact", folders / str(ranks) / "exact"
    same(np.load(several / f"{name}.npy"), np.load(one / f"{name}.npy"))
    assert history(several, name) == history(one, name)


# How far two trainings of a few steps may be apart, in units of the largest weight: rounding, and
# where PGD follows the sign of the gradient, pixels whose gradient is almost zero.
CLOSE = {"min-max": 1e-3, "TRADES": 1e-3, "bounds": 1e-3}


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", program.TRAININGS)
def test_a_training_by_rows_agrees_up_to_rounding(name, ranks, folders):
    one, several = folders / "0" / "exact", folders / str(ranks) / "rows"
    expected, found = (np.load(each / f"{name}.npy") for each in (one, several))
    largest = abs(found - expected).max() / abs(expected).max()
    assert largest < CLOSE.get(name, 1e-5), largest
    expected, found = history(one, name), history(several, name)
    assert found.keys() == expected.keys()
    for column in expected:
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-3)


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 3])
def test_arrays_of_a_device_travel_through_the_host(ranks, folders):
    one, several = (np.load(folders / str(p) / "device.npy") for p in (0, ranks))
    np.testing.assert_allclose(several, one, rtol=1e-4, atol=1e-6)


def test_a_rank_draws_its_rows_of_what_one_process_draws():
    draws = [
        lambda rng, n: rng.random((n, 3)),
        lambda rng, n: rng.random(n, np.float32),
        lambda rng, n: rng.integers(2**63, size=n),
        lambda rng, n: rng.integers(0, 2, (n, 2)),
        lambda rng, n: rng.integers(0, 2, (n, 2), np.int8, True),
        lambda rng, n: rng.uniform(-1, 1, (n, 1, 2)),
        lambda rng, n: rng.standard_normal(size=(n, 2)),
        lambda rng, n: rng.standard_exponential((n, 2)),
        lambda rng, n: rng.normal(1, 2, size=n),
        lambda rng, n: rng.random((7, n)),  # not one for each example: the same on all ranks
        lambda rng, n: rng.random(),
    ]
    for rows in (slice(0, 4), slice(4, 9)):
        whole, own = (kind(np.random.PCG64(1)) for kind in (np.random.Generator, RowsGenerator))
        with setting(_rows, (rows, 9)):
            for draw in draws[:9]:
                same(draw(own, rows.stop - rows.start), draw(whole, 9)[rows])
            for draw in draws[9:]:
                same(draw(own, 3), draw(whole, 3))
        same(own.random(4), whole.random(4))  # outside of a batch
        same(own.permutation(4), whole.permutation(4))


def test_a_rank_refuses_draws_that_would_end_the_common_order():
    rng = RowsGenerator(np.random.PCG64(1))
    draws = {
        "permutation": lambda: rng.permutation(4),
        "shuffle": lambda: rng.shuffle(np.arange(4)),
        "choice": lambda: rng.choice(3, 4),
        "beta": lambda: rng.beta(1, 1, size=4),
        "exponential": lambda: rng.exponential(1.0, 4),
        "laplace": lambda: rng.laplace(),
        "uniform": lambda: rng.uniform(np.zeros((4, 1)), 1),
        "normal": lambda: rng.normal(loc=np.zeros(4)),
        "random": lambda: rng.random(out=np.zeros(4)),
    }
    before = rng.bit_generator.state
    with setting(_rows, (slice(0, 4), 9)):
        for name, draw in draws.items():
            with pytest.raises(TypeError, match=rf"rng\.{name} .* draw with random, .*exact=True"):
                draw()
        for name in dir(np.random.Generator):  # also those of a later NumPy
            if not name.startswith("_") and name not in {"bit_generator", "spawn", *DRAWS}:
                with pytest.raises(TypeError, match="cannot share"):
                    getattr(rng, name)()
    assert rng.bit_generator.state == before


@pytest.mark.parametrize("comm", [4, np, Alone])
def test_what_is_not_a_communicator_is_refused(comm):
    model, x, y = program.cnn(), program.DATA.x_test, program.DATA.y_test
    for call in (
        lambda: program.train(comm=comm),
        lambda: robustness(model, x, y, {"PGD": pgd}, comm=comm),
        lambda: auto_attack(model, x, y, comm=comm),
    ):
        with pytest.raises(TypeError, match=r"comm must be .*MPI\.COMM_WORLD, got "):
            call()


@needs_mpi
def test_what_cannot_be_shared_is_refused(folders):
    for rank in range(2):
        layer, free, seed, sweep = json.loads((folders / "2" / f"refused-{rank}.json").read_text())
        assert "by_example = True" in layer and layer == sweep
        assert "Free takes its own steps" in free and "exact=True" in free
        assert "perturb has rng=5" in seed and "exact=True" in seed


@needs_mpi
def test_ranks_that_disagree_all_raise_an_error(tmp_path):
    run(2, tmp_path, "disagreeing")
    first, second = (history(tmp_path, f"disagreeing-{rank}") for rank in range(2))
    assert first[1:-1] == second[1:-1]
    labels, images, epochs, checkpoint, *sweeps, pixels = first
    assert "rank 1" in labels and "TypeError" in labels and "data.y_test" in labels
    assert second[0].startswith("fit needs data.x_test and data.y_test")
    assert "rank 0: images 301" in images and "rank 1: images 50" in images
    assert "epochs 2" in epochs and "epochs 3" in epochs
    assert "epoch 1, step 0; rank 1" in checkpoint and "the same checkpoint" in checkpoint
    assert all("the ranks disagree" in error and "arguments" in error for error in sweeps)
    assert "rank 1" in pixels and second[-1] in pixels


# ---- interruptions -------------------------------------------------------------------------------


def digest_of(*parts):
    digest = hashlib.sha256()
    distributed._feed(digest, parts)
    return digest.hexdigest()


def test_the_key_of_a_sweep_knows_arrays_closures_and_generators():
    """A share that was kept is taken only by a run that would compute the same."""
    numbers = np.arange(5000.0)
    changed = numbers.copy()
    changed[2500] = 0  # where its repr has dots

    def attack(epsilon, rng=0):
        return lambda model, x, y: attacks.fgsm(model, x, y, ball=Linf(epsilon))

    pairs = [
        (numbers, changed), (numbers, numbers.astype(np.float32)), (attack(0.1), attack(0.2)),
        (partial(attacks.pgd, table=numbers), partial(attacks.pgd, table=changed)),
        (np.random.default_rng(0), np.random.default_rng(1)), ({"a": 1}, {"a": 2}),
        (SimpleNamespace(a=[numbers]), SimpleNamespace(a=[changed])), ((1, (2, 3)), ((1, 2), 3)),
        (lambda x: x + 1, lambda x: x + 2), (models.mlp((2, 2), 0), models.mlp((2, 2), 1)),
        (Linf(0.1).project, Linf(0.2).project), (Linf(0.1), L2(0.1)),
    ]  # fmt: skip
    for one, other in pairs:
        assert digest_of(one) != digest_of(other)
        assert digest_of(one) == digest_of(copy.deepcopy(one))
    words = {f"word {i}" for i in range(50)}  # whose order differs from process to process
    assert digest_of(words) == digest_of(set(sorted(words, reverse=True)))
    assert digest_of(words) != digest_of(words - {"word 7"})
    circle = SimpleNamespace()
    circle.own = circle
    assert digest_of(circle) == digest_of(circle)


@needs_mpi
def test_a_checkpoint_resumes_on_any_number_of_ranks(tmp_path):
    program.resumed(tmp_path)  # all of it, in this process
    expected = np.load(tmp_path / "end.npy")
    run(2, tmp_path / "ranks", "half")
    shutil.copytree(tmp_path / "ranks", tmp_path / "one")
    run(3, tmp_path / "ranks", "resumed")
    program.resumed(tmp_path / "one")
    for folder in ("ranks", "one"):
        same(np.load(tmp_path / folder / "end.npy"), expected)


@needs_mpi
def test_a_killed_rank_ends_the_job_and_the_checkpoint_resumes(tmp_path):
    program.killed(tmp_path)
    expected, rng = np.load(tmp_path / "end.npy"), random.Random(0)
    for trial in range(KILLS):
        folder = tmp_path / str(trial)
        process = start(2, folder, "killed")
        while not all((folder / f"pid-{rank}").exists() for rank in range(2)):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        victim = int((folder / f"pid-{rng.randrange(2)}").read_text())
        os.kill(victim, signal.SIGKILL)
        _, errors = process.communicate(timeout=10 if "TINYADV_KILLS" in os.environ else 60)
        assert process.returncode != 0 and not (folder / "end.npy").exists(), errors
        run(2, folder, "killed")
        same(np.load(folder / "end.npy"), expected)


@needs_mpi
def test_ctrl_c_in_one_rank_stops_all_after_the_same_step(tmp_path):
    run(2, tmp_path, "ctrl_c")
    saved = f"state saved in {tmp_path / 'state.npz'}"
    for rank in range(2):
        assert history(tmp_path, f"stopped-{rank}") == [
            [f"stopped in epoch 1: {saved}", {"steps": 3, "validations": 0}],
            [f"stopped in epoch 1: {saved}", {"steps": 3, "validations": 0}],
            [f"stopped after epoch 2: {saved}", {"steps": 6, "validations": 2}],
        ]


@needs_mpi
@pytest.mark.parametrize(
    "task, error",
    [
        ("failing", "ZeroDivisionError"),
        ("overflow", "FloatingPointError"),
        ("second_ctrl_c", "KeyboardInterrupt"),
        ("in_augment", "FloatingPointError"),
        ("in_validate", "KeyboardInterrupt"),
    ],
)
def test_an_error_in_one_rank_ends_the_job_with_a_message(task, error, tmp_path):
    output = run(2, tmp_path, task, fails=True)
    assert f"{error}: in this rank alone" in output
    assert "rank 1 failed, and ends all ranks" in output


@needs_mpi
@pytest.mark.parametrize(
    "task, message",
    [
        ("nested", "the loss or a weight is not finite"),
        ("other_rates", "disagree about the learning rate"),
        ("other_rates_exact", "disagree about the learning rate"),
        ("other_numbers", "the ranks disagree"),
    ],
)
def test_ranks_that_would_go_different_ways_end(task, message, tmp_path):
    output = run(2, tmp_path, task, fails=True)
    assert message in output and "failed, and ends all ranks" in output


@needs_mpi
def test_a_lesson_trains_in_two_processes_and_speaks_once(tmp_path):
    printed, weights = [], []
    for ranks in (0, 2):
        folder = tmp_path / str(ranks)
        lines = run(ranks, folder, "lesson").replace(str(folder), "").splitlines()
        printed.append([line for line in lines if line.startswith("accuracy")])
        assert history(folder / "results", "06_a_lesson-quick")["numbers"] == {
            "processes": ranks or 1
        }
        (path,) = (folder / "models").glob("standard-noise-*.npz")
        weights.append(load_state(path)["weights"])
    assert printed[0] == printed[1] and len(printed[0]) == 1
    for name, expected in weights[0].items():
        same(weights[1][name], expected)


# ---- sweeps --------------------------------------------------------------------------------------


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_sweep_gives_the_table_of_one_process(ranks, folders):
    one, several = folders / "0", folders / str(ranks)
    assert history(several, "sweeps") == history(one, "sweeps")
    for name, expected in np.load(one / "sweeps.npz").items():
        same(np.load(several / "sweeps.npz")[name], expected)


@needs_mpi
def test_the_share_of_a_killed_rank_is_computed_again(tmp_path):
    run(2, tmp_path, "interrupted_sweep", fails=True)
    kept = len(list((tmp_path / "shares").glob("*.npz")))
    assert kept >= 2 * 4
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "killed").touch()
    for ranks, folder in ((0, tmp_path / "whole"), (2, tmp_path), (0, tmp_path)):
        run(ranks, folder, "interrupted_sweep")
        found = history(folder, "resumed")
        if folder != tmp_path:
            expected = found
        assert found["table"] == expected["table"]
    assert found["passes"] < expected["passes"] / 2  # what has been kept costs nothing
