"""How packages that not everyone needs are installed: the extras of pyproject.toml."""


def install(extra: str) -> str:
    """The command that works today. It changes when saqrl is published under its name.

    Until then whoever takes that name on a package index would own everybody who is told to
    install it from there.
    """
    return f'pip install -e ".[{extra}]" in your clone of saqrl'
