"""Image networks of timm, written again with its names of weights; timm itself is not needed."""
