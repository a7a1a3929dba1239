"""The service: HTTP in, jobs out. Imports nothing heavy, and never torch."""
