"""A controlled world in which objects come with contexts, and what each part of the method is worth in it."""
