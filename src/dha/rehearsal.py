"""A rehearsal before a run: whether passes that a GPU replays from a recording give what plain passes give."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from dha.passes import Passes

ROUNDS = 3
"""A pass is done as it is at first, recorded the second time, and replayed from then on."""
TOLERANCE = 0.1
"""Largest difference between replayed and plain results, as a share of these. A number in bfloat16 is off by .004 at
most; what another recording has overwritten is off by all of it. On an NVIDIA H100 there was no difference at all."""


def rehearse(passes: Passes, images: Tensor, labels: Tensor, smoothing: Tensor) -> None:
    """Go through the passes of a step as the run will, and once more without recording; record nothing where they
    differ, and warn of it: the run is slower then, but right.

    Nothing is left of it in the network. It waits for the device.

    Args:
        passes: of a network in training mode.
        images: a batch, float32 (N, C, S, S) in [0, 1].
        labels: int64, (N,).
        smoothing: label smoothing, without dimensions, on the device.
    """
    statistics = [(buffer, buffer.clone()) for norm in passes.norms for buffer in norm.buffers()]
    recorded = [_results(passes, images, labels, smoothing) for _ in range(ROUNDS)][-1]
    if passes.graphs.possible:
        passes.graphs.possible = False
        plain = _results(passes, images, labels, smoothing)
        passes.graphs.possible = all(
            bool((ours - theirs).norm() <= TOLERANCE * theirs.norm())
            for ours, theirs in zip(recorded, plain, strict=True)
        )
        if not passes.graphs.possible:
            passes.forget()
            warnings.warn(
                "passes replayed from CUDA graphs give other results than plain ones on this machine: the run goes on "
                "without, and is slower",
                RuntimeWarning,
                stacklevel=3,
            )
    passes.plain.zero_grad()
    for buffer, before in statistics:
        buffer.copy_(before)


def _results(passes: Passes, images: Tensor, labels: Tensor, smoothing: Tensor) -> Sequence[Tensor]:
    """Return what the passes of one step give, looked at when all of them are over: one may spoil another's."""
    passes.plain.zero_grad()
    inputs = passes.normalise(images)
    losses, logits = passes.train(inputs, labels, smoothing, None)
    seen = passes.losses(images, labels)
    active = [weight for weight in passes.trained if weight.grad is not None]
    held_out, unseen = passes.held_out(images, labels, smoothing, active)
    changed = passes.losses(images.flip(-1), labels)
    gradients = torch.cat([weight.grad.flatten() for weight in active if weight.grad is not None])
    held = torch.cat([gradient.flatten() for gradient in held_out])
    return [losses, logits.float().clone(), seen, unseen, changed, gradients, held]
