"""Weights files: what is read, under which names, and that nothing of a file is executed."""

import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spaner.errors import EncoderError
from spaner.extract.encoders import clip
from spaner.extract.encoders.checkpoint import from_openai, read_state
from spaner.extract.encoders.clip_model import tokenizer_sha256
from spaner.extract.encoders.clip_weights import resolve, weights_sha256
from tests.extract.conftest import TINY


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> nn.Module:
    return clip.build(resolve(str(tiny_model), "random"), seed=3)


def entries(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}


def script(model: nn.Module, path: Path) -> Path:
    """The model traced, as OpenAI saves its own."""
    inputs = (torch.zeros(1, 3, 32, 32), torch.zeros(1, 19, dtype=torch.long))
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.trace(model, inputs, check_trace=False), str(path))
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "best": np.float64(0.6), "epoch": np.int64(3)},
        lambda state: {"model": {f"_orig_mod.{name}": value for name, value in state.items()}},
        lambda state: {"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}},
    ],
)
def test_what_training_wraps_around_weights_is_taken_off(model: nn.Module, tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap(entries(model)), tmp_path / "w.pt")
    found, want = read_state(tmp_path / "w.pt"), entries(model)
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], want[name]) for name in want)


def test_a_torchscript_archive_gives_its_tensors(tiny_model: Path, tmp_path: Path) -> None:
    built = clip.build(resolve(str(tiny_model), "random"), seed=4)
    want = weights_sha256(built)
    for name, number in {"input_resolution": 32, "context_length": 19, "vocab_size": 49408}.items():
        vars(built).pop(name, None)
        built.register_buffer(name, torch.tensor(number))
    file = script(built, tmp_path / "ViT.pt")
    assert weights_sha256(clip.build(resolve(str(tiny_model), str(file)))) == want
    assert from_openai(file)


def test_a_torchscript_archive_with_other_objects_is_refused(model: nn.Module, tmp_path: Path) -> None:
    file = script(model, tmp_path / "a.pt")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            code = b"cos\nsystem\n(S'touch ran'\ntR." if name.endswith("data.pkl") else old.read(name)
            new.writestr(name, code)
    with pytest.raises(EncoderError, match=r"nothing of it was executed\): os.system in a TorchScript"):
        read_state(tmp_path / "b.pt")
    assert not Path("ran").exists()


def test_a_torchscript_archive_of_another_model_says_how_to_convert_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(nn.Linear(2, 3)), str(tmp_path / "w.pt"))
    with pytest.raises(EncoderError, match=r"TorchScript archive; if you trust it, type `python -c .*state"):
        clip.build(resolve(str(tiny_model), str(tmp_path / "w.pt")))


def test_a_pipe_and_a_folder_are_no_weights(tiny_model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EncoderError, match="a pipe, socket or device; expected a checkpoint file"):
        resolve(str(tiny_model), str(tmp_path / "pipe"))
    with pytest.raises(EncoderError, match="a folder; expected a checkpoint file"):
        resolve(str(tiny_model), str(tmp_path))


def test_code_and_colours_stay_out_of_the_message(tmp_path: Path) -> None:
    torch.save({"state_dict": print}, tmp_path / "x.pt")
    with pytest.raises(EncoderError, match="nothing of it was executed") as caught:
        read_state(tmp_path / "x.pt")
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("setting", "positions"), [("image_size", "64"), ("context_length", "23")])
def test_positions_are_not_interpolated(
    tiny_model: Path, tmp_path: Path, setting: str, positions: str
) -> None:
    tower = "vision_cfg" if setting == "image_size" else "text_cfg"
    other = TINY | {tower: TINY[tower] | {setting: int(positions)}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    torch.save(entries(clip.build(resolve(str(tmp_path / "other.json"), "random"))), tmp_path / "w.pt")
    with pytest.raises(EncoderError, match=rf"not interpolated\).*{setting}"):
        clip.build(resolve(str(tiny_model), str(tmp_path / "w.pt")))


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_openais_files_bring_quickgelu(tmp_path: Path, ending: str) -> None:
    def save(state: dict, name: str) -> str:
        file = tmp_path / f"{name}.{ending}"
        torch.save(state, file) if ending == "pt" else save_file(state, file)
        return str(file)

    conv, norm = torch.zeros(2, 3, 4, 4), torch.zeros(2)
    numbers = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    mixed = {"visual.conv1.weight": conv.half(), "visual.ln_pre.weight": norm}
    plain = {"visual.conv1.weight": conv, "visual.ln_pre.weight": norm}
    names = [resolve("ViT-B-32", save(s, n)).name for n, s in (("a", plain | numbers), ("b", mixed))]
    assert names == ["open_clip/ViT-B-32-quickgelu"] * 2
    assert resolve("ViT-B-32", save(plain, "c")).name == "open_clip/ViT-B-32"


def test_a_folder_gives_its_own_weights_or_the_file_asked_for(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    own, other = entries(model), entries(model)
    other["logit_scale"] = other["logit_scale"] + 1
    save_file(own, tmp_path / "open_clip_model.safetensors")
    save_file({"text_model.x": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "ft").mkdir()
    torch.save(other, tmp_path / "ft" / "w.pt")
    folder = f"local-dir:{tmp_path}"
    assert weights_sha256(clip.build(resolve(folder, "openai"))) == weights_sha256(model)
    asked = resolve(folder, str(tmp_path / "ft" / "w.pt"))
    assert asked.label == "file:w.pt"
    assert weights_sha256(clip.build(asked)) != weights_sha256(model)
    with pytest.raises(EncoderError, match=r"nowhere.pt: no such file, and local-dir:.* has no tags"):
        resolve(folder, "nowhere.pt")
    (tmp_path / "open_clip_model.safetensors").rename(tmp_path / "mine.safetensors")
    with pytest.raises(EncoderError, match=r"2 files of weights .*; expected one, or one named"):
        resolve(folder, "openai")


def test_broken_configs_and_hub_names_end_in_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "open_clip_config.json").write_text("{,")
    with pytest.raises(EncoderError, match=r"open_clip_config.json is not JSON"):
        resolve(f"local-dir:{tmp_path}", "openai")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError, match="weights of hf-hub:a/b@v1 not found"):
        resolve("hf-hub:a/b@v1", "openai")
    with pytest.raises(EncoderError, match="no name of a hub repository; expected hf-hub:ORG/NAME"):
        resolve("hf-hub:a/b/c!", "openai")


def test_a_tokenizer_that_is_not_here_says_how_to_fetch_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "m.json").write_text(
        json.dumps(TINY | {"text_cfg": TINY["text_cfg"] | {"hf_tokenizer_name": str(tmp_path / "none")}})
    )
    with pytest.raises(EncoderError, match=r"cannot be loaded.*`hf download .*type `--tokenizer FOLDER`"):
        clip.load("text", model=str(tmp_path / "m.json"), weights="random")


def test_texts_that_are_cut_are_known(tiny_model: Path) -> None:
    encoder = clip.load("text", model=str(tiny_model), weights="random")
    assert isinstance(encoder, clip.TextEncoder)
    length = encoder.length
    assert [encoder.cuts("sea " * n) for n in (1, length - 2, length - 1, 40 * length)] == [
        False,
        False,
        True,
        True,
    ]
    assert isinstance(encoder.tokenize, open_clip.SimpleTokenizer)


def test_a_plain_file_that_may_be_openais_is_not_run_without_a_word(tmp_path: Path) -> None:
    plain = {"visual.conv1.weight": torch.zeros(2, 3, 4, 4), "visual.ln_pre.weight": torch.zeros(2)}
    torch.save(plain, tmp_path / "w.pt")
    source = resolve("ViT-B-32", str(tmp_path / "w.pt"))
    assert "nothing in it says whether it was trained with GELU" in source.note
    assert source.note.endswith("type `--model ViT-B-32-quickgelu`")
    assert resolve("ViT-B-32-quickgelu", str(tmp_path / "w.pt")).note == ""
    assert resolve("ViT-B-32", "random").note == ""
    assert resolve("coca_ViT-B-32", str(tmp_path / "w.pt")).note == ""


def test_the_files_of_a_tokenizer_folder_are_part_of_the_identity(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    before = tokenizer_sha256(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert tokenizer_sha256(tmp_path) == before
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    assert tokenizer_sha256(tmp_path) != before
