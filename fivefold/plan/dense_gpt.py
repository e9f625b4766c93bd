"""Megatron-LM's arithmetic for dense GPT models (arXiv 2104.04473, sections 3 and 5.1).

The planner counts GLM-5-class models part by part; these closed forms exist to be compared with
the figures that were published from them.

Surprise: the step's FLOPs include the recomputed forward pass (four forwards in all), so the
"52% of peak" of the trillion-parameter run is a hardware utilisation; its MFU is three quarters
of that.
"""


def gpt_parameters(layers: int, hidden: int, vocabulary: int, context: int) -> float:
    """Count the parameters of a GPT model (equation 2 of the paper)."""
    blocks = 12 * layers * hidden**2
    return blocks * (1 + 13 / (12 * hidden) + (vocabulary + context) / (12 * layers * hidden))


def gpt_step_flops(
    layers: int, hidden: int, vocabulary: int, context: int, batch_rows: int
) -> float:
    """Count the FLOPs of one step with full recomputation (equation 3 of the paper)."""
    tokens = batch_rows * context
    attention = context / (6 * hidden)
    head = vocabulary / (16 * layers * hidden)
    return 96 * tokens * layers * hidden**2 * (1 + attention + head)


def gpt_training_seconds(
    parameters: float, tokens: float, gpus: int, flops_a_second: float
) -> float:
    """Estimate a training run's seconds from the rate of one GPU (equation 4 of the paper)."""
    return 8 * tokens * parameters / (gpus * flops_a_second)
