/* SPDX-License-Identifier: GPL-2.0 */
/* What the host asks for in struct control. */
#ifndef RECORDER_WISHES_H
#define RECORDER_WISHES_H

#include <pthread.h>
#include <stdbool.h>

#include "qemu-plugin.h"

extern qemu_plugin_id_t plugin_id;

/* Held while the guest is looked at, for tcg,thread=multi. */
extern pthread_mutex_t recorder_lock;

/* Do what the host wishes, before anything else is looked at. */
void heed(void);

/* Compare all of the kernel's text to what it should be. Returns false if it cannot be done now. */
bool look(void);

#endif
