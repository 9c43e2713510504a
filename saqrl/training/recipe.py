"""The settings that a log asks for, each with its reason in one line.

Only numbers of the log decide: never its name, its format or its environment's. What somebody
says with a flag is taken as it is, and what follows from it follows. Nothing here imports JAX
until settings are built, so that `saqrl inspect` can tell the same choices.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from saqrl.datasets import Transitions, best_episodes
from saqrl.datasets.audit.behaviour import Behaviour, behaviour
from saqrl.datasets.audit.findings import codes_for, likely_angles
from saqrl.datasets.audit.quality import quality
from saqrl.datasets.errors import counted
from saqrl.datasets.statistics import blocks
from saqrl.registry import BASELINES
from saqrl.training.flags import canonical, known_flags, typed
from saqrl.training.settings import Settings

# Spread of the returns over their mean size from which quality counts as mixed, and the steps
# that values need to be learned from.
MIXED_RETURNS, STEPS_FOR_VALUES = 0.5, 50_000
# Steps of the best episodes from which cloning them alone is worth more than values of all. Returns
# that go on from one episode to the next (correlation above IN_TURN) say that some of what acted
# was better; where one policy was lucky, or had easy starts (correlation above BY_START), its best
# episodes are not worth more.
STEPS_TO_CLONE, IN_TURN, BY_START = 30_000, 0.3, 0.3
# Agents that learn no values; flags that choose episodes themselves.
CLONING = ("bc", "gaussian", "gmm")
CHOSEN_EPISODES = ("data_best", "dataset.min_return", "dataset.min_reward")
# Rewards of at most so many values count what has been solved. Where the best of them is reached in
# fewer episodes than this share, most were recorded for something else.
STAGES, REACHED = 20, 0.5
# A reward that is 0 on more than this share of the steps is sparse.
SPARSE = 0.9
# An ensemble evens out what single networks make of few steps: of codes below STEPS_FOR_ONE, of
# regression only where so few are left that a strong decay keeps them from learning the noise.
MEMBERS, STEPS_FOR_ONE = 3, 50_000
DECAY, STEPS_TO_DECAY = 0.3, 2_000
# Regression's gradient steps, and the steps of a log below which they are enough.
SHORT, STEPS_TO_TRAIN = 5_000, 20_000


@dataclass(frozen=True)
class Choice:
    """A flag that the recipe sets, and why."""

    flag: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.flag.replace('_', '-')} {self.words}: {self.reason}"

    @property
    def words(self) -> str:
        """The value as it is typed."""
        return ",".join(map(str, self.value)) if isinstance(self.value, tuple) else str(self.value)


def applies(said: Mapping[str, Any]) -> bool:
    """Whether flags ask for the recipe: by default where there are data, and no preset is named."""
    named = {canonical(name): value for name, value in said.items()}
    asked = typed("recipe", str | None, named.get("recipe"))
    if asked not in (None, "auto", "plain"):
        raise ValueError(f"recipe is {asked!r}; 'auto' (chosen from the data) or 'plain'")
    main_job = named.get("dataset") is None and named.get("env") is None
    return asked == "auto" or (asked is None and named.get("preset") is None and not main_job)


def recommended(
    log: Transitions, said: Mapping[str, Any]
) -> tuple[Settings, Transitions, tuple[Choice, ...]]:
    """The settings for a log, the log as these read it, and every choice.

    `said` are the flags as `presets.settings_from` takes them; none of them is changed, and
    choices that the algorithms said do not have are left out.
    """
    from saqrl.training.presets import settings_from

    named = {canonical(name): value for name, value in said.items() if value is not None}
    kept: dict[str, Choice] = {}
    for choice in choices(log, named):
        settings = settings_from(named | {each.flag: each.value for each in kept.values()})
        if choice.flag in known_flags(settings):
            kept[choice.flag] = choice
    if "angles" in kept:
        log = replace(log, angles=kept["angles"].value)
    if "data_best" in kept:
        log = best_episodes(str(named.get("dataset")), log, kept["data_best"].value)
    settings = settings_from(named | {choice.flag: choice.value for choice in kept.values()})
    return settings, log, tuple(kept.values())


def choices(
    log: Transitions, said: Mapping[str, Any], found: Behaviour | None = None
) -> tuple[Choice, ...]:
    """What the log asks for beside what was said; one that needs another comes after it.

    `found` is the log's behaviour where it has been measured already.
    """
    if not said.get("angles") and (turning := likely_angles(log)):
        log = replace(log, angles=turning)
        first = [Choice("angles", turning, "it jumps by a full turn inside an episode")]
    else:
        first = []
    if best := _worth_cloning(log, said):
        first.append(best)
        log, found = best_episodes(str(said.get("dataset")), log, best.value), None
    known = {**said, **{choice.flag: choice.value for choice in first}}
    recipe = _Recipe(log, found or behaviour(log), known)
    return tuple(choice for choice in (*first, *recipe) if choice.flag not in said)


def _worth_cloning(log: Transitions, said: Mapping[str, Any]) -> Choice | None:
    """The best episodes, where returns are mixed and these are enough to clone."""
    asked = said.get("agent", "bc") not in CLONING or any(flag in said for flag in CHOSEN_EPISODES)
    mapped = isinstance(log.observations, np.memmap)  # the best may be more than memory holds
    if asked or mapped or not log.has_rewards or _spread(log) < MIXED_RETURNS:
        return None
    found = quality(log)
    luck = found.in_turn <= IN_TURN or found.by_start > BY_START
    if luck or found.steps < STEPS_TO_CLONE or stages_of(log).count:
        return None
    alike = f"{found.episodes:,} of {counted(log.num_episodes, 'episode')} are as good as the best"
    enough = f"their {found.steps:,} steps are enough to clone"
    return Choice("data_best", found.share, f"{alike}; {enough}")


def _spread(log: Transitions) -> float:
    """Of the returns, over their mean size."""
    returns = log.episode_returns.astype(np.float64)
    return float(returns.std() / max(abs(float(returns.mean())), 1e-12))


@dataclass(frozen=True)
class Stages:
    """What a reward of few different values says of its task; of any other reward all are 0."""

    count: int = 0
    """Number of different values."""
    highest: float = 0.0
    reached: float = 0.0
    """Share of the episodes that reach the highest."""
    paid: float = 0.0
    """Share of the steps whose reward is not 0."""

    @property
    def sparse(self) -> bool:
        """Whether the only reward is for success, and seldom paid."""
        return self.count == 2 and self.highest > 0 and self.paid < 1 - SPARSE


def stages_of(log: Transitions) -> Stages:
    """Of at most STAGES values, all gains or all costs: a win and a loss count no parts."""
    levels = np.zeros(0)
    for block in blocks(log.rewards):
        levels = np.union1d(levels, np.round(block, 4))
        if len(levels) > STAGES:
            return Stages()
    if not log.has_rewards or levels[0] < 0 < levels[-1]:
        return Stages()
    best = np.round(np.maximum.reduceat(log.rewards, log.episode_starts), 4)
    return Stages(
        len(levels),
        float(levels[-1]),
        float((best == levels[-1]).mean()),
        float((log.rewards != 0).mean()),
    )


class _Recipe:
    """The rules in their order; each sees what was said, and chosen before it."""

    def __init__(self, log: Transitions, found: Behaviour, known: dict[str, Any]):
        self.log, self.found, self.known = log, found, known
        self.spread = _spread(log)
        self.mixed = log.has_rewards and self.spread >= MIXED_RETURNS
        self.stages = stages_of(log)
        self.unsolved = self.stages.count > 1 and self.stages.reached < REACHED
        self.demonstrations = found.has_choices or not found.known

    def __iter__(self) -> Iterator[Choice]:
        for rule in (
            self.agent,
            self.actions,
            self.chunk,
            self.inputs,
            self.values,
            self.codes,
            self.acting,
            self.few_steps,
        ):
            for choice in rule():
                self.known.setdefault(choice.flag, choice.value)
                yield choice

    @property
    def quantized(self) -> bool:
        return self.known.get("actions", "quantized") == "quantized"

    def agent(self) -> Iterator[Choice]:
        log, episodes = self.log, counted(self.log.num_episodes, "episode")
        if float(self.known.get("data_best", 1)) < 1:
            yield Choice("agent", "bc", "the best episodes are cloned")
            return
        reason = f"returns of {episodes} differ by {100 * self.spread:.0f} % of their mean"
        if self.unsolved and not self.mixed:
            reason = f"{100 * self.stages.reached:.0f} % of {episodes} reach the highest reward"
        if not log.has_rewards:
            yield Choice("agent", "bc", "the data have no rewards")
        elif not (self.mixed or self.unsolved):
            most = f"less than the {100 * MIXED_RETURNS:.0f} % from which values are learned"
            yield Choice("agent", "bc", f"{reason}, {most}: clone them")
        elif len(log) < STEPS_FOR_VALUES:
            few = f"{len(log):,} steps are too few to learn values from"
            yield Choice("agent", "bc", f"{reason}, but {few} (under {STEPS_FOR_VALUES:,})")
        else:
            yield Choice("agent", "iql", reason)

    def actions(self) -> Iterator[Choice]:
        codes = any(name.startswith(("quantizer", "prior")) for name in self.known)
        if not codes and not self.demonstrations and self._has_counterpart():
            noise = "in one state actions differ by noise alone, which regression averages out"
            yield Choice("actions", "continuous", noise)

    def _has_counterpart(self) -> bool:
        """Whether the agent is there for continuous actions, with every field that was said."""
        name = self.known["agent"]
        own = [flag.partition(".")[2] for flag in self.known if flag.startswith("agent.")]
        if name not in BASELINES or not own:
            return name in BASELINES
        return set(own) <= {each.name for each in fields(BASELINES.load(name))}

    def chunk(self) -> Iterator[Choice]:
        found, rate = self.found, self.log.control_rate
        if found.spread == 0:
            yield Choice("chunk", 1, "assumed: actions are equal wherever states are")
        elif not found.known:
            few = "too few episodes pass through the same states to tell more"
            yield Choice("chunk", 1, f"assumed: {few}")
        elif not found.has_choices:
            yield Choice("chunk", 1, "no choice lasts longer than its step")
        else:
            steps = found.chunk(rate)
            over = f"{steps} steps" + (f" ({steps / rate:.1f} s at {rate:g} Hz)" if rate else "")
            yield Choice("chunk", steps, f"a way that was chosen is kept for {over}")

    def inputs(self) -> Iterator[Choice]:
        if self.known["agent"] != "bc":
            yield Choice("feature_deviation", 1.0, "values change quickly with the state")
        elif self.demonstrations and self.quantized:
            yield Choice("feature_deviation", 0.3, "choices change quickly with the state")

    def values(self) -> Iterator[Choice]:
        if self.known["agent"] == "iql" and self.quantized and int(self.known["chunk"]) > 1:
            if self.stages.count > 2:
                parts = f"the reward has {self.stages.count} values, as of a task of several parts"
                together = "the data seldom solve all of them in one episode"
                yield Choice("agent.expectile", 0.9, f"{parts}; {together}")
                yield Choice("agent.discount", 0.995, f"{parts}; the last reward is far away")
            else:
                noisy = "results of several steps are noisy; a higher expectile overfits noise"
                yield Choice("agent.expectile", 0.7, noisy)
            scaled = self.known.get("reward_scale", "none") != "none"
            if self.stages.sparse and not scaled and "agent.temperature" not in self.known:
                few = f"only {100 * self.stages.paid:.1f} % of the steps have a reward"
                yield Choice("reward_scale", "none", f"{few}; scaling up lets errors of Q decide")
                yield Choice(
                    "agent.temperature", 0.1 * self.stages.highest, f"{few}; values differ little"
                )
            else:
                yield Choice("agent.temperature", 0.3, "prefers the better of several ways")
            share = "near codes share what is known of what their actions lead to"
            yield Choice("agent.q_of", "actions", share)

    def codes(self) -> Iterator[Choice]:
        if self.quantized:
            chunk = int(self.known["chunk"])
            codes, decisions = codes_for(len(self.log), chunk), len(self.log) // chunk
            reason = f"{decisions:,} decisions, {decisions / codes:.0f} a code"
            yield Choice("quantizer.codes", codes, reason)

    def acting(self) -> Iterator[Choice]:
        if not self.quantized:
            return
        yield Choice("act", "sample", "one of several right actions has to be chosen")
        older = self.known.get("agent") == "bc" and "agent.temperature" in self.known
        if not older:  # it was said, by the flag's older name
            yield Choice("act_temperature", 0.5, "prefers actions that are frequent in the data")

    def few_steps(self) -> Iterator[Choice]:
        steps = f"{len(self.log):,} steps"
        if len(self.log) < STEPS_TO_DECAY and self.known["agent"] == "bc":
            yield Choice("agent.weight_decay", DECAY, f"{steps}: a network would learn their noise")
        elif not self.quantized and self.known["agent"] == "bc" and len(self.log) < STEPS_TO_TRAIN:
            yield Choice("steps", SHORT, f"{steps}: more gradient steps would learn their noise")
        if len(self.log) < (STEPS_FOR_ONE if self.quantized else STEPS_TO_DECAY):
            yield Choice("members", MEMBERS, f"{steps} leave a single network uncertain")
