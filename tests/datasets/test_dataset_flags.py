"""--dataset and --dataset.NAME mean the same in every command that reads data."""

import json

import pytest

from saqrl.commands import convert, inspect, quantize
from saqrl.commands.reading import with_one_dataset, with_positional_dataset
from saqrl.commands.train import default_out, read_flags
from saqrl.datasets import load_dataset
from tests.datasets.files import small_log


@pytest.fixture
def spec(tmp_path):
    """Three episodes of 6, 1 and 9 steps."""
    small_log(tmp_path)
    return f"npz:{tmp_path / 'small.npz'}"


@pytest.mark.parametrize(
    "words",
    [
        ["--dataset", "A", "2*B", "--agent", "bc"],
        ["--dataset", "A", "--agent", "bc", "--dataset", "2*B"],
        ["--dataset=A", "--agent", "bc", "--dataset=2*B"],
        ["--dataset", "A + 2*B", "--agent", "bc"],
    ],
)
def test_several_datasets_of_train_are_one_mixture(words):
    assert with_one_dataset(words) == ["--dataset", "A + 2*B", "--agent", "bc"]


def test_a_flag_of_the_reader_is_no_dataset():
    words = ["--dataset.keys", "a", "b", "--steps", "3"]
    assert with_one_dataset(words) == words


def test_where_the_dataset_is_positional_the_flag_takes_one_spec():
    words = ["--dataset", "A", "--dataset", "2*B", "out.npz"]
    assert with_positional_dataset(words) == ["A + 2*B", "out.npz"]


def test_a_flag_without_a_spec_is_refused():
    with pytest.raises(ValueError, match="--dataset: no SPEC after it"):
        with_one_dataset(["--dataset", "--agent", "bc"])


def test_train_keeps_the_mixture_in_its_settings(spec):
    asked, settings = read_flags(["--dataset", spec, f"2*{spec}", "--dataset.fraction", "0.5"])
    assert settings.dataset == f"{spec} + 2*{spec}"
    assert settings.reading.fraction == 0.5
    assert asked.out is None
    assert default_out(settings).name == "small+small-bc-seed0"


def told(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_inspect_reads_a_mixture(spec, capsys):
    assert inspect.main(["--dataset", spec, "--json", "--dataset", f"2*{spec}"]) == 0
    assert told(capsys)["episodes"] == 9


def test_convert_writes_a_mixture(spec, tmp_path):
    out = tmp_path / "mixed.npz"
    assert convert.main(["--dataset", spec, "--dataset", f"2*{spec}", str(out)]) == 0
    assert load_dataset(f"npz:{out}").num_episodes == 9


def test_quantize_reads_what_its_flags_say(spec):
    with pytest.raises(ValueError, match=r"no episode passes dataset\.min_return 1000"):
        quantize.main([spec, "--dataset.min-return", "1000"])
    with pytest.raises(ValueError, match=r"dataset\.mask says nothing to the format npz"):
        quantize.main(["--dataset", spec, f"--dataset=2*{spec}", "--dataset.mask", "train"])
