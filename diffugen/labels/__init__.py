"""Heat maps to instances: combine, threshold, clean, separate, score. The home of cv2 and pycocotools.

Knows no prompt grammar, no image pixels and no file: heat maps come in as arrays and instances go out as
records. The entry point is `diffugen.labels.label.label`.
"""
