# SPDX-License-Identifier: GPL-2.0-only
"""What a machine may be asked for. Apart from the code that uses it, so that `--help` imports none of that."""

from __future__ import annotations

CHOICES = ("auto", "kvm", "tcg", "tcg-multi", "tcg-single")
"""Values of --accel. `tcg` is tcg-single."""

MAX_SMP = 64
"""Most CPUs of a guest."""

MIN_MEMORY = 128
"""Least memory of a guest, in MiB."""
