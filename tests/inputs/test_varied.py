"""Images that are changed at random, to teach a network that it means nothing."""

from __future__ import annotations

import pytest
import torch

from backsweep.inputs.image.changes import varied
from backsweep.inputs.image.modality import Image
from backsweep.inputs.text.modality import Text


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (4, 20, 12)])
def test_every_kind_is_drawn_and_stays_an_image(shape: tuple[int, int, int]) -> None:
    x = torch.rand((6, *shape), generator=torch.Generator().manual_seed(1))
    before, seen = x.clone(), set()
    for seed in range(40):
        new = varied(x, torch.Generator().manual_seed(seed))
        assert new.shape == x.shape
        assert float(new.min()) >= 0
        assert float(new.max()) <= 1
        changed = (new - x).abs()
        assert int((changed.flatten(1).amax(1) > 0.01).sum()) >= 4, "one may be blended with itself"
        assert torch.equal(new, varied(x, torch.Generator().manual_seed(seed)))
        seen.add(bool((changed.amax(1) == 0).flatten(1).float().mean() > 0.5))
    assert seen == {True, False}, "a patch leaves most of an image, the others do not"
    assert torch.equal(x, before)


def test_a_uniform_image_fades_and_its_images_differ() -> None:
    """Each image of a batch draws its own strength."""
    x = torch.full((8, 1, 16, 16), 0.5)
    found = [varied(x, torch.Generator().manual_seed(seed)) for seed in range(30)]
    flat = [f[:, 0, 0, 0] for f in found if f.flatten(1).std(1).max() < 1e-6]
    assert flat, "new colours keep a uniform image uniform"
    assert max(len(f.unique()) for f in flat) == 8


def test_inputs_without_such_changes_say_so() -> None:
    g = torch.Generator().manual_seed(0)
    assert Image().varied(torch.rand(4, 1, 16, 16), g) is not None
    assert Image().varied(torch.rand(4, 1, 2, 2), g) is None
    assert Text().varied(torch.zeros((4, 8), dtype=torch.long), g) is None
