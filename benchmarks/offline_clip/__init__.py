"""Build and measure the offline CLIP: a real, small CLIP made of packages alone."""
