"""An index of a run's space: exact answers, filters, every direction, and files that are gone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import spaner
from spaner.align.train.run import Run
from spaner.cli.search import ask
from spaner.errors import CacheError, DatasetError, Mismatch, RunError
from spaner.search import approximate
from spaner.search.exact import nearest, nearest_of_many
from spaner.search.index import Indexed, build
from spaner.search.indexed import Filter, Index, open_index
from spaner.search.query import Asker, row_question, search, search_frozen
from tests.conftest import Outcome
from tests.search.conftest import PICTURES, SOUNDS

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def place(run: Run, run_folder: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test scans, test tones and class names of the cache."""
    out, cache = tmp_path_factory.mktemp("index") / "digits", spaner.open(digits)
    names = ("image/test", "text/classname", "audio/test")
    build(run, str(run_folder), [Indexed(cache, name, None, "digits") for name in names], out)
    return out


@pytest.fixture
def index(place: Path) -> Index:
    return open_index(place)


# --- exact ---


@pytest.mark.parametrize(("rows", "width", "spread"), [(5000, 512, 1.0), (3000, 7, 1e-3), (11, 64, 0.0)])
def test_it_is_exactly_the_float32_product(rows: int, width: int, spread: float) -> None:
    """Near neighbours differ by less than float16 can say, and the best of them is found all the same."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=width) + spread * rng.normal(size=(rows, width))
    v = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    q = rng.normal(size=width).astype(np.float32)
    q /= np.linalg.norm(q)
    scores = v.astype(np.float32) @ q
    wanted = np.lexsort((np.arange(rows), -scores))[:10]
    found, cosines = nearest(v, q, 10)
    np.testing.assert_allclose(cosines, scores[wanted], atol=1e-6)
    assert set(found) == set(wanted) or np.ptp(scores[np.union1d(found, wanted)]) < 1e-6
    many = nearest_of_many(v, np.stack([q, -q]), 10)
    np.testing.assert_allclose(scores[many[0]], scores[wanted], atol=1e-6)


def test_blocks_spans_and_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    from spaner.search import exact

    monkeypatch.setattr(exact, "BLOCK", 16)
    rng = np.random.default_rng(1)
    v = rng.normal(size=(101, 13)).astype(np.float16)
    q = rng.normal(size=13).astype(np.float32)
    scores = v.astype(np.float32) @ q
    allowed = np.zeros(101, bool)
    allowed[5:40] = allowed[70:99] = True
    keep = rng.random(101) < 0.5
    wanted = np.argsort(-np.where(allowed & keep, scores, -np.inf))[:7]
    found, _ = nearest(v, q, 7, [(5, 40), (70, 99)], keep)
    assert found.tolist() == wanted.tolist()
    assert len(nearest(v, q, 7, [], None)[0]) == 0
    assert len(nearest(v, q, 500)[0]) == 101


# --- the index ---


def test_it_holds_the_rows_of_the_space(index: Index, run: Run, digits: Path) -> None:
    assert [p.table for p in index.parts] == ["audio/test", "image/test", "text/classname"]
    part = index.parts[1]
    table = spaner.open(digits).table("image/test")
    z = run.embed("image", table.read()[:, 0].astype(np.float32))
    np.testing.assert_allclose(index.vectors[part.start : part.stop].astype(np.float32), z, atol=1e-3)
    rows = range(part.start, part.stop)
    assert [index.id(row) for row in rows] == table.ids.tolist()
    names = spaner.open(digits).class_names
    assert [index.label(row) for row in rows] == [names[label] for label in table.labels]


@pytest.mark.parametrize("target", ["image", "audio", "text"])
@pytest.mark.parametrize("source", ["image", "audio", "text"])
def test_every_modality_finds_every_other(
    index: Index, run: Run, files: Path, source: str, target: str
) -> None:
    asker = Asker(run)
    ending = {"image": "*.png", "audio": "*.wav"}
    hits, right = 0, 0
    names = spaner.open(run.cache).class_names if run.cache else []
    asked = {name: next((files / name).glob(ending[source])) for name in names} if source in ending else {}
    for name in names:
        question = asker.file(asked[name]) if asked else asker.words(name)
        found = search(index, question, 5, Filter([target]))
        assert {hit.table.split("/")[0] for hit in found} == {target}
        assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
        hits, right = hits + len(found), right + sum(hit.class_name == name for hit in found)
    chance = 0.1
    assert right / hits > 1.5 * chance or target == "text"
    if target == "text":
        assert right >= 2, "of ten class names, five are shown each time: at least some are right"


def test_words_of_no_class_are_answered(index: Index, run: Run) -> None:
    found = search(index, Asker(run).words("a red umbrella in the rain"), 3)
    assert len(found) == 3
    assert np.isfinite([hit.score for hit in found]).all()


def test_filters_leave_what_they_say(index: Index, run: Run) -> None:
    asked = Asker(run).words("four")
    only = search(index, asked, 400, Filter(["image"], ["test"], ["four", "nine"]))
    assert {(hit.table, hit.class_name) for hit in only} == {("image/test", "four"), ("image/test", "nine")}
    everywhere = search(index, asked, len(index))
    wanted = [hit for hit in everywhere if hit.table == "image/test" and hit.class_name in ("four", "nine")]
    assert [hit.row for hit in only] == [hit.row for hit in wanted][:400]
    with pytest.raises(CacheError, match=r"--class fuor: not in .*did you mean `--class four`"):
        search(index, asked, 3, Filter(classes=["fuor"]))
    with pytest.raises(CacheError, match="--modality smell"):
        search(index, asked, 3, Filter(["smell"]))


def test_a_row_asks_for_what_is_like_it(index: Index, run: Run, digits: Path) -> None:
    row = index.parts[1].start + 5
    asked = row_question(index, row)
    assert search(index, asked, 1)[0].row == row
    frozen = search_frozen(index, run, asked, 200)
    assert frozen[0].row == row
    assert {hit.table.split("/")[0] for hit in frozen} == {"image"}, "the ten names lie far away"
    table = spaner.open(digits).table("image/test")
    x = table.read()[:, 0].astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    wanted = np.sort(x @ x[5])[::-1][:200]
    np.testing.assert_allclose([hit.score for hit in frozen], wanted, atol=1e-3)
    assert search(index, asked, 200)[50].score != pytest.approx(frozen[50].score, abs=1e-3), "another space"


def test_frozen_spaces_are_compared_where_they_are_one(index: Index, run: Run, files: Path) -> None:
    asker = Asker(run)
    words = search_frozen(index, run, asker.words("three"), 2000)
    assert {hit.table.split("/")[0] for hit in words} == {"image", "text"}
    sound = search_frozen(index, run, asker.file(next(files.rglob("*.wav"))), 2000)
    assert {hit.table.split("/")[0] for hit in sound} == {"audio"}


def test_nearest_classes(run: Run, files: Path) -> None:
    asker = Asker(run)
    name, score = asker.nearest_classes(asker.words("a photo of a seven."))[0]
    assert name == "seven"
    assert score == pytest.approx(1, abs=1e-3)


# --- commands ---


def test_files_are_indexed_searched_and_may_vanish(
    cli: Cli, run_folder: Path, files: Path, tmp_path: Path
) -> None:
    shutil.copytree(files, tmp_path / "files")
    (tmp_path / "files" / "zero" / "broken\x1b[2J.png").write_bytes(b"")
    out = tmp_path / "index"
    made = cli("index", "--run", run_folder, tmp_path / "files", "--out", out)
    assert made.status == 0, made.err
    assert "broken\\x1b[2J.png: empty file" in made.err
    assert open_index(out).facts["rows"] == PICTURES + SOUNDS
    text = (out / "index.json").read_text()
    assert str(tmp_path) not in text, "no absolute path"
    question = next((tmp_path / "files" / "two").glob("*.png"))
    done = cli("search", question, "--index", out, "--json", "--top", 5)
    assert done.status == 0, done.err
    said = json.loads(done.out)
    assert said["hits"][0]["path"] == str(question)
    assert len(said["classes"]) == 5
    question.rename(tmp_path / "moved.png")
    gone = cli("search", tmp_path / "moved.png", "--index", out, "--top", 1)
    assert f"{question} (no longer there)" in gone.out
    again = cli("index", "--run", run_folder, tmp_path / "files" / "one", "--out", tmp_path / "index")
    assert again.status == 1, "another listing is not mixed into what was encoded"
    assert "is a cache of dataset 'files', asked for 'one'" in again.err


def test_the_folders_may_move_together(cli: Cli, run_folder: Path, files: Path, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path / "a" / "files")
    shutil.copytree(run_folder, tmp_path / "a" / "run")
    made = cli(
        "index", "--run", tmp_path / "a" / "run", tmp_path / "a" / "files", "--out", tmp_path / "a/index"
    )
    assert made.status == 0, made.err
    (tmp_path / "a").rename(tmp_path / "b")
    done = cli("search", "three", "--index", tmp_path / "b/index", "--json")
    assert done.status == 0, done.err
    hits = json.loads(done.out)["hits"]
    assert not any(hit["missing"] for hit in hits)
    assert all(hit["path"].startswith(str(tmp_path / "b/files")) for hit in hits)


def test_an_embedded_cache_is_indexed_without_mapping_it_twice(
    cli: Cli, run: Run, run_folder: Path, files: Path, tmp_path: Path
) -> None:
    assert cli("embed", "--run", run_folder, files, "--out", tmp_path / "z").status == 0
    words = ["--cache", tmp_path / "z", "--files", files, "--out", tmp_path / "index"]
    done = cli("index", "--run", run_folder, *words)
    assert done.status == 0, done.err
    index = open_index(tmp_path / "index")
    memory = run.embed_files(files)
    row_of = {key: row for row, key in enumerate(memory.ids)}
    z = memory.z[[row_of[index.id(row)] for row in range(len(index))]]
    np.testing.assert_allclose(index.vectors.astype(np.float32), z, atol=1e-3)
    assert index.file(0) == (files / index.id(0)).resolve()
    with pytest.raises(RunError, match="shares no space"):
        search_frozen(index, run, Asker(run).words("one"))


def test_recall_is_printed_where_a_graph_is_built(
    cli: Cli, run: Run, run_folder: Path, digits: Path, tmp_path: Path
) -> None:
    pytest.importorskip("usearch")
    out = tmp_path / "index"
    done = cli("index", "--run", run_folder, "--cache", digits, "--out", out, "--approximate")
    assert done.status == 0, done.err
    assert "approximate index: recall@10 against exact search" in done.out
    index = open_index(out)
    assert index.facts["recall@10"] > 0.9
    asked = Asker(run).words("five")
    near, exact = search(index, asked, 10), search(index, asked, 10, exact=True)
    assert len({hit.row for hit in near} & {hit.row for hit in exact}) >= 8
    scores = {hit.row: hit.score for hit in exact}
    assert all(hit.score == pytest.approx(scores[hit.row], abs=1e-6) for hit in near if hit.row in scores)
    assert approximate.recall(index.graph, index.vectors) == pytest.approx(index.facts["recall@10"], abs=0.02)


# --- one line for a mistake ---


def test_an_index_of_another_run(place: Path, digits: Path, cli: Cli, tmp_path: Path) -> None:
    other = spaner.fit(digits, shots=1, epochs=1, batch_size=32)
    other.save(tmp_path / "other")
    done = cli("search", "one", "--index", place, "--run", tmp_path / "other")
    assert done.status == 1
    assert "was made with the run" in done.err
    with pytest.raises(Mismatch):
        open_index(place).check(other)


def test_a_question_of_a_modality_that_the_run_lacks(digits: Path, files: Path) -> None:
    asker = Asker(spaner.fit(digits, shots=1, epochs=1, batch_size=32))
    with pytest.raises(RunError, match=r"the run has no audio"):
        asker.file(next(files.rglob("*.wav")))


def test_questions_that_are_none(run: Run, tmp_path: Path) -> None:
    asker = Asker(run)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="not an image"):
        asker.file(tmp_path / "broken.png")
    with pytest.raises(DatasetError, match="empty"):
        asker.words("  ")
    with pytest.raises(DatasetError, match="characters"):
        asker.words("x" * 100_000_000)


def test_a_file_that_is_not_there_is_not_searched_for_as_words() -> None:
    with pytest.raises(DatasetError, match=r"photos/gone\.PNG: no such file; expected a picture or a sound"):
        ask(None, "photos/gone.PNG")


def test_folders_that_are_no_index(
    cli: Cli, place: Path, run_folder: Path, digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    done = cli("index", "--run", run_folder, "--cache", "nowhere", "--out", tmp_path / "mine")
    assert "no cache there" in done.err
    done = cli("search", "one", "--index", tmp_path / "mine")
    assert "no index at" in done.err
    shutil.copytree(place, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "index.json").unlink()
    assert "unfinished" in cli("search", "one", "--index", tmp_path / "unfinished").err
    shutil.copytree(place, tmp_path / "damaged")
    (tmp_path / "damaged" / "vectors.npy").write_bytes(b"x")
    assert "cannot be read" in cli("search", "one", "--index", tmp_path / "damaged").err
    done = cli("index", "--run", run_folder, "--cache", digits / "image/test", "--out", tmp_path / "mine")
    assert "holds letter.txt and is no index" in done.err
    assert "--space warm" in cli("search", "one", "--index", place, "--space", "warm").err
