"""The parts of ``python -m benchmarks.serve``: figures, load, and what is loaded."""
