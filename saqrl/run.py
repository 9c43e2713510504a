"""Runs from Python: `fit` trains one, `Run` opens a run folder."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from saqrl.datasets import EnvironmentSpec, Transitions
from saqrl.datasets.assembly import assemble
from saqrl.environments.permitted import permitted
from saqrl.policy import Act, Policy
from saqrl.policy.recording import check_recording, recording_seed, write_recording
from saqrl.policy.storage import load_policy
from saqrl.policy.video import check_video_path, record_episode
from saqrl.studies.run_page import leave_page
from saqrl.training.begin import begun, resumed
from saqrl.training.data import IN_MEMORY, arranged
from saqrl.training.evaluation import Scores, evaluate, open_arena
from saqrl.training.online.address import Address
from saqrl.training.online.finetune import default_out as finetuned_out
from saqrl.training.online.finetune import finetune
from saqrl.training.online.settings import OnlineSettings
from saqrl.training.presets import settings_from
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import (
    policy_folder,
    read_config,
    read_result,
    refuse_existing,
)
from saqrl.training.settings import Settings, parsed_keywords
from saqrl.training.summary import method_name, score_words, summary_text
from saqrl.training.train import RUNS, default_out, saved_settings, train
from saqrl.training.versions import versions


class Run:
    """A run folder: its settings, its result and its policy."""

    def __init__(self, path: str | os.PathLike[str]):
        """Raises RunError if the folder is not a run."""
        self.path = Path(path)
        read_config(self.path)

    def __repr__(self) -> str:
        try:
            told = f"{method_name(self.result)}, {score_words(self.result)}"
        except ValueError:
            told = "not finished"
        return f"Run({str(self.path)!r}: {told})"

    @cached_property
    def settings(self) -> Settings:
        """The settings of the run; raises ValueError if another version wrote them."""
        return saved_settings(self.path)

    @property
    def result(self) -> Mapping[str, Any]:
        """The summary in result.json; raises RunError while the run has not finished."""
        return read_result(self.path)

    @cached_property
    def policy(self) -> Policy:
        """The policy after the last step; raises PolicyError if there is none yet."""
        return load_policy(policy_folder(self.path))

    @property
    def quantizer(self) -> Any:
        """Actions to codes and back, in the robot's units; ValueError if the run has no codes."""
        return self.policy.quantizer

    def evaluate(
        self,
        episodes: int = 50,
        *,
        act: Act | None = None,
        act_temperature: float | None = None,
        env: str | None = None,
        env_kwargs: str | None = None,
        step: int | None = None,
        seed: int = 0,
        quiet: bool = True,
        video: str | os.PathLike[str] | None = None,
        record: str | os.PathLike[str] | None = None,
    ) -> Scores:
        """Play the policy in its environment, or in `env`, with `env_kwargs` (a JSON object).

        act: greedy, sample or mean; act and act_temperature default to the run's. step: play the
        policy that the run kept at this step. seed: seeds the starts and the sampling; collected
        and recorded data have other starts. video: write the first episode to this file (.mp4,
        .gif). record: write all episodes to this new file (.npz) as a data set; they then begin
        from starts that no evaluation uses. Raises ValueError if there is no environment,
        FileExistsError if the record exists.
        """
        policy = self.policy if step is None else load_policy(policy_folder(self.path, step))
        return play(
            policy,
            episodes,
            act=act,
            act_temperature=act_temperature,
            env=env,
            env_kwargs=env_kwargs,
            seed=seed,
            quiet=quiet,
            video=video,
            record=record,
        )

    def finetune(
        self,
        *,
        data: Transitions | None = None,
        dataset: str | os.PathLike[str] | None = None,
        out: str | os.PathLike[str] | None = None,
        serve: str | None = None,
        token: str | None = None,
        resume: bool = False,
        quiet: bool = True,
        **settings: Any,
    ) -> "Run":
        """Fine-tune the run in its environment, as `saqrl finetune` does; returns the new run.

        data, dataset: the run's data, if they are in memory or have moved. serve: HOST:PORT that a
        robot connects to, which plays instead of an environment; token: its secret. settings:
        those of the command, for example steps=50_000, keep_offline=0.5.

        Raises ValueError, FileNotFoundError or ImportError with the command's one-line message.
        """
        asked = OnlineSettings.from_json(settings)
        reporter = Reporter(quiet=quiet)
        path = finetuned_out(self.path) if out is None else Path(out)
        spec = None if dataset is None else os.fspath(dataset)
        finished = (path / "result.json").is_file()
        robot = None if serve is None else Address.of(serve, token)
        finetune(
            self.path,
            asked,
            path,
            data=data,
            dataset=spec,
            robot=robot,
            resume=resume,
            reporter=reporter,
        )
        leave_page(path, data, reporter, film=not finished)
        return Run(path)

    def report(self) -> str:
        """The result as text."""
        return summary_text(self.result)


def play(
    policy: Policy,
    episodes: int,
    *,
    act: Act | None = None,
    act_temperature: float | None = None,
    env: str | None = None,
    env_kwargs: str | None = None,
    seed: int = 0,
    quiet: bool = True,
    video: str | os.PathLike[str] | None = None,
    record: str | os.PathLike[str] | None = None,
) -> Scores:
    """`Run.evaluate` for any policy."""
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; it must be at least 1")
    starts = seed
    if record is not None:
        check_recording(Path(record))
        starts = recording_seed(seed, episodes)
    environment = _environment_of(policy, env, parsed_keywords(env_kwargs))
    if video is not None:
        check_video_path(Path(video))
    policy = policy.acting(act, act_temperature)
    act = policy.default_act
    write = None
    if record is not None:
        about = {"seed": seed, "versions": versions(environment.id)}
        write = partial(write_recording, Path(record), policy, environment, about=about)
    with open_arena(environment) as arena:
        scores = evaluate(
            policy,
            arena,
            environment.id,
            episodes=episodes,
            act=act,
            seed=starts,
            reporter=Reporter(quiet=quiet),
            record=write,
        )
    if video is not None:
        record_episode(policy, environment, Path(video), act=act, seed=starts)
    return scores


def _environment_of(
    policy: Policy, env: str | None, asked: Mapping[str, object]
) -> EnvironmentSpec:
    """Where to play. Policy files are untrusted: they set only what a data file may set."""
    own = policy.environment
    if env and (own is None or env != own.id):
        return EnvironmentSpec(env, asked)
    if own is None:
        raise ValueError("the policy was trained without an environment: give one with --env")
    kept, left = permitted(own.id, own.options)
    missing = [name for name in left if name not in asked]
    if ":" in own.id and not env:
        also = f" and {missing[0]!r} with --env-kwargs" if missing else ""
        raise ValueError(
            f"the policy's environment is {own.id}: a module is imported only if you name it: "
            f"add --env {own.id}{also}"
        )
    if missing:
        raise ValueError(
            f"the policy was trained in {own.id} with the option {missing[0]!r}, which a policy "
            "file may not set: give it with --env-kwargs"
        )
    return EnvironmentSpec(own.id, {**kept, **asked})


def fit(
    data: "str | os.PathLike[str] | Transitions | None" = None,
    *,
    observations: ArrayLike | None = None,
    actions: ArrayLike | None = None,
    rewards: ArrayLike | None = None,
    episode_ends: ArrayLike | None = None,
    terminals: ArrayLike | None = None,
    next_observations: ArrayLike | None = None,
    continuous: bool = False,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    quiet: bool = False,
    **flags: Any,
) -> Run:
    """Train a policy: `saqrl train` from Python. The run folder contains its page, index.html.

    data: a SPEC, a path or `Transitions`. Or give arrays with one row per step instead:
    observations (n, obs) and actions (n, act) in the robot's units, rewards (n), episode_ends (n),
    a mask of the last row of each episode, terminals (n), a mask of rows after which the task
    itself has ended. Without next_observations, the last row of a truncated episode is used only
    as the next observation of the row before. Without any data, demonstrations are collected in
    `env`.
    continuous: True trains the continuous counterpart, as --actions continuous does; by default
    the recipe may choose it; actions="quantized" (with arrays quantizer="vqvae") always trains on
    codes.
    out: the run folder; default: named as by the command. resume: resume the run in it.
    flags: those of `saqrl train`, for example chunk=8, eval_episodes=100, **{"agent.alpha": 1}.

    Raises ValueError, FileNotFoundError or ImportError with the command's one-line message.
    """
    if isinstance(actions, str):  # the command's flag --actions, not an array
        flags, actions = {"actions": actions, **flags}, None
    if continuous:
        flags = {"actions": "continuous", **flags}
    given = {
        "observations": observations,
        "actions": actions,
        "rewards": rewards,
        "terminals": terminals,
        "next_observations": next_observations,
    }
    arrays = {name: np.asarray(array) for name, array in given.items() if array is not None}
    log: Transitions | None = None
    if arrays or episode_ends is not None:
        if data is not None:
            raise ValueError("data and arrays are both given: give only one of them")
        log = _assembled(arrays, episode_ends)
    elif isinstance(data, Transitions):
        log = data
    elif data is not None:
        flags = {"dataset": os.fspath(data), **flags}
    if log is not None:
        flags = {"dataset": IN_MEMORY, **flags}
    reporter = Reporter(quiet=quiet)
    path = None if out is None else Path(out)
    older = path if path is not None and path.exists() else None
    if older is not None and not resume:
        refuse_existing(older)
    settings = settings_from(flags) if older is None else resumed(older, flags)
    if log is not None:
        settings.data.reading.require_honoured(IN_MEMORY, "of arrays", ())
        log = arranged(log, settings)
    if older is not None:
        finished = (older / "result.json").is_file()
        train(settings, older, data=log, resume=True, reporter=reporter)
        leave_page(older, log, reporter, film=not finished)
        return Run(older)
    settings, log, recipe = begun(settings, flags, path.parent if path else RUNS, reporter, log)
    path = path or default_out(settings)
    resume = resume and path.exists()
    finished = (path / "result.json").is_file()
    train(settings, path, data=log, recipe=recipe, resume=resume, reporter=reporter)
    leave_page(path, log, reporter, film=not finished)
    return Run(path)


def _assembled(arrays: Mapping[str, np.ndarray], episode_ends: ArrayLike | None) -> Transitions:
    """Arrays as a checked log; ValueError names what is missing or wrong."""
    if missing := [name for name in ("observations", "actions") if name not in arrays]:
        raise ValueError(
            f"{missing[0]} are missing: give observations and actions, one row per step"
        )
    if episode_ends is None:
        raise ValueError(
            "episode_ends is missing: give a mask with one value per row, true on the last row of "
            "each episode"
        )
    ends = np.asarray(episode_ends)
    if ends.shape != (len(arrays["actions"]),) or not np.isin(ends, (0, 1)).all():
        raise ValueError(
            f"episode_ends has shape {ends.shape}; expected a mask of {len(arrays['actions'])} "
            "values, true on the last row of each episode"
        )
    terminals = np.asarray(arrays.get("terminals", np.zeros(len(ends), bool)), bool)
    timeouts = ends.astype(bool) & ~terminals if terminals.shape == ends.shape else ends
    log = assemble({**arrays, "timeouts": timeouts}, source=IN_MEMORY)
    return replace(log, has_rewards="rewards" in arrays)
