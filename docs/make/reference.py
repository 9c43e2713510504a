"""The reference pages, made while the site is built: from parsers, dataclasses and public names.

MkDocs calls `on_files`; nothing of it is committed, so nothing of it can be out of date.
"""

import re
from argparse import SUPPRESS, Action
from collections.abc import Iterator
from dataclasses import MISSING, fields
from importlib import import_module

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import saqrl
from saqrl.cli import COMMANDS
from saqrl.commands.parser import Parser, command_parser, field_docs
from saqrl.commands.train import train_parser
from saqrl.registry import AGENTS, BASELINES, QUANTIZERS
from saqrl.training.presets import PRESETS

# What people use beside the names of `saqrl` itself.
MORE = {
    "On the robot: `saqrl.deploy.runtime`": ["saqrl.deploy.runtime.load"],
    "Tests of your own classes: `saqrl.testing`": ["saqrl.testing"],
    "Contracts": ["saqrl.agents", "saqrl.baselines", "saqrl.quantizers", "saqrl.datasets.Reader"],
    "What every algorithm has: `saqrl.nn.Training`": ["saqrl.nn.Training"],
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {"commands": commands, "settings": settings, "presets": presets, "api": api}
    for name, page in pages.items():
        text = "\n".join(page()) + "\n"
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def commands() -> Iterator[str]:
    yield "# Every command\n"
    yield "`saqrl COMMAND --help` prints the same. Every hyperparameter is a flag of `saqrl train`"
    yield "too: [settings](settings.md). `--debug` shows the traceback of an error.\n"
    for name, summary in COMMANDS.items():
        parser = parser_of(name)
        yield f"## saqrl {name}\n"
        yield f"{parser.description or summary}\n"
        words = [f"{a.metavar or a.dest}" for a in parser._actions if not a.option_strings]
        yield f"```text\n{' '.join(['saqrl', name, *words])} [OPTIONS]\n```\n"
        for group in parser._action_groups:
            shown = [a for a in group._group_actions if a.help != SUPPRESS and a.dest != "help"]
            if shown:
                yield f"| {group.title} | |\n|---|---|"
                yield from (f"| `{called(action)}` | {cell(said(action))} |" for action in shown)
                yield ""
        if parser.epilog:
            examples = "\n".join(line.strip() for line in parser.epilog.splitlines()[1:])
            yield f"```text\n{examples}\n```\n"


def parser_of(name: str) -> Parser:
    if name == "train":
        return train_parser()
    return command_parser(getattr(import_module(f"saqrl.commands.{name}"), name.title()))


def called(action: Action) -> str:
    """A flag with its value, or a positional's name."""
    if not action.option_strings:
        return str(action.metavar or action.dest)
    value = f" {action.metavar}" if action.metavar else ""
    return action.option_strings[-1] + (f"{value} ..." if action.nargs == "*" else value)


def said(action: Action) -> str:
    return (action.help or "").replace("%%", "%")


def settings() -> Iterator[str]:
    yield "# Every setting\n"
    yield "Fields of agents, quantizers and continuous counterparts, with their defaults. A field"
    yield "is a flag of `saqrl train` (`--agent.alpha 1`, `--quantizer.codes 64`, and for the"
    yield "prior, a `bc`, `--prior.steps 5000`), a keyword of `saqrl.fit` and a line of a sweep."
    yield "Presets and the recipe change some of them. All other settings:"
    yield "[`saqrl train`](commands.md#saqrl-train).\n"
    for title, owner, registry in (
        ("Agents on codes", "agent", AGENTS),
        ("Quantizers", "quantizer", QUANTIZERS),
        ("Continuous counterparts", "agent", BASELINES),
    ):
        yield f"## {title}\n"
        for name in registry:
            cls = registry.load(name)
            flag = f"--{owner} {name}" + (" --actions continuous" if registry is BASELINES else "")
            documented = field_docs(cls)
            yield f"### {name}: {cls.__name__}\n"
            yield f"{(cls.__doc__ or '').strip().splitlines()[0]} `{flag}`\n"
            yield "| field | default | meaning |\n|---|---|---|"
            for each in fields(cls):
                default = "" if each.default is MISSING else f"`{each.default}`"
                told = cell(documented.get(each.name, ""))
                yield f"| `{owner}.{each.name.replace('_', '-')}` | {default} | {told} |"
            yield ""


def presets() -> Iterator[str]:
    yield "# Presets\n"
    yield "`saqrl train --preset NAME` starts from these settings; your other flags override them."
    yield "The scores are published results of longer runs by others.\n"
    for name, preset in PRESETS.items():
        yield f"## {name}\n"
        yield f"{preset.summary}\n"
        expected = ", ".join(f"{method} {score}" for method, score in preset.expected.items())
        rows = {
            "data": preset.data,
            "score": preset.protocol,
            "published": expected,
            "source": preset.source,
        }
        if any(rows.values()):
            yield "| | |\n|---|---|"
            yield from (f"| {key} | {cell(text)} |" for key, text in rows.items() if text)
            yield ""


def api() -> Iterator[str]:
    yield "# Python API\n"
    yield "Stable between patch versions. Everything else that can be imported may change.\n"
    yield "## `saqrl`\n"
    for name in saqrl.__all__:
        if name != "__version__":
            yield f"::: saqrl.{name}\n"
    for title, names in MORE.items():
        yield f"## {title}\n"
        yield from (f"::: {name}\n" for name in names)


def cell(text: str) -> str:
    """Text for a table: one line, and no bars, stars or angle brackets that Markdown would read."""
    text = re.sub(r"([|<*])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
