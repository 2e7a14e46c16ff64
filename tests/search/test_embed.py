"""New files in a run's space: the same vectors as the cache's rows, the same care as extraction."""

import csv
import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePath

import numpy as np
import pytest

import spaner
from spaner.align.score import calibration
from spaner.align.train.config import TrainConfig
from spaner.align.train.run import Run
from spaner.align.train.task import task
from spaner.errors import CacheError, DatasetError, EncoderError, Mismatch, RunError
from spaner.search import embed as embedding
from spaner.search import encoding, sources
from tests.conftest import Outcome
from tests.search.conftest import PICTURES, SOUNDS

Cli = Callable[..., Outcome]


def cached(run: Run, digits: Path, modality: str, keys: list[str]) -> np.ndarray:
    """Rows of the cache in the run's space, by the ids that file names stand for."""
    table = spaner.open(digits).table(f"{modality}/test")
    row_of = {key: row for row, key in enumerate(table.ids.tolist())}
    rows = [row_of[PurePath(key).stem.replace("-", "/")] for key in keys]
    return run.embed(modality, table.read(np.array(rows))[:, 0].astype(np.float32))


def test_files_land_where_the_rows_of_the_cache_do(run: Run, digits: Path, files: Path) -> None:
    found = run.embed_files(files)
    assert [found.modalities.count(m) for m in ("image", "audio")] == [PICTURES, SOUNDS]
    assert found.failures == {}
    for modality in ("image", "audio"):
        rows = [i for i, name in enumerate(found.modalities) if name == modality]
        wanted = cached(run, digits, modality, [found.ids[i] for i in rows])
        np.testing.assert_allclose(found.z[rows], wanted, atol=2e-3)
    assert found.labels == [key.split("/")[0] for key in found.ids], "a file's class is its folder"


def test_text_lands_where_the_class_names_do(run: Run, digits: Path) -> None:
    names = spaner.open(digits).class_names
    table = spaner.open(digits).table("text/vanilla")
    wanted = run.embed("text", table.read()[:, 0].astype(np.float32))
    np.testing.assert_allclose(run.embed_text([f"a photo of a {name}." for name in names]), wanted, atol=2e-3)


def test_a_table_holds_what_memory_does_and_is_not_made_twice(
    run: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    shutil.copytree(files, tmp_path / "in" / "files")
    (tmp_path / "in" / "files" / "broken.png").write_bytes(b"no picture")
    source = sources.gather([tmp_path / "in" / "files"])
    done = embedding.embed(run, source, tmp_path / "out")
    image = spaner.open(tmp_path / "out").table("image/new")
    assert image.failures() == {"broken.png": "not an image (JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, JPEG2000)"}
    memory = run.embed_files(tmp_path / "in" / "files")
    row_of = {key: row for row, key in enumerate(memory.ids)}
    z = image.read()[:, 0].astype(np.float32)
    np.testing.assert_allclose(z, memory.z[[row_of[key] for key in image.ids]], atol=1e-3)
    assert not z[~image.ok].any()
    assert image.measured["purity"]["max_relative"] < 1e-3, "measured as in extraction"

    def encode(*_: object) -> None:
        raise AssertionError("a finished row was encoded again")

    monkeypatch.setattr(encoding.Mapped, "encode", encode)
    again = embedding.embed(run, source, tmp_path / "out")
    assert [(t.rows, t.resumed) for t in again] == [(t.rows, t.rows) for t in done]


def test_an_interrupted_embedding_goes_on(
    run: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, calls = sources.gather([files]), []
    whole = embedding.embed(run, source, tmp_path / "whole")
    prepare = encoding.Mapped.encode

    def interrupted(self: encoding.Mapped, batch: object) -> object:
        calls.append(batch)
        if self.encoder.spec.modality == "audio":
            raise KeyboardInterrupt
        return prepare(self, batch)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(encoding.Mapped, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedding.embed(run, source, tmp_path / "out")
    monkeypatch.undo()
    again = embedding.embed(run, source, tmp_path / "out")
    assert [(t.name, t.resumed) for t in again] == [("image/new", PICTURES), ("audio/new", 0)]
    for name in [t.name for t in whole]:
        a, b = (spaner.open(tmp_path / place).table(name).read() for place in ("whole", "out"))
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_plain_files(cli: Cli, run: Run, run_folder: Path, files: Path, tmp_path: Path, ending: str) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"z.{ending}"
    done = cli("embed", "--run", run_folder, files, "--out", out, "--json")
    assert done.status == 0, done.err
    assert [t["rows"] for t in json.loads(done.out)["tables"]] == [PICTURES, SOUNDS]
    if ending == "npy":
        z = np.load(out)
        ids = [row["id"] for row in csv.DictReader(out.with_suffix(".csv").read_text().splitlines())]
    else:
        from pyarrow import parquet

        table = parquet.read_table(out)
        z, ids = np.array(table["vector"].to_pylist()), table["id"].to_pylist()
    memory = run.embed_files(files)
    row_of = {key: row for row, key in enumerate(memory.ids)}
    np.testing.assert_allclose(z, memory.z[[row_of[key] for key in ids]], atol=1e-3)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing is left beside it"


def test_cached_tables_are_mapped(cli: Cli, run: Run, run_folder: Path, digits: Path, tmp_path: Path) -> None:
    words = ["--cache", digits / "audio" / "test", "--cache", digits / "text" / "mined"]
    done = cli("embed", "--run", run_folder, *words, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    out, before = spaner.open(tmp_path / "out"), spaner.open(digits)
    z = out.table("audio/test").read()[:, 0].astype(np.float32)
    x = before.table("audio/test").read()[:, 0].astype(np.float32)
    np.testing.assert_allclose(z, run.embed("audio", x), atol=1e-3)
    texts = out.table("text/mined").read()[:, 0].astype(np.float32)
    x = before.table("text/mined").read().astype(np.float32)
    mean = np.mean([run.embed("text", x[:, view]) for view in range(x.shape[1])], axis=0)
    np.testing.assert_allclose(texts, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-3)
    with pytest.raises(Mismatch, match="another encoder"):
        run.check(out.table("audio/test").manifest)  # mapped rows are not mapped twice
    other = dataclasses.replace(run.encoders["audio"], weights_sha256="ff")
    stranger = dataclasses.replace(run, encoders=run.encoders | {"audio": other})
    with pytest.raises(Mismatch, match="weights_sha256"):
        embedding.embed_tables(stranger, [(before, "audio/test")], tmp_path / "no")


def test_a_csv_names_files_texts_and_classes(run: Run, files: Path, tmp_path: Path) -> None:
    picture = next(files.rglob("*.png"))
    shutil.copy(picture, tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("path,text,label\na.png,,round\n,a round thing,round\n,thing,\n")
    source = sources.gather([tmp_path / "list.csv"])
    names = source.dataset.class_names
    assert names == ["round", "unlabelled"]
    assert {m: [names[i] for i in s["new"].labels] for m, s in source.dataset.splits.items()} == {
        "image": ["round"],
        "text": ["round", "unlabelled"],
    }
    pattern = sources.gather([str(files / "*" / "*.wav")])
    assert list(pattern.dataset.splits) == ["audio"]
    assert len(pattern.dataset.splits["audio"]["new"]) == SOUNDS
    assert len(sources.gather([picture, picture]).dataset.splits["image"]["new"]) == 1


def test_probabilities_are_calibrated_on_validation_rows(run: Run, digits: Path, files: Path) -> None:
    config = TrainConfig.from_recipe("paper", shots=16, batch_size=32)
    data = task(spaner.open(digits), config)
    assert data.validation is not None
    x, labels = data.validation.x[:, 0].numpy(), data.validation.labels.numpy()
    logits = run.scores("image", x, data.query("text")) * run.logit_scale
    assert run.temperature == pytest.approx(calibration.temperature(logits, labels), rel=1e-3)
    assert run.temperature is not None
    found = run.classify(files)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-6)
    assert calibration.nll(logits, labels, run.temperature) <= calibration.nll(logits, labels)
    classes = run.embed_text([f"a photo of a {name}." for name in run.class_names])
    p = np.exp(run.embed_files(files).z @ classes.T * (run.logit_scale / run.temperature))
    np.testing.assert_allclose(found.probabilities, p / p.sum(axis=1, keepdims=True), atol=2e-3)
    right = [label == key.split("/")[0] for label, key in zip(found.labels, found.ids, strict=True)]
    assert np.mean(right) > 0.3, "far above 1 in 10"
    other = run.classify(next(files.rglob("*.wav")), class_names=["three", "umbrella"])
    assert other.probabilities.shape == (1, 2)


def test_a_head_classifies_its_own_classes_alone(digits: Path, files: Path) -> None:
    head = spaner.fit(digits, method="linear_probe", shots=4)
    picture, sound = next(files.rglob("*.png")), next(files.rglob("*.wav"))
    assert head.classify(picture).labels[0] in head.class_names
    with pytest.raises(RunError, match="no space"):
        head.embed_files(picture)
    with pytest.raises(RunError, match="no space"):
        head.classify(sound)
    with pytest.raises(Mismatch, match="fitted on 10 classes"):
        head.classify(picture, class_names=["cat", "dog"])


# --- one line for a mistake ---


def test_a_list_of_the_users_is_not_written_over(run: Run, tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_text("path\na.jpg\n")
    words = sources.gather([], ["one"])
    with pytest.raises(
        CacheError, match=r"photos.csv exists already, where the list of the rows of photos.npy"
    ):
        embedding.embed(run, words, tmp_path / "photos.npy")
    assert (tmp_path / "photos.csv").read_text() == "path\na.jpg\n"
    for _ in range(2):  # its own list it does replace
        embedding.embed(run, words, tmp_path / "other.npy")
    assert (tmp_path / "other.csv").read_text().startswith("id,modality,class,ok,reason\n")


def test_another_encoder_is_refused_by_name(run: Run, files: Path) -> None:
    for field, value in (("weights_sha256", "ff" * 32), ("preprocessing", {"side": 9})):
        other = dataclasses.replace(run.encoders["image"], **{field: value})
        with pytest.raises(Mismatch, match=field):
            encoding.own_encoder(dataclasses.replace(run, encoders={"image": other}), "image")
    lost = dataclasses.replace(run.encoders["image"], weights="file:mine.safetensors")
    with pytest.raises(EncoderError, match=r"--pretrained PATH/mine\.safetensors"):
        encoding.own_encoder(dataclasses.replace(run, encoders={"image": lost}), "image")
    given = encoding.Files(weights={"": "elsewhere/mine.safetensors"})
    with pytest.raises(EncoderError, match=r"elsewhere/mine\.safetensors"):
        encoding.own_encoder(dataclasses.replace(run, encoders={"image": lost}), "image", given)


def test_a_modality_that_the_run_lacks(digits: Path, files: Path) -> None:
    short = spaner.fit(digits, shots=1, epochs=1, batch_size=32)
    with pytest.raises(RunError, match=r"the run has no audio: it knows image, text.*spaner extend"):
        short.embed_files(next(files.rglob("*.wav")))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p / "nothing", "no such file or folder"),
        (lambda p: p / "*.nothing", "nothing matches"),
        (lambda p: (p / "empty").mkdir() or p / "empty", "found no pictures and no sounds;"),
        (lambda p: (p / "a.txt").write_text("x") and p, "only 1 no samples by their ending"),
        (lambda p: (p / "l.csv").write_text("name\nx\n") and p / "l.csv", "neither path nor text"),
        (lambda p: (p / "l.csv").write_text("path\n../x\n") and p / "l.csv", "leaves the data root"),
    ],
)
def test_paths_that_hold_nothing(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=said):
        sources.gather([make(tmp_path)])


def test_a_hundred_megabytes_of_text(tmp_path: Path, cli: Cli, run_folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"text 1 has 100,000,000 characters"):
        sources.gather(texts=["x" * 100_000_000])
    big = tmp_path / "big.txt"
    with big.open("wb") as file:
        file.truncate(100_000_000)
    done = cli("embed", "--run", run_folder, "--text-file", big)
    assert done.status == 1
    assert "100 MB of text; expected one text a line" in done.err
    with pytest.raises(DatasetError, match="text 2 is empty"):
        sources.gather(texts=["a", "  "])


def test_control_characters_do_not_reach_the_terminal(
    cli: Cli, run_folder: Path, files: Path, tmp_path: Path
) -> None:
    shutil.copytree(files / "zero", tmp_path / "zero")
    (tmp_path / "zero" / "\x1b]0;gotcha\x07\n.png").write_bytes(b"no picture")
    os.mkfifo(tmp_path / "zero" / "pipe.png")
    done = cli("embed", "--run", run_folder, tmp_path / "zero", "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert "\\x1b]0;gotcha\\x07\\n.png: not an image" in done.err
    assert "pipe.png: a pipe, socket or device, not a file" in done.err
    assert "\x1b]" not in done.err + done.out


def test_mostly_broken_files_are_refused(run: Run, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="2 of 2 files failed"):
        embedding.embed(run, sources.gather([tmp_path]), tmp_path / "out")


def test_two_class_lists_do_not_mix(run: Run, digits: Path, tmp_path: Path) -> None:
    a = spaner.open(digits)
    with spaner.create(tmp_path / "other", "digits", [*a.class_names[:-1], "ten"]) as other:
        x, spec = np.ones((2, 64), np.float32), run.encoders["image"]
        other.add("image", "test", x, np.zeros(2, np.int32), encoder=spec)
    b = spaner.open(tmp_path / "other")
    with pytest.raises(CacheError, match="other classes"):
        embedding.embed_tables(run, [(a, "image/test"), (b, "image/test")], tmp_path / "out")
