"""Every recipe is read, resolved cell by cell into a model, and its header says something true."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer

import spaner.cache
from spaner.align.methods import method as methods
from spaner.align.methods.task import Facts
from spaner.align.paper import image_text as paper_tables
from spaner.align.train.config import TrainConfig, recipe_grid
from spaner.align.train.sweep import plan
from spaner.cli import app
from spaner.errors import RecipeError
from spaner.extract.templates import templates
from tests.conftest import Outcome

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
WIDTH, SCALE = 512, 100.0  # CLIP ViT-B/16


def header(file: Path) -> dict[str, str]:
    """The fields of the comment that a recipe opens with; a field goes on in indented lines."""
    fields: dict[str, str] = {}
    for line in file.read_text().split("\n\n")[0].splitlines()[2:]:
        name, _, text = line.removeprefix("# ").partition(":")
        if line.startswith("#  "):
            name, text = list(fields)[-1], line
        fields[name] = f"{fields.get(name, '')} {text.strip('# ')}".strip()
    return fields


def parsed(command: str) -> tuple[str, dict]:
    """A command line as the real options read it; typer refuses what they do not know."""
    program, name, *words = shlex.split(command)
    assert program == "spaner"
    root = typer.main.get_command(app)
    context = root.commands[name].make_context(name, words)  # pyright: ignore[reportAttributeAccessIssue]
    return name, context.params


def test_there_is_one_for_each_ablation() -> None:
    assert {file.stem for file in RECIPES} == {"paper", "anchored", "figure6", "figure7"}


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_it_opens_with_command_hardware_minutes_and_expected_number(file: Path) -> None:
    text = file.read_text()
    assert re.match(r"# \S.*\.\n#\n# command:  spaner ", text), "one sentence, an empty line, then the fields"
    fields = header(file)
    assert list(fields) == ["command", "hardware", "minutes", "expected"]
    assert re.search(r"\d", fields["minutes"])
    assert re.search(r"\d|above recipes/paper\.toml|within one point", fields["expected"])


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_its_commands_are_ones_that_spaner_knows(file: Path) -> None:
    (extract, extracted), (last, options) = (parsed(part) for part in header(file)["command"].split("&&"))
    assert (extract, last) == ("extract", "sweep" if recipe_grid(file) else "train")
    assert options["recipe"] == f"recipes/{file.name}"
    assert options["cache"] == Path("cache/imagenet16")
    stored = (extracted["templates"] or "mined,vanilla,classname").split(",")
    first = {name: values[0] for name, values in recipe_grid(file).items()}
    settings = recipe_grid(file).get("templates") or [TrainConfig.from_recipe(file, **first).templates]
    assert set(settings) <= set(stored), "the extraction stores every template set that the recipe trains on"
    assert all(templates(name) for name in settings)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_cell_becomes_a_model(file: Path, toy_cache: Path) -> None:
    grid = recipe_grid(file)
    cells = plan(spaner.cache.open(toy_cache), grid, {"recipe": str(file)})
    count = 1
    for values in grid.values():
        count *= len(values)
    assert len({cell.key for cell in cells}) == count
    for cell in cells:
        assert cell.config.shots == 16
        assert all(getattr(cell.config, name) == value for name, value in cell.varied.items())
        with torch.device("meta"):
            model = methods.method("spaner").build(
                cell.config, Facts((), "image", {"image": WIDTH, "text": WIDTH}, SCALE)
            )
        assert model.out_dim == (cell.config.out_dim or WIDTH)


def test_the_figures_that_reproduce_makes_are_those_of_the_recipes() -> None:
    six, seven = (recipe_grid(ROOT / "recipes" / f"figure{i}.toml") for i in (6, 7))
    assert six["prompt_length"] == list(paper_tables.PROMPT_LENGTHS)
    assert six["aligner"] == list(paper_tables.FUSIONS)
    assert seven["templates"] == list(paper_tables.TEMPLATE_SETS)
    assert seven["out_dim"] == [round(share * WIDTH) for share in paper_tables.WIDTHS]


# --- [grid] ---


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "mine.toml").write_text(text)
    return tmp_path / "mine.toml"


def test_a_recipe_with_lists_trains_only_where_each_is_chosen(tmp_path: Path) -> None:
    file = write(tmp_path, "epochs = 3\n[grid]\nprompt_length = [1, 4]\nseed = [1, 2]\n")
    said = r"mine.toml lists values for seed in its \[grid\], expected one each; type .*--seed"
    with pytest.raises(RecipeError, match=said):
        TrainConfig.from_recipe(file, prompt_length=4)
    config = TrainConfig.from_recipe(file, prompt_length=4, seed=2)
    assert (config.epochs, config.prompt_length, config.seed) == (3, 4, 2)


@pytest.mark.parametrize("grid", ["grid = 3\n", "[grid]\nprompt_length = 3\n"])
def test_a_grid_holds_lists(tmp_path: Path, grid: str) -> None:
    with pytest.raises(
        RecipeError,
        match=r"mine.toml: its \[grid\] is .*; expected a list .*prompt_length "
        r"= \[",
    ):
        recipe_grid(write(tmp_path, grid))


def test_a_setting_that_cannot_be_swept_and_a_bad_value_are_named(tmp_path: Path, toy_cache: Path) -> None:
    opened = spaner.cache.open(toy_cache)
    for grid, said in (
        ("device = ['cpu']", "found the setting 'device'"),
        ("seed = []", "list for seed is empty"),
        ("lr = ['x']", "lr is 'x'"),
    ):
        file = write(tmp_path, f"[grid]\n{grid}\n")
        with pytest.raises(RecipeError, match=said):
            plan(opened, recipe_grid(file), {"recipe": str(file)})


def test_the_command_sweeps_the_grid_and_typed_options_win(
    cli: Callable[..., Outcome], toy_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lists = "prompt_length = [1, 3]\nseed = [1, 2]\nblend = [0.0, 0.5]\n"
    write(tmp_path, f"epochs = 1\nbatch_size = 32\n[grid]\n{lists}")
    chosen = ["--seeds", "5", "--blend", "0.25", "--workers", 1]
    done = cli("sweep", "--cache", toy_cache, "--recipe", "mine.toml", *chosen, "--json")
    assert done.status == 0, done.err
    configs = [cell["config"] for cell in json.loads(done.out)]
    assert [(c["prompt_length"], c["seed"], c["blend"]) for c in configs] == [(1, 5, 0.25), (3, 5, 0.25)]
