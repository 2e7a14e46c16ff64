"""Every published kind of checkpoint loads strictly; whatever does not fit is named; no file runs code."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from spaner.errors import EncoderError
from spaner.extract.encoders.esresnext_network import ESResNeXtFBSP
from spaner.extract.encoders.esresnext_weights import load_esresnext


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(5)
    state = ESResNeXtFBSP(11).state_dict()
    state["fbsp.m"] = torch.rand(1025)
    return {k: v.contiguous() for k, v in state.items()}


def audioclip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    beside = {
        "visual.conv1.weight": torch.ones(2, 3),
        "logit_scale": torch.ones([]),
        "fc.weight": torch.ones(2),
    }
    return {**beside, **{f"audio.{k}": v for k, v in state.items()}}


def without_bias(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k != "fbsp.bias"}


def with_head(rows: int):
    head = {"fc.weight": torch.rand(rows, 2048), "fc.bias": torch.rand(rows)}
    return lambda state: {**state, **head}


KINDS = {
    "plain": lambda state: state,
    "inside AudioCLIP, 1024 rows": lambda state: audioclip(with_head(1024)(state)),
    "AudioSet head, no fbsp.bias": lambda state: without_bias(with_head(527)(state)),
    "inside AudioCLIP, no fbsp.bias": lambda state: audioclip(without_bias(with_head(50)(state))),
}


FILES = [*((kind, ".pt") for kind in KINDS), ("inside AudioCLIP, no fbsp.bias", ".safetensors")]


@pytest.mark.parametrize(("kind", "suffix"), FILES)
def test_every_kind_loads(state: dict[str, Tensor], kind: str, suffix: str, tmp_path: Path) -> None:
    written = KINDS[kind](state)
    path = tmp_path / f"weights{suffix}"
    save_file(written, path) if suffix == ".safetensors" else torch.save(written, path)
    model = load_esresnext(path)
    assert not model.training
    prefix = "audio." if "AudioCLIP" in kind else ""
    assert all(torch.equal(v, written.get(prefix + k, torch.empty(0))) for k, v in model.state_dict().items())
    path.unlink()


def test_the_old_file_format_loads_too(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert load_esresnext(tmp_path / "old.pt").fc.out_features == 11


BROKEN = {
    "missing bn1.weight": lambda state: {k: v for k, v in state.items() if k != "bn1.weight"},
    "missing conv1.weight, bn1.weight, bn1.bias and 365 more": lambda state: {"window": state["window"]},
    "unexpected surplus": lambda state: {**state, "surplus": torch.ones(2)},
    r"wrong shape att3.bn.bias \(2,\) instead of \(1024,\)": lambda state: {
        **state,
        "att3.bn.bias": torch.ones(2),
    },
    "NaN or infinite values in bn1.bias": lambda state: {
        **state,
        "bn1.bias": torch.full((64,), float("nan")),
    },
    "another window": lambda state: {**state, "window": torch.hann_window(1654)},
}


@pytest.mark.parametrize("problem", BROKEN)
def test_what_does_not_fit_is_named(state: dict[str, Tensor], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(BROKEN[problem](state), path)
    with pytest.raises(EncoderError, match=problem) as caught:
        load_esresnext(path)
    assert "\n" not in str(caught.value)
    assert "--pretrained FILE" in str(caught.value)


class Bomb:
    """Unpickled carelessly, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_code_in_a_checkpoint_is_refused_and_not_executed(writer: str, suffix: str, tmp_path: Path) -> None:
    path, target = tmp_path / f"evil{suffix}", tmp_path / "executed"
    content = {"fc.weight": torch.ones(2, 2), "extra": Bomb(target)}
    torch.save(content, path) if writer == "torch" else path.write_bytes(pickle.dumps(content))
    with pytest.raises(EncoderError, match=r"executed|cannot be read") as caught:
        load_esresnext(path)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    pickle.loads(pickle.dumps(Bomb(target)))  # noqa: S301 — the bomb is real
    assert target.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04 torn zip"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_end_in_one_line(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(EncoderError, match=f"damaged{suffix}") as caught:
        load_esresnext(path)
    assert "\n" not in str(caught.value)


def test_something_else_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "run.pt")
    with pytest.raises(EncoderError, match="more than tensors"):
        load_esresnext(tmp_path / "run.pt")


def test_a_missing_file_names_the_published_ones(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"ESRNXFBSP\.pt, ESResNeXtFBSP_AudioSet\.pt.*--pretrained random"):
        load_esresnext(tmp_path / "ESRNXFBSP.pt")


def test_half_precision_is_widened(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.pt")
    model = load_esresnext(tmp_path / "half.pt")
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
