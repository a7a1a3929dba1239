"""Jobs behind the HTTP routes."""
