"""What a type checker and an editor see of the library: every public name has types."""

import inspect
import pkgutil
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import typed_example

import tinyadv
from tinyadv import Tensor

ROOT = Path(tinyadv.__file__).parent
MODULES = [f"tinyadv.{name}" for name in tinyadv.__all__ if inspect.ismodule(vars(tinyadv)[name])]
MODULES += [m.name for m in pkgutil.walk_packages(tinyadv.__path__, "tinyadv.")]
MODULES = sorted(set(MODULES) - {"tinyadv.data.__main__"})


def functions(module):
    """The public functions that a module defines, and the methods of its classes, by name."""
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        for own, member in vars(thing).items() if inspect.isclass(thing) else [("", thing)]:
            for wrapper in ("__func__", "fget", "func"):  # class methods, properties, cached ones
                member = getattr(member, wrapper, member)
            if not inspect.isroutine(member) or (own[:1] == "_" and own[:2] != "__"):
                continue
            # Not a lambda, and not what a dataclass makes.
            code = getattr(inspect.unwrap(member), "__code__", None)
            if code and code.co_filename == module.__file__ and code.co_name != "<lambda>":
                yield f"{name}.{own}".rstrip("."), member


def missing(name, function):
    """What has no annotation: parameters other than self and cls, and the result."""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    found = [p.name for p in parameters if p.annotation is p.empty]
    if signature.return_annotation is signature.empty and not name.endswith(".__init__"):
        found.append("return")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_every_public_function_and_method_has_types(module):
    found = {name: missing(name, f) for name, f in functions(import_module(module))}
    assert {name: names for name, names in found.items() if names} == {}


def test_the_walk_finds_functions_operations_methods_and_properties():
    names = {f"{m}.{name}" for m in MODULES for name, _ in functions(import_module(m))}
    assert {
        "tinyadv.tensor.grad", "tinyadv.ops.relu", "tinyadv.conv.conv2d",
        "tinyadv.layers.Sequential.__call__", "tinyadv.tensor.Tensor.shape",
        "tinyadv.attacks.gradient.pgd", "tinyadv.attacks.cascade.Robustness.survived",
    } <= names  # fmt: skip
    assert missing("f", lambda x, *rest: x) == ["x", "rest", "return"]


def test_the_types_come_with_the_package():
    assert (ROOT / "py.typed").exists()


def test_the_typed_program_is_checked_and_runs():
    settings = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert "tests/typed_example.py" in settings["tool"]["mypy"]["files"]
    t = Tensor(np.eye(2))
    assert typed_example.arithmetic(t) is t
    clean, robust = typed_example.train_attack_evaluate()
    assert 0 <= robust <= clean <= 1
