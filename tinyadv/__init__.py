"""tinyadv: adversarial machine learning from scratch, on NumPy or CuPy.

The modules in the order in which one learns them:

tensor           the engine: Tensor, grad, and how an operation gets its gradient rules
ops, conv        the operations
gradcheck        finite differences, Jacobian-vector and Hessian-vector products
losses           what training minimises and attacks maximise
layers           operations with weights; models: the networks by name
optim            how gradients change weights
data             images to learn from
train            the loop; checkpoint: what makes it resumable
evaluate         how good the network is, on clean images and under attack
balls            the perturbations that an attack may choose from
attacks          adversarial examples: images that look the same to us and are misclassified
verify           what no perturbation can do: proofs instead of attacks
defenses         arguments of the training loop that make a network robust
checks           is it robust, or is its gradient masked?
broken_defenses  defences that hide the gradient, and the attacks adapted to them
viz              grids of images, perturbations, loss landscapes (not imported from here)
inputs           the checks of pixels, labels and logits; predict
parallel         how several cores share a batch
distributed      how several processes or machines share it, by MPI
backend          NumPy or CuPy: whose functions to call
"""

from tinyadv import (
    attacks,
    backend,
    balls,
    broken_defenses,
    checkpoint,
    checks,
    conv,
    data,
    defenses,
    distributed,
    evaluate,
    inputs,
    layers,
    losses,
    models,
    ops,
    optim,
    parallel,
    verify,
)
from tinyadv.backend import array_module, get_backend, to_numpy
from tinyadv.gradcheck import check_grads, hvp, jvp
from tinyadv.tensor import Tensor, defvjp, grad, primitive, value_and_grad
from tinyadv.train import fit

__all__ = [
    "Tensor", "array_module", "attacks", "backend", "balls", "broken_defenses", "check_grads",
    "checkpoint", "checks", "conv", "data", "defenses", "defvjp", "distributed", "evaluate", "fit",
    "get_backend", "grad", "hvp", "inputs", "jvp", "layers", "losses", "models", "ops", "optim",
    "parallel", "primitive", "to_numpy", "value_and_grad", "verify",
]  # fmt: skip

backend.keep_freed_memory()

__version__ = "0.2.0"
