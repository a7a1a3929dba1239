"""The GPU process: fetch jobs, run the networks, store results."""
