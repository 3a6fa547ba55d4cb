"""torchvision's models: how to build each, small enough to be compared in seconds, and what to call it with.

Images are smaller than those the models were made for, as far as the models allow: equivalence does not depend on it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.nn import Module
from torchvision import models

from scratchnn.errors import UserError

__all__ = ["REPRESENTATIVES", "Inputs", "load", "published_size"]

# One of each family at least, the smallest of its kind, by task.
REPRESENTATIVES = {
    task: tuple(names.split())
    for task, names in {
        "classification": """
            alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t
            mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d
            shufflenet_v2_x0_5 squeezenet1_0 squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn vit_b_16 wide_resnet50_2""",
        "segmentation": """
            deeplabv3_mobilenet_v3_large deeplabv3_resnet50 fcn_resnet50 lraspp_mobilenet_v3_large""",
        "detection": """
            fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_v2 fcos_resnet50_fpn
            keypointrcnn_resnet50_fpn maskrcnn_resnet50_fpn retinanet_resnet50_fpn retinanet_resnet50_fpn_v2
            ssd300_vgg16 ssdlite320_mobilenet_v3_large""",
        "video": "mc3_18 mvit_v1_b mvit_v2_s r2plus1d_18 r3d_18 s3d swin3d_t",
        "optical_flow": "raft_small",
    }.items()
}


@dataclass(frozen=True)
class _Family:
    """How models of one kind are built, and what they are called with.

    Attributes:
        size: of an input without its batch: ``(C, H, W)`` or ``(C, T, H, W)``.
        batch: how many of them.
        options: of the function that builds the model, made from the size.
    """

    size: tuple[int, ...]
    batch: int
    options: Callable[[tuple[int, ...]], dict[str, Any]] = lambda size: {}


def _detector(**options: Any) -> _Family:
    """Images are not scaled up; boxes come out though new weights are sure of nothing."""
    return _Family((3, 96, 128), 2, lambda size: {"min_size": min(size[1:]), "max_size": 2 * max(size[1:])} | options)


# Detectors of two stages, which look at few proposals and tell of few boxes.
_RCNN = _detector(
    box_score_thresh=0.0,
    box_batch_size_per_image=64,
    box_detections_per_img=8,
    rpn_post_nms_top_n_train=64,
    rpn_post_nms_top_n_test=64,
)

# By the module of torchvision.models that a model is in, or by the model's own name where it is an exception.
_FAMILIES = {
    "": _Family((3, 64, 64), 4),
    "inception_v3": _Family((3, 299, 299), 2),
    "maxvit": _Family((3, 224, 224), 1, lambda size: {"input_size": size[1:]}),
    "vision_transformer": _Family((3, 64, 64), 4, lambda size: {"image_size": size[1]}),
    "vit_b_32": _Family((3, 128, 128), 4, lambda size: {"image_size": size[1]}),
    "vit_l_32": _Family((3, 128, 128), 4, lambda size: {"image_size": size[1]}),
    "vit_h_14": _Family((3, 56, 56), 4, lambda size: {"image_size": size[1]}),
    "segmentation": _Family((3, 64, 64), 4),
    "detection.faster_rcnn": _RCNN,
    "detection.mask_rcnn": _RCNN,
    "detection.keypoint_rcnn": _RCNN,
    "detection.fcos": _detector(score_thresh=0.0),
    "detection.retinanet": _detector(score_thresh=0.0),
    "detection.ssd": _Family((3, 300, 300), 2, lambda size: {"score_thresh": 0.0}),
    "detection.ssdlite": _Family((3, 320, 320), 2, lambda size: {"score_thresh": 0.0}),
    "video": _Family((3, 8, 64, 64), 2),
    "video.s3d": _Family((3, 16, 224, 224), 1),
    "video.mvit": _Family((3, 16, 224, 224), 1),
    "optical_flow": _Family((3, 128, 128), 1),
}


@dataclass(frozen=True)
class Inputs:
    """What a model is called with, each a function of a seed.

    Attributes:
        evaluation: arguments in evaluation.
        training: arguments in training.
        loss: makes a number of the output of training; None for the default of :func:`compare_models`.
    """

    evaluation: Callable[[int], Any]
    training: Callable[[int], Any]
    loss: Callable[[Any], Tensor] | None = None


def load(
    name: str, size: tuple[int, ...] | None = None, batch: int | None = None, weights: str | None = None
) -> tuple[Module, Inputs]:
    """A model of torchvision, and what it is called with: images, images with boxes, videos or pairs of images.

    Args:
        name: as ``torchvision.models.list_models()`` has it.
        size: of one input without its batch, as ``(C, H, W)``; None for one that suits the model.
        batch: how many inputs; None likewise.
        weights: the name of a set of weights, to be downloaded, or None for new ones.

    Raises:
        UserError: for an unknown or quantised model, unknown weights, and sizes that the model refuses.
    """
    if name not in models.list_models():
        raise UserError(f"torchvision {torchvision.__version__} has no model {name!r}{_similar(name)}")
    module = _module(name)
    if module.startswith("quantization"):
        raise UserError(f"{name} is quantised: its layers are not torch.nn's and stay as they are")
    family = _family(name)
    size, batch = size or family.size, batch or family.batch
    if len(size) != len(family.size):
        raise UserError(f"{name} takes inputs of {len(family.size)} sizes, as {_text(family.size)}, not {_text(size)}")
    return _build(name, family.options(size), weights), _inputs(module, size, batch)


def published_size(name: str) -> tuple[int, ...] | None:
    """The size of the images that a model's published weights were trained for; None where that is not one size."""
    if name not in models.list_models():
        return None
    weights = models.get_model_weights(name)
    crop = getattr(weights.DEFAULT.transforms(), "crop_size", None) if len(weights) else None
    return (3, *crop * 2) if isinstance(crop, (list, tuple)) and len(crop) == 1 else None


def _build(name: str, options: dict[str, Any], weights: str | None) -> Module:
    builder = models.get_model_builder(name)
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    if _module(name) in ("googlenet", "inception") and weights is None:
        options["init_weights"] = True  # what it does anyway, with a warning
    try:
        return builder(weights=weights, **options)
    except (KeyError, ValueError) as error:
        raise UserError(f"torchvision refuses to build {name} with weights {weights} and {options}: {error}") from error


def _inputs(module: str, size: tuple[int, ...], batch: int) -> Inputs:
    kind = module.partition(".")[0]

    def pixels(seed: int) -> Tensor:
        return torch.rand(batch, *size, generator=torch.Generator().manual_seed(seed))

    def images(seed: int) -> Tensor:
        return torch.randn(batch, *size, generator=torch.Generator().manual_seed(seed))

    if kind == "detection":
        return Inputs(
            lambda seed: ([*pixels(seed)],),
            lambda seed: ([*pixels(seed)], _targets(seed, batch, size, module)),
            lambda losses: torch.stack(list(losses.values())).sum(),
        )
    if kind == "optical_flow":

        def pair(seed: int) -> tuple[Tensor, Tensor]:
            return pixels(2 * seed) * 2 - 1, pixels(2 * seed + 1) * 2 - 1

        return Inputs(pair, pair)
    return Inputs(images, images, _segmentation_loss if kind == "segmentation" else _classification_loss)


def _module(name: str) -> str:
    """The module of torchvision.models that holds a model, as ``detection.fcos``."""
    return models.get_model_builder(name).__module__.removeprefix("torchvision.models.")


def _family(name: str) -> _Family:
    module = _module(name)
    keys = (name, module, module.partition(".")[0], "")
    return next(_FAMILIES[key] for key in keys if key in _FAMILIES)


def _similar(name: str) -> str:
    stem = re.split(r"[_\d]", name)[0]
    names = [other for other in models.list_models() if stem and stem in other]
    return f"; it has {', '.join(names)}" if names else ", see torchvision.models.list_models()"


def _text(size: tuple[int, ...]) -> str:
    return ",".join(map(str, size))


def _targets(seed: int, batch: int, size: tuple[int, ...], module: str) -> list[dict[str, Tensor]]:
    """Three boxes on each image, with what the model wants to know of what is in them."""
    generator = torch.Generator().manual_seed(seed + 1000)
    height, width = size[1:]
    corner, opposite = torch.tensor([width, height]) * 0.5, torch.tensor([width, height]) * 0.25
    targets = []
    for _ in range(batch):
        start = torch.rand(3, 2, generator=generator) * corner
        boxes = torch.cat([start, start + opposite * (1 + torch.rand(3, 2, generator=generator))], dim=1)
        target = {"boxes": boxes, "labels": torch.tensor([1, 1, 1] if "keypoint" in module else [1, 2, 3])}
        if "mask" in module:
            target["masks"] = torch.zeros(3, height, width, dtype=torch.uint8)
            for mask, (left, top, right, bottom) in zip(target["masks"], boxes.int().tolist(), strict=True):
                mask[top:bottom, left:right] = 1
        if "keypoint" in module:
            points = start[:, None] + torch.rand(3, 17, 2, generator=generator) * (boxes[:, None, 2:] - start[:, None])
            target["keypoints"] = torch.cat([points, torch.ones(3, 17, 1)], dim=2)  # all of them visible
        targets.append(target)
    return targets


def _classification_loss(output: Any) -> Tensor:
    """Cross entropy; that of auxiliary classifiers counts 0.4, as torchvision trains them."""
    outputs = output if isinstance(output, tuple) else (output,)
    losses = [torch.nn.functional.cross_entropy(scores, _labels(scores)) for scores in outputs if scores is not None]
    # Of an Inception's output the main scores come first, of a GoogLeNet's as well.
    return losses[0] + 0.4 * sum(losses[1:]) if losses[1:] else losses[0]


def _segmentation_loss(output: dict[str, Tensor]) -> Tensor:
    """Cross entropy of each pixel; that of an auxiliary classifier counts half."""
    cross_entropy = torch.nn.functional.cross_entropy
    losses = {name: cross_entropy(scores, _labels(scores)) for name, scores in output.items()}
    return losses["out"] + 0.5 * losses["aux"] if "aux" in losses else losses["out"]


def _labels(scores: Tensor) -> Tensor:
    """A class for each number that a model has scores for, the same on every call."""
    shape = (scores.shape[0], *scores.shape[2:])
    return (torch.arange(torch.Size(shape).numel()) * 7 % scores.shape[1]).reshape(shape)
