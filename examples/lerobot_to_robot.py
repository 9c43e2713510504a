"""LeRobot to a robot: recordings, training, an ONNX file, and the control loop that plays it.

    pip install -e ".[lerobot,export]" in your clone of saqrl
    python examples/lerobot_to_robot.py

The recordings are made here, by a simulated arm with two joints that a person moves to a target. In
place of `record` point `--dataset` at a folder of yours, and in place of `Arm` put your robot:
`observe` and `command` are all that the loop needs.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

import saqrl
from saqrl.cli import main as saqrl_command
from saqrl.deploy import runtime

RATE = 50  # Hz
REACHED = 0.05  # rad


class Arm:
    """Two joints with velocity control, and the target that they are to reach.

    An observation is both angles and both targets in rad; an action both velocities in rad/s.
    """

    def __init__(self, seed: int):
        generator = np.random.default_rng(seed)
        self.angles = generator.uniform(-0.5, 0.5, 2)
        self.target = generator.uniform(-1.5, 1.5, 2)

    def observe(self) -> np.ndarray:
        return np.concatenate([self.angles, self.target]).astype(np.float32)

    def command(self, velocities: np.ndarray) -> None:
        self.angles = self.angles + np.clip(velocities, -2, 2) / RATE

    def error(self) -> float:
        """Of the worse joint, in rad."""
        return float(np.abs(self.target - self.angles).max())


def record(folder: Path, *, episodes: int, frames: int = 100) -> Path:
    """A LeRobot data set (v2.1) of `episodes` demonstrations, as the recorder writes it."""
    import pyarrow as pa
    from pyarrow import parquet

    (folder / "data" / "chunk-000").mkdir(parents=True)
    (folder / "meta").mkdir()
    for episode in range(episodes):
        arm, rows = Arm(seed=episode), []
        generator = np.random.default_rng(episode)
        for _ in range(frames):
            velocities = 3 * (arm.target - arm.angles) + generator.normal(0, 0.05, 2)
            rows.append((arm.observe(), np.clip(velocities, -2, 2).astype(np.float32)))
            arm.command(velocities)
        columns = {
            "observation.state": pa.array([state.tolist() for state, _ in rows]),
            "action": pa.array([action.tolist() for _, action in rows]),
            "timestamp": np.arange(frames, dtype=np.float32) / RATE,
            "frame_index": np.arange(frames),
            "episode_index": np.full(frames, episode),
            "task_index": np.zeros(frames, np.int64),
        }
        name = f"episode_{episode:06d}.parquet"
        parquet.write_table(pa.table(columns), folder / "data" / "chunk-000" / name)
    info = {
        "codebase_version": "v2.1",
        "fps": RATE,
        "total_episodes": episodes,
        "total_frames": episodes * frames,
        "features": {
            "observation.state": {"dtype": "float32", "shape": [4]},
            "action": {"dtype": "float32", "shape": [2]},
        },
    }
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    (folder / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "reach the target"}\n')
    return folder


def control(policy: runtime.RobotPolicy, arm: Arm, *, steps: int, real_time: bool) -> str:
    """Play one episode on the arm, stopping where the policy should not be trusted; how it went."""
    period = 1 / (policy.metadata["control_rate_hz"] or RATE)
    policy.reset()  # at the start of every episode
    deadline = time.perf_counter()
    for _ in range(steps):
        try:
            decision = policy.act(arm.observe())
        except ValueError as error:  # NaN, another size: nothing was decided
            return f"held: {error}"
        if decision.distance > 3:  # far from everything in the data
            return f"held: the observation is {decision.distance:.1f} times too far from the data"
        arm.command(decision.action)
        deadline += period
        if real_time:
            time.sleep(max(0.0, deadline - time.perf_counter()))
    return "reached" if arm.error() < REACHED else f"missed by {arm.error():.2f} rad"


def main(
    out: Path, *, dataset: Path | None = None, steps: int = 2000, real_time: bool = False
) -> list[str]:
    """Record, train, export and play 10 episodes with new targets below `out`; how each went."""
    dataset = dataset or record(out / "recordings", episodes=60)
    saqrl.fit(
        f"lerobot:{dataset}",
        out=out / "run",
        steps=steps,
        quantizer_steps=steps,
        quiet=True,
        **{"agent.hidden": 64, "quantizer.hidden": 64, "prior.steps": steps // 2},
    )
    exported = out / "policy.onnx"
    if code := saqrl_command(["export", str(out / "run"), "--out", str(exported)]):
        raise SystemExit(code)
    # From here on NumPy and onnxruntime are enough: this is what runs beside the robot.
    policy = runtime.load(exported, seed=0)
    return [
        control(policy, Arm(seed=1000 + episode), steps=100, real_time=real_time)
        for episode in range(10)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", type=Path, help="LeRobot folder; default: one is recorded")
    parser.add_argument("--out", type=Path, help="new folder; default: a temporary one")
    asked = parser.parse_args()
    out = asked.out or Path(tempfile.mkdtemp())
    for episode, outcome in enumerate(main(out, dataset=asked.dataset, real_time=True)):
        print(f"episode {episode}: {outcome}")
    print(f"recordings, run and policy.onnx: {out}")
