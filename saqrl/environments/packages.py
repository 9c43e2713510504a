"""Packages of the extras: imported in silence, or an error that says how to install them."""

import contextlib
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator

from saqrl.installation import install


def import_packages(purpose: str, modules: tuple[str, ...], *, extra: str) -> None:
    """Import `modules` in order; ImportError says what `purpose` lacks and the extra with it."""
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
                f"{purpose} needs {package}, which does not import ({error}); "
                f"its dependencies come with {remedy}"
            ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence, for the duration, the messages that nobody here can act on."""
    with contextlib.suppress(ImportError):
        # A banner on stderr about the reward's sign in Adroit v1. Ids are the user's choice and
        # environment_versions records the package, so the report can say the same.
        from farama_notifications import notifications

        notifications.get("gymnasium_robotics", {}).clear()
    # robosuite recommends settings files and robot models at its import.
    logging.getLogger("robosuite_logs").disabled = True
    with warnings.catch_warnings():
        # D4RL's data were made in the v4 environments: v5 would be another task.
        warnings.filterwarnings("ignore", r".*is out of date", DeprecationWarning)
        # OGBench and Gymnasium state float32 boxes with float64 limits of -1 and 1.
        warnings.filterwarnings("ignore", r".*precision lowered by casting", UserWarning)
        yield
