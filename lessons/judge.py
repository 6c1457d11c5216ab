"""How robust a network is, against one attack after the other: shared by lessons 07 and 12.

An image counts as robust in an attack's column if it is read rightly after every attack of that
column and of those to its left:

    clean        no attack
    FGSM         one step of ε from x
    PGD-40       Madry's: 40 steps of ε/30 from one random start
    PGD-100      100 steps from many random starts
    ensemble     AutoAttack's four
    certified    no attack: interval bounds prove that none succeeds
"""

from __future__ import annotations

import hashlib
import warnings
from functools import partial

import common

from tinyadv import attacks, evaluate, to_numpy, verify
from tinyadv.balls import Linf

COLUMNS = ["clean", "FGSM", "PGD-40", "PGD-100", "ensemble", "certified"]
PART = 1000  # images that are judged, and kept, at a time: all together it may take hours


def judged(model, x, y, epsilon: float, *, starts: int, ensemble: dict, seed: int) -> dict:
    """Column → share of the images that stand, and ``"images"``, their number.

    Parameters
    ----------
    model : Module
    x, y : (N, 1, 28, 28), (N,)
    epsilon : float
        In pixel values 0–1.
    starts : int
        Of PGD-100; their random numbers are those of seeds 0, 1, 2 …
    ensemble : dict
        What ``auto_attack`` is to do less of than its authors: ``steps``, ``targets``, ``queries``.
    seed : int
        Of PGD-40 and the ensemble.
    """
    how = {"starts": starts, "ensemble": ensemble, "seed": seed}
    weights, total = digest(*model.state_dict().values()), {}
    for start in range(0, len(x), PART):
        part = x[start : start + PART], y[start : start + PART]
        key = key_of({"judged": weights, "network": repr(model)}, digest(*part), epsilon, **how)
        attacked = partial(standing, model, *part, epsilon, seed, starts, ensemble)
        for column, count in common.cached_numbers(key, attacked).items():
            total[column] = total.get(column, 0) + count
    return {column: count / len(x) for column, count in total.items()} | {"images": len(x)}


def key_of(network: dict, images, epsilon: float, *, starts: int, ensemble: dict, seed: int):
    """What the shares depend on; ``network`` and ``images`` tell those from others."""
    return {
        **network, "images": images, "by": COLUMNS, "epsilon": epsilon, "starts": starts,
        "ensemble": ensemble, "seed": seed,
    }  # fmt: skip


def digest(*arrays) -> str:
    """Tells arrays from all others, by their numbers, shapes and types."""
    found = hashlib.sha256()
    for array in map(to_numpy, arrays):
        found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


def standing(model, x, y, epsilon, seed, starts, ensemble) -> dict:
    """Column → how many of the images stand; the arguments are those of :func:`judged`.

    Each attack is given those alone that are left. FGSM and PGD-40 also try the certified ones, and
    must fail; the long attacks need not try them.
    """
    ball, step = Linf(epsilon), epsilon / 30  # Madry's 0.01 at 0.3
    proved = to_numpy(verify.certified(model, x, y, epsilon))

    def pgd(steps, start):
        return partial(attacks.pgd, ball=ball, steps=steps, step_size=step, rng=start)

    def unless_certified(attack):
        def attack_the_others(asked, x, y):  # asked: the model, and its questions are counted
            left, x_adv = ~verify.certified(model, x, y, epsilon), x.copy()
            if left.any():
                x_adv[left] = attack(asked, x[left], y[left], progress=True)
            return x_adv

        return attack_the_others

    tried = {"FGSM": partial(attacks.fgsm, ball=ball, random_start=False), "PGD-40": pgd(40, seed)}
    for start in range(starts):
        tried[f"PGD-100, start {start}"] = unless_certified(pgd(100, start))
    last_of_pgd = list(tried)[-1]
    tried["ensemble"] = unless_certified(
        partial(attacks.auto_attack, ball=ball, rng=seed, **ensemble)
    )
    with warnings.catch_warnings():  # of what Square finds: the table has it
        warnings.simplefilter("ignore", attacks.AttackWarning)
        found = evaluate.robustness(model, x, y, tried, ball=ball, batch_size=len(x), cascade=True)
    stands = {name: result.survived for name, result in found.attacks.items()}
    stands |= {"clean": found.correct, "PGD-100": stands[last_of_pgd]}
    assert all(stood[proved].all() for stood in stands.values())  # no attack beats a proof
    counts = {column: int(stands[column].sum()) for column in COLUMNS if column != "certified"}
    return counts | {"certified": int(proved.sum())}
