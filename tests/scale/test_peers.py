"""What several processes agree on, deal out and tell."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from tests.scale.paired import Paired, in_two
from tpsprune import energy
from tpsprune.cli import main
from tpsprune.errors import CannotWriteError, PeersError, RecipeError
from tpsprune.loop.meter import Ledger, Meter
from tpsprune.numerics.peers import AbstractPeers, Alone, Gathered, fingerprint
from tpsprune.recipe.train import Energy
from tpsprune.training.shards import ShardedSteps


def test_what_is_dealt_comes_back_in_order() -> None:
    solved = []

    def work(peers: Paired) -> list[int]:
        def square(part: int) -> int:
            solved.append((peers.rank, part))
            return part**2

        return peers.deal([1, 2, 3, 9, 5], square, cost=float)

    assert in_two(work) == [[1, 4, 9, 81, 25]] * 2
    assert sorted(solved) == [(0, 1), (0, 9), (1, 2), (1, 3), (1, 5)]  # each once, and as even as can be


def test_a_disagreement_names_both_values_and_is_printed_once() -> None:
    errors: list[PeersError] = []

    def work(peers: Paired) -> None:
        with pytest.raises(PeersError) as error:
            peers.agree("the recipe", f"seed = 0\nepochs = {6 + 2 * peers.rank}")
        errors.append(error.value)

    in_two(work)
    assert {str(each) for each in errors} == {
        "the processes disagree on the recipe: 'epochs = 6' on rank 0, 'epochs = 8' on rank 1; "
        "start all with the same files, options and versions"
    }
    assert sorted(each.is_told for each in errors) == [False, True]


def test_a_fault_of_one_process_is_met_by_all() -> None:
    def work(peers: Paired) -> str:
        def set_up() -> None:
            if peers.rank == 1:
                raise RecipeError("my.toml", [])

        with pytest.raises(PeersError, match=r"rank 1: my\.toml"):
            peers.together(set_up)
        return "ended"

    assert in_two(work) == ["ended", "ended"]


def test_one_process_takes_any_number_of_shards() -> None:
    assert list(Alone().with_shards(3).own_shards) == [0, 1, 2]


def test_equal_weights_have_one_fingerprint_and_a_changed_bit_another() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    second.load_state_dict(first.state_dict())
    assert fingerprint(first) == fingerprint(second)
    with torch.no_grad():
        second.weight[0, 0] = torch.nextafter(second.weight[0, 0], torch.tensor(torch.inf))
    assert fingerprint(first) != fingerprint(second)


def test_two_processes_make_the_step_of_their_mean_and_leave_unreached_parameters_alone() -> None:
    inputs = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))

    def work(peers: Paired) -> tuple[torch.Tensor, bool, bool, float]:
        model = nn.Linear(4, 1, bias=False)
        nn.init.ones_(model.weight)
        for name in ("unused", "seldom"):
            model.register_parameter(name, nn.Parameter(torch.ones(1)))
        steps = ShardedSteps(model, peers, seed=0)
        steps.begin(0, peers.rank)
        loss = model(inputs[peers.rank]).sum()
        if peers.rank:
            loss = loss + model.get_parameter("seldom").sum()
        (loss / 2).backward()
        steps.add(loss.detach(), loss.detach())
        mean, _ = steps.join(0)
        seldom = model.get_parameter("seldom").grad
        assert model.weight.grad is not None
        return model.weight.grad, model.get_parameter("unused").grad is None, seldom is not None, float(mean)

    for gradient, unused_has_none, seldom_has_one, mean in in_two(work):
        torch.testing.assert_close(gradient[0], inputs.mean(0))
        assert unused_has_none
        assert seldom_has_one
        assert mean == pytest.approx(float(inputs.sum(1).mean() + 0.5))


def test_running_statistics_of_two_processes_are_those_of_one_with_two_shards() -> None:
    inputs = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))

    def work(peers: AbstractPeers) -> dict[str, torch.Tensor]:
        model = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 1))
        for parameter in model.parameters():
            nn.init.ones_(parameter)
        steps = ShardedSteps(model, peers, seed=0)
        for step in range(3):
            for shard in peers.own_shards:
                steps.begin(step, shard)
                loss = model(inputs[shard] + step).mean()
                (loss / 2).backward()
                steps.add(loss.detach(), loss.detach())
            steps.join(step)
        return dict(model.named_buffers())

    alone = work(Alone(2))
    assert int(alone["0.num_batches_tracked"]) == 3
    for found in in_two(work):
        assert found.keys() == alone.keys()
        assert all(torch.equal(each, alone[name]) for name, each in found.items())


def metered(peers: Paired) -> tuple[float | None, float, bool]:
    meter = "fake" if peers.is_first_of_node else "none"
    with Ledger(Meter(energy.build(Energy(meter=meter), 0)), peers=peers) as ledger:  # type: ignore[arg-type]
        for phase in ("setup", "train", "watch"):
            ledger.switch(phase)
        ledger.close()
        return ledger.total.joules, ledger.total.seconds, all(each.valid for each in ledger.windows)


def test_two_processes_of_one_machine_are_metered_once() -> None:
    (joules, seconds, valid), beside = in_two(metered)
    assert (joules, seconds, valid) == (45.0, 3.0, True)
    assert beside[0] is None


def test_two_fake_nodes_add_up_in_every_window() -> None:
    (joules, seconds, valid), _ = in_two(metered, nodes=2)
    assert (joules, seconds, valid) == (90.0, 3.0, True)


def test_windows_split_off_wait_for_the_other_node() -> None:
    def work(peers: Paired) -> tuple[float | None, int]:
        meter = Meter(energy.build(Energy(meter="fake"), 0))
        with Ledger(meter, 0.0, peers) as ledger:
            ledger.switch("train")
            for _ in range(3 if peers.is_first else 5):
                ledger.split_if_long()
            assert not ledger.windows
            ledger.close()
            return ledger.total.joules, len(ledger.windows)

    assert in_two(work, nodes=2)[0] == (15.0 * (4 + 6), 4)


def test_what_two_nodes_took_until_a_fault_is_not_valid() -> None:
    def work(peers: Paired) -> tuple[float | None, bool]:
        ledger = Ledger(Meter(energy.build(Energy(meter="fake"), 0)), 0.0, peers)

        def run() -> None:
            with ledger:
                ledger.switch("train")
                ledger.split_if_long()
                raise PeersError("broken off")

        with pytest.raises(PeersError):
            run()
        return ledger.total.joules, any(each.valid for each in ledger.windows)

    assert in_two(work, nodes=2) == [(None, False)] * 2


def test_a_fault_before_a_meeting_within_is_heard_of() -> None:
    def work(peers: Paired) -> str:
        def set_up() -> None:
            if peers.rank == 1:
                raise PeersError("no data here")
            peers.together(lambda: None)

        with pytest.raises(PeersError) as error:
            peers.together(set_up)
        return str(error.value)

    assert in_two(work) == ["rank 1: no data here"] * 2


def test_a_full_disk_of_another_process_is_reported_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process says only that the other is gone."""

    def fill(*_: object, **__: object) -> None:
        raise CannotWriteError("no space left on the device")

    monkeypatch.setattr("tpsprune.pipeline.train", fill)
    beside = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    done = CliRunner().invoke(main, ["train", "digits"], env=beside)
    assert (done.exit_code, done.output) == (2, "Error: rank 1: no space left on the device\n")


def test_only_train_runs_in_several_processes() -> None:
    done = CliRunner().invoke(main, ["recipes"], env={"WORLD_SIZE": "2", "RANK": "0"})
    assert done.exit_code == 2
    assert "only 'train' runs in several" in done.output
    beside = CliRunner().invoke(main, ["recipes"], env={"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"})
    assert (beside.exit_code, beside.output) == (2, "")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            "Connection closed by peer",
            "another process of this run has ended, or does not answer (RuntimeError: Connection",
        ),
        ("Timed out waiting 9ms for recv", "rank 3 does not answer (RuntimeError: Timed out"),
    ],
)
def test_the_roll_is_called_where_nobody_has_hung_up(
    monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    """Where one has, a barrier would keep the connections open by which others hear of it."""
    monkeypatch.setattr(Gathered, "_missing", lambda *_: "rank 3")
    with pytest.raises(PeersError) as raised, Gathered.__new__(Gathered)._moving():
        raise RuntimeError(fault)
    assert str(raised.value).startswith(said)
