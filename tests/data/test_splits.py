import numpy as np
import pytest
import torch

from dha.data import ImageFormat, LabelledImages, Source, Splits, split
from dha.errors import DataWarning, DhaError

COUNTS = [100, 40, 9, 3]

pytestmark = pytest.mark.filterwarnings("ignore:.*rare classes are learned badly")


def numbered(counts: list[int], first: int = 0) -> LabelledImages:
    """Return images that carry their number in two pixels, with shuffled labels."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    numbers = torch.arange(first, first + len(labels))
    pixels = torch.stack([numbers // 256, numbers % 256], 1).to(torch.uint8)
    return LabelledImages(pixels.view(-1, 1, 1, 2), torch.from_numpy(labels))


def numbers(data: LabelledImages | None) -> list[int]:
    assert data is not None
    return (data.images[:, 0, 0, 0].int() * 256 + data.images[:, 0, 0, 1]).tolist()


def source(counts: list[int] = COUNTS, **parts: LabelledImages | None) -> Source:
    given = {"validation": None, "test": None, **parts}
    return Source(
        "numbered",
        numbered(counts),
        classes=("a", "b", "c", "d")[: len(counts)],
        image_format=ImageFormat(4, 1),
        **given,
    )


def run(s: Source, validation: float = 0.2, test: float = 0.1, seed: int = 0) -> Splits:
    return split(s, validation_fraction=validation, test_fraction=test, seed=seed)


@pytest.mark.parametrize(("validation", "test"), [(0.2, 0.1), (0.01, 0.01), (0.9, 0.9)])
def test_parts_are_disjoint_and_complete_and_hold_every_class(validation: float, test: float):
    parts = run(source(), validation, test)
    assert parts.test is not None
    together = numbers(parts.train) + numbers(parts.validation) + numbers(parts.test)
    assert sorted(together) == list(range(sum(COUNTS)))
    for part in (parts.train, parts.validation, parts.test):
        assert part.labels.unique().tolist() == [0, 1, 2, 3]
        original = numbered(COUNTS)
        assert part.labels.tolist() == original.labels[numbers(part)].tolist()


def test_every_class_gives_its_share():
    parts = run(source(), 0.2, 0.1)
    assert parts.test is not None
    assert torch.bincount(parts.test.labels).tolist() == [10, 4, 1, 1]
    assert torch.bincount(parts.validation.labels).tolist() == [18, 7, 2, 1]


def test_the_seed_decides_the_validation_part_only():
    first, again, other = run(source(), seed=1), run(source(), seed=1), run(source(), seed=2)
    assert numbers(first.train) == numbers(again.train)
    assert numbers(first.validation) == numbers(again.validation)
    assert numbers(first.validation) != numbers(other.validation)
    assert numbers(first.test) == numbers(other.test)


def test_given_parts_are_kept():
    validation, test = numbered([1, 1, 0, 0], 500), numbered([2, 0, 0, 1], 600)
    parts = run(source(validation=validation, test=test))
    assert parts.validation is validation
    assert parts.test is test
    assert numbers(parts.train) == list(range(sum(COUNTS)))
    parts = run(source(test=test))
    assert parts.test is test
    assert len(parts.train) + len(parts.validation) == sum(COUNTS)


def test_no_test_part_is_held_out_for_fraction_0():
    parts = run(source(), test=0)
    assert parts.test is None
    assert len(parts.train) + len(parts.validation) == sum(COUNTS)


def test_scarce_classes_are_named():
    with pytest.raises(DhaError, match=r"class 'c' of numbered has 2 training image\(s\), but 3 are needed"):
        run(source([9, 9, 2]))
    assert len(run(source([9, 9, 2]), test=0).validation) == 5
    with pytest.raises(DhaError, match=r"class 'b' of numbered has 1 training image\(s\), but 2 are needed"):
        run(source([9, 1]), test=0)
    with pytest.raises(DhaError, match=r"class 'b' of numbered has 0 training image\(s\), but 1 are needed"):
        run(source([9, 0], validation=numbered([1]), test=numbered([1])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.1, 0), "validation_fraction is 0; pass a number between 0 and 1"),
        ((1.0, 0.1, 0), r"validation_fraction is 1\.0"),
        ((0.1, 1, 0), "test_fraction is 1; pass 0"),
        ((0.1, -0.1, 0), r"test_fraction is -0\.1"),
        ((0.1, 0.1, -1), "seed is -1; pass 0 or more"),
    ],
)
def test_bad_fractions(arguments: tuple[float, float, int], message: str):
    with pytest.raises(DhaError, match=message):
        run(source(), *arguments)


def test_uneven_classes_are_told_in_one_warning():
    with pytest.warns(DataWarning) as caught:
        run(source([44, 4, 4]))
    assert [str(warning.message) for warning in caught] == [
        "numbered: class 'a' has 44 training images, 'b' has 4: rare classes are learned badly, --class-weight "
        "balanced gives every class the same weight"
    ]


@pytest.mark.filterwarnings("error")
def test_classes_of_ten_to_one_and_weighted_ones_are_not_warned_of():
    run(source([40, 4, 4]))
    given = source([44, 4, 4])
    splits = split(given, validation_fraction=0.2, test_fraction=0, seed=0, weighted=True)
    assert not any("uneven" in line for line in splits.report.lines())


def test_images_in_two_classes_are_told_by_name():
    train, validation = numbered([2, 2]), numbered([2, 2], 1)
    train = LabelledImages(train.images, torch.tensor([0, 1, 0, 1]))
    validation = LabelledImages(validation.images[:2], torch.tensor([0, 0]))
    given = Source(
        "numbered",
        train,
        validation,
        None,
        ("a", "b"),
        source().image_format,
        names={"train": lambda rows: [f"{row}.png" for row in rows]},
    )
    assert numbers(train) == [0, 1, 2, 3]
    assert numbers(validation) == [1, 2]
    with pytest.warns(DataWarning) as caught:
        splits = run(given, test=0)
    assert splits.report.conflicts == [("1.png", "b"), ("validation[0]", "a")]
    assert "2 images are in more than one class" in str(caught[1].message)
    assert "1.png in 'b', validation[0] in 'a'; remove them" in str(caught[1].message)
