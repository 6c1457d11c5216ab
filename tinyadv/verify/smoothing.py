"""Randomised smoothing: a network that votes on noisy copies of an image has a certified radius.

    f          the classifier: the class with the largest logit
    ξ          noise, normal with standard deviation σ for each pixel: N(0, σ² I)
    g          the smoothed classifier: g(x) = argmax_k P(f(x + ξ) = k)
    A, p_A     the class g(x), and its probability P(f(x + ξ) = A)
    Φ          the distribution function of the standard normal distribution
    n, α       how many copies are drawn, and how often a result may be wrong

Cohen, Rosenfeld & Kolter (2019), "Certified adversarial robustness via randomized smoothing". Of
all classifiers with the same p_A, a linear one loses the most when x moves: this is the lemma of
Neyman and Pearson. There the probability of A falls to Φ(Φ⁻¹(p_A) - ‖δ‖₂/σ) if δ points straight at
the decision boundary, and it is above 1/2 as long as (theorem 1, with p_B = 1 - p_A)

    ‖δ‖₂ < R = σ Φ⁻¹(p_A)

So g(x + δ) = A for all these δ, whatever the network is. The certificate says nothing about
f(x + δ). Noisy pixels leave [0, 1] and are not clipped, so the network is given such pixels as
well. If σ is large, a network that has not been trained on noisy images misclassifies many of them,
and p_A is small.

p_A is not known, so it is estimated from random draws: ``smoothed_predict`` returns g(x) or
abstains, and ``smoothed_radius`` returns a lower bound on R or abstains. For each image either is
wrong with probability α at most, over the draws of the noise.

Limits
------
An interval bound is a proof, but a radius from samples holds with probability 1 - α only. The
theorem is about real numbers, and the noise is drawn and added in floating-point arithmetic:
Voráček & Hein (2023), "Sound randomized smoothing in floating-point arithmetic", build a classifier
for which this gives a wrong certificate. The draws are also taken to be independent of x. They are
not if an attack knows the seed and chooses x for it; then certify with another seed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinyadv import inputs
from tinyadv.attacks.shared import bar
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import wide
from tinyadv.inputs import BATCH, Model, all_logits, predict
from tinyadv.tensor import RNG, Array


def smoothed_predict(
    model: Model, x: Array, *, sigma: float, n: int = 1000, alpha: float = 0.001, rng: RNG = 0,
    batch_size: int = BATCH, progress: bool = False,
) -> Array:  # fmt: skip
    """The class g(x) of the smoothed classifier, or -1 where n draws do not settle it: (N,).

    PREDICT of Cohen et al. (2019): A and B are the classes that the network predicts most often for
    n noisy copies of x. If A and B were equally probable, the n_A of n_A + n_B copies would be
    tosses of a fair coin. A is returned if a two-sided test rejects this at level α.

    Parameters
    ----------
    model : callable
        Takes (n, …) images, returns (n, K) logits. It is called with arrays, and with pixels
        outside [0, 1]. It must treat each example on its own, because noisy copies of several
        images share a batch.
    x : (N, …)
        Images, pixel values 0–1.
    sigma : float
        The standard deviation σ of the noise, in pixel values 0–1.
    n : int
        Noisy copies of each image. Even if all agree, it takes n ≥ 1 + log₂(1/α).
    alpha : float
        A class other than g(x) is returned with this probability at most, for each image.
    rng : numpy.random.Generator or int
        Each image draws from a generator of its own, seeded from this one, on the host. So the
        noise depends neither on the other images nor on ``batch_size`` nor on the backend.
    batch_size : int
        Noisy copies in one pass, which bounds the memory.
    progress : bool
        Show a progress bar, on terminals.

    Returns
    -------
    (N,) int64, on the backend of ``x``; -1, which is not a class, where it abstains

    Raises
    ------
    TypeError
        If ``x`` is not an array of floating-point numbers.
    ValueError
        If there are no examples, pixels are outside [0, 1], σ is not above 0, α is not between 0
        and 1, ``n`` or ``batch_size`` is not an integer ≥ 1, or the model does not return logits
        (N, K).

    Warns
    -----
    UserWarning
        If n is so small that every image abstains.
    AttackWarning
        If the model returns NaN for some of the copies. These count as a class of their own, which
        is never returned.

    Examples
    --------
    Class 1 if the pixel is above 1/2; on the boundary it abstains.

    >>> model = lambda x: np.concatenate([0 * x, x - 0.5], axis=1)
    >>> smoothed_predict(model, np.array([[0.9], [0.5]]), sigma=0.25)
    array([ 1, -1])
    """
    inputs.check_pixels(x)
    _check(sigma, alpha, n=n, batch_size=batch_size)
    if 0.5 ** (n - 1) > alpha:
        _warn_of_few(n, alpha)
    with bar(progress, len(x) * n, "smoothed prediction") as shown:
        vote = _voting(model, x, sigma, rng, batch_size, shown.update)
        counts = vote(n)  # (N, K + 1)
    _warn_of_nan(counts)
    winner, (second, first) = counts.argmax(1), np.sort(counts, axis=1)[:, -2:].T
    sure = 2 * _tail(first, first + second, 0.5) <= alpha
    return array_module(x).asarray(_or_abstain(winner, sure, counts))


def smoothed_radius(
    model: Model, x: Array, *, sigma: float, n0: int = 100, n: int = 10_000, alpha: float = 0.001,
    rng: RNG = 0, batch_size: int = BATCH, progress: bool = False,
) -> tuple[Array, Array]:  # fmt: skip
    """The class of the smoothed classifier, and an L2 radius within which it does not change.

    CERTIFY of Cohen et al. (2019): n0 noisy copies of x show which class A is the most frequent.
    n other copies then bound its probability from below, p_A ≥ p with confidence 1 - α (see
    :func:`clopper_pearson`), and the radius is σ Φ⁻¹(p). It abstains if p ≤ 1/2.

    For each image, with probability at least 1 - α over the draws of the noise, it abstains or
    g(x + δ) = g(x) = A for all ‖δ‖₂ < radius. Among N images, α N wrong certificates are expected
    at most. A certificate is about the smoothed classifier g and not about the network: ``model``
    itself may misclassify x + δ. It includes the x + δ that leave [0, 1].

    Parameters
    ----------
    model, x, sigma, rng, batch_size, progress
        As for :func:`smoothed_predict`.
    n0 : int
        Noisy copies of each image that choose the class. A wrong choice makes it abstain.
    n : int
        Noisy copies of each image that bound its probability. They limit the radius:
        :func:`largest_radius`.
    alpha : float
        The certificate of an image is wrong with this probability at most.

    Returns
    -------
    classes : (N,) int64, on the backend of ``x``; -1 where it abstains
    radii : (N,) float64, on the backend of ``x``
        In pixel values 0–1; 0 where it abstains. The certified accuracy at an L2 radius r is
        ``((classes == y) & (radii > r)).mean()``.

    Raises
    ------
    TypeError, ValueError
        As for :func:`smoothed_predict`, and ValueError if ``n0`` is not an integer ≥ 1.

    Warns
    -----
    UserWarning, AttackWarning
        As for :func:`smoothed_predict`.

    Examples
    --------
    Class 1 if the pixel is above 1/2. The true radius is the distance from 1/2, whatever σ is.

    >>> model = lambda x: np.concatenate([0 * x, x - 0.5], axis=1)
    >>> classes, radii = smoothed_radius(model, np.array([[0.9], [0.5]]), sigma=0.25)
    >>> classes
    array([ 1, -1])
    >>> bool(0.37 < radii[0] < 0.4), float(radii[1])
    (True, 0.0)
    """
    inputs.check_pixels(x)
    _check(sigma, alpha, n0=n0, n=n, batch_size=batch_size)
    if largest_radius(sigma, n, alpha) == 0:
        _warn_of_few(n, alpha)
    with bar(progress, len(x) * (n0 + n), "smoothed radius") as shown:
        vote = _voting(model, x, sigma, rng, batch_size, shown.update)
        first, counts = vote(n0), vote(n)  # each (N, K + 1), of other noise
    _warn_of_nan(first + counts)
    guess = first.argmax(1)  # (N,)
    p = clopper_pearson(counts[np.arange(len(x)), guess], n, alpha)
    classes, xp = _or_abstain(guess, p > 0.5, counts), array_module(x)
    radii = np.where(classes < 0, 0, _radius(sigma, p))
    return xp.asarray(classes), xp.asarray(radii)


def largest_radius(sigma: float, n: int, alpha: float) -> float:
    """The largest L2 radius that n draws can certify, even if all agree: σ Φ⁻¹(α^(1/n)).

    It grows with n as slowly as the square root of a logarithm. For α = 0.001 it is 1.50 σ for
    n = 100, 3.20 σ for 10,000, and 4.35 σ for a million.

    Parameters
    ----------
    sigma, n, alpha
        As for :func:`smoothed_radius`.

    Returns
    -------
    float
        In pixel values 0–1; 0 if α^(1/n) ≤ 1/2, because then every image abstains.

    Raises
    ------
    ValueError
        If σ is not above 0, ``n`` is not an integer ≥ 1, or α is not between 0 and 1.

    Examples
    --------
    >>> round(largest_radius(0.25, 10_000, 0.001), 4)
    0.7996
    """
    inputs.check_positive(sigma=sigma)
    return float(_radius(sigma, clopper_pearson(n, n, alpha)))


def clopper_pearson(count: Array | int, n: int, alpha: float) -> np.ndarray:
    """A lower bound on the probability p of what happened in ``count`` of n independent draws.

    The bound is the p for which ``count`` or more successes have probability α, so every smaller p
    is rejected at that level. Whatever the true p is, the bound exceeds it with probability α at
    most. Clopper & Pearson (1934), "The use of confidence or fiducial limits
    illustrated in the case of the binomial", the one-sided limit. As the binomial tail is a beta
    distribution function, P(count or more) = I_p(count, n - count + 1), the bound is a quantile of
    the beta distribution.

    Parameters
    ----------
    count : integers, an array or one
        From 0 to n.
    n : int
    alpha : float
        Between 0 and 1.

    Returns
    -------
    float64, of the shape of ``count``, on the host

    Raises
    ------
    ValueError
        If ``count`` is not integers from 0 to n, ``n`` is not an integer ≥ 1, or α is not between 0
        and 1.

    Examples
    --------
    >>> clopper_pearson([0, 90, 100], 100, alpha=0.05).round(3)
    array([0.   , 0.836, 0.97 ])
    """
    from scipy.special import betaincinv  # half a second to import, so not before it is needed

    inputs.check_counts(n=n)
    _check_level(alpha)
    count = to_numpy(count)
    if count.dtype.kind not in "iu" or not ((count >= 0) & (count <= n)).all():
        raise ValueError(f"count must be integers from 0 to n = {n}, got {count}")
    return np.where(count == 0, 0.0, betaincinv(np.maximum(count, 1), n - count + 1.0, alpha))


def _tail(k, n, p):
    """P(X ≥ k) for a binomial X of n ≥ 1 draws, k ≥ 1."""
    from scipy.special import betainc

    return betainc(k, n - k + 1, p)


def _radius(sigma, p):
    """σ Φ⁻¹(p), and 0 if p ≤ 1/2."""
    from scipy.special import ndtri

    return float(sigma) * ndtri(np.maximum(p, 0.5))


def _voting(
    model: Model, x: Array, sigma: float, rng: RNG, batch_size: int, done: Callable
) -> Callable[[int], np.ndarray]:
    """A function ``vote(n)``: how often each class is predicted for n noisy copies: (N, K + 1).

    The last column counts the copies without a prediction, because a logit is NaN. Every call draws
    new noise. ``done`` is called with the number of copies after each pass.
    """
    x, xp = inputs.native(x), array_module(x)
    classes = all_logits(model, x[:1]).shape[1]
    seeds = np.random.default_rng(rng).integers(2**63, size=len(x))
    generators = [np.random.default_rng(seed) for seed in seeds]
    images = wide(x)  # (N, …)

    def vote(n: int) -> np.ndarray:
        counts, total = np.zeros((len(x), classes + 1), np.int64), len(x) * n
        for start in range(0, total, batch_size):
            # All copies of the first image, then of the second, …: (B,) says whose each one is.
            whose = np.arange(start, min(start + batch_size, total)) // n
            noise = np.concatenate([
                generators[i].standard_normal((copies, *x.shape[1:]), images.dtype)
                for i, copies in zip(*np.unique(whose, return_counts=True), strict=True)
            ])  # fmt: skip
            noisy = images[xp.asarray(whose)] + float(sigma) * xp.asarray(noise)  # (B, …)
            predicted = predict(model, noisy.astype(x.dtype, copy=False), len(noisy))
            np.add.at(counts, (whose, to_numpy(predicted)), 1)  # -1 is the last column
            done(len(noisy))
        return counts

    return vote


def _or_abstain(winner, sure, counts):
    """The class that won, (N,); -1 where that is not sure, or where NaN won."""
    return np.where(sure & (winner < counts.shape[1] - 1), winner, -1)


def _check(sigma, alpha, **counts):
    inputs.check_positive(sigma=sigma)
    _check_level(alpha)
    inputs.check_counts(**counts)


def _check_level(alpha):
    inputs.check_each("a number between 0 and 1", lambda level: 0 < level < 1, alpha=alpha)


def _warn_of_nan(counts):
    inputs.warn_of_nan(int(counts[:, -1].sum()), f"{counts.sum()} noisy images")


def _warn_of_few(n, alpha):
    inputs.warn(
        f"every image abstains: {n} draws cannot settle anything at alpha = {alpha:g}, even if all "
        "agree; take a larger n",
        UserWarning,
    )
