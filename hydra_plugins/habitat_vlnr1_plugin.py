"""Puts our configs on Hydra's search path. This folder has no __init__.py: it is Hydra's namespace package."""

import os
import sys
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

import habitat_vlnr1


def keep_libraries_apart() -> None:
    """Where habitat-sim is in use, undo what its `corrade` does: it makes every later extension module global, then
    Triton's LLVM and that of Mesa's software renderer meet in one process, and it dies."""
    if "habitat_sim" in sys.modules:
        sys.setdlopenflags(sys.getdlopenflags() & ~os.RTLD_GLOBAL)


keep_libraries_apart()  # Hydra comes here in the middle of `import habitat`, after habitat-sim and before Triton


def config_roots() -> list[Path]:
    """configs/habitat and configs/trainer: inside the package (wheel) or beside it (checkout)."""
    package = Path(habitat_vlnr1.__file__).resolve().parent
    inside = package / "configs"
    configs = inside if inside.is_dir() else package.parent / "configs"
    return [configs / "habitat", configs / "trainer"]


class HabitatVLNR1Plugin(SearchPathPlugin):
    """Found by Hydra in whatever program uses Hydra here; acts only where Habitat is in use."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if "habitat" not in sys.modules:
            return
        keep_libraries_apart()
        for root in config_roots():
            search_path.append(provider="habitat-vlnr1", path=root.as_uri())
        # Not at this module's top: Hydra scans plugins in the middle of `import habitat`.
        from habitat_vlnr1.register import register

        register()
