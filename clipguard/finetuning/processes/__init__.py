"""Several processes that train one model: what started them, how they meet, and what they add up."""
