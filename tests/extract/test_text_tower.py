"""A prompted text tower equals the model's own padded one: outputs and gradients, float64, all positions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spaner.errors import EncoderError
from spaner.extract.encoders import clip, encoder
from spaner.extract.encoders.clip_weights import resolve
from spaner.extract.encoders.packed import cut
from spaner.extract.encoders.text_tower import Packed, Padded, PromptTower
from tests.extract.conftest import TINY

NAMES = ["tench", "t-shirt", "a.k.a.", "wall clock", "Boeing 737-800", "sea", "hammerhead shark"]
SHAPES = [  # width, heads, layers, embedding, context vectors: primes, so that a swapped axis cannot pass
    (22, 2, 3, 13, 3),
    (35, 5, 2, 7, 5),
    (13, 1, 1, 17, 2),
]


def tower_of(folder: Path, **text: Any) -> PromptTower:
    """A random tower in float64."""
    config: dict[str, Any] = TINY | {"custom_text": text.pop("custom", False)}
    config["embed_dim"] = text.pop("embed", 23)
    config["text_cfg"] = TINY["text_cfg"] | text
    path = folder / "m.json"
    path.write_text(json.dumps(config))
    return clip.text_tower(model=str(path), weights="random", seed=5, device="cpu").double()


def answers(prompted: Any, context: Tensor, *, per_class: bool = False) -> tuple[Tensor, Tensor]:
    """Embeddings, and the gradient of a sum that weighs each of their numbers differently."""
    context = context.clone().requires_grad_()
    rows = prompted(context, per_class=per_class)
    weights = torch.randn(rows.shape, generator=torch.Generator().manual_seed(3), dtype=rows.dtype)
    (rows * weights).sum().backward()
    assert context.grad is not None
    return rows.detach(), context.grad


def assert_same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 1e-3
        assert float((a - b).abs().max() / b.abs().max()) < 1e-12


def normal(*shape: int) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("custom", [False, True])
def test_packed_equals_padded(tmp_path: Path, position: str, shape: tuple[int, ...], custom: bool) -> None:
    width, heads, layers, embed, length = shape
    tower = tower_of(tmp_path, width=width, heads=heads, layers=layers, embed=embed, custom=custom)
    texts = [tower.pieces(name, length) for name in NAMES]
    packed, padded = tower.prompted(NAMES, length, position), Padded(tower, texts, length, position)
    assert isinstance(packed, Packed)
    for context, per_class in (
        (normal(1, length, width), False),
        (normal(3, length, width), False),
        (normal(len(NAMES), length, width), True),
    ):
        theirs = answers(padded, context, per_class=per_class)
        assert_same(answers(packed, context, per_class=per_class), theirs)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("rows", [1, 11, 1000])
def test_blocks_of_names_change_nothing(tmp_path: Path, position: str, recompute: bool, rows: int) -> None:
    tower = tower_of(tmp_path)
    whole = tower.prompted(NAMES, 3, position)
    pieces = tower.prompted(NAMES, 3, position, block_rows=rows, recompute=recompute)
    context = normal(2, 3, 32)
    assert_same(answers(pieces, context), answers(whole, context))


def test_a_context_of_words_reads_as_the_words(tmp_path: Path) -> None:
    tower = tower_of(tmp_path)
    rows = tower.prompted(NAMES, 4)(tower.context_of("a photo of a")[None])[0]
    tokenize = clip.tokenizer_of(resolve(str(tmp_path / "m.json"), "random"))
    expected = tower.encode(tokenize([f"a photo of a {name}." for name in NAMES]))
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        {"no_causal_mask": True},
        {"embed_cls": True},
        {"qk_norm": True},
    ],
)
def test_a_tower_that_cannot_be_cut_runs_whole(tmp_path: Path, text: dict[str, Any]) -> None:
    tower = tower_of(tmp_path, custom=True, **text)
    prompted = tower.prompted(NAMES, 4)
    assert isinstance(prompted, Padded)
    rows, gradient = answers(prompted, tower.context_of("a photo of a")[None])
    tokenize = clip.tokenizer_of(resolve(str(tmp_path / "m.json"), "random"))
    expected = tower.encode(tokenize([f"a photo of a {name}." for name in NAMES]))
    torch.testing.assert_close(rows[0], expected, rtol=1e-12, atol=1e-12)
    assert gradient.abs().min() > 0


def test_the_digits_tower_can_be_prompted() -> None:
    tower = encoder.text_tower("digits", device="cpu")
    names = ["zero", "one", "seven"]
    text = encoder.load("digits", "text", device="cpu")
    context = tower.context_of("a photo of a")
    rows, gradient = answers(tower.prompted(names, len(context)), context[None])
    expected = text.encode(torch.stack([text.prepare(f"a photo of a {n}.", 0, "", 0) for n in names]))
    torch.testing.assert_close(rows[0], expected)
    assert gradient.abs().max() > 0
    assert tower.sha256 == text.spec.weights_sha256


def test_weights_are_frozen_and_named(tiny_model: Path) -> None:
    tower = encoder.text_tower("open_clip", model=str(tiny_model), weights="random", device="cpu")
    assert not any(p.requires_grad for p in tower.parameters())
    loaded = clip.load("text", model=str(tiny_model), weights="random", precision="float32", device="cpu")
    assert tower.sha256 == loaded.spec.weights_sha256
    assert tower.width == 32


def test_a_context_longer_than_the_window_is_refused(tmp_path: Path) -> None:
    tower = tower_of(tmp_path)
    with pytest.raises(EncoderError) as caught:
        tower.prompted(["tench"], 30)
    line = "'tench' with 30 context vectors takes 35 tokens; the text tower reads 19; use at most 14 vectors"
    assert line in str(caught.value)


def test_an_unknown_position_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="position is 'back'; expected end, middle, front"):
        tower_of(tmp_path).prompted(NAMES, 2, "back")


def test_an_encoder_without_such_a_tower_is_refused() -> None:
    with pytest.raises(EncoderError, match="clap: unknown; expected one of digits, open_clip"):
        encoder.text_tower("clap")


def test_cut_fills_blocks() -> None:
    assert list(cut([(3, 2), (2, 5)], 7)) == [[(0, 0, 3)], [(1, 0, 1)], [(1, 1, 2)]]
    assert list(cut([(3, 2), (1, 1)], 7)) == [[(0, 0, 3), (1, 0, 1)]]
    assert list(cut([(2, 9)], 4)) == [[(0, 0, 1)], [(0, 1, 2)]]
