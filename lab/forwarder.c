/* SPDX-License-Identifier: Apache-2.0 */
/*
 * forwarder: a switch that takes its time. The lab puts it in place of the bridge when a link is to have a delay.
 *
 * Theory of operation
 *
 * Each port is a network interface, opened as a packet socket. A frame that arrives on a port is stamped, queued, and
 * sent on after the delay to the port behind which its destination address was last seen, or to all others when that is
 * not known. The lab connects every host to one port, so a frame between two hosts waits exactly once.
 *
 * It works on frames, not on TCP connections, because a proxy would answer for the far end and hide what a long link
 * does to windows and round trips. Frames pass as the sender's stack made them: PACKET_VNET_HDR carries segmentation
 * and checksum state along, so a 64 KiB super-frame stays one frame and a gigabit costs some 2000 frames a second.
 *
 * Every port has one ring of bytes, filled at the head by recv() and drained at the tail by send(), in order: with one
 * delay for all, a frame never overtakes another. The ring is bounded; what does not fit is dropped and counted, as are
 * frames that the outgoing interface refuses. Nothing is allocated while frames move.
 *
 * Counters live in a small file mapped by this process (--stats) and readable at any time: for each port the members
 * of struct port_counters as 64-bit integers in the machine's byte order.
 *
 * The interfaces must carry no addresses. An interface that is down loses frames but stays a port.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define NSEC_PER_SEC UINT64_C(1000000000)

enum {
	PORTS_MAX = 256,
	RECEIVE_BATCH = 64,		/* frames taken from one port before the others get their turn */
	SOCKET_BUFFER_BYTES = 64 << 20,	/* the kernel's own queue, for when this process is not scheduled */
	FRAME_BYTES_MAX = sizeof(struct virtio_net_hdr) + ETH_HLEN + 4 + 65536,
	ENTRY_ALIGN = 16,
	TABLE_SLOTS = 4096,		/* a power of two */
};

struct port_counters {
	uint64_t frames_in;
	uint64_t bytes_in;
	uint64_t frames_out;
	uint64_t bytes_out;
	uint64_t dropped_full;		/* arrived here, found the ring full */
	uint64_t dropped_kernel;	/* arrived here, found the socket's buffer full */
	uint64_t dropped_send;		/* were to leave here, refused by the interface or its queue */
	uint64_t late_max_ns;		/* arrived here, left later than they should have by at most this */
};

/* A frame in a ring, followed by its virtio_net_hdr and its bytes; a length of 0 sends the reader back to the start. */
struct entry {
	uint64_t due_ns;
	uint32_t length_bytes;
	uint32_t unused;
};

struct port {
	const char *name;
	int fd;
	uint8_t *ring;
	size_t head;			/* where the next entry is written */
	size_t tail;			/* the oldest entry; equal to head when the ring is empty */
	uint64_t asked_drops_ns;
	struct port_counters *counters;
};

struct address {
	uint8_t mac[ETH_ALEN];
	int16_t port;			/* -1: nothing learned in this slot */
};

static struct port ports[PORTS_MAX];
static int port_count;
static size_t ring_bytes = 64u << 20;
static uint64_t delay_ns;
static struct address table[TABLE_SLOTS];

__attribute__((noreturn)) static void die(const char *what)
{
	fprintf(stderr, "forwarder: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	if (clock_gettime(CLOCK_MONOTONIC, &t) < 0)
		die("clock_gettime");
	return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}

/* ---- Where addresses are ---- */

static struct address *table_slot(const uint8_t mac[ETH_ALEN])
{
	uint32_t hash = 2166136261u;

	for (int i = 0; i < ETH_ALEN; i++)
		hash = (hash ^ mac[i]) * 16777619u;
	return &table[(hash ^ (hash >> 16)) & (TABLE_SLOTS - 1)];
}

static void table_learn(const uint8_t mac[ETH_ALEN], int port)
{
	struct address *slot = table_slot(mac);

	if (mac[0] & 1)
		return;
	/* Of two addresses with one slot the last one wins; frames to the other are flooded, which is slow but right. */
	memcpy(slot->mac, mac, ETH_ALEN);
	slot->port = (int16_t)port;
}

static int table_find(const uint8_t mac[ETH_ALEN])
{
	const struct address *slot = table_slot(mac);

	if ((mac[0] & 1) || memcmp(slot->mac, mac, ETH_ALEN) != 0)
		return -1;
	return slot->port;
}

/* ---- The ring ---- */

static size_t entry_span(size_t length_bytes)
{
	return (sizeof(struct entry) + length_bytes + ENTRY_ALIGN - 1) & ~(size_t)(ENTRY_ALIGN - 1);
}

/* Room for the largest frame in one piece, or NULL. Head never catches up with tail: equality means empty. */
static struct entry *ring_reserve(struct port *port)
{
	const size_t need = entry_span(FRAME_BYTES_MAX);

	if (port->head == port->tail)
		port->head = port->tail = 0;
	if (port->head >= port->tail) {
		if (ring_bytes - port->head > need)
			return (struct entry *)(void *)(port->ring + port->head);
		if (port->tail <= need)
			return NULL;
		/* A marker always fits: what is left at the end is a multiple of ENTRY_ALIGN and never nothing. */
		((struct entry *)(void *)(port->ring + port->head))->length_bytes = 0;
		port->head = 0;
		return (struct entry *)(void *)port->ring;
	}
	if (port->tail - port->head <= need)
		return NULL;
	return (struct entry *)(void *)(port->ring + port->head);
}

static void ring_commit(struct port *port, const struct entry *entry)
{
	port->head += entry_span(entry->length_bytes);
}

static struct entry *ring_oldest(struct port *port)
{
	struct entry *entry;

	if (port->head == port->tail)
		return NULL;
	entry = (struct entry *)(void *)(port->ring + port->tail);
	if (entry->length_bytes == 0) {
		port->tail = 0;
		if (port->head == 0)
			return NULL;
		entry = (struct entry *)(void *)port->ring;
	}
	return entry;
}

static void ring_release(struct port *port, const struct entry *entry)
{
	port->tail += entry_span(entry->length_bytes);
}

/* ---- Frames ---- */

static void port_open(struct port *port)
{
	const int on = 1, buffer_bytes = SOCKET_BUFFER_BYTES;
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
	struct packet_mreq promiscuous = { .mr_type = PACKET_MR_PROMISC };

	address.sll_ifindex = (int)if_nametoindex(port->name);
	if (address.sll_ifindex == 0)
		die(port->name);
	promiscuous.mr_ifindex = address.sll_ifindex;
	/* Protocol 0 until bound: otherwise frames of all interfaces arrive in between. */
	port->fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (port->fd < 0 ||
	    setsockopt(port->fd, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof(on)) < 0 ||
	    setsockopt(port->fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on)) < 0 ||
	    setsockopt(port->fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer_bytes, sizeof(buffer_bytes)) < 0 ||
	    setsockopt(port->fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer_bytes, sizeof(buffer_bytes)) < 0 ||
	    setsockopt(port->fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promiscuous, sizeof(promiscuous)) < 0 ||
	    bind(port->fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
		die(port->name);
	port->ring = mmap(NULL, ring_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (port->ring == MAP_FAILED)
		die("mmap");
}

/* The kernel resets its count whenever it is asked. */
static void port_ask_drops(struct port *port, uint64_t now)
{
	struct tpacket_stats statistics;
	socklen_t length = sizeof(statistics);

	if (now - port->asked_drops_ns < NSEC_PER_SEC / 10)
		return;
	port->asked_drops_ns = now;
	if (getsockopt(port->fd, SOL_PACKET, PACKET_STATISTICS, &statistics, &length) == 0)
		port->counters->dropped_kernel += statistics.tp_drops;
}

static void port_receive(int index)
{
	static uint8_t scratch[FRAME_BYTES_MAX];
	struct port *port = &ports[index];

	for (int i = 0; i < RECEIVE_BATCH; i++) {
		struct entry *entry = ring_reserve(port);
		uint8_t *bytes = entry ? (uint8_t *)(entry + 1) : scratch;
		const struct ether_header *header;
		ssize_t got = recv(port->fd, bytes, FRAME_BYTES_MAX, MSG_TRUNC);

		if (got < 0) {
			if (errno == EAGAIN)
				break;
			if (errno == EINTR || errno == ENETDOWN)
				continue;	/* ENETDOWN is reported once each time the interface goes down */
			die(port->name);
		}
		port->counters->frames_in++;
		port->counters->bytes_in += (uint64_t)got - sizeof(struct virtio_net_hdr);
		if (!entry || (size_t)got > FRAME_BYTES_MAX) {
			port->counters->dropped_full++;
			continue;
		}
		if ((size_t)got < sizeof(struct virtio_net_hdr) + sizeof(*header))
			continue;
		header = (const struct ether_header *)(const void *)(bytes + sizeof(struct virtio_net_hdr));
		table_learn(header->ether_shost, index);
		entry->due_ns = now_ns() + delay_ns;
		entry->length_bytes = (uint32_t)got;
		ring_commit(port, entry);
	}
	port_ask_drops(port, now_ns());
}

static void port_send(struct port *port, const struct entry *entry)
{
	/* Never wait here: a slow link must not hold up the others, and a switch drops what its port cannot take. */
	if (send(port->fd, entry + 1, entry->length_bytes, MSG_DONTWAIT) < 0) {
		port->counters->dropped_send++;
		return;
	}
	port->counters->frames_out++;
	port->counters->bytes_out += entry->length_bytes - sizeof(struct virtio_net_hdr);
}

static void entry_forward(int from, const struct entry *entry)
{
	const uint8_t *bytes = (const uint8_t *)(entry + 1) + sizeof(struct virtio_net_hdr);
	int to = table_find(((const struct ether_header *)(const void *)bytes)->ether_dhost);

	if (to == from)
		return;
	if (to >= 0) {
		port_send(&ports[to], entry);
		return;
	}
	for (int i = 0; i < port_count; i++)
		if (i != from)
			port_send(&ports[i], entry);
}

/* Sends all that is due; returns when the next frame is, 0 for never. */
static uint64_t forward_due(void)
{
	uint64_t next_ns = 0;

	for (int i = 0; i < port_count; i++) {
		struct port *port = &ports[i];
		uint64_t now = now_ns();
		struct entry *entry;

		while ((entry = ring_oldest(port)) != NULL && entry->due_ns <= now) {
			if (now - entry->due_ns > port->counters->late_max_ns)
				port->counters->late_max_ns = now - entry->due_ns;
			entry_forward(i, entry);
			ring_release(port, entry);
		}
		if (entry && (next_ns == 0 || entry->due_ns < next_ns))
			next_ns = entry->due_ns;
	}
	return next_ns;
}

/* ---- The process ---- */

static struct port_counters *counters_map(const char *path)
{
	const size_t size = sizeof(struct port_counters) * (size_t)port_count;
	int flags = MAP_SHARED, fd = -1;
	void *map;

	if (path) {
		fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
		if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
			die(path);
	} else {
		flags |= MAP_ANONYMOUS;
	}
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (map == MAP_FAILED)
		die("mmap");
	if (fd >= 0)
		close(fd);
	return map;
}

/* The link's delay must not depend on how busy the guests are. Where real-time is not to be had, a good nice value. */
static void become_punctual(void)
{
	const struct sched_param parameters = { .sched_priority = 1 };

	if (sched_setscheduler(0, SCHED_FIFO, &parameters) < 0 && setpriority(PRIO_PROCESS, 0, -20) < 0)
		fprintf(stderr, "forwarder: keeps the ordinary priority: %s\n", strerror(errno));
}

static void epoll_watch(int epoll_fd, int fd, uint32_t id)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u32 = id };

	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
		die("epoll_ctl");
}

static void run(void)
{
	enum { TIMER = PORTS_MAX, SIGNALS };
	uint64_t armed_ns = 0;
	int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	int timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	int signal_fd;
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
	if (epoll_fd < 0 || timer_fd < 0 || signal_fd < 0)
		die("epoll");
	epoll_watch(epoll_fd, timer_fd, TIMER);
	epoll_watch(epoll_fd, signal_fd, SIGNALS);
	for (int i = 0; i < port_count; i++)
		epoll_watch(epoll_fd, ports[i].fd, (uint32_t)i);

	puts("ready");
	fflush(stdout);

	for (;;) {
		struct epoll_event events[64];
		int count = epoll_wait(epoll_fd, events, 64, -1);
		uint64_t next_ns;

		if (count < 0 && errno != EINTR)
			die("epoll_wait");
		for (int i = 0; i < count; i++) {
			uint32_t id = events[i].data.u32;

			if (id == SIGNALS)
				return;
			if (id == TIMER) {
				uint64_t expirations;

				if (read(timer_fd, &expirations, sizeof(expirations)) > 0)
					armed_ns = 0;
			} else {
				port_receive((int)id);
			}
		}
		next_ns = forward_due();
		if (next_ns != 0 && next_ns != armed_ns) {
			struct itimerspec when = { .it_value = { .tv_sec = (time_t)(next_ns / NSEC_PER_SEC),
								 .tv_nsec = (long)(next_ns % NSEC_PER_SEC) } };

			if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL) < 0)
				die("timerfd_settime");
			armed_ns = next_ns;
		}
	}
}

__attribute__((noreturn)) static void usage(int status)
{
	fprintf(status ? stderr : stdout,
		"usage: forwarder --delay-us N [--ring-mib N] [--stats FILE] PORT PORT...\n"
		"Switches frames between interfaces, N microseconds late. Prints \"ready\" once it forwards.\n");
	exit(status);
}

static uint64_t number(const char *text, uint64_t max)
{
	char *end;
	uint64_t value;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || end == text || *end || text[0] == '-' || value > max)
		usage(2);
	return value;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "delay-us", required_argument, NULL, 'd' },
		{ "ring-mib", required_argument, NULL, 'r' },
		{ "stats", required_argument, NULL, 's' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	const char *stats_path = NULL;
	bool have_delay = false;
	struct port_counters *counters;
	int option;

	while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (option) {
		case 'd':
			delay_ns = number(optarg, 60 * UINT64_C(1000000)) * 1000;
			have_delay = true;
			break;
		case 'r':
			ring_bytes = (size_t)number(optarg, 1 << 14) << 20;
			break;
		case 's':
			stats_path = optarg;
			break;
		default:
			usage(option == 'h' ? 0 : 2);
		}
	}
	port_count = argc - optind;
	if (!have_delay || port_count < 2 || port_count > PORTS_MAX || ring_bytes < (1u << 20))
		usage(2);

	for (size_t i = 0; i < TABLE_SLOTS; i++)
		table[i].port = -1;
	counters = counters_map(stats_path);
	for (int i = 0; i < port_count; i++) {
		ports[i].name = argv[optind + i];
		ports[i].counters = &counters[i];
		port_open(&ports[i]);
	}
	become_punctual();
	run();
	return 0;
}
