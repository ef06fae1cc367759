"""The config a :class:`~tilecodec.model.ditic.DiTIC` is assembled from: frozen, validated, JSON both ways.

Two configs matter: :func:`official_config` (the authors' 1.0 B network) and the default model's, which is stored
beside its weights. Both describe the same classes.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from tilecodec.errors import ModelConfigError

_T = TypeVar("_T")
MOST: Final = 1 << 20
"""Integers of a config are below this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEConfig:
    """The pixel autoencoder: ``dc-ae`` (diffusers' AutoencoderDC) or ``light`` (the default model's)."""

    kind: Literal["dc-ae", "light"] = "light"
    latent_channels: int = 192
    """Channels of the latent that ``encode`` returns and ``decode`` takes."""
    stride: int = 16
    """Pixels per latent position."""
    scaling_factor: float = 1.0
    """Latents are multiplied by this after ``encode`` and divided by it before ``decode``."""
    widths: tuple[int, ...] = (128, 192)
    """Channels per stage: light, at 1/8 and 1/16; dc-ae, one for each halving."""
    encoder_layers: tuple[int, ...] = (2, 3)
    decoder_layers: tuple[int, ...] = (2, 4)
    lapped: bool = False
    """Light only: a 3x3 layer beside the output block transform, so that neighbouring blocks overlap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuxEncoderConfig:
    """The auxiliary ELIC analysis transform, which sees pixels in [0, 1] at stride 16."""

    width: int = 192
    channels: int = 320


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchConfig:
    """A synthesis branch: DepthConvBlocks at the code's stride, then an optional 2x upsampling to ``mid`` channels."""

    blocks: int = 3
    mid: int | None = 320
    """Channels after the upsampling; None leaves the branch at the code's stride."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecConfig:
    """The latent codec: analysis, hyperprior, quadtree context, synthesis branches."""

    y_channels: int = 256
    """Code channels, at half the VAE latent's resolution; a multiple of 4 (the quadtree's channel groups)."""
    z_channels: int = 96
    """Hyper-latent channels, at a quarter of the code's resolution."""
    analysis_pre: int = 128
    """Channels taken from the VAE latent."""
    analysis_aux: int = 0
    """Channels taken from the auxiliary features; 0 where there is no auxiliary encoder."""
    context_width: int = 256
    context_blocks: int = 2
    context_kernel: Literal[1, 3] = 1
    """1: one pointwise adapter on either side of the context network. 3: the official three-layer 3x3 adapters."""
    residual_prediction: bool = False
    """Latent residual prediction after each context step."""
    scale_activation: Literal["identity", "softplus"] = "softplus"
    """What turns the context network's second half into a Gaussian scale."""
    rate_points: int = 0
    """Anchors of the per-channel gains that give continuous quality; 0: one fixed rate point, no gains."""
    synthesis: BranchConfig = field(default_factory=lambda: BranchConfig(blocks=2, mid=192))
    residual: BranchConfig = field(default_factory=lambda: BranchConfig(blocks=1, mid=192))
    variance: BranchConfig = field(default_factory=lambda: BranchConfig(blocks=1, mid=64))
    prompt: BranchConfig = field(default_factory=lambda: BranchConfig(blocks=1, mid=None))
    prompt_channels: int = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceConfig:
    """Latent-conditioned guidance: caption tokens made from the code."""

    pooled_tokens: int = 48
    learned_tokens: int = 29
    caption_channels: int = 384


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """The diffusion transformer; fields are named as those of diffusers' ``SanaTransformer2DModel``."""

    num_layers: int = 4
    num_attention_heads: int = 10
    attention_head_dim: int = 32
    num_cross_attention_heads: int = 5
    cross_attention_head_dim: int = 64
    mlp_ratio: float = 2.5
    patch_size: int = 2
    timestep: float = 999.0
    """The step's timestep at the lowest quality (all qualities, where ``timestep_span`` is 0)."""
    timestep_span: float = 0.0
    """The timestep falls by this from the lowest quality to the highest."""
    sigma: float = 0.99966645
    """Noise level of the one step (flow matching, shift 3.0)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TilingConfig:
    """Margins that suit the model, pixels; multiples of its code stride."""

    overlap: int = 32
    """Half of the latents that neighbouring windows share; at most half the hyper-latent stride."""
    blend: int = 8
    """Pixels in the middle of what they share over which they are blended; even. What is nearer to a window's edge
    than that is left out where another window has it."""
    halo: int = 64
    """Neighbouring pixels a tile is analysed with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiTICConfig:
    """Everything that fixes a DiT-IC network's layers and shapes."""

    vae: VAEConfig = field(default_factory=VAEConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    aux_encoder: AuxEncoderConfig | None = None
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    transformer: TransformerConfig | None = field(default_factory=TransformerConfig)
    """None: no diffusion step; the latent is mean + residual."""
    tiling: TilingConfig = field(default_factory=TilingConfig)

    def __post_init__(self) -> None:
        for where in ("vae.stride", "vae.latent_channels", "codec.y_channels", "codec.z_channels"):
            part, _, name = where.partition(".")
            if getattr(getattr(self, part), name) < 1:
                raise ModelConfigError(got=0, expected="1 or more", where=where)
        if self.codec.y_channels % 4:
            raise ModelConfigError(got=self.codec.y_channels, expected="a multiple of 4", where="codec.y_channels")
        if self.tiling.blend % 2:
            raise ModelConfigError(got=self.tiling.blend, expected="an even number", where="tiling.blend")
        if (self.codec.analysis_aux > 0) != (self.aux_encoder is not None):
            raise ModelConfigError(
                got=f"analysis_aux={self.codec.analysis_aux}, aux_encoder={self.aux_encoder}",
                expected="both or neither",
                where="config",
            )

    @property
    def y_stride(self) -> int:
        """Pixels per code position."""
        return self.vae.stride * 2

    @property
    def z_stride(self) -> int:
        """Pixels per hyper-latent position: a tile's side is a multiple of it."""
        return self.vae.stride * 8

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON-ready nested dicts."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DiTICConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            ModelConfigError: an unknown key, or a value of another type.
        """
        return _build(cls, data, "config")


_NESTED: dict[str, type] = {
    "vae": VAEConfig,
    "codec": CodecConfig,
    "aux_encoder": AuxEncoderConfig,
    "guidance": GuidanceConfig,
    "transformer": TransformerConfig,
    "tiling": TilingConfig,
    "synthesis": BranchConfig,
    "residual": BranchConfig,
    "variance": BranchConfig,
    "prompt": BranchConfig,
}


def _build(cls: type[_T], data: Any, where: str) -> _T:
    if not isinstance(data, dict):
        raise ModelConfigError(got=type(data).__name__, expected="an object", where=where)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # cls is always one of ours
    unknown = sorted(set(data) - known)
    if unknown:
        raise ModelConfigError(got=unknown, expected=f"keys among {sorted(known)}", where=where)
    kinds = get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in data.items():
        place = f"{where}.{key}"
        if key in _NESTED and value is not None:
            values[key] = _build(_NESTED[key], value, place)
            continue
        values[key] = tuple(value) if isinstance(value, list) else value
        if not _fits(values[key], kinds[key]):
            raise ModelConfigError(got=value, expected=kinds[key], where=place)
    return cls(**values)


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is one that a field of this type may have; integers count something, so none is negative."""
    options = get_args(kind)
    if get_origin(kind) is Literal:
        return any(type(value) is type(option) and value == option for option in options)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and len(value) > 0 and all(_fits(part, options[0]) for part in value)
    if options:  # a union
        return any(_fits(value, option) for option in options)
    if kind is int:
        return type(value) is int and 0 <= value < MOST
    if kind is float:
        return type(value) in (int, float) and math.isfinite(cast(float, value))
    return type(value) is kind


def official_config() -> DiTICConfig:
    """The authors' network (arXiv 2603.13162; checkpoints q1...q4)."""
    return DiTICConfig(
        vae=VAEConfig(
            kind="dc-ae",
            latent_channels=32,
            stride=32,
            scaling_factor=0.41407,
            widths=(128, 256, 512, 512, 1024, 1024),
            encoder_layers=(2, 2, 2, 3, 3, 3),
            decoder_layers=(3, 3, 3, 3, 3, 3),
        ),
        aux_encoder=AuxEncoderConfig(width=192, channels=320),
        codec=CodecConfig(
            y_channels=320,
            z_channels=160,
            analysis_pre=128,
            analysis_aux=64,
            context_width=640,
            context_blocks=3,
            context_kernel=3,
            residual_prediction=True,
            scale_activation="identity",
            rate_points=0,
            synthesis=BranchConfig(blocks=3, mid=320),
            residual=BranchConfig(blocks=2, mid=320),
            variance=BranchConfig(blocks=3, mid=192),
            prompt=BranchConfig(blocks=3, mid=320),
            prompt_channels=320,
        ),
        guidance=GuidanceConfig(pooled_tokens=48, learned_tokens=29, caption_channels=2304),
        transformer=TransformerConfig(
            num_layers=28,
            num_attention_heads=36,
            attention_head_dim=32,
            num_cross_attention_heads=16,
            cross_attention_head_dim=72,
            mlp_ratio=2.5,
            patch_size=1,
            timestep=999.0,
        ),
        tiling=TilingConfig(overlap=64, blend=64, halo=64),
    )


def default_config() -> DiTICConfig:
    """The small default model: continuous quality, made for a plain CPU.

    What only an encode runs is light: an analysis with one block at 1/8 and none at 1/16 learnt the code of one with
    two and three to 2 % of the noise that rounding adds. With it a halo of 32 px changes one symbol in a thousand
    beside a window's border, and hardly any further in.
    """
    return DiTICConfig(
        vae=VAEConfig(encoder_layers=(1, 0), lapped=True),
        codec=CodecConfig(
            context_width=192,
            context_blocks=1,
            rate_points=8,
            synthesis=BranchConfig(blocks=2, mid=192),
            residual=BranchConfig(blocks=1, mid=192),
            variance=BranchConfig(blocks=0, mid=64),
            prompt=BranchConfig(blocks=0, mid=None),
            prompt_channels=128,
        ),
        guidance=GuidanceConfig(caption_channels=256),
        transformer=TransformerConfig(
            num_layers=3, num_attention_heads=8, num_cross_attention_heads=4, timestep_span=900.0
        ),
        tiling=TilingConfig(halo=32),
    )
