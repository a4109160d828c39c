"""How often the training passes of a run drop branches, and how that is learned."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from dha.architecture import DropPath, drop_factors, dropping
from dha.engine import averaged, to_device
from dha.hyperparameters import LateScalar, cosine, drop_path_direction

PROBABILITIES = (1e-3, 0.5)
"""Lowest and highest probability that may be learned."""


class StochasticDepth:
    """Drops the branches of a network at random in training passes, each for each image on its own.

    Args:
        probability: of dropping at the start, in [0, 1); 0 drops nothing, and stays 0.
        fabric: of the run; each of its processes drops for its part of a batch.
        seed: of the draws, alike in all processes.

    Attributes:
        probability: the learned probability.
    """

    def __init__(self, probability: float, fabric: Fabric, seed: int) -> None:
        self.probability = LateScalar(probability, *PROBABILITIES, fabric.device)
        self.fabric = fabric
        # A negative seed is none of those that the other generators of a run have.
        self.generator = torch.Generator().manual_seed(-1 - seed)

    def factors(self, paths: Sequence[DropPath], n: int) -> Tensor | None:
        """Return what a training pass over n images multiplies branches by, drawn anew, (number of branches, n); None
        where nothing is dropped.
        """
        if not self.probability.late:
            return None
        return drop_factors(self._draw(len(paths), n), self.probability.late)

    def _draw(self, paths: int, n: int) -> Tensor:
        uniforms = torch.rand(paths, n * self.fabric.world_size, generator=self.generator)
        mine = uniforms.tensor_split(self.fabric.world_size, 1)[self.fabric.global_rank].contiguous()
        return to_device(mine, self.fabric.device)

    def learn(
        self,
        loss: Callable[[], Tensor],
        paths: Sequence[DropPath],
        n: int,
        weights: Sequence[Tensor],
        held_out: Sequence[Tensor],
        rate: float,
    ) -> None:
        """Move the probability by the cosine of the validation gradient with the gradient of what more dropping does.

        Args:
            loss: the mean loss of n training images; called twice, with more and with less dropping.
            paths: where branches can be dropped.
            n: number of images.
            weights: those that are trained.
            held_out: gradient of the validation loss at them.
            rate: how far the logarithm moves where the cosine is 1.
        """
        # The same draws for both passes, so that they differ only where the probability makes them.
        uniforms, now = self._draw(len(paths), n), self.probability.late
        width = now * (1 - now) / 2

        def at(probability: float) -> Tensor:
            with dropping(paths, drop_factors(uniforms, probability)):
                return loss()

        direction = averaged(drop_path_direction(at(now + width), at(now - width), weights), self.fabric)
        self.probability.move(cosine(held_out, direction), rate)

    def state_dict(self) -> dict[str, Any]:
        """Return the probability and the generator."""
        return {"probability": self.probability.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        self.probability.load_state_dict(state["probability"])
        self.generator.set_state(state["generator"])
