"""Stand-in for `habitat_sim.utils`."""

from . import common, profiling_utils

__all__ = ["common", "profiling_utils"]
