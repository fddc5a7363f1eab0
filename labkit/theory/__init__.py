"""Models of the KV cache, of queues and of placement: pure arithmetic, no engine."""
