"""Batched augmentation against torchvision, image by image: bit by bit where torchvision's own rounding allows it."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import RandomResizedCrop, functional

from ablate.errors import AblateError
from ablate.train.augment import Augmenter, AugmentSettings, Draws, draw, normalise, resized
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
    drawn = augmenter.draws(torch.Generator())

    def cut(flip: bool, y: int, x: int) -> list[list[int]]:
        values = {"flip": torch.tensor([flip]), "offset_y": torch.tensor([y]), "offset_x": torch.tensor([x])}
        draws = dataclasses.replace(drawn, **values)
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
    draws = draw(AugmentSettings(flip=True, crop=4), count, (32, 32), torch.Generator().manual_seed(1))
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
        out: list[bool] = draw(chosen, 200, (32, 32), Context(seed=seed).generator("augment", epoch)).flip.tolist()
        return out

    assert flips(1, 1) == flips(1, 1)
    assert flips(1, 1) != flips(1, 2)
    assert flips(1, 1) != flips(2, 1)


def test_an_arm_without_flips_shares_its_offsets_and_one_without_crops_its_flips() -> None:
    def drawn(flip: bool, crop: int) -> Draws:
        return draw(AugmentSettings(flip=flip, crop=crop), 300, (32, 32), torch.Generator().manual_seed(1))

    assert torch.equal(drawn(True, 4).flip, drawn(True, 0).flip)
    assert torch.equal(drawn(True, 4).offset_y, drawn(False, 4).offset_y)
    assert torch.equal(drawn(True, 4).offset_x, drawn(False, 4).offset_x)
    assert not drawn(False, 4).flip.any()
    assert not drawn(True, 0).offset_y.any()


# --- resized crops -------------------------------------------------------------------------------------------------

RESIZING = {"flip": False, "crop": 0, "crop_scale": [0.08, 1.0], "crop_ratio": [0.75, 4 / 3]}


def grey_levels_apart(ours: Tensor, theirs: Tensor) -> Tensor:
    assert ours.dtype == theirs.dtype == torch.uint8
    return (ours.int() - theirs.int()).abs()


@pytest.mark.parametrize("size", [(32, 32), (7, 20)])
def test_resized_crops_are_those_of_torchvision(size: tuple[int, int]) -> None:
    """At most one grey level apart, in fewer than one pixel of 1,000: sums of floats in another order, then rounded."""
    images = torch.randint(0, 256, (400, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    augmenter = Augmenter(images, AugmentSettings(**RESIZING))
    draws = augmenter.draws(torch.Generator().manual_seed(5))
    ours = augmenter.batch(torch.arange(400), draws)
    theirs = [
        functional.resized_crop(image, *box, size=list(size), antialias=True)
        for image, box in zip(images, draws.box.tolist(), strict=True)
    ]
    apart = grey_levels_apart(ours, torch.stack(theirs))
    assert apart.max() <= 1
    assert apart.float().mean() < 1e-3


def test_a_resized_crop_of_everything_is_the_image_itself() -> None:
    images = random_images(9, 3, 32)
    draws = draw(AugmentSettings(flip=False, crop=0), 9, (32, 32), torch.Generator())
    assert draws.box.tolist() == [[0, 0, 32, 32]] * 9
    assert torch.equal(resized(images, draws.box), images)


@pytest.mark.parametrize("size", [(32, 32), (30, 90)])
@pytest.mark.parametrize(("scale", "ratio"), [([0.8, 1.0], [0.9, 1.1]), ([0.08, 1.0], [0.75, 4 / 3])])
def test_boxes_are_drawn_as_torchvision_draws_them(
    size: tuple[int, int], scale: list[float], ratio: list[float]
) -> None:
    chosen = AugmentSettings(flip=False, crop=0, crop_scale=scale, crop_ratio=ratio)
    ours = draw(chosen, 4000, size, torch.Generator().manual_seed(1)).box
    torch.manual_seed(2)
    image = torch.zeros(3, *size)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(4000)])
    for column in range(4):
        assert ks_2samp(ours[:, column].numpy(), theirs[:, column].numpy()).pvalue > 1e-4
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= size[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= size[1]).all()


def test_where_no_box_fits_the_largest_in_the_middle_is_taken() -> None:
    chosen = AugmentSettings(flip=False, crop=0, crop_scale=[1.0, 1.0], crop_ratio=[4.0, 5.0])
    assert draw(chosen, 3, (32, 32), torch.Generator()).box.tolist() == [[12, 0, 8, 32]] * 3
    chosen = AugmentSettings(flip=False, crop=0, crop_scale=[1.0, 1.0], crop_ratio=[0.2, 0.25])
    assert draw(chosen, 3, (32, 32), torch.Generator()).box.tolist() == [[0, 12, 32, 8]] * 3
    assert RandomResizedCrop.get_params(torch.zeros(3, 32, 32), [1.0, 1.0], [0.2, 0.25]) == (0, 12, 32, 8)


# --- colours -------------------------------------------------------------------------------------------------------

COLOURS = {"brightness": 0.6, "contrast": 0.7, "saturation": 0.8, "hue": 0.5}
BY_TORCHVISION = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)


def coloured(images: Tensor, **strengths: float) -> tuple[Tensor, Tensor]:
    """Return images coloured by us and by torchvision with our draws."""
    augmenter = Augmenter(images, AugmentSettings(flip=False, crop=0, **strengths))
    draws = augmenter.draws(torch.Generator().manual_seed(5))
    index = torch.arange(len(images))
    theirs = []
    for image, factors, order in zip(images, draws.factor.tolist(), draws.order.tolist(), strict=True):
        for number in order:
            if augmenter.settings.jitter[number]:
                image = BY_TORCHVISION[number](image, factors[number])
        theirs.append(image)
    return augmenter.batch(index, draws), torch.stack(theirs)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("channels", [3, 1])
def test_blended_colours_are_those_of_torchvision(name: str, channels: int) -> None:
    if name == "saturation" and channels == 1:
        return
    ours, theirs = coloured(random_images(300, channels, 32), **{name: COLOURS[name]})
    assert torch.equal(ours, theirs)


def test_turned_hues_are_those_of_torchvision() -> None:
    """At most one grey level apart: the way from a turned hue back to red, green and blue rounds differently."""
    ours, theirs = coloured(random_images(300, 3, 32), hue=0.5)
    apart = grey_levels_apart(ours, theirs)
    assert apart.max() <= 1
    assert apart.float().mean() < 1e-4


def test_colours_in_each_images_own_order_are_those_of_torchvision() -> None:
    """What differs by one grey level is spread by what follows: at most by the factors' product, 1.7 × 1.8."""
    ours, theirs = coloured(random_images(300, 3, 32), **COLOURS)
    apart = grey_levels_apart(ours, theirs)
    assert apart.max() <= 4
    assert apart.float().mean() < 1e-3


@pytest.mark.data
@pytest.mark.usefixtures("real_data")
def test_real_images_are_coloured_as_by_torchvision() -> None:
    images = load({"name": "cifar100", "split_seed": 0, "validation": 49_000}).train.images
    ours, theirs = coloured(images, **COLOURS)
    apart = grey_levels_apart(ours, theirs)
    assert apart.max() <= 4
    assert apart.float().mean() < 1e-3


def test_factors_and_orders_are_drawn_evenly() -> None:
    chosen = AugmentSettings(flip=False, crop=0, brightness=0.4, contrast=1.5, saturation=0.1, hue=0.2)
    draws = draw(chosen, 20_000, (32, 32), torch.Generator().manual_seed(1))
    for column, (least, most) in enumerate([(0.6, 1.4), (0.0, 2.5), (0.9, 1.1), (-0.2, 0.2)]):
        even = torch.linspace(least, most, 20_000, dtype=torch.float64)
        # the largest distance between the two; 0.0163 is exceeded once in 20,000 seeds, and this one is fixed
        assert (draws.factor[:, column].sort().values - even).abs().max() < 0.0163 * (most - least)
    times = torch.bincount((draws.order * torch.tensor([64, 16, 4, 1])).sum(dim=1))
    assert (times > 0).sum() == math.factorial(4)
    assert (times[times > 0] - 20_000 / 24).abs().max() < 5 * (20_000 / 24) ** 0.5


# --- holes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cutout", "holes"), [(16, 1), (5, 1), (4, 3), (80, 1)])
def test_holes_are_erased_as_by_torchvision(cutout: int, holes: int) -> None:
    images = random_images(200, 3, 32)
    augmenter = Augmenter(images, AugmentSettings(flip=False, crop=0, cutout=cutout, cutout_holes=holes))
    draws = augmenter.draws(torch.Generator().manual_seed(5))
    index = torch.arange(199, -1, -1)
    ours = augmenter.cut_out(normalise(images[index], MEAN, STD), index, draws)
    for place, number in enumerate(index.tolist()):
        image = normalise(images[number : number + 1], MEAN, STD)[0]
        for y, x in zip(draws.hole_y[number].tolist(), draws.hole_x[number].tolist(), strict=True):
            top, left = y - cutout // 2, x - cutout // 2
            bottom, right = min(top + cutout, 32), min(left + cutout, 32)
            top, left = max(top, 0), max(left, 0)
            image = functional.erase(image, top, left, bottom - top, right - left, torch.tensor(0.0))
        assert torch.equal(ours[place], image)


def test_the_middle_of_a_hole_is_any_pixel() -> None:
    count = 64_000
    chosen = AugmentSettings(flip=False, crop=0, cutout=8, cutout_holes=2)
    draws = draw(chosen, count, (8, 16), torch.Generator().manual_seed(1))
    for places, size in ((draws.hole_y, 8), (draws.hole_x, 16)):
        assert places.shape == (count, 2)
        times = torch.bincount(places.flatten())
        assert len(times) == size
        assert (times - 2 * count / size).abs().max() < 5 * (2 * count / size) ** 0.5
    assert not torch.equal(draws.hole_y[:, 0], draws.hole_y[:, 1])


def test_without_holes_an_image_is_left_alone() -> None:
    images = random_images(3, 3, 8)
    augmenter = Augmenter(images, AugmentSettings(flip=False, crop=0))
    floats = normalise(images)
    assert augmenter.cut_out(floats, torch.arange(3), augmenter.draws(torch.Generator())) is floats


# --- all of them ---------------------------------------------------------------------------------------------------

ALL = {"flip": True, "crop": 0, "crop_scale": [0.5, 1.0], "crop_ratio": [0.9, 1.1], **COLOURS, "cutout": 8}


def test_an_arm_that_leaves_one_kind_out_shares_all_others() -> None:
    whole = draw(AugmentSettings(**ALL), 100, (32, 32), torch.Generator().manual_seed(1))
    belongs = {"crop_scale": "box", "crop_ratio": "box", "flip": "flip", **dict.fromkeys(COLOURS, "factor")}
    off = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "flip": False, **dict.fromkeys(COLOURS, 0.0)}
    for name, field in belongs.items():
        less = draw(AugmentSettings(**(ALL | {name: off[name]})), 100, (32, 32), torch.Generator().manual_seed(1))
        changed = {each for each in vars(whole) if not torch.equal(getattr(whole, each), getattr(less, each))}
        assert changed == {field}
    more = draw(AugmentSettings(**(ALL | {"cutout_holes": 3})), 100, (32, 32), torch.Generator().manual_seed(1))
    assert torch.equal(more.box, whole.box)
    assert torch.equal(more.factor, whole.factor)


def test_any_batch_gives_an_image_the_same() -> None:
    images = random_images(50, 3, 16)
    augmenter = Augmenter(images, AugmentSettings(**ALL))
    draws = augmenter.draws(Context(seed=1).generator("augment", 3))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    whole = augmenter.batch(torch.arange(50), draws)
    assert torch.equal(torch.cat([augmenter.batch(index, draws) for index in order.split(7)]), whole[order])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"crop_scale": [1.0, 0.5]}, "error: `augment`: crop_scale is [least, most], not [1.0, 0.5]"),
        ({"crop_ratio": [2.0, 1.0]}, "error: `augment`: crop_ratio is [least, most], not [2.0, 1.0]"),
        (
            {"crop_scale": [0.5, 1.5]},
            "error: `augment`: crop_scale is a share of the area, at most 1, not 1.5",
        ),
        ({"crop_scale": [0.0, 1.0]}, "error: `augment.crop_scale.0` should be greater than 0, not 0.0"),
        (
            {"crop": 4, "crop_scale": [0.5, 1.0]},
            "error: `augment`: crop 4 pads, crop_scale and crop_ratio resize; "
            "set crop to 0, or both others to [1.0, 1.0]",
        ),
        ({"cutout_holes": 2}, "error: `augment`: cutout_holes 2 does nothing where cutout is 0"),
        ({"hue": 0.6}, "error: `augment.hue` should be less than or equal to 0.5, not 0.6"),
    ],
)
def test_settings_of_no_effect_or_sense_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(AblateError) as failure:
        AugmentSettings.read({"flip": False, "crop": 0, **changed}, "augment")
    assert str(failure.value) == message


@pytest.mark.parametrize("name", ["saturation", "hue"])
def test_grey_images_have_no_colour_to_change(name: str) -> None:
    with pytest.raises(AblateError) as failure:
        Augmenter(random_images(2, 1, 8), AugmentSettings(flip=False, crop=0, **{name: 0.1}))
    assert str(failure.value) == (
        "error: `augment.saturation` and `augment.hue` do nothing to images of 1 channel\n"
        "hint: set both to 0; grey images have brightness and contrast"
    )


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
        "error: unknown setting `augment.rotate`\nhint: the keys of `augment` are: flip, crop, crop_scale, crop_ratio, "
        "brightness, contrast, saturation, hue, cutout, cutout_holes"
    )


# --- from images that are kept larger ----------------------------------------------------------------------------


def test_a_resized_crop_that_shrinks_is_that_of_torchvision() -> None:
    """Of smooth images as of noise no pixel is off by more than 1: torchvision rounds its weights to 8 bits or so."""
    images = random_images(24, 3, 40)
    chosen = AugmentSettings(flip=False, crop=0, crop_scale=[0.1, 1.0], crop_ratio=[0.5, 2.0])
    augmenter = Augmenter(images, chosen, size=16)
    draws = augmenter.draws(torch.Generator().manual_seed(3))
    ours = augmenter.batch(torch.arange(24), draws)
    assert ours.shape == (24, 3, 16, 16)
    boxes = [tuple(box) for box in draws.box.tolist()]
    assert any(height > 16 for _, _, height, _ in boxes)
    assert any(height < 16 for _, _, height, _ in boxes)
    for image, box, mine in zip(images, boxes, ours, strict=True):
        theirs = functional.resized_crop(image, *box, [16, 16], antialias=True)
        assert (mine.int() - theirs.int()).abs().max() <= 1, box


def test_without_a_resized_crop_the_middle_is_seen() -> None:
    images = random_images(5, 3, 41)
    plain = Augmenter(images, AugmentSettings(flip=False, crop=0), size=32)
    every = torch.arange(5)
    seen = plain.batch(every, plain.draws(torch.Generator().manual_seed(1)))
    assert torch.equal(seen, functional.center_crop(images, [32, 32]))
    padded = Augmenter(images, AugmentSettings(flip=False, crop=3), size=32)
    draws = padded.draws(torch.Generator().manual_seed(1))
    framed = functional.pad(functional.center_crop(images, [32, 32]), [3])
    y, x = int(draws.offset_y[2]), int(draws.offset_x[2])
    assert torch.equal(padded.batch(every, draws)[2], framed[2, :, y : y + 32, x : x + 32])


def test_views_are_all_that_can_be_seen() -> None:
    images, every = random_images(9, 3, 12), torch.arange(9)
    augmenter = Augmenter(images, AugmentSettings(flip=True, crop=0), size=8)
    draws = augmenter.draws(torch.Generator().manual_seed(1))
    both = torch.stack([augmenter.view(every, flip=flip) for flip in (False, True)])
    assert torch.equal(both[draws.flip.long(), every], augmenter.batch(every, draws))
    off = {"flip": False, "crop": 0}
    assert AugmentSettings(**off).views == 1
    assert AugmentSettings(flip=True, crop=0).views == 2
    for more in ({"crop": 1}, {"crop_scale": [0.5, 1.0]}, {"hue": 0.1}, {"cutout": 2}):
        assert AugmentSettings(**(off | more)).views is None
