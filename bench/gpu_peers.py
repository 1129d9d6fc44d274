"""What bench/gpu.py measures beside Trivium: every peer that is installed, each asked for the same tokens.

A peer has `vocab` and run(prompts, tokens) -> seconds; vLLM is measured where it is importable.
"""

import importlib.util
import time


class Transformers:
    def __init__(self, folder: str, device: str):
        import torch
        from transformers import AutoModelForCausalLM, Mxfp4Config

        self.torch, self.device = torch, device
        self.model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16,
            device_map=device,
            quantization_config=Mxfp4Config(dequantize=True),
        ).eval()
        self.vocab = self.model.config.vocab_size

    def run(self, prompts: list[list[int]], tokens: int) -> float:
        ids = self.torch.tensor(prompts, device=self.device)
        start = time.perf_counter()
        with self.torch.no_grad():
            self.model.generate(
                ids,
                attention_mask=self.torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        if self.device.startswith("cuda"):
            self.torch.cuda.synchronize()
        return time.perf_counter() - start


class Vllm:
    """Keeps the experts MXFP4, as we do. Its cache of prompt prefixes is off: repeated prompts are computed."""

    def __init__(self, folder: str, device: str):
        from vllm import LLM, SamplingParams

        self.sampling = SamplingParams
        self.model = LLM(
            model=folder,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=4096,
            gpu_memory_utilization=0.4,  # Trivium's model and cache stay where they are
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self.vocab = self.model.llm_engine.model_config.hf_config.vocab_size

    def run(self, prompts: list[list[int]], tokens: int) -> float:
        params = self.sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        self.model.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return time.perf_counter() - start


# name: (class, the largest batch worth its time)
PEERS = {"transformers": (Transformers, 32), "vllm": (Vllm, 256)}


def installed_peers() -> dict:
    return {name: peer for name, peer in PEERS.items() if importlib.util.find_spec(name)}
