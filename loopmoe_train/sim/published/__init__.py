"""Published measurements of training runs, and how near the simulator comes to them."""
