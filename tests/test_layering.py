"""The order of the layers, read off the imports of every module of the package.

    source ─► tiles ─► model ─► entropy ─► container        (encode)
    container ─► entropy ─► model ─► blend ─► sink           (decode)

A stage imports stages to its left and the leaves; composers see several stages; nothing imports a composer that is not
one itself. Imports inside functions and under TYPE_CHECKING count as well.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

import tilecodec

PACKAGE = Path(tilecodec.__file__).parent
LEAVES = ("config", "errors", "files", "limits", "memory", "pools")
"""Imported by all, import nothing of the package (limits: errors; config: errors and limits)."""
STAGES = ("source", "tiles", "model", "entropy", "container", "blend", "sink")
"""Left to right."""
ASIDE = ("metrics", "scene", "weights")
"""No stage of the road; import leaves only."""
COMPOSERS = (
    "",
    "__main__",
    "api",
    "budget",
    "encoder",
    "decoder",
    "zarr_codec",
    "validation",
    "evaluation",
    "models",
    "cli",
    "progress",
    "demo",
    "train",
    "serve",
    "testing",
)
"""May import every stage; the empty name is the package itself."""

ONLY_IN_TRAIN = {"compressai", "peft"}
WITHOUT_TORCH = ("source", "tiles", "sink", "errors", "config")
NO_TORCH_AT_TOP = ("", "cli")


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """One imported module."""

    module: str
    """Absolute dotted name; for ``from package import name`` the name is part of it."""
    line: int
    at_top: bool
    """Runs when the module is imported (not inside a function, not under TYPE_CHECKING)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """One module of the package."""

    path: str
    """Relative to the package."""
    layer: str
    """First component of its name within the package; empty for the package itself."""
    tree: ast.Module
    imports: tuple[Import, ...]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def imports_of(tree: ast.Module, package: list[str]) -> list[Import]:
    """All imports of a module that lies in ``package``, relative ones made absolute."""
    found = []

    def visit(node: ast.AST, at_top: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(module=alias.name, line=node.lineno, at_top=at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            found.extend(Import(module=f"{prefix}.{a.name}", line=node.lineno, at_top=at_top) for a in node.names)
        inner = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(node)
        for child in ast.iter_child_nodes(node):
            visit(child, at_top and not inner)

    visit(tree, True)
    return found


def load(file: Path) -> Module:
    path = file.relative_to(PACKAGE)
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    parts = path.with_suffix("").parts
    layer = "" if parts == ("__init__",) else parts[0]
    package = ["tilecodec", *path.parent.parts]
    return Module(path=path.as_posix(), layer=layer, tree=tree, imports=tuple(imports_of(tree, package)))


MODULES = [load(file) for file in sorted(PACKAGE.rglob("*.py"))]
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda m: m.path)


def layer_of(imported: str) -> str | None:
    """The layer of a name of ours, None for another's. A name of the package itself has the empty layer."""
    parts = imported.split(".")
    if parts[0] != "tilecodec":
        return None
    known = {*LEAVES, *STAGES, *ASIDE, *COMPOSERS}
    return parts[1] if len(parts) > 1 and parts[1] in known else ""


def allowed(layer: str) -> set[str]:
    """The layers that a layer may import, itself included."""
    if layer == "errors":
        return {"errors"}
    if layer == "limits":
        return {"limits", "errors"}
    if layer == "config":
        return {"config", "errors", "limits"}
    if layer in ASIDE:
        return {layer, *LEAVES}
    if layer in STAGES:
        return {*STAGES[: STAGES.index(layer) + 1], *LEAVES}
    if layer == "train":  # trains networks; neither reads nor writes containers
        return {"train", "source", "tiles", "model", "entropy", "metrics", *LEAVES}
    return {*LEAVES, *STAGES, *ASIDE, *COMPOSERS}


def test_every_module_has_a_layer() -> None:
    assert len(MODULES) > 10
    unknown = {m.path for m in MODULES} - {m.path for m in MODULES if m.layer in {*LEAVES, *STAGES, *ASIDE, *COMPOSERS}}
    assert not unknown, "give these a place in this test's lists"


@each_module
def test_imports_go_leftwards(module: Module) -> None:
    reached = [(i.line, i.module, layer_of(i.module)) for i in module.imports]
    wrong = [
        f"line {line}: {name}"
        for line, name, layer in reached
        if layer is not None and layer not in allowed(module.layer)
    ]
    assert not wrong


@each_module
def test_training_dependencies_stay_in_train(module: Module) -> None:
    wrong = [f"line {i.line}: {i.module}" for i in module.imports if i.module.split(".")[0] in ONLY_IN_TRAIN]
    assert not wrong or module.layer == "train"


@each_module
def test_torch_is_imported_where_it_may_be(module: Module) -> None:
    torch = [i for i in module.imports if i.module.split(".")[0] in {"torch", "torchvision", "diffusers"}]
    if module.layer in WITHOUT_TORCH:
        assert not torch
    if module.layer in NO_TORCH_AT_TOP:
        assert not [i for i in torch if i.at_top]


@each_module
def test_no_environment_is_read_at_import(module: Module) -> None:
    names = {"os.environ", "os.getenv", "os.environb"}

    def at_import(node: ast.AST) -> list[int]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return []
        here = [node.lineno] if isinstance(node, ast.Attribute) and ast.unparse(node) in names else []
        return here + [line for child in ast.iter_child_nodes(node) for line in at_import(child)]

    assert not at_import(module.tree)


@each_module
def test_no_path_edits_and_no_partial_loads(module: Module) -> None:
    text = [ast.unparse(node) for node in ast.walk(module.tree) if isinstance(node, ast.Call | ast.Assign)]
    assert not [t for t in text if t.startswith("sys.path")]
    if module.layer == "train":  # a stage of training may start from part of another's weights, and says how much
        return
    for call in (n for n in ast.walk(module.tree) if isinstance(n, ast.Call)):
        if ast.unparse(call.func).endswith("load_state_dict"):
            lax = any(k.arg == "strict" and ast.unparse(k.value) == "False" for k in call.keywords)
            # A lax load is fine where its result, the names that did not fit, is used.
            assert not lax or not any(isinstance(n, ast.Expr) and n.value is call for n in ast.walk(module.tree))


def test_the_checks_can_fail() -> None:
    tree = ast.parse(
        "from tilecodec import sink\nimport torch.nn\nfrom ..entropy import coder\ndef f():\n    import peft\n"
        "if TYPE_CHECKING:\n    from tilecodec.api import encode\n"
    )
    found = {i.module: (layer_of(i.module), i.at_top) for i in imports_of(tree, ["tilecodec", "tiles"])}
    assert found == {
        "tilecodec.sink": ("sink", True),
        "torch.nn": (None, True),
        "tilecodec.entropy.coder": ("entropy", True),
        "peft": (None, False),
        "tilecodec.api.encode": ("api", False),
    }
    assert not {"sink", "entropy", "api"} & allowed("tiles")
