"""Order of floats as order of integers, shared by the kernels that rank patches."""

import triton
import triton.language as tl


@triton.jit
def ordered_bits(values):
    """Map float32 to int32 such that a < b exactly where the integers are; -0.0 equals 0.0."""
    bits = tl.where(values == 0, 0.0, values).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
