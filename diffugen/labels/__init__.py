"""Turn heat maps into instances: combine, threshold, clean, separate, refine, and score them.

`label` labels an image from its heat maps. `combine`, `label_combined` and `rescore` are its parts, for
callers that change only some of the settings. `refined` sharpens the masks of any labels. `shapes` converts
and compares masks, `pictures` draws images with their labels, and `sheets` shows a run on one sheet.

The home of cv2 and pycocotools. Nothing here knows prompts, models, or where else labels can come from.
"""

from diffugen.labels.heatmaps import combine
from diffugen.labels.label import label, label_combined
from diffugen.labels.refine import refined
from diffugen.labels.score import rescore

__all__ = ["combine", "label", "label_combined", "refined", "rescore"]
