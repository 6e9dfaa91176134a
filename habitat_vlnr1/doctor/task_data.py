"""A task's own data: episode files, ground truth, scenes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from habitat import make_dataset
from omegaconf import DictConfig

from habitat_vlnr1.config import edited
from habitat_vlnr1.doctor.findings import Finding, error, ok, shown, warning
from habitat_vlnr1.sim.episode_files import path_digest
from habitat_vlnr1.sim.task_files import files_of

RUN = "python -m habitat_baselines.run --config-name="
WHERE_FROM = {
    "VLN-CE-v1": "fetch R2R_VLNCE_v1-3_preprocessed (https://github.com/jacobkrantz/VLN-CE, Data) and unpack it there",
    "RxR-VLN-CE-v1": "fetch RxR_VLNCE_v0 (https://github.com/jacobkrantz/VLN-CE, Data) and unpack it there",
}
SCENES_FROM = (
    "ask for Matterport3D (https://niessner.github.io/Matterport/), then python download_mp.py --task habitat "
    "-o data/scene_datasets/mp3d/, so that data/scene_datasets/mp3d/<scene>/<scene>.glb is there"
)


class TaskData:
    """Looks at the configured task's splits; afterwards it knows what an export will walk.

    Attributes:
        steps: split → mean steps of its ground truth.
        walks: split → number of walks; episodes that differ in words alone share one, and its frames.
    """

    def __init__(self, config: DictConfig):
        self.config = config
        self.steps: dict[str, float] = {}
        self.walks: dict[str, int] = {}
        self.generated = config.vlnr1.task.scenes is not None
        self.needed = {*config.vlnr1.export.splits, config.habitat_baselines.eval.split}
        self._scenes: dict[str, None] = {}

    @property
    def splits(self) -> list[str]:
        """Those of `vlnr1.doctor.splits`, and every other that the config names."""
        listed = [*self.config.vlnr1.doctor.splits, *sorted(self.needed), self.config.habitat.dataset.split]
        return list(dict.fromkeys(listed))

    def check_episodes(self) -> Iterator[Finding]:
        """Each split's episode file and ground truth."""
        for split in self.splits:
            yield from self._check_split(split)

    def _check_split(self, split: str) -> Iterator[Finding]:
        topic = f"episodes of {split}"
        dataset_config = self.config.habitat.dataset
        files = files_of(dataset_config, dataset_config.data_path, split)
        missing = [file for file in files if not os.path.exists(file)]
        if missing:
            yield self._missing(topic, split, missing)
            return
        truths = files_of(dataset_config, dataset_config.get("gt_path"), split)
        no_truth = [file for file in truths if not os.path.exists(file)]
        changes: dict[str, Any] = {"habitat.dataset.split": split}
        if no_truth:
            changes["habitat.dataset.gt_path"] = None
        own = edited(self.config, **changes).habitat.dataset
        try:
            dataset = make_dataset(own.type, config=own)
        except (ValueError, OSError) as problem:
            yield error(topic, str(problem), self._source())
            return
        yield from self._describe(topic, split, dataset)
        if no_truth:
            yield warning(
                f"ground truth of {split}",
                f"no {shown(no_truth)}: no expert=ground_truth, and nDTW is measured against reference_path",
                f"{self._source()}; or habitat.dataset.gt_path=null",
            )
        elif truths:
            yield from self._check_truth(split, dataset, truths)

    def _missing(self, topic: str, split: str, files: list[str]) -> Finding:
        text = f"no {shown(files)}"
        if self.generated:
            return warning(topic, f"{text}; nothing is lost: the first run generates it", self._source())
        return (error if split in self.needed else warning)(topic, text, self._source())

    def _source(self) -> str:
        """Where this task's episode files come from."""
        if self.generated:
            return f"{RUN}vlnr1_export generates houses and episodes, or make quickstart"
        return WHERE_FROM.get(self.config.habitat.dataset.type, "correct habitat.dataset.data_path")

    def _describe(self, topic: str, split: str, dataset: Any) -> Iterator[Finding]:
        """Counts of a readable split, and what its episodes lack."""
        episodes = dataset.episodes
        scenes = dict.fromkeys(episode.scene_id for episode in episodes)
        self._scenes |= scenes
        self.walks[split] = len({path_digest(episode, self.config.vlnr1.task.expert) for episode in episodes})
        yield ok(topic, f"{len(episodes):,} in {len(scenes)} scenes, {self.walks[split]:,} different walks")
        if dataset.left_out:
            names = shown(f"{entry.episode_id} ({entry.reason})" for entry in dataset.left_out)
            yield warning(topic, f"{len(dataset.left_out)} left out: {names}", self._source())
        without = [episode.episode_id for episode in episodes if not episode.goals]
        if without and "distance_to_goal" in self.config.habitat.task.measurements:
            task = f"{self.config.vlnr1.task.name}_test"
            yield warning(
                topic, f"{len(without)} have no goal (first: {without[0]}): success cannot be measured",
                f"vlnr1/task={task} for submission files",
            )  # fmt: skip

    def _check_truth(self, split: str, dataset: Any, files: list[str]) -> Iterator[Finding]:
        topic = f"ground truth of {split}"
        lengths, problems = [], []
        for episode in dataset.episodes:
            try:
                lengths.append(len(dataset.ground_truth(episode.episode_id).actions))
            except ValueError as problem:
                if str(problem) in problems:  # the same for a second episode: it is the whole file
                    yield error(topic, str(problem), self._source())
                    return
                problems.append(str(problem))
        if problems:
            remedy = f"take the file that belongs to the episodes: {self._source()}; or habitat.dataset.gt_path=null"
            yield error(topic, f"{len(problems)} of {len(dataset.episodes)} unusable: {shown(problems, 1)}", remedy)
        if lengths:
            self.steps[split] = float(np.mean(lengths))
            yield ok(
                topic, f"{len(lengths):,} paths of {np.mean(lengths):.1f} steps on average, at most {max(lengths)}"
            )

    def check_scenes(self) -> Iterator[Finding]:
        """Whether each scene that an episode names is there and whole, and has its navmesh."""
        folder = self.config.habitat.dataset.scenes_dir
        remedy = f"{RUN}vlnr1_export generates them" if self.generated else SCENES_FROM
        if not os.path.isdir(folder):
            level = warning if self.generated else error
            yield level("scenes", f"no folder {folder} (habitat.dataset.scenes_dir)", remedy)
            return
        if not self._scenes:
            found = sum(1 for _ in Path(folder).glob("*/*/*.glb"))
            yield ok("scenes", f"{found} .glb below {folder}; which are needed is unknown without episodes")
            return
        missing = [scene for scene in self._scenes if not os.path.isfile(scene)]
        there = [scene for scene in self._scenes if scene not in set(missing)]
        if missing:
            yield error("scenes", f"{len(missing)} of {len(self._scenes)} missing: {shown(missing)}", remedy)
        broken = [f"{scene} ({problem})" for scene in there if (problem := glb_problem(scene))]
        if broken:
            yield error("scenes", f"{len(broken)} cannot be read: {shown(broken)}", f"delete them; {remedy}")
        if there and not missing and not broken:
            yield ok("scenes", f"all {len(there)} are there")
        yield from self._check_navmeshes(there)

    def _check_navmeshes(self, scenes: list[str]) -> Iterator[Finding]:
        from habitat_vlnr1.doctor.environment import simulator_version

        without = [scene for scene in scenes if not Path(scene).with_suffix(".navmesh").is_file()]
        if simulator_version().endswith("+embedded"):
            if scenes:
                yield ok("navmesh", "made from the scenes by the embedded simulator; .navmesh files are not read")
        elif without and not self.generated:
            yield warning(
                "navmesh",
                f"{len(without)} of {len(scenes)} scenes have no .navmesh beside the .glb: {shown(without)}; "
                "habitat-sim makes one at each load, slowly, and geodesic distances differ from published ones",
                SCENES_FROM,
            )
        elif scenes:
            yield ok("navmesh", f"{len(scenes) - len(without)} of {len(scenes)} scenes have one beside the .glb")


def glb_problem(path: str) -> str | None:
    """What is wrong with a scene file as far as its header tells, or None."""
    if not path.endswith(".glb"):
        return None
    with open(path, "rb") as file:
        header = file.read(12)
    if header[:4] != b"glTF" or len(header) < 12:
        return "no glTF header"
    length, size = int.from_bytes(header[8:12], "little"), os.path.getsize(path)
    return f"{size} of {length} bytes" if size < length else None
