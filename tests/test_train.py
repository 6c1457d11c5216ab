"""Training: what the loop does, and that it goes on after any interruption as if there was none."""

import functools
import io
import itertools
import json
import math
import os
import re
import signal
import sys
import threading
from functools import partial

import matplotlib
import numpy as np
import processes
import pytest

from tinyadv import (
    Tensor,
    array_module,
    attacks,
    checkpoint,
    defenses,
    fit,
    grad,
    models,
    ops,
    optim,
    to_numpy,
    train,
)
from tinyadv.balls import Linf
from tinyadv.checkpoint import CheckpointError, load_state, load_weights, save_weights
from tinyadv.data import Dataset
from tinyadv.layers import Conv2d, Dense, Flatten, Module, ReLU, Sequential
from tinyadv.losses import cross_entropy
from tinyadv.train import History, cross_entropy_objective

matplotlib.use("Agg")


def blobs(n, seed):
    """Images (n, 1, 4, 4) of three classes: three patterns of grey, and noise."""
    patterns = np.random.default_rng(0).random((3, 1, 4, 4))
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = 0.8 * patterns[y] + 0.2 * rng.random((n, 1, 4, 4))
    return x.astype(np.float32), y


DATA = Dataset("blobs", *blobs(60, seed=1), *blobs(30, seed=2), classes=("a", "b", "c"))
BATCH = 16  # so that an epoch has four steps, the last with 12 examples
STEPS = 4


def mlp(xp=np):
    return on(xp, models.mlp((16, 8, 3), rng=3))


def cnn(xp=np):
    layers = [Conv2d(1, 4, 3, rng=1), ReLU(), Flatten(), Dense(16, 3, rng=2)]
    return on(xp, Sequential(*layers))


def on(xp, model):
    for p in model.parameters():
        p.value = xp.asarray(p.value)
    return model


def quick_fit(model, epochs=1, perturb=None, *, lr=0.1, data=DATA, **options):
    """``fit`` with plain gradient descent and small batches, without a word."""
    optimizer = optim.SGD(model.parameters(), lr)
    return fit(
        model,
        data,
        optimizer,
        epochs,
        perturb,
        **{"batch_size": BATCH, "progress": False} | options,
    )


def outcome(model, history):
    """All that a run leaves, except for how long it took; NaNs compare equal."""
    weights = {name: array.tobytes() for name, array in model.state_dict().items()}
    numbers = {name: str(values) for name, values in vars(history).items() if name != "seconds"}
    return weights, numbers


# ---- what the loop does --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [mlp, cnn])
def test_it_learns(make, xp):
    model = make(xp)
    optimizer = optim.Adam(model.parameters(), 0.02)
    history = fit(model, DATA, optimizer, 12, batch_size=BATCH, progress=False)
    assert all(array_module(p.value) is xp for p in model.parameters())
    assert history.epoch == list(range(1, 13)) and history.lr == [0.02] * 12
    assert all(len(values) == 12 for values in vars(history).values())
    assert all(type(v) is float for v in history.loss + history.train_accuracy + history.seconds)
    assert history.loss[-1] < 0.2 * history.loss[0]
    assert history.train_accuracy[-1] == history.test_accuracy[-1] == 1.0
    assert min(history.seconds) > 0


def test_the_loop_written_out(xp):
    model, by_hand = mlp(xp), mlp(xp)
    params = by_hand.parameters()
    rng = np.random.default_rng(5)
    losses, accuracies = [], []
    for _ in range(2):
        order = rng.permutation(60)
        loss_sum = correct = 0
        for i in range(0, 60, BATCH):
            x, y = DATA.x_train[order[i : i + BATCH]], DATA.y_train[order[i : i + BATCH]]
            logits = by_hand(xp.asarray(x))
            loss = cross_entropy(logits, xp.asarray(y))
            for p, g in zip(params, grad(loss, params), strict=True):
                p.value = p.value - 0.1 * g
            loss_sum += float(loss) * len(x)
            correct += (to_numpy(logits).argmax(1) == y).sum()
        losses.append(loss_sum / 60)
        accuracies.append(correct / 60)

    history = quick_fit(model, epochs=2, rng=5)
    for p, q in zip(model.parameters(), params, strict=True):
        np.testing.assert_allclose(to_numpy(p), to_numpy(q), rtol=1e-5, atol=1e-7)
    assert history.loss == pytest.approx(losses, rel=1e-5)
    assert history.train_accuracy == pytest.approx(accuracies)
    right = to_numpy(model(xp.asarray(DATA.x_test))).argmax(1) == DATA.y_test
    assert history.test_accuracy[-1] == pytest.approx(right.mean())


def test_a_seed_makes_the_run():
    def run(**options):
        model = mlp()
        return outcome(model, quick_fit(model, epochs=2, **options))

    assert run(rng=1) == run(rng=1) == run(rng=np.random.default_rng(1))
    assert run(rng=1) != run(rng=2)
    assert run() == run(rng=0)


def test_defaults():
    model, other = mlp(), mlp()
    history = fit(model, DATA, optim.SGD(model.parameters(), 0.1), 1, progress=False)
    expected = quick_fit(
        other, perturb=None, objective=cross_entropy_objective, batch_size=128, validate=True
    )
    assert outcome(model, history) == outcome(other, expected)
    assert quick_fit(mlp(), epochs=0) == History()


def test_hooks_are_told_the_epoch():
    class Told:
        def __init__(self, result):
            self.result, self.epochs = result, []

        def at(self, epoch):
            self.epochs.append(epoch)

        def __call__(self, model, x, y):
            return self.result(model, x, y)

    perturb, objective = Told(lambda model, x, y: x), Told(cross_entropy_objective)
    quick_fit(mlp(), 2, perturb, objective=objective)  # 4 steps in an epoch
    assert perturb.epochs == objective.epochs == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]


def test_what_perturb_returns_is_trained_on(xp):
    seen = {"perturb": [], "objective": []}

    def perturb(model, x, y):
        assert model is net and array_module(x) is array_module(y) is xp
        seen["perturb"].append((to_numpy(x), to_numpy(y)))
        return 1 - x

    def objective(model, x, y):
        seen["objective"].append((to_numpy(x), to_numpy(y)))
        return cross_entropy_objective(model, x, y)

    net = mlp(xp)
    quick_fit(net, perturb=perturb, objective=objective)
    assert [len(x) for x, _ in seen["perturb"]] == [16, 16, 16, 12]
    for (x, y), (x_adv, y_adv) in zip(*seen.values(), strict=True):
        np.testing.assert_array_equal(x_adv, 1 - x)
        np.testing.assert_array_equal(y_adv, y)
    x, y = (np.concatenate(parts) for parts in zip(*seen["perturb"], strict=True))
    rows = np.column_stack([x.reshape(60, -1), y])  # every example once, with its own label
    expected = np.column_stack([DATA.x_train.reshape(60, -1), DATA.y_train])
    np.testing.assert_array_equal(np.unique(rows, axis=0), np.unique(expected, axis=0))
    assert not np.array_equal(rows, expected)


class Repeated:
    """Takes three steps on each batch, along a gradient that is a little longer each time."""

    def __init__(self, times=3):
        self.times, self.seen, self.epochs = times, [], []

    def at(self, epoch):
        self.epochs.append(epoch)

    def train_batch(self, model, x, y, objective, optimizer, begin):
        for k in range(self.times):
            begin(k, self.times)
            self.seen.append(np.column_stack([to_numpy(x).reshape(len(x), -1), to_numpy(y)]))
            result = objective(model, x, y)
            optimizer.step([(1 + k) * g for g in grad(result.loss, optimizer.params)])
            yield result


def test_a_perturb_that_takes_the_steps_itself(xp):
    model, by_hand, perturb, rates = mlp(xp), mlp(xp), Repeated(), []
    params, losses, correct = by_hand.parameters(), [], 0
    order = np.random.default_rng(5).permutation(60)
    for i in range(0, 60, BATCH):
        x = xp.asarray(DATA.x_train[order[i : i + BATCH]])
        y = xp.asarray(DATA.y_train[order[i : i + BATCH]])
        for k in range(3):
            logits = by_hand(x)
            loss = cross_entropy(logits, y)
            for p, g in zip(params, grad(loss, params), strict=True):
                p.value = p.value - 0.1 * (1 + k) * g
            losses.append(float(loss) * len(x))
            correct += (to_numpy(logits).argmax(1) == to_numpy(y)).sum()
    schedule = lambda epoch: rates.append(epoch) or 0.1
    history = quick_fit(model, 2, perturb, schedule=schedule, rng=5)
    first = quick_fit(half := mlp(xp), 1, Repeated(), rng=5)
    for p, q in zip(half.parameters(), params, strict=True):
        np.testing.assert_allclose(to_numpy(p), to_numpy(q), rtol=1e-5, atol=1e-7)
    assert first.loss == history.loss[:1] == pytest.approx([sum(losses) / 180], rel=1e-5)
    assert first.train_accuracy == pytest.approx([correct / 180])  # means over all updates

    # The learning rate and the defence are told the time before every update.
    np.testing.assert_allclose(perturb.epochs, np.arange(24) / 12)
    assert rates == perturb.epochs
    assert [len(rows) for rows in perturb.seen] == 2 * ([16] * 9 + [12] * 3)
    for i in range(0, len(perturb.seen), 3):
        first, *others = perturb.seen[i : i + 3]
        assert all(np.array_equal(first, rows) for rows in others)
    epoch = np.concatenate(perturb.seen[:12:3])  # every example once
    expected = np.column_stack([DATA.x_train.reshape(60, -1), DATA.y_train])
    np.testing.assert_array_equal(np.unique(epoch, axis=0), np.unique(expected, axis=0))


def test_train_step_is_one_step(xp):
    model, by_hand, times = mlp(xp), mlp(xp), []
    x, y = xp.asarray(DATA.x_train[:8]), xp.asarray(DATA.y_train[:8])
    sgd = optim.SGD(model.parameters(), 0.5)
    objective = lambda model, x, y: train.Result(*cross_entropy_objective(model, x, y))
    perturb = lambda model, x, y: 1 - x
    (result,) = train.train_step(perturb, model, x, y, objective, sgd, lambda *k: times.append(k))
    loss = cross_entropy(by_hand(1 - x), y)
    assert float(result.loss) == float(loss) and result.logits.shape == (8, 3)
    assert result.numbers == {} and times == [(0, 1)] and sgd.steps == 1
    for p, q, g in zip(model.parameters(), by_hand.parameters(),
                       grad(loss, by_hand.parameters()), strict=True):  # fmt: skip
        np.testing.assert_allclose(to_numpy(p), to_numpy(q.value - 0.5 * g), rtol=1e-6)


def test_the_objective_decides():
    def objective(model, x, y):
        bias = model.parameters()[-1]
        return ops.sum((bias - 1) ** 2), model(x)

    model = mlp()
    before = model.state_dict()
    history = quick_fit(model, epochs=2, lr=0.5, objective=objective)
    after = model.state_dict()
    np.testing.assert_allclose(after.pop("3.bias"), [1, 1, 1])
    assert all(np.array_equal(before[name], array) for name, array in after.items())
    assert history.loss == [3 * 16 / 60, 0]  # 3 for the first batch, then 0


def test_the_schedule_is_set_before_every_step():
    times, rates = [], []

    def schedule(epoch):
        times.append(epoch)
        return np.float64(0.1 / (1 + epoch))

    def perturb(model, x, y):
        rates.append(optimizer.lr)
        return x

    model = mlp()
    optimizer = optim.SGD(model.parameters(), lr=9.0)
    history = fit(model, DATA, optimizer, 2, perturb, batch_size=BATCH, schedule=schedule,
                  progress=False)  # fmt: skip
    assert times == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]
    assert rates == [0.1 / (1 + t) for t in times]
    assert history.lr == [rates[3], rates[7]]
    assert all(p.dtype == np.float32 for p in model.parameters())


def test_the_byte_order_of_the_data_changes_nothing(xp):
    swapped = [a.astype(a.dtype.newbyteorder()) for a in list(vars(DATA).values())[1:5]]
    model, other = mlp(xp), mlp(xp)
    before = [a.copy() for a in swapped]
    history = quick_fit(model, 2, data=Dataset("", *swapped, ()))
    assert outcome(model, history) == outcome(other, quick_fit(other, 2))
    assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(swapped, before, strict=True))


def test_the_data_stay_as_they_are_whatever_is_written_into_a_batch():
    def spoil(*arrays):
        for array in arrays:
            array[...] = 0
        return arrays[0]

    kept = [a.copy() for a in list(vars(DATA).values())[1:5]]
    quick_fit(mlp(), batch_size=60, perturb=lambda model, x, y: spoil(x), validate=False)
    with pytest.raises(ValueError, match="read-only"):  # the labels are not the attack's
        quick_fit(mlp(), perturb=lambda model, x, y: spoil(y) + x)
    quick_fit(mlp(), batch_size=60, augment=lambda x, rng: spoil(x), validate=False)
    assert all((a == b).all() for a, b in zip(list(vars(DATA).values())[1:5], kept, strict=True))


def test_no_validation():
    unlabelled = Dataset("blobs", DATA.x_train, DATA.y_train, None, None, classes=DATA.classes)
    history = quick_fit(mlp(), epochs=2, validate=False, data=unlabelled)
    assert [math.isnan(a) for a in history.test_accuracy] == [True, True]


def test_the_device_waits_once_an_epoch(device):
    def syncs(batch_size):
        model = mlp(device)
        with device.count() as c:
            quick_fit(model, epochs=2, batch_size=batch_size, schedule=optim.constant(0.1))
        return c.syncs

    if not hasattr(device, "count"):
        pytest.skip("only the stand-in counts")
    assert syncs(batch_size=3) == syncs(batch_size=30)


# ---- what one sees -------------------------------------------------------------------------------


def test_a_line_for_each_epoch(capsys):
    quick_fit(mlp(), epochs=2, progress=True)
    out, err = capsys.readouterr()
    line = r"epoch  {}/2  loss \d\.\d{{4}}  training +\d+\.\d\d %  test +\d+\.\d\d %  \d+\.\d s\n"
    assert re.fullmatch(line.format(1) + line.format(2), out)
    assert err == ""  # no terminal, no bar
    quick_fit(mlp(), progress=True, validate=False)
    assert "training" in (out := capsys.readouterr().out) and "test" not in out
    quick_fit(mlp(), progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    quick_fit(mlp(), epochs=2, progress=True)
    assert "epoch 1/2:" in terminal.getvalue() and "/4 [" in terminal.getvalue()
    terminal.seek(0)
    terminal.truncate()
    quick_fit(mlp(), progress=False)
    assert terminal.getvalue() == ""


def test_plot():
    import matplotlib.pyplot as plt

    history = quick_fit(mlp(), epochs=3)
    _, given = plt.subplots(1, 2)
    for axes in (history.plot(), history.plot(given)):
        loss, accuracy = axes
        np.testing.assert_array_equal(loss.lines[0].get_xydata().T, [[1, 2, 3], history.loss])
        shares = [line.get_ydata() / 100 for line in accuracy.lines]
        np.testing.assert_allclose(shares, [history.train_accuracy, history.test_accuracy])
        assert loss.get_ylabel() == "training loss" and accuracy.get_ylabel() == "accuracy, %"
        assert [text.get_text() for text in accuracy.get_legend().texts] == ["training", "test"]
        axes[0].figure.canvas.draw()
        plt.close(axes[0].figure)
    assert list(axes) == list(given)


def test_plot_without_validation():
    import matplotlib.pyplot as plt

    _, accuracy = quick_fit(mlp(), epochs=2, validate=False).plot()
    assert [text.get_text() for text in accuracy.get_legend().texts] == ["training"]
    plt.close(accuracy.figure)


@pytest.mark.parametrize("losses", [[0.9, 0.3], [0.71, 0.63], [2.3, 0.002], [0.5, 0.5], [300, 20]])
def test_the_loss_is_labelled_with_plain_numbers(losses):
    import matplotlib.pyplot as plt

    n = [1, 2]
    left, _ = History(n, losses, [0.5, 0.6], [0.5, 0.6], [0.1, 0.1], [1.0, 1.0]).plot()
    left.figure.canvas.draw()
    labels = [tick.get_text() for tick in left.get_yticklabels(which="both")]
    assert sum(bool(label) for label in labels) >= 2
    for label in labels:
        assert re.fullmatch(r"(\d+(\.\d+)?|1e-05)?", label)
    plt.close(left.figure)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs .* ≥ 0, got -1"),
        ({"epochs": 1.5}, "epochs .* ≥ 0, got 1.5"),
        ({"batch_size": 0}, "batch_size .* ≥ 1, got 0"),
        ({"batch_size": 16.0}, "batch_size .* ≥ 1, got 16.0"),
        ({"checkpoint_steps": 0, "checkpoint": "a.npz"}, "checkpoint_steps .* ≥ 1, got 0"),
        ({"checkpoint_steps": 5}, "need checkpoint="),
        ({"resume": True}, "need checkpoint="),
        (
            {"data": Dataset("", DATA.x_train[:0], DATA.y_train[:0], None, None, ())},
            "train.*got 0 images",
        ),
        (
            {"data": Dataset("", DATA.x_train, DATA.y_train[1:], None, None, ())},
            "got 60 images and 59",
        ),
        (
            {"data": Dataset("", DATA.x_train, DATA.y_train, DATA.x_test[:0], DATA.y_test[:0], ())},
            "test images.*got 0 .*validate=False",
        ),
    ],
)
def test_arguments_that_make_no_sense(options, message):
    model = mlp()
    with pytest.raises(ValueError, match=message):
        quick_fit(model, **options)
    assert outcome(model, History()) == outcome(mlp(), History())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": 0.1}, "schedule must be a function.*got 0.1"),
        ({"perturb": Linf(0.1)}, "perturb must be a function.*got Linf"),
        ({"perturb": defenses.MinMax}, "perturb must be a function.*got <class .*MinMax"),
        ({"augment": defenses.Free(Linf(0.1)).rng}, "augment must be a function.*got Gen"),
        ({"data": (DATA.x_train, DATA.y_train)}, "needs data.x_train.*got a tuple"),
        (
            {"data": Dataset("", DATA.x_train, DATA.y_train, None, None, ())},
            "needs data.x_test.*validate=False",
        ),
        (
            {"objective": lambda model, x, y: cross_entropy(model(x), y)},
            r"must return \(loss, logits\), .*got Tensor",
        ),
        ({"objective": lambda model, x, y: (1.0, model(x))}, "got float, Tensor"),
        ({"objective": lambda model, x, y: None}, "got NoneType"),
        ({"data": vars(DATA)}, "got a dict"),
        ({"validate": None}, "validate must .*got None"),
        ({"validate": "yes"}, "validate must .*got 'yes'"),
        ({"augment": lambda x, rng: None}, "augment must return an array.*NoneType"),
    ],
)
def test_arguments_of_another_kind(options, message):
    model = mlp()
    with pytest.raises(TypeError, match=message):
        quick_fit(model, **options)
    assert outcome(model, History()) == outcome(mlp(), History())


def test_a_batch_size_of_numpy(tmp_path):
    quick_fit(mlp(), batch_size=np.int64(16), checkpoint=tmp_path / "a.npz")
    quick_fit(mlp(), batch_size=16, checkpoint=tmp_path / "a.npz", resume=True)


def test_the_optimizer_of_another_model():
    optimizer = optim.SGD(mlp().parameters())
    with pytest.raises(ValueError, match=r"2? of the optimizer.*model.parameters\(\)"):
        fit(mlp(), DATA, optimizer, 1)


def nan_after(n):
    """A ``perturb`` that lets n batches through and then returns NaNs."""
    steps = itertools.count(1)
    return lambda model, x, y: x if next(steps) <= n else x * np.float32(np.nan)


def test_a_loss_that_is_not_finite(monkeypatch):
    with pytest.raises(FloatingPointError) as info:
        quick_fit(mlp(), epochs=2, perturb=nan_after(5))
    message = str(info.value)
    assert "not finite in epoch 2, by step 4." in message
    assert "lower learning rate (it is 0.1)" in message and "piecewise_linear" in message
    assert "last good state" not in message
    monkeypatch.setattr(train, "LOOK_EVERY", 3)
    with pytest.raises(FloatingPointError, match=r"in epoch 1, by step 3\."):
        quick_fit(mlp(), perturb=nan_after(1))


def test_the_last_good_state_is_kept(tmp_path):
    path = tmp_path / "state.npz"
    with pytest.raises(FloatingPointError) as info:  # before anything was saved
        quick_fit(mlp(), perturb=nan_after(2), checkpoint=path)
    assert "last good state" not in str(info.value) and not path.exists()
    with pytest.raises(FloatingPointError, match=re.escape(f"last good state is in {path}")):
        quick_fit(mlp(), epochs=2, perturb=nan_after(6), checkpoint=path, checkpoint_steps=1)
    assert (load_state(path)["epoch"], load_state(path)["step"]) == (1, 2)
    with pytest.raises(FloatingPointError, match=re.escape(f"last good state is in {path}")):
        quick_fit(mlp(), epochs=2, perturb=nan_after(0), checkpoint=path, resume=True)


def test_broken_weights_are_not_saved(tmp_path):
    class Breaks(optim.SGD):
        def _update(self, xp, w, dw, v=None):
            if self.steps == 3:
                w[...] = np.nan  # after a step whose loss was finite

    model, path = mlp(), tmp_path / "state.npz"
    with pytest.raises(FloatingPointError, match=r"or a weight is not finite.*by step 3\."):
        fit(model, DATA, Breaks(model.parameters()), 1, batch_size=BATCH, checkpoint=path,
            checkpoint_steps=1, progress=False)  # fmt: skip
    state = load_state(path)
    assert state["step"] == 2
    assert all(np.isfinite(array).all() for array in state["weights"].values())


@pytest.mark.parametrize(
    "loss",
    [
        lambda model, loss: Tensor(float(loss)),
        lambda model, loss: Tensor(loss.value) * 2,
        lambda model, loss: cross_entropy(model.frozen()(Tensor(DATA.x_train)), DATA.y_train),
        lambda model, loss: ops.sum(
            model.parameters()[0] ** 2
        ),  # which the optimizer does not have
    ],
    ids=["float", "value", "frozen", "others"],
)
@pytest.mark.parametrize("perturb", [None, defenses.Free(Linf(0.1), replays=2)], ids=["no", "Free"])
def test_an_objective_that_trains_nothing(loss, perturb):
    def objective(model, x, y):
        value, logits = cross_entropy_objective(model, x, y)
        return loss(model, value), logits

    model = mlp()
    adam = optim.Adam(model.parameters()[1:], weight_decay=0.1)
    with pytest.raises(ValueError, match="does not depend on any parameter"):
        fit(model, DATA, adam, 1, perturb, objective=objective, progress=False)
    assert outcome(model, History()) == outcome(mlp(), History()) and adam.steps == 0


# ---- interruptions -------------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": lambda params: optim.SGD(params, 0.1),
    "momentum": lambda params: optim.SGD(params, 0.1, momentum=0.9, weight_decay=0.01),
    "RMSprop": optim.RMSprop,
    "Adam": lambda params: optim.Adam(params, np.float64(0.01)),
}
EPOCHS = 3


class Crash(Exception):
    pass


def noisy_run(kind="Adam", *, at_step=None, action=None, bits=np.random.PCG64, make=mlp, **options):
    """Three epochs with noise from the generator that shuffles.

    ``action`` comes in the middle of a step, or of every step.
    """
    rng = np.random.Generator(bits(4))
    steps = itertools.count(1)
    model = make()

    def perturb(model, x, y):
        if next(steps) == at_step or (action and not at_step):
            action()
        return x + 0.1 * rng.standard_normal(x.shape).astype(np.float32)

    options = {"epochs": EPOCHS, "batch_size": BATCH} | options
    history = fit(model, DATA, OPTIMIZERS[kind](model.parameters()), perturb=perturb, rng=rng,
                  progress=False, **options)  # fmt: skip
    return outcome(model, history)


def crash():
    raise Crash


@pytest.mark.parametrize(
    ("kind", "checkpoint_steps"),
    [("SGD", 1), ("momentum", 3), ("RMSprop", 1), *zip(["Adam"] * 4, [None, 1, 3, 4], strict=True)],
)
def test_a_crash_at_any_step_changes_no_bit(kind, checkpoint_steps, tmp_path):
    expected = noisy_run(kind)
    for at_step in range(1, EPOCHS * STEPS + 1):
        keep = {"checkpoint": tmp_path / f"{at_step}.npz", "checkpoint_steps": checkpoint_steps}
        with pytest.raises(Crash):
            noisy_run(kind, at_step=at_step, action=crash, resume=True, **keep)
        assert noisy_run(kind, resume=True, **keep) == expected


def test_a_folder_that_cannot_be_written_is_noticed_at_the_beginning(tmp_path):
    (tmp_path / "file").touch()
    model, steps = mlp(), []
    with pytest.raises(OSError, match="file"):
        quick_fit(model, checkpoint=tmp_path / "file" / "a.npz", perturb=lambda *a: steps.append(a))
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        quick_fit(model, checkpoint=tmp_path, perturb=lambda *a: steps.append(a))
    assert steps == [] and outcome(model, History()) == outcome(mlp(), History())


@pytest.mark.parametrize(
    "bits", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64]
)
def test_any_generator_resumes(bits, tmp_path):
    keep = {"bits": bits, "checkpoint": str(tmp_path / "state.npz"), "checkpoint_steps": 2}
    with pytest.raises(Crash):
        noisy_run(at_step=7, action=crash, **keep)
    assert noisy_run(resume=True, **keep) == noisy_run(bits=bits)


def test_resuming_on_a_device(device, tmp_path):
    def run(**options):
        model = mlp(device)
        history = quick_fit(model, 2, **options)
        return outcome(model, history)

    keep = {"checkpoint": tmp_path / "a.npz", "checkpoint_steps": 3}
    steps = itertools.count(1)
    with pytest.raises(Crash):
        run(perturb=lambda model, x, y: x if next(steps) < 6 else crash(), **keep)
    assert run(resume=True, **keep) == run()


@pytest.mark.parametrize("make", [mlp, cnn])
def test_the_schedule_resumes(make, tmp_path):
    how = {"make": make, "schedule": optim.cosine(0.05, EPOCHS)}
    with pytest.raises(Crash):
        noisy_run(at_step=6, action=crash, checkpoint=tmp_path / "a.npz", **how)
    assert noisy_run(resume=True, checkpoint=tmp_path / "a.npz", **how) == noisy_run(**how)


def test_when_states_are_saved(monkeypatch, tmp_path):
    saved = []
    save = lambda path, state: saved.append((state["epoch"], state["step"]))
    monkeypatch.setattr(checkpoint, "save_state", save)
    quick_fit(mlp(), epochs=2, checkpoint=tmp_path / "a.npz")
    assert saved == [(1, 0), (2, 0)]
    saved.clear()
    quick_fit(mlp(), epochs=2, checkpoint=tmp_path / "a.npz", checkpoint_steps=3)
    assert saved == [(0, 3), (1, 0), (1, 3), (2, 0)]


def test_more_epochs_later(tmp_path):
    path = tmp_path / "a.npz"
    noisy_run(epochs=1, checkpoint=path)
    assert noisy_run(epochs=3, checkpoint=path, resume=True) == noisy_run(epochs=3)


def test_resuming_a_complete_run_returns_its_history(tmp_path):
    path = tmp_path / "a.npz"
    expected = noisy_run(checkpoint=path)
    assert noisy_run(checkpoint=path, resume=True, at_step=1, action=crash) == expected
    model = mlp()
    load_weights(path, model)  # a training state serves as weights, too
    assert outcome(model, History())[0] == expected[0]


def test_without_resume_an_old_state_is_replaced(tmp_path):
    path = tmp_path / "a.npz"
    noisy_run(epochs=2, checkpoint=path)
    assert noisy_run(epochs=1, checkpoint=path) == noisy_run(epochs=1)
    assert load_state(path)["epoch"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_size": 15},
            "batch_size = 16, this one has batch_size = 15",
        ),
        ({"make": cnn}, "weights lacks the fields"),
        ({"kind": "momentum"}, "kind = Adam, .*kind = SGD"),
        ({"bits": np.random.MT19937}, "generator = PCG64, this one has generator = MT19937"),
    ],
)
def test_resuming_with_something_else(options, message, tmp_path):
    path = tmp_path / "a.npz"
    noisy_run(checkpoint=path)
    with pytest.raises(ValueError, match=message):
        noisy_run(checkpoint=path, resume=True, **options)


def resumed_with(path, make, **options):
    """The model and its optimiser after going on from ``path`` with other settings."""
    model = mlp()
    optimizer = make(model.parameters())
    how = {"epochs": 2, "batch_size": BATCH, "checkpoint": path, "resume": True} | options
    try:
        history = fit(model, DATA, optimizer, progress=False, **how)
    except ValueError as error:
        return model, optimizer, str(error)
    return model, optimizer, history


def test_a_mismatch_changes_no_weight(tmp_path):
    path = tmp_path / "a.npz"
    quick_fit(mlp(), checkpoint=path)
    for make, options, message in [
        (lambda p: optim.SGD(p, 0.1, momentum=0.5), {}, "'momentum': 0.0.*'momentum': 0.5"),
        (lambda p: optim.SGD(p, 0.1, weight_decay=0.5), {}, "'weight_decay': 0.5"),
        (optim.Adam, {}, "kind = SGD, .*kind = Adam"),
        (lambda p: optim.SGD(p, 0.1), {"batch_size": 5}, "batch_size = 16"),
    ]:
        model, optimizer, answer = resumed_with(path, make, **options)
        assert re.search(message, answer)
        assert outcome(model, History()) == outcome(mlp(), History()) and optimizer.steps == 0


def test_another_learning_rate_is_what_one_gets(tmp_path):
    path = tmp_path / "a.npz"
    quick_fit(mlp(), lr=0.1, checkpoint=path)
    _, _, history = resumed_with(path, lambda p: optim.SGD(p, 0.01))
    assert history.lr == [0.1, 0.01]


def test_another_schedule_is_what_one_gets(tmp_path):
    path = tmp_path / "a.npz"
    quick_fit(mlp(), checkpoint=path, schedule=optim.constant(0.2))
    schedule = optim.constant(0.05)
    _, _, history = resumed_with(path, lambda p: optim.SGD(p, 0.1), schedule=schedule)
    assert history.lr == [0.2, 0.05]


def test_augment_comes_first_and_is_resumed(tmp_path):
    seen = []

    def augment(x, rng):
        return x + np.float32(rng.random())

    def perturb(model, x, y):
        seen.append(float(x.min()))
        return x

    path, straight, stopped = tmp_path / "a.npz", mlp(), mlp()
    quick_fit(straight, 2, perturb, augment=augment)
    assert len(set(seen)) == 2 * STEPS and max(seen) > 0.1  # the images begin near 0
    quick_fit(stopped, 1, augment=augment, checkpoint=path)
    quick_fit(stopped, 2, augment=augment, checkpoint=path, resume=True)
    for a, b in zip(straight.parameters(), stopped.parameters(), strict=True):
        np.testing.assert_array_equal(a.value, b.value)


def test_all_steps_on_a_batch_see_the_same_augmented_images():
    perturb = Repeated()
    quick_fit(mlp(), 1, perturb, augment=lambda x, rng: x + np.float32(rng.random()))
    seen = [float(rows[:, :-1].sum()) for rows in perturb.seen]
    assert len(seen) == 3 * STEPS
    assert seen[::3] == seen[1::3] == seen[2::3] and len(set(seen)) == STEPS


class Counts:
    """Adds up what it has seen, and gives its tenth to every pixel."""

    def __init__(self):
        self.total, self.sums = 0, np.zeros(3)

    def __call__(self, model, x, y):
        self.total += len(x)
        self.sums = self.sums + np.bincount(y, minlength=3)
        return x + np.float32(0.001 * self.total + 0.01 * self.sums[0])

    def state_dict(self):
        return {"total": self.total, "more": {"sums": self.sums}}

    def load_state_dict(self, state):
        self.total, self.sums = state["total"], state["more"]["sums"]


class CountingObjective(Counts):
    def __call__(self, model, x, y):
        return cross_entropy_objective(model, super().__call__(model, x, y), y)


@pytest.mark.parametrize(
    "parts",
    [{"perturb"}, {"objective"}, {"perturb", "objective"}],
    ids=lambda p: " ".join(sorted(p)),
)
def test_the_state_of_perturb_and_objective_is_kept(parts, tmp_path):
    def run(crash_at=None, **options):
        steps, model = itertools.count(1), mlp()
        schedule = lambda epoch: crash() if next(steps) == crash_at else 0.1
        make = {"perturb": Counts, "objective": CountingObjective}
        made = {part: make[part]() for part in parts}
        history = quick_fit(model, 2, schedule=schedule, **made, **options)
        seen = [(part.total, part.sums.tolist()) for part in made.values()]
        return outcome(model, history), seen

    expected = run()
    for crash_at in range(2, 2 * STEPS + 1):
        keep = {"checkpoint": tmp_path / f"{crash_at}.npz", "checkpoint_steps": 1, "resume": True}
        with pytest.raises(Crash):
            run(crash_at, **keep)
        assert run(**keep) == expected
    state = load_state(tmp_path / "2.npz")
    assert set(state["parts"]) == parts


def test_resuming_with_another_kind_of_perturb(tmp_path):
    path, keeps = tmp_path / "a.npz", {"checkpoint": tmp_path / "a.npz", "resume": True}
    quick_fit(mlp(), perturb=Counts(), checkpoint=path)
    with pytest.raises(
        ValueError,
        match=r"defences = \{'perturb': 'Counts'\}, this one has defences = \{\}",
    ):
        quick_fit(mlp(), 2, **keeps)


def test_resuming_with_other_data(tmp_path):
    path = tmp_path / "a.npz"
    quick_fit(mlp(), checkpoint=path)
    less = Dataset("", DATA.x_train[1:], DATA.y_train[1:], DATA.x_test, DATA.y_test, ())
    with pytest.raises(ValueError, match="with examples = 60, this one has examples = 59"):
        quick_fit(mlp(), checkpoint=path, resume=True, data=less)
    save_weights(path, mlp())
    with pytest.raises(ValueError, match=r"not a training state.*\['weights'\]"):
        quick_fit(mlp(), checkpoint=path, resume=True)


def test_resuming_from_a_broken_file(tmp_path):
    path = tmp_path / "a.npz"
    quick_fit(mlp(), checkpoint=path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        quick_fit(mlp(), checkpoint=path, resume=True)


# ---- states with a wrong content -----------------------------------------------------------------

MISSING = object()
WRONG = [
    MISSING, "x", None, [], ["a"], {"a": 1}, 1.5, -3, True, math.nan, -math.inf, np.zeros(77),
    np.array(["a"]), np.zeros(2, complex), np.zeros((1, 1), np.int64),
]  # fmt: skip


def ndarray_bytes(array):
    return str(array.dtype), array.tobytes().hex()


def defended_run(path, bits=np.random.PCG64, at_step=None):
    """A run with all that may have a state: what it raised, and whether it has changed anything."""
    steps, model, watch = itertools.count(1), mlp(), (DATA.x_test[:5], DATA.y_test[:5])
    adam = optim.Adam(model.parameters(), 0.01)
    fast = defenses.Fast(Linf(0.1), watch=watch, every=2, gap=1.0)
    bound = defenses.IntervalBound(0.1, attack=defenses.MinMax(Linf(0.1), steps=1))
    average = optim.WeightAverage(model.parameters(), 0.9)
    objects = (model, adam, fast, bound, average)
    now = lambda: json.dumps([each.state_dict() for each in objects], default=ndarray_bytes)
    before = now()
    try:
        fit(model, DATA, adam, 3, fast, objective=bound, average=average, batch_size=BATCH,
            rng=np.random.Generator(bits(3)), progress=False, validate=False, checkpoint=path,
            checkpoint_steps=1, resume=True,
            schedule=lambda epoch: crash() if next(steps) == at_step else 0.01)  # fmt: skip
    except Exception as error:
        return error, now() != before
    return None, True


def fields(state, *folders):
    """Where the fields of a nested dictionary are."""
    for name, value in state.items():
        yield *folders, name
        if isinstance(value, dict):
            yield from fields(value, *folders, name)


def with_field(state, where, value):
    """A copy of a nested dictionary with another value in one place."""
    name, *rest = where
    if rest:
        return state | {name: with_field(state[name], rest, value)}
    return {n: v for n, v in state.items() if n != name} | (
        {} if value is MISSING else {name: value}
    )


def refused(path, state, where, value, bits=np.random.PCG64):
    """Nothing is changed then, and the error names the file and the field."""
    checkpoint.save_state(path, with_field(state, where, value))
    error, changed = defended_run(path, bits)
    assert type(error) is CheckpointError and not changed, (where, value, error)
    named = [part for part in where if part in str(error)]
    assert str(path) in str(error) and named, (where, value, error)


# Numbers that any run may have: 1.5 is not wrong there.
POSSIBLE = {"initial_lr", "lr", "seconds"}


@pytest.fixture(scope="module")
def mid_epoch(tmp_path_factory):
    """The state of such a run in the middle of its second epoch."""
    path = tmp_path_factory.mktemp("state") / "a.npz"
    error, _ = defended_run(path, at_step=7)
    assert isinstance(error, Crash)
    return load_state(path)


def test_every_field_of_a_state_is_checked(mid_epoch, tmp_path):
    places, path = list(fields(mid_epoch)), tmp_path / "a.npz"
    assert {place[0] for place in places} == mid_epoch.keys() and len(places) > 80
    for number, where in enumerate(places):
        if "rng" in where or where == ("settings", "trained"):
            continue
        # Every value in every place would take minutes: each place gets some of them.
        for value in (MISSING, *WRONG[number % 7 :: 7]):
            if not (where[-1] in POSSIBLE and value is WRONG[6]):
                refused(path, mid_epoch, where, value)


@pytest.mark.parametrize(
    ("where", "values"),
    [
        ("epoch", [2, 10**6, 1.0, 10**400]),
        ("step", [0, 5, 10**6]),
        ("order", [None, np.arange(59), np.arange(61), np.zeros(60, np.int64), np.arange(60.0)]),
        ("history epoch", [[2], [1, 2]]),
        ("history loss", [[], [0.1, 0.2], ["a"]]),
        ("history append", [[1.0]]),
        ("sums", [{}]),
        ("sums loss", [[math.nan, 32], [1.0, 0], [1.0, 1.5], [1.0]]),
        ("weights 1.weight", [np.full((8, 16), np.nan), np.zeros((16, 8), np.float32)]),
        ("parts perturb looks", [[[1, 2, 3]], ["a"], [1]]),
        ("parts perturb overfitted", [0]),
        ("settings batch_size", [15]),
        ("settings defences", [{}]),
        ("optimizer kind", ["SGD"]),
        ("optimizer steps", [10**400]),
        ("optimizer lr", [10**400]),
        ("seconds", [10**400]),
        ("history lr", [[10**400]]),
        ("optimizer options beta1", [0.5, np.zeros(2)]),
    ],
)
def test_what_contradicts_the_rest_of_the_state_is_refused(mid_epoch, tmp_path, where, values):
    for value in values:
        refused(tmp_path / "a.npz", mid_epoch, where.split(), value)


@pytest.mark.parametrize(
    ("bits", "wrong"),
    [
        (np.random.PCG64, {"state inc": -1, "uinteger": 1 << 32, "has_uint32": 2}),
        (np.random.MT19937, {"state pos": 625, "state key": np.zeros(623, np.uint32)}),
        (np.random.Philox, {"buffer_pos": 5, "buffer": np.zeros(3, np.uint64)}),
        (np.random.SFC64, {"state state": np.zeros(3, np.uint64)}),
    ],
)
def test_the_state_of_a_generator_is_checked(bits, wrong, tmp_path):
    path = tmp_path / "a.npz"
    error, _ = defended_run(path, bits, at_step=7)
    assert isinstance(error, Crash)
    state = load_state(path)
    for where in fields(state["rng"]):
        for value in (MISSING, "x", None, -1, 1.5, math.nan, [], np.full(7, 0.5)):
            refused(path, state, ("rng", *where), value, bits)
    for where, value in wrong.items():
        refused(path, state, ("rng", *where.split()), value, bits)
    for part in ("perturb", "objective"):
        refused(path, state, ("parts", part, "rng", "has_uint32"), 3, bits)
    checkpoint.save_state(path, state)
    assert defended_run(path, bits)[0] is None


def test_a_part_that_refuses_its_state_in_its_own_words(tmp_path):
    path, counts = tmp_path / "a.npz", Counts()
    quick_fit(mlp(), perturb=Counts(), checkpoint=path)
    state = load_state(path)
    checkpoint.save_state(path, with_field(state, ("parts", "perturb", "total"), MISSING))
    model = mlp()
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: ") + ".*perturb.*total"):
        quick_fit(model, 2, perturb=counts, checkpoint=path, resume=True)
    assert counts.total == 0 and outcome(model, History()) == outcome(mlp(), History())


# ---- Ctrl-C --------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c():
    """What the user's Ctrl-C does; ``fit`` must put the handler back that it found."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    after = signal.signal(signal.SIGINT, before)
    assert after is signal.default_int_handler


@pytest.mark.parametrize("progress", [False, True])
def test_ctrl_c_saves_once_and_validates_nothing(ctrl_c, progress, tmp_path, monkeypatch, capsys):
    saved, validated = [], []
    save = lambda path, state: saved.append((state["epoch"], state["step"]))
    monkeypatch.setattr(checkpoint, "save_state", save)
    steps = itertools.count(1)
    with pytest.raises(KeyboardInterrupt, match="stopped in epoch 1"):
        quick_fit(
            mlp(), 2, lambda model, x, y: ctrl_c() or x if next(steps) == STEPS else x,
            checkpoint=tmp_path / "a.npz", checkpoint_steps=STEPS, progress=progress,
            validate=lambda model: validated.append(model) or 0.0,
        )  # fmt: skip
    assert saved == [(0, STEPS)] and validated == []
    assert capsys.readouterr().out == ""  # the epoch is not over


@pytest.mark.parametrize("at_step", [1, 4, 6, 12])
def test_ctrl_c_saves_the_state(ctrl_c, at_step, tmp_path):
    path = tmp_path / "a.npz"
    epoch = (at_step - 1) // STEPS
    message = re.escape(f"stopped in epoch {epoch + 1}: state saved in {path}")
    with pytest.raises(KeyboardInterrupt, match=message):
        noisy_run(checkpoint=path, at_step=at_step, action=ctrl_c)
    state = load_state(path)
    assert (state["epoch"], state["step"]) == (epoch, at_step - epoch * STEPS)  # it was finished
    assert noisy_run(checkpoint=path, resume=True) == noisy_run()


def test_ctrl_c_without_a_checkpoint(ctrl_c):
    with pytest.raises(KeyboardInterrupt, match="stopped in epoch 2: no state kept"):
        noisy_run(at_step=5, action=ctrl_c)


@pytest.mark.parametrize("epoch", [1, 3])
def test_ctrl_c_during_the_validation(ctrl_c, epoch, tmp_path):
    class Interrupted(Module):
        """Its user has had enough when it is validated the n-th time."""

        def __init__(self):
            self.net = mlp()
            self.validations = 0

        def __call__(self, x):
            if len(x) == len(DATA.x_test):
                self.validations += 1
                if self.validations == epoch:
                    ctrl_c()
            return self.net(x)

    path = tmp_path / "a.npz"
    with pytest.raises(KeyboardInterrupt, match=f"stopped after epoch {epoch}: state saved in"):
        noisy_run(make=Interrupted, checkpoint=path)
    assert load_state(path)["epoch"] == epoch
    epoch = None
    assert noisy_run(make=Interrupted, checkpoint=path, resume=True) == noisy_run(make=Interrupted)


def test_a_second_ctrl_c_does_not_wait(ctrl_c, tmp_path):
    def twice():
        ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()
        crash()

    with pytest.raises(Crash):
        noisy_run(at_step=2, action=twice, checkpoint=tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()


def test_an_error_puts_the_handler_back(ctrl_c):
    with pytest.raises(Crash):  # ctrl_c checks the handler at the end
        noisy_run(at_step=2, action=crash)


@pytest.mark.parametrize("handler", [None, signal.SIG_IGN], ids=["foreign", "ignored"])
def test_another_programs_handling_of_ctrl_c_stays(monkeypatch, handler):
    """None is a handler that was not installed from Python, and could not be put back."""
    monkeypatch.setattr(signal, "getsignal", lambda number: handler)
    monkeypatch.setattr(signal, "signal", lambda *args: pytest.fail("the handler is changed"))
    assert quick_fit(mlp()).epoch == [1]


@pytest.mark.parametrize("place", ["perturb", "objective", "validate"])
def test_ctrl_c_in_a_fit_within_another_one(ctrl_c, place, tmp_path):
    """The outer one completes its step and saves its state; the inner one is part of the step."""
    times, inner = itertools.count(1), []

    def within(model, x=None, y=None):
        steps, second = itertools.count(1), next(times) == 2
        press = lambda epoch: (ctrl_c() if second and next(steps) == 2 else None) or 0.1
        inner.append(quick_fit(mlp(), schedule=press).epoch)
        if place == "objective":
            return cross_entropy_objective(model, x, y)
        return x if place == "perturb" else 0.5

    path, model = tmp_path / "a.npz", mlp()
    with pytest.raises(KeyboardInterrupt, match="state saved in"):
        quick_fit(model, 3, **{place: within}, checkpoint=path)
    assert inner == [[1], [1]]
    state = load_state(path)
    assert (state["epoch"], state["step"]) == ((2, 0) if place == "validate" else (0, 2))
    after = model.state_dict()
    assert all((after[name] == weights).all() for name, weights in state["weights"].items())


def test_fit_in_a_thread(ctrl_c):
    """Only the main thread may handle signals."""
    results = []
    thread = threading.Thread(target=lambda: results.append(noisy_run()))
    thread.start()
    thread.join()
    assert results == [noisy_run()]


# ---- processes that die --------------------------------------------------------------------------

posix = pytest.mark.skipif(os.name != "posix", reason="kills processes as Unix does")


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


def process_run(folder, moment, count, pipe):
    """In a process of its own: train or go on, and die at the ``count``-th time of ``moment``."""
    times = itertools.count(1)

    def dying(function):
        def call(*args):
            if next(times) == count:
                kill_me()
            return function(*args)

        return call

    def pause():
        if next(times) == count:
            pipe.send("here")
            pipe.recv()  # go on when told so

    if moment in ("fsync", "replace"):  # a new state is written, but not in its place
        setattr(os, moment, dying(getattr(os, moment)))
    if moment == "validation":
        train.accuracy = dying(train.accuracy)
    try:
        result = noisy_run(action={"step": dying(int), "pause": pause}.get(moment),
                           checkpoint=folder / "state.npz", checkpoint_steps=2,
                           resume=True)  # fmt: skip
    except KeyboardInterrupt as interrupt:
        result = str(interrupt)
    (folder / "result").write_text(repr(result))


def start(folder, moment="never", count=0):
    """The process, and a pipe to it."""
    pipe, other = processes.fast.Pipe()
    process = processes.fast.Process(target=process_run, args=(folder, moment, count, other))
    process.start()
    return process, pipe


def end_of(process):
    """How the process ended."""
    process.join()
    return process.exitcode


def assert_finished(folder):
    """The run comes to its end, and that is the end of a run without interruptions."""
    process, _ = start(folder)
    assert end_of(process) == 0
    assert (folder / "result").read_text() == repr(noisy_run())


@posix
def test_killed_at_many_moments(tmp_path):
    # States are written at every second step and after each epoch's validation. Each line: the
    # moment, which one of its kind in that process, and the epoch and step that are safe by then.
    for moment, count, safe in [
        ("step", 2, None),
        ("fsync", 2, (0, 2)),
        ("replace", 1, (0, 2)),
        ("step", 4, (1, 0)),
        ("validation", 1, (1, 4)),
        ("fsync", 2, (2, 0)),
        ("validation", 1, (2, 4)),
        ("replace", 1, (2, 4)),
    ]:
        process, _ = start(tmp_path, moment, count)
        assert end_of(process) == -signal.SIGKILL
        state = load_state(tmp_path / "state.npz") if safe else None
        assert safe is None or (state["epoch"], state["step"]) == safe
    assert_finished(tmp_path)


@posix
def test_killed_from_outside(tmp_path):
    for step in (3, 4):  # of each process; the second one goes on where the first has saved
        process, pipe = start(tmp_path, "pause", step)
        assert pipe.recv() == "here"
        process.kill()
        assert end_of(process) == -signal.SIGKILL
    assert load_state(tmp_path / "state.npz")["epoch"] == 1
    assert_finished(tmp_path)


@posix
def test_ctrl_c_from_outside(tmp_path):
    path = tmp_path / "state.npz"
    process, pipe = start(tmp_path, "pause", 3)
    assert pipe.recv() == "here"
    os.kill(process.pid, signal.SIGINT)
    pipe.send("go on")
    assert end_of(process) == 0
    message = f"stopped in epoch 1: state saved in {path}"
    assert (tmp_path / "result").read_text() == repr(message)
    assert load_state(path)["step"] == 3
    assert_finished(tmp_path)


# ---- random numbers of perturb -------------------------------------------------------------------


class Starts:
    """An attack that remembers its noise."""

    def __init__(self):
        self.seen = []

    def __call__(self, model, x, y, *, scale=0.1, rng=0):
        self.seen.append(np.random.default_rng(rng).random(x.shape).astype(np.float32))
        return x + np.float32(scale) * self.seen[-1]

    def method(self, model, x, y, rng):
        return self(model, x, y, rng=rng)

    def objective(self, model, x, y, rng=0):
        return cross_entropy_objective(model, self(model, x, y, rng=rng), y)


def distinct(seen):
    return len({noise.tobytes() for noise in seen})


@pytest.mark.parametrize(
    "given",
    [
        lambda starts: {"perturb": starts},
        lambda starts: {"perturb": partial(starts, scale=0.2)},
        lambda starts: {"perturb": partial(partial(starts), scale=0.2)},
        lambda starts: {"perturb": starts.method},
        lambda starts: {"objective": starts.objective},
    ],
)
def test_a_generator_that_is_not_set_is_that_of_the_run(given, tmp_path):
    def run(**options):
        starts, model = Starts(), mlp()
        history = quick_fit(model, 2, **given(starts), **options)
        return outcome(model, history), starts.seen

    expected, seen = run()
    assert len(seen) == distinct(seen) == 2 * STEPS
    assert run()[0] == run(rng=0)[0] == expected != run(rng=1)[0]
    path, steps = tmp_path / "a.npz", itertools.count(1)
    with pytest.raises(Crash):
        run(checkpoint=path, checkpoint_steps=1,
            augment=lambda x, rng: x if next(steps) < 7 else crash())  # fmt: skip
    assert run(checkpoint=path, resume=True)[0] == expected


@pytest.mark.parametrize("rng", [0, None])
def test_a_generator_that_is_set_stays(rng):
    starts = Starts()
    seeds = partial(starts, rng=rng)
    wrapped = functools.wraps(starts.method)(lambda model, x, y: seeds(model, x, y))
    for perturb in (seeds, wrapped, lambda model, x, y: seeds(model, x, y)):
        starts.seen.clear()
        quick_fit(mlp(), perturb=perturb)
        assert distinct(starts.seen[:3]) == (1 if rng == 0 else 3)


def test_an_attack_draws_new_noise_in_each_step():
    seen = []

    def objective(model, x, y):
        seen.append(x)
        return cross_entropy_objective(model, x, y)

    images = np.full((48, 1, 4, 4), 0.5, np.float32)
    grey = Dataset("grey", images, np.zeros(48, int), None, None, ())
    attack = partial(attacks.pgd, ball=Linf(0.1), steps=1, step_size=1e-3)  # a random start
    quick_fit(mlp(), perturb=attack, objective=objective, data=grey, validate=False)
    assert len(seen) == distinct(seen) == 3


def test_an_objective_in_the_place_of_perturb_is_named():
    with pytest.raises(TypeError, match="goes into objective="):
        quick_fit(mlp(), 1, cross_entropy_objective)


def test_perturb_returns_arrays():
    with pytest.raises(TypeError, match=r"perturb must return an array.*got Tensor"):
        quick_fit(mlp(), 1, lambda model, x, y: Tensor(x))


# ---- frozen layers -------------------------------------------------------------------------------


@pytest.mark.parametrize("perturb", [None, Repeated(2)], ids=["a step", "steps of its own"])
def test_an_optimizer_of_some_parameters_freezes_the_others(xp, monkeypatch, perturb):
    wanted, rule = [], ops.dense.vjp
    count = lambda which, *rest, **how: wanted.append(tuple(which)) or rule(which, *rest, **how)
    monkeypatch.setattr(ops.dense, "vjp", count)
    model = mlp(xp)
    before, last = model.state_dict(), model.parameters()[:1:-1]  # the last bias, the last weight
    optimizer = optim.Adam(last, 0.05)
    history = fit(model, DATA, optimizer, 3, perturb, batch_size=BATCH, progress=False)
    after = model.state_dict()
    for name in ("1.weight", "1.bias"):
        assert before[name].tobytes() == after[name].tobytes()
    for name in ("3.weight", "3.bias"):
        assert (before[name] != after[name]).any()
    assert history.loss[-1] < 0.9 * history.loss[0]
    # The walk back ends at the last layer: argument 0 would be the activations before it.
    assert set(wanted) == {(1, 2)} and len(wanted) == optimizer.steps


def test_frozen_layers_are_those_of_the_loop_written_out():
    model, by_hand = mlp(), mlp()
    fit(model, DATA, optim.SGD(model.parameters()[2:], 0.1), 1, batch_size=60, progress=False)
    order = np.random.default_rng(0).permutation(60)
    params = by_hand.parameters()[2:]
    loss = cross_entropy(by_hand(DATA.x_train[order]), DATA.y_train[order])
    for p, g in zip(params, grad(loss, params), strict=True):
        p.value = p.value - np.float32(0.1) * g
    assert outcome(model, History())[0] == outcome(by_hand, History())[0]


def some_fit(path, params, epochs=1, **options):
    """Adam for some of the parameters, from a checkpoint if there is one."""
    model = mlp()
    optimizer = optim.Adam(params(model.parameters()), 0.01)
    how = {"batch_size": BATCH, "checkpoint": path, "resume": True, "progress": False} | options
    return outcome(model, fit(model, DATA, optimizer, epochs, **how))


def test_frozen_layers_resume_and_are_part_of_the_settings(tmp_path):
    last = lambda params: params[2:]
    some_fit(tmp_path / "a.npz", last)
    found = some_fit(tmp_path / "a.npz", last, epochs=2)
    assert found == some_fit(tmp_path / "b.npz", last, epochs=2)
    for others in (lambda params: params, lambda params: params[:2], lambda params: params[:1:-1]):
        with pytest.raises(ValueError, match=r"trained = \['3.weight', '3.bias'\]"):
            some_fit(tmp_path / "a.npz", others, epochs=3)


# ---- validation and other numbers ----------------------------------------------------------------


def test_a_validation_of_ones_own(xp, capsys):
    model, seen = mlp(xp), []

    def validate(net):
        assert net is model
        seen.append(len(seen))
        return {"robust_accuracy": np.float64(seen[-1] / 4), "kl": xp.asarray(3.0)}

    untested = Dataset("blobs", DATA.x_train, DATA.y_train, None, None, classes=DATA.classes)
    history = quick_fit(model, 3, validate=validate, data=untested, progress=True)
    assert history.robust_accuracy == [0, 0.25, 0.5] and history.kl == [3, 3, 3]
    assert all(type(v) is float for v in history.robust_accuracy + history.kl)
    assert str(history.test_accuracy) == "[nan, nan, nan]"
    assert "robust_accuracy 0.25" in capsys.readouterr().out
    assert "robust_accuracy=[0.0, 0.25, 0.5]" in repr(history)


def test_a_validation_that_returns_a_number_is_the_test_accuracy():
    assert quick_fit(mlp(), 2, validate=lambda model: 0.5).test_accuracy == [0.5, 0.5]
    history = quick_fit(mlp(), 1, validate=lambda model: {"test_accuracy": 0.5, "other": 2})
    assert history.test_accuracy == [0.5] and history.other == [2]


def test_the_validation_records_nothing():
    class Net(Module):
        by_example = True

        def __init__(self):
            self.net = mlp()

        def __call__(self, x):
            z = self.net(x)
            recorded.append((len(x), isinstance(z, Tensor)))
            return z

    recorded = []
    quick_fit(Net(), 1)
    assert recorded == 3 * [(16, True)] + [(12, True), (30, False)]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"validate": lambda model: {"loss": 1.0}}, ValueError, "validate .*'loss'"),
        ({"validate": lambda model: {"plot": 1.0}}, ValueError, "'plot'"),
        ({"validate": lambda model: {"two words": 1.0}}, ValueError, "'two words'.*identifier"),
        ({"validate": lambda model: {"a": np.ones(2)}}, TypeError, "numbers, got ndarray for a"),
        ({"validate": lambda model: None}, TypeError, "numbers, got NoneType"),
        ({"objective": lambda m, x, y: (*cross_entropy_objective(m, x, y), {"epoch": 1})},
         ValueError, "objective .*'epoch'"),
        ({"objective": lambda m, x, y: (*cross_entropy_objective(m, x, y), {"a": m(x)})},
         TypeError, "numbers, got ndarray for a: take a mean"),
        ({"objective": lambda m, x, y: (*cross_entropy_objective(m, x, y), 1.0)},
         TypeError, "got Tensor, Tensor, float"),
        ({"objective": lambda m, x, y: (*cross_entropy_objective(m, x, y), {"a": 1.0}),
          "validate": lambda model: {"a": 1.0}}, ValueError, "validate .*'a'"),
        ({"average": "0.9"}, ValueError, "decay .* from 0 to 1.* got '0.9'"),
        ({"average": 1.5}, ValueError, "decay .* from 0 to 1.* got 1.5"),
    ],
)  # fmt: skip
def test_names_and_numbers_that_make_no_sense(options, kind, message):
    with pytest.raises(kind, match=message):
        quick_fit(mlp(), **options)


class Named:
    """The usual objective, with numbers of different kinds."""

    def __init__(self, xp=np):
        self.xp, self.seen = xp, []

    def __call__(self, model, x, y):
        loss, logits = cross_entropy_objective(model, x, y)
        self.seen.append(len(x))
        return loss, logits, {"size": len(x), "twice": 2 * loss, "mean": logits.value.mean()}


def test_numbers_of_the_objective_are_averaged_over_the_epoch(xp):
    model, plain = mlp(xp), mlp(xp)
    history = quick_fit(model, 2, objective=Named(xp))
    expected = quick_fit(plain, 2)
    assert outcome(model, History())[0] == outcome(plain, History())[0]
    assert history.loss == expected.loss
    assert history.size == [(3 * 16 * 16 + 12 * 12) / 60] * 2
    assert history.twice == pytest.approx([2 * loss for loss in history.loss])
    assert len(history.mean) == 2 and all(type(v) is float for v in history.mean + history.size)


def test_numbers_of_the_objective_do_not_make_a_device_wait(device):
    def syncs(batch_size):
        with device.count() as c:
            quick_fit(mlp(device), 2, batch_size=batch_size, objective=Named(device))
        return c.syncs

    if not hasattr(device, "count"):
        pytest.skip("only the stand-in counts")
    assert syncs(batch_size=3) == syncs(batch_size=30)


@pytest.mark.parametrize("checkpoint_steps", [None, 3])
def test_named_numbers_resume(checkpoint_steps, tmp_path):
    def objective(model, x, y):
        numbers = {"mean": x.mean(), **({"late": x.max()} if len(x) < BATCH else {})}
        return *cross_entropy_objective(model, x, y), numbers

    how = {
        "objective": objective,
        "validate": lambda model: {"weight": model[1].weight.value[0, 0]},
    }
    expected = noisy_run(**how)
    assert set(expected[1]) >= {"mean", "late", "weight"}
    for at_step in range(1, EPOCHS * STEPS + 1):
        keep = {"checkpoint": tmp_path / f"{at_step}.npz", "checkpoint_steps": checkpoint_steps}
        with pytest.raises(Crash):
            noisy_run(at_step=at_step, action=crash, resume=True, **keep, **how)
        assert noisy_run(resume=True, **keep, **how) == expected


def test_a_history_takes_new_columns_later(tmp_path):
    path = tmp_path / "a.npz"
    quick_fit(mlp(), 1, checkpoint=path)
    history = quick_fit(mlp(), 3, checkpoint=path, resume=True, validate=lambda model: {"new": 7})
    assert math.isnan(history.new[0]) and history.new[1:] == [7, 7]
    assert not math.isnan(history.test_accuracy[0]) and math.isnan(history.test_accuracy[1])
    assert History(epoch=[1]) == History(epoch=[1]) != History()


# ---- an average of the weights -------------------------------------------------------------------


def averaged_fit(decay, epochs=2, xp=np, **options):
    model = mlp(xp)
    return model, quick_fit(model, epochs, average=decay, **options)


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.999, 1])
def test_the_model_ends_with_averaged_weights(xp, decay):
    weights = []

    class Noted(optim.SGD):
        def step(self, grads):
            super().step(grads)
            weights.append([to_numpy(p).copy() for p in self.params])

    plain, validated = mlp(xp), []
    optimizer = Noted(plain.parameters(), 0.1)
    fit(plain, DATA, optimizer, 2, batch_size=BATCH, progress=False)

    means, expected = weights[0], []
    for t, now in enumerate(weights):
        d = min(decay, t / (t + 1))
        means = [d * mean + (1 - d) * w for mean, w in zip(means, now, strict=True)]
        if t % STEPS == STEPS - 1:
            expected.append(means)
    validate = lambda model: validated.append([to_numpy(p).copy() for p in model.parameters()]) or 0
    model, _ = averaged_fit(decay, xp=xp, validate=validate)
    for found, end in zip([*validated, model.parameters()], [*expected, means], strict=True):
        for p, mean in zip(found, end, strict=True):
            np.testing.assert_allclose(to_numpy(p), mean, rtol=1e-5, atol=1e-7)
    if decay == 1:  # the plain mean
        mean = np.mean([now[0] for now in weights], axis=0)
        np.testing.assert_allclose(to_numpy(model.parameters()[0]), mean, rtol=1e-5, atol=1e-7)


def test_an_average_changes_no_step():
    model, history = averaged_fit(0.9)
    plain = mlp()
    expected = quick_fit(plain, 2)
    assert history.loss == expected.loss and history.test_accuracy != expected.test_accuracy
    assert outcome(model, history)[0] != outcome(plain, history)[0]
    average = optim.WeightAverage((other := mlp()).parameters(), 0.9)  # keeps both
    quick_fit(other, 2, average=average)
    assert outcome(other, history)[0] == outcome(model, history)[0]
    average.swap()
    assert outcome(other, history)[0] == outcome(plain, history)[0]
    assert outcome(*averaged_fit(0.9, epochs=0)) == outcome(mlp(), History())
    model, _ = averaged_fit(0.9, perturb=Repeated(2))  # every update counts, not every batch
    assert outcome(model, history)[0] != outcome(averaged_fit(0.9)[0], history)[0]


@pytest.mark.parametrize(
    ("kind", "checkpoint_steps"), [("SGD", 3), ("Adam", None), ("Adam", 1), ("Adam", 3)]
)
def test_an_average_resumes_with_the_same_bits(kind, checkpoint_steps, tmp_path):
    expected = noisy_run(kind, average=0.8)
    for at_step in range(1, EPOCHS * STEPS + 1, 2):
        keep = {"checkpoint": tmp_path / f"{at_step}.npz", "checkpoint_steps": checkpoint_steps}
        with pytest.raises(Crash):
            noisy_run(kind, at_step=at_step, action=crash, resume=True, average=0.8, **keep)
        assert noisy_run(kind, resume=True, average=0.8, **keep) == expected
    assert noisy_run(kind, resume=True, average=0.8, **keep) == expected  # there is nothing to do
    model = mlp()
    load_weights(keep["checkpoint"], model)  # the averaged ones
    assert outcome(model, History())[0] == expected[0]


def test_an_average_on_a_device(device, tmp_path):
    keep = {"checkpoint": tmp_path / "a.npz", "checkpoint_steps": 3}
    steps = itertools.count(1)
    with pytest.raises(Crash):
        averaged_fit(0.8, xp=device, **keep,
                     perturb=lambda model, x, y: x if next(steps) < 6 else crash())  # fmt: skip
    expected = averaged_fit(0.8, xp=device)
    assert outcome(*averaged_fit(0.8, xp=device, resume=True, **keep)) == outcome(*expected)
    host, _ = averaged_fit(0.8)
    for p, q in zip(host.parameters(), expected[0].parameters(), strict=True):
        assert array_module(q.value) is device
        np.testing.assert_allclose(to_numpy(q), p.value, rtol=1e-4, atol=1e-6)


def test_an_average_belongs_to_one_run_and_one_model():
    model = mlp()
    average = optim.WeightAverage(model.parameters(), 0.9)
    for other in (mlp(), cnn()):
        with pytest.raises(ValueError, match="4 of the average's 4 parameters do not belong"):
            quick_fit(other, average=average)
    quick_fit(model, average=average)
    before = model.state_dict()
    with pytest.raises(ValueError, match="make a new WeightAverage"):
        quick_fit(model, average=average)
    assert outcome(model, History())[0] == {name: w.tobytes() for name, w in before.items()}
    quick_fit(model, 0, average=(unused := optim.WeightAverage(model.parameters())))
    with pytest.raises(ValueError, match="make a new WeightAverage"):
        quick_fit(model, average=unused)


def test_an_average_of_some_weights(tmp_path):
    last = lambda params: params[2:]
    found = some_fit(tmp_path / "a.npz", last, 2, average=0.5)
    assert found[0]["1.weight"] == mlp().state_dict()["1.weight"].tobytes()
    assert found[0] != some_fit(tmp_path / "b.npz", last, 2)[0]


def test_an_average_belongs_to_the_settings(tmp_path):
    path = tmp_path / "a.npz"
    averaged_fit(0.9, checkpoint=path)
    with pytest.raises(ValueError, match=r"decay = 0.9, this one has decay = 0.8"):
        averaged_fit(0.8, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match=r"'average': 'WeightAverage'.*this one has"):
        averaged_fit(None, checkpoint=path, resume=True)


def test_an_error_leaves_the_weights_of_the_last_step(tmp_path):
    def validate(model):
        raise Crash

    model, plain = mlp(), mlp()
    with pytest.raises(Crash):
        quick_fit(model, average=0.9, validate=validate)
    quick_fit(plain)
    assert outcome(model, History()) == outcome(plain, History())


# ---- states of the format before -----------------------------------------------------------------


def older(path, **settings):
    """Rewrite a state as version 0.1 wrote it."""
    state = load_state(path)
    (loss, _), (correct, _) = (state["sums"].get(k, (0.0, 0)) for k in ("loss", "train_accuracy"))
    state.pop("sums")
    state["settings"].pop("trained")
    state["settings"] |= {"replays": 1} | settings
    checkpoint.save_state(path, state | {"loss_sum": loss, "correct": int(correct)})


@pytest.mark.parametrize("at_step", [2, 4, 7])
def test_an_older_state_resumes(at_step, tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(Crash):
        noisy_run(at_step=at_step, action=crash, checkpoint=path, checkpoint_steps=1)
    older(path)
    assert noisy_run(checkpoint=path, resume=True) == noisy_run()


@pytest.mark.parametrize("bits", [np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_an_older_state_of_a_generator_resumes(bits, tmp_path):
    def lists(part):
        if isinstance(part, dict):
            return {key: lists(value) for key, value in part.items()}
        return part.tolist() if isinstance(part, np.ndarray) else part

    keep = {"bits": bits, "checkpoint": tmp_path / "a.npz", "checkpoint_steps": 2}
    with pytest.raises(Crash):
        noisy_run(at_step=7, action=crash, **keep)
    state = load_state(keep["checkpoint"])
    checkpoint.save_state(keep["checkpoint"], state | {"rng": lists(state["rng"])})
    assert noisy_run(resume=True, **keep) == noisy_run(bits=bits)


def test_an_older_state_of_repeated_steps_is_refused(tmp_path):
    path, model = tmp_path / "a.npz", mlp()
    quick_fit(mlp(), checkpoint=path)
    older(path, replays=8)
    with pytest.raises(ValueError, match="earlier version"):
        quick_fit(model, 2, checkpoint=path, resume=True)
    assert outcome(model, History()) == outcome(mlp(), History())
