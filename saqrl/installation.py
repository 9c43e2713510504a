"""How packages that not everyone needs are installed: the extras of pyproject.toml."""

import sys

# What follows an extra without its dependencies: pyproject.toml says why.
FOLLOWING = {"robosuite": "robosuite==1.5.2"}
if sys.version_info >= (3, 13):
    FOLLOWING |= {"ogbench": "ogbench dm_control", "dmcontrol": "dm_control"}


def install(extra: str) -> str:
    """The commands that work today. They change when saqrl is published under its name.

    Until then whoever takes that name on a package index would own everybody who is told to
    install it from there.
    """
    following = f", then pip install --no-deps {FOLLOWING[extra]}" if extra in FOLLOWING else ""
    return f'pip install -e ".[{extra}]" in your clone of saqrl{following}'
