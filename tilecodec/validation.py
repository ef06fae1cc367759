"""Checking a whole container: metadata, presence, every checksum and, on demand, every symbol; nothing stops it early.

The rules are those that readers keep, :mod:`tilecodec.container.rules` and :mod:`tilecodec.decoder.reader`; a reader
raises the first fault it meets, this lists them.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from tilecodec.api import PathLike, Progress, ProgressCall
from tilecodec.container.chunk import TileState
from tilecodec.container.document import DOCUMENT, load_document
from tilecodec.container.metadata import LevelLayout, is_complete, make_layout
from tilecodec.container.presence import Presence
from tilecodec.container.rules import array_faults, group_faults, level_paths, pyramid_faults
from tilecodec.container.store import open_store
from tilecodec.decoder.reader import StoredTile, TileReader, check_model
from tilecodec.errors import (
    ContainerError,
    IncompleteContainerError,
    ModelError,
    Problem,
    StorageError,
    TileCodecError,
    TileError,
)
from tilecodec.limits import DEFAULT_LIMITS, Limits
from tilecodec.tiles import TilePosition

if TYPE_CHECKING:
    from tilecodec.entropy.model import CodecModel

LISTED: Final = 10_000
"""Problems that a report lists; all are counted."""
AHEAD: Final = 32
"""Tiles whose symbols are being decoded at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationReport:
    """What a check of a container found."""

    path: str
    deep: bool
    complete: bool
    """The container says that it was finished."""
    levels: int
    """Levels whose metadata are in order; of the others no chunk can be checked."""
    chunks: int
    """Chunks whose index is in order."""
    tiles: int
    """Tiles whose bytes are in order."""
    decoded_tiles: int
    """Coded tiles whose symbols are in order; 0 unless ``deep``."""
    bytes: int
    """Bytes of the chunks counted above."""
    seconds: float
    problem_count: int
    problems: tuple[Problem, ...]
    """The first 10 000, in the order of the container."""

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problem_count

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self) | {"ok": self.ok}

    def to_json(self) -> str:
        """The JSON form as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


def validate(
    path: PathLike,
    deep: bool = False,
    limits: Limits | None = None,
    *,
    model: str | None = None,
    progress: ProgressCall | None = None,
) -> ValidationReport:
    """Checks a container: its metadata, that every chunk and tile is there, and every checksum.

    Memory does not grow with the container. Of an unfinished container, which is a problem itself, chunks that are
    absent are no problems.

    Args:
        path: the container's folder, or an fsspec URL.
        deep: decode the symbols of every tile and compare them with the tile's check; pixels are not made.
        limits: what the container may ask for at most; the defaults of :class:`Limits` if None.
        model: for ``deep``, path or name of the model, where the one that the container names is not found by itself.
        progress: called after every chunk.

    Raises:
        StorageError: the store cannot be read. Where only a part of it cannot, that is a problem with the reason
            ``storage``.
    """
    return _Validation(os.fspath(path), deep, limits or DEFAULT_LIMITS, model, progress).run()


class _Validation:
    """One check, and what it has counted."""

    def __init__(self, path: str, deep: bool, limits: Limits, model: str | None, progress: ProgressCall | None) -> None:
        self._path, self._deep, self._limits, self._model_name, self._progress = path, deep, limits, model, progress
        self._store = open_store(path, read_only=True)
        self._begun = time.monotonic()
        self._complete = self._stated = False
        self._problems: list[Problem] = []
        self._problem_count = self._chunks = self._tiles = self._decoded = self._bytes = 0
        self._pixels_done = self._pixels_total = 0
        self._models: dict[str, CodecModel | None] = {}
        self._pending: deque[Future[object]] = deque()

    def run(self) -> ValidationReport:
        layouts = self._layouts()
        self._pixels_total = sum(layout.grid.height * layout.grid.width for layout in layouts)
        for layout in layouts:
            self._level(layout)
        return ValidationReport(
            path=self._path,
            deep=self._deep,
            complete=self._stated,
            levels=len(layouts),
            chunks=self._chunks,
            tiles=self._tiles,
            decoded_tiles=self._decoded,
            bytes=self._bytes,
            seconds=time.monotonic() - self._begun,
            problem_count=self._problem_count,
            problems=tuple(self._problems),
        )

    def _add(self, error: TileCodecError) -> None:
        self._problem_count += 1
        if len(self._problems) < LISTED:
            self._problems.append(Problem.of(error))

    def _layouts(self) -> list[LevelLayout]:
        """Layouts of the levels whose metadata are in order."""
        try:
            group = load_document(self._store, self._path, self._limits)
        except ContainerError as error:
            self._add(error)
            return []
        faults = list(group_faults(group, self._path, self._limits))
        for fault in faults:
            self._add(fault)
        self._complete = not any(isinstance(fault, IncompleteContainerError) for fault in faults)
        self._stated = is_complete(group)
        arrays, stamps = [], []
        for path in level_paths(group, self._limits):
            stamp = self._store.under(path).stamp(DOCUMENT)
            array = self._array(path)
            if array is not None:
                arrays.append((int(path), array))
                stamps.append(stamp)
        for fault in pyramid_faults(arrays, self._path):
            self._add(fault)
        return [make_layout(array, str(n), stamp, n) for (n, array), stamp in zip(arrays, stamps, strict=True)]

    def _array(self, path: str) -> dict[str, Any] | None:
        where = f"{self._path}, level {path}"
        try:
            array = load_document(self._store.under(path), where, self._limits)
        except (ContainerError, StorageError) as error:
            if self._complete or error.reason != "no-metadata":
                self._add(error)
            return None
        faults = list(array_faults(array, where, self._limits))
        for fault in faults:
            self._add(fault)
        return None if faults else array

    def _level(self, layout: LevelLayout) -> None:
        store = self._store.under(layout.path)
        reader = TileReader(store, layout, self._limits)
        model = self._model(layout) if self._deep else None
        try:
            presence = Presence(store, layout)
        except StorageError as error:
            self._add(error)
            return
        done = 0
        for row in itertools.chain(presence.rows(), [layout.chunk_rows]):
            while done < row and self._ask_absent():
                self._row(reader, model, presence, done)
                done += 1
            self._pass(layout, (done, row), (0, layout.chunk_cols))
            if row < layout.chunk_rows:
                self._row(reader, model, presence, row)
            done = row + 1
        self._drain(0)

    def _row(self, reader: TileReader, model: CodecModel | None, presence: Presence, row: int) -> None:
        """A row of chunks: those that may be stored, and of the others as many as are listed one by one."""
        layout = reader.layout
        try:
            columns = presence.columns_in_order(row)
        except StorageError as error:
            self._add(error)
            return
        done = 0
        for col in itertools.chain(columns, [layout.chunk_cols]):
            while done < col and self._ask_absent():
                self._chunk(reader, model, (row, done))
                self._tell(layout, (row, row + 1), (done, done + 1))
                done += 1
            self._pass(layout, (row, row + 1), (done, col))
            if col < layout.chunk_cols:
                self._chunk(reader, model, (row, col))
                self._tell(layout, (row, row + 1), (col, col + 1))
            done = col + 1

    def _ask_absent(self) -> bool:
        """Whether chunks that are not in their folders' lists are asked for, each to be a problem of its own."""
        return self._complete and self._problem_count < LISTED

    def _pass(self, layout: LevelLayout, rows: tuple[int, int], cols: tuple[int, int]) -> None:
        """Counts absent chunks without asking for them."""
        count = (rows[1] - rows[0]) * (cols[1] - cols[0])
        if count > 0:
            self._problem_count += count if self._complete else 0
            self._tell(layout, rows, cols)

    def _model(self, layout: LevelLayout) -> CodecModel | None:
        """The level's model; None, and a problem, where there is none that fits."""
        from tilecodec.entropy.model import shared_model

        named = layout.codec.model
        if named not in self._models:
            self._models[named] = None
            try:
                wanted = named.removeprefix("sha256:")
                self._models[named] = shared_model(self._model_name or named, "cpu", sha256=wanted)
            except ModelError as error:
                self._add(error)
        model = self._models[named]
        if model is None:
            return None
        try:
            check_model(layout, model, self._limits)
        except ContainerError as error:
            self._add(error)
            return None
        return model

    def _chunk(self, reader: TileReader, model: CodecModel | None, chunk: tuple[int, int]) -> None:
        layout = reader.layout
        try:
            size = reader.check_chunk(chunk)
        except (TileError, StorageError) as error:
            if self._complete or error.reason != "chunk-absent":
                self._add(error)
            if error.reason != "chunk-rest":
                return
        else:
            self._chunks += 1
            self._bytes += size
        rows, cols = layout.tiles_of(*chunk)
        first_row, first_col = (n * layout.chunk_tiles for n in chunk)
        for row in range(first_row, first_row + rows):
            for col in range(first_col, first_col + cols):
                try:
                    tile = reader.read(TilePosition(row, col))
                except (TileError, StorageError) as error:
                    self._add(error)
                    continue
                self._tiles += 1
                if model is not None and tile.state is TileState.CODED:
                    self._decode(tile, layout, model)

    def _decode(self, tile: StoredTile, layout: LevelLayout, model: CodecModel) -> None:
        from tilecodec.entropy.codec import POOL

        assert tile.payload is not None
        self._pending.append(POOL.submit(model.tile_codec.decode, tile.payload, layout.where(tile.at)))
        self._drain(AHEAD)

    def _drain(self, most: int) -> None:
        """Waits until at most so many tiles are being decoded."""
        while len(self._pending) > most:
            try:
                self._pending.popleft().result()
            except TileError as error:
                self._add(error)
            else:
                self._decoded += 1

    def _tell(self, layout: LevelLayout, rows: tuple[int, int], cols: tuple[int, int]) -> None:
        """Counts chunks as done, by their rows and columns, first and last plus one."""
        side, grid = layout.chunk_side, layout.grid
        height, width = (
            min(last * side, most) - first * side for (first, last), most in ((rows, grid.height), (cols, grid.width))
        )
        self._pixels_done += height * width
        if self._progress is not None:
            self._progress(Progress(self._pixels_done, self._pixels_total, 0, time.monotonic() - self._begun))
