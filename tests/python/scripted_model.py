"""A gpt-oss checkpoint that gives the answers it is told to: random weights, and an unembedding solved for them.

The hidden states that the oracle finds after each token of the conversation are independent vectors, so there is
an unembedding that maps each to the token to come. What a trained model does in a chat (analysis, then the final
channel, then <|return|>) is thereby tested to the letter, with every layer at work.
"""

import shutil
from pathlib import Path

import numpy as np
from checkpoints import config, oracle, write_hf

CONFIG = config(2048, 128, 32, 2, 4, 2, 16, 4, 2, 64, max_positions=4096)
DATE = "2025-06-28"
LOGIT = 20.0  # of the token to come; that of every other is about 0


def scripted_model(folder: Path, demo: Path, turns: list[tuple[str, str, str]]) -> Path:
    """A folder whose float32 model answers `turns`: (question, answer as harmony text, its final channel)."""
    import trivium

    weights = oracle.random_weights(CONFIG, seed=11)
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "generation_config.json"):
        shutil.copy(demo / name, folder / name)
    write_hf(folder, weights, CONFIG, eos_token_id=2041)
    bare = trivium.load(folder, device="cpu", precision="float32")

    hidden, following, messages = [], [], []
    for question, answer, final in turns:
        messages.append({"role": "user", "content": question})
        prompt = bare._engine.chat_request(_rendered(messages), "medium", DATE).prompt
        ids = bare.tokenizer.encode(answer, parse_special=True)
        states = oracle.forward({**weights, "lm_head": np.eye(CONFIG.hidden_size)}, CONFIG, prompt + ids[:-1])
        hidden += list(states[len(prompt) - 1 :])
        following += ids
        messages.append({"role": "assistant", "content": final})

    assert len(hidden) < CONFIG.hidden_size, "more tokens than independent hidden states"
    wanted = np.zeros((len(hidden), CONFIG.vocab_size))
    wanted[np.arange(len(hidden)), following] = LOGIT
    weights["lm_head"] = oracle.round_bf16((np.linalg.pinv(np.array(hidden)) @ wanted).T)
    return write_hf(folder, weights, CONFIG, eos_token_id=2041)


def _rendered(messages: list[dict]) -> list:
    from trivium.models import _harmony_message

    return [_harmony_message(m) for m in messages]
