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
    assert data["image/png"].startswith(b"\x89PNG") and len(data["image/png"]) < 150_000
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
