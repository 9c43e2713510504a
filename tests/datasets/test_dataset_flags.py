"""--dataset and --dataset.NAME mean the same in every command that reads data."""

import json
import shlex

import pytest

from saqrl.commands import convert, inspect, quantize
from saqrl.commands.parser import parse
from saqrl.commands.train import read_flags, read_words
from saqrl.datasets import load_dataset
from saqrl.training.train import default_out
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
    _, flags = read_words(words)
    assert flags == {"dataset": "A + 2*B", "agent": "bc"}


def test_a_flag_of_the_reader_is_no_dataset():
    _, flags = read_words(["--dataset.keys", "a", "b", "--steps", "3"])
    assert flags == {"dataset.keys": ["a", "b"], "steps": "3"}


def test_where_the_dataset_is_positional_the_flag_takes_one_spec():
    asked = parse(convert.Convert, ["--dataset", "A", "--dataset", "2*B", "out.npz"])
    assert (asked.dataset, asked.out) == ("A + 2*B", "out.npz")


def test_a_flag_without_a_spec_is_refused():
    with pytest.raises(ValueError, match="--dataset: no SPEC after it"):
        read_words(["--dataset", "--agent", "bc"])
    with pytest.raises(ValueError, match="--dataset: expected one argument"):
        parse(convert.Convert, ["--dataset", "--dataset.fraction", "0.5"])


def test_train_keeps_the_mixture_in_its_settings(spec):
    own, flags = read_words(["--dataset", spec, f"2*{spec}", "--dataset.fraction", "0.5"])
    settings, resumed = read_flags(own, flags)
    assert settings.data.dataset == f"{spec} + 2*{spec}"
    assert settings.data.reading.fraction == 0.5
    assert (own.out, resumed) == (None, False)
    assert default_out(settings).name == "small+small-bc-seed0"


def told(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_inspect_reads_a_mixture(spec, capsys):
    assert inspect.main(["--dataset", spec, "--json", "--dataset", f"2*{spec}"]) == 0
    assert told(capsys)["episodes"] == 9


def test_inspect_names_the_flags_that_it_was_given_for_train(spec, capsys):
    words = [spec, "--dataset.min-return", "-1", "--angles", "0", "1", "--json"]
    assert inspect.main(words) == 0
    shown = capsys.readouterr().err.split("next: saqrl train ")[1].splitlines()[0]
    own, flags = read_words(shlex.split(shown))
    settings, _ = read_flags(own, flags)
    assert settings.data.reading.min_return == -1
    assert (settings.data.dataset, settings.data.angles) == (spec, (0, 1))


def test_convert_writes_a_mixture(spec, tmp_path):
    out = tmp_path / "mixed.npz"
    assert convert.main(["--dataset", spec, "--dataset", f"2*{spec}", str(out)]) == 0
    assert load_dataset(f"npz:{out}").num_episodes == 9


def test_quantize_reads_what_its_flags_say(spec):
    with pytest.raises(ValueError, match=r"no episode passes dataset\.min_return 1000"):
        quantize.main([spec, "--dataset.min-return", "1000"])
    with pytest.raises(ValueError, match=r"the format npz does not use dataset\.mask"):
        quantize.main(["--dataset", spec, f"--dataset=2*{spec}", "--dataset.mask", "train"])
