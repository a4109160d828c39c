"""The delivered model: a plain network with everything needed to use it, saved as safetensors and JSON."""

import json
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dha.architecture import (
    BlockGenotype,
    Genotype,
    GivenGenotype,
    genotype_of,
    given_network,
    layout,
    plain_network,
)
from dha.augmentation import AugmentationPolicy
from dha.data import Columns, LabelledImages, OnBadImage, Preprocessing, load_source
from dha.engine import present_device
from dha.errors import DataWarning, DhaError, one_line, shortened
from dha.files import replaced_folder
from dha.model.mirroring import logits_of
from dha.model.reading import FORMAT, read_description, read_weights
from dha.ownership import MODEL_FILES, check_model

BATCH = 256
_NAMED = 3
_ERRORS = OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError
_DAMAGE = (*_ERRORS, safetensors.SafetensorError)


@dataclass
class TrainedModel:
    """A network that maps photographs to classes.

    Attributes:
        network: the plain network, from normalised images to logits.
        classes: the class of each output, in order.
        preprocessing: what images need before the network.
        genotype: how the network is written down.
        learned: what the run learned and how it went: the policy, as ``policy.json`` has it, and the course of the
            hyper-parameters and the results, as ``model.json`` does.
        mirrored: whether predictions are made from an image and its mirror image, which takes twice as long.
    """

    network: nn.Module
    classes: tuple[str, ...] | tuple[int, ...]
    preprocessing: Preprocessing
    genotype: Genotype | BlockGenotype | GivenGenotype
    learned: dict[str, Any] = field(default_factory=dict)
    mirrored: bool = False

    @torch.no_grad()
    def probabilities(self, images: Tensor | LabelledImages) -> Tensor:
        """Return the probability of each class, float32 (N, classes) on the CPU.

        Args:
            images: uint8, (N, C, S, S), at the model's size; labelled ones are read a few at a time.

        Raises:
            DhaError: if their size or number of channels is not the model's, or the network overflows.
        """
        shape = tuple(images.shape[1:]) if isinstance(images, Tensor) else images.shape
        if shape != (self.preprocessing.channels, *2 * (self.preprocessing.image_size,)):
            raise DhaError(
                f"images of shape {shape}: this model takes {self.preprocessing.channels} channels "
                f"at {self.preprocessing.image_size} pixels; read them with dha.data.load_images"
            )
        parts = [logits.float().softmax(1).cpu() for logits in self._logits(images)]
        found = torch.cat(parts) if parts else torch.empty(0, len(self.classes))
        lost = (~found.isfinite()).any(1).sum().item()
        if lost:
            raise DhaError(f"{lost} of {len(found)} images have no finite probabilities: train the model again")
        return found

    def _logits(self, images: Tensor | LabelledImages) -> Iterator[Tensor]:
        self.network.eval()
        device = next(self.network.parameters()).device
        chunks = images.split(BATCH) if isinstance(images, Tensor) else (some for some, *_ in images.chunks(BATCH))
        for batch in chunks:
            pixels = self.preprocessing.normalise(batch.to(device).float() / 255)
            inputs = pixels.contiguous(memory_format=layout(self.network))
            yield logits_of(self.network, inputs, self.mirrored)

    def contents(self) -> dict[str, bytes]:
        """Return what ``save`` writes: the content of each file by its name."""
        policy = self.learned.get("policy")
        description = {
            "format": FORMAT,
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_dict(),
            "genotype": self.genotype.to_dict(),
            "mirrored": self.mirrored,
            **{name: value for name, value in self.learned.items() if name != "policy"},
        }
        # safetensors wants row-major memory, of one name each; channels-last is a matter of speed and is set again
        # after loading, shared weights are shared again by the network itself.
        row_major = torch.contiguous_format
        state = {name: t.clone(memory_format=row_major) for name, t in self.network.state_dict().items()}
        files = {
            "weights.safetensors": safetensors.torch.save(state),
            "model.json": (json.dumps(description, indent=2) + "\n").encode(),
        }
        if policy is not None:
            files["policy.json"] = (json.dumps(policy, indent=2) + "\n").encode()
        return files

    def save(self, folder: str | Path) -> None:
        """Write weights.safetensors, model.json and maybe policy.json to a folder.

        Args:
            folder: new, empty, or of a model that dha has written, in whose place this one comes.

        Raises:
            DhaError: if the folder holds anything else, or is a file or a link.
            OSError: if it cannot be written; what was there stays.
        """
        folder = Path(folder)
        check_model(folder)
        contents = self.contents()
        with replaced_folder(folder, MODEL_FILES) as partial:
            for name, content in contents.items():
                (partial / name).write_bytes(content)

    @staticmethod
    def load(folder: str | Path, device: str = "cpu", network: str | nn.Module | None = None) -> "TrainedModel":
        """Read what ``save`` wrote. Nothing is unpickled, and no code runs that the folder holds or names.

        Args:
            folder: of the model.
            device: where the network will be, as torch names it; "auto" for the best of this machine.
            network: the network that was brought to the run, once more: as in ``Config``; its weights are replaced.

        Raises:
            DhaError: if the folder is not a dha model, its files do not fit each other, or ``network`` does not.
        """
        device = str(present_device(str(device)))
        folder = Path(folder)
        file = folder / "model.json"
        if not file.is_file():
            raise DhaError(f"{folder} is not a dha model (no model.json in it): give the folder `model` of a run")
        try:
            description = read_description(file)
            classes = tuple(description["classes"])
            preprocessing = Preprocessing.from_dict(description["preprocessing"])
            plain, genotype = _built(folder, description["genotype"], preprocessing, len(classes), network, device)
            read_weights(folder / "weights.safetensors", plain)
            policy = folder / "policy.json"
            learned = {"policy": AugmentationPolicy.load(policy).to_dict()} if policy.exists() else {}
        except DhaError:
            raise
        except _DAMAGE as error:
            said = one_line(error)[:300]
            if network is not None:
                raise DhaError(f"{folder} does not fit the network given ({said}): give that of its run") from error
            raise DhaError(
                f"{folder} is damaged or was not written by dha ({said}): copy or train the model again"
            ) from error
        plain.to(device, memory_format=layout(plain))  # pyright: ignore[reportCallIssue]
        own = "format", "classes", "preprocessing", "genotype", "mirrored"
        learned |= {name: value for name, value in description.items() if name not in own}
        mirrored = description.get("mirrored", False)  # Models of before have none of it.
        return TrainedModel(plain.eval(), classes, preprocessing, genotype, learned, mirrored)


def _built(
    folder: Path,
    data: dict[str, Any],
    preprocessing: Preprocessing,
    classes: int,
    network: str | nn.Module | None,
    device: str,
) -> tuple[nn.Module, Genotype | BlockGenotype | GivenGenotype]:
    shape = preprocessing.channels, classes, preprocessing.image_size
    if data.get("space") != "given":
        if network is not None:
            raise DhaError(
                f"{folder} holds its network, of the space {shortened(data.get('space'))}: leave network= out"
            )
        # Without memory until the weights turn out to have its shapes: a genotype may ask for any amount.
        with torch.device("meta"):
            plain = plain_network(data, *shape)
        return plain, genotype_of(plain, None)
    genotype = GivenGenotype.from_dict(data)
    name = genotype.network
    if network is None:
        in_file = ":" in name
        python = repr(name) if in_file else f"a module {name}"
        shell = shlex.quote(name) if in_file else "path/to/file.py:function"
        raise DhaError(
            f"{folder} holds the weights of {name} and not its code, and runs no code that it names: give the network "
            f"of the run again, as network={python} in Python or --network {shell}"
        )
    # The same file may lie elsewhere by now.
    if isinstance(network, str) and ":" in name and Path(network).name != Path(name).name:
        warnings.warn(
            f"{folder} holds the weights of {shortened(name, 400)}: they are taken into {shortened(network, 400)}, "
            "which may be another network",
            RuntimeWarning,
            stacklevel=4,
        )
    return given_network(network, *shape, genotype.blocks, device), genotype


def labelled_images(
    model: TrainedModel, source: Any, labels: Any = None, on_bad_image: OnBadImage = "error"
) -> LabelledImages:
    """Read labelled images as the model wants them: those of the test part, or all where a source has none.

    Columns of a table are those that were named to the run of the model, if any.

    Returns:
        The images, with labels as positions in ``model.classes``.

    Raises:
        DhaError: for a bad source, or a class that the model does not know.

    Warns:
        DataWarning: with the first images that could not be read and are left out.
    """
    image_format = asdict(model.preprocessing.image_format)
    loaded = load_source(
        source, labels, classes=model.classes, on_bad_image=on_bad_image, columns=_columns(model), **image_format
    )
    unreadable = list(loaded.report.facts.unreadable)
    if unreadable:
        named = ", ".join(unreadable[:_NAMED]) + (", ..." if len(unreadable) > _NAMED else "")
        warnings.warn(
            f"{loaded.name}: {len(unreadable)} images could not be read and are left out: {named}",
            DataWarning,
            stacklevel=2,
        )
    return loaded.test or loaded.train


def _columns(model: TrainedModel) -> Columns:
    """Return the columns that the run of the model was told, as far as its description says so."""
    data = model.learned.get("data")
    given = data.get("columns") if isinstance(data, dict) else None
    if not isinstance(given, dict):
        return Columns()
    return Columns(*(name if isinstance(name := given.get(kind), str) else None for kind in ("path", "label", "split")))
