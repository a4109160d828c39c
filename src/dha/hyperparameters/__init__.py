"""Learned hyper-parameters: hypergradients, schedules, and the optimiser that learns its own learning rates."""

from dha.hyperparameters.hypergradients import (
    cosine,
    dot,
    learning_rate_gradient,
    momentum_gradient,
    norm,
    weight_decay_gradient,
)
from dha.hyperparameters.learned_sgd import LearnedSGD
from dha.hyperparameters.schedule import LearnedScalar, cosine_schedule

__all__ = [
    "LearnedSGD",
    "LearnedScalar",
    "cosine",
    "cosine_schedule",
    "dot",
    "learning_rate_gradient",
    "momentum_gradient",
    "norm",
    "weight_decay_gradient",
]
