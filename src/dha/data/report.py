"""What was read: which images, how they were understood and converted, and what was left out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dha.data.conversion import GREY
from dha.data.decoding import ImageFacts
from dha.data.image_format import ImageFormat
from dha.data.table_files import Columns
from dha.errors import printable
from dha.ownership import LEFT_OUT

UNEVEN = 3
"""How many times as many images as the smallest class the largest one has where a line of the report says so."""

_NAMED = 8
"""How many classes a line names."""

_NOTED = ("transparent", "blank", "turned", "animated", "reduced", "deep")


@dataclass
class Facts:
    """What the images of one or more parts were, before they were converted.

    Attributes:
        sizes: (width, height) in pixels -> number of images.
        modes: name that Pillow gives a mode, or "array" -> number of images.
        noted: "transparent", "blank" and others of the names in `ImageFacts` -> number of images.
        unreadable: name of an image that could not be read -> what is wrong with it.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)

    def add(self, facts: ImageFacts) -> None:
        """Count one image."""
        self.sizes[facts.width, facts.height] += 1
        self.modes[facts.mode] += 1
        self.noted.update(name for name in _NOTED if getattr(facts, name))

    def __add__(self, other: "Facts") -> "Facts":
        """Return the facts of the images of both."""
        sizes, modes, noted = self.sizes + other.sizes, self.modes + other.modes, self.noted + other.noted
        return Facts(sizes, modes, noted, self.unreadable | other.unreadable)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON can hold them."""
        sizes = [[*size, count] for size, count in sorted(self.sizes.items())]
        return {"sizes": sizes, "modes": self.modes, "noted": self.noted, "unreadable": self.unreadable}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Facts":
        """Return what `to_dict` was called on."""
        sizes = Counter({(width, height): count for width, height, count in values["sizes"]})
        return cls(sizes, Counter(values["modes"]), Counter(values["noted"]), dict(values["unreadable"]))


@dataclass(frozen=True)
class DataReport:
    """What a source holds and what was done with it.

    Attributes:
        name: of the source.
        layout: how it was understood, in words.
        classes: what labels stand for.
        counts: name of a part -> number of images of each class.
        held_out: names of the parts that were taken out of the training images.
        image_format: what images were converted to; None before they are read.
        facts: what they were before.
        left_out: path -> why it was left out, images that could not be read among them.
        conflicts: path and class of images that are in two classes.
        columns: of a table, as they were given.
        weighted: whether classes or images have weights.
    """

    name: str = ""
    layout: str = ""
    classes: Sequence[Any] = ()
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    held_out: Sequence[str] = ()
    image_format: ImageFormat | None = None
    facts: Facts = field(default_factory=Facts)
    left_out: Mapping[str, str] = field(default_factory=dict)
    conflicts: Sequence[tuple[str, str]] = ()
    columns: Columns = field(default_factory=Columns)
    weighted: bool = False

    def with_parts(
        self,
        labels: Mapping[str, torch.Tensor],
        held_out: Sequence[str] = (),
        conflicts: Sequence[tuple[str, str]] = (),
    ) -> "DataReport":
        """Return the report with other parts, whose class numbers are given."""
        counts = {name: torch.bincount(some, minlength=len(self.classes)).tolist() for name, some in labels.items()}
        return replace(self, counts=counts, held_out=held_out, conflicts=conflicts)

    def lines(self, folder: Path | None = None) -> list[str]:
        """Return what a person wants to know before training begins, a few lines, each of them printable.

        Args:
            folder: of the run, which the list of what was left out is in.
        """
        total = np.sum([*self.counts.values()], axis=0, dtype=int).tolist() if self.counts else []
        lines = [f"data: {self.name}" + (f", {self.layout}" if self.layout else "")]
        lines.append(f"images: {sum(total)} in {len(self.classes)} classes: {self._classes(total)}")
        if total and not self.weighted and max(total) >= UNEVEN * max(1, min(total)):
            lines.append("classes: uneven; --class-weight balanced gives every class the same weight")
        held = dict.fromkeys(self.held_out, " (held out of the training images)")
        lines.append("parts: " + ", ".join(f"{name} {sum(c)}{held.get(name, '')}" for name, c in self.counts.items()))
        if self.facts.sizes and self.image_format is not None:
            lines.append(f"sizes: {self._sizes()}")
            lines.append("converted: " + "; ".join(self._conversions(self.image_format)))
        if self.conflicts:
            lines.append(f"conflicts: {len(self.conflicts)} images are in more than one class")
        if self.left_out:
            kinds = (reason.split(" (")[0].split(": ")[0].removeprefix("is ") for reason in self.left_out.values())
            said = ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).most_common(5))
            where = "" if folder is None else f", listed in {folder / LEFT_OUT}"
            lines.append(f"left out: {len(self.left_out)} files or folders{where}: {said}")
        return [printable(line) for line in lines]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it, without the list of what was left out."""
        widths, heights = self._measures() if self.facts.sizes else ([], [])
        return {
            "name": self.name,
            "layout": self.layout,
            "columns": asdict(self.columns),
            "classes": {str(name): int(n) for name, n in zip(self.classes, self._total(), strict=False)},
            "parts": {name: sum(counts) for name, counts in self.counts.items()},
            "parts_by_class": {name: list(counts) for name, counts in self.counts.items()},
            "held_out": list(self.held_out),
            "sizes": {"width": widths, "height": heights},
            "modes": dict(self.facts.modes),
            "converted": [] if self.image_format is None else self._conversions(self.image_format),
            "left_out": len(self.left_out),
            "conflicts": [list(pair) for pair in self.conflicts[:1000]],
        }

    def _total(self) -> list[int]:
        return np.sum([*self.counts.values()], axis=0, dtype=int).tolist() if self.counts else []

    def _classes(self, total: Sequence[int]) -> str:
        named = [f"{name} {count}" for name, count in zip(self.classes[:_NAMED], total, strict=False)]
        return ", ".join(named) + (f", ... ({min(total)} to {max(total)} each)" if len(self.classes) > _NAMED else "")

    def _measures(self) -> tuple[list[int], list[int]]:
        """Return the least, the median and the largest width, and the same of the height."""
        sizes, counts = np.array(list(self.facts.sizes)), np.array(list(self.facts.sizes.values()))
        found = []
        for column in sizes.T:
            order = np.argsort(column)
            middle = np.searchsorted(np.cumsum(counts[order]), counts.sum() / 2)
            found.append([int(column.min()), int(column[order][middle]), int(column.max())])
        return found[0], found[1]

    def _sizes(self) -> str:
        (low_w, width, high_w), (low_h, height, high_h) = self._measures()
        if len(self.facts.sizes) == 1:
            return f"{width} x {height} pixels"
        return f"{low_w} to {high_w} x {low_h} to {high_h} pixels, median {width} x {height}"

    def _conversions(self, image_format: ImageFormat) -> list[str]:
        side = image_format.image_size
        colours = "grey" if image_format.channels == 1 else "colour"
        said = [f"to {side} x {side} pixels, {colours}"]
        oblong = sum(count for (width, height), count in self.facts.sizes.items() if width != height)
        if oblong:
            how = {"crop": "cut to their central square", "pad": "padded to squares", "squash": "squashed to squares"}
            said.append(f"{oblong} not square, {how[image_format.resize]} (--resize)")
        modes = self.facts.modes
        other = sum(
            n
            for mode, n in modes.items()
            if (mode in GREY or mode == "LA;16") == (image_format.channels == 3) and mode != "array"
        )
        if other:
            said.append(f"{other} in {'grey' if image_format.channels == 3 else 'colour'}, made {colours}")
        deep = self.facts.noted["deep"]
        if deep:
            whites = [white for white in (image_format.integer_white, image_format.float_white) if white is not None]
            said.append(
                f"{deep} of more than 8 bits, of which {' or '.join(map(str, whites)) or 'the largest value'} is white"
            )
        notes = {
            "transparent": f"transparent, shown on {image_format.background} (--background)",
            "blank": "with nothing to see on it (white on white, say)",
            "turned": "turned upright by their EXIF orientation",
            "animated": "animated or of several pages, the first of which is used",
            "reduced": "of 16 bits a channel, of which the upper 8 are used",
        }
        said += [f"{self.facts.noted[name]} {note}" for name, note in notes.items() if self.facts.noted[name]]
        return said
