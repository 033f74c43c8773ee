"""Uses a trained model: no labels, no optimiser, no process group, and of an export no TorchRec either."""
