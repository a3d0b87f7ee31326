"""Image health and drift: pictures and scores at commissioning, and what has become of them."""
