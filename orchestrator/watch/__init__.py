# SPDX-License-Identifier: GPL-2.0-only
"""Observing pokes from outside of the guest: GDB with an agent inside, and QEMU's count of int3."""
