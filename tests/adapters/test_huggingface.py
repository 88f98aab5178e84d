"""The callback in Hugging Face's trainer: the numbers of a loop by hand, and training that a rule ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, SequentialSampler

from tests.adapters.conftest import (
    BATCH,
    PLATEAU,
    accumulations,
    assert_trained_as_by_hand,
    settings_of,
    variants,
)
from tests.loop.conftest import Data, assert_equal_weights, small_data, small_net
from tpsprune.errors import ArtifactError, DataError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tpsprune.adapters.huggingface import PenalisedTrainer, TpspruneCallback  # noqa: E402 -- needs the library
from tpsprune.adapters.parts import load_state  # noqa: E402 -- needs the library

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
        output = {"logits": scores}
        return output if labels is None else {"loss": cross_entropy(scores, labels), **output}


class InOrder(PenalisedTrainer):
    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def watch(**settings: Any) -> dict[str, Any]:
    return {"calibration_data": [(small_data()[0],)], "signals": ["norm"], "every_steps": 3} | settings


def trained(
    folder: Path, callback: Any, *, accumulated: int = 1, resumed: bool | str = False, **settings: Any
) -> tuple[Any, nn.Module]:
    model = Classifier()
    arguments = transformers.TrainingArguments(
        **{
            "output_dir": str(folder),
            "num_train_epochs": 3,
            "per_device_train_batch_size": BATCH,
            "gradient_accumulation_steps": accumulated,
            "max_grad_norm": 0.0,
            "report_to": [],
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        | settings
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
    trainer.train(resume_from_checkpoint=resumed)
    return trainer, model.net


@accumulations
@variants
def test_a_training_has_the_numbers_of_a_loop_by_hand(variant: str, accumulated: int, tmp_path: Path) -> None:
    settings = settings_of(variant)
    found = trained(tmp_path, TpspruneCallback(tps=settings), accumulated=accumulated)[1]
    assert_trained_as_by_hand(found, settings, accumulated)


def test_an_evaluation_has_no_term_in_its_loss(tmp_path: Path) -> None:
    callback = TpspruneCallback(tps={"variant": "weights", "apply": "loss", "coupling": 5.0})
    trainer, net = trained(tmp_path, callback)
    x, y = small_data()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(cross_entropy(net(x), y)), rel=1e-5)


def test_a_rule_that_acts_ends_training_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="calibration_data is dict"):
        trained(tmp_path, TpspruneCallback(watch=watch(calibration_data={"x": small_data()[0]})))
    callback = TpspruneCallback(watch=watch(draw=PLATEAU), values={"validation_loss": "eval_loss"})
    trainer, _ = trained(tmp_path, callback, eval_strategy="steps", eval_steps=2)
    assert trainer.state.global_step == 6
    assert callback.parts.acted is not None
    assert callback.parts.acted.kind == "draw"
    assert callback.parts.watch is not None
    assert (callback.parts.watch["validation_loss"] or 0.0) > 0.0


def calm() -> Any:
    seen = watch(signals=["norm", "spectral_edge"], every_steps=2, edge_window=4)
    seen |= {"draw": replace(PLATEAU, tolerance=1e-9)}
    return TpspruneCallback(
        tps={"variant": "neurons", "refresh_steps": 3}, watch=seen, values={"validation_loss": "eval_loss"}
    )


OFTEN: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 3,  # so that the reading at 6 looks at an evaluation from before the checkpoint at 4
    "logging_strategy": "steps",
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 4,
}


def test_a_training_that_goes_on_from_a_checkpoint_ends_as_one_that_was_never_broken_off(
    tmp_path: Path,
) -> None:
    straight, second = calm(), calm()
    expected = trained(tmp_path, straight, max_steps=8, **OFTEN)[1]
    assert load_state(tmp_path / "checkpoint-4")["tps"]["steps"] == 4
    found = trained(tmp_path, second, max_steps=8, resumed=str(tmp_path / "checkpoint-4"), **OFTEN)[1]
    assert second.parts.tps.steps == 8
    assert sorted({each.step for each in second.parts.watch.readings}) == [2, 4, 6, 8]
    assert second.parts.watch.readings == straight.parts.watch.readings
    mine, theirs = second.parts.state_dict(), straight.parts.state_dict()
    assert mine["watch"]["plain"] == theirs["watch"]["plain"]
    for part in ("tps", "watch"):
        assert len(theirs[part]["tensors"]) > 0
        torch.testing.assert_close(mine[part]["tensors"], theirs[part]["tensors"], rtol=0, atol=0)
    assert_equal_weights(found, expected)


def test_a_checkpoint_without_the_state_is_refused_unless_both_are_to_start_afresh(tmp_path: Path) -> None:
    trained(tmp_path, calm(), max_steps=4, **OFTEN)
    kept = tmp_path / "checkpoint-4" / "tpsprune.safetensors"
    damaged, other = kept.read_bytes()[:-8], kept.with_name("model.safetensors").read_bytes()
    for content, words in (
        (damaged, r"checkpoint-4/tpsprune\.safetensors is damaged"),
        (other, r"is no state of TPS and Watch: use what the trainer's callback wrote"),
        (None, r"checkpoint-4/tpsprune\.safetensors, the state of TPS and Watch, is not there"),
    ):
        kept.write_bytes(content) if content else kept.unlink()
        with pytest.raises(ArtifactError, match=words):
            trained(tmp_path, calm(), max_steps=8, resumed=True, **OFTEN)
    nothing, afresh = TpspruneCallback(), calm()
    afresh.parts.load_state_dict({})
    for callback in (nothing, afresh):
        assert trained(tmp_path, callback, max_steps=8, resumed=True)[0].state.global_step == 8
    assert afresh.parts.tps.steps == 4


def test_a_state_handed_in_goes_before_that_of_the_folder(tmp_path: Path) -> None:
    trained(tmp_path, calm(), max_steps=4, **OFTEN)
    state = load_state(tmp_path / "checkpoint-4")
    state["tps"]["steps"] = 40
    callback = calm()
    callback.parts.load_state_dict(state)
    trained(tmp_path, callback, max_steps=8, resumed=True)
    assert callback.parts.tps.steps == 44


def test_a_process_that_writes_no_checkpoint_writes_no_state(tmp_path: Path) -> None:
    callback = calm()
    trained(tmp_path, callback, max_steps=2)
    state = transformers.TrainerState(global_step=2)
    (tmp_path / "checkpoint-2").mkdir()
    for writes in (False, True):
        callback.on_save(SimpleNamespace(output_dir=str(tmp_path), should_save=writes), state, None)
        assert [each.name for each in (tmp_path / "checkpoint-2").iterdir()] == (
            ["tpsprune.safetensors"] if writes else []
        )


def test_a_second_training_with_one_callback_is_as_the_first(tmp_path: Path) -> None:
    callback = TpspruneCallback(tps={"variant": "weights"}, watch=watch(draw=PLATEAU))
    for _ in range(2):
        trainer, _ = trained(tmp_path, callback)
        assert trainer.state.global_step == 6
        assert callback.parts.acted.step == 6
        assert callback.parts.tps.steps == 6


def test_parts_of_a_step_are_read_once(tmp_path: Path) -> None:
    callback = TpspruneCallback(watch=watch(every_steps=2))
    trained(tmp_path, callback, accumulated=2)
    assert [each.step for each in callback.parts.watch.readings] == [2, 4, 6]
