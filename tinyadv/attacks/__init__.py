"""Attacks: images that look the same to us, and that the network misreads.

All have one signature, ``attack(model, x, y, *, …) -> x_adv``, arrays in and arrays out, with the
shape and dtype of ``x``, pixel values 0–1; ``fake_image`` alone, which starts from noise, takes a
target in the place of x and y. In the order in which one learns them:

slides     descend for the pixels: fake_image, untargeted, targeted
gradient   the loss, climbed in a ball: fgsm, pgd, apgd
minimal    the smallest perturbation: deepfool, carlini_wagner
boundary   the same, along the linearised boundary: fab
blackbox   no gradients: square, transfer
spatial    rotation and translation: spatial_grid, spatial_random, spatial_first_order
auto       the standard ensemble in one call, the worst case over four attacks: auto_attack
common     what they share
"""

from tinyadv.attacks.auto import AutoReport, auto_attack
from tinyadv.attacks.blackbox import square, transfer
from tinyadv.attacks.boundary import fab
from tinyadv.attacks.common import AttackWarning
from tinyadv.attacks.gradient import apgd, fgsm, pgd
from tinyadv.attacks.minimal import Smallest, carlini_wagner, deepfool
from tinyadv.attacks.slides import fake_image, targeted, untargeted
from tinyadv.attacks.spatial import (
    rotate_translate,
    spatial_first_order,
    spatial_grid,
    spatial_random,
)

__all__ = [
    "AttackWarning",
    "AutoReport",
    "Smallest",
    "apgd",
    "auto_attack",
    "carlini_wagner",
    "deepfool",
    "fab",
    "fake_image",
    "fgsm",
    "pgd",
    "rotate_translate",
    "spatial_first_order",
    "spatial_grid",
    "spatial_random",
    "square",
    "targeted",
    "transfer",
    "untargeted",
]
