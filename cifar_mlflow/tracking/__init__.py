"""How a run is written to MLflow: the run itself, retries, what it holds, and its local state."""
