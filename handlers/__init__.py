"""TorchServe handlers. Each file can be copied by itself: it imports nothing from this folder or labkit."""
