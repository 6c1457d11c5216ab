"""What public functions accept and refuse, and that predictions record no tape."""

import inspect
import re
import warnings

import numpy as np
import pytest

from tinyadv import (
    Tensor,
    array_module,
    evaluate,
    fit,
    inputs,
    layers,
    models,
    ops,
    optim,
    parallel,
    to_numpy,
)
from tinyadv.attacks import AttackWarning, pgd
from tinyadv.balls import L1, L2, Ball, Linf
from tinyadv.data import Dataset

same = np.testing.assert_array_equal

RNG = np.random.default_rng(0)
X = RNG.random((7, 1, 3, 3), np.float32)
WEIGHTS = RNG.standard_normal((4, 9)).astype(np.float32)


def linear(xp=np, by_example=True):
    """Logits (N, 4), from arrays or tensors of the backend ``xp``."""
    w = xp.asarray(WEIGHTS)

    def model(x):
        return ops.dense(ops.reshape(x, (len(x), -1)), w)

    model.by_example = by_example
    return model


LOGITS = linear()(X)
Y = LOGITS.argmax(1)


class Watched:
    """A model that remembers what it was given."""

    def __init__(self, model, by_example):
        self.model, self.by_example, self.given = model, by_example, []

    def __call__(self, x):
        self.given.append((len(x), isinstance(x, Tensor)))
        return self.model(x)


@pytest.fixture
def recorded(monkeypatch):
    """A list that grows with each operation that is recorded on a tape."""
    operations, init = [], Tensor.__init__

    def counted(self, value, operation=None, *rest, **settings):
        if operation is not None:
            operations.append(operation)
        init(self, value, operation, *rest, **settings)

    monkeypatch.setattr(Tensor, "__init__", counted)
    return operations


# ---- the inputs of an attack ---------------------------------------------------------------------


def test_checked_returns_what_it_was_given_on_the_backend_of_x(xp):
    x, model = xp.asarray(X), linear(xp)
    for labels in (Y, Y.tolist(), Y.astype(np.uint8), xp.asarray(Y)):
        found = inputs.checked(model, x, labels, (Y + 1) % 4)
        assert found.x is x
        assert array_module(found.y) is array_module(found.target) is xp
        same(to_numpy(found.y), Y)
        same(to_numpy(found.target), (Y + 1) % 4)
    y = xp.asarray(Y)  # a user's loss may write into the labels that it is given
    assert inputs.checked(model, x, y).y is not y and inputs.checked(model, x, y).target is None
    wrong = inputs.checked(model, x, (Y + 1) % 4)  # labels need not be the predictions
    same(to_numpy(wrong.y), (Y + 1) % 4)


@pytest.mark.parametrize(
    ("logits", "got"),
    [
        ([[0.0] * 4] * 7, "list"),
        (None, "NoneType"),
        (np.zeros(7), r"\(7,\)"),
        (np.zeros((6, 4)), r"\(6, 4\)"),
        (np.zeros((7, 0)), r"\(7, 0\)"),
        (np.zeros((7, 4), complex), "complex128"),
        (np.zeros((7, 4), object), "object"),
        (np.zeros((7, 4), np.longdouble), "128"),
    ],
)
def test_what_is_not_logits_is_refused_wherever_it_is_needed(logits, got):
    for function in (inputs.predict, inputs.all_logits, inputs.checked, inputs.checked_logits):
        with pytest.raises(ValueError, match=rf"must return logits \(N, K\).* 7 images.*{got}"):
            function(lambda x: logits if len(x) == 7 else logits[:1], X)


@pytest.mark.parametrize("target", [2, np.int64(2)])
def test_one_target_for_all(xp, target):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)
        found = inputs.checked(linear(xp), xp.asarray(X), None, target)
    same(to_numpy(found.target), np.full(7, 2))


@pytest.mark.parametrize("by_example", [True, False])
def test_without_labels_the_predictions_are_taken(xp, by_example):
    model = Watched(linear(xp), by_example)
    found = inputs.checked(model, xp.asarray(X))
    same(to_numpy(found.y), Y)
    # One image as a tensor and then all of them, or all at once.
    assert model.given == ([(1, True), (7, False)] if by_example else [(7, True)])


def test_what_is_checked_is_not_checked_again():
    def never(x):
        raise AssertionError("there is nothing to check")

    given = inputs.Checked(X, Y)
    assert inputs.checked(never, given) is given
    assert given.target is None
    model = linear()
    same(pgd(model, inputs.Checked(X, Y), steps=2), pgd(model, X, Y, steps=2))


def test_a_target_that_is_the_label_is_noticed(xp):
    target = Y.copy()
    target[2:] = (Y[2:] + 1) % 4
    with pytest.warns(AttackWarning, match="target of 2 of 7"):
        inputs.checked(linear(xp), xp.asarray(X), Y, target)


def test_errors_of_checked_name_what_is_wrong():
    model = linear()
    with pytest.raises(ValueError, match=r"x must have .* 0 to 1"):
        inputs.checked(model, 2 * X, Y)
    with pytest.raises(ValueError, match=r"y must be from 0 to 3.* 4 logits.*from 4 to 4"):
        inputs.checked(model, X, np.full(7, 4))
    with pytest.raises(ValueError, match=r"target must be from 0 to 3.*from -1 to -1"):
        inputs.checked(model, X, Y, -1)
    with pytest.raises(ValueError, match=r"target must be integers of shape \(7,\).*\(3,\)"):
        inputs.checked(model, X, Y, Y[:3])


# ---- the same with the logits --------------------------------------------------------------------


@pytest.mark.parametrize("by_example", [True, False])
@pytest.mark.parametrize("y", [None, (Y + 1) % 4], ids=["predictions", "labels"])
def test_checked_logits_takes_a_single_pass_with_arrays(xp, by_example, y):
    model = Watched(linear(xp), by_example)
    x = xp.asarray(X)
    found, logits = inputs.checked_logits(model, x, y)
    assert model.given == [(7, False)]
    assert found.x is x and found.target is None and array_module(found.y) is xp
    same(to_numpy(found.y), Y if y is None else y)
    np.testing.assert_allclose(to_numpy(logits), LOGITS, rtol=1e-6)
    model.given.clear()
    inputs.checked_logits(model, x, y, 3)
    assert [n for n, _ in model.given] == [3, 3, 1]


def test_checked_logits_of_what_is_checked():
    given = inputs.Checked(2 * X, Y + 9)  # anything, as nobody looks at it
    found, logits = inputs.checked_logits(linear(), given)
    assert found is given
    np.testing.assert_allclose(logits, 2 * LOGITS, rtol=1e-6)


def test_errors_of_checked_logits():
    with pytest.raises(ValueError, match=r"x must have .* 0 to 1"):
        inputs.checked_logits(linear(), X - 1)
    with pytest.raises(ValueError, match="y must be from 0 to 3"):
        inputs.checked_logits(linear(), X, Y + 4)
    with pytest.raises(ValueError, match=r"NaN .* for 6 of 7 images"):
        inputs.checked_logits(lambda x: np.where(np.arange(len(x)) > 0, np.nan, LOGITS.T).T, X)
    with pytest.raises(ValueError, match="batch_size"):
        inputs.checked_logits(linear(), X, batch_size=0)


def test_a_warning_points_to_the_line_that_called_the_library():
    softmax = lambda x: ops.softmax(linear()(x), axis=1)
    for call in (
        lambda: inputs.checked_logits(softmax, X),
        lambda: inputs.checked(softmax, X),
        lambda: evaluate.robustness(softmax, X, Y, {"none": lambda model, x, y: x}),
    ):
        with pytest.warns(AttackWarning, match="probabilities") as caught:
            call()
        (line,) = {warning.lineno for warning in caught}
        lines, start = inspect.getsourcelines(call)
        assert caught[0].filename == __file__ and start <= line < start + len(lines)


def test_a_warning_of_any_kind_and_with_no_caller_outside():
    with pytest.warns(UserWarning, match="own kind") as caught:
        inputs.warn("own kind", UserWarning)
    assert caught[0].category is UserWarning and caught[0].filename == __file__


def test_probabilities_of_any_precision_are_noticed():
    z = np.random.default_rng(0).standard_normal((200, 100))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    for dtype in (np.float16, np.float32, np.float64):
        assert inputs.seem_probabilities(p.astype(dtype)), dtype
        assert not inputs.seem_probabilities((p * 1.01).astype(dtype)), dtype
    assert inputs.seem_probabilities(np.eye(3, dtype=int))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rounding_is_no_random_answer(dtype):
    z = (100 * np.random.default_rng(0).standard_normal((5, 4))).astype(dtype)
    once = lambda factor: inputs.logits_change(lambda x: (z * factor).astype(dtype), z, z)[0]
    eps = float(np.finfo(dtype).eps)
    assert not once(1 + 2 * eps) and once(1 + max(20 * eps, 2e-3))


WRONG_NUMBERS = ["1", None, True, np.nan, np.inf, -1, [1.0], 1j]


@pytest.mark.parametrize("wrong", WRONG_NUMBERS, ids=repr)
@pytest.mark.parametrize("check", ["check_numbers", "check_positive", "check_shares"])
def test_what_is_not_a_number_is_refused(check, wrong):
    with pytest.raises(ValueError, match=rf"momentum must be .*got {re.escape(repr(wrong))}"):
        getattr(inputs, check)(momentum=wrong)
    for right in (0.5, 1, np.float32(0.5), np.int64(1), np.array(0.5)):
        getattr(inputs, check)(momentum=right)


def test_axes_of_length_0_are_no_images(xp):
    for shape in [(0, 1, 3, 3), (2, 0, 3, 3), (2, 1, 0, 3), (0, 0), (2, 0)]:
        with pytest.raises(ValueError, match=rf"x must be a batch.*{re.escape(str(shape))}"):
            inputs.check_pixels(xp.zeros(shape, np.float32))


def unsure(x):
    """NaN for every other example, and class 0 for the rest."""
    xp = array_module(x)
    rows = xp.zeros((len(x), 4), np.float32)
    rows[:, 0] = 1
    rows[::2, 1] = np.nan
    return rows


def test_nan_is_no_prediction(xp):
    labels = inputs.predict(unsure, xp.asarray(X))
    assert labels.dtype == np.int64 and array_module(labels) is xp
    same(to_numpy(labels), [-1, 0, -1, 0, -1, 0, -1])
    nothing = lambda x: xp.full((len(x), 4), np.nan)
    same(to_numpy(inputs.predict(nothing, xp.asarray(X))), -1)


def test_nan_is_no_label(xp):
    def nan_for_bright_ones(x):  # but not for the first one, which is looked at first
        return linear(xp)(x) / (1 - ops.reshape(x, (len(x), -1))[:, :1])

    nan_for_bright_ones.by_example = True
    x = X.copy()
    x[1:, :, 0, 0] = 1
    with np.errstate(divide="ignore", invalid="ignore"):
        with pytest.raises(ValueError, match=r"NaN or infinity for 6 of 7 images"):
            pgd(nan_for_bright_ones, xp.asarray(x), steps=1)


# ---- pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_pixels_of_any_float_from_0_to_1_are_fine(xp, dtype):
    inputs.check_pixels(xp.asarray(X.astype(dtype)))
    inputs.check_pixels(xp.asarray(np.array([[0.0, 1.0]], dtype)))


@pytest.mark.parametrize(
    "wrong, error, words",
    [
        (lambda x, xp: Tensor(x), TypeError, "image must be an array.*Tensor.*value"),
        (lambda x, xp: [[0.5]], TypeError, "image must be an array.*list.*asarray"),
        (lambda x, xp: None, TypeError, "image must be an array.*NoneType"),
        (lambda x, xp: x.astype("u1"), TypeError, "image must hold floating.*uint8.*255"),
        (lambda x, xp: x > 0.5, TypeError, "floating.*bool"),
        (lambda x, xp: x[0, 0, 0], ValueError, r"batch.*\(3,\).*x\[None\]"),
        (lambda x, xp: x[:0], ValueError, r"at least one example.*\(0, 1, 3, 3\)"),
        (lambda x, xp: x + 1, ValueError, "image must have .* 0 to 1, got values from 1.* to 1"),
        (lambda x, xp: x - 1, ValueError, "0 to 1, got values from -"),
        (lambda x, xp: x * xp.asarray(np.float32(np.nan)), ValueError, "0 to 1, got NaN"),
        (lambda x, xp: x + xp.asarray(np.float32(np.inf)), ValueError, "from inf to inf"),
    ],
)
def test_other_pixels_are_refused(xp, wrong, error, words):
    with pytest.raises(error, match=words):
        inputs.check_pixels(wrong(xp.asarray(X), xp), "image")


def test_the_range_alone(xp):
    inputs.check_range(xp.asarray(X))
    for x, words in ((1 + X, "picture must have .* from 1"), (X * np.float32(np.nan), "NaN")):
        with pytest.raises(ValueError, match=words):
            inputs.check_range(xp.asarray(x), "picture")


def test_lists_become_arrays_and_arrays_stay(xp):
    x, y = inputs.as_arrays(X.tolist(), Y.tolist())
    assert type(x) is type(y) is np.ndarray and x.shape == X.shape
    x, y = xp.asarray(X), xp.asarray(Y)
    assert all(a is b for a, b in zip(inputs.as_arrays(x, y), (x, y), strict=True))


# ---- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [None, 4])
def test_labels_come_back_on_the_backend_of_x(xp, classes):
    x = xp.asarray(X)
    for labels in (Y, Y.tolist(), tuple(Y.tolist()), Y.astype("u1"), xp.asarray(Y)):
        found = inputs.check_labels(labels, x, classes)
        assert array_module(found) is xp
        same(to_numpy(found), Y)
    same(inputs.check_labels(to_numpy(Y), X, classes), Y)


@pytest.mark.parametrize(
    "labels, words",
    [
        (Y[:, None], r"\(7,\).*got int64 of shape \(7, 1\)"),
        (Y[1:], r"\(7,\).*\(6,\)"),
        (3, r"\(7,\).*\(\)"),
        (Y.astype(float), "float64"),
        (Y > 1, "bool"),
        (Y - 9, "from 0 to 3.*4 logits"),
        (Y + 4, "from 0 to 3.*4 logits"),
    ],
)
def test_other_labels_are_refused(xp, labels, words):
    labels = xp.asarray(labels) if isinstance(labels, np.ndarray) else labels
    with pytest.raises(ValueError, match=f"name must be .*{words}"):
        inputs.check_labels(labels, xp.asarray(X), 4, "name")


def test_without_classes_the_values_are_not_looked_at(device):
    x, y = device.asarray(X), device.asarray(Y + 100)
    if hasattr(device, "count"):
        with device.count() as c:
            assert inputs.check_labels(y, x) is y
        assert (c.syncs, c.launches, c.transfers) == (0, 0, 0)
    with pytest.raises(ValueError, match="at least one example"):
        inputs.check_labels(y[:0], x[:0])


# ---- logits --------------------------------------------------------------------------------------


def test_the_number_of_classes(xp):
    assert inputs.check_logits(xp.asarray(LOGITS), 7) == 4


@pytest.mark.parametrize(
    "logits, words",
    [
        (LOGITS[0], r"\(N, K\).* 7 images.*\(4,\)"),
        (LOGITS[:3], r"\(3, 4\)"),
        (LOGITS[:, :, None], r"\(7, 4, 1\)"),
        (None, "NoneType"),
        (np.where(np.arange(7)[:, None] < 2, np.nan, LOGITS), "NaN or infinity for 2 of 7"),
        (np.where(np.arange(4) < 1, -np.inf, LOGITS), "for 7 of 7.*inf"),
    ],
)
def test_other_logits_are_refused(xp, logits, words):
    logits = xp.asarray(logits) if isinstance(logits, np.ndarray) else logits
    with pytest.raises(ValueError, match=words):
        inputs.check_logits(logits, 7)


def test_what_seems_to_be_probabilities(xp):
    p = to_numpy(ops.softmax(LOGITS, axis=1))
    assert inputs.seem_probabilities(xp.asarray(p))
    for z in (LOGITS, 2 * p, p - 0.25, np.ones((3, 1)), np.concatenate([p, 2 * p])):
        assert not inputs.seem_probabilities(xp.asarray(z))
    with pytest.warns(AttackWarning, match="probabilities.*softmax"):
        assert inputs.check_logits(xp.asarray(p), 7) == 4


@pytest.mark.parametrize("batch_size, passes", [(1, 7), (3, 3), (7, 1), (100, 1), (None, 1)])
def test_batches_of_any_size_give_the_same_logits(xp, batch_size, passes):
    model, x = Watched(linear(xp), True), xp.asarray(X)
    logits = inputs.all_logits(model, x, batch_size)
    np.testing.assert_allclose(to_numpy(logits), LOGITS, rtol=1e-5)
    assert len(model.given) == passes and not any(tensor for _, tensor in model.given)
    labels = inputs.predict(model, x, batch_size)
    assert array_module(labels) is xp and labels.dtype == np.int64
    same(to_numpy(labels), Y)
    assert len(model.given) == 2 * passes


class Centred(layers.Module):
    """A layer that looks at the whole batch, and does not say that it may be cut."""

    def __call__(self, x):
        return x - ops.mean(x, axis=0, keepdims=True)


def normalised():
    return layers.Sequential(layers.Flatten(), Centred(), layers.Dense(9, 4, rng=0))


@pytest.mark.parametrize(
    "model, whole",
    [
        (linear(by_example=True), False),
        (linear(by_example=False), True),
        (lambda x: linear()(x), True),
        (models.mlp((9, 4)), False),
        (normalised(), True),
        (layers.Average(models.mlp((9, 4)), models.mlp((9, 4), rng=1)), False),
        (layers.Average(models.mlp((9, 4)), normalised()), True),
    ],
    ids=["function", "not by example", "plain", "mlp", "normalised", "average", "one of two"],
)
def test_only_a_model_that_allows_it_is_given_parts_of_a_batch(model, whole):
    x = RNG.random((1203, 1, 3, 3), np.float32)
    watched = Watched(model, parallel.may_cut(model))
    logits = inputs.all_logits(watched, x)
    assert [n for n, _ in watched.given] == ([1203] if whole else [500, 500, 203])
    np.testing.assert_allclose(logits, to_numpy(model(x)), rtol=1e-4, atol=1e-5)
    assert inputs.size_of_a_batch(model, x, None, 7) == (1203 if whole else 7)
    assert inputs.size_of_a_batch(model, x, None) == (1203 if whole else inputs.BATCH)
    assert inputs.size_of_a_batch(model, x, 9, 7) == 9
    same(inputs.checked(model, x).y, logits.argmax(1))


@pytest.mark.parametrize("batch_size", [0, -1, 1.5])
def test_a_batch_has_a_size(batch_size):
    for function in (inputs.all_logits, inputs.predict):
        for x in (X, X[:0]):
            with pytest.raises(ValueError, match=f"batch_size must be .*{batch_size}"):
                function(linear(), x, batch_size)


def test_no_images(xp):
    x, model = xp.asarray(X[:0]), linear(xp)
    assert inputs.all_logits(lambda x: xp.zeros((len(x), 4)), x).shape == (0, 4)
    labels = inputs.predict(model, x)
    assert labels.shape == (0,) and labels.dtype == np.int64 and array_module(labels) is xp
    assert inputs.predict(lambda x: 1 / 0, x, 3).shape == (0,)


def test_logits_that_change(xp):
    x, logits = xp.asarray(X), xp.asarray(LOGITS)
    steady, size = linear(xp), abs(LOGITS).max()
    change = inputs.logits_change(steady, x, logits)
    assert not change[0] and change[1] < 1e-5 and change[2] == pytest.approx(size)
    for share, changes in ((0.5e-3, False), (2e-3, True), (np.nan, True)):
        moved, by, of = inputs.logits_change(lambda x, d=share: steady(x) + d * size, x, logits)
        assert moved is changes and of == pytest.approx(size)
        assert np.isnan(share) or by == pytest.approx(share * size, rel=1e-2)


# ---- no tape -------------------------------------------------------------------------------------


def test_predictions_record_no_tape(recorded):
    model = models.slides_cnn()
    x = RNG.random((20, 1, 28, 28), np.float32)
    y = np.arange(20) % 10
    inputs.all_logits(model, x)
    inputs.predict(model, x, 7)
    inputs.checked_logits(model, x, y)
    evaluate.accuracy(model, x, y)
    evaluate.robustness(model, x, y, {"none": lambda model, x, y: x})
    assert recorded == []
    model(x)
    assert recorded != []  # the counter counts


def test_training_records_no_tape_for_its_validation(recorded):
    x, y = RNG.random((8, 1, 3, 3), np.float32), np.arange(8) % 4
    data = Dataset("few", x, y, x, y, tuple("abcd"))

    def operations(**how):
        recorded.clear()
        model = models.mlp((9, 4))
        fit(model, data, optim.SGD(model.parameters(), lr=0.1), 1, progress=False, **how)
        return len(recorded)

    assert operations(validate=True) == operations(validate=False) > 0


def test_a_frozen_model(recorded):
    model = models.mlp((9, 4))
    twin = inputs.frozen(model)
    assert isinstance(twin(X), np.ndarray) and recorded == []
    same(twin(X), model(X).value)
    plain = linear()
    assert inputs.frozen(plain) is plain


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ball", [Linf(1.0), L2(30.0), L1(5.0), Linf(np.inf), Linf(0)])
def test_balls_are_accepted(ball):
    inputs.check_ball(ball)


@pytest.mark.parametrize("ball", [0.3, "Linf", Linf, None])
def test_what_is_not_a_ball(ball):
    assert not isinstance(ball, Ball)
    with pytest.raises(TypeError, match=r"ball must be .*got"):
        inputs.check_ball(ball)


def test_an_epsilon_of_0_to_255_is_noticed():
    with pytest.warns(AttackWarning, match="ε = 8 .* 255"):
        inputs.check_ball(Linf(8))


def test_numbers():
    inputs.check_numbers(a=0, b=1.5, c=np.float32(2))
    for bad in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"b must be .*{bad}"):
            inputs.check_numbers(a=1, b=bad)


def test_counts():
    inputs.check_counts(a=1, b=np.int64(3))
    inputs.check_counts(0, a=0)
    inputs.check_counts(least=2, a=2)
    for bad in (0, -1, 1.0, True, "3", None):
        with pytest.raises(ValueError, match=f"b must be an integer ≥ 1, got {bad!r}"):
            inputs.check_counts(a=1, b=bad)
    with pytest.raises(ValueError, match="a must be an integer ≥ 2, got 1"):
        inputs.check_counts(least=2, a=1)


def test_choices():
    inputs.check_choice(("a", "b"), first="a", second="b")
    with pytest.raises(ValueError, match=r"second must be one of \('a', 'b'\), got 'c'"):
        inputs.check_choice(("a", "b"), first="a", second="c")


def test_shares_are_from_0_to_1():
    inputs.check_shares(a=0, b=1, c=np.float32(0.5))
    for bad in (-0.1, 1.1, np.nan, np.inf):
        with pytest.raises(ValueError, match=rf"^b must be .*from 0 to 1, got {bad}"):
            inputs.check_shares(a=0.5, b=bad)


def test_positive_numbers_are_finite_and_above_0():
    inputs.check_positive(a=1e-300, b=2, c=np.float32(0.5))
    for bad in (0, -0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match=rf"^b must be a number > 0, got {bad}"):
            inputs.check_positive(a=1, b=bad)


def test_other_labels_beside_checked_ones_are_refused():
    x, y = np.full((2, 1, 3, 3), 0.5), np.array([0, 1])
    model = models.mlp((9, 3))
    known = inputs.Checked(x, y, y[::-1])
    assert inputs.checked(model, known, known.y, known.target) is known
    for others in ((y + 0, None), (None, y), (None, 1)):
        with pytest.raises(TypeError, match="Checked"):
            inputs.checked(model, known, *others)
    with pytest.raises(TypeError, match="Checked"):
        inputs.checked_logits(model, known, y + 0)
