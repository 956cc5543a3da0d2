"""What the benchmarks need, made once in the cache folder: graftd, the rivals, and the models in both worlds' forms."""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tarfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ["torch", "transformers", "peft", "trl", "datasets", "accelerate", "gguf", "safetensors", "matplotlib", "psutil"]
SMOL = "SmolLM2-135M-Instruct"
QWEN = "Qwen2.5-0.5B-shape"


def arguments(text):
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="ROW,...", help="these rows only (--list names them)")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of a training round; the first is not counted (6)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--curves", action="store_true", help="also speed and memory against length, rank, threads and jobs, as plots")
    parser.add_argument("--cache", type=pathlib.Path, default=ROOT / ".cache" / "bench", help="what was built and brought (.cache/bench)")
    parser.add_argument("--out", type=pathlib.Path, help="results.json, results.md and plots go here (CACHE/results)")
    parser.add_argument("--graftd", type=pathlib.Path, help="this program of a build folder instead of a release build of the sources")
    chosen = parser.parse_args()
    chosen.cache = chosen.cache.resolve()
    chosen.out = (chosen.out or chosen.cache / "results").resolve()
    return chosen


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(*command, log=None, **options):
    """Fails with the end of the output."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(str(part) for part in command)}\n{done.stdout[-4000:]}")
    return done.stdout


def environment(cache):
    python = cache / "venv" / "bin" / "python"
    if not (cache / "venv" / "ready").exists():
        run(ROOT / "deploy" / "setup", "bench")
        say("PyTorch, transformers, PEFT and TRL are brought into the cache")
        run(sys.executable, "-m", "venv", cache / "venv")
        run(python, "-m", "pip", "install", "--quiet", *PACKAGES)
        (cache / "venv" / "ready").touch()
    return python.absolute()


def graftd(chosen):
    if chosen.graftd is not None:
        return chosen.graftd.resolve()
    build = ROOT / "build-release"
    run(ROOT / "deploy" / "setup", "bench")
    if not (build / "build.ninja").exists():
        run("meson", "setup", build, "--buildtype=release", cwd=ROOT)
    run("ninja", "-C", build, "graftd", "tests/bench/four_jobs")
    return build / "graftd"


def llama(cache):
    """The folder with llama-server and llama-bench, built from the source in the sdist of llama-cpp-python."""
    tools = cache / "llama" / "bin"
    if not (tools / "llama-server").exists() or not (tools / "llama-bench").exists():
        say("llama.cpp is built (some minutes)")
        source = cache / "src"
        source.mkdir(parents=True, exist_ok=True)
        if not list(source.glob("llama_cpp_python-*.tar.gz")):
            run(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", source, "llama-cpp-python")
        with tarfile.open(next(source.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(source)
        vendor = next(source.glob("llama_cpp_python-*/vendor/llama.cpp"))
        run("cmake", "-S", vendor, "-B", cache / "llama", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF",
            "-DGGML_NATIVE=ON", "-DGGML_CPU_REPACK=ON", "-DGGML_OPENMP=ON", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
            "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF")
        run("nice", "-n", "19", "cmake", "--build", cache / "llama", "--target", "llama-bench", "llama-server")
    return tools


# ---- models: `folder` is what graftd is given as --models ----

def smol_gguf(cache):
    """The demo model's file: Q4_1."""
    folder = cache / "models"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{SMOL}.Q4_1.gguf"
    if not path.exists():
        brought = run(ROOT / "deploy" / "demo-model", cache / "demo").strip().splitlines()[-1]
        os.link(brought, path)
    return path


def smol_folder(cache):
    """The same weights as a Hugging Face folder in bf16: what the file's blocks say, rounded."""
    import torch
    import transformers

    folder = cache / "models" / f"{SMOL}-bf16"
    if not (folder / "model.safetensors").exists():
        source = smol_gguf(cache)
        model = transformers.AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        settings = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
        plain = transformers.AutoModelForCausalLM.from_config(type(model.config)(**settings), dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
        plain.to(torch.bfloat16).save_pretrained(folder)
    return folder


def smol_q8(cache):
    """The same weights once more as Q8_0 blocks."""
    import gguf

    path = cache / "models" / f"{SMOL}.Q8_0.gguf"
    if path.exists():
        return path
    reader = gguf.GGUFReader(smol_gguf(cache))
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, str(bytes(reader.fields["general.architecture"].parts[-1]), "utf-8"))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    for tensor in reader.tensors:
        kind = tensor.tensor_type
        if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            writer.add_tensor(tensor.name, tensor.data)
        else:
            wide = gguf.quants.dequantize(tensor.data, kind)
            writer.add_tensor(tensor.name, gguf.quants.quantize(wide, gguf.GGMLQuantizationType.Q8_0),
                              raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.rename(part, path)
    return path


def qwen_folder(cache):
    """Random weights in the shape of Qwen2.5-0.5B, with SmolLM2's tokenizer."""
    import torch
    import transformers

    folder = cache / "models" / QWEN
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(1)
        config = transformers.Qwen2Config(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                                          num_attention_heads=14, num_key_value_heads=2, max_position_embeddings=32768,
                                          rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)
        transformers.AutoTokenizer.from_pretrained(smol_folder(cache)).save_pretrained(folder)
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def adapter(cache, folder, rank):
    """A PEFT folder of a LoRA on all linear layers, A as PEFT draws it and B random too, so that nothing is multiplied by zeros."""
    import peft
    import torch
    import transformers

    path = cache / "adapters" / f"{folder.name}-r{rank}"
    if not (path / "adapter_model.safetensors").exists():
        torch.manual_seed(2)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        model = peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.005)
        model.save_pretrained(path)
    return path


# ---- rows: what one optimiser step sees, whole ----

def text_words():
    import collections
    import heapq
    import random
    import string
    import textwrap
    import zipfile

    modules = [argparse, collections, heapq, json, os, pathlib, random, string, subprocess, tarfile, textwrap, zipfile]
    words = " ".join(" ".join((module.__doc__ or "").split()) for module in modules).split()
    for module in modules:
        for name in sorted(dir(module)):
            text = getattr(getattr(module, name), "__doc__", None)
            words += text.split() if isinstance(text, str) else []
    return words


def rows(cache, program, folder, lengths, name):
    """A training file of rows of exactly these token counts, and what graftd reads in it: (path, [[(id, weight), ...], ...])."""
    import transformers

    path, read = cache / "rows" / f"{name}.jsonl", cache / "rows" / f"{name}.ids.json"
    path.parent.mkdir(exist_ok=True)
    if read.exists():
        return path, json.loads(read.read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    words, at, lines, ids = text_words(), 0, [], []
    for length in lengths:
        count = length // 3 + 2
        while len(tokenizer(" ".join(words[(at + i) % len(words)] for i in range(count)))["input_ids"]) + 1 <= length:
            count += max(1, count // 50)
        while True:  # the last few words give way to one-token ones
            taken = [words[(at + i) % len(words)] for i in range(count)]
            size = len(tokenizer(" ".join(taken))["input_ids"]) + 1
            if size <= length:
                break
            count -= 1
        taken += ["and"] * (length - size)
        split = max(1, len(taken) // 8)
        lines.append(json.dumps({"prompt": " ".join(taken[:split]), "completion": " " + " ".join(taken[split:])}))
        at += count
    path.write_text("".join(line + "\n" for line in lines))
    for number in range(1, len(lines) + 1):
        seen = json.loads(run(program, "inspect", folder, "--row", f"{path}:{number}", "--json"))
        ids.append([(token["id"], token["weight"]) for token in seen["tokens"]])
    read.write_text(json.dumps(ids))
    return path, ids
