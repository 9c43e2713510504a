"""What a command says last: one line for what nobody foresaw, and a next step that works."""

import importlib.util
import os
import shlex

import jax
import pytest

from saqrl.cli import keep_compiled_programs, main
from saqrl.commands import presets
from saqrl.training.interrupts import EXIT_INTERRUPTED, Interrupted
from saqrl.training.summary import summary_text
from tests.walking import run, small, words


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """Commands in this process leave its environment as it is."""
    monkeypatch.setattr("saqrl.cli.keep_compiled_programs", lambda: None)


def failing(monkeypatch, failure: BaseException) -> None:
    def fail(arguments):
        raise failure

    monkeypatch.setattr(presets, "main", fail)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (KeyError("codes"), "unforeseen KeyError: 'codes': please report it with the traceback"),
        (TypeError("two\nlines"), "unforeseen TypeError: two lines: please report it"),
        (MemoryError(), "out of memory: use fewer rows (--data-episodes, --stream-rows)"),
        (ArithmeticError("agent diverged"), "agent diverged"),
    ],
)
def test_what_nobody_foresaw_is_one_line_and_a_traceback_only_where_it_is_asked_for(
    monkeypatch, capsys, failure, said
):
    failing(monkeypatch, failure)
    assert main(["presets"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"saqrl: error: {said}")
    assert main(["presets", "--debug"]) == 2
    *trace, last = capsys.readouterr().err.splitlines()
    assert trace[0] == "Traceback (most recent call last):"
    assert last == line


def test_an_interrupted_command_says_how_it_goes_on(monkeypatch, capsys):
    failing(monkeypatch, Interrupted("saqrl train --out here --resume"))
    assert main(["presets"]) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == (
        "saqrl: interrupted; to resume: saqrl train --out here --resume\n"
    )


@pytest.mark.parametrize("failure", [AssertionError(), RuntimeError("Unable to initialize")])
def test_a_device_that_jax_does_not_find_is_one_line(monkeypatch, capsys, failure):
    """JAX raises either, by the platform that is asked for."""

    def absent():
        raise failure

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", absent)
    failing(monkeypatch, failure)
    assert main(["presets"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("saqrl: error: JAX finds no device for JAX_PLATFORMS=cuda: unset it")


def test_double_precision_is_refused_and_leaves_no_folder(dataset, tmp_path, capsys):
    out = tmp_path / "run"
    with jax.enable_x64(True):
        assert main(["train", *words(dataset, "bc", env="none"), "--out", str(out)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "saqrl: error" in line]
    assert errors == [
        "saqrl: error: JAX_ENABLE_X64 is set, but saqrl needs float32: unset JAX_ENABLE_X64"
    ]
    assert not out.exists()


def test_a_cache_that_cannot_be_written_is_one_line_and_is_not_used(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    place = str(tmp_path / "file" / "programs")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", place)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    keep_compiled_programs()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {place} is not writable (")
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == ""


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """(run folder, result.json) of a run in an environment."""
    out = tmp_path_factory.mktemp("next") / "run"
    return out, run(small(dataset, "bc"), out)


def next_step(result) -> list[str]:
    (line,) = (line for line in summary_text(result).splitlines() if line.startswith("next: "))
    return shlex.split(line.removeprefix("next: saqrl "))


@pytest.mark.parametrize("videos", [True, False])
def test_the_next_step_that_a_run_tells_works_with_what_is_installed(
    trained, tmp_path, monkeypatch, videos
):
    """A video is offered only where one can be written; the rest is the command as it stands."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "saqrl.training.summary.find_spec",
        lambda name: find("json" if videos else "absent") if name == "imageio_ffmpeg" else None,
    )
    monkeypatch.chdir(tmp_path)
    command = next_step(trained[1])
    assert command[:2] == ["evaluate", str(trained[0])]
    assert (command[-2:] == ["--video", "episode.mp4"]) == videos
    if not videos:
        assert main([word if word != "100" else "2" for word in command]) == 0


def test_a_run_without_an_environment_names_no_step_that_needs_one(trained):
    result = {**trained[1], "env": None, "held_out_skill": 0.93}
    text = summary_text(result)
    assert "evaluate" not in text
    assert "skill: 93 % closer to recorded actions" in text
    assert next_step(result)[:2] == ["view", str(trained[0])]


@pytest.mark.parametrize(("share", "held_out"), [(0.1, False), (0.3, True)])
def test_a_few_episodes_are_held_out_where_that_is_asked_for(
    dataset, tmp_path, capsys, share, held_out
):
    flags = {"env": "none", "data_episodes": 6, "held_out": share}
    result = run(small(dataset, "bc", **flags), tmp_path / "run")
    text = summary_text(result)
    assert (result["held_out_skill"] is not None) == held_out
    assert ("skill: " in text) == held_out
    assert ("no episode was held out" in text) != held_out
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "give one with --env" in line
    assert "saqrl view" in line
    assert ("skill on held-out episodes" in line) == held_out
