"""How the modules of the library hang together."""

import ast
from pathlib import Path

import tinyadv

ROOT = Path(tinyadv.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}


def imports(module: str, at_the_top: bool = False) -> list[tuple[str, str]]:
    """The modules of the library that a module imports from, and the names it takes."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found = []
    for node in tree.body if at_the_top else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tinyadv"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append((inner, "") if inner in MODULES else (node.module, alias.name))
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names if alias.name.startswith("tinyadv")]
    return found


def test_no_private_name_is_imported_from_another_module():
    private = [
        (module, source, name)
        for module in MODULES
        for source, name in imports(module)
        if name.startswith("_") and name != "__version__"
    ]
    assert private == []


def test_modules_do_not_import_each_other_in_a_circle():
    below = {module: {source for source, _ in imports(module)} - {module} for module in MODULES}
    while below:
        ready = {module for module, sources in below.items() if not sources & below.keys()}
        assert ready, f"a circle among {sorted(below)}"
        below = {module: sources for module, sources in below.items() if module not in ready}


def test_the_engine_imports_nothing_but_the_backend():
    assert {source for source, _ in imports("tinyadv.tensor")} == {"tinyadv.backend"}
    text = MODULES["tinyadv.tensor"].read_text(encoding="utf-8")
    assert "threading" not in text and "concurrent" not in text
