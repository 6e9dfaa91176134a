"""VLN-Ego as released (ShareGPT JSON): what is read is what was written, by its authors or by us."""

import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.interchange import sharegpt
from habitat_vlnr1.interchange.sharegpt import read_sharegpt, write_sharegpt
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.prompt import get_template
from habitat_vlnr1.records import Episode, RecordError, VLNEgo

WORDS = ["D. Stop", "A. Move forward 25 cm", "B. Turn left 30 degrees", "C. Turn right 30 degrees"]
ACTIONS = [3, 1, 1, 2] * 6 + [1, 0]  # 26 steps: more than 16 frames of history
TELL = "Don't stop at the 'red' chair; walk to the bed's foot."
ENDS = "\n\nAnswer the formatting requirements:\n1. must contain {n} action predictions\n2. use full option text"


def jpeg(level: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (16, 12), (level % 256, 90, 40)).save(buffer, "JPEG")
    return buffer.getvalue()


def prompt(variant: str, instruction: str, history: int, n: int) -> str:
    """The two prompts that circulate."""
    if variant == "words":
        said, images = f"'{instruction}'", " ".join(["<image>"] * history)
        number, options = {4: "four", 6: "six"}[n], "\n".join(f"{WORDS[i]}." for i in (1, 2, 3, 0))
    else:
        said, images = repr(instruction), " ".join(["<image>"] * history) or "None"
        number, options = f"{n} actions", "\n".join(WORDS)
    return (
        f"Imagine you are a robot designed for navigation tasks. Your instruction is {said}.\nYou are provided with:\n"
        f"- Historical observations: {images} (if there are more than 16 frames, only 16 frames will be selected "
        f"evenly from the total history)\n- Current observation: <image>\n\nYour task is to select the next {number} "
        f"based on this information.\nOptions:\n{options}{ENDS.format(n=n)}"
    )


def release(root, variant="words", offset=1, n=4, episodes=None, listed=True):
    """Files in the authors' form; `episodes`: {id: (instruction, actions)}."""
    rows = []
    for name, (instruction, actions) in (episodes or {"2849": (TELL, ACTIONS)}).items():
        folder = root / f"rgb_images_r2r_train/ep_{name}/traj_7"
        folder.mkdir(parents=True)
        if listed:
            (folder / "action_list.json").write_text(json.dumps(actions))
        for step in range(len(actions)):
            (folder / f"step_{step}.jpg").write_bytes(jpeg(5 * step))
            seen = np.linspace(0, step - 1, min(step, 16), dtype=int).tolist()
            answer = [*actions, *[0] * (n + 1)][step + offset : step + offset + n]
            turns = [("human", prompt(variant, instruction, len(seen), n))]
            turns.append(("gpt", ", ".join(WORDS[action] for action in answer)))
            images = [f"elsewhere/rgb_images_r2r_train/ep_{name}/traj_7/step_{i}.jpg" for i in [*seen, step]]
            rows.append({"conversations": [{"from": who, "value": text} for who, text in turns], "images": images})
    (root / "released.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False))
    return rows


def convert(root, offset=1, **meta):
    """Read `released.json` and write it as a VLN-Ego folder."""
    released = read_sharegpt(root / "released.json", label_offset=offset)
    writer = EpisodeWriter(root / "ego", {"first_label": released.first_label, **meta})
    for episode, frames in released.episodes():
        writer.write(episode, frames)
    writer.close()
    return released


@pytest.mark.parametrize("variant", ["words", "digits"])
@pytest.mark.parametrize(("offset", "n"), [(1, 4), (0, 6)])
@pytest.mark.parametrize("listed", [True, False])
def test_every_released_record_is_found_again(tmp_path, variant, offset, n, listed):
    rows = release(tmp_path, variant, offset, n, listed=listed)
    released = convert(tmp_path, offset)
    assert (released.num_actions, released.other_history, released.skipped) == (n, 0, {})
    records = VLNEgo(tmp_path / "ego").records(make_memory("uniform", budget=16), n, offset)
    assert len(records) == len(rows) == len(ACTIONS)
    for row, record in zip(rows, records, strict=True):
        assert record.instruction == TELL
        assert ActionSpace().format(record.answer) == row["conversations"][1]["value"]
        originals = [tmp_path / image.removeprefix("elsewhere/") for image in row["images"]]
        assert [f.read_bytes() for f in record.frames] == [f.read_bytes() for f in originals]


def test_with_the_action_list_labels_need_not_be_shifted(tmp_path):
    release(tmp_path)
    convert(tmp_path)
    episode = VLNEgo(tmp_path / "ego").episodes[0]
    assert (episode.episode_id, list(episode.actions), episode.info) == ("2849", ACTIONS, {"trajectory_id": "7"})


def test_without_it_the_first_action_is_never_a_label(tmp_path):
    release(tmp_path, listed=False)
    convert(tmp_path)
    ego = VLNEgo(tmp_path / "ego")
    assert list(ego.episodes[0].actions[1:]) == ACTIONS[1:]
    with pytest.raises(RecordError, match=r"first actions are unknown .* set vlnr1\.data\.label_offset=1"):
        ego.records(make_memory("current"), 4)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("true_offset", [0, 1])
def test_the_wrong_offset_is_noticed(tmp_path, listed, true_offset):
    release(tmp_path, offset=true_offset, listed=listed)
    released = read_sharegpt(tmp_path / "released.json", label_offset=1 - true_offset)
    assert list(released.episodes()) == []
    assert f"shifted by {1 - true_offset}: check vlnr1.data.label_offset" in released.skipped["2849"]


def test_a_broken_episode_is_skipped_with_its_reason_and_the_rest_goes_on(tmp_path):
    release(tmp_path, episodes={"1": (TELL, [1, 1, 0]), "2": (TELL, [2, 0]), "3": (TELL, [0])})
    (tmp_path / "rgb_images_r2r_train/ep_1/traj_7/step_1.jpg").unlink()
    released = convert(tmp_path)
    assert [episode.episode_id for episode in VLNEgo(tmp_path / "ego").episodes] == ["2", "3"]
    assert "step_1.jpg: frame is missing" in released.skipped["1"]


def test_records_may_be_shuffled_and_read_in_small_pieces(tmp_path, monkeypatch):
    rows = release(tmp_path, episodes={"1": (TELL, [1, 1, 0]), "2": ("Go.", [2, 3, 0])}, listed=False)
    (tmp_path / "released.json").write_text(json.dumps(rows[::-1], indent=2))
    monkeypatch.setattr(sharegpt, "_CHUNK", 7)
    convert(tmp_path)
    assert {e.episode_id: e.actions[1:] for e in VLNEgo(tmp_path / "ego").episodes} == {"1": (1, 0), "2": (3, 0)}


def damaged(rows, change):
    if change == "cut":
        return json.dumps(rows)[:-40]
    if change == "images":
        del rows[1]["images"][0]
    elif change == "answer":
        rows[1]["conversations"][1]["value"] = "Stop, go on"
    elif change == "prompt":
        rows[1]["conversations"][0]["value"] = "What is in <image><image>?"
    elif change == "turns":
        del rows[1]["conversations"]
    elif change == "name":
        rows[1]["images"][-1] = "picture.png"
    elif change == "instruction":
        rows[1]["conversations"][0]["value"] = prompt("words", "Go away.", 1, 4)
    elif change == "label":
        rows[1]["conversations"][1]["value"] = ", ".join([WORDS[2]] * 4)
    return json.dumps(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cut", r"released\.json, record 3: cut, or not JSON"),
        ("images", "record 2: 2 times <image>, but 1 images"),
        ("answer", "record 2: the answer 'Stop, go on' is not a list of options"),
        ("prompt", "record 2: no instruction"),
        ("turns", "record 2: not a ShareGPT record: an object with the lists conversations and images is needed"),
        ("name", r"record 2: 'picture\.png' is neither"),
        ("instruction", "record 2: .*ep_1/traj_7 has another instruction"),
        ("label", r"record 2: step 2 of .*ep_1/traj_7 has two different labels"),
    ],
)
def test_a_bad_record_is_named(tmp_path, change, message):
    rows = release(tmp_path, episodes={"1": (TELL, [1, 1, 0])})
    (tmp_path / "released.json").write_text(damaged(rows, change))
    with pytest.raises(RecordError, match=message):
        read_sharegpt(tmp_path / "released.json", label_offset=1)


def question(change):
    def changed(row):
        row["conversations"][0]["value"] = change(row["conversations"][0]["value"])
        return row

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {**row, "conversations": row["conversations"][:1]}, "1 turns .*a question and its answer"),
        (lambda row: {**row, "conversations": 2 * row["conversations"]}, "4 turns"),
        (lambda row: {**row, "conversations": [None, None]}, "every turn of conversations must be an object"),
        (lambda row: {**row, "images": {"a": "b"}}, "images must be a list of paths"),
        (lambda row: {**row, "images": ["a" * 5000]}, "at most 4096 characters"),
        (lambda row: {**row, "images": [row["images"][0].replace("step_0", "step_" + "9" * 5000)]}, "at most 4096"),
        (lambda row: {**row, "images": [row["images"][0].replace("step_0", "step_" + "9" * 50)]}, "is neither"),
        (lambda row: None, "not a ShareGPT record"),
        (question(lambda text: text.replace("30 degrees", "1.2.3 degrees")), "could not convert string to float"),
        (question(lambda text: text.replace("30 degrees", "nan degrees")), r"turn_angle must be in \(0, 180\]"),
        (question(lambda text: text.replace("25 cm", "-25 cm")), "forward_step must be in"),
        (question(lambda text: text.replace("30 degrees", "half a circle")), "its prompt has no options"),
        (question(lambda text: text.replace("is 'Turn", "is Turn")), "no instruction"),
        (question(lambda text: text.replace("left 30", "left 15")), "its prompt says .* 15 degrees, the first .* 30"),
    ],
)
def test_small_deviations_are_named_with_file_and_record(tmp_path, change, message):
    rows = release(tmp_path, episodes={"1": ("Turn left 90 degrees.", [0]), "2": ("Turn.", [0])})
    rows[1] = change(rows[1])
    (tmp_path / "released.json").write_text(json.dumps(rows))
    with pytest.raises(RecordError, match=rf"released\.json, record 2: .*{message}"):
        read_sharegpt(tmp_path / "released.json", label_offset=1)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (lambda text: text.replace("Turn", "T\xfcrn").encode("latin-1"), "record 1: its words are not UTF-8"),
        (lambda text: b"\n".join(json.dumps(row).encode() for row in json.loads(text)), "not a JSON list"),
        (lambda text: (text + text).encode(), "more stands after the end of its list, at record 1"),
        (lambda text: b"[" * 100_000, "record 1: not a ShareGPT record"),
        (lambda text: b"[" + b"9" * 10_000 + b"]", "record 1: not a ShareGPT record"),
        (lambda text: b"", "not a JSON list"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path, raw, message):
    release(tmp_path, episodes={"1": ("Turn.", [0])})
    file = tmp_path / "released.json"
    file.write_bytes(raw(file.read_text()))
    with pytest.raises(RecordError, match=rf"released\.json.*{message}"):
        read_sharegpt(file, label_offset=1)


def test_what_stands_in_the_instruction_is_not_taken_for_the_angle(tmp_path):
    release(tmp_path, episodes={"1": ("Turn left 90 degrees, go forward 200 cm.", [0])})
    released = read_sharegpt(tmp_path / "released.json", label_offset=1)
    assert (released.forward_step, released.turn_angle) == (0.25, 30)


def test_system_turns_one_image_as_text_and_a_byte_order_mark_are_read(tmp_path):
    rows = release(tmp_path, episodes={"1": (TELL, [2, 1, 0])})
    for row in rows:
        row["conversations"].insert(0, {"from": "system", "value": "You are a robot."})
    rows[0]["images"] = rows[0]["images"][0]
    (tmp_path / "released.json").write_text(json.dumps(rows), encoding="utf-8-sig")
    convert(tmp_path)
    assert VLNEgo(tmp_path / "ego").episodes[0].actions == (2, 1, 0)


def test_a_frame_outside_the_folder_is_not_taken(tmp_path):
    root = tmp_path / "data"
    rows = release(root, episodes={"1": (TELL, [0])})
    (root / "rgb_images_r2r_train").rename(tmp_path / "secret")
    rows[0]["images"] = ["x/../../secret/ep_1/traj_7/step_0.jpg"]
    (root / "released.json").write_text(json.dumps(rows))
    released = read_sharegpt(root / "released.json", label_offset=1)
    assert list(released.episodes()) == []
    assert "must not contain .." in released.skipped["1"]


# ------------------------------------------------------------------------------------------------------ writing
@pytest.fixture
def records(tmp_path):
    release(tmp_path, episodes={"1": (TELL, ACTIONS), "2": ("Go on.", [2, 1, 0])})
    convert(tmp_path)
    return VLNEgo(tmp_path / "ego").records(make_memory("long_short"), 6)


def test_what_is_written_is_what_llama_factory_asks_for(tmp_path, records):
    out = tmp_path / "out"
    write_sharegpt(records, get_template("vln_ego"), ActionSpace(turn_angle=15), out, "mine")
    entry = json.loads((out / "dataset_info.json").read_text())["mine"]
    assert entry["columns"] == {"messages": "conversations", "images": "images"}
    rows = [row for file in sorted((out / entry["file_name"]).iterdir()) for row in json.loads(file.read_text())]
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        question, answer = row["conversations"]
        assert (question["from"], answer["from"]) == ("human", "gpt")
        assert question["value"].count("<image>") == len(row["images"])
        assert "Turn left 15 degrees" in question["value"]
        assert answer["value"] == ActionSpace(turn_angle=15).format(record.answer)
        assert [(out / i).read_bytes() for i in row["images"]] == [f.read_bytes() for f in record.frames]


@pytest.mark.parametrize("offset", [0, 1])
def test_our_own_files_are_read_back(tmp_path, offset):
    release(tmp_path, episodes={"1": (TELL, ACTIONS), "2": ("Go on.", [2, 1, 0])})
    convert(tmp_path)
    ego = VLNEgo(tmp_path / "ego")
    out = tmp_path / "out"
    records = ego.records(make_memory("uniform", budget=16), 6, offset)
    write_sharegpt(records, get_template("vln_ego"), ActionSpace(turn_angle=15), out, "mine")
    released = read_sharegpt(out / "records", label_offset=offset)
    assert (released.turn_angle, released.forward_step, released.other_history) == (15, 0.25, 0)
    again = {episode.episode_id: (episode, frames) for episode, frames in released.episodes()}
    for episode in ego.episodes:
        read, frames = again[episode.episode_id]
        assert (read.scene, read.instruction) == (episode.scene, episode.instruction)
        assert read.actions[offset:] == episode.actions[offset:]
        assert frames[3 - 1].read_bytes() == (ego.root / episode.frame(2)).read_bytes()


@pytest.mark.parametrize("packed", [False, True])
def test_episodes_that_share_frames_are_told_apart(tmp_path, packed):
    writer = EpisodeWriter(tmp_path / "ego", {"packed": packed})
    first = Episode("1", "house", "Walk on.", (1, 3, 0))
    writer.write(first, [jpeg(i) for i in range(3)])
    writer.write(replace(first, episode_id="2", instruction="Go there.", frames_of="1"), [])
    writer.close()
    records = VLNEgo(tmp_path / "ego").records(make_memory("uniform", budget=16), 6)
    write_sharegpt(records, get_template("vln_ego"), ActionSpace(), tmp_path / "out", "mine")
    assert len(list((tmp_path / "out/frames").rglob("*.jpg"))) == 3
    read = {episode.episode_id: (episode, frames) for episode, frames in read_sharegpt(tmp_path / "out").episodes()}
    for walk in VLNEgo(tmp_path / "ego").episodes:
        again, frames = read[walk.episode_id]
        assert (again.instruction, again.actions) == (walk.instruction, walk.actions)
        assert [frame.read_bytes() for frame in frames] == [jpeg(i) for i in range(3)]


def test_the_folder_that_we_have_written_is_read_as_it_stands(tmp_path, records):
    out = tmp_path / "out"
    write_sharegpt(records, get_template("vln_ego"), ActionSpace(), out, "mine")
    (out / "source.json").write_text("{}")
    assert {episode.episode_id for episode, _ in read_sharegpt(out).episodes()} == {"1", "2"}


def test_labels_of_a_walk_are_written_and_not_read_back_as_what_was_done(tmp_path):
    writer = EpisodeWriter(tmp_path / "walked", {})
    walk = Episode("1", "house", "Go.", (1, 1, 1), labels={0: (2, 0), 1: (0,), 2: (0,)})
    writer.write(walk, [jpeg(i) for i in range(3)])
    writer.close()
    records = VLNEgo(tmp_path / "walked").records(make_memory("current", budget=0), 1)
    write_sharegpt(records, get_template("vln_ego"), ActionSpace(), tmp_path / "out", "mine")
    rows = json.loads((tmp_path / "out/records/00000.json").read_text())
    assert [row["conversations"][1]["value"] for row in rows] == [WORDS[2], WORDS[0], WORDS[0]]
    with pytest.raises(RecordError, match="record 1: its answers are labels of a walk that was not the expert's"):
        read_sharegpt(tmp_path / "out")


def test_an_interrupted_writing_goes_on(tmp_path, records, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(sharegpt, "RECORDS_PER_FILE", 10)
    template = get_template("vln_ego")
    whole = sharegpt.sharegpt_row

    def fails(record, *rest):
        if record.episode.episode_id == "1" and record.step == 15:
            raise KeyboardInterrupt
        return whole(record, *rest)

    monkeypatch.setattr(sharegpt, "sharegpt_row", fails)
    with pytest.raises(KeyboardInterrupt):
        write_sharegpt(records, template, ActionSpace(), out, "mine")
    assert [f.name for f in (out / "records").iterdir()] == ["00000.json"]
    before = (out / "records/00000.json").stat().st_mtime_ns
    monkeypatch.setattr(sharegpt, "sharegpt_row", whole)
    write_sharegpt(records, template, ActionSpace(), out, "mine")
    counts = [len(json.loads(f.read_text())) for f in sorted((out / "records").iterdir())]
    assert (counts, before) == ([10, 10, 9], (out / "records/00000.json").stat().st_mtime_ns)


def test_an_instruction_with_an_image_mark_is_refused(tmp_path):
    release(tmp_path, episodes={"1": ("Go.", [0])})
    convert(tmp_path)
    file = tmp_path / "ego/episodes.jsonl"
    file.write_text(file.read_text().replace("Go.", "Go to <image>."))
    records = VLNEgo(tmp_path / "ego").records(make_memory("current"), 1)
    with pytest.raises(RecordError, match="episode 1: its instruction contains <image>"):
        write_sharegpt(records, get_template("vln_ego"), ActionSpace(), tmp_path / "out", "mine")
