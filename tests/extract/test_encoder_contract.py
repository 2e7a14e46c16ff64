"""What every registered encoder must keep to: a row depends on one sample and the spec, on nothing else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spaner import registry
from spaner.cache.manifest import EncoderSpec
from spaner.errors import EncoderError
from spaner.extract.encoders import encoder as encoders
from spaner.extract.encoders.encoder import Encoder
from tests.extract.conftest import picture

# How to build each registered encoder offline; a missing one fails `test_every_entry_is_held_to_it`.
BUILDS: dict[str, dict[str, Any]] = {
    "open_clip": {"weights": "random"},
    "digits": {},
}
VIEWS = ("table", "strokes", "path", "speech", "morse")
MODALITIES = {"open_clip": ("image", "text"), "digits": ("image", "text", "audio", *VIEWS)}
HELD_ELSEWHERE = {
    "clap",
    "esresnext",
}  # too large to build for every test: test_clap.py, test_audio_encoder.py
CASES = [(name, modality) for name in BUILDS for modality in MODALITIES[name]]


def payload(name: str, modality: str, seed: int) -> Any:
    if modality == "text":
        return ("zero", "a photo of a three.", "the number seven, as a scan")[seed % 3]
    if modality in ("table", "strokes", "path", "morse"):
        shape = {"table": 64, "morse": 9}.get(modality, (11 + seed, 2))
        return np.random.default_rng(seed).uniform(0.1, 0.9, shape).astype(np.float32)
    if modality in ("audio", "speech"):
        noise = np.random.default_rng(seed).normal(0, 0.1, (1, 8000 + 100 * seed))
        return noise.astype(np.float32), 8000
    return picture(seed, (8, 8) if name == "digits" else (41 + seed, 37))


@dataclass
class Case:
    name: str
    modality: str
    encoder: Encoder

    def inputs(self, count: int) -> torch.Tensor:
        prepared = [
            self.encoder.prepare(payload(self.name, self.modality, i), 0, f"k{i}", 0) for i in range(count)
        ]
        return torch.stack(prepared)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, tiny_model: Path) -> Case:
    name, modality = request.param
    options: dict[str, Any] = BUILDS[name] | ({"model": str(tiny_model)} if name == "open_clip" else {})
    return Case(name, modality, encoders.load(name, modality, **options))


def test_every_entry_is_held_to_it() -> None:
    assert set(encoders.ENCODERS) == set(BUILDS) | HELD_ELSEWHERE


def test_rows_are_float32_on_the_cpu_and_as_wide_as_the_spec_says(case: Case) -> None:
    rows = case.encoder.encode(case.inputs(3))
    assert rows.shape == (3, case.encoder.spec.dim)
    assert (rows.dtype, rows.device.type) == (torch.float32, "cpu")
    assert not rows.requires_grad
    assert rows.isfinite().all()


def test_a_row_is_the_same_alone_in_company_and_in_any_order(case: Case) -> None:
    inputs = case.inputs(5)
    together = case.encoder.encode(inputs)
    alone = torch.cat([case.encoder.encode(one[None]) for one in inputs])
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(case.encoder.encode(inputs[order]), together[order], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1])


def test_encoding_leaves_no_trace(case: Case) -> None:
    inputs = case.inputs(2)
    first = case.encoder.encode(inputs)
    case.encoder.encode(case.inputs(5))
    assert torch.equal(case.encoder.encode(inputs), first)


@pytest.mark.parametrize("view", [0, 1])
def test_preparing_is_a_pure_function(case: Case, view: int) -> None:
    one = payload(case.name, case.modality, 4)
    torch.manual_seed(1)
    first = case.encoder.prepare(one, view, "key", 7)
    torch.manual_seed(2)
    assert torch.equal(case.encoder.prepare(one, view, "key", 7), first)


def test_the_spec_says_what_it_is(case: Case) -> None:
    spec = case.encoder.spec
    assert isinstance(spec, EncoderSpec)
    assert (spec.modality, spec.mode) == (case.modality, "eval")
    assert spec.name.split("/")[0] == case.name
    assert len(spec.weights_sha256) == 64
    assert spec.preprocessing
    assert spec.precision in ("float32", "bfloat16", "float16")


def test_an_unknown_encoder_names_the_nearest() -> None:
    with pytest.raises(EncoderError, match="did you mean `--encoder open_clip`"):
        encoders.load("openclip", "image")
    with pytest.raises(EncoderError, match="expected one of clap, digits, esresnext, open_clip; type"):
        encoders.load("zzz", "image")


def test_an_installed_package_adds_its_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name, value = "theirs", "tests.extract.test_encoder_contract:load_theirs"

    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry] if group == "spaner.encoders" else [])
    assert encoders.load("theirs", "image", model="m") == ("image", "m")


def load_theirs(modality: str, *, model: str, **_: object) -> Any:
    return modality, model
