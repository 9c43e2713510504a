"""The film of a run with a baseline: both policies, from the same starts, with their outcomes."""

import subprocess

import gymnasium
import numpy as np
import pytest

from saqrl.datasets import EnvironmentSpec
from saqrl.policy.side_by_side import HEAD, SIDE, side_by_side
from saqrl.policy.storage import load_policy
from saqrl.training.summary import summary_text
from tests.walking import ENVIRONMENT, Point, run, small

DRAWN = "saqrl-tests/DrawnPoint-v0"


class DrawnPoint(Point):
    """The point; its place is the brightness of the left and right half of a picture."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        picture = np.empty((90, 120, 3), np.uint8)
        picture[:, :60], picture[:, 60:] = np.clip(120 + 100 * self.place, 0, 255)[:, None]
        return picture


@pytest.fixture(scope="module")
def drawn(dataset, tmp_path_factory):
    """(run folder, result.json) of a run with a baseline in a world that can be drawn."""
    pytest.importorskip("imageio_ffmpeg", reason="not installed: saqrl[video]")
    gymnasium.register(DRAWN, entry_point=DrawnPoint)
    out = tmp_path_factory.mktemp("film") / "run"
    result = run(small(dataset, "bc", env=DRAWN, baseline=True), out)
    policies = {"SAQ-BC": load_policy(out), "continuous BC": load_policy(out / "baseline")}
    side_by_side(policies, policies["SAQ-BC"].environment, out / "rollouts.mp4")
    yield out, result
    del gymnasium.registry[DRAWN]


@pytest.fixture(scope="module")
def frames(drawn):
    """The pictures of a film, by the encoder's own program: imageio's reader leaves pipes open."""
    import imageio_ffmpeg

    program = imageio_ffmpeg.get_ffmpeg_exe()
    words = [
        program,
        "-v",
        "error",
        "-i",
        str(drawn[0] / "rollouts.mp4"),
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    raw = subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, SIDE + HEAD, 2 * SIDE, 3).astype(int)


def test_the_film_is_small(drawn):
    assert 0 < (drawn[0] / "rollouts.mp4").stat().st_size < 1_500_000


def test_both_policies_begin_in_the_same_state(frames):
    first = frames[0]
    assert first.shape == (SIDE + HEAD, 2 * SIDE, 3)
    left, right = first[HEAD:, :SIDE], first[HEAD:, SIDE:]
    assert np.abs(left[40:-40, 40:120] - right[40:-40, 40:120]).mean() < 4  # what coding loses
    assert np.abs(left[40:-40, 200:280] - right[40:-40, 200:280]).mean() < 4


def test_the_outcome_is_seen_at_the_end(frames):
    last = frames[-1]
    for column in (last[:HEAD, :SIDE], last[:HEAD, SIDE:]):
        red, green, _ = column[:, SIDE // 2 :].reshape(-1, 3).mean(0)
        assert abs(red - green) > 40


def test_the_baseline_can_be_loaded_from_the_run(drawn):
    policy = load_policy(drawn[0] / "baseline")
    assert policy.act(np.zeros(2, np.float32)).shape == (2,)


def test_what_cannot_be_drawn_is_an_error_and_leaves_nothing(drawn, tmp_path):
    policy = load_policy(drawn[0])
    with pytest.raises((ValueError, RuntimeError)):
        side_by_side({"a": policy}, EnvironmentSpec(ENVIRONMENT), tmp_path / "film.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("collected", "ours", "theirs", "told", "why"),
    [
        ("human", 1.0, 0.1, "SAQ-BC succeeds 90 points more than continuous BC", "people pause"),
        ("expert", 0.9, 0.95, "SAQ-BC and continuous BC succeed equally often", "nearly identical"),
        (None, 0.2, 0.9, "SAQ-BC succeeds 70 points less than continuous BC", None),
    ],
)
def test_the_end_tells_who_is_ahead_and_why(drawn, collected, ours, theirs, told, why):
    result = {
        **drawn[1],
        "collected": collected,
        "success_rate": ours,
        "baseline": {**drawn[1]["baseline"], "success_rate": theirs},
    }
    text = summary_text(result)
    assert told in text
    assert ("why: " in text) == (why is not None)
    assert why is None or why in text
