"""The model card of a converted model: what it is, where it came from, under which terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

LICENCE: Final = (
    "The authors' release carries no licence text. Whoever downloads, uses or passes on these weights does so under "
    "the terms that their authors grant; ask them if in doubt. tilecodec's own licence does not cover them."
)
"""Said before a download, and on the card."""


def card(alias: str, facts: Mapping[str, Any], parts: Mapping[str, tuple[int, int]]) -> str:
    """Markdown.

    Args:
        alias: the model's name.
        facts: what the record notes, see :mod:`tilecodec.models.convert`; those that are None are left out.
        parts: of each part of the network, its parameters and bytes.
    """
    rows = [(name.replace("_", " "), _shown(value)) for name, value in facts.items() if value is not None]
    total = tuple(sum(values) for values in zip(*parts.values(), strict=True))
    return "\n".join(
        [
            f"# {alias}",
            "",
            "DiT-IC (one-step diffusion transformer image codec, arXiv 2603.13162), converted to a tilecodec model.",
            "One rate point: the quality given when encoding has no effect.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
            "",
            "## Terms",
            "",
            LICENCE,
            "",
            "## Sizes",
            "",
            "| part | parameters | bytes |",
            "|---|---|---|",
            *(f"| {name} | {_count(count)} | {size:,} |" for name, (count, size) in parts.items()),
            f"| all | {_count(total[0])} | {total[1]:,} |",
            "",
            "## Entropy model",
            "",
            "Coded with integers (8-bit weights, 16-bit values, lookup tables), so that every machine decodes the same",
            "symbols. The float weights they were made from are kept beside them, for inspection and further training;",
            "decoding does not read them.",
            "",
        ]
    )


def _shown(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str) and len(value) >= 40 else str(value)


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 100_000 else f"{number:,}"
