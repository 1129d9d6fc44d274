"""A position's logits and a request's tokens do not depend on what else is computed beside them.

Logits are compared bit for bit: logits() cuts its ids into steps of 256, so ids of 257, 258, ... compute the same
position in a decode step of one token and in prefill steps of every size. Tokens are compared for batches,
orders, thread counts and prefill steps, greedy and sampled. Everything on every CPU level in both precisions.
"""

import json

import checkpoints as cp
import numpy as np
import pytest
import trivium
from checkpoints import LEVELS, oracle
from getp_runner import getp, read_jsonl
from trivium._arguments import parse_options

STEP = 256  # ids in one step of logits()
# Head dim 24 and 3 heads a group: tails in every product. Window 16 = one page of the cache.
CFG = cp.config(131, 96, 64, 2, 6, 2, 24, 8, 3, 16, max_positions=1024)
PRECISIONS = ("float32", "bfloat16")
PROMPT_LENGTHS = (1, 15, 16, 17, 2, 32, 33, 5, 48, 49, 7, 100, 3, 4, 6, 8)  # around 1, 2 and 3 windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("invariance")
    weights = oracle.random_weights(CFG, 77)
    return {
        "mxfp4": cp.write_format(root / "mxfp4", weights, CFG, "mxfp4"),
        "dense": cp.write_format(root / "dense", weights, CFG, "dense"),
    }


@pytest.fixture(scope="module", params=LEVELS)
def level(request):
    if not cp.level_available(request.param):
        pytest.skip(f"this CPU does not run the level {request.param}")
    return request.param


def prompts(count: int) -> list[list[int]]:
    lengths = [PROMPT_LENGTHS[i % len(PROMPT_LENGTHS)] + i // len(PROMPT_LENGTHS) for i in range(count)]
    return [cp.random_ids(CFG, length, 300 + i) for i, length in enumerate(lengths)]


def assert_same_rows(results, ids_of):
    """Row p of every result equals row p of the longest."""
    longest = max(results, key=len)
    for rows in results:
        np.testing.assert_array_equal(rows, longest[: len(rows)])
    assert len({row.tobytes() for row in longest}) == len(longest) == ids_of


@pytest.mark.parametrize("layout", ["mxfp4", "dense"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_are_bit_equal_for_any_length_of_step(level, folder, precision, layout):
    """Lengths around the tiles of the products, the pages (16) and 1x, 2x, 3x the window; the last of 257 ids is
    a decode step, the last rows of 258 and 290 come from short prefill steps after a long past."""
    ids = cp.random_ids(CFG, 2 * STEP + 40, 9)
    lengths = [*range(1, 18), 31, 32, 33, 47, 48, 49, 65, STEP, STEP + 1, STEP + 2, STEP + 34, 2 * STEP + 40]
    jobs = [{"path": folder[layout], "precision": precision, "ids": ids[:n]} for n in lengths]
    assert_same_rows(cp.run_jobs(jobs, level), len(ids))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_are_bit_equal_for_any_number_of_threads(level, folder, precision):
    ids = cp.random_ids(CFG, STEP + 44, 10)
    for n in (1, 40, len(ids)):
        job = {"path": folder["mxfp4"], "precision": precision, "ids": ids[:n]}
        one, *others = cp.run_jobs([{**job, "threads": t} for t in (1, 2, 3, 5)], level)
        for other in others:
            np.testing.assert_array_equal(other, one)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tokens_do_not_depend_on_batch_threads_or_order(level, folder, precision):
    """24 tokens after prompts of 1 to 100, greedy and sampled side by side; long prompts prefill beside others."""
    everything = prompts(32)
    sampled = {"temperature": 1.0, "top_p": 0.95}
    options = [{"max_tokens": 24, **(sampled | {"seed": i} if i % 2 else {})} for i in range(32)]
    base = {"path": folder["mxfp4"], "precision": precision, "options": options}
    batches = [{**base, "prompts": everything, "batch_size": b, "threads": 2} for b in (1, 2, 7, 32)]
    threads = [{**base, "prompts": everything, "batch_size": 7, "threads": t} for t in (1, 3)]
    turned = {**base, "prompts": everything[::-1], "options": options[::-1], "batch_size": 32}
    single = [{**base, "prompts": [everything[i]], "options": options[i]} for i in range(4)]
    results = cp.run_jobs([*batches, *threads, turned, *single], level)
    want = results[0]
    assert all(len(tokens) == 24 for tokens in want)
    for got in results[1:6]:
        assert got == want
    assert results[6] == want[::-1]
    assert [tokens for (tokens,) in results[7:]] == want[:4]


def test_tokens_do_not_depend_on_batch_and_threads_at_real_widths(tmp_path):
    """One layer as wide as the published models, whose products have tails and splits that small ones lack."""
    cfg = cp.config(1024, 2880, 2880, 1, 64, 8, 64, 4, 2, 128, max_positions=512)
    path = cp.write_hf(tmp_path / "wide", None, cfg, tensors=cp.random_bytes(cfg))
    starts = [cp.random_ids(cfg, n, n) for n in (3, 17, 40, 150, 5, 1, 9)]
    sampled = {"temperature": 1.0, "top_p": 0.95}
    options = [{"max_tokens": 12, **(sampled | {"seed": i} if i % 2 else {})} for i in range(7)]
    base = {"path": path, "precision": "bfloat16"}
    together = [
        {**base, "prompts": starts, "options": options, "batch_size": 7, "threads": t} for t in (1, 2)
    ]
    alone = [
        {**base, "prompts": [starts[i]], "options": options[i], "batch_size": 1, "threads": 2 - i % 2}
        for i in range(7)
    ]
    one, two, *singles = cp.run_jobs([*together, *alone])
    assert one == two == [tokens for (tokens,) in singles]
    assert len({token for tokens in one for token in tokens}) > 20, "the model should not repeat itself"


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16"])
def test_tokens_do_not_depend_on_the_batch_with_either_cache_type(folder, kv_dtype):
    model = {"path": folder["mxfp4"], "precision": "bfloat16", "kv_dtype": kv_dtype}
    jobs = [
        {**model, "prompts": prompts(9), "batch_size": b, "options": {"max_tokens": 50}} for b in (1, 4, 9)
    ]
    first, *others = cp.run_jobs(jobs)
    assert all(other == first for other in others)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_generated_tokens_are_what_prefill_of_the_whole_text_says(level, folder, precision):
    """Decode steps in a batch against one prefill of prompt and answer, past 3x the window; the last prompt also
    wraps the ring, which holds the window and a step."""
    starts = [*prompts(5), cp.random_ids(CFG, STEP + 34, 1)]
    base = {"path": folder["mxfp4"], "precision": precision}
    (answers,) = cp.run_jobs([{**base, "prompts": starts, "options": {"max_tokens": 90}}], level)
    whole = [{**base, "ids": p + a} for p, a in zip(starts, answers, strict=True)]
    for p, a, logits in zip(starts, answers, cp.run_jobs(whole, level), strict=True):
        assert logits.argmax(1)[len(p) - 1 : -1].tolist() == a


def test_a_sampled_token_depends_on_seed_and_index_only(folder):
    """Each draw recomputed with ops.sample from the logits, the seed and the token's index."""
    model = trivium.load(folder["mxfp4"], device="cpu", precision="float32")
    options = {"temperature": 0.8, "top_p": 0.9, "top_k": 50}
    for seed in (0, 1, 2**63 + 5):
        prompt = cp.random_ids(CFG, 12, seed % 1000)
        out = model.generate(prompt, max_tokens=40, ignore_eos=True, seed=seed, **options).tokens
        rows = model.logits(prompt + out)[len(prompt) - 1 : -1]
        assert trivium.ops.sample(rows, seed=seed, step=list(range(40)), **options) == out
    assert model.generate(prompt, max_tokens=5, ignore_eos=True, seed=0, **options).tokens != out[:5]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_getp_does_not_depend_on_the_prefill_steps(folder, tmp_path, precision):
    """Prompts of up to 100 ids cut into steps of 1, 3, 16, 17 and 256 tokens beside decoding requests."""
    source = tmp_path / "in.jsonl"
    rows = [
        {"prompt": p, "max_tokens": 40, "temperature": i % 2, "seed": i} for i, p in enumerate(prompts(14))
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outputs = []
    for step, batch in ((256, 14), (1, 3), (3, 14), (16, 5), (17, 1)):
        out = tmp_path / f"{step}.jsonl"
        getp(
            "getp", folder["mxfp4"], "-i", source, "-o", out, "-q", "--precision", precision, "--ignore-eos",
            "--step-tokens", step, "-b", batch,
        )  # fmt: skip
        outputs.append([row["tokens"] for row in read_jsonl(out)])
    assert all(len(tokens) == 40 for tokens in outputs[0])
    assert all(output == outputs[0] for output in outputs[1:])


def test_requests_that_end_at_different_times_do_not_disturb_the_others(folder):
    """Slots are refilled while others decode; a long prompt arrives in between."""
    model = trivium.load(folder["mxfp4"], device="cpu", precision="float32", batch_size=3)
    starts = prompts(12)
    alone = [model.generate(p, max_tokens=50, ignore_eos=True).tokens for p in starts]
    stop = max(set(alone[0]), key=alone[0].count)
    cut = [a[: a.index(stop) + 1] if stop in a else a for a in alone]
    requests = [model._request(p, parse_options({"max_tokens": 50})) for p in starts]
    for request in requests:
        request.stop_ids = [stop]
    assert [r.tokens for r in model._engine.generate(requests)] == cut
    assert len({len(c) for c in cut}) > 1
