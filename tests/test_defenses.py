"""Defences: each against its formula or its loop written out, and all of them inside ``fit``."""

import itertools
from functools import partial

import numpy as np
import pytest
import strict_cupy
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyadv import Tensor, defenses, fit, grad, models, ops, optim, parallel, to_numpy
from tinyadv.attacks import AttackWarning, fgsm, pgd, spatial_random
from tinyadv.balls import L1, L2, Linf
from tinyadv.checkpoint import load_state, save_state
from tinyadv.data import Dataset
from tinyadv.defenses import (
    Fast,
    Free,
    GradientPenalty,
    IntervalBound,
    MinMax,
    Trades,
    WorstOfK,
    kl,
    ramp,
)
from tinyadv.evaluate import accuracy
from tinyadv.layers import Activation, Conv2d, Dense, Flatten, Module, Sequential
from tinyadv.losses import cross_entropy, margin
from tinyadv.train import Result, cross_entropy_objective
from tinyadv.verify import certified_accuracy, worst_logits

close = np.testing.assert_allclose
same = np.testing.assert_array_equal

BALLS = [Linf(0.1), L2(0.3), L1(0.5)]
every_ball = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: type(ball).__name__)


# ---- networks and images -------------------------------------------------------------------------


def on(xp, model):
    for p in model.parameters():
        p.value = xp.asarray(to_numpy(p))
    return model


def mlp(xp=np, dtype=np.float64):
    """Smooth, so that finite differences meet no kink."""
    return on(xp, models.mlp((16, 8, 3), rng=3, activation="tanh").astype(dtype))


def cnn(xp=np, dtype=np.float32):
    layers = [Conv2d(1, 4, 3, rng=1), Activation("relu"), Flatten(), Dense(16, 3, rng=2)]
    return on(xp, Sequential(*layers).astype(dtype))


def batch(xp=np, n=7, dtype=np.float64, low=0.0, high=1.0, seed=0):
    """Noise, and labels; where it is black or white, some pixels are exactly so."""
    rng = np.random.default_rng(seed)
    u = np.clip(rng.uniform(-0.1, 1.1, (n, 1, 4, 4)), 0, 1)
    return xp.asarray((low + (high - low) * u).astype(dtype)), xp.asarray(rng.integers(0, 3, n))


def blobs(n, seed, dtype=np.float32):
    """Images (n, 1, 4, 4) of three classes: three patterns of grey, and noise."""
    patterns = np.random.default_rng(0).random((3, 1, 4, 4))
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return (0.5 * patterns[y] + 0.5 * rng.random((n, 1, 4, 4))).astype(dtype), y


def dataset(n=44, dtype=np.float32):
    return Dataset("blobs", *blobs(n, 1, dtype), *blobs(20, 2, dtype), classes=("a", "b", "c"))


DATA, BATCH, STEPS = dataset(), 16, 3  # batches of 16, 16 and 12


def norm(ball, delta):
    order = {Linf: np.inf, L2: 2, L1: 1}[type(ball)]
    return np.linalg.norm(delta.reshape(len(delta), -1), order, axis=1)


def assert_allowed(ball, x, x_adv):
    """An array like x, in [0, 1], and in the ball up to the rounding of x + δ."""
    assert type(x_adv) is type(x) and x_adv.shape == x.shape and x_adv.dtype == x.dtype
    slack = {"float64": 1e-12, "float32": 3e-6}[str(x.dtype)]
    x, x_adv = to_numpy(x).astype(float), to_numpy(x_adv).astype(float)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert (norm(ball, x_adv - x) <= ball.epsilon + slack).all()


def slope(value, parameters, direction, h=1e-6):
    """The derivative of ``value()`` along a direction of the parameters, by central differences."""
    start = [p.value for p in parameters]
    results = []
    for sign in (h, -h):
        for p, old, d in zip(parameters, start, direction, strict=True):
            p.value = old + sign * d
        results.append(float(value()))
    for p, old in zip(parameters, start, strict=True):
        p.value = old
    return (results[0] - results[1]) / (2 * h)


def assert_gradients(loss, value, parameters, trials=4, tolerance=1e-6):
    """The gradients of the tensor ``loss`` are those of the function ``value``, in float64."""
    gradients, rng = [to_numpy(g) for g in grad(loss, parameters)], np.random.default_rng(0)
    for _ in range(trials):
        d = [rng.standard_normal(p.shape) for p in parameters]
        expected = sum((g * e).sum() for g, e in zip(gradients, d, strict=True))
        assert slope(value, parameters, d) == pytest.approx(expected, rel=tolerance, abs=1e-9)


# ---- in plain NumPy, one example at a time -------------------------------------------------------


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def plain_cross_entropy(model, x, y):
    return -log_softmax(to_numpy(model(x)))[np.arange(len(x)), y].mean()


def naive_direction(ball, g):
    v = g.ravel()
    if isinstance(ball, Linf):
        d = np.sign(v)
    elif isinstance(ball, L2):
        d = v / np.linalg.norm(v)
    else:
        d = np.where(np.arange(v.size) == abs(v).argmax(), np.sign(v), 0)
    return d.reshape(g.shape)


def naive_project(ball, delta):
    """Into the ball alone: for images that are far from black and white."""
    if isinstance(ball, Linf):
        return np.clip(delta, -ball.epsilon, ball.epsilon)
    if isinstance(ball, L2):
        return delta * min(1, ball.epsilon / max(np.linalg.norm(delta), 1e-30))
    low, high = 0.0, abs(delta).max()
    if abs(delta).sum() <= ball.epsilon:
        return delta
    for _ in range(100):  # what is taken off every number, by bisection
        middle = (low + high) / 2
        larger = np.maximum(abs(delta) - middle, 0).sum() > ball.epsilon
        low, high = (middle, high) if larger else (low, middle)
    return np.sign(delta) * np.maximum(abs(delta) - high, 0)


def naive_climb(loss, x, start, ball, step_size, steps):
    """x′ for each image by itself; ``loss(i, image)`` is what example i is to raise."""
    result = []
    for i, delta in enumerate(start):
        for _ in range(steps):
            image = Tensor(x[i : i + 1] + delta)
            (g,) = grad(loss(i, image), [image])
            delta = naive_project(ball, delta + step_size * naive_direction(ball, g[0]))
            delta = np.clip(delta, -x[i], 1 - x[i])
        result.append(x[i] + delta)
    return np.array(result)


# ---- what grows ----------------------------------------------------------------------------------


def test_a_ramp():
    assert [ramp(t, 1, 3) for t in (0, 1, 1.5, 2, 3, 9)] == [0, 0, 0.25, 0.5, 1, 1]
    assert [ramp(t, 0, 0) for t in (0, 5)] == [1, 1]
    assert [ramp(t, 3, 3) for t in (0, 2.9, 3, 4)] == [0, 0, 1, 1]  # not before its time


def perturbed(defense, model, x, y):
    """x′ of any of the classes, as an array on the host."""
    if isinstance(defense, Trades):
        found = defense.furthest(model, x, ops.softmax(model(x), axis=1).value)
    elif isinstance(defense, Free):  # δ moves while it trains
        *_, found = free_images(defense, model, x, y)
    else:
        found = defense(model, x, y)
    return to_numpy(found)


def free_images(free, model, x, y, objective=cross_entropy_objective):
    """The images of each update of Free on a batch, with weights that stay: tensors."""
    images = []

    def evaluated(model, x, y):
        images.append(x)
        return Result(*objective(model, x, y))

    still = optim.SGD(model.parameters(), lr=0.0)
    for _ in free.train_batch(model, x, y, evaluated, still, lambda k, m: None):
        pass
    return images


@every_ball
@pytest.mark.parametrize("defense", [MinMax, Fast, Free, Trades])
def test_epsilon_and_the_step_grow_together(xp, defense, ball):
    model, (x, y) = mlp(xp), batch(xp, low=0.2, high=0.8)
    half = type(ball)(ball.epsilon / 2)
    if defense is Trades:  # its start does not grow
        large = {"start": 0.001, "step_size": 0.08}
        small = {"start": 0.001, "step_size": 0.04}
    else:
        large, small = {"step_size": 0.08}, {"step_size": 0.04}

    def result(ball, at=None, **how):
        defender = defense(ball, **how)
        if at is not None:
            defender.at(at)
        return perturbed(defender, model, x, y)

    full, start = result(ball, **large), to_numpy(x)
    assert (abs(full - start).reshape(len(x), -1).max(1) > 1e-3).all()
    same(result(ball, 0, warm_up=0, **large), full)
    same(result(ball, 0, warm_up=4, **large), start)
    same(result(ball, 2, warm_up=4, **large), result(half, **small))
    same(result(ball, 4, warm_up=4, **large), full)
    same(result(ball, 9.5, warm_up=4, **large), full)


@pytest.mark.parametrize(
    "make, step_size",
    [
        (lambda ball: MinMax(ball, steps=10), 0.25),
        (lambda ball: MinMax(ball, steps=2), 1),
        (lambda ball: Trades(ball, steps=5), 0.5),
        (lambda ball: Trades(ball, steps=1), 1),
        (Fast, 1.25),
        (Free, 1),
    ],
)
def test_default_step_sizes(make, step_size):
    assert make(Linf(0.2)).step_size == pytest.approx(0.2 * step_size)


# ---- min-max -------------------------------------------------------------------------------------


@every_ball
def test_danskin_by_number(xp, ball):
    """Two classes and a linear model: the inner maximum is known, and so is φ(θ) = max L."""
    model = on(xp, models.linear(16, 2, rng=1).astype(np.float64))
    rng = np.random.default_rng(0)
    # L∞ may meet black and white pixels: clipping is exact there.
    low, high = (0, 1) if isinstance(ball, Linf) else (0.45, 0.55)
    x, y = rng.uniform(low, high, (9, 1, 4, 4)), rng.integers(0, 2, 9)
    ball = type(ball)(0.2 if isinstance(ball, Linf) else 0.4)

    def phi():
        weights, bias = (to_numpy(p) for p in model.parameters())
        v = (weights[1 - y] - weights[y]).reshape(x.shape)
        if isinstance(ball, Linf):
            x_star = np.clip(x + ball.epsilon * np.sign(v), 0, 1)
        else:
            x_star = x + ball.epsilon * np.array([naive_direction(ball, each) for each in v])
        m = (v * x_star).reshape(9, -1).sum(1) + bias[1 - y] - bias[y]
        phi.x_star = x_star
        return np.log1p(np.exp(m)).mean()

    inner = MinMax(ball, steps=40, step_size=3 * ball.epsilon, rng=2)
    there, labels = xp.asarray(x), xp.asarray(y)
    x_adv = inner(model, there, labels)
    loss = cross_entropy(model(x_adv), labels)
    assert float(loss) == pytest.approx(phi(), rel=1e-12)
    close(to_numpy(x_adv), phi.x_star, atol=1e-10)

    parameters = model.parameters()
    gradients = [to_numpy(g) for g in grad(loss, parameters)]
    for p, g in zip(parameters, gradients, strict=True):
        for i in np.ndindex(p.shape):
            d = [xp.asarray(np.zeros(q.shape)) for q in parameters]
            d[[q is p for q in parameters].index(True)][i] = 1.0
            assert slope(phi, parameters, d, 1e-5) == pytest.approx(g[i], rel=1e-5, abs=1e-9)


@every_ball
def test_min_max_is_a_loop_of_steps(xp, ball):
    host, (x, y) = mlp(), batch(low=0.4, high=0.6)
    if isinstance(ball, Linf):
        x, y = batch()  # black and white pixels too
    start = ball.random(x, np.random.default_rng(5))

    def loss(i, image):
        return cross_entropy(host(image), y[i : i + 1])

    expected = naive_climb(loss, x, start, ball, 0.07, 4)
    inner = MinMax(ball, steps=4, step_size=0.07, rng=5)
    found = inner(mlp(xp), xp.asarray(x), xp.asarray(y))
    assert_allowed(ball, xp.asarray(x), found)
    close(to_numpy(found), expected, atol=1e-9)


@every_ball
@pytest.mark.parametrize("loss", [cross_entropy, margin])
def test_min_max_is_pgd_with_a_generator_that_goes_on(xp, ball, loss):
    model, (x, y) = cnn(xp), batch(xp, 20, np.float32)
    inner, rng = MinMax(ball, steps=3, loss=loss, rng=7), np.random.default_rng(7)
    found = []
    for _ in range(3):
        found.append(to_numpy(inner(model, x, y)))
        same(found[-1], to_numpy(pgd(model, x, y, ball=ball, steps=3, loss=loss, rng=rng)))
    assert not np.array_equal(found[0], found[1])


def test_fit_with_min_max_is_the_loop_written_out(xp):
    model, by_hand, data = mlp(xp), mlp(xp), dataset(dtype=np.float64)
    how = {"ball": Linf(0.1), "steps": 2}
    quick_fit(model, 2, MinMax(**how, rng=1), data=data, rng=5)

    params = by_hand.parameters()
    shuffle, starts = np.random.default_rng(5), np.random.default_rng(1)
    for _ in range(2):
        order = shuffle.permutation(44)
        for i in range(0, 44, BATCH):
            x, y = data.x_train[order[i : i + BATCH]], data.y_train[order[i : i + BATCH]]
            x, y = xp.asarray(x), xp.asarray(y)
            x_adv = pgd(by_hand, x, y, **how, rng=starts)
            loss = cross_entropy(by_hand(x_adv), y)  # the labels stay
            for p, g in zip(params, grad(loss, params), strict=True):
                p.value = p.value - 0.1 * g
    for p, q in zip(model.parameters(), params, strict=True):
        close(to_numpy(p), to_numpy(q), rtol=1e-10)


def test_the_number_of_cores_changes_no_bit(monkeypatch):
    model, (x, y) = cnn(), batch(n=150, dtype=np.float32)

    def results(cores):
        monkeypatch.setattr(parallel, "CORES", cores)
        bound = IntervalBound(0.1, ramp=(0, 0), kappa=0.5)
        found = [MinMax(Linf(0.1), steps=3)(model, x, y)]
        for objective in (Trades(steps=2), GradientPenalty(0.1), bound):
            loss, _ = objective(model, x, y)
            found += [loss.value, *grad(loss, model.parameters())]
        return found

    for one, several in zip(results(1), results(3), strict=True):
        same(one, several)


# ---- a single step, watched ----------------------------------------------------------------------


@every_ball
def test_fast_is_one_step_of_five_quarters(xp, ball):
    model, (x, y) = cnn(xp), batch(xp, 20, np.float32)

    def one_step(rng, step_size, loss=cross_entropy):
        u = ball.random(xp.full_like(x, 0.5), rng)  # the image may be left, [0, 1] as well
        images = Tensor(x + u)
        (g,) = grad(loss(model(images), y, reduction="sum"), [images])
        return x + ball.project(u + step_size * ball.steepest(g), -x, 1 - x)

    fast, rng = Fast(ball, rng=3), np.random.default_rng(3)
    for _ in range(2):
        expected = one_step(rng, 1.25 * ball.epsilon)
        x_adv = fast(model, x, y)
        np.testing.assert_allclose(to_numpy(x_adv), to_numpy(expected), rtol=1e-4, atol=1e-5)
        assert float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1
    fast = Fast(ball, step_size=0.05, loss=margin, rng=3)
    expected = one_step(np.random.default_rng(3), 0.05, margin)
    np.testing.assert_allclose(
        to_numpy(fast(model, x, y)), to_numpy(expected), rtol=1e-4, atol=1e-5
    )


def test_fast_starts_outside_the_box_as_well():
    seen = []

    def model(x):
        seen.append(x.value.min() if isinstance(x, Tensor) else x.min())
        return ops.reshape(x, (-1, 16))[:, :3]

    x, y = np.zeros((5, 1, 4, 4), np.float32), np.arange(5) % 3
    Fast(Linf(0.3))(model, x, y)
    assert min(seen) < -0.1  # a black pixel, and less


class Hidden(Module):
    """Right about all images of one grey pixel, except for a gap that a long step jumps over.

    The loss has its peak at 0.5 + ε/2. With a = 4 the answer is wrong within 0.26 ε of it, where
    ten short steps end; a single one of 1.25 ε mostly comes down on the other side.
    """

    def __init__(self, xp, epsilon, a=4.0):
        self.epsilon, self.a = epsilon, Tensor(xp.asarray(np.array([[a]])))
        self.columns = xp.asarray(np.array([[2.0], [0.0]]))

    def parameters(self):
        return [self.a]

    def __call__(self, x):
        u = (ops.reshape(x, (-1, 1)) - 0.5) / self.epsilon - 0.5
        return ops.dense(1 - self.a * ops.exp(-((u / 0.22) ** 2)), self.columns)  # (N, 2)


def test_overfitting_is_noticed_and_ended(xp):
    ball, y = Linf(0.2), np.zeros(300, int)
    x = np.full((300, 1, 1, 1), 0.5)
    model, there, labels = Hidden(xp, 0.2), xp.asarray(x), xp.asarray(y)
    # The watched images may lie on the host: they are moved.
    fast = Fast(ball, watch=(x, y), every=2, rescue_steps=4, rng=5)
    with pytest.warns(AttackWarning, match="overfitting at step 0.*4 steps of PGD"):
        found = [fast(model, there, labels)]
    step, own, single, full = fast.looks[0]
    assert (step, fast.overfitted) == (0, True) and own == single > 0.6 and full < 0.1
    for value, attack in [(single, fgsm), (full, pgd)]:
        how = {"random_start": True} if attack is fgsm else {"steps": 10}
        assert value == accuracy(model, attack(model, there, labels, ball=ball, **how), labels)
    found.append(fast(model, there, labels))  # no look at this step, and no end
    assert len(fast.looks) == 1
    found.append(fast(model, there, labels))  # still so: a look, but no second warning
    assert [look[0] for look in fast.looks] == [0, 2] and fast.overfitted
    found.append(fast(model, there, labels))

    rng = np.random.default_rng(5)  # PGD, with the draws that single steps would have had
    for x_adv in found:
        expected = pgd(model, there, labels, ball=ball, steps=4, rng=rng)
        same(to_numpy(x_adv), to_numpy(expected))

    model.a.value = model.a.value * 0.0  # now nothing fools it
    x_adv = fast(model, there, labels)
    assert fast.looks[-1] == (4, 1.0, 1.0, 1.0) and not fast.overfitted
    same(
        to_numpy(x_adv),
        to_numpy(fgsm(model, there, labels, ball=ball, random_start=True, rng=rng)),
    )
    fast(model, there, labels)
    model.a.value = model.a.value + 4.0
    with pytest.warns(AttackWarning, match="overfitting at step 6"):  # first again
        fast(model, there, labels)


def test_the_gap_decides_what_is_overfitting():
    x, y = np.full((300, 1, 1, 1), 0.5), np.zeros(300, int)
    fast = Fast(Linf(0.2), watch=(x, y), gap=0.95)
    fast(Hidden(np, 0.2), x, y)
    assert not fast.overfitted and fast.looks[0][2] - fast.looks[0][3] > 0.5


class Brighter(Module):
    """Says 1 for images that are brighter than a level on the mean, and 0 for others."""

    def __init__(self, xp, level=0.28):
        self.scale, self.level = Tensor(xp.asarray(np.array(10.0))), level

    def parameters(self):
        return [self.scale]

    def __call__(self, x):
        bright = ops.mean(ops.reshape(x, (len(x), -1)), axis=1, keepdims=True)
        bright = bright - self.level
        return ops.concatenate([-self.scale * bright, self.scale * bright], axis=1)


def downhill(*args, **how):
    return -cross_entropy(*args, **how)


def test_the_watch_tells_the_step_of_the_training_from_fgsm(xp):
    # From a black pixel's random start, which may be below 0, the training's step ends between
    # 0.075 and 0.3, at 0.26 on the mean. FGSM and PGD end at 0.3.
    x, y = np.zeros((20, 1, 16, 16)), np.zeros(20, int)
    model, there, labels = Brighter(xp), xp.asarray(x), xp.asarray(y)
    fast = Fast(Linf(0.3), watch=(x, y))
    x_adv = fast(model, there, labels)
    assert fast.looks == [(0, 1.0, 0.0, 0.0)] and accuracy(model, x_adv, labels) == 1
    assert not fast.overfitted
    fast = Fast(Linf(0.3), watch=(x, y), loss=downhill)
    fast(model, there, labels)
    assert fast.looks == [(0, 1.0, 1.0, 1.0)]


def test_what_is_watched_has_the_epsilon_of_the_moment():
    x, y = np.full((300, 1, 1, 1), 0.5), np.zeros(300, int)
    fast = Fast(Linf(0.2), watch=(x, y), warm_up=1.0)
    fast.at(0.0)
    fast(Hidden(np, 0.2), x, y)
    assert fast.looks == [(0, 1.0, 1.0, 1.0)]
    # Half way ε is 0.15, and a step is 0.19. From a start between -0.15 and 0.15 it ends at 0.15 in
    # five of eight cases; a whole step of 0.375 always would.
    fast = Fast(Linf(0.3), watch=(x, y), warm_up=1.0, gap=0.9)
    fast.at(0.5)
    fast(Brighter(np, 0.649), x, y)
    ((_, _, fgsm, full),) = fast.looks
    assert full == 0 and 0.3 < fgsm < 0.45


def test_watching_changes_nothing():
    def run(**how):
        fast, model = Fast(Linf(0.05), rng=1, warm_up=1.0, **how), mlp(dtype=np.float32)
        return fast, outcome(model, quick_fit(model, 3, fast))

    (alone, expected), (watched, found) = run(), run(watch=(DATA.x_test, DATA.y_test), every=4)
    assert found == expected
    assert alone.looks == [] and [look[0] for look in watched.looks] == [0, 4, 8]


# ---- free ----------------------------------------------------------------------------------------


@every_ball
@pytest.mark.parametrize("replays", [1, 3])
def test_free_training_is_the_loop_of_the_paper(xp, ball, replays):
    data = dataset(dtype=np.float64)
    # Far from black and white, where projecting into the ball is all that there is to do.
    data = Dataset("", 0.4 + 0.2 * data.x_train, data.y_train, None, None, data.classes)
    ball = type(ball)(ball.epsilon / 3)
    model, by_hand, alpha = mlp(xp), mlp(), 0.7 * ball.epsilon
    free = Free(ball, replays=replays, step_size=alpha)
    history = quick_fit(model, 2, free, data=data, rng=5, validate=False)

    params, rng, delta = by_hand.parameters(), np.random.default_rng(5), np.zeros((16, 1, 4, 4))
    losses = []
    for _ in range(2):
        order, loss_sum = rng.permutation(44), 0
        for i in range(0, 44, BATCH):
            x, y = data.x_train[order[i : i + BATCH]], data.y_train[order[i : i + BATCH]]
            n = len(x)  # 16, 16, 12
            for _ in range(replays):
                image = Tensor(x + delta[:n])
                loss = cross_entropy(by_hand(image), y)
                *g_weights, g = grad(loss, [*params, image])
                for j in range(n):
                    step = alpha * naive_direction(ball, g[j])
                    delta[j] = naive_project(ball, delta[j] + step)
                for p, g_weight in zip(params, g_weights, strict=True):
                    p.value = p.value - 0.1 * g_weight
                loss_sum += float(loss) * n
        losses.append(loss_sum / 44 / replays)
    for p, q in zip(model.parameters(), params, strict=True):
        close(to_numpy(p), to_numpy(q), rtol=1e-7)
    close(to_numpy(free.delta), delta, atol=1e-9)
    assert history.loss == pytest.approx(losses, rel=1e-9)


def test_free_training_passes_through_the_network_once_a_step(monkeypatch):
    model, calls, passes = mlp(dtype=np.float32), [], []
    real = {"call": type(model).__call__, "grad": defenses.grad}

    def call(self, x):
        calls.append(len(x))
        return real["call"](self, x)

    monkeypatch.setattr(type(model), "__call__", call)
    monkeypatch.setattr(defenses, "grad", lambda *args: passes.append(1) or real["grad"](*args))
    quick_fit(model, 1, Free(Linf(0.1), replays=4), validate=False)
    assert calls == [1] + [16] * 8 + [12] * 4  # the first is a look at what comes in
    assert len(passes) == 12


@every_ball
def test_free_deltas_fit_the_images_that_they_meet(xp, ball):
    model, free = cnn(xp), Free(ball, step_size=2 * ball.epsilon, replays=3)
    for seed in range(3):
        x, y = batch(xp, 9, np.float32, seed=seed)
        images = free_images(free, model, x, y)
        assert len(images) == 3
        for image in images:
            assert_allowed(ball, x, image.value)
        assert_allowed(ball, x, x + free.delta)
    assert float(to_numpy(abs(image.value - x)).max()) > 0.01


def test_free_deltas_for_batches_of_any_size(xp):
    model, free = mlp(xp), Free(Linf(0.1), replays=1)
    x, y = batch(xp, 8)

    def step(n):
        (image,) = free_images(free, model, x[:n], y[:n])
        return to_numpy(image.value - x[:n])

    assert not step(3).any()
    kept = to_numpy(free.delta)
    second = step(5)  # larger: what is new starts at 0
    close(second[:3], kept, atol=1e-15)
    assert not second[3:].any() and abs(kept).max() > 0.01
    kept = to_numpy(free.delta)
    step(2)  # smaller: what is left over waits
    same(to_numpy(free.delta)[2:], kept[2:])


def test_free_deltas_belong_to_images_of_one_size():
    model, free = models.fast_cnn(0), Free(Linf(0.1))
    x, y = np.zeros((2, 1, 28, 28), np.float32), np.zeros(2, int)
    free_images(free, model, x, y)
    with pytest.raises(ValueError, match=r"shape \(1, 28, 28\).*\(1, 4, 4\)"):
        free_images(free, mlp(), *batch())


def test_free_training_of_the_last_layer():
    model, by_hand, free = mlp(), mlp(), Free(Linf(0.1), replays=2)
    data = dataset(16, np.float64)
    sgd, times = optim.SGD(model.parameters()[2:], 0.1), []
    schedule = lambda epoch: times.append(epoch) or 0.1 * (1 + epoch)
    fit(model, data, sgd, 1, free, batch_size=16, schedule=schedule, progress=False)
    order = np.random.default_rng(0).permutation(16)
    x, y, delta = data.x_train[order], data.y_train[order], 0.0
    for lr in (0.1, 0.15):  # one for each update
        image = Tensor(np.clip(x + delta, 0, 1))
        loss = cross_entropy(by_hand(image), y)
        *gradients, g = grad(loss, [*by_hand.parameters()[2:], image])
        for p, step in zip(by_hand.parameters()[2:], gradients, strict=True):
            p.value = p.value - lr * step
        delta = np.clip(np.clip(delta + 0.1 * np.sign(g), -0.1, 0.1), -x, 1 - x)
    assert times == [0, 0.5]
    close(free.delta, delta, atol=1e-12)
    for p, q in zip(model.parameters(), by_hand.parameters(), strict=True):
        close(p.value, q.value, rtol=1e-10)


def test_free_resumes_with_the_same_number_of_replays():
    with pytest.raises(ValueError, match=r"replays = 3, this one has replays = 2"):
        Free(replays=2).load_state_dict(Free(replays=3).state_dict())


# ---- TRADES --------------------------------------------------------------------------------------


def naive_kl(z, w):
    log_p, log_q = log_softmax(z), log_softmax(w)
    return sum((np.exp(a) * (a - b)).sum() for a, b in zip(log_p, log_q, strict=True)) / len(z)


@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_the_divergence_is_its_formula(xp, seed, scale):
    z, w = scale * np.random.default_rng(seed).standard_normal((2, 5, 4))
    found = float(kl(xp.asarray(z), xp.asarray(w)))
    assert found == pytest.approx(naive_kl(z, w), rel=1e-9, abs=1e-13) and found >= -1e-15
    assert float(kl(xp.asarray(z), xp.asarray(z))) == 0
    assert float(kl(xp.asarray(z), xp.asarray(w))) != pytest.approx(naive_kl(w, z), rel=1e-6)


def test_the_divergence_has_no_gradient_at_the_image_itself(xp):
    model, (x, _) = mlp(xp), batch(xp)
    p = model(x).value

    def gradient(where):
        image = Tensor(where)
        (g,) = grad(kl(p, model(image)), [image])
        return abs(to_numpy(g)).max()

    assert gradient(x) < 1e-15
    noise = 0.001 * np.random.default_rng(0).standard_normal(x.shape)
    assert gradient(x + xp.asarray(noise)) > 1e-6


@every_ball
def test_what_is_furthest_is_found_by_a_loop(xp, ball):
    host, (x, _) = mlp(), batch(low=0.4, high=0.6)
    z = to_numpy(host(x))
    trades = Trades(ball, steps=4, step_size=0.05, start=0.2, rng=5)  # too far
    noise = 0.2 * np.random.default_rng(5).standard_normal(x.shape)
    start = np.array([naive_project(ball, each) for each in noise])
    expected = naive_climb(lambda i, image: kl(z[i : i + 1], host(image)), x, start, ball, 0.05, 4)
    p = xp.asarray(np.exp(log_softmax(z)))
    found = to_numpy(trades.furthest(mlp(xp), xp.asarray(x), p))
    close(found, expected, atol=1e-9)
    assert naive_kl(z, to_numpy(host(found))) > 1.2 * naive_kl(z, to_numpy(host(x + start)))


@every_ball
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_furthest_is_in_ball_and_box(xp, ball, dtype):
    model, (x, _) = cnn(xp, dtype), batch(xp, 20, dtype)
    p = ops.softmax(model(x), axis=1).value
    assert_allowed(ball, x, Trades(ball, steps=3).furthest(model, x, p))
    for n in (1, 2):  # a start that is far outside both
        wide = Trades(ball, steps=n, start=5.0, step_size=0.0)
        assert_allowed(ball, x, wide.furthest(model, x, p))


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades_is_its_formula(xp, beta):
    model, (x, y) = mlp(xp), batch(xp)
    how = {"ball": Linf(0.1), "steps": 3, "rng": 4}
    x_adv = Trades(**how).furthest(model, x, ops.softmax(model(x), axis=1).value)
    before = [p.value for p in model.parameters()]
    loss, logits = Trades(**how, beta=beta)(model, x, y)
    same(to_numpy(logits), to_numpy(model(x)))
    assert all(p.value is old for p, old in zip(model.parameters(), before, strict=True))

    def value():  # x′ is held fixed, both answers move
        divergence = naive_kl(to_numpy(model(x)), to_numpy(model(x_adv)))
        return plain_cross_entropy(model, x, to_numpy(y)) + beta * divergence

    assert float(loss) == pytest.approx(value(), rel=1e-10)
    host = mlp()
    host_loss, _ = Trades(**how, beta=beta)(host, to_numpy(x), to_numpy(y))
    model, x, x_adv = host, to_numpy(x), to_numpy(x_adv)
    assert_gradients(host_loss, value, host.parameters())
    if beta == 0:
        plain = grad(cross_entropy(host(x), to_numpy(y)), host.parameters())
        for g, expected in zip(grad(host_loss, host.parameters()), plain, strict=True):
            close(g, expected, atol=1e-15)


# ---- the norm of the gradient --------------------------------------------------------------------


@pytest.mark.parametrize("n_norm", [1, 2])
def test_the_penalty_is_that_of_each_image_by_itself(xp, n_norm):
    model, host, (x, y) = mlp(xp), mlp(), batch()
    loss, logits = GradientPenalty(0.7, norm=n_norm)(model, xp.asarray(x), xp.asarray(y))
    same(to_numpy(logits), to_numpy(model(xp.asarray(x))))

    def value():
        total = 0
        for i in range(len(x)):
            image = Tensor(x[i : i + 1])
            own = cross_entropy(host(image), y[i : i + 1])
            (g,) = grad(own, [image])
            total += float(own) + 0.7 * (abs(g) ** n_norm).sum()
        return total / len(x)

    assert float(loss) == pytest.approx(value(), rel=1e-12)
    loss, _ = GradientPenalty(0.7, norm=n_norm)(host, x, y)
    assert_gradients(loss, value, host.parameters())


@pytest.mark.parametrize("n_norm", [1, 2])
def test_a_penalty_of_no_weight_is_none(n_norm):
    model, (x, y) = mlp(), batch()
    loss, _ = GradientPenalty(0, norm=n_norm)(model, x, y)
    expected = cross_entropy(model(x), y)
    assert loss.value == expected.value
    for one, other in zip(*(grad(a, model.parameters()) for a in (loss, expected)), strict=True):
        close(one, other, atol=1e-15)


def test_the_penalty_is_the_inner_maximum_to_first_order():
    """L + ε ‖∂L/∂x‖₁ against max L in L∞: what is left is of second order in ε."""
    model, (x, y) = mlp(), batch(low=0.3, high=0.7)
    left = []
    for epsilon in (0.002, 0.001):
        x_adv = pgd(model, x, y, ball=Linf(epsilon), steps=20, random_start=False)
        loss, _ = GradientPenalty(epsilon, norm=1)(model, x, y)
        left.append(abs(float(loss) - plain_cross_entropy(model, x_adv, y)))
    assert left[0] < 1e-3 * 0.002**0.5 and 3 < left[0] / left[1] < 5


# ---- interval bounds -----------------------------------------------------------------------------


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), epsilon=st.sampled_from([0.0, 0.01, 0.1, 0.5]))
def test_nothing_in_the_box_is_worse_than_the_bound(xp, seed, epsilon):
    model, (x, y) = cnn(xp, np.float64), batch(xp, 4, seed=seed)
    bound = IntervalBound(epsilon, ramp=(0, 0), kappa=0)
    limits = [float(bound(model, x[i : i + 1], y[i : i + 1])[0]) for i in range(4)]
    found = [pgd(model, x, y, ball=Linf(epsilon), steps=5, rng=seed)]
    found += [xp.clip(x + epsilon * xp.sign(x - 0.5), 0, 1), Linf(epsilon).random(x, seed) + x]
    for x_adv in found:
        each = to_numpy(cross_entropy(model(x_adv), y, "none"))
        assert (each <= np.array(limits) + 1e-9).all()
    if epsilon == 0:
        close(limits, to_numpy(cross_entropy(model(x), y, "none")), rtol=1e-9, atol=1e-12)


def test_epsilon_grows_and_kappa_sinks(xp):
    model, (x, y) = cnn(xp, np.float64), batch(xp)
    plain = float(cross_entropy(model(x), y))

    def value(epoch):
        objective = IntervalBound(0.2, ramp=(1, 5), kappa=0.2)
        if epoch is not None:
            objective.at(epoch)
        loss, logits = objective(model, x, y)
        same(to_numpy(logits), to_numpy(model(x)))
        return float(loss)

    assert value(0) == value(1) == plain
    for epoch, epsilon, kappa in [(2, 0.05, 0.8), (4, 0.15, 0.4), (5, 0.2, 0.2), (9, 0.2, 0.2)]:
        low, high = xp.clip(x - epsilon, 0, 1), xp.clip(x + epsilon, 0, 1)
        bound = float(cross_entropy(worst_logits(model, low, high, y), y))
        assert value(epoch) == pytest.approx(kappa * plain + (1 - kappa) * bound, rel=1e-9)
        assert bound > plain
    assert value(None) == value(5)  # for one who never says what time it is


def test_with_kappa_1_it_is_ordinary_training():
    class Square(Module):  # no interval rule for it: no bound is computed
        def __call__(self, x):
            return x * x

    model, (x, y) = Sequential(Flatten(), Square(), Dense(16, 3, rng=0)), batch(dtype=np.float32)
    loss, _ = IntervalBound(0.3, ramp=(0, 0), kappa=1)(model, x, y)
    assert float(loss) == float(cross_entropy(model(x), y))
    with pytest.raises(TypeError, match="no interval rule for Square"):
        IntervalBound(0.3, ramp=(0, 0), kappa=0.9)(model, x, y)


def test_bounds_beside_an_attack(xp):
    model, (x, y) = cnn(xp, np.float64), batch(xp)
    how = {"ball": Linf(0.1), "steps": 3, "warm_up": 4, "rng": 2}
    objective = IntervalBound(0.1, ramp=(0, 4), kappa=0.3, attack=MinMax(**how))
    objective.at(2)  # half of everything
    loss, logits = objective(model, x, y)
    inner = MinMax(**how)
    inner.at(2)
    x_adv = inner(model, x, y)
    close(to_numpy(logits), to_numpy(model(x_adv)))
    low, high = xp.clip(x - 0.05, 0, 1), xp.clip(x + 0.05, 0, 1)
    bound = float(cross_entropy(worst_logits(model, low, high, y), y))
    expected = 0.65 * float(cross_entropy(model(x_adv), y)) + 0.35 * bound
    assert float(loss) == pytest.approx(expected, rel=1e-10)

    # A plain function serves as well; it has no state.
    plain = IntervalBound(0.1, ramp=(0, 0), attack=lambda model, x, y: 1 - x)
    plain.at(3)
    same(to_numpy(plain(model, x, y)[1]), to_numpy(model(1 - x)))
    assert "attack" not in plain.state_dict() and "attack" in objective.state_dict()


def test_the_whole_ball_is_the_default_box(xp):
    model, (x, y) = cnn(xp), batch(xp, dtype=np.float32)
    low, high = xp.clip(x - 0.15, 0, 1), xp.clip(x + 0.15, 0, 1)
    plain = cross_entropy(model(x), y)
    bound = cross_entropy(worst_logits(model, low, high, y, outward=False), y)
    expected = 0.625 * plain + 0.375 * bound
    for how in ({}, {"box": 1}, {"bound": worst_logits}, {"attack": lambda model, x, y: x}):
        objective = IntervalBound(0.2, ramp=(0, 4), kappa=0.5, **how)
        objective.at(3)
        loss, _ = objective(model, x, y)
        same(to_numpy(loss), to_numpy(expected))
        for g, h in zip(
            *(grad(each, model.parameters()) for each in (loss, expected)), strict=True
        ):
            same(to_numpy(g), to_numpy(h))


def boxes(objective, model, x, y):
    """The limits low and high for which an ``IntervalBound`` computes the bound."""
    found = []

    def bound(model, low, high, y, outward=False):
        found.append((to_numpy(low), to_numpy(high)))
        return worst_logits(model, low, high, y, outward)

    objective.bound = bound
    objective(model, x, y)
    return found[-1]  # the first is that of the check


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10_000), box=st.floats(0.05, 0.95), epsilon=st.sampled_from([0, 0.1, 0.6]),
    far=st.booleans(),
)  # fmt: skip
def test_the_small_box_lies_in_the_ball_and_contains_the_attack(xp, seed, box, epsilon, far):
    model, (x, y) = cnn(xp, np.float64), batch(xp, seed=seed)
    delta = Linf(epsilon).random(x, seed) + (5 * xp.sign(x - 0.5) if far else 0)  # or far outside
    objective = IntervalBound(
        epsilon, ramp=(0, 0), kappa=0, box=box, attack=lambda model, x, y: x + delta
    )
    low, high = boxes(objective, model, x, y)
    x, x_adv, near = to_numpy(x), to_numpy(x + delta), 1e-12
    ball = np.clip(x - epsilon, 0, 1), np.clip(x + epsilon, 0, 1)
    assert (ball[0] <= low).all() and (low <= high).all() and (high <= ball[1]).all()
    assert (high - low <= 2 * box * epsilon + near).all()
    x_adv = np.clip(x_adv, *ball)  # if it is far outside, the box touches the surface there
    assert (low - near <= x_adv).all() and (x_adv <= high + near).all()
    inner = (ball[0] > 0) & (ball[1] < 1)  # where [0, 1] cuts nothing off
    close((high - low)[inner], 2 * box * epsilon, atol=near)


def test_a_smaller_box_has_a_smaller_loss(xp):
    """From the loss of the attack, as λ → 0, to that of the whole ball."""
    model, (x, y) = cnn(xp, np.float64), batch(xp)
    x_adv = pgd(model, x, y, ball=Linf(0.1), steps=5)
    loss = lambda box: float(
        IntervalBound(0.1, ramp=(0, 0), kappa=0, attack=lambda *_: x_adv, box=box)(model, x, y)[0]
    )
    losses = [loss(box) for box in (1e-9, 0.1, 0.4, 0.7, 1.0)]
    assert losses == sorted(losses) and losses[0] < losses[-1]
    assert losses[0] == pytest.approx(float(cross_entropy(model(x_adv), y)), rel=1e-6)
    whole, _ = IntervalBound(0.1, ramp=(0, 0), kappa=0)(model, x, y)
    assert losses[-1] == float(whole)


def test_without_weight_the_standard_loss_costs_no_gradient(xp):
    model, (x, y) = cnn(xp, np.float64), batch(xp)
    loss, logits = IntervalBound(0.1, ramp=(0, 0), kappa=0)(model, x, y)
    close(to_numpy(logits), to_numpy(model(x)))
    assert not any(to_numpy(abs(g)).any() for g in grad(logits.sum(), model.parameters()))
    almost, _ = IntervalBound(0.1, ramp=(0, 0), kappa=1e-12)(model, x, y)
    for f in (float, lambda loss: grad(loss, model.parameters())[0]):
        close(to_numpy(f(loss)), to_numpy(f(almost)), rtol=1e-6, atol=1e-9)


def test_the_small_box_grows_with_epsilon(xp):
    model, (x, y) = cnn(xp, np.float64), batch(xp, low=0.4, high=0.6)
    attack = MinMax(Linf(0.2), steps=3, warm_up=4)
    objective = IntervalBound(0.2, ramp=(0, 4), kappa=0.5, attack=attack, box=0.25)
    for epoch, epsilon, kappa in [(2, 0.1, 0.75), (4, 0.2, 0.5)]:
        objective.at(epoch)
        attack.rng = np.random.default_rng(1)
        low, high = boxes(objective, model, x, y)
        close(high - low, 2 * 0.25 * epsilon)
        attack.rng = np.random.default_rng(1)
        loss, logits = objective(model, x, y)
        attack.rng = np.random.default_rng(1)
        x_adv = attack(model, x, y)
        same(to_numpy(logits), to_numpy(model(x_adv)))
        centre = xp.clip(x_adv, x - 0.75 * epsilon, x + 0.75 * epsilon)
        close(0.5 * (low + high), to_numpy(centre))
        worst = worst_logits(model, *map(xp.asarray, (low, high)), y, outward=False)
        expected = kappa * cross_entropy(logits, y) + (1 - kappa) * cross_entropy(worst, y)
        assert float(loss) == pytest.approx(float(expected), rel=1e-12)


def test_other_bounds_take_the_place_of_intervals(xp):
    model, (x, y) = cnn(xp, np.float64), batch(xp)
    twice = lambda model, low, high, y, outward=True: 2 * worst_logits(model, low, high, y, outward)
    loss, _ = IntervalBound(0.1, ramp=(0, 0), kappa=0.0, bound=twice)(model, x, y)
    low, high = xp.clip(x - 0.1, 0, 1), xp.clip(x + 0.1, 0, 1)
    worst = 2 * worst_logits(model, low, high, y, outward=False)
    assert float(loss) == float(cross_entropy(worst, y))
    assert all(to_numpy(g).any() for g in grad(loss, model.parameters()[:-1]))
    assert boxes(IntervalBound(0.1, ramp=(0, 0), bound=twice), model, x, y)


def test_the_gradient_of_the_bound():
    model = Sequential(Flatten(), Dense(16, 8, rng=1), Activation("tanh"), Dense(8, 3, rng=2))
    model, (x, y) = model.astype(np.float64), batch()
    objective = IntervalBound(0.05, ramp=(0, 0), kappa=0.4)
    loss, _ = objective(model, x, y)
    value = lambda: objective(model, x, y)[0]
    assert_gradients(loss, value, model.parameters())


# ---- rotations and translations ------------------------------------------------------------------


def test_worst_of_k_is_the_attack_with_a_generator_that_goes_on(xp):
    model, (x, y) = cnn(xp), batch(xp, 20, np.float32)
    how = {"k": 4, "max_angle": 40.0, "max_shift": 1.0}
    perturb, rng = WorstOfK(**how, rng=9), np.random.default_rng(9)
    for _ in range(2):
        found = perturb(model, x, y)
        same(to_numpy(found), to_numpy(spatial_random(model, x, y, **how, rng=rng)))
        assert found.dtype == np.float32 and type(found) is type(x)


def test_worst_of_k_has_the_settings_of_the_paper():
    assert WorstOfK().how == {"k": 10, "max_angle": 30.0, "max_shift": 3.0}


# ---- inside fit ----------------------------------------------------------------------------------


def quick_fit(model, epochs=1, perturb=None, *, lr=0.1, data=DATA, **options):
    """``fit`` with plain gradient descent and small batches, without a word."""
    optimizer = optim.SGD(model.parameters(), lr)
    options = {"batch_size": BATCH, "progress": False} | options
    return fit(model, data, optimizer, epochs, perturb, **options)


def outcome(model, history):
    """All that a run leaves, except for how long it took."""
    weights = {name: array.tobytes() for name, array in model.state_dict().items()}
    numbers = {name: str(values) for name, values in vars(history).items() if name != "seconds"}
    return weights, numbers


SIXTY_FOUR = [
    MinMax(Linf(np.float64(0.1)), steps=2, step_size=np.float64(0.1), warm_up=np.float64(2)),
    Fast(L2(np.float64(0.1)), step_size=np.float64(0.1)),
    Free(Linf(np.float64(0.1)), step_size=np.float64(0.1)),
    WorstOfK(2, max_angle=np.float64(30), max_shift=np.float64(1)),
    Trades(L1(np.float64(0.1)), beta=np.float64(2), step_size=np.float64(1), start=np.float64(1)),
    GradientPenalty(np.float64(0.5)),
    IntervalBound(np.float64(0.1), ramp=(np.float64(0), np.float64(1)), kappa=np.float64(0.5)),
    IntervalBound(np.float64(0.1), attack=MinMax(), box=np.float64(0.5)),
]


@pytest.mark.parametrize("defense", SIXTY_FOUR, ids=lambda part: type(part).__name__)
def test_numbers_of_numpy_do_not_make_float64_of_float32(xp, defense):
    model, (x, y) = cnn(xp), batch(xp, dtype=np.float32)
    if hasattr(defense, "at"):
        defense.at(np.float64(0.5))
    found = free_images(defense, model, x, y) if isinstance(defense, Free) else defense(model, x, y)
    for each in found if isinstance(found, (tuple, list)) else [found]:
        assert each.dtype == np.float32


WATCH = (DATA.x_test, DATA.y_test)
DEFENSES = {
    "MinMax": lambda rng: {"perturb": MinMax(Linf(0.1), steps=2, warm_up=1.5, rng=rng)},
    "L2": lambda rng: {"perturb": MinMax(L2(0.3), steps=2, rng=rng)},
    "L1": lambda rng: {"perturb": MinMax(L1(0.5), steps=2, rng=rng)},
    "Fast": lambda rng: {"perturb": Fast(Linf(0.1), watch=WATCH, every=2, rng=rng)},
    "Free": lambda rng: {"perturb": Free(Linf(0.1), replays=2, warm_up=1.5)},
    "WorstOfK": lambda rng: {"perturb": WorstOfK(2, max_shift=1, rng=rng)},
    "Trades": lambda rng: {"objective": Trades(Linf(0.1), steps=2, warm_up=1.5, rng=rng)},
    "GradientPenalty": lambda rng: {"objective": GradientPenalty(0.1)},
    "IntervalBound": lambda rng: {"objective": IntervalBound(0.1, ramp=(0.5, 1.5))},
    "IntervalBound and MinMax": lambda rng: {
        "objective": IntervalBound(0.1, ramp=(0, 1), attack=MinMax(Linf(0.1), steps=2, rng=rng))
    },
    "a small box": lambda rng: {
        "objective": IntervalBound(
            0.1, ramp=(0, 1), box=0.5, attack=MinMax(Linf(0.1), steps=2, rng=rng)
        )
    },
    "MinMax and Trades": lambda rng: {
        "perturb": MinMax(Linf(0.1), steps=1, rng=rng),
        "objective": Trades(Linf(0.1), steps=1, rng=rng),
    },
}
every_defense = pytest.mark.parametrize("name", DEFENSES)


class Crash(Exception):
    pass


@every_defense
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_a_run_that_is_interrupted_ends_with_the_same_bits(name, shared, tmp_path):
    def run(crash_at=None, **options):
        model, steps = cnn(), itertools.count(1)
        rng = np.random.default_rng(8)  # one generator for the shuffling and the defence, or two

        def schedule(epoch):
            if next(steps) == crash_at:
                raise Crash
            return 0.1

        how = DEFENSES[name](rng if shared else 8)
        history = quick_fit(model, 2, rng=rng, schedule=schedule, **how, **options)
        perturb = how.get("perturb")
        return *outcome(model, history), getattr(perturb, "looks", None)

    expected = run()
    total = 2 * STEPS * (2 if name == "Free" else 1)
    for crash_at, checkpoint_steps in [(2, 1), (total // 2, 2), (total // 2 + 1, 1), (total, 2)]:
        keep = {"checkpoint": tmp_path / f"{crash_at}.npz", "resume": True}
        keep["checkpoint_steps"] = checkpoint_steps
        with pytest.raises(Crash):
            run(crash_at, **keep)
        assert run(**keep) == expected


@every_defense
def test_resuming_on_a_device(device, name, tmp_path):
    def run(crash_at=None, **options):
        model, steps = cnn(device), itertools.count(1)

        def schedule(epoch):
            if next(steps) == crash_at:
                raise Crash
            return 0.1

        history = quick_fit(model, 2, schedule=schedule, **DEFENSES[name](8), **options)
        return outcome(model, history)

    keep = {"checkpoint": tmp_path / "a.npz", "checkpoint_steps": 1, "resume": True}
    with pytest.raises(Crash):
        run(5, **keep)
    assert run(**keep) == run()


def test_a_rescue_goes_on_after_an_interruption(tmp_path):
    x, y = np.full((40, 1, 1, 1), 0.5), np.zeros(40, int)
    model, watch = Hidden(np, 0.2), (np.full((300, 1, 1, 1), 0.5), np.zeros(300, int))
    fast = Fast(Linf(0.2), watch=watch, every=3, rng=1)
    with pytest.warns(AttackWarning):
        fast(model, x, y)
    save_state(tmp_path / "a.npz", {"fast": fast.state_dict()})
    other = Fast(Linf(0.2), watch=watch, every=3, rng=77)
    other.load_state_dict(load_state(tmp_path / "a.npz")["fast"])
    for _ in range(5):  # with a look, and no warning, for it is no news
        same(fast(model, x, y), other(model, x, y))
    assert fast.looks == other.looks and [look[0] for look in other.looks] == [0, 3]


@every_defense
def test_weights_stay_in_float32_and_where_they_are(xp, name):
    model = cnn(xp)
    history = quick_fit(model, 1, **DEFENSES[name](0))
    assert all(p.value.dtype == np.float32 and type(p.value) is type(xp.zeros(1))
               for p in model.parameters())  # fmt: skip
    assert np.isfinite(history.loss[0])


@every_defense
def test_a_device_gives_the_same(device, name):
    host, there = cnn(), cnn(device)
    histories = [quick_fit(model, 2, **DEFENSES[name](0)) for model in (host, there)]
    for p, q in zip(host.parameters(), there.parameters(), strict=True):
        close(to_numpy(q), p.value, atol=2e-4)
    assert histories[0].loss == pytest.approx(histories[1].loss, rel=1e-3)


@every_defense
def test_a_seed_makes_the_run_and_another_another_one(name):
    def run(seed):
        model = cnn()
        return outcome(model, quick_fit(model, 1, **DEFENSES[name](seed)))

    assert run(1) == run(1)
    if name not in ("Free", "GradientPenalty", "IntervalBound"):  # these draw nothing
        assert run(1) != run(2)


WAIT_FREE = [name for name in DEFENSES if name != "Fast"]


@pytest.mark.parametrize("name", [*WAIT_FREE, "Fast, not watched"])
def test_no_step_waits_for_a_gpu_after_the_first(name):
    """As ``fit`` makes it: with more steps, nothing more is waited for."""
    make = DEFENSES.get(name, lambda rng: {"perturb": Fast(Linf(0.1), rng=rng)})

    def cost(batch_size):
        model, how = cnn(strict_cupy), make(0)
        if name == "Fast, not watched":
            how = {"perturb": Fast(Linf(0.1))}
        with strict_cupy.count() as c:
            quick_fit(model, 2, batch_size=batch_size, validate=False, **how)
        return c

    few, many = cost(22), cost(11)  # 2 and 4 steps in an epoch
    assert many.launches > few.launches
    assert many.syncs == few.syncs


def test_a_watched_run_waits_only_to_look():
    def cost(every):
        model, fast = cnn(strict_cupy), Fast(Linf(0.1), watch=WATCH, every=every)
        with strict_cupy.count() as c:
            quick_fit(model, 1, fast, batch_size=4, validate=False)
        return c.syncs, len(fast.looks)

    (one, looks), (several, more), (most, all_of_them) = cost(100), cost(4), cost(2)
    assert (looks, more, all_of_them) == (1, 3, 6)
    assert (several - one) / 2 == (most - one) / 5  # the same for each look


@pytest.mark.parametrize("name", ["MinMax", "Fast", "Free", "Trades", "GradientPenalty"])
def test_it_makes_a_network_harder_to_fool(name):
    how = {
        "MinMax": {"perturb": MinMax(Linf(0.2), steps=5)},
        "Fast": {"perturb": Fast(Linf(0.2))},
        "Free": {"perturb": Free(Linf(0.2), replays=4)},
        "Trades": {"objective": Trades(Linf(0.2), beta=6, steps=5)},
        "GradientPenalty": {"objective": GradientPenalty(0.2, norm=1)},
    }[name]
    data = dataset(300)

    def survivors(**how):
        model = models.mlp((16, 16, 3), rng=0)
        optimizer = optim.Adam(model.parameters(), 0.01)
        epochs = {"Free": 4, "GradientPenalty": 16}.get(name, 8) if how else 8
        fit(model, data, optimizer, epochs, **how, batch_size=30, progress=False)
        x, y = data.x_train, data.y_train
        return accuracy(model, pgd(model, x, y, ball=Linf(0.2), steps=20), y)

    assert survivors(**how) > survivors() + 0.05


def test_training_on_bounds_makes_a_network_that_can_be_certified():
    data = dataset(300)

    def proven(**how):
        model = models.mlp((16, 16, 3), rng=0)
        optimizer = optim.Adam(model.parameters(), 0.01)
        fit(model, data, optimizer, 12, **how, batch_size=30, progress=False)
        return certified_accuracy(model, data.x_train, data.y_train, 0.1)

    with_bounds = proven(objective=IntervalBound(0.1, ramp=(0, 4), kappa=0.0))
    assert with_bounds > 0.5 > proven() + 0.2


# ---- arguments -----------------------------------------------------------------------------------

CHANGES = [
    (MinMax, {"ball": Linf(0.1), "steps": 3}, [
        {"ball": Linf(0.11)}, {"ball": L2(0.1)}, {"steps": 4}, {"step_size": 0.01}, {"rng": 1},
        {"loss": margin, "step_size": 0.02},
    ]),
    (Fast, {"ball": Linf(0.1), "step_size": 0.03}, [
        {"ball": Linf(0.09)}, {"step_size": 0.02}, {"rng": 1}, {"loss": margin},
    ]),
    (Free, {"ball": Linf(0.1)}, [{"ball": Linf(0.11)}, {"step_size": 0.05}]),
    (WorstOfK, {}, [{"k": 1}, {"max_angle": 20.0}, {"max_shift": 1.0}, {"rng": 1}]),
    (Trades, {"ball": Linf(0.1), "steps": 3, "step_size": 0.01}, [
        {"ball": Linf(0.012)}, {"steps": 4}, {"step_size": 0.02}, {"start": 0.002}, {"rng": 1},
    ]),
]  # fmt: skip
CHANGES = [(kind, base, change) for kind, base, changes in CHANGES for change in changes]


@pytest.mark.parametrize("kind, base, change", CHANGES, ids=lambda v: getattr(v, "__name__", None))
def test_every_argument_changes_the_images(kind, base, change):
    model, (x, y) = mlp(), batch(n=20)
    first, again, other = (
        perturbed(kind(**how), model, x, y) for how in (base, base, {**base, **change})
    )
    same(first, again)
    assert not np.array_equal(first, other)


OBJECTIVES = [
    (Trades, {"ball": Linf(0.1)}, {"beta": 2.0}),
    (GradientPenalty, {"weight": 0.1}, {"weight": 0.2}),
    (GradientPenalty, {"weight": 0.1}, {"norm": 1}),
    (IntervalBound, {"epsilon": 0.1, "ramp": (0, 1)}, {"epsilon": 0.2}),
    (IntervalBound, {"epsilon": 0.1, "ramp": (0, 1)}, {"kappa": 0.1}),
    (IntervalBound, {"epsilon": 0.1, "ramp": (0, 1)}, {"ramp": (0, 2)}),
    (IntervalBound, {"epsilon": 0.1, "ramp": (0, 1)}, {"ramp": (0.2, 1)}),
    (IntervalBound, {"epsilon": 0.1}, {"attack": MinMax(Linf(0.1))}),
    (IntervalBound, {"epsilon": 0.1, "ramp": (0, 0), "attack": partial(fgsm, rng=0)}, {"box": 0.5}),
    (
        IntervalBound,
        {"epsilon": 0.1, "ramp": (0, 0)},
        {"bound": lambda *a, **k: 2 * worst_logits(*a, **k)},
    ),
]


@pytest.mark.parametrize("kind, base, change", OBJECTIVES)
def test_every_argument_changes_the_loss(kind, base, change):
    model, (x, y) = mlp(), batch(n=20)

    def value(how):
        objective = kind(**how)
        if hasattr(objective, "at"):
            objective.at(0.5)
        return float(objective(model, x, y)[0])

    assert value(base) == value(base) != value({**base, **change})


MISTAKES = [
    (kind, how, words)
    for kind in (MinMax, Fast, Free, Trades)
    for how, words in [
        ({"warm_up": -1.0}, "warm_up must be a number ≥ 0, got -1.0"),
        ({"warm_up": "a"}, "warm_up must be a number ≥ 0, got .a"),
        ({"step_size": np.nan}, "step_size must be a number ≥ 0, got nan"),
    ]
]
MISTAKES += [
    (kind, {"ball": L2(np.inf)}, "give step_size.*inf") for kind in (MinMax, Fast, Free, Trades)
]
MISTAKES += [
    (MinMax, {"steps": 0}, "steps must be an integer ≥ 1, got 0"),
    (Trades, {"steps": 1.5}, "steps must be an integer ≥ 1, got 1.5"),
    (Trades, {"beta": -1}, "beta must be a number ≥ 0, got -1"),
    (Trades, {"start": np.inf}, "start must be a number ≥ 0, got inf"),
    (Free, {"replays": 0}, "replays must be an integer ≥ 1, got 0"),
    (Fast, {"every": 0}, "every must be an integer ≥ 1, got 0"),
    (Fast, {"rescue_steps": 2.0}, "rescue_steps must be an integer ≥ 1, got 2.0"),
    (Fast, {"gap": -0.1}, "gap must be a number ≥ 0, got -0.1"),
    (Fast, {"watch": (np.zeros(3), np.zeros(2))}, "a label for each.* 3 images, 2 labels"),
    (Fast, {"watch": (np.zeros(0), np.zeros(0))}, "a label for each.* 0 images, 0 labels"),
    (WorstOfK, {"k": 0}, "k must be an integer ≥ 1, got 0"),
    (WorstOfK, {"max_angle": -1}, "max_angle must be a number ≥ 0, got -1"),
    (WorstOfK, {"max_shift": np.nan}, "max_shift must be a number ≥ 0, got nan"),
    (GradientPenalty, {"weight": -1}, "weight must be a number ≥ 0, got -1"),
    (GradientPenalty, {"weight": 1, "norm": 3}, r"norm must be one of \(2, 1\), got 3"),
    (IntervalBound, {"epsilon": -0.1}, "epsilon must be a number ≥ 0, got -0.1"),
    (IntervalBound, {"ramp": (3, 2)}, r"ramp .* 0 ≤ start ≤ end, got \(3, 2\)"),
    (IntervalBound, {"ramp": (-1, 2)}, r"ramp .* 0 ≤ start ≤ end, got \(-1, 2\)"),
    (IntervalBound, {"ramp": ("a", 2)}, "ramp .* 0 ≤ start ≤ end"),
    (IntervalBound, {"kappa": "a"}, "kappa must be .* 0 to 1, got .a"),
    (IntervalBound, {"kappa": 1.5}, "kappa must be .* 0 to 1, got 1.5"),
    *[
        (IntervalBound, {"box": box}, "box must be a share, 0 < box ≤ 1, got")
        for box in (0, -0.5, 1.5, np.nan, "a", None)
    ],
    (IntervalBound, {"box": 0.4}, "box=0.4 needs an attack .*: give attack"),
]


@pytest.mark.parametrize("kind, how, words", MISTAKES)
def test_mistakes_are_named(kind, how, words):
    with pytest.raises(ValueError, match=words):
        kind(**how)


def test_an_infinite_ball_grows_as_well():
    model, (x, y) = mlp(), batch()
    inner = MinMax(L2(np.inf), steps=2, step_size=0.1, warm_up=2)
    inner.at(0)
    same(inner(model, x, y), x)


def test_what_is_watched_is_a_pair():
    with pytest.raises(TypeError, match=r"watch must be \(images, labels\), got int"):
        Fast(watch=3)


@pytest.mark.parametrize("ramp", [5, (1,), (1, 2, 3)])
def test_a_ramp_is_a_pair(ramp):
    with pytest.raises(TypeError, match=r"ramp must be a pair of epochs \(start, end\), got "):
        IntervalBound(ramp=ramp)


def test_a_bound_is_a_function():
    with pytest.raises(TypeError, match=r"bound must be a function of .*worst_logits, got 'crown'"):
        IntervalBound(bound="crown")


def test_bounds_take_an_attack_that_needs_no_pass_of_its_own():
    with pytest.raises(TypeError, match=r"Free.*MinMax or Fast"):
        IntervalBound(0.1, attack=Free(Linf(0.1)))


def test_the_attack_of_bounds_draws_from_their_generator():
    model, (x, y) = mlp(), batch(low=0.4, high=0.6)
    attack = partial(pgd, ball=Linf(0.1), steps=1, step_size=1e-3)  # a random start
    losses = lambda objective: [float(objective(model, x, y)[0].value) for _ in range(3)]
    fresh = IntervalBound(0.1, kappa=1.0, attack=attack)
    assert len(set(losses(fresh))) == 3
    assert len(set(losses(IntervalBound(0.1, kappa=1.0, attack=partial(attack, rng=0))))) == 1
    again = IntervalBound(0.1, kappa=1.0, attack=attack)
    again.load_state_dict(fresh.state_dict())
    assert losses(again) == losses(fresh)


def test_an_attack_that_writes_into_its_images_does_not_move_the_bounds():
    model, (x, y) = mlp(), batch()

    def careless(model, x, y):
        x *= 0.5
        return x

    for box in (1.0, 0.5):
        how = {"ramp": (0, 0), "box": box}
        losses = [
            float(IntervalBound(0.1, **how, attack=attack)(model, x.copy(), y)[0].value)
            for attack in (careless, lambda model, x, y: 0.5 * x)
        ]
        assert losses[0] == losses[1]


def test_states_of_defences_are_checked():
    watch = batch(n=5)
    for defence in (
        MinMax(Linf(0.1)), Fast(Linf(0.1), watch=watch), Trades(Linf(0.1)), WorstOfK(),
        IntervalBound(0.1), Free(Linf(0.1)),
    ):  # fmt: skip
        before = defence.state_dict()
        wrong = [None, {}, *({**before, name: "x"} for name in before)]
        wrong += [{**before, name: -1} for name in before]
        wrong += [{k: v for k, v in before.items() if k != name} for name in before]
        if isinstance(defence, Fast):
            wrong += [{**before, "looks": looks} for looks in ([1], [[1, 2]], [["a"] * 4])]
        if isinstance(defence, Free):
            bad = (np.full((2, 1, 4, 4), np.nan), np.zeros((2, 4), complex), np.zeros(3, int))
            wrong += [{**before, "delta": delta} for delta in bad]
        for state in wrong:
            with pytest.raises(ValueError, match=r"must|lacks|saved with"):
                defence.load_state_dict(state)
            assert repr(defence.state_dict()) == repr(before)


def test_a_state_with_an_attack_and_one_without_do_not_mix():
    adversary = MinMax(Linf(0.1))
    plain, mixed = IntervalBound(0.1), IntervalBound(0.1, attack=adversary)
    with pytest.raises(ValueError, match=r"IntervalBound .*unknown ones: .*attack"):
        plain.load_state_dict(mixed.state_dict())
    with pytest.raises(ValueError, match=r"IntervalBound lacks .*attack"):
        mixed.load_state_dict(plain.state_dict())


def test_a_checkpoint_of_another_network_leaves_the_defence_as_it_was(tmp_path):
    path = tmp_path / "a.npz"
    quick_fit(cnn(), 1, checkpoint=path, perturb=MinMax(Linf(0.1), steps=1, rng=3))
    adversary = MinMax(Linf(0.1), steps=1, rng=3)
    before = adversary.rng.bit_generator.state
    with pytest.raises(ValueError, match="weights lacks the fields"):
        quick_fit(mlp(dtype=np.float32), 2, checkpoint=path, resume=True, perturb=adversary)
    assert adversary.rng.bit_generator.state == before


def test_a_layer_without_a_rule_is_found_before_the_ramp_begins():
    model, (x, y) = mlp(), batch()
    objective = IntervalBound(0.1, ramp=(1, 2))
    objective.at(0)
    with pytest.raises(TypeError, match="no interval rule for function"):
        objective(lambda x: model(x), x, y)


@pytest.mark.parametrize("kind", [MinMax, Fast, Free, Trades])
def test_a_ball_is_a_ball_of_0_to_1(kind):
    with pytest.raises(TypeError, match=r"ball must be Linf\(ε\), L2\(ε\) or L1\(ε\)"):
        kind(0.3)
    with pytest.warns(AttackWarning, match="ε = 8") as caught:
        kind(Linf(8))
    assert len(caught) == 1


@pytest.mark.parametrize(
    "kind",
    [MinMax, Fast, Free, WorstOfK, Trades, partial(GradientPenalty, 0.1), IntervalBound],
)
def test_the_first_batch_is_checked(xp, kind):
    net, (x, y) = cnn(xp), batch(xp, dtype=np.float32)

    def look(model, x, y):
        return free_images(kind(), model, x, y) if kind is Free else kind()(model, x, y)

    with pytest.raises(ValueError, match=r"from 0 to 1.*got values from"):
        look(net, 255 * x, y)
    with pytest.raises(ValueError, match="y must be from 0 to 2"):
        look(net, x, y + 3)
    net[-1].weight.value = net[-1].weight.value * np.nan
    with pytest.raises(ValueError, match="NaN"):
        look(net, x, y)


def test_free_goes_together_with_a_penalty_and_not_with_what_attacks():
    model = models.mlp((16, 8, 3), rng=3)
    x, y = np.random.default_rng(0).random((6, 1, 4, 4), np.float32), np.arange(6) % 3
    found, free = [], Free(Linf(0.1), replays=2)

    def penalised(model, x, y):
        found.append(GradientPenalty(0.1)(model, x, y))
        return found[-1]

    images, _ = free_images(free, model, x, y, penalised)
    loss, _ = found[0]
    expected, _ = GradientPenalty(0.1)(model, images.value, y)
    assert loss.value == expected.value
    (g,) = grad(loss, [images])
    assert g.shape == x.shape and g.any()
    for objective in (Trades(Linf(0.1)), IntervalBound(0.1)):
        with pytest.raises(TypeError, match="Free"):
            objective(model, images, y)
    history = quick_fit(cnn(), 1, Free(Linf(0.1), replays=2), objective=GradientPenalty(0.1))
    assert np.isfinite(history.loss[0])


def test_the_weight_of_the_penalty_grows():
    model = models.mlp((16, 8, 3), rng=3)
    x, y = np.random.default_rng(0).random((6, 1, 4, 4), np.float32), np.arange(6) % 3
    growing, full = GradientPenalty(0.4, warm_up=2), GradientPenalty(0.4)
    losses = []
    for epoch in (0, 1, 2, 3):
        growing.at(epoch)
        losses.append(float(growing(model, x, y)[0].value))
    plain, penalised = (float(part(model, x, y)[0].value) for part in (GradientPenalty(0), full))
    expected = [plain, (plain + penalised) / 2, penalised, penalised]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert penalised > plain
