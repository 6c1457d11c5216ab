"""What lessons and experiments share: flags, files, and networks that are trained once."""

import errno
import json
import os
import sys

import numpy as np
import pytest

from lessons.support import cli, judge, ranks, zoo
from tinyadv import attacks, evaluate, fit, models, optim, verify
from tinyadv.balls import Linf
from tinyadv.checkpoint import load_state, save_state
from tinyadv.data import NAMES, Dataset, data_folder, load


@pytest.fixture(autouse=True)
def settings_put_back():
    """Of matplotlib."""
    with cli.plt.rc_context():
        yield


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYADV_CACHE", str(tmp_path))
    return tmp_path


def start(monkeypatch, *flags, name="06_a_lesson", **how):
    monkeypatch.setattr(sys, "argv", ["lesson.py", *flags])
    return cli.start(name, "A lesson.", **how)


def full_disk(monkeypatch):
    def fsync(number):
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr(os, "fsync", fsync)


def some_images(name="glyphs", count=20):
    x = np.random.default_rng(0).random((count, 1, 28, 28), np.float32)
    y = np.arange(count) % 10
    return Dataset(name, x, y, x, y, classes=tuple("0123456789"))


# ---- flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag, least", [("--seed", 0), ("--some-images", 1)])
def test_a_number_that_is_too_small_is_answered_in_a_sentence(monkeypatch, capsys, flag, least):
    own = {"some_images": (5, "images that are attacked")}
    run = start(monkeypatch, flag, str(least), **own)
    assert least in (run.seed, run.options.some_images)
    for wrong, words in ((least - 1, f"must be ≥ {least}, got {least - 1}"), ("x", "int")):
        with pytest.raises(SystemExit, match="2"):
            start(monkeypatch, flag, str(wrong), **own)
        assert f"{flag}: " in (said := capsys.readouterr().err) and words in said


def test_a_lesson_takes_the_images_that_it_names(monkeypatch, capsys):
    assert start(monkeypatch, "--data", "fashion").options.data == "fashion"
    assert start(monkeypatch, "--data", "cifar10", data=NAMES).options.data == "cifar10"
    for wrong in ({}, {"data": ()}):
        with pytest.raises(SystemExit, match="2"):
            start(monkeypatch, "--data", "cifar10", **wrong)


def test_a_quick_run_takes_fewer_images(monkeypatch):
    whole, quick = start(monkeypatch).load(), start(monkeypatch, "--quick").load()
    assert 0 < len(quick.x_train) < len(whole.x_train)
    assert len(quick.x_test) == len(quick.y_test) < len(whole.x_test)
    assert len(start(monkeypatch).load(train=7, test=3).y_train) == 7


def own_images(folder, **changed):
    part = some_images()
    arrays = {name: getattr(part, name) for name in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(folder / "mine.npz", **{**arrays, **changed})
    return str(folder / "mine.npz")


def test_a_lesson_takes_a_file_of_ones_own(monkeypatch, tmp_path):
    file = own_images(tmp_path)
    run = start(monkeypatch, "--data", file, "--record", "--out", str(tmp_path))
    assert run.load().name == "mine.npz"
    run.show(cli.plt.figure(), "a figure")
    run.record(n=1)
    assert (tmp_path / "figures" / "06_a_figure-mine.npz.png").exists()
    recorded = json.loads((tmp_path / "results" / "06_a_lesson-mine.npz.json").read_text())
    assert f"--data {file}" in recorded["command"]
    assert zoo.EPSILON["mine.npz"] == 0.1 and "mine.npz" not in zoo.EPSILON


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"x_train": np.zeros((20, 8, 8)), "x_test": np.zeros((20, 8, 8))}, ["1×28×28", "1×8×8"]),
        ({"y_train": np.arange(20)}, ["ten classes", "20 classes"]),
    ],
)
def test_images_that_the_lessons_cannot_use(monkeypatch, tmp_path, capsys, changed, words):
    run = start(monkeypatch, "--data", own_images(tmp_path, **changed))
    with pytest.raises(SystemExit, match="2"):
        run.load()
    said = capsys.readouterr().err
    for word in words:
        assert word in said


def test_a_notebook_takes_its_flags_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "IN_NOTEBOOK", True)
    monkeypatch.setenv("TINYADV_FLAGS", f"--quick --seed 3 --out '{tmp_path}'")
    run = start(monkeypatch, "--what-the-kernel-was-called-with")
    assert run.quick and run.seed == 3
    shown = []
    monkeypatch.setattr(cli.plt, "show", lambda: shown.append(cli.plt.get_fignums()))
    run.show(cli.plt.figure(), "a figure")
    assert shown == [[1]] and cli.plt.get_fignums() == []
    assert not list(tmp_path.rglob("*.png"))


def test_settings_are_part_of_the_names_of_files(monkeypatch, tmp_path):
    def names(*flags, **how):
        run = start(monkeypatch, "--record", "--out", str(tmp_path), *flags, **how)
        run.show(cli.plt.figure(), "a title")
        run.record(a=1)
        files = {path.name for path in tmp_path.glob("*/*")}
        for path in tmp_path.glob("*/*"):
            path.unlink()
        return files

    assert names() == {"06_a_title.png", "06_a_lesson.json"}
    assert names("--data", "mnist") == {"06_a_title-mnist.png", "06_a_lesson-mnist.json"}
    assert names("--quick", "--seed", "3") == {
        "06_a_title-seed3-quick.png", "06_a_lesson-seed3-quick.json",
    }  # fmt: skip
    how = {"name": "sweep", "experiment": True, "data": ("mnist", "glyphs")}
    assert names(**how) == {"sweep_a_title-mnist.png", "sweep-mnist.json"}


def test_a_folder_that_cannot_be_written_is_noticed_at_the_start(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(SystemExit, match="2"):
            start(monkeypatch, "--out", str(out))
        assert f"cannot write to {out}" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results").touch()
    assert start(monkeypatch, "--out", str(tmp_path / "out")).options.out == tmp_path / "out"
    with pytest.raises(SystemExit, match="2"):
        start(monkeypatch, "--record", "--out", str(tmp_path / "out"))
    assert list((tmp_path / "out" / "figures").iterdir()) == []


def test_a_disk_that_is_full_at_the_end_costs_a_figure_and_not_the_lesson(
    monkeypatch, capsys, tmp_path
):
    run = start(monkeypatch, "--record", "--out", str(tmp_path))
    full_disk(monkeypatch)
    run.show(cli.plt.figure(), "test")
    assert "06_test.png" in (said := capsys.readouterr().err) and "full" in said
    with pytest.raises(SystemExit, match="2"):
        run.record(a=1)
    assert "06_a_lesson.json" in capsys.readouterr().err


def test_a_record_is_complete_and_plain(monkeypatch, tmp_path):
    run = start(monkeypatch, "--record", "--seed", "5", "--out", str(tmp_path))
    run.record(share=np.float32(0.5), rows=np.arange(3))
    run.record(nothing=float("nan"))
    content = json.loads((tmp_path / "results" / "06_a_lesson-seed5.json").read_text())
    assert content["numbers"] == {"share": 0.5, "rows": [0, 1, 2], "nothing": None}
    assert content["command"] == "python lessons/06_a_lesson.py --record --seed 5"
    assert content["seconds"] >= 0 and content["versions"]["numpy"] == np.__version__


def test_nothing_is_recorded_without_the_flag(monkeypatch, tmp_path):
    start(monkeypatch, "--out", str(tmp_path)).record(a=1)
    assert not (tmp_path / "results").exists()


def test_with_keep_a_recorded_row_is_not_computed_again(monkeypatch, tmp_path, capsys):
    """With --keep alone, and only as long as its key is the same."""
    monkeypatch.setattr(cli, "LESSONS", tmp_path)
    computed = []

    def row(*flags, key):
        def compute():
            computed.append(key)
            return {"share": len(computed) / 8}

        run = start(monkeypatch, "--record", *flags, name="sweep", experiment=True, data=("mnist",))
        found = run.kept(key, compute)
        run.record(other=1, table={"name": found})
        return found["share"]

    assert row("--keep", key={"lr": 0.1}) == 1 / 8  # nothing is recorded yet
    assert row("--keep", key={"lr": 0.1}) == 1 / 8
    assert "recorded before" in capsys.readouterr().out
    assert row(key={"lr": 0.1}) == 2 / 8
    assert row("--keep", key={"lr": 0.2}) == 3 / 8
    assert row("--keep", "--seed", "1", key={"lr": 0.2}) == 3 / 8


def test_a_table_is_aligned_and_shares_are_percentages(capsys):
    cli.table(["attack", "accuracy", "steps"], [["none", 0.98765, 0], ["PGD", np.float32(0), 40]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["attack", "accuracy", "steps"]
    assert lines[2].split() == ["none", "98.8", "%", "0"]
    assert lines[3].split() == ["PGD", "0.0", "%", "40"]
    assert len({line.index("%") for line in lines[2:]}) == 1


@pytest.mark.parametrize(
    "count, expected",
    [(3, [0, 3, 6]), (6, [0, 1, 3, 5, 6, 8]), (10, [*range(10)]), (99, [*range(10)])],
)
def test_test_images_come_from_all_over(count, expected):
    x, y = cli.spread(np.arange(10), -np.arange(10), count)
    assert x.tolist() == (-y).tolist() == expected


# ---- networks that are judged --------------------------------------------------------------------


def test_judge_counts_what_survives_each_attack(cache, monkeypatch):
    monkeypatch.setattr(judge, "PART", 10)
    model = models.mlp((784, 10), 3)
    x = np.random.default_rng(0).random((25, 1, 28, 28), np.float32)
    y = evaluate.predict(model, x)
    y[:5] = (y[:5] + 1) % 10  # misclassified from the start
    how = {"starts": 2, "autoattack": {"steps": 3, "targets": 1, "queries": 5}, "seed": 0}
    rows = {epsilon: judge.judge(model, x, y, epsilon, **how) for epsilon in (0.0, 0.004, 0.5)}
    for row in rows.values():
        shares = [row[column] for column in judge.COLUMNS]
        assert row["images"] == 25 and shares[0] == 0.8
        assert shares[:-1] == sorted(shares[:-1], reverse=True) and shares[-1] <= shares[-2]
    assert rows[0.0]["AutoAttack"] == rows[0.0]["certified"] == 0.8
    assert 0 < rows[0.004]["AutoAttack"] < 0.8 and rows[0.5]["FGSM"] == 0

    monkeypatch.setattr(judge, "survivors", lambda *_, **__: dict.fromkeys(judge.COLUMNS, 0))
    assert judge.judge(model, x, y, 0.5, **how) == rows[0.5]  # kept, part by part
    assert judge.judge(model, x[::-1].copy(), y, 0.0, **how)["clean"] == 0  # other images
    assert judge.judge(model, x, y, 0.0, **{**how, "seed": 1})["clean"] == 0  # other settings


# ---- networks that are trained once --------------------------------------------------------------

TRAININGS = []


@zoo.trained_once
def constant(digits, seed=0, value=1.0):
    """A network whose training sets all weights to one value."""
    model = models.mlp((4, 3), seed)
    yield model
    TRAININGS.append(value)
    for p in model.parameters():
        p.value[...] = value


@zoo.trained_once
def small(digits, seed=0, epochs=2, state=None):
    """A network whose training can be resumed."""
    model = models.fast_cnn(seed, hidden=5)
    yield model
    fit(
        model, digits, optim.Adam(model.parameters()), epochs, rng=seed, checkpoint=state,
        resume=state is not None, validate=False, progress=False,
    )  # fmt: skip


def helper(model, value):
    for p in model.parameters():
        p.value[...] = value


@zoo.trained_once
def with_helper(digits):
    model = models.mlp((4, 3), 0)
    yield model
    helper(model, 1.0)


def test_a_key_depends_on_the_functions_that_a_recipe_calls(monkeypatch):
    digits = some_images()
    first = with_helper.key(digits)

    def helper(model, value):
        pass

    helper.__module__ = __name__
    monkeypatch.setitem(globals(), "helper", helper)
    assert with_helper.key(digits) != first


def weights(model):
    return {name: w.tobytes() for name, w in model.state_dict().items()}


def test_a_network_is_trained_once(cache, capsys):
    TRAININGS.clear()
    digits = some_images()
    first = constant(digits)
    assert TRAININGS == [1.0] and "earlier run" not in capsys.readouterr().out
    again = constant(digits)
    assert TRAININGS == [1.0] and "earlier run" in capsys.readouterr().out
    assert weights(again) == weights(first) and again.training_seconds == first.training_seconds
    assert constant(digits, seed=0, value=1.0) and TRAININGS == [1.0]  # the defaults, spelled out
    for how in ({"value": 2.0}, {"seed": 1}):
        constant(digits, **how)
    constant(some_images("mnist"))
    constant(some_images(count=19))
    assert TRAININGS == [1.0, 2.0, 1.0, 1.0, 1.0]

    files = list(cache.glob("models/*.npz"))
    assert len(files) == 5
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    assert weights(constant(digits)) == weights(first)
    assert "trained again" in capsys.readouterr().err and len(TRAININGS) == 6


def test_a_key_depends_on_the_images_of_a_file(monkeypatch):
    """Of the data sets that have a name, the labels are enough."""
    for name, same in (("glyphs.npz", False), ("glyphs", True)):
        digits, others = some_images(name), some_images(name)
        others.x_train[0, 0, 0, 0] += 0.5
        assert (small.key(digits) == small.key(others)) is same
        assert small.key(digits) == small.key(some_images(name))


def test_a_key_depends_on_the_code_and_not_on_its_comments():
    def recipe(scale, remark):
        text = f'def f(digits):\n    """{remark}"""\n    yield {scale}  # {remark}\n'
        return "\n".join(text.splitlines())

    def of(text, monkeypatch):
        monkeypatch.setattr(zoo.inspect, "getsource", lambda function: text)
        return zoo.source(None)

    with pytest.MonkeyPatch.context() as patch:
        assert of(recipe(1, "a"), patch) == of(recipe(1, "b"), patch) != of(recipe(2, "a"), patch)


@pytest.mark.parametrize("broken", [None, "cut off", "epoch", "of another version"])
def test_an_interrupted_training_goes_on(cache, monkeypatch, capsys, tmp_path_factory, broken):
    """Where it stopped, or if its state is broken, from the start; with the same weights."""
    steps, step = [], optim.Optimizer.step

    def counted(self, grads):
        if len(steps) == stop_at:
            raise KeyboardInterrupt
        steps.append(1)
        step(self, grads)

    monkeypatch.setattr(optim.Optimizer, "step", counted)
    stop_at = 1  # after the first of two epochs of a batch each
    with pytest.raises(KeyboardInterrupt):
        small(some_images())
    (file,) = cache.glob("training/*.npz")
    state = load_state(file)
    if broken == "cut off":
        file.write_bytes(file.read_bytes()[:999])
    elif broken == "epoch":
        save_state(file, {**state, "epoch": -3})
    elif broken:
        save_state(file, {**state, "settings": {**state["settings"], "batch_size": 7}})
    stop_at = None
    steps.clear()
    resumed = weights(small(some_images()))
    assert len(steps) == (2 if broken else 1)
    assert ("begins again" in capsys.readouterr().err) == bool(broken)
    assert not file.exists()
    monkeypatch.setenv("TINYADV_CACHE", str(tmp_path_factory.mktemp("cache")))
    assert weights(small(some_images())) == resumed


@pytest.mark.parametrize("reason", ["full", "no folder"])
def test_a_cache_that_cannot_be_written_is_not_needed(
    cache, monkeypatch, capsys, tmp_path, tmp_path_factory, reason
):
    expected = weights(small(some_images()))
    if reason == "full":
        monkeypatch.setenv("TINYADV_CACHE", str(tmp_path_factory.mktemp("cache")))
        full_disk(monkeypatch)
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("TINYADV_CACHE", str(tmp_path / "file"))
    assert weights(small(some_images())) == expected
    said = capsys.readouterr().err
    assert "cannot be resumed" in said and "could not be kept" in said


# ---- the zoo -------------------------------------------------------------------------------------

RECIPES = sorted(name for name, value in vars(zoo).items() if hasattr(value, "key"))


def test_the_zoo_has_its_recipes():
    assert {"standard", "robust", "standard_fast", "pgd", "interval_bounds"} <= set(RECIPES)


@pytest.mark.filterwarnings("ignore::tinyadv.attacks.AttackWarning")  # of a watch on ten images
@pytest.mark.parametrize("name", [*RECIPES, "thresholds_ensemble"])
def test_every_recipe_can_be_followed(name, cache):
    digits, recipe = some_images("mnist"), getattr(zoo, name)
    own = {"dense_net": {"hidden": 2}, "conv_net": {"hidden": 3}}.get(name, {})
    own |= {"width": 1, "training": "PGD"} if name == "capacity" else {}
    model, again = (recipe(digits, seed=1, epochs=1, **own) for _ in range(2))
    assert weights(again) == weights(model)
    assert again.training_seconds == model.training_seconds and again.training_seconds["wall"] > 0
    if name in ("larger", "thresholds_ensemble"):
        for p in model.parameters():
            np.testing.assert_array_equal(p.value, p.value.astype(np.float16))


@pytest.mark.parametrize("network", [zoo.robust_mnist, zoo.certified_mnist])
def test_a_network_in_the_repository_is_robust(network):
    """What the README says of it, for a few images and a weaker attack."""
    if not list((data_folder() / "mnist").glob("t10k-images*")):
        pytest.skip("MNIST is not here, and a test does not download it")
    digits, model = load("mnist"), network()
    x, y = digits.x_test[::80], digits.y_test[::80]
    assert evaluate.accuracy(model, x, y) > 0.98
    x_adv = attacks.pgd(model, x, y, ball=Linf(0.3), steps=20)
    assert 0.9 < evaluate.accuracy(model, x_adv, y) < 0.99
    proved = verify.certified_accuracy(model, x, y, 0.3)
    assert proved > 0.88 if network is zoo.certified_mnist else proved == 0


def test_weights_are_saved_in_half_precision(tmp_path):
    model = models.fast_cnn(5, hidden=20)
    zoo.save_weights(model, "small.npz", tmp_path / "weights")
    kept = models.fast_cnn(6, hidden=20)
    zoo.load_weights(tmp_path / "weights" / "small.npz", kept)
    for a, b in zip(model.parameters(), kept.parameters(), strict=True):
        np.testing.assert_array_equal(a.value.astype(np.float16).astype(np.float32), b.value)
    assert max(path.stat().st_size for path in zoo.WEIGHTS.iterdir()) < 4_000_000


# ---- two processes -------------------------------------------------------------------------------


def test_two_processes_are_measured_without_mpi_as_well(monkeypatch):
    monkeypatch.setattr(ranks, "has_mpi", lambda: False)
    found = ranks.measure(2, [2], [0, 1], epsilon=0.2)
    assert found["step"].keys() == {0, 1} and found["step"][1][2] > 0 < found["allreduce"]
    with pytest.raises(RuntimeError, match="the processes failed"):
        ranks.measure(2, [2], [-1], epsilon=0.2)
