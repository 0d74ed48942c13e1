# SPDX-License-Identifier: GPL-2.0-only
"""Command line of the fault injection; `--help` says what it takes."""

from __future__ import annotations

import argparse
import sys
import time

from faults import campaign
from faults.kinds import FAULTS
from faults.world import Unusable, World


def main() -> int:
    options = _options()
    faults = [fault for fault in FAULTS if fault.short or not options.short]
    pairs = campaign.select(faults, options.seed, options.count, options.only)
    if options.list:
        for fault, number in pairs:
            print(f"{fault.name}#{number}")
        return 0
    if not pairs:
        print("faults: nothing matches", file=sys.stderr)
        return 2
    world = World.fresh()
    start = time.monotonic()
    try:
        world.prepare()
    except Unusable as error:
        print(f"faults: {error}", file=sys.stderr)
        return 2
    mounts = " ".join(world.namespace) or "impossible here, so limits on file sizes stand in"
    print(f"{len(pairs)} faults, seed {options.seed}, {options.jobs} at a time, in {world.scratch}")
    print(f"limits times {world.scale:.1f} (by the speed of a normal run); small disks: {mounts}")
    results = []
    for result in campaign.run_all(pairs, options.seed, world, options.jobs):
        results.append(result)
        print(f"{len(results):>4} {campaign.line(result)}", flush=True)
    print(f"\n{campaign.table(results, options.seed)}")
    bad = sum(bool(result.findings) for result in results)
    print(
        f"\n{len(results)} faults, {bad} with findings, {(time.monotonic() - start) / 60:.0f} min"
    )
    if not bad:
        world.remove()
    return int(bad > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="faults", description="Inject faults into `orchestrator`."
    )
    parser.add_argument("--count", type=int, help="number of faults (default: all once)")
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of every random choice (default: 1)"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="GLOB",
        help="only faults whose name matches, such as 'signal/*' or 'gdb/slow#2' (repeatable)",
    )  # fmt: skip
    parser.add_argument("--short", action="store_true", help="only the part that `make test` runs")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time (default: 2)")
    parser.add_argument("--list", action="store_true", help="print the names and do nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
