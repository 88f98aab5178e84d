"""Break the code in forty-odd places, one at a time, and see that the tests of its room fail.

    python tests/mutations.py            # some minutes; exit code 1 where a mutation lives
    python tests/mutations.py edge fold  # those whose name contains a word

Not collected by pytest: the suite says that the code is right, this says that the suite would notice.
Each mutation replaces a text that stands in the package exactly once, in a copy of the checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("tpsprune", "tpsprune_studies", "tests", "recipes", "reports", "docs", "examples", "benchmarks")
FILES = ("pyproject.toml", "conftest.py", "README.md", "constraints.txt")


@dataclass(frozen=True)
class Mutation:
    name: str
    tests: str
    found: str
    written: str


TABLE = """
numerics   | effective rank         | torch.special.entr(share_k).sum(-1) => torch.special.entr(share_k).mean(-1)
numerics   | participation ratio    | share_k.square().sum(-1).reciprocal() => share_k.sum(-1).reciprocal()
numerics   | bias of the ratio      | 1.0 / ratio - 1.0 / rows => 1.0 / ratio + 1.0 / rows
numerics   | edge place             | Edge(best + 1 => Edge(best
numerics   | edge stability         | moved / gap.square() => moved / gap
numerics   | triadic force          | - push.imag * cosine_n => + push.imag * cosine_n
numerics   | triplet centring       | o_mc - o_mc.mean(1, keepdim=True) => o_mc - o_mc.mean()
numerics   | mean interval          | statistics.stdev(found) => statistics.pstdev(found)
numerics   | fisher's tail          | range(hits, min(tried => range(hits + 1, min(tried
numerics   | sign flips             | * (1.0 - ROUNDING) => * (1.0 + ROUNDING)
numerics   | lower bound            | _t_quantile(len(values) - 1, confidence) => _t_quantile(len(values), confidence)
numerics   | teacher's slope        | return temperature**2 * divergence => return divergence
training   | factors clipped        | trains.parameters(), settings.clip_norm => model.parameters(), settings.clip_norm
training   | change let in          | self.steps[0] += 1 => self.steps[0] += 0
stopping   | plateau spread         | max(window) - min(window) => abs(window[-1] - window[0])
stopping   | patience gain          | sign * (value - best) > => sign * (value - best) >=
stopping   | threshold in a row     | held = memory.held + 1 if holds else 0 => held = memory.held + 1
stopping   | share learned          | (accuracy - chance) / (1.0 - chance) => accuracy
stopping   | validation needed      | return worst != best => return False
claims     | interval includes zero | change.low <= 0 <= change.high => False
claims     | sign flip rung         | change.p_sign_flip >= alpha => change.p_sign_flip >= 1.1
claims     | power model            | if least.saving_share <= 0 <= most.saving_share => if False
claims     | every size is kept     | for each in sizes for reason in lost(each => for each in sizes[:0] for reason in lost(each
pipeline   | a step of every shape  | shapes.setdefault(span.arm, []) => shapes.setdefault(arm, [])
claims     | part of a sum missing  | if metered and len(metered) == len(joules) => if metered
energy     | window bracket         | low <= seconds <= high => low <= seconds
energy     | counter turns          | outer * _HIGHEST_PACKAGE_WATTS > => outer >
energy     | gpu counter            | abs(joules["gpu"] - gpu_counter_joules) <= allowed_joules => abs(joules["gpu"] - gpu_counter_joules) <= 1e9
runs       | torn line              | if _from_line(content[tail_at:]) is None: => if False:
runs       | name twice             | if len(found) != len(pairs): => if False:
runs       | lock                   | _take(lock, handle, remedy) => lock.exists()
export     | file hash              | if found.sha256 != stamp.sha256: => if False:
export     | seal                   | hashlib.sha256(match[1]).hexdigest().encode() != match[2] => False
export     | link out               | path.is_symlink() and not path.resolve() => False and not path.resolve()
data       | stratified order       | (rank.double() + 0.5) / sizes[sorted_labels] => rank.double() + 0.5
data       | split leaks            | split.at(order_n[drawn:]), split.at => split.at(order_n), split.at
data       | idx head               | wanted = UINT8_CODE << 8 | axes => wanted = magic
training   | warm-up                | (step + 1) / (warmup_steps + 1) => step / (warmup_steps + 1)
training   | augmentation by epoch  | augmentation_generator(seed, epoch) => augmentation_generator(seed, 0)
training   | layout by a rule       | kernel > stride for kernel => kernel >= stride for kernel
training   | grokfast memory        | 1.0 - self._memory) => self._memory)
training   | muon's momentum        | lerp_(weight.grad, 1 - momentum) => lerp_(weight.grad, momentum)
training   | filters as rows        | momentum).flatten(1) => momentum).flatten(0, -2)
training   | state of another rule  | not optimizer.takes(parameter, state[name]) => False
tps        | coupling's warm-up     | return self._coupling * step / self._warmup_steps => return self._coupling
signals    | pooled covariance      | covariance_nn / trace.masked_fill(trace == 0, 1.0) => covariance_nn
signals    | edge window            | kept = self.window + 1 => kept = self.window + 2
signals    | opposite twins         | (unit_ud @ unit_ud.T).abs() => (unit_ud @ unit_ud.T)
signals    | mask distance          | .float().mean(1).amax()) => .float().mean(1).amin())
pruning    | ridge prior            | (yx_nk - removal_nk @ xx_kk).T => yx_nk.T
pruning    | systems refined        | found_gpq += torch.cholesky_solve( => found_gpq + torch.cholesky_solve(
pruning    | signals of rounding    | if bool(constant_gp.any()): => if False:
pruning    | consumer in the ticket | (kept_c.cumsum(0) - 1)[own] => own
pruning    | scale of the queries   | 1.0 / scale_held(group, len(each.kept)) => scale_held(group, len(each.kept))
pruning    | sensitivity            | .to(rows_npq).sqrt() => .to(rows_npq)
pruning    | selection              | gains_u.argmax() if picked is None => gains_u.argmin() if picked is None
pruning    | proof                  | if not difference <= _tolerance(ticket): => if False:
pruning    | share counted          | if found > target + SLACK: => if False:
pruning    | optimizer state        | (take(value, kept.get(name, {})) if fits else value).clone() => value.clone()
pruning    | memory format          | return taken.contiguous(memory_format=channels_last) => return taken
pruning    | multiples of eight     | width >= FEWEST_STEPS * step => width >= step
pruning    | best of the repair     | if found < least: => if found > least:
pruning    | tokens followed        | return self._calls.popleft() if self._calls => return None if self._calls
pruning    | flags of experts       | any(part.requires_grad for parts in tensors for part in parts) => False
pruning    | weight of the moment   | x = _some_input(plain, seed=1) => x = _some_input(plain)
pruning    | tied widths            | return tuple(widths[rank] for rank in self.of_group) => return tuple(widths)
pruning    | estimate of a cut      | intercept_r = mean_n[removed_r] - map_rk @ mean_n[kept_k] => intercept_r = mean_n[removed_r]
export     | number of heads        | if value != dense.get((place, name)) or any(part in name for part in _OF_HEADS) => if False
pipeline   | held out of the repair | others[held] = False => others[held] = True
pruning    | flag of a new bias     | nn.Parameter(zeros_o, requires_grad=weight.requires_grad) => nn.Parameter(zeros_o)
pruning    | reduced rank           | directions_gqq[:, :, weight_gqp.shape[1] - rank :] => directions_gqq[:, :, :rank]
pruning    | split proved           | if not difference <= _tolerance(whole): => if False:
pruning    | ranks go back          | if not back: => if True:
pruning    | weight read elsewhere  | if not pair.was_read] => ]
pruning    | outputs kept           | if kept is not None: => if False:
pruning    | sizes nested           | tuple(map(max, least, map(min, widths, most))) => tuple(map(max, least, widths))
pruning    | further size beyond    | tuple(map(max, least, map(min, widths, most))) => tuple(map(min, widths, most))
pruning    | look in order          | sorted(units.tolist()) != list(range(group.width)) => False
pruning    | bytes of an element    | += tensor.element_size() => += 4
pruning    | mismatch of norms      | (variance_c / run_c).add(1e-8).sqrt() - 1 => (variance_c / run_c) - 1
pruning    | best items kept        | if losses[-1] == min(losses): => if True:
export     | tensors alike          | if shared.get(name) == digest] => if name in shared]
pruning    | units found            | units = assign(cost_kn) => units = assign(-cost_kn)
pipeline   | budget                 | spent.seconds >= stop.budget_seconds => spent.seconds >= 1e9
cli        | exit code              | exit_code = 2 => exit_code = 1
runs/test_tensors.py | parts in a row | or begin != position => or False
runs/test_tensors.py | nothing behind the parts | tensors.keys() != facts.keys() or file.read(1) => tensors.keys() != facts.keys()
scale/test_peers.py | own shards | range(self.rank, self.shards, self.size) => range(self.rank, self.shards)
training/test_shards.py | mean of running moments | buffer.copy_(before + moved / shards) => buffer.copy_(before + moved)
energy/test_nodes.py | node without a window | fault = fault or f"node {node} did not report => fault or f"node {node} did not report
energy/test_nodes.py | joules of two nodes | joules[name] = joules.get(name, 0.0) + value => joules[name] = value
scale/test_spread.py | gathered into files | found[name] = one.to("cpu", copy=True) => found[name] = one.to("cpu")
scale/test_spread.py | gradients of parts | sharded.set_gradient_divide_factor(1.0) => sharded.set_gradient_divide_factor(2.0)
numerics/test_offload.py | pages dropped | if self._resident > RESIDENT_BYTES: => if False:
"""
"""The room whose tests must fail, a name, and the text found => the text written in its place."""


def read_mutations() -> list[Mutation]:
    mutations = []
    for line in TABLE.strip().splitlines():
        tests, name, change = line.split(" | ", 2)
        found, written = change.split(" => ")
        mutations.append(Mutation(name.strip(), tests.strip(), found, written))
    return mutations


def package_files(root: Path) -> list[Path]:
    return sorted(
        path for package in ("tpsprune", "tpsprune_studies") for path in (root / package).rglob("*.py")
    )


def is_killed(mutation: Mutation, copy: Path) -> bool:
    """Return whether the room's tests fail with the mutation in place."""
    places = [path for path in package_files(copy) if mutation.found in path.read_text(encoding="utf-8")]
    texts = [path.read_text(encoding="utf-8") for path in places]
    if [text.count(mutation.found) for text in texts] != [1]:
        raise SystemExit(
            f"{mutation.name}: {mutation.found!r} must stand in the package once, found in {places}"
        )
    try:
        places[0].write_text(texts[0].replace(mutation.found, mutation.written), encoding="utf-8")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(copy),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            f"tests/{mutation.tests}",
        ]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in {0, 1}:
            raise SystemExit(f"{mutation.name}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}")
        return done.returncode == 1
    finally:
        places[0].write_text(texts[0], encoding="utf-8")


def main() -> None:
    words = sys.argv[1:]
    asked = [each for each in read_mutations() if not words or any(word in each.name for word in words)]
    alive = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        for name in FILES:
            shutil.copy(ROOT / name, copy / name)
        for mutation in asked:
            started = time.monotonic()
            killed = is_killed(mutation, copy)
            alive += [] if killed else [mutation.name]
            seconds = time.monotonic() - started
            print(
                f"{'killed' if killed else 'LIVES':7} {mutation.tests:9} {mutation.name} ({seconds:.0f} s)",
                flush=True,
            )
    print(
        f"{len(asked) - len(alive)} of {len(asked)} killed"
        + (f"; alive: {', '.join(alive)}" if alive else "")
    )
    sys.exit(bool(alive))


if __name__ == "__main__":
    main()
