# SPDX-License-Identifier: GPL-2.0-only
"""Fault injection: signals, full disks, damaged files, hostile guests, tools and input.

A fault is one `orchestrator ...` command with something going wrong before or while it runs. The
program is used as a user has it: by its command line, its exit status, and the files that it
leaves. Run `make test-faults`, or a part of it:

    PYTHONPATH=tests .venv/bin/python -m faults --count 50 --only 'signal/*'
"""
