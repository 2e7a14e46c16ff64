"""Run folders: written at once, read strictly, refusing what the run was not trained for."""

import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import clip_like
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spaner import cache as caches
from spaner.align.train import run as checkpoint
from spaner.align.train import run_folder
from spaner.align.train.fit import fit
from spaner.errors import Mismatch, RunError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return caches.open(clip_like.build(tmp_path_factory.mktemp("checkpoint") / "cache", per_class=3))


@pytest.fixture(scope="module")
def run(cache):
    return fit(cache, recipe="anchored", heads=4, epochs=3)


@pytest.fixture
def folder(run, tmp_path):
    return run.save(tmp_path / "run")


def test_files(folder):
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["config.json", "loss.csv", "model.safetensors", "result.json"]
    assert sorted(folder.parent.iterdir()) == [folder]


def test_round_trip(run, folder):
    loaded = checkpoint.load(folder)
    for field in dataclasses.fields(run):
        if field.name not in ("model", "history"):
            assert getattr(loaded, field.name) == getattr(run, field.name), field.name
    assert loaded.history == run.history
    for (name, ours), (other, theirs) in zip(
        run.model.state_dict().items(), loaded.model.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs)
    x = np.random.default_rng(0).normal(size=(5, clip_like.DIM))
    assert np.array_equal(run.embed("image", x), loaded.embed("image", x))


def test_result_holds_what_repeats_the_run(run, cache, folder):
    result = json.loads((folder / "result.json").read_text())
    assert {**result, "cache": None} == {**run.result, "cache": None}
    assert result["schema"] == "spaner-run/1"
    assert result["config"]["recipe"] == "anchored"
    assert result["draw"]["sha256"] == caches.ids_sha256(cache.table("image/train").ids.tolist())
    assert result["synthetic"] is True
    assert set(result["versions"]) == {"spaner", "torch", "arithmetic"}
    assert result["versions"]["arithmetic"] == "float32"  # batches this small gain nothing from bfloat16
    assert json.loads((folder / "config.json").read_text()) == result["config"]


def test_weights_alone_say_what_they_are(folder, run):
    with safe_open(folder / "model.safetensors", framework="pt") as stored:
        metadata = stored.metadata()
    assert list(metadata) == ["spaner"], "one entry: safetensors writes several in random order"
    facts = json.loads(metadata["spaner"])
    assert facts["config"] == run.config.to_json()
    assert facts["encoders"]["image"]["name"] == "synthetic"
    assert facts["class_names"] == list(run.class_names)


def test_the_same_run_has_the_same_bytes(run, tmp_path):
    a, b = (run.save(tmp_path / "a" / "run"), run.save(tmp_path / "b" / "run"))
    for file in sorted(a.iterdir()):
        assert file.read_bytes() == (b / file.name).read_bytes(), file.name


def test_weights_and_result_of_different_trainings_are_refused(run, folder, tmp_path):
    mixed = shutil.copytree(folder, tmp_path / "mixed")
    other = dataclasses.replace(run, seconds=run.seconds + 1).save(tmp_path / "other")
    shutil.copy(other / "model.safetensors", mixed / "model.safetensors")
    with pytest.raises(RunError, match=r"beside it belong to different trainings; .*spaner train"):
        checkpoint.load(mixed)


def test_two_trainings_into_one_place_never_mix(run, tmp_path):
    """Each wins whole or loses whole, whatever the order of their steps."""
    runs = [dataclasses.replace(run, seconds=float(i)) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            list(pool.map(lambda each: each.save(tmp_path / "run"), runs))
            checkpoint.load(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "nothing is left behind"


def test_metrics_are_kept(run, tmp_path):
    scored = dataclasses.replace(run, metrics={"text": {"accuracy": 0.5}})
    assert checkpoint.load(scored.save(tmp_path / "run")).metrics == {"text": {"accuracy": 0.5}}


def test_the_way_to_the_cache_is_relative_and_survives_a_move(run, tmp_path):
    scored = dataclasses.replace(run, cache=tmp_path / "a" / "cache")
    folder = scored.save(tmp_path / "a" / "runs" / "run")
    assert json.loads((folder / "result.json").read_text())["cache"] == "../../cache"
    assert str(tmp_path) not in (folder / "result.json").read_text()
    (tmp_path / "a").rename(tmp_path / "b")
    moved = checkpoint.load(tmp_path / "b" / "runs" / "run")
    assert moved.cache == (tmp_path / "b" / "cache").resolve()


def test_saving_again_replaces_the_run(run, folder):
    (folder / "left over").touch()
    run.save(folder)
    assert not (folder / "left over").exists()
    assert sorted(folder.parent.iterdir()) == [folder]


def test_an_interrupted_save_leaves_the_old_run(run, folder, monkeypatch):
    before = (folder / "result.json").read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "_write_history", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dataclasses.replace(run, metrics={}).save(folder)
    assert (folder / "result.json").read_bytes() == before
    checkpoint.load(folder)
    monkeypatch.undo()
    run.save(folder)


def test_something_else_is_not_overwritten(run, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"exists and is not a run folder; choose another place"):
        run.save(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_names_tell_runs_apart(run, cache):
    assert run.name.startswith("anchored-")
    assert run.name == fit(cache, recipe="anchored", heads=4, epochs=3).name
    assert run.name != fit(cache, recipe="anchored", heads=4, epochs=3, shots=2).name


def test_no_such_folder(tmp_path):
    with pytest.raises(RunError, match=r"no run folder at .*none; make one with `spaner train`"):
        checkpoint.load(tmp_path / "none")


def test_not_a_run(tmp_path):
    with pytest.raises(RunError, match=r"is not a run folder: it has no result.json; run `spaner train`"):
        checkpoint.load(tmp_path)


def test_unfinished(folder):
    (folder / "result.json").unlink()
    with pytest.raises(RunError, match=r"is an unfinished run: it has no result.json"):
        checkpoint.load(folder)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_damaged_result(folder, content):
    (folder / "result.json").write_text(content)
    with pytest.raises(RunError, match=r"result.json is not a result in JSON"):
        checkpoint.load(folder)


def test_another_schema(folder, run):
    (folder / "result.json").write_text(json.dumps(run.result | {"schema": "spaner-run/7"}))
    with pytest.raises(
        RunError, match=r"has schema 'spaner-run/7'; expected 'spaner-run/1'; use the version"
    ):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("prompt"), r"tensor 'prompt' has shape missing; expected \(2, 24\) \(1 such"),
        (
            lambda t: t.update(extra=torch.ones(3)),
            r"tensor 'extra' has shape \(3,\); expected no such tensor",
        ),
        (
            lambda t: t.update(prompt=torch.ones(3, 24)),
            r"tensor 'prompt' has shape \(3, 24\); expected \(2, 24\)",
        ),
    ],
)
def test_tensors_that_do_not_fit(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(RunError, match=message):
        checkpoint.load(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "loss.csv"])
def test_missing_or_damaged_file(folder, file):
    (folder / file).unlink()
    with pytest.raises(RunError, match=rf"{file} cannot be read: .*; run `spaner train` again"):
        checkpoint.load(folder)
    (folder / file).write_bytes(b"epoch,loss\n1,two\n")
    with pytest.raises(RunError, match=rf"{file} cannot be read: .*; run `spaner train` again"):
        checkpoint.load(folder)


def test_embed_gives_float32_unit_vectors(run, cache):
    x = cache.table("image/test").read(slice(0, 7))[:, 0]
    f = run.embed("image", x.astype(np.float16))
    assert (f.shape, f.dtype) == ((7, clip_like.DIM), np.float32)
    np.testing.assert_allclose(np.linalg.norm(f, axis=1), 1, atol=1e-6)
    assert run.embed("image", x[:0]).shape == (0, clip_like.DIM)


def test_embed_refuses_other_modalities_and_widths(run):
    with pytest.raises(RunError, match=r"the run has no aligner for 'audio'; it knows image, text"):
        run.embed("audio", np.ones((2, clip_like.DIM)))
    with pytest.raises(RunError, match=r"image embeddings have shape \(2, 5\); expected \(rows, 24\); use"):
        run.embed("image", np.ones((2, 5)))


def test_check_accepts_the_encoder_and_names_what_differs(run, cache):
    manifest = cache.table("image/test").manifest
    run.check(manifest)
    run.check(dataclasses.replace(manifest, encoder=clip_like.spec("image", precision="bf16")))
    other = dataclasses.replace(
        manifest, encoder=clip_like.spec("image", weights_sha256="ab", mode="batch_stats")
    )
    with pytest.raises(
        Mismatch, match=r"image/test .* another encoder .*weights_sha256: run '', cache 'ab'; mode: run"
    ):
        run.check(other)
    with pytest.raises(Mismatch, match=r"audio was not part of the training; the run knows image, text"):
        run.check(dataclasses.replace(manifest, modality="audio"))
