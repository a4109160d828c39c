"""dha: labelled images in, a trained classifier out, with everything learned in one run."""

from typing import TYPE_CHECKING, Any

from dha.config import ArchitectureConfig, AugmentationConfig, Config, HyperparametersConfig
from dha.errors import DhaError

if TYPE_CHECKING:
    from dha.classifier import ImageClassifier
    from dha.model import TrainedModel

__version__ = "0.1.0"

__all__ = [
    "ArchitectureConfig",
    "AugmentationConfig",
    "Config",
    "DhaError",
    "HyperparametersConfig",
    "ImageClassifier",
    "TrainedModel",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # Imported when first used: torch and scikit-learn take seconds, `dha --help` and `import dha` should not.
    if name == "ImageClassifier":
        from dha.classifier import ImageClassifier

        return ImageClassifier
    if name == "TrainedModel":
        from dha.model import TrainedModel

        return TrainedModel
    raise AttributeError(f"module 'dha' has no attribute {name!r}")
