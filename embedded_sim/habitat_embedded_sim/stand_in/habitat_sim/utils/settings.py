"""Stand-in for `habitat_sim.utils.settings`: a configuration from a dict."""

from __future__ import annotations

from typing import Any

import magnum as mn
from habitat_embedded_sim.unsupported import missing_attribute

from ..agent import ActionSpec, ActuationSpec, AgentConfiguration
from ..nav import NavMeshSettings
from ..sensor import CameraSensorSpec, SensorSpec, SensorSubType, SensorType
from ..sim import SimulatorConfiguration
from ..simulator import Configuration

_KINDS = {"color": SensorType.COLOR, "depth": SensorType.DEPTH, "semantic": SensorType.SEMANTIC}
_OTHER_CAMERAS = [
    f"{projection}_{kind}_sensor"
    for projection in ("ortho", "fisheye", "equirect")
    for kind in ("rgba", "depth", "semantic")
]

_PASSED_ON = ("scene_dataset_config_file", "frustum_culling", "enable_physics", "physics_config_file", "enable_hbao")

default_sim_settings: dict[str, Any] = {
    "scene_dataset_config_file": "default",
    "scene": "NONE",
    "width": 640,
    "height": 480,
    "hfov": 90,
    "zfar": 1000.0,
    "clear_color": mn.Color4(0.0, 0.0, 0.0, 1.0),
    "sensor_height": 1.5,
    "default_agent": 0,
    "agent_radius": 0.1,
    "color_sensor": True,
    "semantic_sensor": False,
    "depth_sensor": False,
    **dict.fromkeys(_OTHER_CAMERAS, False),
    "seed": 1,
    "physics_config_file": "data/default.physics_config.json",
    "enable_physics": False,
    "default_agent_navmesh": True,
    "navmesh_include_static_objects": False,
    "enable_hbao": False,
}
"""habitat-sim's names and defaults; metres, degrees, pixels."""


def make_cfg(settings: dict[str, Any]) -> Configuration:
    """The simulator's configuration for `settings`, which are `default_sim_settings` with changes.

    One agent has cameras "color_sensor", "depth_sensor" and "semantic_sensor", as far as asked for; others are refused
    when the simulator is made.
    """
    sim_cfg = SimulatorConfiguration(scene_id=settings["scene"])
    for name in _PASSED_ON:
        setattr(sim_cfg, name, settings.get(name, getattr(sim_cfg, name)))
    cameras: list[SensorSpec] = [
        _camera(settings, f"{kind}_sensor", kind) for kind in _KINDS if settings[f"{kind}_sensor"]
    ]
    for uuid in (name for name in _OTHER_CAMERAS if settings.get(name)):
        camera = _camera(settings, uuid, uuid.split("_")[1].replace("rgba", "color"))
        camera.sensor_subtype = SensorSubType[
            {"ortho": "ORTHOGRAPHIC", "fisheye": "FISHEYE", "equirect": "EQUIRECTANGULAR"}[uuid.split("_")[0]]
        ]
        cameras.append(camera)
    agent = AgentConfiguration(settings["sensor_height"], settings["agent_radius"], cameras)
    agent.action_space = {
        name: ActionSpec(name, ActuationSpec(amount))
        for name, amount in (("move_forward", 0.25), ("turn_left", 10.0), ("turn_right", 10.0))
    }
    if settings["default_agent_navmesh"]:
        sim_cfg.navmesh_settings = NavMeshSettings(
            agent_radius=agent.radius,
            agent_height=agent.height,
            include_static_objects=settings["navmesh_include_static_objects"],
        )
    return Configuration(sim_cfg, [agent])


def _camera(settings: dict[str, Any], uuid: str, kind: str) -> CameraSensorSpec:
    return CameraSensorSpec(
        uuid=uuid,
        sensor_type=_KINDS[kind],
        position=(0.0, settings["sensor_height"], 0.0),
        resolution=(settings["height"], settings["width"]),
        hfov=settings["hfov"],
        channels=4 if kind == "color" else 1,
        far=settings["zfar"],
        clear_color=settings["clear_color"],
    )


__getattr__ = missing_attribute(__name__)
