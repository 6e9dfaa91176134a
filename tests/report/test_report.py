"""What goes into a report, and how much of it."""

import json
import re

import pytest

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.errors import ResultsError
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.records import VLNEgo
from habitat_vlnr1.report.build import main, write_data_report, write_results_report
from habitat_vlnr1.report.page import render
from habitat_vlnr1.report.recording import WalkRecorder, spread
from tests.report.sample import EVIL, frame, topdown, write_results
from tests.tiny_run import write_tiny_run


def data_of(file):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', file.read_text(), re.DOTALL)
    return json.loads(text)


def frames_of(data):
    return [len(walk.get("frames", ())) for episode in data["episodes"] for walk in episode["walks"].values()]


def test_every_policy_walks_beside_the_others(tmp_path):
    home = write_results(tmp_path, {"model": 1, "blind": 2})
    data = data_of(write_results_report(home / "report.html", [home]))
    assert data["policies"] == ["blind", "model"] and len(data["episodes"]) == 6
    first = data["episodes"][0]
    assert (first["reference"], first["goal"], first["scene"]) == ([[0, 0], [3, 0]], [3, 0], "hall")
    walk = first["walks"]["model"]
    assert walk["path"][:6] == [0, 0, -90, 50, 0, -90] and walk["answers"]["2"].startswith("A. Move forward 50 cm")
    assert walk["metrics"]["SR"] == 1 and len(walk["frames"]) == walk["steps"] == 7
    assert len(data["maps"]) == 2  # one per scene


def test_frames_keep_within_the_budget_on_disk_and_in_the_page(tmp_path):
    home = write_results(tmp_path, {"model": 1, "blind": 2}, budget=60_000, episodes=9)
    kept = [json.loads(file.read_text()) for file in home.rglob("walks/*.json")]
    size = sum(len(f) for walk in kept for f in walk["frames"].values())
    assert len(kept) == 18 and 0 < size <= 2 * 60_000
    report = write_results_report(home / "report.html", [home], 0.02)
    frames = frames_of(data_of(report))
    assert 0 < sum(map(bool, frames)) < 18 and report.stat().st_size < 20_000 + 80_000
    assert "a budget of 0.02 MB" in report.read_text()
    whole = [bool(walks[0]["frames"]) == bool(walks[1]["frames"])
             for e in data_of(report)["episodes"] for walks in [list(e["walks"].values())]]  # fmt: skip
    assert all(whole)  # the same episodes for every policy, so that they can be compared


def test_a_long_walk_keeps_some_frames_of_all_its_length(tmp_path):
    recorder = WalkRecorder(tmp_path, 24_000, ["a"])
    record = recorder.begin("a", "s.glb", topdown, {"episode_id": "1", "reference_path": [], "goal": None})
    for step in range(100):
        record.add(frame(1, step), None)
    record.write()
    steps = [int(step) for step in json.loads(record.file.read_text())["frames"]]
    assert steps[0] == 0 and steps[-1] == 99 and 8 < len(steps) < 60
    assert sum(len(f) for f in json.loads(record.file.read_text())["frames"].values()) <= 24_000
    assert WalkRecorder(tmp_path, 0, ["a"]).begin("a", "s.glb", topdown, {}) is None


def test_spread():
    assert [spread(0, 3), spread(3, 9), spread(9, 3), spread(9, 1)] == [[], [0, 1, 2], [0, 4, 8], [0]]


def test_nothing_in_the_data_ends_the_script_element_or_names_another_place():
    page = render({"title": EVIL, "tables": [{"about": f"{EVIL}@SCRIPT@<!--"}]})
    assert page.count("</script>") == 2 and page.count("<script") == 2
    assert "@SCRIPT@" in page and not re.search(r"""(src|href)=["']?https?:""", page)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy


def test_policies_of_one_name_from_two_folders(tmp_path):
    for run in ("one", "two"):
        write_results(tmp_path / run, {"model": 1}, episodes=2)
    main([str(tmp_path / "one"), str(tmp_path / "two"), "--output", str(tmp_path / "both.html")])
    data = data_of(tmp_path / "both.html")
    assert data["policies"] == [f"model ({tmp_path}/one)", f"model ({tmp_path}/two)"] and data["title"] == "one · two"
    assert all(len(episode["walks"]) == 2 for episode in data["episodes"])


def test_results_without_anything_kept_still_have_their_table_and_paths(tmp_path):
    home = write_results(tmp_path, {"model": 1}, budget=0)
    data = data_of(write_results_report(home / "report.html", [home]))
    assert not (home / "model/val/walks").exists() and frames_of(data) == [0] * 6
    assert data["tables"][0]["rows"][0][:3] == ["model", "6", ["0.333", "0.192"]]
    assert data["episodes"][0]["walks"]["model"]["path"]


def test_a_question_and_its_answer_are_shown_as_facts(tmp_path):
    home = write_results(tmp_path, {"model": 1}, episodes=1)
    lines = home / "model/val/episodes.jsonl"
    line = {**json.loads(lines.read_text()), "question": "What colour is the sofa?", "answer": "red"}
    lines.write_text(json.dumps(line) + "\n")
    data = data_of(write_results_report(home / "report.html", [home]))
    assert data["episodes"][0]["facts"] == [["question", "What colour is the sofa?"], ["answer", "red"]]


def test_what_is_broken_or_missing_is_named(tmp_path):
    with pytest.raises(ResultsError, match=r"neither summary\.json of an evaluation nor curves"):
        write_results_report(tmp_path / "report.html", [tmp_path])
    home = write_results(tmp_path, {"model": 1}, episodes=1)
    (file,) = home.rglob("walks/*.json")
    for content, what in ("{", "not JSON"), ('{"map": 3}', "not what an evaluation writes"):
        file.write_text(content)
        with pytest.raises(ResultsError, match=rf"walks/.*json: {what}.*delete it"):
            write_results_report(tmp_path / "report.html", [home])


def test_an_export_within_its_budget(tmp_path):
    ego = VLNEgo(write_tiny_run(tmp_path) / "ego/embedded/train")
    records = ego.records(make_memory("long_short", budget=2, short_window=1), 6)
    data = data_of(write_data_report(tmp_path / "data.html", "tiny", records, ActionSpace(0.5, 30)))
    assert frames_of(data) == [8, 5] and data["history"][3] == [0, 2]
    assert data["words"] == ["Stop", "Move forward 50 cm", "Turn left 30 degrees", "Turn right 30 degrees"]
    few = data_of(write_data_report(tmp_path / "few.html", "tiny", records, ActionSpace(0.5, 30), 0.03))
    assert sorted(map(bool, frames_of(few))) == [False, True]
