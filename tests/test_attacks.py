"""Attacks: what all of them promise, and those by the gradient against formulas and naive loops."""

import functools
import inspect
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest
import strict_cupy
from hypothesis import given
from hypothesis import strategies as st

from tinyadv import Tensor, attacks, conv, inputs, layers, losses, models, ops, parallel, to_numpy
from tinyadv.attacks import AttackWarning, apgd, fgsm, pgd, shared
from tinyadv.attacks.gradient import _checkpoints
from tinyadv.attacks.shared import worse
from tinyadv.balls import L1, L2, Linf
from tinyadv.evaluate import accuracy, predict

close = np.testing.assert_allclose
same = np.testing.assert_array_equal

SHORT = {fgsm: {}, pgd: {"steps": 5}, apgd: {"steps": 6}}  # few steps: enough for most tests
BALLS = [Linf(0.1), L2(0.4), L1(1.0)]
LOSSES = [losses.cross_entropy, losses.margin, losses.dlr]

every_attack = pytest.mark.parametrize("attack", SHORT, ids=lambda f: f.__name__)
iterative = pytest.mark.parametrize("attack", [pgd, apgd], ids=lambda f: f.__name__)
every_ball = pytest.mark.parametrize("ball", BALLS, ids=lambda b: type(b).__name__)
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
# Each ball and each loss once, where one has nothing to do with the other.
every_ball_and_loss = pytest.mark.parametrize(
    ("ball", "loss"),
    list(zip(BALLS, LOSSES, strict=True)),
    ids=lambda p: getattr(p, "__name__", type(p).__name__),
)


# ---- networks and images -------------------------------------------------------------------------


class Net:
    """V tanh(W x + b): a user's own class, on any backend. Its gradient is below, by hand."""

    by_example = True

    def __init__(self, xp=np, inputs=25, classes=5, dtype=np.float64, scale=2.0, seed=0):
        rng = np.random.default_rng(seed)
        w = rng.standard_normal((12, inputs)) * scale / inputs**0.5
        b, v = -w.sum(1) / 2, rng.standard_normal((classes, 12))  # in the middle at mid-grey
        self.w, self.b, self.v = (xp.asarray(a.astype(dtype)) for a in (w, b, v))

    def __call__(self, x):
        hidden = ops.tanh(ops.dense(ops.reshape(x, (len(x), -1)), self.w, self.b))
        return ops.dense(hidden, self.v)

    def cross_entropy(self, x, y):
        """The loss of one example, its gradient for the pixels, and whether it is fooled."""
        hidden = np.tanh(self.w @ x.ravel() + self.b)
        z = self.v @ hidden
        p = np.exp(z - z.max())
        p /= p.sum()
        g = self.w.T @ ((1 - hidden**2) * (self.v.T @ (p - np.eye(len(z))[y])))
        return -np.log(p[y]), g.reshape(x.shape), z.argmax() != y


NET = Net()


def images(n=12, shape=(1, 5, 5), low=0.0, high=1.0, dtype=np.float64, seed=0):
    """Noise; where it is black or white, some pixels are exactly so."""
    u = np.random.default_rng(seed).uniform(-0.1, 1.1, (n, *shape))
    return (low + (high - low) * np.clip(u, 0, 1)).astype(dtype)


def conv_net(xp=np, channels=1, dtype=np.float64):
    model = layers.Sequential(
        layers.Conv2d(channels, 4, 3, rng=0), layers.ReLU(), layers.MaxPool2d(2),
        layers.Flatten(), layers.Dense(4 * 3 * 3, 5, rng=1),
    )  # fmt: skip
    for p in model.parameters():
        p.value = xp.asarray(p.value.astype(dtype))
    return model


def logits(model, x):
    return to_numpy(model(x))


def value(loss, model, x, y, target=None):
    """What an attack is to raise, for each example."""
    z = logits(model, x)
    if target is None:
        return loss(z, y, reduction="none")
    if loss is losses.dlr:
        return losses.dlr_targeted(z, y, target, reduction="none")
    return -loss(z, target, reduction="none")


def norm(ball, delta):
    order = {Linf: np.inf, L2: 2, L1: 1}[type(ball)]
    return np.linalg.norm(delta.reshape(len(delta), -1), order, axis=1)


def assert_allowed(ball, x, x_adv):
    """An array like x, in [0, 1], and in the ball up to the rounding of x + δ."""
    assert type(x_adv) is type(x) and x_adv.shape == x.shape and x_adv.dtype == x.dtype
    assert x_adv.flags.c_contiguous
    slack = {"float64": 1e-12, "float32": 3e-6}[str(x.dtype)]
    x, x_adv = x.astype(float), x_adv.astype(float)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert (norm(ball, x_adv - x) <= ball.epsilon + slack).all()


# ---- what every attack promises ------------------------------------------------------------------


@st.composite
def runs(draw):
    """An attack with settings of any kind, and images, some of their pixels black or white."""
    attack = draw(st.sampled_from(list(SHORT)))
    ball = draw(st.sampled_from([Linf, L2, L1]))(draw(st.sampled_from([1e-3, 0.1, 0.5, 1.0])))
    settings = {"ball": ball, "random_start": draw(st.booleans()), "rng": draw(st.integers(0, 99))}
    settings["loss"] = draw(st.sampled_from(LOSSES))
    settings["target"] = draw(st.sampled_from([None, 2]))
    if attack is not fgsm:
        settings["steps"] = draw(st.integers(1, 6))
        settings["restarts"] = draw(st.integers(1, 2)) if settings["random_start"] else 1
        settings["momentum"] = draw(st.sampled_from([0.0, 0.5, 1.0]))
    if attack is pgd:
        settings["step_size"] = ball.epsilon * draw(st.sampled_from([0.1, 1.0]))
    n, dtype = draw(st.integers(1, 5)), draw(st.sampled_from([np.float32, np.float64]))
    x = images(n, dtype=dtype, seed=draw(st.integers(0, 99)))
    return attack, settings, x, np.array([0, 1, 3, 4, 0])[:n]


@given(runs())
def test_the_result_is_in_the_ball_and_in_the_box(run):
    attack, settings, x, y = run
    x_before, y_before = x.copy(), y.copy()
    x_adv = attack(NET, x, y, **settings)
    assert_allowed(settings["ball"], x, x_adv)
    same(x, x_before)
    same(y, y_before)


@every_attack
@every_ball
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("random_start", [False, True])
def test_with_epsilon_0_the_images_come_back_bit_by_bit(attack, ball, dtype, random_start):
    x = images(dtype=dtype)
    x_adv = attack(NET, x, ball=type(ball)(0.0), random_start=random_start, **SHORT[attack])
    assert x_adv.tobytes() == x.tobytes()


@every_attack
def test_the_parameters_stay_as_they_are(attack):
    model, x = models.mlp((25, 8, 5)), images(dtype=np.float32)
    before = {name: p.copy() for name, p in model.state_dict().items()}
    tensors = model.parameters()
    attack(model, x, **SHORT[attack])
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert all(a is b for a, b in zip(tensors, model.parameters(), strict=True))


@every_attack
@every_ball
def test_the_seed_decides_the_start(attack, ball):
    x = images()
    run = lambda rng: attack(NET, x, ball=ball, random_start=True, rng=rng, **SHORT[attack])
    same(run(0), run(0))
    same(run(0), run(np.random.default_rng(0)))
    assert not np.array_equal(run(0), run(1))  # though some end in the same corner
    once = np.random.default_rng(0)
    assert not np.array_equal(run(once), run(once)), "a generator goes on"


@every_attack
@pytest.mark.parametrize("n", [129, 300])
def test_any_number_of_threads_gives_the_same_bits(attack, n):
    x, model = images(n, (1, 8, 8), dtype=np.float32), conv_net(dtype=np.float32)
    results = []
    for threads in (1, 2, 3):
        with parallel.limit(threads):
            results.append(attack(model, x, random_start=True, **SHORT[attack]))
    same(results[1], results[0])
    same(results[2], results[0])


@every_attack
@every_ball
def test_a_batch_of_any_size_is_its_examples(attack, ball):
    x, settings = images(300), {"ball": ball, "random_start": False, **SHORT[attack]}
    y = predict(NET, x)
    whole = attack(NET, x, y, **settings)
    for n in (1, 2, 127, 128, 129):
        close(attack(NET, x[:n], y[:n], **settings), whole[:n], atol=1e-9)
    order = np.random.default_rng(0).permutation(300)
    close(attack(NET, x[order], y[order], **settings), whole[order], atol=1e-9)


@every_attack
@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.dlr], ids=lambda f: f.__name__)
def test_a_batch_of_any_size_is_its_examples_with_targets(attack, loss):
    x, settings = images(300), {"loss": loss, "random_start": False, **SHORT[attack]}
    y = predict(NET, x)
    target = (y + 1 + np.arange(300) % 4) % 5
    whole = attack(NET, x, y, target=target, **settings)
    for part in (slice(1), slice(150, 155), slice(299, None)):
        alone = attack(NET, x[part], y[part], target=target[part], **settings)
        close(alone, whole[part], atol=1e-9)


@every_attack
@pytest.mark.parametrize("shape", [(7,), (4, 3), (3, 8, 8)], ids=str)
def test_inputs_of_any_shape(attack, shape):
    model = conv_net(channels=3) if shape == (3, 8, 8) else Net(inputs=int(np.prod(shape)))
    x = images(6, shape)
    y = predict(model, x)
    x_adv = attack(model, x, y, ball=Linf(0.1), **SHORT[attack])
    assert_allowed(Linf(0.1), x, x_adv)
    assert value(losses.cross_entropy, model, x_adv, y).mean() > (
        value(losses.cross_entropy, model, x, y).mean()
    )


@every_attack
@pytest.mark.parametrize("weights", [np.float32, np.float64])
@pytest.mark.parametrize("pixels", [np.float32, np.float64])
def test_the_images_keep_their_precision_whatever_the_weights(attack, weights, pixels):
    x = images(dtype=pixels)
    settings = {"ball": Linf(0.1), "random_start": False, **SHORT[attack]}
    x_adv = attack(Net(dtype=weights), x, **settings)
    assert_allowed(Linf(0.1), x, x_adv)
    # In most pixels: the gradients' signs may differ where they are near 0.
    apart = abs(x_adv - attack(NET, x.astype(float), **settings))
    assert (apart < 1e-4).mean() > 0.9


class OwnModule(layers.Module):
    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)


@every_attack
def test_the_model_is_any_function_of_images(attack):
    sequential, x = models.mlp((25, 8, 5), activation="tanh"), images(dtype=np.float32)
    flat, first, tanh, last = sequential.layers
    expected = attack(sequential, x, **SHORT[attack])
    for model in (
        lambda x: sequential(x),
        OwnModule(sequential),
        functools.partial(lambda scale, x: sequential(x) * scale, 1.0),
        lambda x: last(tanh(first(flat(x)))),
    ):
        same(attack(model, x, **SHORT[attack]), expected)


@every_attack
def test_a_model_may_cut_its_batch_by_itself(attack, monkeypatch):
    monkeypatch.setattr(parallel, "CORES", 3)
    x, settings = images(150), {"random_start": False, **SHORT[attack]}
    cut = lambda x: parallel.by_examples(NET, x, least=2)
    close(attack(cut, x, **settings), attack(NET, x, **settings), atol=1e-9)


@every_attack
def test_without_labels_the_models_own_answers_are_attacked(attack):
    x = images()
    expected = attack(NET, x, predict(NET, x), **SHORT[attack])
    same(attack(NET, x, **SHORT[attack]), expected)
    assert not np.array_equal(attack(NET, x, (predict(NET, x) + 1) % 5, **SHORT[attack]), expected)


@every_attack
def test_labels_of_any_integer_type(attack):
    x = images()
    y = (predict(NET, x) + 1) % 5
    expected = attack(NET, x, y, **SHORT[attack])
    for labels in (y.astype(np.uint8), y.astype(np.int32), y.tolist(), Tensor(y)):
        same(attack(NET, x, labels, **SHORT[attack]), expected)


@every_attack
@every_ball
def test_examples_that_are_wrong_already_stay_wrong(attack, ball):
    x = images(20)
    y = logits(NET, x).argmin(1)
    x_adv = attack(NET, x, y, ball=ball, **SHORT[attack])
    assert_allowed(ball, x, x_adv)
    assert accuracy(NET, x_adv, y) == 0
    assert (x_adv != x).any(axis=(1, 2, 3)).mean() > 0.9


@iterative
@pytest.mark.parametrize("ball", [Linf(1.0), L2(5.0), L1(25.0, pixels=5)], ids=str)
@every_loss
def test_without_limits_nothing_is_left(attack, ball, loss):
    x = images(100)
    y = predict(NET, x)
    assert accuracy(NET, attack(NET, x, y, ball=ball, loss=loss, steps=40), y) <= 1 / 5


@iterative
@pytest.mark.parametrize("ball", [Linf, L2, L1])
def test_a_larger_ball_never_helps_the_model(attack, ball):
    x, radii = images(50), np.array([0.0, 0.02, 0.1, 0.3]) * {Linf: 1, L2: 4, L1: 10}[ball]
    y = predict(NET, x)
    run = lambda epsilon: attack(NET, x, y, ball=ball(epsilon), steps=20, random_start=False)
    left = [accuracy(NET, run(epsilon), y) for epsilon in radii]
    assert left == sorted(left, reverse=True) and left[0] == 1 and left[-1] < 0.5


@iterative
@every_ball
@pytest.mark.parametrize("target", [None, 1])
def test_another_restart_never_helps_the_model(attack, ball, target):
    """For each example: fooled or not comes first, and then the loss."""
    x = images(60)
    y = np.where(predict(NET, x) == 1, 0, predict(NET, x))

    def result(restarts):
        x_adv = attack(NET, x, y, ball=ball, steps=3, restarts=restarts, target=target)
        fooled = shared.is_fooled(logits(NET, x_adv), y, target)
        return fooled, value(losses.cross_entropy, NET, x_adv, y, _array(target, y))

    changed = 0
    for fewer, more in ((1, 2), (2, 5)):
        (fooled, loss), (more_fooled, more_loss) = result(fewer), result(more)
        assert (more_fooled >= fooled).all()
        assert (more_loss >= loss - 1e-12)[fooled == more_fooled].all()
        changed += (more_loss > loss + 1e-9).sum()
    assert changed > 10


def _array(target, y):
    return None if target is None else np.full_like(y, target)


def test_a_restart_that_fools_counts_more_than_one_with_a_larger_loss():
    x = np.zeros((4, 2))
    fooled_a, fooled_b = np.array([[0, 0, 1, 1], [0, 1, 0, 1]], bool)
    a, b = (x, fooled_a, np.full(4, 2.0)), (x + 1, fooled_b, np.array([3.0, 1.0, 3.0, 1.0]))
    x_adv, fooled, loss = worse(a, b)
    same(x_adv[:, 0], [1, 1, 0, 0])
    same(fooled, [False, True, True, True])
    same(loss, [3, 1, 2, 2])


@iterative
@every_loss
def test_more_steps_do_not_help_the_model(attack, loss):
    """The mean over a batch; a single image may end on a lower hill."""
    net, x = Net(scale=4.0), images(150)
    y = predict(net, x)
    run = lambda steps: attack(
        net, x, y, ball=Linf(0.05), loss=loss, steps=steps, random_start=False
    )
    results = [x] + [run(steps) for steps in (3, 10, 50)]
    left = [accuracy(net, x_adv, y) for x_adv in results]
    raised = [value(loss, net, x_adv, y).mean() for x_adv in results]
    assert left == sorted(left, reverse=True) and left[-1] < left[0]
    assert (np.diff(raised) > 0).all()


# ---- targets and losses --------------------------------------------------------------------------


@every_attack
@every_ball_and_loss
def test_a_targeted_attack_raises_the_targets_score(attack, ball, loss):
    x = images(40)
    y = predict(NET, x)
    target = (y + 1 + np.arange(40) % 4) % 5
    ball = type(ball)(ball.epsilon / 4)  # near enough for one step to raise it
    x_adv = attack(NET, x, y, target=target, ball=ball, loss=loss, **SHORT[attack])
    gain = value(loss, NET, x_adv, y, target) - value(loss, NET, x, y, target)
    if attack is fgsm:
        assert gain.mean() > 0 and (gain > 0).mean() > 0.8
    else:
        assert (gain > 0).mean() > 0.9


@pytest.mark.parametrize(
    ("attack", "loss"),
    # Not PGD with the DLR loss: that grows without bound where the largest logits meet, and PGD
    # returns its last point, whether the target is on top there or second. APGD prefers the first.
    [(pgd, losses.cross_entropy), (pgd, losses.margin), *((apgd, loss) for loss in LOSSES)],
    ids=lambda f: f.__name__,
)
def test_a_targeted_attack_reaches_its_targets(attack, loss):
    x = images(40)
    y = predict(NET, x)
    target = (y + 1 + np.arange(40) % 4) % 5
    x_adv = attack(NET, x, y, target=target, ball=Linf(0.5), loss=loss, steps=50)
    assert accuracy(NET, x_adv, target) >= 0.9
    one = np.flatnonzero(y != 2)
    x_adv = attack(NET, x[one], y[one], target=2, ball=Linf(0.5), loss=loss, steps=50)
    assert accuracy(NET, x_adv, np.full(len(one), 2)) >= 0.9


@every_attack
def test_one_target_for_all_or_one_for_each(attack):
    x = images()[predict(NET, images()) != 3]
    expected = attack(NET, x, target=np.full(len(x), 3), **SHORT[attack])
    for target in (3, np.int64(3), np.uint8(3), [3] * len(x)):
        same(attack(NET, x, target=target, **SHORT[attack]), expected)


def test_what_is_raised():
    z = Tensor(np.array([[3.0, 1.0, 0.5, -1.0], [0.0, 2.0, 1.0, 5.0]]))
    y, target = np.array([0, 1]), np.array([1, 2])
    for loss in LOSSES:
        same(shared.to_raise(loss, z, y).value, loss(z, y, reduction="none").value)
    for loss in (losses.cross_entropy, losses.margin):
        raised = shared.to_raise(loss, z, y, target)
        same(raised.value, -loss(z, target, reduction="none").value)
    # -(z_y - z_t) / (z_π1 - (z_π3 + z_π4) / 2)
    expected = [-(3 - 1) / (3 - (0.5 - 1) / 2), -(2 - 1) / (5 - (1 + 0) / 2)]
    close(shared.to_raise(losses.dlr, z, y, target).value, expected, rtol=1e-9)


def test_when_a_model_is_fooled():
    z = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    same(shared.is_fooled(z, np.array([0, 2])), [False, True])
    same(shared.is_fooled(z, np.array([0, 2]), np.array([0, 2])), [True, False])


def test_the_lead_of_the_wrong_class():
    rng = np.random.default_rng(0)
    z, y, target = rng.standard_normal((50, 4)), rng.integers(0, 4, 50), rng.integers(0, 4, 50)
    for goal, label, sign in ((None, y, 1), (target, target, -1)):
        ahead, direction = shared.lead(z, y, goal)
        for i in range(50):
            others = np.delete(z[i], label[i])
            assert ahead[i] == pytest.approx(sign * (others.max() - z[i, label[i]]))
        same(ahead > 0, shared.is_fooled(z, y, goal))
        close((direction * z).sum(1), ahead)
        same(abs(direction).sum(1), 2)
        h = 1e-3  # in this direction the lead grows by 2 for each unit
        close(shared.lead(z + h * direction, y, goal)[0], ahead + 2 * h)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_grows_with_the_logits(dtype):
    z = np.array([[0.1, -2], [0, 100.1]], dtype)
    close(shared.rounding(z, z), 16 * np.finfo(dtype).eps * np.array([2, 100.1]))
    coarse = np.zeros((2, 3), np.float16)  # images
    close(shared.rounding(z, coarse), 16 * np.finfo(np.float16).eps * np.array([2, 100.1]))


def test_rounding_is_that_of_the_numbers_and_not_of_their_type():
    z = np.array([[0.1, -2], [0.1, -2], [0.1, -2]])
    z[1] = z[1].astype(np.float32)
    single, double = (16 * np.finfo(t).eps * 2 for t in (np.float32, np.float64))
    close(shared.rounding(z, z), [double, single, double])


def test_numbers_for_each_example(device):
    a, b = images(3), images(3, seed=1)
    products = shared.dot(device.asarray(a), device.asarray(b))
    close(to_numpy(products), [(a[i] * b[i]).sum() for i in range(3)])
    a[1] = 0
    for ball in BALLS:
        length = to_numpy(ball.norm(shared.normalised(device.asarray(a), ball)))
        close(length, [1, 0, 1], atol=1e-12)


def test_only_some_examples(device):
    x, y = images(4), np.arange(4)
    got = shared.only(np.array([0, 3]), device.asarray(x), None, device.asarray(y))
    same(to_numpy(got[0]), x[[0, 3]])
    assert got[1] is None and to_numpy(got[2]).tolist() == [0, 3]
    whole = shared.only(np.arange(4), x, y)
    assert whole[0] is x and whole[1] is y


@pytest.mark.parametrize("n", [1, 7])
def test_the_gradient_is_each_examples_own(n):
    x, y = images(n), np.arange(n) % 5
    g, raised, z = shared.input_gradient(NET, x, y, loss=losses.cross_entropy)
    by_hand = [NET.cross_entropy(*example) for example in zip(x, y, strict=True)]
    close(raised, [loss for loss, _, _ in by_hand], rtol=1e-12)
    close(g, [gradient for _, gradient, _ in by_hand], rtol=1e-9, atol=1e-15)
    same(z, NET(x))
    target = (y + 1) % 5
    g, raised, _ = shared.input_gradient(NET, x, y, target, loss=losses.cross_entropy)
    by_hand = [NET.cross_entropy(*example) for example in zip(x, target, strict=True)]
    close(raised, [-loss for loss, _, _ in by_hand], rtol=1e-12)
    close(g, [-gradient for _, gradient, _ in by_hand], rtol=1e-9, atol=1e-15)


def minus_the_labels_logit(z, labels, reduction="mean"):
    assert reduction == "none"
    return -ops.sum(losses.one_hot(labels, z) * z, axis=1)


@every_attack
def test_a_loss_may_be_any_function(attack):
    x, settings = images(), {"random_start": False, **SHORT[attack]}
    y = predict(NET, x)
    results = [attack(NET, x, y, loss=loss, **settings) for loss in LOSSES]
    results.append(attack(NET, x, y, loss=minus_the_labels_logit, **settings))
    for i, result in enumerate(results):
        assert all(not np.array_equal(result, other) for other in results[:i])
    before, after = (minus_the_labels_logit(logits(NET, a), y, "none") for a in (x, results[-1]))
    assert (after > before).mean() > 0.9
    partial = functools.partial(losses.cross_entropy)
    same(attack(NET, x, y, loss=partial, **settings), results[0])


# ---- every argument matters ----------------------------------------------------------------------

SHARED = {  # argument: (settings of a run, what the argument is then changed to)
    "ball": ({}, Linf(0.2)),
    "random_start": ({"random_start": False}, True),
    "loss": ({}, losses.margin),
    "target": ({}, 2),
    "rng": ({"random_start": True}, 1),
}
ITERATIVE = {
    "steps": ({"steps": 5}, 7),
    "restarts": ({"steps": 5}, 4),
    "momentum": ({"steps": 20}, 0.5),
}
ARGUMENTS = {
    fgsm: SHARED | {"step_size": ({}, 0.1)},
    pgd: SHARED | ITERATIVE | {"step_size": ({}, 0.1)},
    apgd: SHARED | ITERATIVE | {"rho": ({"rho": 0.0, "steps": 20}, 1.0)},
}


@every_attack
def test_no_argument_is_forgotten(attack):
    arguments = list(inspect.signature(attack).parameters)
    assert arguments[:3] == ["model", "x", "y"]
    # progress does not change the result, and has a test of its own below.
    assert set(arguments[3:]) - {"progress"} == set(ARGUMENTS[attack])


@pytest.mark.parametrize(
    ("attack", "name"),
    [(attack, name) for attack, names in ARGUMENTS.items() for name in names],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_argument_changes_the_result(attack, name):
    x = images()[predict(NET, images()) != 2]
    settings, changed = ARGUMENTS[attack][name]
    before, after = attack(NET, x, **settings), attack(NET, x, **{**settings, name: changed})
    assert not np.array_equal(before, after)


@every_attack
@pytest.mark.parametrize("threads", [1, 2])
def test_the_pieces_share_as_many_threads_as_the_limit_allows(attack, threads):
    """With two, each call waits for the other thread's: it passes only if there are two."""
    together, seen = threading.Barrier(threads, timeout=30), set()

    def model(x):
        if len(x) > 1:  # not the look at the first image
            seen.add(threading.get_ident())
            if threads > 1:
                assert {library["num_threads"] for library in parallel._blas().info()} == {1}
            together.wait()
            time.sleep(0.01)  # if there were a second thread, it would take its share meanwhile
        return NET(x)

    model.by_example = True
    x, y = images(20), np.zeros(20, int)
    with parallel.limit(threads):
        attack(model, x, y, **SHORT[attack])
    assert len(seen) == threads


@iterative
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
    name, x = attack.__name__.upper(), images(300)
    attack(NET, x, steps=1, progress=True)
    attack(NET, x, steps=1, restarts=2, progress=True)
    attack(NET, x, steps=1)
    assert [bar.seen for bar in bars] == [
        (name, 300, None),  # None: on terminals
        (f"{name} 1/2", 300, None),
        (f"{name} 2/2", 300, None),
    ]
    assert all(bar.done == 300 for bar in bars)


# ---- FGSM and PGD against formulas and loops -----------------------------------------------------


def linear_classifier(inputs, seed=0):
    """A softmax of W x + b, and ∂ cross-entropy / ∂x = Wᵀ (p - e_y) for a batch, in NumPy."""
    rng = np.random.default_rng(seed)
    w, b = rng.standard_normal((4, inputs)), rng.standard_normal(4)

    def gradient(x, y):
        z = x.reshape(len(x), -1) @ w.T + b
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        return ((p - np.eye(4)[y]) @ w).reshape(x.shape)

    return lambda x: ops.dense(ops.reshape(x, (len(x), -1)), w, b), gradient


def test_fgsm_is_its_formula():
    model, gradient = linear_classifier(25)
    x, y = images(9), np.arange(9) % 4
    up = np.sign(gradient(x, y))
    close(fgsm(model, x, y), np.clip(x + 0.3 * up, 0, 1), atol=1e-15)  # Linf(0.3)
    close(fgsm(model, x, y, ball=Linf(0.1)), np.clip(x + 0.1 * up, 0, 1), atol=1e-15)
    half = fgsm(model, x, y, ball=Linf(0.2), step_size=0.1)
    close(half, np.clip(x + 0.1 * up, 0, 1), atol=1e-15)
    target = (y + 1) % 4
    down = -np.sign(gradient(x, target))
    close(fgsm(model, x, y, target=target), np.clip(x + 0.3 * down, 0, 1), atol=1e-15)


def test_fgsm_with_a_random_start_steps_one_and_a_quarter_epsilon():
    model, gradient = linear_classifier(25)
    x, y, start = images(9), np.arange(9) % 4, Linf(0.2).random(images(9), 5)
    delta = np.clip(start + 0.25 * np.sign(gradient(x + start, y)), -0.2, 0.2)
    x_adv = fgsm(model, x, y, ball=Linf(0.2), random_start=True, rng=5)
    close(x_adv, np.clip(x + delta, 0, 1), atol=1e-15)


def test_fgsm_in_the_other_norms():
    model, gradient = linear_classifier(25)
    x, y = images(9, low=0.4, high=0.6), np.arange(9) % 4  # the box is far away
    g = gradient(x, y)
    length = np.linalg.norm(g.reshape(9, -1), axis=1).reshape(9, 1, 1, 1)
    close(fgsm(model, x, y, ball=L2(0.3)), x + 0.3 * g / length, atol=1e-12)
    largest = abs(g) == abs(g).max((1, 2, 3), keepdims=True)
    close(fgsm(model, x, y, ball=L1(0.3)), x + 0.3 * np.sign(g) * largest, atol=1e-12)


@every_attack
@pytest.mark.parametrize(("ball", "dual"), [(Linf(0.05), 1), (L2(0.2), 2), (L1(0.3), np.inf)])
def test_on_a_linear_model_the_exact_worst_case_is_found(attack, ball, dual):
    """min over the ball of y (w·x + b) is y (w·x + b) - ε ‖w‖*, for mid-grey x."""
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal(12), images(20, (12,), low=0.4, high=0.6)
    b = -0.5 * w.sum()
    y = rng.integers(0, 2, 20)
    model = lambda x: ops.stack([-(x @ w + b) / 2, (x @ w + b) / 2], axis=1)
    margin = lambda x: (2 * y - 1) * (x @ w + b)
    worst = margin(x) - ball.epsilon * np.linalg.norm(w, dual)
    settings = {fgsm: {}, pgd: {"steps": 60, "step_size": ball.epsilon}, apgd: {"steps": 60}}
    for loss in (losses.cross_entropy, losses.margin):
        x_adv = attack(model, x, y, ball=ball, loss=loss, **settings[attack])
        # APGD returns the last point that fools the model: where x itself is wrong, any will do.
        same_as_worst = np.isclose(margin(x_adv), worst, rtol=0, atol=1e-6)
        assert same_as_worst.all()
        assert accuracy(model, x_adv, y) == (worst > 0).mean()


@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.1, 0.4]))
def test_on_a_linear_model_in_a_box_the_exact_worst_case_is_found(seed, epsilon):
    """Where pixels are near black or white, each goes as far as it may."""
    rng = np.random.default_rng(seed)
    w, x = rng.standard_normal(12), images(5, (12,), seed=seed)
    model = lambda x: ops.stack([0 * (x @ w), x @ w], axis=1)
    delta = np.clip(-epsilon * np.sign(w), -x, 1 - x)  # label 1: w·x is to fall
    for attack in (fgsm, pgd):
        x_adv = attack(model, x, np.ones(5, int), ball=Linf(epsilon), **SHORT[attack])
        close(x_adv, x + delta, atol=1e-12)


def test_on_a_linear_model_each_step_raises_the_loss():
    x, y, w = images(9, low=0.4, high=0.6), np.zeros(9, int), Net().w[:1]
    model = lambda x: ops.dense(ops.reshape(x, (len(x), -1)), np.concatenate([w, -w]))
    for ball in BALLS:
        run = lambda steps, ball=ball: pgd(
            model, x, y, ball=ball, steps=steps, step_size=ball.epsilon / 8, random_start=False
        )
        rising = [value(losses.margin, model, run(steps), y) for steps in (1, 2, 4, 8, 16)]
        assert (np.diff(rising, axis=0) > -1e-12).all()


def slow_direction(ball, g):
    if isinstance(ball, Linf):
        return np.sign(g)
    if isinstance(ball, L2):
        return g / np.sqrt((g**2).sum())
    d = np.zeros(g.size)
    d[abs(g).argmax()] = np.sign(g.flat[abs(g).argmax()])
    return d.reshape(g.shape)


def slow_projection(ball, x):
    """Onto the ball alone; by bisection for the 1-norm."""
    if isinstance(ball, Linf):
        return np.clip(x, -ball.epsilon, ball.epsilon)
    if isinstance(ball, L2):
        return x * min(1, ball.epsilon / np.sqrt((x**2).sum()))
    low, high = 0.0, abs(x).max()
    for _ in range(60 if abs(x).sum() > ball.epsilon else 0):
        middle = (low + high) / 2
        above = np.maximum(abs(x) - middle, 0).sum() > ball.epsilon
        low, high = (middle, high) if above else (low, middle)
    return x if low == 0 else np.sign(x) * np.maximum(abs(x) - low, 0)


def slow_pgd(net, x, y, ball, delta, alpha, steps, mu=0.0):
    """One image, step by step; with μ the accumulated gradient of MI-FGSM's algorithm 1."""
    velocity = np.zeros_like(x)
    for _ in range(steps):
        _, g, _ = net.cross_entropy(x + delta, y)
        if mu:
            velocity = mu * velocity + g / abs(g).sum()
            g = velocity
        delta = slow_projection(ball, delta + alpha * slow_direction(ball, g))
        delta = np.clip(x + delta, 0, 1) - x
    return x + delta


INSIDE = [Linf(0.1), L2(0.4), L1(0.4)]  # around x from 0.45 to 0.55 they lie in the box


def examples_for(ball, n=15):
    """Images and labels. For Linf some are black or white: there, clipping is the projection."""
    near_grey = {} if isinstance(ball, Linf) else {"low": 0.45, "high": 0.55}
    return images(n, **near_grey), np.arange(n) % 5


@pytest.mark.parametrize("ball", INSIDE, ids=str)
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("mu", [0.0, 0.5, 1.0])
def test_pgd_is_a_naive_loop(ball, random_start, mu):
    x, y = examples_for(ball)
    start = ball.random(x, 7) if random_start else 0 * x
    expected = [
        slow_pgd(NET, x[i], y[i], ball, start[i], 2.5 * ball.epsilon / 8, steps=8, mu=mu)
        for i in range(len(x))
    ]
    got = pgd(NET, x, y, ball=ball, steps=8, random_start=random_start, momentum=mu, rng=7)
    close(got, expected, atol=1e-9)


def test_momentum_of_an_example_with_no_gradient():
    flat = lambda x: ops.dense(x, np.zeros((3, 4)))
    x = images(2, (4,))
    same(pgd(flat, x, momentum=1.0, random_start=False), x)


# ---- APGD against its algorithm ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (100, [22, 41, 57, 70, 80, 87, 93, 99]),  # in the paper
        (10, [3, 5, 6, 7, 8, 9, 10]),
        (20, [5, 9, 12, 14, 16, 18, 19, 20]),
        (3, [1, 2, 3]),
        (1, [1]),
        (1000, [220, 410, 570, 700, 800, 870, 930, 990]),
    ],
)
def test_apgd_looks_back_at_the_papers_checkpoints(steps, expected):
    """⌈p_j N⌉ with p = 0, 0.22 and p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06)."""
    assert sorted(_checkpoints(steps)) == expected


def slow_checkpoints(steps):
    p = [0, 22]
    while p[-1] < 100:
        p.append(p[-1] + max(p[-1] - p[-2] - 3, 6))
    return {int(np.ceil(share * steps / 100)) for share in p[1:] if share <= 100}


def slow_apgd(look, x, ball, start, steps, alpha, rho):
    """One image through algorithm 1 of Croce & Hein (2020), with all iterates and losses kept.

    ``look`` gives the loss, its gradient, and whether an image is fooled. At a checkpoint w the
    iterates up to x(w) are known: condition 1 looks at the steps since the last checkpoint.
    """
    project = lambda delta: np.clip(x + slow_projection(ball, delta), 0, 1) - x
    events, eta = Counter(), 2 * ball.epsilon
    path = [start]  # x(0), x(1) … as perturbations
    f, g, fooled = look(x + start)
    seen, fooling = [f], [start] if fooled else []
    best, best_f, best_g = start, f, g
    eta_then, best_then, w_before = eta, f, 0
    for k in range(1, steps + 1):
        new = z = project(path[-1] + eta * slow_direction(ball, g))
        if k > 1:
            new = project(path[-1] + alpha * (z - path[-1]) + (1 - alpha) * (path[-1] - path[-2]))
        f, g, fooled = look(x + new)
        path.append(new)
        seen.append(f)
        fooling += [new] if fooled else []
        if f > best_f:
            best, best_f, best_g = new, f, g
        if k in slow_checkpoints(steps):
            few = sum(seen[i + 1] > seen[i] for i in range(w_before, k)) < rho * (k - w_before)
            stuck = eta == eta_then and best_f == best_then
            events.update({"few": int(few), "stuck alone": int(stuck and not few)})
            eta_then, best_then, w_before = eta, best_f, k
            if few or stuck:
                events["returned"] += not np.array_equal(path[-1], best)
                eta = eta / 2
                path[-1], seen[-1], g = best, best_f, best_g
    return x + (fooling[-1] if fooling else best), events


def in_quarters(z, labels, reduction="mean"):
    """Cross-entropy rounded down to quarters, with the gradient of what it was: made for ties."""
    loss = losses.cross_entropy(z, labels, reduction)
    return loss - loss.value + np.floor(4 * loss.value) / 4


@pytest.mark.parametrize("ball", INSIDE, ids=str)
@pytest.mark.parametrize("steps", [1, 30])
@pytest.mark.parametrize(("alpha", "rho"), [(0.75, 0.75), (0.5, 0.0)])
@pytest.mark.parametrize("loss", [losses.cross_entropy, in_quarters], ids=lambda f: f.__name__)
def test_apgd_is_algorithm_1(ball, steps, alpha, rho, loss):
    net = Net(scale=12.0)  # with curves enough to overshoot
    x, y = examples_for(ball)
    start = ball.random(x, 3)

    def slow(i):
        def look(image):
            f, g, fooled = net.cross_entropy(image, y[i])
            return (np.floor(4 * f) / 4 if loss is in_quarters else f), g, fooled

        return slow_apgd(look, x[i], ball, start[i], steps, alpha, rho)

    expected, events = zip(*[slow(i) for i in range(len(x))], strict=True)
    got = apgd(net, x, y, ball=ball, steps=steps, momentum=1 - alpha, rho=rho, loss=loss, rng=3)
    close(got, expected, atol=1e-7)
    if steps == 30:  # it did halve, and it did go back
        total = sum(events, Counter())
        assert total["few" if rho else "stuck alone"] > 2 < total["returned"], total


class Recorder:
    """A model that remembers the images it was asked about, but not the look before the attack."""

    by_example = True

    def __init__(self, net):
        self.net, self.seen = net, []

    def __call__(self, x):
        self.seen.append(to_numpy(getattr(x, "value", x)).copy())
        return self.net(x)

    def path(self):
        return np.concatenate(self.seen[1:])  # of a single image


def backwards(z, labels, reduction="mean"):
    """A loss that leads away from what an attack wants: the start may fool, and nothing later."""
    return -losses.margin(z, labels, reduction)


@pytest.mark.parametrize("loss", [*LOSSES, backwards], ids=lambda f: f.__name__)
@pytest.mark.parametrize("target", [None, 2])
def test_apgd_returns_the_last_point_that_fooled_or_else_the_best(loss, target):
    outcomes, net, steps = Counter(), Net(scale=12.0), 4
    for i, x in enumerate(images(45)[:, None]):  # one by one
        y = np.array([(3, 4)[i % 2]]) if i < 10 else predict(net, x)
        if target == y[0]:
            continue
        model, ball = Recorder(net), [Linf, L2, L1][i % 3](0.02 * 2 ** (i % 5))
        x_adv = apgd(model, x, y, ball=ball, loss=loss, target=target, steps=steps, rng=i)
        path = model.path()
        assert len(path) == steps + 1
        labels = np.repeat(y, len(path))
        fooled = shared.is_fooled(logits(net, path), labels, target)
        best = value(loss, net, path, labels, _array(target, labels)).argmax()
        close(x_adv[0], path[np.flatnonzero(fooled)[-1] if fooled.any() else best], atol=1e-15)
        outcomes["fooled" if fooled.any() else "best"] += 1
        outcomes["not the last"] += not np.array_equal(x_adv[0], path[-1])
    assert min(outcomes[name] for name in ("fooled", "best", "not the last")) >= 2, outcomes


@pytest.mark.parametrize(("attack", "passes"), [(fgsm, 1), (pgd, 7), (apgd, 8)])
def test_what_an_attack_costs(attack, passes):
    model = Recorder(NET)
    attack(model, images(1), np.array([0]), **({} if attack is fgsm else {"steps": 7}))
    assert len(model.seen) == 1 + passes  # one to see what the model returns


# ---- what comes in -------------------------------------------------------------------------------

X, Y = images(6), np.array([0, 1, 2, 3, 4, 0])


def replaced(pixel, dtype=np.float32):
    x = images(6, dtype=dtype)
    x[3, 0, 2, 2] = pixel
    return x


BAD_IMAGES = {
    "bytes": ((255 * X).astype(np.uint8), TypeError, r"floating-point.*got uint8.*divide by 255"),
    "integers": (X.astype(int), TypeError, "floating-point.*from 0 to 1.*int64"),
    "a list": (X.tolist(), TypeError, r"x must be an array.*\(N, …\).*list"),
    "a tensor": (Tensor(X), TypeError, r"x must be an array.*\(N, …\).*Tensor"),
    "nothing": (X[:0], ValueError, r"x must be a batch.*\(0, 1, 5, 5\)"),
    "no batch": (X[0, 0, 0], ValueError, r"x must be a batch.*\(5,\): x\[None\]"),
    "too bright": (replaced(1.01), ValueError, r"from 0 to 1.* to 1\.01.*scale"),
    "too dark": (replaced(-0.5), ValueError, r"from 0 to 1.*from -0\.5 to 1.*scale"),
    "NaN": (replaced(np.nan), ValueError, "from 0 to 1.*NaN"),
}


@every_attack
@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images(attack, case):
    x, error, message = BAD_IMAGES[case]
    with pytest.raises(error, match=message):
        attack(NET, x, Y[: len(x)])


@every_attack
@pytest.mark.parametrize("name", ["y", "target"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Y[1:], r"integers.*\(6,\).*int64.*\(5,\)"),
        (Y[:, None], r"integers.*\(6,\).*int64.*\(6, 1\)"),
        (np.eye(5)[Y], r"integers.*float64.*\(6, 5\)"),
        (Y.astype(float), r"integers.*\(6,\).*float64.*\(6,\)"),
        (Y == 1, "integers.*bool"),
        (Y + 1, "from 0 to 4.*5 logits.*from 1 to 5"),
        (Y - 1, "from 0 to 4.*5 logits.*from -1 to 3"),
    ],
)
def test_bad_labels_and_targets(attack, name, labels, message):
    with pytest.raises(ValueError, match=f"{name} must be {message}"):
        attack(NET, X, **{name: labels})


@every_attack
@pytest.mark.parametrize("target", [5, -1, True, 1.0])
def test_bad_targets_for_all(attack, target):
    with pytest.raises(ValueError, match=r"target must be (from 0 to 4|integers)"):
        attack(NET, X, Y, target=target)


def with_logits(z):
    """A model that returns ``z`` whatever it is given; its batch may be cut."""
    model = lambda x: ops.broadcast_to(ops.sum(0 * x), np.shape(z)) + np.array(z)
    model.by_example = True
    return model


BAD_MODELS = {
    "one number": (with_logits([1.0]), ValueError, r"logits \(N, K\).*1 image.*\(1,\)"),
    "more rows": (with_logits([[1.0, 2]] * 2), ValueError, r"1 image .*\(2, 2\)"),
    "rows for one": (lambda x: NET(x)[:1], ValueError, r"6 images .*\(1, 5\)"),
    "maps": (with_logits([[[1.0, 2]]]), ValueError, r"\(1, 1, 2\)"),
    "nothing": (lambda x: None, ValueError, "returned NoneType"),
    "NaN": (with_logits([[np.nan, 1]]), ValueError, "NaN or infinity"),
    "infinity": (with_logits([[np.inf, 1]]), ValueError, "NaN or infinity"),
    "no gradient": (lambda x: logits(NET, x), TypeError, "must return a Tensor.*ndarray"),
}


@every_attack
@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models(attack, case):
    model, error, message = BAD_MODELS[case]
    with pytest.raises(error, match=message):
        attack(model, X, Y * 0)


@every_attack
def test_a_loss_that_returns_one_number(attack):
    mean = lambda z, labels, reduction: losses.cross_entropy(z, labels)
    with pytest.raises(ValueError, match=r"loss must return one number for each.*got shape \(\)"):
        attack(NET, X, Y, loss=mean)


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        *[
            (attack, {name: count}, f"{name} must be an integer ≥ 1, got {count}")
            for attack in (pgd, apgd)
            for name in ("steps", "restarts")
            for count in (0, -1, 1.0, True)
        ],
        *[
            (attack, {"step_size": size}, f"step_size must be a number ≥ 0, got {size}")
            for attack in (fgsm, pgd)
            for size in (-0.1, np.nan, np.inf)
        ],
        (pgd, {"momentum": -0.1}, "momentum must be .*≥ 0, got -0.1"),
        (pgd, {"momentum": np.nan}, "momentum must be .*≥ 0, got nan"),
        *[
            (apgd, {name: share}, f"{name} must be .*from 0 to 1, got {share}")
            for name in ("momentum", "rho")
            for share in (-0.1, 1.1, np.nan)
        ],
        (apgd, {"ball": L2(np.inf)}, r"must be finite.*inf"),
    ],
)
def test_settings_out_of_range(attack, settings, message):
    with pytest.raises(ValueError, match=message):
        attack(NET, X, Y, **settings)


def test_settings_at_the_ends_of_their_ranges():
    same(pgd(NET, X, Y, step_size=0.0, random_start=False, steps=1), X)
    assert_allowed(Linf(0.3), X, pgd(NET, X, Y, momentum=2.0, steps=np.int64(2), restarts=1))
    for momentum, rho in ((0, 0), (1, 1)):
        assert_allowed(Linf(0.3), X, apgd(NET, X, Y, momentum=momentum, rho=rho, steps=4))
    # With no bound but the box, a step size is all that PGD needs.
    assert_allowed(Linf(1.0), X, pgd(NET, X, Y, ball=Linf(np.inf), step_size=0.1))


@every_attack
def test_probabilities_are_warned_about(attack):
    softmax = lambda x: ops.softmax(NET(x), axis=1)
    with pytest.warns(AttackWarning, match="seems to return probabilities.*softmax"):
        attack(softmax, X, Y, **SHORT[attack])
    # None of these is a distribution, and there is no warning.
    attack(lambda x: ops.log_softmax(NET(x), axis=1), X, Y, **SHORT[attack])
    attack(lambda x: 6 * ops.softmax(NET(x), axis=1) - 1, X, Y, **SHORT[attack])
    attack(lambda x: 2 * ops.softmax(NET(x), axis=1), X, Y, **SHORT[attack])


@every_attack
def test_a_target_that_is_the_label_is_warned_about(attack):
    with pytest.warns(AttackWarning, match="target of 2 of 6 .*label"):
        attack(NET, X, Y, target=0, **SHORT[attack])


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_a_step_longer_than_epsilon_is_warned_about(attack):
    settings = {"ball": Linf(0.1), "step_size": 0.11}
    with pytest.warns(AttackWarning, match=r"step of 0\.11.*ε = 0\.1"):
        attack(NET, X, Y, random_start=False, **settings)
    attack(NET, X, Y, random_start=True, **settings)  # as in "Fast is better than free"
    attack(NET, X, Y, random_start=False, ball=Linf(0.1), step_size=0.1)


@iterative
def test_restarts_that_are_all_the_same_are_warned_about(attack):
    with pytest.warns(AttackWarning, match="all 3 restarts.*random_start=True"):
        attack(NET, X, Y, restarts=3, random_start=False, steps=1, **_short_step(attack))


def _short_step(attack):
    return {"step_size": 0.1} if attack is pgd else {}


@pytest.mark.parametrize(
    "settings",
    [
        {"target": 0},
        {"step_size": 0.4, "random_start": False},
        {"restarts": 2, "random_start": False},
        {"model": lambda x: ops.softmax(NET(x), axis=1)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_warning_names_the_line_of_the_call(settings):
    settings = dict(settings)
    with pytest.warns(AttackWarning) as caught:
        pgd(settings.pop("model", NET), X, Y, **settings)
    assert [warning.filename for warning in caught] == [__file__]


# ---- every attack of the package -----------------------------------------------------------------

EVERY = {  # with images (N, 1, 8, 8), few steps, and no example that ends before another
    attacks.fgsm: {},
    attacks.pgd: {"steps": 2, "restarts": 2},
    attacks.apgd: {"steps": 2},
    attacks.deepfool: {"steps": 2},
    attacks.carlini_wagner: {"steps": 2, "search_steps": 2, "abort_early": False},
    attacks.fab: {"steps": 2, "restarts": 2},
    attacks.square: {"queries": 3},
    attacks.transfer: {"steps": 2},
    attacks.spatial_grid: {"angles": 3, "shifts": 1},
    attacks.spatial_random: {"k": 2},
    attacks.spatial_first_order: {"steps": 2},
    attacks.fake_image: {"steps": 2, "details": True},
    attacks.untargeted: {"steps": 2},
    attacks.targeted: {"steps": 2, "target": 1},
    attacks.auto_attack: {"steps": 2, "queries": 3, "targets": 1},
}
QUERY_ONLY = [attacks.square, attacks.spatial_grid, attacks.spatial_random]
of_the_package = pytest.mark.parametrize("attack", EVERY, ids=lambda f: f.__name__)


def run_any(attack, model, x, **more):
    settings = EVERY[attack] | more
    if attack is attacks.transfer:
        settings["sources"] = [model]
    if attack is attacks.fake_image:
        return attack(model, 1, x, **settings)
    return attack(model, x, **settings)


class Centred(layers.Module):
    """Subtracts the mean over the batch, as batch normalisation does; notes the batch sizes."""

    def __init__(self):
        self.sizes = []

    def __call__(self, x):
        self.sizes.append(len(x))
        return x - ops.mean(x, axis=0, keepdims=True)


def stubborn_net(*layer):
    """A convolutional network that always predicts class 0, so that no attack ends early."""
    model = layers.Sequential(
        layers.Conv2d(1, 2, 3, rng=0), *layer, layers.Flatten(), layers.Dense(2 * 36, 4, rng=1)
    )
    model[-1].bias.value[0] = 100
    return model


def test_this_list_of_attacks_is_complete():
    public = {f for f in vars(attacks).values() if inspect.isfunction(f)}
    assert public == EVERY.keys() | {attacks.rotate_translate}


@of_the_package
@pytest.mark.parametrize("kind", ["module", "function", "promise"])
@pytest.mark.filterwarnings("ignore::tinyadv.attacks.AttackWarning")
def test_a_model_without_the_promise_sees_the_users_batch(attack, kind):
    """Exactly this batch, in each call: batch statistics of a piece would be other ones."""
    centred, x = Centred(), images(40, (1, 8, 8), dtype=np.float32)
    model, sizes = stubborn_net(centred), centred.sizes
    if kind != "module":
        inner, sizes = stubborn_net(), []
        model = lambda x: (sizes.append(len(x)), inner(x))[1]
        model.by_example = kind == "promise"
    run_any(attack, model, x)
    if kind == "promise":  # the same model is cut, so this test is able to fail
        assert 20 in sizes
    else:
        assert len(sizes) > 1 and set(sizes) == {40}  # a check, and the attack


@of_the_package
@pytest.mark.filterwarnings("ignore::tinyadv.attacks.AttackWarning")
def test_no_attack_records_the_weights(attack, monkeypatch):
    model, recorded = stubborn_net(layers.ReLU()), []
    init = Tensor.__init__

    def recording(self, value, operation=None, args=(), kwargs=None):
        init(self, value, operation, args, kwargs)
        if operation is not None:
            recorded.append((operation, args))

    monkeypatch.setattr(Tensor, "__init__", recording)
    x = images(20, (1, 8, 8), dtype=np.float32)
    model(x)  # the tape of a network that is not frozen
    weights = {id(p) for p in model.parameters()}
    assert any(id(arg) in weights for _, args in recorded for arg in args)
    recorded.clear()
    run_any(attack, model, x)
    assert not any(id(arg) in weights for _, args in recorded for arg in args)
    # Query-only attacks record nothing; the others record the convolutions of the images.
    convolutions = sum(operation is conv.conv2d for operation, _ in recorded)
    assert (len(recorded) == 0) if attack in QUERY_ONLY else convolutions > 0


@of_the_package
@pytest.mark.filterwarnings("ignore::tinyadv.attacks.AttackWarning")
def test_what_is_checked_already_is_not_checked_again(attack, monkeypatch):
    model, x = stubborn_net(), images(4, (1, 8, 8), dtype=np.float32)
    count, check = [], inputs.check_pixels
    monkeypatch.setattr(inputs, "check_pixels", lambda *a, **k: (count.append(1), check(*a, **k)))
    if attack in (attacks.fake_image, attacks.auto_attack):
        return  # the first has no labels; the second has a test of its own
    plain = run_any(attack, model, x)
    # transfer gives arrays to `attack`, which may be the user's own.
    of_a_source = 1 if attack is attacks.transfer else 0
    assert len(count) == 1 + of_a_source
    count.clear()
    target = np.ones(4, int) if attack is attacks.targeted else None
    more = {"target": None} if attack is attacks.targeted else {}
    same(run_any(attack, model, inputs.Checked(x, np.zeros(4, int), target), **more), plain)
    assert len(count) == of_a_source


@pytest.mark.parametrize("random_start", [False, True])
def test_a_checked_target_is_attacked(random_start):
    x, y, target = images(), predict(NET, images()), (predict(NET, images()) + 1) % 5
    how = {"random_start": random_start, "steps": 3}
    targeted = pgd(NET, x, y, target=target, **how)
    same(pgd(NET, inputs.Checked(x, y, target), **how), targeted)
    assert not np.array_equal(pgd(NET, x, y, **how), targeted)
    transferred = attacks.transfer(NET, inputs.Checked(x, y, target), sources=NET, **how)
    same(transferred, targeted)


def test_few_frames_lie_between_pgd_and_the_convolution():
    stacks, convolution = [], conv.conv2d.__wrapped__.__code__

    def profile(frame, event, _):
        if event == "call" and frame.f_code is convolution:
            names = []
            while frame.f_code.co_name != "pgd":
                names.append(frame.f_code.co_name)
                frame = frame.f_back
            stacks.append(names)

    x = images(64, (1, 8, 8), dtype=np.float32)
    sys.setprofile(profile)
    try:
        with parallel.limit(1):
            pgd(conv_net(dtype=np.float32), x, np.zeros(64, int), steps=2)
    finally:
        sys.setprofile(None)
    longest = max(stacks, key=len)
    assert "climb" in longest and len(longest) + 1 <= 10, longest


# ---- threads and pieces --------------------------------------------------------------------------


@every_attack
@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_a_model_is_raised_once_and_leaves_nothing_behind(attack, threads):
    x, y = images(300), np.zeros(300, int)

    def model(x):
        if len(x) > 1:
            raise ZeroDivisionError("no such luck")
        return NET(x)

    model.by_example = True
    with parallel.limit(threads):
        with pytest.raises(ZeroDivisionError, match="no such luck"):
            attack(model, x, y)
        assert not parallel.inside() and not parallel._blas_users
        assert_allowed(Linf(0.3), x, attack(NET, x, y, **SHORT[attack]))


@pytest.mark.parametrize("n", [1, 2, 3, 127, 128, 129, 256, 257, 300])
def test_a_batch_is_cut_into_pieces_and_put_together(n):
    x, y, sizes = images(n, (2, 3)), np.arange(n), []

    def run(x, y, nothing):
        assert nothing is None
        assert np.moveaxis(x, 0, -1).flags.c_contiguous, "examples last"
        sizes.append(len(x))
        return x + 1, y * 2

    with shared.pieces(NET, x) as how:
        got, doubled = parallel.by_examples(run, x, y, None, **how)
    same(got, x + 1)
    same(doubled, 2 * y)
    assert got.flags.c_contiguous
    assert sum(sizes) == n and max(sizes) <= 128 and max(sizes) - min(sizes) <= 1
    assert n == 1 or len(sizes) % 2 == 0
    sizes.clear()
    with shared.pieces(lambda x: x, x) as how:  # makes no promise
        same(parallel.by_examples(lambda x: (sizes.append(len(x)), 3 * x)[1], x, **how), 3 * x)
    assert sizes == [n]


def test_a_gpu_takes_pieces_as_large_as_memory_allows(device):
    x, sizes = device.asarray(images(2500, (1,))), []

    def run(x):
        sizes.append(len(x))
        return x + 1

    with shared.pieces(NET, x) as how:
        same(to_numpy(parallel.by_examples(run, x, **how)), to_numpy(x) + 1)
    assert len(sizes) > 2 and max(sizes) <= 1024


# ---- the other backend ---------------------------------------------------------------------------


@every_attack
@every_ball_and_loss
@pytest.mark.parametrize("target", [None, 2])
def test_a_gpu_gives_the_same(attack, ball, loss, target, device):
    x = images(10)
    y = np.where(predict(NET, x) == 2, 3, predict(NET, x))
    settings = {"ball": ball, "loss": loss, "target": target, "random_start": True}
    settings |= SHORT[attack] | ({} if attack is fgsm else {"restarts": 2})
    expected = attack(NET, x, y, **settings)
    on_device = device.asarray(x)
    for labels in (y, device.asarray(y)):
        got = attack(Net(device), on_device, labels, **settings)
        assert type(got) is type(on_device) and got.dtype == x.dtype
        close(to_numpy(got), expected, atol=1e-9)


@every_attack
def test_a_gpu_gives_the_same_for_a_cnn_and_by_its_own_labels(attack, device):
    x, settings = images(5, (1, 8, 8)), {**SHORT[attack], "ball": L2(0.5)}
    momentum = {"momentum": 0.9} if attack is pgd else {}
    expected = attack(conv_net(), x, **settings, **momentum)
    got = attack(conv_net(device), device.asarray(x), **settings, **momentum)
    close(to_numpy(got), expected, atol=1e-9)


@iterative
@every_ball_and_loss
@pytest.mark.parametrize("settings", [{}, {"target": 2}, {"momentum": 0.5}], ids=str)
def test_no_step_waits_for_a_gpu_or_copies_to_it(attack, ball, loss, settings):
    x, net = strict_cupy.asarray(images(4)), Net(strict_cupy)
    y = strict_cupy.asarray(np.array([0, 1, 3, 4]))

    def cost(steps):
        with strict_cupy.count() as c:
            attack(net, x, y, ball=ball, loss=loss, steps=steps, **settings)
        return c

    few, many = cost(10), cost(20)
    assert many.launches > few.launches
    assert many.syncs == few.syncs <= 5  # the looks at what comes in
    assert many.transfers == few.transfers <= 3


@every_ball_and_loss
def test_fgsm_waits_only_to_look_at_what_comes_in_and_goes_out(ball, loss):
    x, net = strict_cupy.asarray(images(4)), Net(strict_cupy)
    y = strict_cupy.asarray(np.array([0, 1, 3, 4]))
    with strict_cupy.count() as look:
        inputs.checked(net, x, y)
    with strict_cupy.count() as c:
        fgsm(net, x, y, ball=ball, loss=loss)
    # Once more at the end, for NaN.
    assert (c.syncs, c.transfers) == (look.syncs + 1, 0) and look.syncs <= 3


@pytest.mark.parametrize("attack", [fgsm, pgd, apgd])
def test_what_is_no_ball_and_what_is_a_ball_of_0_to_255(attack):
    x, y = images(2), np.array([0, 1])
    for ball in (0.3, Linf):
        with pytest.raises(TypeError, match=r"ball must be Linf\(ε\), L2\(ε\) or L1\(ε\)"):
            attack(NET, x, y, ball=ball)
    with pytest.warns(AttackWarning, match="ε = 8 .*255"):
        attack(NET, x, y, ball=Linf(8))


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_nan_fools_nobody_and_is_an_error(attack):
    def model(z):  # finite for the first image, which is dark, NaN for the others
        return NET(z) + ops.log(0.5 - ops.max(z, axis=(1, 2, 3), keepdims=True)[:, :, 0, 0])

    model.by_example = True  # so that the check of the model sees the first image only
    x = images(3) * np.array([0.1, 1, 1])[:, None, None, None]
    with np.errstate(invalid="ignore"), parallel.limit(1):  # NumPy's errstate is for this thread
        with pytest.raises(ValueError, match="pixels that are NaN"):
            attack(model, x, np.array([0, 1, 2]), ball=Linf(0.1))
    z = np.array([[np.nan, 0.0], [0.0, 1.0]])
    assert shared.is_fooled(z, np.array([1, 0])).tolist() == [False, True]
