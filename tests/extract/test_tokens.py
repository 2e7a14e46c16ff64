"""Token tables: `spaner extract --tokens`, and who reads them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spaner import cache as caches
from spaner.align.score import adapted
from spaner.align.score.evaluate import evaluate
from spaner.align.train import run as checkpoint
from spaner.align.train.fit import fit
from spaner.errors import DatasetError, EncoderError, Mismatch, RecipeError, RunError
from spaner.extract.extract import extract
from spaner.extract.listing import Origin
from spaner.extract.pictures import pictures_of
from spaner.extract.repair import repair
from tests.align import pictured

QUICK: dict[str, Any] = {"method": "mma", "start": 3, "end": 3, "epochs": 2, "shots": 2, "device": "cpu"}
SIZE = 5 * 48


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the cache and no tokens."""
    folder = tmp_path_factory.mktemp("plain")
    pictured.build(folder)
    return folder


@pytest.fixture(scope="module")
def kept(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with tokens after block 1."""
    folder = shutil.copytree(plain, tmp_path_factory.mktemp("kept") / "here")
    pictured.tokens(folder, 1)
    return folder


def pictures(folder: Path, *, pixels: bool = True) -> Any:
    origin = Origin(f"folder:{folder / 'photos'}" if pixels else None)
    return pictures_of(folder / "cache", model=str(folder / "tiny.json"), device="cpu", origin=origin)


def test_the_table_is_one_like_any_other(kept: Path, plain: Path) -> None:
    with caches.open(kept / "cache") as cache:
        table, images = cache.table("image-block1/train"), cache.table("image/train")
        assert (table.rows, table.dim, table.views) == (30, SIZE, images.views)
        assert table.measured["purity"]["pure"]
        assert table.manifest.encoder.preprocessing["tokens"] == {"after block": 1, "tokens": 5, "width": 48}
        assert not cache.verify()
        rows, views = torch.tensor([3, 0, 11]), torch.tensor([1, 0, 1])
    stored = pictures(kept, pixels=False).tokens("image/train", rows, views, 1)
    made = pictures(plain).tokens("image/train", rows, views, 1)
    assert stored.shape == (3, 5, 48)
    torch.testing.assert_close(stored, made, rtol=1e-4, atol=1e-5)
    assert float((made[0] - made[1]).abs().max()) > 1e-2
    higher = pictures(kept, pixels=False).tokens("image/train", rows, views, 2)
    torch.testing.assert_close(
        higher, pictures(plain).tokens("image/train", rows, views, 2), rtol=1e-4, atol=1e-5
    )


def test_its_size_is_told_beforehand(kept: Path, plain: Path) -> None:
    told: list = []
    options = {"model": str(plain / "tiny.json"), "pretrained": "random", "tokens": 1, "dtype": "float32"}
    options |= {"dataset": f"folder:{plain / 'photos'}", "seed": 3, "device": "cpu"}
    dry = extract(cache=kept / "cache", dry_run=True, **options)
    extract(cache=kept / "cache", precision="float32", beforehand=told.extend, **options)
    assert {t.name: t.bytes for t in told} == dict.fromkeys(
        ("image-block1/train", "image-block1/test"), 30 * 2 * SIZE * 4
    )
    assert told == dry.tables


def test_an_interrupted_table_continues_to_the_same_bits(plain: Path, kept: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "here")
    calls = 0

    def stop(done: int, total: int, what: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    options = {"model": str(folder / "tiny.json"), "pretrained": "random", "tokens": 1, "dtype": "float32"}
    options |= {"dataset": f"folder:{folder / 'photos'}", "seed": 3, "device": "cpu", "precision": "float32"}
    with pytest.raises(KeyboardInterrupt):
        extract(cache=folder / "cache", progress=stop, **options)
    pictured.tokens(folder, 1)
    with caches.open(folder / "cache") as ours, caches.open(kept / "cache") as theirs:
        for name in ("image-block1/train", "image-block1/test"):
            np.testing.assert_array_equal(ours.table(name).read(), theirs.table(name).read())


def test_a_damaged_chunk_is_extracted_again(kept: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(kept, tmp_path / "here")
    file = next(
        f
        for f in (folder / "cache/image-block1/train/features").rglob("*")
        if f.is_file() and "zarr" not in f.name
    )
    data = bytearray(file.read_bytes())
    data[100] ^= 255
    file.write_bytes(data)
    told: dict[str, Any] = {
        "dataset": f"folder:{folder / 'photos'}",
        "model": str(folder / "tiny.json"),
        "device": "cpu",
    }
    assert repair(folder / "cache", **told).repaired == 1
    with caches.open(folder / "cache") as mended:
        assert not mended.verify()


def trained(folder: Path, **changes: Any) -> Any:
    return fit(folder / "cache", **QUICK | changes, **pictured.towers(folder)(folder / "cache", "mma", "cpu"))


def test_mma_learns_the_same_from_tokens_as_from_pixels(plain: Path, kept: Path) -> None:
    ours, theirs = trained(kept), trained(plain)
    for name, tensor in ours.model.state().items():
        torch.testing.assert_close(tensor, theirs.model.state()[name], rtol=1e-4, atol=1e-5)
    a, b = evaluate(ours, kept / "cache"), evaluate(theirs, plain / "cache")
    assert a["text"]["positive_cosine"] == pytest.approx(b["text"]["positive_cosine"], abs=1e-4)


def test_rows_of_a_changed_tower_are_made_once_resumed_and_found(kept: Path, tmp_path: Path) -> None:
    run = trained(kept, seed=7)
    told: list[tuple[int, int, str]] = []

    def stop(done: int, total: int, what: str) -> None:
        told.append((done, total, what))
        raise KeyboardInterrupt

    run.model.pictures.progress = stop
    run.model.pictures.batch_size = 8
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, kept / "cache")
    assert told[0][:2] == (8, 30)
    run.model.pictures.progress = lambda *_: None
    metrics = evaluate(run, kept / "cache")
    loaded = checkpoint.load(run.save(tmp_path / "run"))
    assert loaded.model.pictures is None
    assert evaluate(loaded, kept / "cache") == metrics
    with caches.open(adapted.place_of(kept / "cache")) as made:
        assert not made.verify()
        table = made.table(f"{adapted.modality_of(run, 'image/test')}/test")
        assert table.measured["purity"]["pure"]
    shutil.move(adapted.place_of(kept / "cache"), tmp_path / "aside")
    with pytest.raises(RunError, match="mma changed the image tower, and its rows of image/test are not in"):
        evaluate(loaded, kept / "cache")


def test_an_unreadable_picture_is_a_failed_row(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "here")
    run = trained(folder, seed=11)
    (folder / "photos/test/sea/0.png").write_bytes(b"no picture")
    assert evaluate(run, folder / "cache")["failed"] == 1


class TestRefusals:
    """One line each: what, found, expected, what to type."""

    @pytest.mark.parametrize(
        ("options", "error", "line"),
        [
            ({"tokens": 9}, EncoderError, "--tokens 9: the image tower of .* has 3 blocks; expected 0 to 2"),
            (
                {"tokens": 0, "encoder": "digits"},
                RecipeError,
                "--tokens: not for --encoder digits; expected open_clip",
            ),
            ({"tokens": 0, "modality": "text"}, DatasetError, "--tokens 0: tokens are those of images"),
        ],
    )
    def test_tokens_that_there_cannot_be(
        self, plain: Path, tmp_path: Path, options: Any, error: Any, line: str
    ) -> None:
        told: dict[str, Any] = {"dataset": f"folder:{plain / 'photos'}", "model": str(plain / "tiny.json")}
        with pytest.raises(error, match=line):
            extract(cache=tmp_path / "c", pretrained="random", device="cpu", **told | options)

    def test_tokens_of_a_higher_block_alone(self, kept: Path) -> None:
        found = pictures(kept, pixels=False)
        with pytest.raises(
            DatasetError, match=r"holds image-block1/test, .*expected image-block0/train.*--tokens 0"
        ):
            found.tokens("image/train", torch.tensor([0]), torch.tensor([0]), 0)

    def test_tokens_of_other_crops(self, plain: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(plain, tmp_path / "here")
        pictured.tokens(folder, 1, seed=4)
        with pytest.raises(Mismatch, match=r"image-block1/train holds tokens of .*seed is 4, expected 3"):
            pictures(folder).tokens("image/train", torch.tensor([0]), torch.tensor([0]), 1)

    def test_more_blocks_than_the_tower_has(self, kept: Path) -> None:
        with pytest.raises(RunError, match=r"mma reaches into 4 blocks, and the text tower of .* has 3"):
            trained(kept, end=4)

    def test_no_image_tower(self, kept: Path) -> None:
        tools = pictured.towers(kept)(kept / "cache", "coop", "cpu")
        with pytest.raises(RunError, match="method mma needs the image tower beside the cache"):
            fit(kept / "cache", **QUICK, **tools)

    def test_another_image_tower(self, kept: Path) -> None:
        tools = pictured.towers(kept)(kept / "cache", "mma", "cpu")
        tower = tools["pictures"].tower
        own, tower.sha256 = tower.sha256, "0" * 64
        try:
            with pytest.raises(Mismatch, match="the image tower's weights are 000000000000, the cache's"):
                fit(kept / "cache", **QUICK, **tools)
        finally:
            tower.sha256 = own

    def test_a_text_side_that_looks_both_ways(self, tmp_path: Path, cli: Callable[..., Any]) -> None:
        model: dict[str, Any] = pictured.MODEL | {"custom_text": True}
        model["text_cfg"] = model["text_cfg"] | {"no_causal_mask": True}
        folder = tmp_path / "both"
        folder.mkdir()
        pictured.build(folder, model_config=model)
        with pytest.raises(RunError, match=r"method mma learns inside causal blocks .* looks both ways"):
            trained(folder)
        line = ["train", "--method", "mma", "--cache", folder / "cache", "--text-model", folder / "tiny.json"]
        done = cli(*line, "--out", tmp_path / "run")
        assert (done.status, done.err.count("\n")) == (1, 1)

    @pytest.mark.parametrize(
        ("method", "options", "line"),
        [
            ("coop", "--text-model other.json", "hand in the tower of that encoder: `--text-model` and"),
            ("mma", "--text-model other.json", "made by another encoder: name 'open_clip/tiny@"),
            ("coop", "", "was a config file; type `--text-model PATH/TO/CONFIG.json`"),
            ("campe", "--text-model tiny.json --blocks 1 --words= --context 30", "reads 19; use at most"),
            (
                "maple",
                "--text-model tiny.json --depth 3",
                "holds image-block1/test, image-block1/train; expected",
            ),
            ("maple", "--text-model tiny.json --depth 3 --pixels folder:nowhere", "folder:nowhere"),
            ("campe", "--text-model tiny.json --blocks 5", "embeddings of 23 numbers do not fall into 5"),
        ],
    )
    def test_the_command_says_it_in_a_line(
        self,
        kept: Path,
        cli: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
        method: str,
        options: str,
        line: str,
    ) -> None:
        monkeypatch.chdir(kept)
        other = pictured.MODEL | {"text_cfg": pictured.MODEL["text_cfg"] | {"layers": 2}}
        Path("other.json").write_text(json.dumps(other))
        done = cli("train", "--cache", "cache", "--method", method, *options.split(), "--out", "run")
        assert (done.status, done.err.count("\n")) == (1, 1), done.err
        assert line in done.err
        assert not Path("run").exists()
