"""The callback in Hugging Face's own trainer: the numbers of a plain loop, and training that a rule ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, SequentialSampler

import tpsprune
from tests.loop.conftest import Data, small_data, small_net
from tpsprune.errors import DataError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tpsprune.adapters.huggingface import PenalisedTrainer, TpspruneCallback  # noqa: E402 -- needs the library

pytestmark = pytest.mark.filterwarnings("ignore")


class Items(Dataset[dict[str, Tensor]]):
    def __init__(self, data: Data) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data[0])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.data[0][index], "labels": self.data[1][index]}


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        scores: Tensor = self.net(x)
        answer = {"logits": scores}
        return answer if labels is None else {"loss": cross_entropy(scores, labels), **answer}


class InOrder(PenalisedTrainer):
    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def trained(folder: Path, callback: Any, *, accumulated: int = 1, **settings: Any) -> tuple[Any, nn.Module]:
    model = Classifier()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=3,
        per_device_train_batch_size=12,
        gradient_accumulation_steps=accumulated,
        max_grad_norm=0.0,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=Items(small_data()),
        eval_dataset=Items(small_data()),
        callbacks=[callback],
        optimizers=(optimizer, constant),
    )
    trainer.train()
    return trainer, model.net


def by_hand(settings: dict[str, Any], accumulated: int) -> nn.Module:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tps = tpsprune.TPS(model, optimizer, **settings)
    data = small_data()
    for _ in range(3):
        for number, (x, y) in enumerate(zip(*(part.split(12) for part in data), strict=True), 1):
            with tps.listening():
                loss = cross_entropy(model(x), y)
            ((loss + tps(y, loss)) / accumulated).backward()
            if number % accumulated == 0:
                optimizer.step()
                optimizer.zero_grad()
    return model


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("variant", ["weights", "moments", "in the loss"])
def test_a_training_has_the_numbers_of_a_plain_loop(variant: str, accumulated: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"variant": variant, "data": small_data()}
    if variant == "in the loss":
        settings = {"variant": "weights", "apply": "loss"}
    found = trained(tmp_path, TpspruneCallback(tps=settings), accumulated=accumulated)[1]
    for mine, theirs in zip(found.parameters(), by_hand(settings, accumulated).parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_an_evaluation_has_no_term_in_its_loss(tmp_path: Path) -> None:
    callback = TpspruneCallback(tps={"variant": "weights", "apply": "loss", "coupling": 5.0})
    trainer, net = trained(tmp_path, callback)
    x, y = small_data()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(cross_entropy(net(x), y)), rel=1e-5)


def test_a_rule_that_acts_ends_training_and_says_why(tmp_path: Path) -> None:
    rule = tpsprune.Plateau(signal="norm", tolerance=1.0, patience=2, learned_share=0.0)
    callback = TpspruneCallback(
        watch={"probe": {"x": small_data()[0]}, "signals": [], "every_steps": 3, "draw": rule},
    )
    with pytest.raises(DataError, match="probe is dict"):
        trained(tmp_path, callback)
    callback = TpspruneCallback(
        watch={"probe": [(small_data()[0],)], "signals": ["norm"], "every_steps": 3, "draw": rule},
        values={"validation_loss": "eval_loss"},
    )
    trainer, _ = trained(tmp_path, callback, eval_strategy="steps", eval_steps=2)
    assert trainer.state.global_step == 6
    assert callback.aboard.acted is not None
    assert callback.aboard.acted.kind == "draw"
    assert callback.aboard.watch is not None
    assert (callback.aboard.watch["validation_loss"] or 0.0) > 0.0
