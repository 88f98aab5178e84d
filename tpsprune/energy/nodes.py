"""Windows of several machines that worked on one run, as one: each machine is metered once, joules add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tpsprune.records import Window


def join_nodes(own: Window, others: Mapping[int, Sequence[Window]]) -> Window:
    """Return the first node's window with what the other nodes metered meanwhile, by component and node.

    Components of node k are called ``node k cpu`` and so on. Seconds are the first node's: the nodes wait for
    one another where a window ends. Processor seconds add up. Where a node has no window, one without energy
    though the first has some, or one that is not valid, the whole has no joules and is not valid: a sum with
    a part missing would pass for a saving.
    """
    joules, classes, fault = dict(own.joules), dict(own.classes), own.fault
    for node, windows in others.items():
        if not windows:
            fault = fault or f"node {node} did not report '{own.phase}' {own.index}"
        for each in windows:
            if own.joules and not each.joules:
                fault = fault or f"node {node} metered nothing in '{own.phase}' {own.index}"
            if not each.valid:
                fault = fault or f"node {node}: {each.fault}"
            for part, kind in each.classes.items():
                classes[f"node {node} {part}"] = kind
            for part, value in each.joules.items():
                name = f"node {node} {part}"
                joules[name] = joules.get(name, 0.0) + value
    is_missing = any(
        not windows or any(own.joules and not each.joules for each in windows) for windows in others.values()
    )
    return replace(
        own,
        joules={} if is_missing else joules,
        classes=classes,
        cpu_seconds=own.cpu_seconds + sum(each.cpu_seconds for own_ in others.values() for each in own_),
        valid=not fault,
        fault=fault,
    )
