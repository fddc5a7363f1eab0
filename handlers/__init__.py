"""TorchServe handlers. Each file stands alone, so that it can be copied: it imports nothing from here or labkit."""
