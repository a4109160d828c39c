import itertools

import torch

from dha import AugmentationConfig, Config
from dha.augmentation import AugmentationPolicy
from dha.batching import Batching
from dha.engine import make_fabric
from dha.policy_learning import PolicyLearning

FABRIC = make_fabric("cpu", "32", 32)


def batching(learning=True, **settings):
    config = Config(batch_size=4, **settings)
    policy, chance = AugmentationPolicy(identity_probability=0.1), torch.Generator().manual_seed(0)
    learner = PolicyLearning(policy, AugmentationConfig(until=0.6), FABRIC, chance) if learning else None
    return Batching(learner, config, 32, FABRIC)


def draws(count, batches=2):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        images = torch.randint(256, (4 * batches, 3, 32, 32), dtype=torch.uint8, generator=generator)
        yield images, torch.randint(10, (4 * batches,), generator=generator)


def test_what_is_drawn_is_made_batches_of_when_it_is_asked_for():
    progress, taken = itertools.count(), []

    def source():
        for pair in draws(3):
            taken.append(pair)
            yield pair

    drawn = batching().drawn(source(), lambda: 0.4 * next(progress))
    sides = []
    for number, several in enumerate(drawn, start=1):
        assert len(taken) == number, "nothing is drawn before its time"
        assert torch.equal(torch.cat([batch.labels for batch in several]), taken[-1][1])
        assert [len(batch.labels) for batch in several] == [4, 4]
        sides.append(several[0].images.shape[-1])
    assert sides == [20, 24, 32], "at 0, .4 and .8 of the run"


def test_the_policy_is_not_applied_after_its_time():
    ((images, labels),) = draws(1)
    for made, changed in ((batching(), (True, False)), (batching(learning=False), (False, False))):
        for progress, expected in zip((0.5, 0.7), changed, strict=True):
            batches = made.batches(images, labels, progress)
            assert any(not torch.equal(b.images, b.augmented) for b in batches) == expected
            assert all((b.draws is not None) == expected for b in batches)


def test_images_keep_their_size_where_that_is_asked_for():
    assert batching(progressive_resizing=False).side(0.0) == 32
    assert batching().side(0.0) == 20
    assert batching(network="module.py:make").side(0.0) == 32
