"""Batches behind the HTTP routes."""
