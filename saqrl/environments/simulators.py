"""Simulators in any process: importing them, drawing without a display, resets that repeat.

Shared by the environments that a policy plays and by the collection of demonstrations, whose
worker processes must not import JAX.
"""

import contextlib
import ctypes
import os
import sys
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator

from saqrl.environments.packages import import_packages

# Values of MUJOCO_GL that mean "no drawing" to MuJoCo and to dm_control.
DISABLED = ("disable", "disabled", "off", "false", "0")


def import_simulator(purpose: str, modules: tuple[str, ...], *, extra: str) -> None:
    """As `import_packages`, after the choice of a renderer."""
    choose_renderer()
    import_packages(purpose, modules, extra=extra)


def choose_renderer() -> str | None:
    """Let MuJoCo and pygame draw without a display; returns MUJOCO_GL as it now stands.

    MuJoCo reads MUJOCO_GL once, when it is first imported, so the choice has to suit a video that
    is asked for later. What the user has set stays. Without a display: EGL if one of its devices
    opens (dm_control refuses to import where none does), else OSMesa, else no drawing at all.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it greets on stdout
    if not sys.platform.startswith("linux"):
        return os.environ.get("MUJOCO_GL")
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        if "MUJOCO_GL" not in os.environ and "mujoco" not in sys.modules:
            works = "egl" if _egl_opens() else "osmesa" if _osmesa_loads() else "disable"
            os.environ["MUJOCO_GL"] = works
    return os.environ.get("MUJOCO_GL")


def _egl_opens() -> bool:
    """Whether some EGL device can be initialised, asked of the library itself."""
    # Tokens of EGL_EXT_platform_device and of EGL 1.0.
    platform_device, maximum = 0x313F, 16
    try:
        egl = ctypes.CDLL("libEGL.so.1")
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        addresses = [
            egl.eglGetProcAddress(name)
            for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT")
        ]
    except (OSError, AttributeError):
        return False
    if not all(addresses):
        return False
    query = ctypes.CFUNCTYPE(
        ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)
    )(addresses[0])
    display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(
        addresses[1]
    )
    egl.eglInitialize.argtypes = [ctypes.c_void_p] * 3
    devices, found = (ctypes.c_void_p * maximum)(), ctypes.c_int(0)
    if not query(maximum, devices, ctypes.byref(found)):
        return False
    handles = (display(platform_device, device, None) for device in devices[: found.value])
    return any(handle and egl.eglInitialize(handle, None, None) for handle in handles)


def _osmesa_loads() -> bool:
    for name in ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"):
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            return True
    return False


def reproducible(
    spec: EnvSpec,
) -> EnvSpec:
    """The same environment, whose reset depends on its seed alone.

    OGBench takes random steps inside reset and draws them from an action space that it makes anew,
    so seeded by the operating system, at every access. Contact forces and the solver's warm start
    survive these steps. One action space, seeded by reset, replaces it.
    """
    kind: Any = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else None
    if kind is None:
        return spec
    if not isinstance(kind, type):
        return replace(spec, entry_point=_reproducible_maze(kind))

    class Reproducible(kind):  # type: ignore[misc]
        _seeded_space: gymnasium.Space[Any] | None = None
        _renderer: Any = None

        @property
        def action_space(self) -> gymnasium.Space[Any]:
            if self._seeded_space is None:
                self._seeded_space = super().action_space
            return self._seeded_space

        def reset(self, *args: Any, seed: int | None = None, **kwargs: Any) -> Any:
            if seed is not None:
                self.action_space.seed(seed)
            return super().reset(*args, seed=seed, **kwargs)

        def close(self) -> None:
            # Left to the interpreter's exit, the drawing context fails with a traceback.
            renderer, self._renderer = self._renderer, None
            if renderer is not None:
                renderer.close()
            super().close()

    Reproducible.__name__ = Reproducible.__qualname__ = kind.__name__
    return replace(spec, entry_point=Reproducible)


def _reproducible_maze(make: Any) -> Any:
    """The same for OGBench's mazes, which draw the noise of their starts from NumPy's global state.

    What `make` returns is given a class of its own.
    """

    def made(*args: Any, **kwargs: Any) -> Any:
        environment = make(*args, **kwargs)
        kind: Any = type(environment)

        class Reproducible(kind):  # type: ignore[misc]
            _placing = np.random.default_rng()

            def reset(self, *args: Any, seed: int | None = None, **kwargs: Any) -> Any:
                if seed is not None:
                    self.action_space.seed(seed)
                    self._placing = np.random.default_rng(seed)
                return super().reset(*args, seed=seed, **kwargs)

            def add_noise(self, xy: Any) -> Any:
                reach = self._noise * self._maze_unit / 4
                return tuple(np.asarray(xy) + self._placing.uniform(-reach, reach, 2))

        environment.__class__ = Reproducible
        return environment

    return made
