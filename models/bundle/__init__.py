"""Bundles: what serving loads."""
