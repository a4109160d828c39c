"""Learned augmentation: image operations, a distribution over ordered pairs of them, and the rules that move it.

It stands alone: nothing here knows the network, the loss or the run.
"""

from dha.augmentation.generalisation import GeneralisationRule
from dha.augmentation.operations import OPERATIONS, Operation
from dha.augmentation.policy import AugmentationPolicy, Draws
from dha.augmentation.rules import adversarial_gradient, alignments, standardise, validation_gradient

__all__ = [
    "OPERATIONS",
    "AugmentationPolicy",
    "Draws",
    "GeneralisationRule",
    "Operation",
    "adversarial_gradient",
    "alignments",
    "standardise",
    "validation_gradient",
]
