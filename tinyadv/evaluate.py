"""How good a network is, on clean and on attacked examples.

    predict           the predicted class of each example
    accuracy          the share that is classified correctly, with an attack or without
    robustness        several attacks in one table: what each one finds, how, and at what cost
    robustness_curve  the accuracy over ε

An attack only proposes examples. They are checked, and the model classifies them again: only that
decides, see :mod:`tinyadv.attacks.cascade`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from tinyadv import inputs
from tinyadv.attacks.cascade import AttackResult, Counted, Robustness, run_attacks
from tinyadv.backend import array_module, to_numpy
from tinyadv.balls import Ball
from tinyadv.data import batches
from tinyadv.distributed import agreeing, is_first, sharing_pieces
from tinyadv.inputs import Model, predict
from tinyadv.tensor import Array

__all__ = [
    "AttackResult", "Counted", "Robustness", "accuracy", "predict", "robustness",
    "robustness_curve",
]  # fmt: skip

BATCH = 1000  # examples that an attack is given at a time, if the batch may be cut


def accuracy(
    model: Model, x: Array, y: Array, attack: Callable | None = None,
    batch_size: int | None = None,
) -> float:  # fmt: skip
    """The share of examples that are classified as ``y``, between 0 and 1.

    Parameters
    ----------
    model : callable
        Takes (n, …) images, returns (n, K) logits.
    x : (N, …)
    y : (N,) integers
        A label for which the model has no logit counts as misclassified.
    attack : callable, optional
        ``attack(model, x, y) -> x_adv``, which is given copies; the accuracy is then the one on the
        images that it returns, which are checked.
    batch_size : int, optional
        Examples in one pass. By default 500, or all of them if the model does not promise to treat
        each example on its own (``by_example``).

    Raises
    ------
    TypeError, ValueError
        If there are no examples, ``y`` is not one integer for each, ``batch_size`` is not an
        integer ≥ 1, or the attack does not return an array of the shape, dtype and backend of its
        input, with pixel values 0–1.

    Warns
    -----
    AttackWarning
        If the model returns NaN for some of the examples, which then count as misclassified.
    """
    x, y = inputs.as_arrays(x, y)
    y = inputs.check_labels(y, x)
    batch_size = inputs.size_of_a_batch(model, x, batch_size)
    counts = array_module(x).zeros(2, np.int64)  # correct, without a prediction
    for xb, yb in batches(x, y, batch_size):
        if attack is not None:
            given, xb = xb, attack(model, xb.copy(), yb.copy())
            inputs.check_returned(xb, given)
        predicted = predict(model, xb, batch_size)
        counts = counts + array_module(x).stack([predicted == yb, predicted < 0]).sum(1)
    correct, without = to_numpy(counts).tolist()  # the only wait for a device
    inputs.warn_of_nan(without, f"{len(x)} examples")
    return correct / len(x)


# ------------------------------------------------------------------------------- several attacks


def robustness(
    model: Model, x: Array, y: Array, attacks: Mapping[str, Callable], *,
    ball: Ball | None = None, batch_size: int | None = None, cascade: bool = False,
    progress: bool = False, comm: Any = None, checkpoint: str | os.PathLike | None = None,
) -> Robustness:  # fmt: skip
    """How many examples survive each of several attacks, and all of them.

    An example that is misclassified without attack stays misclassified and is not attacked, so a
    model that looks at the whole batch is attacked with a smaller batch than N. All shares are
    shares of all N examples. What an attack returns is checked and classified again, and only this
    result counts.

    Parameters
    ----------
    model : callable
        Takes (n, …) images, returns (n, K) logits.
    x : (N, …)
        Images, pixel values 0–1.
    y : (N,) integers
    attacks : dict
        Name → ``attack(model, x, y) -> x_adv``: a function of :mod:`tinyadv.attacks`, with its
        settings bound by ``functools.partial(pgd, ball=Linf(0.1))``, or one of your own. It is
        given copies, so writing into its inputs has no effect.
    ball : Ball, optional
        Count a success only if x_adv - x lies in this ball, up to rounding. Needed for attacks
        that look for the smallest perturbation, whatever its size.
    batch_size : int, optional
        The most examples that an attack is given at a time. By default 1000, or all of them if the
        model does not promise to treat each example on its own (``by_example``).
    cascade : bool
        Give each attack only what survived those before it: the same robust accuracy for less work,
        if strong and cheap attacks come first. The accuracy of an attack is then the accuracy after
        all attacks so far.
    progress : bool
        Show a bar on terminals.
    comm : mpi4py.MPI.Comm, optional
        Share the examples among the processes of this communicator, which all call this function
        with the same arguments; see :mod:`tinyadv.distributed`. All of them get the table that one
        process would get, apart from the seconds. An attack of your own must draw the same random
        numbers in each process.
    checkpoint : path, optional
        A folder, which the processes share, for what each of them has computed. When the same call
        is repeated, in one process or in several, only the rest is computed. Shares that take less
        than a second are not kept. The weights of a ``Module``, the examples and the settings of
        the attacks are compared. Use another folder if something else changes, such as the code of
        a function of your own.

    Returns
    -------
    Robustness

    Raises
    ------
    TypeError
        If ``attacks`` is not a dict, ``ball`` is not a ball, ``x`` is not an array of
        floating-point numbers, ``comm`` is not a communicator, or an attack does not return an
        array of the same backend.
    ValueError
        If there are no examples or no attacks, ``y`` is not one integer for each example, from 0
        to K - 1, a pixel of ``x`` or of what an attack returns is not a number from 0 to 1, or
        the model does not return finite logits. The message names the attack, and an error that an
        attack raises has a note with its name.
        Also if the processes of ``comm`` have different models or arguments.
    OSError
        If nothing can be written in the folder ``checkpoint``.

    Warns
    -----
    AttackWarning
        If the model seems to return probabilities, or returns NaN for some of the examples of an
        attack, which then count as misclassified.

    Examples
    --------
    >>> from functools import partial
    >>> from tinyadv import models
    >>> from tinyadv.attacks import fgsm, pgd
    >>> from tinyadv.balls import Linf
    >>> x, y = np.random.default_rng(0).random((8, 1, 28, 28)), np.arange(8)
    >>> weak, strong = partial(fgsm, ball=Linf(0.1)), partial(pgd, ball=Linf(0.1), steps=5)
    >>> result = robustness(models.slides_cnn(), x, y, {"FGSM": weak, "PGD-5": strong})
    >>> result.worst_case <= result.attacks["PGD-5"].accuracy <= result.clean_accuracy
    True
    """
    with agreeing(comm):
        if not isinstance(attacks, Mapping):
            raise TypeError(
                f"attacks must be a dict, such as {{'PGD': pgd}}, got {type(attacks).__name__}"
            )
        if not attacks:
            raise ValueError("attacks must hold at least one attack, got an empty dict")
        if ball is not None:
            inputs.check_ball(ball)
    how = {"ball": ball, "cascade": cascade, "progress": progress and is_first(comm)}
    return _run(model, x, y, attacks, batch_size, comm, checkpoint, **how)


def _run(model, x, y, attacks, batch_size, comm=None, checkpoint=None, **options):
    """Check the arguments, and run each attack on the correctly classified examples."""
    with agreeing(comm):
        x, y = inputs.as_arrays(x, y)
        (x, y, _), logits = inputs.checked_logits(model, x, y, batch_size)
        correct = to_numpy(logits.argmax(1) == y)
        size = inputs.size_of_a_batch(model, x, batch_size, BATCH)
    runs = {name: [partial(_one_run, attack)] for name, attack in attacks.items()}
    key = (x, y, size, attacks, options["cascade"], options.get("ball"))
    with sharing_pieces(comm, model, checkpoint, key):
        return run_attacks(model, x, y, correct, runs, batch_size=size, **options)


def _one_run(attack, model, x, y, index):
    """A run as :func:`run_attacks` takes it; the numbers of the examples do not matter here."""
    return attack(model, x, y)


# ---------------------------------------------------------------------------------- over epsilon


def robustness_curve(
    model: Model, x: Array, y: Array, attack: Callable[[float], Callable],
    epsilons: Iterable[float], *, batch_size: int | None = None, cascade: bool = False,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The accuracy under an attack as a function of ε.

    Parameters
    ----------
    model, x, y, batch_size, progress
        As for :func:`robustness`.
    attack : function
        ``attack(epsilon)`` returns an attack with this ε:
        ``lambda epsilon: functools.partial(pgd, ball=Linf(epsilon))``.
    epsilons : sequence of float
        In pixel values 0–1, in any order. At 0 there is no attack, and the result is the clean
        accuracy.
    cascade : bool
        Attack at each ε only what survived the smaller ones, because a success in a smaller ball is
        one in the larger ball, too. The curve then never rises. Otherwise each ε is evaluated on
        its own, and a curve that rises shows that the attack fails.

    Returns
    -------
    epsilons, accuracies : (E,) arrays, in the order given

    Raises
    ------
    ValueError
        If an ε is negative or NaN, and for the same reasons as in :func:`robustness`.

    Examples
    --------
    >>> from functools import partial
    >>> from tinyadv import models
    >>> from tinyadv.attacks import fgsm
    >>> from tinyadv.balls import Linf
    >>> model, x = models.slides_cnn(), np.random.default_rng(0).random((8, 1, 28, 28))
    >>> y = predict(model, x)
    >>> epsilons, accuracies = robustness_curve(
    ...     model, x, y, lambda epsilon: partial(fgsm, ball=Linf(epsilon)), [0, 0.5])
    >>> bool(accuracies[0] == 1 and accuracies[1] < 1)
    True
    """
    epsilons = np.array(list(epsilons), float)
    if not (epsilons >= 0).all():
        raise ValueError(f"epsilons must be ≥ 0, got {epsilons.tolist()}")
    names = {e: f"ε = {e}".removesuffix(".0") for e in sorted(epsilons.tolist()) if e > 0}
    attacks = {name: attack(e) for e, name in names.items()}
    found = _run(model, x, y, attacks, batch_size, cascade=cascade, progress=progress)
    at = {e: found.attacks[name].accuracy for e, name in names.items()} | {0: found.clean_accuracy}
    return epsilons, np.array([at[e] for e in epsilons.tolist()], float)
