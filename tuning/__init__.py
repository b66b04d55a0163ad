"""Hyperparameter search with Optuna, tracked in MLflow."""
