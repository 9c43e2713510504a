"""What loggers hold is what the JSON lines say, after any number of interruptions too."""

import csv
import json
import struct
from pathlib import Path

import pytest

from saqrl.training.loggers import open_loggers
from saqrl.training.run_folder import RunFolder

CONFIG = {"settings": {"seed": 0}, "versions": {}}
METRICS = [
    {"stage": "quantizer", "step": 10, "reconstruction": 0.5},
    {"stage": "quantizer", "step": 20, "reconstruction": 0.25, "perplexity": 3.0},
    {"stage": "agent", "step": 10, "q": -1.0},
]
SCORES = [{"stage": "agent", "step": 10, "act": "greedy", "return_mean": 3.5, "success_rate": None}]


def interrupted(path: Path, loggers: list[str]) -> None:
    """A run that loses its last two lines to a kill and writes them again."""
    run = RunFolder.create(path, CONFIG)
    run.tell(open_loggers(loggers, path))
    run.append("metrics", METRICS[0])
    run.save_checkpoint("quantizer", 10, {})
    run.append("metrics", METRICS[1])
    run.append("metrics", {"stage": "quantizer", "step": 99, "reconstruction": 9.0})
    run.close()
    run = RunFolder.open(path, print)
    run.tell(open_loggers([], path))  # those used before go on by themselves
    for record in METRICS[1:]:
        run.append("metrics", record)
    run.append("evaluations", SCORES[0])
    run.close()


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_csv_holds_every_line_once(tmp_path):
    interrupted(tmp_path / "run", ["csv"])
    folder = tmp_path / "run" / "csv"
    assert sorted(path.name for path in folder.iterdir()) == [
        "agent-evaluations.csv",
        "agent.csv",
        "quantizer.csv",
    ]
    assert rows(folder / "quantizer.csv") == [
        {"step": "10", "reconstruction": "0.5", "perplexity": ""},
        {"step": "20", "reconstruction": "0.25", "perplexity": "3.0"},
    ]
    assert rows(folder / "agent-evaluations.csv")[0]["return_mean"] == "3.5"


def events(folder: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of TensorBoard's files: records of length, sum, content, sum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
    return found


def test_tensorboard_holds_every_number_once(tmp_path):
    pytest.importorskip("tensorboardX")
    interrupted(tmp_path / "run", ["tensorboard"])
    assert events(tmp_path / "run" / "tensorboard") == [
        ("quantizer/reconstruction", 10, 0.5),
        ("quantizer/reconstruction", 20, 0.25),
        ("quantizer/perplexity", 20, 3.0),
        ("agent/q", 10, -1.0),
        ("agent/evaluation/return_mean", 10, 3.5),
    ]


@pytest.mark.slow
def test_wandb_works_offline_and_keeps_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    interrupted(tmp_path / "run", ["wandb"])
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    (content,) = folder.glob("run-*.wandb")
    assert content.stat().st_size > 0
    assert folder.name.endswith((tmp_path / "run" / "wandb" / "id").read_text().strip())


def test_the_record_itself_does_not_change(tmp_path):
    interrupted(tmp_path / "with", ["csv"])
    interrupted(tmp_path / "without", [])
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        content = (tmp_path / "with" / name).read_text()
        assert content == (tmp_path / "without" / name).read_text()
    assert [json.loads(line) for line in content.splitlines()] == SCORES
    assert not (tmp_path / "without" / "csv").exists()


def test_bad_loggers_are_refused_at_once(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown logger 'csw'; did you mean 'csv'"):
        open_loggers(["csw"], tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r'pip install -e ".\[tensorboard\]"'):
        open_loggers(["tensorboard"], tmp_path)
