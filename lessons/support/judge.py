"""How robust a network is, against one attack after the other.

An image counts in the column of an attack if it is classified correctly after this attack and
after all attacks to its left:

    clean        no attack
    FGSM         one step of ε from x
    PGD-40       Madry's: 40 steps of ε/30 from one random start
    PGD-100      100 steps of ε/30 from several random starts
    AutoAttack   its four attacks
    certified    no attack: interval bounds prove that none succeeds (lesson 14)
"""

from __future__ import annotations

import hashlib
import json
import warnings
from functools import partial

import tinyadv
from tinyadv import attacks, data, evaluate, to_numpy, verify
from tinyadv.balls import Linf
from tinyadv.checkpoint import replacing

COLUMNS = ("clean", "FGSM", "PGD-40", "PGD-100", "AutoAttack", "certified")
PART = 1000  # images that are judged, and whose counts are kept, at a time


def judge(
    model, x, y, epsilon: float, *, starts: int = 20, autoattack: dict | None = None, seed: int = 0
) -> dict:
    """The share of the images that survive, by column, and ``"images"``, their number.

    The counts of every 1,000 images are kept in the cache, because all of them may take hours.
    Delete its folder ``judged`` if you change an attack.

    Parameters
    ----------
    model : Module
    x, y : (N, 1, 28, 28), (N,)
        On the backend of the model.
    epsilon : float
        Of the L∞ ball, in pixel values 0–1.
    starts : int
        Of PGD-100, with the random numbers of seeds 0, 1, 2, …; with 0 its column repeats PGD-40's.
    autoattack : dict, optional
        Arguments of ``attacks.auto_attack`` for a shorter run: ``steps``, ``targets``, ``queries``.
    seed : int
        Of PGD-40 and AutoAttack.
    """
    how = {"starts": starts, "autoattack": autoattack or {}, "seed": seed}
    network = [tinyadv.__version__, repr(model), digest(*model.state_dict().values())]
    total = {}
    for start in range(0, len(x), PART):
        part = x[start : start + PART], y[start : start + PART]
        key = [network, digest(*part), epsilon, how]
        for column, count in kept(key, partial(survivors, model, *part, epsilon, **how)).items():
            total[column] = total.get(column, 0) + count
    return {column: count / len(x) for column, count in total.items()} | {"images": len(x)}


def settings(images, epsilon, *, starts=20, autoattack=None, seed=0) -> dict:
    """What the result of :func:`judge` depends on beside the network, for ``run.kept``."""
    return {
        "images": images, "columns": COLUMNS, "epsilon": epsilon, "starts": starts,
        "autoattack": autoattack or {}, "seed": seed,
    }  # fmt: skip


def survivors(model, x, y, epsilon, *, starts, autoattack, seed) -> dict:
    """How many of the images survive, by column; the arguments are those of :func:`judge`.

    Each attack is given only what survived the attacks before it. FGSM and PGD-40 also try the
    certified images, and must fail; the longer attacks do not try them.
    """
    ball, step = Linf(epsilon), epsilon / 30  # Madry's 0.01 at ε = 0.3
    proved = to_numpy(verify.certified(model, x, y, epsilon))

    def pgd(steps, start):
        return partial(attacks.pgd, ball=ball, steps=steps, step_size=step, rng=start)

    def unless_certified(attack):
        def attack_the_others(counted, x, y):  # counted: the model, with a count of its queries
            left, x_adv = ~verify.certified(model, x, y, epsilon), x.copy()
            if left.any():
                x_adv[left] = attack(counted, x[left], y[left], progress=True)
            return x_adv

        return attack_the_others

    tried = {"FGSM": partial(attacks.fgsm, ball=ball, random_start=False), "PGD-40": pgd(40, seed)}
    for start in range(starts):
        tried[f"PGD-100, start {start}"] = unless_certified(pgd(100, start))
    last_of_pgd = list(tried)[-1]
    tried["AutoAttack"] = unless_certified(
        partial(attacks.auto_attack, ball=ball, rng=seed, **autoattack)
    )
    with warnings.catch_warnings():  # about what Square finds, which the table shows
        warnings.simplefilter("ignore", attacks.AttackWarning)
        found = evaluate.robustness(model, x, y, tried, ball=ball, batch_size=len(x), cascade=True)
    survives = {name: result.survived for name, result in found.attacks.items()}
    survives |= {"clean": found.correct, "PGD-100": survives[last_of_pgd], "certified": proved}
    assert all(image[proved].all() for image in survives.values())  # no attack beats a proof
    return {column: int(survives[column].sum()) for column in COLUMNS}


def digest(*arrays) -> str:
    """Tells arrays from all others, by their numbers, shapes and types."""
    found = hashlib.sha256()
    for array in map(to_numpy, arrays):
        found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


def kept(key: list, compute) -> dict:
    """``compute()``, or what it returned before, from the folder ``judged`` of the cache."""
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    path = data.cache_folder() / "judged" / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        numbers = compute()
    try:
        with replacing(path) as file:
            file.write(json.dumps(numbers).encode())
    except OSError as error:
        print(f"the counts could not be kept: {error}")
    return numbers
