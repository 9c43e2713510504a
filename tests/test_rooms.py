"""Who may import whom: the folders are the data flow, and the arrows point one way."""

import ast
from pathlib import Path

import pytest

import saqrl

PACKAGE = Path(saqrl.__file__).parent
# Modules beside the rooms that any room may use.
COMMON = {"nn", "registry", "arrays", "simulators"}
# What runs next to a robot: it stands alone.
DEPLOYED = {"runtime", "server"}
ALLOWED = {
    "nn": set(),
    "registry": set(),
    "arrays": set(),
    "simulators": set(),
    "runtime": set(),
    "server": {"runtime"},
    "wrappers": {"policy", "quantizers"},
    "datasets": {"registry", "simulators"},
    "quantizers": {"nn", "registry"},
    "agents": {"nn", "registry"},
    "baselines": {"nn", "registry"},
    "policy": {"datasets", "quantizers", "agents", "baselines", "runtime", *COMMON},
    "experiment": {"datasets", "quantizers", "agents", "baselines", "policy", *COMMON},
    "commands": {
        *("experiment", "policy", "quantizers", "agents", "baselines", "datasets"),
        *DEPLOYED,
        *COMMON,
    },
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_the_plan_allows(path):
    room = room_of(path)
    if room not in ALLOWED:
        return
    modules = imported_modules(path)
    rooms = {name.split(".")[1] for name in modules if name.startswith("saqrl.")}
    known = {room_of(file) for file in FILES}
    assert rooms & known - {room} <= ALLOWED[room]


@pytest.mark.parametrize(
    "room", ["datasets", *(f"{m}.py" for m in ("registry", "simulators", "cli", *sorted(DEPLOYED)))]
)
def test_reading_data_needs_no_jax(room):
    place = PACKAGE / room
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        heavy = {name.split(".")[0] for name in imported_modules(path)}
        assert not heavy & {"jax", "equinox", "optax"}, path


def test_a_discrete_agent_never_sees_a_continuous_action():
    for path in sorted((PACKAGE / "agents").glob("*.py")):
        names = {
            node.attr if isinstance(node, ast.Attribute) else node.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Attribute, ast.Name))
        }
        assert "actions" not in names, path
