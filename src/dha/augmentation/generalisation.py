"""The generalisation rule: the gap says how often to augment, and each operation's effect on it says with what.

A network that overfits finds training images easy and unseen ones hard. An operation closes that gap as far as it makes
training images harder again; it leaves the distribution of the images as far as it makes unseen ones harder too. Both
are measured on the network as it is, by the loss of the same images with and without the operation, in units of the
validation loss:

    worth(o, v) = (E_train[loss(o_v(x)) - loss(x)] - harm E_validation[loss(o_v(x)) - loss(x)]) / L_val,

linear in the intensity v of the operation. No gap is larger than the whole validation loss, so that the first term
counts up to 1: what makes training images harder still does not close anything any more. Each of the two slots touches
an image with probability

    strength = min(1, (1 - L_train / L_val) / full_gap),

both losses on untouched images, and then draws from the softmax of worth / temperature over all intensities of all
operations, among them leaving the image alone, which is worth 0, each weighed by the operation's ``prior``: mirroring
and cropping are drawn before others as far as they are worth as much. The standard error of the worth is added to the
temperature, so that what is uncertain is not preferred. So a network that does not overfit sees its images as they are,
and one that begins to sees more and more of the operations that unseen images bear. Where the gap is larger than
full_gap all the same, harm weighs less, in proportion to full_gap / gap and down to ``LEAST_HARM``: what augmenting
more often cannot do any more is left to stronger operations.

Harm is remembered for the whole run, closing the gap is not: what the network has been trained on long enough harms no
more, be it mirrored digits, and that says nothing. The two terms are the diversity and the affinity of Gontijo-Lopes et
al. (ICLR 2021), here measured while training, and decided upon; that the gap decides how often to augment is the idea
of adaptive augmentation (Karras et al., NeurIPS 2020).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dha.augmentation.operations import priors, signed
from dha.augmentation.policy import AugmentationPolicy, Draws
from dha.augmentation.strength import STEEPEST, intensity, log_mean_exp
from dha.errors import DhaError

PRIOR = 8.0
"""Weight of the start of the policy, in probed images per operation."""
LOSS_MEMORY = 0.05
"""Share of the run after which a loss on untouched images counts 1/e in the gap."""
LEAST_HARM = 1.6
"""The least that a nat of loss on unseen images weighs against one on training images. Above 1: an operation after
which both are equally hard, because it leaves nothing of the images, would else always be worth something."""
_ESTIMATES = ("sums", "totals", "progress", "loss")


class GeneralisationRule:
    """Estimates what each operation is worth, and sets the policy by it.

    Args:
        policy: the policy to learn; where it starts is what the first estimates are mixed with.
        temperature: in units of the validation loss; the lower, the more the best operations are preferred.
        harm: what a nat of loss on unseen images weighs against one on training images, > 1, up to ``full_gap``.
        memory: share of the run after which a probe of training images counts 1/e, > 0: what an operation is worth
            changes as the network learns.
        full_gap: generalisation gap, in units of the validation loss, from which on both slots touch every image, > 0.

    Raises:
        DhaError: if "identity" is not among the operations of the policy.
    """

    def __init__(
        self,
        policy: AugmentationPolicy,
        temperature: float = 0.3,
        harm: float = 2.0,
        memory: float = 0.5,
        full_gap: float = 0.2,
    ) -> None:
        if "identity" not in policy.operations:
            raise DhaError(
                f"operations {', '.join(policy.operations)}: add identity, which others are measured against"
            )
        self.policy, self.temperature, self.harm, self.memory = policy, temperature, harm, memory
        self.full_gap = full_gap
        self.start, self.start_tilts = policy.operation_probabilities(), policy.tilts.clone()
        self.signed = signed(policy.operations)
        self.priors = priors(policy.operations)
        self.identity = torch.tensor([name == "identity" for name in policy.operations])
        # Per part and operation, sums over probes: 1, v, v^2, d, v d, d^2, of v the intensity - 1/2, d the difference.
        self.sums = torch.zeros(2, 6, len(policy.operations))
        self.totals = [0.0, 0.0]
        self.progress = 0.0
        self.loss = torch.zeros(2)

    @property
    def gap(self) -> float:
        """Running estimate of the share of the validation loss that training images, both untouched, do not have."""
        return 1 - float(self.loss[0] / self.loss[1]) if self.loss[1] > 0 and self.totals[0] else 0.0

    @property
    def strength(self) -> float:
        """Probability that a slot touches an image, before operations without worth give way to leaving it alone."""
        return min(1.0, max(0.0, self.gap / self.full_gap))

    @property
    def harm_weight(self) -> float:
        """What a nat of loss on unseen images weighs now against one on training images."""
        return max(min(LEAST_HARM, self.harm), self.harm * min(1.0, self.full_gap / max(self.gap, 1e-9)))

    def probe(self, n: int, generator: torch.Generator | None = None) -> Draws:
        """Draw one operation with its parameters for each of n images: half of them evenly, half as the policy does."""
        # Leaving an image alone needs no probe, but may be all there is.
        used = self.policy.operation_probabilities().mean(0).masked_fill(self.identity, 1e-9)
        even = (~self.identity).float() + 1e-9
        operations = torch.multinomial(used / used.sum() + even / even.sum(), n, True, generator=generator)
        pairs = torch.stack([operations, torch.full_like(operations, self.policy.operations.index("identity"))], 1)
        return Draws(pairs, torch.rand(n, 2, 3, generator=generator))

    @torch.no_grad()
    def learn(
        self,
        draws: tuple[Draws, Draws],
        plain: tuple[Tensor, Tensor],
        changed: tuple[Tensor, Tensor],
        progress: float,
    ) -> None:
        """Take in one probe and set the policy anew.

        Args:
            draws: what was applied to the training and to the validation images.
            plain: losses (n,) of the untouched training and of the untouched validation images, on the CPU.
            changed: losses (n,) of the same images after the operation.
            progress: share of the run that was over at the probe, in [0, 1].
        """
        passed, self.progress = progress - self.progress, progress
        self.sums[0] *= math.exp(-passed / self.memory)
        for part in (0, 1):
            self.totals[part] *= math.exp(-passed / LOSS_MEMORY)
            losses = plain[part].float()
            losses = losses[losses.isfinite()]
            if len(losses):
                self.totals[part] += 1
                self.loss[part] += (losses.mean() - self.loss[part]) / self.totals[part]
        if not self.totals[1]:
            return  # There is no validation loss yet to measure anything by.
        for part in (0, 1):
            operations = draws[part].pairs[:, 0]
            v = intensity(draws[part].uniforms[:, 0, 0], self.signed[operations]) - 0.5
            difference = (changed[part] - plain[part]).float() / self.loss[1].clamp_min(1e-6)
            # A loss that is not finite says nothing.
            sound = difference.isfinite()
            operations, v, difference = operations[sound], v[sound], difference[sound]
            terms = torch.stack([torch.ones_like(v), v, v * v, difference, v * difference, difference.square()])
            self.sums[part].index_add_(1, operations, terms)
        self.policy.set_slots(self.probabilities().log(), self.tilts())

    def lines(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what every operation is worth at medium intensity, how much more at the highest than at the
        lowest, and the standard error of the former, each (K,) and in units of the validation loss.

        It is a regression, its slope drawn to 0 by ``PRIOR``.
        """
        count, v, v_squared, d, products, d_squared = self.sums.unbind(1)
        n = count.clamp_min(1e-9)
        slopes = (products - v * d / n) / (v_squared - v * v / n + PRIOR / 12)
        levels = (d - slopes * v) / n
        # Of what the line leaves unexplained.
        variances = (d_squared - d * d / n - slopes * (products - v * d / n)).clamp_min(0) / n**2
        harm = self.harm_weight
        error = (variances[0] + harm**2 * variances[1]).sqrt()
        closed, steeper = levels[0].clamp_max(1.0), slopes[0].masked_fill(levels[0] > 1, 0.0)
        return closed - harm * levels[1], steeper - harm * slopes[1], error

    def worth(self) -> Tensor:
        """Return the estimated worth of every operation at medium intensity, (K,); 0 for leaving the image alone."""
        return self.lines()[0].masked_fill(self.identity, 0.0)

    def tilts(self) -> Tensor:
        """Return the tilts of the intensities of every operation, (K,): the start, mixed with what is wanted as probes
        come in.
        """
        share = self._share()
        return share * self._wanted_tilts() + (1 - share) * self.start_tilts

    def probabilities(self) -> Tensor:
        """Return the probabilities of both slots, (2, K): the start, mixed with what is wanted as probes come in."""
        worth, _, error = self.lines()
        logits = (worth / (self.temperature + error)).clamp(-20, 20).masked_fill(self.identity, 0.0)
        logits += log_mean_exp(self._wanted_tilts()) + self.priors.log()
        wanted = self.strength * logits.softmax(0) + (1 - self.strength) * self.identity
        share = self._share()
        return (share * wanted + (1 - share) * self.start).clamp_min(1e-9)

    def _wanted_tilts(self) -> Tensor:
        _, slopes, error = self.lines()
        # The standard error of a slope over evenly spread intensities is sqrt(12) times that of the mean.
        tilts = slopes / (self.temperature + math.sqrt(12) * error)
        return tilts.clamp(-STEEPEST, STEEPEST).masked_fill(self.identity, 0.0)

    def _share(self) -> Tensor:
        weight = self.sums[:, 0].masked_fill(self.identity, torch.inf).amin()
        return (1 + PRIOR / weight).reciprocal()

    def state_dict(self) -> dict[str, Any]:
        """Return the estimates; the policy that follows from them keeps its own."""
        return {name: getattr(self, name) for name in _ESTIMATES}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned, of a rule for as many operations."""
        for name in _ESTIMATES:
            setattr(self, name, state[name])
