"""Recipes from YAML files: one stage or several, on top of others, with values set on the command line.

    extends: default-stage1        # another file, or one of the package's; its values hold where none are given here
    out: runs/mine
    data: {domains: {photo: {paths: [/pictures]}}}
    lr: 1e-3

With ``stages:``, a list of such mappings, each is a stage of its own, in a folder of its own within ``out``; what
stands beside ``stages`` holds for all of them, and a stage starts from the averaged weights of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Final

from tilecodec.errors import MissingFileError, RecipeError, StorageError
from tilecodec.train.recipe import TrainRecipe
from tilecodec.train.schema import Node, build, nearest, parse

SUFFIX: Final = ".yaml"
_LEVELS: Final = 8
"""Files that extend one another."""
_OWN: Final = ("extends", "stages", "name")
"""Keys of a file that are no fields of a recipe."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a recipe file."""

    name: str
    recipe: TrainRecipe


def configs_folder() -> Path:
    """Where the package keeps its own recipes."""
    return Path(str(resources.files("tilecodec") / "train" / "configs"))


def read_stages(config: Path, *, out: Path | None = None, settings: Sequence[str] = ()) -> list[Stage]:
    """The stages of a recipe file.

    Args:
        config: a YAML file, or the name of one of the package's.
        out: folder, instead of the file's ``out``.
        settings: ``key=value``, values as in YAML, keys with dots for what lies deeper; they hold for every stage.

    Raises:
        MissingFileError: no such file.
        RecipeError: wrong keys, types or values, with file and line.
    """
    top = _read(config, _LEVELS)
    common = {k: v for k, v in top.value.items() if k not in _OWN}
    stages = top.value.get("stages")
    if stages is not None and not (isinstance(stages.value, list) and stages.value):
        raise RecipeError("stages cannot be read", expected="a list of one stage or more", where=stages.where)
    parts = [Node({}, top.where)] if stages is None else stages.value
    found: list[Stage] = []
    for number, part in enumerate(parts, 1):
        if not isinstance(part.value, dict):
            raise RecipeError("a stage cannot be read", expected="keys and values", where=part.where)
        below = _extended(part, _LEVELS, config.parent)
        own = {k: v for k, v in part.value.items() if k not in _OWN}
        merged = _merged(_merged(below, common), own)
        for setting in settings:
            merged = _merged(merged, _setting(setting))
        if out is not None:
            merged["out"] = Node(str(out), "--out")
        label = part.value.get("name") or below.get("name") or Node(f"stage{number}", "")
        if not isinstance(label.value, str) or not label.value or "/" in label.value:
            raise RecipeError(
                "the name of a stage cannot be read", got=label.value, expected="a word", where=label.where
            )
        merged.pop("name", None)
        recipe = build(TrainRecipe, Node(merged, part.where))
        if stages is not None:
            recipe = replace(recipe, out=recipe.out / label.value)
        if found and recipe.start_from is None:
            recipe = replace(recipe, start_from=found[-1].recipe.out / "ema.pt")
        found.append(Stage(label.value, recipe))
    names = [s.name for s in found]
    if len(set(names)) < len(names):
        raise RecipeError("two stages have one name", got=names, where=top.where)
    return found


def _read(config: Path, levels: int) -> Node:
    """The mapping of a file, on top of what it extends."""
    shipped = configs_folder() / (config.name if config.suffix == SUFFIX else config.name + SUFFIX)
    path = shipped if not config.exists() and config.parent == Path() and shipped.is_file() else config
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        known = ", ".join(sorted(p.name for p in configs_folder().glob(f"*{SUFFIX}")))
        raise MissingFileError(
            "there is no such recipe", got=str(config), expected=f"a YAML file, or one of {known}"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError("this is not YAML", got=str(error), where=str(config)) from error
    except OSError as error:
        raise StorageError("the recipe cannot be read", got=error.strerror, where=str(config)) from error
    top = parse(text, str(config))
    if not isinstance(top.value, dict):
        raise RecipeError("the recipe cannot be read", expected="keys and values", where=top.where)
    _check_keys(top)
    return Node(_merged(_extended(top, levels, path.parent), top.value), top.where)


def _extended(part: Node, levels: int, folder: Path = Path()) -> dict[str, Node]:
    """What a mapping extends, without the key itself."""
    name = part.value.get("extends")
    if name is None:
        return {}
    if not isinstance(name.value, str):
        raise RecipeError("extends cannot be read", got=name.value, expected="a file, or a name", where=name.where)
    if levels == 0:
        raise RecipeError("recipes extend one another in a circle", got=name.value, where=name.where)
    beside = folder / name.value
    found = _read(beside if beside.is_file() else Path(name.value), levels - 1)
    return {k: v for k, v in found.value.items() if k != "extends"}


def _check_keys(top: Node) -> None:
    known = [*(f.name for f in fields(TrainRecipe)), *_OWN]
    for key, node in top.value.items():
        if key not in known:
            raise RecipeError("unknown key", got=key, expected=nearest(key, known), where=node.where)


def _merged(below: dict[str, Node], above: dict[str, Node]) -> dict[str, Node]:
    """Mappings merged key by key, however deep; all else of ``above`` takes the place of ``below``'s."""
    result = dict(below)
    for key, node in above.items():
        old = result.get(key)
        if old is not None and isinstance(old.value, dict) and isinstance(node.value, dict):
            result[key] = Node(_merged(old.value, node.value), node.where)
        else:
            result[key] = node
    return result


def _setting(setting: str) -> dict[str, Node]:
    key, equals, text = setting.partition("=")
    where = f"--set {setting}"
    if not equals or not all(key.split(".")):
        raise RecipeError("--set cannot be read", got=setting, expected="KEY=VALUE", where="--set")
    node = Node(parse(text, where).value if text.strip() else None, where)
    for part in reversed(key.split(".")):
        node = Node({part: node}, where)
    value: dict[str, Node] = node.value
    return value
