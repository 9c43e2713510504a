"""Recorded episodes executed again from their start: as they were, and through the codes.

What the return loses is what quantization alone costs, before any agent has chosen a code. Three
replays tell its causes apart: the recorded actions themselves (do start and simulator repeat the
recording?), the decoded codes of the recorded steps, and the recorded actions with Gaussian noise
of the codes' error (does any error of this size break a replay without feedback?).
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from saqrl.datasets import Transitions
from saqrl.datasets.scaling import ObservationScaling
from saqrl.datasets.windows import windows
from saqrl.environments.flat import FlatEnvironment
from saqrl.environments.make import make_environment
from saqrl.environments.scores import normalized_score
from saqrl.policy.window import Window
from saqrl.quantizers import ActionBatch, ActionQuantizer
from saqrl.studies.codebooks.material import Material
from saqrl.studies.codebooks.starts import NoReplay, restore, start_of
from saqrl.studies.codebooks.study import Examination
from saqrl.training.codes import encode_all
from saqrl.training.progress import Reporter

# robosuite's reward of a solved task, shaped or not.
SOLVED = 1 - 1e-6

# From the step and the observation to an action.
Choose = Callable[[int, np.ndarray], np.ndarray]


def replay_each(
    material: Material,
    examinations: Mapping[str, Examination],
    *,
    episodes: int,
    reporter: Reporter,
) -> dict[str, Any]:
    """Of every quantizer by name: what `replay` found, or the `reason` that there is nothing."""
    found: dict[str, Any] = {}
    shown = material.shown_transitions
    for name, examination in examinations.items():
        try:
            if material.settings.features.chunk > 1:
                raise NoReplay("a code stands for a chunk here; replay with --chunk 1")
            outcome = replay(
                shown,
                examination.quantizer,
                material.scaling,
                episodes=min(episodes, shown.num_episodes),
                error=np.asarray(examination.record["error"]["rms"], np.float32),
                reporter=reporter,
            )
            found[name] = {"num_codes": examination.record["num_codes"], **outcome}
        except (NoReplay, ImportError) as error:
            found[name] = {"reason": str(error)}
    return found


def replay(
    data: Transitions,
    quantizer: ActionQuantizer,
    scaling: ObservationScaling,
    *,
    episodes: int,
    error: Float32[np.ndarray, " act"],
    reporter: Reporter,
) -> dict[str, Any]:
    """Execute the first `episodes` of `data` that can be, three times each; means over them.

    Codes are of single recorded steps and are decoded in the state that the replay is in, as a
    policy decodes them. `error` is the codes' rms error per dimension, in the environment's units.
    NoReplay where no start can be restored.
    """
    if data.environment is None:
        raise NoReplay("the data name no environment to execute them in: give --env")
    start_of(data, 0)  # refuse before the simulator is loaded
    name, options = data.environment.id, data.environment.options
    codec, draw = quantizer.codec, np.random.default_rng(0)
    decode = jax.jit(type(codec).decode)

    def choices(steps: slice) -> dict[str, Choose]:
        """How the recorded steps are executed again, by the name of the replay."""
        actions, rows = data.actions[steps], np.arange(steps.start, steps.stop)
        window = Window(scaling.history)
        unit = jnp.asarray(data.action_range.to_unit(actions))
        batch = ActionBatch(jnp.asarray(scaling(windows(data, scaling.history, rows))), unit)
        codes = np.asarray(encode_all(codec, batch))
        noisy = actions + draw.normal(0, 1, actions.shape) * error
        noisy = np.clip(noisy, data.action_range.low, data.action_range.high)

        def decoded(step: int, observation: np.ndarray) -> np.ndarray:
            window.see(observation)
            features = jnp.asarray(scaling(window.flat()[None])[0])
            return data.action_range.from_unit(np.asarray(decode(codec, features, codes[step])))

        return {
            "actions": lambda step, observation: actions[step],
            "codes": decoded,
            "noise": lambda step, observation: noisy[step],
        }

    done: list[dict[str, tuple[float, float]]] = []
    refused: NoReplay | None = None
    with (
        contextlib.closing(make_environment(name, options=options)) as environment,
        reporter.stage("replay", episodes, unit="episodes") as update,
    ):
        for episode in range(data.num_episodes):
            if len(done) == episodes:
                break
            try:
                done.append(_replay_episode(environment, data, episode, choices))
                update(len(done), "")
            except NoReplay as reason:  # others may begin where they can be restored
                refused = refused or reason
    if refused and not done:
        raise refused
    means = {key: _means(name, [played[key] for played in done]) for key in done[0]}
    return {"environment": name, "episodes": len(done), **means}


def _replay_episode(
    environment: FlatEnvironment,
    data: Transitions,
    episode: int,
    choices: Callable[[slice], Mapping[str, Choose]],
) -> dict[str, tuple[float, float]]:
    """(return, highest reward) as recorded and of every choice; NoReplay where it cannot begin."""
    begin, end = int(data.episode_starts[episode]), int(data.episode_ends[episode])
    if end - begin == 1:
        raise NoReplay("episodes of one step have nothing to repeat")
    # A recording may be longer than an episode of the task: so far as that goes, then.
    limit = environment.spec and environment.spec.max_episode_steps
    steps = slice(begin, min(end, begin + limit) if limit else end)
    start, first = start_of(data, episode), data.observations[begin]
    restore(environment, start, first)
    assert data.environment is not None
    rewards = _until_solved(data.rewards[steps], data.environment.id)
    found = {"recorded": (float(rewards.sum()), float(rewards.max()))}
    for name, choose in choices(steps).items():
        restore(environment, start, first)
        found[name] = _play(environment, choose, first, steps.stop - begin)
    return found


def _until_solved(
    rewards: Float32[np.ndarray, " n"], environment_id: str
) -> Float32[np.ndarray, " n"]:
    """The rewards that an episode of the task would have had.

    A robosuite task ends here once it is solved; robomimic's recordings go on holding it.
    """
    if not environment_id.startswith("robosuite/"):
        return rewards
    solved = np.flatnonzero(rewards >= SOLVED)
    return rewards[: solved[0] + 1] if solved.size else rewards


def _play(
    environment: FlatEnvironment, choose: Choose, observation: np.ndarray, steps: int
) -> tuple[float, float]:
    rewards = []
    for step in range(steps):
        observation, reward, terminated, truncated, _ = environment.step(choose(step, observation))
        rewards.append(float(reward))
        if terminated or truncated:
            break
    return float(np.sum(rewards)), max(rewards)


def repeats_recording(found: Mapping[str, Any]) -> bool:
    """Whether the recorded actions bring the recorded return again, within a tenth.

    Where they do not, the simulator is chaotic or a start was not at rest, and the codes' return
    says nothing about the codes.
    """
    recorded = found["recorded"]["return_mean"]
    return abs(found["actions"]["return_mean"] - recorded) <= 0.1 * max(abs(recorded), 1e-6)


def _means(environment_id: str, values: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    returns, highest = np.asarray(values).T
    mean = float(returns.mean())
    return {
        "return_mean": mean,
        "return_std": float(returns.std()),
        "max_reward_mean": float(highest.mean()),
        "normalized_score": normalized_score(environment_id, mean),
    }
