/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A scripted QMP server for tests: a thread that plays a list of steps on one end of a socket pair. What does not go by
 * the script (another command, other arguments, an early end) ends the connection and is reported by fake_qmp_end().
 */
#ifndef FERRY_TESTS_FAKE_QMP_H
#define FERRY_TESTS_FAKE_QMP_H

enum fake_qmp_kind {
	/* Send text as it is; "$N" in it stands for the id of the Nth command that was expected, counted from 1. */
	FAKE_QMP_SEND,
	/* As FAKE_QMP_SEND, each byte by itself. */
	FAKE_QMP_SEND_BYTES,
	/* Read a command: "NAME", "exec-oob:NAME", with " ARGUMENTS" behind it when these are to be compared. */
	FAKE_QMP_EXPECT,
	/* As FAKE_QMP_EXPECT, with a descriptor beside it: see fake_qmp_received_fd(). */
	FAKE_QMP_EXPECT_FD,
	/* Read so many bytes, whatever they are. */
	FAKE_QMP_READ,
	/* Wait for one fake_qmp_open_gate(). */
	FAKE_QMP_GATE,
	/* Send so many bytes without a newline; the client may hang up meanwhile. */
	FAKE_QMP_FLOOD,
	/* Answer every command with {} until the client hangs up. */
	FAKE_QMP_SERVE,
	/* Wait until the client hangs up; a command is an error. */
	FAKE_QMP_EXPECT_END,
	/* Hang up; also what the end of the list does. */
	FAKE_QMP_CLOSE
};

struct fake_qmp_step {
	enum fake_qmp_kind kind;
	const char *text;
	unsigned long count;
};

#define FAKE_QMP_GREETING_OOB                                                                                          \
	{                                                                                                              \
		FAKE_QMP_SEND,                                                                                         \
			"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}}, "            \
			"\"capabilities\": [\"oob\"]}}\r\n",                                                           \
			0                                                                                              \
	}
/* The three steps with which every ordinary connection begins; the command is $1. */
#define FAKE_QMP_HELLO                                                                                                 \
	FAKE_QMP_GREETING_OOB, {FAKE_QMP_EXPECT, "qmp_capabilities {\"enable\": [\"oob\"]}", 0},                       \
	{                                                                                                              \
		FAKE_QMP_SEND, "{\"return\": {}, \"id\": $1}\r\n", 0                                                   \
	}

struct fake_qmp;

/* Play steps (count of them); *ret_client_fd is the caller's (qmp_new() takes it). */
struct fake_qmp *fake_qmp_new(const struct fake_qmp_step *steps, unsigned long count, int *ret_client_fd);
#define FAKE_QMP_NEW(steps, ret_client_fd) fake_qmp_new(steps, sizeof(steps) / sizeof((steps)[0]), ret_client_fd)
void fake_qmp_open_gate(struct fake_qmp *fake);
/* The descriptor of the last FAKE_QMP_EXPECT_FD: the fake's. -1 when there was none. After its step is over. */
int fake_qmp_received_fd(struct fake_qmp *fake);
/* Wait for the end of the script, free the fake. NULL if all went by the script, else what did not (free it). */
char *fake_qmp_end(struct fake_qmp *fake);

#endif
