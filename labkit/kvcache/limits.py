"""What a lab checks before an engine starts: lengths that it would refuse or cut, caches that hold no request."""

from labkit.errors import UsageError
from labkit.kvcache.arithmetic import blocks_for_tokens, require_positive


def check_lengths(*, prompt_tokens: int, output_tokens: int, max_model_len: int, positions: int | None = None) -> None:
    """UsageError where prompt and answer are longer than `max_model_len`: vLLM would cut the answer without a word.

    Also where `max_model_len` is longer than the model's `positions`, if given: vLLM refuses that.
    """
    for name, value in (("prompt_tokens", prompt_tokens), ("output_tokens", output_tokens)):
        require_positive(name, value)
    if positions is not None and max_model_len > positions:
        raise UsageError(
            f"max_model_len is {max_model_len:,}; the model was made for {positions:,} positions",
            remedy=f"give max_model_len at most {positions:,}",
        )
    if prompt_tokens + output_tokens > require_positive("max_model_len", max_model_len):
        raise UsageError(
            f"a prompt of {prompt_tokens:,} and an answer of {output_tokens:,} tokens are longer than max_model_len, "
            f"{max_model_len:,}",
            remedy=f"ask for at most {max(0, max_model_len - prompt_tokens):,} output tokens, shorten the prompt, or "
            "raise max_model_len",
        )


def check_blocks(blocks: int, *, block_size: int, max_model_len: int) -> None:
    """UsageError where `blocks`, less the one that vLLM keeps, hold no sequence of `max_model_len` tokens."""
    needed = blocks_for_tokens(require_positive("max_model_len", max_model_len), block_size=block_size) + 1
    if require_positive("blocks", blocks) < needed:
        raise UsageError(
            f"{blocks:,} blocks of {block_size} hold no request of max_model_len {max_model_len:,}: it takes "
            f"{needed - 1:,}, and vLLM keeps one block for itself",
            remedy=f"give at least {needed:,} blocks, or lower max_model_len to {max(0, blocks - 1) * block_size:,}",
        )


def check_contention(*, requests: int, prompt_tokens: int, output_tokens: int, blocks: int, block_size: int) -> None:
    """UsageError where the requests never want more blocks than there are, so that nothing can be preempted."""
    each = blocks_for_tokens(prompt_tokens + output_tokens - 1, block_size=block_size)
    if require_positive("requests", requests) * each <= blocks - 1:
        raise UsageError(
            f"{requests} requests of {each} blocks fit into {blocks - 1} at once: nothing would be preempted",
            remedy=f"ask with more than {(blocks - 1) // each} requests, or give at most {requests * each} blocks",
        )


def check_several_blocks(*, block_size: int, max_model_len: int) -> None:
    """UsageError where the longest request is not longer than one block: there would be nothing to page."""
    if max_model_len <= require_positive("block_size", block_size):
        raise UsageError(
            f"max_model_len is {max_model_len:,}, no more than one block of {block_size}",
            remedy=f"give max_model_len at least {2 * block_size:,}, or smaller blocks",
        )
