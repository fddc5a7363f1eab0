"""Run real servers as child processes that always end with their parent (`process`): vLLM, Ray Serve, TorchServe."""
