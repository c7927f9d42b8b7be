"""An objective of your own in the pipeline: a residual loss with a margin.

    cd examples
    reval train ../configs/demo.yaml --run-dir runs/margin --set 'objective={kind: custom,
        function: "custom_objective:margin", settings: {beta: 0.3, margin: 0.5}}'

reval imports the function by its name; the working directory is searched too. docs/objectives.md has the details.
"""

from __future__ import annotations

from reval_core.objectives import Inputs, Outputs


def margin(inputs: Inputs, beta: float, margin: float = 0.5) -> Outputs:
    """ReVal's squared residual without the part within ±margin.

    Args:
        inputs: B trajectories; only `logprobs` [B, H] and `value` [B] carry gradients.
        beta: The strength of the KL regularization. A setting of this name is the β of the stored residuals.
        margin: Residuals up to this size have no loss.

    Returns:
        Tensors [B]. Means of `metrics` are recorded in the table `updates` and in MLflow.
    """
    value_term = inputs.value - inputs.value_ref
    log_ratio = inputs.logprobs.sum(dim=1) - inputs.log_ref
    delta = value_term + log_ratio - inputs.reward / beta
    excess = (delta.abs() - margin).clamp(min=0)
    within = (excess == 0).float()
    return Outputs(excess.square(), delta.detach(), value_term.detach(), log_ratio.detach(), {"within": within})
