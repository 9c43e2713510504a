"""How well codes and policies reproduce a log's actions, and warnings about unused codes."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from saqrl.datasets import Transitions
from saqrl.datasets.windows import windows
from saqrl.policy import Policy
from saqrl.quantizers import ActionQuantizer, Codec
from saqrl.training.codes import decode_all, encode_all, log_prior_of
from saqrl.training.preparation import Prepared

# Maximum number of rows of a log with which a policy's actions are compared.
ERROR_ROWS = 10_000
# A smaller decrease of the held-out error does not count as learning.
RELATIVE_IMPROVEMENT = 0.01
# Share of the codes that may encode no action before a note is printed.
UNUSED_SHARE = 0.25
# Share of unused codes that causes a warning during training.
DEAD_SHARE = 0.5


def reconstruction_error(codec: Codec, split: Prepared) -> float:
    """Squared error of decode(encode(action)), summed over dimensions, mean over a split."""
    data = split.action_batch()
    decoded = decode_all(codec, data.observations, encode_all(codec, data))
    return float(jnp.square(decoded - data.actions).sum(-1).mean())


def has_plateaued(errors: Sequence[tuple[int, float]], *, patience: int) -> bool:
    """Whether (step, held-out error) pairs have not improved by 1 % for `patience` steps.

    It depends only on recorded values, so that a resumed run decides like the original run.
    """
    best_step, best = 0, float("inf")
    for step, error in errors:
        if error < (1 - RELATIVE_IMPROVEMENT) * best:
            best_step, best = step, error
        elif step - best_step >= patience:
            return True
    return False


def codebook_notes(codes: Int[np.ndarray, " n"], num_codes: int) -> list[str]:
    """Notes on the use of the codes; empty if there is no problem."""
    used = len(np.unique(codes))
    if num_codes - used <= UNUSED_SHARE * num_codes:
        return []
    return [
        (
            f"{num_codes - used} of the {num_codes} codes are not used by any action in the "
            "data: use fewer codes (--quantizer.codes), or compare sizes with saqrl quantize"
        )
    ]


def dying_note(metrics: Mapping[str, float], step: int, *, steps: int, codes: int) -> str | None:
    """A warning during the quantizer's training; None if there is no problem or it is too early.

    Codes are counted in the moving average of their use, so the first tenth of steps is skipped.
    """
    used = metrics.get("codes_used")
    if used is None or step < steps / 10 or used >= (1 - DEAD_SHARE) * codes:
        return None
    return (
        f"{used:.0f} of {codes} codes are in use after {step:,} steps: the data may need no "
        "more (reduce --quantizer.codes), or codes collapsed (with vqvae and residual, "
        "--quantizer.revive-below reinitialises them)"
    )


def action_error(policy: Policy, log: Transitions) -> float:
    """Root mean square between the policy's greedy action and the log's, per state.

    As a fraction of the deviation of the log's actions, over all dimensions: 1 is the error of the
    mean action. Only the first action of a chunk counts. At most ERROR_ROWS rows are used.
    """
    rows = np.unique(np.linspace(0, len(log) - 1, min(len(log), ERROR_ROWS)).astype(np.int64))
    keys = jax.random.split(jax.random.key(0), len(rows))  # greedy: none of them is drawn from
    planned = policy.plan(windows(log, policy.history, rows), keys, act="greedy")[:, 0]
    acted = policy.action_range.to_unit(log.actions[rows]).astype(np.float64)
    missed = policy.action_range.to_unit(planned).astype(np.float64) - acted
    return float(np.sqrt(np.square(missed).sum(-1).mean() / total_variance(acted)))


def quantizer_report(
    quantizer: ActionQuantizer, split: Prepared, half_width: Float32[np.ndarray, " act"]
) -> dict[str, object]:
    """How well the codes reproduce the actions of a split.

    Errors are root mean squares per action dimension in the environment's units, over all steps
    of a chunk; prior accuracy is how often the most probable code is the action's own.
    """
    data = split.action_batch()
    codes = encode_all(quantizer.codec, data)
    decoded = np.asarray(decode_all(quantizer.codec, data.observations, codes))
    width = len(half_width)
    actions = split.actions.reshape(-1, width) * half_width
    errors = decoded.reshape(-1, width) * half_width - actions
    return {
        "error": [float(value) for value in np.sqrt(np.square(errors).mean(0))],
        "error_per_deviation": float(
            np.sqrt(np.square(errors).sum(-1).mean() / total_variance(actions))
        ),
        **code_numbers(quantizer, data.observations, codes),
    }


def total_variance(actions: Float[np.ndarray, "n act"]) -> float:
    """Variance summed over dimensions, above 0 even where nothing varies."""
    return max(float(actions.astype(np.float64).var(0).sum()), 1e-12)


def code_numbers(
    quantizer: ActionQuantizer,
    observations: Float[Array, "n features"],
    codes: Int[Array, " n"] | Int[np.ndarray, " n"],
) -> dict[str, float | int]:
    """Which codes a split's actions use, and how well the prior predicts them."""
    usage = np.bincount(np.asarray(codes), minlength=quantizer.num_codes)
    share = usage[usage > 0] / usage.sum()
    log_prior = np.asarray(log_prior_of(quantizer.prior, observations))
    chosen = log_prior[np.arange(len(codes)), np.asarray(codes)]
    return {
        "codes_used": len(share),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        "prior_accuracy": float((log_prior.argmax(-1) == np.asarray(codes)).mean()),
        "prior_cross_entropy": float(-chosen.mean()),
    }
