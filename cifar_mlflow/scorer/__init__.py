"""The code that travels inside every registered model; it imports neither torch nor the rest of our code."""
