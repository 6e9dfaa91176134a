"""Stand-in for habitat-sim's compiled extension: only a name in an annotation."""

from . import habitat_sim_bindings

__all__ = ["habitat_sim_bindings"]
