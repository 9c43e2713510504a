"""How optional packages are installed: the extras of pyproject.toml."""

import sys

# Packages to install after an extra, without their dependencies; pyproject.toml says why.
FOLLOWING = {"robosuite": "robosuite==1.5.2"}
if sys.version_info >= (3, 13):
    FOLLOWING |= {"ogbench": "ogbench dm_control", "dmcontrol": "dm_control"}


def install(extra: str) -> str:
    """The commands that install an extra, from a clone until saqrl is published under its name.

    Until then anyone can take that name on a package index, so installing from there would run
    unknown code.
    """
    following = f", then pip install --no-deps {FOLLOWING[extra]}" if extra in FOLLOWING else ""
    return f'pip install -e ".[{extra}]" in your clone of saqrl{following}'
