"""What a training stage is told: frozen dataclasses, checked when made. Imports no torch.

A recipe is written in Python or read from YAML (:mod:`tilecodec.train.reading`), with the same names.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tilecodec.errors import RecipeError

Precision = Literal["bf16", "fp32"]
"""Arithmetic of the networks; weights, losses and entropy terms are float32 either way."""
Objective = Literal["rate-distortion", "dit-ic"]
Optimizer = Literal["muon", "adamw"]
Schedule = Literal["cosine", "steps"]


def _check(ok: bool, name: str, got: object, expected: str) -> None:
    if not ok:
        raise RecipeError(f"{name} does not fit", got=got, expected=expected, where=name)


def _at_least(low: float, recipe: object, *names: str) -> None:
    """Fields, numbers or tuples of numbers, that are finite and no less than ``low``; None passes."""
    for name in names:
        value: Any = getattr(recipe, name)
        for number in value if isinstance(value, tuple) else (value,):
            _check(number is None or low <= number < math.inf, name, value, f"at least {low}")


def _above(low: float, recipe: object, *names: str) -> None:
    for name in names:
        value = getattr(recipe, name)
        _check(value is None or low < value < math.inf, name, value, f"more than {low}")


def _share(recipe: object, *names: str) -> None:
    for name in names:
        value: Any = getattr(recipe, name)
        for number in value if isinstance(value, tuple) else (value,):
            _check(0 <= number <= 1, name, value, "0 to 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainRecipe:
    """Pictures of one kind."""

    paths: tuple[Path, ...]
    """Pictures, slides, Zarr folders, folders of those, or patterns with ``*``."""
    weight: float = 1.0
    """Share of the crops, beside the other domains' weights; within a domain crops are drawn by area."""

    def __post_init__(self) -> None:
        _check(len(self.paths) > 0, "paths", list(self.paths), "one path or more")
        _at_least(0, self, "weight")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRecipe:
    """Where crops come from and what is done to them."""

    domains: dict[str, DomainRecipe]
    flips: bool = True
    """Mirror half of the crops."""
    turns: bool = True
    """Turn crops by 0, 90, 180 or 270 degrees."""
    downscale: float = 0.0
    """Share of crops that are taken from a larger window, whose pixels are averaged."""
    downscale_most: int = 4
    """Largest factor of that, 2 or more; smaller where the picture is."""
    skip_flat: float = 0.0
    """Crops whose values have a smaller standard deviation, in grey levels, are drawn anew, eight times at most: blank
    glass and nodata."""
    least_crops: int = 32
    """Fewer crops than this side by side in all pictures together are refused."""
    workers: int = 2
    """Threads that read crops ahead of the training; 0: none."""
    ahead: int = 4
    """Batches that are kept ready."""
    open_megabytes: int = 1024
    """Bound of decoded pictures that are kept in memory."""
    pool: int = 64
    """Pictures in use at a time; each is decoded once while it is."""
    pool_steps: int = 16
    """Steps between one pool and the next."""

    def __post_init__(self) -> None:
        _check(len(self.domains) > 0, "domains", self.domains, "one domain or more")
        _check(sum(d.weight for d in self.domains.values()) > 0, "domains", 0, "a domain with a weight above 0")
        _share(self, "downscale")
        _at_least(2, self, "downscale_most")
        _at_least(0, self, "skip_flat", "workers")
        _at_least(1, self, "least_crops", "ahead", "open_megabytes", "pool", "pool_steps")


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRecipe:
    """Contrastive alignment of the caption tokens with text embeddings, see :mod:`tilecodec.train.captions`."""

    embeddings: Path
    """``.npz`` or ``.safetensors``: one vector for each picture, named by the picture's path under its folder, with or
    without suffix. Pictures without one take no part."""
    weight: float = 0.1
    """At the stage's start; falls to 0 along a cosine."""
    until: float = 0.3
    """Share of the stage after which it is 0."""
    temperature: float = 0.07

    def __post_init__(self) -> None:
        _at_least(0, self, "weight")
        _above(0, self, "until", "temperature")
        _share(self, "until")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversarialRecipe:
    """The adversarial loss, see :mod:`tilecodec.train.adversarial`."""

    weight: float = 0.5
    """Beside an adaptive factor that makes it weigh what the distortion weighs."""
    after: float = 0.3
    """Share of the stage before it begins."""
    lr: float = 1e-4
    channels: int = 64
    """Of the discriminator's first layer."""

    def __post_init__(self) -> None:
        _above(0, self, "weight", "lr")
        _share(self, "after")
        _at_least(1, self, "channels")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraRecipe:
    """Low-rank adapters on a frozen autoencoder's decoder and a frozen transformer, see :mod:`tilecodec.train.lora`."""

    vae_rank: int = 32
    """0: the decoder stays as it is."""
    transformer_rank: int = 64
    """0: the transformer stays as it is."""
    vae_targets: tuple[str, ...] = (
        *("conv1", "conv2", "conv_in", "conv_shortcut", "conv_inverted", "conv_point"),
        *("to_k", "to_q", "to_v", "to_out.0"),
    )
    """Layers of the decoder that get an adapter, by the end of their names."""
    transformer_targets: tuple[str, ...] = (
        *("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out"),
        *("proj_in", "proj_out", "ff.net.2", "ff.net.0.proj", "conv_inverted", "conv_point"),
    )

    def __post_init__(self) -> None:
        _at_least(0, self, "vae_rank", "transformer_rank")
        _check(self.vae_rank + self.transformer_rank > 0, "vae_rank", 0, "a rank above 0 here or in transformer_rank")


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseRecipe:
    """Published weights that parts of a new network start from: a safetensors file each, or a folder of its shards."""

    vae: Path | None = None
    """AutoencoderDC in diffusers' names."""
    transformer: Path | None = None
    """SanaTransformer2DModel in diffusers' names."""
    aux_encoder: Path | None = None
    """ELIC's analysis transform."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRecipe:
    """One training stage. Steps count from the run's very first step, across resumptions."""

    out: Path
    """Folder for ``last.pt``, ``ema.pt``, ``log.csv``, samples and the exported model."""

    # --- data
    store: Path | None = None
    """Store of decoded pictures, see :func:`tilecodec.train.data.build_store`: the fastest data for training on a CPU.
    Together with ``data`` it is made from those pictures if it is not there yet."""
    domains: dict[str, float] = field(default_factory=lambda: {"photo": 0.5, "aerial": 0.3, "medical": 0.2})
    """Weights of the domains of a ``store`` without ``data``."""
    data: DataRecipe | None = None
    """Pictures that crops are read from straight."""
    crop: int = 256
    batch: int = 12
    """Pictures in a step."""
    accumulate: int = 1
    """Pieces a batch is worked on one after the other: the result stays, memory shrinks."""

    # --- model
    model: str | None = None
    """``default``, ``dit-ic``, or a JSON or YAML file with a model config. None: that of ``start_from``, else
    ``default``."""
    start_from: Path | None = None
    """A checkpoint whose averaged weights a new run starts from, wherever names and shapes agree; or a model: a name
    such as ``default``, or a path."""
    base: BaseRecipe | None = None
    gain_start: tuple[float, float] | None = None
    """Logarithms of the code's gains at the lowest and at the highest quality; None leaves the model's own."""
    lora: LoraRecipe | None = None
    transformer: bool = False
    """Whether the diffusion step takes part; False trains the autoencoder and the latent codec alone."""
    integer_weights: bool = False
    """Whether the entropy model runs with the rounded weights that its integer program will have; gradients pass."""
    variance_guidance: bool = True
    """False: the diffusion step weighs the same everywhere, whatever the code's scales say."""
    latent_guidance: bool = True
    """False: the transformer's caption tokens do not depend on the picture."""
    freeze_encoder: bool = False
    """Whether the autoencoder's encoder and the auxiliary encoder keep their weights."""
    block_scale_gradient: bool = False
    """Whether gradients of the diffusion step's weights stop before the entropy model's scales."""

    # --- duration and learning rate
    steps: int = 3000
    decay_steps: int = 1200
    """The last steps, over which the learning rate falls to 2 % along a cosine."""
    minutes: float | None = None
    """Wall-clock budget instead of ``steps``: the learning rate falls over its last half."""
    warmup_steps: int = 100
    schedule: Schedule = "cosine"
    """``steps``: the learning rate is multiplied by ``decay_factor`` at the shares ``decay_at`` of the stage."""
    decay_at: tuple[float, ...] = (0.5, 0.8, 0.9)
    decay_factor: float = 0.1
    optimizer: Optimizer = "muon"
    """``muon``: Muon for hidden matrices, AdamW for the rest; ``adamw``: for all."""
    lr: float = 1e-3
    muon_lr: float = 1e-2
    adam_betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    aux_lr: float = 1e-2
    """Of the hyper-latent's quantiles."""
    ema: float = 0.998
    grad_clip: float = 2.0

    # --- objective
    objective: Objective = "rate-distortion"
    """``rate-distortion``: bits per pixel + λ · distortion, λ drawn per picture between ``lambda_low`` and
    ``lambda_high``, MSE on 255². ``dit-ic``: λ · bits per pixel + distortion, MSE on [-1, 1], see
    ``lambda_target``."""
    lambda_low: float = 0.00012
    lambda_high: float = 0.025
    """Weight of 255^2 MSE against bits per pixel at the lowest and the highest quality."""
    rate_ramp_steps: int = 300
    """Steps over which the rate's weight grows from 0.1 to 1: with full weight from the start, the low qualities press
    channels to zero before the decoder has learned to use them, and they stay there."""
    lambda_target: float = 1.0
    """``dit-ic``: weight of the bits per pixel; for a model with rate points that at the lowest quality."""
    lambda_target_high: float | None = None
    """That at the highest quality, geometric in between; None: the same."""
    lambda_base: float | None = None
    """``dit-ic``: weight that a stage begins with; it moves to ``lambda_target`` over ``pruning_steps``. None: no."""
    pruning_steps: int = 0
    mse_weight: float = 1.0
    """Weight of MSE in the distortion."""
    ms_ssim_weight: float = 0.0
    """Weight of 1 - MS-SSIM in the distortion; about 1300 balances it with MSE on 255²."""
    lpips_weight: float = 0.0
    """Weight of LPIPS in the distortion."""
    lpips_weights: Path | None = None
    """LPIPS on SqueezeNet, see :mod:`tilecodec.train.perceptual`."""
    dists_weight: float = 0.0
    """Weight of DISTS in the distortion."""
    dists_weights: Path | None = None
    """DISTS on VGG-16, see :mod:`tilecodec.train.perceptual`."""
    grid_weight: float = 0.0
    """Weight of the block pattern, see :func:`tilecodec.train.losses.grid_loss`; beside the rate, at every quality."""
    alignment_weight: float = 0.0
    """Weight of the self-distillation alignment of x0 with the encoder's latent."""
    alignment_margin: float = 0.5
    captions: CaptionRecipe | None = None
    adversarial: AdversarialRecipe | None = None

    # --- running
    device: str = "auto"
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``."""
    precision: Precision = "bf16"
    replicas: int = 1
    """Copies of the network that share the batch on a CPU, one thread each: on two CPU cores, two are half again as
    fast as one on two threads. Run with ``OMP_NUM_THREADS=1``; the command line sees to it."""
    deterministic: bool = False
    """Whether only kernels with one possible result are used; on a CPU they always are."""
    seed: int = 1
    minutes_between_checkpoints: float = 4.0
    log_every: int = 50
    """Steps between lines of the log."""
    tensorboard: bool = False
    """Whether event files for TensorBoard are written, in ``out/events``."""
    sample_every: int = 0
    """Steps between sample pictures, originals above reconstructions; 0: none."""
    sample_pictures: int = 4
    export: bool = True
    """Whether the command line writes ``out/model`` at the end."""

    def __post_init__(self) -> None:
        _at_least(1, self, "crop", "batch", "accumulate", "replicas", "steps", "log_every", "sample_pictures")
        _at_least(1, self, "warmup_steps")
        _at_least(0, self, "decay_steps", "rate_ramp_steps", "pruning_steps", "sample_every", "seed")
        _at_least(0, self, "mse_weight", "ms_ssim_weight", "lpips_weight", "dists_weight", "grid_weight")
        _at_least(0, self, "alignment_weight", "minutes_between_checkpoints", "weight_decay", "lr", "muon_lr", "aux_lr")
        _above(0, self, "lambda_low", "lambda_high", "lambda_target", "lambda_target_high", "lambda_base")
        _above(0, self, "minutes", "grad_clip", "decay_factor")
        _share(self, "decay_at", "ema", "adam_betas")
        least = self.accumulate * self.replicas
        _check(self.batch >= least, "batch", self.batch, f"at least accumulate x replicas = {least}")
        _check(
            self.pruning_steps == 0 or self.lambda_base is not None,
            "pruning_steps",
            self.pruning_steps,
            "a lambda_base as well",
        )
        for name in ("lpips", "dists"):
            weight, weights = getattr(self, f"{name}_weight"), getattr(self, f"{name}_weights")
            _check(
                weight == 0 or weights is not None,
                f"{name}_weights",
                weights,
                f"a file, since {name}_weight is {weight}",
            )
        _check(not self.ms_ssim_weight or self.crop >= 161, "crop", self.crop, "at least 161 for MS-SSIM's five scales")
        guided = self.transformer and self.latent_guidance
        _check(self.captions is None or guided, "captions", "captions", "transformer and latent_guidance as well")

    @property
    def divisions(self) -> int:
        """Pieces of a batch: ``accumulate`` x ``replicas``."""
        return self.accumulate * self.replicas

    def changes(self, other: dict[str, Any]) -> Iterator[tuple[str, object, object]]:
        """Fields that differ from those of another recipe's :meth:`to_dict`: name, the other's value, this one's."""
        for name, value in self.to_dict().items():
            if name in other and other[name] != value:
                yield name, other[name], value

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain nested values, paths as text."""
        plain = _plain(dataclasses.asdict(self))
        assert isinstance(plain, dict)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
