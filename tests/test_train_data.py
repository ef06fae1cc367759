"""Crops straight from pictures: which are found, which refused, and the same for the same seed and step."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
import training
import zarr
from skimage import data

from tilecodec.errors import DatasetError, MissingFileError, RecipeError
from tilecodec.train.catalogue import find_pictures
from tilecodec.train.crops import PictureSampler
from tilecodec.train.data import CropSampler
from tilecodec.train.pictures import OpenPictures
from tilecodec.train.recipe import DataRecipe, DomainRecipe
from tilecodec.train.store import store_pictures

CROP = training.CROP


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.write_pictures(tmp_path_factory.mktemp("pictures"))


def of(*paths: Path | str, **options: Any) -> DataRecipe:
    plain: dict[str, Any] = {"workers": 0, "least_crops": 1}
    domains = {"one": DomainRecipe(paths=tuple(Path(p) for p in paths))}
    return DataRecipe(domains=domains, **{**plain, **options})


@pytest.fixture
def sampler_of() -> Iterator[Callable[..., PictureSampler]]:
    """Makes samplers and closes them in the end."""
    made: list[PictureSampler] = []

    def sampler_of(recipe: DataRecipe, *, crop: int = CROP, seed: int = 1) -> PictureSampler:
        made.append(PictureSampler(recipe, crop=crop, seed=seed))
        return made[-1]

    yield sampler_of
    for sampler in made:
        sampler.close()


def gradient(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 in which a pixel's place can be read."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y % 251, x % 251, (y // 251 + 16 * (x // 251)) % 256], axis=-1).astype(np.uint8)


def test_kinds_of_pictures_and_their_names(folder: Path, tmp_path: Path) -> None:
    pixels = gradient(300, 400)
    (tmp_path / "sub").mkdir()
    tifffile.imwrite(tmp_path / "sub" / "tiled.tif", pixels, tile=(128, 128), compression="zlib")
    array = zarr.create_array(str(tmp_path / "z.zarr"), shape=(3, 300, 400), chunks=(3, 128, 128), dtype="u1")
    array[:] = pixels.transpose(2, 0, 1)
    (tmp_path / "a.jxl").write_bytes(imagecodecs.jpegxl_encode(pixels, lossless=True))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"no picture")
    tifffile.imwrite(tmp_path / "small.tif", pixels[:100])
    found = find_pictures(of(tmp_path).domains, crop=CROP)
    assert [(p.name, p.height, p.width, p.whole) for p in found.pictures] == [
        ("a.jxl", 300, 400, True),
        ("sub/tiled.tif", 300, 400, False),
        ("z.zarr", 300, 400, False),
    ]
    assert len(found.small) == 1
    assert "small.tif (400 x 100 px)" in found.small[0]
    assert found.unreadable == {}
    assert found.crops(CROP) == 18
    patterned = find_pictures(of(f"{folder}/**/*.png", tmp_path / "z.zarr").domains, crop=CROP)
    assert [p.name for p in patterned.pictures] == ["retina.png", "astronaut.png", "coffee.png", "z.zarr"]


def test_crops_are_parts_of_their_picture(tmp_path: Path, sampler_of: Callable[..., PictureSampler]) -> None:
    pixels = gradient(700, 900)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(256, 256), compression="zlib")
    sampler = sampler_of(of(tmp_path, flips=False, turns=False), seed=3)
    batch = sampler.draw(0, 6)
    assert batch.pixels.shape == (6, 3, CROP, CROP)
    assert batch.pixels.dtype == torch.float32
    places = set()
    for levels in ((batch.pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        high = int(levels[0, 0, 2])
        y, x = int(levels[0, 0, 0]) + 251 * (high % 16), int(levels[0, 0, 1]) + 251 * (high // 16)
        np.testing.assert_array_equal(levels, pixels[y : y + CROP, x : x + CROP])
        places.add((y, x))
    assert len(places) == 6
    assert batch.names == ("a.tif",) * 6


def test_turns_flips_and_smaller_scales(tmp_path: Path, sampler_of: Callable[..., PictureSampler]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", data.astronaut())
    plain = sampler_of(of(tmp_path, flips=False, turns=False), crop=512, seed=3).draw(0, 1).pixels[0]
    turned = sampler_of(of(tmp_path), crop=512, seed=3).draw(0, 24).pixels
    views = {tuple(v.flatten()[:99].tolist()) for v in turned}
    assert len(views) == 8
    allowed = [torch.rot90(plain, k, (1, 2)) for k in range(4)]
    allowed += [a.flip(2) for a in allowed]
    assert all(any(torch.equal(v, a) for a in allowed) for v in turned)

    recipe = of(tmp_path, flips=False, turns=False, downscale=1.0, downscale_most=9)
    halved = sampler_of(recipe, crop=256).draw(0, 1).pixels[0]
    expected = torch.nn.functional.avg_pool2d((plain + 1) * 127.5, 2)
    assert float(((halved + 1) * 127.5 - expected).abs().max()) <= 0.5001


def test_a_batch_depends_on_seed_and_step_alone(folder: Path, sampler_of: Callable[..., PictureSampler]) -> None:
    recipe = training.data_of(folder, pool=2, pool_steps=2)
    alone = sampler_of(recipe, seed=5)
    batches = [alone.draw(step, 3) for step in range(6)]
    threaded = sampler_of(replace(recipe, workers=3, ahead=2), seed=5)
    for step in (0, 1, 2, 4, 5, 3):  # a resumed run jumps
        again = threaded.draw(step, 3)
        assert torch.equal(again.pixels, batches[step].pixels)
        assert again.names == batches[step].names
    assert torch.equal(threaded.extra(4), alone.extra(4))
    other = sampler_of(recipe, seed=6).draw(0, 3)
    assert not torch.equal(other.pixels, batches[0].pixels)
    names = {n for b in batches for n in b.names}
    assert len(names) >= 2


def test_domains_are_drawn_by_weight_and_pictures_by_area(
    folder: Path, sampler_of: Callable[..., PictureSampler]
) -> None:
    recipe = training.data_of(folder, least_crops=1)
    domains = {**recipe.domains, "photo": replace(recipe.domains["photo"], weight=3.0)}
    sampler = sampler_of(replace(recipe, domains=domains))
    assert [p.name for p in sampler.catalogue.pictures] == ["astronaut.png", "more/coffee.png", "retina.png"]
    areas = 512 * 512, 400 * 600
    expected = [0.75 * areas[0] / sum(areas), 0.75 * areas[1] / sum(areas), 0.25]
    np.testing.assert_allclose(sampler._chance, expected)
    domains["medical"] = replace(domains["medical"], weight=0.0)
    without = sampler_of(replace(recipe, domains=domains))
    assert "retina.png" not in without.names()


def test_giant_pictures_are_read_in_parts(tmp_path: Path, sampler_of: Callable[..., PictureSampler]) -> None:
    """Of a picture of 400 megapixels nothing but some tiles is decoded, and no band is kept for it."""
    path = tmp_path / "giant.tif"
    tile = gradient(256, 256)
    encoded = imagecodecs.zlib_encode(tile.tobytes())
    tifffile.imwrite(
        path, iter([encoded] * 79 * 79), shape=(79 * 256, 79 * 256, 3), dtype="u1", tile=(256, 256), compression="zlib"
    )
    sampler = sampler_of(of(path, open_megabytes=32))
    sampler.draw(0, 16)
    with sampler._open.use(sampler.catalogue.pictures[0]) as source:
        cache = source.segments._inner.cache
        assert 0 < cache.decoded < 4 * (64 + 16)
        assert cache.memory_bytes <= 16 << 20
        assert cache.file_bytes == 0


def test_open_pictures_stay_within_their_bound(folder: Path) -> None:
    pictures = find_pictures(training.data_of(folder).domains, crop=CROP).pictures
    kept = OpenPictures(20 << 20)
    for _ in range(2):
        for picture in pictures:
            with kept.use(picture) as source:
                assert source.height == picture.height
    assert kept.opened == 3
    tight = OpenPictures(1 << 19)
    with tight.use(pictures[0]) as a, tight.use(pictures[1]) as b:
        assert a.read(0, 8, 0, 8).shape == b.read(0, 8, 0, 8).shape
    with tight.use(pictures[0]):
        pass
    assert tight.opened == 3
    tight.close()


def test_unreadable_pictures_are_skipped_and_told(
    folder: Path, tmp_path: Path, sampler_of: Callable[..., PictureSampler]
) -> None:
    shutil.copytree(folder / "photo", tmp_path / "p")
    (tmp_path / "p" / "header.jpg").write_bytes(b"\xff\xd8\xff nothing")
    whole = (tmp_path / "p" / "astronaut.png").read_bytes()
    (tmp_path / "p" / "body.png").write_bytes(whole[: len(whole) // 2])
    tifffile.imwrite(tmp_path / "p" / "deep.tif", np.zeros((300, 300, 3), np.uint16))
    sampler = sampler_of(of(tmp_path / "p", workers=2))
    seen = {name for step in range(8) for name in sampler.draw(step, 4).names}
    assert seen == {"astronaut.png", "more/coffee.png"}
    skipped = {Path(path).name: reason for path, reason in sampler.skipped().items()}
    assert set(skipped) == {"header.jpg", "body.png", "deep.tif"}
    assert "uint16" in skipped["deep.tif"]


def test_a_picture_that_breaks_later_is_skipped_too(
    folder: Path, tmp_path: Path, sampler_of: Callable[..., PictureSampler]
) -> None:
    shutil.copytree(folder / "photo", tmp_path / "p")
    sampler = sampler_of(of(tmp_path / "p"))
    sampler._open.close()
    (tmp_path / "p" / "astronaut.png").unlink()
    assert set(sampler.draw(0, 8).names) == {"more/coffee.png"}
    assert list(sampler.skipped()) == [str(tmp_path / "p" / "astronaut.png")]
    sampler._open.close()
    (tmp_path / "p" / "more" / "coffee.png").unlink()
    with pytest.raises(DatasetError, match="could not be read"):
        sampler.draw(1, 8)


@pytest.mark.parametrize("noise", [0, 40])
def test_flat_pictures_are_refused(tmp_path: Path, noise: int, sampler_of: Callable[..., PictureSampler]) -> None:
    flat = np.full((512, 512, 3), 240, np.uint8)
    flat[:, :, 0] += np.random.default_rng(0).integers(0, noise + 1, (512, 512), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", flat)
    if noise:
        sampler_of(of(tmp_path))
        return
    with pytest.raises(DatasetError, match=r"64 of 64 crops .* under 1 grey level"):
        sampler_of(of(tmp_path))


def test_flat_crops_are_drawn_anew(tmp_path: Path, sampler_of: Callable[..., PictureSampler]) -> None:
    slide = np.full((1024, 1024, 3), 243, np.uint8)
    slide[:512, :512] = data.immunohistochemistry()
    tifffile.imwrite(tmp_path / "a.tif", slide, tile=(256, 256))

    def spread(**options: Any) -> float:
        batch = sampler_of(of(tmp_path, **options)).draw(0, 24).pixels * 127.5
        return float((batch.flatten(1).std(1) > 5).float().mean())

    assert spread() < 0.5
    assert spread(skip_flat=5.0) > 0.85


def test_too_few_pictures_are_refused(folder: Path, tmp_path: Path, sampler_of: Callable[..., PictureSampler]) -> None:
    with pytest.raises(DatasetError, match=r"got: 28 crops of 128 px .* in 2 pictures; expected: at least 32"):
        sampler_of(of(folder / "photo", least_crops=32))
    with pytest.raises(DatasetError, match=r"1 files, 0 unreadable, 1 too small, .*retina.png \(640 x 640 px\)"):
        sampler_of(of(folder / "medical"), crop=1024)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="0 files"):
        sampler_of(of(tmp_path / "empty"))
    with pytest.raises(MissingFileError, match=r"no such file or folder.*domain one"):
        sampler_of(of(tmp_path / "nowhere"))
    with pytest.raises(MissingFileError, match="fits nothing"):
        sampler_of(of(tmp_path / "*.svs"))


def test_a_store_holds_the_same_pixels(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "p")
    (tmp_path / "p" / "photo" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    skipped = store_pictures(training.data_of(tmp_path / "p"), tmp_path / "store", crop=CROP)
    assert [Path(p).name for p in skipped] == ["bad.png"]
    stored = CropSampler(tmp_path / "store", crop=512, weights={"photo": 1.0}, seed=1)
    assert stored.names() == ["astronaut.png"]
    crop = ((stored.draw(0, 1).pixels[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    views = [np.rot90(data.astronaut(), k) for k in range(4)]
    assert any(np.array_equal(crop, v) or np.array_equal(crop, v[:, ::-1]) for v in views)
    with pytest.raises(DatasetError, match="at least 1024 x 1024"):
        CropSampler(tmp_path / "store", crop=1024, weights={"photo": 1.0}, seed=1)
    before = stored.state()
    first = stored.draw(0, 2)
    stored.restore(before)
    stored.extra(3)
    assert torch.equal(first.pixels, stored.draw(0, 2).pixels)


def test_a_recipe_without_pictures_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("compressai")
    from tilecodec.train.loop import Run

    with pytest.raises(RecipeError, match="data, or store"):
        Run(training.recipe_of(tmp_path), say=training.quiet)
    with pytest.raises(RecipeError, match="a multiple of 128"):
        Run(training.recipe_of(tmp_path, crop=130), say=training.quiet)
