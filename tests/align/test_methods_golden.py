"""The heads give what the authors' own code gave: recorded inputs, batches and start values, replayed.

A few small cases lie beside this file; the whole folder is run where it exists.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spaner.align.methods.gda import Gda
from spaner.align.methods.proker import ProKeR
from spaner.align.methods.task import Query, Texts, Tools
from spaner.align.methods.tip_adapter import TipAdapter
from tests.align import few_shot

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
golden_cases = import_module("golden_cases")
HERE = Path(__file__).parent / "golden"
FOLDER = ROOT.parent / "shared" / "fixtures" / "methods"
HEADS = {
    "CLIP-Adapter",
    "GDA",
    "LP++",
    "ProKeR",
    "ProLIP-RLA",
    "TaskRes",
    "Tip-Adapter",
    "Tip-Adapter-F",
    "ZS-LP/CLAP",
    "cross-modal linear probe",
}


def method_of(file: Path) -> str:
    with np.load(file) as archive:
        return json.loads(str(archive["meta"]))["method"]


FILES = sorted({file.name: file for folder in (HERE, FOLDER) for file in folder.glob("*.npz")}.values())
CASES = [file for file in FILES if method_of(file) in HEADS]


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_it_gives_what_the_reference_gave(file):
    results = list(golden_cases.run(file))
    assert len(results) == 2
    assert all(result.passed for result in results), "\n".join(map(str, results))


def test_every_head_has_a_case_here():
    assert {method_of(file) for file in HERE.glob("*.npz")} >= HEADS
    assert set(golden_cases.FAMILIES) >= HEADS


def fitted_on(file: str, method, **changes):
    """The class itself, fitted on a case's rows, and what it says of the case's queries."""
    with np.load(HERE / file) as archive:
        z = {name: torch.from_numpy(np.asarray(archive[name])) for name in archive.files if name != "meta"}
        meta = json.loads(str(archive["meta"]))
    raw = z["in_train_views_raw"].transpose(0, 1) if "in_train_views_raw" in z else z["in_train_raw"][:, None]
    text = Texts(*few_shot.unit(z["in_text"][:, None] if "in_text" in z else z["in_text_raw"]))
    x, norms = few_shot.unit(raw)
    names = tuple(f"class {i}" for i in range(len(text.x)))
    told = {
        "x": x,
        "norms": norms,
        "labels": z["in_train_labels"],
        "class_names": names,
        "logit_scale": 100.0,
    }
    task = few_shot.task(**told, texts={"mined": text, "vanilla": text}, text=text.x, validation=False)
    head = method.fit(task, few_shot.settings(method, **{k: meta["hyper"][k] for k in changes}), Tools())
    return head, F.normalize(z["in_query_raw"], dim=1), Query("text", names, text), z


@pytest.mark.parametrize(
    ("method", "file", "told", "output"),
    [
        (TipAdapter, "tip_adapter_2.npz", ("alpha", "beta"), "tip_logits"),
        (ProKeR, "proker_2.npz", ("beta", "lam"), "query_logits"),
        (Gda, "gda_1.npz", (), "query_logits_best"),
    ],
)
def test_the_class_gives_it_too(method, file, told, output):
    head, x, query, z = fitted_on(file, method, **dict.fromkeys(told))
    if method is Gda:
        head = head.tuned_to({"alpha": float(z["out_best_alpha"])})
    assert golden_cases.difference(head.scores(x, query), z[f"out_{output}"].numpy()) < 1e-5


class TestVerdicts:
    """The script itself: what it calls a failure."""

    @pytest.fixture
    def case(self, tmp_path):
        def write(**changes):
            with np.load(HERE / "gda_1.npz") as archive:
                arrays = {name: archive[name] for name in archive.files} | changes
            np.savez(tmp_path / "case.npz", **arrays)
            return list(golden_cases.run(tmp_path / "case.npz"))

        return write

    def test_an_output_that_is_off_fails_and_is_named(self, case):
        with np.load(HERE / "gda_1.npz") as archive:
            moved = archive["out64_b"] * (1 + 2e-8)
        exact, single = case(out64_b=moved)
        assert (exact.passed, exact.worst, single.passed) == (False, "b", True)
        assert "FAILED" in str(exact)

    def test_an_output_that_nobody_answers_fails(self, case):
        assert [result.note for result in case(out_more=np.ones(3))] == ["not answered: more"] * 2

    def test_an_unknown_family_fails(self, case):
        (result,) = case(meta=np.array(json.dumps({"method": "Oracle"})))
        assert not result.passed
        assert "unknown family 'Oracle'; known: " in result.note

    def test_differences_are_relative_to_the_largest_number(self):
        truth = np.array([1.0, -4.0])
        assert golden_cases.difference(torch.tensor([1.0, -4.4]), truth) == pytest.approx(0.1)
        assert golden_cases.difference([1.0], truth) == np.inf
        assert golden_cases.difference([1.0, np.nan], truth) == np.inf
        assert golden_cases.difference([np.nan, 1.0], np.array([np.nan, 1.0])) == 0
