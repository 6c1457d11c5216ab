"""Attacks that only ask the model: Square against a naive loop, transfer from other networks."""

import functools
import threading
from collections import Counter

import numpy as np
import pytest
import strict_cupy
from hypothesis import given
from hypothesis import strategies as st

from tinyadv import Tensor, layers, losses, models, ops, parallel, to_numpy
from tinyadv.attacks import AttackWarning, blackbox, fgsm, pgd
from tinyadv.attacks.blackbox import square, transfer
from tinyadv.balls import L1, L2, Linf
from tinyadv.evaluate import accuracy

same, close = np.testing.assert_array_equal, np.testing.assert_allclose

BALLS = [Linf(0.1), L2(0.8)]
every_ball = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: type(ball).__name__)


# ---- networks and images -------------------------------------------------------------------------


def plain_model(shape=(1, 8, 8), classes=4, seed=0, dtype=np.float64):
    """A user's function on arrays, which knows no tensors: V tanh(W x)."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((20, int(np.prod(shape)))).astype(dtype) / 4
    v = rng.standard_normal((classes, 20)).astype(dtype)

    def model(x):
        assert type(x) is np.ndarray
        return np.einsum("kh,nh->nk", v, np.tanh(np.einsum("hd,nd->nh", w, x.reshape(len(x), -1))))

    return model


def images(n=24, shape=(1, 8, 8), dtype=np.float64, seed=0):
    """Noise around mid-grey, some pixels black or white."""
    u = np.random.default_rng(seed).uniform(-0.1, 1.1, (n, *shape))
    return np.clip(u, 0, 1).astype(dtype)


def stubborn(x):
    """A model whose answer is always 0, but with a margin that depends on all pixels."""
    dark = x.reshape(len(x), -1) @ np.cos(np.arange(x[0].size, dtype=x.dtype))
    return np.stack([100 + dark, 0 * dark, 0 * dark], axis=1)


def norm(ball, delta):
    order = {Linf: np.inf, L2: 2}[type(ball)]
    return np.linalg.norm(delta.reshape(len(delta), -1).astype(float), order, axis=1)


MODEL, X = plain_model(), images()
Y = MODEL(X).argmax(1)


# ---- the algorithms, one image at a time and with loops ------------------------------------------


def sides(queries, p, shape, ball):
    halvings = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
    for moves in range(queries - 1):
        share = p
        for at in halvings:
            if int(moves * 10000 / queries) > at:
                share /= 2
        side = round((share * shape[1] * shape[2]) ** 0.5)
        if isinstance(ball, L2):
            side = max(side, 3)
            side += side % 2 == 0
        yield min(max(side, 1), *shape[1:])


def bump(side):
    """η*, its rings painted one over another."""
    eta = np.zeros((side, side))
    for sign, top, rows in [(1, 0, side // 2), (-1, side // 2, side - side // 2)]:
        for j in range(max(rows, side) // 2 + 1):
            y0, y1 = max(rows // 2 - j, 0), rows // 2 + j + 1
            x0, x1 = max(side // 2 - j, 0), side // 2 + j + 1
            eta[top + y0 : top + min(y1, rows), x0:x1] += sign / (j + 1) ** 2
    return eta / np.sqrt((eta**2).sum())


def length(a):
    return np.sqrt((a**2).sum())


def start_linf(x, ball, draw):
    c, _, w = x.shape
    stripes = np.where(draw(c * w).reshape(c, 1, w) < 0.5, ball.epsilon, -ball.epsilon)
    return np.clip(x + stripes, 0, 1)


def move_linf(x, best, ball, side, draw):
    c, h, w = x.shape
    u = draw(2 + c)
    r, s = int(u[0] * (h - side + 1)), int(u[1] * (w - side + 1))
    for signs in [np.where(u[2:] < 0.5, 1, -1), np.where(u[2:] < 0.5, -1, 1)]:
        new = best.copy()
        for i in range(c):
            part = x[i, r : r + side, s : s + side] + signs[i] * ball.epsilon
            new[i, r : r + side, s : s + side] = np.clip(part, 0, 1)
        if (new != best).any():
            break
    return new


def start_l2(x, ball, draw):
    c, h, w = x.shape
    side = min(h, w) // 5
    rows, columns = h // side, w // side
    u = draw((c + 1) * rows * columns).reshape(c + 1, rows, columns)
    nu = np.zeros_like(x)
    for i, a, b in np.ndindex(c, rows, columns):
        top, left = (h - rows * side) // 2 + a * side, (w - columns * side) // 2 + b * side
        eta = bump(side) if u[0, a, b] < 0.5 else bump(side).T
        nu[i, top : top + side, left : left + side] = eta if u[1 + i, a, b] < 0.5 else -eta
    return np.clip(x + nu * ball.epsilon / length(nu), 0, 1)


def move_l2(x, best, ball, side, draw):
    tiny = 84 * np.finfo(x.dtype).eps
    c, h, w = x.shape
    u = draw(5 + c)
    nu = best - x
    corners = [int(u[i] * ((h, w)[i % 2] - side + 1)) for i in range(4)]
    first, second = (
        (slice(r, r + side), slice(s, s + side)) for r, s in (corners[:2], corners[2:])
    )
    either = np.zeros((h, w), bool)
    either[first] = either[second] = True
    unused = ball.epsilon**2 - length(nu) ** 2
    if unused < tiny * ball.epsilon**2:  # rounding
        unused = 0
    new = nu.copy()
    for i in range(c):
        eta = bump(side) if u[4] < 0.5 else bump(side).T
        direction = eta if u[5 + i] < 0.5 else -eta
        if length(nu[i][first]) > tiny * ball.epsilon:
            direction = direction + nu[i][first] / length(nu[i][first])
        available = np.sqrt(length(nu[i][either]) ** 2 + unused / c)
        new[i][second] = 0
        if length(direction) < tiny:  # it has met its opposite
            direction[:] = 0
        new[i][first] = direction / max(length(direction), tiny) * available
    return np.clip(x + new * ball.epsilon / length(new), 0, 1)


def naive_square(model, x, y, ball, queries, p, seed):
    """One image after another: (x_adv, queries, success)."""
    start, move = {Linf: (start_linf, move_linf), L2: (start_l2, move_l2)}[type(ball)]
    seeds = np.random.default_rng(seed).integers(2**63, size=len(x))
    result, asked, success = x.copy(), [], []
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        draw = np.random.default_rng(seeds[i]).random

        def look(image, label=label):
            z = model(image[None])[0]
            return np.delete(z, label).max() - z[label]

        if model(image[None])[0].argmax() != label:
            asked.append(0), success.append(True)
            continue
        best = start(image, ball, draw)
        value, count = look(best), 1
        for side in sides(queries, p, x.shape[1:], ball):
            if value > 0:
                break
            new = move(image, best, ball, side, draw)
            count += 1
            if look(new) > value:
                best, value = new, look(new)
        result[i] = best
        asked.append(count), success.append(value > 0)
    return result, asked, success


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 17, 20)], ids=["grey", "colour"])
@pytest.mark.parametrize("p", [0.8, 0.2])
@every_ball
def test_square_is_the_naive_loop(ball, p, shape):
    model, x = plain_model(shape), images(12, shape)
    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % 4  # misread as they are
    ball = type(ball)(ball.epsilon / 2)
    expected, asked, success = naive_square(model, x, y, ball, 70, p, seed=3)
    x_adv, details = square(model, x, y, ball=ball, queries=70, p=p, rng=3, details=True)
    close(x_adv, expected, rtol=0, atol=1e-12)
    same(details.queries, asked)
    same(details.success, success)
    assert set(asked) > {0, 70} and len(set(asked)) > 3 and not all(success)  # a test of all cases


def test_the_bump_is_that_of_the_paper_for_a_side_of_5():
    eta = blackbox._bump_and_hollow(5)
    close(eta, bump(5))
    assert length(eta) == pytest.approx(1)
    assert (eta[:2] > 0).all() and (eta[2:] < 0).all()
    # Rings of the hollow, 3 rows of 5: 1 + 1/4 + 1/9 in the middle, then 1/4 + 1/9, then 1/9.
    close(eta[2:] / eta[3, 2] * (1 + 1 / 4 + 1 / 9), [
        [1 / 9, 13 / 36, 13 / 36, 13 / 36, 1 / 9],
        [1 / 9, 13 / 36, 49 / 36, 13 / 36, 1 / 9],
        [1 / 9, 13 / 36, 13 / 36, 13 / 36, 1 / 9],
    ])  # fmt: skip


def test_p_is_halved_on_the_papers_schedule():
    """For 10,000 queries; the start is query 0, so move number i is query i + 1."""
    shares = [blackbox._share(0.8, moves + 1, 10_000) for moves in range(10_000)]
    changes = [i for i in range(1, 10_000) if shares[i] != shares[i - 1]]
    assert changes == [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    same([shares[i] for i in [0, *changes]], [0.8 / 2**k for k in range(10)])
    assert blackbox._share(0.8, 6, 1000) == 0.4 / 1 and blackbox._share(0.8, 7, 1000) == 0.2


# ---- what every attack promises ------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ε = 3 allows every image")
@given(
    st.sampled_from([Linf, L2]), st.sampled_from([1e-3, 0.1, 0.5, 3.0]), st.integers(1, 30),
    st.sampled_from([0.01, 0.3, 1.0]), st.sampled_from([np.float32, np.float64]),
    st.sampled_from([(1, 8, 8), (2, 5, 9), (1, 3, 2), (1, 1, 1)]), st.integers(0, 99),
    st.sampled_from([None, 2]),
)  # fmt: skip
def test_the_result_is_in_the_ball_and_in_the_box(
    kind, epsilon, queries, p, dtype, shape, seed, target
):
    ball, x = kind(epsilon), images(5, shape, dtype, seed)
    before = x.copy()
    model = plain_model(shape, dtype=dtype)
    x_adv, details = square(
        model, x, np.array([0, 1, 3, 0, 1]), ball=ball, queries=queries, p=p, rng=seed,
        target=target, details=True,
    )  # fmt: skip
    assert type(x_adv) is np.ndarray and x_adv.shape == x.shape and x_adv.dtype == dtype
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    slack = {"float64": 1e-12, "float32": 3e-6}[str(x.dtype)]
    assert (norm(ball, x_adv.astype(float) - x) <= epsilon + slack).all()
    assert (0 <= details.queries).all() and (details.queries <= queries).all()
    answer = model(x_adv).argmax(1)
    wanted = answer != [0, 1, 3, 0, 1] if target is None else answer == target
    same(details.success, wanted)
    same(details.queries[~wanted], queries)
    same(x, before)


@every_ball
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_with_epsilon_0_the_images_come_back_bit_by_bit(ball, dtype):
    x = images(dtype=dtype)
    assert square(MODEL, x, ball=type(ball)(0.0), queries=20).tobytes() == x.tobytes()


def test_an_epsilon_of_0_to_255_is_noticed():
    with pytest.warns(AttackWarning, match="ε = 8 .*255") as caught:
        square(MODEL, images(), ball=Linf(8), queries=2)
    assert {warning.filename for warning in caught} == {__file__}


def test_the_parameters_stay_as_they_are_and_no_tensor_is_given():
    inner = models.mlp((64, 8, 4))
    seen = set()

    def model(x):
        seen.add(type(x))
        return inner(x)  # a Tensor: its parameters are some

    before = inner.state_dict()
    square(model, X.astype(np.float32), queries=5)
    transfer(model, X.astype(np.float32), sources=models.mlp((64, 8, 4), rng=1), steps=2)
    assert seen == {np.ndarray}
    for name, value in inner.state_dict().items():
        same(value, before[name])


@every_ball
def test_the_same_seed_gives_the_same_and_another_one_something_else(ball):
    run = functools.partial(square, MODEL, X, Y, ball=ball, queries=20)
    first = run(rng=1)
    same(first, run(rng=np.random.default_rng(1)))
    assert not np.array_equal(first, run(rng=2))


def test_threads_change_nothing():
    """A user's function for 300 images, queried from several threads or from one."""
    x, names = images(300), set()

    def model(x):
        names.add(threading.current_thread().name)
        return MODEL(x)

    model.by_example = True
    run = functools.partial(square, model, x, ball=Linf(0.05), queries=30, details=True)
    with parallel.limit(1):
        one, details = run()
    assert len(names) == 1
    for threads in (2, 3):
        with parallel.limit(threads):
            x_adv, others = run()
        same(x_adv, one)
        same(others.queries, details.queries)
    assert len(names) > 1


@every_ball
def test_an_image_does_not_depend_on_who_else_is_in_the_batch(ball):
    """Image i has seed i: with fewer images after it, its result is the same."""
    x_adv, details = square(MODEL, X, Y, ball=ball, queries=60, details=True)
    for n in (1, 5):
        part, others = square(MODEL, X[:n], Y[:n], ball=ball, queries=60, details=True)
        close(part, x_adv[:n], rtol=0, atol=1e-12)
        same(others.queries, details.queries[:n])
    # Nor on when others are fooled: here those before it are misread from the start.
    y = Y.copy()
    y[:12] = (y[:12] + 1) % 4
    other = square(MODEL, X, y, ball=ball, queries=60)
    close(other[12:], x_adv[12:], rtol=0, atol=1e-12)
    same(other[:12], X[:12])


def test_images_that_are_misread_anyway_come_back_as_they_are():
    x_adv, details = square(MODEL, X, (Y + 1) % 4, details=True)
    same(x_adv, X)
    same(details.queries, 0)
    assert details.success.all()


@every_ball
def test_queries_are_counted_honestly_and_end_with_success(ball):
    x = images(24, (2, 9, 9))
    asked, inner = Counter(), plain_model((2, 9, 9))
    y = inner(x).argmax(1)

    def model(batch):
        asked["all"] += len(batch)
        return inner(batch)

    model.by_example = True
    with parallel.limit(1):
        _, details = square(model, x, y, ball=ball, queries=80, details=True)
    overhead = 1 + len(x)  # the first image for the number of classes, each image for its class
    assert asked["all"] == details.queries.sum() + overhead
    assert len(set(details.queries.tolist())) > 4


def test_more_queries_and_larger_balls_find_more():
    def fooled(ball, queries):
        return square(MODEL, X, Y, ball=ball, queries=queries, details=True)[1].success.mean()

    for kind, radii in ((Linf, (0.01, 0.05, 0.2)), (L2, (0.1, 0.4, 1.6))):
        shares = [fooled(kind(radius), 60) for radius in radii]
        assert shares == sorted(shares) and shares[0] < shares[-1]
    few, many = (fooled(Linf(0.05), queries) for queries in (2, 200))
    assert few < many


def test_the_search_never_goes_down():
    """More of the same queries cannot lower the loss; a search that never ends shows it."""
    x = images(6)
    seen = []

    def model(batch):
        seen.append(losses.margin(stubborn(batch), np.zeros(len(batch), int), "none"))
        return stubborn(batch)

    for ball in BALLS:
        seen.clear()
        x_adv = square(model, x, np.zeros(6, int), ball=ball, queries=150)
        end = losses.margin(stubborn(x_adv), np.zeros(6, int), "none")
        asked = np.concatenate(seen[2:])  # the check of the model and of x are not counted
        close(np.sort(end)[-1], asked.max())
        assert (end > losses.margin(stubborn(x), np.zeros(6, int), "none")).all()


def test_a_target_is_reached_and_another_loss_is_used():
    x, y = X[Y != 2], Y[Y != 2]
    run = functools.partial(square, MODEL, x, y, ball=Linf(0.3), queries=200, target=2)
    x_adv, details = run(details=True)
    before, after = ((MODEL(images).argmax(1) == 2).mean() for images in (x, x_adv))
    assert before == 0 and after == details.success.mean() > 0.5
    assert not np.array_equal(x_adv, run(loss=losses.cross_entropy))
    same(x_adv, run(target=np.full(len(x), 2), loss=losses.margin))
    with pytest.warns(AttackWarning, match="is their label y"):
        square(MODEL, X, np.full(len(X), 2), target=2, queries=1)


def test_p_and_queries_matter():
    run = functools.partial(square, stubborn, X, np.zeros(len(X), int))
    base = run(queries=20)
    assert not np.array_equal(base, run(queries=20, p=0.1))
    assert not np.array_equal(base, run(queries=21))
    start = run(queries=1)
    assert (start[:, :, 1:-1].std(2) > 0).any()
    stripes = np.sign(start - X)
    changed = np.where(abs(start - X) > 0, stripes, np.nan)  # a pixel at its limit may not move
    assert ((np.nanmax(changed, 2) == np.nanmin(changed, 2)) | np.isnan(changed).all(2)).all()


def test_a_bar_is_shown_on_request(capsys, monkeypatch):
    square(MODEL, X[:2], Y[:2], queries=3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    square(MODEL, X[:2], Y[:2], queries=3, progress=True)
    assert "Square" in capsys.readouterr().err


# ---- devices -------------------------------------------------------------------------------------


def device_net(xp, channels, dtype=np.float64):
    model = layers.Sequential(
        layers.Conv2d(channels, 3, 3, rng=0), layers.ReLU(), layers.Flatten(),
        layers.Dense(3 * 36, 4, rng=1),
    )  # fmt: skip
    for p in model.parameters():
        p.value = xp.asarray(p.value.astype(dtype))
    return model


@every_ball
@pytest.mark.parametrize("channels", [1, 3])
def test_a_gpu_gives_the_same(ball, channels, device):
    x = images(10, (channels, 8, 8))
    expected, details = square(device_net(np, channels), x, ball=ball, queries=60, details=True)
    model = device_net(device, channels)
    x_adv, others = square(model, device.asarray(x), ball=ball, queries=60, details=True)
    close(to_numpy(x_adv), expected, rtol=0, atol=1e-9)
    for ours, theirs in zip(others, details, strict=True):
        same(to_numpy(ours), theirs)
        assert type(ours) is type(x_adv)


@every_ball
def test_a_gpu_is_waited_for_once_a_query(ball, device):
    if device is not strict_cupy:
        pytest.skip("only the stand-in counts")
    x, y = device.asarray(images(4)), device.asarray(np.zeros(4, int))

    def model(x):
        dark = x.reshape((len(x), -1)).sum(1)
        return device.stack([100 + dark, 0 * dark, 0 * dark], axis=1)

    def syncs(queries):
        with strict_cupy.count() as counted:
            square(model, x, y, ball=ball, queries=queries)
        return counted.syncs

    assert syncs(41) - syncs(21) == 20  # in the same round


def test_transfer_on_a_gpu_gives_the_same(device):
    def run(xp):
        sources = [device_net(xp, 1), models.mlp((64, 6, 4)).astype(np.float64)]
        for p in sources[1].parameters():
            p.value = xp.asarray(p.value)
        victim, x = device_net(xp, 1), xp.asarray(images(9))
        y = xp.asarray(np.arange(9) % 4)
        return transfer(victim, x, y, sources=sources, ball=Linf(0.1), steps=3, details=True)

    (expected, details), (x_adv, others) = run(np), run(device)
    close(to_numpy(x_adv), expected, rtol=0, atol=1e-9)
    for ours, theirs in zip(others, details, strict=True):
        same(to_numpy(ours), theirs)


# ---- transfer ------------------------------------------------------------------------------------


def networks():
    return [models.mlp((64, 12, 4), rng=seed).astype(np.float64) for seed in range(4)]


def test_with_one_source_it_is_the_attack_on_that_source():
    victim, source, *_ = networks()
    x_adv = pgd(source, X, Y, ball=Linf(0.1), steps=4, rng=5)
    for sources in (source, [source], (source,)):
        same(transfer(victim, X, Y, sources=sources, ball=Linf(0.1), steps=4, rng=5), x_adv)
    same(transfer(victim, X, Y, sources=source, attack=fgsm), fgsm(source, X, Y))


@pytest.mark.parametrize("target", [None, 0])
def test_of_several_sources_the_worst_is_kept(target):
    victim, *sources = networks()
    y = np.where(Y == 0, 1, Y)
    keywords = {"ball": Linf(0.15), "steps": 4, "target": target}
    x_adv, details = transfer(victim, X, y, sources=sources, details=True, **keywords)
    each = np.stack([pgd(source, X, y, **keywords) for source in sources])  # (S, N, …)
    goal = y if target is None else np.full(len(X), 0)
    sign = 1 if target is None else -1
    margins = np.stack([sign * losses.margin(to_numpy(victim(a)), goal, "none") for a in each])
    fooled = np.stack([(to_numpy(victim(a)).argmax(1) == goal) == (sign < 0) for a in each])
    best = margins.argmax(0)
    same(details.source, best)
    same(details.success, fooled.any(0))
    same(x_adv, each[best, np.arange(len(X))])
    assert len(set(best)) == 3 and 0 < fooled.any(0).mean() < 1


def test_more_sources_never_help_the_model():
    victim, *sources = networks()
    y = to_numpy(victim(X)).argmax(1)
    left = [
        accuracy(victim, transfer(victim, X, y, sources=sources[:n], steps=5), y) for n in (1, 2, 3)
    ]
    assert left == sorted(left, reverse=True) and left[0] > left[-1]


def test_without_labels_those_of_the_victim_count_and_it_needs_no_tensors():
    sources = networks()[:2]
    asked = Counter()

    def victim(x):
        asked["all"] += len(x)
        return MODEL(x)

    victim.by_example = True
    keywords = {"sources": sources, "ball": Linf(0.1), "steps": 3}
    x_adv = transfer(victim, X, **keywords)
    assert asked["all"] == 1 + 3 * len(X)  # the number of classes, the labels, two sources
    same(x_adv, transfer(MODEL, X, Y, **keywords))


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keywords, error, words",
    [
        ({"ball": L1(1.0)}, TypeError, "for Linf or L2, got L1"),
        ({"ball": Linf(np.inf)}, ValueError, "must be finite.*inf"),
        ({"queries": 0}, ValueError, "queries must be an integer ≥ 1, got 0"),
        ({"p": 0.0}, ValueError, "p must be above 0 and at most 1"),
        ({"p": 1.1}, ValueError, "got 1.1"),
        ({"target": 4}, ValueError, "target must be from 0 to 3"),
    ],
)
def test_settings_that_cannot_be(keywords, error, words):
    with pytest.raises(error, match=words):
        square(MODEL, X, Y, **keywords)


def test_images_that_cannot_be():
    with pytest.raises(ValueError, match=r"images \(N, C, H, W\).*\(24, 64\)"):
        square(MODEL, X.reshape(24, 64), Y)
    with pytest.raises(TypeError, match="x must be an array"):
        square(MODEL, Tensor(X), Y)
    with pytest.raises(ValueError, match="transfer needs a source"):
        transfer(MODEL, X, Y, sources=[])
    with pytest.warns(AttackWarning, match="seems to return probabilities") as found:
        square(lambda x: ops.softmax(MODEL(x), axis=1), X, Y, queries=1)
    assert found[0].filename == __file__
