"""The flags that say which data is read, alike in every command."""

from collections.abc import Sequence
from typing import Annotated

import tyro

from saqrl.datasets import ReadOptions

FLAG = "--dataset"

DatasetOptions = Annotated[ReadOptions, tyro.conf.arg(name="dataset")]


def with_one_dataset(words: Sequence[str]) -> list[str]:
    """The command line with all SPECs of `--dataset A B --dataset 2*C` as one, `A + B + 2*C`."""
    rest, specs = _apart(words, each=None)
    return [FLAG, " + ".join(specs), *rest] if specs else rest


def with_positional_dataset(words: Sequence[str]) -> list[str]:
    """The same where the data set is the first word without a flag; one SPEC for each flag."""
    rest, specs = _apart(words, each=1)
    return [" + ".join(specs), *rest] if specs else rest


def _apart(words: Sequence[str], each: int | None) -> tuple[list[str], list[str]]:
    """(all other words, the SPECs), at most `each` of them after one flag."""
    waiting, rest, specs = list(words), [], []
    while waiting:
        word = waiting.pop(0)
        if word.startswith(f"{FLAG}="):
            specs.append(word.removeprefix(f"{FLAG}="))
            continue
        if word != FLAG:
            rest.append(word)
            continue
        found = 0
        while waiting and not waiting[0].startswith("--") and (each is None or found < each):
            specs.append(waiting.pop(0))
            found += 1
        if not found:
            raise ValueError(f"{FLAG}: no SPEC after it; write format:path or a path")
    return rest, specs
