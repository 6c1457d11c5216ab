"""Proofs instead of attacks: what no perturbation in the ball can do.

An attack that succeeds shows that a network can be fooled; an attack that fails proves nothing. A
bound is the opposite: what it excludes cannot happen, but it need not be tight.

interval   bounds on every neuron, layer by layer: fast, loose, and suitable for training
"""

from tinyadv.verify.interval import (
    certified,
    certified_accuracy,
    interval_bounds,
    interval_rule,
    rounded_outward,
    worst_logits,
)

__all__ = [
    "certified", "certified_accuracy", "interval_bounds", "interval_rule", "rounded_outward",
    "worst_logits",
]  # fmt: skip
