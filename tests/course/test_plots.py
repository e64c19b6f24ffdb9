"""Plots: images with a text."""

import warnings

import pytest
import torch

from sgmgm.course import plots
from sgmgm.utils.errors import InputError


def test_plots_show_themselves_with_a_text():
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plot = plots.image_rows({"first": images, "second": images[:5]}, list("abcdefgh"))
    data, metadata = plot._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG") and len(data["image/png"]) < 300_000
    assert data["text/plain"] == metadata["image/png"]["alt"] and "second" in plot.alt
    assert plot.get_size_inches()[0] <= plots.WIDTH
    masked = torch.zeros(8, 64, dtype=torch.bool)
    masked[:, 0] = True
    painted = plots.overlay_masked(images, masked)
    assert (painted[:, :, :4, :4] == plots.MASK_GREY).all()
    assert torch.equal(painted[:, :, 4:], images[:, :, 4:])
    for wrong in (lambda: plots.image_rows({"x": images[0]}),
                  lambda: plots.token_grid(images[:1], torch.zeros(1, 63))):  # fmt: skip
        with pytest.raises(InputError):
            wrong()


def test_class_names_in_any_writing_are_shown_without_a_warning():
    """What the font lacks stands there by its number; a name is no formula."""
    names = ["\u732b", "\U0001f98b", "$\\oops$", "caf\u00e9"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot = plots.image_rows({"\u72d7": torch.zeros(4, 3, 8, 8)}, names)
        assert plot.png().startswith(b"\x89PNG")
    shown = [axes.get_title() for axes in plot.axes]
    assert shown == ["U+732B", "U+1F98B", "$\\oops$", "caf\u00e9"]


def test_titles_stand_above_the_rows_that_they_belong_to():
    images = torch.rand(3, 3, 8, 8)
    rows = {"first": images, "second": images}
    everywhere = [axes.get_title() for axes in plots.image_rows(rows, list("abc")).axes]
    assert everywhere == ["a", "b", "c", "", "", ""]
    plot = plots.image_rows(rows, {"first": ["a", "b"], "second": list("xyz")})
    assert [axes.get_title() for axes in plot.axes] == ["a", "b", "", "x", "y", "z"]
    assert "Columns of second: x, y, z" in plot.alt


def test_a_token_is_shown_as_its_code_s_patch():
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[4, 1, 4, 0]])
    patches = torch.rand(6, 3, 4, 4)
    _, right = plots.token_grid(image, tokens, patches).axes
    shown = torch.tensor(right.images[0].get_array()).permute(2, 0, 1)
    torch.testing.assert_close(shown[:, :4, 4:], patches[1])
    torch.testing.assert_close(shown[:, 4:, :4], patches[4])
    assert [text.get_text() for text in right.texts] == ["4", "1", "4", "0"]
    assert "3 different" in right.get_title()
    _, right = plots.token_grid(image, tokens).axes  # the mean of the cells with the same token
    shown = torch.tensor(right.images[0].get_array()).permute(2, 0, 1)
    mean = (image[0, :, :4, :4] + image[0, :, 4:, :4]) / 2
    torch.testing.assert_close(shown[:, 4:, :4], mean)
    torch.testing.assert_close(shown[:, :4, 4:], image[0, :, :4, 4:])


def test_mean_patches_are_grey_for_unused_codes():
    patches = torch.rand(3, 3, 2, 2)
    mean = plots.mean_patches(patches, torch.tensor([2, 0, 2]), 4)
    torch.testing.assert_close(mean[2], (patches[0] + patches[2]) / 2)
    assert torch.equal(mean[0], patches[1]) and (mean[[1, 3]] == 0.85).all()


def test_heat_maps_have_one_scale_and_frame_the_visible_cells():
    images, low, high = torch.rand(2, 3, 8, 8), torch.full((2, 16), 1.0), torch.full((2, 16), 4.0)
    high[0, 3] = torch.nan
    visible = torch.zeros(2, 16, dtype=torch.bool)
    visible[1, 6] = True
    plot = plots.heat_maps(images, {"a": low, "b": high}, "nats", ["x", "y"], visible, root=True)
    maps = plot.axes[2:6]
    assert {axes.images[0].get_clim() for axes in maps} == {(0, 4)}
    assert [axes.get_ylabel() for axes in maps] == ["a", "", "b", ""]
    assert [len(axes.patches) for axes in maps] == [0, 1, 0, 1]
    assert maps[1].patches[0].get_xy() == pytest.approx((1.58, 0.58))  # row 1, column 2


def test_fields_can_share_a_scale():
    maps = {"a": torch.tensor([[0.0, 0.5]]), "b\nc": torch.tensor([[0.25, 0.0]])}
    for top, wanted in ((None, 0.5), (2.0, 2.0)):
        *panels, _ = plots.fields(maps, "probability", top).axes
        assert {axes.images[0].get_clim() for axes in panels} == {(0, wanted)}


def test_difference_maps_are_centred_share_a_scale_and_say_their_means():
    images, values = torch.rand(2, 3, 8, 8), torch.tensor([[3.0, -1.0, torch.nan, 1.0]] * 2)
    plot = plots.difference_maps({"seen": images}, {"a": values, "b": values / 3}, ["x", "y"])
    maps = plot.axes[2:6]
    ((low, high),) = {axes.images[0].get_clim() for axes in maps}
    assert low == -high and 1 < high <= 3
    assert [axes.get_xlabel() for axes in maps] == ["+1.00 nats"] * 2 + ["+0.33 nats"] * 2
    assert [axes.get_title() for axes in plot.axes[:2]] == ["x", "y"]
    assert plots.difference_maps({}, {"none": 0 * values}, ["x", "y"]).axes[0].images[0].get_clim()
