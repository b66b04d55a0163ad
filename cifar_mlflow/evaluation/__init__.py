"""Evaluate a trained model: predictions, metrics, calibration, figures."""
