"""Proofs instead of attacks: what no perturbation in the ball can do.

An attack that succeeds shows that a network can be fooled; an attack that fails proves nothing. A
bound is the opposite: what it excludes cannot happen, but it need not be tight.

interval   bounds on every neuron, layer by layer: fast, loose, and suitable for training
linear     CROWN: lines around every ReLU, and backprop between them: slower, and much tighter
split      branch and bound: splits ReLUs until the linear bounds are exact
exact      the same answer from a mixed-integer linear program, and its relaxation
smoothing  an L2 radius for any network's vote on noisy images, certified with high probability
"""

from tinyadv.verify.exact import Optimum, Program, relaxed_worst_logits, solve
from tinyadv.verify.interval import (
    certified,
    certified_accuracy,
    interval_bounds,
    interval_rule,
    rounded_outward,
    worst_logits,
)
from tinyadv.verify.linear import hidden_bounds, linear_worst_logits
from tinyadv.verify.smoothing import (
    clopper_pearson,
    largest_radius,
    smoothed_predict,
    smoothed_radius,
)
from tinyadv.verify.split import Verdict, decide, exact_accuracy

__all__ = [
    "Optimum", "Program", "Verdict", "certified", "certified_accuracy", "clopper_pearson", "decide",
    "exact_accuracy", "hidden_bounds", "interval_bounds", "interval_rule", "largest_radius",
    "linear_worst_logits", "relaxed_worst_logits", "rounded_outward", "smoothed_predict",
    "smoothed_radius", "solve", "worst_logits",
]  # fmt: skip
