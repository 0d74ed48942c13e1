# SPDX-License-Identifier: GPL-2.0-only
"""What goes into the guest (initramfs, test module), and what its console output means."""
