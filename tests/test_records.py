import json
import os
import random
import subprocess
import sys
from collections import Counter
from io import BytesIO

import pytest
from PIL import Image

from habitat_vlnr1 import records
from habitat_vlnr1.actions import Action
from habitat_vlnr1.episode_writer import EpisodeWriter, place_frame
from habitat_vlnr1.frame_files import read_picture
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.records import Episode, RecordError, VLNEgo, summarize

META = {"split": "train", "protocol": {"turn_angle": 30}}


def jpeg(level: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(buffer, "JPEG")
    return buffer.getvalue()


def episode(name: str, actions: list[int]) -> Episode:
    return Episode(name, "house", f"Walk {name}.", tuple(actions), {"trajectory_id": name})


@pytest.fixture
def root(tmp_path):
    writer = EpisodeWriter(tmp_path / "ego", META)
    for name, actions in (("1", [1, 2, 1, 0]), ("2", [3, 0])):
        writer.write(episode(name, actions), [jpeg(i) for i in range(len(actions))])
    writer.close()
    return tmp_path / "ego"


def test_every_step_is_a_record_and_stop_is_never_lost(root):
    ego = VLNEgo(root)
    ego.check_frames()
    records = list(ego.records(make_memory("uniform", budget=2), num_actions=2))
    assert [(r.episode.episode_id, r.step) for r in records] == [
        ("1", 0),
        ("1", 1),
        ("1", 2),
        ("1", 3),
        ("2", 0),
        ("2", 1),
    ]
    assert [r.answer for r in records] == [(1, 2), (2, 1), (1, 0), (0, 0), (3, 0), (0, 0)]
    assert records[3].history == (0, 2)
    assert [path.name for path in records[3].frames] == ["0000.jpg", "0002.jpg", "0003.jpg"]
    assert records[4].frames == (root / "frames/house/2/0000.jpg",)
    assert records[4].instruction == "Walk 2."


@pytest.mark.parametrize("offset", [0, 1])
def test_frequent_answers_are_counted_over_all_records(tmp_path, offset):
    writer = EpisodeWriter(tmp_path / "ego", META)
    walks = [[1, 2, 1, 0], [3, 0], [1, 1, 1, 1, 0]]
    for name, actions in enumerate(walks):
        labels = {1: (2, 1, 0)} if name == 1 else {}
        line = Episode(str(name), "house", "Walk.", tuple(actions), labels=labels)
        writer.write(line, [jpeg(i) for i in range(len(actions))])
    writer.close()
    records = VLNEgo(tmp_path / "ego").records(make_memory("current"), 2, offset)
    counted = Counter(record.answer for record in records)
    frequent = records.frequent_answers(3)
    assert [counted[answer] for answer in frequent] == [count for _, count in counted.most_common(3)]
    assert frequent == records.frequent_answers(99)[:3] and set(records.frequent_answers(99)) == set(counted)
    assert {type(action) for answer in frequent for action in answer} == {Action}


def test_released_labels_are_shifted_by_one(root):
    records = VLNEgo(root).records(make_memory("current"), num_actions=2, label_offset=1)
    assert records[0].answer == (2, 1)


def test_negative_and_impossible_indices(root):
    records = VLNEgo(root).records(make_memory("current"), 1)
    assert records[-1].episode.episode_id == "2"
    with pytest.raises(IndexError):
        records[6]


def test_an_interrupted_export_goes_on(root):
    with (root / "episodes.jsonl").open("a") as file:
        file.write('{"episode_id": "3", "scen')
    writer = EpisodeWriter(root, META)
    assert set(writer.done) == {"1", "2"}
    writer.write(episode("3", [0]), [jpeg(0)])
    writer.close()
    assert [e.episode_id for e in VLNEgo(root).episodes] == ["1", "2", "3"]


def test_another_protocol_is_not_mixed_in(root):
    with pytest.raises(RecordError, match=r"made from something else .protocol.*30.*choose another vlnr1.data.source"):
        EpisodeWriter(root, {**META, "protocol": {"turn_angle": 15}})


def test_summary_counts_every_action(root):
    assert summarize(VLNEgo(root).episodes) == {
        "episodes": 2,
        "records": 6,
        "actions": {"stop": 2, "forward": 2, "left": 1, "right": 1},
    }


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", 7])
def test_ids_cannot_leave_the_folder(name):
    with pytest.raises(RecordError, match="cannot be a folder name"):
        Episode(name, "house", "Go.", (0,))


@pytest.mark.parametrize("actions", [(), (1,), (0, 1, 0), (5, 0)])
def test_actions_end_with_the_one_stop(actions):
    with pytest.raises(RecordError, match="actions must"):
        Episode("1", "house", "Go.", actions)


LABELS = {0: (1, 2), 2: (3, 0)}


def test_labels_are_the_answers_and_steps_without_one_are_no_records(tmp_path):
    """A walk that was not the expert's: it need not end with STOP, and what it did is no label."""
    writer = EpisodeWriter(tmp_path / "ego", META)
    writer.write(episode("0", [1, 0]), [jpeg(0)] * 2)
    writer.write(Episode("1", "house", "Go.", (1, 1, 1, 1), labels=LABELS), [jpeg(0)] * 4)
    writer.close()
    ego = VLNEgo(tmp_path / "ego")
    assert [episode.labels for episode in ego.episodes] == [{}, LABELS]
    records = ego.records(make_memory("uniform", budget=9), num_actions=2)
    assert [(r.step, r.history, r.answer) for r in records] == [
        (0, (), (1, 0)),
        (1, (0,), (0, 0)),
        (0, (), (1, 2)),
        (2, (0, 1), (3, 0)),
    ]
    assert records.rows(9) == [[0, 1], [2, 3]]
    assert records.rows(9, lambda episode, step: step > 0) == [[1], [3]]
    assert summarize(ego.episodes)["records"] == 4
    with pytest.raises(RecordError, match="3 actions are asked for, but its labels have 2"):
        ego.records(make_memory("current"), num_actions=3)[2]
    assert ego.records(make_memory("current"), num_actions=3)[3].answer == (3, 0, 0)


@pytest.mark.parametrize("labels", [{4: (1,)}, {-1: (1,)}, {0: ()}, {0: (0, 1)}, {0: (7,)}])
def test_a_label_has_a_frame_and_actions(labels):
    with pytest.raises(RecordError, match=r"label of step|must be 0, 1, 2 or 3"):
        Episode("1", "house", "Go.", (1, 1, 1, 1), labels=labels)


def test_missing_folder_says_what_to_run(tmp_path):
    with pytest.raises(RecordError, match="run --config-name=vlnr1_export first"):
        VLNEgo(tmp_path)


@pytest.mark.parametrize(("line", "message"), [("{", "line 3"), ('{"scene": "h"}', "no key 'episode_id'")])
def test_a_malformed_line_is_named(root, line, message):
    with (root / "episodes.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RecordError, match=message):
        VLNEgo(root)


def test_an_episode_twice_is_an_error(root):
    first = (root / "episodes.jsonl").read_text().splitlines()[0]
    (root / "episodes-1.jsonl").write_text(first + "\n")
    with pytest.raises(RecordError, match="episode 1 stands in the folder twice"):
        VLNEgo(root)


def test_missing_and_cut_frames_are_named(root):
    frame = root / "frames/house/1/0002.jpg"
    whole = frame.read_bytes()
    frame.write_bytes(whole[:-10])
    with pytest.raises(RecordError, match=r"0002.jpg: frame is not a whole JPEG"):
        VLNEgo(root).check_frames()
    frame.write_bytes(b"")
    with pytest.raises(RecordError, match="is empty"):
        VLNEgo(root).check_frames()
    frame.unlink()
    with pytest.raises(RecordError, match="is missing"):
        VLNEgo(root).check_frames()


def test_frames_are_checked_once_for_the_same_lines(root, monkeypatch):
    opened = []
    monkeypatch.setattr(records, "check_jpeg", opened.append)
    VLNEgo(root).check_frames()
    assert len(opened) == 6
    VLNEgo(root).check_frames()
    assert opened[6:] == [root / "frames/house/1/0000.jpg", root / "frames/house/2/0000.jpg"]
    writer = EpisodeWriter(root, META)
    writer.write(episode("3", [0]), [jpeg(0)])
    writer.close()
    VLNEgo(root).check_frames()
    assert len(opened) == 8 + 7


def test_a_check_that_fails_is_not_remembered(root):
    frame = root / "frames/house/1/0002.jpg"
    whole = frame.read_bytes()
    for content in (b"", whole[:-3]):
        frame.write_bytes(content)
        with pytest.raises(RecordError, match=r"0002.jpg"):
            VLNEgo(root).check_frames()
    frame.write_bytes(whole)
    VLNEgo(root).check_frames()


def test_frames_may_be_files_which_are_linked_or_copied(root, tmp_path, monkeypatch):
    source = tmp_path / "a.jpg"
    source.write_bytes(jpeg(7))
    writer = EpisodeWriter(root, META)
    writer.write(episode("3", [0]), [source])
    linked = root / "frames/house/3/0000.jpg"
    assert linked.samefile(source)
    place_frame(jpeg(99), linked)
    assert source.read_bytes() == jpeg(7)
    monkeypatch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(OSError("another file system")))
    writer.write(episode("4", [0]), [source])
    writer.close()
    copy = root / "frames/house/4/0000.jpg"
    assert copy.read_bytes() == source.read_bytes() and not copy.samefile(source)


def test_meta_of_another_format_is_refused(root):
    (root / "meta.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(RecordError, match="format 99"):
        VLNEgo(root)


def test_actions_are_the_enum(root):
    assert VLNEgo(root).records(make_memory("current"), 1)[0].answer == (Action.FORWARD,)


def test_an_index_of_1_8_million_records_is_quick_and_small(tmp_path):
    """R2R and RxR together: 33,000 episodes of 55 steps and 80 words; measured in a process of its own."""
    (tmp_path / "meta.json").write_text(json.dumps({"format": 1}))
    chance = random.Random(0)
    words = " ".join(["turn left at the long table and go on"] * 9)
    with (tmp_path / "episodes.jsonl").open("w") as file:
        for number in range(33_000):
            actions = [*chance.choices((1, 2, 3), k=54), 0]
            row = {"episode_id": str(number), "scene": f"s{number % 61}", "instruction": words, "actions": actions}
            file.write(json.dumps({**row, "info": {"trajectory_id": number, "distance_to_goal": 0.1}}) + "\n")
    unobserved = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True, env=unobserved
    ).stdout.split()
    count, seconds, megabytes, access = int(done[0]), *map(float, done[1:])
    assert count == 33_000 * 55
    assert seconds < 30 and megabytes < 2000 and access < 1e-3


MEASURE = """
import random, sys, time
from habitat_vlnr1.frame_files import read_picture
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.records import VLNEgo
start = time.perf_counter()
records = VLNEgo(sys.argv[1]).records(make_memory("long_short"), 6)
rows = records.rows(1)
loaded = time.perf_counter()
for _ in range(2000):
    records[random.randrange(len(records))]
end = time.perf_counter()
# Its own peak: ru_maxrss would begin with that of pytest, which has started it.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(len(rows), loaded - start, peak / 1000, (end - loaded) / 2000)
"""


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/etc", "a\0b", "a" * 101, "", "\ud83d", "ü", 7, None, "a b"])
def test_names_lead_nowhere_else(name):
    for names in ((name, "house"), ("1", name)):
        with pytest.raises(RecordError, match="cannot be a folder name"):
            Episode(*names, "Go.", (0,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": "half \ud83d"}, "must be text that UTF-8 can write"),
        ({"descriptions": ["\ud83d", "b"]}, "must be text that UTF-8 can write"),
        ({"instruction": None}, "must be text"),
        ({"info": [1]}, "info an object"),
        ({"actions": [1.0, 0]}, "actions must be 0, 1, 2 or 3"),
        ({"actions": [True, 0]}, "actions must be 0, 1, 2 or 3"),
        ({"actions": 5}, "not an episode"),
        ({"labels": [1]}, "not an episode"),
        ({"reward": 1}, "unknown key 'reward'; what is your own belongs into info"),
    ],
)
def test_a_line_with_something_else_in_it_is_named(root, change, message):
    line = {"episode_id": "3", "scene": "house", "instruction": "Go.", "actions": [1, 0], **change}
    with (root / "episodes.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(RecordError, match=rf"episodes\.jsonl, line 3: .*{message}.*; delete the line and export"):
        VLNEgo(root)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"format": 1, "protocol": [30]}'])
def test_a_half_meta_is_named(root, content):
    (root / "meta.json").write_bytes(content)
    with pytest.raises(RecordError, match=r"meta\.json: .*delete the folder and export again"):
        VLNEgo(root)
    with pytest.raises(RecordError, match=r"meta\.json: |was made from something else"):
        EpisodeWriter(root, META)


def test_info_that_cannot_be_written_is_refused_before_any_frame(root):
    writer = EpisodeWriter(root, META)
    with pytest.raises(RecordError, match="episode 3: info holds text that UTF-8 cannot write"):
        writer.write(Episode("3", "house", "Go.", (0,), {"trajectory_id": "\ud83d"}), [jpeg(0)])
    assert not (root / "frames/house/3").exists()


def test_links_are_followed_to_files_only(root, tmp_path):
    frame = root / "frames/house/1/0000.jpg"
    kept = tmp_path / "blob"
    frame.rename(kept)
    frame.symlink_to(os.path.relpath(kept, frame.parent))  # as the Hugging Face hub's cache does
    VLNEgo(root).check_frames()
    writer = EpisodeWriter(tmp_path / "other", META)
    writer.write(episode("3", [0]), [frame])
    writer.close()
    assert (tmp_path / "other/frames/house/3/0000.jpg").read_bytes() == kept.read_bytes()
    (root / "frames_checked.json").unlink()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in ("/dev/zero", pipe):
        frame.unlink()
        frame.symlink_to(place)
        with pytest.raises(RecordError, match=r"0000\.jpg: not a file"):
            VLNEgo(root).check_frames()


# ------------------------------------------------------------------------------------- frames that are stored once
def shared(name: str, owner: str, actions: list[int]) -> Episode:
    return Episode(name, "house", f"Walk {name}.", tuple(actions), {"trajectory_id": owner}, frames_of=owner)


@pytest.mark.parametrize("packed", [False, True])
def test_episodes_of_one_walk_have_its_frames(tmp_path, packed):
    root = tmp_path / "ego"
    writer = EpisodeWriter(root, META | ({"packed": True} if packed else {}))
    with pytest.raises(RecordError, match="episode 2: the frames of 1 must be there before"):
        writer.write(shared("2", "1", [1, 3, 0]), [])
    writer.write(episode("1", [1, 3, 0]), [jpeg(i) for i in range(3)])
    with pytest.raises(RecordError, match="episode 2: the frames of 1 must be there before"):
        writer.write(shared("2", "1", [1, 3, 0]), [jpeg(i) for i in range(3)])
    writer.write(shared("2", "1", [1, 3, 0]), [])
    writer.close()
    ego = VLNEgo(root)
    ego.check_frames()
    assert [walk.episode_id for walk in ego.walked] == ["1"]
    assert sum(path.is_file() for path in (root / "frames").rglob("*")) == (1 if packed else 3)
    records = ego.records(make_memory("uniform", budget=2), num_actions=2)
    assert [record.instruction for record in records] == ["Walk 1."] * 3 + ["Walk 2."] * 3
    assert [record.frames for record in records][:3] == [record.frames for record in records][3:]
    assert [read_picture(path) for path in records[-1].frames] == [jpeg(i) for i in range(3)]
    assert summarize(ego.episodes)["walks"] == 1 and summarize(ego.episodes)["records"] == 6
    assert "frames_of" not in (root / "episodes.jsonl").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (shared("3", "9", [3, 0]), "frames of episode 9, which is not in the folder"),
        (shared("3", "1", [3, 0]), "frames of episode 1, which was walked otherwise"),
        (Episode("3", "hut", "Go.", (3, 0), frames_of="2"), "frames of episode 2, which was walked otherwise"),
        (shared("3", "3", [3, 0]), "frames of episode 3, which was walked otherwise"),
    ],
)
def test_frames_of_another_walk_are_refused(root, line, message):
    with (root / "episodes.jsonl").open("a") as file:
        file.write(json.dumps(line.to_json()) + "\n")
    with pytest.raises(RecordError, match=f"episode 3 has the {message}"):
        VLNEgo(root)


def test_a_check_of_frames_that_was_stopped_goes_on(root, monkeypatch):
    monkeypatch.setattr(records, "CHECK_PART", 1)
    frame = root / "frames/house/2/0001.jpg"
    whole = frame.read_bytes()
    frame.write_bytes(b"")
    with pytest.raises(RecordError, match=r"2/0001.jpg: frame is empty"):
        VLNEgo(root).check_frames()
    frame.write_bytes(whole)
    opened = []
    monkeypatch.setattr(records, "check_jpeg", opened.append)
    VLNEgo(root).check_frames()
    assert {path.parent.name for path in opened} == {"2"} and len(opened) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"lines": {}, "episodes": 2}', '{"episodes": 2}'])
def test_a_note_of_checked_frames_that_says_something_else_is_no_note(root, monkeypatch, content):
    (root / "frames_checked.json").write_text(content)
    opened = []
    monkeypatch.setattr(records, "check_jpeg", opened.append)
    VLNEgo(root).check_frames()
    assert len(opened) == 6
