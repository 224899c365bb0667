"""Mask2Former's loss (Cheng et al. 2022, section 3.3) without the pixels whose label is in doubt.

Knows masks, points and bands. Does not know images, classes or how a training goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import Mask2FormerForUniversalSegmentation


def edge_band(masks: torch.Tensor, radius: int) -> torch.Tensor:
    """Return the pixels near the edges of masks, on both sides: a band two radii wide.

    Args:
        masks: float (N, H, W) of 0 and 1.
        radius: In pixels, at least 1; distances are the larger of those in x and in y.

    Returns:
        float (N, H, W) of 0 and 1. The border of the image is no edge.
    """
    import torch

    if not len(masks):
        return masks
    grow = torch.nn.MaxPool2d(2 * radius + 1, stride=1, padding=radius)
    return grow(masks) * grow(1 - masks)


def ignore_bands(model: Mask2FormerForUniversalSegmentation) -> None:
    """Let a model's mask losses leave out bands of pixels: those that `set_bands` names before each step.

    The losses are means over points that are drawn for each mask (section 3.3). A point in the mask's band is
    replaced by another one of the draw. The assignment of masks to queries does not change.
    """
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    kind = type("BandLoss", (Mask2FormerLoss,), {"loss_masks": _loss_masks, _SAMPLE: _points_outside})
    model.criterion = kind(model.config, model.weight_dict).to(model.device)


def set_bands(model: Mask2FormerForUniversalSegmentation, bands: list[torch.Tensor]) -> None:
    """Say what is left out of a model's next step.

    Args:
        model: After `ignore_bands`.
        bands: For each image of the batch, float (N, H, W): 1 at the pixels that do not count for each of its
            N masks.
    """
    model.criterion.bands = bands


_SAMPLE = "sample_points_using_uncertainty"


def _loss_masks(loss: Any, queries: Any, masks: Any, indices: Any, count: Any) -> Any:
    bands, _ = loss._pad_images_to_max_in_batch(loss.bands)
    loss.matched_bands = bands[loss._get_targets_permutation_indices(indices)][:, None]
    return super(type(loss), loss).loss_masks(queries, masks, indices, count)


def _points_outside(loss: Any, *arguments: Any) -> torch.Tensor:
    import torch
    from transformers.models.mask2former.modeling_mask2former import sample_point

    points: torch.Tensor = super(type(loss), loss).sample_points_using_uncertainty(*arguments)
    # Above 0 as soon as one of the pixels that a point lies between is in the band.
    inside = sample_point(loss.matched_bands, points, align_corners=False)[:, 0] > 0
    # Where there is no point outside, all stay.
    wanted = torch.where(inside.all(dim=1, keepdim=True), True, ~inside)
    others = torch.multinomial(wanted.float(), points.shape[1], replacement=True)
    replaced = points.gather(1, others[..., None].expand_as(points))
    return torch.where(inside[..., None], replaced, points)
