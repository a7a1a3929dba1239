"""``semples serve``: queue, worker, janitor and API in one process tree."""
