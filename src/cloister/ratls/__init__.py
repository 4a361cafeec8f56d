"""TLS whose certificates carry quotes: making them, and judging a peer by them."""
