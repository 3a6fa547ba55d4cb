"""Pictures of layers and of what goes through them, as matplotlib figures.

============================= ======================================================================
:func:`images`                pictures side by side
:func:`filters`               the weights of a convolution or a linear layer
:func:`feature_maps`          a layer's output, channel by channel, as a list of images
:func:`feature_vectors`       the same output, position by position, as a vector of channels
:func:`padding_usage`         how often each input pixel is read
:func:`windows`               the windows of a convolution or a pooling, and the output-size rule
:func:`receptive_field`       the part of the image that an output pixel depends on
:func:`activation_statistics` mean, deviation and zeros of every layer's output
:func:`normalizations`        which numbers share a mean: the four norms on the N x C x HW cube
:func:`activation_functions`  functions and their derivatives
:func:`curves`                losses, accuracies
============================= ======================================================================

Each returns a :class:`matplotlib.figure.Figure`: a notebook shows it, ``figure.savefig("name.png")`` keeps it, and
``figure.get_label()`` says in words what is on it, for those who cannot see it. The numbers drawn come from
:func:`layer_outputs`, :func:`layer_statistics`, :func:`pixel_use`, :func:`influence` and :func:`index_sets`, for
whoever wants them without the picture. matplotlib is optional: ``pip install 'scratchnn[notebooks]'``.
"""

try:
    import matplotlib as _  # noqa: F401 - before anything that draws
except ModuleNotFoundError as error:
    raise ImportError(
        f"scratchnn.visualize draws with matplotlib, but {error.name} is missing; install it with: "
        "pip install 'scratchnn[notebooks]'"
    ) from error

from scratchnn.visualize.geometry import influence, padding_usage, pixel_use, receptive_field, windows
from scratchnn.visualize.layers import LayerStatistics, activation_statistics, layer_outputs, layer_statistics
from scratchnn.visualize.lines import activation_functions, curves
from scratchnn.visualize.normalization import index_sets, normalizations
from scratchnn.visualize.pictures import feature_maps, feature_vectors, filters, images

__all__ = [
    "LayerStatistics",
    "activation_functions",
    "activation_statistics",
    "curves",
    "feature_maps",
    "feature_vectors",
    "filters",
    "images",
    "index_sets",
    "influence",
    "layer_outputs",
    "layer_statistics",
    "normalizations",
    "padding_usage",
    "pixel_use",
    "receptive_field",
    "windows",
]
