/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM's port on a Linux bridge; see port.h.
 *
 * Theory of operation. The tap is put on the bridge when it is made; a shut port is one whose device is down. Then the
 * kernel refuses what QEMU writes (EIO: QEMU drops the frame, its announcement too, and nothing is queued for later),
 * and the bridge has the port in state disabled. Bringing the device up puts the port into state forwarding within the
 * same system call. The other ways are worse: a bridge port that is up and merely in state disabled or blocking is set
 * to forwarding by the kernel at the next change of carrier or of the bridge's other ports; and to enslave only when
 * the guest moves changes the bridge (promiscuous mode, MTU, features, perhaps its address) in the middle of the pause.
 *
 * rtnetlink by hand: a request is one buffer of messages, each acknowledged, sent at once.
 *
 * With kernel STP and a forward delay on the bridge the kernel keeps a port that comes up from forwarding for twice
 * that delay; nobody can open it earlier. port_open() then says so in the log and succeeds.
 */
#include "network/port.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/ether.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/xalloc.h"

/* ---- rtnetlink ---- */

#define REQUEST_MESSAGES_MAX 2

struct request {
	union {
		unsigned char bytes[512];
		struct nlmsghdr align;
	};
	size_t used;
	struct nlmsghdr *message; /* the last one, which is being written */
	uint32_t count;           /* messages; their numbers are 1 to count */
};

/* What the kernel says to one message. */
struct outcome {
	int errnum;     /* 0: done */
	char words[96]; /* its own explanation, "" when it has none */
};

/* Bytes that the kernel wrote; its macros for walking them lose const and signs. */
struct span {
	const unsigned char *at;
	size_t size;
};

/* Cut size bytes (and their padding) off the front. */
static struct span span_take(struct span *from, size_t size)
{
	struct span taken = {.at = from->at, .size = size < from->size ? size : from->size};
	size_t step = NLMSG_ALIGN(taken.size) < from->size ? NLMSG_ALIGN(taken.size) : from->size;
	from->at += step;
	from->size -= step;
	return taken;
}

/* The content of the first attribute of that type; at == NULL when there is none. */
static struct span find_attribute(struct span attributes, unsigned int type)
{
	while (attributes.size >= sizeof(struct rtattr)) {
		struct rtattr header;
		memcpy(&header, attributes.at, sizeof(header));
		if (header.rta_len < sizeof(header))
			break;
		struct span attribute = span_take(&attributes, header.rta_len);
		span_take(&attribute, sizeof(header));
		if ((header.rta_type & NLA_TYPE_MASK) == type)
			return attribute;
	}
	return (struct span){0};
}

/* Room for size bytes more, zeroed, in the message being written. Requests are of known size: never too long. */
static void *request_reserve(struct request *request, size_t size)
{
	size_t aligned = NLMSG_ALIGN(size);
	assert(request->used + aligned <= sizeof(request->bytes));
	void *at = request->bytes + request->used;
	memset(at, 0, aligned);
	request->used += aligned;
	if (request->message)
		request->message->nlmsg_len += (uint32_t)aligned;
	return at;
}

static void *request_add(struct request *request, uint16_t type, uint16_t flags, size_t body_size)
{
	assert(request->count < REQUEST_MESSAGES_MAX);
	request->message = NULL;
	struct nlmsghdr *header = request_reserve(request, sizeof(*header));
	header->nlmsg_len = sizeof(*header);
	header->nlmsg_type = type;
	header->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags);
	header->nlmsg_seq = ++request->count;
	request->message = header;
	return request_reserve(request, body_size);
}

static void request_put(struct request *request, uint16_t type, const void *data, size_t size)
{
	struct rtattr *attribute = request_reserve(request, RTA_LENGTH(size));
	attribute->rta_type = type;
	attribute->rta_len = (uint16_t)RTA_LENGTH(size);
	memcpy(attribute + 1, data, size);
}

static int netlink_open(int *ret_fd, struct error **e)
{
	cleanup_close int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (fd < 0)
		return error_set_errno(e, ERROR_PORT, errno, "cannot open a netlink socket");
	/* The kernel's words in errors, and acknowledgements without a copy of the request; older kernels do without.
	 */
	int on = 1;
	setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on));
	setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof(on));
	*ret_fd = take_fd(fd);
	return 0;
}

static void take_acknowledgement(const struct nlmsghdr *header, struct span body, struct outcome *outcome)
{
	struct nlmsgerr error;
	memcpy(&error, span_take(&body, sizeof(error)).at, sizeof(error));
	outcome->errnum = -error.error;
	if (!(header->nlmsg_flags & NLM_F_ACK_TLVS))
		return;
	if (!(header->nlmsg_flags & NLM_F_CAPPED))
		span_take(&body, error.msg.nlmsg_len - sizeof(error.msg)); /* the rest of what was asked */
	struct span words = find_attribute(body, NLMSGERR_ATTR_MSG);
	if (words.at)
		snprintf(outcome->words, sizeof(outcome->words), "%.*s", (int)words.size, (const char *)words.at);
}

/*
 * Send all messages of a request and take their answers; the kernel works on each, whatever came of those before.
 * *reply (may be NULL; size is its room) gets the body of the answer that is not an acknowledgement. Negative only when
 * netlink itself fails.
 */
static int request_send(int fd, const struct request *request, struct outcome outcomes[REQUEST_MESSAGES_MAX],
			unsigned char *reply, size_t *reply_size, struct error **e)
{
	if (send(fd, request->bytes, request->used, 0) < 0)
		return error_set_errno(e, ERROR_PORT, errno, "cannot send to netlink");
	uint32_t acknowledged = 0;
	while (acknowledged < request->count) {
		unsigned char bytes[32768]; /* a link with all its attributes is 2 KiB, more with virtual functions */
		ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_TRUNC);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set_errno(e, ERROR_PORT, errno, "cannot read from netlink");
		if ((size_t)n > sizeof(bytes))
			return error_set(e, ERROR_PORT, "netlink's answer is too long (%zd bytes)", n);
		struct span answer = {.at = bytes, .size = (size_t)n};
		while (answer.size >= sizeof(struct nlmsghdr)) {
			struct nlmsghdr header;
			memcpy(&header, answer.at, sizeof(header));
			if (header.nlmsg_len < sizeof(header))
				break;
			struct span body = span_take(&answer, header.nlmsg_len);
			span_take(&body, sizeof(header));
			if (header.nlmsg_type != NLMSG_ERROR && reply && body.size <= *reply_size) {
				memcpy(reply, body.at, body.size);
				*reply_size = body.size;
				reply = NULL;
			}
			if (header.nlmsg_type == NLMSG_ERROR && body.size >= sizeof(struct nlmsgerr) &&
			    header.nlmsg_seq >= 1 && header.nlmsg_seq <= request->count) {
				take_acknowledgement(&header, body, &outcomes[header.nlmsg_seq - 1]);
				acknowledged++;
			}
		}
	}
	return 0;
}

/* 0 if the message was carried out, else the error "cannot DO 'NAME': …". */
static int outcome_check(const struct outcome *outcome, const char *doing, const char *name, struct error **e)
{
	if (outcome->errnum == 0)
		return 0;
	return error_set_errno(e, ERROR_PORT, outcome->errnum, "cannot %s '%s'%s%s%s", doing, name,
			       outcome->words[0] ? " (" : "", outcome->words, outcome->words[0] ? ")" : "");
}

static int interface_index(int fd, const char *name, int *ret_index, struct error **e)
{
	struct ifreq ifreq = {0};
	if (snprintf(ifreq.ifr_name, sizeof(ifreq.ifr_name), "%s", name) >= (int)sizeof(ifreq.ifr_name))
		return error_set(e, ERROR_PORT, "'%s' is too long for the name of a network device", name);
	if (ioctl(fd, SIOCGIFINDEX, &ifreq) < 0)
		return error_set_errno(e, ERROR_PORT, errno, "no network device '%s'", name);
	*ret_index = ifreq.ifr_ifindex;
	return 0;
}

/* Bring a device up or down; up with a bridge to be on first (the kernel goes in this order, and stops at an error). */
static void request_add_updown(struct request *request, int index, bool up, const int *bridge_index)
{
	struct ifinfomsg *link = request_add(request, RTM_SETLINK, 0, sizeof(*link));
	link->ifi_index = index;
	link->ifi_change = IFF_UP;
	link->ifi_flags = up ? IFF_UP : 0;
	if (bridge_index)
		request_put(request, IFLA_MASTER, bridge_index, sizeof(*bridge_index));
}

/*
 * Tell the bridge that mac is behind the port, as if it had learnt it (NUD_REACHABLE: neither local nor static), so
 * that it ages, and so that the first frame from elsewhere moves it away again.
 */
static void request_add_fdb(struct request *request, int index, const struct ether_addr *mac)
{
	struct ndmsg *neighbour = request_add(request, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, sizeof(*neighbour));
	neighbour->ndm_family = AF_BRIDGE;
	neighbour->ndm_ifindex = index;
	neighbour->ndm_state = NUD_REACHABLE;
	neighbour->ndm_flags = NTF_MASTER;
	request_put(request, NDA_LLADDR, mac, sizeof(*mac));
}

/* ---- the tap ---- */

void port_name(const char *vm_uuid, unsigned int nic_index, char ret_name[IF_NAMESIZE])
{
	char digits[9] = "00000000";
	for (size_t used = 0; *vm_uuid && used < 8; vm_uuid++)
		if (isxdigit((unsigned char)*vm_uuid))
			digits[used++] = (char)tolower((unsigned char)*vm_uuid);
	assert(nic_index < 1000); /* "fy" + 8 + "-" + 3 digits + NUL fit into 16 */
	snprintf(ret_name, IF_NAMESIZE, "fy%s-%u", digits, nic_index % 1000);
}

static int tap_open(const char *name, int *ret_fd, struct error **e)
{
	cleanup_close int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return error_set_errno(e, ERROR_PORT, errno, "cannot open '/dev/net/tun'");
	/* IFF_TUN_EXCL: never take over a device that is there, whosever it is. */
	struct ifreq ifreq = {.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL)};
	snprintf(ifreq.ifr_name, sizeof(ifreq.ifr_name), "%s", name);
	if (ioctl(fd, TUNSETIFF, &ifreq) < 0)
		return errno == EBUSY || errno == EEXIST
			       ? error_set(e, ERROR_PORT,
					   "there is a network device '%s' already: is the VM's QEMU still running?",
					   name)
			       : error_set_errno(e, ERROR_PORT, errno, "cannot make the tap '%s'", name);
	*ret_fd = take_fd(fd);
	return 0;
}

/* No IPv6 of the host's own on the tap: it would announce itself (MLD, router solicitations) to the guest. */
static int tap_disable_ipv6(const char *name, struct error **e)
{
	char path[80];
	snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
	cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT)
		return 0; /* a host without IPv6 */
	if (fd < 0 || write(fd, "1", 1) != 1)
		return error_set_errno(e, ERROR_PORT, errno, "cannot switch IPv6 off on '%s'", name);
	return 0;
}

/*
 * A bridge without an address of its own takes the lowest of its ports' addresses, and the host would lose its
 * connections when a guest comes or goes: begin with fe, which is higher than any maker's and still a local address.
 */
static int tap_address(int fd, const char *name, struct ether_addr *ret, struct error **e)
{
	struct ifreq ifreq = {0};
	snprintf(ifreq.ifr_name, sizeof(ifreq.ifr_name), "%s", name);
	if (ioctl(fd, SIOCGIFHWADDR, &ifreq) < 0)
		return error_set_errno(e, ERROR_PORT, errno, "cannot read the address of '%s'", name);
	memcpy(ret, ifreq.ifr_hwaddr.sa_data, sizeof(*ret));
	ret->ether_addr_octet[0] = 0xfe;
	return 0;
}

/* ---- releasing ---- */

#define RELEASE_MAX 16
#define RELEASE_PATIENCE_US 2000000

static pthread_mutex_t release_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t release_done;
static pthread_once_t release_once = PTHREAD_ONCE_INIT;
static unsigned int releases_under_way;

struct release {
	int fds[RELEASE_MAX];
	size_t count;
};

static void release_init(void)
{
	cond_init(&release_done);
}

static void *release_main(void *user)
{
	struct release *release = user;
	for (size_t i = 0; i < release->count; i++)
		close(release->fds[i]);
	free(release);
	LOCK_SCOPE(&release_mutex);
	releases_under_way--;
	pthread_cond_broadcast(&release_done);
	return NULL;
}

void port_release(const int *fds, size_t count)
{
	pthread_t thread;
	pthread_attr_t attributes;
	struct release *release = xcalloc(1, sizeof(*release));
	assert(count <= RELEASE_MAX);
	memcpy(release->fds, fds, count * sizeof(*fds));
	release->count = count;
	pthread_once(&release_once, release_init);
	pthread_mutex_lock(&release_mutex);
	releases_under_way++;
	pthread_mutex_unlock(&release_mutex);
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&thread, &attributes, release_main, release) != 0)
		release_main(release); /* no thread to be had: then we wait after all */
	pthread_attr_destroy(&attributes);
}

void port_wait_released(void)
{
	int64_t deadline_us = clock_monotonic_us() + RELEASE_PATIENCE_US;
	pthread_once(&release_once, release_init);
	LOCK_SCOPE(&release_mutex);
	while (releases_under_way > 0 && cond_wait_until(&release_done, &release_mutex, deadline_us))
		;
}

/* ---- ports ---- */

int port_create(const char *name, const char *bridge, bool open, int *ret_fd, struct error **e)
{
	port_wait_released(); /* a device of the same name may just be on its way out */
	unsigned int mtu = 0;
	int bridge_index = 0, index = 0;
	struct ether_addr address;
	cleanup_close int netlink_fd = -1;
	cleanup_close int tap_fd = -1; /* closing it removes the device on every way out but the last */
	if (port_bridge_mtu(bridge, &mtu, e) < 0 || netlink_open(&netlink_fd, e) < 0 ||
	    interface_index(netlink_fd, bridge, &bridge_index, e) < 0 || tap_open(name, &tap_fd, e) < 0 ||
	    tap_disable_ipv6(name, e) < 0 || interface_index(netlink_fd, name, &index, e) < 0 ||
	    tap_address(netlink_fd, name, &address, e) < 0)
		return -1;

	/* First the MTU, then the bridge, which takes the least MTU of its ports. */
	struct request request = {0};
	struct ifinfomsg *link = request_add(&request, RTM_SETLINK, 0, sizeof(*link));
	link->ifi_index = index;
	request_put(&request, IFLA_ADDRESS, &address, sizeof(address));
	request_put(&request, IFLA_MTU, &mtu, sizeof(mtu));
	request_add_updown(&request, index, open, &bridge_index);
	struct outcome outcomes[REQUEST_MESSAGES_MAX] = {0};
	if (request_send(netlink_fd, &request, outcomes, NULL, NULL, e) < 0 ||
	    outcome_check(&outcomes[0], "set the address and MTU of", name, e) < 0 ||
	    outcome_check(&outcomes[1], "put on the bridge the port", name, e) < 0)
		return -1;
	*ret_fd = take_fd(tap_fd);
	return 0;
}

int port_open(const char *name, const char *bridge, const char *mac, struct error **e)
{
	struct ether_addr address;
	if (!ether_aton_r(mac, &address))
		return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' is not a MAC address", mac);
	int bridge_index = 0, index = 0;
	cleanup_close int fd = -1;
	if (netlink_open(&fd, e) < 0 || interface_index(fd, bridge, &bridge_index, e) < 0 ||
	    interface_index(fd, name, &index, e) < 0)
		return -1;

	struct request request = {0};
	request_add_updown(&request, index, true, &bridge_index); /* it is on the bridge, unless somebody took it off */
	request_add_fdb(&request, index, &address);
	struct outcome outcomes[REQUEST_MESSAGES_MAX] = {0};
	if (request_send(fd, &request, outcomes, NULL, NULL, e) < 0)
		return error_wrap(e, "cannot open the port '%s'", name);
	if (outcome_check(&outcomes[0], "open the port", name, e) < 0)
		return -1;
	/* The guest works without the entry; its first frame teaches the bridge. */
	if (outcomes[1].errnum == EPERM)
		log_warning("port '%s' does not forward yet: bridge '%s' runs STP with a forward delay; set it to 0",
			    name, bridge);
	else if (outcomes[1].errnum)
		log_warning("bridge '%s' took no forwarding entry for %s: %s", bridge, mac,
			    strerror(outcomes[1].errnum));
	return 0;
}

int port_shut(const char *name, struct error **e)
{
	int index = 0;
	cleanup_close int fd = -1;
	if (netlink_open(&fd, e) < 0 || interface_index(fd, name, &index, e) < 0)
		return -1;
	/* The bridge forgets what it learnt behind a port that goes down. */
	struct request request = {0};
	request_add_updown(&request, index, false, NULL);
	struct outcome outcomes[REQUEST_MESSAGES_MAX] = {0};
	if (request_send(fd, &request, outcomes, NULL, NULL, e) < 0)
		return error_wrap(e, "cannot shut the port '%s'", name);
	return outcome_check(&outcomes[0], "shut the port", name, e);
}

/* ---- bridges ---- */

int port_bridge_mtu(const char *bridge, unsigned int *ret_mtu, struct error **e)
{
	cleanup_close int fd = -1;
	int index = 0;
	if (netlink_open(&fd, e) < 0 || interface_index(fd, bridge, &index, e) < 0)
		return -1;
	struct request request = {0};
	struct ifinfomsg *asked = request_add(&request, RTM_GETLINK, 0, sizeof(*asked));
	asked->ifi_index = index;
	unsigned char bytes[16384];
	size_t size = sizeof(bytes);
	struct outcome outcomes[REQUEST_MESSAGES_MAX] = {0};
	if (request_send(fd, &request, outcomes, bytes, &size, e) < 0)
		return error_wrap(e, "cannot look at the bridge '%s'", bridge);
	if (outcome_check(&outcomes[0], "look at the bridge", bridge, e) < 0)
		return -1;

	struct span link = {.at = bytes, .size = size < sizeof(bytes) ? size : 0};
	span_take(&link, sizeof(struct ifinfomsg));
	struct span kind = find_attribute(find_attribute(link, IFLA_LINKINFO), IFLA_INFO_KIND);
	struct span mtu = find_attribute(link, IFLA_MTU);
	if (kind.size < sizeof("bridge") || memcmp(kind.at, "bridge", sizeof("bridge")) != 0)
		return error_set(e, ERROR_PORT, "'%s' is a network device, but not a Linux bridge", bridge);
	if (mtu.size != sizeof(*ret_mtu))
		return error_set(e, ERROR_PORT, "the bridge '%s' has no MTU", bridge);
	memcpy(ret_mtu, mtu.at, sizeof(*ret_mtu));
	return 0;
}

bool port_bridge_exists(const char *bridge)
{
	unsigned int mtu;
	return port_bridge_mtu(bridge, &mtu, NULL) == 0;
}
