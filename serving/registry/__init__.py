"""The model registry: register the network of a run, promote a version, load a model."""
