# SPDX-License-Identifier: GPL-2.0-only
"""A matrix of runs, on this host or on a cluster."""
