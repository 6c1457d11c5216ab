"""Attacks: images that look unchanged to us, and that the network misclassifies.

Every attack is a function ``attack(model, x, y, *, …) -> x_adv``, arrays in and arrays out; only
``fake_image``, which starts from noise, takes a target instead of x and y. In the order in which
one learns them:

slides     descent with respect to the pixels: fake_image, untargeted, targeted
gradient   ascent on the loss within a ball: fgsm, pgd, apgd
minimal    the smallest perturbation: deepfool, carlini_wagner
boundary   the same, along the linearised decision boundary: fab
blackbox   no gradients: square, transfer
spatial    rotation and translation: spatial_grid, spatial_random, spatial_first_order
auto       AutoAttack in one call, the worst case over four attacks: auto_attack
shared     helpers that several attacks use

These parameters mean the same in every attack that has them:

Parameters
----------
model : callable
    Given images (n, …), returns logits (n, K), not probabilities. It is called with arrays, and
    must return an array or a tensor, and with tensors, and must then return a tensor; only
    ``square``, ``spatial_grid``, ``spatial_random`` and the victim of ``transfer`` do not need
    tensors. Its weights are neither changed nor recorded on a tape.

    ``by_example = True`` is the model's promise that it treats each example on its own. A batch is
    then cut into pieces that run in several threads (:func:`tinyadv.parallel.limit` sets how many;
    the results do not depend on it). The networks of :mod:`tinyadv.models` make this promise. Any
    other module or function is given all examples at once, because it may look at the whole batch,
    as batch normalisation does. Set ``function.by_example = True`` if your function may be cut.
    Attacks that put finished examples aside (``deepfool``, ``carlini_wagner``, ``fab``, ``square``,
    ``spatial_grid``, ``auto_attack``) show such a model smaller batches as they go on.
x : (N, …) of a floating-point type, or Checked
    Images, pixel values 0–1, in any byte order; results have the machine's own. A
    :class:`tinyadv.inputs.Checked` holds ``y`` and ``target`` as well, and is not checked again.
y : (N,) integers, optional
    Their labels. By default the model's own predictions: the attack then looks for a change of the
    predicted class, whether that is correct or not.
target : (N,) integers or one integer, optional
    The class that each image is to be classified as. By default the attack is untargeted: any class
    except y.
ball : Ball
    The perturbations that are allowed: ``Linf(ε)``, ``L2(ε)`` or ``L1(ε)`` of
    :mod:`tinyadv.balls`, with ε in pixel values 0–1.
loss : callable
    The objective, ``loss(logits, labels, reduction="none") -> (N,)``, as in :mod:`tinyadv.losses`.
    The attack raises the loss of y, or lowers the loss of the target; for ``losses.dlr`` with a
    target it raises ``losses.dlr_targeted``.
rng : numpy.random.Generator or int
    For all random choices. They are drawn on the host, so that both backends make the same ones.
    An integer is a seed, and every call with it makes the same choices; the default is 0. A
    generator continues from call to call. :func:`tinyadv.fit` passes the generator of the run to
    ``perturb=partial(pgd, …)``, so that each step draws other noise.
details : bool
    Also return what the attack knows about each example, as a second result. The annotations
    describe the result without it.
progress : bool
    Show a progress bar, on terminals.

Returns
-------
x_adv : (N, …)
    In [0, 1], of the shape, dtype and backend of ``x``, which is left unchanged. Whether it fools
    the model is decided for these very numbers, whatever the precision of the model.

    An attack with a ball keeps ‖x_adv - x‖ ≤ ε, up to rounding: the rounding of x + δ changes each
    pixel by 6e-8 at most in float32. In float16, where it would be 5e-4, it is towards x, and the
    result is in the ball.

Raises
------
TypeError, ValueError
    If an argument is not as described, the model does not return finite logits (N, K), or the
    result would not be finite, because a gradient is not. The message names the expected and the
    given value.

Warns
-----
AttackWarning
    If the result may be misleading: the model seems to return probabilities, a target is the label
    itself, or an L∞ ball with ε > 1 allows every image.
"""

from tinyadv.attacks.auto import auto_attack
from tinyadv.attacks.blackbox import square, transfer
from tinyadv.attacks.boundary import fab
from tinyadv.attacks.gradient import apgd, fgsm, pgd
from tinyadv.attacks.minimal import Smallest, carlini_wagner, deepfool
from tinyadv.attacks.slides import fake_image, targeted, untargeted
from tinyadv.attacks.spatial import (
    rotate_translate,
    spatial_first_order,
    spatial_grid,
    spatial_random,
)
from tinyadv.inputs import AttackWarning

__all__ = [
    "AttackWarning", "Smallest", "apgd", "auto_attack", "carlini_wagner", "deepfool", "fab",
    "fake_image", "fgsm", "pgd", "rotate_translate", "spatial_first_order", "spatial_grid",
    "spatial_random", "square", "targeted", "transfer", "untargeted",
]  # fmt: skip
