"""Stand-in for `habitat_sim.sim`: the simulator's configuration."""

from __future__ import annotations

from dataclasses import dataclass

from habitat_embedded_sim.unsupported import Partial, missing_attribute

from .nav import NavMeshSettings


@dataclass
class SimulatorConfiguration:
    """habitat-sim's names and defaults. The embedded simulator heeds scene_id, scene_dataset_config_file,
    navmesh_settings, allow_sliding, random_seed and default_agent_id; graphics and GPU options change nothing."""

    scene_id: str = "NONE"
    scene_dataset_config_file: str = "default"
    navmesh_settings: NavMeshSettings | None = None
    allow_sliding: bool = True
    random_seed: int = 0
    default_agent_id: int = 0
    create_renderer: bool = True
    load_semantic_mesh: bool = True
    requires_textures: bool = True
    enable_physics: bool = False
    physics_config_file: str = "./data/default.physics_config.json"
    gpu_device_id: int = 0
    frustum_culling: bool = True
    enable_hbao: bool = False
    enable_gfx_replay_save: bool = False
    leave_context_with_background_renderer: bool = False


class SimulatorBackend(Partial):
    """The part of the simulator that is C++ in habitat-sim; here a common base, used in annotations."""


__getattr__ = missing_attribute(__name__)
