import time

import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from sgmgm import sprites
from sgmgm.utils.errors import InputError


@pytest.fixture(scope="module")
def images():
    return sprites.render(range(2000), seed=3)[0]


@pytest.fixture(scope="module")
def strangers(images):
    """Other sprites of the same classes: shifted by ten, so that only the colours are foreign."""
    return images.roll(10, 0)


def test_images_and_labels_have_the_promised_form():
    images, labels = sprites.render(range(1, 26), seed=5)
    assert images.shape == (25, 3, 32, 32) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert labels.dtype == torch.int64
    assert labels.tolist() == [i % 10 for i in range(1, 26)]
    assert len(sprites.CLASSES) == len(set(sprites.CLASSES)) == 10


def test_no_indices_give_no_images():
    images, labels = sprites.render([])
    assert images.shape == (0, 3, 32, 32) and labels.shape == (0,)
    assert [part.shape for part in sprites.accents(images)] == [(0,), (0,)]


def test_a_sprite_is_the_same_alone_in_a_batch_and_in_any_order(images):
    shuffled = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sprites.render(shuffled, seed=3)[0], images[shuffled])
    for index in (0, 7, 19, 456, 1283, 1999):  # from both of the chunks drawn at once
        assert torch.equal(sprites.render([index], seed=3)[0][0], images[index])


def test_the_callers_indices_are_left_alone():
    indices = torch.tensor([12, 3])
    sprites.render(indices)
    assert indices.tolist() == [12, 3]


def test_sprites_and_seeds_differ(images):
    assert len(images.flatten(1).unique(dim=0)) == 2000
    other = sprites.render(range(100), seed=4)[0]
    assert (other != images[:100]).flatten(1).any(1).all()


def test_known_numbers_of_the_hash():
    """The published first outputs of splitmix64 from state 0."""
    state, seen = torch.zeros(1, dtype=torch.int64), []
    for _ in range(3):
        state = state + sprites._GOLDEN
        seen.append(sprites._mix(state).item() % 2**64)
    assert seen == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_random_numbers_are_uniform_and_unrelated():
    dice = sprites._Dice(torch.arange(20_000), seed=0)
    first, second = dice().flatten(), dice().flatten()
    assert abs(first.mean() - 0.5) < 0.01 and abs(first.var() - 1 / 12) < 0.003
    assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.03
    assert torch.corrcoef(torch.stack([first[1:], first[:-1]]))[0, 1].abs() < 0.03


def test_every_sprite_is_coherent(images):
    assert sprites.coherence(images) >= 0.99
    for label, name in enumerate(sprites.CLASSES):
        assert sprites.coherence(images[label::10]) >= 0.99, name


def test_the_accent_that_was_painted_is_the_one_that_is_read():
    for label in range(10):
        sheet = sprites._Sheet(torch.arange(label, 500, 10), seed=0)
        sprites._PAINTERS[label](sheet)
        flat = sheet.accent.expand(-1, -1, 32, 32)
        painted, again = sprites.accents(flat)
        assert (painted >= 0).all() and torch.equal(painted, again)
        assert torch.equal(sprites.accents(sheet.canvas)[0], painted)


def test_all_hues_are_about_equally_frequent(images):
    counts = sprites.accents(images)[0].bincount(minlength=6)
    assert (counts > 250).all() and (counts < 420).all()


def test_coherence_is_chance_when_halves_are_swapped(images, strangers):
    top_bottom = torch.cat([images[:, :, :16], strangers[:, :, 16:]], 2)
    left_right = torch.cat([images[..., :16], strangers[..., 16:]], 3)
    assert abs(sprites.coherence(top_bottom) - 1 / 6) < 0.04
    assert abs(sprites.coherence(left_right) - 1 / 6) < 0.05


def test_each_part_stays_in_its_half(images):
    chroma = images.amax(1) - images.amin(1)
    assert (chroma[:, 15:17] < sprites.LEAST_CHROMA).all()
    saturated = (chroma >= sprites.LEAST_CHROMA).unflatten(1, (2, 16)).sum((2, 3))
    assert saturated.min() >= 2 * sprites.LEAST_PIXELS


def test_reconstruction_like_damage_is_tolerated(images):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    blurred = gaussian_blur(images, [7, 7], [0.7, 0.7]) + 0.03 * noise
    assert sprites.coherence(blurred) >= 0.95


def test_mirrored_sprites_read_the_same(images):
    for part, mirrored in zip(
        sprites.accents(images), sprites.accents(images.flip(-1)), strict=True
    ):
        assert torch.equal(part, mirrored)


def test_what_cannot_be_read_is_minus_one():
    red, blue = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.2, 0.9]])[..., None, None]
    pages = torch.full((4, 3, 32, 32), 0.5)
    pages[1, :, 2:10, 2:10] = red  # the top half only
    pages[2, :, :, :16], pages[2, :, :, 16:] = red, blue  # half and half
    pages[3, :, 2:4, 2:5], pages[3, :, 20:22, 2:6] = red, red  # 6 and 8 pixels
    top, bottom = sprites.accents(pages)
    assert top.tolist() == [-1, 0, -1, -1]
    assert bottom.tolist() == [-1, -1, -1, 0]
    assert sprites.coherence(pages) == 0


def test_many_at_once_take_less_time_than_one_by_one():
    def seconds(*parts):
        begun = time.process_time()
        for part in parts:
            sprites.render(part)
        return time.process_time() - begun

    seconds(range(100))
    alone = min(seconds(*([i] for i in range(50))) for _ in range(3)) / 50
    together = min(seconds(range(500)) for _ in range(3)) / 500
    assert together < alone / 2


@pytest.mark.parametrize(
    "call, fragment",
    [
        (lambda: sprites.coherence(torch.zeros(0, 3, 32, 32)), "at least one image"),
        (lambda: sprites.coherence(torch.zeros(3, 32, 32)), "(B, 3, 32, 32)"),
        (lambda: sprites.coherence(torch.zeros(2, 3, 28, 28)), "not (2, 3, 28, 28)"),
        (lambda: sprites.accents(torch.zeros(2, 32, 32, 3)), "not (2, 32, 32, 3)"),
        (lambda: sprites.accents(torch.zeros(2, 3, 32, 32).byte()), "not torch.uint8"),
        (lambda: sprites.accents([1]), "not list"),
    ],
)
def test_bad_input_gives_one_sentence(call, fragment):
    with pytest.raises(InputError) as caught:
        call()
    sentence = str(caught.value)
    assert fragment in sentence
    assert sentence.endswith(".") and "\n" not in sentence
