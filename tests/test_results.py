"""Results on disk: what is written survives interruption, and nothing is averaged silently."""

import json
import math

import pytest

from habitat_vlnr1.episode_log import EpisodeLog, episode_line, read_episodes
from habitat_vlnr1.results import LeftOut, ResultsError, main, protocol_text, summarise, table, write_json

PROTOCOL = {"name": "embedded", "turn_angle": 30}
IDENTITY = {"policy": "random", "split": "val_unseen", "protocol": PROTOCOL}


def line(episode_id="1", **metrics):
    values = {"SR": 1.0, "OS": 1.0, "SPL": 0.5, "NE": 2.0, "TL": 8.0, "nDTW": 0.7, "sDTW": 0.7} | metrics
    return episode_line(values, episode_id=episode_id, scene_id="a.glb", steps=4, seconds=0.5, invalid_answers=1)


def test_lines_are_on_disk_at_once_and_a_second_run_knows_them(tmp_path):
    log = EpisodeLog(tmp_path, IDENTITY)
    log.append(line("1"))
    assert [e["episode_id"] for e in read_episodes(log.path)] == ["1"]
    log.close()
    again = EpisodeLog(tmp_path, IDENTITY)
    assert list(again.lines) == ["a.glb:1"]
    again.append(line("2"))
    again.close()
    assert [e["episode_id"] for e in read_episodes(log.path)] == ["1", "2"]


@pytest.mark.parametrize("rest", ['{"episode_id": "2", "scene', json.dumps(line("2"))])
def test_a_line_without_its_end_is_dropped(tmp_path, rest):
    log = EpisodeLog(tmp_path, IDENTITY)
    log.append(line("1"))
    log.close()
    with log.path.open("a") as file:
        file.write(rest)
    again = EpisodeLog(tmp_path, IDENTITY)
    assert list(again.lines) == ["a.glb:1"]
    again.append(line("3"))
    again.close()
    assert [e["episode_id"] for e in read_episodes(log.path)] == ["1", "3"]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    log = EpisodeLog(tmp_path, IDENTITY)
    log.append(line("1"))
    log.close()
    log.path.write_text("nonsense\n" + log.path.read_text())
    with pytest.raises(ResultsError, match=r"episodes\.jsonl, line 1: not JSON .*; delete that line"):
        EpisodeLog(tmp_path, IDENTITY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {"SR": math.nan}}, "SR is nan"),
        ({"metrics": None}, "metrics is None"),
        ({"scene_id": 3}, "scene_id is 3"),
        ({"steps": "four"}, "steps is 'four'"),
    ],
)
def test_a_line_that_is_no_episodes_is_an_error_that_names_it(tmp_path, change, message):
    EpisodeLog(tmp_path, IDENTITY).close()
    (tmp_path / "episodes.jsonl").write_text(json.dumps(line("1")) + "\n" + json.dumps(line("2") | change) + "\n")
    with pytest.raises(ResultsError, match=rf"episodes\.jsonl, line 2: not an episode's line \({message}"):
        EpisodeLog(tmp_path, IDENTITY)


@pytest.mark.parametrize("content", ["", '{"policy"', "[]", "null", '"\\ud83d"', "[" * 100_000, "\xff"])
@pytest.mark.parametrize("name", ["run.json", "summary.json"])
def test_a_half_file_is_one_line_with_its_remedy(tmp_path, capsys, name, content):
    EpisodeLog(tmp_path, IDENTITY).close()
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    if name == "run.json":
        with pytest.raises(ResultsError, match=r"run\.json: .*choose another vlnr1\.results_dir or delete"):
            EpisodeLog(tmp_path, IDENTITY)
        return
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path)])
    assert ended.value.code == 1
    assert "summary.json: " in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_an_exports_summary_is_none_of_an_evaluation(tmp_path, capsys):
    (tmp_path / "summary.json").write_text('{"episodes": 3}')
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "not the summary of an evaluation (policy)" in capsys.readouterr().err


def test_results_of_another_protocol_are_refused(tmp_path):
    EpisodeLog(tmp_path, IDENTITY).close()
    other = IDENTITY | {"protocol": PROTOCOL | {"turn_angle": 15}}
    with pytest.raises(ResultsError, match=r"protocol\.turn_angle: 30 there, 15 now.*results_dir or delete"):
        EpisodeLog(tmp_path, other)


def test_results_without_identity_are_refused(tmp_path):
    (tmp_path / "episodes.jsonl").write_text("")
    with pytest.raises(ResultsError, match=r"no run\.json"):
        EpisodeLog(tmp_path, IDENTITY)


def test_averages_and_standard_errors():
    lines = [line("1"), line("2", SR=0.0, SPL=0.0, NE=6.0), line("3"), line("4")]
    summary = summarise(lines, "random", "val_unseen", PROTOCOL)
    assert (summary["episodes"], summary["SR"], summary["NE"]) == (4, 0.75, 3.0)
    assert summary["standard_error"]["SR"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert summary["standard_error"]["NE"] == pytest.approx(1.0)  # values 2, 6, 2, 2: deviation 2, over sqrt(4)
    assert (summary["steps"], summary["invalid_answers"], summary["left_out"]) == (4, 4, [])


def test_numbers_that_are_none_are_left_out_and_named(tmp_path):
    lines = [line("1"), line("2", NE=math.inf, SPL=math.nan)]
    assert lines[1]["metrics"]["NE"] is None
    summary = summarise(lines, "random", "val_unseen", PROTOCOL)
    assert (summary["episodes"], summary["NE"]) == (1, 2.0)
    assert summary["left_out"] == [{"episode_id": "2", "scene_id": "a.glb", "reason": "SPL is nan, NE is inf"}]
    assert "random: 1 episodes are not in the averages: SPL is nan, NE is inf: 2" in table([summary])
    write_json(tmp_path / "summary.json", summary)  # strict JSON


def test_unusable_and_unwalked_episodes_are_listed_with_their_reasons():
    lines = [line("1"), line("2") | {"unusable": "goal is off the navmesh"}]
    before = [LeftOut(str(number), "b.glb", "no such scene: b.glb") for number in range(10, 40)]
    summary = summarise(lines, "random", "val_unseen", PROTOCOL, before)
    assert summary["episodes"] == 1 and len(summary["left_out"]) == 31
    assert summary["left_out"][-1] == {"episode_id": "2", "scene_id": "a.glb", "reason": "goal is off the navmesh"}
    text = table([summary]).splitlines()[-1]
    assert text.startswith("random: 31 episodes are not in the averages: no such scene: b.glb: 10, 11, ")
    assert text.endswith(", 29 and 10 more; goal is off the navmesh: 2")


def test_a_metric_that_one_episode_lacks_leaves_it_out():
    lacking = line("2")
    del lacking["metrics"]["nDTW"]
    summary = summarise([line("1"), lacking], "random", "val_unseen", PROTOCOL)
    assert summary["left_out"][0]["reason"] == "nDTW is missing"


def test_a_split_without_goals_has_no_rates():
    bare = episode_line({"TL": 3.0}, episode_id="1", scene_id="a", steps=1, seconds=0, invalid_answers=0)
    summary = summarise([bare], "random", "test", PROTOCOL)
    assert (summary["SR"], summary["TL"], summary["episodes"]) == (None, 3.0, 1)
    assert "–" in table([summary])


def test_table_is_aligned_markdown():
    rows = table([summarise([line()], name, "val_unseen", PROTOCOL) for name in ("random", "forward_only")]).split(
        "\n"
    )
    assert [cell.strip() for cell in rows[0].strip("|").split("|")][:3] == ["policy", "episodes", "SR"]
    assert "1.000 ± 0.000" in rows[2]
    assert len({len(row) for row in rows}) == 1


def test_main_gathers_summaries_of_several_runs(tmp_path, capsys):
    for name in ("random", "oracle"):
        folder = tmp_path / name / "val_unseen"
        folder.mkdir(parents=True)
        write_json(folder / "summary.json", summarise([line()], name, "val_unseen", PROTOCOL))
    main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert "random" in printed and "oracle" in printed
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nothing")])
    assert "no summary.json below" in capsys.readouterr().err


def test_protocol_is_said_in_one_line():
    assert protocol_text(PROTOCOL) == "protocol embedded: turn_angle 30"
