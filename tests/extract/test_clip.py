"""open_clip's towers behind our interface give what open_clip itself gives."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from spaner.device import device_of, encoder_precision
from spaner.errors import EncoderError, RecipeError
from spaner.extract.datasets.images import resized_crop
from spaner.extract.encoders import clip
from spaner.extract.encoders.clip import ImageEncoder, TextEncoder
from spaner.extract.encoders.clip_weights import resolve
from tests.extract.conftest import TINY, picture

WORDS = [
    "{}",
    "a wall clock",
    "a photo of a wall clock, a type of instrument that tells the time of a day",
    "sea",
]


@pytest.fixture(scope="module")
def image(tiny_model: Path) -> ImageEncoder:
    encoder = clip.load("image", model=str(tiny_model), weights="random", precision="float32")
    assert isinstance(encoder, ImageEncoder)
    return encoder


def text_encoder(model: Path) -> TextEncoder:
    encoder = clip.load("text", model=str(model), weights="random", precision="float32")
    assert isinstance(encoder, TextEncoder)
    return encoder


def test_view_0_and_rows_equal_open_clips_own(image: ImageEncoder, tiny_model: Path) -> None:
    model = clip.build(resolve(str(tiny_model), "random"))
    transform: Any = open_clip.image_transform(32, is_train=False)
    photo = picture(5, (57, 43))
    inputs = transform(photo)
    assert torch.equal(image.prepare(photo, 0, "k", 0), inputs)  # pyright: ignore[reportArgumentType]
    expected = model.encode_image(inputs[None])  # pyright: ignore
    torch.testing.assert_close(image.encode(inputs[None]), expected)  # pyright: ignore


@pytest.mark.parametrize("size", [(57, 43), (31, 90), (32, 32), (300, 33)])
def test_a_random_view_is_a_crop_of_the_resized_picture(image: ImageEncoder, size: tuple[int, int]) -> None:
    photo = picture(6, size)
    first = image.prepare(photo, 1, "a", 0)
    assert first.shape == (3, 32, 32)
    assert torch.equal(image.prepare(photo, 1, "a", 0), first)
    others = [
        image.prepare(photo, view, key, seed) for view, key, seed in ((2, "a", 0), (1, "b", 0), (1, "a", 9))
    ]
    assert any(not torch.equal(other, first) for other in others)


def test_spec_describes_the_encoder(image: ImageEncoder, tiny_model: Path) -> None:
    text = text_encoder(tiny_model)
    spec = image.spec
    assert spec.name.startswith("open_clip/tiny@")
    assert (spec.modality, spec.dim, spec.weights, spec.synthetic) == ("image", 23, "random", True)
    assert spec.logit_scale == pytest.approx(1 / 0.07, abs=1e-3)
    assert spec.preprocessing["size"] == [32, 32]
    assert text.spec.preprocessing == {"tokenizer": "SimpleTokenizer", "context_length": 19}
    assert text.spec.weights_sha256 == spec.weights_sha256


@pytest.mark.parametrize("custom", [False, True])
def test_cutting_the_padding_changes_nothing(tmp_path: Path, custom: bool) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps(TINY | {"custom_text": custom}))
    encoder = text_encoder(path)
    assert encoder.short is not None
    tokens = torch.stack([encoder.prepare(word) for word in WORDS[1::2]])
    whole = clip.build(resolve(str(path), "random")).encode_text(tokens)  # pyright: ignore
    torch.testing.assert_close(encoder.encode(tokens), whole, rtol=1e-5, atol=1e-6)
    seen = []
    encoder.short.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    encoder.encode(tokens)
    assert seen == [5]


@pytest.mark.parametrize("change", [{"no_causal_mask": True}, {"pool_type": "last"}])
def test_a_tower_that_sees_its_padding_is_not_cut(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps(TINY | {"custom_text": True, "text_cfg": TINY["text_cfg"] | change}))
    encoder = text_encoder(path)
    assert encoder.short is None
    tokens = torch.stack([encoder.prepare(word) for word in WORDS])
    whole = clip.build(resolve(str(path), "random")).encode_text(tokens)  # pyright: ignore
    torch.testing.assert_close(encoder.encode(tokens), whole)


def test_a_coca_model_is_encoded_raw(tmp_path: Path) -> None:
    path = tmp_path / "coca.json"
    multimodal = {"context_length": 19, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = TINY["vision_cfg"] | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    text = TINY["text_cfg"] | {"embed_cls": True, "output_tokens": True}
    path.write_text(
        json.dumps(
            {
                "embed_dim": 24,
                "vision_cfg": vision,
                "text_cfg": text,
                "multimodal_cfg": multimodal,
                "custom_text": True,
            }
        )
    )
    for modality in ("image", "text"):
        encoder = clip.load(modality, model=str(path), weights="random", precision="float32")
        payloads = [picture(i) for i in range(3)] if modality == "image" else WORDS[:3]
        rows = encoder.encode(torch.stack([encoder.prepare(p, 0, "k", 0) for p in payloads]))  # pyright: ignore
        assert rows.shape == (3, 24)
        assert not torch.allclose(rows.norm(dim=-1), torch.ones(3), atol=1e-2)


def test_bfloat16_agrees_with_float32(tiny_model: Path, image: ImageEncoder) -> None:
    low = clip.load("image", model=str(tiny_model), weights="random", precision="bfloat16")
    batch = torch.stack([image.prepare(picture(i), 0, "k", 0) for i in range(5)])
    rows = low.encode(batch)
    assert rows.dtype == torch.float32
    assert low.spec.precision == "bfloat16"
    assert low.spec.weights_sha256 == image.spec.weights_sha256
    assert torch.nn.functional.cosine_similarity(rows, image.encode(batch)).min() > 0.999


def test_device_and_precision_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for flags, expected in (
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({}, "float32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        assert encoder_precision("auto", cpu) == expected
    assert encoder_precision("auto", cuda) == "float16"
    assert encoder_precision("bfloat16", cpu) == "bfloat16"
    for name, message in (("float8", "unknown; expected auto, float32"), ("float16", "not for the CPU")):
        with pytest.raises(RecipeError, match=f"--precision {name}: {message}"):
            encoder_precision(name, cpu)
    with pytest.raises(RecipeError, match="--device toaster: torch cannot use it"):
        device_of("toaster")
    with pytest.raises(RecipeError, match="--device cuda:99: torch cannot use it"):
        device_of("cuda:99")


def test_there_is_no_audio_tower(tiny_model: Path) -> None:
    with pytest.raises(EncoderError, match="no encoder for audio; expected image or text"):
        clip.load("audio", model=str(tiny_model), weights="random")


def test_a_resized_crop_is_pure_and_keeps_to_its_scale(tiny_model: Path) -> None:
    for size in ((57, 43), (300, 33), (9, 900)):
        places = [resized_crop("a", view, 0, size, (0.5, 1.0)) for view in range(1, 60)]
        assert places == [resized_crop("a", view, 0, size, (0.5, 1.0)) for view in range(1, 60)]
        assert len(set(places)) > 1
        for left, top, width, height, _ in places:
            assert 0 <= left <= size[0] - width
            assert 0 <= top <= size[1] - height
            assert size != (57, 43) or 0.45 < width * height / (57 * 43) <= 1
    options = {"model": str(tiny_model), "weights": "random", "precision": "float32"}
    encoder = clip.load("image", crop_scale=(0.5, 1.0), **options)  # pyright: ignore[reportArgumentType]
    assert isinstance(encoder, ImageEncoder)
    assert encoder.spec.preprocessing["crop_scale"] == [0.5, 1.0]
    assert encoder.prepare(picture(6, (57, 43)), 3, "a", 0).shape == (3, 32, 32)
    with pytest.raises(EncoderError, match=r"--crop-scale 0.9,0.1: expected the smallest"):
        clip.load("image", crop_scale=(0.9, 0.1), **options)  # pyright: ignore[reportArgumentType]


def test_rows_before_the_projection(tiny_model: Path, image: ImageEncoder) -> None:
    options = {"model": str(tiny_model), "weights": "random", "precision": "float32"}
    before = clip.load("image", feature="pre-projection", **options)  # pyright: ignore[reportArgumentType]
    batch = torch.stack([image.prepare(picture(i), 0, "k", 0) for i in range(3)])
    proj: Any = clip.build(resolve(str(tiny_model), "random")).visual.proj  # pyright: ignore
    assert before.spec.dim == len(proj) == before.encode(batch).shape[1]
    assert before.spec.preprocessing["feature"] == "pre-projection"
    assert before.spec.weights_sha256 == image.spec.weights_sha256
    torch.testing.assert_close(before.encode(batch) @ proj, image.encode(batch))
    model = clip.build(resolve("RN50", "random"))
    with pytest.raises(EncoderError, match=r"--feature pre-projection: .* has no projection"):
        clip._without_projection(model, before.spec)
