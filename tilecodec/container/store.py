"""Byte access to a container's store, through zarr's own stores."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from tilecodec.errors import StorageError

T = TypeVar("T")


class ByteStore:
    """Keys to bytes under a prefix of a zarr store. Writes replace a key whole, in one move. Thread-safe."""

    def __init__(self, store: Store, prefix: str = "") -> None:
        self.store = store
        self.prefix = prefix.strip("/")

    def under(self, prefix: str) -> ByteStore:
        """The same store, further down."""
        return ByteStore(self.store, self._key(prefix))

    def get(self, key: str) -> bytes | None:
        """All bytes of a key; None where it is absent."""
        return self._read(key, None)

    def get_range(self, key: str, offset: int, length: int) -> bytes | None:
        """``length`` bytes from ``offset`` (fewer where the value ends before); None where the key is absent."""
        return self._read(key, RangeByteRequest(offset, offset + length))

    def get_rest(self, key: str, offset: int) -> bytes | None:
        """All bytes from ``offset`` on."""
        return self._read(key, OffsetByteRequest(offset))

    def exists(self, key: str) -> bool:
        """Whether the key is there."""
        return self._run(self.store.exists(self._key(key)), key)

    def size(self, key: str) -> int:
        """Bytes of a key."""
        return self._run(self.store.getsize(self._key(key)), key)

    def set(self, key: str, data: bytes) -> None:
        """Writes a key whole."""
        buffer = default_buffer_prototype().buffer.from_bytes(data)
        self._run(self.store.set(self._key(key), buffer), key)

    def _read(self, key: str, request: RangeByteRequest | OffsetByteRequest | None) -> bytes | None:
        prototype = default_buffer_prototype()
        try:
            buffer = self._run(self.store.get(self._key(key), prototype, byte_range=request), key)
        except StorageError as error:
            if getattr(error.__cause__, "status", None) == 416:  # HTTP: the range begins behind the end
                return b""
            raise
        return None if buffer is None else buffer.to_bytes()

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _run(self, call: Coroutine[Any, Any, T], key: str) -> T:
        try:
            return sync(call)
        except _failures() as error:
            hint = None
            if getattr(error, "errno", None) == errno.ENOSPC:
                hint = "Free some space and continue with --resume"
            text = getattr(error, "strerror", None) or error
            where = f"{self.store}/{self._key(key)}"
            raise StorageError(f"the store failed: {text}", where=where, hint=hint) from error


def _failures() -> tuple[type[Exception], ...]:
    """What a failing store raises: OSError, but for fsspec over HTTP, which lets errors of aiohttp through."""
    aiohttp = sys.modules.get("aiohttp")
    return (OSError,) if aiohttp is None else (OSError, aiohttp.ClientError)


def open_store(path: str | os.PathLike[str], *, read_only: bool) -> ByteStore:
    """A local folder, or any URL that fsspec knows (``s3://``, ``https://`` ...)."""
    text = os.fspath(path)
    if "://" in text:
        return ByteStore(FsspecStore.from_url(text, read_only=read_only))
    return ByteStore(LocalStore(Path(text), read_only=read_only))
