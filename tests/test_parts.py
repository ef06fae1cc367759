"""Parts of windows: the pixels of the whole ones, for less work; and tiles that are decoded together."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import catalogue
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tilecodec
from tilecodec.decoder.engine import SharedWork, _rows_bytes
from tilecodec.decoder.jobs import JobCache
from tilecodec.decoder.tiles import TileFetcher, decoding_bytes, tiles_together
from tilecodec.decoder.together import Together
from tilecodec.decoder.windows import DecodedWindow, decode_window
from tilecodec.entropy.codec import POOL
from tilecodec.entropy.model import CodecModel, LatentWindow, load_model
from tilecodec.errors import CorruptTileError
from tilecodec.model.blocks import Up2
from tilecodec.model.config import BranchConfig, DiTICConfig
from tilecodec.model.ditic import DiTIC
from tilecodec.model.light_vae import LightVAE
from tilecodec.model.parts import needs
from tilecodec.pools import Pool
from tilecodec.tiles import TilePosition, Window

CONFIGS = {
    "plain": tiny.TINY,
    "no transformer": replace(tiny.TINY, transformer=None),
    "deep": replace(
        tiny.TINY,
        vae=replace(tiny.TINY.vae, decoder_layers=(3, 2), lapped=True),
        codec=replace(tiny.TINY.codec, residual=BranchConfig(blocks=2, mid=16), variance=BranchConfig(blocks=1, mid=8)),
    ),
}
HEIGHT, WIDTH = 384, 512
SPANS = [(0, 1), (0, HEIGHT), (37, 205), (190, 191), (HEIGHT - 1, HEIGHT), (96, 352)]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("span", SPANS)
def test_a_part_is_made_from_all_it_needs(config: DiTICConfig, span: tuple[int, int]) -> None:
    """In float64, where the order of sums is lost in rounding."""
    torch.manual_seed(0)
    network = DiTIC(config).double().eval()
    assert isinstance(network.vae, LightVAE)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    (y0, y1), (x0, x1) = span, (100, 300)
    part = needs(config, Window(y0, y1, x0, x1), HEIGHT, WIDTH)
    up = next(n for n, layer in enumerate(network.vae.decoder) if isinstance(layer, Up2))
    code = torch.randn(2, 1, config.codec.y_channels, HEIGHT // 32, WIDTH // 32, dtype=torch.float64)
    with torch.inference_mode():
        found = network.predict(code[0], torch.tensor([0.5]))
        whole = network.render(network.settle(found, code[0], code[1].abs()).x0)
        x0_part = network.settle_part(found.mean, found.velocity, code[0], code[1].abs(), part)
        before, network.vae.decoder = network.vae.decoder[:up], network.vae.decoder[up:]
        pixels = network.render(before(x0_part)[:, :, *part.inner])[:, :, *part.pixels]
    torch.testing.assert_close(pixels, whole[:, :, y0:y1, x0:x1], rtol=1e-9, atol=1e-9)
    assert whole.std() > 1e-3
    rows, cols = part.inner
    assert part.positions == (rows.stop - rows.start) * (cols.stop - cols.start) <= HEIGHT * WIDTH // 256


def test_a_part_needs_no_more_than_it_needs() -> None:
    """Layers of 3x3, counted by hand: of the autoencoder one each at 1/8 in the upsampling, a block and the last, and
    a block at 1/16; of the branches the last at 1/16, then at 1/32 one before the upsampling and no block."""
    config = replace(tiny.TINY, vae=replace(tiny.TINY.vae, lapped=True))
    part = needs(config, Window(512, 528, 512, 528), 1024, 1024)
    assert part.latent[0] == slice(32 - 2 - 1, 33 + 2 + 1)
    assert part.inner[0] == slice(1, 1 + 5)
    assert all(rows == cols for rows, cols in (part.code, part.widened, part.latent, part.inner, part.pixels))
    assert part.pixels[0] == slice(32, 48)
    assert part.code[0] == slice(28 // 2 - 1, 38 // 2 + 1)
    assert part.widened[0] == slice(28 - 26, 37 - 26)
    assert part.unwidened[0] == slice(1, 8)


@pytest.fixture(scope="module", params=["tiny", "default"])
def model(request: pytest.FixtureRequest) -> CodecModel:
    return load_model(tiny.tiny_model() if request.param == "tiny" else "default")


def same(exact: bool, found: Any, wanted: Any) -> None:
    """The same bits where parts are used. Elsewhere sums may go another way, which moves a level by one here and
    there; that parts are made from the right values shows there, too."""
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted.astype(int)).max(initial=0) <= (0 if exact else 1)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Has parts decoded on any processor, and tells whether this one does so anyway."""
    usual = load_model(tiny.tiny_model()).renders_parts
    monkeypatch.setattr(CodecModel, "renders_parts", True)
    return usual


def latents(model: CodecModel, rows: int, cols: int, seed: int) -> LatentWindow:
    generator = torch.Generator().manual_seed(seed)
    y_hat, scale = torch.randn(2, model.config.codec.y_channels, rows, cols, generator=generator)
    return LatentWindow(2 * y_hat, scale.abs())


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_part_has_the_whole_windows_bits(model: CodecModel, data: Any) -> None:
    rows, cols = (data.draw(st.integers(1, 18)) for _ in range(2))
    (y0, y1), (x0, x1) = (
        sorted(data.draw(st.lists(st.integers(0, 32 * n), min_size=2, max_size=2, unique=True))) for n in (rows, cols)
    )
    latent = latents(model, rows, cols, data.draw(st.integers(0, 99)))

    def both() -> tuple[Any, Any]:
        part = Window(y0, y1, x0, x1)
        return model.reconstruct(latent, 50), model.render(latent, model.predict(latent, 50), part)

    whole, part = POOL.submit(both).result()
    same(model.renders_parts, part, whole[y0:y1, x0:x1])
    assert part.base is None or part.base.nbytes == part.nbytes  # nothing larger is kept


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_where_bits_would_differ_windows_are_whole(precision: Any) -> None:
    assert not load_model(tiny.tiny_model(), precision=precision).renders_parts


def test_a_second_part_is_the_whole_window(model: CodecModel, exact: bool) -> None:
    latent, place = latents(model, 18, 18, 0), Window(1000, 1576, 2000, 2576)
    whole = model.reconstruct(latent, 50)

    def decode(part: Window, before: DecodedWindow | None) -> DecodedWindow:
        return decode_window(model, latent, 50, place, part, before)

    first = decode(Window(1500, 1576, 2000, 2100), None)
    assert first.place == Window(1500, 1576, 2000, 2100)
    assert first.prediction is not None
    assert first.size_bytes() == first.pixels.nbytes + first.prediction.nbytes
    assert first.covers(Window(1510, 1576, 2000, 2100))
    assert not first.covers(Window(1499, 1576, 2000, 2100))
    same(exact, first.cut(Window(1510, 1570, 2003, 2100)), whole[510:570, 3:100])
    second = decode(Window(1000, 1100, 2000, 2100), first)
    assert (second.place, second.prediction) == (place, None)
    same(exact, second.pixels, whole)
    most = decode(Window(1000, 1576, 2010, 2576), None)
    assert most.place == place  # hardly less work


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("parts") / "a.zarr"
    tilecodec.encode(catalogue.case("photo").pixels, path, model=tiny.tiny_model(), tile=128, levels=1)
    return path


def test_a_region_takes_parts_and_what_is_read_again_takes_windows_once(
    container: Path, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    expected = tilecodec.open(container)[...]
    image = tilecodec.open(container)
    model = image.level(0).decoder.model
    calls: list[tuple[str, int]] = []

    def counted(name: str) -> Callable[..., Any]:
        method = getattr(model, name)

        def call(*args: Any) -> Any:
            result = method(*args)
            calls.append((name, result.nbytes))
            return result

        return call

    for name in ("predict", "render", "reconstruct"):
        monkeypatch.setattr(model, name, counted(name))
    size = 3 * (128 + 2 * model.config.tiling.overlap) ** 2
    # a corner of one window, and nothing of others
    same(exact, image[:, 0:40, 0:40], expected[:, 0:40, 0:40])
    assert [name for name, _ in calls] == ["predict", "render"]
    assert calls[1][1] == 3 * 40 * 40
    calls.clear()
    same(exact, image[:, 3:40, 0:39], expected[:, 3:40, 0:39])
    assert not calls
    same(exact, image[:, 0:60, 0:60], expected[:, 0:60, 0:60])
    assert [name for name, _ in calls] == ["render"]
    assert 3 * 60 * 60 < calls[0][1] <= size  # what it was decoded from is remembered, and it is whole now
    calls.clear()
    same(exact, image[:, 0:90, 10:90], expected[:, 0:90, 10:90])
    assert not calls


def test_threads_that_want_different_parts_get_them(container: Path) -> None:
    expected = tilecodec.open(container)[...]
    image = tilecodec.open(container)
    wrong: list[tuple[int, int]] = []
    begin = threading.Barrier(8)

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        begin.wait()
        for _ in range(12):
            h, w = rng.integers(1, 100, 2)
            y, x = (int(rng.integers(0, side - own + 1)) for side, own in zip(expected.shape[1:], (h, w), strict=True))
            if not np.array_equal(image[:, y : y + h, x : x + w], expected[:, y : y + h, x : x + w]):
                wrong.append((y, x))

    threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_result_that_will_not_do_is_worked_out_again() -> None:
    cache: JobCache[str, int] = JobCache(100, lambda _: 1)
    go = threading.Event()

    def slow() -> int:
        go.wait(10)
        return 1

    small = cache.request("a", slow)
    large = cache.request("a", lambda: 5, lambda found: found >= 5)  # waits for the other, then asks again
    go.set()
    assert (small(), large()) == (1, 5)
    assert cache.get("a") == 5
    assert cache.request("a", lambda: 9)() == 5
    assert cache.request("a", lambda: 9, lambda found: found >= 9)() == 9


def test_a_reader_waits_for_a_job_that_is_over_but_not_forgotten_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A future wakes those who wait before it runs its callbacks."""
    done, go = JobCache._done, threading.Event()

    def late(self: Any, *args: Any) -> None:
        go.wait(10)
        done(self, *args)

    monkeypatch.setattr(JobCache, "_done", late)
    cache: JobCache[str, int] = JobCache(0, lambda _: 1)
    first, second = threading.Event(), cache.request("a", lambda: int(first.wait(10)))
    joined = cache.request("a", lambda: 5, lambda found: found >= 5)
    first.set()
    assert second() == 1
    threading.Timer(0.2, go.set).start()
    assert joined() == 5


def test_a_result_keeps_nothing_it_was_made_from() -> None:
    class Made:
        pass

    cache: JobCache[str, int] = JobCache(100, lambda _: 1)
    made = Made()
    seen = weakref.ref(made)

    def work(made: Any = made) -> int:
        return 1 if made else 0

    wait = cache.request("a", work)
    del made, work
    assert wait() == 1
    for _ in range(100):
        if seen() is None:
            break
        time.sleep(0.02)  # the pool's thread lets go a moment later
    assert seen() is None


class TwoWorkers(Pool):
    def __init__(self) -> None:
        super().__init__(2, "two")
        self.broken = False

    def submit(self, *args: Any, **words: Any) -> Any:
        if self.broken:
            raise KeyboardInterrupt
        return super().submit(*args, **words)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> TwoWorkers:
    """A pool of two in place of the process's, which has as many as there are cores."""
    pool = TwoWorkers()
    monkeypatch.setattr("tilecodec.decoder.together.POOL", pool)
    return pool


def blocked(pool: Pool) -> threading.Event:
    """All the pool's threads wait for the event."""
    go, begun = threading.Event(), threading.Semaphore(0)

    def wait() -> None:
        begun.release()
        go.wait(30)

    for _ in range(pool.workers):
        pool.submit(wait)
    for _ in range(pool.workers):
        begun.acquire()
    return go


def test_what_waits_is_done_together(two: TwoWorkers) -> None:
    batches: list[list[int]] = []

    def work(things: Any) -> list[int | Exception]:
        batches.append(list(things))
        return [ValueError(thing) if thing == 5 else -thing for thing in things]

    together: Together[int, int] = Together()
    go = blocked(two)
    futures = [together.submit(n, work, 4) for n in range(9)]
    go.set()
    assert [f.result(10) for n, f in enumerate(futures) if n != 5] == [-n for n in range(9) if n != 5]
    with pytest.raises(ValueError, match="5"):
        futures[5].result()
    assert sorted(itertools.chain(*batches)) == list(range(9))
    assert sorted(map(len, batches), reverse=True) == [4, 3, 1, 1]


def test_work_that_fails_as_a_whole_tells_all_who_wait(two: TwoWorkers) -> None:
    def work(_: Any) -> list[int | Exception]:
        raise ZeroDivisionError

    together: Together[int, int] = Together()
    go = blocked(two)
    futures = [together.submit(n, work, 4) for n in range(4)]
    go.set()
    for future in futures:
        with pytest.raises(ZeroDivisionError):
            future.result(10)


def test_what_could_not_be_submitted_takes_nobody_elses_turn(two: TwoWorkers) -> None:
    together: Together[int, int] = Together()
    two.broken = True
    with pytest.raises(KeyboardInterrupt):
        together.submit(1, lambda things: things, 1)
    two.broken = False
    futures = [together.submit(n, lambda things: things, 1) for n in range(5)]
    assert [future.result(10) for future in futures] == list(range(5))


@pytest.mark.parametrize(("tile", "most"), [(128, 4), (256, 4), (512, 4), (640, 1), (1024, 1), (4096, 1)])
def test_large_tiles_are_decoded_alone(container: Path, tile: int, most: int) -> None:
    layout = tilecodec.open(container).level(0).layout
    large = replace(layout, grid=replace(layout.grid, tile=tile))
    assert tiles_together(large) == most


def test_a_budget_counts_the_tiles_that_are_decoded_at_a_time(container: Path) -> None:
    level = tilecodec.open(container).level(0)
    model, layout = level.decoder.model, level.layout
    assert decoding_bytes(layout, model) == 128 * 4 * model.config.codec.y_channels * (128 // 32) ** 2
    shared = SharedWork(layout, model, cache_bytes=0, memory=8 << 30)
    assert shared.plan is not None
    coding = POOL.workers * decoding_bytes(layout, model)
    assert shared.plan.tiles == coding + _rows_bytes(layout, model)


def test_a_level_that_is_let_go_is_gone(container: Path) -> None:
    """Not when the collector comes round: it cannot see what the tiles' pages take."""
    decoder = tilecodec.open(container).level(0).decoder
    shared = SharedWork(decoder.layout, decoder.model, cache_bytes=0)
    store = decoder.fetcher._reader._store
    fetcher = TileFetcher(store, decoder.layout, decoder.model, caches=shared.tiles)
    assert fetcher.request(TilePosition(0, 0))().y_hat.numel()
    seen = weakref.ref(fetcher)
    del fetcher
    for _ in range(100):
        if seen() is None:
            break
        time.sleep(0.02)
    assert seen() is None


def test_a_window_decoded_meanwhile_is_not_decoded_again(model: CodecModel, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Window(0, 576, 0, 576)
    whole = DecodedWindow(np.zeros((576, 576, 3), np.uint8), place)
    for name in ("predict", "render", "reconstruct"):
        monkeypatch.setattr(model, name, None)
    assert decode_window(model, latents(model, 18, 18, 0), 50, place, Window(0, 9, 0, 9), whole) is whole


def test_a_damaged_tile_among_others_is_the_only_one_that_fails(
    container: Path, monkeypatch: pytest.MonkeyPatch, two: TwoWorkers
) -> None:
    image = tilecodec.open(container)
    fetcher = image.level(0).decoder.fetcher
    codec = type(image.level(0).decoder.model.tile_codec)
    decode_many = codec.decode_many
    sizes: list[int] = []
    bad = TilePosition(0, 1)
    name = image.level(0).layout.where(bad)

    def damaged(self: Any, payloads: Any, where: Any) -> Any:
        sizes.append(len(payloads))
        found = decode_many(self, payloads, where)
        return [CorruptTileError("damaged", where=w) if w == name else f for f, w in zip(found, where, strict=True)]

    monkeypatch.setattr(codec, "decode_many", damaged)
    grid = image.level(0).layout.grid
    places = [TilePosition(r, c) for r in range(grid.rows) for c in range(grid.cols)]
    go = blocked(two)
    waiting = {at: fetcher.request(at, 4) for at in places}
    go.set()
    for at, wait in waiting.items():
        if at == bad:
            with pytest.raises(CorruptTileError, match="damaged"):
                wait()
        else:
            assert wait().y_hat.numel()
    assert max(sizes) > 1


def test_tiles_that_cannot_be_decoded_together_are_decoded_alone(
    container: Path, monkeypatch: pytest.MonkeyPatch, two: TwoWorkers
) -> None:
    image = tilecodec.open(container)
    fetcher, codec = image.level(0).decoder.fetcher, type(image.level(0).decoder.model.tile_codec)
    decode_many = codec.decode_many
    sizes: list[int] = []

    def short_of_memory(self: Any, payloads: Any, where: Any) -> Any:
        sizes.append(len(payloads))
        if len(payloads) > 1:
            raise MemoryError
        return decode_many(self, payloads, where)

    monkeypatch.setattr(codec, "decode_many", short_of_memory)
    go = blocked(two)
    waiting = [fetcher.request(TilePosition(0, n), 4) for n in range(image.level(0).layout.grid.cols)]
    go.set()
    assert all(wait().y_hat.numel() for wait in waiting)
    assert max(sizes) > 1


@pytest.mark.parametrize(("few", "most"), [(16, 4), (3, 1)])
def test_small_regions_have_tiles_decoded_together_and_long_reads_have_not(
    container: Path, monkeypatch: pytest.MonkeyPatch, two: TwoWorkers, few: int, most: int
) -> None:
    monkeypatch.setattr("tilecodec.decoder.engine.FEW_WINDOWS", few)
    image = tilecodec.open(container)
    codec = type(image.level(0).decoder.model.tile_codec)
    decode_many = codec.decode_many
    sizes: list[int] = []

    def counted(self: Any, payloads: Any, where: Any) -> Any:
        sizes.append(len(payloads))
        return decode_many(self, payloads, where)

    monkeypatch.setattr(codec, "decode_many", counted)
    go = blocked(two)
    reader = threading.Thread(target=lambda: image[:, 40:240, 40:240])  # nine windows of nine tiles
    reader.start()
    waiting = image.level(0).decoder.fetcher._together._waiting
    while len(waiting) < 8 and reader.is_alive():
        time.sleep(0.01)
    go.set()
    reader.join()
    assert max(sizes) == most
