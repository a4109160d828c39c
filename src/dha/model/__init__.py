"""The delivered model: save, load, predict."""

from dha.model.trained import TrainedModel, labelled_images

__all__ = ["TrainedModel", "labelled_images"]
