"""The pictures of scratchnn.visualize: that what is drawn are the numbers it should be."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import scratchnn.nn as nn
from scratchnn import models, visualize


def drawn(figure: Figure) -> np.ndarray:
    """The numbers of the figure's first picture, gaps as NaN; it can be rendered."""
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    return np.ma.filled(figure.axes[0].images[0].get_array().astype(float), np.nan)


# Pictures


def test_images_are_drawn_as_they_are() -> None:
    images = torch.randint(0, 256, (3, 3, 4, 5), dtype=torch.uint8)
    figure = visualize.images(images, titles=["a", "b", "c"], columns=2)
    assert [ax.get_title() for ax in figure.axes] == ["a", "b", "c"]
    for ax, image in zip(figure.axes, images, strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), image.permute(1, 2, 0).double() / 255)


def test_floating_images_are_stretched() -> None:
    picture = drawn(visualize.images(torch.tensor([[[[-3.0, 1.0], [5.0, -3.0]]]])))
    np.testing.assert_allclose(picture, [[0, 0.5], [1, 0]])


def test_images_of_one_value_are_black() -> None:
    assert (drawn(visualize.images(torch.full((1, 1, 2, 2), 7.0))) == 0).all()


@pytest.mark.parametrize("shape", [(3, 4, 4), (0, 3, 4, 4), (1, 2, 4, 4)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"N, C, H, W|3, H, W"):
        visualize.images(torch.zeros(shape))


def test_every_image_needs_a_title() -> None:
    with pytest.raises(ValueError, match="2 images but 1 titles"):
        visualize.images(torch.zeros(2, 3, 4, 4), titles=["a"])


def test_filters_of_three_channels_are_in_colour() -> None:
    layer = nn.Conv2d(3, 5, 3)
    picture = drawn(visualize.filters(layer, columns=3))
    assert picture.shape == (2 * 3 + 1, 3 * 3 + 2, 3)
    for k, weight in enumerate(layer.weight.detach()):
        row, column = divmod(k, 3)
        tile = picture[4 * row : 4 * row + 3, 4 * column : 4 * column + 3]
        np.testing.assert_allclose(tile, (0.5 + weight / (2 * weight.abs().max())).permute(1, 2, 0), atol=1e-6)
    assert (picture[4:, 8:] == 1).all()  # the place of a sixth filter stays white


def test_other_filters_are_drawn_by_channel_on_one_scale() -> None:
    layer = nn.Conv2d(4, 3, (3, 2))
    figure = visualize.filters(layer)
    picture = drawn(figure)
    assert picture.shape == (3 * 4 - 1, 4 * 3 - 1)
    for k in range(3):
        for c in range(4):
            tile = picture[4 * k : 4 * k + 3, 3 * c : 3 * c + 2]
            np.testing.assert_allclose(tile, layer.weight.detach()[k, c])
    assert np.isnan(picture[3]).all()
    largest = float(layer.weight.detach().abs().max())
    assert figure.axes[0].images[0].get_clim() == pytest.approx((-largest, largest))


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Conv1d(2, 3, 5), (3 * 2 - 1, 2 * 6 - 1)), (nn.Conv3d(1, 2, (2, 3, 3)), (7, 7))]
)
def test_filters_of_sequences_and_volumes(layer: torch.nn.Module, shape: tuple[int, int]) -> None:
    assert drawn(visualize.filters(layer)).shape == shape


def test_filters_of_a_linear_layer_are_images() -> None:
    layer = nn.Linear(2 * 4 * 3, 2)
    picture = drawn(visualize.filters(layer, image_shape=(2, 4, 3)))
    np.testing.assert_allclose(picture[5:, 4:], layer.weight.detach()[1].view(2, 4, 3)[1])


def test_filters_say_what_they_need() -> None:
    with pytest.raises(ValueError, match="image_shape"):
        visualize.filters(nn.Linear(6, 2))
    with pytest.raises(ValueError, match="does not have 6 numbers"):
        visualize.filters(nn.Linear(6, 2), image_shape=(1, 2, 2))
    with pytest.raises(TypeError, match="ReLU has no weight"):
        visualize.filters(nn.ReLU())


def test_feature_maps_are_the_channels() -> None:
    maps = torch.randn(1, 5, 4, 6)
    figure = visualize.feature_maps(maps, columns=3)
    picture = drawn(figure)
    for c in range(5):
        row, column = divmod(c, 3)
        np.testing.assert_allclose(picture[5 * row : 5 * row + 4, 7 * column : 7 * column + 6], maps[0, c], rtol=1e-6)
    assert np.isnan(picture[5:, 14:]).all()
    assert figure.axes[0].images[0].get_clim()[0] < 0


def test_activation_maps_start_at_zero() -> None:
    figure = visualize.feature_maps(torch.rand(3, 4, 4))
    assert figure.axes[0].images[0].get_clim()[0] == 0


def test_feature_vectors_are_the_columns_of_the_maps() -> None:
    maps, image = torch.randn(6, 4, 4), torch.rand(3, 8, 8)
    figure = visualize.feature_vectors(maps, [(0, 3), (2, 1)], image)
    drawn(figure)
    background, *charts = figure.axes
    for axes, (h, w) in zip(charts, [(0, 3), (2, 1)], strict=True):
        np.testing.assert_allclose([bar.get_height() for bar in axes.patches], maps[:, h, w], rtol=1e-6)
    marks = np.concatenate([marked.get_offsets() for marked in background.collections])
    np.testing.assert_allclose(marks, [(6.5, 0.5), (2.5, 4.5)])  # the middles of blocks of 2 x 2 pixels


def test_positions_outside_of_the_maps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 0\) is outside of maps of 4 x 4"):
        visualize.feature_vectors(torch.rand(2, 4, 4), [(4, 0)])
    with pytest.raises(ValueError, match="no positions"):
        visualize.feature_vectors(torch.rand(2, 4, 4), [])
    with pytest.raises(ValueError, match="one sample"):
        visualize.feature_maps(torch.rand(2, 2, 4, 4))


# Layers


def small_net() -> torch.nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 2))


def test_layer_outputs_are_those_of_the_layers() -> None:
    model, x = small_net(), torch.randn(2, 3, 6, 6)
    outputs = visualize.layer_outputs(model, x)
    assert list(outputs) == ["0", "1", "2", "3", "4"]
    y = model[0](x)
    assert torch.equal(outputs["0"], y)
    normalised = model[1](y).detach()
    assert torch.equal(outputs["1"], normalised)  # not what the activation in place made of it
    assert torch.equal(outputs["2"], normalised.relu())
    assert not outputs["4"].requires_grad


def test_looking_changes_nothing() -> None:
    model = small_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    visualize.layer_statistics(model, torch.randn(2, 3, 6, 6))
    visualize.influence(model, torch.randn(2, 3, 6, 6))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_by_name() -> None:
    model, x = small_net(), torch.randn(2, 3, 6, 6)
    assert list(visualize.layer_outputs(model, x, ["2", "0"])) == ["0", "2"]
    with pytest.raises(ValueError, match="no layer 'stem'"):
        visualize.layer_outputs(model, x, ["stem"])
    model.spare = nn.ReLU()
    model.forward = lambda x: model[0](x)
    with pytest.raises(ValueError, match="'spare' was not called"):
        visualize.layer_outputs(model, x, ["spare"])


def test_statistics_are_those_of_the_outputs() -> None:
    model, x = small_net(), torch.randn(8, 3, 6, 6)
    relu = visualize.layer_statistics(model, x, ["2"])[0]
    numbers = visualize.layer_outputs(model, x)["2"].double()
    assert (relu.name, relu.type) == ("2", "ReLU")
    assert relu.mean == pytest.approx(float(numbers.mean()))
    assert relu.std == pytest.approx(float(numbers.std(correction=0)))
    assert relu.zeros == pytest.approx(float((numbers == 0).double().mean()))
    assert relu.zeros > 0.2


def test_statistics_are_drawn_in_order() -> None:
    model, x = small_net(), torch.randn(8, 3, 6, 6)
    statistics = visualize.layer_statistics(model, x)
    figure = visualize.activation_statistics(model, x, title="a net")
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    spread, zeros = figure.axes
    assert [label.get_text() for label in spread.get_yticklabels()] == [f"{s.name}  {s.type}" for s in statistics]
    np.testing.assert_allclose(spread.containers[0].lines[0].get_xdata().astype(float), [s.mean for s in statistics])
    np.testing.assert_allclose([bar.get_width() for bar in zeros.patches], [100 * s.zeros for s in statistics])


# Geometry


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (2, 1, 0, 3), ((3, 1), 1, 0, 1)],
)
def test_pixel_use_counts_windows(kernel: int | tuple[int, int], stride: int, padding: int, dilation: int) -> None:
    ranks = kernel if isinstance(kernel, tuple) else (kernel, kernel)

    def along(size: int, k: int, p: int) -> list[int]:
        outputs = (size + 2 * p - dilation * (k - 1) - 1) // stride + 1
        read = [o * stride - p + t * dilation for o in range(outputs) for t in range(k)]
        return [read.count(i) for i in range(size)]

    rows, columns = along(7, ranks[0], padding), along(6, ranks[1], padding)
    use = visualize.pixel_use((7, 6), kernel, stride, padding, dilation)
    assert use.tolist() == [[r * c for c in columns] for r in rows]


def test_padding_usage_draws_the_counts() -> None:
    figure = visualize.padding_usage((5, 5), 3, paddings=(0, 1, 2))
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    for ax, padding in zip(figure.axes, (0, 1, 2), strict=True):
        use = visualize.pixel_use((5, 5), 3, padding=padding)
        np.testing.assert_array_equal(ax.images[0].get_array(), use)
        assert [int(text.get_text()) for text in ax.texts] == use.flatten().tolist()
    assert visualize.pixel_use((5, 5), 3, padding=2).unique().tolist() == [9]


@pytest.mark.parametrize("numbers", [(7, 3, 1, 0, 1), (8, 3, 2, 1, 1), (9, 2, 1, 0, 3), (5, 5, 2, 2, 1)])
def test_windows_are_those_of_the_layer(numbers: tuple[int, int, int, int, int]) -> None:
    """Each row's squares are the pixels whose change changes that output."""
    size, kernel, stride, padding, dilation = numbers
    figure = visualize.windows(size, kernel, stride, padding, dilation)
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    layer = nn.Conv1d(1, 1, kernel, stride=stride, padding=padding, dilation=dilation, bias=False)
    torch.nn.init.ones_(layer.weight)
    read = layer(torch.eye(size)[:, None])[:, 0].T  # [o, i]
    drawn = torch.zeros_like(read)
    for patch in figure.axes[0].patches:
        o, i = int(patch.get_y()) - 1, round(patch.get_x() - 0.06)
        if o >= 0 and 0 <= i < size:
            drawn[o, i] += 1
    assert torch.equal(drawn, read)
    assert figure.axes[0].get_title().endswith(f"= {len(read)} outputs")


def test_windows_must_fit() -> None:
    with pytest.raises(ValueError, match=r"window of 5 pixels does not fit into 2 \+ 2 \* 1 pixels"):
        visualize.windows(2, 5, padding=1)


def extent(field: torch.Tensor) -> tuple[int, int, int, int]:
    """Top, left, height, width of what is not 0."""
    rows, columns = field.nonzero(as_tuple=True)
    top, left = int(rows.min()), int(columns.min())
    return top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1


def test_receptive_fields_grow_as_the_rule_says() -> None:
    """field += (K - 1) jump, jump *= S."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(16, 4, 3, padding=1)
    )
    fields = visualize.influence(model, torch.randn(8, 3, 24, 24))
    assert [extent(field)[2:] for field in fields.values()] == [(3, 3), (5, 5), (6, 6), (10, 10)]
    assert extent(fields["0"]) == (11, 11, 3, 3)  # around the central pixel, number 12


def test_influence_of_one_linear_convolution_is_its_weight() -> None:
    model = nn.Conv2d(1, 1, 3, padding=1)
    field = visualize.influence(model, torch.randn(1, 1, 7, 7), [""])[""]
    patch = field[2:5, 2:5]
    expected = model.weight.detach()[0, 0].abs().double()
    torch.testing.assert_close(patch / patch.max(), expected / expected.max())
    assert float(field.sum()) == pytest.approx(float(patch.sum()))


def test_influence_goes_through_branches() -> None:
    fields = visualize.influence(models.resnet8().eval(), torch.randn(4, 3, 32, 32), ["stem", "stages.0", "stages.1"])
    assert [extent(field)[2:] for field in fields.values()] == [(3, 3), (7, 7), (13, 13)]


def test_receptive_field_frames_what_counts() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, (1, 5), padding=(0, 2)))
    figure = visualize.receptive_field(model, torch.randn(2, 3, 12, 12))
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    assert [ax.get_title() for ax in figure.axes] == ["0\n3 x 3", "1\n3 x 7"]
    frames = [patch for patch in figure.axes[1].patches if isinstance(patch, Rectangle)]
    assert [(f.get_x(), f.get_y(), f.get_width(), f.get_height()) for f in frames] == [(2.5, 4.5, 7, 3)]
    with pytest.raises(ValueError, match="N x C x H x W"):
        visualize.receptive_field(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.randn(1, 3, 2, 2))


# Normalizations


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("batch", nn.BatchNorm1d(6, affine=False)),
        ("layer", nn.LayerNorm((6, 5), elementwise_affine=False)),
        ("instance", nn.InstanceNorm1d(6)),
        ("group", nn.GroupNorm(3, 6, affine=False)),
    ],
)
def test_index_sets_are_what_the_layers_normalise(kind: str, layer: torch.nn.Module) -> None:
    x = torch.randn(4, 6, 5, dtype=torch.float64) * 3 + 2
    sets = visualize.index_sets(kind, (4, 6, 5), groups=3)
    y = torch.empty_like(x)
    for number in sets.unique():
        chosen = sets == number
        var, mean = torch.var_mean(x[chosen], correction=0)
        y[chosen] = (x[chosen] - mean) / (var + 1e-5).sqrt()
    torch.testing.assert_close(layer.double()(x), y)


def test_cubes_show_one_set_each() -> None:
    figure = visualize.normalizations((2, 4, 3), groups=2)
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    assert [ax.get_title() for ax in figure.axes] == [
        "batch norm",
        "layer norm",
        "instance norm",
        "group norm, 2 groups",
    ]
    pale, blue = (tuple(np.round(to_rgb(colour), 4)) for colour in ("#ededed", "#3b6ea8"))
    seen = {
        tuple(np.round(face[:3], 4)) for ax in figure.axes for faces in ax.collections for face in faces._facecolor3d
    }
    assert seen == {pale, blue}


def test_unknown_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="batch, layer, instance, group"):
        visualize.index_sets("weight", (2, 4, 3))
    with pytest.raises(ValueError, match="4 channels cannot be divided into 3 groups"):
        visualize.index_sets("group", (2, 4, 3), groups=3)


# Lines


def test_functions_and_their_derivatives() -> None:
    figure = visualize.activation_functions({"Tanh": nn.Tanh(), "ReLU": nn.ReLU()}, low=-2, high=2)
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    (f, slope), (_, step) = ([line for line in ax.lines if line.get_label() in ("f", "f'")] for ax in figure.axes)
    x = f.get_xdata()
    assert (x[0], x[-1]) == (-2, 2)
    np.testing.assert_allclose(f.get_ydata(), np.tanh(x))
    np.testing.assert_allclose(slope.get_ydata(), 1 - np.tanh(x) ** 2)
    np.testing.assert_array_equal(step.get_ydata(), x > 0)


def test_curves_are_smoothed_backwards() -> None:
    figure = visualize.curves({"a": [4.0, 2.0, 0.0, 8.0], "b": [1.0]}, smooth=2)
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["a"].get_ydata(), [4, 3, 1, 4])
    np.testing.assert_allclose(lines["a"].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(lines["b"].get_ydata(), [1])


def test_without_matplotlib_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; import scratchnn; import scratchnn.visualize"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: scratchnn.visualize draws with matplotlib" in done.stderr
    assert "pip install 'scratchnn[notebooks]'" in done.stderr


# In words


def pictures() -> dict[str, Figure]:
    """One of each kind."""
    model = models.resnet8()
    images = torch.randn(2, 3, 32, 32)
    maps = torch.tensor([[[0.0, 1.0], [2.0, 3.5]]])
    return {
        "images": visualize.images(images, titles=["cat", "dog"]),
        "filters": visualize.filters(nn.Conv2d(3, 5, (3, 2))),
        "feature_maps": visualize.feature_maps(maps),
        "feature_vectors": visualize.feature_vectors(maps, [(0, 0), (1, 1)]),
        "padding_usage": visualize.padding_usage((7, 7), kernel_size=3, paddings=(0, 1)),
        "windows": visualize.windows(10, kernel_size=3, stride=2, padding=1),
        "receptive_field": visualize.receptive_field(model, images, ["stem", "stages.0"]),
        "activation_statistics": visualize.activation_statistics(nn.ReLU(), torch.zeros(2, 3)),
        "normalizations": visualize.normalizations(),
        "activation_functions": visualize.activation_functions({"Tanh": nn.Tanh(), "ReLU": nn.ReLU()}),
        "curves": visualize.curves({"plain": [4.0, 2.0], "none": []}, ylabel="loss"),
    }


def test_every_picture_says_what_is_on_it() -> None:
    words = {kind: figure.get_label() for kind, figure in pictures().items()}
    assert words == {
        "images": "images: cat, dog",
        "filters": "5 filters of 3 x 2 pixels, in colour",
        "feature_maps": "1 maps of 2 x 2 numbers, from 0 to 3.5",
        "feature_vectors": "vectors of 1 channels at the positions (0, 0), (1, 1)",
        "padding_usage": (
            "how often each of 7 x 7 pixels is read: 1 to 9 times with padding 0, 4 to 9 times with padding 1"
        ),
        "windows": "5 windows of 3 pixels over 10 pixels, with stride 2, padding 1 and dilation 1",
        "receptive_field": "receptive fields: stem 3 x 3; stages.0 7 x 7",
        "activation_statistics": "mean and standard deviation of layers:  ReLU 0 and 0, 100% zeros",
        "normalizations": (
            "cubes N x C x HW, in each a set of numbers that share a mean: one channel of all samples (batch norm), "
            "all channels of one sample (layer norm), one channel of one sample (instance norm), "
            "3 of 6 channels of one sample (group norm)"
        ),
        "activation_functions": "functions f and their derivatives f', from -4 to 4: Tanh, ReLU",
        "curves": "loss over step: plain from 4 to 2",
    }
