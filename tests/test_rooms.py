"""What the import contracts in pyproject.toml cannot say."""

import ast
from pathlib import Path

import saqrl

PACKAGE = Path(saqrl.__file__).parent


def test_a_discrete_agent_never_sees_a_continuous_action():
    for path in sorted((PACKAGE / "agents").glob("*.py")):
        names = {
            node.attr if isinstance(node, ast.Attribute) else node.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Attribute, ast.Name))
        }
        assert "actions" not in names, path
