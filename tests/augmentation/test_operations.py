import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dha.augmentation import OPERATIONS

NAMES = [
    *("identity", "auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "color", "contrast"),
    *(
        "brightness",
        "sharpness",
        "shear_x",
        "shear_y",
        "translate_x",
        "translate_y",
        "cutout",
        "horizontal_flip",
        "crop",
    ),
]


def affine(image: Image.Image, *coefficients: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def cutout(image: Image.Image, magnitude: float, x: float, y: float) -> Image.Image:
    """Pixel i is inside if its centre i + .5 lies in the interval of the given share around the position."""
    box = []
    for end in (-1, 1):
        for side, centre in ((image.width, x), (image.height, y)):
            edge = (centre + end * magnitude / 2) * side
            box.append(math.ceil(edge - 0.5) if end < 0 else math.ceil(edge - 0.5) - 1)
    result = image.copy()
    if box[2] >= box[0] and box[3] >= box[1]:
        ImageDraw.Draw(result).rectangle(tuple(box), fill=0)
    return result


def crop(image: Image.Image, magnitude: float, x: float, y: float) -> Image.Image:
    pixels = np.asarray(image)
    pad_x, pad_y = math.ceil(magnitude * image.width), math.ceil(magnitude * image.height)
    padded = np.pad(pixels, ((pad_y, pad_y), (pad_x, pad_x), (0, 0))[: pixels.ndim], mode="reflect")
    left, top = int(x * (2 * pad_x + 1)), int(y * (2 * pad_y + 1))
    return Image.fromarray(padded[top : top + image.height, left : left + image.width])


ORACLES: dict[str, Callable[[Image.Image, float, float, float], Image.Image]] = {
    "identity": lambda image, m, x, y: image,
    "auto_contrast": lambda image, m, x, y: ImageOps.autocontrast(image),
    "equalize": lambda image, m, x, y: ImageOps.equalize(image),
    "invert": lambda image, m, x, y: ImageOps.invert(image),
    "rotate": lambda image, m, x, y: image.rotate(m, Image.Resampling.BILINEAR),
    "posterize": lambda image, m, x, y: ImageOps.posterize(image, int(m)),
    "solarize": lambda image, m, x, y: ImageOps.solarize(image, m * 255),  # pyright: ignore[reportArgumentType]
    "color": lambda image, m, x, y: ImageEnhance.Color(image).enhance(1 + m),
    "contrast": lambda image, m, x, y: ImageEnhance.Contrast(image).enhance(1 + m),
    "brightness": lambda image, m, x, y: ImageEnhance.Brightness(image).enhance(1 + m),
    "sharpness": lambda image, m, x, y: ImageEnhance.Sharpness(image).enhance(1 + m),
    "shear_x": lambda image, m, x, y: affine(image, 1, m, -m * image.height / 2, 0, 1, 0),
    "shear_y": lambda image, m, x, y: affine(image, 1, 0, 0, m, 1, -m * image.width / 2),
    "translate_x": lambda image, m, x, y: affine(image, 1, 0, -round(m * image.width), 0, 1, 0),
    "translate_y": lambda image, m, x, y: affine(image, 1, 0, 0, 0, 1, -round(m * image.height)),
    "cutout": cutout,
    "horizontal_flip": lambda image, m, x, y: ImageOps.mirror(image),
    "crop": crop,
}
# In bytes: Pillow rounds or truncates every result (and intermediate image) to a byte, ours keeps the fraction.
MEAN_BOUND, MAXIMUM_BOUND = 0.6, 1.5
EXACT = [
    "identity",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "translate_x",
    "translate_y",
    "cutout",
    "horizontal_flip",
    "crop",
]


def to_tensor(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return (pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)) / 255


def magnitudes(name: str, count: int = 8) -> Tensor:
    operation = OPERATIONS[name]
    return torch.linspace(-operation.high if operation.signed else operation.low, operation.high, count)


def test_table_lists_the_operations_in_order() -> None:
    assert list(OPERATIONS) == NAMES


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("picture", ["photo", "dull", "noise"])
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_pillow(name: str, picture: str, mode: str, pictures: dict[str, Image.Image]) -> None:
    image = pictures[picture].convert(mode)
    magnitude = magnitudes(name)
    position = torch.rand(len(magnitude), 2, generator=torch.Generator().manual_seed(1))
    images = to_tensor(image).expand(len(magnitude), -1, -1, -1)
    ours = OPERATIONS[name].apply(images, magnitude, position)
    rows = zip(magnitude.tolist(), position.tolist(), strict=True)
    pillow = torch.stack([to_tensor(ORACLES[name](image, m, x, y)) for m, (x, y) in rows])
    error = 255 * (ours - pillow).abs()
    if name in EXACT:
        assert error.max() < 1e-3
    else:
        assert error.mean((1, 2, 3)).max() < MEAN_BOUND
        assert error.max() < MAXIMUM_BOUND


def test_equalize_counts_the_pixels_of_large_images() -> None:
    pixels = (256 * torch.rand(1200, 1600, generator=torch.Generator().manual_seed(0)) ** 3).to(torch.uint8)
    pillow = np.asarray(ImageOps.equalize(Image.fromarray(pixels.numpy())))
    ours = OPERATIONS["equalize"].apply(pixels[None, None] / 255, torch.zeros(1), torch.zeros(1, 2))
    assert np.array_equal((ours[0, 0] * 255).round().numpy(), pillow)


def test_equalize_spreads_images_too_small_for_pillow() -> None:
    images = torch.arange(64.0).view(1, 1, 8, 8) / 255 / 4 + 0.3
    result = OPERATIONS["equalize"].apply(images, torch.zeros(1), torch.zeros(1, 2))
    assert result.min() == 0
    assert result.max() == 1
    assert result.flatten().diff().ge(0).all()


@pytest.mark.parametrize("name", ["equalize", "auto_contrast"])
def test_flat_images_stay(name: str) -> None:
    images = torch.full((2, 3, 8, 8), 51 / 255)
    assert torch.equal(OPERATIONS[name](images, torch.rand(2, 3)), images)


@pytest.mark.parametrize("shape", [(16, 1, 8, 8), (16, 3, 7, 13), (16, 3, 4, 4), (16, 1, 5, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_keeps_shape_dtype_range_and_input(name: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(shape, generator=generator)
    images[:4] = 1.0  # the value that rounding could push out of the range
    images[4:8] = images[4:8].round()
    before, uniforms = images.clone(), torch.rand(shape[0], 3, generator=generator)
    uniforms[0], uniforms[1] = 0.0, 1 - 2**-24  # the ends of the range
    result = OPERATIONS[name](images, uniforms)
    assert result.shape == images.shape
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1
    assert torch.equal(images, before)
    assert torch.equal(OPERATIONS[name](images, uniforms), result)


@pytest.mark.parametrize("name", [name for name in NAMES if OPERATIONS[name].signed])
def test_signed_operations_are_the_identity_at_zero(name: str, photo: Tensor) -> None:
    result = OPERATIONS[name].apply(photo, torch.zeros(1), torch.rand(1, 2))
    assert torch.allclose(result, photo, atol=1e-5)


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_changes_images(name: str, channels: int, size: int, photo: Tensor) -> None:
    images = torch.nn.functional.interpolate(photo[:, :channels], (size, size)).expand(64, -1, -1, -1) * 0.8 + 0.1
    result = OPERATIONS[name](images, torch.rand(64, 3, generator=torch.Generator().manual_seed(3)))
    changed = ((result - images).abs().mean((1, 2, 3)) > 1e-3).float().mean()
    if name == "identity" or (name == "color" and channels == 1):
        assert changed == 0
    else:
        assert changed > 0.6


def test_magnitudes_cover_the_range() -> None:
    strength = torch.linspace(0, 1, 101)
    rotation, bits = OPERATIONS["rotate"].magnitude(strength), OPERATIONS["posterize"].magnitude(strength)
    assert torch.allclose(rotation, torch.linspace(-30, 30, 101), atol=1e-4)
    assert torch.allclose(bits, torch.linspace(8, 4, 101), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_never_reads_a_value_on_the_host(name: str) -> None:
    # Fake tensors have no values, so whatever would wait for a device (item, boolean indexing) raises.
    with FakeTensorMode():
        assert OPERATIONS[name](torch.rand(6, 3, 9, 8), torch.rand(6, 3)).shape == (6, 3, 9, 8)


def test_images_of_a_batch_do_not_mix(photo: Tensor) -> None:
    images = torch.cat([photo, 1 - photo, photo.flip(-2)])
    uniforms = torch.rand(3, 3, generator=torch.Generator().manual_seed(4))
    for name, operation in OPERATIONS.items():
        alone = [operation(images[k : k + 1], uniforms[k : k + 1]) for k in range(3)]
        assert torch.allclose(operation(images, uniforms), torch.cat(alone), atol=1e-6), name


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_weakest_at_intensity_zero_and_strongest_at_one(name: str, photo: Tensor) -> None:
    operation = OPERATIONS[name]
    images, positions = photo.repeat(16, 1, 1, 1), torch.rand(16, 2, generator=torch.Generator().manual_seed(5))
    images[:8, :, ::4] = 1.0  # White, which is the first that solarizing changes.
    changes = []
    for intensity in (0.0, 0.5, 1.0):
        strength = torch.tensor(0.5 + intensity / 2 if operation.signed else intensity)
        changed = operation.apply(images, operation.magnitude(strength).expand(16), positions)
        changes.append((changed - images).abs().mean().item())
    assert changes == sorted(changes)
    if operation.low != operation.high:
        assert changes[0] < 1e-6
        assert changes[2] > 0.01
