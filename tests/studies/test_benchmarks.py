"""What the benchmarks share, and an ablation that is what it says."""

import jax
import numpy as np
import pytest

from benchmarks.claims import SeenApart
from benchmarks.rows import fill, rows_of
from saqrl.quantizers import ActionBatch
from saqrl.quantizers.vqvae import VQVAE, UnconditionedVQVAE
from saqrl.training import engine


def test_a_cell_that_is_there_is_not_run_again(tmp_path, capsys):
    table, run = tmp_path / "rows.jsonl", []

    def cells(seeds):
        for seed in seeds:

            def measure(seed=seed):
                run.append(seed)
                return {"final": 10.0 * seed, "measure": "success, %"}

            yield {"set": "lift", "seed": seed}, measure

    fill(table, cells([0, 1]), listing=True)
    assert run == []
    assert not table.exists()
    fill(table, cells([0, 1]), listing=False)
    fill(table, cells([1, 2]), listing=False)
    assert run == [0, 1, 2]
    assert [row["final"] for row in rows_of(table)] == [0.0, 10.0, 20.0]
    assert {"set", "seed", "measure", "seconds_of_cell"} <= rows_of(table)[2].keys()
    assert "lift 2\n  20.0 success, % in 0 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scales", "wanted"), [((1.0, 1.0), VQVAE), ((0.0, 0.0), UnconditionedVQVAE)]
)
def test_a_state_that_both_see_or_neither_is_the_quantizer_of_that_name(scales, wanted):
    draw = np.random.default_rng(0)
    batch = ActionBatch(
        draw.normal(size=(300, 3)).astype(np.float32),
        draw.uniform(-1, 1, (300, 2)).astype(np.float32),
    )
    fields = {"steps": 30, "batch_size": 32, "hidden": (16,), "codes": 4}
    encoder, decoder = scales
    both = (
        SeenApart(**fields, encoder_scale=encoder, state_scale=decoder),
        wanted(**fields),
        SeenApart(**fields, encoder_scale=1.0 - encoder, state_scale=decoder),
    )
    coded, decoded = [], []
    for quantizer in both:
        *_, last = engine.intervals(quantizer, batch, jax.random.key(0), pauses=[30])
        codec = quantizer.codec(last.state)
        codes = jax.vmap(codec.nearest)(batch.observations, batch.actions)
        coded.append(np.asarray(codes))
        decoded.append(np.asarray(jax.vmap(codec.decode)(batch.observations, codes)))
    assert np.array_equal(coded[0], coded[1])
    assert np.array_equal(decoded[0], decoded[1])
    assert not np.array_equal(decoded[0], decoded[2])
