"""Where there is no GPU, Triton's kernels run in its interpreter; it must hear so before import."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each, and one for what each starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
