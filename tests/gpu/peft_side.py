"""The rival on the same card: torch + transformers + PEFT, LoRA r=16 on all linear maps of a Llama shape with random weights, AdamW, bf16 as
the Trainer has it (autocast, adapters in f32).
    peft_side.py SHAPE.json STEPS [--tokens 4096] [--length 1024] [--device cuda|cpu]
A step has --tokens tokens in rows of --length, none of them padding. Prints one JSON object, or {"missing": ...} where it cannot run.
--device cpu is there to try this program; its figures mean nothing."""
import argparse
import json
import resource
import statistics
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("shape", type=json.loads)
parser.add_argument("steps", type=int)
parser.add_argument("--tokens", type=int, default=4096)
parser.add_argument("--length", type=int, default=1024)
parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
chosen = parser.parse_args()
on_card = chosen.device == "cuda"

try:
    import peft
    import torch
    import transformers
    if on_card and not torch.cuda.is_available():
        raise ImportError("torch sees no CUDA device")
except ImportError as error:
    print(json.dumps({"missing": str(error)}))
    sys.exit(0)

config = transformers.LlamaConfig(**chosen.shape, max_position_embeddings=8192, attn_implementation="sdpa")


def wait():
    if on_card:
        torch.cuda.synchronize()


def memory():
    """What torch took at most, and what the driver says is in use of the card: torch keeps what it took."""
    if not on_card:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        return peak, peak
    free, total = torch.cuda.mem_get_info()
    return torch.cuda.max_memory_reserved(), total - free


def make_model(checkpointing):
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(chosen.device):
            model = transformers.LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def train(checkpointing):
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    model = make_model(checkpointing)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    ids = torch.randint(0, chosen.shape["vocab_size"], (chosen.tokens // chosen.length, chosen.length), device=chosen.device)
    seconds = []
    for _ in range(chosen.steps):
        wait()
        began = time.perf_counter()
        with torch.autocast(chosen.device, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        seconds.append(time.perf_counter() - began)
    peak, driver = memory()
    return {"tokens_s": ids.numel() / statistics.median(seconds[2:]), "peak_bytes": peak, "driver_bytes": driver, "loss": loss.item(),
            "checkpointing": checkpointing}


results = []
for checkpointing in (False, True):
    try:
        results.append(train(checkpointing))
    except torch.OutOfMemoryError:
        results.append({"out_of_memory": True, "checkpointing": checkpointing})
    if on_card:
        torch.cuda.empty_cache()
print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__, "runs": results}))
