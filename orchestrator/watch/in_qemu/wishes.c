// SPDX-License-Identifier: GPL-2.0
/* The host's wishes: to watch something else, to turn to the other log, to look at all text. */
#include "conf.h"
#include "files.h"
#include "guest.h"
#include "switched.h"
#include "text.h"
#include "traced.h"
#include "wishes.h"

qemu_plugin_id_t plugin_id;
pthread_mutex_t recorder_lock = PTHREAD_MUTEX_INITIALIZER;

bool look(void)
{
	if (jump_label_mutex && quad(jump_label_mutex))
		return false;
	look_at_text();
	look_at_branches();
	look_at_calls();
	if (ftrace_lock && !quad(ftrace_lock))
		look_at_traced(true);
	return true;
}

void heed(void)
{
	if (control->reload != control->reloaded) {
		load_conf();
		control->reloaded = control->reload;
		/* What is watched from now on may have been translated without a callback. */
		translate_anew(plugin_id);
	}
	/* Not in the middle of a poke. */
	if (control->turn != control->turned && !(text_mutex && quad(text_mutex)))
		turn_log();
	if (control->look != control->looked && look())
		control->looked = control->look;
}
