"""Stand-in for `habitat_sim.utils.profiling_utils`: Nsight ranges, which the embedded simulator does not record."""


def configure(capture_start_step: int = -1, num_steps_to_capture: int = -1) -> None:
    """Does nothing."""


def on_start_step() -> None:
    """Does nothing."""


def range_push(msg: str) -> None:
    """Does nothing."""


def range_pop() -> None:
    """Does nothing."""
