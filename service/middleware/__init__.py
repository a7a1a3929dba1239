"""ASGI middleware: keys, rate limits, body limits, request logs."""
