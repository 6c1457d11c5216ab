"""Attacks with no gradient of the model: it is asked for its answers, and that is all.

Whoever cannot look into a network can still ask it about images (``square``), or attack a network
of their own and hope that the other one errs alike (``transfer``). Such attacks are also a check of
the others: where they succeed and gradients fail, the gradients were at fault.

    x̂       (N, C, H, W)   the best image so far
    ε                      the ball's radius, in pixel values 0–1
    p                      the share of the pixels that a square covers
    h                      a square's side in pixels, the root of p·H·W
    r, s    (N,)           the row and the column where it begins
    ν       (N, C, H, W)   x̂ - x, in the L2 attack
    η*      (h, h)         the L2 attack's bump and hollow, of length 1

The model is always called with arrays, never with tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from tinyadv.attacks.common import (
    _examples_last,
    all_logits,
    answers_only,
    by_pieces,
    check_ball,
    check_counts,
    checked,
    is_fooled,
    to_raise,
    worse,
)
from tinyadv.attacks.gradient import pgd
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import L2, Ball, Linf
from tinyadv.losses import margin
from tinyadv.tensor import Array, _value

# Of 10,000 queries, those after which p is halved. The paper's list has no 500; the authors' code,
# from which their numbers come, has it.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

# Queries between two times at which the examples that are left are shared out anew.
ROUND = 50


class SquareDetails(NamedTuple):
    """What :func:`square` knows about each example besides its image."""

    queries: Array
    """(N,) integers: how many images the model was asked about; 0 where x itself fooled it."""
    success: Array
    """(N,) bool: whether the model is fooled."""


class TransferDetails(NamedTuple):
    """What :func:`transfer` knows about each example besides its image."""

    source: Array
    """(N,) integers: which of the sources the image was made on."""
    success: Array
    """(N,) bool: whether the model is fooled."""


def square(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    ball: Ball = Linf(0.3),
    queries: int = 5000,
    p: float = 0.8,
    loss: Callable = margin,
    target: Array | int | None = None,
    rng: np.random.Generator | int = 0,
    details: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> Array | tuple[Array, SquareDetails]:
    """The Square Attack: random search with squares, smaller and smaller ones.

    Andriushchenko et al. (2020), "Square Attack: a query-efficient black-box adversarial attack via
    random search". Algorithm 1: change a random square of the best image so far, and keep the new
    image if the loss is higher. In L∞ (algorithm 2) the search starts with vertical stripes of
    x + ε and x - ε, and a square sets all its pixels to x + ε or all to x - ε, each channel for
    itself. In L2 (algorithm 3) it starts with tiles, and moves the length of the perturbation from
    one square to another. An image that fools the model is done; no more queries are spent on it.

    Parameters
    ----------
    model : callable
        Takes arrays (n, C, H, W), returns logits (n, K) as arrays (tensors will do), each image on
        its own. It may be called from several threads at once, see ``workers``.
    x : (N, C, H, W) of a floating-point type
        Images, pixel values 0–1.
    y : (N,) integers, optional
        Their labels; by default the model's own predictions. An image that is misread as it is
        comes back unchanged.
    ball : Linf or L2
        ε in pixel values 0–1.
    queries : int
        How many images the model is asked about for each example, at most; the look at x itself is
        not counted, as in the paper. The sizes of the squares depend on it. The default is that of
        AutoAttack.
    p : float
        The share of the pixels in the first squares. It is halved after 10, 50, 200, 500, 1000,
        2000, 4000, 6000 and 8000 of 10,000 queries, and likewise for other numbers of queries. 0.8
        is the authors' choice for robust networks on MNIST, and AutoAttack's for all. For standard
        networks on ImageNet they take 0.05 in L∞ and 0.1 in L2.
    loss : callable
        What is raised, ``loss(logits, labels, reduction="none") -> (N,)``. The margin is the
        paper's; with a target they take ``cross_entropy``.
    target : (N,) integers or one integer, optional
        Classes to reach.
    rng : numpy.random.Generator or int
        Each example draws from a generator of its own, seeded from this one, so it does not matter
        for an image which other ones are fooled, and when.
    details : bool
        Return the numbers of queries as well.
    workers : int, optional
        Threads that share the images; by default one for each core. The result does not depend on
        it.
    progress : bool
        Show a bar on terminals.

    Returns
    -------
    x_adv : (N, C, H, W)
        In the ball around ``x``, in [0, 1], of the shape and dtype of ``x``.
    details : SquareDetails
        ``queries`` and ``success``, only with ``details=True``.

    Raises
    ------
    TypeError
        If ``ball`` is neither ``Linf`` nor ``L2``, or ``x`` is no array of floating-point numbers.
    ValueError
        If ``x`` is not (N, C, H, W), if ``queries`` is below 1 or ``p`` not in (0, 1], and as for
        :func:`~tinyadv.attacks.gradient.pgd`.

    Warns
    -----
    AttackWarning
        If ε > 1 in Linf.

    Examples
    --------
    >>> from tinyadv import models
    >>> x = np.random.default_rng(0).random((2, 1, 28, 28))
    >>> x_adv, details = square(models.slides_cnn(), x, ball=Linf(0.1), queries=20, details=True)
    >>> x_adv.shape, bool((details.queries <= 20).all())
    ((2, 1, 28, 28), True)
    """
    from tqdm import tqdm

    ask = answers_only(model)
    x, y, target = checked(ask, x, y, target)
    check_counts(queries=queries)
    if not 0 < p <= 1:
        raise ValueError(f"p must be above 0 and at most 1, a share of the pixels; got {p}")
    if x.ndim != 4:
        raise ValueError(
            f"squares need images (N, C, H, W), got shape {x.shape}: reshape x, and let the model "
            "begin with a layer that flattens"
        )
    kind = _kind(ball)
    check_ball(ball)
    if np.isinf(ball.epsilon):
        raise ValueError("square needs a ball of finite size: Linf(1) holds all images")
    pixels = [_share(p, i, queries) * x.shape[2] * x.shape[3] for i in range(queries)]
    sides = np.minimum([kind.side(each) for each in pixels], min(x.shape[2:]))

    xp, n = array_module(x), len(x)
    seeds = np.random.default_rng(rng).integers(2**63, size=n)
    generators = [np.random.default_rng(seed) for seed in seeds]
    best, value = x.copy(), xp.full((n,), -np.inf)
    asked = np.zeros(n, np.int64)
    success = to_numpy(is_fooled(all_logits(ask, x), y, target))
    left = np.flatnonzero(~success)
    with tqdm(total=queries, desc="Square", leave=False, disable=None if progress else True) as bar:
        done = 0
        while done < queries and len(left):
            # The first query is about the start, all others are about moves.
            propose, draws = (kind.move, kind.draws) if done else (kind.start, kind.start_draws)
            count = min(ROUND, queries - done) if done else 1
            u = np.stack([generators[i].random((count, draws(x.shape))) for i in left])
            search = partial(
                _search, ask, loss, partial(propose, ball.epsilon), sides[done : done + count]
            )
            now = xp.asarray(left)
            best[now], value[now], spent, fooled = by_pieces(
                search, x[now], y[now], None if target is None else target[now], best[now],
                value[now], xp.asarray(u), workers=workers,
            )  # fmt: skip
            asked[left] += to_numpy(spent)
            success[left] = to_numpy(fooled)
            left = left[~success[left]]
            done += count
            bar.update(count)
    return (best, SquareDetails(xp.asarray(asked), xp.asarray(success))) if details else best


def _share(p: float, i: int, queries: int) -> float:
    """p for query i: halved for each of ``HALVINGS`` behind it, the start (i = 0) not counted."""
    return p / 2 ** sum(int(10_000 * (i - 1) / queries) > at for at in HALVINGS)


def _search(ask, loss, propose, sides, x, y, target, best, value, u):
    """Random search with a piece of the batch, for as many queries as there are ``sides``.

    Parameters
    ----------
    propose : function
        ``propose(x, best, u, side)`` gives the images to ask about next: (n, C, H, W).
    sides : (Q,) integers
    x, y, target, best : (n, C, H, W), (n,), (n,) or None, (n, C, H, W)
    value : (n,)
        The loss of ``best``.
    u : (n, Q, …)
        Random numbers from 0 to 1, for each query and example.

    Returns
    -------
    best, value, the number of queries, whether the model is fooled; one for each example
    """
    xp, n = array_module(x), len(x)
    results = xp.empty_like(x), xp.empty_like(value)
    asked, left = np.full(n, len(sides)), np.arange(n)
    for k, side in enumerate(sides):
        candidate = propose(x, best, u[:, k], int(side))
        logits = ask(candidate)
        new = _value(to_raise(loss, logits, y, target))
        fooled = is_fooled(logits, y, target)
        take = (new > value) | fooled
        best = xp.where(take[:, None, None, None], candidate, best)
        value = xp.where(take, new, value)

        fooled = to_numpy(fooled)  # this waits for a GPU, but who is fooled is not asked again
        if fooled.any():
            _put(xp, results, left, (best, value))
            asked[left[fooled]] = k + 1
            left, stay = left[~fooled], xp.asarray(np.flatnonzero(~fooled))
            x, y, target, best, value, u = (
                None if a is None else _examples_last(xp, a[stay])
                for a in (x, y, target, best, value, u)
            )
            if len(left) == 0:
                break
    _put(xp, results, left, (best, value))
    fooled = np.ones(n, bool)
    fooled[left] = False
    return *results, xp.asarray(asked), xp.asarray(fooled)


def _put(xp, arrays, index, values) -> None:
    index = xp.asarray(index)
    for array, value in zip(arrays, values, strict=True):
        array[index] = value


# ------------------------------------------------------------------------------ squares in L∞


def _stripes(epsilon, x, best, u, side):
    """Vertical stripes, one pixel wide, of x + ε and x - ε: (n, C, H, W), (n, C·W)."""
    up = u.reshape(len(x), x.shape[1], 1, x.shape[3]) < 0.5
    return _moved(epsilon, x, up)


def _square_linf(epsilon, x, best, u, side):
    """Algorithm 2: a square of x̂ becomes x + ε or x - ε, in each channel: u (n, 2 + C).

    The paper adds ±2ε to x̂ and projects on the ball, which comes to the same. A square that would
    change nothing is turned over, as in the authors' code, for a query about it tells nothing.
    """
    xp = array_module(x)
    inside = _window(xp, *_corner(xp, u, x.shape, side), x.shape, side)
    up = u[:, 2:, None, None] < 0.5  # (n, C, 1, 1)
    candidate = xp.where(inside, _moved(epsilon, x, up), best)
    same = (candidate == best).all((1, 2, 3), keepdims=True)
    return xp.where(same & inside, _moved(epsilon, x, ~up), candidate)


def _moved(epsilon, x, up):
    """x + ε where ``up``, else x - ε, in [0, 1]."""
    xp = array_module(x)
    return xp.clip(x + xp.where(up, epsilon, -epsilon).astype(x.dtype), 0, 1)


def _corner(xp, u, shape, side):
    """r and s, each with the same chance, from the first two of the random numbers: (n,), (n,)."""
    return tuple(xp.floor(u[:, i] * (shape[2 + i] - side + 1)) for i in range(2))


def _window(xp, r, s, shape, side):
    """Whether a pixel lies in the square that begins at (r, s): (n,), (n,) -> (n, 1, H, W)."""
    row, column = xp.arange(shape[2])[:, None], xp.arange(shape[3])[:, None]
    tall, wide = (row >= r) & (row < r + side), (column >= s) & (column < s + side)  # (H, n)
    # Examples last in memory, like the images that it is used with.
    return xp.moveaxis(tall[:, None] & wide, -1, 0)[:, None]  # (H, W, n) -> (n, 1, H, W)


# ------------------------------------------------------------------------------ squares in L2


def _bump(height: int, width: int) -> np.ndarray:
    """η^(h₁,h₂) of the paper's equation 2: Σ_{j≥d} 1/(j + 1)² in the ring d around the middle."""
    d = np.maximum(
        abs(np.arange(height) - height // 2)[:, None], abs(np.arange(width) - width // 2)
    )
    rings = 1 / np.arange(1, max(height, width) // 2 + 2) ** 2.0
    return rings[::-1].cumsum()[::-1][d]


def _bump_and_hollow(side: int) -> np.ndarray:
    """η*: the upper half of a square is a bump, the lower half a hollow; its length is 1."""
    half = side // 2
    eta = np.concatenate([_bump(half, side), -_bump(side - half, side)])
    return eta / np.linalg.norm(eta)


def _tiles(shape) -> tuple[int, int, int]:
    """The side of the tiles of the start, five to the shorter side of the image; rows, columns."""
    side = max(1, min(shape[2:]) // 5)
    return side, shape[2] // side, shape[3] // side


def _tiled(epsilon, x, best, u, side):
    """The start in L2: tiles of ±η*, in each channel, or of its transpose, together of length ε."""
    xp, (n, c, h, w) = array_module(x), x.shape
    side, rows, columns = _tiles(x.shape)
    u = u.reshape(n, c + 1, rows, 1, columns, 1)
    eta = xp.asarray(_bump_and_hollow(side).astype(x.dtype))[:, None]  # (side, 1, side)
    eta = xp.where(u[:, :1] < 0.5, eta, eta.T)
    tiles = xp.where(u[:, 1:] < 0.5, eta, -eta)  # (n, C, rows, side, columns, side)
    tiles = tiles.reshape(n, c, rows * side, columns * side)
    top, to_the_left = (h - rows * side) // 2, (w - columns * side) // 2
    nu = xp.zeros_like(x)
    nu[:, :, top : top + rows * side, to_the_left : to_the_left + columns * side] = tiles
    return _at_length(epsilon, x, nu)


def _square_l2(epsilon, x, best, u, side):
    """Algorithm 3: u (n, 5 + C).

    Square W₂ gives its length to W₁, which takes in what is not used of ε as well, and where ±η* is
    added to the direction of ν. Each channel of W₁ gets the share of W₁ ∪ W₂ that it had.
    """
    xp, (_, c, h, w) = array_module(x), x.shape
    nu = best - x
    r, s = _corner(xp, u, x.shape, side)
    first = _window(xp, r, s, x.shape, side)
    second = _window(xp, *_corner(xp, u[:, 2:], x.shape, side), x.shape, side)

    # η*, at its place in each image; outside the square the index is cut off, and not used.
    row = xp.clip(xp.arange(h) - r[:, None], 0, side - 1).astype(np.int64)[:, :, None]  # (n, H, 1)
    column = xp.clip(xp.arange(w) - s[:, None], 0, side - 1).astype(np.int64)[:, None]  # (n, 1, W)
    eta = xp.asarray(_bump_and_hollow(side).astype(x.dtype))
    eta = xp.where(u[:, 4, None, None] < 0.5, eta[row, column], eta[column, row])[:, None]

    def length(a, axes=(2, 3)):
        return xp.sqrt((a * a).sum(axes, keepdims=True))

    def direction(a, scale):  # of each channel; what rounding leaves of a scale has none
        size = length(a)
        return xp.where(size > 1e-5 * scale, a / xp.where(size > 0, size, 1), 0)

    unused = epsilon**2 - length(nu, (1, 2, 3)) ** 2  # (n, 1, 1, 1)
    unused = xp.where(unused > 1e-5 * epsilon**2, unused, 0)  # nor is what rounding leaves any use
    available = xp.sqrt(length(xp.where(first | second, nu, 0)) ** 2 + unused / c)  # (n, C, 1, 1)
    turned = xp.where(u[:, 5:, None, None] < 0.5, eta, -eta)
    turned = turned + direction(xp.where(first, nu, 0), epsilon)
    moved = direction(xp.where(first, turned, 0), 1) * available
    return _at_length(epsilon, x, xp.where(first, moved, xp.where(second, 0, nu)))


def _at_length(epsilon, x, nu):
    """x + ν in [0, 1], ν scaled to length ε before: limiting pixels makes it no longer."""
    xp = array_module(x)
    size = xp.sqrt((nu * nu).sum((1, 2, 3), keepdims=True))
    return xp.clip(x + nu * (epsilon / xp.where(size > 0, size, 1)), 0, 1)


# ------------------------------------------------------------------------------ by the norm


class _Kind(NamedTuple):
    """What differs between the norms: proposals, how many random numbers they take, and sides."""

    start: Callable
    start_draws: Callable
    move: Callable
    draws: Callable
    side: Callable  # of a square with so many pixels


KINDS = {
    Linf: _Kind(
        start=_stripes,
        start_draws=lambda shape: shape[1] * shape[3],
        move=_square_linf,
        draws=lambda shape: 2 + shape[1],
        side=lambda pixels: max(round(pixels**0.5), 1),
    ),
    L2: _Kind(
        start=_tiled,
        start_draws=lambda shape: (shape[1] + 1) * _tiles(shape)[1] * _tiles(shape)[2],
        move=_square_l2,
        draws=lambda shape: 5 + shape[1],
        side=lambda pixels: max(round(pixels**0.5), 3) // 2 * 2 + 1,  # odd: with a middle
    ),
}


def _kind(ball: Ball) -> _Kind:
    for norm, kind in KINDS.items():
        if isinstance(ball, norm):
            return kind
    raise TypeError(f"the Square Attack is for Linf and L2, got {ball!r}")


# ------------------------------------------------------------------------------ transfer


def transfer(
    model: Callable,
    x: Array,
    y: Array | None = None,
    *,
    sources: Callable | Sequence[Callable],
    attack: Callable = pgd,
    details: bool = False,
    **keywords,
) -> Array | tuple[Array, TransferDetails]:
    """Adversarial examples made on other networks, and shown to this one.

    Szegedy et al. (2014), "Intriguing properties of neural networks", and Papernot et al. (2016),
    "Transferability in machine learning: from phenomena to black-box attacks using adversarial
    samples". Gradients are those of the sources alone. Of the images that they give, the one with
    the largest margin for ``model`` is taken for each example: one that fools it, if any does.
    The model is asked about one image for each source and example, and once about x if ``y`` is not
    given.

    Parameters
    ----------
    model : callable
        The network to fool; takes arrays (n, …), returns logits (n, K), each image on its own.
    x, y : (N, …), (N,) integers
        Images and labels; by default the labels are the predictions of ``model``, for all sources.
    sources : callable, or sequence of callables
        Networks with the same classes, of which gradients may be had. With one, the result is
        ``attack(source, x, y, **keywords)``.
    attack : callable
        ``attack(source, x, y, **keywords) -> x_adv``, one of this package or of your own.
    details : bool
        Also return which source each image is from, and whether it fools the model.
    **keywords
        For the attack: ``ball``, ``steps``, ``target``, ``rng`` and so on.

    Returns
    -------
    x_adv : (N, …)
    details : TransferDetails
        ``source`` and ``success``, only with ``details=True``.

    Raises
    ------
    ValueError
        If there are no sources, and as ``attack`` does.
    """
    sources = [sources] if callable(sources) else list(sources)
    if not sources:
        raise ValueError("transfer needs one source or more, a network or a list; got none")
    ask, goal = answers_only(model), keywords.get("target")
    x, y, goal = checked(ask, x, y, goal)

    def look(x, y, goal):
        logits = ask(x)
        return is_fooled(logits, y, goal), to_raise(margin, logits, y, goal)

    xp, worst = array_module(x), None
    for number, source in enumerate(sources):
        x_adv = attack(source, x, y, **keywords)
        fooled, value = by_pieces(look, x_adv, y, goal, workers=keywords.get("workers"))
        worst = worse(worst, (x_adv, fooled, value, xp.full(y.shape, number)))
    x_adv, fooled, _, source = worst
    return (x_adv, TransferDetails(source, fooled)) if details else x_adv
