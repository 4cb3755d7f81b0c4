"""Loss and bits per byte on held-out text, sampled text, and the routing probe."""
