"""The tiny CLIP of the prompt learners' cases: weights from a seed, in open_clip's own model.

Every tensor is drawn on its own from numpy's legacy RandomState, whose stream is frozen, seeded with
crc32(name) + seed, in float64, scaled and rounded to float32, under the names of OpenAI's state dict.
`checksum` proves that the weights are those of the reference.
"""

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import open_clip
import torch

from spaner.extract.encoders.clip import prompt_tower
from spaner.extract.encoders.image_tower import BlockTower
from spaner.extract.encoders.text_tower import PromptTower


def block(prefix: str, width: int, layers: int) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    """Name, shape, deviation and mean of every tensor of a residual block."""
    out = width**-0.5 * (2 * layers) ** -0.5
    yield f"{prefix}attn.in_proj_weight", (3 * width, width), width**-0.5, 0
    yield f"{prefix}attn.in_proj_bias", (3 * width,), 0.02, 0
    yield f"{prefix}attn.out_proj.weight", (width, width), out, 0
    yield f"{prefix}attn.out_proj.bias", (width,), 0.02, 0
    yield from norm(f"{prefix}ln_1", width)
    yield from norm(f"{prefix}ln_2", width)
    yield f"{prefix}mlp.c_fc.weight", (4 * width, width), (2 * width) ** -0.5, 0
    yield f"{prefix}mlp.c_fc.bias", (4 * width,), 0.02, 0
    yield f"{prefix}mlp.c_proj.weight", (width, 4 * width), out, 0
    yield f"{prefix}mlp.c_proj.bias", (width,), 0.02, 0


def norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    """Scale around one and shift around zero."""
    yield f"{name}.weight", (width,), 0.1, 1
    yield f"{name}.bias", (width,), 0.05, 0


def tensors(m: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    """Name, shape, deviation and mean of every tensor of the model."""
    v, t, e, patch = m["vision_width"], m["transformer_width"], m["embed_dim"], m["vision_patch_size"]
    yield "visual.class_embedding", (v,), v**-0.5, 0
    yield "visual.positional_embedding", ((m["image_resolution"] // patch) ** 2 + 1, v), v**-0.5, 0
    yield "visual.conv1.weight", (v, 3, patch, patch), (3 * patch**2) ** -0.5, 0
    yield from norm("visual.ln_pre", v)
    yield from norm("visual.ln_post", v)
    yield "visual.proj", (v, e), v**-0.5, 0
    for i in range(m["vision_layers"]):
        yield from block(f"visual.transformer.resblocks.{i}.", v, m["vision_layers"])
    for i in range(m["transformer_layers"]):
        yield from block(f"transformer.resblocks.{i}.", t, m["transformer_layers"])
    yield "token_embedding.weight", (m["vocab_size"], t), 0.02, 0
    yield "positional_embedding", (m["context_length"], t), 0.01, 0
    yield from norm("ln_final", t)
    yield "text_projection", (t, e), t**-0.5, 0


def weights(m: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict."""
    state = {}
    for name, shape, deviation, mean in tensors(m):
        draw = np.random.RandomState((zlib.crc32(name.encode()) + m["seed"]) % 2**32)
        state[name] = (mean + deviation * draw.standard_normal(shape)).astype(np.float32)
    return state | {"logit_scale": np.asarray(m["logit_scale"], np.float32)}


def checksum(state: Mapping[str, np.ndarray]) -> int:
    """crc32 over all tensors in the order of their names."""
    total = 0
    for name in sorted(state):
        total = zlib.crc32(np.ascontiguousarray(state[name]).tobytes(), total)
    return total


def model_of(meta: Mapping[str, Any], precision: torch.dtype) -> Any:
    """open_clip's model with the case's weights, frozen."""
    m, state = meta["clip"], weights(meta["clip"])
    if checksum(state) != meta["clip_crc32"]:
        raise ValueError(f"the weights' checksum is {checksum(state)}; the case says {meta['clip_crc32']}")
    vision = {"image_size": m["image_resolution"], "layers": m["vision_layers"], "width": m["vision_width"]}
    text = {"context_length": m["context_length"], "vocab_size": m["vocab_size"]}
    text |= {name: m[f"transformer_{name}"] for name in ("width", "heads", "layers")}
    vision_cfg: Any = vision | {"patch_size": m["vision_patch_size"], "head_width": 64}
    text_cfg: Any = text
    model = open_clip.CLIP(m["embed_dim"], vision_cfg, text_cfg, quick_gelu=True)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return model.eval().requires_grad_(requires_grad=False).to(precision)


def tower_of(model: Any) -> PromptTower:
    """Its text side, to be prompted."""
    return prompt_tower(model, open_clip.SimpleTokenizer(), "tiny", "")


def image_tower_of(model: Any) -> BlockTower:
    """Its image side, block by block."""
    return BlockTower(model.visual, "tiny", "")
