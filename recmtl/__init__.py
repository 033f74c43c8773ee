"""Multi-task recommender training on TorchRec."""

__version__ = "0.1.0"
