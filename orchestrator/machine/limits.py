# SPDX-License-Identifier: GPL-2.0-only
"""Limits of what a machine can be asked for.

They are apart from the code that uses them, so that `--help` need not import that code.
"""

from __future__ import annotations

CHOICES = ("auto", "kvm", "tcg", "tcg-multi", "tcg-single")
"""Values of --accel. `tcg` is tcg-single."""

MAX_SMP = 64
"""Most CPUs of a guest."""

MIN_MEMORY = 128
"""Least memory of a guest, in MiB."""

MAX_MEMORY = 1 << 20
"""Most memory of a guest, in MiB. A host with less of it ends the run as `infra`."""

MAX_SEED = (1 << 63) - 1
"""Largest seed: QEMU and SQLite take 64 bits."""

MAX_DURATION = 86400.0
"""Longest free-running part, in seconds."""
