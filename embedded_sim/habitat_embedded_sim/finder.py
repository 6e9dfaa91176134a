"""The import finder that supplies `habitat_sim`, `magnum` and `corrade` where the real ones are missing.

It is *appended* to `sys.meta_path`, so an installed habitat-sim is always found first. The `.pth` file of this
distribution calls `install` at interpreter start, which also covers forkserver and spawn workers.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder

NAMES = frozenset({"habitat_sim", "magnum", "corrade"})
STAND_IN_DIR = os.path.join(os.path.dirname(__file__), "stand_in")


class StandInFinder:
    """Finds the three stand-in packages; their submodules are found through the packages' own `__path__`."""

    @staticmethod
    def find_spec(fullname: str, path=None, target=None) -> "ModuleSpec | None":
        """Return the stand-in's spec for one of `NAMES`, None for every other module."""
        if fullname not in NAMES:
            return None
        return PathFinder.find_spec(fullname, [STAND_IN_DIR], target)


def install() -> None:
    """Append the finder to `sys.meta_path`, once."""
    if StandInFinder not in sys.meta_path:
        sys.meta_path.append(StandInFinder)
