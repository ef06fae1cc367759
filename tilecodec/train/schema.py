"""Strict reading: YAML into values that know their line, values into dataclasses, typos into their nearest key."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TypeVar, Union, cast

from tilecodec.errors import RecipeError, TileCodecError

T = TypeVar("T")

_FLOAT: Final = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
"""What people write for a number; YAML 1.1 takes ``1e-3`` for text."""
_DEPTH: Final = 20
"""Deepest nesting; an alias within itself is deeper."""


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands."""

    value: Any
    """A scalar (str, int, float, bool, None), a list of nodes, or a dict of nodes by key."""
    where: str
    """File and line, or option."""


def parse(text: str, name: str) -> Node:
    """YAML text as nodes.

    Args:
        text: one YAML document.
        name: of the file or option, for messages.

    Raises:
        RecipeError: not YAML, a key given twice, or keys that are no text.
    """
    import yaml

    try:
        document = yaml.compose(text, Loader=yaml.SafeLoader)
        return Node({}, name) if document is None else _node(document, name, _DEPTH)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = name if mark is None else f"{name}, line {mark.line + 1}"
        raise RecipeError("this is not YAML", got=error.problem, where=where) from error
    except yaml.YAMLError as error:
        raise RecipeError("this is not YAML", got=error, where=name) from error


def _node(part: Any, name: str, depth: int) -> Node:
    import yaml

    where = f"{name}, line {part.start_mark.line + 1}"
    if depth == 0:
        raise RecipeError("nested too deeply", expected=f"at most {_DEPTH} levels", where=where)
    if isinstance(part, yaml.SequenceNode):
        return Node([_node(item, name, depth - 1) for item in part.value], where)
    if isinstance(part, yaml.MappingNode):
        pairs: dict[str, Node] = {}
        for key, value in part.value:
            place = f"{name}, line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError("a key that is no text", where=place)
            if key.value in pairs:
                raise RecipeError("a key is given twice", got=key.value, where=place)
            pairs[key.value] = dataclasses.replace(_node(value, name, depth - 1), where=place)
        return Node(pairs, where)
    loader = yaml.SafeLoader("")
    try:
        return Node(loader.construct_object(part), where)
    finally:
        loader.dispose()


def nearest(word: str, known: Iterable[str]) -> str:
    """What was probably meant: ``did you mean 'lr'?``, or all there is."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"one of {', '.join(sorted(known))}"


def build(cls: type[T], node: Node, path: str = "") -> T:
    """A dataclass from nodes, every key and type checked.

    Args:
        cls: a dataclass; fields may be numbers, texts, paths, literals, tuples, dicts by name, dataclasses, or None.
        node: a mapping.
        path: the dataclass's place, for messages.

    Raises:
        RecipeError: a key that is not known (the nearest that is, is named), one that is missing, a value of another
            type or out of range; each with its place.
    """
    if not isinstance(node.value, dict):
        _refuse(path or "the recipe", node, "keys and values")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # cls is always a dataclass
    types_of = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in node.value.items():
        if key not in fields:
            raise RecipeError("unknown key", got=_join(path, key), expected=nearest(key, fields), where=value.where)
        values[key] = _value(types_of[key], value, _join(path, key))
    for name, known in fields.items():
        required = known.default is dataclasses.MISSING and known.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise RecipeError("a key is missing", expected=_join(path, name), where=node.where)
    try:
        return cls(**values)
    except TileCodecError as error:
        place = node.value[error.where].where if error.where in node.value else node.where
        where = f"{_join(path, str(error.where))} ({place})"
        raise RecipeError(
            error.problem, got=error.got, expected=error.expected, where=where, hint=error.hint
        ) from error


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _refuse(path: str, node: Node, expected: str) -> NoReturn:
    value = node.value
    kind = {dict: "keys and values", list: "a list", type(None): "nothing"}.get(type(value))
    got = kind or f"{type(value).__name__} {value!r}"
    raise RecipeError(f"{path} cannot be read", got=got, expected=expected, where=node.where)


def _value(kind: Any, node: Node, path: str) -> Any:
    """A node's value as a type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if node.value is None and type(None) in arguments:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return _value(inner, node, path)
    if origin is Literal:
        return _choice(arguments, node, path)
    if origin is tuple:
        return _tuple(arguments, node, path)
    if origin in (dict, Mapping):
        if not isinstance(node.value, dict):
            _refuse(path, node, "keys and values")
        return {key: _value(arguments[1], value, _join(path, key)) for key, value in node.value.items()}
    if dataclasses.is_dataclass(kind):
        return build(cast(type[Any], kind), node, path)
    return _scalar(kind, node, path)


def _choice(choices: tuple[Any, ...], node: Node, path: str) -> Any:
    if node.value in choices and not isinstance(node.value, bool):
        return node.value
    texts = [str(c) for c in choices]
    expected = nearest(node.value, texts) if isinstance(node.value, str) else f"one of {', '.join(texts)}"
    return _refuse(path, node, expected)


def _tuple(kinds: tuple[Any, ...], node: Node, path: str) -> tuple[Any, ...]:
    many = len(kinds) == 2 and kinds[1] is Ellipsis
    items = node.value if isinstance(node.value, list) else None
    if items is None and many and isinstance(node.value, str):
        items = [node]  # one path is a list of one
    if items is None or (not many and len(items) != len(kinds)):
        _refuse(path, node, "a list" if many else f"a list of {len(kinds)}")
    return tuple(_value(kinds[0] if many else kinds[n], item, f"{path}[{n}]") for n, item in enumerate(items))


def _scalar(kind: Any, node: Node, path: str) -> Any:
    value = node.value
    plain = not isinstance(value, bool)
    if kind is bool:
        return value if not plain else _refuse(path, node, "true or false")
    if kind is int:
        return value if isinstance(value, int) and plain else _refuse(path, node, "a whole number")
    if kind is float:
        if isinstance(value, str) and _FLOAT.fullmatch(value):
            value = float(value)
        ok = isinstance(value, int | float) and plain and math.isfinite(value)
        return float(value) if ok else _refuse(path, node, "a number")
    if kind is Path:
        return Path(value).expanduser() if isinstance(value, str) and value else _refuse(path, node, "a path")
    if kind is str:
        return value if isinstance(value, str) else _refuse(path, node, "text")
    raise TypeError(f"{path}: {kind} is no type of a recipe")
