"""What a run depends on, for its record."""

import platform
from importlib.metadata import version

import jax

import saqrl
from saqrl.training.data import NO_ENVIRONMENT


def versions(environment_id: str | None = None) -> dict[str, str]:
    """Versions of Python, the numerical libraries and the environment's packages."""
    found = {"saqrl": saqrl.__version__, "python": platform.python_version()}
    found |= {name: version(name) for name in ("jax", "jaxlib", "equinox", "optax", "numpy")}
    found["backend"] = jax.default_backend()
    if environment_id is not None and environment_id != NO_ENVIRONMENT:
        from saqrl.environments.make import environment_versions

        found |= environment_versions(environment_id)
    return found
