"""The delivered model: a plain network with everything needed to use it, saved as safetensors and JSON."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dha.architecture import CellNetwork, Genotype
from dha.data import Preprocessing, load_source
from dha.engine import replaced_folder
from dha.errors import DhaError

FORMAT = 1
BATCH = 256


@dataclass
class TrainedModel:
    """A network that maps photographs to classes.

    Attributes:
        network: the plain network.
        classes: the class of each output, in order.
        preprocessing: what images need before the network.
        learned: the policy, the hyper-parameters and the results of the run, as they are written to ``model.json``.
    """

    network: CellNetwork
    classes: tuple[str, ...] | tuple[int, ...]
    preprocessing: Preprocessing
    learned: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probability of each class, float32 (N, classes) on the CPU.

        Args:
            images: uint8, (N, C, S, S), at the model's size.

        Raises:
            DhaError: if their size or number of channels is not the model's.
        """
        if images.shape[1:] != (self.preprocessing.channels, *2 * (self.preprocessing.image_size,)):
            raise DhaError(
                f"images of shape {tuple(images.shape[1:])}: this model takes {self.preprocessing.channels} channels "
                f"at {self.preprocessing.image_size} pixels; read them with dha.data.load_images"
            )
        parts = [logits.float().softmax(1).cpu() for logits in self._logits(images)]
        return torch.cat(parts) if parts else torch.empty(0, len(self.classes))

    def _logits(self, images: Tensor) -> Iterator[Tensor]:
        self.network.eval()
        device = self.network.head.weight.device
        for batch in images.split(BATCH):
            pixels = self.preprocessing.normalise(batch.to(device).float() / 255)
            yield self.network(pixels.contiguous(memory_format=torch.channels_last))

    def save(self, folder: str | Path) -> None:
        """Write ``weights.safetensors`` and ``model.json`` to ``folder``, in place of what was there."""
        description = {
            "format": FORMAT,
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "genotype": self.network.genotype.to_dict(),
            **self.learned,
        }
        with replaced_folder(Path(folder)) as partial:
            # safetensors wants row-major memory; channels-last is a matter of speed and is set again after loading.
            state = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
            safetensors.torch.save_file(state, partial / "weights.safetensors")
            (partial / "model.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: str | Path, device: str = "cpu") -> "TrainedModel":
        """Read what ``save`` wrote. Nothing is unpickled and no code from the folder runs.

        Raises:
            DhaError: if the folder is not a dha model, or its files do not fit each other.
        """
        folder = Path(folder)
        file = folder / "model.json"
        if not file.is_file():
            raise DhaError(f"{folder} is not a dha model (no model.json in it): give the folder `model` of a run")
        try:
            description = json.loads(file.read_text(encoding="utf-8"))
            if description["format"] != FORMAT:
                raise DhaError(f"{file} has format {description['format']!r}, this dha reads {FORMAT}: update dha")
            classes = tuple(description["classes"])
            preprocessing = Preprocessing.from_dict(description["preprocessing"])
            genotype = Genotype.from_dict(description["genotype"])
            weights = safetensors.torch.load_file(folder / "weights.safetensors")
            network = CellNetwork(genotype, preprocessing.channels, len(classes), preprocessing.image_size)
            network.load_state_dict(weights)
        except DhaError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
            raise DhaError(
                f"{folder} is damaged or was not written by dha ({error}): copy or train the model again"
            ) from error
        network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        learned = {k: v for k, v in description.items() if k not in ("format", "classes", "preprocessing", "genotype")}
        return TrainedModel(network.eval(), classes, preprocessing, learned)


def labelled_images(model: TrainedModel, source: Any, labels: Any = None) -> tuple[Tensor, Tensor]:
    """Read labelled images as the model wants them: those of the test part, or all where a source has none.

    Returns:
        uint8 images (N, C, S, S), and labels (N,) as positions in ``model.classes``.

    Raises:
        DhaError: for a bad source, or a class that the model does not know.
    """
    preprocessing = model.preprocessing
    loaded = load_source(
        source, labels, image_size=preprocessing.image_size, channels=preprocessing.channels, classes=model.classes
    )
    part = loaded.test or loaded.train
    return part.images, part.labels
