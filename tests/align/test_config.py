"""Settings: recipes, files, JSON, and one clear line for every value without meaning."""

import copy
import dataclasses
import subprocess
import sys
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from spaner import cache as caches
from spaner import settings
from spaner.align.methods.method import METHODS
from spaner.align.train.config import RECIPES, TrainConfig, parts_of
from spaner.align.train.sweep import plan
from spaner.cli.options import Typed, typed_settings
from spaner.errors import RecipeError
from spaner.settings import axes


def test_paper_recipe_is_the_default():
    assert TrainConfig.from_recipe() == TrainConfig()


def test_anchored_recipe_and_overrides():
    config = TrainConfig.from_recipe("anchored", blend=0.25)
    assert (config.recipe, config.init, config.blend, config.epochs) == ("anchored", "identity", 0.25, 100)


@pytest.mark.parametrize("recipe", RECIPES)
def test_json_round_trip(recipe):
    config = TrainConfig.from_recipe(recipe, shots=4, out_dim=7, logit_scale=30)
    assert TrainConfig.from_json(config.to_json()) == config


def test_json_of_another_version():
    values = TrainConfig(lam=0.5).to_json()
    del values["epochs"], values["select"]
    assert TrainConfig.from_json(values) == TrainConfig(lam=0.5), (
        "settings that came later take their default"
    )
    with pytest.raises(
        RecipeError, match=r"stored configuration: unknown setting 'colour' .*; use the version"
    ):
        TrainConfig.from_json(values | {"colour": 1})


def test_file_starts_from_a_recipe(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('recipe = "anchored"\nprompt_length = 4\nlogit_scale = 50\n')
    config = TrainConfig.from_recipe(file, epochs=3)
    expected = TrainConfig.from_recipe("anchored", prompt_length=4, logit_scale=50.0, epochs=3)
    assert config == expected.replace(recipe=str(file))


def test_every_field_has_help():
    for method in METHODS:
        for part in parts_of(method):
            assert all(field.metadata["help"] for field in dataclasses.fields(part))


@pytest.mark.parametrize("method", METHODS)
def test_no_two_parts_share_a_setting(method):
    names = [field.name for part in parts_of(method) for field in dataclasses.fields(part)]
    assert len(names) == len(set(names))
    axes_ = axes(*parts_of(method))
    assert len(axes_) == len(set(axes_.values()))


WORDS = {
    "templates": "vanilla",
    "words": "on a",
    "aligner": "linear",
    "direction": "image",
    "objective": "gram",
}


def two_values(field: dataclasses.Field, hint: Any) -> list[Any]:
    """Two that the setting may take."""
    kinds = get_args(hint) or (hint,)
    if isinstance(field.default, str) and hint is str:
        return [field.default, WORDS[field.name]]
    if get_origin(hint) is Literal:
        return list(kinds[:2])
    kind = int if int in kinds else float
    low, default = field.metadata["low"] or 0, field.default
    first = kind(low + 1) if default in (None, "auto") else kind(str(default))
    return [first, first + 1 if kind is int else (first or 1) / 2]


@pytest.mark.parametrize("method", METHODS)
def test_every_sweepable_setting_is_an_axis_of_its_method(method, toy_cache):
    """As typed: `--lrs 0.1,0.2` makes two cells that differ in lr, named apart."""
    with caches.open(toy_cache) as cache:
        for kind in parts_of(method):
            hints, names = get_type_hints(kind), axes(kind)
            fields = {f.name: f for f in dataclasses.fields(kind)}
            assert settings.grids(kind).keys() <= set(names.values()), "what validation chooses can be swept"
            for axis, name in names.items():
                if name in ("recipe", "method"):
                    continue  # they bring settings of their own: see the tests of sweeps
                values = two_values(fields[name], hints[name])
                _, grid = typed_settings(Typed({axis: ",".join(map(str, values))}, [method], lists=True))
                assert grid == {name: values}
                cells = plan(cache, grid, {"method": method})
                assert [getattr(cell.config, name) for cell in cells] == values, axis
                assert len({cell.key for cell in cells}) == 2, axis


def test_identity_knows_what_is_away_from_its_default_and_what_was_given():
    assert TrainConfig().identity() == {}
    assert TrainConfig(lam=1.0, epochs=4).identity() == {"epochs": 4}
    assert TrainConfig(method="linear_probe").identity() == {"method": "linear_probe"}
    given = TrainConfig(method="linear_probe", c=100.0)
    assert given.identity() == {"method": "linear_probe", "c": 100.0}, "a given value is not chosen"
    assert given.replace(shots=4).given == {"method", "c", "shots"}
    assert copy.deepcopy(given).given == given.given, "as a worker process gets it"


def test_a_setting_of_another_method_is_refused_by_name():
    with pytest.raises(
        RecipeError, match=r"unknown setting 'prompt_length' for method linear_probe; the nearest"
    ):
        TrainConfig(method="linear_probe", prompt_length=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "prompt_lenght = 4",
            r"unknown setting 'prompt_lenght' for method spaner; the nearest is 'prompt_length'",
        ),
        ('recipe = "papr"', r"starts from 'papr'; expected one of paper, anchored"),
        ("lr = ", r"is not TOML: .*; write one `name = value` a line"),
        ("\udcff", r"is not TOML: .*"),
    ],
)
def test_bad_recipe_file(tmp_path, content, message):
    file = tmp_path / "mine.toml"
    file.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(RecipeError, match=message):
        TrainConfig.from_recipe(file)


def test_missing_recipe_file(tmp_path):
    with pytest.raises(
        RecipeError, match=r"none.toml cannot be read: No such file or directory; check the path"
    ):
        TrainConfig.from_recipe(tmp_path / "none.toml")


def test_unknown_recipe():
    with pytest.raises(
        RecipeError,
        match=r"unknown recipe 'anchor'; .* anchored-prior or a .toml .*mean 'anchored'",
    ):
        TrainConfig.from_recipe("anchor")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("blend", 1.5, r"blend is 1.5; expected a finite number, at least 0 and at most 1; use blend=1"),
        ("lr", 0.0, r"lr is 0.0; expected a finite number, at least 1e-12; use lr=1e-12"),
        ("lr", float("nan"), r"lr is nan; expected a finite number"),
        ("lam", float("inf"), r"lam is inf; expected a finite number"),
        ("epochs", 0, r"epochs is 0; expected a finite number, at least 1; use epochs=1"),
        ("batch_size", 1, r"batch_size is 1; .* use batch_size=2"),
        ("shots", 0, r"shots is 0; .* use shots=1"),
        ("epochs", 2.5, r"epochs is 2.5; expected a whole number; leave epochs out for its default"),
        ("epochs", True, r"epochs is True; expected a whole number"),
        ("shots", "4", r"shots is '4'; expected a whole number or nothing"),
        (
            "logit_scale",
            "atuo",
            r"logit_scale is 'atuo'; expected a number or auto; did you mean logit_scale=auto",
        ),
        ("pool", "outputs", r"pool is 'outputs'; expected output or input; did you mean pool=output\?"),
        (
            "method",
            "spanner",
            r"--method spanner: unknown; expected one of .*; did you mean `--method spaner`",
        ),
        (
            "aligner",
            "atention",
            r"--aligner atention: unknown; expected .*; did you mean `--aligner attention`",
        ),
    ],
)
def test_value_without_meaning(setting, value, message):
    with pytest.raises(RecipeError, match=message):
        TrainConfig(**{setting: value})


def test_recipes_need_no_torch():
    """So that the options of a command can be listed at once; a method's own settings lie beside the
    method."""
    code = "import sys; sys.modules['torch'] = None; from spaner.align.train import config; config.RECIPES"
    subprocess.run([sys.executable, "-c", code], check=True)
