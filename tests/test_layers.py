"""Layers and networks: names and shapes that are PyTorch's, weights, seeds, devices, dtypes."""

import collections

import numpy as np
import pytest
import strict_cupy

from tinyadv import (
    Tensor,
    array_module,
    conv,
    evaluate,
    grad,
    layers,
    losses,
    models,
    ops,
    parallel,
    to_numpy,
)
from tinyadv.layers import (
    ACTIVATIONS,
    INITIALISERS,
    Activation,
    Average,
    AvgPool2d,
    Conv2d,
    Dense,
    Flatten,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
)

RNG = np.random.default_rng(0)
IMAGES = RNG.random((3, 1, 28, 28), np.float32)
VECTORS = RNG.standard_normal((5, 4)).astype(np.float32)


def on(xp, model):
    """``model``, with its parameters moved to the backend ``xp``."""
    for p in model.parameters():
        p.value = xp.asarray(to_numpy(p.value))
    return model


def assert_same_weights(model, other, same=True):
    a, b = model.state_dict(), other.state_dict()
    assert list(a) == list(b)
    equal = [np.array_equal(a[name], b[name]) for name in a if name.endswith("weight")]
    assert all(equal) if same else not any(equal)


# ---- the networks -------------------------------------------------------------------------------

# As PyTorch's state_dict() lists them for the torch.nn.Sequential of the same layers.
NETWORKS = {
    "slides_cnn": (38_390, {
        "0.weight": (10, 1, 5, 5), "0.bias": (10,),
        "3.weight": (20, 10, 5, 5), "3.bias": (20,),
        "7.weight": (100, 320), "7.bias": (100,),
        "9.weight": (10, 100), "9.bias": (10,),
    }),
    "fast_cnn": (166_406, {
        "0.weight": (16, 1, 4, 4), "0.bias": (16,),
        "2.weight": (32, 16, 4, 4), "2.bias": (32,),
        "5.weight": (100, 1568), "5.bias": (100,),
        "7.weight": (10, 100), "7.bias": (10,),
    }),
    "interval_cnn": (329_606, {
        "0.weight": (16, 1, 4, 4), "0.bias": (16,),
        "2.weight": (32, 16, 4, 4), "2.bias": (32,),
        "5.weight": (100, 3200), "5.bias": (100,),
        "7.weight": (10, 100), "7.bias": (10,),
    }),
    "madry_cnn": (3_274_634, {
        "0.weight": (32, 1, 5, 5), "0.bias": (32,),
        "3.weight": (64, 32, 5, 5), "3.bias": (64,),
        "7.weight": (1024, 3136), "7.bias": (1024,),
        "9.weight": (10, 1024), "9.bias": (10,),
    }),
    "mlp": (199_210, {
        "1.weight": (200, 784), "1.bias": (200,),
        "3.weight": (200, 200), "3.bias": (200,),
        "5.weight": (10, 200), "5.bias": (10,),
    }),
    "linear": (7850, {"1.weight": (10, 784), "1.bias": (10,)}),
}  # fmt: skip


@pytest.fixture(params=NETWORKS)
def make(request):
    """The constructor of a network."""
    return getattr(models, request.param)


def test_a_network_has_pytorchs_names_and_shapes(make):
    count, shapes = NETWORKS[make.__name__]
    model = make()
    state = model.state_dict()
    assert [(name, array.shape) for name, array in state.items()] == list(shapes.items())
    assert all(array.dtype == np.float32 for array in state.values())
    assert sum(p.size for p in model.parameters()) == count
    logits = model(IMAGES)
    assert isinstance(logits, Tensor) and logits.shape == (3, 10) and logits.dtype == np.float32


def test_a_seed_makes_the_weights(make):
    assert_same_weights(make(rng=1), make(rng=np.random.default_rng(1)))
    assert_same_weights(make(rng=1), make(rng=2), same=False)


def test_a_generator_passes_on():
    rng = np.random.default_rng(3)
    first, second = models.mlp((6, 6, 6), rng), models.mlp((6, 6, 6), rng)
    assert_same_weights(first, second, same=False)
    state = first.state_dict()  # nor do the layers of one network start out the same
    assert not np.array_equal(state["1.weight"], state["3.weight"])


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("slides_cnn", "he_normal"),
        ("fast_cnn", "he_normal"),
        ("interval_cnn", "interval_normal"),
        ("madry_cnn", "he_normal"),
        ("mlp", "he_normal"),
        ("linear", "glorot_uniform"),
    ],
)
def test_init_is_a_choice(name, default):
    make = getattr(models, name)
    assert_same_weights(make(), make(init=default))
    for other in INITIALISERS.keys() - {default}:
        assert_same_weights(make(), make(init=other), same=False)


def test_fast_cnn_made_larger():
    shapes = [p.shape for p in models.fast_cnn(width=2, hidden=512).parameters()[::2]]
    assert shapes == [(32, 1, 4, 4), (64, 32, 4, 4), (512, 3136), (10, 512)]


def test_average_of_networks(xp):
    members = [on(xp, models.mlp((784, 5, 10), seed)) for seed in (1, 2, 3)]
    average = Average(*members)
    x = xp.asarray(IMAGES.reshape(-1, 784))
    expected = np.mean([to_numpy(member(x).value) for member in members], axis=0)
    np.testing.assert_allclose(to_numpy(average(x).value), expected, atol=1e-6)
    names = list(average.state_dict())
    assert names[0] == "members.0.1.weight" and len(names) == 12
    assert repr(average).startswith("Average(Sequential(") and repr(average).count("Dense") == 6
    weights = members[1].parameters()  # a member counts for a third
    shares = grad(ops.sum(average(x)), weights), grad(ops.sum(members[1](x)), weights)
    for share, alone in zip(*shares, strict=True):
        np.testing.assert_allclose(to_numpy(share), to_numpy(alone) / 3, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="at least one network"):
        Average()
    with pytest.raises(TypeError, match=r"got a list: .* or Average\(\*networks\)"):
        Average(members)
    with pytest.raises(ValueError, match=r"one shape, got \(3, 10\) and \(3, 1\)"):
        Average(members[0], on(xp, models.mlp((784, 1), 1)))(x)


def test_thresholds_cut_off_what_is_nearly_black_or_white(xp):
    first = on(xp, Sequential(*models.threshold_layers(0.35, 0.65)))
    x = np.linspace(0, 1, 101, dtype=np.float32).reshape(1, 1, 1, 101)
    out = to_numpy(first(xp.asarray(x)))
    np.testing.assert_allclose(out, np.clip((x - 0.35) / 0.3, 0, 1), atol=1e-6)
    assert (out[x < 0.345] == 0).all() and (out[x > 0.655] == 1).all()  # to the last bit


def test_training_moves_the_thresholds():
    first = Sequential(*models.threshold_layers(0.35, 0.65))
    for g in grad(ops.sum(first(np.full((1, 1, 2, 2), 0.4, np.float32))), first.parameters()):
        assert abs(g).min() > 0


@pytest.mark.parametrize(
    "thresholds", [(0.5, 0.5), (0.7, 0.3), (-0.1, 0.5), (0.5, 1.1), (np.nan, 1)]
)
def test_thresholds_that_make_no_sense(thresholds):
    with pytest.raises(ValueError, match="expected thresholds 0 ≤ low < high ≤ 1, got"):
        models.threshold_layers(*thresholds)


def test_interval_cnn_with_thresholds_and_more_neurons():
    plain = models.interval_cnn(hidden=50)
    model = models.interval_cnn(hidden=50, thresholds=(0.2, 0.6))
    assert [p.shape for p in plain.parameters()[::2]][2:] == [(50, 3200), (10, 50)]
    assert len(model.layers) == 4 + len(plain.layers)
    for a, b in zip(plain.parameters(), model.parameters()[4:], strict=True):
        np.testing.assert_array_equal(a.value, b.value)
    x = np.clip((IMAGES - 0.2) / 0.4, 0, 1)
    np.testing.assert_allclose(model(IMAGES).value, plain(x).value, rtol=1e-3, atol=1e-5)


def test_slides_cnn_written_out_with_operations(xp):
    model, x = on(xp, models.slides_cnn(rng=1)), xp.asarray(IMAGES)
    w1, b1, w2, b2, w3, b3, w4, b4 = model.parameters()
    h = ops.max_pool2d(ops.relu(ops.conv2d(x, w1, b1)), kernel_size=2)
    h = ops.max_pool2d(ops.relu(ops.conv2d(h, w2, b2)), kernel_size=2)
    h = ops.reshape(h, (3, 320))
    logits = ops.relu(h @ w3.value.T + b3) @ w4.value.T + b4
    assert array_module(logits.value) is xp
    np.testing.assert_allclose(to_numpy(logits), to_numpy(model(x)), rtol=1e-5, atol=1e-6)


def test_mlp_and_linear_by_hand():
    x = VECTORS.reshape(5, 1, 2, 2)
    mlp = models.mlp((4, 6, 3), activation="tanh")
    w1, b1, w2, b2 = (p.value for p in mlp.parameters())
    b1[:], b2[:] = 0.5, -1.0
    by_hand = np.tanh(VECTORS @ w1.T + b1) @ w2.T + b2
    np.testing.assert_allclose(mlp(x).value, by_hand, rtol=1e-5, atol=1e-6)
    linear = models.linear(inputs=4, outputs=3, rng=2)
    w, _ = (p.value for p in linear.parameters())
    np.testing.assert_allclose(linear(x).value, VECTORS @ w.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(), (4,)])
def test_mlp_needs_two_sizes(sizes):
    with pytest.raises(ValueError, match="two sizes or more"):
        models.mlp(sizes)


# ---- initialisation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "fan_in", "fan_out"),
    [
        (lambda **how: Conv2d(32, 64, (3, 5), **how), 32 * 15, 64 * 15),
        (lambda **how: Dense(300, 80, **how), 300, 80),
    ],
    ids=["Conv2d", "Dense"],
)
def test_initial_weights(make, fan_in, fan_out):
    he, glorot = make(init="he_normal", rng=1), make(init="glorot_uniform", rng=1)
    assert_same_weights(he, make(rng=1))  # the default
    for layer in (he, glorot):
        assert not layer.bias.value.any()
        assert layer.weight.dtype == layer.bias.dtype == np.float32

    # Some 24,000 weights or more: their variance is known to 1 %, their fourth moment to 3 %.
    w = he.weight.value / np.sqrt(2 / fan_in)
    assert abs(w.mean()) < 0.03 and w.var() == pytest.approx(1, rel=0.05)
    assert (w**4).mean() == pytest.approx(3, rel=0.15)  # that of a normal distribution

    w = glorot.weight.value / np.sqrt(6 / (fan_in + fan_out))
    assert abs(w.mean()) < 0.03 and w.var() == pytest.approx(1 / 3, rel=0.05)
    assert -1 <= w.min() < -0.999 and 0.999 < w.max() <= 1

    layer = make(init="fan_in_uniform", rng=1)
    w, b = (p.value * np.sqrt(fan_in) for p in (layer.weight, layer.bias))
    assert abs(w.mean()) < 0.03 and w.var() == pytest.approx(1 / 3, rel=0.05)
    assert -1 <= w.min() < -0.999 and 0.999 < w.max() <= 1
    assert len(np.unique(b)) == len(b) and -1 <= b.min() < -0.5 and 0.5 < b.max() <= 1
    assert abs(b - w.reshape(-1)[: len(b)]).max() > 0.1  # not the same numbers again

    # Bounds are to keep their width: the absolute weights of a neuron add up to 2.
    interval = make(init="interval_normal", rng=1).weight.value
    assert abs(interval).reshape(len(interval), -1).sum(1).mean() == pytest.approx(2, rel=0.03)
    w = interval * fan_in / np.sqrt(2 * np.pi)
    assert abs(w.mean()) < 0.03 and (w**4).mean() == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize(
    "make", [lambda rng: Conv2d(2, 3, 3, rng=rng), lambda rng: Dense(4, 3, rng=rng)]
)
def test_the_seed_of_a_layer(make):
    assert_same_weights(make(1), make(np.random.default_rng(1)))
    assert_same_weights(make(1), make(2), same=False)


@pytest.mark.parametrize(
    "make", [lambda **rng: Conv2d(2, 3, 3, **rng), lambda **rng: Dense(4, 3, **rng)]
)
def test_layers_without_a_seed_differ_and_models_are_the_same_by_default(make):
    assert_same_weights(make(), make(), same=False)
    assert_same_weights(make(rng=None), make(rng=None), same=False)
    assert_same_weights(models.mlp(), models.mlp(rng=0))
    assert_same_weights(models.mlp(rng=None), models.mlp(rng=None), same=False)


@pytest.mark.parametrize("make", [lambda **how: Conv2d(1, 2, 3, **how), models.mlp])
def test_unknown_init(make):
    with pytest.raises(ValueError, match=r"init must be one of .*he_normal.*got 'lecun'"):
        make(init="lecun")


# ---- layers -------------------------------------------------------------------------------------

LAYERS = {
    "conv": (
        Conv2d(3, 4, (2, 3), stride=(2, 1), padding=1, rng=1),
        lambda x, w, b: conv.conv2d(x, w, b, stride=(2, 1), padding=1),
        "Conv2d(3, 4, (2, 3), stride=(2, 1), padding=1)",
    ),
    "conv, no bias": (
        Conv2d(3, 4, 3, bias=False),
        lambda x, w: conv.conv2d(x, w),
        "Conv2d(3, 4, (3, 3), stride=1, padding=0)",
    ),
    "max": (
        MaxPool2d((2, 3), stride=1),
        lambda x: conv.max_pool2d(x, kernel_size=(2, 3), stride=1),
        "MaxPool2d((2, 3), stride=1)",
    ),
    "max, no stride": (
        MaxPool2d(2),
        lambda x: conv.max_pool2d(x, kernel_size=2),
        "MaxPool2d(2, stride=None)",
    ),
    "avg": (
        AvgPool2d((2, 3), stride=1),
        lambda x: conv.avg_pool2d(x, kernel_size=(2, 3), stride=1),
        "AvgPool2d((2, 3), stride=1)",
    ),
    "avg, no stride": (
        AvgPool2d(2),
        lambda x: conv.avg_pool2d(x, kernel_size=2),
        "AvgPool2d(2, stride=None)",
    ),
    "flatten": (Flatten(), lambda x: ops.reshape(x, (2, 108)), "Flatten()"),
    "relu": (ReLU(), ops.relu, "ReLU()"),
    **{
        f"activation {name}": (Activation(name), getattr(ops, name), f"Activation({name!r})")
        for name in ACTIVATIONS
    },
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_operation(name, xp):
    layer, operation, text = LAYERS[name]
    on(xp, layer)
    x = xp.asarray(RNG.standard_normal((2, 3, 6, 6)).astype(np.float32))
    got, expected = layer(Tensor(x)), operation(x, *[p.value for p in layer.parameters()])
    assert repr(layer) == text
    assert array_module(got.value) is xp
    np.testing.assert_array_equal(to_numpy(got), to_numpy(expected))


@pytest.mark.parametrize("bias", [True, False])
def test_dense(bias, xp):
    layer = on(xp, Dense(4, 3, bias=bias, rng=2))
    assert list(layer.state_dict()) == ["weight", "bias"][: 1 + bias]
    assert repr(layer) == "Dense(4, 3)"
    w, b = layer.weight, 0
    if bias:
        b = np.array([1, 2, 3], np.float32)
        layer.bias.value[...] = xp.asarray(b)
    by_hand = VECTORS @ to_numpy(w).T + b
    np.testing.assert_allclose(to_numpy(layer(xp.asarray(VECTORS))), by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5), (2, 1, 2, 2), (4,)])
def test_dense_says_what_it_takes(shape):
    with pytest.raises(ValueError, match=r"Dense\(4, 3\) takes \(N, 4\), got .*put Flatten\(\)"):
        Dense(4, 3)(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Dense(0, 3),
        lambda: Dense(3, 0),
        lambda: Dense(3.0, 2),
        lambda: Conv2d(0, 1, 3),
        lambda: Conv2d(1, -1, 3),
        lambda: models.fast_cnn(width=0),
        lambda: models.mlp((4, 0, 3)),
    ],
)
def test_layers_have_inputs_and_outputs(make):
    with pytest.raises(ValueError, match=r"(inputs|outputs) must be an integer ≥ 1"):
        make()


def test_logits_in_half_precision_are_averaged_in_single():
    x = Tensor(np.full((2, 3), 60_000, np.float16))
    y = Average(Flatten(), Flatten(), Flatten())(x)
    [g] = grad(y, [x], np.ones((2, 3)))
    assert y.dtype == g.dtype == np.float16
    np.testing.assert_array_equal(y.value, x.value)
    np.testing.assert_allclose(g, 1, rtol=1e-3)


def test_layers_refuse_what_their_operations_refuse():
    x = np.zeros((1, 1, 4, 4), np.float32)
    with pytest.raises(ValueError, match="kernel_size must be an int ≥ 1"):
        Conv2d(1, 1, 0)
    for make in (MaxPool2d, AvgPool2d):
        with pytest.raises(ValueError, match="kernel_size must be an int ≥ 1"):
            make(0)
    for make in (lambda **how: Conv2d(1, 1, 2, **how), lambda **how: MaxPool2d(2, **how),
                 lambda **how: AvgPool2d(2, **how)):  # fmt: skip
        with pytest.raises(ValueError, match="stride must be an int ≥ 1"):
            make(stride=0)
    with pytest.raises(ValueError, match="padding must be an int ≥ 0"):
        Conv2d(1, 1, 2, padding=(0, -1))
    for layer in (Conv2d(1, 1, 5), MaxPool2d(5), AvgPool2d(5)):
        with pytest.raises(ValueError, match="does not fit into an image"):
            layer(x)


def test_activation_names():
    with pytest.raises(ValueError, match=r"activation must be one of .*relu.*got 'swish'"):
        models.mlp(activation="swish")


# ---- modules ------------------------------------------------------------------------------------


class Residual(Module):
    """A user's own: tensors, modules, lists, tuples, and what is none of these."""

    def __init__(self):
        self.scale = Tensor(np.full(1, 2.0, np.float32))
        self.inner = Sequential(Dense(4, 4, rng=1), ReLU())
        self.name = "residual"
        self.branches = [Dense(4, 4, bias=False, rng=2), Tensor(np.ones(4, np.float32)), 7]
        self.head = (Dense(4, 3, rng=3),)

    def __call__(self, x):
        x = x + self.scale * self.inner(x)
        return self.head[0](x + self.branches[0](x) * self.branches[1])


def test_a_module_of_ones_own():
    model = Residual()
    names = ["scale", "inner.0.weight", "inner.0.bias", "branches.0.weight", "branches.1",
             "head.0.weight", "head.0.bias"]  # fmt: skip
    assert [name for name, _ in model.named_parameters()] == names == list(model.state_dict())
    assert model.parameters()[4] is model.branches[1]
    gradients = grad(ops.sum(model(VECTORS) ** 2), model.parameters(), unused="raise")
    assert [g.shape for g in gradients] == [p.shape for p in model.parameters()]
    other = Residual().astype(np.float64)
    other.scale.value[:] = 5
    other.load_state_dict(model.state_dict())
    np.testing.assert_allclose(other(VECTORS).value, model(VECTORS).value, rtol=1e-5)


def test_parameters_at_any_depth():
    class Nested(Module):
        def __init__(self):
            self.blocks = [[Dense(4, 4, rng=1), Dense(4, 3, bias=False, rng=2)], []]
            self.parts = {"key": Dense(4, 3, bias=False, rng=3), 1: ({"b": Tensor(np.ones(3))},)}

        def __call__(self, x):
            first, second = self.blocks[0]
            return second(first(x)) + self.parts["key"](x) * self.parts[1][0]["b"]

    model = Nested()
    names = ["blocks.0.0.weight", "blocks.0.0.bias", "blocks.0.1.weight", "parts.key.weight",
             "parts.1.0.b"]  # fmt: skip
    assert list(model.state_dict()) == names
    gradients = grad(ops.sum(model(VECTORS)), model.parameters(), unused="raise")
    assert len(gradients) == len(names)


class Centre(Module):
    """Subtracts the mean of the batch; notes how large the batches are."""

    def __init__(self):
        self.sizes = []

    def __call__(self, x):
        self.sizes.append(len(x))
        return x - ops.mean(x, axis=0, keepdims=True)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: layer,
        lambda layer: Sequential(ReLU(), layer),
        lambda layer: Sequential(Sequential(layer)),
        lambda layer: layer.__call__,  # a function: nothing is known of it
    ],
)
def test_a_layer_that_looks_at_the_batch_gets_it_whole(wrap):
    x = RNG.random((40, 1, 6, 6), np.float32)
    centre = Centre()
    out = Sequential(Conv2d(1, 2, 3, rng=0), wrap(centre))(x)
    assert centre.sizes == [40]
    assert out.shape == (40, 2, 4, 4)
    np.testing.assert_allclose(out.value.mean(0), 0, atol=1e-5)


def test_predictions_and_accuracy_are_those_of_the_batch_that_was_given():
    x, y = RNG.random((1100, 1, 6, 6), np.float32), RNG.integers(0, 2, 1100)
    centre = Centre()
    model = Sequential(Conv2d(1, 2, 3, rng=0), centre, Flatten(), Dense(32, 2, rng=0))
    predicted = evaluate.predict(model, x)
    assert centre.sizes == [1100]
    np.testing.assert_array_equal(predicted, model(x).value.argmax(1))
    evaluate.predict(model, x, batch_size=600)
    assert centre.sizes == [1100, 1100, 600, 500]  # what the user asks for
    del centre.sizes[:]
    assert evaluate.accuracy(model, x, y) == (predicted == y).mean()
    assert centre.sizes == [1100]


def test_other_layers_get_pieces_of_a_large_batch():
    centre = Centre()
    centre.by_example = True  # which is not true
    Sequential(Conv2d(1, 2, 3), centre)(RNG.random((40, 1, 6, 6), np.float32))
    assert len(centre.sizes) > 1 and sum(centre.sizes) == 40


def test_a_new_call_does_not_inherit_the_promise_to_treat_examples_alone():
    class Doubled(Sequential):
        def __call__(self, x):
            return super().__call__(x) * 2

    class Promised(Doubled):
        by_example = True

        def __call__(self, x):
            return super().__call__(x)

    class Renamed(Dense):
        """No ``__call__`` of its own."""

    class Mixin:
        def __call__(self, x):
            return super().__call__(x)

    class Mixed(Mixin, Dense):
        pass

    assert not Mixed.by_example
    assert Sequential(ReLU()).by_example and Renamed(1, 1).by_example and Promised().by_example
    assert not Doubled(ReLU()).by_example and not Module.by_example


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_network_is_cut_once_at_the_outermost_level(depth, monkeypatch):
    """However deep the convolution lies; the pieces are not cut again."""
    inner = Sequential(Conv2d(1, 2, 3, rng=0), ReLU())
    for _ in range(depth):
        inner = Sequential(ReLU(), inner)
    cut = []

    def by_examples(f, x):
        cut.append(f)
        return parallel.by_examples(f, x)

    monkeypatch.setattr(layers, "by_examples", by_examples)
    z = inner(Tensor(RNG.random((40, 1, 6, 6), np.float32)))
    assert cut == [inner] and z.operation is parallel.by_examples


def test_a_network_without_convolution_stays_whole():
    model = models.mlp((4, 5, 2))
    assert model(Tensor(RNG.random((200, 4)))).operation is ops.dense


# ---- without a tape ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        models.slides_cnn(),
        models.mlp(),
        Average(models.fast_cnn(rng=1), Sequential(models.fast_cnn(rng=2))),
        models.interval_cnn(thresholds=(0.3, 0.7)),
    ],
)
def test_a_frozen_network_computes_the_same_and_records_nothing(model):
    x, y = RNG.random((40, 1, 28, 28), np.float32), RNG.integers(0, 10, 40)
    frozen = model.frozen()
    z = frozen(x)
    assert isinstance(z, np.ndarray) and frozen.parameters() == []
    np.testing.assert_array_equal(z, model(x).value)
    gradients = []
    for net in (model, frozen):
        image = Tensor(x)
        gradients += grad(losses.cross_entropy(net(image), y), [image])
    np.testing.assert_array_equal(*gradients)
    assert all(isinstance(p, Tensor) for p in model.parameters()) and model.parameters()


def test_a_frozen_network_shares_its_weights():
    model = Sequential(Dense(4, 2, rng=0))
    frozen = model.frozen()
    model[0].weight.value[:] = 1.0
    np.testing.assert_array_equal(frozen(VECTORS), model(VECTORS).value)


@pytest.mark.parametrize(
    "make",
    [
        dict,
        collections.OrderedDict,
        lambda **parts: collections.defaultdict(list, **parts),
        collections.namedtuple("Parts", ["body", "scale"]),
    ],
)
def test_modules_within_lists_and_dictionaries_are_frozen(make):
    class Residual(Module):
        by_example = True

        def __init__(self):
            self.parts = make(body=[Dense(4, 4), ReLU()], scale=Tensor(np.ones(1, np.float32)))
            self.calls = []

        def __call__(self, x):
            self.calls.append(len(x))
            named = isinstance(self.parts, dict)
            layers, scale = self.parts.values() if named else self.parts
            body = x
            for layer in layers:
                body = layer(body)
            return x + scale * body

    model = Residual()
    out = model.frozen()(VECTORS)
    assert isinstance(out, np.ndarray) and model.calls == [len(VECTORS)]
    np.testing.assert_array_equal(out, model(VECTORS).value)
    assert type(model.frozen().parts) is type(model.parts)
    assert len(model.parameters()) == 3


def test_a_module_that_promises_nothing_is_not_frozen():
    class Own(Module):
        def __init__(self):
            self.w = Tensor(np.ones(4, np.float32))

        def __call__(self, x):
            return x * self.w.value  # an array would have no .value

    own = Own()
    assert own.frozen() is own
    assert Sequential(own, ReLU()).frozen()[0] is own
    assert evaluate.predict(Sequential(own), VECTORS).shape == (len(VECTORS),)


def test_a_module_needs_a_call():
    class Nothing(Module):
        pass

    with pytest.raises(NotImplementedError, match=r"Nothing needs a method __call__"):
        Nothing()(VECTORS)


def test_a_layer_used_twice_has_one_set_of_parameters():
    layer = Dense(4, 4)
    model = Sequential(layer, ReLU(), layer)
    assert model.parameters() == [layer.weight, layer.bias]  # by identity: == would be an array
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_sequential_is_a_sequence():
    model = Sequential(Dense(4, 6), ReLU(), Dense(6, 2))
    assert len(model) == 3 and model[1] is model.layers[1] and model[-1] is model.layers[2]
    head, tail = model[:2], model[2:]
    assert isinstance(head, Sequential) and len(head) == 2 and head[0] is model[0]
    np.testing.assert_array_equal(tail(head(VECTORS)).value, model(VECTORS).value)
    assert repr(model) == "Sequential(\n  (0) Dense(4, 6)\n  (1) ReLU()\n  (2) Dense(6, 2)\n)"


# ---- what is a parameter ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "prefix"), [(Sequential, ""), (Average, "members.")], ids=["Sequential", "Average"]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_subclass_of_a_container_adds_parameters(base, prefix, first, monkeypatch):
    class Own(base):
        def __init__(self):
            if first:
                self.scale = Tensor(np.full(1, 2, np.float32))
            super().__init__(Dense(4, 3, rng=1), ReLU() if base is Sequential else Dense(4, 3))
            if not first:
                self.scale = Tensor(np.full(1, 2, np.float32))
            self.more = {"head": [Sequential(Dense(3, 2, rng=2))]}

        def __call__(self, x):
            return self.more["head"][0](self.scale * super().__call__(x))

    model = Own()
    held = [f"{prefix}0.weight", f"{prefix}0.bias"]
    held += [f"{prefix}1.weight", f"{prefix}1.bias"] * (base is Average)
    head = ["more.head.0.0.weight", "more.head.0.0.bias"]
    assert list(model.state_dict()) == (
        ["scale", *held, *head] if first else [*held, "scale", *head]
    )
    gradients = grad(ops.sum(model(VECTORS)), model.parameters(), unused="raise")
    assert len(gradients) == len(held) + 3
    assert model.more["head"][0][0] in list(model.modules())
    assert model.astype(np.float64).scale.dtype == np.float64
    monkeypatch.setattr(layers, "get_backend", lambda name: strict_cupy)
    assert array_module(model.to("cupy").scale.value) is strict_cupy
    other = Own()
    other.load_state_dict({name: 2 * a for name, a in model.state_dict().items()})
    assert other.scale.value == 4
    other.by_example = True  # all it computes is example by example
    frozen = type("Promised", (Own,), {"by_example": True})().frozen()
    assert isinstance(frozen.scale, np.ndarray) and frozen.parameters() == []
    assert isinstance(frozen(VECTORS), np.ndarray)


class Remembers(Module):
    """Keeps what it last computed, in three ways."""

    def __init__(self):
        self.dense = Dense(4, 2, rng=1)
        self.last, self.all, self.named = None, [], {}

    def __call__(self, x):
        self.last = self.named["y"] = self.dense(x)
        self.all.append(self.last)
        return ops.relu(self.last)


def test_an_activation_kept_as_an_attribute_is_not_a_parameter():
    model = Sequential(Remembers(), Remembers())[:1]
    before = model.state_dict()
    for x in VECTORS, Tensor(VECTORS):
        model(x)
        assert list(model.state_dict()) == list(before) == ["0.dense.weight", "0.dense.bias"]
    assert model.parameters() == Sequential(model[0].dense).parameters()
    model.load_state_dict(before)


class Child(Module):
    by_example = True

    def __init__(self, rng):
        self.dense, self.parent, self.sibling = Dense(4, 4, rng=rng), None, None

    def __call__(self, x):
        return self.dense(x)


def test_modules_that_refer_to_each_other():
    first, second = Child(1), Child(2)
    net = Sequential(first, second)
    net.itself, first.parent, second.parent = [net], net, {"of": net}
    first.sibling = second
    own = ["dense.weight", "dense.bias"]
    names = [f"{path}.{name}" for path in ("0", "0.sibling", "1") for name in own]
    assert list(net.state_dict()) == names
    assert net.parameters() == [p for child in (first, second) for p in child.dense.parameters()]
    assert {id(m) for m in net.modules()} == {
        id(m) for m in (net, first, second, first.dense, second.dense)
    }
    assert first.parameters() and net.by_example and parallel.may_cut(net)
    frozen = net.frozen()
    assert frozen.itself[0] is frozen and frozen[0].parent is frozen
    assert frozen[0].sibling is frozen[1] and frozen.parameters() == []
    np.testing.assert_array_equal(frozen(VECTORS), net(VECTORS).value)
    net.astype(np.float64).load_state_dict(net.state_dict())
    assert net(VECTORS).dtype == np.float64


@pytest.mark.parametrize("make", [Sequential, Average])
def test_a_container_may_be_told_to_keep_the_batch_whole(make):
    model = make(Conv2d(1, 2, 3, rng=1))
    assert model.by_example and parallel.may_cut(model)
    model.by_example = False
    assert not model.by_example and not parallel.may_cut(model)
    assert not parallel.may_cut(Sequential(model))
    x = RNG.random((40, 1, 6, 6), np.float32)
    if make is Sequential:
        assert model(Tensor(x)).operation is not parallel.by_examples
    model.by_example = True
    assert parallel.may_cut(model)


# ---- weights in and out -------------------------------------------------------------------------


def test_state_dict_round_trip(make):
    model, other = make(rng=1), make(rng=2)
    state = model.state_dict()
    other.load_state_dict(state)
    assert_same_weights(model, other)
    before = other(IMAGES).value
    for array in state.values():
        array[...] = np.nan  # a state dict shares no memory with a model, in either direction
    np.testing.assert_array_equal(model(IMAGES).value, before)
    np.testing.assert_array_equal(other(IMAGES).value, before)


def without(name):
    return lambda state: {key: array for key, array in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("3.bias"), r"belong to another network: missing \['3.bias'\], unknown \[\]"),
        (lambda state: state | {"5.weight": np.zeros(1)}, r"missing \[\], unknown \['5.weight'\]"),
        (lambda state: state | {"3.bias": np.zeros(4)}, r"3.bias has shape \(4,\).*needs \(3,\)"),
        (lambda state: state | {"3.bias": np.array(["a", "b", "c"])}, "3.bias holds <U1"),
        (lambda state: state | {"3.bias": np.full(3, 1j)}, "3.bias holds complex128"),
    ],
    ids=["missing", "unknown", "shape", "text", "complex"],
)
def test_weights_of_another_network_change_nothing(change, message):
    model = models.mlp((4, 5, 3), rng=1)
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(change(models.mlp((4, 5, 3), rng=2).state_dict()))
    assert_same_weights(model, models.mlp((4, 5, 3), rng=1))


def test_loading_keeps_dtype_and_backend(xp):
    state = models.mlp((4, 3), rng=1).state_dict()
    weight = state["1.weight"]
    for given in (state, {name: xp.asarray(array) for name, array in state.items()}):
        model = on(xp, models.mlp((4, 3), rng=2)).astype(np.float64)
        model.load_state_dict(given)
        got = model.parameters()[0].value
        assert array_module(got) is xp and got.dtype == np.float64
        np.testing.assert_array_equal(to_numpy(got), weight)
    assert type(model.state_dict()["1.weight"]) is np.ndarray


def test_loading_tensors_of_pytorch():
    class TorchTensor:
        """Of a package that is no backend; NumPy reads it."""

        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    model, other = models.mlp((4, 3), rng=1), models.mlp((4, 3), rng=2)
    other.load_state_dict({name: TorchTensor(a) for name, a in model.state_dict().items()})
    assert_same_weights(model, other)


def test_to_moves_to_a_backend_and_back(monkeypatch):
    backends = {"numpy": np, "cupy": strict_cupy}
    monkeypatch.setattr(layers, "get_backend", backends.__getitem__)
    model = models.slides_cnn(rng=1)
    parameters, expected = model.parameters(), model(IMAGES).value
    for name, xp in reversed(backends.items()):
        assert model.to(name) is model
        assert all(array_module(p.value) is xp for p in model.parameters())
        got = model(xp.asarray(IMAGES))
        np.testing.assert_allclose(to_numpy(got), expected, rtol=1e-4, atol=1e-6)
    assert model.parameters() == parameters  # the same tensors, that an optimiser knows


def test_to_an_unknown_backend():
    with pytest.raises(ValueError, match=r"backend must be one of .*got 'jax'"):
        models.linear().to("jax")


def test_astype(xp):
    model = on(xp, models.slides_cnn(rng=1))
    x = xp.asarray(IMAGES)
    single = to_numpy(model(x))
    assert model.astype(np.float64) is model
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float64)}
    double = model(x.astype(np.float64))
    assert double.dtype == np.float64
    np.testing.assert_allclose(to_numpy(double), single, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [int, "int8", bool, complex])
def test_parameters_are_floating_point_numbers(dtype):
    model = models.mlp((4, 3), rng=1)
    with pytest.raises(TypeError, match="between floating-point types"):
        model.astype(dtype)
    assert_same_weights(model, models.mlp((4, 3), rng=1))
