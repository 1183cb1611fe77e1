"""Batched augmentation against torchvision, image by image, bit by bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

from ablate.errors import AblateError
from ablate.train.augment import Augmenter, AugmentSettings, Draws, draw, normalise
from ablate.train.context import Context
from ablate.train.data import load

MEAN, STD = torch.tensor([0.507075, 0.486549, 0.440918]), torch.tensor([0.267334, 0.256438, 0.276150])


def random_images(count: int, channels: int, size: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def by_torchvision(image: Tensor, padding: int, y: int, x: int, flip: bool) -> Tensor:
    """RandomCrop(size, padding), RandomHorizontalFlip, ToTensor, Normalize on one uint8 [3, H, W], draws given."""
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    if padding:
        picture = functional.pad(picture, [padding])
    picture = functional.crop(picture, y, x, image.shape[1], image.shape[2])
    if flip:
        picture = functional.hflip(picture)
    return functional.normalize(functional.to_tensor(picture), MEAN.tolist(), STD.tolist())


def check_against_torchvision(images: Tensor, chosen: AugmentSettings, index: Tensor) -> None:
    augmenter = Augmenter(images, chosen)
    draws = augmenter.draws(torch.Generator().manual_seed(5))
    ours = normalise(augmenter.batch(index, draws), MEAN, STD)
    theirs = [
        by_torchvision(images[i], chosen.crop, int(draws.offset_y[i]), int(draws.offset_x[i]), bool(draws.flip[i]))
        for i in index.tolist()
    ]
    assert torch.equal(ours, torch.stack(theirs))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [0, 1, 4])
def test_random_images_are_those_of_torchvision(flip: bool, crop: int) -> None:
    images = random_images(64, 3, 32)
    check_against_torchvision(images, AugmentSettings(flip=flip, crop=crop), torch.arange(63, -1, -1))


@pytest.mark.data
@pytest.mark.usefixtures("real_data")
def test_real_images_are_those_of_torchvision() -> None:
    images = load({"name": "cifar100", "split_seed": 0, "validation": 49_000}).train.images
    check_against_torchvision(images, AugmentSettings(flip=True, crop=4), torch.arange(1000))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 5), st.booleans(), st.integers(0, 99))
def test_any_size_and_padding(count: int, size: int, crop: int, flip: bool, seed: int) -> None:
    check_against_torchvision(
        random_images(count, 3, size, seed), AugmentSettings(flip=flip, crop=crop), torch.arange(count)
    )


def test_a_crop_by_hand() -> None:
    image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)[None, None]
    augmenter = Augmenter(image, AugmentSettings(flip=True, crop=1))

    def cut(flip: bool, y: int, x: int) -> list[list[int]]:
        draws = Draws(torch.tensor([flip]), torch.tensor([y]), torch.tensor([x]))
        out: list[list[int]] = augmenter.batch(torch.tensor([0]), draws)[0, 0].tolist()
        return out

    assert cut(False, 1, 1) == [[1, 2], [3, 4]]
    assert cut(True, 1, 1) == [[2, 1], [4, 3]]
    assert cut(False, 0, 0) == [[0, 0], [0, 1]]
    assert cut(True, 2, 1) == [[4, 3], [0, 0]]


def test_an_images_draws_hang_on_its_index_alone() -> None:
    images = random_images(50, 3, 8)
    augmenter = Augmenter(images, AugmentSettings(flip=True, crop=2))
    draws = augmenter.draws(Context(seed=1).generator("augment", 3))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    whole = augmenter.batch(torch.arange(50), draws)
    in_pieces = torch.cat([augmenter.batch(index, draws) for index in order.split(7)])
    assert torch.equal(in_pieces, whole[order])


def test_every_flip_and_offset_is_drawn_evenly() -> None:
    count = 90_000
    draws = draw(AugmentSettings(flip=True, crop=4), count, torch.Generator().manual_seed(1))
    # five standard deviations of a binomial count either side: a right generator fails once in 10⁶ seeds
    assert abs(draws.flip.sum().item() - count / 2) < 5 * (count / 4) ** 0.5
    for offsets in (draws.offset_y, draws.offset_x):
        times = torch.bincount(offsets)
        assert len(times) == 9
        assert (times - count / 9).abs().max() < 5 * (count * 8 / 81) ** 0.5
    assert not torch.equal(draws.offset_y, draws.offset_x)


def test_epochs_and_seeds_draw_anew_and_repeat_themselves() -> None:
    chosen = AugmentSettings(flip=True, crop=4)

    def flips(seed: int, epoch: int) -> list[bool]:
        out: list[bool] = draw(chosen, 200, Context(seed=seed).generator("augment", epoch)).flip.tolist()
        return out

    assert flips(1, 1) == flips(1, 1)
    assert flips(1, 1) != flips(1, 2)
    assert flips(1, 1) != flips(2, 1)


def test_an_arm_without_flips_shares_its_offsets_and_one_without_crops_its_flips() -> None:
    def drawn(flip: bool, crop: int) -> Draws:
        return draw(AugmentSettings(flip=flip, crop=crop), 300, torch.Generator().manual_seed(1))

    assert torch.equal(drawn(True, 4).flip, drawn(True, 0).flip)
    assert torch.equal(drawn(True, 4).offset_y, drawn(False, 4).offset_y)
    assert torch.equal(drawn(True, 4).offset_x, drawn(False, 4).offset_x)
    assert not drawn(False, 4).flip.any()
    assert not drawn(True, 0).offset_y.any()


def test_without_statistics_only_the_scale_changes() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert torch.equal(normalise(images), torch.tensor([0, 51 / 255, 1]).view(1, 1, 1, 3))
    assert images.flatten().tolist() == [0, 51, 255]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(AblateError) as failure:
        AugmentSettings.read({"flip": 1, "crop": -4, "rotate": 5}, "augment")
    assert str(failure.value) == (
        "error: `augment.flip` should be a valid boolean, not 1\n"
        "error: `augment.crop` should be greater than or equal to 0, not -4\n"
        "error: unknown setting `augment.rotate`\nhint: the keys of `augment` are: flip, crop"
    )
