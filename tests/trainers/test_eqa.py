"""Questions beside navigation: training on both, the table, and answers that are rewarded."""

import json

import pytest
from habitat_baselines.config.default import get_config

from habitat_vlnr1.errors import MissingFileError, RecordError
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.inputs import SFTCollator
from habitat_vlnr1.questions import Question, write_questions
from habitat_vlnr1.records import VLNEgo, keep_some
from habitat_vlnr1.trainers.eqa import answer_open_eqa, answer_rows
from habitat_vlnr1.trainers.fitting import open_records
from habitat_vlnr1.trainers.mixture import mixed, open_more
from habitat_vlnr1.trainers.mp3d_eqa import NO_ANSWER, answer_number
from habitat_vlnr1.trainers.rft import RFTTrainer
from habitat_vlnr1.trainers.rft_fit import fit as fit_rft
from habitat_vlnr1.trainers.sft_fit import fit, starting_model
from tests.interchange.test_open_eqa import draw, entry, write
from tests.paths import CONFIGS
from tests.tiny_run import jpeg
from tests.trainers.small_runs import COMMON, RFT, SFT, furnish, inside

SMALL = [*COMMON, "vlnr1.model.path=base", "vlnr1.memory.budget=2"]
MEMORIES = [
    "~vlnr1.data.question_memories.long_short",
    "~vlnr1.data.question_memories.uniform_16",
    "+vlnr1.data.question_memories.uniform_2={strategy: uniform, budget: 2}",
]
ROWS = ["majority", "wording", "blind", "current", "uniform_2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = furnish(tmp_path_factory.mktemp("eqa"))
    for split in ("train", "val_unseen"):
        questions = [
            Question("0-1", "What colour is the bed?", ("red", "red bed"), "attribute recognition", "0"),
            Question("0-2", "Where is it?", ("left",), "spatial understanding", "0"),
            Question("1-1", "What colour is the bed?", ("blue",), "attribute recognition", "1"),
        ]
        write_questions(home / "data/vln_ego/embedded" / split, questions)
    return home


def settings(*overrides, name="vlnr1_eqa.yaml", options=(*MEMORIES, *SFT)):
    return get_config(name, [*SMALL, "vlnr1.run_dir=run", *options, *overrides], CONFIGS)


def test_navigation_and_questions_share_a_batch_with_the_loss_on_answers_only(home, monkeypatch):
    with inside(home, monkeypatch):
        config = settings("vlnr1.data.weights={embedded: 0.5}", "vlnr1.data.questions={embedded: 2}")
        records = open_records(config, [("embedded", "train")])
        mixture = mixed(config, records, open_more(config))
        assert [part.name for part in mixture.parts] == [
            "navigation", "questions embedded (current)", "questions embedded (uniform_2)",
        ]  # fmt: skip
        assert len(mixture) == len(records) + 2 * 3
        rows = mixture.rows(0)["index"]
        assert [len(records), len(records) + 1] in rows  # the two about one walk share a row
        assert sum(row[0] < len(records) for row in rows) == 1  # half of two rows
        _, processor = checkpoint.load("base")
        from habitat_vlnr1.config import prompt_encoder

        encoder = prompt_encoder(config, processor)
        for index, words in ((len(records), "red"), (0, encoder.space.format(records[0].answer))):
            batch = SFTCollator(encoder, mixture.__getitem__)([{"index": [index]}])
            labels = batch["labels"][batch["labels"] >= 0].tolist()
            assert encoder.tokenizer.decode(labels) == f"{words}<|im_end|>"


def test_navigation_alone_is_drawn_as_ever(home, monkeypatch):
    with inside(home, monkeypatch):
        config = settings("~vlnr1.data.questions.embedded", "~vlnr1.data.weights.embedded")
        records = open_records(config, [("embedded", "train")])
        rows = mixed(config, records, open_more(config)).rows(0)
        assert rows["index"] == records.rows(8, keep_some(6, config.vlnr1.sft.keep_straight, config.habitat.seed))


def test_it_trains_and_answers_in_every_row(home, monkeypatch, capsys):
    with inside(home, monkeypatch):
        config = settings()
        records = open_records(config, [("embedded", "train")])
        more = open_more(config)
        fit(config, starting_model(config, records), records, more=more)
        card = checkpoint.read_card(checkpoint.newest_checkpoint("run/checkpoints"))
        assert card.info["run"]["mixture"]["records"] == {part.name: 3 for part in more}
        config = settings(f"vlnr1.eqa.rows={ROWS}")
        ego = VLNEgo("data/vln_ego/embedded/val_unseen")
        from habitat_vlnr1.memory import make_memory
        from habitat_vlnr1.questions import QuestionRecords, read_questions

        questions, _ = read_questions(ego)
        shown = QuestionRecords(ego, questions, make_memory("current")).shown
        assert answer_rows(config, questions, shown, home / "answers", "val_unseen") == []
        printed = capsys.readouterr().out
        assert all(f"| {row}" in printed for row in ROWS)
        assert (home / "answers/table-val_unseen.md").read_text() in printed
        assert (home / "answers/sheet-val_unseen.png").is_file()
        marks = json.loads((home / "answers/majority/val_unseen/answers.json").read_text())
        assert marks["metrics"]["all"]["questions"] == 3


def test_open_eqa_goes_on_without_missing_histories(home, monkeypatch, tmp_path, capsys):
    with inside(home, monkeypatch):
        write(tmp_path, entry(1), entry(2, "scannet-v0/001-b"), entry(3, category="smell"))
        draw(tmp_path / "frames/hm3d-v0/000-a", 3)
        config = settings(
            f"vlnr1.eqa.open_eqa.file={tmp_path}/open-eqa-v0.json",
            f"vlnr1.eqa.open_eqa.frames={tmp_path}/frames",
            "vlnr1.eqa.rows=[current]",
            "vlnr1.checkpoint=base",
            "vlnr1.run_dir=open",
        )
        left_out = answer_open_eqa(config)
        assert len(left_out) == 1 and "smell" in left_out[0]
        assert "1 histories have no frames" in capsys.readouterr().out
        predictions = json.loads((home / "open/results/open_eqa/current/v0/open-eqa-predictions.json").read_text())
        assert [row["question_id"] for row in predictions] == ["id-1"]


def test_answers_are_rewarded(home, monkeypatch):
    with inside(home, monkeypatch):
        options = [o for o in RFT if "eval" not in o]
        config = settings(
            "vlnr1.data.rft_questions={embedded: 3}", "vlnr1.rft.held_out.records=2", "vlnr1.rft.start=base",
            "vlnr1.rft.eval_strategy=no", "vlnr1.rft.eval_on_start=false", "vlnr1.task.questions=null",
            "vlnr1.rft.logging_steps=1",
            name="vlnr1_eqa_rft.yaml", options=options,
        )  # fmt: skip
        trainer = RFTTrainer.__new__(RFTTrainer)
        trainer.config = config
        monkeypatch.setattr("habitat_vlnr1.trainers.fitting.export_missing", lambda *args: None)
        monkeypatch.setattr("habitat_vlnr1.trainers.export.add_questions", lambda *args: None)
        asked = trainer._asked()
        assert len(asked.train) == 3 and len(asked.held_out) == 2
        fit_rft(config, "base", asked)
        newest = checkpoint.newest_checkpoint("run/rft/checkpoints")
        log = json.loads((home / newest / "trainer_state.json").read_text())["log_history"]
        assert any("rewards/answer_match/mean" in row for row in log)


def test_image_text_data_is_mixed_in(home, monkeypatch):
    with inside(home, monkeypatch):
        (home / "a.jpg").write_bytes(jpeg(1))
        turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A bed."}]
        (home / "more.json").write_text(json.dumps([{"image": "a.jpg", "conversations": turns}]))
        config = settings("~vlnr1.data.questions.embedded", "+vlnr1.data.image_text={more.json: 3}")
        records = open_records(config, [("embedded", "train")])
        mixture = mixed(config, records, open_more(config))
        assert mixture[len(records)].answer == "A bed."
        assert mixture.rows(0)["index"].count([len(records)]) == 3


def test_questions_that_are_not_there_are_named(home, monkeypatch):
    with inside(home, monkeypatch):
        (home / "data/vln_ego/bare").mkdir(exist_ok=True)
        config = settings("+vlnr1.data.questions.bare=1")
        with pytest.raises(RecordError, match="data/vln_ego/bare/train"):
            open_more(config)


def test_a_checkpoint_that_is_not_there_names_the_command(home, monkeypatch):
    from habitat_vlnr1.trainers.eqa import make_text_decoder

    with inside(home, monkeypatch), pytest.raises(MissingFileError, match=r"vlnr1\.checkpoint"):
        make_text_decoder(settings("vlnr1.run_dir=nothing"))


def test_an_answer_in_words_becomes_one_of_the_data_set():
    answers = ["<unk>", "red", "red room", "wood"]
    assert answer_number("Red.", answers) == 1
    assert answer_number("in the red room", answers) == 2
    assert answer_number("a shelf", answers) == NO_ANSWER
