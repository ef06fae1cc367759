"""Byte access to a container's store, through zarr's own stores."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from tilecodec.errors import StorageError

T = TypeVar("T")

RETRY_SECONDS: Final = (0.1, 0.5, 2.0)
"""Pauses before the further attempts at what a remote store failed to do."""
TIMEOUT_SECONDS: Final = 120.0
"""Of one attempt."""
_LASTING: Final = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS, errno.EISDIR})


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

    def get_first(self, key: str, length: int) -> bytes | None:
        """The first ``length`` bytes of a key, all where it has fewer; None where it is absent."""
        data = self._read(key, RangeByteRequest(0, length))
        return data if data is None else data[:length]

    def get_range(self, key: str, offset: int, length: int) -> bytes | None:
        """``length`` bytes from ``offset`` (fewer where the value ends before); None where the key is absent."""
        data = self._read(key, RangeByteRequest(offset, offset + length))
        if data is not None and len(data) < length and not self._local:  # some connections end early
            data = self._read(key, RangeByteRequest(offset, offset + length))
        if data is not None and len(data) > length:  # a web server that knows no ranges sends everything
            return data[offset : offset + length]
        return data

    def get_rest(self, key: str, offset: int) -> bytes | None:
        """All bytes from ``offset`` on."""
        return self._read(key, OffsetByteRequest(offset))

    def exists(self, key: str) -> bool:
        """Whether the key is there."""
        return self._run(lambda: self.store.exists(self._key(key)), key)

    def size(self, key: str) -> int:
        """Bytes of a key."""
        return self._run(lambda: self.store.getsize(self._key(key)), key)

    def stamp(self, key: str) -> tuple[int, ...] | None:
        """What tells a local file from one that was put in its place later; None where nothing does."""
        if not isinstance(self.store, LocalStore):
            return None
        try:
            found = (self.store.root / self._key(key)).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size  # inodes are used again, and change in mounted object stores

    def names(self, key: str) -> frozenset[str] | None:
        """What lies directly under a key, without its path; None where the store cannot tell (plain HTTP)."""
        if isinstance(self.store, FsspecStore) and "http" in _protocols(self.store):
            return None
        return self._run(lambda: _collected(self.store.list_dir(self._key(key))), key)

    def set(self, key: str, data: bytes) -> None:
        """Writes a key whole."""
        buffer = default_buffer_prototype().buffer.from_bytes(data)
        self._run(lambda: self.store.set(self._key(key), buffer), key)

    def _read(self, key: str, request: RangeByteRequest | OffsetByteRequest | None) -> bytes | None:
        prototype = default_buffer_prototype()
        self._refuse_device(key)
        try:
            buffer = self._run(lambda: self.store.get(self._key(key), prototype, byte_range=request), key)
        except StorageError as error:
            if getattr(error.__cause__, "status", None) == 416:  # HTTP: the range begins behind the end
                return b""
            raise
        return None if buffer is None else buffer.to_bytes()

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    @property
    def _local(self) -> bool:
        return isinstance(self.store, LocalStore)

    def _run(self, call: Callable[[], Coroutine[Any, Any, T]], key: str) -> T:
        """Does what a store does; one that is not a local folder gets several attempts and a time limit for each.

        Raises:
            StorageError: naming the key.
        """
        delays = iter(() if self._local else RETRY_SECONDS)
        attempt = 0
        while True:
            attempt += 1
            try:
                return sync(call() if self._local else asyncio.wait_for(call(), TIMEOUT_SECONDS))
            except self._failures() as error:
                delay = next(delays, None) if _may_pass(error) else None
                if delay is None:
                    raise self._failed(error, key, attempt) from error
                time.sleep(delay)

    def _failed(self, error: Exception, key: str, attempts: int) -> StorageError:
        text = getattr(error, "strerror", None) or str(error) or f"no answer within {TIMEOUT_SECONDS:g} s"
        if attempts > 1:
            text = f"{text} ({attempts} attempts)"
        full = getattr(error, "errno", None) == errno.ENOSPC
        return StorageError(
            f"the store failed: {text}",
            where=f"{self.store}/{self._key(key)}",
            hint="Free some space and continue with --resume" if full else None,
        )

    def _failures(self) -> tuple[type[Exception], ...]:
        """What a failing store raises: OSError, and whatever a remote one's own library (aiohttp, google.auth ...)."""
        return (Exception,) if isinstance(self.store, FsspecStore) else (OSError,)

    def _refuse_device(self, key: str) -> None:
        """A pipe or a device among a container's files would be waited for without end."""
        if not isinstance(self.store, LocalStore):
            return
        path = self.store.root / self._key(key)
        try:
            mode = path.stat().st_mode
        except OSError:
            return  # reading tells what is wrong
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise StorageError("not a plain file", got=stat.filemode(mode), expected="a file", where=str(path))


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may go better: not where the server understood and refused."""
    if isinstance(error, FileNotFoundError | PermissionError) or getattr(error, "errno", None) in _LASTING:
        return False
    status = getattr(error, "status", None)
    return not (isinstance(status, int) and 400 <= status < 500 and status not in (408, 429))


async def _collected(names: AsyncIterator[str]) -> frozenset[str]:
    return frozenset([name async for name in names])


def _protocols(store: FsspecStore) -> tuple[str, ...]:
    protocol = store.fs.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def open_store(path: str | os.PathLike[str], *, read_only: bool) -> ByteStore:
    """A local folder, or any URL that fsspec knows (``s3://``, ``https://`` ...)."""
    text = os.fspath(path)
    if "://" in text:
        return ByteStore(FsspecStore.from_url(text, read_only=read_only))
    return ByteStore(LocalStore(Path(text), read_only=read_only))
