"""Image classification on CIFAR-10, tracked with MLflow: data, models, training, evaluation, export."""
