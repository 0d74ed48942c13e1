# SPDX-License-Identifier: GPL-2.0-only
"""A user's GDB: on a new guest, on a kept one, or on the symbols of a finished run.

A guest belongs to the process that booted it, and ends with that process. That process writes two
files into the run's directory: symbols.json when the test module has been loaded, and live.json,
which exists for as long as a GDB can attach.

notes.py    writes symbols.json, and reads and checks both files
owner.py    the process that owns the guest: it accepts GDB and runs its commands in the guest
client.py   the process that attaches: it finds the run and becomes GDB
in_gdb.py   runs inside GDB: it opens the run, and adds the command `guest`

For the whole session GDB holds a connection to a unix socket of the owner. It sends the commands
to run in the guest over it, and the end of the connection tells the owner that GDB has quit.
"""
