"""The prompt taken away in every way that is named, paired with the reference, and run once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spaner.align.methods.spaner import Spaner
from spaner.align.train import ablate
from spaner.align.train.ablate import REFERENCE, REPLACED, TRAINED, ablate_prompt, replaced_prompts
from spaner.align.train.extend import frozen_sha256
from spaner.align.train.fit import fit
from spaner.errors import RecipeError
from tests.conftest import Outcome

FAST: dict[str, Any] = {"heads": 4, "batch_size": 32, "epochs": 1}


@pytest.fixture(scope="module")
def found(toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    out = tmp_path_factory.mktemp("ablation")
    return ablate_prompt(toy_cache, FAST, seeds=(1, 2), lengths=(1, 2), out=out), out


def test_every_variant_stands_beside_the_reference(found):
    result, out = found
    names = [row["variant"] for row in result.rows]
    assert names == [REFERENCE, *TRAINED, "P = 1", *REPLACED]  # P = 2 is the reference
    assert all(row["runs"] == 2 for row in result.rows)
    assert json.loads((out / "ablation.json").read_text())["check"] == "prompt"
    assert set(result.zero_shot) == {"text", "semantic"}


def test_differences_are_paired_with_the_reference(found):
    by_name = {row["variant"]: row for row in found[0].rows}
    reference = by_name[REFERENCE]
    assert reference["text_lost"] == {"mean": 0, "low": 0, "high": 0, "std": 0}
    for row in by_name.values():
        for kind in ("text", "semantic"):
            lost = row[f"{kind}_lost"]
            assert lost["mean"] == pytest.approx(reference[kind]["mean"] - row[kind]["mean"], abs=1e-5)
            assert lost["low"] <= lost["mean"] <= lost["high"]
    assert by_name["no attention: linear heads"]["parameters"] < reference["parameters"] / 2
    assert by_name["a prompt for each modality"]["parameters"] == reference["parameters"] + 2 * 24


def test_what_is_finished_is_not_trained_again(found, toy_cache, monkeypatch):
    result, out = found
    monkeypatch.setattr(ablate, "fit", lambda *_: pytest.fail("trained again"))
    assert ablate_prompt(toy_cache, FAST, seeds=(1, 2), lengths=(1, 2), out=out) == result


def test_a_wrong_prompt_is_all_that_changes(toy_cache):
    run, donor = (fit(toy_cache, **FAST, seed=seed) for seed in (1, 2))
    before = run.model.prompt.detach().clone()
    seen = [before]
    for name, changed in replaced_prompts(run, donor):
        prompt = changed.model.prompt.detach()
        assert not any(torch.equal(prompt, other) for other in seen), name
        seen.append(prompt)
        for part in run.model.aligners:
            own, other = run.model.aligners[part].state_dict(), changed.model.aligners[part].state_dict()
            assert all(torch.equal(own[key], other[key]) for key in own)
    assert torch.equal(run.model.prompt, before)
    assert torch.equal(seen[2].sort(1).values, before.sort(1).values)
    assert torch.equal(seen[3], donor.model.prompt)


def test_no_prompt_is_attention_of_a_sample_with_itself():
    model = Spaner({"image": 24, "text": 24}, logit_scale=20.0, heads=4, prompt_length=0).double()
    x = torch.nn.functional.normalize(torch.randn(7, 24, dtype=torch.float64), dim=1)
    aligner: Any = model.aligners["image"]
    token = x[:, None]
    attended = aligner.attn(token, token, token, need_weights=False)[0][:, 0]
    f, z = model("image", x)
    torch.testing.assert_close(f, aligner.proj(attended + x))
    torch.testing.assert_close(z, attended)


def test_an_untrained_prompt_stays_and_own_prompts_part(toy_cache):
    start = Spaner({"image": 24, "text": 24}, logit_scale=20.0, heads=4, prompt="frozen").prompt
    frozen = fit(toy_cache, **FAST, prompt="frozen").model
    assert torch.equal(frozen.prompt, start)
    own = fit(toy_cache, **FAST, prompt="own").model
    assert set(own.prompts) == {"image", "text"}
    assert not torch.equal(own.prompts["image"], own.prompts["text"])


def test_a_newcomer_brings_its_own_prompt_to_a_core_that_has_one_each():
    core = Spaner({"image": 24, "text": 24}, logit_scale=20.0, heads=4, prompt="own")
    joined = core.joined("audio", 13, seed=1)
    assert joined.prompts["audio"].requires_grad
    assert not joined.prompts["image"].requires_grad
    assert frozen_sha256(joined) == frozen_sha256(core.requires_grad_(requires_grad=False))


def test_bad_input(toy_cache, tmp_path):
    def refused(message: str, base: dict[str, Any], seeds: tuple[int, ...] = (1,)) -> None:
        with pytest.raises(RecipeError, match=message):
            ablate_prompt(toy_cache, base, seeds=seeds, out=tmp_path)

    refused("method gda has no shared prompt; expected spaner", {"method": "gda"})
    refused("the list for seeds is empty", {}, ())
    refused("no shared, trained prompt to take away", {"prompt": "own"})
    message = "prompt_length is 0, and aligner=attention with attend=prompt looks at a prompt"
    with pytest.raises(RecipeError, match=message):
        fit(toy_cache, **FAST, prompt_length=0, attend="prompt")
    with pytest.raises(RecipeError, match="pool is 'input' and the linear aligner has no tokens"):
        fit(toy_cache, **FAST, aligner="linear", pool="input")


def test_the_command_prints_a_line_a_variant(
    cli: Callable[..., Outcome], found, toy_cache, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    options = [word for name, value in FAST.items() for word in (f"--{name.replace('_', '-')}", value)]
    done = cli(
        *("ablate", "prompt", "--cache", toy_cache, "--recipe", "paper", "--seeds", "1,2"),
        *("--lengths", "1,2", "--out", found[1], *options),
    )
    assert done.status == 0, done.err
    for row in found[0].rows:
        assert row["variant"] in done.out
    assert "zero-shot: text" in done.out
