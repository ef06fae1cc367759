"""Golden tensors: a DiT-IC network with reproducible weights, and every intermediate tensor of one picture.

For tests of the network, of weight converters and of faster forms of either. :func:`golden_model` makes the weights,
:func:`trace` runs the network in float32 with float entropy parameters and names what it saw on the way.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilecodec.entropy.floats import float_entropy, float_network, official_scale_table
from tilecodec.entropy.model import CodecModel
from tilecodec.entropy.tables import CDFTable
from tilecodec.errors import ModelError, SourceError
from tilecodec.model.config import (
    AuxEncoderConfig,
    BranchConfig,
    CodecConfig,
    DiTICConfig,
    GuidanceConfig,
    TilingConfig,
    TransformerConfig,
    VAEConfig,
    official_config,
)
from tilecodec.model.dc_ae import ATTENTION_STAGES
from tilecodec.model.ditic import DiTIC
from tilecodec.model.latent_codec import STEPS, LatentCodec
from tilecodec.model.weights import find_model
from tilecodec.models.release import release_bytes, release_gaussian_table

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel


def reduced_config() -> DiTICConfig:
    """The official network with a narrow VAE and two transformer layers; all else is as it is there."""
    full = official_config()
    assert full.transformer is not None
    vae = dataclasses.replace(
        full.vae, widths=(32, 32, 64, 64, 128, 128), encoder_layers=(1,) * 6, decoder_layers=(1,) * 6
    )
    return dataclasses.replace(full, vae=vae, transformer=dataclasses.replace(full.transformer, num_layers=2))


def small_config() -> DiTICConfig:
    """Every part of the official network, as narrow as it goes."""
    return DiTICConfig(
        vae=VAEConfig(
            kind="dc-ae",
            latent_channels=8,
            stride=32,
            scaling_factor=0.41407,
            widths=(32,) * 6,
            encoder_layers=(1,) * 6,
            decoder_layers=(1,) * 6,
        ),
        aux_encoder=AuxEncoderConfig(width=16, channels=16),
        codec=CodecConfig(
            y_channels=16,
            z_channels=8,
            analysis_pre=16,
            analysis_aux=16,
            context_width=32,
            context_blocks=1,
            context_kernel=3,
            residual_prediction=True,
            scale_activation="identity",
            rate_points=0,
            synthesis=BranchConfig(blocks=1, mid=16),
            residual=BranchConfig(blocks=1, mid=16),
            variance=BranchConfig(blocks=1, mid=16),
            prompt=BranchConfig(blocks=1, mid=16),
            prompt_channels=16,
        ),
        guidance=GuidanceConfig(pooled_tokens=4, learned_tokens=3, caption_channels=32),
        transformer=TransformerConfig(
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=16,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            patch_size=1,
        ),
        tiling=TilingConfig(overlap=64, halo=64),
    )


def library_autoencoder(config: VAEConfig) -> AutoencoderDC:
    """diffusers' autoencoder of a config of kind ``dc-ae``; its tensors have our names."""
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

    plain = len(config.widths) - ATTENTION_STAGES
    kinds = ("ResBlock",) * plain + ("EfficientViTBlock",) * ATTENTION_STAGES
    scales: tuple[tuple[int, ...], ...] = ((),) * plain + ((5,),) * ATTENTION_STAGES
    library: AutoencoderDC = AutoencoderDC(
        in_channels=3,
        latent_channels=config.latent_channels,
        attention_head_dim=32,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=config.widths,
        decoder_block_out_channels=config.widths,
        encoder_layers_per_block=config.encoder_layers,
        decoder_layers_per_block=config.decoder_layers,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )
    return library


def library_transformer(config: DiTICConfig) -> SanaTransformer2DModel:
    """diffusers' transformer of a config; its tensors have our names."""
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel

    settings, channels = config.transformer, config.vae.latent_channels
    assert settings is not None
    library: SanaTransformer2DModel = SanaTransformer2DModel(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=settings.num_attention_heads,
        attention_head_dim=settings.attention_head_dim,
        num_layers=settings.num_layers,
        num_cross_attention_heads=settings.num_cross_attention_heads,
        cross_attention_head_dim=settings.cross_attention_head_dim,
        cross_attention_dim=settings.num_cross_attention_heads * settings.cross_attention_head_dim,
        caption_channels=config.guidance.caption_channels,
        mlp_ratio=settings.mlp_ratio,
        patch_size=settings.patch_size,
        sample_size=32,
        interpolation_scale=None,
    )
    return library


def first_name(key: str, keys: Mapping[str, object]) -> str:
    """The name under which a merged checkpoint holds a tensor first: ``up`` or ``down``, not their alias ``branch1``.

    Args:
        key: a tensor's name.
        keys: all names of that checkpoint.
    """
    for name in (".up.", ".down."):
        candidate = key.replace(".branch1.", name)
        if candidate != key and candidate in keys:
            return candidate
    return key


def golden_weight(key: str, shape: Sequence[int], *, seed: str = "g0") -> NDArray[np.float32]:
    """The reproducible random value of one parameter.

    Args:
        key: the parameter's name in the merged checkpoint.
        shape: its shape.
        seed: prefix of the key in the generator's seed; another prefix gives another network.

    Returns:
        float32 array of ``shape``, scaled so that activations keep their magnitude through the network.
    """
    if key.endswith("quantiles"):
        return np.broadcast_to(np.array([-10, 0, 10], np.float32), shape).copy()
    generator = np.random.default_rng(zlib.crc32(f"{seed}:{key}".encode()))
    values = generator.standard_normal(tuple(shape)).astype(np.float32)
    if len(shape) >= 2:
        return values * np.float32(_gain(key)) / np.float32(math.sqrt(math.prod(shape[1:])))
    if len(shape) == 1 and key.endswith("weight"):
        return np.float32(1) + np.float32(0.1) * values
    return np.float32(0.05) * values


def _gain(key: str) -> float:
    if not key.startswith("codec."):
        return 1.0
    if ".dc." in key or ".ffn." in key:
        return 0.58
    return 1.35 if "adapter" in key or "LRP" in key else 0.8


_BUFFERS = {
    "timesteps": "timestep",
    "codec.entropy_bottleneck._quantized_cdf": "z_cdf",
    "codec.entropy_bottleneck._cdf_length": "z_cdf_length",
    "codec.entropy_bottleneck._offset": "z_offset",
    "codec.gaussian_conditional.scale_table": "scale_table",
}
"""Merged checkpoint's buffers that a golden file holds, and their names there."""


def golden_state_dict(
    shapes: Mapping[str, Sequence[int]], *, seed: str = "g0", entries: Mapping[str, NDArray[Any]] | None = None
) -> dict[str, Tensor]:
    """A state dict of :func:`golden_weight` values, in the order of ``shapes``.

    Args:
        shapes: name and shape of each tensor: of a :class:`DiTIC`'s state dict or of a merged checkpoint, whose
            aliased tensors get the value of their first name.
        seed: see :func:`golden_weight`.
        entries: a golden file's entries, for the entropy bottleneck's tensors (``eb.*``) and integer CDFs. Entropy
            model tensors and buffers found in neither are left out.
    """
    entries = entries or {}
    state: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        inside = key.partition(".entropy_bottleneck.")[2]
        stored = entries.get(_BUFFERS.get(key, f"eb.{inside}"))
        if stored is not None:
            state[key] = torch.from_numpy(np.array(stored).reshape(tuple(shape)))
        elif key.endswith("quantiles") or not (inside or ".gaussian_conditional." in key or key in _BUFFERS):
            state[key] = torch.from_numpy(golden_weight(first_name(key, shapes), shape, seed=seed))
    return state


def golden_model(config: DiTICConfig | None = None, *, seed: str = "g0") -> DiTIC:
    """A network of ``config`` (:func:`reduced_config` unless given) filled with :func:`golden_weight` values.

    Returns:
        float32, on the CPU, in evaluation mode.
    """
    with torch.device("meta"):
        model = DiTIC(reduced_config() if config is None else config)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict(golden_state_dict(shapes, seed=seed), strict=True, assign=True)
    return model.eval()


def trace(
    model: DiTIC | CodecModel,
    image_u8: NDArray[np.uint8],
    *,
    z_median: NDArray[np.float32] | None = None,
    scale_table: NDArray[np.float32] | None = None,
    rate: float = 0.0,
) -> dict[str, NDArray[Any]]:
    """Encodes and decodes one picture and returns every tensor on the way.

    The entropy model is evaluated in floating point: with the weights its integer program was made from, where the
    model file keeps them (a converted checkpoint's does), else with those that its integers stand for.

    Args:
        model: a float32 network, or a model loaded with ``precision="fp32"``.
        image_u8: (3, H, W) uint8. Sides that are no multiple of the hyper-latent's stride are padded by reflection at
            right and bottom, as the authors' release does.
        z_median: medians of the hyper-latent, (Cz,). Unless given, the model's own; zeros for a bare network, which
            has none.
        scale_table: Gaussian scales that have a CDF row, ascending. Unless given, the model's own, or
            :func:`official_scale_table` where it has none.
        rate: rate position in [0, 1], for models of continuous quality.

    Returns:
        Arrays by the names of the golden file, batch axis kept: ``image_u8 aux_features vae_latent y z z_shape z_hat
        hyper_params``, for k = 0...3 ``means_k scales_k symbols_k indexes_k`` (B, Cy/4, h, w: at each position the
        channel group whose turn it is), ``y_hat mean log_scale res prompt caption timestep sigma0 velocity x0 recon
        z_median scale_table``. float32; int32 for symbols and CDF rows. ``recon`` (1, 3, H, W) is in [-1, 1]. A model
        without an auxiliary encoder or a transformer leaves their entries out. A loaded model, which has tables, gives
        ``z_cdf z_cdf_length z_offset`` too, int32, and ``n_bytes``, (2,) int64: what the authors' coder would write for
        the code and for the hyper-latent.

    Raises:
        SourceError: ``image_u8`` is not (3, H, W) uint8.
        ModelError: the network is not float32.
    """
    if image_u8.dtype != np.uint8 or image_u8.ndim != 3 or image_u8.shape[0] != 3 or 0 in image_u8.shape:
        raise SourceError(got=f"{image_u8.dtype} {image_u8.shape}", expected="uint8 (3, H, W)", where="image_u8")
    parts = _parts(model)
    dtypes = {parameter.dtype for parameter in parts.network.parameters()}
    if dtypes != {torch.float32}:
        expected = 'tilecodec.load_model(..., precision="fp32")'
        raise ModelError(
            "a trace needs float32 weights", got=sorted(map(str, dtypes)), expected=expected, where="trace"
        )
    device = next(parts.network.parameters()).device
    median_C = torch.as_tensor(parts.z_median if z_median is None else z_median, device=device)
    table_n = torch.as_tensor(parts.scales if scale_table is None else scale_table, device=device)
    rate_B = torch.full((1,), rate, device=device)
    with torch.inference_mode(), torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
        seen = _run(parts.network, parts.entropy, image_u8, median_C, table_n, rate_B)
    arrays = {"image_u8": image_u8, **{name: tensor.cpu().numpy() for name, tensor in seen.items()}}
    return arrays if parts.z_table is None else arrays | _coded(parts.z_table, arrays)


def _coded(z_table: CDFTable, seen: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The hyper-latent's tables, and the sizes of what was seen."""
    z = np.rint(seen["z_hat"][0] - seen["z_median"][:, None, None]).astype(np.int64)
    z_rows = np.broadcast_to(np.arange(len(z))[:, None, None], z.shape)
    y, y_rows = (np.concatenate([seen[f"{name}_{k}"].ravel() for k in range(STEPS)]) for name in ("symbols", "indexes"))
    sizes = (
        release_bytes(release_gaussian_table(seen["scale_table"]), y_rows, y),
        release_bytes(z_table, z_rows.ravel(), z.ravel()),
    )
    return {
        "z_cdf": z_table.cdf,
        "z_cdf_length": z_table.length,
        "z_offset": z_table.offset,
        "n_bytes": np.array(sizes, np.int64),
    }


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class _Parts:
    """What a trace runs."""

    network: DiTIC
    entropy: LatentCodec
    """Its entropy parts are used, on the network's device."""
    z_median: NDArray[np.float32]
    scales: NDArray[np.float32]
    z_table: CDFTable | None = None


def _parts(model: DiTIC | CodecModel) -> _Parts:
    """A loaded model's network has no entropy parts, which are integers there: their floats come from its file."""
    if isinstance(model, DiTIC):
        median = np.zeros(model.config.codec.z_channels, np.float32)
        return _Parts(model, model.codec, median, official_scale_table())
    file = find_model(f"sha256:{model.sha256}")
    floats = float_entropy(file)
    network = model.network
    if model.config.vae.kind == "light" and model.dtype == torch.float32:
        network = float_network(file).to(model.device)  # a loaded one takes and gives grey levels
    scales = official_scale_table() if floats.scales is None else floats.scales
    return _Parts(network, _moved(floats.codec, model.device), floats.z_median, scales, model.tables.z)


def _moved(codec: LatentCodec, device: torch.device) -> LatentCodec:
    for part in codec.children():
        if not any(parameter.is_meta for parameter in part.parameters()):
            part.to(device)
    return codec


def scale_rows(scale: Tensor, table_n: Tensor) -> Tensor:
    """CDF row of each Gaussian scale: the first entry of the ascending table not below it, else the last. int32."""
    return torch.searchsorted(table_n, scale.contiguous()).clamp(max=len(table_n) - 1).int()


def _run(
    network: DiTIC,
    entropy: LatentCodec,
    image_u8: NDArray[np.uint8],
    median_C: Tensor,
    table_n: Tensor,
    rate_B: Tensor,
) -> dict[str, Tensor]:
    codec, settings = network.codec, network.config.transformer
    height, width = image_u8.shape[1:]
    stride = network.config.z_stride
    padded = np.pad(image_u8, ((0, 0), (0, -height % stride), (0, -width % stride)), mode="reflect")
    x_B3HW = torch.from_numpy(padded).to(rate_B.device)[None].float() / 127.5 - 1
    median = median_C.reshape(1, -1, 1, 1)
    seen = {"z_median": median_C, "scale_table": table_n}
    seen["vae_latent"] = network.encode_latent(x_B3HW)
    if network.aux_codec is not None:
        seen["aux_features"] = network.aux_codec((x_B3HW + 1) / 2)
    seen["y"] = codec.g_a(seen["vae_latent"], seen.get("aux_features"))
    gain, inverse = codec.rate_gains(rate_B)
    y = seen["y"] * gain
    seen["z"] = codec.h_a(y)
    seen["z_shape"] = torch.tensor(seen["z"].shape[2:])
    seen["z_hat"] = torch.round(seen["z"] - median) + median
    seen["hyper_params"] = entropy.h_s(seen["z_hat"])

    def code_step(step: int, mean: Tensor, scale: Tensor, mask: Tensor) -> Tensor:
        symbols = torch.where(mask, torch.round(y - mean), 0)
        seen[f"means_{step}"], seen[f"scales_{step}"] = _squeeze(mean, mask), _squeeze(scale, mask)
        seen[f"symbols_{step}"] = _squeeze(symbols, mask).int()
        seen[f"indexes_{step}"] = scale_rows(seen[f"scales_{step}"], table_n)
        return torch.where(mask, symbols + mean, 0)

    context = entropy.run_context(seen["hyper_params"], code_step)
    seen["y_hat"] = context.y_hat
    result = network.denoise(context.y_hat * inverse, context.scale * inverse, rate_B)
    seen |= {"mean": result.mean, "log_scale": result.log_scale, "res": result.residual, "prompt": result.prompt}
    if settings is not None and result.caption is not None and result.velocity is not None:
        seen |= {"caption": result.caption, "velocity": result.velocity}
        seen["timestep"] = settings.timestep - settings.timestep_span * rate_B
        seen["sigma0"] = torch.full_like(rate_B, settings.sigma)
    seen["x0"] = result.x0
    seen["recon"] = network.render(result.x0)[:, :, :height, :width]
    return seen


def _squeeze(values: Tensor, mask: Tensor) -> Tensor:
    """(B, Cy, h, w) to (B, Cy/4, h, w): at each position the one channel group that ``mask`` (Cy, h, w) selects."""
    batch, channels, height, width = values.shape
    chosen = torch.where(mask, values, 0)
    return chosen.reshape(batch, STEPS, channels // STEPS, height, width).sum(dim=1)
