"""A learned distribution over ordered pairs of image operations, and its application to a batch."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dha.augmentation.batched import apply_operations
from dha.augmentation.operations import OPERATIONS, signed
from dha.augmentation.strength import STEEPEST, tilted
from dha.errors import DhaError, shortened
from dha.files import begins_with, read_bytes, write_text

LARGEST = 2**20
"""The most bytes of a policy.json."""


@dataclass(frozen=True)
class Draws:
    """What was drawn for a batch of n images, on the CPU.

    Attributes:
        pairs: int64 (n, 2), the operation of each slot as a position in the policy's `operations`.
        uniforms: float32 (n, 2, 3) in [0, 1), per slot the strength and two position numbers (see `Operation`).
    """

    pairs: Tensor
    uniforms: Tensor

    def split(self, count: int) -> "list[Draws]":
        """Return the draws of ``count`` equal parts of the batch, in order."""
        parts = zip(self.pairs.tensor_split(count), self.uniforms.tensor_split(count), strict=True)
        return [Draws(*part) for part in parts]

    @classmethod
    def join(cls, parts: "Sequence[Draws]") -> "Draws":
        """Return the draws of the batch that these are the parts of."""
        return cls(torch.cat([part.pairs for part in parts]), torch.cat([part.uniforms for part in parts]))


class AugmentationPolicy:
    """A distribution over the K x K ordered pairs of operations, held as logits on the CPU.

    It is `tau` of DHA (Zhou et al., TMLR 2022, arXiv 2109.05765). The logits stay on the CPU because pairs are drawn
    there: the number of images per operation is then known without waiting for the device.

    Args:
        operations: names out of `OPERATIONS`, without repetition.
        structure: "slots", one softmax per slot and so independent slots (2 K logits); or "pairs", one softmax over all
            pairs as in the paper (K x K logits).
        identity_probability: initial probability of "identity" in each slot, in (0, 1); the rest is spread evenly. 1/K
            is the uniform policy. Without "identity" among the operations the policy starts uniform.

    Attributes:
        tilts: float32 (K,), per operation how much more often it is strong than weak (see `dha.augmentation.strength`);
            0 at the start, where all strengths are equally likely.

    Raises:
        DhaError: an operation is unknown or named twice, there is none, or an argument is outside its range.
    """

    def __init__(
        self,
        operations: Sequence[str] = tuple(OPERATIONS),
        structure: Literal["slots", "pairs"] = "slots",
        identity_probability: float = 0.5,
    ) -> None:
        _check_names(operations)
        if structure not in ("slots", "pairs"):
            raise DhaError(f"structure is {shortened(structure)}; choose 'slots' or 'pairs'")
        if not 0 < identity_probability < 1:
            raise DhaError(
                f"identity_probability is {identity_probability}; it must lie between 0 and 1, both excluded"
            )
        self.operations = tuple(operations)
        self.structure = structure
        slot = torch.zeros(len(operations))
        if "identity" in operations and len(operations) > 1:
            slot.fill_(math.log((1 - identity_probability) / (len(operations) - 1)))
            slot[self.operations.index("identity")] = math.log(identity_probability)
        logits = [slot, slot.clone()] if structure == "slots" else [slot[:, None] + slot]
        self._logits = [tensor.requires_grad_() for tensor in logits]
        self.tilts, self._signed = torch.zeros(len(operations)), signed(self.operations)

    def parameters(self) -> list[Tensor]:
        """Return the logits for an optimiser: two vectors (K,) for "slots", one matrix (K, K) for "pairs"."""
        return self._logits

    @torch.no_grad()
    def set_slots(self, logits: Tensor, tilts: Tensor) -> None:
        """Make the slots independent, with these logits (2, K), and strengths tilted by ``tilts`` (K,)."""
        values = list(logits) if self.structure == "slots" else [logits[0][:, None] + logits[1]]
        for parameter, value in zip(self._logits, values, strict=True):
            parameter.copy_(value)
        self.tilts = tilts.clone()

    def log_probabilities(self) -> Tensor:
        """Return the log-probability of every ordered pair, (K, K), differentiable in the logits."""
        if self.structure == "pairs":
            return self._logits[0].flatten().log_softmax(0).view_as(self._logits[0])
        first, second = self._logits
        return first.log_softmax(0)[:, None] + second.log_softmax(0)

    def log_probability(self, pairs: Tensor) -> Tensor:
        """Return the log-probability (n,) of pairs, int64 (n, 2) on the CPU, differentiable in the logits."""
        return self.log_probabilities()[pairs[:, 0], pairs[:, 1]]

    def probabilities(self) -> Tensor:
        """Return the probability of every ordered pair, (K, K), without gradient."""
        return self.log_probabilities().detach().exp()

    def operation_probabilities(self) -> Tensor:
        """Return the probability of every operation in the first and in the second slot, (2, K), without gradient."""
        probabilities = self.probabilities()
        return torch.stack([probabilities.sum(1), probabilities.sum(0)])

    def entropy(self) -> Tensor:
        """Return the entropy over pairs in nats, a scalar differentiable in the logits."""
        logs = self.log_probabilities()
        return -(logs.exp() * logs).sum()

    def untouched(self) -> float:
        """Return the probability that an image is left alone: "identity" in both slots."""
        if "identity" not in self.operations:
            return 0.0
        identity = self.operations.index("identity")
        return self.probabilities()[identity, identity].item()

    def top_pairs(self, count: int) -> list[tuple[str, str, float]]:
        """Return the `count` most probable pairs (all, if there are fewer) as (first, second, probability)."""
        size = len(self.operations)
        values, places = self.probabilities().flatten().topk(min(count, size**2))
        return [
            (self.operations[place // size], self.operations[place % size], value)
            for value, place in zip(values.tolist(), places.tolist(), strict=True)
        ]

    def draw(self, n: int, generator: torch.Generator | None = None) -> Draws:
        """Draw a pair and its parameters for each of n >= 1 images, from a CPU generator (default: the global one)."""
        size = len(self.operations)
        places = torch.multinomial(self.probabilities().flatten(), n, replacement=True, generator=generator)
        pairs = torch.stack([places // size, places % size], 1)
        uniforms = torch.rand(n, 2, 3, generator=generator)
        uniforms[:, :, 0] = tilted(uniforms[:, :, 0], self.tilts[pairs], self._signed[pairs])
        return Draws(pairs, uniforms)

    @torch.no_grad()
    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Apply the drawn pairs, first slot first; an operation that is drawn twice is applied once.

        Else a policy that mirrors in both slots would not mirror at all.

        Args:
            images: uint8 (n, C, H, W), which is faster, or float32 in [0, 1], on any device, H and W at least 4; not
                modified.
            draws: of the same n, from a policy over the same operations.

        Returns:
            New images of the same shape on the same device, float32 in [0, 1]. Nothing waits for the device.

        Raises:
            DhaError: the images are neither uint8 nor float32, or the numbers of images and draws differ.
        """
        if images.dtype not in (torch.uint8, torch.float32):
            raise DhaError(
                f"the images are {images.dtype}; convert them to torch.uint8, or to torch.float32 with values in [0, 1]"
            )
        if len(images) != len(draws.pairs):
            raise DhaError(f"{len(images)} images but draws for {len(draws.pairs)}; draw as many as there are images")
        first, second = draws.pairs.unbind(1)
        # What is beyond the operations of the policy is left alone.
        names, second = (*self.operations, "identity"), second.masked_fill(first == second, len(self.operations))
        return apply_operations(names, images, torch.stack([first, second], 1), draws.uniforms)

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a batch augmented by pairs drawn anew: `apply` after `draw`."""
        return self.apply(images, self.draw(len(images), generator))

    def save(self, file: str | Path) -> None:
        """Write the policy to a JSON file, as runs do: `policy.json` in the folder of a model.

        Raises:
            DhaError: if another file than a policy is there.
            OSError: if it cannot be written; what was there stays.
        """
        if os.path.lexists(file) and not begins_with(Path(file), b'{\n  "operations"'):
            raise DhaError(
                f"policy {str(file)!r} would take the place of a file that dha has not written: name another"
            )
        write_text(Path(file), json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, file: str | Path) -> "AugmentationPolicy":
        """Read a policy that `save` or a run wrote.

        Raises:
            DhaError: if there is no such file, or it does not hold a policy.
        """
        try:
            values = json.loads(read_bytes(Path(file), LARGEST))
        except DhaError as error:
            raise DhaError(f"policy {error}") from error
        except OSError as error:
            raise DhaError(f"policy {str(file)!r} cannot be read ({error.strerror}): name a policy.json") from error
        except (ValueError, RecursionError) as error:
            reason = str(error)[:200]
            raise DhaError(f"policy {str(file)!r} is not JSON ({reason}): name a policy.json that dha wrote") from error
        if not isinstance(values, dict):
            raise DhaError(f"policy {str(file)!r} holds a {type(values).__name__}: name a policy.json that dha wrote")
        try:
            return cls.from_dict(values)
        except DhaError as error:
            raise DhaError(f"policy {str(file)!r}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as JSON-able values, for `from_dict`."""
        logits = [tensor.tolist() for tensor in self._logits]
        tilts = self.tilts.tolist()
        return {"operations": list(self.operations), "structure": self.structure, "logits": logits, "tilts": tilts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AugmentationPolicy":
        """Return the policy that `to_dict` described, logits to the bit.

        Raises:
            DhaError: a key is missing, an operation or structure unknown, logits or tilts misshapen or not finite.
        """
        missing = {"operations", "structure", "logits"} - set(values)
        if missing:
            raise DhaError(f"the saved policy lacks {', '.join(sorted(missing))}")
        if not isinstance(values["operations"], list):
            raise DhaError(f"operations is {shortened(values['operations'])}; a list of names is expected")
        policy = cls(values["operations"], values["structure"])
        policy._logits = [
            _numbers(saved, logits.shape, "logits").requires_grad_()
            for saved, logits in zip(_listed(values["logits"], len(policy._logits)), policy._logits, strict=True)
        ]
        tilts = values.get("tilts", [0.0] * len(policy.operations))  # Once there were none.
        policy.tilts = _numbers(tilts, policy.tilts.shape, "tilts").clamp(-STEEPEST, STEEPEST)
        return policy


def _listed(values: Any, count: int) -> list[Any]:
    if not isinstance(values, list) or len(values) != count:
        raise DhaError(f"the logits of the saved policy are {shortened(values)}; a list of {count} tensors is expected")
    return values


def _numbers(values: Any, shape: torch.Size, name: str) -> Tensor:
    try:
        tensor = torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DhaError(f"the {name} of the saved policy are not numbers of shape {tuple(shape)}") from error
    if tensor.shape != shape:
        raise DhaError(f"the saved policy has {name} of shape {tuple(tensor.shape)} instead of {tuple(shape)}")
    if not tensor.isfinite().all():
        raise DhaError(f"the saved policy has {name} that are not finite")
    return tensor


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise DhaError(f"operations is empty; name at least one of {', '.join(OPERATIONS)}")
    for place, name in enumerate(names):
        if not isinstance(name, str) or name not in OPERATIONS:
            raise DhaError(f"unknown operation {shortened(name)}; the known ones are {', '.join(OPERATIONS)}")
        if name in names[:place]:
            raise DhaError(f"operation {name!r} is named twice; name each one once")
