"""One episode of a policy as a video."""

import os
import warnings
from pathlib import Path

import jax
import numpy as np

from saqrl.datasets import EnvironmentSpec
from saqrl.environments.make import make_environment
from saqrl.installation import install
from saqrl.policy.policy import Act, Player, Policy
from saqrl.policy.rollout import EVALUATION_SEEDS, evaluation_key

SUFFIXES = (".mp4", ".gif")
# If an environment does not state its rate.
FRAMES_PER_SECOND = 30


def check_video_path(path: Path) -> None:
    """ValueError for an unknown suffix, FileNotFoundError, ImportError without the extra."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: video files end in {' or '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder does not exist; create it first")
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise ImportError(f"videos need imageio and imageio-ffmpeg: {install('video')}") from error


def record_episode(
    policy: Policy, environment: EnvironmentSpec, path: Path, *, act: Act, seed: int = 0
) -> None:
    """Replay the first episode of an evaluation with this seed and write its video to `path`."""
    import imageio.v2 as imageio

    check_video_path(path)
    made = make_environment(environment.id, options=environment.options, render=True)
    rate = made.metadata.get("render_fps") or FRAMES_PER_SECOND
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        with warnings.catch_warnings(), imageio.get_writer(aside, fps=rate) as writer:
            # JAX warns about every fork, but this one only starts the encoder.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            player = Player(policy, jax.random.fold_in(evaluation_key(seed), 0), act=act)
            observation, _ = made.reset(seed=EVALUATION_SEEDS + seed)
            ended = False
            while not ended:
                writer.append_data(_frame(made.render()))  # type: ignore[attr-defined]
                action = player.act(np.asarray(observation, np.float32))
                observation, _, terminated, truncated, _ = made.step(action)
                ended = terminated or truncated
            writer.append_data(_frame(made.render()))  # type: ignore[attr-defined]
        aside.replace(path)
    finally:
        made.close()
        aside.unlink(missing_ok=True)


def _frame(image: object) -> np.ndarray:
    """The image cropped to an even width and height, which the usual codec needs."""
    frame = np.asarray(image, np.uint8)
    height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
    return frame[:height, :width]
