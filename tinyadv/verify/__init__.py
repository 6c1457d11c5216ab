"""Proofs instead of attacks: what no perturbation in the ball can do.

An attack shows that a network can be fooled; that it finds nothing proves nothing. A bound goes the
other way: what it rules out cannot happen.

interval   bounds on every neuron, layer by layer: quick, loose, and good to train on
"""

from tinyadv.verify.interval import certified, certified_accuracy, interval_bounds, worst_logits

__all__ = ["certified", "certified_accuracy", "interval_bounds", "worst_logits"]
