"""Stage 1 end to end: files in, sealed cache out, whatever happens in between."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import spaner.cache
from spaner.cache.manifest import EncoderSpec
from spaner.errors import CacheError, DatasetError, EncoderError, Mismatch, RecipeError
from spaner.extract import Summary
from spaner.extract import extract as run
from spaner.extract.datasets.dataset import read
from spaner.extract.datasets.imagenet import class_names
from spaner.extract.datasets.images import FORMATS
from spaner.extract.extract import extract as extract_
from tests.extract.conftest import CLASSES, fill_folder, picture

SMALL: dict[str, Any] = {"pretrained": "random", "chunk_rows": 4, "batch_size": 3}


@pytest.fixture(scope="module")
def whole(tiny_model: Path, class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run makes. Read only."""
    path = tmp_path_factory.mktemp("whole") / "cache"
    extract_(dataset=f"folder:{class_folders}", model=str(tiny_model), cache=path, **SMALL)
    return path


@pytest.fixture
def extract(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`extract` with the tiny model and small chunks, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    small: dict[str, Any] = SMALL | {"model": str(tiny_model)}

    def call(dataset: str | Path, **settings: Any) -> Summary:
        spec = f"folder:{dataset}" if isinstance(dataset, Path) else dataset
        return extract_(dataset=spec, **(small | settings))

    return call


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_three_classes_become_five_tables(extract: Any, class_folders: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    summary = extract(class_folders, progress=lambda *args: seen.append(args))
    assert summary.path == Path("cache/photos")
    rows = {table.name: table.rows for table in summary.tables}
    assert rows == {
        "image/test": 15,
        "image/train": 21,
        "text/mined": 3,
        "text/vanilla": 3,
        "text/classname": 3,
    }
    assert seen[-1] == (3, 3, "text/classname")
    assert [s for s in seen if s[2] == "image/train"][-1] == (21, 21, "image/train")
    with spaner.cache.open(summary.path) as cache:
        assert cache.class_names == ["red fox", "sea", "wall clock"]
        table = cache.table("image/train")
        assert table.manifest.encoder.synthetic
        assert (table.views, table.manifest.dtype, table.manifest.complete) == (
            ("center", "random"),
            "float16",
            True,
        )
        assert table.ids[7] == "train/sea/0.jpg"
        assert table.measured["purity"]["max_relative"] < 1e-5
        assert table.measured["purity"]["pure"]
        assert cache.table("text/mined").ids.tolist() == ["0000:red fox", "0001:sea", "0002:wall clock"]
        assert cache.verify() == []


def test_stored_rows_are_the_encoders(extract: Any, class_folders: Path) -> None:
    summary = extract(class_folders, dtype="float32", views=3)
    config = run.configured(
        None,
        {
            "dataset": f"folder:{class_folders}",
            "model": extract.__closure__[0].cell_contents["model"],
            "pretrained": "random",
        },
    )
    dataset = read(config.dataset)
    image, text = (run.load(config, dataset, modality) for modality in ("image", "text"))
    with spaner.cache.open(summary.path) as cache:
        stored = cache.table("image/test")
        for row in (0, 4, 14):
            payload = dataset.splits["image"]["test"].open(str(stored.ids[row]))
            views = torch.stack([image.prepare(payload, view, str(stored.ids[row]), 0) for view in range(3)])
            np.testing.assert_allclose(
                stored.read(slice(row, row + 1))[0], image.encode(views), rtol=1e-4, atol=1e-5
            )
        mined = cache.table("text/mined")
        for view in (0, 20):
            tokens = text.prepare(mined.views[view].replace("{}", "sea"), 0, "", 0)[None]
            np.testing.assert_allclose(mined.read()[1, view], text.encode(tokens)[0], rtol=1e-4, atol=1e-5)
        assert np.array_equal(cache.table("text/vanilla").read()[:, 0], mined.read()[:, 20])


def test_the_same_command_again_computes_nothing(
    extract: Any, class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(class_folders)
    before = bytes_of(Path("cache/photos"))
    monkeypatch.setattr("spaner.extract.pipeline.fill", None)
    again = extract(class_folders)
    assert all(table.resumed == table.rows and table.rows_per_second is None for table in again.tables)
    assert bytes_of(Path("cache/photos")) == before


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_a_stopped_run_continues_bit_identical(
    extract: Any, class_folders: Path, whole: Path, stop: int
) -> None:
    calls = 0

    def interrupt(done: int, total: int, what: str) -> None:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(class_folders, cache=Path("parts"), progress=interrupt)
    extract(class_folders, cache=Path("parts"))
    assert bytes_of(Path("parts")) == bytes_of(whole)


def test_other_settings_are_refused_by_name_and_overwrite_replaces(extract: Any, class_folders: Path) -> None:
    extract(class_folders)
    with pytest.raises(Mismatch, match=r"image/test .*seed 0 there, 1 asked"):
        extract(class_folders, seed=1)
    extract(class_folders, seed=1, overwrite=True, modality="image")
    with spaner.cache.open("cache/photos") as cache:
        assert cache.table("image/test").manifest.seed == 1


def test_hdf5_holds_the_same_rows(extract: Any, class_folders: Path, whole: Path) -> None:
    extract(class_folders, cache="photos.h5")
    with spaner.cache.open("photos.h5") as left, spaner.cache.open(whole) as right:
        assert left.tables() == right.tables()
        for name in left.tables():
            assert np.array_equal(left.table(name).read(), right.table(name).read())


def test_dry_run_counts_without_an_encoder(
    extract: Any, class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "load", None)
    summary = extract(class_folders, dry_run=True, views=1)
    assert summary.dry_run
    assert {t.name: (t.rows, t.bytes) for t in summary.tables if "image" in t.name} == {
        "image/test": (15, 15 * 23 * 2),
        "image/train": (21, 21 * 23 * 2),
    }
    assert not Path("cache").exists()


# -- what to extract -------------------------------------------------------------------------------


def test_image_brings_the_class_names_along_and_splits_choose(extract: Any, class_folders: Path) -> None:
    summary = extract(class_folders, modality="image", splits=("test",), templates=("classname",))
    assert [table.name for table in summary.tables] == ["image/test", "text/classname"]
    assert [t.name for t in extract(class_folders, modality="text", templates=("classname",)).tables] == [
        "text/classname"
    ]


def test_few_shot_draws_store_only_the_rows_they_need(extract: Any, class_folders: Path) -> None:
    summary = extract(class_folders, shots=(1, 2), draw_seeds=(1, 3))
    assert summary.path == Path("cache/photos2")
    whole = [str(key) for key in read(f"folder:{class_folders}").splits["image"]["train"].ids]
    labels = np.repeat([0, 1, 2], 7)
    with spaner.cache.open(summary.path) as cache:
        table = cache.table("image/train")
        assert not table.manifest.complete
        assert table.rows < 21
        assert len(cache.table("image/test").ids) == 15
        for shots in (1, 2):
            for seed in (1, 3):
                expected = [whole[row] for row in spaner.cache.few_shot(labels, shots, seed)]
                assert table.ids[table.draw(shots, seed)].tolist() == expected
        with pytest.raises(CacheError, match="16-shot-seed-1"):
            table.draw(16, 1)


def index_file(path: Path, row: int, labels: tuple[int, ...] = (0, 1, 2), **more: Any) -> Path:
    """One image a class, in Lin et al.'s layout."""
    items = [
        {"impath": f"./data/x/train/{name}/{row}.jpg", "label": label, "classname": name}
        for name, label in zip(CLASSES, labels, strict=True)
    ]
    path.write_text(json.dumps({"train": {"data": items}} | more))
    return path


def test_a_published_draw_is_imported(extract: Any, class_folders: Path, tmp_path: Path) -> None:
    file = index_file(tmp_path / "shot_1-seed_2.json", 3)
    extract(class_folders, draws_from=file, modality="image")
    with spaner.cache.open("cache/photos") as cache:
        table = cache.table("image/train")
        assert table.ids[table.draw(1, 2)].tolist() == [f"train/{name}/3.jpg" for name in CLASSES]
        assert table.manifest.options["imported draws"] == {"1-shot-seed-2": "shot_1-seed_2.json"}
        assert "imported draws" not in cache.table("image/test").manifest.options
    with pytest.raises(DatasetError, match=r"expected shot_K-seed_S.json"):
        extract(class_folders, draws_from=file.rename(tmp_path / "other.json"))


def test_a_folder_of_published_draws_is_imported_in_any_order(
    extract: Any, class_folders: Path, tmp_path: Path
) -> None:
    one, two = (index_file(tmp_path / f"shot_1-seed_{seed}.json", seed) for seed in (1, 2))
    first = extract(class_folders, draws_from=(two, one), modality="image", cache=tmp_path / "a")
    second = extract(class_folders, draws_from=tmp_path, modality="image", cache=tmp_path / "b")
    found = [spaner.cache.open(each.path).table("image/train").manifest for each in (first, second)]
    assert found[0].sha256 == found[1].sha256
    assert list(found[0].draws) == ["1-shot-seed-1", "1-shot-seed-2"]
    assert found[0].rows == 6
    with pytest.raises(DatasetError, match=r"1-shot-seed-1 comes from .* already; expected one file a draw"):
        extract(class_folders, draws_from=(one, one))
    (tmp_path / "void").mkdir()
    with pytest.raises(DatasetError, match=r"--draws-from .*void: no index files in it"):
        extract(class_folders, draws_from=tmp_path / "void")


def test_validation_draws_have_four_rows_a_class_or_as_many_as_train(
    extract: Any, tmp_path: Path, class_folders: Path
) -> None:
    shutil.copytree(class_folders / "train", tmp_path / "x" / "train")
    shutil.copytree(class_folders / "train", tmp_path / "x" / "val")
    path = extract(tmp_path / "x", shots=(2, 6), modality="image").path
    with spaner.cache.open(path) as cache:
        table = cache.table("image/val")
        assert list(table.manifest.draws) == ["2-shot-seed-1", "6-shot-seed-1", "6-shot-seed-1-equal"]
        assert [len(table.draw(6, 1)), len(table.draw(6, 1, "equal"))] == [12, 18]


def test_an_imagenet_tree_of_real_photographs(extract: Any, sample_data: Path, tmp_path: Path) -> None:
    """`extract --modality image` on an ImageNet-shaped tree, flat val, random weights by name."""
    wnids = {"rooster": "n01514668", "pizza": "n07873807", "umbrella": "n04507155"}
    (tmp_path / "in" / "val").mkdir(parents=True)
    answers = []
    for name, wnid in wnids.items():
        shutil.copytree(sample_data / "photos" / "train" / name, tmp_path / "in" / "train" / wnid)
        for photo in sorted((sample_data / "photos" / "test" / name).iterdir())[:3]:
            stem = f"ILSVRC2012_val_{len(answers) + 1:08d}"
            shutil.copy(photo, tmp_path / "in" / "val" / f"{stem}.JPEG")
            answers.append(f"{stem},{wnid} 1 2 3 4")
    (tmp_path / "in" / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *answers]))
    summary = extract("imagenet", data_root=tmp_path / "in", modality="image")
    assert summary.path == Path("cache/imagenet16")
    with spaner.cache.open(summary.path) as cache:
        assert cache.class_names == class_names(sorted(wnids.values())) == ["rooster", "umbrella", "pizza"]
        assert cache.table("image/train").draw(16, 1).size == 48
        assert cache.table("image/test").rows == 9
        assert cache.table("text/mined").views[-1] == "a photo of a {}."
        assert "sorted" in cache.table("image/train").manifest.options["order"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modality": "audio"}, "--modality audio: photos has none; expected one of image, text"),
        ({"splits": ("val",)}, "--splits val: photos has no such image split; expected test, train"),
        ({"views": 0}, "--views 0: expected at least 1"),
        ({"batch_size": 0}, "--batch-size 0: expected at least 1"),
        ({"chunk_rows": 0}, "--chunk-rows 0: expected at least 1"),
        ({"workers": 0}, "--workers 0: expected at least 1"),
        ({"max_failed": 2.0}, "--max-failed 2.0: expected a share from 0 to 1"),
        ({"templates": ("mind",)}, "did you mean `--templates mined`"),
    ],
)
def test_impossible_settings(extract: Any, class_folders: Path, settings: dict, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        extract(class_folders, **settings)


def test_an_unknown_setting_names_the_nearest(extract: Any, class_folders: Path) -> None:
    with pytest.raises(RecipeError, match=r"no setting 'shot'.*did you mean shots"):
        extract(class_folders, shot=4)


# -- bad files -------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """10 good pictures, and one of each kind of bad file."""
    folder = tmp_path / "damaged" / "train" / "sea"
    fill_folder(folder, 10, 0)
    (folder / "empty.jpg").touch()
    (folder / "note.jpg").write_text("not a picture")
    picture(1, (160, 120)).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-700])
    return tmp_path / "damaged"


def test_bad_files_are_failed_rows_with_reasons(extract: Any, damaged: Path) -> None:
    summary = extract(damaged, max_failed=0.5)
    expected = {
        "train/sea/cut.jpg": "truncated image",
        "train/sea/empty.jpg": "empty file",
        "train/sea/note.jpg": f"not an image ({', '.join(FORMATS)})",
    }
    assert summary.tables[0].failures == expected
    with spaner.cache.open(summary.path) as cache:
        table = cache.table("image/train")
        assert table.failures() == expected
        assert table.ok.sum() == 10
        assert not table.read()[~table.ok].any()
        assert np.abs(table.read()[table.ok]).max(axis=(1, 2)).min() > 0
        assert table.measured["failed"] == 3


def test_too_many_bad_files_stop_before_sealing_and_a_higher_limit_continues(
    extract: Any, damaged: Path
) -> None:
    message = r"3 of 13 files failed \(23.1 %\), tolerated 1 %; train/sea/cut.jpg: truncated image; "
    for _ in range(2):
        with pytest.raises(DatasetError, match=message):
            extract(damaged)
    done = extract(damaged, max_failed=0.25).tables[0]
    assert (done.resumed, len(done.failures)) == (13, 3)


# -- encoders that misbehave -----------------------------------------------------------------------


class Odd:
    """An encoder of 4 numbers per picture that does what a test asks for."""

    def __init__(self, work: Any) -> None:
        self.work = work
        self.spec = EncoderSpec("odd", "none", "0" * 64, "image", 4, {"kind": "odd"}, "float32")

    def prepare(self, payload: Any, view: int, key: str, seed: int) -> torch.Tensor:
        return torch.tensor([float(payload.getpixel((view, i))[0]) for i in range(4)])

    def encode(self, batch: torch.Tensor) -> torch.Tensor:
        return self.work(batch).detach()


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(work: Any) -> dict[str, Any]:
        monkeypatch.setattr("spaner.extract.encoders.encoder.load", lambda name, modality, **_: Odd(work))
        return {"templates": ()}

    return use


def test_an_encoder_whose_rows_depend_on_their_batch_is_refused(
    extract: Any, class_folders: Path, odd: Any
) -> None:
    norm = nn.BatchNorm1d(4, momentum=0.0)

    def batch_statistics(batch: torch.Tensor) -> torch.Tensor:
        norm.train(len(batch) > 1)
        return norm(batch) + 1

    settings = odd(batch_statistics)
    with pytest.raises(
        EncoderError, match=r"image/test: rows of odd depend on their batch.*type `--allow-impure`"
    ):
        extract(class_folders, **settings)
    kept = extract(class_folders, allow_impure=True, **settings)
    assert kept.tables[0].purity > 0.1
    with spaner.cache.open(kept.path) as cache:
        assert cache.table("image/test").measured["purity"]["pure"] is False


def test_an_encoder_that_drifts_is_refused(extract: Any, class_folders: Path, odd: Any) -> None:
    """Alone and in company agree before and after; only the stored rows tell of the change between."""
    calls = iter(range(10_000))
    settings = odd(lambda batch: batch + (1 if next(calls) < 10 else 90))
    with pytest.raises(EncoderError, match="depend on their batch"):
        extract(class_folders, **settings)
    with spaner.cache.create("cache/photos", "photos", ["red fox", "sea", "wall clock"]) as cache:
        assert cache.unsealed() == ["image/test"]


def test_rows_that_are_not_finite_fail(extract: Any, class_folders: Path, odd: Any) -> None:
    settings = odd(lambda batch: torch.where(batch[:, :1] > 200, torch.nan, batch + 1))
    with pytest.raises(DatasetError, match="features are not finite"):
        extract(class_folders, **settings)


def test_rows_too_large_for_float16_advise_float32(extract: Any, class_folders: Path, odd: Any) -> None:
    settings = odd(lambda batch: (batch + 1) * 1e4)
    with pytest.raises(EncoderError, match=r"float16 ends at 65504; type `--dtype float32`"):
        extract(class_folders, **settings)
    extract(class_folders, dtype="float32", overwrite=True, **settings)


def test_lower_precision_stores_its_agreement_with_float32(extract: Any, class_folders: Path) -> None:
    summary = extract(class_folders, precision="bfloat16", modality="image", templates=("classname",))
    with spaner.cache.open(summary.path) as cache:
        for name in ("image/train", "text/classname"):
            agreement = cache.table(name).measured["agreement"]
            assert 0.99 < agreement["min_cosine"] <= agreement["mean_cosine"] < 1
        assert cache.table("image/train").measured["agreement"]["rows"] == 21
    assert 0.99 < summary.tables[0].agreement < 1


def test_a_data_sets_own_query_fills_a_text_table(tmp_path: Path, tiny_model: Path) -> None:
    splits = {"train": [["a.jpg", 0, "banded"]], "val": [], "test": [["b.jpg", 0, "banded"]]}
    listing = tmp_path / "split_zhou_DescribableTextures.json"
    listing.write_text(json.dumps(splits))
    given = {"model": str(tiny_model), "pretrained": "random", "cache": tmp_path / "c", "dry_run": True}
    summary = extract_(dataset=f"coop:{listing}", templates=("vanilla",), **given)
    names = [table.name for table in summary.tables]
    assert names == ["image/train", "image/test", "text/vanilla", "text/query"]
    assert summary.left_out == {"splits without rows": (1, "image/val")}


def test_hostile_files_of_a_list_are_failed_rows_and_no_more(extract: Any, tmp_path: Path) -> None:
    for i in range(4):
        picture(i).save(tmp_path / f"good{i}.jpg")
    Image.new("L", (1, 100_000)).save(tmp_path / "sliver.png")
    (tmp_path / "eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("nowhere")
    names = sorted(path.name for path in tmp_path.iterdir() if path.suffix)
    lines = [f"{name},x,train\n" for name in names]
    (tmp_path / "list.csv").write_text("path,label,split\n" + "".join(lines))
    table = extract(f"csv:{tmp_path}/list.csv", templates=("vanilla",), max_failed=0.5).tables[0]
    assert {key: why.split(" (")[0].split(":")[0] for key, why in table.failures.items()} == {
        "sliver.png": "1 x 100000",
        "eps.jpg": "not an image",
        "pipe.jpg": "a pipe, socket or device, not a file",
        "link.jpg": "a link to nothing",
    }


def test_what_was_left_out_is_printed(tmp_path: Path, tiny_model: Path, cli: Any) -> None:
    fill_folder(tmp_path / "x" / "fox", 1, 0)
    (tmp_path / "x" / "loose.jpg").touch()
    words = ["--model", tiny_model, "--pretrained", "random", "--cache", tmp_path / "c", "--dry-run"]
    found = cli("extract", "--dataset", f"folder:{tmp_path}/x", *words)
    assert "left out, beside the class folders: 1 (first loose.jpg)" in found.err
    assert "left out, splits without rows: 1 (first image/test)" in found.err
