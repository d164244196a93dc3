/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one relay takes from the other (src/relay/page_receiver.c, page_sender.c): the host that it is on has a certificate of ours, and may
 * still be taken over. The first byte says what the rest is:
 *   b  blocks of records for a destination, u16 length each
 *   a  an answer for a source that has asked nothing
 *
 * Properties: no byte is read that is not there, every block is taken or refused with a code, and QEMU is given no more than what records of
 * that length can come to.
 */
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "relay/page_receiver.h"
#include "relay/page_sender.h"
#include "relay/record.h"

#include "fuzz.h"

static int qemu = -1; /* where all is read and forgotten */

static void *drain(void *user)
{
	static uint8_t buffer[1 << 20];
	while (recv(*(int *)user, buffer, sizeof(buffer), 0) > 0)
		;
	return NULL;
}

static void begin(void)
{
	static int other;
	int fds[2];
	pthread_t thread;
	if (qemu >= 0)
		return;
	REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
	qemu = fds[0];
	other = fds[1];
	REQUIRE(pthread_create(&thread, NULL, drain, &other) == 0);
}

static int reply(void *user, const uint8_t *block, size_t size, struct error **e)
{
	(void)user;
	(void)e;
	REQUIRE(size > 5 && block[0] == RETURN_ANSWER);
	return 0;
}

static void take_blocks(const uint8_t *data, size_t size)
{
	const struct page_receiver_options options = {.fd = qemu, .reply = reply};
	struct bytes bytes = {.data = data, .size_bytes = size};
	struct error *e = NULL;
	struct page_receiver *receiver = page_receiver_new(&options, NULL);
	uint16_t length;
	const uint8_t *block;
	REQUIRE(receiver);
	while (!e && bytes_take_u16(&bytes, &length)) {
		const size_t part = length < bytes_left(&bytes) ? length : bytes_left(&bytes);
		REQUIRE(bytes_take(&bytes, part, &block));
		REQUIRE((page_receiver_take(receiver, block, part, &e) < 0) == (e != NULL));
	}
	if (e)
		REQUIRE(e->code == ERROR_PEER_PROTOCOL || e->code == ERROR_DATA_RELAY);
	error_free(e);
	page_receiver_free(receiver);
}

static void take_answer(const uint8_t *data, size_t size)
{
	const struct page_sender_options options = {.fd = qemu};
	struct error *e = NULL;
	struct page_sender *sender = page_sender_new(&options, NULL);
	REQUIRE(sender);
	/* It has asked nothing: any answer that counts is one too many. */
	const int r = page_sender_answer(sender, data, size, &e);
	REQUIRE((r < 0) == (e != NULL));
	if (e)
		REQUIRE(e->code == ERROR_PEER_PROTOCOL);
	error_free(e);
	page_sender_free(sender);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	begin();
	if (size > 0 && data[0] == 'b')
		take_blocks(data + 1, size - 1);
	else if (size > 0 && data[0] == 'a')
		take_answer(data + 1, size - 1);
	return 0;
}
