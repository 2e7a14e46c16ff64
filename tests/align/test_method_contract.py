"""What every registered method must do, from a tiny cache to a report."""

import json
import re
import shutil
from dataclasses import replace

import clip_like
import numpy as np
import pictured
import pytest
import torch

from spaner import cache as caches
from spaner.align.methods import method as methods
from spaner.align.methods.method import METHODS, Extendable, Fitted, Space, Tunable
from spaner.align.methods.task import Query
from spaner.align.report.write import write
from spaner.align.score.adapted import scored_table
from spaner.align.score.evaluate import evaluate
from spaner.align.score.tables import queries
from spaner.align.train import run as checkpoint
from spaner.align.train.base_to_new import base_to_new
from spaner.align.train.config import TrainConfig, parts_of
from spaner.align.train.fit import fit
from spaner.align.train.sweep import scores, sweep
from spaner.align.train.task import task
from spaner.cli.towers import Towers
from spaner.errors import Mismatch, RunError
from spaner.settings import grids

ROWS = 29
FEW = {"shots": 4, "device": "cpu"}
QUICK = {"heads": 4, "epochs": 20, "iterations": 40, "batch_size": 32, "lr": 3e-3}


INSIDE = {
    "campe": {"epochs": 8},
    "cocoop": {"epochs": 4},
    "maple": {"depth": 2, "lr": 5e-3, "batch_size": 8, "epochs": 20},
    "mma": {"start": 2, "end": 3, "strength": 0.1, "batch_size": 8, "epochs": 20},
}
"""Small towers have few blocks, and random ones need stronger adapters."""


HELD = {
    "clip_adapter": {"ratio"},
    "cross_modal": {"origin", "wise_ft"},
    "task_res": {"alpha"},
    "tip_adapter_f": {"alpha", "beta", "labels"},
}
"""What a method saves beside what its steps move."""


def settings(method: str) -> dict:
    """Few rows, and of what makes a fit quick all that the method has."""
    chosen = {name for kind in parts_of(method) for name in grids(kind)}
    known = TrainConfig(method=method).to_json().keys() - chosen
    quick = {name: value for name, value in QUICK.items() if name in known}
    return FEW | {"method": method} | quick | INSIDE.get(method, {})


def needs(method: str, what: str) -> bool:
    return getattr(methods.method(method), what, False)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Caches by kind, each made when it is first asked for: vectors, digits with a text tower, pictures."""
    made = {}

    def build(method):
        kind = "digits" if needs(method, "needs_tower") else ""
        kind = "pictures" if needs(method, "needs_pictures") else kind
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind or "contract")
            make = {"pictures": pictured.build, "digits": pictured.digits}.get(kind)
            path = make(folder) if make else clip_like.build(folder / "cache")
            if kind == "pictures":
                pictured.tokens(folder, 0)
            made[kind] = caches.open(path), pictured.towers(folder) if kind == "pictures" else Towers()
        return made[kind]

    return build


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    return request.param


@pytest.fixture(scope="module")
def cache(built, method):
    return built(method)[0]


@pytest.fixture(scope="module")
def towers(built, method):
    return built(method)[1]


@pytest.fixture(scope="module")
def fitted(cache, method, towers):
    """Fit anew, on the cache or another with the same encoder."""

    def again(data=cache, **changes):
        told = settings(method) | changes
        return fit(data, **told, **towers(cache.path, told["method"], "cpu"))

    return again


@pytest.fixture(scope="module")
def run(fitted):
    return fitted()


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    run.metrics = evaluate(run, run.cache)
    return run.save(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def x(run, cache):
    rows = scored_table(run, cache, "image/test").read()[:ROWS, 0].astype(np.float32)
    return torch.nn.functional.normalize(torch.from_numpy(rows), dim=1)


def test_is_a_method(run):
    assert isinstance(run.model, Fitted)
    assert issubclass(type(run.model), methods.method(run.config.method))


def test_scores_every_class_of_the_query(run, cache, x):
    asked = queries(cache)
    found = {kind: run.model.scores(x, query) for kind, query in asked.items()}
    shape = (ROWS, len(cache.class_names))
    assert all(s.shape == shape and s.isfinite().all() for s in found.values())
    assert torch.equal(found["text"], found["semantic"]) is not run.model.reads_query


def test_a_row_does_not_depend_on_its_company(run, cache, x):
    query = queries(cache)["text"]
    whole = run.model.scores(x, query)
    torch.testing.assert_close(run.model.scores(x[7:8], query)[0], whole[7], rtol=1e-4, atol=1e-4)


def test_evaluation_gives_numbers_or_nothing(run, cache):
    metrics = evaluate(run, cache)
    assert 0 <= metrics["text"]["accuracy"] <= 1
    assert (metrics["semantic"] is None) is not run.model.reads_query
    assert (metrics["gap"] is None) is not run.model.reads_query
    cosines = isinstance(run.model, Space) or needs(run.config.method, "scores_cosines")
    assert (metrics["text"]["positive_cosine"] is None) is not cosines
    assert metrics["text"]["accuracy"] > 2 * metrics["chance"], "it learned something"


def test_saved_and_loaded_it_scores_the_same_bits(run, folder, cache, x, towers):
    loaded = checkpoint.load(folder)
    loaded.towers = towers
    towers.put_beside(loaded, cache, "image/test")
    for query in queries(cache).values():
        assert torch.equal(run.model.scores(x, query), loaded.model.scores(x, query))
    assert evaluate(loaded, cache) == evaluate(run, cache)
    assert loaded.config == run.config
    assert loaded.selection == json.loads(json.dumps(run.selection))


def test_saved_twice_or_loaded_and_saved_it_has_the_same_bytes(run, folder):
    """Beside its place, so that the way to the cache is spelled alike."""
    loaded = checkpoint.load(folder)
    for again in (run.save(folder.parent / "again"), loaded.save(folder.parent / "loaded")):
        assert sorted(file.name for file in again.iterdir()) == sorted(f.name for f in folder.iterdir())
        for file in folder.iterdir():
            assert file.read_bytes() == (again / file.name).read_bytes(), file.name


def test_a_missing_tensor_is_refused(run, folder, tmp_path):
    state = run.model.state()
    if not state:
        pytest.skip("nothing was learned")
    state.pop(next(iter(state)))
    with pytest.raises(RunError, match="missing"):
        type(run.model).restore(state, run.config, run.facts_of_method)


def test_the_same_seed_gives_the_same_bits(run, fitted):
    again = fitted().model.state()
    assert all(torch.equal(tensor, again[name]) for name, tensor in run.model.state().items())


def test_its_steps_move_all_that_it_trains(method, fitted):
    """Against steps too short to see, or the first of them; on all rows, so that the last step is kept and no
    validation rows can prefer the start."""
    known = TrainConfig(**settings(method)).to_json()
    short = {"lr": 1e-12} if "lr" in known else {"iterations": 1} if "iterations" in known else None
    if short is None:
        pytest.skip("it takes no steps of its own")
    few = {"shots": None} | ({"epochs": 2} if "epochs" in known else {})
    still, moved = fitted(**few | short).model.state(), fitted(**few).model.state()
    held = {name for name, tensor in moved.items() if torch.equal(tensor, still[name])}
    assert held == HELD.get(method, set())


def test_test_rows_are_out_of_reach(run, fitted, cache, tmp_path):
    """Poisoned or absent: whatever is in the test table, the same bits are learned and the same chosen."""
    path = shutil.copytree(cache.path, tmp_path / "cache")
    shutil.rmtree(path / "image/test")
    test = cache.table("image/test")
    with caches.create(path, cache.dataset, cache.class_names) as poisoned:
        rows = (1000 * test.read()[::-1]).astype(np.float32)
        poisoned.add("image", "test", rows, test.labels, encoder=test.manifest.encoder)
    again = fitted(path)
    assert all(torch.equal(tensor, again.model.state()[name]) for name, tensor in run.model.state().items())
    assert again.selection == run.selection


def test_another_encoder_is_refused(run, cache, tmp_path):
    path = shutil.copytree(cache.path, tmp_path / "cache")
    shutil.rmtree(path / "image/test")
    test = cache.table("image/test")
    with caches.create(path, cache.dataset, cache.class_names) as other:
        spec = replace(test.manifest.encoder, weights_sha256="0" * 64)
        other.add("image", "test", test.read().astype(np.float32), test.labels, encoder=spec)
    with pytest.raises(Mismatch, match="weights_sha256"):
        evaluate(run, path)


def test_other_classes_are_read_or_refused_by_name(run, cache, x):
    """A query is scored where it is read; a head refuses classes that it was not fitted on."""
    asked = queries(cache)["text"]
    other = Query("text", (*asked.class_names[:-1], "a stranger"), asked.texts)
    try:
        found, refused = run.model.scores(x, other), ""
    except Mismatch as error:
        found, refused = None, str(error)
    if found is None:
        assert "a stranger" in refused
        return
    assert found.shape == (ROWS, len(cache.class_names))
    assert run.model.reads_query, "who ignores the query must refuse it"


def test_new_classes_are_asked_through_its_towers(method, cache, towers):
    """Trained on half of the classes, it puts the names of the others into what it learned."""
    if not needs(method, "needs_tower"):
        pytest.skip("it needs the cache alone")
    told = settings(method)
    if needs(method, "needs_pictures"):
        told["epochs"] = 60  # half of the rows make half of the steps
    found = base_to_new(cache.path, TrainConfig(**told), towers)
    assert found["reason"] is None
    text, count = found["text"], len(cache.class_names)
    assert text["base"] > 1.5 / ((count + 1) // 2), "rows of the base classes keep their labels"
    assert 0 < text["new"] <= 1
    assert text["H"] == pytest.approx(2 * text["base"] * text["new"] / (text["base"] + text["new"]))
    plain = base_to_new(cache.path, TrainConfig(**settings("zero_shot")))
    assert found["zero_shot"] == plain["zero_shot"]


def test_it_sweeps(method, towers, cache, tmp_path):
    base = {name: value for name, value in settings(method).items() if name not in ("shots", "method")}
    grid = {"shots": [1, 2]}
    results = sweep(cache, grid, base | {"method": method}, tmp_path, workers=1, towers=towers)
    assert [r["status"] for r in results] == ["ok", "ok"], results
    assert all(0 <= (scores(r)["text"] or 0) <= 1 for r in results)


@pytest.mark.usefixtures("few_rows_in_the_plane")
def test_it_stands_in_a_report(folder, towers, tmp_path):
    write([folder], tmp_path / "report.html", figures=False, towers=towers)
    text = (tmp_path / "report.html").read_text()
    words = re.sub(r"<[^>]*>", " ", re.sub(r"<(style|script).*?</\1>", " ", text, flags=re.DOTALL)).split()
    result = json.loads((folder / "result.json").read_text())
    assert not {"nan", "NaN", "None"} & set(words)
    assert f"{100 * result['metrics']['text']['accuracy']:.1f}" in words
    assert ("–" in words) or result["metrics"]["gap"] is not None, "what it has not is a dash"


def test_a_space_embeds_and_a_head_says_that_it_does_not(run, cache):
    rows = np.ones((2, cache.table("image/test").dim), np.float32)
    if isinstance(run.model, Space):
        found = run.embed("image", rows)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        return
    with pytest.raises(RunError, match=f"{run.config.method}.*embeds nothing"):
        run.embed("image", rows)


def test_a_choice_has_its_receipt(method, run, cache, fitted):
    grid = set(TrainConfig(**settings(method)).open_grid())
    if not grid:
        assert run.selection == {"by": "none"}
        return
    receipt = run.selection
    assert receipt["by"] == "val"
    assert set(receipt["choice"]) == grid
    assert len(receipt["scores"]) == len(receipt["tried"]) > 1
    assert receipt["tried"][0] == TrainConfig(**settings(method)).starts(), "published values come first"
    assert receipt["choice"] == receipt["tried"][by_hand(receipt["nll"], receipt["errors"])]
    validation = task(cache, run.config).validation
    assert validation is not None
    assert receipt["rows_sha256"] == validation.draw.sha256
    fixed = fitted(select="published")
    assert fixed.selection["by"] == "published"
    assert fixed.selection["choice"] == receipt["tried"][0]


def by_hand(nll, errors):
    """Index of the choice, from the receipt alone: the lowest difference to the first plus one standard
    error; the first itself has 0."""
    better = [nll[0] - each for each in nll]
    bounds = [mean / e - mean if e else 0.0 for mean, e in zip(better, errors, strict=True)]
    return min(range(len(nll)), key=lambda i: (bounds[i], i)) if min(bounds) < 0 else 0


def test_tuning_is_what_a_fit_with_that_value_gives(method, run, cache, x):
    if not isinstance(run.model, Tunable):
        pytest.skip("every value of its grid is a fit of its own")
    query = queries(cache)["text"]
    grid = {name: values for name, values in grids(parts_of(method)[1]).items() if name in run.model.tuned}
    for choice, found in list(run.model.tune(x, query, grid))[:: max(1, len(grid))][:3]:
        fitted = fit(cache, **(settings(method) | run.selection["choice"] | choice))
        torch.testing.assert_close(fitted.model.scores(x, query), found, rtol=1e-4, atol=1e-4)


def test_what_joins_is_refused_by_name_where_nothing_can(run, cache):
    from spaner.align.train.extend import extend

    if isinstance(run.model, Extendable):
        pytest.skip("tested by itself")
    with pytest.raises(RunError, match=f"method '{run.config.method}' takes no further modality"):
        extend(run, cache, modality="audio")


@pytest.fixture(scope="module")
def vectors(built):
    return built("spaner")[0]


def test_validation_rows_are_no_training_rows(vectors):
    loaded = task(vectors, TrainConfig(shots=4))
    validation = loaded.validation
    assert validation is not None
    assert np.bincount(validation.labels).tolist() == [4] * clip_like.CLASSES
    distance = torch.cdist(validation.x[:, 0], loaded.x[:, 0])
    assert distance.min() > 1e-3


@pytest.mark.parametrize(("held", "each"), [("four", 4), ("equal", 5)])
def test_validation_rows_are_four_a_class_or_as_many_as_the_shots(tmp_path, held, each):
    made = caches.open(clip_like.build(tmp_path / "cache", per_class=11))
    loaded = task(made, TrainConfig(shots=5, held=held))
    assert loaded.validation is not None
    assert np.bincount(loaded.validation.labels).tolist() == [each] * clip_like.CLASSES
    assert torch.cdist(loaded.validation.x[:, 0], loaded.x[:, 0]).min() > 1e-3


def test_where_every_row_trains_the_receipt_says_so(vectors):
    chosen = fit(vectors, method="linear_probe", device="cpu").selection
    assert chosen["by"] == "published"
    assert "no validation rows" in chosen["why"]
