"""Attacks: images that look the same to us, and that the network reads wrongly.

All have one signature: ``attack(model, x, y, *, …) -> x_adv``, arrays in and arrays out, with the
shape and dtype of ``x``, pixel values 0–1. In the order in which one learns them:

gradient   the loss, climbed in a ball: fgsm, pgd, apgd
common     what they share
"""

from tinyadv.attacks.common import AttackWarning
from tinyadv.attacks.gradient import apgd, fgsm, pgd

__all__ = ["AttackWarning", "apgd", "fgsm", "pgd"]
