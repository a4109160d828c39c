import pytest
import torch

from dha.augmentation import AugmentationPolicy, GeneralisationRule
from dha.augmentation.generalisation import LEAST_HARM
from dha.errors import DhaError

NAMES = ("identity", "invert", "posterize", "rotate")


def learned(train, validation, losses=(0.2, 1.0), probes=40, noise=0.3, names=NAMES, **settings):
    """Run the rule on losses that the operations change by given means, and return it."""
    generator = torch.Generator().manual_seed(0)
    policy = AugmentationPolicy(names, settings.pop("structure", "slots"), 0.5)
    rule = GeneralisationRule(policy, **{"temperature": 0.1, **settings})
    for index in range(probes):
        draws = rule.probe(64, generator), rule.probe(48, generator)
        plain = torch.full((64,), losses[0]), torch.full((48,), losses[1])
        changed = []
        for d, loss, effect in zip(draws, plain, (train, validation), strict=True):
            operations = d.pairs[:, 0]
            random = noise * torch.randn(len(loss), generator=generator)
            changed.append(loss + torch.tensor(effect)[operations] + random * (operations > 0))
        rule.learn(draws, plain, (changed[0], changed[1]), progress=index / probes)
    return rule


def test_worth_is_the_gap_closed_less_the_harm():
    rule = learned([0.0, 0.9, 0.3, 0.2], [0.0, 0.8, 0.0, 0.05], (0.8, 1.0), noise=0.0, harm=2.0)
    torch.testing.assert_close(rule.worth(), torch.tensor([0.0, -0.7, 0.3, 0.1]), rtol=0, atol=1e-5)
    assert rule.gap == pytest.approx(0.2, abs=1e-5)
    halved = learned([0.0, 0.9, 0.3, 0.2], [0.0, 0.8, 0.0, 0.05], losses=(1.6, 2.0), noise=0.0, harm=2.0)
    torch.testing.assert_close(halved.worth(), rule.worth() / 2, rtol=0, atol=1e-5)


@pytest.mark.parametrize("structure", ["slots", "pairs"])
def test_the_operation_that_closes_the_gap_is_preferred(structure):
    rule = learned([0.0, 0.9, 0.3, 0.2], [0.0, 0.9, 0.0, 0.2], structure=structure)
    first, second = rule.policy.operation_probabilities()
    assert first[2] > 0.7
    assert first[1] < 0.05
    torch.testing.assert_close(first, second)


def test_closing_the_gap_is_forgotten_and_harm_is_not():
    rule = learned([0.0, 0.9, 0.0, 0.0], [0.0, 0.0, 0.1, 0.0], (0.8, 1.0), noise=0.0)
    torch.testing.assert_close(rule.worth(), torch.tensor([0.0, 0.9, -0.2, 0.0]), rtol=0, atol=1e-4)
    probes = int(rule.sums[1, 0, 2])
    draws = rule.probe(400, torch.Generator().manual_seed(1))
    same = torch.full((400,), 1.0)
    rule.learn((draws, draws), (same, same), (same, same), progress=1.0 + 10 * rule.memory)
    assert rule.worth()[1] == pytest.approx(0.0, abs=0.01)
    assert rule.worth()[2] == pytest.approx(-0.2 * probes / int(rule.sums[1, 0, 2]), abs=0.01)
    assert rule.gap == pytest.approx(0.0, abs=0.01)


def test_images_are_left_alone_when_all_operations_hurt():
    # What is as hard on training images as on unseen ones closes no gap, be there one or not; the larger it is, the
    # harder that has to be.
    for losses, effect in (((1.0, 1.0), 0.5), ((0.8, 1.0), 0.5), ((0.1, 1.0), 2.5)):
        rule = learned([0.0, effect, effect, effect], [0.0, effect, effect, effect], losses=losses)
        assert rule.policy.operation_probabilities()[0, 0] > 0.9


def test_harm_weighs_less_where_every_image_is_touched_and_the_gap_is_larger_still():
    for train_loss, weight in ((1.0, 2.0), (0.8, 2.0), (0.75, 1.6), (0.1, LEAST_HARM)):
        rule = learned([0.0, 0.5, 0.3, 0.0], [0.0, 0.5, 0.2, 0.0], (train_loss, 1.0), noise=0.0, full_gap=0.2)
        assert rule.harm_weight == pytest.approx(weight, abs=1e-4)
        expected = torch.tensor([0.0, 0.5 - weight * 0.5, 0.3 - weight * 0.2, 0.0])
        torch.testing.assert_close(rule.worth(), expected, rtol=0, atol=1e-4)
    assert learned([0.0] * 4, [0.0] * 4, (0.1, 1.0), harm=1.1).harm_weight == 1.1


def test_no_more_than_the_whole_validation_loss_can_be_closed():
    rule = learned([0.0, 1.6, 0.8, 0.0], [0.0, 0.9, 0.3, 0.0], (0.3, 1.0), noise=0.0)
    expected = torch.tensor([0.0, 1.0 - LEAST_HARM * 0.9, 0.8 - LEAST_HARM * 0.3, 0.0])
    torch.testing.assert_close(rule.worth(), expected, rtol=0, atol=1e-4)


def test_how_many_images_are_touched_follows_the_gap():
    def touched(train_loss):
        rule = learned([0.0, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0], losses=(train_loss, 1.0), noise=0.0, full_gap=0.4)
        return 1 - float(rule.policy.operation_probabilities()[0, 0])

    assert touched(1.0) < 0.02
    assert touched(0.8) == pytest.approx(0.5, abs=0.02)
    assert touched(0.6) > 0.95
    assert touched(0.1) > 0.95


def test_what_is_uncertain_is_not_preferred():
    sure = learned([0.0, 0.0, 0.3, 0.0], [0.0, 0.0, 0.0, 0.0], noise=0.1)
    unsure = learned([0.0, 0.0, 0.3, 0.0], [0.0, 0.0, 0.0, 0.0], noise=10.0)
    assert sure.policy.operation_probabilities()[0, 2] > 0.75
    assert unsure.policy.operation_probabilities()[0, 2] < 0.3


def test_flips_and_crops_are_preferred_until_they_are_known_to_harm():
    names = ("identity", "horizontal_flip", "crop", "rotate")
    # Known to be worth nothing, and to do no harm.
    alike = learned([0.0] * 4, [0.0] * 4, noise=0.0, names=names).policy.operation_probabilities()[0]
    assert float(alike[1] / alike[3]) == pytest.approx(8, rel=0.2)
    assert float(alike[2] / alike[3]) == pytest.approx(16, rel=0.2)
    # As hard on unseen images as on others: what mirrored letters are.
    harmful = learned([0.0, 0.9, 0.0, 0.2], [0.0, 0.9, 0.9, 0.0], names=names).policy.operation_probabilities()[0]
    assert harmful[1] < 0.05
    assert harmful[2] < 0.05
    assert harmful[3] > 0.6


@pytest.mark.parametrize("sign", [1, -1])
def test_intensities_that_are_worth_more_are_drawn_more_often(sign):
    generator = torch.Generator().manual_seed(0)
    rule = GeneralisationRule(AugmentationPolicy(NAMES), temperature=0.1)
    for index in range(60):
        draws = rule.probe(64, generator), rule.probe(64, generator)
        rotated = draws[0].pairs[:, 0] == NAMES.index("rotate")
        intensity = (2 * draws[0].uniforms[:, 0, 0] - 1).abs()
        plain = torch.full((64,), 0.2), torch.full((64,), 1.0)
        # Of rotations, the strong or the weak ones close the gap.
        changed = plain[0] + 0.4 * sign * (intensity - 0.5) * rotated
        rule.learn(draws, plain, (changed, plain[1]), index / 60)
    drawn = rule.policy.draw(4000, generator)
    rotated = drawn.pairs == NAMES.index("rotate")
    intensities = (2 * drawn.uniforms[..., 0] - 1).abs()[rotated]
    # Worth changes by .4 from end to end, at a temperature of .1: a tilt of 4, but for the prior.
    tilt = float(rule.policy.tilts[NAMES.index("rotate")])
    assert sign * tilt == pytest.approx(4.0, abs=0.3)
    v = torch.linspace(0, 1, 10_001)
    expected = float((v * (tilt * v).softmax(0)).sum())
    assert float(intensities.mean()) == pytest.approx(expected, abs=0.03)


def test_a_policy_without_identity_is_refused():
    with pytest.raises(DhaError, match="operations invert, rotate: add identity"):
        GeneralisationRule(AugmentationPolicy(("invert", "rotate")))


def test_the_policy_starts_where_it_was_and_moves_as_probes_come_in():
    start = AugmentationPolicy(NAMES, "slots", 0.5).operation_probabilities()
    torch.testing.assert_close(GeneralisationRule(AugmentationPolicy(NAMES)).probabilities(), start)
    shares = [
        learned([0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], probes=n, noise=0.0).policy.operation_probabilities()[0, 2]
        for n in (1, 10, 40)
    ]
    assert start[0, 2] < shares[0] < shares[1] < shares[2]


def test_an_overflowing_loss_says_nothing():
    rule = learned([0.0, torch.inf, 0.3, torch.nan], [0.0, 0.0, 0.0, 0.0], noise=0.0)
    assert rule.policy.probabilities().isfinite().all()
    assert rule.worth()[2] == pytest.approx(0.3, abs=1e-4)


@pytest.mark.parametrize("part", ["training", "validation"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("when", [0, 19])
@pytest.mark.parametrize("count", [1, 64])
def test_a_loss_that_is_not_finite_does_not_move_the_gap(part, value, when, count):
    generator = torch.Generator().manual_seed(0)
    rule = GeneralisationRule(AugmentationPolicy(NAMES))
    for index in range(20):
        draws, ones = (rule.probe(64, generator), rule.probe(64, generator)), torch.ones(64)
        broken = ones.clone()
        if index == when:
            broken[:count] = value
        plain = (0.9 * broken, ones) if part == "training" else (0.9 * ones, broken)
        rule.learn(draws, plain, (plain[0] + 0.1, plain[1] + 0.1), index / 200)
        assert rule.policy.probabilities().isfinite().all()
    assert rule.gap == pytest.approx(0.1, abs=1e-6)
    assert torch.allclose(rule.worth()[1:], rule.worth()[1], atol=1e-5)
    assert rule.worth()[1] == pytest.approx(0.1 - rule.harm_weight * 0.1, abs=1e-4)


def test_probes_draw_every_operation_in_the_first_slot_alone():
    rule = GeneralisationRule(AugmentationPolicy(NAMES))
    draws = rule.probe(200, torch.Generator().manual_seed(0))
    assert draws.pairs[:, 0].unique().tolist() == [1, 2, 3]
    assert (draws.pairs[:, 1] == 0).all()
    again = rule.probe(200, torch.Generator().manual_seed(0))
    assert torch.equal(draws.pairs, again.pairs)
    assert torch.equal(draws.uniforms, again.uniforms)


def test_half_of_the_probes_go_where_the_policy_does():
    rule = learned([0.0, 0.9, 0.3, 0.2], [0.0, 0.9, 0.0, 0.2])
    wanted = rule.policy.operation_probabilities()[0, 1:]
    shares = rule.probe(20_000, torch.Generator().manual_seed(0)).pairs[:, 0].bincount(minlength=4) / 20_000
    torch.testing.assert_close(shares[1:], 0.5 * wanted / wanted.sum() + 0.5 / 3, rtol=0, atol=0.02)


def test_a_policy_of_nothing_but_identity_can_be_probed():
    rule = GeneralisationRule(AugmentationPolicy(("identity",), identity_probability=0.5))
    draws = rule.probe(8, torch.Generator().manual_seed(0))
    same = torch.ones(8)
    rule.learn((draws, draws), (same, same), (same, same), 0.1)
    assert rule.policy.operation_probabilities().tolist() == [[1.0], [1.0]]
