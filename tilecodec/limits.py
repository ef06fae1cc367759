"""What a reader accepts at most: checked before what it governs is read or allocated. See ``formats/SECURITY.md``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from tilecodec.errors import LimitError, UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Upper bounds of what a container may ask of its reader; a container beyond one is a LimitError.

    The defaults leave room for every picture that :func:`tilecodec.encode` writes. Give smaller ones for containers
    from strangers, larger ones for those you trust: ``tilecodec.open(path, limits=Limits(tiles=1 << 30))``. What the
    format itself fixes, such as tiles of at most 4096 px, stays refused whatever the limits.

    Raises:
        UsageError: a limit that is no whole number of at least 1.
    """

    metadata_bytes: int = 8 << 20
    """Bytes of one ``zarr.json``."""
    metadata_depth: int = 32
    """Objects and arrays within one another in a ``zarr.json``."""
    levels: int = 24
    """Pyramid levels."""
    side: int = (1 << 31) - 1
    """Height and width of a level, pixels."""
    tiles: int = 1 << 24
    """Tiles of a level."""
    tile: int = 4096
    """Tile side, pixels."""
    chunk_tiles: int = 16
    """Tiles along a chunk's side."""
    index_bytes: int = 2328
    """Bytes of a chunk's index."""
    payload_bytes: int = 16 << 20
    """Bytes of a tile's payload."""
    channels: int = 1024
    """Channels of the model's code, and of its hyper-latent."""
    symbols: int = 1 << 24
    """Symbols of a tile, hyper-latent and code together."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise UsageError("a limit is out of range", got=value, expected="1 or more", where=field.name)

    def fault(self, name: str, got: int, where: str, kind: type[LimitError] = LimitError) -> LimitError | None:
        """The error for a value beyond a limit, None for one within.

        Args:
            name: field of this class.
            got: the value, in the field's unit.
            where: file or tile that asks for it.
            kind: class of the error.
        """
        limit = getattr(self, name)
        if got <= limit:
            return None
        return kind(
            f"{name.replace('_', ' ')} beyond what the reader accepts",
            got=got,
            expected=f"at most {limit}",
            where=where,
            hint=f"If you trust the container, read it with limits=tilecodec.Limits({name}={got})",
            reason=limit_reason(name),
        )

    def check(self, name: str, got: int, where: str, kind: type[LimitError] = LimitError) -> None:
        """Raises what :meth:`fault` returns."""
        fault = self.fault(name, got, where, kind)
        if fault is not None:
            raise fault


def limit_reason(name: str) -> str:
    """The reason code of a limit, by its field."""
    return "limit-" + name.replace("_", "-")


DEFAULT_LIMITS: Final = Limits()
