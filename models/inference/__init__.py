"""From an image and labels to a mask."""
