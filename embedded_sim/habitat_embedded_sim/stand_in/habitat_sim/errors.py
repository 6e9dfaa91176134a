"""Stand-in for `habitat_sim.errors`."""


class GreedyFollowerError(RuntimeError):
    """The greedy follower found no action that leads to the goal."""


class InvalidAttachedObject(RuntimeError):
    """Part of habitat-sim's interface; the stand-in never raises it."""
