"""Does a device multiply bf16 matrices by instructions of its own?

A processor without them computes the right numbers all the same, element by element in software:
on an AVX2 core a batch of 128 x 256 products takes 13 times as long in bf16 as in fp32, where a
core with AVX512-BF16 takes half as long (`benchmarks/newton_schulz.py`). Many laptops are of the
first kind, so that nobody should choose bf16 without asking here.
"""

import torch


def multiplies_bf16(device: torch.device) -> bool:
    """Are bf16 products on `device` made of instructions of its own?"""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return True
    # oneDNN emulates bf16 on any AVX-512; elsewhere (ARM) it says yes only to real ones.
    is_emulated = torch.cpu._is_avx512_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and not is_emulated
