"""Train the small Llama that ships with saap-edge, from nothing but text.

    python benchmarks/reference_model.py --data WIKITEXT_FOLDER --out saap_edge/reference

WIKITEXT_FOLDER holds WikiText-2 as train.txt, valid.txt and test.txt. The script trains a byte-level BPE
tokenizer and a Llama (grouped-query attention, tied embeddings, every width on the grid of 32), measures
held-out perplexity beside an untrained twin, writes a Hugging Face folder in fp16 and the text excerpts the
chain uses, and ends with one JSON line. On 2 cores it takes about an hour; `--tokens` shortens it. On a GPU a larger
twin for benchmarks/methods.py is trained the same way: --hidden 768 --layers 12 --ffn 2048 --vocabulary 16384.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from saap_edge.model.perplexity import perplexity, text_hash, text_windows

END = "<|endoftext|>"
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def train_tokenizer(text: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with GPT-2's splitting, so that llama.cpp's pre-tokenizer `gpt-2` reproduces it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train([str(text)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=512)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def model_config(vocabulary: int, hidden: int, layers: int, ffn: int) -> LlamaConfig:
    heads = hidden // 32
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 2, head_dim=32, max_position_embeddings=512,
        rms_norm_eps=1e-6, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip


class Windows(torch.utils.data.Dataset):
    """Windows of token ids at a random offset per epoch would leak nothing; fixed windows keep runs repeatable."""

    def __init__(self, windows: torch.Tensor) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.windows[index], "labels": self.windows[index]}


def train(model: LlamaForCausalLM, windows: torch.Tensor, tokens: int, batch: int, scratch: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    arguments = TrainingArguments(
        output_dir=str(scratch), per_device_train_batch_size=batch, max_steps=tokens // windows[:batch].numel(),
        learning_rate=2e-3, lr_scheduler_type="cosine", warmup_steps=100, weight_decay=0.1, adam_beta2=0.95,
        max_grad_norm=1.0, bf16=True, use_cpu=not torch.cuda.is_available(), logging_steps=50, save_strategy="no",
        report_to=[], dataloader_num_workers=0, seed=0,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=Windows(windows)).train()


def excerpt(source: Path, destination: Path, size: int) -> None:
    """The first `size` bytes of a text, cut back to the end of a line."""
    text = source.read_text(encoding="utf-8")[:size]
    destination.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.txt, valid.txt, test.txt")
    parser.add_argument("--out", type=Path, required=True, help="folder to write (wikitext-llama/ and text/ inside)")
    parser.add_argument("--tokens", type=int, default=6_000_000, help="training tokens (default 6 M)")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256, help="a multiple of 64: heads are 32 wide, two a kv head")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--ffn", type=int, default=512)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()

    set_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(args.data / "train.txt", args.vocabulary)
    windows = text_windows(tokenizer, (args.data / "train.txt").read_text(encoding="utf-8"), args.window)
    test = text_windows(tokenizer, (args.data / "test.txt").read_text(encoding="utf-8"), args.window, limit=100)

    model = LlamaForCausalLM(model_config(args.vocabulary, args.hidden, args.layers, args.ffn))
    untrained = perplexity(model, test)
    start = time.monotonic()
    train(model, windows, args.tokens, args.batch, args.out / "scratch", args.threads)
    seconds = time.monotonic() - start

    model = model.half().float()  # measure what is shipped: fp16 weights
    trained = perplexity(model, test)
    model.half().save_pretrained(args.out / "wikitext-llama")
    tokenizer.save_pretrained(args.out / "wikitext-llama")
    text = args.out / "text"
    text.mkdir(exist_ok=True)
    excerpt(args.data / "train.txt", text / "calibration.txt", 1_500_000)
    excerpt(args.data / "valid.txt", text / "heldout.txt", 300_000)
    excerpt(args.data / "test.txt", text / "test.txt", 300_000)

    print(f"held-out perplexity: trained {trained.value:.2f}, untrained twin {untrained.value:.0f}")
    print(json.dumps({
        "benchmark": "reference_model", "parameters": model.num_parameters(), "tokens": args.tokens,
        "train_windows": len(windows), "window": args.window, "seconds": round(seconds),
        "test_text_sha256": text_hash(args.data / "test.txt"), "test_tokens": trained.tokens,
        "perplexity": round(trained.value, 3), "perplexity_untrained": round(untrained.value, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
