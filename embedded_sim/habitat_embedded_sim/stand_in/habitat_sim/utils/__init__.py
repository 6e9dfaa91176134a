"""Stand-in for `habitat_sim.utils`."""

from habitat_embedded_sim.unsupported import missing_attribute

from . import common, profiling_utils, viz_utils
from .common import *  # noqa: F403  as in habitat-sim: habitat_sim.utils.quat_from_angle_axis

__getattr__ = missing_attribute(__name__)
__all__ = ["common", "profiling_utils", "viz_utils", *common.__all__]
