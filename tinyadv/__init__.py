"""tinyadv: adversarial machine learning from scratch, on NumPy or CuPy.

The modules in the order in which one learns them:

tensor       the engine: Tensor, grad, and how an operation gets its gradient rules
ops, conv    the operations
losses       what training descends and attacks ascend
layers       operations with weights; models: the networks by name
optim        how gradients change weights
data         images to learn from
train        the loop; checkpoint: what makes it resumable
evaluate     how good the result is, on clean images and on attacked ones
balls        the perturbations that an attack may choose from
attacks      images that look the same to us, and that the network misreads
verify       what no perturbation can do: proofs instead of attacks
defenses     what is plugged into the loop, so that the network becomes hard to fool
checks       whether it is, or its gradient is masked; broken: two defences that were not
viz          what to look at: grids of images, perturbations, landscapes (not imported from here)
backend      NumPy or CuPy: whose functions to call; threads: how several cores share a batch
"""

from tinyadv import (
    attacks,
    backend,
    balls,
    broken,
    checkpoint,
    checks,
    conv,
    data,
    defenses,
    evaluate,
    layers,
    losses,
    models,
    ops,
    optim,
    verify,
)
from tinyadv.backend import array_module, get_backend, to_numpy
from tinyadv.tensor import Tensor, check_grads, defvjp, grad, primitive, value_and_grad
from tinyadv.train import fit

__all__ = [
    "Tensor",
    "array_module",
    "attacks",
    "backend",
    "balls",
    "broken",
    "check_grads",
    "checkpoint",
    "checks",
    "conv",
    "data",
    "defenses",
    "defvjp",
    "evaluate",
    "fit",
    "get_backend",
    "grad",
    "layers",
    "losses",
    "models",
    "ops",
    "optim",
    "primitive",
    "to_numpy",
    "value_and_grad",
    "verify",
]

backend.keep_freed_memory()

__version__ = "0.1.0"
