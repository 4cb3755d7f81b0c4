"""torch_npu's op, which is trainable. It sorts what it is given: slots, which are a permutation
when none is dropped, sort into themselves. Written to its documentation; never run on an NPU."""

from torch import Tensor

from loopmoe_kernels.registry import vendor_op


def permute(x: Tensor, slots: Tensor, rows: int, dropless: bool = False) -> Tensor:
    """See ``loopmoe_kernels.permute``; only ``dropless``."""
    if not dropless:
        raise ValueError("permute: torch_npu's op knows no dropped slots; use the triton one")
    return vendor_op("npu_moe_token_permute")(x, slots)[0]
