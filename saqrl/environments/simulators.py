"""Simulators: import, rendering without a display, reproducible resets.

Used to play policies and to collect demonstrations, whose worker processes must not import JAX.
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
    """Choose a renderer, then `import_packages`."""
    choose_renderer()
    import_packages(purpose, modules, extra=extra)


def choose_renderer() -> str | None:
    """Let MuJoCo and pygame render without a display; returns the resulting MUJOCO_GL.

    MuJoCo reads MUJOCO_GL only when it is first imported, so the choice must also suit a later
    video. The user's setting is kept. Without a display: EGL if one of its devices opens
    (otherwise dm_control cannot be imported with it), else OSMesa, else no rendering.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # else it prints a greeting
    if not sys.platform.startswith("linux"):
        return os.environ.get("MUJOCO_GL")
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        if "MUJOCO_GL" not in os.environ and "mujoco" not in sys.modules:
            works = "egl" if _egl_opens() else "osmesa" if _osmesa_loads() else "disable"
            os.environ["MUJOCO_GL"] = works
    return os.environ.get("MUJOCO_GL")


def _egl_opens() -> bool:
    """Whether some EGL device can be initialised, as the library itself reports."""
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
    """The same environment with a reset that depends on its seed alone.

    OGBench takes random steps inside reset. It samples them from an action space that it makes anew
    at every access, so the operating system seeds it. These steps change contact forces and the
    solver's warm start. Here one action space is kept, and reset seeds it.
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
            # Closed at the interpreter's exit, the rendering context would fail with a traceback.
            renderer, self._renderer = self._renderer, None
            if renderer is not None:
                renderer.close()
            super().close()

    Reproducible.__name__ = Reproducible.__qualname__ = kind.__name__
    return replace(spec, entry_point=Reproducible)


def _reproducible_maze(make: Any) -> Any:
    """The same for OGBench's mazes, whose start noise comes from NumPy's global generator.

    The class of the environment that `make` returns is replaced by a subclass.
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
