"""Representations of a model on a probe."""

import pytest
import torch

from repsim_utils.features import represent
from repsim_utils.models.vision import build

IMAGES = torch.randint(0, 256, (11, 3, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_type_and_shape():
    result = represent(build("small_resnet", 5, seed=0, width=4), IMAGES)
    assert result.shape == (11, 16) and result.dtype == torch.float32 and result.device.type == "cpu"
    assert not result.requires_grad


def test_it_is_what_the_head_sees():
    model = build("small_resnet", 5, seed=0, width=4).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.head(represent(model, IMAGES)), model(IMAGES / 255))


@pytest.mark.parametrize("batch_size", [1, 4, 11, 500])
def test_batches_do_not_matter(batch_size):
    """Not even for a model left in training mode, where batch norm would mix the images of a batch."""
    model = build("small_resnet", 5, seed=0, width=4).train()
    alone = torch.cat([represent(model.train(), image[None]) for image in IMAGES])
    torch.testing.assert_close(represent(model.train(), IMAGES, batch_size=batch_size), alone)


def test_neither_the_model_nor_the_probe_is_changed():
    model, images = build("small_resnet", 5, seed=0, width=4).train(), IMAGES.clone()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    represent(model, images)
    assert torch.equal(images, IMAGES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
