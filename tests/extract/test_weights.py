"""Models and weights: what is found, what is hashed, and one line for what is missing."""

import json
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spaner.errors import EncoderError
from spaner.extract.encoders import clip
from spaner.extract.encoders import clip_weights as weights
from spaner.extract.encoders.clip_weights import resolve, weights_sha256
from tests.extract.conftest import TINY


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> nn.Module:
    return clip.build(resolve(str(tiny_model), "random"), seed=3)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights, "_reachable", lambda url: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))


def wrong(model: str | Path, pretrained: str | Path) -> str:
    with pytest.raises(EncoderError) as caught:
        clip.build(resolve(str(model), str(pretrained)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_openai_weights_bring_quickgelu_and_other_tags_do_not(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.touch()
    openai = resolve("ViT-B/16", f"openai={file}")
    assert (openai.name, openai.label, openai.checkpoint) == ("open_clip/ViT-B-16-quickgelu", "openai", file)
    laion = resolve("ViT-B-16", f"laion2b_s34b_b88k={file}")
    assert laion.name == "open_clip/ViT-B-16"
    built = [_activations(clip.build(_small(source))) for source in (openai, laion)]
    assert built == [{"QuickGELU"}, {"GELU"}]


def _small(source: weights.Source) -> weights.Source:
    """The same source with two layers and random weights: activations are all that is looked at."""
    config = json.loads(json.dumps(source.config))
    for tower in ("vision_cfg", "text_cfg"):
        config["model_cfg"][tower]["layers"] = 2
    return weights.Source(source.name, "random", config, None, None)


def _activations(model: nn.Module) -> set[str]:
    return {type(module).__name__ for module in model.modules() if "GELU" in type(module).__name__}


def test_a_tags_preprocessing_comes_with_a_file_of_its_weights(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.touch()
    siglip = resolve("ViT-B-16-SigLIP", str(file))
    assert siglip.config["preprocess_cfg"]["resize_mode"] == "squash"
    assert tuple(siglip.config["preprocess_cfg"]["mean"]) == (0.5, 0.5, 0.5)
    assert siglip.label == "file:w.safetensors"


def test_the_hash_sees_numbers_not_containers(model: nn.Module, tiny_model: Path, tmp_path: Path) -> None:
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.pt")
    save_file(state, tmp_path / "a.safetensors")
    files = [tmp_path / "a.pt", tmp_path / "a.safetensors"]
    found = {weights_sha256(clip.build(resolve(str(tiny_model), str(file)))) for file in files}
    assert found == {weights_sha256(model)}
    state["logit_scale"] = state["logit_scale"] + 1
    save_file(state, tmp_path / "b.safetensors")
    assert weights_sha256(clip.build(resolve(str(tiny_model), str(tmp_path / "b.safetensors")))) not in found


def test_random_weights_are_seeded_and_leave_the_global_stream_alone(tiny_model: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    source = resolve(str(tiny_model), "random")
    hashes = [weights_sha256(clip.build(source, seed)) for seed in (3, 3, 4)]
    assert torch.equal(torch.rand(3), expected)
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_checkpoint_is_loaded_strictly(model: nn.Module, tiny_model: Path, tmp_path: Path) -> None:
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    del state["logit_scale"]
    save_file(state, tmp_path / "less.safetensors")
    found = wrong(tiny_model, tmp_path / "less.safetensors")
    assert "does not load as open_clip/tiny@" in found
    assert 'Missing key(s) in state_dict: "logit_scale"' in found
    (tmp_path / "x.safetensors").write_bytes(b"12345678910")
    assert "cannot be read as plain tensors" in wrong(tiny_model, tmp_path / "x.safetensors")


def test_a_pickle_with_code_in_it_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": print}, tmp_path / "x.pt")
    assert "cannot be read as plain tensors" in wrong(tiny_model, tmp_path / "x.pt")


def test_a_local_folder_brings_config_and_weights(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    assert "no weights in" in wrong(f"local-dir:{tmp_path}", "openai")
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, tmp_path / "m.safetensors")
    source = resolve(f"local-dir:{tmp_path}", "openai")
    assert (source.label, source.name.partition("@")[0]) == ("local-dir", f"open_clip/{tmp_path.name}")
    assert weights_sha256(clip.build(source)) == weights_sha256(model)
    assert "open_clip_config.json" in wrong("local-dir:nowhere", "openai")


def test_a_changed_config_changes_the_name(tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "tiny.json"
    other.write_text(json.dumps(TINY | {"quick_gelu": True}))
    names = {resolve(str(path), "random").name for path in (tiny_model, other)}
    assert len(names) == 2


@pytest.mark.usefixtures("no_network")
def test_missing_weights_say_what_where_and_what_to_type(tmp_path: Path) -> None:
    found = wrong("ViT-B-16", "openai")
    assert f"weights of ViT-B-16 openai not found; looked in {tmp_path / 'hub'} and at https://" in found
    assert "timm/vit_base_patch16_clip_224.openai (not reachable)" in found
    assert "type `--pretrained openai=FILE`" in found
    assert "download open_clip_config.json" in wrong("hf-hub:org/name", "openai")


def test_unknown_models_tags_and_files_name_the_nearest(tiny_model: Path, tmp_path: Path) -> None:
    assert "nearest: ViT-B-16" in wrong("ViT-B-61", "openai")
    assert "neither a tag of ViT-B-16 nor a file; tags: openai" in wrong("ViT-B-16", "opanai")
    assert "--pretrained nowhere.pt: no such file" in wrong("ViT-B-16", "openai=nowhere.pt")
    assert "neither a tag" in wrong(tiny_model, "openai")
    assert "no such file; expected an open_clip config JSON" in wrong("nowhere.json", "random")
    (tmp_path / "a.json").write_text("{")
    assert "not JSON" in wrong(tmp_path / "a.json", "random")
    (tmp_path / "a.json").write_text('{"embed_dim": 3}')
    assert "text_cfg, vision_cfg missing" in wrong(tmp_path / "a.json", "random")
    (tmp_path / "a.json").write_text(json.dumps(TINY | {"vision_cfg": {"layers": "two"}}))
    assert "cannot be built" in wrong(tmp_path / "a.json", "random")


def test_every_built_in_tag_resolves_to_a_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights, "_fetch", lambda model, tag, about: tmp_path)
    for model, tag in open_clip.list_pretrained():
        source = resolve(model, tag)
        assert source.config["model_cfg"]["embed_dim"] > 0
        quick = bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu"))
        assert source.name.endswith("-quickgelu") >= quick
