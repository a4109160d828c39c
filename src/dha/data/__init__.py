"""Labelled images from many kinds of sources, as uint8 tensors in memory or over files."""

from dha.data.arrays import images_from_arrays
from dha.data.batches import Batches, sequential
from dha.data.cache import Cache, Where
from dha.data.decoding import read_image
from dha.data.image_format import ImageFormat
from dha.data.images import LabelledImages, on_device
from dha.data.labels import Classes
from dha.data.parts import OnBadImage
from dha.data.preprocessing import Preprocessing, measure
from dha.data.report import DataReport
from dha.data.resizing import convert_channels, resize_arrays
from dha.data.sources import Source, load_source
from dha.data.splits import Splits, split
from dha.data.table_files import Columns
from dha.data.unlabelled import ImageChunk, image_chunks, load_images, stream_images

__all__ = [
    "Batches",
    "Cache",
    "Classes",
    "Columns",
    "DataReport",
    "ImageChunk",
    "ImageFormat",
    "LabelledImages",
    "OnBadImage",
    "Preprocessing",
    "Source",
    "Splits",
    "Where",
    "convert_channels",
    "image_chunks",
    "images_from_arrays",
    "load_images",
    "load_source",
    "measure",
    "on_device",
    "read_image",
    "resize_arrays",
    "sequential",
    "split",
    "stream_images",
]
