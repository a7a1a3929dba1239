"""Whether a GPU computes what the CPU does, and how fast: one program for a new GPU host."""
