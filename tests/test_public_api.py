"""The public names: exactly those of ``__all__``, documented, and cheap to import."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import tilecodec
from tilecodec import errors

NAMES = sorted(set(tilecodec.__all__))
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")

ERRORS = {
    name
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, errors.TileCodecError) and value.__module__ == errors.__name__
}


def cpu_seconds(*arguments: str) -> float:
    """CPU time of a fresh interpreter run with these arguments, the best of three."""
    times = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(times)


def test_all_is_what_is_there() -> None:
    assert len(NAMES) == len(tilecodec.__all__)
    tree = ast.parse(Path(tilecodec.__file__).read_text(encoding="utf-8"))
    typed = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    for_types = {a.name for block in typed for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert for_types | {"__version__"} == set(NAMES)
    here = {n for n, v in vars(tilecodec).items() if not n.startswith("_") and not inspect.ismodule(v)}
    assert here - {"annotations", "TYPE_CHECKING", "Any", "import_module"} <= set(NAMES)
    assert set(NAMES) <= set(dir(tilecodec))


@pytest.mark.parametrize("name", NAMES)
def test_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(tilecodec, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert value.__name__ == name
        assert (inspect.getdoc(value) or "").strip()


def test_the_error_tree_is_drawn_whole() -> None:
    assert "TileCodecError" in NAMES
    assert [n for n in sorted(ERRORS) if n not in (errors.__doc__ or "")] == []


def test_error_reasons_are_distinct_and_their_builtins_catch_them() -> None:
    classes = [getattr(errors, name) for name in sorted(ERRORS)]
    assert len({c.reason for c in classes}) == len(classes)
    drawn = re.findall(r"(\w+Error) \((\w+)\)", errors.__doc__ or "")
    assert len(drawn) >= 8
    for name, builtin in drawn:
        assert issubclass(getattr(errors, name), getattr(__import__("builtins"), builtin))


def test_functions_are_named_in_the_readme() -> None:
    functions = [n for n in NAMES if inspect.isroutine(getattr(tilecodec, n))]
    assert {"encode", "decode", "open", "info", "load_model"} <= set(functions)
    assert [n for n in functions if f"tilecodec.{n}(" not in README] == []


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = tilecodec.no_such_name


def test_version_is_the_distribution_s() -> None:
    assert tilecodec.__version__ == importlib.metadata.version("tilecodec")


@pytest.mark.parametrize("module", ["tilecodec", "tilecodec.cli"])
def test_import_leaves_torch_alone(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert module in loaded
    assert not loaded & {"torch", "diffusers", "zarr", "dask", "tifffile"}


def test_import_takes_little_time() -> None:
    assert cpu_seconds("-c", "import tilecodec") < 0.3


def test_help_takes_little_time() -> None:
    assert cpu_seconds(str(Path(sysconfig.get_path("scripts")) / "tilecodec"), "--help") < 0.3
