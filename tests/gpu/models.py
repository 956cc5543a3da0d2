"""Models of a shape with random weights, adapters for them and rows to train on, made where they are needed: none is carried along."""
import json
import math
import pathlib
import random
import shutil
import struct

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures"
PATTERN = 65521  # a prime: no row of a matrix is like another

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "vocab_size": 512, "tie_word_embeddings": True},
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
             "vocab_size": 49152, "tie_word_embeddings": True},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
           "vocab_size": 128256, "tie_word_embeddings": True},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
           "vocab_size": 128256, "tie_word_embeddings": False},
}


def bf16(value):
    return struct.pack(">f", value)[1::-1]


def pattern(seed, scale):
    rng = random.Random(seed)
    return b"".join(bf16(rng.gauss(0.0, scale)) for _ in range(PATTERN))


def linears(shape):
    """(name, out, in) of the seven linear maps of a layer."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    head = hidden // shape["num_attention_heads"]
    kv = head * shape["num_key_value_heads"]
    return [("self_attn.q_proj", hidden, hidden), ("self_attn.k_proj", kv, hidden), ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, hidden), ("mlp.gate_proj", inner, hidden), ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner)]


def multiplied(shape):
    """Parameters that every token is multiplied with."""
    layer = sum(out * into for _, out, into in linears(shape))
    return shape["num_hidden_layers"] * layer + shape["vocab_size"] * shape["hidden_size"]


def file_bytes(shape):
    return 2 * sum(math.prod(dims) for _, dims in tensors(shape))


def tensors(shape):
    hidden, vocab = shape["hidden_size"], shape["vocab_size"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for i in range(shape["num_hidden_layers"]):
        yield f"model.layers.{i}.input_layernorm.weight", (hidden,)
        yield f"model.layers.{i}.post_attention_layernorm.weight", (hidden,)
        for name, out, into in linears(shape):
            yield f"model.layers.{i}.{name}.weight", (out, into)
    yield "model.norm.weight", (hidden,)
    if not shape["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)


def write_tensors(path, wanted, dtype_bytes, data_of):
    header, at = {}, 0
    for name, dims in wanted:
        count = 1
        for size in dims:
            count *= size
        header[name] = {"dtype": "BF16" if dtype_bytes == 2 else "F32", "shape": list(dims), "data_offsets": [at, at + count * dtype_bytes]}
        at += count * dtype_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, dims in wanted:
            count = 1
            for size in dims:
                count *= size
            data = data_of(name, dims)
            whole, rest = divmod(count * dtype_bytes, len(data))
            block = data * max(1, (16 << 20) // len(data))
            while whole > 0:
                turns = min(whole, len(block) // len(data))
                out.write(block[:turns * len(data)])
                whole -= turns
            out.write(data[:rest])


def make_model(folder, name):
    """A Hugging Face folder of that shape; what is there already is taken."""
    shape, folder = SHAPES[name], pathlib.Path(folder) / name
    if (folder / "ready").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    source = FIXTURES / "models" / "tiny-llama"
    config = json.loads((source / "config.json").read_text())
    config.update(shape, max_position_embeddings=8192, head_dim=shape["hidden_size"] // shape["num_attention_heads"], torch_dtype="bfloat16")
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config))
    for file in source.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template", "generation_config")):
            shutil.copy(file, folder)
    random_bytes, ones = pattern(1, 0.02), bf16(1.0) * 4096
    write_tensors(folder / "model.safetensors", list(tensors(shape)), 2, lambda name, dims: ones if len(dims) == 1 else random_bytes)
    (folder / "ready").touch()
    return folder


def make_adapters(folder, model_name, count, rank=16):
    """PEFT folders of LoRA on all linear maps, none of them zero."""
    shape, folders = SHAPES[model_name], []
    names = []
    for i in range(shape["num_hidden_layers"]):
        for name, out, into in linears(shape):
            names.append((f"base_model.model.model.layers.{i}.{name}.lora_A.weight", (rank, into)))
            names.append((f"base_model.model.model.layers.{i}.{name}.lora_B.weight", (out, rank)))
    for k in range(count):
        adapter = pathlib.Path(folder) / f"{model_name}-{k}"
        folders.append(adapter)
        if (adapter / "adapter_model.safetensors").exists():
            continue
        adapter.mkdir(parents=True, exist_ok=True)
        (adapter / "adapter_config.json").write_text(json.dumps({
            "peft_type": "LORA", "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none", "task_type": "CAUSAL_LM",
            "target_modules": [name.split(".")[1] for name, _, _ in linears(shape)], "base_model_name_or_path": model_name}))
        data = pattern(100 + k, 0.01)
        write_tensors(adapter / "adapter_model.safetensors", names, 2, lambda name, dims, data=data: data)
    return folders


def write_rows(path, count, words, seed=3):
    """Conversations of so many words; the fixture's tokenizer makes about one token of each letter."""
    rng = random.Random(seed)
    with open(path, "w") as out:
        for _ in range(count):
            text = " ".join("".join(rng.choice("abcdefghij") for _ in range(3)) for _ in range(words))
            out.write(json.dumps({"messages": [{"role": "user", "content": "go on"}, {"role": "assistant", "content": text}]}) + "\n")
    return path
