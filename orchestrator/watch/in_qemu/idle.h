/* SPDX-License-Identifier: GPL-2.0 */
/* QEMU's main thread, which must sleep before the guest does. */
#ifndef RECORDER_IDLE_H
#define RECORDER_IDLE_H

/* Remember the thread that calls this. */
void find_main_thread(void);

/* The callback before an instruction by which a CPU becomes idle. */
void before_idle(unsigned int vcpu, void *data);

#endif
