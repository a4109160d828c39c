"""Learned hyper-parameters: hypergradients, schedules, and the optimisers that learn their own learning rates."""

from dha.hyperparameters.hypergradients import (
    adamw_momentum_gradient,
    adamw_update,
    cosine,
    dot,
    drop_path_direction,
    learning_rate_gradient,
    mean_loss,
    momentum_gradient,
    norm,
    smoothed_cross_entropy,
    smoothing_direction,
    weighed,
    weight_decay_gradient,
)
from dha.hyperparameters.learned_muon import LearnedMuon, is_matrix, orthogonal
from dha.hyperparameters.learned_optimizer import ONE_STEP, LearnedAdamW, LearnedOptimizer, LearnedSGD, gradients_of
from dha.hyperparameters.schedule import LateScalar, LearnedScalar, linear_schedule

__all__ = [
    "ONE_STEP",
    "LateScalar",
    "LearnedAdamW",
    "LearnedMuon",
    "LearnedOptimizer",
    "LearnedSGD",
    "LearnedScalar",
    "adamw_momentum_gradient",
    "adamw_update",
    "cosine",
    "dot",
    "drop_path_direction",
    "gradients_of",
    "is_matrix",
    "learning_rate_gradient",
    "linear_schedule",
    "mean_loss",
    "momentum_gradient",
    "norm",
    "orthogonal",
    "smoothed_cross_entropy",
    "smoothing_direction",
    "weighed",
    "weight_decay_gradient",
]
