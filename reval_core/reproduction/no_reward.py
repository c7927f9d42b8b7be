"""A world without reward, for Figure 10: whatever a policy does there comes of the objective alone."""


def no_reward(response: str, gold: str, problem: str) -> float:
    """0, whatever the response says."""
    return 0.0
