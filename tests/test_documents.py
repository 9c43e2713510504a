"""Every shell and Python block of the pages runs as it stands, small, or says why it is not run.

A page is played in a folder of its own, which holds the files and runs that pages name. Shell
commands are those of `saqrl`, with flags that make them short; Python blocks of a page share their
names. `<!-- not run: REASON -->` before a block leaves it out, ten times at most.
"""

import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import saqrl
from saqrl.cli import main
from saqrl.run import fit
from tests.walking import ENVIRONMENT, Point

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]*) -->\n\s*)?```(?P<language>.*)\n(?P<text>(?:.*\n)*?)```"
)
MOST_NOT_RUN = 10

TINY = "--agent.hidden 16 --steps 40 --quantizer-steps 30 --log-every 20 --eval-episodes 1"
# What makes a command short; the last word for a flag counts.
SHORT = {
    "train": f"{TINY} --members 1 --quantizer.hidden 16 --quantizer.codes 8 --prior.steps 20",
    "finetune": "--steps 60 --warm-up 20 --eval-episodes 1 --lanes 1",
    "evaluate": "--episodes 1 --offline-steps 20",
    "report": "--offline-steps 20",
    "collect": "--episodes 1",
    "quantize": "--steps 30 --prior-steps 20 --codes 4",
    "compare": "--steps 40 --quantizer-steps 30 --seeds 1 --eval-episodes 1 --evaluations 1"
    " --set quantizer.codes=8",
}
# Packages of extras that a page needs; without them it is skipped.
NEEDS = {
    "how-to/collect.md": ["ogbench"],
    "how-to/lerobot.md": ["pyarrow"],
    "how-to/robot.md": ["onnxruntime"],
    "how-to/offline.md": ["onnxruntime"],
    "reference/formats.md": ["matplotlib"],
}


class Block(NamedTuple):
    language: str
    text: str
    why: str | None


def blocks_of(page: Path) -> list[Block]:
    return [
        Block(match["language"].strip(), match["text"], match["why"])
        for match in FENCE.finditer(page.read_text())
    ]


def commands_of(text: str) -> list[list[str]]:
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def shortened(words: list[str]) -> list[str]:
    """The command with flags that make it short; a run that goes on keeps its own."""
    if words[1] == "train" and "--dataset" not in words:
        return words
    if "--resume" in words:
        return words
    added = shlex.split(SHORT.get(words[1], ""))
    if words[1] == "evaluate" and "--offline" not in words:
        added = added[:2]
    if words[1] == "train" and "--keep-every" in words:
        added += ["--keep-every", "20"]
    if words[1] == "export" and "--step" in words:
        added += ["--step", "20"]
    return [*words, *added]


def small_fit(*data, **flags):
    """`saqrl.fit` with fewer steps and small networks."""
    words = shlex.split(SHORT["train"])
    short = {f[2:].replace("-", "_"): v for f, v in zip(words[::2], words[1::2], strict=True)}
    return fit(*data, **{**flags, **short})


class Robot:
    """What the control loop of a page plays on: a point, for a few observations."""

    def __init__(self) -> None:
        self.arm, self.left = Point(), 5
        self.place, _ = self.arm.reset(seed=0)

    def running(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def observation(self) -> np.ndarray:
        return self.place

    def command(self, action: np.ndarray) -> None:
        self.place, *_ = self.arm.step(action)

    def hold(self, why: str) -> None:
        raise AssertionError(why)


@pytest.fixture(scope="module")
def place(dataset, tmp_path_factory) -> Path:
    """A folder with the files and runs that pages name."""
    folder = tmp_path_factory.mktemp("pages")
    with np.load(dataset) as archive:
        np.savez(folder / "my_log.npz", **archive, environment_id=ENVIRONMENT)
    source = str(folder / "my_log.npz")
    for name, form in {
        "my_log.hdf5": "d4rl", "low_dim.hdf5": "robomimic", "my-robot": "lerobot"
    }.items():  # fmt: skip
        if form != "lerobot" or _there("pyarrow"):
            assert main(["convert", source, str(folder / name), "--format", form]) == 0
    for day in ("day1.hdf5", "day2.hdf5"):
        shutil.copy(folder / "my_log.hdf5", folder / day)
    shutil.copy(source, folder / "day3.npz")
    asked = f"train --dataset {source} --agent iql --actions quantized {SHORT['train']}"
    assert main([*asked.split(), "--out", str(folder / "runs" / "arm")]) == 0
    return folder


def _there(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in PAGES
        if any(b.language in ("bash", "python", "toml") for b in blocks_of(page))
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
@pytest.mark.usefixtures("registries")
def test_blocks_of_a_page_run(page, place, tmp_path, monkeypatch):
    for module in NEEDS.get(
        str(page.relative_to(ROOT / "docs")) if page.parent != ROOT else "", []
    ):
        pytest.importorskip(module, reason=f"{module} is not installed")
    folder = tmp_path / "page"
    shutil.copytree(place, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(saqrl, "fit", small_fit)
    names = {"__name__": "page", "robot": Robot(), **_arrays()}
    for number, block in enumerate(blocks_of(page), 1):
        if block.why is not None:
            continue
        first = block.text.partition("\n")[0]
        if re.fullmatch(r"# [\w.]+\.(py|toml)", first):  # the name of a file
            Path(first[2:]).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, f"{page.name}, block {number}", "exec"), names)
        elif block.language == "bash":
            for words in commands_of(block.text):
                assert words[0] == "saqrl", f"{page}: {words}: only saqrl is run here"
                assert main(shortened(words)[1:]) == 0, f"{page}: {shlex.join(words)}"


def _arrays() -> dict[str, np.ndarray]:
    """Short logs under the names that pages use for them."""
    observations = np.zeros((40, 2), np.float32)
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 2)).astype(np.float32)
    chunks = np.tile(actions[:, None], (1, 8, 1))
    ends = np.arange(40) % 10 == 9
    return {
        "observation": observations[0], "observations": observations, "actions": actions,
        "chunks": chunks, "o": observations, "a": actions, "r": actions[:, 0], "e": ends,
    }  # fmt: skip


def test_blocks_say_their_language_and_few_are_not_run():
    left = [(page, b) for page in PAGES for b in blocks_of(page) if b.why is not None]
    assert len(left) <= MOST_NOT_RUN, [f"{page.name}: {block.why}" for page, block in left]
    for page in PAGES:
        for block in blocks_of(page):
            assert block.language in ("bash", "python", "toml", "text"), f"{page}: {block}"
        outside = FENCE.sub("", page.read_text())
        assert "```" not in outside, f"{page}: a fence that is not read"
        assert not re.search(r"(?m)^    +(saqrl|python|pip) ", outside), f"{page}: use a fence"


def test_pages_name_nothing_outside_of_the_repository():
    for page in PAGES:
        depth = len(page.relative_to(ROOT).parts) - 1
        for path in re.findall(r"(?<![\w.])(?:\.\./)+[\w.]*", page.read_text()):
            assert path.count("../") <= depth, f"{page}: {path}"
