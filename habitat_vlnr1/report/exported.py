"""An exported data set as the report shows it: counts, and episodes with their frames and what is taught there."""

from __future__ import annotations

from typing import Any

import numpy as np

from habitat_vlnr1.actions import Action, ActionSpace
from habitat_vlnr1.frame_files import decode_picture, read_picture
from habitat_vlnr1.memory import Memory
from habitat_vlnr1.records import Episode, Records, VLNEgo, summarize
from habitat_vlnr1.report.recording import small_jpeg, spread, text_of

LISTED = 5000
"""The most episodes that are listed; of more, so many are taken, spread evenly."""


def exported_episodes(records: Records, space: ActionSpace, budget: int) -> list[dict[str, Any]]:
    """The episodes as the page wants them; frames of as many, spread evenly, as `budget` bytes allow.

    Raises:
        RecordError: a frame cannot be read.
    """
    (ego,) = records.sources
    listed = [ego.episodes[number] for number in spread(len(ego.episodes), LISTED)]
    made = [_episode(episode) for episode in listed]
    first = _frames(ego, listed[0])
    size = sum(map(len, first.values())) * sum(len(e.actions) for e in listed) / len(listed) / len(first)
    used = 0
    for number in spread(len(listed), int(budget // size)) if budget >= size else ():
        frames = _frames(ego, listed[number])
        used += sum(map(len, frames.values()))
        if used > budget:
            break
        (walk,) = made[number]["walks"].values()
        walk |= {"frames": frames, "answers": _answers(records, listed[number], space), "memory": True}
    return made


def history(memory: Memory, episodes: list[dict[str, Any]]) -> list[list[int]]:
    """Which steps the memory shows at each step, for the longest of these episodes."""
    longest = max(walk["steps"] for episode in episodes for walk in episode["walks"].values())
    return [list(memory.select(step)) for step in range(longest)]


def exported_table(name: str, ego: VLNEgo, space: ActionSpace, seen: str) -> dict[str, Any]:
    """Counts of the data set.

    Args:
        seen: which frames the model is shown, in words.
    """
    counts = summarize(ego.episodes)
    lengths = [len(episode.actions) for episode in ego.episodes]
    total = max(sum(counts["actions"].values()), 1)
    rows = [
        ["episodes", f"{len(lengths):,} in {len({e.scene for e in ego.episodes}):,} scenes"],
        ["records (steps)", f"{counts['records']:,}"],
        ["steps per episode", f"{np.mean(lengths):.1f} on average, {min(lengths)} to {max(lengths)}"],
        *([space.phrase(a), f"{counts['actions'][a.name.lower()] / total:.1%} of the actions"] for a in Action),
    ]
    return {"title": f"Data set {name}", "about": seen, "columns": ["", ""], "rows": rows, "notes": []}


def _episode(episode: Episode) -> dict[str, Any]:
    facts = [[key, str(value)] for key, value in episode.info.items() if not isinstance(value, list | dict)]
    walk = {"steps": len(episode.actions), "actions": list(episode.actions), "stopped": episode.actions[-1] == 0}
    place = {"id": episode.episode_id, "scene": episode.scene, "group": "", "instruction": episode.instruction}
    return {**place, "facts": facts, "walks": {"model" if episode.labels else "expert": walk}}


def _frames(ego: VLNEgo, episode: Episode) -> dict[int, str]:
    paths = (ego.root / episode.frame(step) for step in range(len(episode.actions)))
    return {step: text_of(small_jpeg(decode_picture(read_picture(path)))) for step, path in enumerate(paths)}


def _answers(records: Records, episode: Episode, space: ActionSpace) -> dict[int, str]:
    """What is taught at each step, and what the frame shows where the export says it."""
    taught = {
        step: f"taught: {space.format(episode.answer(step, records.num_actions, records.label_offset))}"
        for step in episode.steps
    }
    shown = {step: f"shows: {text}" for step, text in enumerate(episode.descriptions) if text}
    steps = sorted(taught.keys() | shown.keys())
    return {step: "\n".join(part[step] for part in (taught, shown) if step in part) for step in steps}
