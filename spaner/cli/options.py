"""Command-line options made from a stage's configuration dataclass.

Each field of a configuration becomes one option of the same name, type and default, with the field's
`metadata["help"]` as its help. So an option cannot drift from the setting that it sets. A stage that has
one dataclass takes `with_options`; what the options of training are depends on the method, see
`MethodCommand`. Lists are written with commas: `--shots 1,2,4`.
"""

import dataclasses
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from spaner.align.train.config import parts_of, recipe_values
from spaner.cli import console
from spaner.cluster import HELP
from spaner.errors import RecipeError
from spaner.settings import axes

On = Annotated[str | None, typer.Option(help=HELP[0].upper() + HELP[1:] + ".", metavar="ray[:ADDRESS]")]
"""Where the cells of a sweep or comparison run."""


def with_options(config: type, *, skip: tuple[str, ...] = ()) -> Callable[[Callable], Callable]:
    """Give a command that takes `**options` one option per field of `config`.

    Only options that the user typed reach the command (others are left out of `options`), so a recipe or
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


class MethodCommand(TyperCommand):
    """A command whose options are those of the method that the line names: `spaner train --method M --help`.

    They are made when the command is parsed, so that `spaner --help` imports no method.
    """

    lists = False
    """Whether every setting that can be swept gets an option that takes a list."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **options: Any) -> Any:
        self.methods = methods_of(args)
        known = self.own = {parameter.name for parameter in self.params}
        self.params = [*self.params, *_as_options([o for o in self._options() if o.name not in known])]
        return super().make_context(info_name, args, *more, **options)

    def invoke(self, ctx: typer.Context) -> Any:
        """Hand the method's settings over beside the command's own parameters: `typed_settings(ctx)`."""
        typed = {name: ctx.params.pop(name) for name in list(ctx.params) if name not in self.own}
        typed = {name: text for name, text in typed.items() if text is not None}
        ctx.obj = Typed(typed, self.methods, self.lists)
        return super().invoke(ctx)

    def _options(self) -> Iterator[inspect.Parameter]:
        for method in self.methods:
            kinds = parts_of(method)
            names = axes(*kinds) if self.lists else {}
            for kind in kinds:
                panel = "Settings" if kind is kinds[0] else f"Settings of {method}"
                hints = get_type_hints(kind)
                fields = [f for f in dataclasses.fields(kind) if f.name not in (*names, "recipe")]
                yield from (_option(f, hints[f.name], panel) for f in fields)
            yield from (_list_option(axis, field) for axis, field in names.items())


@dataclasses.dataclass(frozen=True)
class Typed:
    """Settings as they were typed, and the methods that the line speaks of."""

    options: dict[str, str]
    methods: list[str]
    lists: bool


class SweepCommand(MethodCommand):
    """A `MethodCommand` with a list for every setting that can be swept."""

    lists = True


def methods_of(args: Sequence[str]) -> list[str]:
    """The methods that a command line speaks of: `--method`, `--methods`, or its recipe's; default spaner."""
    for name in ("--method", "--methods"):
        if value := _typed(args, name):
            return [each.strip() for each in value.split(",") if each.strip()]
    recipe = _typed(args, "--recipe") or "paper"
    return [recipe_values(recipe).get("method", "spaner")]


def _typed(args: Sequence[str], option: str) -> str | None:
    for i, word in enumerate(args):
        if word == option and i + 1 < len(args):
            return args[i + 1]
        if word.startswith(option + "="):
            return word.removeprefix(option + "=")
    return None


def _option(field: dataclasses.Field, hint: Any, panel: str) -> inspect.Parameter:
    text = _with_default(field.metadata.get("help", ""), field.default)
    return _text_parameter(field.name, text, metavar(hint), panel)


def _list_option(axis: str, field: str) -> inspect.Parameter:
    return _text_parameter(axis, f"Values of {field} to sweep over.", "a,b,…", "Lists to sweep over")


def _text_parameter(name: str, text: str, metavar: str, panel: str) -> inspect.Parameter:
    """An option that takes text, to be parsed by the setting's type; None where it was not typed."""
    option = typer.Option(flag(name), help=text, metavar=metavar, show_default=False, rich_help_panel=panel)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )


def _as_options(parameters: Sequence[inspect.Parameter]) -> list[Any]:
    """What Typer makes of the parameters of a function."""

    def command(**_: Any) -> None: ...

    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return typer.main.get_command(app).params


def typed_settings(typed: Typed) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Settings that were typed, and the lists of those that a sweep varies, each as the setting's type.

    Raises:
        RecipeError: a value of another type; the line names the option.
    """
    hints = hints_of(typed.methods)
    names = axes(*(kind for method in typed.methods for kind in parts_of(method)))
    settings, lists = {}, {}
    for option, text in typed.options.items():
        if option in hints and not (typed.lists and option in names and "," in text):
            settings[option] = parse(hints[option], text, flag(option))
        else:
            values = [part.strip() for part in text.split(",") if part.strip()]
            lists[names[option]] = [parse(hints[names[option]], value, flag(option)) for value in values]
    return settings, lists


def hints_of(methods: Sequence[str]) -> dict[str, Any]:
    """The declared type of every setting of the methods."""
    kinds = [kind for method in methods for kind in parts_of(method)]
    return {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}


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
        metavar=None if is_flag else metavar(hint),
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


def metavar(hint: Any) -> str:
    """What the help prints for the value: the choices of a Literal, else the type."""
    kinds = _alternatives(hint)
    words = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            words += [str(choice) for choice in get_args(kind)]
        elif get_origin(kind) is tuple:
            words.append(f"{get_args(kind)[0].__name__},…")
        else:
            words.append({int: "int", float: "float", Path: "path", bool: "yes|no"}.get(kind, "text"))
    return "|".join(dict.fromkeys(words))


def _alternatives(hint: Any) -> list[Any]:
    """The members of a union without None."""
    if get_origin(hint) in (Union, types.UnionType):
        return [kind for kind in get_args(hint) if kind is not type(None)]
    return [hint]


def flag(field: str) -> str:
    """The option that sets a field."""
    return "--" + field.replace("_", "-")


def parse(hint: Any, value: Any, option: str) -> Any:
    """Turn what the user typed after `option` into the field's type.

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
    raise RecipeError(f"{option}: found {value!r}, expected {metavar(hint)}; type for example `{example}`")


def _as(kind: Any, text: str) -> Any:
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(text)
        return text
    if get_origin(kind) is tuple:
        return tuple(_as(get_args(kind)[0], part.strip()) for part in text.split(",") if part.strip())
    if kind is bool:
        return {"true": True, "yes": True, "false": False, "no": False}[text.lower()]
    return console.place(text) if kind is Path else kind(text)


def _example(hint: Any) -> str:
    kind = _alternatives(hint)[0]
    if get_origin(kind) is Literal:
        return str(get_args(kind)[0])
    if get_origin(kind) is tuple:
        return "1,2,4" if get_args(kind)[0] is int else "mined,vanilla"
    return {int: "2", float: "0.5"}.get(kind, "name")
