"""A codebook that keeps learning: encoder and decoder (`decoder`), and new codes (`grow`).

Rows for new codes exist from the first step, so that nothing is compiled again; `growth` masks them
and adds codes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from saqrl import nn
from saqrl.agents import CodedTransitions
from saqrl.policy import Policy
from saqrl.quantizers import QUANTIZERS, ActionBatch, ActionQuantizer, vqvae
from saqrl.quantizers import codebook as books
from saqrl.training import engine
from saqrl.training.codes import BLOCK, encode_all
from saqrl.training.members import ensemble
from saqrl.training.online import growth
from saqrl.training.online.codebook import Codebook
from saqrl.training.online.invalidation import distances, looked_at
from saqrl.training.online.replay import Experience, Replayed, State
from saqrl.training.online.settings import OnlineSettings
from saqrl.training.preparation import Prepared
from saqrl.training.stages import Learning

# Maximum number of far decisions considered per round, and of codes added per round.
CANDIDATES, MOST = 32, 4
# Number of codes added, of these the codes played in a later round, and of codes retired.
COUNTED = ("added", "executed", "retired")


class Codes(eqx.Module):
    """The part of the codebook that changes."""

    quantizer: vqvae.State
    recorded: Int[Array, " rows"]
    """The code of every offline row."""
    executed: Int[Array, " codes"]
    """The environment step at which each code was last played."""
    opened: Bool[Array, " codes"]
    """Codes that were added online."""
    tried: Bool[Array, " codes"]
    """Of these, the codes played in a later round than the one that added them."""
    counts: Int[Array, "3"]
    """The counts that `COUNTED` names."""


@dataclass(frozen=True)
class Refining(Replayed):
    """Its offline rows are `Experience`, whose codes are indices into `Codes.recorded`."""

    quantizer: Any = None
    every: int = 1
    """Gradient steps per step of encoder and decoder; 0: these do not learn."""

    def update(self, state: State, batch: Any, key: Key[Array, ""]) -> tuple[State, nn.Metrics]:
        """One step of the agent and, if due, one of encoder and decoder on the same batch."""
        draw_key, update_key = jax.random.split(key)
        kept = round(self.share * self.batch_size)
        codes, drawn = state.codebook, state.replay.draw(draw_key, self.batch_size - kept)
        offline = replace(batch, codes=codes.recorded[batch.codes])
        rows = self.mixed(offline, drawn, kept)
        coded = rows.coded(state.prior, self.quantizer.codes, spare=self.quantizer.spare > 0)
        agent, metrics = self.agent.update(state.agent, coded, update_key)
        state = self.cloned(state, coded, update_key)
        if self.every:
            quantizer = jax.lax.cond(
                state.updates % self.every == 0,
                lambda own: self.quantizer.refine(own, ActionBatch(rows.features, rows.actions)),
                lambda own: own,
                codes.quantizer,
            )
            codes = replace(codes, quantizer=quantizer)
        return replace(state, agent=agent, codebook=codes, updates=state.updates + 1), metrics


def adapted(quantizer: Any, asked: OnlineSettings) -> Any:
    """A run's quantizer for fine-tuning; ValueError if this kind cannot be adapted."""
    if asked.codebook == "frozen":
        return quantizer
    if not isinstance(quantizer, vqvae.VQVAE):
        raise ValueError(
            f"--codebook {asked.codebook} needs the quantizer vqvae, and the run has "
            f"{QUANTIZERS.name_of(quantizer)}: use --codebook frozen, or train with "
            "--quantizer vqvae"
        )
    more = 0
    if asked.codebook == "grow":
        more = asked.spare_codes or max(quantizer.codes // 2, 1)
    return replace(
        quantizer,
        codes=quantizer.codes + more,
        spare=quantizer.spare + more,
        codebook="average",
        revive_below=0.0,
        schedule="constant",
        learning_rate=asked.refine_rate,
    )


class Adapting(Codebook):
    """Codes whose encoder and decoder keep learning; `grow` also adds and retires codes."""

    def __init__(self, learning: Learning, asked: OnlineSettings, agent: Any):
        super().__init__(learning, asked, agent)
        settings, features = learning.settings, learning.features
        self.rows, self.count = features.padded, features.count
        self.model: vqvae.VQVAE = adapted(settings.quantizer, asked)
        self.more = self.model.codes - settings.quantizer.codes
        self.axes = growth.code_axes(self._example_agent)
        self.prior_axes = growth.code_axes(self._example_prior)
        self.moment_axes = growth.code_axes(self._example_moments)

    @property
    def noise(self) -> float:
        """With `grow` the default is the distance from codes that 5 % of recorded actions exceed.

        With less noise, hardly any executed action is far enough to become a code.
        """
        if self.asked.codebook != "grow" or self.asked.noise is not None:
            return super().noise
        return max(super().noise, self.coverage.limit)

    def _example(self, codes: int) -> CodedTransitions:
        seen = jnp.zeros((1, self.rows.features.shape[1]))
        log_prior, zero = jnp.zeros((1, codes)), jnp.zeros(1)
        code = jnp.zeros(1, jnp.int32)
        actions = jnp.zeros((1, self.rows.actions.shape[1]))
        return CodedTransitions(
            seen, code, zero, seen, zero, log_prior, log_prior, codes, actions=actions
        )

    def _example_agent(self, codes: int) -> Any:
        learner = ensemble(self.agent, self.learning.settings.members)
        return learner.init(jax.random.key(0), self._example(codes))

    def _example_prior(self, codes: int) -> nn.MLP:
        clone = self.learning.settings.prior
        return clone.prior(clone.init(jax.random.key(0), self._example(codes)))

    def _example_moments(self, codes: int) -> Any:
        """Moments of the prior's optimiser, if the prior learns."""
        return self.clone and self.clone.optimiser().init(self._example_prior(codes))

    @property
    def learner(self) -> Any:
        return Refining(
            **vars(super().learner), quantizer=self.model, every=self.asked.refine_every
        )

    def data(self) -> engine.Rows:
        rows = self.rows
        columns = (
            rows.features,
            np.arange(len(rows.features), dtype=np.int32),
            rows.rewards,
            rows.next_features,
            rows.discounts,
            rows.actions,
        )
        return engine.Rows(Experience(*map(jnp.asarray, columns)), self.count)

    def begin(self, agent: Any) -> State:
        learning, model = self.learning, self.model
        codec: Any = learning.codec
        old, size = learning.states["quantizer"], model.codes
        networks = vqvae.Model(old.networks.model.encoder, old.networks.model.decoder, None)
        live = None
        if model.spare:
            of_run = jnp.ones(codec.num_codes, bool) if codec.live is None else codec.live
            live = jnp.pad(of_run, (0, self.more))
        quantizer = vqvae.State(
            nn.init_state(networks, model.optimiser()),
            books.start_codebook(jnp.pad(codec.codes, ((0, self.more), (0, 0))), live=live),
            jnp.zeros(size),
            old.binary,
            old.step,
        )
        never = jnp.zeros(size, bool)
        executed, counts = jnp.zeros(size, jnp.int32), jnp.zeros(len(COUNTED), jnp.int32)
        codes = Codes(quantizer, learning.codes, executed, never, never, counts)
        prior: Any = growth.widened(learning.prior, self.prior_axes, self.more)
        agent = growth.widened(agent, self.axes, self.more)
        state = self._state(agent, prior, codes, self.rows.actions.shape[1])
        return state if live is None else self.closed(state, live)

    def codec(self, state: State) -> vqvae.VQCodec:
        return self.model.codec(state.codebook.quantizer)

    def quantizer(self, state: State) -> ActionQuantizer:
        return ActionQuantizer(self.codec(state), state.prior)

    def policy(self, state: State) -> Policy:
        policy, described = super().policy(state), QUANTIZERS.describe(self.model)
        return replace(policy, description={**policy.description, "quantizer": described})

    def after(self, state: State, rows: Prepared, count: int) -> tuple[State, dict[str, float]]:
        """Record the played codes, add new ones and, if due, encode everything again."""
        codec = self.codec(state)
        found = distances(codec, rows)
        metrics = {
            **self.coverage.judged(found),
            **{f"first_{n}": v for n, v in self.coverage.of(self.learning.codec, rows).items()},
        }
        padded = rows.padded(1 << (count - 1).bit_length())
        played = np.asarray(encode_all(codec, padded.action_batch()))[:count]
        metrics["executed_new"] = float(np.asarray(state.codebook.opened)[played].mean())
        state = self._noted(state, played)
        if self.asked.codebook == "grow":
            state = self._grown(state, rows, found)
        period, steps = self.asked.recode_every, int(state.steps)
        if steps // period > (steps - count) // period:
            state, changed = self._recoded(state)
            metrics |= changed
        if self.asked.codebook == "grow":
            metrics |= {f"codes_{n}": float(number) for n, number in self._counted(state).items()}
        return self.remembered(state, rows, count), metrics

    def _live(self, state: State) -> Bool[Array, " codes"]:
        live = self.codec(state).live
        return jnp.ones(self.model.codes, bool) if live is None else live

    def _counted(self, state: State) -> dict[str, int]:
        """The counts that `COUNTED` names, and the number of codes."""
        counted = dict(zip(COUNTED, np.asarray(state.codebook.counts).tolist(), strict=True))
        return {**counted, "live": int(np.asarray(self._live(state)).sum())}

    def _noted(self, state: State, played: Int[np.ndarray, " n"]) -> State:
        codes = state.codebook
        executed, tried = np.array(codes.executed), np.array(codes.tried)
        executed[played] = int(state.steps)
        now = np.isin(np.arange(len(tried)), played) & np.asarray(codes.opened)
        counts = _more(codes, executed=int((now & ~tried).sum()))
        return _with(state, executed=executed, tried=tried | now, counts=counts)

    def _grown(self, state: State, rows: Prepared, found: Float[np.ndarray, " looked_at"]) -> State:
        """Add codes for decisions that are far from every code, while there are free rows."""
        free = int((~np.asarray(self._live(state))).sum())
        places, first = np.unique(looked_at(rows), return_index=True)
        order = np.argsort(-found[first], kind="stable")[:CANDIDATES]
        far = places[order[found[first][order] > self.coverage.limit]]
        if not len(far) or not free:
            return state
        padded = np.resize(far, CANDIDATES)
        near = found[first][order][: len(far)]
        taken = jnp.asarray(rows.features[padded]), jnp.asarray(rows.actions[padded])
        latents, apart = _decoded_latents(self.codec(state), *taken)
        square = np.asarray(apart)[: len(far), : len(far)]
        limit = self.coverage.limit
        for place in growth.chosen(near, square, limit=limit, most=min(MOST, free)):
            state = self._opened(state, latents[place])
        return state

    def _opened(self, state: State, latent: Float[Array, " size"]) -> State:
        live = np.asarray(self._live(state))
        target = int(live.argmin())
        agent, prior, moments, quantizer = _opened(
            (state.agent, state.prior, state.moments, state.codebook.quantizer),
            latent,
            jnp.asarray(target, jnp.int32),
            agent=self.agent,
            axes=(self.axes, self.prior_axes, self.moment_axes),
        )
        codes = state.codebook
        executed, opened = np.array(codes.executed), np.array(codes.opened)
        tried, counts = np.array(codes.tried), _more(codes, added=1)
        executed[target], opened[target], tried[target] = int(state.steps), True, False
        state = replace(state, agent=agent, prior=prior, moments=moments)
        columns = {"executed": executed, "opened": opened, "tried": tried, "counts": counts}
        return _with(state, quantizer=quantizer, **columns)

    def _recoded(self, state: State) -> tuple[State, dict[str, float]]:
        """Retire unused codes, then encode every offline and replayed action again."""
        if self.asked.codebook == "grow":
            state = self._retired(state)
        codec, codes, replay = self.codec(state), state.codebook, state.replay
        offline = _encoded(codec, self.rows.features, self.rows.actions, len(self.rows.features))
        held = int(replay.length)
        online = np.array(replay.rows.codes)
        online[:held] = _encoded(codec, replay.rows.features, replay.rows.actions, held)
        changed = {
            "recoded_offline": _changed(codes.recorded, offline, self.count),
            "recoded_replay": _changed(replay.rows.codes, online, held),
            "recorded_code_error": float(distances(codec, self.known).mean()),
        }
        rows = replace(replay.rows, codes=jnp.asarray(online))
        state = replace(state, replay=replace(replay, rows=rows))
        return _with(state, recorded=offline), changed

    def _retired(self, state: State) -> State:
        codes, live = state.codebook, np.asarray(self._live(state))
        recorded = np.bincount(np.asarray(codes.recorded)[: self.count], minlength=len(live))
        idle = np.asarray(codes.executed) < int(state.steps) - self.asked.retire_after
        gone = live & idle & (recorded == 0)
        if not gone.any():
            return state
        left = jnp.asarray(live & ~gone)
        state = self.closed(state, left)
        quantizer = eqx.tree_at(lambda own: own.codebook.live, codes.quantizer, left)
        counts, opened = _more(codes, retired=int(gone.sum())), np.asarray(codes.opened) & ~gone
        return _with(state, quantizer=quantizer, opened=opened, counts=counts)

    def told(self, state: State, played: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        found = super().told(state, played)
        recoded = [record for record in played if "recoded_offline" in record]
        if played:  # the run's own codes on the same decisions
            names = ("first_code_error", "first_uncovered")
            found["last"] |= {name: played[-1][name] for name in names}
        found["recorded_after"] = float(distances(self.codec(state), self.known).mean())
        for name in ("recoded_offline", "recoded_replay"):
            found[name] = [record[name] for record in recoded]
        if self.asked.codebook == "grow":
            found |= self._counted(state)
        return found


def _with(state: State, **columns: Any) -> State:
    """The state with these columns of its codes replaced, with the same types."""
    codes = state.codebook
    for name, column in columns.items():
        if isinstance(column, np.ndarray):
            columns[name] = jnp.asarray(column, getattr(codes, name).dtype)
    return replace(state, codebook=replace(codes, **columns))


def _more(codes: Codes, **more: int) -> Int[np.ndarray, "3"]:
    return np.asarray(codes.counts) + np.asarray([more.get(name, 0) for name in COUNTED])


def _changed(old: Int[Array, " n"], new: Int[np.ndarray, " n"], count: int) -> float:
    """The share of the first `count` rows whose code has changed."""
    return float((np.asarray(old)[:count] != new[:count]).mean()) if count else 0.0


def _encoded(
    codec: vqvae.VQCodec, features: Any, actions: Any, count: int
) -> Int[np.ndarray, " count"]:
    """Codes of the first `count` rows, in blocks of one size, so that one program is compiled."""
    size, found = min(BLOCK, len(features)), []
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), len(features) - 1)
        batch = ActionBatch(jnp.asarray(features[rows]), jnp.asarray(actions[rows]))
        found.append(np.asarray(encode_all(codec, batch)))
    return np.concatenate([np.zeros(0, np.int32), *found])[:count]


@jax.jit
def _decoded_latents(
    codec: vqvae.VQCodec, features: Float[Array, "n features"], actions: Float[Array, "n act"]
) -> tuple[Float[Array, "n size"], Float[Array, "n n"]]:
    """Each row's latent; [i, j]: distance from row j's action to latent i decoded in its state."""
    latents = jax.vmap(type(codec).encoding, (None, 0, 0))(codec, features, actions)

    def apart(latent: Float[Array, " size"]) -> Float[Array, " n"]:
        decoded = jax.vmap(type(codec).decode_latent, (None, 0, None))(codec, features, latent)
        return jnp.sqrt(jnp.square(decoded - actions).mean(-1))

    return latents, jax.lax.map(apart, latents)


@partial(jax.jit, static_argnames=("agent", "axes"))
def _opened(
    state: tuple[Any, nn.MLP, Any, vqvae.State],
    latent: Float[Array, " size"],
    target: Int[Array, ""],
    *,
    agent: Any,
    axes: tuple[growth.Axes, growth.Axes, growth.Axes],
) -> tuple[Any, nn.MLP, Any, vqvae.State]:
    """Make `latent` the code of row `target`; Q and probabilities start as the nearest code's."""
    own, prior, moments, quantizer = state
    book = quantizer.codebook
    source = books.nearest_code(latent, book.codes, book.live)
    halve = partial(growth.halved, source=source, target=target)
    own = growth.shares_changed(agent, growth.copied(own, axes[0], source, target), halve)
    prior = halve(growth.copied(prior, axes[1], source, target))
    moments = growth.copied(moments, axes[2], source, target)
    codes = book.codes.at[target].set(latent)
    assert book.live is not None
    book = replace(book, codes=codes, sums=codes, live=book.live.at[target].set(True))
    return own, prior, moments, replace(quantizer, codebook=book)
