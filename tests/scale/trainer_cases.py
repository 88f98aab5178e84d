"""Lightning's ``ddp`` and Hugging Face's trainer in two processes, with a rule that each meets elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

import tpsprune
from tests.scale.loop_cases import Net, own_items, statistics_of
from tpsprune.adapters import parts
from tpsprune.numerics.peers import fingerprint

EARLY = 4.0
"""So many steps the second process is ahead of the first in what the rule reads."""
RULE = tpsprune.Threshold(monitor="score", threshold=5.5)


def labelled() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 8, generator=generator)
    return x, x[:, :3].argmax(1)


def score_of(step: int) -> float:
    """Return what the rule reads: the second process by itself would end training four steps earlier."""
    return step + EARLY * distributed.get_rank()


def watch(data: Any) -> dict[str, Any]:
    return {"calibration_data": data, "signals": ["d_eff"], "every_steps": 1, "draw": RULE}


def found(steps: int, held: parts.CallbackParts, net: nn.Module, folder: Path) -> dict[str, Any]:
    assert held.watch is not None
    return {
        "steps": steps,
        "acted": str(held.acted),
        "readings": [str(each) for each in held.watch.readings],
        "weights": fingerprint(nn.ParameterList(net.parameters())),
        "statistics": statistics_of(net),
        "files": sorted(str(each.relative_to(folder)) for each in folder.rglob("*.safetensors")),
    }


def lightning(folder: str) -> dict[str, Any]:
    import pytorch_lightning

    from tpsprune.adapters.lightning import TpspruneCallback

    class Module(pytorch_lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.net(x)
            return scores

        def training_step(self, batch: Any, _: int) -> Tensor:
            self.log("seen", score_of(self.global_step + 1))
            return cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    names = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    callback = TpspruneCallback(
        tps={"variant": "weights"}, watch=watch(own_items()), values={"score": "seen"}
    )
    trainer = pytorch_lightning.Trainer(
        default_root_dir=folder,
        max_epochs=6,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        callbacks=[callback],
        **dict.fromkeys(names, False),
    )
    module = Module()
    trainer.fit(module, DataLoader(TensorDataset(*labelled()), batch_size=12))
    kept = Path(folder) / "one.ckpt"
    trainer.save_checkpoint(kept)
    distributed.barrier()
    state = torch.load(kept, weights_only=True)["callbacks"]["TpspruneCallback"]
    seen = found(trainer.global_step, callback.parts, module.net, Path(folder))
    return seen | {"kept": state["watch"]["plain"]["last_step"], "tps": state["tps"]["steps"]}


class Items(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        self.x, self.labels = labelled()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.labels[index]}


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        scores: Tensor = self.net(x)
        return {"logits": scores} | ({} if labels is None else {"loss": cross_entropy(scores, labels)})


def huggingface(folder: str) -> dict[str, Any]:
    import transformers

    from tpsprune.adapters import huggingface as adapter

    written = []
    usual = adapter.save_state
    adapter.save_state = lambda *args: (written.append(str(args[0])), usual(*args))  # type: ignore[assignment,func-returns-value]
    try:
        callback = adapter.TpspruneCallback(
            tps={"variant": "weights"}, watch=watch([(own_items(),)]), values={"score": "eval_score"}
        )
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=6,
            per_device_train_batch_size=12,
            report_to=[],
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=3,
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            learning_rate=1e-2,
        )
        model = Classifier()
        trainer = adapter.PenalisedTrainer(
            model=model,
            args=arguments,
            train_dataset=Items(),
            eval_dataset=Items(),
            callbacks=[callback],
            compute_metrics=lambda _: {"score": score_of(trainer.state.global_step)},
        )
        trainer.train()
    finally:
        adapter.save_state = usual
    distributed.barrier()
    seen = found(trainer.state.global_step, callback.parts, model.net, Path(folder))
    kept = parts.load_state(Path(folder) / "checkpoint-3")
    return seen | {"written": len(written), "kept": kept["watch"]["plain"]["last_step"]}
