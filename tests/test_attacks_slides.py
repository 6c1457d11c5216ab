"""The slides' attacks: against loops over single images, and what every attack promises."""

import inspect
import threading
import warnings
from itertools import pairwise

import numpy as np
import pytest
import strict_cupy
from hypothesis import given
from hypothesis import strategies as st

from tinyadv import Tensor, layers, losses, models, ops, parallel, to_numpy
from tinyadv.attacks import AttackWarning
from tinyadv.attacks.slides import Trace, fake_image, targeted, untargeted
from tinyadv.evaluate import accuracy, predict

close = np.testing.assert_allclose
same = np.testing.assert_array_equal


# ---- a network with its gradient by hand, and images ---------------------------------------------


class Net:
    """V tanh(W x + b), on any backend."""

    by_example = True

    def __init__(self, xp=np, dtype=np.float64, scale=2.0, seed=0):
        rng = np.random.default_rng(seed)
        w = rng.standard_normal((12, 25)) * scale / 5
        b, v = -w.sum(1) / 2, rng.standard_normal((5, 12))  # in the middle at mid-grey
        self.w, self.b, self.v = (xp.asarray(a.astype(dtype)) for a in (w, b, v))

    def __call__(self, x):
        hidden = ops.tanh(ops.dense(ops.reshape(x, (len(x), -1)), self.w, self.b))
        return ops.dense(hidden, self.v)

    def look(self, x, k):
        """Of one image: p = softmax(z), and the gradient of -log p_k."""
        hidden = np.tanh(self.w @ x.ravel() + self.b)
        z = self.v @ hidden
        p = np.exp(z - z.max())
        p /= p.sum()
        g = self.w.T @ ((1 - hidden**2) * (self.v.T @ (p - np.eye(5)[k])))
        return p, g.reshape(x.shape)


NET = Net()
STEEP = Net(scale=8.0)  # with small gradients in places


def images(n=12, low=0.0, high=1.0, dtype=np.float64, seed=0, shape=(1, 5, 5)):
    """Noise; where it is black or white, some pixels are exactly so."""
    u = np.random.default_rng(seed).uniform(-0.1, 1.1, (n, *shape))
    return (low + (high - low) * np.clip(u, 0, 1)).astype(dtype)


def others(x, net=NET):
    """The model's answers, and a target for each that is another."""
    y = to_numpy(predict(net, x))
    return y, (y + 1 + np.arange(len(x)) % 4) % 5


def as_attack(attack, net, x, settings=None, **more):
    """Call any of the three; targets are those of `others`, unless given."""
    settings = {**(settings or {}), **more}
    if attack is untargeted:
        return attack(net, x, **settings)
    host = to_numpy(x)
    if "target" not in settings:
        settings["target"] = others(host)[1]
    if attack is fake_image:
        return attack(net, settings.pop("target"), x, **settings)
    return attack(net, x, **settings)


SHORT = {fake_image: {"steps": 4}, untargeted: {"steps": 4}, targeted: {"steps": 6}}
every_attack = pytest.mark.parametrize("attack", SHORT, ids=lambda f: f.__name__)
from_an_image = pytest.mark.parametrize("attack", [untargeted, targeted], ids=lambda f: f.__name__)


# ---- against loops over single images ------------------------------------------------------------


def swapped(p, k):
    """Keras's binary cross-entropy with its arguments swapped, in float32's constants."""
    low, high = float(np.float32(1e-7)), float(np.float32(1 - 1e-7))
    log_t, log_not_t = np.log([low, high]), np.log([high, 1 - high])  # in float32 1 - low is high
    t = (np.arange(len(p)) == k).astype(int)
    return -np.mean(p * log_t[t] + (1 - p) * log_not_t[t])


def slow_fake_image(net, x, k, eta, steps, loss, clip):
    trace = []
    for step in range(steps + 1):
        p, g = net.look(x, k)
        trace.append(((swapped(p, k) if loss == "swapped" else -np.log(p[k])), p[k]))
        if loss == "swapped":  # a(1 - p_k) has a p_k times the gradient of -log p_k
            constants = [swapped(q, k) for q in (np.eye(len(p))[(k + 1) % 5], np.eye(len(p))[k])]
            g = (constants[0] - constants[1]) * p[k] * g
        if step < steps:
            x = x - eta * g
            x = np.clip(x, 0, 1) if clip else x
    return x, np.array(trace)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("loss", ["swapped", "cross-entropy"])
def test_a_fake_image_is_a_naive_loop(loss, clip):
    fun = losses.cross_entropy if loss == "cross-entropy" else losses.swapped_binary_cross_entropy
    x, target = images(), np.arange(12) % 5
    slow = [slow_fake_image(NET, *pair, 0.5, 6, loss, clip) for pair in zip(x, target, strict=True)]
    got, trace = fake_image(NET, target, x, steps=6, loss=fun, clip=clip, details=True)
    close(got, [image for image, _ in slow], atol=1e-9)
    close(trace.loss, np.stack([t[:, 0] for _, t in slow], axis=1), rtol=1e-6, atol=1e-9)
    close(trace.probability, np.stack([t[:, 1] for _, t in slow], axis=1), rtol=1e-6)
    assert (got.min() < 0 and got.max() > 1) != clip


def slow_untargeted(net, x, y, alpha, steps, stop):
    for _ in range(steps):
        p, g = net.look(x, y)
        if stop and p.argmax() != y:
            break
        if abs(g).max() > 0:
            x = np.clip(x + alpha * g / abs(g).max(), 0, 1)
    return x


@pytest.mark.parametrize("stop", [False, True])
def test_untargeted_is_a_naive_loop(stop):
    x, (y, wrong) = images(20), others(images(20))
    y = np.where(np.arange(20) < 3, wrong, y)  # three are misread at the start
    expected = [slow_untargeted(NET, *pair, 0.04, 12, stop) for pair in zip(x, y, strict=True)]
    got = untargeted(NET, x, y, step_size=0.04, steps=12, stop_when_wrong=stop)
    close(got, expected, atol=1e-9)
    stopped = untargeted(NET, x, y, step_size=0.04, steps=12, stop_when_wrong=True)
    same((stopped == x).all((1, 2, 3)), np.arange(20) < 3)


def slow_targeted(net, x0, k, alpha, steps, distance, scale, keep):
    x, seen = x0, []
    for _ in range(steps + 1):
        p, g = net.look(x, k)
        d = x - x0
        away = abs(d).sum() if distance == "l1" else (d**2).sum()
        seen.append((p.argmax() != k, -np.log(p[k]) + scale * away, x))
        g = g + scale * (np.sign(d) if distance == "l1" else 2 * d)
        if abs(g).max() > 0:
            x = np.clip(x - alpha * g / abs(g).max(), 0, 1)
    return min(seen, key=lambda point: point[:2])[2] if keep == "best" else seen[-1][2]


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize(("weight", "reduction"), [(5.0, "mean"), (0.2, "sum"), (0.0, "mean")])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_targeted_is_a_naive_loop(distance, weight, reduction, keep):
    x, (_, target) = images(15), others(images(15))
    scale = weight / 25 if reduction == "mean" else weight
    expected = [
        slow_targeted(NET, *pair, 0.037, 9, distance, scale, keep)
        for pair in zip(x, target, strict=True)
    ]
    got = targeted(
        NET, x, target=target, distance=distance, weight=weight, reduction=reduction, keep=keep,
        step_size=0.037, steps=9,
    )  # fmt: skip
    close(got, expected, atol=1e-7)


def test_a_fake_image_starts_as_noise():
    model = models.mlp((784, 5), rng=1)
    start = np.random.default_rng(7).random((3, 1, 28, 28)).astype(np.float32)
    got = fake_image(model, np.array([1, 0, 4]), rng=7)
    assert got.dtype == np.float32
    same(got, fake_image(model, np.array([1, 0, 4]), start))
    close(fake_image(model, 2, rng=7, learning_rate=0.0), start[:1])
    assert fake_image(lambda x: x[:, 0], 2, shape=(2, 5)).shape == (1, 2, 5)


def test_one_start_for_each_target():
    x = images(3)
    same(fake_image(NET, 2, x), fake_image(NET, np.array([2, 2, 2]), x))
    same(fake_image(NET, [2, 2, 2], x), fake_image(NET, np.array([2, 2, 2], np.uint8), x))


def test_the_trace():
    x = images(4)
    got, trace = fake_image(NET, 2, x, steps=7, details=True)
    assert isinstance(trace, Trace) and trace.loss.shape == trace.probability.shape == (8, 4)
    same(got, fake_image(NET, 2, x, steps=7))
    _, first = fake_image(NET, 2, x, steps=3, details=True)
    close(first.loss, trace.loss[:4])
    p = to_numpy(ops.softmax(NET(got), axis=1))
    close(trace.probability[-1], p[:, 2])
    # The slides' loss is a number times 1 - p: for ten classes 3.206.
    close(trace.loss / (1 - trace.probability), np.full((8, 4), 2 * 3.206), rtol=1e-4)
    assert (trace.loss[-1] < trace.loss[0]).mean() >= 0.75  # η is large for this network


def test_the_identity_of_the_slides_loss():
    model = models.mlp((784, 10), rng=0)
    _, trace = fake_image(model, np.arange(10), steps=10, details=True)
    assert abs(trace.loss - 3.206 * (1 - trace.probability)).max() < 1e-4
    at_the_slides_end = 3.206 * (1 - 0.99777)
    assert abs(at_the_slides_end - 0.00715) < 1e-4


# ---- a gradient of zero --------------------------------------------------------------------------


def saturated(x):
    """So sure that in floating-point numbers the label has the probability 1, and no gradient."""
    flat = ops.reshape(x, (len(x), -1))
    return ops.dense(flat, 1e4 * np.eye(5, 25).astype(x.dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_where_there_is_no_gradient_the_image_stays(dtype):
    x = np.zeros((2, 1, 5, 5), dtype)
    x[0, 0, 0, 3] = 1  # certain; the second is undecided, all logits being 0
    x_adv = untargeted(saturated, x, np.array([3, 3]))
    assert np.isfinite(x_adv).all()
    same(x_adv[0], x[0])
    assert (x_adv[1] != x[1]).any()
    alone = untargeted(saturated, x[1:], np.array([3]))
    same(alone[0], x_adv[1])
    fake = fake_image(saturated, np.array([0, 0]), x)
    same(fake[0], x[0])
    # The gradient of a distance alone, at 0, is 0 as well.
    flat = lambda x: ops.dense(ops.reshape(x, (len(x), -1)), np.zeros((5, 25), dtype))
    for distance in ("l1", "l2"):
        for keep in ("best", "last"):
            same(targeted(flat, x, target=2, distance=distance, keep=keep), x)


def test_gradients_too_small_to_square_still_count():
    w = np.random.default_rng(0).standard_normal((5, 25)) * 1e-30
    x = images(3, dtype=np.float32)
    tiny = lambda x: ops.dense(ops.reshape(x, (len(x), -1)), w.astype(np.float32))
    y = np.array([0, 1, 2])
    moved = abs(untargeted(tiny, x, y, steps=1, step_size=0.05) - x).max((1, 2, 3))
    assert (moved > 0.03).all()


# ---- what every attack promises ------------------------------------------------------------------


@st.composite
def runs(draw):
    attack = draw(st.sampled_from(list(SHORT)))
    settings = {"steps": draw(st.integers(1, 6))}
    settings["loss"] = draw(st.sampled_from([losses.cross_entropy, losses.margin, losses.dlr]))
    if attack is fake_image:
        settings |= {"clip": True, "learning_rate": draw(st.sampled_from([0.1, 5.0]))}
    else:
        settings["step_size"] = draw(st.sampled_from([0.01, 0.3]))
    if attack is untargeted:
        settings["stop_when_wrong"] = draw(st.booleans())
    if attack is targeted:
        for name, choices in [("distance", ["l1", "l2"]), ("keep", ["best", "last"]),
                              ("reduction", ["mean", "sum"])]:  # fmt: skip
            settings[name] = draw(st.sampled_from(choices))
        settings["weight"] = draw(st.sampled_from([0.0, 1.0, 30.0]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return (
        attack,
        settings,
        images(draw(st.integers(1, 5)), dtype=dtype, seed=draw(st.integers(0, 99))),
    )


@given(runs())
def test_the_result_is_in_the_box(run):
    attack, settings, x = run
    before = x.copy()
    x_adv = as_attack(attack, NET, x, settings)
    same(x, before)
    assert type(x_adv) is np.ndarray and x_adv.shape == x.shape and x_adv.dtype == x.dtype
    assert x_adv.flags.c_contiguous and x_adv.min() >= 0 and x_adv.max() <= 1
    if attack is not fake_image:  # no pixel moves by more than all steps together
        slack = {"float64": 1e-12, "float32": 1e-6}[str(x.dtype)]
        assert abs(x_adv - x).max() <= settings["steps"] * settings["step_size"] + slack


@every_attack
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_a_step_the_images_come_back_bit_by_bit(attack, dtype):
    x = images(dtype=dtype)
    none = {"learning_rate": 0.0} if attack is fake_image else {"step_size": 0.0}
    assert as_attack(attack, NET, x, none).tobytes() == x.tobytes()


@every_attack
def test_the_parameters_stay_as_they_are(attack):
    model, x = models.mlp((25, 8, 5)), images(dtype=np.float32)
    before = {name: p.copy() for name, p in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)
        as_attack(attack, model, x, SHORT[attack])
    after = model.state_dict()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_the_seed_decides_the_noise():
    model = models.mlp((784, 5))
    run = lambda rng: fake_image(model, [1, 2], rng=rng)
    same(run(0), run(0))
    same(run(0), run(np.random.default_rng(0)))
    assert not np.array_equal(run(0), run(1))


@every_attack
@pytest.mark.parametrize("n", [129, 300])
def test_any_number_of_threads_gives_the_same_bits(attack, n):
    x, net = images(n, dtype=np.float32), Net(dtype=np.float32)
    results = []
    for threads in (1, 2, 3):
        with parallel.limit(threads):
            results.append(as_attack(attack, net, x, SHORT[attack]))
    same(results[1], results[0])
    same(results[2], results[0])


@every_attack
@pytest.mark.parametrize("threads", [1, 2])
def test_the_pieces_share_as_many_threads_as_the_limit_allows(attack, threads):
    together, seen = threading.Barrier(threads, timeout=30), set()
    x, target = images(20), others(images(20))[1]

    def model(x):
        if 1 < len(x) < 20:  # a piece: not the check of the model, nor the predictions for all
            seen.add(threading.get_ident())
            together.wait()
        return NET(x)

    model.by_example = True
    with parallel.limit(threads):
        more = {} if attack is untargeted else {"target": target}
        as_attack(attack, model, x, SHORT[attack] | more)
    assert len(seen) == threads


@every_attack
def test_a_batch_of_any_size_is_its_examples(attack):
    x = images(300)
    target = others(x)[1]
    whole = as_attack(attack, NET, x, SHORT[attack])
    for part in (slice(1), slice(150, 155), slice(129)):
        chosen = {} if attack is untargeted else {"target": target[part]}
        close(as_attack(attack, NET, x[part], SHORT[attack], **chosen), whole[part], atol=1e-9)


@every_attack
@pytest.mark.parametrize("shape", [(25,), (5, 5)], ids=str)
def test_inputs_of_any_shape(attack, shape):
    x = images(6)
    expected = as_attack(attack, NET, x, SHORT[attack])
    got = as_attack(attack, NET, x.reshape(6, *shape), SHORT[attack], **(
        {} if attack is untargeted else {"target": others(x)[1]}))  # fmt: skip
    close(got.reshape(x.shape), expected, atol=1e-12)


class OwnModule(layers.Module):
    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)


@every_attack
def test_the_model_is_any_function_of_images(attack):
    x = images()
    expected = as_attack(attack, NET, x, SHORT[attack])
    for model in (lambda x: NET(x), OwnModule(NET)):  # neither is cut, unlike NET
        close(as_attack(attack, model, x, SHORT[attack]), expected, atol=1e-12)


@from_an_image
def test_examples_that_are_wrong_already(attack):
    x = images(20)
    y = NET(x).argmin(1)
    x_adv = as_attack(attack, NET, x, SHORT[attack], y=y, **(
        {} if attack is untargeted else {"target": (y + 1) % 5, "weight": 0.0}))  # fmt: skip
    assert accuracy(NET, x_adv, y) == 0
    moved = (x_adv != x).any((1, 2, 3))
    if attack is targeted:  # what is the target already need not move
        moved |= NET(x).argmax(1) == (y + 1) % 5
    assert moved.all()


def test_without_labels_the_models_own_answers_are_attacked():
    x, (y, wrong) = images(), others(images())
    same(untargeted(NET, x), untargeted(NET, x, y))
    assert not np.array_equal(untargeted(NET, x), untargeted(NET, x, wrong))


# ---- more effort, and what is reached ------------------------------------------------------------


def test_more_steps_raise_the_loss():
    x = images(100)
    y = predict(NET, x)
    raised = [losses.cross_entropy(NET(x), y)]
    left = [1.0]
    for steps in (5, 10, 20):
        x_adv = untargeted(NET, x, y, steps=steps)
        raised.append(losses.cross_entropy(NET(x_adv), y))
        left.append(accuracy(NET, x_adv, y))
    assert (np.diff(raised) > 0).all() and left == sorted(left, reverse=True) and left[-1] < 0.2


def test_stopping_costs_no_success_and_saves_distance():
    x = images(100)
    y = predict(NET, x)
    on, off = (untargeted(NET, x, y, stop_when_wrong=stop) for stop in (True, False))
    assert accuracy(NET, on, y) <= accuracy(NET, off, y)
    far = lambda x_adv: abs(x_adv - x).sum((1, 2, 3))
    assert (far(on) <= far(off) + 1e-9).mean() > 0.9 and far(on).mean() < 0.8 * far(off).mean()


def objective(net, x, x_adv, target, distance="l1", weight=30.0):
    d = (x_adv - x).reshape(len(x), -1)
    away = abs(d).mean(1) if distance == "l1" else (d**2).mean(1)
    return losses.cross_entropy(net(x_adv), target, "none") + weight * away


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_best_point_is_kept(distance):
    x, (_, target) = images(100), others(images(100))
    points, weight = {}, {"l1": 12.0, "l2": 40.0}[distance]
    for keep in ("best", "last"):
        x_adv = targeted(NET, x, target=target, distance=distance, weight=weight, keep=keep)
        points[keep] = (
            NET(x_adv).argmax(1) == target,
            objective(NET, x, x_adv, target, distance, weight),
        )
    (reached, best), (reached_last, last) = points["best"], points["last"]
    assert (reached >= reached_last).all() and reached.mean() > reached_last.mean()
    both = reached == reached_last
    assert (best[both] <= last[both] + 1e-9).all() and best.mean() < last.mean()
    start = losses.cross_entropy(NET(x), target, "none")
    assert (best <= start + 1e-9)[~reached].all(), "x itself is one of the points"


def test_more_steps_never_make_the_best_point_worse():
    x, (_, target) = images(60), others(images(60))
    results = []
    for steps in (3, 10, 30):
        x_adv = targeted(NET, x, target=target, weight=5.0, steps=steps)
        reached = NET(x_adv).argmax(1) == target
        results.append((reached, objective(NET, x, x_adv, target, weight=5.0)))
    for (reached, value), (more_reached, less) in pairwise(results):
        assert (more_reached >= reached).all()
        assert (less <= value + 1e-9)[reached == more_reached].all()


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_a_larger_weight_keeps_nearer(distance):
    x, (_, target) = images(100), others(images(100))
    far, success = [], []
    for weight in (0.0, 2.0, 10.0, 1000.0):
        x_adv = targeted(NET, x, target=target, weight=weight, distance=distance)
        d = (x_adv - x).reshape(100, -1)
        far.append((abs(d) if distance == "l1" else d**2).mean())
        success.append((NET(x_adv).argmax(1) == target).mean())
    assert far == sorted(far, reverse=True) and far[-1] < far[0] / 2
    assert success == sorted(success, reverse=True) and success[0] > 0.9


def test_a_mean_is_a_sum_with_a_smaller_weight():
    x, (_, target) = images(), others(images())
    mean = targeted(NET, x, target=target, weight=25.0)
    close(targeted(NET, x, target=target, weight=1.0, reduction="sum"), mean, atol=1e-9)


# ---- every argument matters ----------------------------------------------------------------------

ARGUMENTS = {
    fake_image: {"learning_rate": 0.1, "steps": 5, "loss": losses.cross_entropy, "clip": True},
    untargeted: {"step_size": 0.1, "steps": 5, "loss": losses.margin, "stop_when_wrong": True},
    targeted: {
        "distance": "l2", "weight": 3.0, "reduction": "sum", "step_size": 0.02, "steps": 9,
        "keep": "last", "loss": losses.margin, "target": 2, "y": None,
    },
}  # fmt: skip
ELSEWHERE = {"model", "x", "y", "target", "progress", "details", "rng", "shape"}


@every_attack
def test_no_argument_is_forgotten(attack):
    assert (
        set(inspect.signature(attack).parameters) - ELSEWHERE == set(ARGUMENTS[attack]) - ELSEWHERE
    )


@pytest.mark.parametrize(
    ("attack", "name"),
    [(attack, name) for attack, names in ARGUMENTS.items() for name in names if name != "y"],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_argument_changes_the_result(attack, name):
    x = images()[predict(NET, images()) != 2]
    changed = {name: ARGUMENTS[attack][name]}
    settings = {"weight": 5.0} if attack is targeted and name == "distance" else {}
    result = as_attack(attack, NET, x, settings)
    assert not np.array_equal(as_attack(attack, NET, x, {**settings, **changed}), result)


def test_the_label_is_part_of_the_dlr_loss():
    x, (y, target) = images(), others(images())
    third = next(k for k in range(5) if k not in (y[0], target[0]))
    run = lambda y: targeted(NET, x[:1], y, target=target[:1], loss=losses.dlr, weight=1.0)
    assert not np.array_equal(run(y[:1]), run(np.array([third])))


@every_attack
def test_progress_shows_a_bar(attack, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, desc, disable, **_):
            self.done, self.seen = 0, (desc, total, disable)
            bars.append(self)

        def update(self, n):
            self.done += n

        __enter__ = lambda self: self
        __exit__ = lambda self, *error: None

    monkeypatch.setattr("tqdm.tqdm", Bar)
    as_attack(attack, NET, images(), SHORT[attack], progress=True)
    as_attack(attack, NET, images(), SHORT[attack])
    name = attack.__name__.replace("_", " ")
    assert [bar.seen for bar in bars] == [(name, 12, None)]
    assert all(bar.done == 12 for bar in bars)


# ---- what is refused, and what is warned of ------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: untargeted(NET, x + 1), "pixel values from 0 to 1.*to 2"),
        (lambda x: untargeted(NET, x, step_size=-0.1), "step_size must be a number ≥ 0, got -0.1"),
        (lambda x: untargeted(NET, x, step_size=np.inf), "step_size"),
        (lambda x: untargeted(NET, x, steps=0), "steps must be an integer ≥ 1"),
        (lambda x: targeted(NET, x, target=None), "target must be a class"),
        (lambda x: targeted(NET, x, target=5), "target must be from 0 to 4"),
        (lambda x: targeted(NET, x, target=[1, 2]), "target must be integers of shape"),
        (lambda x: targeted(NET, x, target=1, distance="linf"), "distance must be one of"),
        (lambda x: targeted(NET, x, target=1, reduction="none"), "reduction must be one of"),
        (lambda x: targeted(NET, x, target=1, keep="first"), "keep must be one of"),
        (lambda x: targeted(NET, x, target=1, weight=-1.0), "weight must be a number ≥ 0"),
        (lambda x: targeted(NET, x, target=1, weight=np.nan), "weight must be a number ≥ 0"),
        (lambda x: targeted(NET, x, target=1, step_size=np.nan), "step_size"),
        (lambda x: targeted(NET, x, target=1, steps=1.5), "steps must be"),
        (lambda x: fake_image(NET, 5, x), "target must be from 0 to 4"),
        (lambda x: fake_image(NET, [0, 1], x), "target must be integers of shape"),
        (lambda x: fake_image(NET, 0, 2 * x), "pixel values from 0 to 1.*to 2"),
        (lambda x: fake_image(NET, 0, x, learning_rate=-1), "learning_rate must be a number"),
        (lambda x: fake_image(NET, 0, x, steps=True), "steps must be"),
        (lambda x: fake_image(NET, [], shape=(1, 5, 5)), "x must be a batch"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(call, words):
    x = images()[predict(NET, images()) != 1]
    with pytest.raises(ValueError, match=words):
        call(x)


def test_a_target_that_is_the_label_is_warned_of_in_a_targeted_attack_alone():
    x = images()
    with pytest.warns(AttackWarning, match="their label y") as caught:
        targeted(NET, x, target=predict(NET, x), steps=1)
    assert caught[0].filename == __file__
    wrong = others(x)[1]
    with pytest.warns(AttackWarning, match="their label y"):
        targeted(NET, x, wrong, target=wrong, steps=1)
    fake_image(NET, predict(NET, x), x)


@every_attack
def test_probabilities_are_warned_of(attack):
    x = images()
    target = {} if attack is untargeted else {"target": others(x)[1]}
    with pytest.warns(AttackWarning, match="probabilities") as caught:
        as_attack(attack, lambda x: ops.softmax(NET(x), axis=1), x, target)
    assert caught[0].filename == __file__


# ---- on a device ---------------------------------------------------------------------------------


@every_attack
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_device_gets_the_same_result(attack, device, dtype):
    x = images(dtype=dtype)
    target = others(x)[1]
    target = {} if attack is untargeted else {"target": target}
    settings = {"weight": 3.0} if attack is targeted else {}
    expected = as_attack(attack, Net(dtype=dtype), x, settings, **target)
    on_device = {name: device.asarray(value) for name, value in target.items()}
    x_adv = as_attack(attack, Net(device, dtype=dtype), device.asarray(x), settings, **on_device)
    assert isinstance(x_adv, device.ndarray)
    if attack is targeted and dtype is np.float32:  # after 50 steps rounding has its own way
        assert accuracy(Net(dtype=dtype), to_numpy(x_adv), target["target"]) > 0.9
    else:
        close(to_numpy(x_adv), expected, atol=5e-5 if dtype is np.float32 else 1e-9)


def test_noise_goes_to_the_models_device(device):
    model = models.mlp((784, 5))
    expected, trace = fake_image(model, [1, 2], details=True)
    for p in model.parameters():
        p.value = device.asarray(p.value)
    got, on_device = fake_image(model, [1, 2], details=True)
    assert isinstance(got, device.ndarray)
    close(to_numpy(got), expected, atol=1e-5)
    close(to_numpy(on_device.loss), trace.loss, atol=1e-5)
    net = Net(device, np.float32)  # it has no parameters(): the targets say where
    assert isinstance(fake_image(net, device.asarray([1, 2]), shape=(25,)), device.ndarray)


@pytest.mark.parametrize(
    ("attack", "settings"),
    [(untargeted, {}), (untargeted, {"stop_when_wrong": True}), (targeted, {"keep": "best"}),
     (targeted, {"distance": "l2", "keep": "last"}), (fake_image, {"details": True})],
)  # fmt: skip
def test_no_step_waits_for_the_device(attack, settings):
    host = images(4)
    x, net = strict_cupy.asarray(host), Net(strict_cupy)
    y, target = (strict_cupy.asarray(a) for a in others(host))
    settings = settings | ({} if attack is untargeted else {"target": target})
    settings = settings | ({"y": y} if attack is not fake_image else {})
    waits = []
    for steps in (1, 6):
        with strict_cupy.count() as c:
            as_attack(attack, net, x, settings, steps=steps)
        waits.append((c.syncs, c.transfers))
    assert waits[0] == waits[1]


def test_the_gradient_is_taken_for_the_image_alone():
    """The model is given one tensor, and its weights are arrays or leaves nobody asks for."""
    given_tensors = []

    def model(x):
        given_tensors.append(isinstance(x, Tensor))
        return NET(x)

    x = images(1)
    untargeted(model, x, np.array([0]), steps=3)
    assert sum(given_tensors) == 4  # the check of the model, and three steps
