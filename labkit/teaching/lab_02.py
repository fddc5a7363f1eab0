"""Exercises of lab 02: blocks and what they waste, who is let in, and what a cache of so many bytes holds."""

from labkit.teaching.exercises import FunctionExercise, Misconception, ValueExercise, by_id
from labkit.teaching.lab_02_budget import KV_TOKENS, TWO_ENGINES
from labkit.teaching.lab_02_budget import facts as facts  # the notebook takes it from here
from labkit.teaching.lab_02_choices import BROKEN_START, MAX_CONCURRENCY, PREEMPTION_SIGNS


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
