"""How many forward passes an answer takes when frequent answers are tried at once, counted on recorded walks.

    python benchmarks/drafts.py data/vln_ego/embedded/train/episodes.jsonl \\
        data/vlnr1/quickstart/results/vlnr1_sft/val_unseen/episodes.jsonl
    python benchmarks/drafts.py train_gt.json.gz val_unseen_gt.json.gz

The answers of the first file's walks, at every step, say what is tried; those of the second's, every --horizon steps,
are decided. Files are lines with `actions` (an export's, an evaluation's) or VLN-CE's ground truth. The figures are
those of `ActionDecoder.counts` where a model answers so; a test holds the two together.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from habitat_vlnr1.actions import Action, next_actions
from habitat_vlnr1.lvlm.drafts import choose_drafts, paths_from, paths_of

Answer = tuple[Action, ...]


def walks(file: Path) -> list[list[int]]:
    """The actions of a file's episodes."""
    if file.name.endswith(".json.gz"):
        with gzip.open(file, "rt") as opened:
            return [truth["actions"] for truth in json.load(opened).values()]
    return [json.loads(line)["actions"] for line in file.read_text().splitlines()]


def answers(file: Path, n: int, every: int) -> list[Answer]:
    return [next_actions(walk, step, n) for walk in walks(file) for step in range(0, len(walk), every)]


def passes(answer: Answer, drafts: Sequence[Answer]) -> int:
    """Forward passes until an answer's last decision; behind a STOP there is none."""
    n = len(answer)
    decisions = answer.index(Action.STOP) + 1 if Action.STOP in answer else n
    run = set(paths_of(drafts, n, stop_is_final=True))
    made, count = 1, 1
    while made < decisions:
        if answer[:made] not in run:
            run = set(paths_from(answer[:made], n) if drafts else (answer[:made],))
            count += 1
        made += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("known", type=Path, help="whose answers are tried")
    parser.add_argument("asked", type=Path, help="whose answers are decided")
    parser.add_argument("--num-actions", type=int, default=6)
    parser.add_argument("--horizon", type=int, default=6, help="steps between queries")
    parser.add_argument("--drafts", type=int, nargs="+", default=[0, 4, 8, 12, 16], help="answers tried at once")
    options = parser.parse_args()
    n = options.num_actions
    known = Counter(answers(options.known, n, 1))
    asked = answers(options.asked, n, options.horizon)
    frequent = [answer for answer, _ in known.most_common(32)]
    print(f"{len(asked)} answers; words of so many actions run beside the prompt, and mean passes per answer:")
    choices = {"FORWARD alone": choose_drafts((), 1, n)} | {
        f"{count} drafts": choose_drafts(frequent, count, n) for count in options.drafts
    }
    for name, drafts in choices.items():
        beside = len(paths_of(drafts, n, stop_is_final=True))
        print(f"{name:14} {beside:3} {sum(passes(answer, drafts) for answer in asked) / len(asked):6.2f}")


if __name__ == "__main__":
    main()
