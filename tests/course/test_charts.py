"""Charts: what is shown is what was given."""

import pytest
import torch

from sgmgm.course import charts


def points(artist):
    """What a scatter shows, (N, 2)."""
    return torch.tensor(artist.get_offsets().data)


def test_gaussians_show_both_clouds_and_their_ellipses():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(200, 2, generator=generator)
    second = first @ torch.tensor([[2.0, 0.0], [1.0, 1.0]]) + 5
    plot = charts.gaussians({"a\npair": (first, second), "alike": (first, first)})
    left, _ = plot.axes
    assert left.get_title() == "a\npair" and "a pair; alike" in plot.alt
    for cloud, scatter, ellipse in zip((first, second), left.collections, left.lines, strict=True):
        torch.testing.assert_close(points(scatter), cloud.double())
        outline = torch.tensor(ellipse.get_xydata()).float() - cloud.mean(0)
        # every point of it lies two standard deviations away
        away = (outline @ cloud.T.cov().inverse() * outline).sum(1)
        torch.testing.assert_close(away, torch.full_like(away, 4.0), rtol=1e-3, atol=1e-3)


def test_extrapolation_goes_on_to_the_limit():
    groups = [[3.0, 3.2], [2.5, 2.4]]
    plot = charts.extrapolation({"real": ((100, 200), groups, (2.0, 110.0))}, "distance")
    (axes,) = plot.axes
    fit = next(line for line in axes.lines if line.get_label() == "real")
    assert fit.get_xdata() == pytest.approx([0, 0.01]) and fit.get_ydata() == pytest.approx(
        [2, 3.1]
    )
    seen = torch.cat([points(scatter) for scatter in axes.collections])
    wanted = [[0.01, 3.0], [0.01, 3.2], [0.005, 2.5], [0.005, 2.4]]
    torch.testing.assert_close(seen, torch.tensor(wanted).double())
    assert [label.get_text() for label in axes.get_xticklabels()] == ["∞", "100", "200"]
    assert "distance" in plot.alt and "real" in plot.alt


def test_levels_are_lines_across_with_their_names():
    plot = charts.lines({"a": ([1, 2], [3.0, 4.0])}, "x", "y", levels={"guessing": 6.9})
    (axes,) = plot.axes
    assert list(axes.lines[-1].get_ydata()) == [6.9, 6.9]
    assert [text.get_text() for text in axes.texts] == ["guessing"]
    assert axes.texts[0].xy == (1.01, 6.9)  # beside the axes, where no curve is


def test_bars_are_named_where_there_are_several_kinds_and_levels_off_the_bars():
    one = charts.bars({"a": [5.5, 2.0]}, ["x", "y"], "of", "in nats")
    two = charts.bars({"a": [50.0], "b": [37.51]}, ["x"], "of", "in %", levels={"chance": 10.0})
    assert not one.legends and [text.get_text() for text in two.legends[0].texts] == ["a", "b"]
    assert [text.get_text() for text in one.axes[0].texts] == ["5.50", "2.00"]
    *numbers, chance = two.axes[0].texts
    assert [text.get_text() for text in numbers] == ["50.0", "37.5"]
    assert chance.get_text() == "chance" and chance.xy[0] > 1 and chance.xy[1] == 10


def test_lines_through_dots_are_named():
    values = {"far": (2.0, 0.1), "none": (1.2, 0.1), "ours": (0.9, 0.1)}
    axes = charts.intervals(values, "distance", ["none", "ours"]).axes[0]
    found = [(text.get_text(), text.xy[0], text.get_ha()) for text in axes.texts]
    assert found == [("ours", 0.9, "right"), ("none", 1.2, "left")]


def test_a_curve_looks_the_same_in_every_panel():
    plot = charts.panels({"one": {"a": [1], "b": [2]}, "two": {"b": [3]}}, [0], "x")
    left, right = plot.axes
    assert [line.get_color() for line in right.lines] == [left.lines[1].get_color()]


def test_a_logarithmic_axis_has_enough_numbers():
    plot = charts.hyperparameters({"s": {"self": ([1, 2], [10.0, 19.0])}}, "distance")
    (axes,) = plot.axes
    plot.draw_without_rendering()
    low, high = axes.get_ylim()
    assert sum(low < tick < high for tick in axes.get_yticks()) >= 4


def test_a_mark_stands_where_it_should_with_its_text():
    plot = charts.mark(charts.lines({"a": ([1, 2], [3.0, 4.0])}, "x", "y"), 2, 4.0, "least\nhere")
    (axes,) = plot.axes
    assert axes.lines[-1].get_xydata().tolist() == [[2, 4]]
    assert [text.get_text() for text in axes.texts] == ["least\nhere"] and "least here" in plot.alt
    for place, sides in {(8, 8): ("left", "bottom"), (-8, -8): ("right", "top")}.items():
        text = charts.mark(plot, 1, 3.0, "start", place).axes[0].texts[-1]
        assert (text.get_ha(), text.get_va()) == sides  # on the side of the dot that was asked for


def test_a_schedule_that_does_not_begin_with_everything_masked_says_so():
    names = [text.get_text() for text in charts.schedules(64).axes[0].get_legend().texts]
    assert [name for name in names if "from" in name] == ["exponential, from 98 %"]


def test_the_roof_bends_at_the_ridge():
    plot = charts.roofline(100.0, 10.0, {"a layer": ((0.5, 80.0), (4.0, 90.0))})
    roof, dots = plot.axes[0].lines
    assert list(zip(*roof.get_data(), strict=True)) == [(0.5, 5.0), (10.0, 100.0), (80.0, 100.0)]
    assert list(zip(*dots.get_data(), strict=True)) == [(0.5, 4.0), (80.0, 90.0)]
