"""Template sets are what the papers used, and a user's file is checked."""

from pathlib import Path

import open_clip
import pytest

from spaner.errors import DatasetError
from spaner.extract.templates import NAMES, fill, table_name, templates

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
