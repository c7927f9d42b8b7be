"""A reward function that is always 0, for Figure 10: any change of the policy is due to the objective alone."""


def no_reward(response: str, gold: str, problem: str) -> float:
    """Return 0 for every response."""
    return 0.0
