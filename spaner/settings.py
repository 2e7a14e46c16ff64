"""A setting is written once: a frozen dataclass field that carries its help, its limits and its search.

    @dataclass(frozen=True)
    class Settings:
        alpha: float = option(1.17, "Weight of the cache's answer.", low=0, grid=(0.5, 1.0, 2.0))

From the field come the command's option, the recipe's key, the axis of a sweep, the values that validation
chooses from, and the line in the documentation. `check` tests every field of an instance against its type and
limits. Needs no torch and knows no method.
"""

import dataclasses
import math
from dataclasses import field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from spaner.errors import RecipeError
from spaner.registry import nearest


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    axis: str | None = "",
    grid: tuple[Any, ...] = (),
    when: tuple[str, tuple[Any, ...]] | None = None,
    start: Any = None,
    stacks: bool = False,
) -> Any:
    """A dataclass field that is a setting.

    Args:
        help: one line; shown by `--help` and in the documentation.
        low, high: inclusive limits of a number.
        axis: option of `spaner sweep` that takes a list of values; default the plural of the name, which of
            "shots" is "shots"; None: no axis.
        grid: values that `--select val` chooses from.
        when: (setting, values): the grid is searched only where that setting has one of the values.
        start: what stands where the grid is open and validation finds nothing better; default the default.
        stacks: cells that differ in it alone have parameters and steps of the same shape.
    """
    facts = {"help": help, "low": low, "high": high, "axis": axis, "grid": grid}
    facts |= {"when": when, "start": start, "stacks": stacks}
    return field(default=default, metadata=facts)


def axes(*kinds: type) -> dict[str, str]:
    """Option of a sweep -> the setting that it varies, of all given dataclasses."""
    found = {}
    for each in (f for kind in kinds for f in dataclasses.fields(kind)):
        if (axis := each.metadata.get("axis")) is not None:
            found[axis or each.name.removesuffix("s") + "s"] = each.name
    return found


def grids(kind: type) -> dict[str, tuple[Any, ...]]:
    """Setting -> the values that validation chooses from."""
    return {f.name: f.metadata["grid"] for f in dataclasses.fields(kind) if f.metadata.get("grid")}


def open_grids(settings: Any) -> dict[str, tuple[Any, ...]]:
    """The grids of an instance that are searched: all whose `when` holds."""
    found = {}
    for each in dataclasses.fields(settings):
        when = each.metadata.get("when")
        if each.metadata.get("grid") and (when is None or getattr(settings, when[0]) in when[1]):
            found[each.name] = each.metadata["grid"]
    return found


def starts(settings: Any) -> dict[str, Any]:
    """The values from which a search over `open_grids` begins."""
    told = {f.name: f.metadata["start"] for f in dataclasses.fields(settings) if f.metadata.get("grid")}
    return {
        name: getattr(settings, name) if told[name] is None else told[name] for name in open_grids(settings)
    }


def changed(settings: Any) -> dict[str, Any]:
    """The fields that are not at their default: what identity is made of, so that new fields change none."""
    return {
        f.name: getattr(settings, f.name)
        for f in dataclasses.fields(settings)
        if getattr(settings, f.name) != f.default
    }


def check(settings: Any) -> None:
    """Every field as its declared type, within its limits; whole numbers become floats where one is due.

    Raises:
        RecipeError: naming the field, the value and what to use instead.
    """
    hints = get_type_hints(type(settings))
    for each in dataclasses.fields(settings):
        value = _typed(each.name, hints[each.name], getattr(settings, each.name))
        object.__setattr__(settings, each.name, value)
        _check_limits(each, value)


def _check_limits(each: dataclasses.Field, value: Any) -> None:
    low, high = each.metadata.get("low"), each.metadata.get("high")
    if (low is None and high is None) or value is None or isinstance(value, str):
        return
    least, most = -math.inf if low is None else low, math.inf if high is None else high
    if not (math.isfinite(value) and least <= value <= most):
        upper = f" and at most {most:g}" if math.isfinite(most) else ""
        use = most if value > most and math.isfinite(most) else least
        raise RecipeError(
            f"{each.name} is {value}; expected a finite number, at least {least:g}{upper}; "
            f"use {each.name}={use:g}"
        )


def _typed(name: str, kind: Any, value: Any) -> Any:
    alternatives = get_args(kind) if get_origin(kind) not in (None, Literal) else (kind,)
    choices = [c for k in alternatives if get_origin(k) is Literal for c in get_args(k)]
    if value in choices or (value is None and type(None) in alternatives):
        return value
    if isinstance(value, bool):
        if bool in alternatives:
            return value
    elif isinstance(value, int) and float in alternatives:
        return float(value)
    elif type(value) in alternatives:
        return value
    raise RecipeError(_wrong_type(name, value, choices, [k for k in alternatives if isinstance(k, type)]))


def _wrong_type(name: str, value: Any, choices: list[str], types: list[type]) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "yes or no", type(None): "nothing"}
    expected = [words[t] for t in types] + choices
    advice = (
        f"; did you mean {name}={nearest(value, choices)}?"
        if choices
        else f"; leave {name} out for its default"
    )
    return f"{name} is {value!r}; expected {' or '.join(expected)}{advice}"
