"""Images that are hard to read, made when a test needs them."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
ORIENTATION = 0x0112


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def flat_png(path: Path, width: int, height: int) -> None:
    """Write a black and white PNG, all black, with one row in memory at a time."""
    packer, row = zlib.compressobj(1), bytes(1 + (width + 7) // 8)
    body = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b""))


def bomb(path: Path, width: int = 100_000, height: int = 100_000) -> None:
    """Write a PNG that says it has so many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b""))


def good(folder: Path) -> dict[str, Path]:
    """Write images of every kind that is taken."""
    folder.mkdir(parents=True)
    colour, grey = Image.fromarray(NOISE), Image.fromarray(NOISE[..., 0])
    alpha = Image.fromarray(np.concatenate([NOISE, NOISE[..., :1]], axis=-1))
    deep = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    frames = [Image.new("P", (16, 16), level) for level in (1, 2, 3)]
    colour.save(folder / "colour.jpg")
    alpha.save(folder / "alpha.png")
    colour.convert("P").save(folder / "palette.png", transparency=0)
    deep.save(folder / "deep.png")
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    grey.save(folder / "grey.jpg")
    colour.save(folder / "turned.jpg", exif=exif)
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1, 1)).save(folder / "single.png")
    Image.new("RGB", (12_000, 1)).save(folder / "long.png")
    Image.new("L", (12_000, 4_000)).save(folder / "large.jpg")
    colour.save(folder / "żółw\n猫.png")
    return {path.name: path for path in folder.iterdir()}


def bad(folder: Path) -> dict[str, Path]:
    """Write files that have the name of an image and are none."""
    folder.mkdir(parents=True)
    Image.fromarray(NOISE).save(folder / "whole.jpg")
    content = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "corrupt.jpg").write_bytes(content[:20] + bytes(len(content) - 20))
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("a text\n")
    (folder / "new\nline.jpg").write_text("a text\n")
    (folder / "program.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    bomb(folder / "bomb.png")
    return {path.name: path for path in folder.iterdir()}
