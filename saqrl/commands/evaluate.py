"""`saqrl evaluate`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from saqrl.commands.output import print_json, say
from saqrl.commands.parser import Word, parse
from saqrl.datasets.formats.writers import check_destination
from saqrl.registry import Act
from saqrl.training.progress import Reporter
from saqrl.training.summary import act_words, score_words


@dataclass
class Evaluate:
    """Play a run's policy in its environment."""

    run: Word
    """run folder or policy folder"""
    episodes: int = 50
    """episodes to play"""
    step: int | None = None
    """gradient step of the policy, for runs with --keep-every; default: the last"""
    act: Act | None = None
    """greedy, sample or mean (of the decoded actions); default: as in the run"""
    act_temperature: float | None = None
    """temperature of sample and mean; below 1: closer to greedy; default: as in the run"""
    seed: int = 0
    """random seed of initial states and sampling; never overlaps with that of collected data"""
    env: str | None = None
    """environment id; default: the run's"""
    env_kwargs: str | None = None
    """the environment's keyword arguments as a JSON object"""
    video: str | None = None
    """write the first episode to this file (.mp4 or .gif)"""
    record: str | None = None
    """write all episodes as a data set to this new file (.npz); its initial states are not those of
    evaluations"""
    offline: bool = False
    """estimate the policy's value from the run's data (FQE), without an environment"""
    offline_steps: int = 20_000
    """gradient steps of the estimate"""
    dataset: str | None = None
    """SPEC of the run's data, if they were moved (for --offline)"""
    json: bool = False
    """last line of stdout: the result as JSON"""


def main(arguments: Sequence[str]) -> int:
    asked = parse(Evaluate, arguments)
    if asked.record is not None and not asked.offline:
        check_destination(Path(asked.record), flag="--record")
    from saqrl.policy.storage import load_policy
    from saqrl.run import play
    from saqrl.training.run_folder import policy_folder, read_result

    path, reporter = Path(asked.run), Reporter()
    if asked.offline:
        return _offline(asked, path, reporter)
    alone = (path / "policy.json").is_file()  # a policy's own folder, whatever became of its run
    trained = {} if alone else read_result(path)
    policy = load_policy(path if alone else policy_folder(path, asked.step))
    if asked.env is None and policy.environment is None:
        skill = trained.get("held_out_skill")
        known = "" if skill is None else f". Its skill on held-out episodes is {100 * skill:.0f} %"
        shown = "" if alone else f"; saqrl view {path} shows recorded against predicted actions"
        raise ValueError(
            f"{path} was trained without an environment: give one with --env{known}{shown}"
        )
    scores = play(
        policy,
        asked.episodes,
        act=asked.act,
        act_temperature=asked.act_temperature,
        env=asked.env,
        env_kwargs=asked.env_kwargs,
        seed=asked.seed,
        quiet=False,
        video=asked.video,
        record=asked.record,
    )
    summary = asdict(scores)
    if asked.video is not None:
        say(f"video: {asked.video}")
    say(f"{score_words(summary)}  ({asked.episodes} episodes, {act_words(summary)})")
    if asked.record is not None:
        say(f"recorded: {asked.record}, from other initial states (saqrl inspect {asked.record})")
    if asked.json:
        about = {name: trained.get(name) for name in ("agent", "actions", "dataset")}
        environment = asked.env or (policy.environment and policy.environment.id)
        beside = {
            "gradient_steps": trained.get("gradient_steps"),
            "wall_seconds": round(reporter.elapsed, 2),
        }
        own = {"run": str(path), **about, "env": environment, "step": asked.step}
        own |= {"record": asked.record}
        print_json(own | summary | beside)
    return 0


def _offline(asked: Evaluate, path: Path, reporter: Reporter) -> int:
    """The value of the policy by fitted Q evaluation on the run's own data."""
    given = {"--video": asked.video, "--record": asked.record, "--env": asked.env}
    if wrong := [flag for flag, value in given.items() if value is not None]:
        raise ValueError(
            f"{wrong[0]} needs an environment and --offline uses none: remove one of them"
        )
    if asked.offline_steps < 1:
        raise ValueError(f"offline-steps is {asked.offline_steps}; it must be at least 1")
    from saqrl.studies.fitted_q import FittedQ
    from saqrl.studies.ranking import value_run
    from saqrl.training.train import saved_settings

    settings = saved_settings(path)
    policy, found = value_run(
        path,
        step=asked.step,
        act=asked.act,
        act_temperature=asked.act_temperature,
        algorithm=FittedQ(steps=asked.offline_steps),
        dataset=asked.dataset,
        seed=asked.seed,
        reporter=reporter,
    )
    way = {"act": policy.default_act, "act_temperature": policy.act_temperature}
    say(
        f"value {found.value:.4g} [{found.low:.4g}, {found.high:.4g}] over "
        f"{found.initial_states} initial states, {found.spread:.2g} between the networks; the "
        f"data's own episodes {found.data_value:.4g}  (discount {settings.agent.discount}, "
        f"{act_words(way)})"
    )
    if asked.json:
        print_json(
            {
                "run": str(path),
                "agent": settings.agent_name,
                "dataset": settings.data.dataset,
                "step": asked.step,
                **way,
                "discount": settings.agent.discount,
                "offline": asdict(found),
                "gradient_steps": asked.offline_steps,
                "wall_seconds": round(reporter.elapsed, 2),
            }
        )
    return 0
