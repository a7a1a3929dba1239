"""The worker: one process per device, one model, jobs from Redis. Imports nothing heavy."""
