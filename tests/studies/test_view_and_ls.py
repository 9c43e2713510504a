"""Looking at runs: one page on the loopback address alone, one line for every run."""

import json
import os
import threading
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer

import pytest

from saqrl.cli import main
from saqrl.commands import view
from saqrl.studies.listing import listed_runs
from saqrl.studies.page_server import page_server
from saqrl.training.run_folder import hold

SETTINGS = {
    "version": 2,
    "actions": "quantized",
    "agent": {"name": "bc"},
    "quantizer": {"name": "vqvae", "codes": 64},
    "data": {"dataset": "npz:/data/walk.npz"},
    "features": {"chunk": 8},
}
RESULT = {
    "run": "r", "agent": "bc", "actions": "quantized", "dataset": "npz:/data/walk.npz",
    "env": "Point-v0", "act": "greedy", "episodes": 20, "seed": 0, "gradient_steps": 10,
    "wall_seconds": 95.0, "seconds": {"agent": 60.0}, "success_rate": 0.4, "return_mean": 1.0,
    "return_std": 0.5, "held_out_action_error": 0.2, "held_out_skill": 0.515,
}  # fmt: skip


def made(folder, *, result=None, metrics=(), settings=SETTINGS):
    folder.mkdir(parents=True)
    config = {"settings": settings, "versions": {}, "recipe": []}
    (folder / "config.json").write_text(json.dumps(config))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    if metrics:
        lines = "".join(json.dumps(record) + "\n" for record in metrics)
        (folder / "metrics.jsonl").write_text(lines)
    return folder


@pytest.fixture
def runs(tmp_path):
    made(tmp_path / "deep" / "finished", result=RESULT)
    made(tmp_path / "stopped", metrics=[{"stage": "agent", "step": 500}])
    made(tmp_path / "begun")
    (made(tmp_path / "torn") / "result.json").write_text("{")
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "metrics.jsonl").write_text("\x00\n")
    made(tmp_path / "odd", settings={"agent": 7, "data": [], "features": None})
    made(tmp_path / "older", settings={"version": 1, "agent": {"name": "\x1b[31m"}})
    (tmp_path / "no run").mkdir()
    return tmp_path


def test_every_run_is_a_line_with_its_data_method_score_and_state(runs, capsys):
    assert main(["ls", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split("  ")[0]: line for line in lines[1:]}
    assert shown.keys() == {"deep/finished", "stopped", "begun", "torn", "lost", "odd", "older"}
    for word in ("walk", "bc", "8", "64", "success 40 %", "52 %", "finished", "95 s"):
        assert word in shown["deep/finished"]
    assert "stopped at step 500 of agent" in shown["stopped"]
    for name in ("torn", "lost", "odd"):
        assert "damaged" in shown[name]
    assert "\x1b" not in "".join(lines)


def test_the_newest_run_is_the_last(tmp_path):
    for age, name in enumerate(("c", "a", "b")):
        folder = made(tmp_path / name)
        os.utime(folder / "config.json", (100 - age, 100 - age))
    assert [run.run for run in listed_runs(tmp_path)] == [str(tmp_path / n) for n in "bac"]


def test_a_run_that_a_process_holds_is_running(tmp_path):
    folder = made(tmp_path / "r")
    lock = hold(folder)
    try:
        assert listed_runs(tmp_path)[0].state == "running"
    finally:
        lock.release()
    assert listed_runs(tmp_path)[0].state == "stopped"


def test_ls_as_json_holds_the_figures(runs, capsys):
    assert main(["ls", str(runs), "--json"]) == 0
    found = {run["run"]: run for run in json.loads(capsys.readouterr().out)["runs"]}
    assert found[str(runs / "deep" / "finished")]["held_out_skill"] == 0.515
    assert found[str(runs / "torn")]["state"] == "damaged"


def test_a_folder_that_is_not_there_is_said(tmp_path, capsys):
    assert main(["ls", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.fixture
def served(tmp_path):
    page = tmp_path / "index.html"
    page.write_text("the page")
    (tmp_path / "config.json").write_text("secret")
    with page_server(page, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def fetched(url, host=None):
    asked = urllib.request.Request(url, headers={"Host": host} if host else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def test_only_the_page_is_served(served):
    assert fetched(f"{served}/") == (200, "the page")
    assert fetched(f"{served}/index.html") == (200, "the page")
    for path in ("/config.json", "/../index.html", "/policy/"):
        assert fetched(served + path)[0] == 404


def test_a_page_elsewhere_cannot_read_it_through_a_name_of_its_own(served):
    assert fetched(f"{served}/", host="evil.example")[0] == 403
    assert fetched(f"{served}/", host="localhost:8080")[0] == 200


def test_a_port_that_is_taken_is_one_line(tmp_path):
    page = tmp_path / "index.html"
    with page_server(page, 0) as server, pytest.raises(OSError, match="another --port"):
        page_server(page, server.server_port)


@pytest.fixture
def current(tmp_path):
    run = made(tmp_path / "r", result=RESULT)
    (run / "index.html").write_text("the page")
    return run


def test_a_window_opens_where_there_is_one(current, monkeypatch):
    opened = []
    monkeypatch.setattr(view, "has_browser", lambda: True)
    monkeypatch.setattr(view.webbrowser, "open", lambda uri: opened.append(uri) or True)
    assert main(["view", str(current)]) == 0
    assert opened == [(current / "index.html").absolute().as_uri()]


def test_without_a_window_the_page_is_served_until_ctrl_c(current, monkeypatch, capsys):
    def stopped(server):
        raise KeyboardInterrupt

    monkeypatch.setattr(view, "has_browser", lambda: False)
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", stopped)
    assert main(["view", str(current)]) == 0
    assert "http://127.0.0.1:" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--no-open"]])
def test_a_port_is_served_whether_or_not_a_window_could_open(current, monkeypatch, capsys, words):
    def stopped(server):
        raise KeyboardInterrupt

    monkeypatch.setattr(view, "has_browser", lambda: True)
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", stopped)
    assert main(["view", str(current), *words, "--port", "0"]) == 0
    told = capsys.readouterr()
    assert "http://127.0.0.1:" in told.err
    assert told.out == ""


def test_what_cannot_be_viewed_is_said(tmp_path, capsys):
    made(tmp_path / "many" / "seed0")
    for words, told in (
        (["view", str(tmp_path / "none")], "no such run"),
        (["view", str(tmp_path / "many")], "several runs"),
        (["view", str(tmp_path / "many" / "seed0")], "has not finished"),
        (["view", str(tmp_path / "many" / "seed0"), "--port", "70000"], "not a port"),
    ):
        assert main(words) == 2
        assert told in capsys.readouterr().err
