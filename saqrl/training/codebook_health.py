"""Is a quantizer healthy, and has it learned what it will?"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from saqrl.quantizers import Codec
from saqrl.training.features import Prepared, decode_all, encode_all

# Of the held-out error: less than this does not count as learning.
RELATIVE_IMPROVEMENT = 0.01
# Share of the codes that may stand for nothing before it is said.
UNUSED_SHARE = 0.25
# Share that is worth a warning while codes may still be moved.
DEAD_SHARE = 0.5


def reconstruction_error(codec: Codec, split: Prepared) -> float:
    """Squared error of decode(encode(action)), summed over dimensions, mean over a split."""
    data = split.action_batch()
    decoded = decode_all(codec, data.observations, encode_all(codec, data))
    return float(jnp.square(decoded - data.actions).sum(-1).mean())


def has_plateaued(errors: Sequence[tuple[int, float]], *, patience: int) -> bool:
    """Whether (step, held-out error) pairs have not improved by 1 % for `patience` steps.

    A function of what is on record alone, so that a resumed run decides as the run before it.
    """
    best_step, best = 0, float("inf")
    for step, error in errors:
        if error < (1 - RELATIVE_IMPROVEMENT) * best:
            best_step, best = step, error
        elif step - best_step >= patience:
            return True
    return False


def codebook_notes(codes: Int[np.ndarray, " n"], num_codes: int) -> list[str]:
    """What a person should know about the use of the codes; empty when all is well."""
    used = len(np.unique(codes))
    if num_codes - used <= UNUSED_SHARE * num_codes:
        return []
    return [
        f"{num_codes - used} of the {num_codes} codes stand for no action of the data: ask for "
        "fewer codes (--quantizer.codes), or compare sizes with saqrl quantize"
    ]


def dying_note(metrics: Mapping[str, float], step: int, *, steps: int, codes: int) -> str | None:
    """A warning while the quantizer still learns; None when all is well or it is too early to say.

    Codes are counted in the moving average of their use, so the first tenth of the steps is left.
    """
    used = metrics.get("codes_used")
    if used is None or step < steps / 10 or used >= (1 - DEAD_SHARE) * codes:
        return None
    return (
        f"{used:.0f} of {codes} codes are in use after {step:,} steps: the data may have no more "
        "(--quantizer.codes), or codes died (of vqvae and residual, --quantizer.revive-below "
        "brings them back)"
    )
