"""The paper's tables from small caches: every number against a loop, every gap named with what fills it."""

import json
from pathlib import Path
from typing import Any

import clip_like
import numpy as np
import pytest

from spaner import cache as caches
from spaner.align.paper import audio as audio_tables
from spaner.align.paper.image_text import why_not
from spaner.align.paper.reproduce import ARTIFACTS, SETTINGS, Setup, extract_command, reproduce
from spaner.align.report.table import APART, OURS, plain
from spaner.align.score.evaluate import evaluate
from spaner.align.score.intervals import Number
from spaner.align.train import run as checkpoint
from spaner.errors import CacheError, RecipeError

CLASSES, WIDTH, CLIPS = clip_like.CLASSES, 13, 8
NAMES = [f"class {i}" for i in range(CLASSES)]


def hear(path: Path, splits: tuple[str, ...], per_class: int = CLIPS) -> Path:
    """Audio tables: made-up images through a random projection."""
    projection = np.random.default_rng(7).normal(size=(clip_like.DIM, WIDTH))
    with caches.create(path, "synthetic", NAMES) as cache:
        for seed, split in enumerate(splits, start=50):
            x, labels = clip_like.images(per_class, seed, noise=0.5)
            encoder = clip_like.spec("audio", name="ear", dim=WIDTH, logit_scale=None)
            cache.add("audio", split, (x[:, 0] @ projection).astype(np.float32), labels, encoder=encoder)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    built = clip_like.build(tmp_path_factory.mktemp("reproduce") / "cache", per_class=5)
    return hear(built, tuple(f"fold{i}" for i in range(1, 6)))


@pytest.fixture(scope="module")
def cache(path):
    return caches.open(path)


def setup(artifact: str, path: Path, out: Path, **more) -> Setup:
    return Setup(artifact, "synthetic", path, out, **{"seeds": (1, 2), "epochs": 1, "workers": 1} | more)


def keys(outcome) -> list[str]:
    return [column.key for column in outcome.tables[0].columns]


def published(outcome) -> list[dict[str, Any]]:
    """The numbers of the paper's rows, in order."""
    rows = [row for row in outcome.tables[0].rows if row.mark != OURS]
    return [{key: plain(cell) for key, cell in row.numbers.items()} for row in rows]


@pytest.fixture(scope="module")
def longer(path, cache, tmp_path_factory):
    """A run that audio joined on fold 2, with three shots."""
    out = tmp_path_factory.mktemp("core")
    asked = setup("table3", path, out, epochs=2)
    run = audio_tables._core_runs(asked, cache, lambda *_: None)[0][1]
    return audio_tables.joined(run, cache, audio_tables.splits_of(cache)[1], 3, asked)


# --- the protocol ---


def test_one_fold_trains_and_the_other_four_test(cache):
    splits = audio_tables.splits_of(cache)
    assert [split.train for split in splits] == ["fold1", "fold2", "fold3", "fold4", "fold5"]
    for split in splits:
        assert sorted([split.train, *split.tests]) == ["fold1", "fold2", "fold3", "fold4", "fold5"]
        assert split.select == "first"


def test_audio_joins_from_the_first_clips_of_its_fold(longer, cache):
    table = cache.table("audio/fold2")
    rows = np.concatenate([np.flatnonzero(table.labels == c)[:3] for c in range(CLASSES)])
    (record,) = longer.extensions
    assert record["draw"]["sha256"] == caches.drawn_sha256(table.ids, rows)
    assert record["config"]["batch_size"] == 16


def test_seeded_draws_stand_in_where_there_are_no_folds(tmp_path):
    hear(clip_like.build(tmp_path / "c", per_class=3), ("train", "test"), 3)
    splits = audio_tables.splits_of(caches.open(tmp_path / "c"))
    assert [(s.train, s.tests, s.select, s.draw_seed) for s in splits] == [
        ("train", ("test",), "draw", seed) for seed in range(1, 6)
    ]


def test_every_number_of_sound_equals_a_loop(longer, cache):
    tests = ("fold1", "fold3", "fold4", "fold5")
    found = audio_tables.heard(longer, cache, tests)
    tables = [cache.table(f"audio/{name}") for name in tests]
    clips = np.concatenate([longer.embed("audio", np.array(t.read()[:, 0])) for t in tables])
    labels = np.concatenate([t.labels for t in tables])
    image = cache.table("image/test")
    images = longer.embed("image", np.array(image.read()[:, 0]))
    words = longer.embed("text", np.array(cache.table("text/classname").read()[:, 0]))
    own = [
        [float(clip @ each) for each, c in zip(images, image.labels, strict=True) if c == label]
        for clip, label in zip(clips, labels, strict=True)
    ]
    expected = {
        "semantic": np.mean(
            [np.argmax(words @ clip) == label for clip, label in zip(clips, labels, strict=True)]
        ),
        "semantic_to_audio": np.mean([labels[np.argmax(clips @ word)] == c for c, word in enumerate(words)]),
        "image_to_audio": np.mean(
            [labels[np.argmax(clips @ each)] == c for each, c in zip(images, image.labels, strict=True)]
        ),
        "audio_to_image": np.mean(
            [image.labels[np.argmax(images @ clip)] == c for clip, c in zip(clips, labels, strict=True)]
        ),
        "audio_semantic_cosine": np.mean(
            [clip @ words[label] for clip, label in zip(clips, labels, strict=True)]
        ),
        "audio_image_cosine": np.mean(own),
    }
    for name, value in expected.items():
        assert found.numbers[name] == pytest.approx(value, abs=1e-5), name
    assert found.counts == {
        "clips": 4 * CLIPS * CLASSES,
        "semantic_to_audio": CLASSES,
        "image_to_audio": image.rows,
        "audio_to_image": 4 * CLIPS * CLASSES,
    }
    assert found.ids[0] == f"audio/fold1/{tables[0].ids[0]}"


def test_examples_show_the_five_nearest_names_in_order(longer, cache):
    found = audio_tables.heard(longer, cache, ("fold1",))
    words = longer.embed("text", np.array(cache.table("text/classname").read()[:, 0]))
    answers = audio_tables.top(found, words, NAMES)
    for answer, clip, label in zip(answers, found.x, found.labels, strict=True):
        order = sorted(range(CLASSES), key=lambda c: -float(clip @ words[c]))[:5]
        assert [each["name"] for each in answer["top"]] == [NAMES[c] for c in order]
        assert answer["right"] == (order[0] == label)
        assert answer["class"] == NAMES[label]


# --- the tables ---


def test_table1_is_the_mean_over_seeds_and_trains_once(path, cache, tmp_path):
    asked = setup("table1", path, tmp_path)
    outcome = reproduce(asked)
    runs = {f: checkpoint.load(f) for f in sorted((tmp_path / "runs").iterdir())}
    assert [f.name for f in runs] == ["anchored-seed-1", "anchored-seed-2", "paper-seed-1", "paper-seed-2"]
    ours = {row.name: row.numbers for row in outcome.tables[0].rows if row.mark == OURS}
    for recipe in ("paper", "anchored"):
        scores = [
            evaluate(run, cache)["semantic"]["accuracy"]
            for run in runs.values()
            if run.config.recipe == recipe
        ]
        assert ours[f"SPANER, {recipe}"]["semantic"] == Number.over(scores)
    rows = [row.name for row in outcome.tables[0].rows]
    assert rows == ["frozen encoder", "ZS CLIP", "SPANER, paper", "SPANER", "SPANER, anchored"]
    assert published(outcome) == [
        {"text": 0.667, "semantic": 0.641, "gap": 0.026},
        {"text": 0.697, "semantic": 0.676, "gap": 0.021},
    ]
    record = json.loads((tmp_path / "table1.json").read_text())
    assert (record["comparable"], record["seeds"]) == (False, [1, 2])
    assert str(tmp_path.parent.parent) not in json.dumps({**record, "command": ""}), "no absolute path"
    assert reproduce(asked).tables == outcome.tables
    assert [checkpoint.load(f).seconds for f in runs] == [run.seconds for run in runs.values()]


def test_a_number_over_repetitions_is_the_mean_and_the_samples_deviation():
    found = Number.over([1, 2, 6])
    assert found is not None
    assert (found.value, found.std, found.n) == (3, pytest.approx(7**0.5), 3)
    assert Number.over([0.5]) == Number(0.5), "one has no deviation"
    assert Number.over([0.5, None]) is None
    assert Number.over([]) is None


def test_a_saved_run_of_other_settings_is_not_taken(path, tmp_path):
    reproduce(setup("table1", path, tmp_path, seeds=(1,)))
    reproduce(setup("table1", path, tmp_path, seeds=(1,), epochs=2))
    assert checkpoint.load(tmp_path / "runs" / "paper-seed-1").config.epochs == 2


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Where artifacts meet, so that one finds the runs that another trained."""
    return tmp_path_factory.mktemp("made")


@pytest.mark.parametrize("artifact", [name for name in ARTIFACTS if name not in ("table1", "table4")])
def test_every_artifact_has_numbers_beside_the_papers(path, made, artifact):
    outcome = reproduce(setup(artifact, path, made, seeds=(1,)))
    for row in outcome.tables[0].rows:
        if row.mark == OURS:
            values = [plain(row.numbers[column.key]) for column in outcome.tables[0].columns]
            assert all(isinstance(value, float) and np.isfinite(value) for value in values)
        else:
            assert row.mark == APART
            assert "other data (synthetic" in row.because
    assert any("other data (synthetic" in reason for reason in outcome.why_not)
    assert any("made-up embeddings" in reason for reason in outcome.why_not)
    assert "1 epochs, not the recipe's" in outcome.why_not
    assert all(file.exists() for file in outcome.figures)
    assert bool(outcome.figures) == artifact.startswith("fig")
    assert json.loads((made / f"{artifact}.json").read_text())["numbers"]
    expected = {
        "table2": {"text_cosine": 0.748, "semantic_cosine": 0.691},
        "table3": {"semantic": 0.554},
        "table5": {"semantic_to_audio": 0.842, "image_to_audio": 0.868},
        "fig5": {"audio_image_cosine": 0.55, "audio_semantic_cosine": 0.48},
    }
    if artifact in expected:
        assert expected[artifact] in published(outcome)


def test_table4_scores_the_same_runs_on_shifted_caches(path, tmp_path):
    shifted = clip_like.build(tmp_path / "shifted", per_class=2)
    outcome = reproduce(setup("table4", path, tmp_path / "out", seeds=(1,), shift=(shifted, path)))
    assert keys(outcome) == ["text", "shifted", "cache"], "caches of one data set go by file name"
    run = checkpoint.load(tmp_path / "out" / "runs" / "paper-seed-1")
    ours = {row.name: row.numbers for row in outcome.tables[0].rows}["SPANER, paper"]
    assert plain(ours["shifted"]) == evaluate(run, shifted)["text"]["accuracy"]
    assert ours["cache"] == ours["text"]


def test_table6_shows_five_right_and_five_wrong(path, tmp_path):
    outcome = reproduce(setup("table6", path, tmp_path, seeds=(1,), epochs=12))
    kinds = [row.numbers["answer"] for row in outcome.tables[1].rows]
    assert kinds == ["right"] * 5 + ["wrong"] * 5
    assert "audio" in checkpoint.load(tmp_path / "runs" / "paper-seed-1+audio").widths


def test_sound_joins_a_given_run(path, tmp_path, longer):
    folder = longer.save(tmp_path / "mine")
    core = checkpoint.load(folder)
    del core.model.aligners["audio"], core.model.inputs["audio"], core.widths["audio"], core.encoders["audio"]
    core.extensions.clear()
    core.save(folder)
    outcome = reproduce(setup("table3", path, tmp_path / "out", run=folder))
    assert [row.name for row in outcome.tables[0].rows if row.mark == OURS] == [
        f"SPANER, mine, {k}" for k in ("1 shot", "2 shots", "4 shots")
    ]
    assert not (tmp_path / "out" / "runs").exists()


def test_a_longer_training_set_is_a_reason(cache, path, tmp_path):
    reasons = why_not(setup("table1", path, tmp_path, epochs=None), cache)
    assert f"trained on all {5 * CLASSES} rows, not 16 shots" in reasons
    assert not any("epochs" in reason for reason in reasons)


# --- what is missing is named, with what to type ---


@pytest.mark.parametrize(
    ("dataset", "path", "modality", "command"),
    [
        ("imagenet", "cache/imagenet16", "", "spaner extract --modality image"),
        ("digits", "cache/digits", "", "spaner extract --dataset digits"),
        ("digits", "d.h5", "audio", "spaner extract --dataset digits --modality audio --cache d.h5"),
        ("imagenet-a", "cache/imagenet-a", "", "spaner extract --dataset imagenet-a --modality image"),
        (
            "imagenet-esc-19",
            "cache/imagenet-esc-19",
            "",
            "spaner extract --dataset imagenet-esc-19 --shots 16 --cache cache/imagenet-esc-19",
        ),
    ],
)
def test_the_command_that_fills_a_cache(dataset, path, modality, command):
    assert extract_command(dataset, Path(path), modality) == command


def test_missing_parts_are_one_line(tmp_path, path):
    gone = Setup("table1", "digits", tmp_path / "gone", tmp_path / "out")
    with pytest.raises(
        CacheError,
        match=r"no cache at .*gone: table1 needs image/train.*; type `spaner extract --data",
    ):
        reproduce(gone)
    clip_like.build(tmp_path / "deaf", per_class=2, skip=("text/vanilla",))
    with pytest.raises(
        CacheError,
        match=r"table1 needs text/vanilla, and .*deaf holds .*; type `spaner .*--modality text",
    ):
        reproduce(setup("table1", tmp_path / "deaf", tmp_path / "out"))
    silent = clip_like.build(tmp_path / "silent", per_class=2)
    with pytest.raises(
        CacheError,
        match=r"no sound to join: found no audio, expected audio/fold1 .*--modality audio",
    ):
        reproduce(setup("table3", silent, tmp_path / "out"))
    with pytest.raises(CacheError, match=r"table4 does not exist for synthetic: .*--shift CACHE"):
        reproduce(setup("table4", path, tmp_path / "out"))
    hear(silent, ("fold1", "fold2", "fold3", "fold5"))
    with pytest.raises(CacheError, match=r"fold4 missing, found fold1, fold2, fold3, fold5"):
        reproduce(setup("fig5", silent, tmp_path / "out"))
    assert not (tmp_path / "out").exists(), "nothing is trained before what is missing is known"


def test_imagenet_shifts_that_are_not_there(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = Setup("table4", "imagenet", path, tmp_path / "out", seeds=(1,), epochs=1)
    with pytest.raises(
        CacheError,
        match=r"found none of cache/imagenet-v2, .*--dataset imagenet-v2 --modality image",
    ):
        reproduce(asked)
    clip_like.build(tmp_path / "cache" / "imagenet-r", per_class=2)
    monkeypatch.setitem(SETTINGS, "imagenet", {})
    outcome = reproduce(asked)
    assert keys(outcome) == ["text", "imagenet-r"]
    assert [line.split(";")[0] for line in outcome.missing] == [
        f"no cache at cache/{name}" for name in ("imagenet-v2", "imagenet-sketch", "imagenet-a")
    ]
    assert published(outcome)[-1] == {"imagenet-r": 0.670, "text": 0.697}


def test_template_sets_that_are_not_there_are_named(path, tmp_path):
    outcome = reproduce(setup("fig7", path, tmp_path, seeds=(1,)))
    (line,) = outcome.missing
    assert line.startswith("text/hand_crafted, text/ensemble not in ")
    assert line.endswith("--modality text --cache " + str(path) + " --templates hand_crafted,ensemble`")


def test_an_artifact_and_a_seed_there_must_be(path, tmp_path):
    with pytest.raises(
        RecipeError,
        match=r"reproduce table9: there is none; expected one of table1, .*; type",
    ):
        reproduce(setup("table9", path, tmp_path))
    with pytest.raises(RecipeError, match=r"list of seeds is empty; .*--seeds 1,2,3"):
        reproduce(setup("table1", path, tmp_path, seeds=()))


@pytest.mark.usefixtures("few_rows_in_the_plane")
def test_the_command_prints_both_rows_and_writes_the_page(cli, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", "table1", "--dataset", "synthetic", "--cache", path, "--seeds", 1, "--epochs", 1]
    done = cli(*words)
    assert done.status == 0, done.err
    assert "SPANER, paper" in done.out
    assert "published: SPANER, not comparable" in done.out
    assert "not comparable with the published rows, because: other data (synthetic, not imagenet)" in done.out
    folder = Path("reproduced/table1-synthetic")
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert json.loads((folder / "table1.json").read_text())["command"].startswith("spaner reproduce table1")
