"""The LIBERO protocol as data: step limits, settling steps, initial states."""

from types import MappingProxyType

# Steps that the policy may take, by suite: a fifth to a half more than the longest human demonstration of the suite.
# Source: OpenVLA's LIBERO evaluation (arXiv 2406.09246), which the field follows, the official WorldVLA code too.
MAX_STEPS = MappingProxyType(
    {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
)
# Benchmark initial states that every task ships.
NUM_INITIAL_STATES = 50


def max_steps(suite: str) -> int:
    """Step limit of a suite.

    Args:
        suite (`str`): name of a LIBERO suite.

    Returns:
        `int`: steps after the settling steps.

    Raises:
        ValueError: if no limit is known for the suite.
    """
    if suite not in MAX_STEPS:
        raise ValueError(f"No step limit is known for suite `{suite}`. Choose one of: {', '.join(MAX_STEPS)}.")
    return MAX_STEPS[suite]
