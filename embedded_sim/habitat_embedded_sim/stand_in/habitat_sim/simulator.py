"""Stand-in for `habitat_sim.simulator`: scenes, agents and cameras, for navigation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import magnum as mn
import numpy as np
from habitat_embedded_sim.render import View
from habitat_embedded_sim.scene import Scene, open_scene
from habitat_embedded_sim.unsupported import missing_attribute, needs_real

from .agent.agent import Agent, AgentConfiguration, AgentState
from .agent.controls import ObjectControls
from .nav import GreedyGeodesicFollower, NavMeshSettings, PathFinder
from .scene import SceneGraph, SceneNode, SemanticScene
from .sensor import Sensor, SensorSpec, SensorType
from .sim import SimulatorBackend, SimulatorConfiguration
from .utils.common import quat_from_angle_axis


@dataclass
class Configuration:
    """The simulator's configuration and those of its agents."""

    sim_cfg: SimulatorConfiguration
    agents: list[AgentConfiguration] = field(default_factory=list)
    metadata_mediator: Any = None
    enable_batch_renderer: bool = False


class _ObjectTemplates:
    """The manager that Habitat-Lab asks for; there are no objects to load here."""

    def load_configs(self, path: str) -> list[int]:
        raise needs_real(f"loading object templates ({path})")


class Simulator(SimulatorBackend):
    """One scene, its agents and their cameras. Observations are dicts by sensor uuid; `step` adds "collided".

    `sensors` has the cameras by uuid; where several agents are configured with the same uuid, the last one's.
    """

    def __init__(self, config: Configuration) -> None:
        self.config = config
        self.agents: list[Agent] = []
        self.sensors: dict[str, Sensor] = {}
        self.pathfinder = PathFinder()
        self._scene: Scene | None = None
        self._scene_graph = SceneGraph()
        self._set_from_config(config)

    # ---- life ----------------------------------------------------------------------------------------------------

    def reconfigure(self, config: Configuration) -> None:
        """Load another scene or other agents, where the configuration differs from the present one."""
        if self._scene is None or config != self.config:
            self._set_from_config(config)

    def _set_from_config(self, config: Configuration) -> None:
        _check(config)
        sim_cfg = config.sim_cfg
        specs = [spec for agent in config.agents for spec in agent.sensor_specifications]
        sim_cfg.create_renderer = bool(specs)
        sim_cfg.requires_textures = any(spec.sensor_type == SensorType.COLOR for spec in specs)
        sim_cfg.load_semantic_mesh |= any(spec.sensor_type == SensorType.SEMANTIC for spec in specs)
        self.config = config
        self._scene = open_scene(sim_cfg.scene_id, sim_cfg.requires_textures)
        self.semantic_scene = SemanticScene.of(self._scene)
        self.pathfinder = PathFinder()
        self.seed(sim_cfg.random_seed)
        if sim_cfg.navmesh_settings is None:
            body = config.agents[sim_cfg.default_agent_id]
            settings = NavMeshSettings(agent_height=body.height, agent_radius=body.radius)
        else:
            settings = sim_cfg.navmesh_settings
        self.recompute_navmesh(self.pathfinder, settings)
        self.sensors, self._scene_graph = {}, SceneGraph()
        root = self._scene_graph.get_root_node()
        self.agents = [Agent(root.create_child(), each, ObjectControls(self.step_filter)) for each in config.agents]
        for agent_id, agent in enumerate(self.agents):
            for spec in agent.agent_config.sensor_specifications:
                self._attach(spec, agent.scene_node, agent.sensors)
            self.initialize_agent(agent_id)

    def close(self, destroy: bool = True) -> None:
        """Let go of the scene; `reconfigure` loads one again."""
        self.agents, self.sensors, self._scene = [], {}, None

    def __enter__(self) -> Simulator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def get_active_scene_graph(self) -> SceneGraph:
        """The tree that agents stand in; its root is the world. What the scene shows is not part of it."""
        return self._scene_graph

    def seed(self, new_seed: int) -> None:
        """Seed random start poses and random navigable points."""
        self._rng = np.random.default_rng(int(new_seed) % 2**63)
        self.pathfinder.seed(new_seed)

    # ---- agents --------------------------------------------------------------------------------------------------

    def get_agent(self, agent_id: int) -> Agent:
        return self.agents[agent_id]

    def initialize_agent(self, agent_id: int, initial_state: AgentState | None = None) -> Agent:
        """Give the agent the state it is reset to: a random navigable one where None."""
        agent = self.get_agent(agent_id)
        if initial_state is None:
            initial_state = AgentState()
            if self.pathfinder.is_loaded:
                point = self.pathfinder.get_random_navigable_point()
                if np.isfinite(point).all():
                    initial_state.position = point
                angle = self._rng.uniform(0.0, 2 * np.pi)
                initial_state.rotation = quat_from_angle_axis(angle, np.array([0.0, 1.0, 0.0]))
        agent.set_state(initial_state, is_initial=True)
        return agent

    def reset_agent(self, agent_id: int) -> None:
        """Put the agent and its sensors back to the initial state."""
        self.initialize_agent(agent_id, self.get_agent(agent_id).initial_state)

    def reset(self, agent_ids: int | list[int] | None = None) -> dict[Any, Any]:
        """Put every agent back; the observations of `agent_ids` (default: the default agent), as in
        `get_sensor_observations`."""
        for agent_id in range(len(self.agents)):
            self.reset_agent(agent_id)
        return self.get_sensor_observations(self._default_agent_id if agent_ids is None else agent_ids)

    def step(self, action: Any, dt: float = 1.0 / 60.0) -> dict[Any, Any]:
        """Let the default agent take `action` (an id of its action space), or several agents with {agent id: action}.

        Returns the observations with "collided", by agent id in the second case.
        """
        many = isinstance(action, Mapping)
        actions = action if many else {self._default_agent_id: action}
        collided = {agent_id: self.get_agent(agent_id).act(act) for agent_id, act in actions.items()}
        observations = self.get_sensor_observations(list(actions))
        for agent_id, hit in collided.items():
            observations[agent_id]["collided"] = hit
        return observations if many else observations[self._default_agent_id]

    def step_filter(self, start_pos: mn.Vector3, end_pos: mn.Vector3) -> mn.Vector3:
        """Where a body that walks from start to end arrives; end itself where there is no navmesh."""
        if not self.pathfinder.is_loaded:
            return end_pos
        if self.config.sim_cfg.allow_sliding:
            return self.pathfinder.try_step(start_pos, end_pos)
        return self.pathfinder.try_step_no_sliding(start_pos, end_pos)

    def step_physics(self, dt: float, scene_id: int = 0) -> None:
        """Does nothing: no objects move in the embedded simulator."""

    def make_greedy_follower(
        self, agent_id: int | None = None, goal_radius: float | None = None, **options: Any
    ) -> GreedyGeodesicFollower:
        """A follower for an agent; see `GreedyGeodesicFollower` for the options."""
        agent = self.get_agent(self._default_agent_id if agent_id is None else agent_id)
        return GreedyGeodesicFollower(self.pathfinder, agent, goal_radius, **options)

    def recompute_navmesh(self, pathfinder: PathFinder, navmesh_settings: NavMeshSettings) -> bool:
        """Give `pathfinder` the present scene's navmesh for these settings; False in an empty scene."""
        pathfinder.use_grid(self._loaded.nav_grid(navmesh_settings.for_grid()), navmesh_settings)
        return pathfinder.is_loaded

    @property
    def _loaded(self) -> Scene:
        if self._scene is None:
            raise RuntimeError("the simulator is closed: reconfigure loads a scene again")
        return self._scene

    @property
    def _default_agent_id(self) -> int:
        return self.config.sim_cfg.default_agent_id

    # ---- sensors -------------------------------------------------------------------------------------------------

    def create_sensor(self, spec: SensorSpec, scene_node: SceneNode) -> Sensor:
        """Add a camera to an agent's node, or to any other. Its uuid must be new."""
        return self._attach(spec, scene_node, self.sensors)

    def add_sensor(self, sensor_spec: SensorSpec, agent_id: int | None = None) -> None:
        """Add a camera to an agent (default: the default agent)."""
        agent = self.get_agent(self._default_agent_id if agent_id is None else agent_id)
        self.create_sensor(sensor_spec, agent.scene_node)

    def _attach(self, spec: SensorSpec, node: SceneNode, present: Mapping[str, Sensor]) -> Sensor:
        if spec.uuid in present:
            raise ValueError(f"a sensor {spec.uuid!r} exists already: give each sensor its own uuid")
        if spec.sensor_type == SensorType.COLOR and not self.config.sim_cfg.requires_textures:
            self.config.sim_cfg.requires_textures = True
            self._scene = open_scene(self.config.sim_cfg.scene_id)
        sensor = Sensor(spec, node, self._render)
        self.sensors[spec.uuid] = sensor
        self._loaded.renderer.keep = max(self._loaded.renderer.keep, len(self.sensors))
        return sensor

    @property
    def _sensors(self) -> dict[str, Sensor]:
        """The name that `sensors` had in earlier releases of habitat-sim."""
        return self.sensors

    def remove_sensor(self, uuid: str) -> None:
        """Remove a camera."""
        node = self.sensors.pop(uuid).node
        assert node.parent is not None  # `Sensor` puts its node on another
        node.parent.children.remove(node)

    def get_sensor(self, uuid: str) -> Sensor:
        return self.sensors[uuid]

    def _render(self, sensor: Sensor) -> View:
        position, rotation = sensor.node.absolute_pose()
        return self._loaded.renderer.view(sensor.camera, position, rotation)

    def render_sensors(self, sensors: list[Sensor] | None = None) -> dict[str, Any]:
        """{uuid: image} of these cameras, by default of all. See `Sensor.get_observation`."""
        sensors = list(self.sensors.values()) if sensors is None else sensors
        for sensor in sensors:
            sensor.draw_observation()
        return {sensor.uuid: sensor.get_observation() for sensor in sensors}

    def get_sensor_observations(self, agent_ids: int | list[int] = 0) -> dict[Any, Any]:
        """{uuid: image} of one agent, {agent id: {uuid: image}} for a list. See `Sensor.get_observation`."""
        if isinstance(agent_ids, int):
            return self.get_sensor_observations([agent_ids])[agent_ids]
        observations: dict[int, dict[str, Any]] = {}
        for agent_id in agent_ids:
            observations[agent_id] = self.render_sensors(list(self.get_agent(agent_id).sensors.values()))
        return observations

    def get_object_template_manager(self) -> _ObjectTemplates:
        return _ObjectTemplates()


def _check(config: Configuration) -> None:
    """One clear line for what the embedded simulator cannot do."""
    sim_cfg = config.sim_cfg
    if not config.agents:
        raise ValueError("the simulator's configuration names no agent: give at least one AgentConfiguration")
    if sim_cfg.scene_dataset_config_file not in ("", "default"):
        raise needs_real(f"a scene dataset configuration ({sim_cfg.scene_dataset_config_file})")
    if sim_cfg.enable_physics:
        raise needs_real("physics (habitat_sim_v0.enable_physics)")
    if config.enable_batch_renderer:
        raise needs_real("the batch renderer (renderer.enable_batch_renderer)")


__getattr__ = missing_attribute(__name__)
