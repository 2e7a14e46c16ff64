"""A second method is one file and one registry line: a stranger's goes through every command unchanged."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import spaner
from spaner.align.methods.method import METHODS
from spaner.align.paper.reproduce import Setup, reproduce
from spaner.errors import RecipeError
from tests.conftest import Outcome

Cli = Callable[..., Outcome]

FILE = '''
"""Nearest class mean, pulled toward the class's text."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from spaner.align.methods.state import as_tensor, check_shapes
from spaner.align.methods.task import check_classes
from spaner.settings import check, option


@dataclass(frozen=True)
class Settings:
    pull: float = option(0.5, "Share of the class's text in its mean.", low=0, high=1, grid=(0.0, 0.5, 0.9))

    def __post_init__(self):
        check(self)


class NearestMean:
    Settings, training, reads_query = Settings, None, True

    def __init__(self, means, pull, facts):
        self.means, self.pull, self.facts = means, pull, facts
        self.logit_scale, self.history = facts.logit_scale, []

    @classmethod
    def fit(cls, task, settings, tools):
        means = torch.stack([task.x[task.labels == c].flatten(0, 1).mean(0) for c in task.labels.unique()])
        return cls(F.normalize(means, dim=1), settings.pull, task.facts())

    def scores(self, x, query):
        check_classes("nearest_mean", self.facts.class_names, query)
        classes = (1 - self.pull) * self.means + self.pull * query.texts.classes
        return self.logit_scale * x @ F.normalize(classes, dim=1).T

    def state(self):
        return {"means": self.means, "pull": as_tensor(self.pull)}

    @classmethod
    def restore(cls, state, settings, facts):
        shape = (len(facts.class_names), facts.widths[facts.modality])
        check_shapes({"means": shape, "pull": ()}, state)
        return cls(state["means"], float(state["pull"]), facts)
'''
LINE = "[spaner.methods]\nnearest_mean = nearest_mean:NearestMean\n"


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with the file and the line, and an empty folder to work in."""
    package = tmp_path / "package"
    info = package / "nearest_mean-1.dist-info"
    info.mkdir(parents=True)
    (package / "nearest_mean.py").write_text(FILE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nearest-mean\nVersion: 1\n")
    (info / "entry_points.txt").write_text(LINE)
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.chdir(tmp_path)


def text_accuracy(path: Path) -> float:
    return json.loads(path.read_text())["metrics"]["text"]["accuracy"]


def test_nothing_in_the_house_knows_it() -> None:
    assert "nearest_mean" not in METHODS
    root = Path(spaner.__file__).parent
    assert not [file for file in root.rglob("*.py") if "nearest_mean" in file.read_text()]


def test_the_library_takes_it(toy_cache: Path) -> None:
    run = spaner.fit(toy_cache, method="nearest_mean", shots=2)
    assert run.selection["by"] == "val"
    assert set(run.selection["grid"]) == {"pull"}
    run.metrics = spaner.evaluate(run, toy_cache)
    assert run.metrics["text"]["accuracy"] > 2 / 11
    assert run.metrics["gap"] is not None
    assert run.metrics["text"]["positive_cosine"] is None, "it has no space"
    loaded = spaner.load(run.save("mine"))
    assert spaner.evaluate(loaded, toy_cache) == run.metrics


@pytest.mark.usefixtures("few_rows_in_the_plane")
def test_every_command_takes_it(cli: Cli, toy_cache: Path) -> None:
    on = ("--cache", toy_cache)

    def done(*words: object) -> str:
        outcome = cli(*words)
        assert outcome.status == 0, outcome.err
        return outcome.out

    assert "--pull" in done("train", "--method", "nearest_mean", "--help")
    assert "nearest_mean" in done("train", *on, "--method", "nearest_mean", "--pull", 0.9, "--out", "run")
    again = json.loads(done("eval", "--run", "run", *on, "--json"))
    assert again["text"]["accuracy"] == text_accuracy(Path("run/result.json"))
    swept = done("sweep", *on, "--method", "nearest_mean", "--pulls", "0.0,0.9", "--workers", 1, "--out", "s")
    assert re.findall(r"^(0\.0|0\.9) +1 ", swept, re.MULTILINE) == ["0.0", "0.9"]
    words = ("--methods", "zero_shot,nearest_mean", "--shots", 2, "--seeds", 1, "--workers", 1)
    assert re.search(r"^nearest_mean +2 ", done("compare", *on, *words), re.MULTILINE)
    done("report", "run", "-o", "report.html", "--no-figures")
    assert "nearest_mean" in Path("report.html").read_text()


def test_it_is_a_row_of_the_papers_tables(toy_cache: Path) -> None:
    setup = Setup("table1", "toy", toy_cache, Path("made"), (1,), epochs=1, methods=("nearest_mean",))
    assert "nearest_mean" in [row.name for row in reproduce(setup).tables[0].rows]
    with pytest.raises(RecipeError, match="did you mean `--method nearest_mean`"):
        reproduce(replace(setup, methods=("nearest_meen",), out=Path("none")))
    assert not Path("none").exists(), "said before anything is trained"


def test_a_value_without_meaning_is_its_own_to_refuse(cli: Cli, toy_cache: Path) -> None:
    refused = cli("train", "--cache", toy_cache, "--method", "nearest_mean", "--pull", 2)
    assert refused.status == 1
    assert "pull is 2.0; expected a finite number, at least 0 and at most 1; use pull=1" in refused.err
    refused = cli("train", "--cache", toy_cache, "--method", "nearest_meen")
    assert "did you mean `--method nearest_mean`" in refused.err
