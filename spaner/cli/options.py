"""Command-line options made from a stage's configuration dataclass.

A stage has one frozen dataclass; each of its fields becomes one option of the same name, type and default,
with the field's ``metadata["help"]`` as its help. So an option cannot drift from the setting that it sets.
Lists are written with commas: ``--shots 1,2,4``.
"""

import dataclasses
import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from spaner.errors import RecipeError


def with_options(config: type, *, skip: tuple[str, ...] = ()) -> Callable[[Callable], Callable]:
    """Give a command that takes ``**options`` one option per field of ``config``.

    Only options that the user typed reach the command (others are left out of ``options``), so a recipe or
    the dataclass itself supplies the rest.
    """

    def decorate(command: Callable) -> Callable:
        hints = get_type_hints(config)
        fields = [field for field in dataclasses.fields(config) if field.init and field.name not in skip]
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]

        def run(*args: Any, **values: Any) -> Any:
            mine = {p.name: values.pop(p.name) for p in own if p.name in values}
            typed = {k: v for k, v in values.items() if v is not None}
            return command(*args, **mine, **{k: parse(hints[k], v, flag(k)) for k, v in typed.items()})

        parameters = own + [_parameter(field, hints[field.name]) for field in fields]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _parameter(field: dataclasses.Field, hint: Any) -> inspect.Parameter:
    """One keyword-only option; its default is shown in the help and supplied by the dataclass."""
    name = flag(field.name)
    default = field.default_factory() if callable(field.default_factory) else field.default
    is_flag = hint is bool
    declaration = f"{name}/--no-{name[2:]}" if is_flag else name
    option = typer.Option(
        declaration,
        help=_with_default(field.metadata.get("help", ""), default),
        show_default=False,
        metavar=None if is_flag else _metavar(hint),
    )
    kind = bool if is_flag else str
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _with_default(text: str, default: Any) -> str:
    """The help line with the dataclass's default, unless the line explains it."""
    if default is None or "default:" in text:
        return text
    words = {True: "yes", False: "no"}.get(default) if isinstance(default, bool) else None
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"{text} (default: {words or shown})"


def _metavar(hint: Any) -> str:
    """What the help prints for the value: the choices of a Literal, else the type."""
    kinds = _alternatives(hint)
    words = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            words += [str(choice) for choice in get_args(kind)]
        elif get_origin(kind) is tuple:
            words.append(f"{get_args(kind)[0].__name__},…")
        else:
            words.append({int: "int", float: "float", Path: "path"}.get(kind, "text"))
    return "|".join(dict.fromkeys(words))


def _alternatives(hint: Any) -> list[Any]:
    """The members of a union without None."""
    if get_origin(hint) in (Union, types.UnionType):
        return [kind for kind in get_args(hint) if kind is not type(None)]
    return [hint]


def flag(field: str) -> str:
    """The option that sets a field."""
    return "--" + field.replace("_", "-")


def type_of(config: type, field: str) -> Any:
    """The declared type of a field."""
    return get_type_hints(config)[field]


def parse(hint: Any, value: Any, option: str) -> Any:
    """Turn what the user typed after ``option`` into the field's type.

    Raises:
        RecipeError: the text fits none of the field's types; the line names the option and what it takes.
    """
    if not isinstance(value, str):
        return value
    for kind in _alternatives(hint):
        try:
            return _as(kind, value)
        except ValueError:
            continue
    example = f"{option} {_example(hint)}"
    raise RecipeError(f"{option}: found {value!r}, expected {_metavar(hint)}; type for example `{example}`")


def _as(kind: Any, text: str) -> Any:
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(text)
        return text
    if get_origin(kind) is tuple:
        return tuple(_as(get_args(kind)[0], part.strip()) for part in text.split(",") if part.strip())
    if kind is bool:
        return {"true": True, "yes": True, "false": False, "no": False}[text.lower()]
    return kind(text)


def _example(hint: Any) -> str:
    kind = _alternatives(hint)[0]
    if get_origin(kind) is Literal:
        return str(get_args(kind)[0])
    if get_origin(kind) is tuple:
        return "1,2,4" if get_args(kind)[0] is int else "mined,vanilla"
    return {int: "2", float: "0.5"}.get(kind, "name")
