"""Packages of the extras: imported without their messages; errors say how to install them."""

import contextlib
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator

from saqrl.installation import install


def import_packages(purpose: str, modules: tuple[str, ...], *, extra: str) -> None:
    """Import `modules` in order; ImportError names what `purpose` needs and how to install it."""
    remedy = install(extra)
    for module in modules:
        package = module.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"{purpose} needs the package {package}, which is not installed: {remedy}"
            )
        try:
            with quiet():
                importlib.import_module(module)
        except ImportError as error:
            raise ImportError(
                f"{purpose} needs {package}, which cannot be imported ({error}); "
                f"install its dependencies: {remedy}"
            ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence messages of the packages that the user cannot act on."""
    with contextlib.suppress(ImportError):
        # A banner on stderr about the reward's sign in Adroit v1. The user chooses the id, and
        # environment_versions records the package's version.
        from farama_notifications import notifications

        notifications.get("gymnasium_robotics", {}).clear()
    # When imported, robosuite recommends settings files and robot models.
    logging.getLogger("robosuite_logs").disabled = True
    with warnings.catch_warnings():
        # D4RL's data come from the v4 environments; v5 is another task.
        warnings.filterwarnings("ignore", r".*is out of date", DeprecationWarning)
        # OGBench and Gymnasium declare float32 boxes with float64 limits of -1 and 1.
        warnings.filterwarnings("ignore", r".*precision lowered by casting", UserWarning)
        yield
