"""Score many settings of the refinement in one pass over the images."""

from wsssfast.ablation.run import ablate
from wsssfast.ablation.scores import Ablation, read_ablation, read_ablation_files
from wsssfast.ablation.settings import Setting, settings_of

__all__ = [
    "Ablation", "Setting", "ablate", "read_ablation", "read_ablation_files", "settings_of",
]  # fmt: skip
