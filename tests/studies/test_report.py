"""The report of a table: figures that are right, a page that stands alone."""

import json
import re
import sys

import pytest

from saqrl.studies import ranking, report
from saqrl.studies.report import load_rows, sections, write_report


def row(task, method, seed, score, **more):
    quantized = method.startswith("saq-")
    codes = {"error_per_deviation": 0.2, "perplexity": 12.5, "prior_accuracy": 0.4}
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "measure": "success, %",
        "score": score,
        "best": score + 5,
        "episodes": 20,
        "curve": [[10, score - 10], [20, score]],
        "wall_seconds": 60.0,
        "quantizer": codes | {"measured_on": "held-out episodes"} if quantized else {},
        "versions": {"jax": "1.2"},
    } | more


@pytest.fixture
def rows():
    table = [
        row(task, method, seed, base + seed)
        for task in ("can", "lift")
        for method, base in (("saq-bc", 60.0), ("bc", 40.0), ("gmm", 61.0))
        for seed in range(3)
    ]
    failure = {"task": "can", "method": "iql", "seed": 0, "error": "ValueError: a | <b>"}
    return [*table, failure]


def by_title(rows):
    return {section.title: section for section in sections(rows)}


def test_scores_are_interquartile_means_with_the_best_first_and_in_bold(rows):
    table = by_title(rows)["Scores"].rows
    assert [line[:2] for line in table[:3]] == [("can", m) for m in ("gmm", "saq-bc", "bc")]
    assert table[1][2] == "61.0 (60.0, 61.0, 62.0)"
    assert by_title(rows)["All data sets together"].rows[0][0] == "gmm"
    assert [line[1] for line in table if line[2].startswith("**")] == ["gmm", "gmm"]


def test_five_seeds_have_an_interval_and_fewer_show_themselves(rows):
    more = [row("can", "saq-bc", seed, 60.0 + seed) for seed in (3, 4)]
    table = by_title([*rows, *more])["Scores"].rows
    shown = {line[:2]: line[2] for line in table}
    assert re.fullmatch(r"\*\*62\.0 \[6\d\.\d, 6\d\.\d\]\*\*", shown["can", "saq-bc"])
    assert shown["lift", "saq-bc"] == "61.0 (60.0, 61.0, 62.0)"


def test_one_seed_has_no_interval(rows):
    assert by_title([*rows, row("can", "cql", 0, 50.0)])["Scores"].rows[2][1:3] == ("cql", "50.0")


def test_what_stands_alone_is_in_the_table_and_not_in_the_pictures(rows, monkeypatch):
    drawn = {}
    for name in ("bars", "curves"):
        original = getattr(report.plots, name)

        def draw(panels, *, name=name, original=original, **more):
            drawn[name] = sorted(panels)
            return original(panels, **more)

        monkeypatch.setattr(report.plots, name, draw)
    alone = row("square", "bc", 0, 50.0)
    once = [row("tool", m, 0, 50.0, curve=[[20, 50.0]]) for m in ("saq-bc", "bc")]
    table = by_title([*rows, alone, *once])["Scores"].rows
    assert {line[0] for line in table} == {"can", "lift", "square", "tool"}
    assert drawn == {"bars": ["can", "lift", "tool"], "curves": ["can", "lift"]}


def test_a_method_has_one_colour_in_all_pictures(rows, monkeypatch):
    seen = []
    original = report.plots.intervals

    def draw(estimates, *, shown, **more):
        seen.append(shown)
        return original(estimates, shown=shown, **more)

    monkeypatch.setattr(report.plots, "intervals", draw)
    sections([row("can", "cql", 0, 50.0), *rows])
    overall, improvement = seen
    assert len({overall[method] for method in ("saq-bc", "bc", "gmm", "cql")}) == 4
    assert improvement == {"saq-bc > bc": overall["saq-bc"]}


def test_probability_of_improvement_compares_ours_with_theirs(rows):
    table = by_title(rows)["Probability of improvement"].rows
    assert [line[:2] for line in table] == [("saq-bc", "bc"), ("saq-bc", "gmm")]
    assert table[0][2] == "1.00"
    assert table[1][2].startswith("0.22")  # two of nine pairs, one tie twice: (1 + 2 / 2) / 9


def test_data_sets_are_averaged_only_where_all_methods_finished(rows):
    rows = [r for r in rows if not (r["task"] == "lift" and r["method"] == "gmm")]
    assert "of can:" in by_title(rows)["All data sets together"].text


def test_a_data_set_with_single_seeds_is_left_out_of_the_whole_and_named(rows):
    single = [row("square", method, 0, 0.0) for method in ("saq-bc", "bc", "gmm")]
    section = by_title([*rows, *single])["All data sets together"]
    assert section.rows == by_title(rows)["All data sets together"].rows
    assert section.text.endswith("Left out, because a method has a single seed: square.")
    assert "Only a method with 5 or more seeds" in section.text


def test_the_whole_is_shown_without_the_source_that_flatters_most():
    base = {"can": 50.0, "pusht": 80.0, "pusht-8": 90.0}
    files = {"can": "can.hdf5", "pusht": "pusht.npz", "pusht-8": "pusht.npz"}
    made = [
        row(task, method, seed, score + (30 if task != "can" and method == "saq-bc" else 0) + seed,
            dataset=files[task])
        for task, score in base.items() for method in ("saq-bc", "bc") for seed in range(2)
    ]  # fmt: skip
    section = by_title(made)["All data sets together"]
    assert "Data sets of one source share one weight." in section.text
    without = {line[0]: line[2] for line in section.rows}
    # Both chunks of Push-T are left out together; bc does relatively best on can.
    assert without == {"saq-bc": "50.5 (without pusht)", "bc": "85.5 (without can)"}


def test_data_sets_with_more_seeds_do_not_weigh_more(rows):
    more = [row("square", m, seed, 0.0) for m in ("saq-bc", "bc", "gmm") for seed in range(2)]
    twice = [row("square", m, seed, 0.0) for m in ("saq-bc", "bc", "gmm") for seed in range(6)]
    few, many = (
        by_title([*rows, *added])["All data sets together"].rows for added in (more, twice)
    )
    assert [line[1].split()[0] for line in few] == [line[1].split()[0] for line in many]


def test_single_seeds_everywhere_make_no_interval(rows):
    single = [r for r in rows if r["seed"] == 0 and "error" not in r]
    found = by_title(single)
    whole = found["All data sets together"]
    assert [line[:2] for line in whole.rows] == [
        ("gmm", "61.0"),
        ("saq-bc", "60.0"),
        ("bc", "40.0"),
    ]
    assert "Only a method with 5 or more seeds on each has an interval" in whole.text
    assert found["Probability of improvement"].rows == (
        ("saq-bc", "bc", "1.00", "2", "2 : 2"),
        ("saq-bc", "gmm", "0.00", "2", "2 : 2"),
    )


def test_improvement_says_on_how_many_data_sets_and_runs_it_rests(rows):
    single = [row("square", "saq-bc", seed, 0.0) for seed in range(3)]
    single.append(row("square", "bc", 0, 50.0))
    table = by_title([*rows, *single])["Probability of improvement"].rows
    assert table[0] == ("saq-bc", "bc", "1.00", "2", "6 : 6")


def test_a_method_that_was_tried_on_few_data_sets_does_not_hide_the_others(rows):
    more = [row("square", method, 0, 50.0) for method in ("saq-bc", "bc", "cql")]
    section = by_title([*rows, *more])["All data sets together"]
    assert [line[0] for line in section.rows] == ["gmm", "saq-bc", "bc"]
    assert "of can, lift:" in section.text
    assert section.text.endswith("Methods left out, because they have too few data sets: cql.")


def test_returns_of_different_tasks_are_not_averaged(rows):
    rows = [r | {"measure": "return"} for r in rows if "error" not in r]
    assert "All data sets together" not in by_title(rows)


def test_page_asks_nothing_of_a_network_and_escapes_what_it_shows(rows, tmp_path):
    markdown, page = write_report(rows, tmp_path, title="A & B")
    text = page.read_text()
    links = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert len(links) == 4
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert "ValueError: a | &lt;b&gt;" in text
    assert "<title>A &amp; B</title>" in text
    named = re.findall(r"\]\(([^)]*)\)", markdown.read_text())
    assert len(named) == 4
    assert all((tmp_path / name).read_bytes()[1:4] == b"PNG" for name in named)
    assert "a \\| <b>" in markdown.read_text()


def test_nothing_finished_is_said(rows, tmp_path):
    with pytest.raises(ValueError, match="no run has finished"):
        sections([r for r in rows if "error" in r])
    with pytest.raises(ValueError, match="holds no finished run"):
        load_rows(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_rows(tmp_path / "nowhere")


def test_rows_come_from_the_table_of_a_folder_or_a_file(rows, tmp_path):
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert load_rows(tmp_path) == load_rows(table) == rows


def test_a_missing_matplotlib_is_named_with_its_extra(rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install -e ".\[plots\]"'):
        report.sections(rows)


def test_runs_of_different_parts_of_one_file_are_told_apart(tmp_path):
    specs = {}
    for name, episodes in (("all", 40), ("again", 40), ("best", 4)):
        (tmp_path / name).mkdir()
        data = {"path": "a.npz", "steps": 9, "episodes": episodes, "sha256": str(episodes)}
        (tmp_path / name / "config.json").write_text(
            json.dumps({"settings": {}, "versions": {}, "data": data})
        )
        specs[tmp_path / name] = "a.npz"
    named = ranking.named_data(specs)
    assert len({*named.values()}) == 2
    assert named[tmp_path / "best"].endswith(", 4 episodes")
    del specs[tmp_path / "best"]
    assert {*ranking.named_data(specs).values()} == {"a"}
