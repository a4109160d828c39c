import pytest
import torch

from dha.augmentation import AugmentationPolicy, GeneralisationRule

NAMES = ("identity", "invert", "horizontal_flip", "rotate")


def learned(train, validation, losses=(0.2, 1.0), probes=40, noise=0.3, **settings):
    """Run the rule on losses that the operations change by given means, and return it."""
    generator = torch.Generator().manual_seed(0)
    policy = AugmentationPolicy(NAMES, settings.pop("structure", "slots"), 0.5)
    rule = GeneralisationRule(policy, **settings)
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
    rule = learned([0.0, 0.9, 0.3, 0.2], [0.0, 0.8, 0.0, 0.05], noise=0.0, harm=2.0)
    torch.testing.assert_close(rule.worth(), torch.tensor([0.0, -0.7, 0.3, 0.1]), rtol=0, atol=1e-5)
    assert rule.gap == pytest.approx(0.8, abs=1e-5)


@pytest.mark.parametrize("structure", ["slots", "pairs"])
def test_the_operation_that_closes_the_gap_is_preferred(structure):
    rule = learned([0.0, 0.9, 0.3, 0.2], [0.0, 0.9, 0.0, 0.2], structure=structure)
    first, second = rule.policy.operation_probabilities()
    assert first[2] > 0.7
    assert first[1] < 0.05
    torch.testing.assert_close(first, second)


def test_what_was_long_ago_is_forgotten():
    rule = learned([0.0, 0.9, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], noise=0.0)
    assert rule.worth()[1] == pytest.approx(0.9)
    draws = rule.probe(400, torch.Generator().manual_seed(1))
    same = torch.full((400,), 1.0)
    rule.learn((draws, draws), (same, same), (same, same), progress=1.0 + 10 * rule.memory)
    assert rule.worth()[1] == pytest.approx(0.0, abs=0.01)
    assert rule.gap == pytest.approx(0.0, abs=0.01)


def test_images_are_left_alone_when_all_operations_hurt():
    # What is as hard on training images as on unseen ones closes no gap.
    rule = learned([0.0, 0.5, 0.5, 0.5], [0.0, 0.5, 0.5, 0.5], losses=(1.0, 1.0))
    assert rule.policy.operation_probabilities()[0, 0] > 0.95


def test_the_policy_starts_where_it_was_and_moves_as_probes_come_in():
    start = AugmentationPolicy(NAMES, "slots", 0.5).operation_probabilities()
    torch.testing.assert_close(GeneralisationRule(AugmentationPolicy(NAMES)).logits().softmax(1), start)
    shares = [
        learned([0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], probes=n, noise=0.0).policy.operation_probabilities()[0, 2]
        for n in (1, 2, 10)
    ]
    assert start[0, 2] < shares[0] < shares[1] < shares[2]


def test_an_overflowing_loss_says_nothing():
    rule = learned([0.0, torch.inf, 0.3, torch.nan], [0.0, 0.0, 0.0, 0.0], noise=0.0)
    assert rule.policy.probabilities().isfinite().all()
    assert rule.worth()[2] == pytest.approx(0.3)


def test_probes_draw_every_operation_in_the_first_slot_alone():
    rule = GeneralisationRule(AugmentationPolicy(NAMES))
    draws = rule.probe(200, torch.Generator().manual_seed(0))
    assert draws.pairs[:, 0].unique().tolist() == [0, 1, 2, 3]
    assert (draws.pairs[:, 1] == 0).all()
    again = rule.probe(200, torch.Generator().manual_seed(0))
    assert torch.equal(draws.pairs, again.pairs)
    assert torch.equal(draws.uniforms, again.uniforms)
