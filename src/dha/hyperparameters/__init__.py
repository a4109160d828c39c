"""Learned hyper-parameters: hypergradients, schedules, and the optimisers that learn their own learning rates."""

from dha.hyperparameters.hypergradients import (
    adamw_momentum_gradient,
    adamw_update,
    cosine,
    dot,
    learning_rate_gradient,
    momentum_gradient,
    norm,
    weight_decay_gradient,
)
from dha.hyperparameters.learned_optimizer import LearnedAdamW, LearnedSGD
from dha.hyperparameters.schedule import LearnedScalar, cosine_schedule

__all__ = [
    "LearnedAdamW",
    "LearnedSGD",
    "LearnedScalar",
    "adamw_momentum_gradient",
    "adamw_update",
    "cosine",
    "cosine_schedule",
    "dot",
    "learning_rate_gradient",
    "momentum_gradient",
    "norm",
    "weight_decay_gradient",
]
