"""The page of a run: one file that asks nothing of a network and holds what it promises."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import gymnasium
import numpy as np
import pytest

import saqrl
from saqrl.commands import view
from saqrl.studies.charts import Dots, chart
from saqrl.studies.run_page import PAGE, film, is_current, leave_page, write_run_page
from saqrl.studies.run_page.evidence import Evidence
from saqrl.training.progress import Reporter
from tests.walking import Point, flags_of

LARGEST = 3_000_000
DRAWN = "saqrl-tests/PageDrawnPoint-v0"
HOSTILE = '<script>alert("1")</script>&'


class Checked(HTMLParser):
    """Tags that are closed as they were opened, and everything that could load something."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.words, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        loaded = ("src", "href", "data", "xlink:href", "poster", "action")
        self.loads += [value for name, value in attributes if name in loaded]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(run):
    """The page's words, checked."""
    text = (run / PAGE).read_text()
    assert len(text) < LARGEST
    page = Checked(text)
    assert all(value.startswith("data:") for value in page.loads)
    assert "url(" not in text
    assert "@import" not in text
    assert "script" not in page.tags
    assert "prefers-color-scheme: dark" in text
    assert "nan" not in re.findall(r'[dxy]="([^"]*)"', text.lower())
    return " ".join(" ".join(page.words).split())


def trained(dataset, out, **flags):
    tiny = {"steps": 12, "quantizer_steps": 10, "eval_episodes": 2, "eval_every": 6, "log_every": 4}
    asked = flags_of(dataset, "bc", **{**tiny, "recipe": "plain", **flags})
    if flags.get("actions") == "continuous":
        asked = {n: v for n, v in asked.items() if not n.startswith(("quantizer", "prior"))}
    data = asked.pop("dataset")
    return saqrl.fit(data, out=out, quiet=True, **asked).path


@pytest.fixture(scope="module")
def chunked(dataset, tmp_path_factory):
    """Chunks of codes, with an environment and plain BC beside."""
    return trained(dataset, tmp_path_factory.mktemp("runs") / "chunked", chunk=2, baseline=True)


class DrawnPoint(Point):
    """The point; its place is the brightness of a picture."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        return np.full((64, 64, 3), np.clip(120 + 100 * self.place[0], 0, 255), np.uint8)


@pytest.fixture
def drawn(chunked, tmp_path):
    """The chunked run as if trained in a world that can be drawn, without its page."""
    pytest.importorskip("imageio_ffmpeg", reason="not installed: saqrl[video]")
    gymnasium.register(DRAWN, entry_point=DrawnPoint)
    copy = shutil.copytree(chunked, tmp_path / "drawn")
    described = json.loads((copy / "policy" / "policy.json").read_text())
    described["environment"]["id"] = DRAWN
    (copy / "policy" / "policy.json").write_text(json.dumps(described))
    (copy / PAGE).unlink()
    yield copy
    del gymnasium.registry[DRAWN]


def test_rollouts_move_in_the_page_where_they_can_be_drawn(drawn):
    assert leave_page(drawn, None, Reporter(quiet=True)) is not None
    assert "Rollouts" in read(drawn)
    assert 'src="data:video/mp4;base64,' in (drawn / PAGE).read_text()


def test_a_world_that_is_slow_to_draw_is_not_drawn_and_said_so(drawn, monkeypatch):
    monkeypatch.setattr(film, "WORTH", 0.0)
    leave_page(drawn, None, Reporter(quiet=True))
    assert "There is no video: an episode takes about" in read(drawn)
    assert not (drawn / film.FILM).exists()


def test_a_world_without_pictures_is_said(chunked):
    words = read(chunked)
    assert "There is no video: " in words
    assert "--video episode.mp4" in words


def test_viewing_makes_no_environment(drawn, monkeypatch):
    """The folder may come from somebody else, and names the environment."""
    monkeypatch.setattr(film, "make_environment", None)
    assert view.main([str(drawn), "--no-open"]) == 0
    assert "There is no video" in read(drawn)


@pytest.fixture(scope="module")
def single(dataset, tmp_path_factory):
    """Codes of one step, without an environment; chosen by the recipe."""
    out = tmp_path_factory.mktemp("runs") / "single"
    return trained(dataset, out, env="none", recipe="auto", chunk=1, members=1)


@pytest.fixture(scope="module")
def continuous(dataset, tmp_path_factory):
    """Without codes, and of too few episodes to hold one out."""
    out = tmp_path_factory.mktemp("runs") / "continuous"
    return trained(dataset, out, actions="continuous", env="none", data_episodes=4)


def test_a_run_with_an_environment_shows_its_score_beside_plain_cloning(chunked):
    words, result = read(chunked), json.loads((chunked / "result.json").read_text())
    assert words.startswith("SAQ-BC on walk")
    assert f"{100 * result['success_rate']:.0f} % success, over 2 episodes" in words
    assert "continuous BC" in words
    assert "decides 2 actions at a time" in words
    assert f"saqrl evaluate {chunked}" in words
    assert "success rate in the environment" in words


@pytest.mark.parametrize("name", ["chunked", "single"])
def test_a_quantized_run_shows_actions_ways_codes_phases_and_curves(name, request):
    words = read(request.getfixturevalue(name))
    titles = (
        "Recorded and predicted actions",
        "One state, several ways",
        "How often each code is used",
        "Errors from the beginning of an episode to its end",
        "Learning curves",
        "Next",
    )
    assert all(title in words for title in titles)
    assert [words.index(title) for title in titles] == sorted(map(words.index, titles))
    assert "action 0" in words
    assert "saqrl export" in words


def test_without_an_environment_the_held_out_figure_is_the_headline(single):
    words, result = read(single), json.loads((single / "result.json").read_text())
    skill = f"{100 * result['held_out_skill']:.0f} %".replace("-", "\N{MINUS SIGN}")
    assert f"{skill} nearer to held-out recorded actions" in words
    assert "saqrl evaluate" not in words


def test_the_recipes_choices_stand_with_their_reasons(single):
    words = read(single)
    for choice in json.loads((single / "config.json").read_text())["recipe"]:
        assert f"--{choice['flag'].replace('_', '-')}" in words
        assert choice["reason"] in words


def test_a_continuous_run_without_held_out_episodes_says_so(continuous):
    words = read(continuous)
    assert words.startswith("continuous bc on walk")
    assert "No episode is held out: the policy was trained on these." in words
    assert "several ways" not in words
    assert "code is used" not in words


def test_data_that_are_gone_are_said_and_the_rest_is_shown(single, tmp_path):
    copy = shutil.copytree(single, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["settings"]["data"]["dataset"] = config["data"]["path"] = "npz:/gone/walk.npz"
    (copy / "config.json").write_text(json.dumps(config))
    write_run_page(copy)
    words = read(copy)
    assert "cannot be read any more" in words
    assert "Learning curves" in words


def test_names_from_files_are_shown_and_never_obeyed(single, tmp_path):
    copy = shutil.copytree(single, tmp_path / "copy")
    for name, changes in {
        "config.json": {"recipe": [{"flag": HOSTILE, "value": HOSTILE, "reason": HOSTILE}, 7]},
        "result.json": {"agent": HOSTILE, "dataset": HOSTILE, "env": HOSTILE},
    }.items():
        record = json.loads((copy / name).read_text()) | changes
        (copy / name).write_text(json.dumps(record))
    with (copy / "metrics.jsonl").open("a") as file:
        file.writelines(
            json.dumps({"stage": HOSTILE, "step": step, HOSTILE: float(step)}) + "\n"
            for step in range(3)
        )
    write_run_page(copy)
    assert HOSTILE.lower() in read(copy).lower()


def test_names_of_joints_stand_over_their_charts(single, dataset, tmp_path):
    log = saqrl.load_dataset(str(dataset)).named(actions=("shoulder <pan>", "elbow"))
    copy = shutil.copytree(single, tmp_path / "copy")
    write_run_page(copy, log)
    assert "shoulder <pan>" in read(copy)


def test_a_page_is_written_anew_when_the_result_is(single, tmp_path):
    copy = shutil.copytree(single, tmp_path / "copy")
    assert is_current(copy)
    (copy / PAGE).unlink()
    assert not is_current(copy)
    assert view.main([str(copy), "--no-open"]) == 0
    assert is_current(copy)


def test_a_page_that_fails_does_not_fail_its_run(single, tmp_path, capsys):
    copy = shutil.copytree(single, tmp_path / "copy")
    (copy / PAGE).unlink()
    (copy / "policy" / "policy.json").write_text("{")
    assert leave_page(copy, None, Reporter()) is None
    assert "saqrl view" in capsys.readouterr().err


def test_thousands_of_dots_are_one_path_a_shade():
    draw = np.random.default_rng(0)
    places, shades = draw.normal(size=(2, 5_000)), draw.choice([0.2, 0.5], 5_000)
    drawn = chart([Dots(places[0].tolist(), places[1].tolist(), "policy", shades.tolist())])
    assert drawn.count('class="cloud') == 2
    assert drawn.count("h0") == 5_000
    assert len(drawn) < 20 * 5_000


def test_episodes_of_one_step_are_not_shown_where_there_are_longer_ones(continuous, dataset):
    log = replace(saqrl.load_dataset(dataset), episode_starts=np.array([0, 1, 2, 3, 12]))
    shown = Evidence(saqrl.load_policy(continuous / "policy"), log).shown_episodes()
    assert {number for _, number in shown} <= {3, 4}


def test_episodes_of_one_step_are_shown_where_there_are_no_others(continuous, dataset):
    log = saqrl.load_dataset(dataset)
    log = replace(log, episode_starts=np.arange(len(log)))
    assert Evidence(saqrl.load_policy(continuous / "policy"), log).shown_episodes()
