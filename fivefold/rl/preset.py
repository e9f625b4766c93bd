"""Published algorithms by name, each a combination of advantage, loss and denominator.

`icepop` is GLM-5's reasoning RL, `agentic` its asynchronous form, `distil` its last stage; the
others are what the field compares with.
"""

from fivefold.rl.config import (
    AdvantageConfig,
    AlgorithmConfig,
    CispoConfig,
    DistillationConfig,
    DoubleSidedConfig,
    GspoConfig,
    IcePopConfig,
    OverlongConfig,
    PpoClipConfig,
    ReductionConfig,
    TisConfig,
)


def icepop(group_size: int = 32) -> AlgorithmConfig:
    """Return GLM-5's reasoning RL: GRPO advantages, IcePop, no KL term (report, section 3.2)."""
    return AlgorithmConfig(advantage=AdvantageConfig(group_size=group_size), loss=IcePopConfig())


def agentic(group_size: int = 32) -> AlgorithmConfig:
    """Return GLM-5's asynchronous agentic RL: no standard deviation, two-sided masking."""
    return AlgorithmConfig(
        advantage=AdvantageConfig(method="mean", group_size=group_size), loss=DoubleSidedConfig()
    )


def distil() -> AlgorithmConfig:
    """Return GLM-5's cross-stage distillation: the teacher's advantage in the IcePop loss."""
    return AlgorithmConfig(advantage=None, distillation=DistillationConfig(), loss=IcePopConfig())


def grpo(group_size: int = 32) -> AlgorithmConfig:
    """Return GRPO without its KL term (arXiv 2402.03300): symmetric clipping at 0.2."""
    return AlgorithmConfig(
        advantage=AdvantageConfig(group_size=group_size, zero_variance="zero"),
        loss=PpoClipConfig(epsilon_high=0.2),
    )


def dr_grpo(fixed_tokens: int, group_size: int = 32) -> AlgorithmConfig:
    """Return Dr.GRPO (arXiv 2503.20783): neither standard deviations nor lengths divide."""
    return AlgorithmConfig(
        advantage=AdvantageConfig(method="mean", group_size=group_size, zero_variance="zero"),
        loss=PpoClipConfig(epsilon_high=0.2),
        reduction=ReductionConfig(kind="fixed", fixed_tokens=fixed_tokens),
    )


def dapo(overlong: OverlongConfig | None = None, group_size: int = 16) -> AlgorithmConfig:
    """Return DAPO (arXiv 2503.14476): clip higher, token mean, dynamic sampling, length penalty."""
    return AlgorithmConfig(
        advantage=AdvantageConfig(group_size=group_size),
        loss=PpoClipConfig(),
        reduction=ReductionConfig(kind="token_mean"),
        overlong=overlong or OverlongConfig(),
    )


def rloo(group_size: int = 32) -> AlgorithmConfig:
    """Return RLOO advantages (arXiv 2402.14740) with token ratios clipped at 0.2."""
    return AlgorithmConfig(
        advantage=AdvantageConfig(method="rloo", group_size=group_size, zero_variance="zero"),
        loss=PpoClipConfig(epsilon_high=0.2),
    )


def gspo(group_size: int = 32) -> AlgorithmConfig:
    """Return GSPO (arXiv 2507.18071)."""
    return AlgorithmConfig(
        advantage=AdvantageConfig(group_size=group_size, zero_variance="zero"), loss=GspoConfig()
    )


def cispo(group_size: int = 32) -> AlgorithmConfig:
    """Return CISPO (arXiv 2506.13585), token mean."""
    return AlgorithmConfig(
        advantage=AdvantageConfig(group_size=group_size, zero_variance="zero"),
        loss=CispoConfig(),
        reduction=ReductionConfig(kind="token_mean"),
    )


def tis(group_size: int = 32) -> AlgorithmConfig:
    """Return GRPO with truncated importance sampling between trainer and engine."""
    return AlgorithmConfig(
        advantage=AdvantageConfig(group_size=group_size, zero_variance="zero"), loss=TisConfig()
    )
