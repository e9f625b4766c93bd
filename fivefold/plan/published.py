"""Published figures that the planner has to reproduce; tests and `docs/experiments` read them.

Only figures are kept, each with its table. Nothing here is tuned and no model of ours is fitted to
a single row.
"""

from typing import NamedTuple


class GptRow(NamedTuple):
    """Megatron-LM SC21 (arXiv 2104.04473), table 1: A100, 2048 tokens a row, vocabulary 51,200."""

    billions: float
    hidden: int
    layers: int
    gpus: int
    batch_rows: int
    tflops_a_gpu: float
    percent_of_peak: int
    petaflops: float


GPT_ROWS = (
    GptRow(1.7, 2304, 24, 32, 512, 137, 44, 4.4),
    GptRow(3.6, 3072, 30, 64, 512, 138, 44, 8.8),
    GptRow(7.5, 4096, 36, 128, 512, 142, 46, 18.2),
    GptRow(18.4, 6144, 40, 256, 1024, 135, 43, 34.6),
    GptRow(39.1, 8192, 48, 512, 1536, 138, 44, 70.8),
    GptRow(76.1, 10240, 60, 1024, 1792, 140, 45, 143.8),
    GptRow(145.6, 12288, 80, 1536, 2304, 148, 47, 227.1),
    GptRow(310.1, 16384, 96, 1920, 2160, 155, 50, 297.4),
    GptRow(529.6, 20480, 105, 2520, 2520, 163, 52, 410.2),
    GptRow(1008.0, 25600, 128, 3072, 3072, 163, 52, 502.0),
)
GPT_CONTEXT, GPT_VOCABULARY, A100_PEAK = 2048, 51_200, 312e12

ZERO_SIZES = (7.5e9, 128e9, 1e12)
ZERO_ROWS: dict[int, tuple[tuple[float, float, float], ...]] = {
    1: ((120, 120, 120), (2048, 2048, 2048), (16000, 16000, 16000)),
    4: ((52.5, 41.3, 30), (896, 704, 512), (7000, 5500, 4000)),
    16: ((35.6, 21.6, 7.5), (608, 368, 128), (4750, 2875, 1000)),
    64: ((31.4, 16.6, 1.88), (536, 284, 32), (4187, 2218, 250)),
    256: ((30.4, 15.4, 0.47), (518, 263, 8), (4046, 2054, 62.5)),
    1024: ((30.1, 15.1, 0.12), (513, 257, 2), (4011, 2013, 15.6)),
}
"""ZeRO (arXiv 1910.02054), table 1: GB a device by ranks; for each model size stages 1, 2 and 3."""


class BubbleRow(NamedTuple):
    """Zero bubble (arXiv 2401.10241): profiled milliseconds of table 9, bubble rates of table 5."""

    model: str
    ranks: int
    microbatches: int
    forward: float
    input_gradient: float
    weight_gradient: float
    edge: float
    one_f_one_b: float
    interleaved: float
    zb_h1: float
    zb_h2: float
    zb_1p: float
    zb_2p: float


_BUBBLE_TABLE = """
 1.5B  8  24  18.522 18.086  9.337 0.601  0.2431 0.1055 0.1585 0.1083 0.1585 0.0433
 1.5B  8  32  18.513 18.086  9.331 0.626  0.1985 0.0818 0.1242 0.0837 0.1242 0.0039
 1.5B  8  64  18.546 18.097  9.321 0.762  0.1240 0.0443 0.0674 0.0444 0.0674 0.0026
 6.2B  8  24  29.718 29.444 19.927 0.527  0.2347 0.0808 0.1323 0.0698 0.1323 0.0029
 6.2B  8  32  29.802 29.428 19.530 0.577  0.1898 0.0628 0.1045 0.0559 0.1045 0.0022
 6.2B  8  64  29.935 29.621 19.388 0.535  0.1091 0.0320 0.0554 0.0294 0.0554 0.0010
14.6B 16  48  11.347 11.248  8.132 0.377  0.2552 0.1104 0.1397 0.0672 0.1397 0.0066
14.6B 16  64  11.307 11.254  8.101 0.379  0.2082 0.0852 0.1088 0.0516 0.1088 0.0054
14.6B 16 128  11.325 11.308  8.109 0.378  0.1251 0.0445 0.0576 0.0266 0.0576 0.0028
28.3B 32  96  10.419 10.207  7.715 0.408  0.2646 0.1493 0.1421 0.0641 0.1421 0.0038
28.3B 32 128  10.408 10.204  7.703 0.408  0.2168 0.1164 0.1106 0.0490 0.1106 0.0029
28.3B 32 256  10.402 10.248  7.698 0.460  0.1352 0.0624 0.0594 0.0257 0.0594 0.0018
"""


def _read_bubble_row(line: str) -> BubbleRow:
    model, ranks, microbatches, *numbers = line.split()
    return BubbleRow(model, int(ranks), int(microbatches), *map(float, numbers))


BUBBLE_ROWS = tuple(_read_bubble_row(line) for line in _BUBBLE_TABLE.strip().splitlines())

WEIGHT_MEMORY_SHARE = {"1.5B": 0.37, "6.2B": 0.43, "14.6B": 0.43, "28.3B": 0.43}
"""Part of an activation that stays between I and W: 32 of 34 + 5 x heads x context / hidden (the
paper's table 1 at its context of 1024; heads and widths from its table 3)."""

DEEPSEEK_TOKENS_A_DAY, DEEPSEEK_GPUS, DEEPSEEK_CONTEXT = 272.80e9, 2048, 4096
DEEPSEEK_TFLOPS = {"causal": 385.0, "non-causal": 432.0}
"""Insights into DeepSeek-V3 (ISCA 2025, arXiv 2505.09343), table 4, on H800."""

GLM5_PARAMETERS = 753_864_139_008
"""Values in the released GLM-5 checkpoint, MTP layer and router biases included."""
