"""Where things lie in this checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = str(ROOT / "configs" / "trainer")
SIM_CONFIGS = str(ROOT / "tests" / "sim_configs")
