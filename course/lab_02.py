"""Exercises of lab 02: blocks and what they waste, who is let in, and what a cache of so many bytes holds."""

from typing import Any

from course.lab_00 import EXAMPLE as CONFIG_EXAMPLE
from labkit.models import Architecture
from labkit.teaching.exercises import (
    ChoiceExercise,
    Context,
    FunctionExercise,
    Misconception,
    Option,
    ValueExercise,
    by_id,
)

# For tests: lab 00's config, with a cache. The lab passes its own model's, as the engine serves it.
EXAMPLE: dict[str, Any] = {**CONFIG_EXAMPLE, "kv_gib": 1, "block_size": 128}


def facts(served: Architecture, *, kv_gib: float, block_size: int) -> Context:
    """The context for this lab's exercises: the architecture in the type that it is served in, and the cache."""
    numbers = {name: getattr(served, name) for name in EXAMPLE if hasattr(served, name)}
    return {**numbers, "kv_gib": kv_gib, "block_size": block_size}


def kv_tokens(layers: int, kv_heads: int, head_dim: int, dtype_bytes: int, kv_gib: float, block_size: int) -> int:
    bytes_per_block = block_size * 2 * layers * kv_heads * head_dim * dtype_bytes
    blocks = int(kv_gib * 2**30) // bytes_per_block
    return blocks * block_size


def _tokens(gib_bytes: float, per_token: int, block_size: int) -> int:
    return int(gib_bytes // (block_size * per_token)) * block_size


KV_TOKENS = ValueExercise(
    id="02.kv_tokens",
    title="how many tokens a cache holds",
    prompt="""
The config says: {layers} layers, {attention_heads} attention heads, {kv_heads} KV heads of {head_dim} numbers, hidden
size {hidden_size}; numbers are served in {dtype_bytes} bytes. The cache has {kv_gib} GiB, in blocks of {block_size}
tokens. For **how many tokens** is there room in whole blocks?
""",
    starter="kv_tokens = ...  # tokens",
    answer_name="kv_tokens",
    unit="tokens",
    needs=EXAMPLE,
    solution=kv_tokens,
    hints=(
        "Bytes of one token first: a key and a value in each layer, for each KV head.",
        "Then bytes of a block, then whole blocks in the memory, then tokens in these blocks.",
        "A GiB is 2 to the power of 30 bytes.",
    ),
    misconceptions=(
        Misconception(
            "all attention heads instead of the KV heads",
            "This keeps keys and values for every attention head (the hidden size's width). In grouped-query attention"
            " several query heads share one KV head, and only those are kept.",
            (
                lambda layers, attention_heads, head_dim, dtype_bytes, kv_gib, block_size: _tokens(
                    kv_gib * 2**30, 2 * layers * attention_heads * head_dim * dtype_bytes, block_size
                ),
                lambda layers, hidden_size, dtype_bytes, kv_gib, block_size: _tokens(
                    kv_gib * 2**30, 2 * layers * hidden_size * dtype_bytes, block_size
                ),
            ),
        ),
        Misconception(
            "keys without values",
            "This has room for twice the tokens: a token leaves a key and a value, both are kept.",
            (
                lambda layers, kv_heads, head_dim, dtype_bytes, kv_gib, block_size: _tokens(
                    kv_gib * 2**30, layers * kv_heads * head_dim * dtype_bytes, block_size
                ),
            ),
        ),
        Misconception(
            "a partial block counted",
            "Close: the memory divided by a token's bytes. But the memory is cut into whole blocks, and the rest at the"
            " end that makes no block stays unused.",
            (
                lambda layers, kv_heads, head_dim, dtype_bytes, kv_gib: (
                    int(kv_gib * 2**30) // (2 * layers * kv_heads * head_dim * dtype_bytes)
                ),
                lambda layers, kv_heads, head_dim, dtype_bytes, kv_gib: (
                    kv_gib * 2**30 / (2 * layers * kv_heads * head_dim * dtype_bytes)
                ),
            ),
        ),
        Misconception(
            "GB for GiB",
            "This takes a GiB for a thousand million bytes. The log's GiB are powers of two.",
            (
                lambda layers, kv_heads, head_dim, dtype_bytes, kv_gib, block_size: _tokens(
                    kv_gib * 1e9, 2 * layers * kv_heads * head_dim * dtype_bytes, block_size
                ),
            ),
        ),
        Misconception(
            "one layer only",
            "This stores keys and values of a single layer. Each layer has its own.",
            (
                lambda kv_heads, head_dim, dtype_bytes, kv_gib, block_size: _tokens(
                    kv_gib * 2**30, 2 * kv_heads * head_dim * dtype_bytes, block_size
                ),
            ),
        ),
        Misconception(
            "blocks for tokens",
            "This is the number of blocks. Each holds several tokens.",
            (
                lambda layers, kv_heads, head_dim, dtype_bytes, kv_gib, block_size: (
                    int(kv_gib * 2**30) // (block_size * 2 * layers * kv_heads * head_dim * dtype_bytes)
                ),
            ),
        ),
    ),
)


def kv_gib_each(total_gib: float, utilization: float, weights_gib: float, other_gib: float) -> float:
    return utilization * total_gib - weights_gib - other_gib


TWO_ENGINES = ValueExercise(
    id="02.two_engines",
    title="two engines on one GPU",
    prompt="""
A GPU has {total_gib} GiB. Two engines with the same model are started on it, one after the other, each with
`--gpu-memory-utilization {utilization}`. The weights take {weights_gib} GiB; activations, context and CUDA graphs take
{other_gib} GiB in each engine. How many GiB does **each** engine have for its KV cache?
""",
    starter="kv_gib_each = ...  # GiB",
    answer_name="kv_gib_each",
    unit="GiB",
    data={"total_gib": 40.0, "utilization": 0.48, "weights_gib": 9.0, "other_gib": 1.5},
    solution=kv_gib_each,
    tolerance=0.005,
    hints=(
        "The share is one of the GPU's whole memory, for everything that the engine takes.",
        "Two processes share nothing: each loads weights of its own.",
    ),
    misconceptions=(
        Misconception(
            "a share of what is left",
            "This applies the share to what the other things leave. It is a share of the whole GPU, and weights and"
            " activations come out of it.",
            (
                lambda total_gib, utilization, weights_gib, other_gib: (
                    utilization * (total_gib - weights_gib - other_gib)
                ),
                lambda total_gib, utilization, weights_gib, other_gib: (
                    utilization * (total_gib - 2 * weights_gib - 2 * other_gib)
                ),
                lambda total_gib, utilization, weights_gib, other_gib: (
                    utilization * (1 - utilization) * total_gib - weights_gib - other_gib
                ),
            ),
        ),
        Misconception(
            "the weights shared",
            "This counts the weights once for both engines. Two processes have two copies.",
            (
                lambda total_gib, utilization, weights_gib, other_gib: (
                    utilization * total_gib - weights_gib / 2 - other_gib
                ),
                lambda total_gib, utilization, weights_gib, other_gib: (
                    (2 * utilization * total_gib - weights_gib - 2 * other_gib) / 2
                ),
            ),
        ),
        Misconception(
            "both together",
            "This is the cache of both engines together. Neither can use the other's.",
            (
                lambda total_gib, utilization, weights_gib, other_gib: (
                    2 * (utilization * total_gib - weights_gib - other_gib)
                ),
            ),
        ),
        Misconception(
            "the cache alone",
            "This gives the whole share to the cache. It is for everything: weights and activations first, the cache"
            " gets the rest.",
            (lambda total_gib, utilization: utilization * total_gib,),
        ),
    ),
)


# --- lab 02 choices ---


MAX_CONCURRENCY = ChoiceExercise(
    id="02.max_concurrency",
    title="Maximum concurrency for 2,048 tokens per request: 22.75x",
    prompt="""
An engine says this when it starts, with `--max-num-seqs 64`. Which of these follow? (Asked in public as vLLM #8031.)

A: if every request were 2,048 tokens long, 22 would fit at once and the 23rd would have to wait or be preempted.
B: the engine never runs more than 22 requests at once.
C: 60 requests of 300 tokens each can run at once.
D: the engine is 22.75 times as fast as with one request.
E: with `--max-model-len 1024` and the same memory the number would be twice as large.
F: memory for 22 requests of 2,048 tokens is set aside, whether they come or not.
""",
    starter="follows = None  # letters, such as \"BD\"",
    answer_name="follows",
    hints=(
        "It is one division: tokens that fit, over the longest request. Which decisions of the engine use it?",
        "A request that is admitted gets blocks for the tokens that it has, not for the ones that it may have.",
    ),
    options=(
        Option("A", "the worst case, all requests of full length", True, "the worst case missed",
               "One option that applies is missing: the number is just this worst case, a division of two figures."),
        Option("B", "a limit", False, "taken for a limit",
               "Nothing in the engine compares with this number. Shorter requests take fewer blocks, and more of them"
               " run, up to max_num_seqs."),
        Option("C", "sixty short ones", True, "short requests missed",
               "One option that applies is missing: add up the tokens of the short requests and compare with the"
               " cache's."),
        Option("D", "a speed", False, "taken for a speed",
               "It is about memory. How fast a batch is depends on how the processor computes it; lab 01 measured it."),
        Option("E", "inverse to the length", True, "the divisor forgotten",
               "One option that applies is missing: the longest request is the divisor."),
        Option("F", "a reservation", False, "taken for a reservation",
               "The cache as a whole is taken when the engine starts, but none of it belongs to a request before the"
               " request comes; that is what paging is for."),
    ),
)  # fmt: skip

PREEMPTION_SIGNS = ChoiceExercise(
    id="02.preemption_signs",
    title="is it preempting?",
    prompt="""
Users of a vLLM 0.32 server see answers that stop for seconds and then go on. You suspect preemption (vLLM #18115).
Which of these would **show** it?

A: a rise of the counter `vllm:num_preemptions_total` at `/metrics`.
B: a warning about a sequence group in the server's log.
C: no such warning in the log, which rules it out.
D: running requests fall while others wait, with KV-cache usage near 100%.
E: answers whose text is cut off, or has a hole.
F: a histogram `vllm:request_num_preemptions` that has requests above zero.
""",
    starter="shows = None  # letters",
    answer_name="shows",
    hints=(
        "Look at what this lab's own run left behind: counter, log, text.",
        "A preempted request is computed again from its beginning, and its tokens stay the same.",
    ),
    options=(
        Option("A", "the counter", True, "the counter missed",
               "One sign is missing: the engine counts each preempted request when it comes back."),
        Option("B", "the old warning", False, "the old warning expected",
               "This text was in earlier versions. Today's source does not contain it, however often it preempts."),
        Option("C", "silence as proof", False, "silence taken for proof",
               "The log of this lab's run was silent, and requests were preempted all the same."),
        Option("D", "the queue with a full cache", True, "the queue missed",
               "One sign is missing: what else makes running requests fewer while others wait and no block is free?"),
        Option("E", "damaged text", False, "damage expected",
               "Preemption costs time, not text: the request goes on where it stopped, after its tokens are computed"
               " anew."),
        Option("F", "the histogram of requests", True, "the histogram missed",
               "One sign is missing: finished requests are also counted by how often they were preempted."),
    ),
)  # fmt: skip

BROKEN_START = ChoiceExercise(
    id="02.broken_start",
    title="this configuration is broken: why, and what helps?",
    prompt="""
A user's log (public, vLLM #10517; a version of 2024, which says the same in other words): Llama-3.1-8B in 16 bits on a
GPU with 23.58 GiB, gpu_memory_utilization 0.90, blocks of 16 tokens, 131,072 bytes of KV cache a token.

    Loading model weights took 14.9888 GB
    total_gpu_memory=23.58GiB  peak_torch_memory=17.98GiB  kv_cache_size=2.89GiB
    # GPU blocks: 1478
    The model's max seq len (29000) is larger than the maximum number of tokens that can be stored in KV cache (23648).

Which of these, **alone**, let it start?

A: `--max-model-len 23000`
B: `--max-num-seqs 1`, so that only one request is there at a time
C: `--gpu-memory-utilization 0.95`
D: a KV cache in 8 bits, `--kv-cache-dtype fp8`, if the GPU can
E: `--block-size 32`, so that there are half as many blocks to manage
F: `--enable-prefix-caching`
""",
    starter="starts = None  # letters",
    answer_name="starts",
    hints=(
        "The check at start-up compares two figures: bytes for one request of full length, and bytes of the cache.",
        "0.05 of 23.58 GiB is how many tokens, at 131,072 bytes each? And how many are missing?",
        "Other requests play no part in that check.",
    ),
    options=(
        Option("A", "a shorter maximum", True, "a shorter maximum missed",
               "One remedy is missing: compare the maximum length with what the cache holds."),
        Option("B", "one request at a time", False, "fewer requests for a shorter one",
               "The check is about a single request of full length. Fewer of them make none of them shorter."),
        Option("C", "a larger share", True, "a larger share missed",
               "One remedy is missing: work out what a twentieth of this GPU holds, in tokens."),
        Option("D", "half the bytes a number", True, "fewer bytes missed",
               "One remedy is missing: what happens to the tokens in a cache when each takes half the bytes?"),
        Option("E", "other blocks", False, "blocks of another size for more memory",
               "Twice as large and half as many: the same bytes. The block's size decides what is wasted, not what"
               " there is."),
        Option("F", "prefix caching", False, "sharing counted at start-up",
               "A prefix can be shared by requests that have it in common; a single long request shares with nobody."),
    ),
)  # fmt: skip


# --- lab 02 ---


# GONE  # the notebook takes it from here


def blocks_worked(prompt_tokens: int = 40, output_tokens: int = 30, block_size: int = 16) -> int:
    stored = prompt_tokens + output_tokens - 1  # the last token is never fed back: it needs no place
    return -(-stored // block_size)  # 69 tokens: four full blocks, and a fifth for the last five


def empty_slots(prompt_tokens: int, output_tokens: int, block_size: int) -> int:
    stored = prompt_tokens + output_tokens - 1
    blocks = -(-stored // block_size)
    return blocks * block_size - stored


EMPTY_SLOTS = ValueExercise(
    id="02.empty_slots",
    title="what a finished sequence wasted",
    prompt="""
A request has a prompt of {prompt_tokens} tokens and is about to end with output token number {output_tokens}. Blocks
have {block_size} tokens each. How many **token slots that it was given are still empty**?
""",
    starter="empty_slots = ...  # token slots",
    answer_name="empty_slots",
    unit="token slots",
    worked=blocks_worked,
    data={"prompt_tokens": 70, "output_tokens": 41, "block_size": 32},
    solution=empty_slots,
    hints=(
        "Which tokens have a key and a value? A token gets them in the step that reads it.",
        "The last token was written in the last step. No step reads it any more.",
        "Blocks are whole: round up, then subtract what is stored.",
    ),
    misconceptions=(
        Misconception(
            "the last token counted",
            "This counts a place for the last output token, too. Keys and values are stored when a token is read, and"
            " the last one is never read.",
            (lambda prompt_tokens, output_tokens, block_size: -(prompt_tokens + output_tokens) % block_size,),
        ),
        Misconception(
            "rounded down",
            "These tokens do not fit into whole blocks rounded down: they are the ones in the last block, which is"
            " given as well. What is asked is the rest of that block.",
            (lambda prompt_tokens, output_tokens, block_size: (prompt_tokens + output_tokens - 1) % block_size,),
        ),
        Misconception(
            "prompt and answer in blocks of their own",
            "A sequence is one run of tokens: the answer goes on in the block in which the prompt ended.",
            (
                lambda prompt_tokens, output_tokens, block_size: (
                    -prompt_tokens % block_size + -(output_tokens - 1) % block_size
                ),
                lambda prompt_tokens, output_tokens, block_size: (
                    -prompt_tokens % block_size + -output_tokens % block_size
                ),
            ),
        ),
        Misconception(
            "half a block, as on average",
            "Half a block is the average over many lengths. These lengths are known: count.",
            (lambda block_size: block_size // 2, lambda block_size: (block_size - 1) / 2),
        ),
    ),
)


def waste_share(stored_tokens: list[int], block_size: int) -> float:
    given = sum(-(-tokens // block_size) * block_size for tokens in stored_tokens)
    return 1 - sum(stored_tokens) / given


WASTE_SHARE = FunctionExercise(
    id="02.waste_share",
    title="the share of the given memory that is empty",
    prompt="""
`stored_tokens` says how many tokens each running sequence has stored, and every sequence has just as many blocks of
`block_size` tokens as it needs. Fill in the blanks: the **share of the memory given to sequences that is empty**.
""",
    starter=(
        "def waste_share(stored_tokens, block_size):\n"
        "    given = sum(... * block_size for tokens in stored_tokens)\n"
        "    return 1 - ... / given"
    ),
    answer_name="waste_share",
    unit="share",
    solution=waste_share,
    cases=(([5, 32, 33, 100], 32), ([16], 16), ([1, 1, 1], 128), ([250, 17, 64, 90, 31], 16)),
    hints=(
        "How many blocks does a sequence of `tokens` tokens have? Rounding up: `-(-a // b)`.",
        "The share is over what was given, all sequences together; not the mean of each one's share.",
    ),
    misconceptions=(
        Misconception(
            "a spare block for a full one",
            "A sequence that fills its blocks exactly has no other: the next block is given when a token needs it.",
            (lambda tokens, size: 1 - sum(tokens) / sum((each // size + 1) * size for each in tokens),),
        ),
        Misconception(
            "each sequence's share, averaged",
            "This is the mean of the sequences' own shares. A short one counts in it like a long one, but the memory"
            " does not.",
            (lambda tokens, size: sum(1 - each / (-(-each // size) * size) for each in tokens) / len(tokens),),
        ),
        Misconception(
            "one block shared by all",
            "The tokens of all sequences are taken together here. Each sequence has blocks of its own, and so a last"
            " block of its own.",
            (lambda tokens, size: 1 - sum(tokens) / (-(-sum(tokens) // size) * size),),
        ),
        Misconception(
            "empty over stored",
            "This divides by what is stored. The question is what part of the given memory is empty.",
            (lambda tokens, size: (sum(-(-each // size) * size for each in tokens) - sum(tokens)) / sum(tokens),),
        ),
        Misconception(
            "the filled share",
            "This is the share that is filled. The empty one is the rest of it.",
            (lambda tokens, size: sum(tokens) / sum(-(-each // size) * size for each in tokens),),
        ),
    ),
)


def admit(waiting: list[tuple[int, int]], free_blocks: int, running: int, max_num_seqs: int, block_size: int) -> int:
    admitted = 0
    for prompt_tokens, _max_tokens in waiting:
        needed = -(-prompt_tokens // block_size)
        if running + admitted == max_num_seqs or needed > free_blocks:
            break
        free_blocks -= needed
        admitted += 1
    return admitted


ADMIT = FunctionExercise(
    id="02.admit",
    title="your own scheduler: who is let in",
    prompt="""
Write the engine's rule of admission. `waiting` holds (prompt tokens, max_tokens) of each waiting request, the first one
first; `free_blocks` are free, `running` requests run already and at most `max_num_seqs` may. A request is let in when
the blocks for its **prompt** are free. Nobody overtakes. Return **how many are let in** now.
""",
    starter="def admit(waiting, free_blocks, running, max_num_seqs, block_size): ...  # your code",
    answer_name="admit",
    unit="requests",
    solution=admit,
    cases=(
        ([(56, 48)] * 6, 15, 0, 8, 32),
        ([(40, 200), (300, 10), (10, 10)], 8, 0, 8, 32),
        ([(16, 16)] * 9, 100, 2, 6, 16),
        ([(33, 1), (33, 1), (64, 1)], 6, 0, 8, 32),
        ([(500, 12)], 3, 0, 4, 128),
        ([(40, 20), (24, 40)], 2, 1, 8, 32),
        ([], 5, 0, 4, 16),
    ),
    hints=(
        "Go through the queue from its head, and stop at the first one that does not fit.",
        "Each one let in takes its blocks away from those behind it.",
        "What its answer will need is not reserved: that is the point of paging, and where preemption comes from.",
    ),
    misconceptions=(
        Misconception(
            "the answer reserved",
            "This keeps room for the whole answer as well. Then nothing would ever be preempted, and far fewer would"
            " run: it is what contiguous reservation does.",
            (
                lambda waiting, free, running, most, size: admit(
                    [(prompt + out, 0) for prompt, out in waiting], free, running, most, size
                ),
                lambda waiting, free, running, most, size: admit(
                    [(prompt + out - 1, 0) for prompt, out in waiting], free, running, most, size
                ),
            ),
        ),
        Misconception(
            "overtaking",
            "Here a small request behind a large one is let in before it. It would fill the memory, but the large one"
            " might then wait for ever.",
            (lambda waiting, free, running, most, size: _overtaking(waiting, free, running, most, size),),
        ),
        Misconception(
            "tokens taken for blocks",
            "Free blocks are counted in whole blocks: two prompts cannot share one, however much of it is empty.",
            (lambda waiting, free, running, most, size: _by_tokens(waiting, free * size, running, most),),
        ),
        Misconception(
            "blocks rounded down",
            "A prompt that is no multiple of the block's size needs one block more, for its last tokens.",
            (
                lambda waiting, free, running, most, size: admit(
                    [(prompt // size * size, 0) for prompt, _ in waiting], free, running, most, size
                ),
            ),
        ),
        Misconception(
            "the running ones forgotten",
            "max_num_seqs bounds all that run, with those that run already.",
            (lambda waiting, free, _running, most, size: admit(waiting, free, 0, most, size),),
        ),
    ),
)


def _overtaking(waiting: list[tuple[int, int]], free: int, running: int, most: int, size: int) -> int:
    admitted = 0
    for prompt, _ in waiting:
        needed = -(-prompt // size)
        if running + admitted < most and needed <= free:
            free -= needed
            admitted += 1
    return admitted


def _by_tokens(waiting: list[tuple[int, int]], free_tokens: int, running: int, most: int) -> int:
    admitted = 0
    for prompt, _ in waiting:
        if running + admitted == most or prompt > free_tokens:
            break
        free_tokens -= prompt
        admitted += 1
    return admitted


EXERCISES = by_id(
    [EMPTY_SLOTS, WASTE_SHARE, KV_TOKENS, MAX_CONCURRENCY, ADMIT, PREEMPTION_SIGNS, BROKEN_START, TWO_ENGINES]
)
