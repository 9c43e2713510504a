"""Policies in the order of their FQE estimates: of runs, and along a run.

An estimate is kept as offline.json, in the run's folder or in that of a policy which the run kept
at an earlier step, and used again where the same is asked.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from saqrl.arrays import write_atomically
from saqrl.datasets.naming import distinct_names
from saqrl.policy import Act, Policy
from saqrl.policy.storage import load_policy
from saqrl.records import NUMBER, OBJECT, read_record, require
from saqrl.studies.fitted_q import FittedQ, PolicyValue, evaluate_offline
from saqrl.studies.statistics import rank_correlation
from saqrl.studies.table import agent_evaluations
from saqrl.training.data import load_training_data, training_spec
from saqrl.training.progress import Reporter
from saqrl.training.run_folder import kept_steps, policy_folder, read_config, read_result
from saqrl.training.train import saved_settings

OFFLINE = "offline.json"
# Two orders of fewer runs agree or disagree by chance.
FEWEST_CORRELATED = 4


@dataclass(frozen=True)
class Valued:
    """A policy of a finished run with the estimate of its value."""

    run: str
    step: int | None
    """Of the agent, where the run kept this policy before its end; None: the last."""
    task: str
    act: Act
    discount: float
    estimate: PolicyValue
    return_mean: float | None
    """In the environment, where the policy was played in one."""

    @property
    def name(self) -> str:
        return self.run if self.step is None else f"{self.run}, step {self.step}"


class LeftOut(NamedTuple):
    run: str
    reason: str


def value_run(
    run: Path,
    *,
    act: Act | None,
    act_temperature: float | None = None,
    algorithm: FittedQ,
    seed: int,
    reporter: Reporter,
    step: int | None = None,
    dataset: str | None = None,
) -> tuple[Policy, PolicyValue]:
    """A run's policy as it acts and what that is worth, estimated now and kept beside it.

    `dataset` says where the run's data lie now.
    ValueError where the policy or its data do not allow it.
    """
    settings, policy = saved_settings(run), load_policy(policy_folder(run, step))
    policy = policy.acting(act, act_temperature)
    act = policy.default_act
    data = load_training_data(run, settings, policy, dataset=dataset)
    found = evaluate_offline(
        data, settings, policy, act=act, algorithm=algorithm, seed=seed, reporter=reporter
    )
    record = _question(act, policy.act_temperature, algorithm, seed) | {"estimate": asdict(found)}
    write_atomically(_estimate_file(run, step), (json.dumps(record, indent=2) + "\n").encode())
    return policy, found


def value_runs(
    folder: Path, *, algorithm: FittedQ, seed: int, reporter: Reporter
) -> tuple[list[Valued], list[LeftOut]]:
    """The policies of every finished run below `folder`, the best first within its data.

    And the runs that are left out, with the reason.
    """
    valued, left_out = [], []
    runs = [result.parent for result in sorted(folder.rglob("result.json"))]
    settings_of = {run: saved_settings(run) for run in runs}
    specs = {run: training_spec(run, settings) for run, settings in settings_of.items()}
    named = named_data(specs)
    for run, settings in settings_of.items():
        shown = str(run.relative_to(folder))
        if not settings.quantized:
            reason = "its actions are continuous: there is no sum over codes"
            left_out.append(LeftOut(shown, reason))
            continue
        summary = read_result(run)
        returns: dict[int | None, float | None] = {None: summary["return_mean"]}
        returns |= {r["step"]: r["return_mean"] for r in agent_evaluations(run)}
        question: dict[str, Any] = {
            "act": summary["act"],
            "act_temperature": summary.get("act_temperature") or 1.0,
            "algorithm": algorithm,
            "seed": seed,
        }
        for step in (*kept_steps(run), None):
            found = kept_estimate(run, step=step, **question)
            try:
                if found is None:
                    reporter.say(f"{shown}:" if step is None else f"{shown}, step {step}:")
                    _, found = value_run(run, step=step, reporter=reporter, **question)
            except (ValueError, FileNotFoundError) as error:
                left_out.append(LeftOut(shown, str(error)))
                break
            valued.append(
                Valued(
                    run=shown,
                    step=step,
                    task=named[run],
                    act=summary["act"],
                    discount=settings.agent.discount,
                    estimate=found,
                    return_mean=returns.get(step),
                )
            )
    return sorted(valued, key=lambda v: (v.task, v.discount, -v.estimate.value)), left_out


def named_data(specs: Mapping[Path, str]) -> dict[Path, str]:
    """The name of each run's data, with their size where runs read different parts of one file."""
    named = distinct_names(specs.values())
    data = {run: read_config(run).get("data") or {} for run in specs}
    parts = {(spec, data[run].get("sha256")) for run, spec in specs.items()}
    shared = [spec for spec, _ in parts]
    return {
        run: named[spec]
        + (f", {data[run].get('episodes', 0):,} episodes" if shared.count(spec) > 1 else "")
        for run, spec in specs.items()
    }


def kept_estimate(
    run: Path,
    *,
    act: Act,
    act_temperature: float = 1.0,
    algorithm: FittedQ,
    seed: int,
    step: int | None = None,
) -> PolicyValue | None:
    """What offline.json holds, if it answers this question."""
    file = _estimate_file(run, step)
    if not file.is_file():
        return None
    record = read_record(file, {"estimate": OBJECT})
    found = record.pop("estimate")
    if record != _question(act, act_temperature, algorithm, seed):
        return None
    names = [field.name for field in fields(PolicyValue)]
    require(found, dict.fromkeys(names, NUMBER), where=f"{file}, estimate")
    return PolicyValue(**{name: found[name] for name in names})


def comparable(valued: Iterable[Valued]) -> dict[tuple[str, float], list[Valued]]:
    """Runs by data and discount: values of others have nothing to do with each other."""
    groups: dict[tuple[str, float], list[Valued]] = {}
    for one in valued:
        groups.setdefault((one.task, one.discount), []).append(one)
    return groups


def played(runs: Iterable[Valued]) -> list[Valued]:
    """Those with a return in an environment."""
    return [v for v in runs if v.return_mean is not None]


def correlation(runs: Iterable[Valued]) -> float | None:
    """Spearman's rho of the estimates with the returns in the environment.

    None where too few were played in one, or all returns are equal.
    """
    seen = played(runs)
    returns = [float(v.return_mean or 0) for v in seen]
    if len(seen) < FEWEST_CORRELATED or len(set(returns)) == 1:
        return None
    return rank_correlation([v.estimate.value for v in seen], returns)


def _estimate_file(run: Path, step: int | None) -> Path:
    return (run if step is None else policy_folder(run, step)) / OFFLINE


def _question(act: Act, act_temperature: float, algorithm: FittedQ, seed: int) -> dict[str, Any]:
    plain = json.loads(json.dumps(asdict(algorithm)))
    return {"act": act, "act_temperature": act_temperature, "seed": seed, "algorithm": plain}
