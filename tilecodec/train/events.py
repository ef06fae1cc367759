"""Event files that TensorBoard reads, written without it: scalars and pictures.

A file is a chain of records: length (8 bytes, little-endian), masked CRC-32C of those bytes, data, masked CRC-32C of
the data. The data are protocol buffers, put together here by hand.

Source: tensorflow/core/util/event.proto and framework/summary.proto (field numbers), core/lib/io/record_writer.h.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path

import google_crc32c


class EventFile:
    """One event file; each process that goes on with a run begins its own.

    Args:
        folder: made if needed.
        step: of the checkpoint that is gone on from; what earlier files say of later steps no longer counts.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self._file = (folder / f"events.out.tfevents.{int(now)}.{time.monotonic_ns()}.tilecodec").open("xb")
        self._write(_double(1, now) + _bytes(3, b"brain.Event:2"))
        if step:
            self._write(_double(1, now) + _integer(2, step + 1) + _bytes(7, _integer(1, 1)))  # a session's start

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name."""
        summary = b"".join(_bytes(1, _bytes(1, k.encode()) + _float(2, v)) for k, v in values.items())
        self._write(_double(1, time.time()) + _integer(2, step) + _bytes(5, summary))

    def picture(self, step: int, name: str, png: bytes, height: int, width: int) -> None:
        """A picture as PNG, RGB."""
        image = _integer(1, height) + _integer(2, width) + _integer(3, 3) + _bytes(4, png)
        summary = _bytes(1, _bytes(1, name.encode()) + _bytes(4, image))
        self._write(_double(1, time.time()) + _integer(2, step) + _bytes(5, summary))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked(length) + event + _masked(event))
        self._file.flush()


def _masked(data: bytes) -> bytes:
    crc = int(google_crc32c.value(data))
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
