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
        """Return the stand-in's spec for one of `NAMES`, None for every other module.

        Raises:
            ModuleNotFoundError: a part of one of them that the stand-in lacks, in words. It comes here last, after
                all others have looked.
        """
        if fullname in NAMES:
            return PathFinder.find_spec(fullname, [STAND_IN_DIR], target)
        top = fullname.partition(".")[0]
        if top in NAMES and _is_stand_in(top) and not fullname.rpartition(".")[2].startswith("_"):
            from .unsupported import needs_real

            raise ModuleNotFoundError(str(needs_real(fullname)), name=top)
        return None


def _is_stand_in(name: str) -> bool:
    return (getattr(sys.modules.get(name), "__file__", None) or "").startswith(STAND_IN_DIR)


def install() -> None:
    """Append the finder to `sys.meta_path`, once."""
    if StandInFinder not in sys.meta_path:
        sys.meta_path.append(StandInFinder)
