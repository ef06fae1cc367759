"""Reading ahead: the bytes of tiles that are about to be needed, in few requests, several at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from tilecodec.container.chunk import TileEntry
from tilecodec.decoder.reader import TileReader
from tilecodec.errors import TileError
from tilecodec.pools import Pool, forget_in_forks
from tilecodec.tiles import TilePosition

GAP_BYTES: Final = 64 << 10
"""Between two payloads: so many bytes are rather read than asked around."""
REQUEST_BYTES: Final = 4 << 20
"""The most of a request for several payloads."""
PAYLOAD_BYTES: Final = 1 << 20
"""Larger payloads are read when they are needed, one by one: many of them would take much memory while they wait."""
EXPECTED_TILES: Final = 1024
"""Of more than these, those expected first are read one by one."""
READS: Final = Pool(8, "tilecodec-read")
"""The process's requests to stores, as many as run at a time."""


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring payloads of a chunk, read by one request."""

    offset: int
    """Bytes from the chunk's start."""
    length: int
    """Bytes."""
    tiles: tuple[TilePosition, ...]


def spans(entries: Mapping[TilePosition, TileEntry]) -> list[Span]:
    """The requests that payloads of one chunk are read by, in the order of their offsets.

    Args:
        entries: places in the chunk, each with bytes.
    """
    found: list[Span] = []
    for at, entry in sorted(entries.items(), key=lambda item: item[1].offset):
        end = entry.offset + entry.length
        if found:
            last = found[-1]
            gap = entry.offset - (last.offset + last.length)
            if gap <= GAP_BYTES and end - last.offset <= REQUEST_BYTES:
                found[-1] = Span(last.offset, end - last.offset, (*last.tiles, at))
                continue
        found.append(Span(entry.offset, entry.length, (at,)))
    return found


@dataclass(frozen=True, eq=False, slots=True)
class _Part:
    """A payload in the answer to a request."""

    answer: Future[bytes | None]
    begin: int
    """Bytes from the answer's start."""
    length: int
    """Bytes."""


class ReadAhead:
    """Payloads on their way from the store. Safe to use from several threads.

    Args:
        reader: of the level.
    """

    def __init__(self, reader: TileReader) -> None:
        self._reader, self._most = reader, min(PAYLOAD_BYTES, reader.limits.payload_bytes)
        self._forget()
        forget_in_forks(self)

    def _forget(self) -> None:
        """Requests under way are not answered in a fork."""
        self._coming: dict[TilePosition, Future[dict[TilePosition, _Part]]] = {}
        self._lock = threading.RLock()  # its holder may be made to collect an abandoned reader, which forgets its tiles

    def expect(self, tiles: Iterable[TilePosition]) -> None:
        """Starts reading tiles that are not on their way."""
        chunks: dict[tuple[int, int], list[TilePosition]] = {}
        wanted = dict.fromkeys(tiles)
        with self._lock:
            for at in wanted:
                if at not in self._coming:
                    chunks.setdefault(self._reader.layout.chunk_of(at), []).append(at)
            for chunk, group in chunks.items():
                self._coming |= dict.fromkeys(group, READS.submit(self._begin, chunk, group))
            while len(self._coming) > EXPECTED_TILES:
                self._coming.pop(next(iter(self._coming)), None)

    def take(self, at: TilePosition) -> bytes | None:
        """A tile's payload, waited for; None where it was not expected, or has to be asked for by itself.

        Raises:
            StorageError: the store failed.
        """
        with self._lock:
            coming = self._coming.pop(at, None)
        part = None if coming is None else coming.result().get(at)
        return None if part is None else (part.answer.result() or b"")[part.begin : part.begin + part.length]

    def forget(self, tiles: Iterable[TilePosition]) -> None:
        """Tells that tiles are not needed after all."""
        with self._lock:
            for at in tiles:
                self._coming.pop(at, None)

    def _begin(self, chunk: tuple[int, int], tiles: list[TilePosition]) -> dict[TilePosition, _Part]:
        """Reads a chunk's index, and begins the requests for its payloads."""
        try:
            entries = {at: self._reader.entry(at) for at in tiles}
        except TileError:  # which reading it by itself will tell, in the tile's name
            return {}
        parts: dict[TilePosition, _Part] = {}
        for span in spans({at: entry for at, entry in entries.items() if 0 < entry.length <= self._most}):
            answer = READS.submit(self._reader.read_bytes, chunk, span.offset, span.length)
            parts |= {at: _Part(answer, entries[at].offset - span.offset, entries[at].length) for at in span.tiles}
        return parts
