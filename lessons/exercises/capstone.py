"""The capstone: complete both functions, then run ``python -m lessons.exercises capstone``.

There is no right answer to compare with. Both functions are scored, and the score is shown beside
what a first attempt and the solution reach. Rules and pass marks: ``capstone_scoring.py``.
"""

import time

import numpy as np

from tinyadv import attacks, broken_defenses, data, defenses, fit, grad, losses, models, optim
from tinyadv.balls import Linf


def train(digits, epsilon, seconds):
    """1. Train a network that is as robust as possible, in ``seconds`` of wall-clock time.

    It is scored by its robust accuracy in the ∞-norm on images that you do not see: those that
    survive PGD with restarts and a short AutoAttack. The score is 0 if the training takes too
    long, if the network classifies less than half of the clean images correctly, or if
    ``checks.masking`` finds that its gradient is masked.

    Which network, which inner maximisation with how many steps, and which learning rates make the
    best use of the time? Choose with your own attack on ``digits.x_test``, not with the score.
    (Hint: your machine's speed is unknown, so let the schedule depend on the share of the time
    that has passed, which ``time.perf_counter()`` tells. Lesson 10 says why ε should grow.)

    digits: a ``data.Dataset`` with 10,000 training images and 1,000 images to choose settings
    with; epsilon: the radius; seconds: the budget. Returns the network: a function or ``Module``,
    images (N, 1, 28, 28) -> logits (N, 10).
    """
    ...


def attack(model, x, y, epsilon):
    """2. Break a defence that masks its gradient.

    The model is ``model.network`` behind ``model.front``. Plain PGD reports a high robust
    accuracy. Read the class ``MaskedDefence`` in ``capstone_scoring.py``, find out where the
    gradient is lost, and adapt the attack (lesson 13). All tricks are allowed that return images
    within the threat model.

    An image counts as fooled if the result lies in the ball ‖δ‖∞ ≤ ε and in [0, 1], and is
    misclassified by the defence as it is.

    model: a ``MaskedDefence``; x: (N, 1, 28, 28), images that it classifies correctly; y: (N,),
    labels; epsilon: the radius. Returns (N, 1, 28, 28), the adversarial examples.
    """
    ...
