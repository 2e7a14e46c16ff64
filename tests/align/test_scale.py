"""Two, three, four modalities: every number is that of the training it names; nothing is trained twice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spaner.cache
from spaner.align.score.evaluate import evaluate, evaluate_modalities
from spaner.align.train import scale as scaling
from spaner.align.train.fit import fit
from spaner.align.train.joint import trained_together
from spaner.align.train.scale import chosen, held_bytes, scale
from spaner.errors import CacheError, RecipeError
from tests.conftest import Outcome, made_up_spec, make_toy_cache

FAST: dict[str, Any] = {"heads": 4, "batch_size": 32, "epochs": 2}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy cache, heard and touched too."""
    path = tmp_path_factory.mktemp("scale") / "many"
    make_toy_cache(path)
    rng = np.random.default_rng(1)
    with spaner.cache.create(path, "toy", [f"class {i}" for i in range(11)]) as cache:
        for modality, dim in (("audio", 13), ("touch", 17)):
            means = rng.normal(size=(11, dim))
            for split, rows in (("train", 7), ("test", 5)):
                labels = np.repeat(np.arange(11, dtype=np.int32), rows)
                x = means[labels] + 0.3 * rng.normal(size=(len(labels), dim))
                spec = made_up_spec(modality, dim)
                cache.add(modality, split, x.astype(np.float32), labels, encoder=spec)
    return path


@pytest.fixture(scope="module")
def found(path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    out = tmp_path_factory.mktemp("out")
    return scale(path, base=FAST, out=out), out


def test_a_row_for_every_number_and_way(found):
    result, out = found
    assert result.modalities == ["image", "text", "audio", "touch"]
    told = [(row["modalities"], row["way"], row["added"]) for row in result.rows]
    assert told == [
        (count, way, name)
        for count, name in ((2, "text"), (3, "audio"), (4, "touch"))
        for way in ("extended", "joint")
    ]
    assert json.loads((out / "scale.json").read_text())["check"] == "scale"


def test_joint_numbers_are_those_of_the_run(found, path):
    run = fit(path, modalities="image,text,audio", **FAST)
    row = next(row for row in found[0].rows if (row["modalities"], row["way"]) == (3, "joint"))
    assert row["text"][0] == pytest.approx(evaluate(run, path)["text"]["accuracy"])
    across = evaluate_modalities(run, path, trained_together(run))
    assert row["trained"][0] == pytest.approx(across["trained"]["recall@1"])
    assert row["emergent"] is None
    assert row["parameters"][0] == sum(p.numel() for p in run.model.parameters())


def test_extended_pairs_are_emergent_and_the_core_does_not_move(found):
    extended = [row for row in found[0].rows if row["way"] == "extended"]
    assert extended[0]["emergent"] is None
    assert all(row["emergent"] is not None for row in extended[1:])
    assert len({row["text"][0] for row in extended}) == 1
    seconds = [row["seconds"][0] for row in extended]
    assert seconds == sorted(seconds), "counted with the trainings that led to it"


def test_what_is_finished_is_not_trained_again(found, path, monkeypatch):
    monkeypatch.setattr(scaling, "fit", lambda *_: pytest.fail("trained again"))
    assert scale(path, base=FAST, out=found[1]) == found[0]


def test_memory_counts_parameters_slopes_moments_and_what_a_step_keeps(path, found):
    run = fit(path, **FAST)
    own = sum(p.nbytes for p in run.model.parameters())
    small, large = (
        held_bytes(run, ["image", "text"], run.config.replace(batch_size=size)) - 4 * own for size in (16, 64)
    )
    assert 0 < small < large < 5 * small
    memory = [row["megabytes"][0] for row in found[0].rows if row["way"] == "joint"]
    assert memory == sorted(memory)


def test_bad_input(path):
    with spaner.cache.open(path) as cache:
        assert chosen(cache, None) == ["image", "text", "audio", "touch"]
        for names in (["image"], ["image", "audio", "text"], ["image", "text", "image"], []):
            with pytest.raises(RecipeError, match="expected two to 8 different ones, text among the first"):
                chosen(cache, names)
        with pytest.raises(CacheError, match="has no smell/train; expected one of"):
            chosen(cache, ["image", "text", "smell"])


def test_the_command(cli: Callable[..., Outcome], path, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [word for name, value in FAST.items() for word in (f"--{name.replace('_', '-')}", value)]
    done = cli("scale", "--cache", path, "--out", found[1], *options)
    assert done.status == 0, done.err
    assert "4: + touch" in done.out
    assert "emergent: no loss ever compared the two" in done.out


@pytest.mark.slow
def test_the_digits_are_scaled_from_two_modalities_to_eight(
    cli: Callable[..., Outcome], tmp_path, monkeypatch
):
    """As a user does it: extraction, the check, its part of a report; every pair of eight is found."""
    monkeypatch.chdir(tmp_path)
    options = ("--shots", 16, "--batch-size", 32, "--epochs", 20)
    for line in (
        ("extract", "--dataset", "digits"),
        ("scale", "--cache", "cache/digits", *options),
        ("report", "--check", "scales/digits", "-o", "r.html"),
    ):
        done = cli(*line)
        assert done.status == 0, done.err
    rows = json.loads((tmp_path / "scales" / "digits" / "scale.json").read_text())["rows"]
    assert [(row["modalities"], row["way"]) for row in rows] == [
        (count, way) for count in range(2, 9) for way in ("extended", "joint")
    ]
    last = {row["way"]: row for row in rows[-2:]}
    assert last["joint"]["trained"][0] > last["extended"]["emergent"][0] > 1.5 * last["joint"]["chance"][0]
    assert (tmp_path / "r_files" / "scale-check-1.png").exists()
    assert "8, + table" in (tmp_path / "r.html").read_text()
