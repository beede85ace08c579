"""The command line's options, made from the fields of the configuration, and its help."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer._click.core import Context, Parameter
from typer._click.exceptions import UsageError
from typer._click.shell_completion import CompletionItem
from typer.core import TyperCommand, TyperGroup

from vllm_eval.config.layers import Layers, profile_names, validated
from vllm_eval.config.settings import OUTPUT, Config, Flag, GateConfig, Record, VllmArgs

SECTIONS: Mapping[str, type[Record]] = {"gate": GateConfig, "engine_args": VllmArgs}
"""Keys of the configuration whose own keys have options."""
SCRIPT = "vllm-eval"
"""The program's name where it is installed."""


def option(
    text: str,
    default: str = "none",
    *names: str,
    panel: str | None = OUTPUT,
    metavar: str | None = None,
    complete: Callable[[], list[str]] | None = None,
) -> object:
    """An option for `Annotated`, with its default in its help: rich would cut off a long one."""
    return typer.Option(
        *names,
        help=f"{text} [dim]\\[default: {default}][/dim]",
        show_default=False,
        rich_help_panel=panel,
        metavar=metavar,
        autocompletion=complete,
    )


_FILES = "YAML file or shipped profile; repeat for more, the last one wins."
_KEYS = "Set one key of the configuration, for example gate.min_ratio=0.95; repeat for more."
FILES = option(_FILES, "none", "--config", panel=None, metavar="FILE", complete=profile_names)
SETTINGS = option(_KEYS, "none", "-c", panel=None, metavar="KEY=VALUE")


@dataclass(frozen=True, slots=True)
class KeyOption:
    """An option and the key it sets."""

    path: tuple[str, ...]
    """The key in its record, with its section before it."""
    field: FieldInfo
    flag: Flag

    @property
    def parameter(self) -> inspect.Parameter:
        """As the parameter of a command, which is how typer takes options."""
        key, flag, default = self.path[-1], self.flag, self.field.default
        kind, choices = _kind(self.field.annotation)
        if flag.on is not None:
            kind, default = bool, False
        name = f"--{key.replace('_', '-')}"
        switch = f"{name}/--no-{name[2:]}" if flag.on is None else name
        shown = option(
            " ".join((self.field.description or "").replace("`", "").split()),
            self.shown_default,
            *(flag.names or (switch if kind is bool else name,)),
            panel=flag.panel,
            metavar=flag.metavar or "|".join(choices) or None,
            complete=(lambda: list(choices)) if choices else None,
        )
        given = list(default) if isinstance(default, tuple) else default
        given = None if isinstance(default, dict) else given
        keyword = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(key, keyword, default=given, annotation=Annotated[kind, shown])

    @property
    def shown_default(self) -> str:
        """The field's default in words."""
        match self.field.default:
            case None | () | {}:
                return self.flag.unset
            case False:
                return "off"
            case True:
                return f"on; --no-{self.path[-1].replace('_', '-')} turns it off"
            case str() as path if "/" in path:
                folder, _, name = path.rpartition("/")  # the whole is wider than the column
                return f"{name} in {folder}"
            case default:
                return str(default)


def key_options(model: type[Record] = Config, *prefix: str) -> Iterator[KeyOption]:
    """The options of a record, in the order of its fields."""
    for name, field in model.model_fields.items():
        if model is Config and name in SECTIONS:
            yield from key_options(SECTIONS[name], name)
        for flag in field.metadata:
            if isinstance(flag, Flag):
                yield KeyOption((*prefix, name), field, flag)


def config_options(
    *keys: str, more: type[Record] | None = None
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command `--config`, `-c` and the options of these keys, or of all.

    The command is called with the `Layers` that the options make, after it with a record of the
    options of `more`, if any; then come its own parameters.
    """
    options = [option for option in key_options() if not keys or option.path[0] in keys]
    extra = list(key_options(more)) if more else []

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(command)
        def called(
            context: typer.Context, files: list[str], settings: list[str], **given: object
        ) -> int:
            layers = Layers(files, settings, _taken(options, context, given))
            others = _taken(extra, context, given)
            records = [validated(more, others, "command line")] if more else []
            return command(layers, *records, **given)

        own = list(inspect.signature(command, eval_str=True).parameters.values())
        kind = inspect.Parameter.KEYWORD_ONLY
        several = functools.partial(inspect.Parameter, kind=kind, default=[])
        parameters = [
            inspect.Parameter("context", kind, annotation=typer.Context),
            several("files", annotation=Annotated[list[str], FILES]),
            several("settings", annotation=Annotated[list[str], SETTINGS]),
            *(option.parameter for option in (*options, *extra)),
            *(parameter.replace(kind=kind) for parameter in own[2 if more else 1 :]),
        ]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return called

    return decorate


def _taken(
    options: list[KeyOption], context: typer.Context, given: dict[str, object]
) -> dict[str, Any]:
    """The values that were typed, by key and taken out of `given`; defaults stay the layers'."""
    taken: dict[str, Any] = {}
    for option in options:
        *section, name = option.path
        value, source = given.pop(name), context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            target = taken.setdefault(section[0], {}) if section else taken
            target[name] = value if option.flag.on is None else option.flag.on
    return taken


def _kind(annotation: object) -> tuple[Any, tuple[str, ...]]:
    """A field's type as typer takes it, and the words it must be one of, if any."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return str, arguments
    if origin is tuple:
        return list[str], ()
    if origin is dict:  # as JSON
        return str, ()
    if origin in (Annotated, Union, UnionType):
        return _kind(arguments[0])
    return annotation, ()


def _show_help(shown: Command | Program, params: Sequence[Parameter], ctx: Context) -> None:
    """Without a column for the opposites of switches: it takes the width of all the rest."""
    from typer.rich_utils import rich_format_help

    shown = copy.copy(shown)
    shown.params = [copy.copy(param) for param in params]
    if own := shown.get_help_option(ctx):
        own.metavar = ""
    for param in shown.params:
        param.secondary_opts = []
        if getattr(param, "is_flag", False):
            param.metavar = ""
    with contextlib.suppress(SystemExit):  # how rich answers a broken pipe, with our code of FAIL
        rich_format_help(obj=shown, ctx=ctx, markup_mode="rich")


def _each_named(
    args: Sequence[str], own: Collection[str], commands: Collection[str]
) -> Iterator[str]:
    """`args` with the option named before each word that follows its value."""
    option, valued = "", False
    for place, word in enumerate(args):
        if word == "--":
            yield from args[place:]
            return
        if valued and not word.startswith("-"):
            if word in commands and not Path(word).exists():
                raise UsageError(f"{word!r} is a command: write it before the options")
            yield option
        elif not valued and option:
            valued = True  # this is the option's own value, whatever it is
        else:
            option, valued = word if word in own else "", False
        yield word


class Command(TyperCommand):
    """A command with our help, and with as many words after `--adapter` as a shell's glob makes."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Take the words up to the next option for further adapters, where no word has a place."""
        own = {name for option in self.params for name in option.opts if option.name == "adapters"}
        if own and all(option.param_type_name == "option" for option in self.params):
            commands = getattr(ctx.parent and ctx.parent.command, "commands", {})
            args = list(_each_named(args, own, commands))
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Context, _formatter: object) -> None:
        """Print it."""
        _show_help(self, self.params, ctx)


class Program(TyperGroup):
    """A group whose first word may be left out: it is then `run`."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Take `run` for an option that is none of the program's own, or for nothing."""
        own = [name for option in self.get_params(ctx) for name in option.opts]
        asked = args[0] if args else ""
        if asked.endswith("-completion"):
            ctx.info_name = SCRIPT  # a shell completes the words of a script, not of a module
        completing_first_word = ctx.resilient_parsing and not args
        if not completing_first_word and asked not in own and asked[:1] in ("", "-"):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Context, _formatter: object) -> None:
        """Print it with the options of `run`: most users know no other command."""
        _show_help(self, [*self.params, *self.commands["run"].params], ctx)

    def shell_complete(self, ctx: Context, incomplete: str) -> list[CompletionItem]:
        """Offer the options of `run` beside the commands."""
        run = self.commands["run"].shell_complete(ctx, incomplete)
        return [*super().shell_complete(ctx, incomplete), *run]
