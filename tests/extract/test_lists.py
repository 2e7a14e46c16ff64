"""Lists: every encoding is read or named, nothing in them means two things, no path leaves the data root."""

import csv
import json
from pathlib import Path

import pytest

from spaner.errors import DatasetError
from spaner.extract.datasets.dataset import Dataset, read
from spaner.extract.datasets.lists import lines, parsed, text
from tests.extract.conftest import fill_folder, picture
from tests.extract.test_readers import listing, rows, wrong

HEAD = ("path", "label", "split")


def raw(folder: Path, data: str | bytes, name: str = "list.csv") -> Path:
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder / name


# -- text --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_list_in_any_unicode_is_read_without_its_mark(tmp_path: Path, encoding: str) -> None:
    file = raw(tmp_path, "path,label,split\na.jpg,Käfer 甲虫,train\n".encode(encoding))
    assert read(f"csv:{file}").class_names == ["Käfer 甲虫"]


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_utf_16_needs_its_mark(tmp_path: Path, encoding: str, mark: str) -> None:
    file = raw(tmp_path, f"{mark}path,label,split\na.jpg,x,train\n".encode(encoding))
    if mark:
        assert read(f"csv:{file}").class_names == ["x"]
    else:
        assert "holds NUL characters, as UTF-16 without its byte-order mark" in wrong(f"csv:{file}")


def test_what_is_no_utf_8_is_shown_as_it_was_meant(tmp_path: Path) -> None:
    file = raw(tmp_path, "path,label,split\na.jpg,cañón,train\n".encode("cp1252"))
    found = wrong(f"csv:{file}")
    assert "byte 0xf1 in line 2 is no UTF-8; as Windows-1252 (cp1252) it reads 'a.jpg,cañón,train'" in found
    assert "iconv -f CP1252 -t UTF-8" in found
    cut = raw(tmp_path, "path,label".encode("utf-16")[:-1])
    assert "is no UTF-16; expected UTF-8" in wrong(f"csv:{cut}")


def test_lines_know_their_numbers_whatever_ends_them(tmp_path: Path) -> None:
    assert lines(raw(tmp_path, "a\r\n\r\n b\x0bc \rd")) == [(1, "a"), (3, "b\x0bc"), (4, "d")]
    with pytest.raises(DatasetError, match="no such file"):
        text(tmp_path)


def test_json_is_read_once_and_not_too_deep(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nested too deeply"):
        parsed(raw(tmp_path, "[" * 200_000 + "]" * 200_000))
    with pytest.raises(DatasetError, match=r"no JSON .*the key 'train' is there 2 times"):
        parsed(raw(tmp_path, '{"train": [], "train": []}'))
    with pytest.raises(DatasetError, match="no JSON"):
        parsed(raw(tmp_path, "{,"))


# -- CSV ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    {
        "path,label,split,label\na,x,train,y\n": "column 'label' is there 2 times",
        "path,label,split\na,salt, coarse,train\n": "line 2 has 4 fields, the header 3; .* in quotes",
        "path,label,split\na,x\n": "line 2 has 2 fields, the header 3",
        "path,label,split,id\na,x,train\n": "line 2 has 3 fields, the header 4",
        'path,label,split\na,"x,train\nb,y,train\n': r"line \d is no CSV \(unexpected end of data\)",
        f"path,label,split\na,{'x' * 140_000},train\n": r"no CSV \(field larger than field limit",
        "path;label;split\na;x;train\n": "found path;label;split; expected path, label, split, parted",
        "path,label,split\na,x,tr/ain\n": "line 2 has split 'tr/ain'; expected a name",
        "path,label,split\na,a_b,train\nb,a b,train\n": "classes 'a b' and 'a_b' are both named 'a b'",
        "path,label,split\na,café,train\nb,cafe\u0301,train\n": "are both named 'café'",
        "path,label,split\na.jpg,x,train\nb.wav,y,train\n": r"sounds and pictures \(b.wav, a.jpg\)",
        f"path,label,split\n{'a' * 20_000},x,train\n": "has 20,000 bytes; expected at most 1,024",
        f"path,label,split\na,{'x' * 2_000},train\n": "the class name 'xxx.* has 2,000 bytes",
    }.items(),
)
def test_a_csv_that_contradicts_itself_is_one_line(tmp_path: Path, data: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        read(f"csv:{raw(tmp_path, data)}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_harmless_habits_of_spreadsheets_are_read(tmp_path: Path) -> None:
    file = raw(tmp_path, "path,label,split,\r\na.jpg,x,Train,,\r\n\r\n,,,\r\nb.jpg,x, VALIDATION ,\r\n")
    dataset = read(f"csv:{file}")
    assert rows(dataset, "train") == [("a.jpg", 0)]
    assert rows(dataset, "val") == [("b.jpg", 0)]


# -- paths -------------------------------------------------------------------------------------------


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """A data root beside a folder that is none of its business."""
    fill_folder(tmp_path / "data" / "in", 1, 0)
    fill_folder(tmp_path / "else", 1, 1)
    (tmp_path / "data" / "far").symlink_to(tmp_path / "else")
    (tmp_path / "data" / "in" / "link.jpg").symlink_to(tmp_path / "else" / "0.jpg")
    (tmp_path / "data" / "near").symlink_to(tmp_path / "data" / "in")
    return tmp_path / "data"


@pytest.mark.parametrize("path", ["../else/0.jpg", "in/../../else/0.jpg", "far/0.jpg", "/etc/passwd"])
def test_a_path_out_of_the_data_root_is_refused_unless_meant(roots: Path, path: str) -> None:
    file = listing(roots, [(path, "x", "train", "one")], (*HEAD, "id"))
    assert f"path {path!r} leaves the data root" in wrong(f"csv:{file}")
    assert "--allow-outside" in wrong(f"csv:{file}")
    split = read(f"csv:{file}", allow_outside=True).splits["image"]["train"]
    if path != "/etc/passwd":
        assert split.open("one").size == (41, 37)
    coop = raw(roots, json.dumps({"train": [[path, 0, "x"]]}), "split.json")
    assert "leaves the data root" in wrong(f"coop:{coop}")


def test_a_file_that_is_a_link_to_elsewhere_is_a_failed_row(roots: Path) -> None:
    file = listing(roots, [("in/link.jpg", "x", "train"), ("near/0.jpg", "x", "train")], HEAD)
    split = read(f"csv:{file}").splits["image"]["train"]
    with pytest.raises(ValueError, match="a link out of the data root, and no --allow-outside"):
        split.open("in/link.jpg")
    assert split.stat("in/link.jpg") is None
    assert split.open("near/0.jpg").size == (41, 37)
    assert read(f"csv:{file}", allow_outside=True).splits["image"]["train"].open("in/link.jpg")


# -- CoOp --------------------------------------------------------------------------------------------


def coop(folder: Path, train: object, **others: object) -> str:
    return f"coop:{raw(folder, json.dumps({'train': train, **others}), 'split.json')}"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([["a", 0, "x"], ["b", 0, "y"]], "label 0 is 'x' and, at b, 'y'; expected one name a label"),
        ([["a", 0, "x"], ["b", 1, "x"]], "classes 'x' and 'x' are both named 'x'"),
        ([["a", 0, "a_b"], ["b", 1, "a b"]], "classes 'a_b' and 'a b' are both named 'a b'"),
        ([["a", 0, "x"], ["b", 2, "y"]], "no row has label 1, but others have 0 to 2"),
        ([["a", 0, "x"], ["a", 0, "x"]], "a is listed twice"),
        ([["a", 0.7, "x"]], "found another layout"),
        ([["a", True, "x"]], "found another layout"),
        ([["a", "0", "x"]], "found another layout"),
        ([["a", -1, "x"]], "no row has label 0"),
        ([[1, 0, "x"]], "found another layout"),
        ([["a", 0, " "]], "found another layout"),
        ({"a": 0}, "found another layout"),
        ([], "found another layout"),
    ],
)
def test_a_coop_list_that_contradicts_itself_is_one_line(tmp_path: Path, train: object, message: str) -> None:
    assert message in wrong(coop(tmp_path, train))


def test_a_label_may_not_change_its_name_between_splits(tmp_path: Path) -> None:
    assert "label 0 is 'x' and, at b, 'y'" in wrong(coop(tmp_path, [["a", 0, "x"]], test=[["b", 0, "y"]]))
    assert "a is listed twice" in wrong(coop(tmp_path, [["a", 0, "x"]], test=[["a", 0, "x"]]))


def test_an_empty_split_is_left_out_and_said(tmp_path: Path) -> None:
    found = read(coop(tmp_path, [["a", 0, "x"]], val=[]))
    assert list(found.splits["image"]) == ["train"]
    assert found.left_out == {"splits without rows": (1, "image/val")}


def aircraft(root: Path) -> Dataset:
    base = root / "fgvc_aircraft"
    (base / "images").mkdir(parents=True)
    picture(1).save(base / "images" / "0000007.jpg")
    raw(base, "707-320\nF/A-18\n", "variants.txt")
    for split, line in {"train": "0000007 F/A-18", "val": "1 707-320", "test": "2 707-320"}.items():
        raw(base, f"{line}\n", f"images_variant_{split}.txt")
    return read("coop:fgvc_aircraft", root)


def test_a_data_set_of_coop_by_name(tmp_path: Path) -> None:
    base = tmp_path / "oxford_pets"
    (base / "images").mkdir(parents=True)
    picture(1).save(base / "images" / "a.jpg")
    raw(base, json.dumps({"train": [["a.jpg", 0, "pug_dog"]], "val": []}), "split_zhou_OxfordPets.json")
    for root in (tmp_path, base):
        found = read("coop:oxford_pets", root)
        assert (found.name, found.class_names) == ("OxfordPets", ["pug dog"])
        assert found.template == "a photo of a {}, a type of pet."
        assert found.splits["image"]["train"].open("a.jpg").size == (41, 37)
    assert read(f"coop:{base / 'split_zhou_OxfordPets.json'}").template == found.template
    assert found.ledger["list"] == "split_zhou_OxfordPets.json"


def test_aircraft_comes_with_lists_of_its_own(tmp_path: Path) -> None:
    found = aircraft(tmp_path)
    assert (found.name, found.class_names) == ("FGVCAircraft", ["707-320", "F/A-18"])
    assert rows(found, "train") == [("0000007.jpg", 1)]
    assert found.splits["image"]["train"].open("0000007.jpg").size == (41, 37)
    raw(tmp_path / "fgvc_aircraft", "3 Concorde\n", "images_variant_val.txt")
    assert "line 1 has variant 'Concorde', which variants.txt lacks" in wrong("coop:fgvc_aircraft", tmp_path)


def test_a_missing_or_misspelled_data_set_of_coop(tmp_path: Path) -> None:
    found = wrong("coop:caltech101", tmp_path)
    assert f"no split_zhou_Caltech101.json at {tmp_path}/caltech-101" in found
    assert "type `--dataset coop:caltech101 --data-root PATH`" in wrong("coop:caltech-101", tmp_path)


def test_known_sizes_are_checked(tmp_path: Path, sample_data: Path) -> None:
    raw(tmp_path, json.dumps({"train": [["a.jpg", 0, "x"]]}), "split_zhou_EuroSAT.json")
    found = wrong("coop:eurosat", tmp_path)
    assert "found 1, 1, 0, 0 classes and rows of train, val and test; EuroSAT has 10, 13,500" in found
    for name in ("dtd", "eurosat"):
        whole = read(f"coop:{name}", sample_data / "coop")
        assert len(whole.splits["image"]) == 3


def test_values_with_commas_and_quotes_survive(tmp_path: Path) -> None:
    with (tmp_path / "list.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([HEAD, ("a.jpg", 'salt, "coarse"', "train")])
    assert read(f"csv:{tmp_path / 'list.csv'}").class_names == ['salt, "coarse"']
