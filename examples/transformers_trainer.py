"""Train a model of transformers with its Trainer on packed rows of cwm-core.

python examples/transformers_trainer.py SHARDS VOCABULARY --model llama --steps 20

Each row holds several documents. `position_ids` restart at each document, which transformers reads as document
boundaries: with no attention mask, no token attends across them. The loader's targets are the next tokens already, so
they go into `shift_labels`, and transformers does not shift them again.
"""

import argparse
from collections.abc import Iterator

import cwm_core as cwm
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import (
    CwmConfig,
    CwmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

IGNORED = -100  # label of positions without loss


class PackedRows(IterableDataset[dict[str, Tensor]]):
    """Rows of a packed loader, as the Trainer takes them."""

    def __init__(self, loader: cwm.PackedLoader) -> None:
        """Take the rows of `loader`, which must have a batch size of 1."""
        self.loader = loader

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield one packed row at a time."""
        for arrays in self.loader:
            batch = arrays.to_torch()
            targets = torch.where(batch.loss_mask, batch.targets, IGNORED)[0].long()
            yield {
                "input_ids": batch.tokens[0].long(),
                "position_ids": batch.position_ids[0].long(),
                "labels": targets,
                "shift_labels": targets,
            }


def make_model(kind: str, tokenizer: cwm.Tokenizer, seq_len: int) -> PreTrainedModel:
    """Return a small model with random weights."""
    sizes = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": seq_len,
        "bos_token_id": tokenizer.bos_token,
        "eos_token_id": list(tokenizer.stop_tokens),
        "pad_token_id": None,
        "use_cache": False,  # a cache would hide the document boundaries
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes))
    layers = ["full_attention", "sliding_attention"]
    return CwmForCausalLM(CwmConfig(**sizes, head_dim=16, layer_types=layers, sliding_window=64))


def main() -> None:
    """Train and save a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", help="folder of token shards")
    parser.add_argument("vocabulary", help="vocabulary that the shards were made with")
    parser.add_argument("--model", choices=("llama", "cwm"), default="llama")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("-o", "--output", default="trainer-output")
    args = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = cwm.Tokenizer.load(args.vocabulary)
    loader = cwm.PackedLoader(args.shards, args.seq_len, vocab_size=tokenizer)
    trainer = Trainer(
        model=make_model(args.model, tokenizer, args.seq_len),
        args=TrainingArguments(
            output_dir=args.output,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=2e-3,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
            remove_unused_columns=False,
            disable_tqdm=True,
        ),
        train_dataset=PackedRows(loader),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"first loss {float(losses[0]):.4f}, last loss {float(losses[-1]):.4f}")
    trainer.save_model(args.output)


if __name__ == "__main__":
    main()
