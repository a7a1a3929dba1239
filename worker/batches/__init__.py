"""Batches: many photos in one zip, fed to the queue item by item."""
