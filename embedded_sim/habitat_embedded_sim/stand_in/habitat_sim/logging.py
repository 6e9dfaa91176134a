"""Stand-in for `habitat_sim.logging`."""

import logging as _logging

logger = _logging.getLogger("habitat_sim")
