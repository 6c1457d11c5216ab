"""Attacks that need no gradient of the model: they only query it.

An attacker who cannot see the weights can still query the network (``square``), or attack another
network and hope that its adversarial examples transfer (``transfer``). Such attacks are also a
check: where they succeed and attacks with gradients fail, the gradients are at fault.

    x̂       (N, C, H, W)   the best image so far
    ε                      the radius of the ball, in pixel values 0–1
    p                      the share of the pixels that a square covers
    h                      the side of a square in pixels, the root of p·H·W
    r, s    (N,)           the row and the column of its top left corner
    ν       (N, C, H, W)   x̂ - x, in the L2 attack
    η*      (h, h)         the pattern of the L2 attack, a bump above a hollow, of length 1

The model is always called with arrays, never with tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tinyadv import inputs
from tinyadv.attacks import shared
from tinyadv.attacks.gradient import pgd
from tinyadv.attacks.shared import is_fooled, moved, normalised, only, to_raise, worse
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import L2, Ball, Linf, wide
from tinyadv.inputs import Checked, Model, all_logits, checked
from tinyadv.losses import Loss, margin
from tinyadv.parallel import by_examples
from tinyadv.tensor import RNG, Array, Shape, value_of

# Of 10,000 queries, those after which p is halved. The list in the paper lacks 500; the authors'
# code, which produced their numbers, has it.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

# After this many queries, the examples that are not fooled yet are cut into pieces anew.
ROUND = 50


class SquareDetails(NamedTuple):
    """What :func:`square` reports about each example."""

    queries: Array
    """(N,) integers: queries used; 0 where x itself fools the model."""
    success: Array
    """(N,) bool: whether the model is fooled."""


class TransferDetails(NamedTuple):
    """What :func:`transfer` reports about each example."""

    source: Array
    """(N,) integers: the number of the source that the image was made on."""
    success: Array
    """(N,) bool: whether the model is fooled."""


def square(
    model: Model, x: Array | Checked, y: Array | None = None, *,
    ball: Ball = Linf(0.3), queries: int = 5000, p: float = 0.8, rescale: bool = True,
    loss: Loss = margin, target: Array | int | None = None, rng: RNG = 0,
    details: bool = False, progress: bool = False,
) -> Array:  # fmt: skip
    """The Square Attack: random search with squares, smaller and smaller ones.

    Andriushchenko et al. (2020), "Square Attack: a query-efficient black-box adversarial attack via
    random search". Algorithm 1: change a random square of the best image so far, and keep the new
    image if the loss is higher. In L∞ (algorithm 2) the search starts with vertical stripes of
    x + ε and x - ε, and a square sets all its pixels to x + ε or all to x - ε, separately in each
    channel. In L2 (algorithm 3) it starts with tiles, and moves the length of the perturbation from
    one square to another. No more queries are spent on an image that fools the model.

    Parameters that are not described here: see :mod:`tinyadv.attacks`.

    Parameters
    ----------
    ball : Linf or L2
    queries : int
        The most queries for each example. As in the paper, the first one with x itself does not
        count. The default is AutoAttack's.
    p : float
        The share of the pixels that the first squares cover. It is halved after 10, 50, 200, 500,
        1000, 2000, 4000, 6000 and 8000 of 10,000 queries. 0.8 is the authors' choice for robust
        networks on MNIST, and AutoAttack's for all. For standard networks on ImageNet they take
        0.05 in L∞ and 0.1 in L2.
    rescale : bool
        Halve p after the same shares of ``queries``, as the authors' program does when it runs
        alone. AutoAttack switches this off (``resc_schedule=False``): p is then halved after these
        numbers of queries, however many there will be.
    loss : callable
        The objective. The margin is the paper's; with a target they take ``cross_entropy``.
    rng : numpy.random.Generator or int
        Each example draws from a generator of its own, seeded from this one, so that its result
        does not depend on the other examples.

    Returns
    -------
    x_adv : (N, C, H, W)
        In the ball around ``x``; x itself where it is misclassified already.
    details : SquareDetails
        ``queries`` and ``success``, only with ``details=True``.

    Raises
    ------
    TypeError
        Also if ``ball`` is neither ``Linf`` nor ``L2``.
    ValueError
        Also if ``x`` is not (N, C, H, W), ``p`` is not in (0, 1], or ε is infinite.

    Examples
    --------
    >>> from tinyadv import models
    >>> x = np.random.default_rng(0).random((2, 1, 28, 28))
    >>> x_adv, details = square(models.slides_cnn(), x, ball=Linf(0.1), queries=20, details=True)
    >>> x_adv.shape, bool((details.queries <= 20).all())
    ((2, 1, 28, 28), True)
    """
    query = shared.QueryOnly(model)
    x, y, target = checked(query, x, y, target)
    inputs.check_counts(queries=queries)
    inputs.check_each("above 0 and at most 1", lambda share: 0 < share <= 1, p=p)
    shared.check_images(x, "square")
    shared.check_radius(ball, "square", Linf, L2)
    inputs.check_ball(ball)
    start, move, side = _of_norm(ball, x.shape)
    of = queries if rescale else 10_000
    pixels = [_share(p, i, of) * x.shape[2] * x.shape[3] for i in range(queries)]
    sides = np.minimum([side(round(each**0.5)) for each in pixels], min(x.shape[2:]))

    xp, n = array_module(x), len(x)
    seeds = np.random.default_rng(rng).integers(2**63, size=n)
    generators = [np.random.default_rng(seed) for seed in seeds]
    best, value = x.copy(), xp.full((n,), -np.inf)
    used = np.zeros(n, np.int64)
    success = to_numpy(is_fooled(all_logits(query, x), y, target))
    left = np.flatnonzero(~success)
    with shared.bar(progress, queries, "Square") as bar:
        done = 0
        while done < queries and len(left):
            # The first query is the start, all others are moves.
            propose, draws = move if done else start
            count = min(ROUND, queries - done) if done else 1
            u = np.stack([generators[i].random((count, draws)) for i in left])
            search = partial(
                _search, query, loss, partial(propose, ball.epsilon), sides[done : done + count]
            )
            now, some = xp.asarray(left), only(left, x, y, target, best, value)
            with shared.pieces(query, some[0]) as how:
                best[now], value[now], spent, fooled = by_examples(
                    search, *some, xp.asarray(u), **how
                )
            used[left] += to_numpy(spent)
            success[left] = to_numpy(fooled)
            left = left[~success[left]]
            done += count
            bar.update(count)
    return (best, SquareDetails(xp.asarray(used), xp.asarray(success))) if details else best


def _share(p: float, i: int, queries: int) -> float:
    """p for query i of ``queries``: halved for each of ``HALVINGS`` that is behind it.

    The start, i = 0, is not counted.
    """
    return p / 2 ** sum(int(10_000 * (i - 1) / queries) > at for at in HALVINGS)


def _search(query, loss, propose, sides, x, y, target, best, value, u):
    """Random search with a piece of the batch, one query for each of ``sides``.

    Parameters
    ----------
    propose : function
        ``propose(x, best, u, side)`` gives the images for the next query: (n, C, H, W).
    sides : (Q,) integers
    x, y, target, best : (n, C, H, W), (n,), (n,) or None, (n, C, H, W)
    value : (n,)
        The objective at ``best``.
    u : (n, Q, …)
        Random numbers from 0 to 1, for each example and query.

    Returns
    -------
    best, value, the number of queries, whether the model is fooled : (n, …), (n,), (n,), (n,)
    """
    xp, n = array_module(x), len(x)
    best_of_all, value_of_all = xp.empty_like(x), xp.empty_like(value)
    used, left = np.full(n, len(sides)), np.arange(n)
    for k, side in enumerate(sides):
        candidate = propose(x, best, u[:, k], int(side))
        logits = query(candidate)
        new = value_of(to_raise(loss, logits, y, target))
        fooled = is_fooled(logits, y, target)
        take = (new > value) | fooled
        best = xp.where(take[:, None, None, None], candidate, best)
        value = xp.where(take, new, value)

        fooled = to_numpy(fooled)  # synchronises with a GPU, but saves the queries
        if fooled.any() or k == len(sides) - 1:
            rows = xp.asarray(left)
            best_of_all[rows], value_of_all[rows] = best, value
            used[left[fooled]] = k + 1
            left, stay = left[~fooled], np.flatnonzero(~fooled)
            if len(left) == 0:
                break
            x, y, target, best, value, u = only(stay, x, y, target, best, value, u)
    fooled = ~np.isin(np.arange(n), left)
    return best_of_all, value_of_all, xp.asarray(used), xp.asarray(fooled)


# ------------------------------------------------------------------------------ squares in L∞


def _stripes(epsilon, x, best, u, side):
    """Vertical stripes, one pixel wide, of x + ε and x - ε: (n, C, H, W), (n, C·W)."""
    up = u.reshape(len(x), x.shape[1], 1, x.shape[3]) < 0.5
    return _moved(epsilon, x, up)


def _square_linf(epsilon, x, best, u, side):
    """Algorithm 2: a square of x̂ becomes x + ε or x - ε, in each channel: u (n, 2 + C).

    The paper adds ±2ε to x̂ and projects onto the ball, which gives the same. If the square would
    change nothing its sign is flipped, as in the authors' code: that query would be wasted.
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
    return xp.clip(moved(x, xp.where(up, epsilon, -epsilon).astype(wide(x).dtype)), 0, 1)


def _corner(xp, u, shape, side):
    """r and s, uniform, from the first two of the random numbers: (n,), (n,)."""
    return tuple(xp.floor(u[:, i] * (shape[2 + i] - side + 1)) for i in range(2))


def _window(xp, r, s, shape, side):
    """Whether a pixel lies in the square that begins at (r, s): (n,), (n,) -> (n, 1, H, W)."""
    row, column = xp.arange(shape[2])[:, None], xp.arange(shape[3])[:, None]
    tall, wide = (row >= r) & (row < r + side), (column >= s) & (column < s + side)  # (H, n)
    # Examples last in memory, like the images that it is combined with.
    return xp.moveaxis(tall[:, None] & wide, -1, 0)[:, None]  # (H, W, n) -> (n, 1, H, W)


# ------------------------------------------------------------------------------ squares in L2


def _bump(height: int, width: int) -> np.ndarray:
    """η^(h₁,h₂) of the paper's equation 2: Σ_{j≥d} 1/(j + 1)² in the ring d around the centre."""
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


def _tiles(shape: Shape) -> tuple[int, int, int]:
    """The side of the tiles at the start, a fifth of the image's shorter side; rows, columns."""
    side = max(1, min(shape[2:]) // 5)
    return side, shape[2] // side, shape[3] // side


def _tiled(epsilon, x, best, u, side):
    """The start in L2: in each channel tiles of ±η* or its transpose, together of length ε."""
    xp, (n, c, h, w) = array_module(x), x.shape
    side, rows, columns = _tiles(x.shape)
    u = u.reshape(n, c + 1, rows, 1, columns, 1)
    nu = xp.zeros_like(wide(x))
    eta = xp.asarray(_bump_and_hollow(side).astype(nu.dtype))[:, None]  # (side, 1, side)
    eta = xp.where(u[:, :1] < 0.5, eta, eta.T)
    tiles = xp.where(u[:, 1:] < 0.5, eta, -eta)  # (n, C, rows, side, columns, side)
    tiles = tiles.reshape(n, c, rows * side, columns * side)
    top, to_the_left = (h - rows * side) // 2, (w - columns * side) // 2
    nu[:, :, top : top + rows * side, to_the_left : to_the_left + columns * side] = tiles
    return _at_length(epsilon, x, nu)


def _square_l2(epsilon, x, best, u, side):
    """Algorithm 3: u (n, 5 + C).

    Square W₂ is set to 0. Its length, and what is unused of ε, go to square W₁, where ±η* is added
    to the direction of ν. In each channel, W₁ gets the length that W₁ ∪ W₂ had in that channel.
    """
    xp, (_, c, h, w) = array_module(x), x.shape
    nu = wide(best) - x
    r, s = _corner(xp, u, x.shape, side)
    first = _window(xp, r, s, x.shape, side)
    second = _window(xp, *_corner(xp, u[:, 2:], x.shape, side), x.shape, side)

    # η* at its place in each image. Outside the square the index is clipped, and the value unused.
    row = xp.clip(xp.arange(h) - r[:, None], 0, side - 1).astype(np.int64)[:, :, None]  # (n, H, 1)
    column = xp.clip(xp.arange(w) - s[:, None], 0, side - 1).astype(np.int64)[:, None]  # (n, 1, W)
    eta = xp.asarray(_bump_and_hollow(side).astype(nu.dtype))
    eta = xp.where(u[:, 4, None, None] < 0.5, eta[row, column], eta[column, row])[:, None]

    def length(a, axes=(2, 3)):
        return xp.sqrt((a * a).sum(axes, keepdims=True))

    tiny = 84 * float(np.finfo(x.dtype).eps)  # rounding errors are smaller: 1e-5 in float32

    def direction(a, scale):  # of each channel; rounding errors relative to the scale have none
        size = length(a)
        return xp.where(size > tiny * scale, a / xp.where(size > 0, size, 1), 0)

    unused = epsilon**2 - length(nu, (1, 2, 3)) ** 2  # (n, 1, 1, 1)
    unused = xp.where(unused > tiny * epsilon**2, unused, 0)
    available = xp.sqrt(length(xp.where(first | second, nu, 0)) ** 2 + unused / c)  # (n, C, 1, 1)
    turned = xp.where(u[:, 5:, None, None] < 0.5, eta, -eta)
    turned = turned + direction(xp.where(first, nu, 0), epsilon)
    moved = direction(xp.where(first, turned, 0), 1) * available
    return _at_length(epsilon, x, xp.where(first, moved, xp.where(second, 0, nu)))


def _at_length(epsilon, x, nu):
    """x + ν in [0, 1], with ν first scaled to length ε; clipping pixels only shortens it."""
    return array_module(x).clip(moved(x, epsilon * normalised(nu, L2(epsilon))), 0, 1)


# ------------------------------------------------------------------------------ by the norm


def _of_norm(ball: Ball, shape: Shape) -> tuple[tuple, tuple, Callable]:
    """What differs between the norms: the start and the moves, and the side of a square.

    Start and moves come with the number of random numbers that they take for each image. The side
    is a function of the root of the number of pixels; in L2 it is odd, so that there is a centre.
    """
    _, c, _, w = shape
    if isinstance(ball, Linf):
        return (_stripes, c * w), (_square_linf, 2 + c), lambda root: max(root, 1)
    _, rows, columns = _tiles(shape)
    start, move = (_tiled, (c + 1) * rows * columns), (_square_l2, 5 + c)
    return start, move, lambda root: max(root, 3) // 2 * 2 + 1


# ------------------------------------------------------------------------------ transfer


def transfer(
    model: Model, x: Array | Checked, y: Array | None = None, *,
    sources: Model | Sequence[Model], attack: Callable = pgd, details: bool = False,
    **keywords: Any,
) -> Array:  # fmt: skip
    """Adversarial examples made on other networks, and given to this one.

    Szegedy et al. (2014), "Intriguing properties of neural networks", and Papernot et al. (2016),
    "Transferability in machine learning: from phenomena to black-box attacks using adversarial
    samples". Only the sources provide gradients. Each source gives one image for each example, and
    the one with the largest margin for ``model`` is returned: one that fools it, if any does. So
    the model is queried once for each source and example, and once with x if ``y`` is not given.

    Parameters that are not described here: see :mod:`tinyadv.attacks`.

    Parameters
    ----------
    model : callable
        The network to fool.
    y : (N,) integers, optional
        By default the predictions of ``model``, for all sources.
    sources : callable, or sequence of callables
        Networks with the same classes, whose gradients are available. With a single source the
        result is ``attack(source, x, y, **keywords)``.
    attack : callable
        ``attack(source, x, y, **keywords) -> x_adv``, one of this package or of your own.
    **keywords
        For the attack: ``ball``, ``steps``, ``target``, ``rng`` and so on. With a ``target``,
        reaching it is what counts as success.

    Returns
    -------
    x_adv : (N, …)
    details : TransferDetails
        ``source`` and ``success``, only with ``details=True``.

    Raises
    ------
    TypeError, ValueError
        Also if there are no sources, if ``attack`` does not return images like ``x``, and as
        ``attack`` does.
    """
    sources = [sources] if callable(sources) else list(sources)
    if not sources:
        raise ValueError("transfer needs a source, a network or a list of networks; got none")
    query = shared.QueryOnly(model)
    x, y, target = checked(query, x, y, keywords.get("target"))

    worst: Any = None
    for number, source in enumerate(sources):
        if target is not None:
            keywords["target"] = target.copy()
        x_adv = attack(source, x.copy(), y.copy(), **keywords)  # it may write into them
        inputs.check_returned(x_adv, x)
        found = shared.judged(query, x_adv, y, target, margin)
        worst = worse(worst, (*found, array_module(x).full(y.shape, number)))
    x_adv, fooled, _, source = worst
    return (x_adv, TransferDetails(source, fooled)) if details else x_adv
