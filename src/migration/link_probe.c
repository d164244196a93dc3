/* SPDX-License-Identifier: Apache-2.0 */
/* A probe of a link; see link_probe.h. What is sent is random, for links that compress. */
#include "migration/link_probe.h"

#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/xalloc.h"

#define CHUNK_BYTES ((size_t)1024 * 1024)
#define SETTLE_PART 4 /* of the time: until TCP has found its speed */
#define UNSENT_BYTES_MAX (256 * 1024) /* in the socket; more tells nothing, and has to be got rid of again */
#define TELLING_BYTES 4096

static int look(int fd, uint64_t *ret_acknowledged_bytes, int64_t *ret_round_trip_us, struct error **e)
{
	struct tcp_info info = {0};
	socklen_t size = sizeof(info);
	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0)
		return error_set_errno(e, ERROR_SYSTEM, errno, "what has been acknowledged is not known");
	*ret_acknowledged_bytes = info.tcpi_bytes_acked;
	*ret_round_trip_us = info.tcpi_min_rtt;
	return 0;
}

/* Send until then, or until so much is on its way. */
static int send_until(int fd, const unsigned char *chunk, int64_t until_us, uint64_t limit_bytes, uint64_t *sent_bytes, struct error **e)
{
	while (clock_monotonic_us() < until_us && (!limit_bytes || *sent_bytes < limit_bytes)) {
		ssize_t n = send(fd, chunk, CHUNK_BYTES, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n > 0) {
			*sent_bytes += (uint64_t)n;
		} else if (n < 0 && errno != EAGAIN && errno != EINTR) {
			return error_set_errno(e, ERROR_SYSTEM, errno, "the connection broke");
		} else {
			struct pollfd wait = {.fd = fd, .events = POLLOUT};
			const int64_t left_ms = (until_us - clock_monotonic_us() + 999) / 1000;
			(void)poll(&wait, 1, left_ms > 0 ? (int)left_ms : 0);
		}
	}
	return 0;
}

int link_probe(int fd, int64_t for_ms, uint64_t limit_bytes, uint64_t *ret_bytes_per_s, int64_t *ret_round_trip_us, struct error **e)
{
	const int unsent_bytes_max = UNSENT_BYTES_MAX;
	const int64_t began_us = clock_monotonic_us();
	cleanup_free unsigned char *chunk = xmalloc(CHUNK_BYTES);
	uint64_t sent_bytes = 0, before_bytes, after_bytes;
	int64_t round_trip_us;
	random_bytes(chunk, CHUNK_BYTES);
	setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent_bytes_max, sizeof(unsent_bytes_max));
	if (send_until(fd, chunk, began_us + for_ms * 1000 / SETTLE_PART, limit_bytes / SETTLE_PART, &sent_bytes, e) < 0 ||
	    look(fd, &before_bytes, &round_trip_us, e) < 0)
		return -1;
	const int64_t settled_us = clock_monotonic_us();
	if (send_until(fd, chunk, began_us + for_ms * 1000, limit_bytes, &sent_bytes, e) < 0 ||
	    look(fd, &after_bytes, &round_trip_us, e) < 0)
		return -1;
	const int64_t took_us = clock_monotonic_us() - settled_us;
	if (took_us <= 0 || after_bytes < before_bytes + TELLING_BYTES)
		return error_set(e, ERROR_TIMEOUT, "nothing got through within %lld ms", (long long)for_ms);
	*ret_bytes_per_s = (uint64_t)((double)(after_bytes - before_bytes) * 1e6 / (double)took_us);
	*ret_round_trip_us = round_trip_us;
	return 0;
}
