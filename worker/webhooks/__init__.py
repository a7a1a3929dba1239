"""Signed HTTP callbacks at the end of a job."""
