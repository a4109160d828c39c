import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from dha.augmentation import OPERATIONS, AugmentationPolicy, Draws
from dha.errors import DhaError

STRUCTURES: list[Literal["slots", "pairs"]] = ["slots", "pairs"]
FEW = ("identity", "invert", "rotate", "cutout")


def random_policy(structure: Literal["slots", "pairs"], operations: tuple[str, ...] = FEW) -> AugmentationPolicy:
    policy = AugmentationPolicy(operations, structure)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for logits in policy.parameters():
            logits.copy_(torch.randn(logits.shape, generator=generator))
    policy.tilts = torch.randn(len(policy.operations), generator=generator)
    return policy


@pytest.mark.parametrize("structure", STRUCTURES)
def test_starts_near_identity(structure: Literal["slots", "pairs"]) -> None:
    policy = AugmentationPolicy(structure=structure, identity_probability=0.7)
    expected = torch.full((2, 18), 0.3 / 17)
    expected[:, 0] = 0.7
    assert torch.allclose(policy.operation_probabilities(), expected, atol=1e-6)
    assert policy.probabilities()[0, 0] == pytest.approx(0.49)
    assert policy.probabilities().sum() == pytest.approx(1)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_one_over_k_is_uniform(structure: Literal["slots", "pairs"]) -> None:
    policy = AugmentationPolicy(structure=structure, identity_probability=1 / 18)
    assert torch.allclose(policy.probabilities(), torch.full((18, 18), 1 / 324))
    assert policy.entropy().item() == pytest.approx(math.log(324), rel=1e-5)


def test_parameter_counts() -> None:
    assert [tuple(logits.shape) for logits in AugmentationPolicy().parameters()] == [(18,), (18,)]
    assert [tuple(logits.shape) for logits in AugmentationPolicy(structure="pairs").parameters()] == [(18, 18)]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_pairs_are_drawn_with_their_probabilities(structure: Literal["slots", "pairs"]) -> None:
    policy = random_policy(structure)
    draws = policy.draw(20_000, torch.Generator().manual_seed(5))
    counts = (draws.pairs[:, 0] * 4 + draws.pairs[:, 1]).bincount(minlength=16)
    expected = policy.probabilities().double().flatten()
    assert chisquare(counts.numpy(), (expected / expected.sum() * 20_000).numpy()).pvalue > 1e-3
    assert draws.uniforms.shape == (20_000, 2, 3)
    assert draws.uniforms[..., 1:].mean(0).sub(0.5).abs().max() < 0.01
    policy.tilts.zero_()
    assert policy.draw(20_000, torch.Generator().manual_seed(5)).uniforms.mean(0).sub(0.5).abs().max() < 0.01


def test_same_seed_same_draws() -> None:
    policy = AugmentationPolicy()
    first, second = (policy.draw(50, torch.Generator().manual_seed(6)) for _ in range(2))
    other = policy.draw(50, torch.Generator().manual_seed(7))
    assert torch.equal(first.pairs, second.pairs)
    assert torch.equal(first.uniforms, second.uniforms)
    assert not torch.equal(first.uniforms, other.uniforms)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_log_probability_is_the_explicit_softmax(structure: Literal["slots", "pairs"]) -> None:
    policy = random_policy(structure)
    pairs = torch.tensor([[0, 0], [1, 3], [3, 1]])
    logits = [tensor.detach() for tensor in policy.parameters()]
    table = logits[0] if structure == "pairs" else torch.stack([logits[0][i] + logits[1] for i in range(4)])
    expected = (table.exp() / table.exp().sum()).log()[pairs[:, 0], pairs[:, 1]]
    result = policy.log_probability(pairs)
    assert torch.allclose(result, expected, atol=1e-6)
    result.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in policy.parameters())


def test_top_pairs_and_entropy() -> None:
    policy = random_policy("pairs")
    probabilities = policy.probabilities()
    top = policy.top_pairs(3)
    assert [value for _, _, value in top] == probabilities.flatten().sort(descending=True).values[:3].tolist()
    for first, second, value in top:
        assert probabilities[FEW.index(first), FEW.index(second)] == value
    assert len(policy.top_pairs(99)) == 16
    assert policy.entropy().item() == pytest.approx(
        -sum(p * math.log(p) for p in probabilities.flatten().tolist()), rel=1e-5
    )


@pytest.mark.parametrize("structure", STRUCTURES)
def test_untouched_is_the_share_of_draws_with_identity_in_both_slots(structure: Literal["slots", "pairs"]) -> None:
    policy = random_policy(structure)
    pairs = policy.draw(20_000, torch.Generator().manual_seed(0)).pairs
    assert policy.untouched() == pytest.approx((pairs == 0).all(1).float().mean().item(), abs=0.01)
    assert AugmentationPolicy(identity_probability=0.3).untouched() == pytest.approx(0.09)
    assert AugmentationPolicy(["invert", "rotate"]).untouched() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_apply_is_one_operation_after_the_other(channels: int, photo: Tensor) -> None:
    generator = torch.Generator().manual_seed(8)
    policy = AugmentationPolicy(identity_probability=0.2)
    images = (photo[:, :channels] * torch.rand(60, 1, 1, 1, generator=generator)).requires_grad_()
    before, draws = images.detach().clone(), policy.draw(60, generator)
    result = policy.apply(images, draws)
    for k, (first, second) in enumerate(draws.pairs.tolist()):
        image = before[k : k + 1]
        for slot, operation in enumerate((first, second) if first != second else (first,)):
            image = OPERATIONS[policy.operations[operation]](image, draws.uniforms[k : k + 1, slot])
        assert torch.allclose(result[k : k + 1], image, atol=1e-6)
    assert torch.equal(images, before)
    assert not result.requires_grad
    assert torch.equal(policy.apply(images, draws), result)


def test_an_operation_that_is_drawn_twice_is_applied_once(photo: Tensor) -> None:
    for operations in (["identity", "horizontal_flip"], ["horizontal_flip"]):
        flip = operations.index("horizontal_flip")
        draws = Draws(torch.full((1, 2), flip), torch.rand(1, 2, 3))
        assert torch.equal(AugmentationPolicy(operations).apply(photo, draws), photo.flip(-1))


def test_apply_leaves_identity_pairs_and_the_input_alone(photo: Tensor) -> None:
    draws = Draws(torch.zeros(1, 2, dtype=torch.long), torch.rand(1, 2, 3))
    before = photo.clone()
    result = AugmentationPolicy().apply(photo, draws)
    assert torch.equal(result, photo)
    result.zero_()
    assert torch.equal(photo, before)


def test_apply_names_a_wrong_number_of_draws(photo: Tensor) -> None:
    policy = AugmentationPolicy()
    with pytest.raises(DhaError, match="1 images but draws for 2"):
        policy.apply(photo, policy.draw(2))


def test_apply_names_images_that_are_neither_bytes_nor_float32() -> None:
    policy = AugmentationPolicy()
    with pytest.raises(DhaError, match=r"float64; convert them to torch\.uint8"):
        policy.apply(torch.zeros(2, 3, 8, 8, dtype=torch.float64), policy.draw(2))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_dictionary_round_trip(structure: Literal["slots", "pairs"]) -> None:
    policy = random_policy(structure)
    loaded = AugmentationPolicy.from_dict(json.loads(json.dumps(policy.to_dict())))
    assert loaded.operations == policy.operations
    assert loaded.structure == structure
    assert torch.equal(loaded.tilts, policy.tilts)
    for ours, theirs in zip(policy.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert theirs.requires_grad
        assert theirs.is_leaf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"operations": ["identity", "blur", "rotate", "cutout"]},
            "unknown operation 'blur'; the known ones are identity",
        ),
        ({"structure": "triples"}, "structure is 'triples'"),
        ({"logits": [[0.0] * 4]}, "a list of 2 tensors"),
        ({"logits": [[0.0] * 4, [0.0] * 3]}, r"logits of shape \(3,\) instead of \(4,\)"),
        ({"logits": [[0.0] * 4, "text"]}, "logits of the saved policy are not numbers"),
        ({"logits": None}, "a list of 2 tensors"),
        ({"logits": [[0.0] * 4, [float("nan")] * 4]}, "logits that are not finite"),
        ({"tilts": [0.0] * 3}, r"tilts of shape \(3,\) instead of \(4,\)"),
        ({"tilts": [0.0, 0.0, 0.0, float("inf")]}, "tilts that are not finite"),
    ],
)
def test_from_dict_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DhaError, match=message):
        AugmentationPolicy.from_dict(random_policy("slots").to_dict() | change)


def test_a_policy_that_was_saved_without_tilts_has_none() -> None:
    values = random_policy("slots").to_dict()
    del values["tilts"]
    assert AugmentationPolicy.from_dict(values).tilts.tolist() == [0.0] * 4


def test_a_policy_from_its_file_draws_and_applies_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for structure in STRUCTURES:
        policy = random_policy(structure)
        policy.save(tmp_path / "policy.json")
        loaded = AugmentationPolicy.load(tmp_path / "policy.json")
        draws = [p.draw(50, torch.Generator().manual_seed(3)) for p in (policy, loaded)]
        assert torch.equal(draws[0].pairs, draws[1].pairs)
        assert torch.equal(draws[0].uniforms, draws[1].uniforms)
        images = torch.rand(50, 3, 8, 8)
        augmented = loaded(images, torch.Generator().manual_seed(3))
        assert torch.equal(augmented, policy.apply(images, draws[0]))
        assert not torch.equal(augmented, images)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[1]", "holds a list"),
        ("{}", r"policy '.*policy.json': .*lacks logits, operations, structure"),
        ("[" * 100_000, "not JSON"),
        ('{"operations": ["' + "a" * 100_000 + '"], "structure": "slots", "logits": []}', r"operation 'aaa.{,90}; the"),
        ('{"operations": 3, "structure": "slots", "logits": []}', "operations is 3"),
        ('{"operations": [["invert"]], "structure": "slots", "logits": []}', "unknown operation"),
    ],
)
def test_load_refuses(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "policy.json").write_text(content)
    with pytest.raises(DhaError, match=message):
        AugmentationPolicy.load(tmp_path / "policy.json")


def test_save_replaces_policies_and_nothing_else(tmp_path: Path) -> None:
    for probability in (0.3, 0.6):
        AugmentationPolicy(FEW, identity_probability=probability).save(tmp_path / "policy.json")
        loaded = AugmentationPolicy.load(tmp_path / "policy.json")
        assert loaded.operation_probabilities()[0, FEW.index("identity")].item() == pytest.approx(probability)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DhaError, match=r"thesis.txt' would take the place of a file that dha has not written"):
        AugmentationPolicy(FEW).save(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_from_dict_names_what_is_missing() -> None:
    with pytest.raises(DhaError, match="lacks logits, structure"):
        AugmentationPolicy.from_dict({"operations": list(FEW)})


@pytest.mark.parametrize(
    ("operations", "message"), [([], "empty"), (["invert", "warp"], "'warp'"), (["invert", "invert"], "twice")]
)
def test_bad_operations(operations: list[str], message: str) -> None:
    with pytest.raises(DhaError, match=message):
        AugmentationPolicy(operations)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, float("nan")])
def test_bad_identity_probability(value: float) -> None:
    with pytest.raises(DhaError, match="identity_probability"):
        AugmentationPolicy(identity_probability=value)


def test_without_identity_or_with_one_operation() -> None:
    assert torch.allclose(AugmentationPolicy(["invert", "crop"]).probabilities(), torch.full((2, 2), 0.25))
    assert AugmentationPolicy(["identity"]).probabilities().tolist() == [[1.0]]
