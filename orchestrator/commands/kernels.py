# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator kernels`: list, show, fetch and build kernels, and clean the cache."""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

from orchestrator.commands import document
from orchestrator.commands.options import add_kernel, add_verbosity, kernel_request
from orchestrator.errors import EXIT_PASS, EXIT_UNTESTABLE
from orchestrator.options import number, seconds

if TYPE_CHECKING:
    from orchestrator.kernel.model import Kernel

NAME = "kernels"
HELP = "list, show, fetch or build kernels; clean or verify the cache"
EXAMPLES = (
    ("kernels list", ""),
    ("kernels show --kernel debian:6.12", "how that kernel patches its code"),
    ("kernels clean --keep 10", "shrink the cache to 10 GiB"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION", parser_class=type(parser))
    listed = actions.add_parser(
        "list", help="list kernels available by name, and those in the cache"
    )
    listed.set_defaults(action=_list)
    build = actions.add_parser("build", help="fetch and build a kernel and print its location")
    add_kernel(build)
    build.set_defaults(action=_build)
    show = actions.add_parser(
        "show", help="boot a kernel once and show how it patches its own code"
    )
    add_kernel(show)
    show.set_defaults(action=_show)
    fetch = actions.add_parser("fetch", help="download packages and sources without building")
    fetch.add_argument(
        "kernels",
        nargs="+",
        metavar="KERNEL",
        help="name of a kernel, as for `orchestrator run --kernel`",
    )
    fetch.set_defaults(action=_fetch)
    clean = actions.add_parser(
        "clean",
        help="show cache usage; remove entries not used recently",
        description="Without --older-than and --keep, only shows how much the cache holds.",
    )
    clean.add_argument(
        "--older-than",
        type=seconds,
        metavar="TIME",
        help="remove entries not used for TIME (30d, 12h)",
    )
    clean.add_argument(
        "--keep",
        type=number(0, 1e9),
        metavar="GIB",
        help="remove the least recently used entries until GIB remain",
    )
    clean.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    clean.set_defaults(action=_clean)
    verify = actions.add_parser("verify", help="read everything in the cache and find damage")
    verify.set_defaults(action=_verify)
    for action in (listed, build, show, fetch, clean, verify):
        document.add_json(action)
    for action in (build, fetch, show):
        add_verbosity(action, guest=action is show)


def main(options: argparse.Namespace) -> int:
    return int(options.action(options))


def _list(options: argparse.Namespace) -> int:
    from orchestrator.kernel import cache

    cached = cache.kernels()
    by_name = {kernel.name for kernel in cached}
    if options.json:
        return document.show(
            "kernels list",
            definitions=[
                {"name": name, "description": description, "cached": name in by_name}
                for name, description in cache.definitions().items()
            ],
            debian=[
                {"name": name, "suite": suite, "headers": headers, "cached": name in by_name}
                for name, (suite, headers) in cache.offered().items()
            ],
            cached=[dataclasses.asdict(kernel) for kernel in cached],
        )
    print("from kernels/, built from source:")
    for name, description in cache.definitions().items():
        builds = sum(1 for kernel in cached if kernel.name == name)
        print(f"  {name:<24} {f'{builds} in the cache' if builds else '':<16} {description}")
    print("\nDebian images on this machine's mirror (debian:6.1 is the newest 6.1 with headers):")
    for selector, (suite, headers) in cache.offered().items():
        state = "in the cache" if selector in by_name else ""
        note = "" if headers else ", no headers: runs without the test module"
        print(f"  {selector:<24} {state:<16} {suite}{note}")
    others = [
        kernel
        for kernel in cached
        if kernel.name not in cache.definitions() and not kernel.name.startswith("debian:")
    ]
    if others:
        print("\nin the cache, from elsewhere:")
    for kernel in others:
        count = len(kernel.patches)
        patched = f"{count} patch{'' if count == 1 else 'es'}"
        print(f"  {kernel.name:<24} {kernel.release:<16} {patched}")
    print(
        "\nalso: --tree PATH, --kernel git:WHERE@REF, --bzimage FILE; "
        "`orchestrator kernels show` describes a kernel"
    )
    return 0


def _show(options: argparse.Namespace) -> int:
    from orchestrator.run import inspect_kernel

    kernel, traits = inspect_kernel(kernel_request(options))
    if options.json:
        return document.show("kernels show", kernel=_kernel(kernel), facts=traits)
    about = {
        "release": kernel.release,
        "digest": kernel.digest[:24],
        "image": str(kernel.bzimage),
    }
    about |= {name: text for name, text in kernel.origin.items() if text not in ("", "none")}
    about["modules"] = "can be built" if kernel.kbuild else "cannot be built: no headers"
    print(kernel.name)
    for name, text in (about | traits).items():
        first, *more = text.split("; ")
        print(f"  {name + ':':<18} {first}", *(f"{'':20} {line}" for line in more), sep="\n")
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from orchestrator.kernel.obtain import fetch

    fetched = []
    for selector in options.kernels:
        fetched.append({"name": selector, "directory": fetch(selector)})
        if not options.json:
            print(f"{selector}: {fetched[-1]['directory']}")
    return document.show("kernels fetch", fetched=fetched) if options.json else EXIT_PASS


def _build(options: argparse.Namespace) -> int:
    from orchestrator.kernel.obtain import obtain

    kernel = obtain(kernel_request(options))
    if options.json:
        return document.show("kernels build", kernel=_kernel(kernel))
    print(f"{kernel.name} {kernel.release} {kernel.digest}\n{kernel.bzimage}")
    return 0


def _clean(options: argparse.Namespace) -> int:
    from orchestrator import ui
    from orchestrator.kernel import cache

    left = cache.leftovers() if options.dry_run else cache.remove_leftovers()
    only_show = options.older_than is None and options.keep is None
    keep = None if options.keep is None else int(options.keep * (1 << 30))
    with ui.step("looking through the cache"):  # a million files take a minute
        cleaned = cache.clean(older=options.older_than, keep=keep, dry=options.dry_run)
        # The entries that stay, for a look; those that go, otherwise.
        entries = [*left, *([*cache.items(), *cache.others()] if only_show else cleaned)]
    if options.json:
        rows = [
            {
                "kind": entry.kind,
                "name": entry.path.name,
                "bytes": entry.size,
                "used": entry.used,
                "removed": not options.dry_run and (not only_show or entry in left),
            }
            for entry in entries
        ]
        return document.show("kernels clean", entries=rows)
    done = "would be removed" if options.dry_run else "removed"
    sizes: Counter[str] = Counter()
    for entry in entries:
        sizes[entry.kind] += entry.size
    if only_show:
        for kind, size in sizes.most_common():
            print(f"{_gib(size):7.2f} GiB  {kind}{f': {done}' if kind == cache.LEFTOVERS else ''}")
        total = _gib(sizes.total() - sizes[cache.LEFTOVERS])
        print(f"{total:7.2f} GiB  in total; --older-than 30d or --keep 10 (GiB) frees some of it")
        return EXIT_PASS
    for entry in entries:
        leftover = entry.kind == cache.LEFTOVERS
        name = f"{entry.path.name}, {entry.kind}" if leftover else f"{entry.kind}/{entry.path.name}"
        print(f"{entry.size / (1 << 20):9.1f} MiB  {name}")
    print(f"{_gib(sizes.total()):.2f} GiB {'would be' if options.dry_run else 'were'} freed")
    return EXIT_PASS


def _verify(options: argparse.Namespace) -> int:
    from orchestrator.kernel import cache

    count, bad = 0, []
    for entry, damaged in cache.verify():
        count += 1
        if damaged:
            bad.append({"kind": entry.kind, "name": entry.path.name, "files": damaged})
            names = ", ".join(damaged[:5]) + (" …" if len(damaged) > 5 else "")
            text = f"{entry.kind}/{entry.path.name}: damaged ({names}), made again when next used"
            if not options.json:
                print(text)
    status = EXIT_UNTESTABLE if bad else EXIT_PASS
    if options.json:
        return document.show("kernels verify", status, read=count, damaged=bad)
    print(f"{count} entries read, {len(bad)} damaged")
    return status


def _kernel(kernel: Kernel) -> dict[str, Any]:
    """A kernel as JSON values."""
    return {
        "name": kernel.name,
        "release": kernel.release,
        "digest": kernel.digest,
        "image": kernel.bzimage,
        "headers": kernel.kbuild,
        "origin": kernel.origin,
    }


def _gib(size: int) -> float:
    return size / (1 << 30)
