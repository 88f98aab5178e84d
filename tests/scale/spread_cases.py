"""What two processes do with a model that lies in parts on both; each case returns JSON."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.scale.nets import RECIPE, Residual, Tied
from tpsprune import pruning, recipe, training
from tpsprune.numerics import offload
from tpsprune.numerics import peers as told
from tpsprune.numerics.peers import Gathered
from tpsprune.pipeline.spread import extract_whole, moments_of, survey_whole, whole_model, whole_models_in
from tpsprune.pipeline.workbench import Run, set_up
from tpsprune.recipe.stop import NoRule
from tpsprune.recipe.train import Train
from tpsprune.signals import updates
from tpsprune.training.loop import fit
from tpsprune.training.spread import largest_open

SPREAD = ("train.spread=shard",)
CPU = torch.device("cpu")


def _bits(tensor: Tensor) -> str:
    return tensor.detach().contiguous().numpy().tobytes().hex()


def _largest_difference(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(float((found[name].double() - wanted[name].double()).abs().max()) for name in wanted)


def _built(seed: int, group: Gathered) -> nn.Module:
    """Build with numbers in the first process alone, and spread."""
    torch.manual_seed(seed)
    with training.without_numbers(group):
        model = Residual()
    model.blocks[0].rise.bias.requires_grad_(requires_grad=False)
    return training.spread_out(model, CPU, group)


def _whole(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = Residual()
    model.blocks[0].rise.bias.requires_grad_(requires_grad=False)
    return model


def weights() -> Any:
    """Return how a model that was built in the first process lies in both."""
    group = Gathered(2)
    model = _built(3, group)
    whole = _whole(3)
    state = {name: told.whole(each) for name, each in model.state_dict().items()}
    parts = [told.own_part(each).numel() for each in model.parameters()]
    gathered = training.gather(model.state_dict(), group)
    return {
        "names": list(state) == list(whole.state_dict()),
        "difference": _largest_difference(state, whole.state_dict()),
        "shift": model.get_buffer("shift").tolist() == [0.25] * 64,
        "persistent": "shift" in state,
        "frozen": [name for name, each in model.named_parameters() if not each.requires_grad],
        "parts": sum(parts),
        "whole": sum(each.numel() for each in whole.parameters()),
        "first_alone": sorted(gathered) if group.rank else [],
    }


def tied() -> Any:
    """Return whether a weight that two modules share outside of the blocks is still one after a step."""
    group = Gathered(2)
    with training.without_numbers(group):
        model = Tied()
    training.spread_out(model, CPU, group)
    optimizer = training.make_optimizer(model, Train(epochs=1))
    functional.cross_entropy(model(torch.rand(8, 64)), torch.arange(8)).backward()
    optimizer.step()
    return {
        "same": model.back.weight is model.stem.weight,
        "equal": bool((told.whole(model.back.weight) == told.whole(model.stem.weight)).all()),
        "parameters": len(list(model.parameters())) == len(list(Tied().parameters())),
    }


def steps(settings: dict[str, Any], steps: int, shards: int, *, fused: bool) -> Any:
    """Train spread and replicated from the same weights; return how far apart the first process finds them.

    Without ``fused`` both move every number by itself; the fused kernels round the ends of vectors otherwise.
    """
    group = Gathered(shards)
    train = Train(epochs=1, batch_size=16, learning_rate=1e-2, shards=shards, **settings)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(96, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 10, (96,), generator=generator)
    found: list[dict[str, Tensor]] = []
    losses: list[list[float]] = []
    for model in (_whole(0), _built(0, group)):
        own = training.make_optimizer(model, train)
        if not fused:
            for each in own.param_groups:
                each |= {"fused": False, "foreach": True}
        ticks = fit(
            model,
            own,
            images,
            labels,
            prepare=Plain(),
            settings=train,
            execution=training.Execution.of(train, CPU),
            seed=0,
            first_step=0,
            last_step=steps,
            total_steps=steps,
            peers=group,
        )
        losses.append([float(tick.loss) for tick in ticks])
        moments = {
            f"{name}/{key}": each
            for name, state in training.state_by_name(own, model).items()
            for key, each in state.items()
        }
        gathered = training.gather({**model.state_dict(), **moments}, group)
        found.append(gathered)
    ours, theirs = found
    return {
        "losses": max(abs(a - b) for a, b in zip(*losses, strict=True)),
        "difference": _largest_difference(theirs, ours) if group.is_first else 0.0,
        "compared": len(ours),
    }


class Plain:
    """No preparation."""

    def __call__(self, inputs: Any, draws: Tensor | None = None) -> Any:
        return inputs

    def draw(self, inputs: Any, generator: torch.Generator) -> None:
        return None


def score(items: int, at_a_time: int) -> Any:
    """Return the scores of a spread model and of it whole, where processes have unequally many chunks.

    A pass with gradients follows: nothing of the scoring may be left in it.
    """
    group = Gathered(2)
    images = torch.rand(items, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    labels = torch.arange(items) % 10
    scoring: Any = importlib.import_module("tpsprune.training.evaluate")
    before, scoring.BATCH_ITEMS = scoring.BATCH_ITEMS, at_a_time
    scores = []
    try:
        for model in (_built(0, group), _whole(0)):
            found = training.evaluate(
                model,
                images,
                labels,
                prepare=lambda each: each,
                execution=training.Execution.of(Train(epochs=1), CPU),
                peers=group,
            )
            scores.append([found.loss, found.accuracy])
            functional.cross_entropy(model.eval()(images), labels).backward()
    finally:
        scoring.BATCH_ITEMS = before
    return scores


def dealt() -> Any:
    """Return whether moments come back from the parts as the first process dealt them out."""
    group = Gathered(2)
    model = _built(0, group)
    generator = torch.Generator().manual_seed(5)
    moments: training.Moments = {}
    if group.is_first:
        moments = {
            name: {"exp_avg": torch.rand(each.shape, generator=generator), "step": torch.tensor(7.0)}
            for name, each in model.named_parameters()
            if name != "stem.bias"
        }
    dealt_out = training.deal_out(moments, model, group)
    back = {name: training.gather(own, group) for name, own in dealt_out.items()}
    held = sum(told.own_part(own["exp_avg"]).numel() for own in dealt_out.values())
    if group.is_first:
        same = all(each.equal(back[name][key]) for name, own in moments.items() for key, each in own.items())
        return {"same": same and back.keys() == moments.keys(), "held": held}
    return {"same": all(not own for own in back.values()), "held": held}


def readings(overrides: list[str], exact_below: int) -> Any:
    """Return what a spread model reads, with sketches from so many weights on; see ``_readings``."""
    before, updates.EXACT_BELOW = updates.EXACT_BELOW, exact_below
    try:
        return _readings(overrides)
    finally:
        updates.EXACT_BELOW = before


def _readings(overrides: list[str]) -> Any:
    """Return a spread model's readings over some steps and, from the first process, those of it whole."""
    group = Gathered(2)
    read = recipe.parse(RECIPE, "spread.toml", [*SPREAD, *overrides])
    replicated = recipe.parse(RECIPE, "spread.toml", overrides)
    found = []
    with set_up(read, "cpu", peers=group) as bench:
        run = Run(bench, _folder(), _ledger())
        model = bench.place(bench.new_model())
        groups = survey_whole(run, 0)
        view = _view(bench, model, groups)
        memories = bench.panel.start()
        for step in (10, 20, 30, 40, 50, 60):
            _move(model)
            memories, own = bench.panel.read(memories, view(step))
            found.append([[each.signal, each.group, each.value, str(each.status)] for each in own])
    if not group.is_first:
        return found
    wanted = []
    with set_up(replicated, "cpu") as bench:
        model = bench.new_model()
        view = _view(bench, model, groups)
        memories = bench.panel.start()
        for step in (10, 20, 30, 40, 50, 60):
            _move(model)
            memories, own = bench.panel.read(memories, view(step))
            wanted.append([[each.signal, each.group, each.value, str(each.status)] for each in own])
    return {"found": found, "wanted": wanted}


def _folder() -> Any:
    from tpsprune.runs import RunFolder

    return RunFolder(Path("no such folder"))


def _ledger() -> Any:
    return None


def _view(bench: Any, model: nn.Module, groups: pruning.GroupTensors) -> Any:
    from tpsprune.signals import View

    def at(step: int) -> View:
        return View(
            model=model,
            calibration_batches=bench.watch_batches,
            step=step,
            epoch=0.0,
            consumers=groups.consumers,
            producers=groups.written,
            norm_scales=groups.scaled,
            blocks=groups.blocks,
            labels=bench.watch_labels,
        )

    return at


@torch.no_grad()
def _move(model: nn.Module) -> None:
    """Move every weight by a share of itself: the same to the bit, in parts or whole."""
    for place, each in enumerate(model.parameters()):
        own = told.own_part(each)
        own.mul_(1.0 + 0.125 / (place + 1)).add_(own.square(), alpha=0.25)


def cut(gather: str, overrides: list[str], folder: str) -> Any:
    """Cut a model whole in the first one; return how the parts of the ticket and of its moments compare."""
    before, offload.LEAST_BYTES = offload.LEAST_BYTES, 2**8
    try:
        return _cut(gather, overrides, folder)
    finally:
        offload.LEAST_BYTES = before


def _cut(gather: str, overrides: list[str], folder: str) -> Any:
    group = Gathered(2)
    read = recipe.parse(RECIPE, "spread.toml", [*SPREAD, f"prune.gather={gather}", *overrides])
    with (
        whole_models_in(Path(folder), read, group) as store,
        set_up(read, "cpu", peers=group, store=store) as bench,
    ):
        run = Run(bench, _folder(), _ledger())
        model = bench.place(bench.new_model())
        state = bench.begin(model, "dense", NoRule())
        ticks = fit(
            model,
            state.optimizer,
            bench.dataset.train.inputs,
            bench.dataset.train.labels,
            prepare=bench.dataset.prepare,
            settings=read.train,
            execution=bench.execution,
            seed=0,
            first_step=0,
            last_step=12,
            total_steps=12,
            peers=group,
        )
        assert len(list(ticks)) == 12
        weights = bench.state_of(model)
        whole = whole_model(run, model, 0)
        extraction = extract_whole(bench.on_host(), whole, read.prune, {"seed": read.seed})
        moments = moments_of(bench, state)
        with bench.holding_whole():
            carried = pruning.carry_state(moments, extraction.plan)
        place = "blocks.1.rise.weight"
        big = [each.get_parameter(place) for each in (whole, extraction.ticket, bench.new_model())]
        if group.is_first:
            big += [weights[place], moments[place]["exp_avg"], carried[place]["exp_avg"]]
        in_files = [each.untyped_storage().filename is not None for each in big if not each.is_meta]
        is_whole = not any(each.is_meta for each in extraction.ticket.parameters())
        ticket = bench.place(extraction.ticket)
        dealt_out = training.deal_out(carried, ticket, group)
        found = bench.state_of(ticket)
        spread_moments = {name: training.gather(own, group) for name, own in dealt_out.items()}
        parts = sum(told.own_part(each).numel() for each in ticket.parameters())
        result: dict[str, Any] = {"plan": extraction.plan.to_json()["groups"], "is_whole": is_whole}
        result["in_files"] = sum(in_files)
        result |= {"parts": parts, "numbers": sum(each.numel() for each in ticket.parameters())}
        kept = [
            told.own_part(each)
            for each in (*ticket.parameters(), *(each for own in dealt_out.values() for each in own.values()))
        ]
        result["in_memory"] = all(each.untyped_storage().filename is None for each in kept)
        result["kept"] = all(
            each.untyped_storage().nbytes() <= each.nbytes + 2 * each[:1].nbytes for each in kept if each.ndim
        )
    if not group.is_first:
        return result
    # What one process does with the same weights, from nothing that the spread run made.
    replicated = recipe.parse(RECIPE, "spread.toml", overrides)
    with set_up(replicated, "cpu") as alone:
        plain = alone.new_model(fill=False)
        plain.load_state_dict(weights)
        wanted = pruning.extract(plain, bench.prune_batches, replicated.prune, seed=replicated.seed)
    own_moments = pruning.carry_state(moments, wanted.plan)
    result["same_plan"] = wanted.plan.to_json() == extraction.plan.to_json()
    result["difference"] = _largest_difference(found, wanted.ticket.state_dict())
    result["moments"] = max(
        _largest_difference(spread_moments[name], own) for name, own in own_moments.items()
    )
    return result


def checkpoints(folder: str) -> Any:
    """Write the parts of a model three times; return which slot each time counts, the sums, and who wrote."""
    from tpsprune.pipeline.slots import parts_of, read_slot, set_current, write_parts
    from tpsprune.runs import RunFolder

    group = Gathered(2)
    home = RunFolder(Path(folder))
    own = home if group.is_first else RunFolder(Path(folder) / "scratch", is_scratch=True, home=home.path)
    model = _built(0, group)
    names = []
    for _ in range(3):
        _move(model)
        optimizer = {f"optimizer:{name}/exp_avg": each * 2 for name, each in model.named_parameters()}
        held = {f"model:{name}": each for name, each in model.state_dict().items()}
        tensors = {k: v.detach() for k, v in {**held, **optimizer}.items() if hasattr(v, "full_tensor")}
        slot = write_parts(own, tensors, group)
        names.append(slot.name)
        if group.is_first and len(names) < 3:  # The third is left as a kill would leave it.
            set_current(home, slot)
        if len(names) == 2:
            sums = {k: _bits(told.whole(v)) for k, v in tensors.items()}
            files = sorted(each.name for each in parts_of(own, slot).iterdir())
        group.gather(None)
    current = read_slot(home)
    return {"names": names, "current": current and current.name, "bits": sums, "files": files}


def refused(overrides: list[str]) -> str:
    """Return the message of a set-up that is refused."""
    from tpsprune.errors import TpspruneError

    group = Gathered(2)
    try:
        group.together(lambda: set_up(recipe.parse(RECIPE, "spread.toml", overrides), "cpu", peers=group))
    except TpspruneError as error:
        return str(error)
    return ""


def largest_share() -> Any:
    """Return the largest share of a model's weights that lay open in a process while it trained a step."""
    group = Gathered(2)
    model = _built(0, group)
    total = sum(each.numel() for each in model.parameters())
    seen = [0]

    def look(*_: Any) -> None:
        is_open = [each for each in model.parameters() if not hasattr(each, "full_tensor")]
        seen[0] = max(seen[0], sum(each.numel() for each in is_open))

    for module in model.modules():
        module.register_forward_hook(look)
        module.register_full_backward_hook(look)
    model(torch.rand(4, 64)).sum().backward()
    closed = all(hasattr(each, "full_tensor") for each in model.parameters())
    with torch.no_grad():
        model(torch.rand(4, 64))
    closed = closed and all(hasattr(each, "full_tensor") for each in model.parameters())
    return {"seen": seen[0], "counted": largest_open(_whole(0)), "total": total, "closed": closed}
