"""Questions answered by several seeds: means over seeds, and whether one row answers more than another.

    for s in 0 1 2; do
      python -m habitat_baselines.run --config-name=vlnr1_eqa habitat.seed=$s vlnr1.run_dir=data/vlnr1/eqa$s
    done
    python benchmarks/questions.py data/vlnr1/eqa0/results data/vlnr1/eqa1/results data/vlnr1/eqa2/results

A question counts as answered where the answer, without case, articles and punctuation, is one of the accepted ones.
Questions about one walk are no independent draws, so standard errors are over walks, of a question's mean over the
seeds: they say how far other walks would differ. The spread over seeds stands beside them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from habitat_vlnr1.evaluation.question_run import mean_and_error
from habitat_vlnr1.qa_metrics import normalised_match
from habitat_vlnr1.questions import Question, read_questions
from habitat_vlnr1.records import VLNEgo

PAIRS = (
    ("long_short", "current"), ("uniform_16", "current"), ("long_short", "uniform_16"),
    ("current", "majority"), ("current", "wording"), ("current", "blind"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="results_dir of each seed")
    unseen = Path("data/vln_ego/embedded/val_unseen")
    parser.add_argument("--ego", type=Path, default=unseen, help="has the questions")
    options = parser.parse_args()
    questions, _ = read_questions(VLNEgo(options.ego))
    rows = [path.name for path in sorted((options.results[0] / "questions").iterdir()) if path.is_dir()]
    right = {row: np.array([matches(folder, row, options.ego.name, questions) for folder in options.results])
             for row in rows}  # fmt: skip
    walks = [question.history for question in questions]
    kinds = list(dict.fromkeys(question.category for question in questions))
    print("| row | by seed | mean | " + " | ".join(kinds) + " |\n|---|---:|---:|" + "---:|" * len(kinds))
    for row, by_seed in right.items():
        mean, error = mean_and_error(zip(walks, by_seed.mean(0), strict=True))
        seeds = ", ".join(f"{share:.3f}" for share in by_seed.mean(1))
        apart = (by_seed[:, [question.category == kind for question in questions]].mean() for kind in kinds)
        cells = " | ".join(f"{share:.3f}" for share in apart)
        print(f"| {row} | {seeds} | {mean:.3f} ± {error:.3f} | {cells} |")
    for more, less in PAIRS:
        if more in right and less in right:
            gain, error = mean_and_error(zip(walks, (right[more] - right[less]).mean(0), strict=True))
            assert gain is not None and error is not None, "there are questions"
            print(f"{more} − {less}: {gain:+.3f} ± {error:.3f} ({gain / error:+.1f} standard errors)")


def matches(folder: Path, row: str, split: str, questions: list[Question]) -> list[float]:
    """Whether a row has answered each question."""
    lines = (folder / "questions" / row / split / "predictions.jsonl").read_text().splitlines()
    answers = {line["question_id"]: line["answer"] for line in map(json.loads, lines)}
    return [normalised_match(answers[question.question_id], question.answers) for question in questions]


if __name__ == "__main__":
    main()
