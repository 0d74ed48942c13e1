# SPDX-License-Identifier: GPL-2.0-only
"""From a request to a kernel that boots: obtain.py is the way in, kinds/ has one file a kind."""
