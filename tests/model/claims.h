/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the models share: a claim that says its name when it breaks, and a count of the handover's steps that were taken, which
 * pan prints at its end so that check.py can compare them with handover.tbl.
 */
c_decl {
\#include <stdio.h>
\#include <stdlib.h>
\#include <string.h>
	static const char *steps_seen[64];
	static int steps_count;
	static void steps_print(void)
	{
		for (int i = 0; i < steps_count; i++)
			printf("step %s\n", steps_seen[i]);
	}
	static void steps_begin(void)
	{
		static int registered;
		if (!registered++)
			atexit(steps_print);
	}
	/* The names are literals, one for each place in the model, so that the same place has the same address. */
	static void step_taken(const char *name)
	{
		for (int i = 0; i < steps_count; i++)
			if (steps_seen[i] == name || strcmp(steps_seen[i], name) == 0)
				return;
		if (steps_count < 64)
			steps_seen[steps_count++] = name;
	}
	static void claim_broken(const char *name)
	{
		printf("claim broken: %s\n", name);
	}
}

#define CLAIM(name, condition)                                                                                                \
	if                                                                                                                    \
	:: (condition)                                                                                                        \
	:: else -> c_code { claim_broken(name); }; assert(false)                                                               \
	fi;
