"""What the lessons share: flags, and networks that are trained once."""

import errno
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tinyadv import attacks, evaluate, layers, models, optim, verify
from tinyadv.balls import Linf
from tinyadv.data import NAMES, Dataset, data_folder, load

sys.path.append(str(Path(__file__).parents[1] / "lessons"))
common = pytest.importorskip("common")
judge = pytest.importorskip("judge")


@pytest.fixture(autouse=True)
def settings_put_back():
    """Of matplotlib; ``common.arguments`` sets them."""
    with common.plt.rc_context():
        yield


def arguments(monkeypatch, *flags, **how):
    monkeypatch.setattr(sys, "argv", ["lesson.py", *flags])
    return common.arguments("A lesson.", **how)


# ---- flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag, least", [("--seed", 0), ("--some-images", 1)])
def test_a_number_that_is_too_small_is_answered_in_a_sentence(monkeypatch, capsys, flag, least):
    own = {"some_images": (5, "images that are looked at")}
    args = arguments(monkeypatch, flag, str(least), **own)
    assert least in (args.seed, args.some_images)
    for wrong, words in ((least - 1, f"must be ≥ {least}, got {least - 1}"), ("x", "int")):
        with pytest.raises(SystemExit, match="2"):
            arguments(monkeypatch, flag, str(wrong), **own)
        assert f"{flag}: " in (said := capsys.readouterr().err) and words in said


@pytest.mark.parametrize("how", [{}, {"datasets": ()}])
def test_photographs_are_for_lessons_that_name_them(monkeypatch, capsys, how):
    for name in ("glyphs", "mnist", "fashion"):
        assert arguments(monkeypatch, "--data", name, **how).data == name
    with pytest.raises(SystemExit, match="2"):
        arguments(monkeypatch, "--data", "cifar10", **how)
    assert arguments(monkeypatch, "--data", "cifar10", datasets=NAMES).data == "cifar10"


def test_a_folder_that_cannot_be_written_is_noticed_at_the_start(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(SystemExit, match="2"):
            arguments(monkeypatch, "--out", str(out))
        assert f"cannot write to {out}" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results").touch()
    assert arguments(monkeypatch, "--out", str(tmp_path / "out")).out == tmp_path / "out"
    with pytest.raises(SystemExit, match="2"):
        arguments(monkeypatch, "--record", "--out", str(tmp_path / "out"))
    assert list((tmp_path / "out" / "figures").iterdir()) == []


def test_a_disk_that_is_full_at_the_end_costs_a_figure_and_not_the_lesson(
    monkeypatch, capsys, tmp_path
):
    args = arguments(monkeypatch, "--record", "--out", str(tmp_path))
    full_disk(monkeypatch)
    common.save_figure(common.plt.figure(), args, "00_test")
    assert "00_test.png" in (said := capsys.readouterr().err) and "full" in said
    with pytest.raises(SystemExit, match="2"):
        common.record(args, "00_test", {"a": 1})
    assert "00_test.json" in capsys.readouterr().err


# ---- networks that are trained once --------------------------------------------------------------


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYADV_CACHE", str(tmp_path))
    return tmp_path


def full_disk(monkeypatch):
    def fsync(number):
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr(os, "fsync", fsync)


class Training:
    """Sets every weight to how many trainings there have been."""

    def __init__(self):
        self.times = 0

    def __call__(self, model):
        self.times += 1
        for p in model.parameters():
            p.value[...] = self.times


def test_a_network_is_trained_once(cache, capsys):
    train = Training()

    def get(seed=0):
        model = common.cached_model({"seed": seed}, lambda: models.mlp((4, 3), seed), train)
        return {value for p in model.parameters() for value in p.value.ravel()}

    assert get() == {1} and capsys.readouterr().out == ""
    assert get() == {1} and "was trained before" in capsys.readouterr().out
    assert get(seed=1) == {2}  # another key, another network
    assert get() == {1} and train.times == 2

    files = list(cache.rglob("*.npz"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    capsys.readouterr()
    assert get() == {3} and "it is trained again" in capsys.readouterr().err
    assert get() == {3}


def test_what_the_cnn_of_lesson_02_depends_on(cache, monkeypatch):
    seen = []
    monkeypatch.setattr(common, "cached_model", lambda key, build, train: seen.append(key))
    images, labels = np.zeros((7, 1, 28, 28), np.float32), np.zeros(7, np.int64)
    data = Dataset("glyphs", images, labels, images, labels, ("0",))
    args = arguments(monkeypatch, "--seed", "5")
    common.trained_cnn(args, data)
    common.trained_cnn(arguments(monkeypatch, "--quick"), data)
    assert seen[0] == {
        "network": "slides_cnn",
        "init": "he_normal",
        "optimizer": "RMSprop",
        "lr": 0.001,
        "rho": 0.9,
        "epsilon": 1e-7,
        "batch_size": 128,
        "data": "glyphs",
        "images": 7,
        "epochs": 10,
        "seed": 5,
        "backend": "numpy",
    }
    assert (seen[1]["epochs"], seen[1]["seed"]) == (3, 0)


def test_the_cnn_of_lesson_02_comes_back_bit_by_bit(cache, monkeypatch):
    rng = np.random.default_rng(0)
    images, labels = rng.random((20, 1, 28, 28), np.float32), rng.integers(0, 10, 20)
    data = Dataset("glyphs", images, labels, images, labels, tuple("0123456789"))
    args = arguments(monkeypatch, "--quick")
    first, second = (common.trained_cnn(args, data).state_dict() for _ in range(2))
    fresh = models.slides_cnn(args.seed).state_dict()
    for name, weights in first.items():
        np.testing.assert_array_equal(weights, second[name])
        assert not np.array_equal(weights, fresh[name])


def test_numbers_are_computed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYADV_CACHE", str(tmp_path))
    calls = []

    def compute():
        calls.append(1)
        return {"share": np.float32(0.5), "rows": np.arange(3)}

    first = common.cached_numbers({"what": 1}, compute)
    assert first == common.cached_numbers({"what": 1}, compute)
    assert first == {"share": 0.5, "rows": [0, 1, 2]} and len(calls) == 1
    common.cached_numbers({"what": 2}, compute)
    assert len(calls) == 2


@pytest.mark.parametrize("content", ['{"what": ', "", "[1]", "3", "\0", "[" * 10**5])
def test_broken_numbers_are_computed_again(cache, monkeypatch, capsys, content):
    key, numbers = {"what": 1}, {"share": 0.5}
    common.cached_numbers(key, lambda: numbers)
    (file,) = cache.rglob("*.json")
    file.write_text(content)
    assert common.cached_numbers(key, lambda: numbers) == numbers
    assert str(file) in (said := capsys.readouterr().err) and "computed again" in said
    assert common.cached_numbers(key, lambda: pytest.fail("it is kept")) == numbers
    # The same of what is recorded beside the lessons.
    monkeypatch.setattr(common, "LESSONS", cache)
    (cache / "results").mkdir()
    (cache / "results" / "00_test.json").write_text(content)
    args = arguments(monkeypatch, "--keep", "--out", str(cache), keep=True)
    assert common.recorded(args, "00_test", key, lambda: numbers)["share"] == 0.5


@pytest.mark.parametrize("seconds", [None, 3, {}, {"wall": "a", "cpu": 1}, {"wall": 1.0}])
def test_broken_seconds_cost_no_training(cache, seconds):
    train = Training()
    get = lambda: common.cached_model({"a": 1}, lambda: models.mlp((4, 3)), train, seconds=True)
    get()
    (file,) = cache.rglob("*.npz")
    state = common.load_state(file)
    common.save_state(file, {**state, "seconds": seconds})
    _, took = get()
    assert train.times == 1 and np.isnan([took["wall"], took["cpu"]]).all()


STEP = optim.Optimizer.step
SMALL = {"network": ["fast_cnn", {"hidden": 5}], "defence": None, "epochs": 2}


def small_training(monkeypatch, stop_at=None):
    """A network trained by a recipe, and how many batches that took."""
    monkeypatch.setattr(common, "RECIPES", {"small": SMALL})
    x = np.random.default_rng(0).random((20, 1, 28, 28), np.float32)
    data = Dataset("glyphs", x, np.arange(20) % 10, x, np.arange(20) % 10, tuple("0123456789"))
    args, steps = SimpleNamespace(seed=0, quick=False, backend="numpy"), []

    def counted(self, grads):
        if len(steps) == stop_at:
            raise KeyboardInterrupt
        steps.append(1)
        STEP(self, grads)

    with monkeypatch.context() as patch:
        patch.setattr(optim.Optimizer, "step", counted)
        model, _ = common.defended(args, data, "small")
    return {name: w.tobytes() for name, w in model.state_dict().items()}, len(steps)


@pytest.mark.parametrize("broken", ["cut off", "epoch", "of another version"])
def test_a_broken_state_of_a_training_costs_that_training_only(
    cache, monkeypatch, capsys, tmp_path_factory, broken
):
    with pytest.raises(KeyboardInterrupt):
        small_training(monkeypatch, stop_at=1)  # after the first of two epochs of a batch each
    (file,) = cache.rglob("training/*.npz")
    state = common.load_state(file)
    if broken == "cut off":
        file.write_bytes(file.read_bytes()[:999])
    elif broken == "epoch":
        common.save_state(file, {**state, "epoch": -3})
    else:
        common.save_state(file, {**state, "settings": {**state["settings"], "batch_size": 7}})
    weights, steps = small_training(monkeypatch)
    assert "the training begins again" in capsys.readouterr().err and steps == 2
    monkeypatch.setenv("TINYADV_CACHE", str(tmp_path_factory.mktemp("cache")))
    assert small_training(monkeypatch)[0] == weights
    assert not file.exists()


@pytest.mark.parametrize("reason", ["full", "no folder"])
def test_a_cache_that_cannot_be_written_is_not_needed(
    cache, monkeypatch, capsys, tmp_path, tmp_path_factory, reason
):
    expected, _ = small_training(monkeypatch)
    if reason == "full":
        monkeypatch.setenv("TINYADV_CACHE", str(tmp_path_factory.mktemp("cache")))
        full_disk(monkeypatch)
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("TINYADV_CACHE", str(tmp_path / "file"))
    assert small_training(monkeypatch)[0] == expected
    said = capsys.readouterr().err
    assert "no state is kept" in said and "network could not be kept" in said
    train = Training()
    common.cached_model({"seed": 1}, lambda: models.mlp((4, 3)), train)
    assert common.cached_numbers({"what": 1}, lambda: {"a": 1}) == {"a": 1} and train.times == 1


@pytest.mark.filterwarnings("ignore::tinyadv.attacks.AttackWarning")  # of a watch on ten images
@pytest.mark.parametrize("name", common.MNIST_RECIPES)
def test_every_recipe_can_be_followed(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYADV_CACHE", str(tmp_path))
    images = np.random.default_rng(0).random((20, 1, 28, 28), np.float32)
    labels = np.arange(20) % 10
    for data_name in ("glyphs", "mnist") if name in common.RECIPES else ("mnist",):
        data = Dataset(data_name, images, labels, images, labels, classes=tuple("0123456789"))
        args = SimpleNamespace(seed=0, quick=True, backend="numpy")
        model, first = common.defended(args, data, name)
        again, seconds = common.defended(args, data, name)
        assert seconds == first and seconds["wall"] > 0 and seconds["cpu"] >= 0
        for a, b in zip(model.parameters(), again.parameters(), strict=True):
            np.testing.assert_array_equal(a.value, b.value)
            if common.recipes(args, data)[name].get("half"):
                np.testing.assert_array_equal(a.value, a.value.astype(np.float16))


@pytest.mark.parametrize("change", ["key", "epochs", "lr", "seed"])
def test_what_is_fitted_once_depends_on_all_that_is_given(cache, monkeypatch, change):
    images = np.random.default_rng(0).random((20, 1, 28, 28), np.float32)
    data = Dataset("glyphs", images, np.arange(20) % 10, images, np.arange(20) % 10, ("0",))
    how = {"key": {"name": 1}, "epochs": 2, "lr": [(0, 0.01), (2, 0.001)], "seed": 0}
    other = {"key": {"name": 2}, "epochs": 1, "lr": [(0, 0.02)], "seed": 1}
    seen = []

    def weights(key, epochs, lr, seed):
        args = SimpleNamespace(seed=seed, backend="numpy")

        def each(model, x, y):
            seen.append(len(x))
            return x

        model = common.fitted(
            args, data, key, lambda: models.mlp((784, 10), 3), epochs, lr, perturb=each
        )
        return model.parameters()[0].value

    first, again = weights(**how), weights(**how)
    np.testing.assert_array_equal(first, again)
    assert seen == [20, 20]  # a step in each of two epochs, in the first training alone
    different = weights(**{**how, change: other[change]})
    assert len(seen) > 2 and (change in ("key", "seed") or not np.array_equal(first, different))


def test_a_record_says_how_much_was_not_computed_again(cache, monkeypatch, tmp_path):
    args = arguments(monkeypatch, "--record", "--out", str(tmp_path / "out"))
    monkeypatch.setattr(common, "REUSED", [])
    for expected, new_run in ((0, True), (0, False), (2, True)):
        if new_run:
            monkeypatch.setattr(common, "WRITTEN", set())
        common.cached_model({"of": 1}, lambda: models.mlp((4, 3), 0), Training())
        common.cached_numbers({"of": 2}, lambda: {"a": 1})
        common.record(args, "00_test", {"a": 1})
        (file,) = (tmp_path / "out" / "results").glob("00_test*.json")
        assert json.loads(file.read_text())["reused"] == expected


def test_what_is_recorded_need_not_be_computed_again(monkeypatch, tmp_path, capsys):
    """With --keep alone, and only as long as its key is the same."""
    monkeypatch.setattr(common, "REUSED", [])
    monkeypatch.setattr(common, "LESSONS", tmp_path)
    key, computed = {"recipe": {"lr": 0.1}, "seed": 0}, []

    def row(*flags, key=key):
        """Its share, and the record that it is in."""

        def compute():
            computed.append(key)
            return {"share": len(computed) / 8, "seconds": np.nan}

        args = arguments(monkeypatch, "--record", "--data", "mnist", *flags, keep=True)
        found = common.recorded(args, "00_test", key, compute)
        assert np.isnan(found["seconds"])  # as it was, though JSON has no word for it
        common.record(args, "00_test", {"other": 1, "table": {"name": found}})
        file = tmp_path / "results" / f"{common.file_name(args, '00_test')}.json"
        return found["share"], json.loads(file.read_text())

    assert row("--keep")[0] == 1 / 8  # there is no record yet
    share, file = row("--keep")
    assert share == 1 / 8 and len(computed) == 1 and file["reused"] == 1
    assert "--keep" in file["command"] and "recorded before" in capsys.readouterr().out
    assert row()[0] == 2 / 8  # without --keep all is computed
    assert row("--keep", key={**key, "recipe": {"lr": 0.2}})[0] == 3 / 8
    assert row("--keep", "--seed", "1", key={**key, "recipe": {"lr": 0.2}})[0] == 3 / 8


def test_the_recorded_rows_are_those_of_the_recipes(monkeypatch):
    """With --keep lesson 07 finds all its rows, and lesson 12 that of the weights beside it."""
    args = arguments(monkeypatch, "--data", "mnist", "--full", "--keep", keep=True)
    data = SimpleNamespace(name="mnist", x_train=range(60_000))
    recipes, out_of_date = common.recipes(args, data), lambda: pytest.fail("a row is out of date")
    how = {"starts": 20, "ensemble": {}, "seed": 0}

    def numbers(lesson):
        file = common.LESSONS / "results" / f"{lesson}-mnist-full.json"
        return json.loads(file.read_text())["numbers"]

    found = numbers("07_min_max_training")
    assert list(found["networks"]) == list(recipes)
    rows = [(recipes[name], 0, row) for name, row in found["networks"].items()]
    rows += [(recipes["PGD"], int(seed), row) for seed, row in found["seeds"].items()]
    for recipe, seed, row in rows:
        key = judge.key_of({"recipe": recipe}, row["images"], 0.3, **{**how, "seed": seed})
        assert common.recorded(args, "07_min_max_training", key, out_of_date) == row
    for name, curve in found["more_time"].items():
        for epochs, row in curve.items():
            recipe = common.of_length(recipes[name], int(epochs))
            proved = recipe["defence"][0] == "IntervalBound"
            network = {"recipe": recipe, "certified": proved}
            short = {"starts": 0, "ensemble": {"steps": 20, "targets": 3, "queries": 200}}
            images = 10_000 if proved else 1000
            key = judge.key_of(network, images, 0.3, **short, seed=0)
            assert common.recorded(args, "07_min_max_training", key, out_of_date) == row

    attacked = numbers("12_evaluating_honestly")
    for name, part in (("PGD, larger", "robust_after_each"), ("bounds, committee", "committee")):
        weights = judge.digest(*common.kept_weights(args, name).state_dict().values())
        key = judge.key_of({"weights": weights}, 10_000, 0.3, **how)
        row = attacked[part]
        assert common.recorded(args, "12_evaluating_honestly", key, out_of_date) == row
        assert all(row[column] == found["networks"][name][column] for column in judge.COLUMNS)


# ---- weights that are kept, and networks that are judged -----------------------------------------


@pytest.mark.parametrize("name", common.KEPT)
def test_the_kept_weights_are_those_of_the_recipe(name):
    file, recipe = common.WEIGHTS / common.KEPT[name], common.MNIST_RECIPES[name]
    assert file.stat().st_size < 4_000_000
    state = common.load_state(file)
    assert state["network"] == recipe["network"] and recipe["half"]
    assert state.get("members") == recipe.get("members")
    assert {array.dtype for array in state["weights"].values()} == {np.dtype(np.float16)}
    model = common.kept_weights(SimpleNamespace(backend="numpy"), name)
    for weight, array in model.state_dict().items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, state["weights"][weight].astype(np.float32))


@pytest.mark.parametrize("members", [None, 2])
def test_weights_are_kept_rounded_to_half_precision(tmp_path, monkeypatch, capsys, members):
    monkeypatch.setattr(common, "WEIGHTS", tmp_path / "folder" / "weights")
    monkeypatch.setattr(common, "KEPT", {"small": "small.npz"})
    recipe = {"network": ["fast_cnn", {"hidden": 20}], **({"members": members} if members else {})}
    monkeypatch.setattr(common, "MNIST_RECIPES", {"small": recipe})
    args = SimpleNamespace(backend="numpy")
    with pytest.raises(SystemExit, match="2"):
        common.kept_weights(args, "small")
    assert "there is no file" in capsys.readouterr().err
    model = models.fast_cnn(5, hidden=20)
    if members:
        model = layers.Average(model, models.fast_cnn(6, hidden=20))
    args.out = tmp_path / "folder"
    common.keep_weights(args, "small", model)
    kept = common.kept_weights(args, "small")
    assert repr(kept) == repr(model)
    (file,) = tmp_path.rglob("*.npz")
    state = common.load_state(file)
    common.save_state(file, {**state, "network": ["slides_cnn", {}]})
    with pytest.raises(SystemExit, match="2"):
        common.kept_weights(args, "small")
    for a, b in zip(model.parameters(), kept.parameters(), strict=True):
        np.testing.assert_array_equal(a.value.astype(np.float16).astype(np.float32), b.value)
    full_disk(monkeypatch)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        common.keep_weights(args, "small", model)
    assert str(file) in (said := capsys.readouterr().err) and "full" in said


def test_a_committee_is_the_mean_of_networks_that_are_trained_alike(cache, monkeypatch):
    alone = {"network": ["fast_cnn", {"hidden": 5}], "defence": None, "epochs": 1}
    recipes = {"alone": alone, "two": {**alone, "members": 2, "half": True}}
    monkeypatch.setattr(common, "RECIPES", recipes)
    x = np.random.default_rng(0).random((20, 1, 28, 28), np.float32)
    data = Dataset("glyphs", x, np.arange(20) % 10, x, np.arange(20) % 10, tuple("0123456789"))
    args = SimpleNamespace(seed=0, quick=False, backend="numpy")
    first, second = (common.defended(args, data, "alone", seed=seed) for seed in (3, 4))
    model, seconds = common.defended(args, data, "two", seed=3)
    for clock in ("wall", "cpu"):
        assert seconds[clock] == first[1][clock] + second[1][clock]
    ours, others = model.parameters(), first[0].parameters() + second[0].parameters()
    for a, b in zip(ours, others, strict=True):
        np.testing.assert_array_equal(a.value, b.value.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("name", common.KEPT)
def test_a_kept_network_is_robust(name):
    """What the README says of it, for a few images and a weaker attack."""
    if not list((data_folder() / "mnist").glob("t10k-images*")):
        pytest.skip("MNIST is not here, and a test does not download it")
    data = load("mnist")
    model = common.kept_weights(SimpleNamespace(backend="numpy"), name)
    x, y = data.x_test[::80], data.y_test[::80]
    assert evaluate.accuracy(model, x, y) > 0.98
    x_adv = attacks.pgd(model, x, y, ball=Linf(0.3), steps=20)
    assert 0.9 < evaluate.accuracy(model, x_adv, y) < 0.99
    proved = verify.certified_accuracy(model, x, y, 0.3)
    assert proved > 0.88 if "bounds" in name else proved == 0


@pytest.mark.parametrize(
    "count, expected",
    [(3, [0, 3, 6]), (6, [0, 1, 3, 5, 6, 8]), (10, [*range(10)]), (99, [*range(10)])],
)
def test_test_images_come_from_all_over(count, expected):
    data = SimpleNamespace(x_test=np.arange(10), y_test=-np.arange(10))
    x, y = common.test_images(SimpleNamespace(xp=np), data, count)
    assert x.tolist() == (-y).tolist() == expected


def test_a_training_of_another_length_differs_in_all_its_parts():
    recipe = {"defence": ["IntervalBound", {"ramp": [1, 10], "kappa": 0.5}], "epochs": 50}
    half = common.of_length(recipe, 25)
    assert half == {"defence": ["IntervalBound", {"ramp": [0.5, 5], "kappa": 0.5}], "epochs": 25}
    recipe = {"defence": ["MinMax", {"warm_up": 1.5}], "epochs": 12, "lr": 0.1}
    assert common.of_length(recipe, 24) == {
        "defence": ["MinMax", {"warm_up": 3.0}], "epochs": 24, "lr": 0.1,
    }  # fmt: skip
    assert common.of_length(recipe, 12) == recipe
    assert common.of_length({"defence": None, "epochs": 2}, 1) == {"defence": None, "epochs": 1}


def test_judged_counts_what_stands_after_each_attack(cache, capsys):
    model = models.mlp((784, 10), 3)
    rng = np.random.default_rng(0)
    x = rng.random((30, 1, 28, 28), np.float32)
    y = evaluate.predict(model, x)
    y[:3] = (y[:3] + 1) % 10  # misread from the start
    how = {"starts": 2, "ensemble": {"steps": 3, "targets": 1, "queries": 5}, "seed": 0}
    stands = {}
    for epsilon in (0.0, 0.004, 0.5):  # all, some or none of the images stand
        stands[epsilon] = judge.judged(model, x, y, epsilon, **how)
    for row in stands.values():
        shares = [row[column] for column in judge.COLUMNS]
        assert row["images"] == 30 and shares[0] == 0.9
        assert shares[:-1] == sorted(shares[:-1], reverse=True) and shares[-1] <= shares[-2]
    assert stands[0.0]["ensemble"] == stands[0.0]["certified"] == 0.9
    assert 0 < stands[0.004]["ensemble"] < 0.9
    assert stands[0.5]["FGSM"] == 0
    assert 0 < stands[0.004]["certified"]
    capsys.readouterr()
    assert judge.judged(model, x, y, 0.5, **how) == stands[0.5]
    assert "computed before" in capsys.readouterr().out
    judge.judged(models.mlp((784, 10), 4), x, y, 0.5, **how)  # another network
    judge.judged(model, x[::-1].copy(), y, 0.5, **how)  # other images
    assert "computed before" not in capsys.readouterr().out


def test_parts_of_a_judgement_are_kept_one_by_one(cache, monkeypatch):
    """A run that is interrupted goes on with the part it was at."""
    monkeypatch.setattr(judge, "PART", 10)
    model, how = models.mlp((784, 10), 3), {"starts": 1, "ensemble": {}, "seed": 0}
    x = np.random.default_rng(0).random((25, 1, 28, 28), np.float32)
    y, seen = np.zeros(25, int), []

    def standing(model, x, y, *settings):
        seen.append(len(x))
        if len(seen) == 3 and len(x) == 5 and not done:
            raise KeyboardInterrupt
        return dict.fromkeys(judge.COLUMNS, 1)

    monkeypatch.setattr(judge, "standing", standing)
    done = False
    with pytest.raises(KeyboardInterrupt):
        judge.judged(model, x, y, 0.1, **how)
    done = True
    row = judge.judged(model, x, y, 0.1, **how)
    assert seen == [10, 10, 5, 5]
    assert row == {**dict.fromkeys(judge.COLUMNS, 3 / 25), "images": 25}
