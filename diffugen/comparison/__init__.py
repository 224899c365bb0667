"""Two label sets of one image compared: matched by mask IoU, contradictions ranked, quality measured."""
