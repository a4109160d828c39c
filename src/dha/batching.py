"""What a step trains on: images at the side that is trained on, augmented."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from lightning_fabric import Fabric
from torch import Tensor

from dha.augmentation import Draws
from dha.config import Config
from dha.engine import Aside
from dha.policy_learning import PolicyLearning
from dha.resizing import pixels, side_in_run


class Batch(NamedTuple):
    """What one step trains on.

    Attributes:
        images: float32 (N, C, S, S) in [0, 1], at the side that is trained on, not augmented.
        labels: int64 (N,).
        augmented: the images as most steps train on them.
        draws: what was done to those of all processes; None if nothing.
        weights: float32 (N,), how much each image counts in a loss; None for all alike.
    """

    images: Tensor
    labels: Tensor
    augmented: Tensor
    draws: Draws | None
    weights: Tensor | None = None


class Batching:
    """Makes of the images that are drawn what is trained on.

    Args:
        learner: of the policy that images are augmented by, or None to leave them alone.
        config: the settings of the run.
        full: side in pixels of the images.
        fabric: of the run.

    Attributes:
        size: images of a full batch in this process.
    """

    def __init__(self, learner: PolicyLearning | None, config: Config, full: int, fabric: Fabric) -> None:
        self.learner, self.config, self.full = learner, config, full
        self.aside = Aside(fabric.device) if learner is None else learner.aside
        self.size = config.images_per_step() // fabric.world_size

    def drawn(self, source: Iterable[tuple[Tensor, ...]], progress: Callable[[], float]) -> Iterator[list[Batch]]:
        """Yield what ``batches`` makes of all that is drawn from a source: got ready by a GPU while it trains on what
        came before.

        Args:
            source: images, labels and maybe weights as ``batches`` takes them; nothing may change what they are made
                from.
            progress: returns the share of the run that is over.
        """
        self.aside.catch_up()
        draws = iter(source)
        while True:
            with self.aside.work():
                drawn = next(draws, None)
                if drawn is None:
                    return
                images, labels, *weights = drawn
                batches = self.batches(images, labels, progress(), *weights)
            self.aside.hand_over([part for batch in batches for part in batch if isinstance(part, Tensor)])
            yield batches

    def batches(self, images: Tensor, labels: Tensor, progress: float, weights: Tensor | None = None) -> list[Batch]:
        """Bring images to the side that is trained on, and augment them.

        Args:
            images: uint8, (N, C, H, W), of one batch or of several, on the device.
            labels: int64, (N,), on the device.
            progress: share of the run that is over, in [0, 1].
            weights: of the images, float32, (N,), on the device; None for all alike.
        """
        count, smaller = max(1, len(labels) // self.size), pixels(images, self.side(progress))
        several = smaller.tensor_split(count), labels.tensor_split(count)
        weighed = [None] * count if weights is None else weights.tensor_split(count)
        learner = self.learner_at(progress)
        if learner is None:
            parts = zip(*several, weighed, strict=True)
            return [Batch(untouched, answers, untouched, None, weight) for untouched, answers, weight in parts]
        augmented, draws = learner.augment(smaller, count)
        return [Batch(*parts) for parts in zip(*several, augmented.tensor_split(count), draws, weighed, strict=True)]

    def learner_at(self, progress: float) -> PolicyLearning | None:
        """Return what learns the policy, or None: from ``until`` on there is none, it is neither applied nor moved."""
        return self.learner if self.learner is not None and progress < self.learner.until else None

    def side(self, progress: float) -> int:
        """Return the side in pixels of the images that are trained on when ``progress`` of the run is over."""
        return side_in_run(self.config, self.full, progress)
