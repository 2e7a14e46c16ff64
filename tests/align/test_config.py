"""Settings: recipes, files, JSON, and one clear line for every value without meaning."""

import dataclasses
import subprocess
import sys

import pytest

from spaner.align.train.config import RECIPES, TrainConfig
from spaner.errors import RecipeError


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
    values = TrainConfig().to_json()
    del values["lam"]
    with pytest.raises(
        RecipeError, match=r"stored configuration: missing or unknown setting 'lam'; use the version"
    ):
        TrainConfig.from_json(values)


def test_file_starts_from_a_recipe(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('recipe = "anchored"\nprompt_length = 4\nlogit_scale = 50\n')
    config = TrainConfig.from_recipe(file, epochs=3)
    expected = TrainConfig.from_recipe("anchored", prompt_length=4, logit_scale=50.0, epochs=3)
    assert config == dataclasses.replace(expected, recipe=str(file))


def test_every_field_has_help():
    assert all(field.metadata["help"] for field in dataclasses.fields(TrainConfig))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt_lenght = 4", r"unknown setting 'prompt_lenght'; the nearest is 'prompt_length'"),
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
        RecipeError, match=r"unknown recipe 'anchor'; .* paper, anchored or a .toml .*mean 'anchored'"
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
            "direction",
            "text2",
            r"direction is 'text2'; expected both or image or text; did you mean direction=text",
        ),
        ("method", "spanner", r"method is 'spanner'; expected one of spaner; did you mean method=spaner"),
        ("aligner", "atention", r"aligner is 'atention'; expected one of .*; did you mean aligner=attention"),
    ],
)
def test_value_without_meaning(setting, value, message):
    with pytest.raises(RecipeError, match=message):
        TrainConfig(**{setting: value})


def test_settings_need_no_torch():
    code = "import sys; sys.modules['torch'] = None; import spaner.align.train.config as c; c.TrainConfig()"
    subprocess.run([sys.executable, "-c", code], check=True)
