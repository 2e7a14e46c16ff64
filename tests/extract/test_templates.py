"""Template sets are what the papers used, and a user's file is checked."""

from pathlib import Path

import open_clip
import pytest

from spaner.errors import DatasetError
from spaner.extract.templates import NAMES, fill, table_name, tables, templates

BEST = [
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
]


@pytest.mark.parametrize(
    ("name", "count"),
    {"mined": 21, "vanilla": 1, "classname": 1, "ensemble": 180, "hand_crafted": 7}.items(),
)
def test_sets_have_their_size_and_no_doubles(name: str, count: int) -> None:
    found = templates(name)
    assert len(found) == len(set(found)) == count
    assert all(template.count("{}") == 1 for template in found)


def test_the_ensemble_holds_clips_eighty_and_is_sorted() -> None:
    ensemble = templates("ensemble")
    assert ensemble == sorted(ensemble)
    assert {template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES} <= set(ensemble)
    assert {"{}", "A picture of your {}.", "a demonstration of the person practicing {}."} <= set(ensemble)


def test_mined_begins_and_ends_as_published_and_holds_vanilla() -> None:
    mined = templates("mined")
    assert (mined[0], mined[-1]) == ("a good photo of a {}.", "a photo of a {}.")
    assert set(templates("vanilla")) < set(mined)
    assert templates("hand_crafted") == BEST


def test_a_file_gives_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("a photo of {{x}} {}.\n\n{} !\n")
    assert templates(str(path)) == ["a photo of {{x}} {}.", "{} !"]
    assert table_name(str(path)) == "mine"
    assert fill("a {x} of {}.", "cat") == "a {x} of cat."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a {}.\na cat.\n", r"line 2 holds 0 times \{\}: 'a cat.'; expected exactly one"),
        ("{} and {}\n", "line 1 holds 2 times"),
        ("\n", "found no templates"),
        ("{}\n{}\n", "'{}' occurs twice"),
    ],
)
def test_a_bad_file_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        templates(str(path))


def test_an_unknown_set_names_the_nearest() -> None:
    with pytest.raises(DatasetError, match="did you mean `--templates mined`"):
        templates("mind")
    with pytest.raises(DatasetError, match=f"expected {', '.join(NAMES)} or a file"):
        templates("zzz")


@pytest.mark.parametrize("place", ["vanilla.txt", "d/vanilla.txt", "Vanilla.txt"])
@pytest.mark.parametrize("others", [["vanilla"], ["mined"], []])
def test_an_own_file_named_like_a_set_is_refused(tmp_path: Path, place: str, others: list[str]) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / place).write_text("a blurry {}.\n")
    with pytest.raises(DatasetError, match=r"fills the table text/.anilla, as the set of that name does"):
        tables([*others, str(tmp_path / place)])


def test_two_files_of_one_name_are_refused_and_one_set_may_be_named_twice(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.txt").write_text("a {}.\n")
    files = [str(tmp_path / folder / "t.txt") for folder in ("a", "b")]
    with pytest.raises(DatasetError, match=r"b/t.txt: fills the table text/t, as .*a/t.txt does; .* rename"):
        tables(files)
    assert tables(["vanilla", files[0], "vanilla"]) == {"vanilla": ["a photo of a {}."], "t": ["a {}."]}


def test_twenty_thousand_templates_are_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    path.write_text("".join(f"photo {i} of {{}}.\n" for i in range(20_000)))
    assert len(templates(str(path))) == 20_000


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "t.txt"
    path.write_text("“a” {}\n", encoding=encoding)
    assert templates(str(path)) == ["“a” {}"]


def test_a_template_in_another_encoding_or_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("“a photo” of a {}.\n", encoding="cp1252")
    with pytest.raises(DatasetError, match=r"byte 0x93 in line 1 is no UTF-8; .* reads '“a photo” of a \{\}"):
        templates(str(path))
    path.write_text("a {} " + "very " * 5000)
    with pytest.raises(DatasetError, match="line 1 has 25,004 bytes; expected at most 1,024"):
        templates(str(path))
