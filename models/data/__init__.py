"""Samples, classes and data sets."""
