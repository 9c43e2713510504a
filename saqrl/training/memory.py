"""Whether a training fits into memory, said before it begins."""

import itertools

import jax

from saqrl.datasets import Transitions
from saqrl.datasets.budget import free_bytes
from saqrl.training.preparation import part_rows
from saqrl.training.settings import Settings

GIBIBYTE = 2**30
# The states of an interval: what goes in, what comes out, the gradients between them.
STATE_COPIES = 3


def predicted_bytes(settings: Settings, data: Transitions) -> int:
    """Bytes that a run takes at its widest stage: its data and its networks.

    Both are lower bounds: activations and the host's own copy of the log come on top.
    """
    part = part_rows(data, settings)
    rows = part or len(data)
    features = settings.features.history * (data.observations.shape[1] + len(data.angles))
    acted = data.actions.shape[1] * settings.features.chunk
    columns = 2 * features + 3  # rewards, discounts, codes
    if settings.quantized:
        columns += max(2 * settings.quantizer.codes, acted)
    else:
        columns += 2 * acted
    tables = 1 if part is None else 2  # with the part that is read ahead
    return 4 * rows * columns * tables + STATE_COPIES * _state_bytes(settings, features, acted)


def _state_bytes(settings: Settings, features: int, acted: int) -> int:
    """Of the larger of quantizer and agent: networks of their widths, with Adam's two moments."""
    largest = 0
    for algorithm in (settings.quantizer, settings.agent):
        outputs = max(acted, settings.quantizer.codes)
        hidden = getattr(algorithm, "hidden", ())
        widths = [features + acted, *hidden, outputs]
        weights = sum(a * b for a, b in itertools.pairwise(widths))
        networks = 2 * getattr(algorithm, "critics", 1) + 1
        networks *= settings.members if algorithm is settings.agent else 1
        largest = max(largest, 4 * 3 * networks * weights)
    return largest


def available_bytes() -> int | None:
    """What the device that trains has left; None where nobody knows."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return free_bytes()


def require_memory(settings: Settings, data: Transitions) -> None:
    """ValueError with the prediction where there is not enough."""
    available = available_bytes()
    needed = predicted_bytes(settings, data)
    if available is None or needed <= available:
        return
    raise ValueError(
        f"this training needs about {needed / GIBIBYTE:.1f} GiB, and "
        f"{available / GIBIBYTE:.1f} GiB are free: stream the data with --stream-rows, or "
        "use less with --data-episodes"
    )
