"""AutoAttack: four attacks that fail for different reasons, in one cascade, with nothing to tune.

A weak attack makes a network look robust. An attack that is strong against one network may be weak
against the next, where the loss is flat, the gradients are misleading or the step size does not
fit. AutoAttack therefore combines four attacks, and an example counts as robust if it survives all
of them:

    APGD-CE   raises the cross-entropy, with an adaptive step size
    APGD-T    raises the targeted DLR loss, which does not go flat: one target class after another
    FAB-T     looks for the smallest perturbation; it succeeds if its size is at most ε
    Square    uses queries only, no gradients

Each attack is given the examples that survived those before it, see
:mod:`tinyadv.attacks.cascade`.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from tinyadv import inputs
from tinyadv.attacks.blackbox import square
from tinyadv.attacks.boundary import fab
from tinyadv.attacks.cascade import Robustness, run_attacks
from tinyadv.attacks.gradient import apgd
from tinyadv.attacks.shared import check_images, check_radius, per_example, ranked_others
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import L2, Ball, Linf
from tinyadv.distributed import agreeing, is_first, sharing_pieces
from tinyadv.inputs import Checked, Model, logits_change, quiet, warn
from tinyadv.losses import cross_entropy, dlr, margin
from tinyadv.parallel import may_cut
from tinyadv.tensor import RNG, Array


def auto_attack(
    model: Model, x: Array, y: Array | None = None, *,
    ball: Ball = Linf(0.3), steps: int = 100, targets: int = 9, queries: int = 5000,
    rng: RNG = 0, details: bool = False, progress: bool = False,
    comm: Any = None, checkpoint: str | os.PathLike | None = None,
) -> Array:  # fmt: skip
    """AutoAttack: APGD-CE, APGD-T, FAB-T and Square, each on what survived those before it.

    Croce & Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", in the authors' standard version: one start for each attack. The
    defaults are theirs; keep them for numbers that are to be compared with published ones. With
    fewer steps, targets and queries it is faster and finds less. As in their program, the squares
    shrink after fixed numbers of queries (``rescale=False`` of ``square``), so that fewer queries
    end with larger squares.

    Parameters that are not described here: see :mod:`tinyadv.attacks`.

    Parameters
    ----------
    x : (N, C, H, W) of a floating-point type
    ball : Linf or L2
    steps : int
        Steps of APGD, and of FAB for each target class.
    targets : int
        Target classes of APGD-T and FAB-T: those with the largest logits at ``x``, at most K - 1.
    queries : int
        Queries of Square, for each image.
    comm, checkpoint
        As for :func:`tinyadv.evaluate.robustness`.

    Returns
    -------
    x_adv : (N, C, H, W)
        In the ball around ``x``, in [0, 1], of the shape and dtype of ``x``: the first adversarial
        example that was found. Images that survive, and images that are misclassified without any
        attack, come back unchanged.
    report : Robustness
        Only with ``details=True``: what each attack found and at what cost, and which attack broke
        which example, as :func:`tinyadv.evaluate.robustness` returns it.

    Raises
    ------
    TypeError
        If ``ball`` is neither ``Linf`` nor ``L2``, ``x`` is not an array of floating-point numbers,
        ``comm`` is not a communicator, or the model does not return a tensor when given one.
    ValueError
        If ``x`` is not (N, C, H, W), ε is infinite, a logit is not finite, another input is not as
        described, or the processes of ``comm`` have different models or arguments.
    OSError
        If nothing can be written in the folder ``checkpoint``.

    Warns
    -----
    AttackWarning
        If ε > 1 in Linf; if the model seems to return probabilities, or other logits for the same
        image each time; if it returns NaN for what an attack found, which then counts as
        misclassified; and if Square breaks more than 1 % of all examples after the attacks with
        gradients have failed: the gradients may then be masked.

    Notes
    -----
    The targeted DLR loss needs four classes. With two or three, APGD-T raises the margin instead:
    the target's logit minus the largest other logit. It is not normalised like the DLR loss, but a
    step uses only the sign or the direction of its gradient.

    What differs from the authors' program: APGD starts at a point that is uniform in the ball, and
    theirs on its surface; FAB ends with a search of the segment from the image to its result.

    Examples
    --------
    >>> from tinyadv import models
    >>> x = np.random.default_rng(0).random((4, 1, 28, 28))
    >>> x_adv, report = auto_attack(models.slides_cnn(), x, ball=Linf(0.2), details=True)
    >>> [(name, int(result.attacked.sum()), int(result.survived.sum()))
    ...  for name, result in report.attacks.items()][:2]
    [('APGD-CE', 4, 0), ('APGD-T', 0, 0)]
    """
    with agreeing(comm):
        inputs.check_counts(steps=steps, targets=targets, queries=queries)
        inputs.check_ball(ball)
        (x, y, _), logits = inputs.checked_logits(model, x, y)
        check_radius(ball, "auto_attack", Linf, L2)  # as Square needs them
        check_images(x, "auto_attack")
        _check_not_random(model, x, logits)
    rng, progress = np.random.default_rng(rng), progress and is_first(comm)
    others = ranked_others(logits, y)[:, :targets]  # (N, T), the most likely class first
    on_target = dlr if logits.shape[1] >= 4 else margin

    def run(attack, j=None, **settings):  # towards the classes others[:, j], if j is given
        def on_part(model, x, y, index):  # each draws a seed of its own
            part = Checked(x, y, None if j is None else others[index, j])
            seed = int(rng.integers(2**63))
            with quiet():  # each attack alone may fail, and need not say so
                return attack(model, part, ball=ball, rng=seed, progress=progress, **settings)

        return on_part

    attacks = {
        "APGD-CE": [run(apgd, loss=cross_entropy, steps=steps)],
        "APGD-T": [run(apgd, j, loss=on_target, steps=steps) for j in range(others.shape[1])],
        "FAB-T": [run(_fab_within, targets=targets, steps=steps)],
        "Square": [run(square, queries=queries, rescale=False)],
    }
    x_adv, correct = x.copy(), to_numpy(logits.argmax(1) == y)
    key = (x, y, ball, steps, targets, queries, rng.bit_generator.state)
    with sharing_pieces(comm, model, checkpoint, key):
        how = {"ball": ball, "batch_size": len(x), "found": x_adv}
        report = run_attacks(model, x, y, correct, attacks, **how)
    _check_square(report)
    return (x_adv, report) if details else x_adv


def _fab_within(model, x, *, ball, **settings):
    """FAB, with x itself where what it finds is outside the ball."""
    nearest, found = fab(model, x, ball=ball, details=True, **settings)
    inside = per_example(found.distance <= ball.epsilon, nearest)
    return array_module(nearest).where(inside, nearest, x.x)


def _check_not_random(model: Model, x: Array, logits: Array) -> None:
    """Warn if one of four more queries, as many as the authors make, changes the logits."""
    some = slice(100) if may_cut(model) else slice(None)
    random, change, _ = logits_change(model, x[some], logits[some], queries=4)
    if random:
        warn(
            f"the model's logits for the same images changed by up to {change:.3g}: it seems to be "
            "random, so an image that fools it once need not do so again. Attack its average"
        )


def _check_square(report: Robustness) -> None:
    """Warn if the query-only attack finds what the attacks with gradients have not found."""
    square = report.attacks["Square"]
    broken = int(square.succeeded.sum())
    if broken > 0.01 * len(report.correct):
        warn(
            f"Square, which uses no gradients, broke {broken} of {square.attacked.sum()} examples "
            "that survived the attacks with gradients: the gradients may be masked"
        )
