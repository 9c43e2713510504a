"""A command's words: a dataclass says which flags there are, its docstrings are the help.

Parsed once, by argparse. Nothing is imported for help but this and the dataclass.
"""

import argparse
import ast
import inspect
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from saqrl.datasets.options import ReadOptions
from saqrl.registry import closest
from saqrl.training.flags import typed

Arguments = TypeVar("Arguments")

# What a value is called in the help, by the flag's last word; else by its type.
METAVARS = {
    "dataset": "SPEC",
    "beside": "SPEC",
    "datasets": "SPEC",
    "env": "ID",
    "run": "RUN",
    "out": "PATH",
    "file": "FILE",
    "folder": "FOLDER",
    "picture": "FILE",
    "video": "FILE",
    "coded": "RUN",
    "preset": "NAME",
    "agent": "NAME",
    "agents": "NAME",
    "quantizer": "NAME",
    "set": "OWNER.FIELD=VALUE",
    "keys": "KEY",
}
WIDTH = 100
EXAMPLES = "examples:"


@dataclass(frozen=True)
class Positional:
    """Marks a field that is a word without a flag."""


@dataclass(frozen=True)
class Specs:
    """Marks the data set that is the first word, or several behind --dataset, as a mixture."""


Word = Annotated[str, Positional()]
DatasetSpec = Annotated[str, Specs()]


class Parser(argparse.ArgumentParser):
    """Complains in one line, as an exception."""

    def __init__(self, name: str, description: str, examples: Sequence[str] = ()):
        shown = "\n".join(f"  {example}" for example in examples)
        super().__init__(
            prog=f"saqrl {name}",
            description=description,
            epilog=f"{EXAMPLES}\n{shown}" if shown else None,
            allow_abbrev=False,
            formatter_class=_Formatter,
        )

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """What was said, by name; ValueError with the nearest flags for one that is not known."""
        found, unknown = self.parse_known_args(list(words))
        flags = [word for word in unknown if word.startswith("-")]
        if flags:
            name = flags[0].partition("=")[0]
            actions = self._option_string_actions.items()
            known = [flag for flag, action in actions if action.help != argparse.SUPPRESS]
            self.error(f"unknown flag {name}; {closest(name, known)}")
        if unknown:
            self.error(f"unexpected argument {unknown[0]!r}")
        return vars(found)


class _Formatter(argparse.HelpFormatter):
    """One line a flag where that is enough, examples as they are."""

    def __init__(self, prog: str):
        width = min(shutil.get_terminal_size().columns, WIDTH)
        super().__init__(prog, max_help_position=26, width=width)

    def _format_usage(self, *arguments: Any, **keywords: Any) -> str:
        words = [action for action in arguments[1] if not action.option_strings]
        shown = " ".join(self._format_args(word, self._word(word)) for word in words)
        return f"usage: {self._prog} {shown + ' ' if shown else ''}[OPTIONS]\n\n"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(EXAMPLES) else super()._fill_text(text, width, indent)

    @staticmethod
    def _word(action: argparse.Action) -> str:
        return str(action.metavar or action.dest)


def parse(command: type[Arguments], words: Sequence[str]) -> Arguments:
    """The command's dataclass, filled from its words; ValueError in one line otherwise."""
    said = command_parser(command).parse(words)
    nested: dict[str, dict[str, Any]] = {}
    values: dict[str, Any] = {}
    for each in fields(command):  # type: ignore[arg-type]
        inner = _record(each)
        if inner is not None:
            given = {n.partition(".")[2]: v for n, v in said.items() if n.startswith("dataset.")}
            kinds = {part.name: part for part in fields(inner)}
            nested[each.name] = {n: typed(n, kinds[n].type, v) for n, v in given.items()}
            values[each.name] = inner(**nested[each.name])
        elif each.name in said or ("datasets" in said and _marked(each, Specs)):
            value = said.get(each.name)
            if _marked(each, Specs):
                value = joined_specs(value, said.get("datasets"))
            values[each.name] = typed(each.name, _plain(each.type), value)
        elif _marked(each, Specs):
            raise ValueError(f"no data set given; see saqrl {command.__name__.lower()} --help")
    return command(**values)


def command_parser(command: type) -> Parser:
    """The parser that a command's dataclass describes; what is not said is left out."""
    examples = getattr(command, "examples", ())
    parser = Parser(command.__name__.lower(), inspect.getdoc(command) or "", examples)
    documented = field_docs(command)
    for each in fields(command):
        inner = _record(each)
        if inner is not None:
            add_fields(parser.add_argument_group("which data is read"), inner, prefix="dataset.")
        elif _marked(each, Specs):
            parser.add_argument(
                each.name, nargs="?", metavar="SPEC", help=documented[each.name], default=None
            )
            parser.add_argument(
                "--dataset",
                dest="datasets",
                action="append",
                metavar="SPEC",
                help=argparse.SUPPRESS,
            )
        elif _marked(each, Positional):
            optional: dict[str, Any] = {"nargs": "?", "default": argparse.SUPPRESS}
            parser.add_argument(
                each.name,
                metavar=_metavar(each.name, str),
                help=documented[each.name],
                **(optional if each.default is not MISSING else {}),
            )
        else:
            add_flag(parser, each, documented.get(each.name, ""))
    return parser


def split_dotted(words: Sequence[str], owners: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """(all other words, what was said of the flags OWNER.FIELD, as it was typed)."""
    rest: list[str] = []
    dotted: dict[str, Any] = {}
    values = rest
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        owner, dot, field = name.partition(".")
        if word.startswith("--") and owner in owners and dot:
            values = [value] if equals else []
            dotted[name] = values
        else:
            if word.startswith("--"):
                values = rest
            values.append(word)
    found: dict[str, Any] = {}
    for name, given in dotted.items():
        owner, _, field = name.partition(".")
        if field.startswith("no-") and not given:
            found[f"{owner}.{field.removeprefix('no-')}"] = False
        else:
            found[name] = given or True
    return rest, found


def joined_specs(first: str | None, others: Sequence[str] | None) -> str:
    """Several SPECs as one mixture."""
    return " + ".join([*([first] if first else []), *(others or [])])


def add_fields(
    group: Any,
    record: type,
    *,
    prefix: str = "",
    names: Mapping[str, str] | None = None,
    shown: Mapping[str, Any] | None = None,
) -> None:
    """A flag for every field, under its name in `names`; `shown` are other defaults to tell."""
    documented = field_docs(record)
    for each in fields(record):
        if _record(each) is None:
            name = (names or {}).get(each.name, each.name)
            default = (shown or {}).get(each.name, each.default)
            add_flag(
                group, each, documented.get(each.name, ""), name=prefix + name, default=default
            )


def add_flag(
    group: Any,
    each: Field[Any],
    help: str,
    *,
    name: str | None = None,
    default: Any = MISSING,
) -> None:
    """One flag; its value stays the words that were typed, and is left out where it is not said."""
    name = name or each.name
    default = each.default if default is MISSING else default
    kind = _plain(each.type)
    flag = f"--{name.replace('_', '-')}"
    keywords: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
    if kind is bool:
        on = default is True
        section, dot, last = flag[2:].rpartition(".")
        flags = {True: flag, False: f"--{section}{dot}no-{last}"}
        hidden = keywords | {"action": "store_const", "help": argparse.SUPPRESS}
        group.add_argument(flags[on], **hidden, const=on)
        flag, keywords = flags[not on], keywords | {"action": "store_const", "const": not on}
        help = f"not: {help}" if on else help
    else:
        keywords["metavar"] = _metavar(name, kind)
        if get_origin(kind) is tuple or name == "dataset":
            keywords |= {"nargs": "*", "action": "extend"}
        if default not in (None, MISSING, (), ""):
            told = " ".join(map(str, default)) if isinstance(default, tuple) else default
            help = f"{help} ({told})"
    group.add_argument(flag, help=help.replace("%", "%%"), **keywords)


@cache
def field_docs(record: type) -> dict[str, str]:
    """The docstring below every field, of the classes that it inherits from too."""
    found: dict[str, str] = {}
    for cls in reversed(record.__mro__):
        if not is_dataclass(cls):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(body, ast.ClassDef)
        for statement, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = getattr(below.value, "value", None)
                if isinstance(text, str) and isinstance(statement.target, ast.Name):
                    found[statement.target.id] = " ".join(text.split())
    return found


def _record(each: Field[Any]) -> type | None:
    """The dataclass that a field holds, whose fields are dotted flags."""
    return ReadOptions if each.type in (ReadOptions, "ReadOptions") else None


def _marked(each: Field[Any], mark: type) -> bool:
    return any(isinstance(found, mark) for found in get_args(each.type)[1:])


def _plain(kind: Any) -> Any:
    """Without the marks of Annotated and the None of an option that may be left out."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return next(option for option in get_args(kind) if option is not type(None))
    return kind


def _metavar(name: str, kind: Any) -> str:
    last = name.rpartition(".")[2]
    if last in METAVARS and "." not in name.replace("dataset.", ""):
        return METAVARS[last]
    kind = _plain(kind)
    if get_origin(kind) is Literal:
        return "WORD"  # the help says which
    if get_origin(kind) is tuple:
        return _metavar("", get_args(kind)[0])
    return {int: "N", float: "X", str: "TEXT"}.get(kind, str(kind))
