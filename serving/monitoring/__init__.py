"""What is known of the answers afterwards: a log, metrics, drift."""
