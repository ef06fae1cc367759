"""Ctrl-C: the program ends soon, an encode can go on later, and a decode leaves nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import tifffile
import tiny

import tilecodec
from tilecodec.container.chunk import ChunkPlace
from tilecodec.encoder import AssemblyLine, Chunk, EncodeRoom
from tilecodec.errors import IncompleteContainerError

SECONDS = 2.0
"""From the signal to the end of the process."""
SIDE = 2048
HEEDING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from tilecodec.cli import main
sys.exit(main())
"""
"""The program; one that is begun in the background would have the signal ignored."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "a.tif"
    pixels = np.tile(skimage.data.coffee()[:384, :512], (6, 4, 1))[:SIDE, :SIDE]
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="adobe_deflate")
    return path


@pytest.fixture(scope="module")
def container(picture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("container") / "a.zarr"
    tilecodec.encode(picture, path, model=tiny.tiny_model(), tile=128)
    return path


def interrupted(*words: object, when: Path, pattern: str) -> float:
    """Runs a command until something lies there, then sends SIGINT; returns seconds until it ended."""
    command = [sys.executable, "-c", HEEDING, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        limit = time.monotonic() + 60
        while not any(when.glob(pattern)):
            assert process.poll() is None, "it ended before the signal"
            assert time.monotonic() < limit
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        try:
            _, said = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()  # leaving the block would wait for it
            raise
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said
    return time.monotonic() - begin


def test_an_encode_stops_soon_and_goes_on_to_the_same_bytes(picture: Path, container: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    words = ["encode", picture, path, "--model", tiny.tiny_model(), "--tile", 128]
    assert interrupted(*words, when=path, pattern="0/c/0/*/*") < SECONDS
    present = {p: p.stat().st_mtime_ns for p in path.glob("0/c/0/*/*")}
    with pytest.raises(IncompleteContainerError, match="resume"):
        tilecodec.open(path)
    tilecodec.encode(picture, path, model=tiny.tiny_model(), tile=128, resume=True)
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in present.items())
    files = {p.relative_to(container): p.read_bytes() for p in container.rglob("*") if p.is_file()}
    assert files == {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_decode_stops_soon_and_leaves_nothing(container: Path, tmp_path: Path) -> None:
    words = ["decode", container, tmp_path / "a.tif", "--model", tiny.tiny_model()]
    assert interrupted(*words, when=tmp_path, pattern="*") < SECONDS
    assert list(tmp_path.iterdir()) == []


DROPPED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import tilecodec.api
from tilecodec.cli import main

class Drops:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)  # what it raises goes no further than a finaliser

made, plain = [], tilecodec.api.Progress

def progress(*args):
    made.append(args)
    if len(made) == 2:
        Drops()
    return plain(*args)

tilecodec.api.Progress = progress
code = main()
print(code, len(made))
"""


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_a_signal_that_python_drops_ends_it_all_the_same(
    way: str, picture: Path, container: Path, tmp_path: Path
) -> None:
    target = tmp_path / ("a.zarr" if way == "encode" else "a.tif")
    words = [way, picture if way == "encode" else container, target, "--model", tiny.tiny_model()]
    command = [sys.executable, "-c", DROPPED, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "Exception ignored" in done.stderr
    assert "interrupted" in done.stderr
    assert done.stdout.split()[-2:] == ["130", "2"]
    assert way == "encode" or list(tmp_path.iterdir()) == []


SLOW_START = """
import signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import torch
torch.set_num_threads(2)
plain = torch.get_num_threads
def slow():
    if threading.current_thread().name.startswith("tilecodec-worker"):
        print("starting", flush=True)
        time.sleep(1)
    return plain()
torch.get_num_threads = slow
from tilecodec.entropy.codec import POOL
before = plain()
try:
    POOL.submit(int).result()
except KeyboardInterrupt:
    print("interrupted", flush=True)
assert plain() == before
torch.get_num_threads = plain
time.sleep(1.5)  # the workers that were starting are through
new = threading.Thread(target=lambda: print(plain() == before, flush=True))
new.start()
new.join()
assert POOL.submit(int, 7).result() == 7
print("works", flush=True)
"""


def test_an_interrupt_while_workers_start_leaves_none_waiting() -> None:
    command = [sys.executable, "-c", SLOW_START]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("starting")
        process.send_signal(signal.SIGINT)
        try:
            said, wrong = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, wrong
    assert said.replace("starting", "").split() == ["interrupted", "True", "works"]


STARTING = """
import argparse, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
from tilecodec import cli
from tilecodec.decoder.ahead import READS
from tilecodec.entropy.codec import POOL
name, pool = {"worker": ("tilecodec-worker", POOL), "read": ("tilecodec-read", READS)}[sys.argv[1]]
plain = threading._start_new_thread

def start(function, args):
    started = plain(function, args)
    if any(thread.name.startswith(name) for thread in threading._limbo):
        signal.raise_signal(signal.SIGINT)
    return started

def command(_):
    threading._start_new_thread = start
    pool.submit(int).result()
    return 0

class Parser:
    def parse_args(self, _):
        return argparse.Namespace(command=command)

cli._parser = Parser
code = cli.main([])
threading._start_new_thread = plain
assert pool.submit(int, 7).result() == 7
sys.exit(code)
"""


@pytest.mark.parametrize("pool", ["worker", "read"])
def test_an_interrupt_within_the_start_of_a_thread(pool: str) -> None:
    command = [sys.executable, "-c", STARTING, pool]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr


def test_of_a_chunk_that_is_not_written_nothing_more_is_coded() -> None:
    line, analysed = AssemblyLine(EncodeRoom(0)), Future[Any]()
    later, payload = Future[Any](), Future[Any]()
    analysed.set_result([payload])

    class Interrupted:
        def write(self, chunk: Chunk) -> None:
            raise KeyboardInterrupt

    chunk = Chunk("c/0/0/0", ChunkPlace(0, 0, 0), 1, 2, 0, [], {}, [analysed, later])
    level: Any = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        line.put(level, chunk)
    line.close()
    assert payload.cancelled()
    assert later.cancelled()
