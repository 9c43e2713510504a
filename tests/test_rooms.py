"""What the import contracts in pyproject.toml cannot say."""

import ast
from pathlib import Path

import saqrl
from saqrl.agents import reads_actions
from saqrl.registry import AGENTS

PACKAGE = Path(saqrl.__file__).parent


# Where Q may read actions (`iql --agent.q-of actions`): the contract, IQL and its actor.
READ_ACTIONS = {"__init__.py", "iql.py", "values.py"}


def test_a_discrete_agent_sees_no_continuous_action_unless_it_says_so():
    for path in sorted((PACKAGE / "agents").glob("*.py")):
        names = {
            node.attr if isinstance(node, ast.Attribute) else node.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Attribute, ast.Name))
        }
        assert path.name in READ_ACTIONS or "actions" not in names, path
    assert not any(reads_actions(AGENTS.load(name)()) for name in AGENTS)
    assert reads_actions(AGENTS.load("iql")(q_of="actions"))
