# SPDX-License-Identifier: GPL-2.0-only
"""One guest: its QEMU process, and the channels to it (console, QMP, ssh, GDB's socket)."""
