"""The training stages: one loop, one module per kind of parameter."""
