"""Rollouts of several policies from the same starts, side by side in one short video."""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from saqrl.datasets import EnvironmentSpec
from saqrl.environments.make import make_environment
from saqrl.policy.policy import Player, Policy
from saqrl.policy.rollout import EVALUATION_SEEDS, evaluation_key
from saqrl.policy.video import FRAMES_PER_SECOND, check_video_path

# The video plays 3 times as fast as the task, so that it is short and quick to render.
SPEED = 3
FILM_RATE = 15
# Pixels of a policy's square picture and of the text above it: codecs need multiples of 16.
SIDE, HEAD = 320, 48
# Number of frames that show the outcome.
OUTCOME = 12

# Warnings are silenced for a whole process while an environment is made.
_MAKING = threading.Lock()

Image = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class _Rollout:
    """The pictures of one episode, and how it ended; success None: the task reports none."""

    pictures: list[Image]
    success: bool | None
    total: float
    seconds: float


def side_by_side(
    policies: Mapping[str, Policy],
    environment: EnvironmentSpec,
    path: Path,
    *,
    episodes: int = 3,
    seed: int = 0,
) -> None:
    """Write the first episodes of an evaluation with this seed to `path` (.mp4 or .gif).

    One column for each policy under its name, in the given order; each uses its own acting rule.
    An episode that has ended shows its last frame and its outcome until the others have ended.

    Raises ImportError without the extra `video`, RuntimeError if rendering does not work on this
    machine, ValueError if the environment cannot be made with rendering.
    """
    import imageio.v2 as imageio

    check_video_path(path)
    film = partial(_rollouts, environment=environment, episodes=episodes, seed=seed)
    with ThreadPoolExecutor(min(len(policies), os.cpu_count() or 1)) as threads:
        columns = list(threads.map(film, policies.values()))
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        with warnings.catch_warnings(), imageio.get_writer(aside, fps=FILM_RATE) as writer:
            # JAX warns about every fork, but this one only starts the encoder.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            for number, rollouts in enumerate(zip(*columns, strict=True), 1):
                start = f"start {number} of {episodes}"
                for frame in _frames(dict(zip(policies, rollouts, strict=True)), start):
                    writer.append_data(frame)  # type: ignore[attr-defined]
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _rollouts(
    policy: Policy, *, environment: EnvironmentSpec, episodes: int, seed: int
) -> list[_Rollout]:
    """Runs in one thread, because a rendering context belongs to the thread that made it."""
    with _MAKING:
        made = make_environment(environment.id, options=environment.options, render=True)
    try:
        without_shadows(made)
        return [_rollout(policy, made, seed, episode) for episode in range(episodes)]
    finally:
        made.close()


def _rollout(policy: Policy, made: Any, seed: int, episode: int) -> _Rollout:
    rate = made.metadata.get("render_fps") or FRAMES_PER_SECOND
    stride = max(1, round(rate * SPEED / FILM_RATE))
    key = jax.random.fold_in(evaluation_key(seed), episode)
    player = Player(policy, key, act=policy.default_act)
    observation, _ = made.reset(seed=EVALUATION_SEEDS + seed + episode)
    pictures: list[Image] = []
    success: bool | None = None
    total, steps, ended = 0.0, 0, False
    while not ended:
        if steps % stride == 0:
            pictures.append(_square(made.render()))
        action = player.act(np.asarray(observation, np.float32))
        observation, reward, terminated, truncated, info = made.step(action)
        total, steps, ended = total + float(reward), steps + 1, terminated or truncated
        if "success" in info:
            success = bool(success) or bool(info["success"])
    pictures.append(_square(made.render()))
    return _Rollout(pictures, success, total, steps / rate)


def without_shadows(made: Any) -> None:
    """Turn off MuJoCo's shadows: without a GPU they take three quarters of a frame's time."""
    with contextlib.suppress(AttributeError):
        inner = made.unwrapped
        model = inner.model if hasattr(inner, "model") else inner._model
        model.light_castshadow[:] = 0


def _square(drawn: Any) -> Image:
    """A picture cropped to its middle square, resized to SIDE pixels."""
    from PIL import Image as Pictures

    whole = np.asarray(drawn, np.uint8)
    height, width = whole.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = Pictures.fromarray(whole[top : top + side, left : left + side])
    return np.asarray(middle.resize((SIDE, SIDE)))


def _frames(rollouts: Mapping[str, _Rollout], start: str) -> Iterator[Image]:
    """The pictures of one start, column by column, and the outcomes at the end."""
    columns = [
        [_titled(picture, name, start) for picture in rollout.pictures[:-1]]
        + [_titled(rollout.pictures[-1], name, _outcome(rollout), _colour(rollout))]
        for name, rollout in rollouts.items()
    ]
    last = [column[-1] for column in columns]
    for row in zip_longest(*columns):
        yield np.hstack(
            [now if now is not None else end for now, end in zip(row, last, strict=True)]
        )
    for _ in range(OUTCOME):
        yield np.hstack(last)


def _outcome(rollout: _Rollout) -> str:
    if rollout.success is None:
        return f"return {rollout.total:.1f} after {rollout.seconds:.1f} s"
    word = "success" if rollout.success else "failure"
    return f"{word} after {rollout.seconds:.1f} s"


def _colour(rollout: _Rollout) -> tuple[int, int, int]:
    """Green, red, or grey if the task reports no success; the text says it too."""
    if rollout.success is None:
        return 110, 110, 110
    return (0, 125, 60) if rollout.success else (190, 30, 45)


def _titled(
    picture: Image, name: str, words: str, colour: tuple[int, int, int] = (30, 30, 30)
) -> Image:
    """The picture below two lines of text: the policy's name, and the start or outcome."""
    from PIL import Image as Pictures
    from PIL import ImageDraw

    canvas = Pictures.new("RGB", (SIDE, SIDE + HEAD), colour)
    canvas.paste(Pictures.fromarray(picture), (0, HEAD))
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 3), name, fill="white", font_size=17)
    draw.text((8, 24), words, fill="white", font_size=14)
    return np.asarray(canvas)
