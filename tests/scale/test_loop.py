"""The loop API in two processes that hold one model: one plan, one verdict, joules counted once."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.scale.duo import Answer, Duo

pytestmark = pytest.mark.xdist_group("duo")
CASES = "tests.scale.loop_cases"


def values_of(answers: list[Answer]) -> tuple[dict, dict]:
    first, second = (each.value for each in answers)
    return first, second


def test_both_get_the_ticket_of_the_first_where_each_by_itself_would_make_its_own(duo: Duo) -> None:
    first, second = values_of(duo.ask(f"{CASES}:tickets"))
    assert first["parameters"] == second["parameters"]
    assert first["statistics"] != second["statistics"]
    assert first["alone"][0] != second["alone"][0]
    assert first["together"] == second["together"] == first["alone"]
    assert first["trained"] == second["trained"]
    assert (first["mask"], second["mask"]) == (True, True)


def test_tensors_of_every_kind_arrive(duo: Duo) -> None:
    first, second = values_of(duo.ask(f"{CASES}:told_tensors"))
    assert first == second
    assert first["torch.int16"] == ["torch.int16", [1, 3], "[[0j, (1+0j), (1+0j)]]"]
    assert (first["one"][1:], first["empty"][1]) == ([[], "(7+0j)"], [0, 3])


def test_a_family_a_repair_and_a_cut_without_data_are_the_first_ones(duo: Duo) -> None:
    first, second = values_of(duo.ask(f"{CASES}:other_tickets"))
    faults, others = first.pop("faults"), second.pop("faults")
    assert first == second
    assert list(first["family"]) == ["0.75", "0.5", "0.4"]
    assert first["picked"] in first["family"].values()
    assert faults["of the first"] == others["of the first"] != ""
    assert faults["of the second"] == others["of the second"]
    assert "rank 1: calibration_data is dict" in faults["of the second"]
    assert "LoopError: extract: DistributedDataParallel has the model in 1 of 2" in faults["of a part"]


def test_a_rule_between_the_readings_of_both_gives_one_verdict(duo: Duo) -> None:
    first, second = values_of(duo.ask(f"{CASES}:verdicts"))
    assert min(first["own"], second["own"]) < first["level"] < max(first["own"], second["own"])
    assert ("act=True" in first["alone"][0]) != ("act=True" in second["alone"][0])
    assert first["together"] == second["together"]
    assert first["together"][:2] == [first["alone"], first["own"]]
    assert any("score" in each and "7.0" in each for each in second["together"][2])
    assert second["together"][2][-1] == "called"
    for found in (first, second):
        assert "PeersError: the processes disagree on what they call: 'Watch.step(1)'" in found["steps"]


@pytest.mark.parametrize("comes", [0, 1])
def test_a_process_that_comes_alone_is_told_so_in_time(duo: Duo, comes: int) -> None:
    told = duo.ask(f"{CASES}:one_alone", comes=comes)[comes].value
    assert told.startswith("PeersError: Watch.step(1): not every process of this job has come here within")
    assert "replicated=False" in told
    assert comes == 1 or "Ranks 1 failed" in told


@pytest.mark.parametrize("variant", ["neurons", "moments"])
def test_two_halves_of_a_batch_are_coupled_alike(duo: Duo, variant: str) -> None:
    first, second = values_of(duo.ask(f"{CASES}:penalised", variant=variant))
    assert first["weights"] == second["weights"]
    if variant == "neurons":  # What moments see of a part is not what they see of the whole.
        assert first["off"] < 1e-6


@pytest.mark.parametrize("by", ["launcher", "rank"])
def test_a_machine_is_metered_by_one_process(duo: Duo, by: str) -> None:
    first, second = values_of(duo.ask(f"{CASES}:metered", by=by))
    assert (first["joules"], first["seconds"]) == (15.0, 1.0)
    assert second["joules"] is None
    assert second["seconds"] > 0.0
    says = {
        "launcher": "LOCAL_RANK 0 on this machine",
        "rank": "rank 0 (no LOCAL_RANK says which is the first",
    }
    assert says[by] in second["excluded"][0]


def test_the_example_for_accelerate_says_everything_once(duo: Duo) -> None:
    if find_spec("accelerate") is None:
        pytest.skip("accelerate is not installed")
    first, second = duo.ask(f"{CASES}:example")
    assert second.printed == ""
    reason, drawn, ticket = first.printed.splitlines()
    assert "d_eff" in reason
    assert drawn.startswith("drawn after ")
    assert float(ticket.split("accuracy ")[1].split(",")[0]) > 0.5


@pytest.mark.parametrize("trainer", ["lightning", "huggingface"])
def test_a_trainer_ends_both_with_the_verdict_of_the_first(duo: Duo, trainer: str, tmp_path: Path) -> None:
    libraries = {"lightning": ["pytorch_lightning"], "huggingface": ["transformers", "accelerate"]}
    # Imported by the pair alone, where the adapters help it.
    if missing := [each for each in libraries[trainer] if find_spec(each) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    answers = duo.ask(f"tests.scale.trainer_cases:{trainer}", seconds=120.0, folder=str(tmp_path))
    first, second = values_of(answers)
    # Hugging Face's evaluates a step after the callback has read it.
    assert first["steps"] == second["steps"] == {"lightning": 6, "huggingface": 7}[trainer]
    assert first["statistics"] != second["statistics"]
    for name in ("acted", "readings", "weights", "files", "kept"):
        assert first[name] == second[name], name
    assert "score" in first["acted"]
    if trainer == "huggingface":
        assert (first["written"], second["written"]) == (2, 0)
        assert [each for each in first["files"] if "tpsprune" in each] == [
            f"checkpoint-{step}/tpsprune.safetensors" for step in (3, 6)
        ]
    else:
        assert (first["kept"], first["tps"]) == (6, 6)
