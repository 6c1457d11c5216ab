"""What the lessons share: flags, and networks that are trained once."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tinyadv import models
from tinyadv.data import NAMES, Dataset

sys.path.append(str(Path(__file__).parents[1] / "lessons"))
common = pytest.importorskip("common")


@pytest.fixture(autouse=True)
def settings_put_back():
    """Of matplotlib; ``common.arguments`` sets them."""
    with common.plt.rc_context():
        yield


def arguments(monkeypatch, *flags, **how):
    monkeypatch.setattr(sys, "argv", ["lesson.py", *flags])
    return common.arguments("A lesson.", **how)


# ---- flags ---------------------------------------------------------------------------------------


def test_a_negative_seed_is_answered_in_a_sentence(monkeypatch, capsys):
    assert arguments(monkeypatch, "--seed", "0").seed == 0
    with pytest.raises(SystemExit, match="2"):
        arguments(monkeypatch, "--seed", "-1")
    assert "--seed: must be ≥ 0, got -1" in capsys.readouterr().err


@pytest.mark.parametrize("how", [{}, {"datasets": ()}])
def test_photographs_are_for_lessons_that_name_them(monkeypatch, capsys, how):
    for name in ("glyphs", "mnist", "fashion"):
        assert arguments(monkeypatch, "--data", name, **how).data == name
    with pytest.raises(SystemExit, match="2"):
        arguments(monkeypatch, "--data", "cifar10", **how)
    assert arguments(monkeypatch, "--data", "cifar10", datasets=NAMES).data == "cifar10"


# ---- networks that are trained once --------------------------------------------------------------


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYADV_CACHE", str(tmp_path))
    return tmp_path


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


@pytest.mark.parametrize("name", common.RECIPES)
def test_every_recipe_can_be_followed(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYADV_CACHE", str(tmp_path))
    images = np.random.default_rng(0).random((20, 1, 28, 28), np.float32)
    labels = np.arange(20) % 10
    for data_name in ("glyphs", "mnist"):
        data = Dataset(data_name, images, labels, images, labels, classes=tuple("0123456789"))
        args = SimpleNamespace(seed=0, quick=True, backend="numpy")
        model, first = common.defended(args, data, name)
        again, seconds = common.defended(args, data, name)
        assert seconds == first and seconds["wall"] > 0 and seconds["cpu"] >= 0
        for a, b in zip(model.parameters(), again.parameters(), strict=True):
            np.testing.assert_array_equal(a.value, b.value)
