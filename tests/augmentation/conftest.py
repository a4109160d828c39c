import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image


@pytest.fixture(scope="session")
def pictures() -> dict[str, Image.Image]:
    """A photograph, the same with little contrast, and noise; wider than high and of even and odd sides."""
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((48, 33))
    dull = Image.fromarray((np.asarray(photo) // 3 + 40).astype(np.uint8))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    return {"photo": photo, "dull": dull, "noise": noise}


@pytest.fixture(scope="session")
def photo(pictures: dict[str, Image.Image]) -> torch.Tensor:
    """The photograph as images (1, 3, 33, 48)."""
    return torch.from_numpy(np.array(pictures["photo"])).permute(2, 0, 1)[None] / 255
