"""Segment Anything Models by way of Ultralytics (AGPL-3.0): outline the objects that boxes and points show.

Knows checkpoints and image arrays; neither heat maps nor classes. Offline and silent, as the YOLO modules.

A checkpoint is a ``.pt`` file of SAM (Kirillov et al. 2023), MobileSAM (Zhang et al. 2023), SAM 2 or SAM 2.1
(Ravi et al. 2024), or the name of one that Ultralytics publishes, which is found and downloaded as
`diffugen.detectors.yolo_checkpoint` does. Such a file holds weights alone, and its name says of which model:
it ends with one of Ultralytics' own names, such as ``sam2.1_t.pt``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffugen.detectors.yolo_checkpoint import contained, find_checkpoint, import_ultralytics
from diffugen.diffusion.devices import resolve_devices
from diffugen.errors import DiffugenError, ModelError, first_line, is_out_of_memory
from diffugen.run.temporary import temporary_folder

if TYPE_CHECKING:
    from ultralytics.models.sam.predict import Predictor

IMAGE_SIZE = 1024
"""Side in pixels of the square that an image is scaled to fit: what all these models were trained at."""


class SamSegmenter:
    """A Segment Anything Model; implements `diffugen.labels.segmenter.Segmenter`.

    Example:
        >>> sam = SamSegmenter("sam2.1_t.pt")  # doctest: +SKIP
        >>> sam.masks(rgb, np.array([[4.0, 2.0, 40.0, 30.0]]), np.array([[20.5, 14.5]]))  # doctest: +SKIP
    """

    def __init__(self, checkpoint: Path | str, *, device: str = "auto") -> None:
        """Load a checkpoint.

        Args:
            checkpoint: A file, or the name of a published one; see this module's docstring.
            device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:<number>``; of several GPUs, the first.

        Raises:
            ModelError: There is no such checkpoint or device, or it is not a Segment Anything Model.
        """
        import_ultralytics()
        from ultralytics.models.sam import Predictor, SAM2Predictor
        from ultralytics.models.sam.modules.sam import SAM2Model

        fixed = {"device": resolve_devices(device)[0], "imgsz": IMAGE_SIZE, "save": False, "verbose": False}
        with contained():
            model = _load(checkpoint)
            kind = SAM2Predictor if isinstance(model, SAM2Model) else Predictor
            self._predictor: Predictor = kind(overrides=fixed)
            self._predictor.setup_model(model, verbose=False)

    def masks(
        self, rgb: NDArray[np.uint8], boxes: NDArray[np.float64], points: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Return the mask of each of N objects; the image is encoded once for all of them.

        Args:
            rgb: uint8 (H, W, 3), the image.
            boxes: float64 (N, 4), the xyxy box of each object in px.
            points: float64 (N, 2), the x and y of a pixel of each object in px.

        Returns:
            bool (N, H, W).

        Raises:
            DiffugenError: The image has another dtype or shape.
            ModelError: Memory runs out.
        """
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
            raise DiffugenError(f"the image is {rgb.dtype} {rgb.shape}; expected uint8 (H, W, 3), RGB")
        if not len(boxes):
            return np.zeros((0, *rgb.shape[:2]), dtype=np.bool_)
        bgr, boxes, points = map(np.ascontiguousarray, (rgb[..., ::-1], boxes, points))  # as it expects them
        predictor = self._predictor
        try:
            with contained():
                predictor.set_image(bgr)
                masks, _ = predictor.inference_features(
                    predictor.features, rgb.shape[:2], bboxes=boxes, points=points
                )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ModelError(
                "out of memory while segmenting an image; use a smaller labels.segmenter, such as "
                "mobile_sam.pt, or another detector.device"
            ) from error
        return np.asarray(masks.cpu().numpy(), dtype=np.bool_)


def _load(checkpoint: Path | str) -> Any:
    """Return the model of a checkpoint.

    Raises:
        ModelError: There is none, or it is not what its name says.
    """
    import torch
    from ultralytics.models.sam.build import build_sam, sam_model_map

    kind = next((name for name in sam_model_map if str(checkpoint).endswith(name)), None)
    if kind is None:
        raise ModelError(
            f"{checkpoint} is not the name of a segmenter, which must end with that of its model: "
            f"{', '.join(sam_model_map)}"
        )
    path = find_checkpoint(checkpoint)
    if not path.is_file():
        raise ModelError(f"no segmenter at {path}; give a .pt file, or a published one such as sam2.1_t.pt")
    with temporary_folder("sam") as folder:
        # A path that cannot mislead Ultralytics: it takes a folder called sam2.1 for a part of the name, and
        # looks on the network for a file whose path has a quotation mark in it.
        link = folder / kind
        link.symlink_to(path.resolve())
        try:
            # It unpickles whatever the file holds, so torch's weights-only reader must accept that first.
            torch.load(link, map_location="cpu", weights_only=True)
            return build_sam(link)
        except Exception as error:  # unpickling another kind of file can raise anything
            raise ModelError(
                f"{path} does not hold the weights of the model that its name stands for, or is damaged "
                f"({first_line(error)})"
            ) from error
