"""Time the kernels against what PyTorch users have today, on this machine."""
