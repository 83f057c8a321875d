"""Score many settings of the refinement in one pass over the images."""

from wsssfast.ablation.run import Ablation, ablate, read_ablation
from wsssfast.ablation.settings import Setting, settings_of

__all__ = ["Ablation", "Setting", "ablate", "read_ablation", "settings_of"]
