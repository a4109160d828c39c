"""The delivered model: save, load, predict."""

from dha.model.mirroring import better_mirrored, logits_of
from dha.model.trained import TrainedModel, labelled_images

__all__ = ["TrainedModel", "better_mirrored", "labelled_images", "logits_of"]
