"""From a champion to a served model."""
