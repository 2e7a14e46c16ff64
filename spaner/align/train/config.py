"""Every setting of a training run, in one frozen dataclass, and the recipes that name sets of them.

    TrainConfig.from_recipe("anchored", prompt_length=4)      a named recipe
    TrainConfig.from_recipe("recipes/mine.toml")              a file: the same keys, and `recipe` for the one
    it starts from; a table `[grid]` lists values that `spaner sweep` combines

Each value is checked once, here; code below takes plain arguments and trusts them. What depends on the data
(do the heads divide the embedding width?) is checked where the data are known. Needs no torch.
"""

import dataclasses
import difflib
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from spaner.align.methods import method as methods
from spaner.errors import RecipeError

RECIPES: dict[str, dict[str, Any]] = {
    # The method as the paper gives it; where the paper is silent, the defaults below.
    "paper": {},
    # Start from the frozen space and keep half of it: better in the domain and under domain shift.
    "anchored": {"init": "identity", "blend": 0.5, "epochs": 100},
}


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """The resolved settings of one run. Letters as in `align.attention`; the paper's symbols in brackets.

    Raises:
        RecipeError: a value that has no meaning; the line names the setting, the value and what to use
            instead.
    """

    recipe: str = _option("paper", "Recipe that the other values started from (a record).")
    method: str = _option("spaner", "What to train.")
    shots: int | None = _option(
        None, "Training rows per class; default: all rows, or the largest stored draw."
    )
    draw_seed: int = _option(1, "Which few-shot draw.")
    templates: str = _option("mined", "Template set whose texts are trained on.")
    seed: int = _option(1, "Initial weights, order of samples, choice of templates.")

    prompt_length: int = _option(2, "Prompt tokens P, shared by all modalities.")
    prompt_std: float = _option(0.02, "Standard deviation of the initial prompt; 1 collapses training.")
    aligner: str = _option("attention", "Aligner of each modality: attention or hyena.")
    heads: int = _option(8, "Attention heads H; must divide the embedding width.")
    out_dim: int | None = _option(None, "Width E of the shared space; default: the embedding width.")
    attend: Literal["all", "prompt"] = _option(
        "all", "What x attends to: itself and the prompt, or the prompt alone."
    )
    pool: Literal["output", "input"] = _option(
        "output", "Tokens under the maximum (eq. 3): [x'; S'] or [x; S]."
    )
    project: Literal["residual", "input"] = _option("residual", "What is projected (eq. 2): x' + x, or x.")
    init: Literal["random", "identity"] = _option("random", "Initial aligners; identity starts at f = x.")
    blend: float = _option(0.0, "Share of the frozen embedding in the result (beta), at inference only.")

    lam: float = _option(1.0, "Weight of the loss on pooled tokens (lambda).")
    direction: Literal["both", "image", "text"] = _option(
        "both", "Which side asks in the contrastive losses."
    )
    logit_scale: float | Literal["auto"] = _option("auto", "Fixed 1 / temperature; auto: the encoder's own.")
    targets: Literal["diagonal", "class"] = _option(
        "diagonal", "Positives: the pair itself, or all of its class."
    )

    epochs: int = _option(30, "Passes over all image rows and views.")
    batch_size: int = _option(256, "Pairs per step B.")
    lr: float = _option(1e-3, "AdamW's initial learning rate; falls to zero along a cosine.")
    weight_decay: float = _option(0.01, "AdamW's weight decay.")
    precision: Literal["auto", "float32", "bfloat16"] = _option(
        "auto", "Arithmetic; auto: bfloat16 where it is faster, which the result names."
    )
    device: str = _option("auto", "auto, cpu, cuda, cuda:1, mps ...")

    def __post_init__(self) -> None:
        _check(self)
        methods.check_name("method", self.method)
        methods.check_name("aligner", self.aligner)

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
        values: dict[str, Any] = {"recipe": str(recipe)} | _recipe_values(str(recipe)) | overrides
        names = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise RecipeError(f"unknown setting {name!r}; the nearest is {_nearest(name, names)!r}")
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Every setting, as JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainConfig":
        """The inverse of `to_json`; a missing or unknown key is a RecipeError."""
        names = {f.name for f in dataclasses.fields(cls)}
        if odd := sorted(names ^ set(values)):
            raise RecipeError(
                f"stored configuration: missing or unknown setting {odd[0]!r}; use the version that wrote it"
            )
        return cls(**values)


@dataclass(frozen=True)
class ExtendConfig:
    """Settings of one extension; every field is the option of the same name.

    Raises:
        RecipeError: a value that has no meaning.
    """

    modality: str = _option("audio", "Modality that joins.")
    split: str = _option("train", "Its table that trains; for ESC-50 a fold: fold1 ... fold5.")
    anchor: str = _option("image", "Modality of the run that it is paired with.")
    shots: int | None = _option(None, "Its training rows per class; default: all rows of the table.")
    select: Literal["draw", "first"] = _option(
        "draw", "Which rows: a seeded draw, or the first K listed (ESC-50)."
    )
    draw_seed: int = _option(1, "Which few-shot draw.")
    seed: int = _option(1, "Initial weights, order of samples, choice of partners.")
    epochs: int = _option(30, "Passes over the new modality's rows.")
    batch_size: int = _option(32, "Pairs per step; a short last batch is kept.")
    lr: float = _option(1e-3, "AdamW's initial learning rate; falls to zero along a cosine.")
    weight_decay: float = _option(0.01, "AdamW's weight decay.")
    precision: Literal["auto", "float32", "bfloat16"] = _option("auto", "Arithmetic.")
    device: str = _option("auto", "auto, cpu, cuda, cuda:1, mps ...")

    def __post_init__(self) -> None:
        _check(self)
        if self.select == "first" and self.shots is None:
            raise RecipeError(
                "select=first takes the first K rows of a class, and shots is not given; use shots=4"
            )


def _check(config: Any) -> None:
    """Every field as its declared type, within its limits."""
    for name, kind in get_type_hints(type(config)).items():
        object.__setattr__(config, name, _typed(name, kind, getattr(config, name)))
        if name in _RANGES:
            _check_range(name, getattr(config, name), *_RANGES[name])


#: Inclusive limits of the numbers.
_RANGES: dict[str, tuple[float, float]] = {
    "shots": (1, math.inf),
    "draw_seed": (0, math.inf),
    "seed": (0, 2**63 - 1),
    "prompt_length": (1, math.inf),
    "prompt_std": (0, math.inf),
    "heads": (1, math.inf),
    "out_dim": (1, math.inf),
    "blend": (0, 1),
    "lam": (0, math.inf),
    "logit_scale": (1e-6, math.inf),
    "epochs": (1, math.inf),
    "batch_size": (2, math.inf),
    "lr": (1e-12, math.inf),
    "weight_decay": (0, math.inf),
}


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if value is None or value == "auto":
        return
    if not (math.isfinite(value) and low <= value <= high):
        upper = f" and at most {high:g}" if math.isfinite(high) else ""
        nearest = high if value > high and math.isfinite(high) else low
        raise RecipeError(
            f"{name} is {value}; expected a finite number, at least {low:g}{upper}; use {name}={nearest:g}"
        )


def _typed(name: str, kind: Any, value: Any) -> Any:
    """`value` as the declared type: integers become floats where a float is due, nothing else is
    converted."""
    alternatives = get_args(kind) if get_origin(kind) not in (None, Literal) else (kind,)
    choices = [c for k in alternatives if get_origin(k) is Literal for c in get_args(k)]
    if value in choices or (value is None and type(None) in alternatives):
        return value
    if not isinstance(value, bool):
        if isinstance(value, int) and float in alternatives:
            return float(value)
        if type(value) in alternatives:
            return value
    raise RecipeError(_wrong_type(name, value, choices, [k for k in alternatives if isinstance(k, type)]))


def _wrong_type(name: str, value: Any, choices: list[str], types: list[type]) -> str:
    words = {int: "a whole number", float: "a number", str: "text", type(None): "nothing"}
    expected = [words[t] for t in types] + choices
    advice = (
        f"; did you mean {name}={_nearest(value, choices)}?"
        if choices
        else f"; leave {name} out for its default"
    )
    return f"{name} is {value!r}; expected {' or '.join(expected)}{advice}"


def recipe_grid(recipe: str | Path) -> dict[str, list[Any]]:
    """The lists in the `[grid]` of a recipe file; empty where it has none.

    Raises:
        RecipeError: unreadable file, or a grid of something else than lists.
    """
    grid = {} if str(recipe) in RECIPES else _recipe_file(str(recipe)).get("grid", {})
    if not isinstance(grid, dict) or not all(isinstance(values, list) for values in grid.values()):
        raise RecipeError(
            f"recipe {recipe}: its [grid] is {grid!r}; expected a list for each setting; write for example "
            "`prompt_length = [1, 2, 4]` under [grid]"
        )
    return grid


def _recipe_values(recipe: str) -> dict[str, Any]:
    if recipe in RECIPES:
        return RECIPES[recipe]
    values = {name: value for name, value in _recipe_file(recipe).items() if name != "grid"}
    base = values.pop("recipe", "paper")
    if base not in RECIPES:
        raise RecipeError(f"recipe {recipe} starts from {base!r}; expected one of {', '.join(RECIPES)}")
    return RECIPES[base] | values


def _recipe_file(recipe: str) -> dict[str, Any]:
    """What a recipe file says."""
    if not recipe.endswith(".toml"):
        raise RecipeError(
            f"unknown recipe {recipe!r}; expected one of {', '.join(RECIPES)} or a .toml file; "
            f"did you mean {_nearest(recipe, list(RECIPES))!r}?"
        )
    try:
        return tomllib.loads(Path(recipe).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"recipe {recipe} cannot be read: {error.strerror}; check the path") from None
    except ValueError as error:
        raise RecipeError(f"recipe {recipe} is not TOML: {error}; write one `name = value` a line") from None


def _nearest(word: Any, words: list[str]) -> str:
    return difflib.get_close_matches(str(word), words, n=1, cutoff=0)[0]
