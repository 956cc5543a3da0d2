"""The rival on the same card: torch + transformers + PEFT, LoRA r=16 on all linear maps of a Llama shape with random weights, 4096 packed
tokens a step, AdamW, bf16.   peft_side.py SHAPE.json STEPS   prints one JSON object, or {"missing": ...} where it cannot run."""
import json
import statistics
import sys
import time

try:
    import peft
    import torch
    import transformers
    if not torch.cuda.is_available():
        raise ImportError("torch sees no CUDA device")
except ImportError as error:
    print(json.dumps({"missing": str(error)}))
    sys.exit(0)

shape, steps = json.loads(sys.argv[1]), int(sys.argv[2])
config = transformers.LlamaConfig(**shape, max_position_embeddings=8192, attn_implementation="sdpa")


def train(checkpointing):
    torch.manual_seed(1)
    torch.cuda.reset_peak_memory_stats()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    ids = torch.randint(0, shape["vocab_size"], (1, 4096), device="cuda")
    seconds = []
    for _ in range(steps):
        torch.cuda.synchronize()
        began = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {"tokens_s": 4096 / statistics.median(seconds[2:]), "peak_bytes": torch.cuda.max_memory_reserved(), "checkpointing": checkpointing}


results = []
for checkpointing in (False, True):
    try:
        results.append(train(checkpointing))
    except torch.cuda.OutOfMemoryError:
        results.append({"out_of_memory": True, "checkpointing": checkpointing})
    torch.cuda.empty_cache()
print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__, "runs": results}))
