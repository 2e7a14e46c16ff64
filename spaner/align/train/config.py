"""Every setting of a training run: what all methods share, the method's own, and the loop's if it has one.

    TrainConfig.from_recipe("anchored", prompt_length=4)      a named recipe
    TrainConfig.from_recipe(method="gda", shots=4)            another method
    TrainConfig.from_recipe("recipes/mine.toml")              a file: the same keys, and `recipe` for the one
                                                              it starts from; a table `[grid]` lists values
                                                              that `spaner sweep` combines

A configuration reads like one flat record (`config.shots`, `config.prompt_length`, `config.lr`), whichever
part a setting belongs to. Each value is checked once, here; code below trusts them. What depends on the data
(do the heads divide the embedding width?) is checked where the data are known.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from spaner import settings
from spaner.align.methods import method as methods
from spaner.errors import RecipeError
from spaner.registry import nearest
from spaner.settings import option

RECIPES: dict[str, dict[str, Any]] = {
    # The method as the paper gives it; where the paper is silent, the defaults of `methods.spaner`.
    "paper": {},
    # Start from the frozen space and keep half of it: better in the domain and under domain shift.
    "anchored": {"init": "identity", "blend": 0.5, "epochs": 100},
    # Nearer to the frozen space, and closed forms on its rows join the scores as far as validation says.
    "anchored-prior": {"init": "identity", "epochs": 100, "prior": "gda+kernel"},
}


@dataclass(frozen=True)
class Common:
    """What every method is told."""

    recipe: str = option("paper", "Recipe that the other values started from (a record).", axis="recipes")
    method: str = option("spaner", "What to train.", axis="methods")
    shots: int | None = option(
        None, "Training rows per class; default: all rows, or the largest stored draw.", low=1, axis="shots"
    )
    draw_seed: int = option(1, "Which few-shot draw.", low=0)
    templates: str = option("mined", "Template set whose texts are trained on.", axis="template_sets")
    seed: int = option(
        1, "Initial weights, order of samples, choice of templates.", low=0, high=2**63 - 1, stacks=True
    )
    select: Literal["val", "folds", "published"] = option(
        "val",
        "Who chooses what has a grid: validation rows, folds of the training rows, or the authors' values.",
        axis="selects",
    )
    held: Literal["four", "equal"] = option(
        "four", "Validation rows a class: min(K, 4), or as many as the shots.", axis=None
    )
    logit_scale: float | Literal["auto"] = option(
        "auto", "Fixed 1 / temperature; auto: the encoder's own.", low=1e-6, stacks=True
    )
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "Arithmetic; auto: bfloat16 where it is faster, which the result names.", axis=None
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps ...", axis=None)

    def __post_init__(self) -> None:
        settings.check(self)


class TrainConfig:
    """The resolved settings of one run, read as one flat record.

    Attributes:
        parts: the dataclasses that hold them: `Common`, the method's `Settings`, and its loop's.
        given: names that were set and not left to their default: validation does not choose them.

    Raises:
        RecipeError: a value that has no meaning, or a setting that the method does not have; the line names
            the setting, the value and what to use instead.
    """

    def __init__(self, **values: Any) -> None:
        name = values.get("method", "spaner")
        kinds = parts_of(name)
        known = [f.name for kind in kinds for f in dataclasses.fields(kind)]
        for odd in (key for key in values if key not in known):
            raise RecipeError(
                f"unknown setting {odd!r} for method {name}; the nearest is {nearest(odd, known)!r}"
            )
        self.parts = tuple(
            kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values})
            for kind in kinds
        )
        self.given = frozenset(values)

    def __getattr__(self, name: str) -> Any:
        for part in self.__dict__.get("parts", ()):
            if hasattr(part, name):
                return getattr(part, name)
        raise AttributeError(name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrainConfig) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    def __reduce__(self) -> Any:
        return _rebuilt, (self.to_json(), self.given)

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.identity().items())
        return f"TrainConfig({told})"

    @classmethod
    def from_recipe(cls, recipe: str | Path = "paper", **overrides: Any) -> "TrainConfig":
        """Values of a named recipe or TOML file; `overrides` win.

        Raises:
            RecipeError: unknown recipe, unknown key (names the nearest one), unreadable file, a bad value, or
                a setting that the file lists in its grid and `overrides` does not choose.
        """
        if undecided := sorted(recipe_grid(recipe).keys() - overrides.keys()):
            raise RecipeError(
                f"recipe {recipe} lists values for {', '.join(undecided)} in its [grid], expected one each; "
                f"type `spaner sweep --recipe {recipe}`, or choose with --{undecided[0].replace('_', '-')}"
            )
        return cls(**{"recipe": str(recipe)} | recipe_values(recipe) | overrides)

    def replace(self, **changes: Any) -> "TrainConfig":
        """The same configuration with other values."""
        return _rebuilt(self.to_json() | changes, self.given | frozenset(changes))

    def to_json(self) -> dict[str, Any]:
        """Every setting, as JSON types."""
        return {name: value for part in self.parts for name, value in dataclasses.asdict(part).items()}

    def identity(self) -> dict[str, Any]:
        """What tells two configurations apart: settings away from their default, and those that were given
        where validation would have chosen. A setting that a later version adds changes no old identity."""
        told = {name: value for part in self.parts for name, value in settings.changed(part).items()}
        fixed = {name for part in self.parts for name in settings.open_grids(part)} & self.given
        return told | {name: getattr(self, name) for name in fixed}

    def open_grid(self) -> dict[str, tuple[Any, ...]]:
        """Setting -> values, of all that validation chooses: those with a grid that were not given."""
        every = {name: grid for part in self.parts for name, grid in settings.open_grids(part).items()}
        return {name: values for name, values in every.items() if name not in self.given}

    def starts(self) -> dict[str, Any]:
        """Where choosing begins: the value of every setting of `open_grid` that needs no validation rows."""
        every = {name: value for part in self.parts for name, value in settings.starts(part).items()}
        return {name: every[name] for name in self.open_grid()}

    @property
    def title(self) -> str:
        """How tables and folders name it: SPANER's recipe, or the method."""
        return Path(self.recipe).stem if self.method == "spaner" else self.method

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """The inverse of `to_json`; settings that did not exist yet take their default.

        Raises:
            RecipeError: a setting that this version does not know, or a value of the wrong type.
        """
        try:
            return cls(**values)
        except (RecipeError, TypeError) as error:
            raise RecipeError(f"stored configuration: {error}; use the version that wrote it") from None


def _rebuilt(values: dict[str, Any], given: frozenset[str]) -> TrainConfig:
    config = TrainConfig(**values)
    config.given = given
    return config


def parts_of(method: str) -> tuple[type, ...]:
    """The dataclasses that a method's configuration is made of.

    Raises:
        RecipeError: no such method.
    """
    if not isinstance(method, str):
        raise RecipeError(f"method is {method!r}; expected a name such as method=spaner")
    found = methods.method(method)
    return (Common, found.Settings) if found.training is None else (Common, found.Settings, loop_of(found))


@cache
def loop_of(method: Any) -> type:
    """The loop's settings with the method's own defaults."""
    from spaner.align.methods.loop import Loop  # needs torch, which a method without a loop may not

    if not method.training:
        return Loop
    fields = {f.name: f for f in dataclasses.fields(Loop)}
    own = [
        (name, fields[name].type, dataclasses.field(default=value, metadata=_allowing(fields[name], value)))
        for name, value in method.training.items()
    ]
    return dataclasses.make_dataclass("Loop", own, bases=(Loop,), frozen=True)


def _allowing(field: dataclasses.Field, value: Any) -> dict[str, Any]:
    """A field's limits, moved so far that a method's own default lies within."""
    low = field.metadata.get("low")
    return {**field.metadata, "low": value if low is not None and value < low else low}


@dataclass(frozen=True)
class ExtendConfig:
    """Settings of one extension; every field is the option of the same name.

    Raises:
        RecipeError: a value that has no meaning.
    """

    modality: str = option("audio", "Modality that joins.")
    split: str = option("train", "Its table that trains; for ESC-50 a fold: fold1 ... fold5.")
    anchor: str = option("image", "Modality of the run that it is paired with.")
    shots: int | None = option(None, "Its training rows per class; default: all rows of the table.", low=1)
    select: Literal["draw", "first"] = option(
        "draw", "Which rows: a seeded draw, or the first K listed (ESC-50)."
    )
    draw_seed: int = option(1, "Which few-shot draw.", low=0)
    seed: int = option(1, "Initial weights, order of samples, choice of partners.", low=0, high=2**63 - 1)
    epochs: int = option(30, "Passes over the new modality's rows.", low=1)
    batch_size: int = option(32, "Pairs per step; a short last batch is kept.", low=2)
    lr: float = option(1e-3, "AdamW's initial learning rate; falls to zero along a cosine.", low=1e-12)
    weight_decay: float = option(0.01, "AdamW's weight decay.", low=0)
    precision: Literal["auto", "float32", "bfloat16"] = option("auto", "Arithmetic.")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps ...")
    compile: Literal["auto", "on", "off"] = option(
        "auto", "A step: auto records it as a CUDA graph on CUDA; on: torch.compile."
    )

    def __post_init__(self) -> None:
        settings.check(self)
        if self.select == "first" and self.shots is None:
            raise RecipeError(
                "select=first takes the first K rows of a class, and shots is not given; use shots=4"
            )


def recipe_grid(recipe: str | Path) -> dict[str, list[Any]]:
    """The lists in the `[grid]` of a recipe file; empty where it has none.

    Raises:
        RecipeError: unreadable file, or a grid of something else than lists.
    """
    grid = {} if str(recipe) in RECIPES else _recipe_file(str(recipe)).get("grid", {})
    if not isinstance(grid, dict) or not all(isinstance(values, list) for values in grid.values()):
        raise RecipeError(
            f"recipe {recipe}: its [grid] is {grid!r}; expected a list for each setting; "
            "write for example `prompt_length = [1, 2, 4]` under [grid]"
        )
    return grid


def recipe_values(recipe: str | Path) -> dict[str, Any]:
    """The settings of a named recipe or file, its base's among them.

    Raises:
        RecipeError: unknown recipe, unknown base, unreadable file.
    """
    if str(recipe) in RECIPES:
        return RECIPES[str(recipe)]
    values = {name: value for name, value in _recipe_file(str(recipe)).items() if name != "grid"}
    base = values.pop("recipe", "paper")
    if base not in RECIPES:
        raise RecipeError(f"recipe {recipe} starts from {base!r}; expected one of {', '.join(RECIPES)}")
    return RECIPES[base] | values


def _recipe_file(recipe: str) -> dict[str, Any]:
    """What a recipe file says."""
    if not recipe.endswith(".toml"):
        raise RecipeError(
            f"unknown recipe {recipe!r}; expected one of {', '.join(RECIPES)} or a .toml file; "
            f"did you mean {nearest(recipe, RECIPES)!r}?"
        )
    try:
        return tomllib.loads(Path(recipe).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecipeError(f"recipe {recipe} cannot be read: {error.strerror}; check the path") from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"recipe {recipe} is not TOML: {error}; write one `name = value` a line") from None
