"""CLIP-style encoders through open_clip: one for images, one for text, sharing the weights' hash.

Image views: 0 is the model's own evaluation preprocessing (for CLIP: shortest side to 224 bicubic, centre
crop), the others are random crops as in Lin et al. (arXiv:2301.06267): shortest side to 224, a random 224
crop, mirrored every other time. Text: the model's own tokenizer. Rows are raw, not normalised. Nothing here
trains or tunes a tower.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float, Int
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as transforms

from spaner.cache.manifest import EncoderSpec
from spaner.device import DTYPES, device_of, encoder_precision
from spaner.errors import EncoderError
from spaner.extract.datasets.images import random_crop, resized_crop
from spaner.extract.encoders.checkpoint import first_line
from spaner.extract.encoders.clip_model import build, tokenizer_of, tokenizer_sha256
from spaner.extract.encoders.clip_weights import Source, resolve, weights_sha256
from spaner.extract.encoders.packed import Blocks
from spaner.extract.encoders.text_tower import Marks, PromptTower
from spaner.extract.encoders.tokens import TokenEncoder


def load(
    modality: str,
    *,
    model: str,
    weights: str,
    precision: str = "auto",
    device: str = "auto",
    seed: int = 0,
    tokenizer: Path | None = None,
    crop_scale: tuple[float, ...] | None = None,
    feature: str = "projected",
    tokens: int | None = None,
    **_: object,
) -> "ImageEncoder | TextEncoder | TokenEncoder":
    """Load the image or text tower of an open_clip model, or the blocks of its image tower up to `tokens`.

    Raises:
        EncoderError: another modality, or what `resolve`, `build` and `tokenizer_of` raise.
    """
    if modality not in ("image", "text"):
        raise EncoderError(f"--encoder open_clip: no encoder for {modality}; expected image or text")
    place = device_of(device)
    arithmetic = encoder_precision(precision, place)
    source = resolve(model, weights)
    built = build(source, seed)
    if modality == "image":
        images = ImageEncoder(built, source, arithmetic, place, crop_scale, feature)
        height, width = images.size
        _try(
            images, Image.new("RGB", (width, height)), f"an image tower that takes {width} x {height} pixels"
        )
        return images if tokens is None else TokenEncoder(images, tokens)
    texts = TextEncoder(built, source, arithmetic, place, tokenizer)
    _try(texts, "a", "a text tower that takes its tokenizer's tokens")
    return texts


def _try(encoder: "ImageEncoder | TextEncoder", payload: Any, what: str) -> None:
    """Encode something blank, before hours of work: a configuration may say what its tower cannot do, and a
    processor may lack an operation in this precision."""
    try:
        encoder.encode(encoder.prepare(payload, 0, "", 0)[None])
    except Exception as error:  # towers of open_clip and timm check their inputs in ways of their own
        raise EncoderError(
            f"{encoder.spec.name} in {encoder.spec.precision} cannot encode: {first_line(error)}; expected "
            f"{what}; correct its config, or type `--precision float32`"
        ) from error


class ImageEncoder:
    """The image tower: RGB pictures -> (B, D)."""

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        precision: str,
        device: torch.device,
        crop_scale: tuple[float, ...] | None = None,
        feature: str = "projected",
    ) -> None:
        cfg = PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
        self.centre: Any = image_transform_v2(cfg, is_train=False)
        self.size = cfg.size if isinstance(cfg.size, tuple | list) else (cfg.size, cfg.size)
        self.cfg = cfg
        self.crop_scale = _checked(crop_scale)
        described = _describe(cfg) | ({"crop_scale": list(crop_scale)} if crop_scale else {})
        self.spec = _spec(model, source, "image", precision, described)
        self.note = source.note
        if feature == "pre-projection":
            self.spec = _without_projection(model, self.spec)
        self.device, self.dtype = device, DTYPES[precision]
        self.tower = _tower(model).to(device, self.dtype)
        if device.type == "cuda":
            self.tower = self.tower.to(memory_format=torch.channels_last)

    def prepare(
        self, payload: Image.Image, view: int, key: str, seed: int
    ) -> Float[Tensor, "3 height width"]:
        """View 0: the model's own preprocessing; above: resize, random crop, mirror half the time."""
        if view == 0:
            return self.centre(payload)
        if self.crop_scale is not None:
            return self._resized_crop(payload, resized_crop(key, view, seed, payload.size, self.crop_scale))
        height, width = self.size
        scale = max(height / payload.height, width / payload.width)
        resized = [max(height, round(scale * payload.height)), max(width, round(scale * payload.width))]
        how = transforms.InterpolationMode(self.cfg.interpolation)
        picture: Any = payload  # torchvision takes pictures too, but is typed for tensors
        picture = transforms.resize(picture, resized, interpolation=how)
        left, top, mirrored = random_crop(key, view, seed, (resized[1] - width, resized[0] - height))
        picture = picture.crop((left, top, left + width, top + height))
        return self._finished(picture, mirrored=mirrored)

    def _resized_crop(self, payload: Any, place: tuple[int, int, int, int, bool]) -> Tensor:
        left, top, width, height, mirrored = place
        how = transforms.InterpolationMode(self.cfg.interpolation)
        picture = transforms.resized_crop(payload, top, left, height, width, list(self.size), how)
        return self._finished(picture, mirrored=mirrored)

    def _finished(self, picture: Any, *, mirrored: bool) -> Tensor:
        picture = transforms.hflip(picture) if mirrored else picture
        return transforms.normalize(transforms.to_tensor(picture), list(self.cfg.mean), list(self.cfg.std))

    @torch.inference_mode()
    def encode(self, batch: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B D"]:
        """Rows in float32 on the CPU; fetching them is the batch's only synchronisation."""
        memory = torch.channels_last if self.device.type == "cuda" else torch.preserve_format
        pictures = batch.to(self.device, non_blocking=True).to(self.dtype, memory_format=memory)
        return self.tower(pictures).float().cpu()


def _checked(scale: tuple[float, ...] | None) -> tuple[float, float] | None:
    if scale is None:
        return None
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise EncoderError(
            f"--crop-scale {','.join(map(str, scale))}: expected the smallest and the largest share of the "
            "area, 0 < smallest <= largest <= 1; type for example `--crop-scale 0.5,1`"
        )
    return scale[0], scale[1]


def _without_projection(model: Any, spec: EncoderSpec) -> EncoderSpec:
    """Take the projection off a plain vision transformer, whose rows are then what `ln_post` gives."""
    visual = getattr(model, "visual", None)
    plain = type(model) in (open_clip.CLIP, open_clip.CustomTextCLIP) and type(visual) is VisionTransformer
    if not plain or visual is None or visual.proj is None:
        raise EncoderError(
            f"--feature pre-projection: {spec.name} has no projection behind its image tower; expected a "
            "plain vision transformer such as ViT-B-16; leave --feature out"
        )
    width = int(visual.proj.shape[0])
    visual.proj = None
    return replace(spec, dim=width, preprocessing=spec.preprocessing | {"feature": "pre-projection"})


class TextEncoder:
    """The text tower: strings -> (B, D)."""

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        precision: str,
        device: torch.device,
        tokenizer: Path | None = None,
    ) -> None:
        self.tokenize: Any = tokenizer_of(source, tokenizer)
        self.length = int(getattr(self.tokenize, "context_length", 0) or 77)
        how = {"tokenizer": type(self.tokenize).__name__, "context_length": self.length}
        how |= {"tokenizer_sha256": tokenizer_sha256(tokenizer)} if tokenizer else {}
        self.spec = _spec(model, source, "text", precision, how)
        self.note = source.note
        self.device = device
        if hasattr(model, "visual"):
            del model.visual
        self.model: Any = model.to(device, DTYPES[precision])
        self.short = _cuttable(self.model)

    def prepare(self, payload: str, view: int = 0, key: str = "", seed: int = 0) -> Int[Tensor, " T"]:
        """Token ids, padded to the context length; the views of a text are strings of their own."""
        return self.tokenize([payload])[0]

    def cuts(self, text: str) -> bool:
        """Whether the text has more tokens than the tower reads, so that its end changes nothing."""
        if len(text.encode()) + 8 <= self.length:  # a token is a byte at least, a few mark start and end
            return False
        wide = self.tokenize([text], context_length=8 * self.length)[0]
        return bool((wide[self.length :] != wide[-1]).any()) or bool(wide[-1] != wide[-2])

    @torch.inference_mode()
    def encode(self, batch: Int[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        """Rows in float32 on the CPU; padding behind the longest string is cut off where that is exact."""
        tokens = batch.to(self.device, non_blocking=True)
        if self.short is not None:
            return encode_short(self.short, tokens).float().cpu()
        return self.model.encode_text(tokens, normalize=False).float().cpu()


def _cuttable(model: nn.Module) -> Any | None:
    """The text transformer, if it is causal and reads its row at the end-of-text token; else None.

    Then no position sees the padding behind it, so leaving the padding out is exact.
    """
    if type(model) is open_clip.CLIP:
        return model if model.text_pool_type == "argmax" and model.attn_mask is not None else None
    text = getattr(model, "text", None)
    plain = type(model) is open_clip.CustomTextCLIP and type(text) is TextTransformer
    if (
        not plain
        or text is None
        or text.pool_type != "argmax"
        or text.cls_emb is not None
        or text.use_pad_mask
    ):
        return None
    return text if text.attn_mask is not None else None


def text_tower(
    *,
    model: str = "ViT-B-16",
    weights: str = "openai",
    precision: str = "float32",
    device: str = "auto",
    seed: int = 0,
    **_: object,
) -> PromptTower:
    """The text tower, frozen, for methods that send gradients through it (`text_tower.PromptTower`).

    Raises:
        EncoderError: what `load` raises, or a tokenizer that is not CLIP's.
    """
    place = device_of(device)
    source = resolve(model, weights)
    built = build(source, seed)
    sha256 = weights_sha256(built)
    del built.visual
    built = built.to(place, DTYPES[encoder_precision(precision, place)])
    return prompt_tower(built, tokenizer_of(source), source.name, sha256)


def prompt_tower(model: Any, tokenize: Any, name: str, sha256: str) -> PromptTower:
    """A model of open_clip as a tower that can be prompted, cut and shared where that is exact.

    Raises:
        EncoderError: a tokenizer that is not CLIP's.
    """
    if not isinstance(tokenize, open_clip.SimpleTokenizer):
        raise EncoderError(
            f"{name}: its tokenizer is {type(tokenize).__name__}; prompts are learned among CLIP's tokens; "
            "use a model with CLIP's own tokenizer, such as --model ViT-B-16"
        )
    text = _cuttable(model)
    plain = text is not None and all(
        type(block) is ResidualAttentionBlock for block in text.transformer.resblocks
    )
    return PromptTower(
        model,
        model.encode_text,
        model.token_embedding if hasattr(model, "token_embedding") else model.text.token_embedding,
        tokenize.encode,
        Marks(tokenize.sot_token_id, tokenize.eot_token_id, 0, tokenize.encode("X")[0]),
        int(tokenize.context_length or 77),
        Blocks(text) if plain else None,
        sha256,
    )


def encode_short(tower: Any, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B D"]:
    """What `encode_text` gives, computed up to the last end-of-text token (the largest id)."""
    ends = tokens.argmax(dim=-1)
    length = int(ends.max()) + 1
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens[:, :length]).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    x = tower.ln_final(x[torch.arange(len(x), device=x.device), ends])
    if tower.text_projection is None:
        return x
    return (
        tower.text_projection(x)
        if isinstance(tower.text_projection, nn.Linear)
        else x @ tower.text_projection
    )


def _tower(model: nn.Module) -> nn.Module:
    """What maps pictures to rows: the image tower alone where that is all of `encode_image`."""
    if type(model) in (open_clip.CLIP, open_clip.CustomTextCLIP):
        return model.visual  # pyright: ignore[reportReturnType]
    return _EncodeImage(model)


class _EncodeImage(nn.Module):
    """`encode_image` of a model that does more there than run its image tower (CoCa)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Tensor:
        return self.model.encode_image(pictures, normalize=False)


def _describe(cfg: PreprocessCfg) -> dict[str, Any]:
    """Everything between file and network, for the manifest."""
    return {
        "size": cfg.size if isinstance(cfg.size, int) else list(cfg.size),
        "resize": cfg.resize_mode,
        "interpolation": cfg.interpolation,
        "mean": list(cfg.mean),
        "std": list(cfg.std),
        "views": "0 evaluation; above: shortest side resized, random crop, mirrored with p 0.5",
    }


def _spec(model: Any, source: Source, modality: str, precision: str, preprocessing: dict) -> EncoderSpec:
    return EncoderSpec(
        name=source.name,
        weights=source.label,
        weights_sha256=weights_sha256(model),
        modality=modality,
        dim=int(source.config["model_cfg"]["embed_dim"]),
        preprocessing=preprocessing,
        precision=precision,
        logit_scale=round(float(model.logit_scale.detach().exp().mean()), 4),
        synthetic=source.checkpoint is None,
    )
