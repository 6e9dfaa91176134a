"""Submission files: VLN-CE's forms, and one line for what a leaderboard would refuse."""

import copy
import json
import math

import pytest

from habitat_vlnr1.interchange.submission import (
    SubmissionError,
    check_r2r,
    check_rxr,
    r2r_submission,
    rxr_submission,
    write_submission,
)

WALK = {
    "episode_id": "7",
    "scene_id": "mp3d/a/a.glb",
    "instruction_id": 42,
    "actions": [1, 2, 0],
    "positions": [[0, 0, 0], [0, 0, -0.25], [0, 0, -0.25], [0, 0, -0.25]],
    "headings": [0, 0, 0.5, 0.5],
}


def test_r2r_has_every_state_and_the_stop():
    content = r2r_submission([WALK])
    assert content == {
        "7": [
            {"position": [0, 0, 0], "heading": 0, "stop": False},
            {"position": [0, 0, -0.25], "heading": 0, "stop": False},
            {"position": [0, 0, -0.25], "heading": 0.5, "stop": False},
            {"position": [0, 0, -0.25], "heading": 0.5, "stop": True},
        ]
    }
    check_r2r(content, ["7"])


def test_rxr_drops_repeated_positions_and_sorts():
    rows = rxr_submission([WALK, WALK | {"instruction_id": "5"}])
    assert [row["instruction_id"] for row in rows] == [5, 42]
    assert rows[1]["path"] == [[0, 0, 0], [0, 0, -0.25]]
    check_rxr(rows, ["5", "42"])
    for number in (None, "7_en"):
        with pytest.raises(SubmissionError, match=r"episode 7: instruction_id is .* is this RxR"):
            rxr_submission([WALK | {"instruction_id": number}])
    with pytest.raises(SubmissionError, match="42 occurs twice"):
        rxr_submission([WALK, WALK])


def test_an_episode_that_never_stopped_is_valid():
    check_r2r(r2r_submission([WALK | {"actions": [1, 2, 1]}]))


def faulty(change):
    content = copy.deepcopy(r2r_submission([WALK]))
    change(content["7"])
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.clear(), "episode 7: no states"),
        (lambda s: s[1].pop("heading"), "episode 7, state 1: must have just position, heading and stop"),
        (
            lambda s: s[1].update(position=[0, 1]),
            r"episode 7, state 1: position is \[0, 1\], not three finite numbers",
        ),
        (lambda s: s[2].update(position=[0, math.nan, 1]), "state 2: position"),
        (lambda s: s[2].update(heading=None), "state 2: heading is None, not radians"),
        (lambda s: s[3].update(stop=1), "state 3: stop is 1, not true or false"),
        (lambda s: s[1].update(stop=True), "state 1: stop is true, but only the last"),
        (lambda s: s.extend(s[:1] * 500), "503 steps, but VLN-CE ends an episode after 500"),
    ],
)
def test_r2r_faults_are_named(change, message):
    with pytest.raises(SubmissionError, match=message):
        check_r2r(faulty(change))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"instruction_id": 1}], "line 1: must have just instruction_id and path"),
        ([{"instruction_id": "1", "path": [[0, 0, 0]]}], "line 1: instruction_id is '1', not an integer"),
        ([{"instruction_id": 1, "path": []}], "instruction 1: no states"),
        ([{"instruction_id": 1, "path": [[0, 0, "1"]]}], "instruction 1, point 0 is"),
        ([{"instruction_id": 1, "path": [[0, 0, 0], [0, 0, 0]]}], "point 1: repeats"),
        ([{"instruction_id": i, "path": [[0, 0, 0]]} for i in (2, 1)], "line 2: instruction 1 follows 2"),
        ([], "no episodes"),
    ],
)
def test_rxr_faults_are_named(rows, message):
    with pytest.raises(SubmissionError, match=message):
        check_rxr(rows)


def test_missing_and_foreign_episodes_are_counted():
    with pytest.raises(SubmissionError, match="2 of 3 episodes are missing, for example 8"):
        check_r2r(r2r_submission([WALK]), ["7", "8", "10"])
    with pytest.raises(SubmissionError, match="1 of 1 episodes are not of this split, for example 7"):
        check_r2r(r2r_submission([WALK, WALK | {"episode_id": "9"}]), ["9"])


@pytest.mark.parametrize("kind", ["r2r", "rxr"])
def test_only_a_valid_file_is_written(tmp_path, kind):
    results = tmp_path / "vlnr1_rft/test"
    results.mkdir(parents=True)
    with pytest.raises(SubmissionError, match=r"episodes\.jsonl: no such file; evaluate"):
        write_submission(kind, results, tmp_path / "out")
    (results / "episodes.jsonl").write_text(json.dumps(WALK) + "\n")
    with pytest.raises(SubmissionError, match="are missing"):
        write_submission(kind, results, tmp_path / "out", ["7", "42", "99"])
    assert not (tmp_path / "out").exists()
    file, count = write_submission(kind, results, tmp_path / "out", ["7"] if kind == "r2r" else ["42"])
    assert (file.stem, count) == (f"vlnr1_rft_test_{kind}", 1)
    first = json.loads(file.read_text().splitlines()[0])
    assert first == (r2r_submission([WALK]) if kind == "r2r" else rxr_submission([WALK])[0])
