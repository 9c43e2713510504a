"""What a release rests on, beside the code: versions, constraints, scripts."""

import re
import tomllib
from pathlib import Path

import pytest

import saqrl

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_version_is_the_same_everywhere():
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert saqrl.__version__ == PROJECT["version"] == cited.group(1)
    assert f"## {saqrl.__version__} " in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("version", ["", "-3.12", "-3.13"])
def test_constraints_pin_every_direct_dependency_once(version):
    text = (ROOT / f"constraints{version}.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    names = [re.fullmatch(r"([a-z0-9-]+)==\S+", line).group(1) for line in lines]
    assert len(set(names)) == len(names)
    extras = [p for extra in PROJECT["optional-dependencies"].values() for p in extra]
    direct = {name_of(wanted) for wanted in PROJECT["dependencies"] + extras} - {"saqrl"}
    # robosuite is no dependency; it is installed by a command of its own.
    assert direct | {"robosuite"} <= set(names)
    assert len(direct) > 30


def name_of(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_-]+", requirement).group(0).lower().replace("_", "-")


def test_workflow_and_pages_call_scripts_that_are_there():
    texts = [ROOT / "CONTRIBUTING.md", ROOT / ".github/workflows/ci.yml", ROOT / "README.md"]
    called = {name for text in texts for name in re.findall(r"\.ci/(\w+)", text.read_text())}
    assert called == {path.name for path in (ROOT / ".ci").iterdir()}


def test_types_are_shipped():
    assert (Path(saqrl.__file__).parent / "py.typed").is_file()
