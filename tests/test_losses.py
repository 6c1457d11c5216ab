"""Losses against their formulas, written out in NumPy."""

import numpy as np
import pytest
import strict_cupy
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyadv import Tensor, check_grads, grad, losses, models, to_numpy
from tinyadv.losses import (
    cross_entropy,
    dlr,
    dlr_targeted,
    margin,
    one_hot,
    soft_cross_entropy,
    swapped_binary_cross_entropy,
)

close = np.testing.assert_allclose
on_each_backend = settings(max_examples=settings.default.max_examples // 2)


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# ---- the formulas, example by example, in float64 ------------------------------------------------


def slow_cross_entropy(z, y):
    return -np.log(np.exp(z[y]) / np.exp(z).sum())


def slow_margin(z, y):
    return max(z[i] for i in range(len(z)) if i != y) - z[y]


def slow_dlr(z, y):
    ranked = sorted(z, reverse=True)
    return -(z[y] - max(z[i] for i in range(len(z)) if i != y)) / (ranked[0] - ranked[2])


def slow_dlr_targeted(z, y, t):
    ranked = sorted(z, reverse=True)
    return -(z[y] - z[t]) / (ranked[0] - (ranked[2] + ranked[3]) / 2)


def keras_binary_crossentropy(target, prediction, dtype=np.float32):
    """As in ``keras.losses``: in float32, the prediction clipped by 1e-7, averaged over classes."""
    target, prediction = target.astype(dtype), prediction.astype(dtype)
    prediction = np.clip(prediction, dtype(1e-7), dtype(1 - 1e-7))
    terms = target * np.log(prediction) + (1 - target) * np.log(1 - prediction)
    return -terms.mean(-1)


def slow_swapped(z, y):
    return keras_binary_crossentropy(softmax(z[None])[0], np.eye(len(z))[y])


@st.composite
def batches(draw):
    """Logits that differ by 0.05 or more, so that no ranking is on an edge; labels; targets."""
    n, k = draw(st.integers(1, 6)), draw(st.integers(4, 10))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    z = 0.4 * np.array([rng.permutation(k) for _ in range(n)]) - 1.5
    labels = rng.integers(0, k, n)
    targets = (labels + rng.integers(1, k, n)) % k
    return z + rng.uniform(-0.15, 0.15, (n, k)), labels, targets


LOSSES = {
    cross_entropy: (slow_cross_entropy, 1e-12),
    margin: (slow_margin, 1e-12),
    dlr: (slow_dlr, 1e-9),
    dlr_targeted: (slow_dlr_targeted, 1e-9),
    swapped_binary_cross_entropy: (slow_swapped, 1e-5),  # the formula's own precision
}
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)


def targets_for(loss, batch):
    """The label arguments of a loss: two for the targeted one."""
    _, labels, targets = batch
    return [labels, targets] if loss is dlr_targeted else [labels]


@every_loss
@on_each_backend
@given(batch=batches())
def test_every_loss_is_its_formula(xp, loss, batch):
    z, classes = batch[0], targets_for(loss, batch)
    formula, tolerance = LOSSES[loss]
    expected = [formula(*row) for row in zip(z, *classes, strict=True)]
    for there in classes, [xp.asarray(c) for c in classes]:  # labels on the host or the device
        got = loss(xp.asarray(z), *there, reduction="none")
        close(to_numpy(got), expected, rtol=tolerance, atol=1e-7 if tolerance > 1e-6 else 1e-12)


@every_loss
@given(batch=batches())
def test_reductions_are_over_the_examples(loss, batch):
    z, classes = batch[0], targets_for(loss, batch)
    each = loss(z, *classes, reduction="none")
    assert each.shape == (len(z),)
    close(loss(z, *classes, reduction="sum"), each.sum())
    close(loss(z, *classes, reduction="mean"), each.mean())
    close(loss(z, *classes), each.mean())


@every_loss
@on_each_backend
@given(batch=batches())
def test_gradients_agree_with_finite_differences(xp, loss, batch):
    z, classes = batch[0], targets_for(loss, batch)
    check_grads(lambda z: loss(z, *classes, reduction="none"), [xp.asarray(z)])


@every_loss
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_and_gradients_keep_the_precision_of_the_logits(xp, loss, dtype):
    z = Tensor(xp.asarray(np.arange(12).reshape(2, 6).astype(dtype)))
    y = loss(z, *[np.array([1, 5], np.uint8)] * (2 if loss is dlr_targeted else 1))
    assert y.dtype == grad(y, [z])[0].dtype == dtype


# ---- labels that are probabilities ---------------------------------------------------------------


@on_each_backend
@given(batch=batches(), seed=st.integers(0, 10_000))
def test_soft_cross_entropy_is_a_divergence_and_an_entropy(xp, batch, seed):
    z, (n, k) = batch[0], batch[0].shape
    p = np.random.default_rng(seed).dirichlet(np.ones(k), n)
    q = softmax(z)
    expected = (p * np.log(p / q)).sum(1) - (p * np.log(p)).sum(1)
    z, p = xp.asarray(z), xp.asarray(p)
    close(to_numpy(soft_cross_entropy(z, p, "none")), expected, rtol=1e-9)
    close(to_numpy(soft_cross_entropy(z, p, "sum")), expected.sum(), rtol=1e-9)
    close(to_numpy(soft_cross_entropy(z, p)), expected.mean(), rtol=1e-9)
    check_grads(lambda z, p: soft_cross_entropy(z, p, "none"), [z, p])


@given(batch=batches())
def test_soft_cross_entropy_of_sure_labels_is_cross_entropy(batch):
    z, labels, _ = batch
    close(soft_cross_entropy(z, one_hot(labels, z)), cross_entropy(z, labels), rtol=1e-12)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_soft_cross_entropy_takes_labels_of_any_type(xp, dtype):
    z = Tensor(xp.asarray([[0.0, 1.0, 2.0]]))
    loss = soft_cross_entropy(z, xp.asarray(np.eye(3)[[0]].astype(dtype)))
    close(to_numpy(loss), np.log(1 + np.e + np.e**2))


def test_soft_cross_entropy_is_lowest_where_the_answer_is_the_label(xp):
    z = Tensor(xp.asarray(np.random.default_rng(0).standard_normal((5, 4))))
    p = xp.asarray(softmax(to_numpy(z)))
    [g] = grad(soft_cross_entropy(z, p, "sum"), [z])
    assert abs(to_numpy(g)).max() < 1e-15
    other = np.random.default_rng(1).standard_normal((5, 4))
    assert float(soft_cross_entropy(xp.asarray(other), p)) > float(soft_cross_entropy(z, p))


def test_soft_cross_entropy_keeps_float32():
    z = Tensor(np.zeros((3, 5), np.float32))
    loss = soft_cross_entropy(z, np.full((3, 5), 0.2, np.float32))
    assert loss.dtype == grad(loss, [z])[0].dtype == np.float32
    close(loss.value, np.log(5), rtol=1e-6)


@pytest.mark.parametrize("p", [np.ones(3), np.ones((3, 4)), np.array([0, 1, 2]), np.ones((1, 5))])
def test_soft_cross_entropy_takes_two_arrays_of_one_shape(xp, p):
    with pytest.raises(ValueError, match=r"of one shape \(N, K\), got \(3, 5\) and \("):
        soft_cross_entropy(xp.zeros((3, 5)), xp.asarray(p))
    with pytest.raises(ValueError, match=r"got \(5,\) and \(5,\)"):
        soft_cross_entropy(xp.zeros(5), xp.zeros(5))


# ---- what each is known for ----------------------------------------------------------------------


def test_the_margin_is_above_zero_exactly_where_the_example_is_misclassified():
    z, labels = np.random.default_rng(0).standard_normal((50, 10)), np.arange(50) % 10
    np.testing.assert_array_equal(margin(z, labels, "none") > 0, z.argmax(1) != labels)


@given(batches(), st.floats(0.01, 100), st.floats(-100, 100))
def test_dlr_is_blind_to_the_scale_and_the_shift_of_the_logits(batch, scale, shift):
    z, labels, targets = batch
    close(dlr(scale * z + shift, labels), dlr(z, labels), rtol=1e-7, atol=1e-9)
    targeted = dlr_targeted(scale * z + shift, labels, targets)
    close(targeted, dlr_targeted(z, labels, targets), rtol=1e-7, atol=1e-9)


def test_dlr_of_a_right_answer_is_between_minus_one_and_zero():
    z = np.random.default_rng(0).standard_normal((50, 10))
    values = dlr(z, z.argmax(1), "none")
    assert np.all((values >= -1) & (values <= 0))


def test_dlr_of_equal_logits_is_zero():
    close(dlr(np.ones((2, 5), np.float32), [0, 1]), 0)


def test_the_swapped_loss_is_linear_in_the_probability_of_the_label(xp):
    z = np.random.default_rng(0).uniform(-5, 5, (20, 10))
    labels = np.arange(20) % 10
    p = softmax(z)[np.arange(20), labels]
    got = swapped_binary_cross_entropy(xp.asarray(z), labels, "none")
    close(to_numpy(got), 3.206 * (1 - p), rtol=1e-4, atol=1e-6)


def test_the_swapped_loss_has_the_clipping_as_an_argument():
    z, labels = np.log(np.array([[0.25, 0.75], [0.5, 0.5]])), [1, 0]
    low, high = np.log(0.01), np.log(0.99)
    got = swapped_binary_cross_entropy(z, labels, "none", epsilon=0.01)
    close(got, [-(p * high + (1 - p) * low) for p in (0.75, 0.5)], rtol=1e-6)


def test_cross_entropy_is_the_mean_surprise_and_log_k_for_a_guess(xp):
    close(to_numpy(cross_entropy(xp.zeros((4, 10)), [0, 3, 5, 9])), np.log(10))


@every_loss
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_saturated_logits_give_finite_losses_and_gradients(xp, loss, dtype):
    z = Tensor(xp.asarray(np.diag(np.full(5, 2e4, dtype)) - dtype(1e4)))
    for labels in np.arange(5), np.arange(5)[::-1].copy():
        value = loss(z, *[labels] * (2 if loss is dlr_targeted else 1))
        [g] = grad(value, [z])
        assert np.isfinite(to_numpy(value))
        assert np.isfinite(to_numpy(g)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_of_saturated_logits_is_their_difference(xp, dtype):
    z = Tensor(xp.asarray(np.array([[1e4, -1e4, 0], [1e4, -1e4, 0]], dtype)))
    each = cross_entropy(z, [0, 1], "none")
    close(to_numpy(each), [0, 2e4])
    [g] = grad(each.sum(), [z])
    close(to_numpy(g), [[0, 0, 0], [1, -1, 0]])


@every_loss
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equal_logits_give_finite_losses_and_gradients(xp, loss, dtype):
    z = Tensor(xp.ones((2, 5), dtype))
    value = loss(z, *[[0, 1], [2, 2]][: 1 + (loss is dlr_targeted)])
    [g] = grad(value, [z])
    assert value.dtype == g.dtype == dtype
    assert np.isfinite(to_numpy(value)) and np.isfinite(to_numpy(g)).all()
    if loss in (margin, dlr, dlr_targeted):
        assert to_numpy(value) == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dlr_of_several_largest_logits_is_finite(xp, dtype):
    z = Tensor(xp.asarray(np.array([[9, 9, 9, 9, -9]], dtype)))
    for value in dlr(z, [4]), dlr_targeted(z, [4], [0]):
        assert to_numpy(value) > 500
        assert np.isfinite(to_numpy(grad(value, [z])[0])).all()


@every_loss
def test_half_precision_is_close_to_double_precision(xp, loss):
    rng = np.random.default_rng(0)
    z = rng.permuted(np.tile(np.arange(-2.5, 3), (3000, 1)), axis=1)  # no two close to each other
    z, labels = (z + rng.uniform(-0.4, 0.4, z.shape)).astype(np.float16), rng.integers(0, 6, 3000)
    classes = [labels, (labels + 1) % 6] if loss is dlr_targeted else [labels]
    wide, t = Tensor(z.astype(float)), Tensor(xp.asarray(z))
    exact, value = loss(wide, *classes), loss(t, *classes)
    close(to_numpy(value).astype(float), exact.value, rtol=5e-3, atol=5e-3)
    (g,), (half,) = grad(exact, [wide]), grad(value, [t])
    close(to_numpy(half).astype(float), g, rtol=0.1, atol=0.05 * abs(g).max())


# ---- infinite logits, and no examples ------------------------------------------------------------

E = np.e


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("loss", "value", "gradient"),
    [
        (cross_entropy, np.log(1 + E), [-E / (1 + E), E / (1 + E), 0, 0]),  # 1.3133
        (margin, 1, [-1, 1, 0, 0]),
        (dlr, 0, [0, 0, 0, 0]),  # the third is -inf: an infinite spread
        (soft_cross_entropy, np.log(1 + E), [-E / (1 + E), E / (1 + E), 0, 0]),
    ],
)
def test_a_logit_of_minus_infinity_of_another_class(xp, loss, value, gradient, dtype):
    z = Tensor(xp.asarray(np.array([[0, 1, -np.inf, -np.inf]], dtype)))
    y = loss(z, xp.asarray(np.eye(4, dtype=dtype)[:1]) if loss is soft_cross_entropy else [0])
    close(to_numpy(y).astype(float), value, rtol=2e-3)
    [g] = grad(y, [z], create_graph=True)
    close(to_numpy(g)[0].astype(float), gradient, atol=1e-3)
    [h] = grad((g * xp.asarray(np.array([[1, 2, 3, 4]], dtype))).sum(), [z])
    assert np.isfinite(to_numpy(h)).all()


def test_the_targeted_ratio_ignores_infinite_logits_of_other_classes(xp):
    z = Tensor(xp.asarray([[0.0, 1.0, 3.0, 2.0, -np.inf]]))
    y = dlr_targeted(z, [0], [1])
    close(to_numpy(y), -(0 - 1) / (3 - (1 + 0) / 2))
    assert np.isfinite(to_numpy(grad(y, [z])[0])).all()


def test_soft_labels_of_probability_0(xp):
    """Also where they are tensors, whose gradient is the logarithm."""
    z = Tensor(xp.asarray([[0.0, 1.0, -np.inf], [0.0, 1.0, 2.0]]))
    p = Tensor(xp.asarray([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    y = soft_cross_entropy(z, p, "none")
    close(to_numpy(y), [np.log(1 + E), np.log(1 + E + E**2) - 1])
    dz, dp = (to_numpy(g) for g in grad(y.sum(), [z, p]))
    close(dz[0], [-E / (1 + E), E / (1 + E), 0])
    close(dp, [[np.log(1 + E), np.log(1 + E) - 1, 0], np.log(1 + E + E**2) - np.arange(3)])
    assert np.isnan(to_numpy(soft_cross_entropy(xp.asarray([[np.nan, 0.0]]), xp.ones((1, 2)))))


def test_the_label_itself_at_minus_infinity_is_an_infinite_loss(xp):
    z = Tensor(xp.asarray([[0.0, -np.inf]]))
    y = cross_entropy(z, [1])
    assert to_numpy(y) == np.inf
    close(to_numpy(grad(y, [z])[0]), [[1, -1]])
    assert to_numpy(soft_cross_entropy(z, xp.asarray([[0.5, 0.5]]))) == np.inf


@every_loss
def test_the_loss_of_no_example(xp, loss):
    """As in PyTorch: the mean of nothing is NaN, the sum 0, the gradient empty."""
    z = Tensor(xp.zeros((0, 5), np.float32))
    for labels in [], np.zeros(0, int):
        classes = [labels] * (1 + (loss is dlr_targeted))
        assert np.isnan(to_numpy(loss(z, *classes)))
        assert to_numpy(loss(z, *classes, "sum")) == 0
        assert loss(z, *classes, "none").shape == (0,)
        assert grad(loss(z, *classes), [z])[0].shape == (0, 5)


# ---- labels --------------------------------------------------------------------------------------

Z = np.zeros((3, 5), np.float32)


@pytest.mark.parametrize("labels", [[0, 2, 4], (0, 2, 4), np.array([0, 2, 4], np.uint8)])
def test_labels_are_lists_or_arrays_of_any_integers(xp, labels):
    rows = one_hot(labels, xp.asarray(Z))
    np.testing.assert_array_equal(to_numpy(rows), np.eye(5, dtype=np.float32)[[0, 2, 4]])
    assert rows.dtype == np.float32


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 5], "labels must be from 0 to 4, .* got labels from 0 to 5"),
        ([0, 1, -1], "labels must be from 0 to 4, .* got labels from -1 to 1"),
        ([0, 1], r"logits \(N, K\) and labels \(N,\).* got \(3, 5\) and \(2,\)"),
        ([[0], [1], [2]], r"got \(3, 5\) and \(3, 1\)"),
        (np.eye(5)[:3], r"got \(3, 5\) and \(3, 5\)"),
        ([0.0, 1.0, 2.0], "labels.* integers.* of float64"),
        ([True, False, True], "labels.* integers.* of bool"),
    ],
)
@every_loss
def test_labels_that_fit_no_example_or_class_are_refused(xp, loss, labels, message):
    two = loss is dlr_targeted
    for wrong in ([labels, [0, 1, 2]], [[0, 1, 2], labels]) if two else ([labels],):
        with pytest.raises(ValueError, match=message):
            loss(xp.asarray(Z), *wrong)


def test_labels_on_a_device_are_checked_for_shape_and_dtype(device):
    for labels, message in [([0, 1], r"\(2,\)"), ([0.0, 1.0, 2.0], "integers.* of float64")]:
        with pytest.raises(ValueError, match=message):
            cross_entropy(device.asarray(Z), device.asarray(np.array(labels)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cross_entropy(Z[0], [0]), r"got \(5,\) and \(1,\)"),
        (lambda: margin(Z[0], [0]), r"got \(5,\) and \(1,\)"),
        (lambda: dlr(Z[0], [0]), r"got \(5,\) and \(1,\)"),
        (lambda: dlr_targeted(Z[0], [0], [1]), r"got \(5,\) and \(1,\)"),
        (lambda: swapped_binary_cross_entropy(Z[0], [0]), r"got \(5,\) and \(1,\)"),
        (lambda: dlr(Z[:, :2], [0, 0, 0]), "3 classes or more, got 2"),
        (lambda: dlr_targeted(Z[:, :3], [0, 0, 0], [1, 1, 1]), "4 classes or more, got 3"),
        (lambda: cross_entropy(Z, [0, 0, 0], "avg"), "one of .*'mean', 'sum', 'none'.*, got 'avg'"),
    ],
)
def test_mistakes_are_answered_with_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_reductions_are_those_that_the_message_names():
    assert set(losses.REDUCTIONS) == {"mean", "sum", "none"}


# ---- what an attack does -------------------------------------------------------------------------


@every_loss
def test_an_input_gradient_on_a_device_neither_waits_nor_copies(device, loss):
    model = models.slides_cnn()
    rng = np.random.default_rng(0)
    x, labels = rng.random((4, 1, 28, 28), np.float32), np.array([3, 1, 4, 1])

    def input_gradient(xp, labels):
        t = Tensor(xp.asarray(x))
        classes = [labels, (labels + 1) % 10] if loss is dlr_targeted else [labels]
        with strict_cupy.count() as counts:
            [g] = grad(loss(model(t), *classes, reduction="sum"), [t])
        return g, counts

    expected, _ = input_gradient(np, labels)
    for p in model.parameters():
        p.value = device.asarray(p.value)
    got, counts = input_gradient(device, device.asarray(labels))
    assert (counts.syncs, counts.transfers) == (0, 0)
    assert np.any(expected)
    close(to_numpy(got), expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
