"""PyTorch's side of a training run, as its users write it: torch_side.py WORK.json (training.py writes it). One JSON line a step.

TRL's SFTTrainer packs the rows (best fit, no padding) into one sequence with position ids of their own; transformers' Trainer gets
the same packed sequence. A LoRA trains over a base in bf16; full fine-tuning keeps f32 weights and computes in bf16, as ours.
"""
import json
import sys

work = json.load(open(sys.argv[1]))

import datasets  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402

torch.set_num_threads(work["threads"])
datasets.disable_progress_bars()
full = work["adapter"] is None
model = transformers.AutoModelForCausalLM.from_pretrained(work["folder"], dtype=torch.float32 if full else torch.bfloat16)
if not full:
    model = peft.PeftModel.from_pretrained(model, work["adapter"], is_trainable=True)
tokenizer = transformers.AutoTokenizer.from_pretrained(work["folder"])
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
fifo = open(work["fifo"], "w")


class Report(transformers.TrainerCallback):
    """The loss of a step is logged after its end; both in one line."""

    def on_log(self, arguments, state, control, logs=None, **rest):
        if "loss" in logs:
            fifo.write(json.dumps({"train_loss": logs["loss"]}) + "\n")
            fifo.flush()


common = dict(output_dir=work["out"], per_device_train_batch_size=1, num_train_epochs=work["steps"], learning_rate=1e-4,
              lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, bf16=True, use_cpu=True, logging_steps=1,
              save_strategy="no", report_to="none", disable_tqdm=True, gradient_checkpointing=False, dataloader_num_workers=0)
if work["kind"] == "trl":
    trainer = trl.SFTTrainer(model=model, processing_class=tokenizer, train_dataset=datasets.Dataset.from_list(work["rows"]),
                             args=trl.SFTConfig(packing=True, max_length=work["tokens"], **common), callbacks=[Report()])
else:
    packed = {"input_ids": [], "labels": [], "position_ids": []}
    for row in work["rows"]:
        packed["input_ids"] += row["input_ids"]
        packed["labels"] += [-100] + row["labels"][1:]
        packed["position_ids"] += range(len(row["input_ids"]))
    trainer = transformers.Trainer(model=model, train_dataset=datasets.Dataset.from_list([packed]),
                                   args=transformers.TrainingArguments(**common), callbacks=[Report()],
                                   data_collator=transformers.default_data_collator)
trainer.train()
