"""Jobs in Redis and RQ, and everything that talks about them."""
