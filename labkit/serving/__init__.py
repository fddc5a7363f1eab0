"""Run vLLM, Ray Serve and TorchServe as child processes that end with their parent, and read their logs."""
