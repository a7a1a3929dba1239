"""SemPLeS as a library: from image-level labels to pixel masks. Knows tensors and files, never HTTP or Redis."""
