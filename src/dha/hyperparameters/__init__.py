"""Learned hyper-parameters: one-step hypergradients in closed form, schedules, and log-space updates."""

from dha.hyperparameters.hypergradients import (
    cosine,
    dot,
    learning_rate_gradient,
    momentum_gradient,
    norm,
    weight_decay_gradient,
)
from dha.hyperparameters.schedule import LearnedScalar, cosine_schedule

__all__ = [
    "LearnedScalar",
    "cosine",
    "cosine_schedule",
    "dot",
    "learning_rate_gradient",
    "momentum_gradient",
    "norm",
    "weight_decay_gradient",
]
