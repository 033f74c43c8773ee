"""What TorchX must know of the places that jobs run in."""
