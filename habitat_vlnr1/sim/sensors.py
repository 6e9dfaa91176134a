"""Lab sensors: the instruction as bytes, the clock that identifies a rollout, and what the agent sees in words.

The expert's action is in `expert.py`. Habitat calls lab sensors after the simulator's; a call without `action`
is the one of `reset`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gym import spaces
from habitat.config.default_structured_configs import LabSensorConfig
from habitat.core.registry import registry
from habitat.core.simulator import Sensor, SensorTypes
from habitat.tasks.vln.vln import VLNEpisode
from hydra.core.config_store import ConfigStore

from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.observations import CLOCK, DESCRIPTION, INSTRUCTION, draw_environment, encode_text, rollout_id
from habitat_vlnr1.sim.describe import describe, describe_cells


def store_lab_sensor(name: str, node: type) -> None:
    """Makes `node` selectable as `/habitat/task/lab_sensors: name`."""
    ConfigStore.instance().store(
        package=f"habitat.task.lab_sensors.{name}", group="habitat/task/lab_sensors", name=name, node=node
    )


class LabSensor(Sensor):
    """A lab sensor whose observation key is `uuid` and whose kind does not matter."""

    uuid: str

    def _get_uuid(self, *args: Any, **kwargs: Any) -> str:
        return self.uuid

    def _get_sensor_type(self, *args: Any, **kwargs: Any) -> SensorTypes:
        return SensorTypes.NULL


@dataclass
class InstructionConfig(LabSensorConfig):
    """`vlnr1_instruction`."""

    type: str = "VLNR1InstructionSensor"
    max_bytes: int = 1024  # length of the array; a longer instruction is an error


@registry.register_sensor(name="VLNR1InstructionSensor")
class InstructionSensor(LabSensor):
    """The instruction as UTF-8: uint8 [max_bytes], zero padded (see `text.decode_text`)."""

    uuid = INSTRUCTION

    def _get_observation_space(self, *args: Any, config: Any, **kwargs: Any) -> spaces.Space:
        return spaces.Box(0, 255, (config.max_bytes,), np.uint8)

    def get_observation(self, *args: Any, episode: VLNEpisode, **kwargs: Any) -> np.ndarray:
        try:
            return encode_text(episode.instruction.instruction_text, self.config.max_bytes)
        except ValueError as error:
            raise VLNR1Error(
                f"episode {episode.episode_id}: {error}; raise habitat.task.lab_sensors.vlnr1_instruction.max_bytes"
            ) from None


@dataclass
class ClockConfig(LabSensorConfig):
    """`vlnr1_clock`."""

    type: str = "VLNR1ClockSensor"


@registry.register_sensor(name="VLNR1ClockSensor")
class ClockSensor(LabSensor):
    """int64 [2]: the rollout's id (`rollout_id`, another one after every reset) and the step (0 at reset).

    An observation transform gets only the batch, and environments may be paused in between, so histories are
    keyed by what travels in the observation.
    """

    uuid = CLOCK

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._environment = draw_environment()
        self._clock = np.array([rollout_id(self._environment, 0), 0], dtype=np.int64)

    def set_rollout(self, uid: int) -> None:
        """Take another rollout's id; the step stays."""
        self._clock[0] = uid

    def _get_observation_space(self, *args: Any, **kwargs: Any) -> spaces.Space:
        return spaces.Box(0, np.iinfo(np.int64).max, (2,), np.int64)

    def get_observation(self, *args: Any, **kwargs: Any) -> np.ndarray:
        if "action" in kwargs:
            self._clock[1] += 1
        else:
            self._clock[:] = self._clock[0] + 1, 0
        return self._clock.copy()


@dataclass
class DescriptionConfig(LabSensorConfig):
    """`vlnr1_description`."""

    type: str = "VLNR1DescriptionSensor"
    max_bytes: int = 1024  # length of the array
    min_share: float = 0.004  # smallest share of the image's pixels for a thing to be named
    max_things: int = 5  # name at most this many things, the largest first
    cells: int = 0  # a second line says what each cell of so many rows and columns shows; 0: none
    cell_share: float = 0.1  # smallest share of a cell's pixels for a thing to be named there


@registry.register_sensor(name="VLNR1DescriptionSensor")
class DescriptionSensor(LabSensor):
    """What is in view, in words: uint8 [max_bytes], UTF-8 zero padded (see `describe.describe`).

    Reads the simulator's semantic and depth sensors, which need not be among `habitat.gym.obs_keys`. ValueError at the
    reset into a scene without semantic annotation.
    """

    uuid = DESCRIPTION

    def __init__(self, *args: Any, sim: Any, **kwargs: Any) -> None:
        super().__init__(*args, sim=sim, **kwargs)
        suite = sim.sensor_suite.sensors
        if "semantic" not in suite or "depth" not in suite:
            raise VLNR1Error("vlnr1_description needs the simulator's sensors depth_sensor and semantic_sensor")
        if suite["semantic"].config.width != suite["depth"].config.width:
            raise VLNR1Error("vlnr1_description needs semantic and depth images of equal size")
        self._sim = sim
        self._depth = suite["depth"].config
        self._names: dict[int, str] = {}

    def _get_observation_space(self, *args: Any, config: Any, **kwargs: Any) -> spaces.Space:
        return spaces.Box(0, 255, (config.max_bytes,), np.uint8)

    def get_observation(self, observations: Any, *args: Any, episode: VLNEpisode, **kwargs: Any) -> np.ndarray:
        if "action" not in kwargs:  # a reset may have brought another scene
            objects = (thing for thing in self._sim.semantic_scene.objects if thing and thing.category)
            self._names = {int(thing.semantic_id): thing.category.name() for thing in objects}
            if not self._names:
                raise VLNR1Error(
                    f"{episode.scene_id}: the simulator has no semantic annotation of this scene, so there is nothing "
                    "to describe; set vlnr1.export.describe=false"
                )
        depth = observations["depth"][..., 0]
        if self._depth.normalize_depth:
            depth = depth * (self._depth.max_depth - self._depth.min_depth) + self._depth.min_depth
        semantic, names, config = observations["semantic"][..., 0], self._names, self.config
        text = describe(semantic, depth, names, config.min_share, config.max_things)
        if config.cells:
            text += "\n" + describe_cells(semantic, depth, names, config.cells, config.cell_share)
        return encode_text(text, self.config.max_bytes)


store_lab_sensor(INSTRUCTION, InstructionConfig)
store_lab_sensor(CLOCK, ClockConfig)
store_lab_sensor(DESCRIPTION, DescriptionConfig)
