"""Recipes from YAML: what is read, and what is refused with the place and the nearest valid key."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tilecodec.errors import MissingFileError, RecipeError, UsageError
from tilecodec.train.reading import configs_folder, read_stages
from tilecodec.train.recipe import DataRecipe, DomainRecipe, TrainRecipe

MINE = """
out: runs/mine
data:
  domains:
    photo: {paths: /pictures, weight: 2}
    slides: {paths: [/slides/*.svs, /more]}
lr: 2e-4
batch: 6
transformer: true
gain_start: [-1, 2.5]
minutes: null
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "recipe.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_a_recipe_is_what_the_same_words_make_in_python(write: Callable[..., Path]) -> None:
    (stage,) = read_stages(write(MINE))
    domains = {
        "photo": DomainRecipe(paths=(Path("/pictures"),), weight=2.0),
        "slides": DomainRecipe(paths=(Path("/slides/*.svs"), Path("/more"))),
    }
    assert stage.recipe == TrainRecipe(
        out=Path("runs/mine"),
        data=DataRecipe(domains=domains),
        lr=2e-4,
        batch=6,
        transformer=True,
        gain_start=(-1.0, 2.5),
    )


def test_values_on_the_command_line_come_last(write: Callable[..., Path]) -> None:
    settings = ["lr=1e-5", "data.domains.photo.weight=0.5", "data.domains.extra={paths: [a, b]}", "data.workers=0"]
    (stage,) = read_stages(write(MINE), out=Path("elsewhere"), settings=settings)
    recipe = stage.recipe
    assert recipe.data is not None
    assert (recipe.out, recipe.lr, recipe.data.workers) == (Path("elsewhere"), 1e-5, 0)
    assert {k: v.weight for k, v in recipe.data.domains.items()} == {"photo": 0.5, "slides": 1.0, "extra": 1.0}


def test_stages_and_what_they_extend(write: Callable[..., Path]) -> None:
    write("lr: 1\nmuon_lr: 1\nema: 0.5\nbatch: 3\n", "below.yaml")
    text = "out: o\nlr: 2\nstages:\n- {extends: below.yaml, batch: 5}\n- {name: last, lr: 3, start_from: x.pt}\n- {}\n"
    stages = read_stages(write(text))
    assert [s.name for s in stages] == ["stage1", "last", "stage3"]
    first, second, third = (s.recipe for s in stages)
    assert (first.out, first.lr, first.muon_lr, first.ema, first.batch) == (Path("o/stage1"), 2, 1, 0.5, 5)
    assert (second.lr, second.muon_lr, second.start_from) == (3, 0.01, Path("x.pt"))
    assert (first.start_from, third.start_from) == (None, Path("o/last/ema.pt"))


@pytest.mark.parametrize("name", sorted(p.stem for p in configs_folder().glob("*.yaml")))
def test_shipped_recipes_are_whole(name: str) -> None:
    settings = ["data.domains.photo={paths: [/p]}", "lpips_weights=l", "dists_weights=d"]
    (stage,) = read_stages(Path(name), out=Path("o"), settings=settings)
    assert (stage.recipe.out, stage.recipe.model) == (Path("o"), "dit-ic" if name.startswith("dit") else "default")


def test_the_paper_s_numbers() -> None:
    settings = ["lpips_weights=l", "dists_weights=d"]
    one, two = (read_stages(Path(f"dit-ic-stage{n}"), out=Path("o"), settings=settings)[0].recipe for n in (1, 2))
    for recipe in (one, two):
        assert (recipe.objective, recipe.optimizer, recipe.lr, recipe.ema, recipe.grad_clip) == (
            *("dit-ic", "adamw", 1e-4, 0.999, 4),
        )
        assert (recipe.mse_weight, recipe.lpips_weight, recipe.dists_weight) == (1, 1, 0.2)
        assert (recipe.alignment_weight, recipe.alignment_margin, recipe.freeze_encoder) == (0.05, 0.5, True)
        assert (recipe.schedule, recipe.decay_at, recipe.aux_lr) == ("steps", (0.5, 0.8, 0.9), 1e-3)
        assert recipe.lora is not None
        assert (recipe.lora.vae_rank, recipe.lora.transformer_rank) == (32, 64)
    assert (one.steps, one.crop, one.batch, one.adversarial, one.lambda_target) == (100_000, 256, 32, None, 0.5)
    assert (two.steps, two.crop, two.batch) == (60_000, 512, 16)
    assert two.adversarial is not None
    assert (two.adversarial.weight, two.adversarial.after) == (0.5, 0.3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("out: o\n\nlamda_low: 1", ["unknown key", "lamda_low", "'lambda_low'", "line 3"]),
        ("out: o\ndata:\n  domains:\n    a: {pathes: [x]}", ["data.domains.a.pathes", "'paths'", "line 4"]),
        ("out: o\nqqqqqq: 1", ["qqqqqq", "one of", "accumulate"]),
        ("out: o\nbatch: 2.5", ["batch", "float 2.5", "a whole number", "line 2"]),
        ("out: o\nbatch: true", ["bool True", "a whole number"]),
        ("out: o\nlr: fast", ["'fast'", "a number", "line 2"]),
        ("out: o\nlr: .inf", ["inf", "a number"]),
        ("out: o\nlr: [1]", ["a list", "a number"]),
        ("out: o\ntransformer: 1", ["int 1", "true or false"]),
        ("out: o\nprecision: bf61", ["'bf61'", "'bf16'"]),
        ("out: o\nschedule: 3", ["int 3", "one of cosine, steps"]),
        ("out: o\ngain_start: [1]", ["a list of 2"]),
        ("out: o\ndata: 3", ["data", "keys and values"]),
        ("out: o\ndata: {domains: [a]}", ["data.domains", "a list", "keys and values"]),
        ("out: 7", ["out", "int 7", "a path"]),
        ("out: o\nmodel: 7", ["model", "int 7", "text"]),
        ("lr: 1", ["missing", "out"]),
        ("out: o\nlora: {vae_rank: -1}", ["lora.vae_rank", "at least 0", "line 2"]),
        ("out: o\nlora: {vae_rank: 0, transformer_rank: 0}", ["a rank above 0"]),
        ("out: o\nsteps: 0", ["steps", "at least 1", "line 2"]),
        ("out: o\nema: 1.5", ["ema", "0 to 1"]),
        ("out: o\nlambda_low: 0", ["lambda_low", "more than 0"]),
        ("out: o\nbatch: 3\naccumulate: 2\nreplicas: 2", ["batch", "accumulate x replicas = 4"]),
        ("out: o\nlpips_weight: 1", ["lpips_weights", "a file"]),
        ("out: o\npruning_steps: 9", ["lambda_base"]),
        ("out: o\nms_ssim_weight: 1\ncrop: 128", ["crop", "161"]),
        ("out: o\ncaptions: {embeddings: x}", ["captions", "transformer and latent_guidance"]),
        ("out: o\ndata: {domains: {}}", ["domains", "one domain"]),
        ("out: o\ndata: {domains: {a: {paths: x, weight: 0}}}", ["weight above 0"]),
        ("out: o\nout: p", ["given twice", "line 2"]),
        ("out: [o", ["not YAML", "line"]),
        ("out: o\n? [a]\n: b", ["a key that is no text"]),
        ("- a", ["keys and values"]),
        ("a: &a [*a]", ["too deeply"]),
        ("extends: recipe.yaml", ["in a circle"]),
        ("extends: [x]", ["extends", "a file, or a name"]),
        ("out: o\nstages: []", ["a list of one stage or more"]),
        ("out: o\nstages: [3]", ["a stage", "keys and values"]),
        ("out: o\nstages: [{batch: 0}]", ["batch", "at least 1"]),
        ("out: o\nstages: [{name: a/b}]", ["a/b", "a word"]),
        ("out: o\nstages: [{name: a}, {name: a}]", ["one name"]),
    ],
)
def test_what_is_refused(write: Callable[..., Path], text: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as told:
        read_stages(write(text))
    assert [w for w in words if w not in str(told.value)] == []
    assert isinstance(told.value, UsageError)
    assert told.value.exit_code == 2


def test_a_wrong_setting_names_itself(write: Callable[..., Path]) -> None:
    for setting, words in {
        "lr": "KEY=VALUE",
        "=3": "KEY=VALUE",
        "bach=3": "'batch'",
        "batch=x": "--set batch=x",
        "lr=[": "not YAML",
    }.items():
        with pytest.raises(RecipeError, match=words.replace("[", r"\[")):
            read_stages(write(MINE), settings=[setting])


def test_files_that_are_not_there(tmp_path: Path, write: Callable[..., Path]) -> None:
    with pytest.raises(MissingFileError, match=r"default-stage1.yaml, default-stage2.yaml, dit-ic-stage1.yaml"):
        read_stages(tmp_path / "none.yaml")
    with pytest.raises(MissingFileError, match="default-stag3"):
        read_stages(write("extends: default-stag3"))
    (tmp_path / "latin.yaml").write_bytes(b"out: \xe9")
    with pytest.raises(RecipeError, match="not YAML"):
        read_stages(tmp_path / "latin.yaml")


def test_a_recipe_tells_what_changed() -> None:
    one = TrainRecipe(out=Path("a"), lr=1.0)
    two = dataclasses.replace(one, lr=2.0, out=Path("b"))
    assert list(two.changes(one.to_dict())) == [("out", "a", "b"), ("lr", 1.0, 2.0)]
    assert list(one.changes({})) == []


def test_the_readme_s_recipe_can_be_read(write: Callable[..., Path]) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (stage,) = read_stages(write(block))
    assert stage.recipe.start_from == Path("default")
    assert stage.recipe.integer_weights
