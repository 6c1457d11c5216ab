"""Randomised smoothing: linear classifiers, whose radius is known, and the promised confidence."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest, norm

from tinyadv import Tensor, layers, parallel, to_numpy
from tinyadv.attacks import AttackWarning, pgd
from tinyadv.balls import L2
from tinyadv.evaluate import predict
from tinyadv.verify import clopper_pearson, largest_radius, smoothed_predict, smoothed_radius

SIGMA = 0.25
W, B = np.array([2.0, -1.0]), -0.3  # of the linear classifier
RARE = 1e-6  # a test that is right fails with this probability, if other seeds were drawn


def linear(dtype=np.float64):
    """Class 1 if <w, x> + b > 0."""
    net = layers.Sequential(layers.Dense(2, 2))
    values = [np.stack([0 * W, W]), np.array([0, B])]
    names = [name for name, _ in net.named_parameters()]
    net.load_state_dict(dict(zip(names, values, strict=True)))
    return net.astype(dtype)


def at_distance(distance, n=1, dtype=np.float64):
    """n equal images of two pixels at a signed distance from the boundary: (n, 2)."""
    x = np.array([0.4, 0.5])  # on the boundary
    return np.repeat((x + distance * W / np.linalg.norm(W))[None], n, axis=0).astype(dtype)


def distances(x):
    """Signed distances from the boundary, of the sign of the class: (N, 2) -> (N,)."""
    return (x @ W + B) / np.linalg.norm(W)


def conv_net(dtype=np.float32):
    rng = np.random.default_rng(0)
    return layers.Sequential(
        layers.Conv2d(1, 3, 3, stride=2, padding=1, rng=rng),  # 8×8 -> 4×4
        layers.ReLU(),
        layers.Flatten(),
        layers.Dense(48, 4, rng=rng),
    ).astype(dtype)


def images(n=5, dtype=np.float32):
    return np.random.default_rng(1).random((n, 1, 8, 8)).astype(dtype)


def constant(x):
    """Always class 1 of three."""
    return np.repeat([[0.0, 1.0, 0.0]], len(x), axis=0)


# ---- a linear classifier: the radius is the distance from the boundary, whatever σ is ------------


@pytest.mark.parametrize("distance", [0.1, -0.3])
def test_the_radius_is_too_large_as_rarely_as_promised(distance):
    trials, n, alpha = 4000, 200, 0.05
    x, true = at_distance(distance, trials), int(distance > 0)
    classes, radii = smoothed_radius(
        linear(), x, sigma=SIGMA, n0=50, n=n, alpha=alpha, batch_size=20_000
    )
    wrong = int(((radii > abs(distance)) | (classes == 1 - true)).sum())
    # How often it should be: the counts whose bound is above the true p_A, and their probability.
    p = norm.cdf(abs(distance) / SIGMA)
    counts = np.arange(n + 1)
    too_many = counts[clopper_pearson(counts, n, alpha) > p]
    exact = binom.pmf(too_many, n, p).sum()
    assert 0.01 < exact <= alpha
    assert binom.ppf(RARE, trials, exact) <= wrong <= binom.isf(RARE, trials, exact)
    assert ((classes < 0) == (radii == 0)).all()


@pytest.mark.parametrize("sigma", [0.1, 0.25, 1.0])
def test_with_many_draws_the_radius_is_close(sigma):
    x = np.concatenate([at_distance(d) for d in (-0.2, 0.1, 0.25)])
    n = 200_000
    classes, radii = smoothed_radius(linear(), x, sigma=sigma, n=n, batch_size=50_000)
    np.testing.assert_array_equal(classes, [0, 1, 1])
    true = abs(distances(x))
    assert (radii <= true).all()
    # p_A is known up to six standard errors, of which the bound takes three.
    p = norm.cdf(true / sigma)
    low = sigma * norm.ppf(p - 7 * np.sqrt(p * (1 - p) / n))
    assert (radii >= low).all()


def test_no_attack_within_the_radius_changes_the_smoothed_class():
    rng, net = np.random.default_rng(0), linear()
    x = rng.uniform(0.2, 0.8, (40, 2))
    classes, radii = smoothed_radius(net, x, sigma=SIGMA, n=3000)
    sure = classes >= 0
    x, classes, radii = x[sure], classes[sure], radii[sure]
    assert len(x) > 20
    np.testing.assert_array_equal(classes, distances(x) > 0)
    # The worst perturbation of this length goes straight to the boundary.
    worst = -(np.sign(distances(x)) * radii)[:, None] * W / np.linalg.norm(W)
    np.testing.assert_array_equal(classes, distances(x + worst) > 0)
    for i in range(0, len(x), 5):
        one = slice(i, i + 1)
        x_adv = pgd(net, x[one], classes[one], ball=L2(radii[i]), steps=10)
        voted = smoothed_predict(net, x_adv, sigma=SIGMA, n=3000, rng=1)
        assert voted in (classes[i], -1)


def test_in_a_slab_the_radius_is_a_lower_bound():
    """Class 1 between two planes: g is known in closed form, and no longer linear."""
    half = 0.2
    model = lambda x: np.concatenate([0 * x, half - abs(x - 0.5)], axis=1)

    def p_of_1(x):
        return norm.cdf((0.5 + half - x) / SIGMA) - norm.cdf((0.5 - half - x) / SIGMA)

    x = np.linspace(0, 1, 21)[:, None]
    classes, radii = smoothed_radius(model, x, sigma=SIGMA, n=5000, batch_size=10_000)
    assert set(classes) >= {0, 1}
    for image, label, radius in zip(x[:, 0], classes, radii, strict=True):
        if label >= 0:
            around = p_of_1(image + radius * np.linspace(-0.999, 0.999, 201))
            assert ((around > 0.5) == label).all()
    # In the middle the true radius is larger: R is the worst case over all classifiers.
    middle = radii[10]
    assert middle <= SIGMA * norm.ppf(p_of_1(0.5)) and p_of_1(0.5 + 1.5 * middle) > 0.5


def test_on_the_boundary_both_abstain():
    trials, alpha = 500, 0.001
    x = at_distance(0, trials)
    assert abs(distances(x)).max() < 1e-12
    voted = smoothed_predict(linear(), x, sigma=SIGMA, n=200, alpha=alpha, batch_size=10_000)
    classes, radii = smoothed_radius(
        linear(), x, sigma=SIGMA, n=200, alpha=alpha, batch_size=10_000
    )
    most = binom.isf(RARE, trials, alpha)
    assert (voted >= 0).sum() <= most and (classes >= 0).sum() <= most
    assert ((classes < 0) == (radii == 0)).all()


def test_a_wrong_guess_abstains():
    """The class is guessed from n0 copies; with one, near the boundary, it is often wrong."""
    x = at_distance(0.05, 300)
    how = {"sigma": SIGMA, "n": 2000, "batch_size": 20_000}
    (few, _), (many, _) = (smoothed_radius(linear(), x, n0=n0, **how) for n0 in (1, 500))
    assert set(few) <= {-1, 1}
    wrong = norm.cdf(-0.05 / SIGMA)
    assert (few < 0).sum() >= binom.ppf(RARE, len(x), wrong)
    assert (many < 0).sum() < (few < 0).sum() / 4


# ---- the class -----------------------------------------------------------------------------------


def test_a_wrong_class_is_returned_as_rarely_as_promised():
    trials, n, alpha, distance = 4000, 50, 0.2, 0.01
    x = at_distance(distance, trials)
    voted = smoothed_predict(linear(), x, sigma=SIGMA, n=n, alpha=alpha, batch_size=20_000)
    p, counts = norm.cdf(distance / SIGMA), np.arange(n + 1)
    sure = np.array([binomtest(int(k), n).pvalue <= alpha for k in counts])
    for label, these in ((0, counts < n / 2), (1, counts > n / 2)):
        exact = binom.pmf(counts[sure & these], n, p).sum()
        assert label == 1 or exact <= alpha
        found = (voted == label).sum()
        assert binom.ppf(RARE, trials, exact) <= found <= binom.isf(RARE, trials, exact)


@pytest.mark.parametrize("alpha", [0.001, 0.1])
def test_predict_is_the_binomial_test(alpha):
    """Three classes, and the votes as the model gave them: all copies of an image in a row."""
    n, votes = 40, []
    centre = np.array([[0.1, 0.5, 0.9]])

    def model(x):
        logits = -abs(x - centre)
        votes.extend(logits.argmax(1))
        return logits

    x = np.linspace(0, 1, 60)[:, None]
    voted = smoothed_predict(model, x, sigma=0.2, n=n, alpha=alpha, batch_size=37)
    votes = np.array(votes[-len(x) * n :]).reshape(len(x), n)
    for result, own in zip(voted, votes, strict=True):
        counts = np.bincount(own, minlength=3)
        second, first = (int(count) for count in np.sort(counts)[-2:])
        settled = binomtest(first, first + second, 0.5).pvalue <= alpha
        assert result == (counts.argmax() if settled else -1)
    assert set(voted) == {-1, 0, 1, 2}


def test_the_class_agrees_with_the_radius():
    net, x = conv_net(), images(10)
    classes, radii = smoothed_radius(net, x, sigma=0.1, n=1000)
    voted = smoothed_predict(net, x, sigma=0.1, rng=1)
    clear = radii > 0.05
    assert clear.sum() > 3
    np.testing.assert_array_equal(classes[clear], voted[clear])


# ---- the bound -----------------------------------------------------------------------------------


@given(
    n=st.integers(1, 100_000), share=st.floats(0, 1),
    alpha=st.sampled_from([1e-6, 0.001, 0.05, 0.5, 0.9]),
)  # fmt: skip
def test_clopper_pearson_solves_the_tail(n, share, alpha):
    count = round(share * n)
    bound = float(clopper_pearson(count, n, alpha))
    if count == 0:
        assert bound == 0
    else:
        assert binom.sf(count - 1, n, bound) == pytest.approx(alpha, rel=1e-6)
        assert bound == pytest.approx(beta.ppf(alpha, count, n - count + 1), rel=1e-9)
    interval = binomtest(count, n, alternative="greater").proportion_ci(1 - alpha, "exact")
    assert bound == pytest.approx(interval.low, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("n", [1, 7, 30])
@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
def test_clopper_pearson_is_too_high_with_probability_alpha_at_most(n, alpha):
    counts = np.arange(n + 1)
    bounds = clopper_pearson(counts, n, alpha)
    assert (np.diff(bounds) > 0).all()
    for p in np.linspace(0.001, 0.999, 200):
        assert binom.pmf(counts[bounds > p], n, p).sum() <= alpha
    just_below = bounds[1:] * (1 - 1e-9)  # where it is as probable as it can be
    tails = [binom.pmf(counts[bounds > p], n, p).sum() for p in just_below]
    np.testing.assert_allclose(tails, alpha, rtol=1e-5)


def test_the_cap():
    x = images(3)
    for n, alpha in ((100, 0.001), (1000, 0.001), (1000, 0.05)):
        cap = largest_radius(SIGMA, n, alpha)
        assert cap == pytest.approx(SIGMA * norm.ppf(alpha ** (1 / n)))
        classes, radii = smoothed_radius(constant, x, sigma=SIGMA, n=n, alpha=alpha)
        np.testing.assert_array_equal(classes, [1, 1, 1])
        np.testing.assert_array_equal(radii, [cap] * 3)
    caps = [largest_radius(SIGMA, n, 0.001) for n in (1, 9, 10, 100, 10_000, 10**9)]
    assert caps[:2] == [0, 0] and (np.diff(caps[1:]) > 0).all() and np.isfinite(caps).all()
    assert largest_radius(2, 100, 0.001) == pytest.approx(2 * largest_radius(1, 100, 0.001))


def test_too_few_draws_are_pointed_out():
    x = images(2)
    with pytest.warns(UserWarning, match="every image abstains: 9 draws .* alpha = 0.001") as seen:
        classes, radii = smoothed_radius(constant, x, sigma=SIGMA, n=9)
    assert (classes == -1).all() and (radii == 0).all() and seen[0].filename == __file__
    assert (smoothed_radius(constant, x, sigma=SIGMA, n=10)[0] == 1).all()
    with pytest.warns(UserWarning, match="every image abstains: 10 draws"):
        assert (smoothed_predict(constant, x, sigma=SIGMA, n=10) == -1).all()
    assert (smoothed_predict(constant, x, sigma=SIGMA, n=11) == 1).all()


# ---- the noise and the model ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_model_is_given_noise_that_is_not_clipped(dtype):
    seen = []

    def model(x):
        seen.append(x.copy())
        x -= 1  # a model that writes into its input does no harm
        return x[:, :, 0, 0]

    x = np.full((4, 3, 5, 5), 0.5, dtype)
    smoothed_predict(model, x, sigma=np.float64(0.5), n=300, batch_size=100)
    assert (x == 0.5).all()
    first, *rest = seen
    assert len(first) == 1 and [len(copies) for copies in rest] == [100] * 12
    assert {copies.dtype for copies in seen} == {np.dtype(dtype)}
    noise = (np.concatenate(rest).astype(float) - 0.5) / 0.5
    assert noise.min() < -3 and noise.max() > 3
    assert abs(noise.mean()) < 6 / noise.size**0.5
    assert noise.std() == pytest.approx(1, abs=6 / noise.size**0.5)
    # No two copies share their noise, and no two pixels do.
    assert len(np.unique(noise[:, 0, 0, 0])) > 0.8 * len(noise)
    assert abs(np.corrcoef(noise[:, 0, 0, 0], noise[:, 1, 2, 3])[0, 1]) < 0.2


def test_the_guess_and_the_bound_see_different_noise():
    seen = []

    def model(x):
        seen.append(x)
        return x

    smoothed_radius(model, np.full((1, 2), 0.5), sigma=1, n0=50, n=50)
    assert not np.isin(seen[1], seen[2]).any()


def test_random_numbers():
    net, x = linear(), at_distance(0.1, 6)
    how = {"sigma": SIGMA, "n": 500}
    for function in (lambda **k: smoothed_radius(net, x, **how, **k)[1],
                     lambda **k: smoothed_radius(net, x[:4], **how, **k)[1]):  # fmt: skip
        radii = function()
        np.testing.assert_array_equal(function(rng=0), radii)
        np.testing.assert_array_equal(function(rng=np.random.default_rng(0)), radii)
        np.testing.assert_array_equal(function(batch_size=7), radii)
        assert len(set(radii)) > 1 and (function(rng=1) != radii).any()
    np.testing.assert_array_equal(radii, smoothed_radius(net, x, **how)[1][:4])
    rng = np.random.default_rng(0)
    first, second = (smoothed_radius(net, x, rng=rng, **how)[1] for _ in range(2))
    assert (first != second).any()
    x = at_distance(0.02, 200)
    votes = [smoothed_predict(net, x, sigma=SIGMA, n=100, rng=rng) for rng in (0, 0, 1)]
    assert (votes[0] == votes[1]).all() and (votes[0] != votes[2]).any()


def test_the_level_counts():
    x = at_distance(0.1, 50)
    levels = (1e-6, 0.001, 0.1)
    radii = [smoothed_radius(linear(), x, sigma=SIGMA, n=500, alpha=a)[1] for a in levels]
    assert (np.diff(radii, axis=0) >= 0).all() and radii[0].mean() < radii[2].mean() - 0.02
    votes = [smoothed_predict(linear(), x, sigma=SIGMA, n=30, alpha=a) for a in levels]
    abstained = [(vote < 0).sum() for vote in votes]
    assert abstained[0] > abstained[1] > abstained[2]


def test_copies_without_a_prediction_count_against_the_class():
    """NaN for pixels below 0: near 0 half of the votes are lost, at 0.22 some."""

    def model(x):
        return np.concatenate([0 * x, np.where(x < 0, np.nan, 1)], axis=1)

    x = np.array([[0.01], [0.22], [1.0]])
    with pytest.warns(AttackWarning, match=r"NaN for \d+ of 30300 noisy images"):
        classes, radii = smoothed_radius(model, x, sigma=0.1)
    assert radii[0] < 0.01 and 0.2 < radii[1] < 0.22
    assert radii[2] == largest_radius(0.1, 10_000, 0.001)  # ten σ from 0
    np.testing.assert_array_equal(classes[1:], [1, 1])
    with pytest.warns(AttackWarning, match="noisy images"):
        nan = lambda x: np.full((len(x), 2), np.nan)
        assert (smoothed_predict(nan, x, sigma=SIGMA) == -1).all()
    with pytest.warns(AttackWarning, match="noisy images"):
        classes, radii = smoothed_radius(nan, x, sigma=SIGMA)
    assert (classes == -1).all() and (radii == 0).all()


def test_probabilities_are_fine():
    """A vote needs no gradient, so a softmax does no harm."""
    softmax = lambda x: np.concatenate([1 - x, x], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classes, _ = smoothed_radius(softmax, np.array([[0.1], [0.9]]), sigma=SIGMA, n=500)
    np.testing.assert_array_equal(classes, [0, 1])


def test_the_votes_do_not_depend_on_the_threads():
    net, x = conv_net(), images()
    results = []
    for threads in (1, 2):
        with parallel.limit(threads):
            results.append(smoothed_radius(net, x, sigma=SIGMA, n=300))
    np.testing.assert_array_equal(*results)


def test_on_the_device(device):
    net, x = conv_net(), images()
    how = {"sigma": 0.1, "n": 300}
    voted, (classes, radii) = smoothed_predict(net, x, **how), smoothed_radius(net, x, **how)
    for p in net.parameters():
        p.value = device.asarray(p.value)
    x = device.asarray(x)
    there = smoothed_predict(net, x, **how), *smoothed_radius(net, x, **how)
    assert all(type(array) is type(x) for array in there)
    assert [array.dtype for array in there] == [np.int64, np.int64, np.float64]
    for array, host in zip(there, (voted, classes, radii), strict=True):
        np.testing.assert_allclose(to_numpy(array), host, atol=0.01)


def test_results_on_the_host():
    net, x = conv_net(), images(3)
    assert predict(net, x).dtype == smoothed_predict(net, x, sigma=SIGMA).dtype == np.int64
    classes, radii = smoothed_radius(net, x, sigma=SIGMA, n=100)
    assert (classes.dtype, radii.dtype) == (np.int64, np.float64)
    assert classes.shape == radii.shape == (3,)
    swapped, orders = x.astype(">f4"), set()
    seen = lambda x: orders.add(x.dtype.isnative) or net(x)
    np.testing.assert_array_equal(smoothed_radius(seen, swapped, sigma=SIGMA, n=100)[1], radii)
    assert orders == {True}


def test_no_tape_is_recorded(monkeypatch):
    net, x, made = conv_net(), images(), []
    init = Tensor.__init__

    def counted(self, value, operation=None, *rest, **settings):
        made.append(operation)
        init(self, value, operation, *rest, **settings)

    monkeypatch.setattr(Tensor, "__init__", counted)
    smoothed_radius(net, x, sigma=SIGMA, n=100)
    smoothed_predict(net, x, sigma=SIGMA, n=100)
    assert not any(made)


def test_progress_shows_a_bar(monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total, disable, **_):
            self.left, self.disable = total, disable
            bars.append(self)

        def update(self, n):
            self.left -= n

        __enter__ = lambda self: self
        __exit__ = lambda self, *error: None

    monkeypatch.setattr("tqdm.tqdm", Bar)
    how = {"sigma": SIGMA, "n": 70, "batch_size": 33}
    for progress in (False, True):
        smoothed_predict(linear(), at_distance(0.1, 3), progress=progress, **how)
        smoothed_radius(linear(), at_distance(0.1, 3), progress=progress, **how)
        assert len(bars) == 2 * progress
    assert [(bar.left, bar.disable) for bar in bars] == [(0, None)] * 2


@pytest.mark.parametrize("function", [smoothed_predict, smoothed_radius])
def test_errors(function):
    net, x = linear(), at_distance(0.1)
    for sigma in (0, -1, np.inf, np.nan, "1", True):
        with pytest.raises(ValueError, match="sigma must be a number > 0"):
            function(net, x, sigma=sigma)
    for alpha in (0, 1, -0.1, np.nan, "0.1"):
        with pytest.raises(ValueError, match="alpha must be a number between 0 and 1, got"):
            function(net, x, sigma=1, alpha=alpha)
    for name in ("n", "batch_size", *["n0"] * (function is smoothed_radius)):
        for count in (0, 1.5, True):
            with pytest.raises(ValueError, match=f"{name} must be an integer ≥ 1, got {count}"):
                function(net, x, sigma=1, **{name: count})
    for wrong, what in ((None, "NoneType"), (x.tolist(), "list"), (Tensor(x), "Tensor")):
        with pytest.raises(TypeError, match=f"x must be an array .*{what}"):
            function(net, wrong, sigma=1)
    with pytest.raises(TypeError, match="floating-point"):
        function(net, x.astype(int), sigma=1)
    with pytest.raises(ValueError, match="pixel values from 0 to 1"):
        function(net, 255 * x, sigma=1)
    with pytest.raises(ValueError, match="at least one example"):
        function(net, x[:0], sigma=1)
    with pytest.raises(ValueError, match=r"must return logits \(N, K\)"):
        function(lambda x: x[:, 0], x, sigma=1)


def test_errors_of_the_bound():
    for count in (-1, 11, 0.5, [1, 11], True, []):
        with pytest.raises(ValueError, match="count must be integers from 0 to n = 10"):
            clopper_pearson(count, 10, 0.1)
    for judge in (lambda n, a: clopper_pearson(0, n, a), lambda n, a: largest_radius(1, n, a)):
        with pytest.raises(ValueError, match="n must be an integer ≥ 1, got 0"):
            judge(0, 0.1)
        with pytest.raises(ValueError, match="alpha must be a number between 0 and 1, got 1"):
            judge(10, 1)
    with pytest.raises(ValueError, match="sigma must be a number > 0, got 0"):
        largest_radius(0, 10, 0.1)
