"""Every kind of model that open_clip builds goes through extraction with random weights: kinds made small in
every run of the tests, the models themselves in the slow ones. And what SigLIP's logit bias does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

import spaner.cache
from spaner.errors import EncoderError
from spaner.extract.encoders import clip
from spaner.extract.encoders.clip_weights import resolve
from spaner.extract.extract import extract
from spaner.extract.repair import repair
from tests.conftest import Outcome
from tests.extract.conftest import TINY, fill_folder

WORDS = ("<pad>", "</s>", "<unk>", "a", "photo", "of", "red", "fox", "sea", "wall", "clock", ".")
TEXT = {"context_length": 19, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
SMALL: dict[str, dict[str, Any]] = {
    "CLIP": TINY,
    "CustomText": TINY | {"custom_text": True},
    "CoCa": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": TINY["vision_cfg"]
        | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": TEXT | {"layers": 1},
    },
    "ResNet": TINY
    | {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}},
}


def with_timm(name: str, size: int, **changes: Any) -> dict[str, Any]:
    """A kind whose image tower is timm's, with a tower of that family that is small."""
    vision = {"timm_model_name": name, "timm_model_pretrained": False, "image_size": size}
    return TINY | {"custom_text": True, "vision_cfg": vision | changes}


SMALL |= {
    "ConvNeXt": with_timm("convnext_atto", 64, timm_pool="", timm_proj="linear"),
    "EVA": with_timm("eva02_tiny_patch14_224", 224, timm_pool="token", timm_proj="linear"),
    "MobileCLIP": with_timm("fastvit_t8", 64, timm_pool="avg", timm_proj="linear")
    | {"text_cfg": TEXT | {"no_causal_mask": True}},
}
NAMED = {
    "CLIP": "ViT-B-32",
    "QuickGELU": "ViT-B-32-quickgelu",
    "CoCa": "coca_ViT-B-32",
    "ResNet": "RN50",
    "ConvNeXt": "convnext_base",
    "EVA": "EVA02-B-16",
    "MobileCLIP": "MobileCLIP-B",
    "MobileCLIP S": "MobileCLIP-S1",
    "MobileCLIP2": "MobileCLIP2-S0",
    "PE": "PE-Core-T-16-384",
    "SigLIP": "ViT-B-16-SigLIP",
    "ViTamin": "ViTamin-S",
}
"""One model of each kind; CustomText is what most of them are."""


def siglip(**changes: Any) -> dict[str, Any]:
    """SigLIP's kind: bias, a text tower that looks both ways, a tokenizer from the hub."""
    text = TEXT | {"vocab_size": len(WORDS), "hf_tokenizer_name": "nobody/has-this"}
    text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    text |= {"tokenizer_kwargs": {"clean": "canonicalize"}}
    return TINY | {"custom_text": True, "init_logit_bias": -10, "text_cfg": text} | changes


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `hf download` leaves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    own.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=own, **marks).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, two rows of each to train and one to test."""
    root = tmp_path_factory.mktemp("kinds") / "photos"
    for c, name in enumerate(("red fox", "sea")):
        fill_folder(root / "train" / name, 2, 10 * c)
        fill_folder(root / "test" / name, 1, 100 + c)
    return root


def config(folder: Path, cfg: dict[str, Any]) -> str:
    file = folder / "model.json"
    file.write_text(json.dumps(cfg))
    return str(file)


def extracted(cache: Path, photos: Path, model: str, **options: Any) -> spaner.cache.Cache:
    """A sealed cache of images and texts."""
    options = {"pretrained": "random", "precision": "float32", "dtype": "float32", "batch_size": 4} | options
    extract(
        dataset=f"folder:{photos}", model=model, templates=("vanilla", "classname"), cache=cache, **options
    )
    return spaner.cache.open(cache)


def check(cache: spaner.cache.Cache, width: int) -> None:
    """Rows of the model's width that tell pictures and texts apart, each independent of its neighbours."""
    for name, rows in (("image/train", 4), ("image/test", 2), ("text/vanilla", 2)):
        table = cache.table(name)
        x = table.read()[:, 0]
        assert x.shape == (rows, width)
        assert np.isfinite(x).all()
        assert table.measured["purity"]["pure"]
        assert not np.allclose(x[0], x[-1], rtol=1e-4)


LARGE = ("EVA", "MobileCLIP")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in LARGE else []) for kind in SMALL]
)
def test_a_kind_is_extracted(kind: str, photos: Path, tmp_path: Path) -> None:
    check(extracted(tmp_path / "cache", photos, config(tmp_path, SMALL[kind])), SMALL[kind]["embed_dim"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMED)
def test_a_model_is_extracted(kind: str, photos: Path, tokenizer: Path, tmp_path: Path) -> None:
    cfg: Any = open_clip.get_model_config(NAMED[kind])
    own = {"tokenizer": tokenizer} if "hf_tokenizer_name" in cfg["text_cfg"] else {}
    check(extracted(tmp_path / "cache", photos, NAMED[kind], **own), cfg["embed_dim"])


def test_a_tower_that_cannot_take_its_own_pictures_is_one_line(photos: Path, tmp_path: Path) -> None:
    for tower in ("vitamin_small_224", "eva02_tiny_patch14_224"):  # each fails in a way of its own
        model = config(tmp_path, with_timm(tower, 64, timm_pool="", timm_proj="linear"))
        with pytest.raises(
            EncoderError, match=r"cannot encode: .*; expected an image tower that takes 64 x 64"
        ):
            extracted(tmp_path / "cache", photos, model)
    assert not (tmp_path / "cache").exists()


def test_siglip_with_a_local_tokenizer(photos: Path, tokenizer: Path, tmp_path: Path) -> None:
    model = config(tmp_path, siglip())
    with pytest.raises(EncoderError, match=r"tokenizer of .* cannot be loaded: nobody/has-this on the hub"):
        extracted(tmp_path / "cache", photos, model)
    assert not (tmp_path / "cache").exists()
    with extracted(tmp_path / "cache", photos, model, tokenizer=tokenizer) as cache:
        check(cache, 23)
    damaged = next((tmp_path / "cache/text/vanilla/features").glob("c.0*"))
    before = damaged.read_bytes()
    damaged.write_bytes(bytes([before[0] ^ 1]) + before[1:])
    given: dict[str, Any] = {"dataset": f"folder:{photos}", "model": model}
    with pytest.raises(EncoderError, match="its tokenizer was a folder; type `--tokenizer FOLDER`"):
        repair(tmp_path / "cache", **given)
    assert repair(tmp_path / "cache", **given, tokenizer=tokenizer).repaired == 1
    assert damaged.read_bytes() == before


def test_texts_are_embedded_with_the_runs_tokenizer(
    photos: Path, tokenizer: Path, tmp_path: Path, cli: Callable[..., Outcome]
) -> None:
    model = config(tmp_path, siglip())
    extracted(tmp_path / "cache", photos, model, tokenizer=tokenizer).close()
    words = (
        "--shots",
        "2",
        "--epochs",
        "1",
        "--heads",
        "1",
        "--templates",
        "vanilla",
        "--out",
        tmp_path / "run",
    )
    assert cli("train", "--cache", tmp_path / "cache", *words).status == 0
    ask = (
        "embed",
        "--run",
        tmp_path / "run",
        "--text",
        "red fox",
        "--model",
        model,
        "-o",
        tmp_path / "t.npy",
    )
    refused = cli(*ask)
    assert (refused.status, len(refused.err.splitlines())) == (1, 1)
    assert "its tokenizer was a folder; type `--tokenizer FOLDER`" in refused.err
    assert cli(*ask, "--tokenizer", tokenizer).status == 0
    assert np.isfinite(np.load(tmp_path / "t.npy")).all()


def test_what_lacks_transformers_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spaner.extract.encoders.clip_model.find_spec", lambda _: None)
    with pytest.raises(
        EncoderError, match=r"its tokenizer is one of transformers, which is not installed.*pip"
    ):
        clip.load("text", model=config(tmp_path, siglip()), weights="random")
    text = {"hf_model_name": "roberta-base", "hf_tokenizer_name": "roberta-base"}
    with pytest.raises(EncoderError, match=r"its text tower is one of transformers.*pip install"):
        clip.load("image", model=config(tmp_path, siglip(text_cfg=text)), weights="random")


def test_siglips_bias_reaches_no_row(tokenizer: Path, tmp_path: Path) -> None:
    """Two files that differ in the bias alone give equal rows and scale, and so equal numbers everywhere."""
    model = config(tmp_path, siglip())
    built = clip.build(resolve(model, "random"), seed=3)
    files = []
    for bias in (-10.0, -16.5):
        state = {k: v.clone() for k, v in built.state_dict().items()} | {"logit_bias": torch.tensor(bias)}
        torch.save(state, tmp_path / f"{bias}.pt")
        files.append(str(tmp_path / f"{bias}.pt"))
    encoders = [clip.load("text", model=model, weights=file, tokenizer=tokenizer) for file in files]
    texts = [torch.stack([e.prepare(w, 0, "", 0) for w in ("red fox", "sea")]) for e in encoders]  # pyright: ignore
    rows = [e.encode(t) for e, t in zip(encoders, texts, strict=True)]
    assert torch.equal(*rows)
    assert encoders[0].spec.logit_scale == encoders[1].spec.logit_scale
    assert encoders[0].spec.weights_sha256 != encoders[1].spec.weights_sha256  # other weights all the same
