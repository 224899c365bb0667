"""Training arguments of Ultralytics that a configuration may pass on, and the values that they can have.

An allow-list: arguments that would train from, write to or read from elsewhere (``resume``, ``cfg``,
``data``, ``project``), change what labels mean (``single_cls``), or only cost time are not on it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from diffugen.config.values import Section, Share, Weight

Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Degrees = Annotated[float, Field(ge=0, le=180)]


class TrainingArguments(Section):
    """Further arguments of a training, under Ultralytics' own names; what is None is left to Ultralytics.

    Their meaning: https://docs.ultralytics.com/usage/cfg.
    """

    # The optimiser and its schedule.
    optimizer: Literal["auto", "SGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSProp"] | None = None
    lrf: Annotated[float, Field(gt=0, le=1)] | None = None
    momentum: Share | None = None
    weight_decay: Share | None = None
    warmup_epochs: Weight | None = None
    warmup_momentum: Share | None = None
    warmup_bias_lr: Share | None = None
    cos_lr: bool | None = None
    nbs: Count | None = None
    patience: Whole | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None

    # The losses.
    box: Weight | None = None
    cls: Weight | None = None
    cls_pw: Share | None = None
    dfl: Weight | None = None
    overlap_mask: bool | None = None
    mask_ratio: Count | None = None

    # Augmentation.
    hsv_h: Share | None = None
    hsv_s: Share | None = None
    hsv_v: Share | None = None
    degrees: Degrees | None = None
    translate: Share | None = None
    scale: Share | None = None
    shear: Degrees | None = None
    perspective: Annotated[float, Field(ge=0, le=0.001)] | None = None
    flipud: Share | None = None
    fliplr: Share | None = None
    bgr: Share | None = None
    mosaic: Share | None = None
    close_mosaic: Whole | None = None
    mixup: Share | None = None
    cutmix: Share | None = None
    copy_paste: Share | None = None
    copy_paste_mode: Literal["flip", "mixup"] | None = None
    multi_scale: Share | None = None
    rect: bool | None = None

    # How it runs.
    amp: bool | None = None
    workers: Whole | None = None
    deterministic: bool | None = None
    val: bool | None = None

    @model_serializer(mode="wrap")
    def _given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value is not None}
