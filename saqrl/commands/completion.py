"""`saqrl completion`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Literal

from saqrl.commands.parser import Positional, command_parser, parse
from saqrl.commands.train import train_parser


@dataclass
class Completion:
    """A script that completes commands and flags in your shell."""

    shell: Annotated[Literal["bash", "zsh", "tcsh"], Positional()]
    """bash, zsh or tcsh"""

    examples = ('eval "$(saqrl completion bash)"      # in ~/.bashrc',)


def main(arguments: Sequence[str]) -> int:
    asked = parse(Completion, arguments)
    import shtab

    from saqrl.cli import COMMANDS

    whole = argparse.ArgumentParser("saqrl")
    commands = whole.add_subparsers()
    for name, summary in COMMANDS.items():
        module = import_module(f"saqrl.commands.{name}")
        known = train_parser() if name == "train" else command_parser(getattr(module, name.title()))
        commands.add_parser(name, parents=[known], add_help=False, help=summary)
    print(shtab.complete(whole, shell=asked.shell))
    return 0
