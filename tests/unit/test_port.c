/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ports on a bridge, in a network namespace of the test's own (root only). Frames of an experimental type are written
 * into one tap and awaited at others, as a QEMU and its neighbours would.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "network/port.h"

#define ARRIVAL_MS 5000 /* awaited at most; never in a test that passes */
#define ABSENCE_MS 50   /* how long we look for a frame that must not come, after one that must */
#define VNET_HEADER 10
#define TEST_TYPE 0x88b5 /* IEEE: local experiments */

static const char guest_mac[] = "52:54:00:00:00:01", client_mac[] = "52:54:00:00:00:02",
		  third_mac[] = "52:54:00:00:00:03";
static const char everyone[] = "ff:ff:ff:ff:ff:ff";

static int control_fd = -1; /* for ioctls */
static int guest_fd = -1, client_fd = -1, third_fd = -1;

/* ---- the world ---- */

static void set_flags(const char *name, short set, short clear)
{
	struct ifreq ifreq = {0};
	snprintf(ifreq.ifr_name, sizeof(ifreq.ifr_name), "%s", name);
	assert_int_equal(ioctl(control_fd, SIOCGIFFLAGS, &ifreq), 0);
	ifreq.ifr_flags = (short)((ifreq.ifr_flags | set) & ~clear);
	assert_int_equal(ioctl(control_fd, SIOCSIFFLAGS, &ifreq), 0);
}

static int create(const char *name, bool open)
{
	int fd = -1;
	cleanup_error struct error *error = NULL;
	if (port_create(name, "br-test", open, &fd, &error) < 0)
		fail_msg("%s", error->message);
	return fd;
}

/* A bridge with a shut port for the guest, and two open ones for those that it talks to. */
static int setup(void **state)
{
	(void)state;
	if (geteuid() != 0)
		return 0;
	control_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	assert_int_equal(ioctl(control_fd, SIOCBRADDBR, "br-test"), 0);
	set_flags("br-test", IFF_UP, 0);
	guest_fd = create("fyguest", false);
	client_fd = create("fyclient", true);
	third_fd = create("fythird", true);
	return 0;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(take_fd(*fd));
}

static int teardown(void **state)
{
	(void)state;
	if (geteuid() != 0)
		return 0;
	close_fd(&guest_fd);
	close_fd(&client_fd);
	close_fd(&third_fd);
	set_flags("br-test", 0, IFF_UP);
	int result = ioctl(control_fd, SIOCBRDELBR, "br-test");
	close_fd(&control_fd);
	return result;
}

#define NEEDS_ROOT()                                                                                                   \
	do {                                                                                                           \
		if (geteuid() != 0) {                                                                                  \
			print_message("# skip: only root can make network devices\n");                                 \
			skip();                                                                                        \
		}                                                                                                      \
	} while (0)

/* ---- frames ---- */

static void parse_mac(const char *text, unsigned char *at)
{
	unsigned int bytes[6];
	assert_int_equal(
		sscanf(text, "%x:%x:%x:%x:%x:%x", &bytes[0], &bytes[1], &bytes[2], &bytes[3], &bytes[4], &bytes[5]), 6);
	for (size_t i = 0; i < 6; i++)
		at[i] = (unsigned char)bytes[i];
}

/* Write a frame with a mark into a tap; the result of write(2). */
static ssize_t send_frame(int fd, const char *from, const char *to, unsigned int mark)
{
	unsigned char frame[VNET_HEADER + 60] = {0};
	parse_mac(to, frame + VNET_HEADER);
	parse_mac(from, frame + VNET_HEADER + 6);
	uint16_t type = htons(TEST_TYPE);
	memcpy(frame + VNET_HEADER + 12, &type, sizeof(type));
	memcpy(frame + VNET_HEADER + 14, &mark, sizeof(mark));
	return write(fd, frame, sizeof(frame));
}

/* The mark of the next test frame that a tap delivers within timeout_ms, past other frames; 0 when there is none. */
static unsigned int receive_frame(int fd, int64_t timeout_ms)
{
	int64_t deadline_us = clock_monotonic_us() + timeout_ms * 1000;
	for (;;) {
		unsigned char frame[2048];
		ssize_t n = read(fd, frame, sizeof(frame));
		uint16_t type = 0;
		if (n >= VNET_HEADER + 18)
			memcpy(&type, frame + VNET_HEADER + 12, sizeof(type));
		if (n >= 0 && ntohs(type) == TEST_TYPE) {
			unsigned int mark;
			memcpy(&mark, frame + VNET_HEADER + 14, sizeof(mark));
			return mark;
		}
		if (n >= 0)
			continue;
		int64_t left_us = deadline_us - clock_monotonic_us();
		if (left_us <= 0)
			return 0;
		struct pollfd pollfd = {.fd = fd, .events = POLLIN};
		poll(&pollfd, 1, (int)(left_us / 1000 + 1));
	}
}

static void open_guest(void)
{
	cleanup_error struct error *error = NULL;
	if (port_open("fyguest", "br-test", guest_mac, &error) < 0)
		fail_msg("%s", error->message);
}

static void shut_guest(void)
{
	cleanup_error struct error *error = NULL;
	if (port_shut("fyguest", &error) < 0)
		fail_msg("%s", error->message);
}

/* ---- names, bridges, errors ---- */

static void test_name(void **state)
{
	(void)state;
	char name[IF_NAMESIZE];
	port_name("0A1B2C3D-4e5f-6071-8293-a4b5c6d7e8f9", 0, name);
	assert_string_equal(name, "fy0a1b2c3d-0");
	port_name("0a1b2-c3d4", 17, name);
	assert_string_equal(name, "fy0a1b2c3d-17");
	port_name("", 999, name);
	assert_string_equal(name, "fy00000000-999");
}

static void test_bridges(void **state)
{
	(void)state;
	NEEDS_ROOT();
	unsigned int mtu = 0;
	cleanup_error struct error *error = NULL;
	assert_true(port_bridge_exists("br-test"));
	assert_false(port_bridge_exists("br-none"));
	assert_false(port_bridge_exists("fyguest"));
	assert_false(port_bridge_exists("lo"));
	assert_false(port_bridge_exists("a-name-that-no-device-can-have"));
	assert_int_equal(port_bridge_mtu("br-test", &mtu, NULL), 0);
	assert_int_equal(mtu, 1500);
	assert_int_equal(port_bridge_mtu("br-none", &mtu, &error), -1);
	assert_int_equal(error->code, ERROR_PORT);
}

static void assert_create_fails(const char *name, const char *bridge, const char *words)
{
	int fd = 77;
	cleanup_error struct error *error = NULL;
	assert_int_equal(port_create(name, bridge, true, &fd, &error), -1);
	assert_int_equal(error->code, ERROR_PORT);
	assert_non_null(strstr(error->message, words));
	assert_int_equal(fd, 77);
}

static void test_errors(void **state)
{
	(void)state;
	NEEDS_ROOT();
	assert_create_fails("fyguest", "br-test", "already");
	assert_create_fails("fynew", "br-none", "br-none");
	assert_create_fails("fynew", "fyguest", "not a Linux bridge");
	assert_int_equal(if_nametoindex("fynew"), 0); /* nothing is left behind */
	cleanup_error struct error *error = NULL;
	assert_int_equal(port_open("fynone", "br-test", guest_mac, &error), -1);
	assert_int_equal(error->code, ERROR_PORT);
	assert_int_equal(port_open("fyguest", "br-none", guest_mac, &error), -1);
	assert_int_equal(error->code, ERROR_PORT);
	assert_int_equal(port_open("fyguest", "br-test", "no mac", &error), -1);
	assert_int_equal(error->code, ERROR_INVALID_ARGUMENT);
	assert_int_equal(port_shut("fynone", &error), -1);
	assert_int_equal(error->code, ERROR_PORT);
	assert_int_equal(send_frame(guest_fd, guest_mac, everyone, 1), -1); /* none of these opened it */
}

/* A persistent device of that name, which nobody holds, must not be taken over. */
static void test_leftover_device(void **state)
{
	(void)state;
	NEEDS_ROOT();
	cleanup_close int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	struct ifreq ifreq = {.ifr_name = "fyleft", .ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)};
	assert_int_equal(ioctl(fd, TUNSETIFF, &ifreq), 0);
	assert_int_equal(ioctl(fd, TUNSETPERSIST, 1), 0);
	close(take_fd(fd));
	assert_create_fails("fyleft", "br-test", "already");
	fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	assert_int_equal(ioctl(fd, TUNSETIFF, &ifreq), 0);
	assert_int_equal(ioctl(fd, TUNSETPERSIST, 0), 0);
}

static void test_device(void **state)
{
	(void)state;
	NEEDS_ROOT();
	assert_true(fcntl(guest_fd, F_GETFD) & FD_CLOEXEC);
	assert_true(fcntl(guest_fd, F_GETFL) & O_NONBLOCK);
	struct ifreq ifreq = {.ifr_name = "fyguest"};
	assert_int_equal(ioctl(guest_fd, TUNGETIFF, &ifreq), 0);
	assert_true(ifreq.ifr_flags & IFF_VNET_HDR);
	assert_true(ifreq.ifr_flags & IFF_NO_PI);
	/* The bridge must not take the guest's comings and goings for its own address: fe is above all others. */
	assert_int_equal(ioctl(control_fd, SIOCGIFHWADDR, &ifreq), 0);
	assert_int_equal((unsigned char)ifreq.ifr_hwaddr.sa_data[0], 0xfe);
	/* It goes with its descriptor. */
	close_fd(&guest_fd);
	assert_int_equal(if_nametoindex("fyguest"), 0);
	guest_fd = create("fyguest", false);
}

/* A port takes the bridge's MTU, and does not change it. */
static void test_mtu(void **state)
{
	(void)state;
	NEEDS_ROOT();
	close_fd(&guest_fd);
	close_fd(&client_fd);
	close_fd(&third_fd);
	struct ifreq ifreq = {.ifr_name = "br-test", .ifr_mtu = 4000};
	assert_int_equal(ioctl(control_fd, SIOCSIFMTU, &ifreq), 0);
	guest_fd = create("fyguest", true);
	unsigned int mtu = 0;
	assert_int_equal(port_bridge_mtu("br-test", &mtu, NULL), 0);
	assert_int_equal(mtu, 4000);
	snprintf(ifreq.ifr_name, sizeof(ifreq.ifr_name), "fyguest");
	assert_int_equal(ioctl(control_fd, SIOCGIFMTU, &ifreq), 0);
	assert_int_equal(ifreq.ifr_mtu, 4000);
}

/* ---- shut and open ---- */

static void assert_shut(void)
{
	/* To it: the third station's copy proves that the bridge has handled the frame. */
	assert_true(send_frame(client_fd, client_mac, everyone, 11) > 0);
	assert_int_equal(receive_frame(third_fd, ARRIVAL_MS), 11);
	assert_int_equal(receive_frame(guest_fd, ABSENCE_MS), 0);
	/* From it: refused at once, so there is nothing that could come late. */
	assert_int_equal(send_frame(guest_fd, guest_mac, everyone, 12), -1);
	assert_int_equal(errno, EIO);
	assert_int_equal(receive_frame(client_fd, ABSENCE_MS), 0);
}

static void test_shut_port_forwards_nothing(void **state)
{
	(void)state;
	NEEDS_ROOT();
	assert_shut();
	/* Changes of the bridge and of its other ports must not open it. */
	set_flags("br-test", 0, IFF_UP);
	set_flags("br-test", IFF_UP, 0);
	int another_fd = create("fyanother", true);
	shut_guest(); /* again: no error */
	assert_shut();
	close_fd(&another_fd);
	/* What was refused is not sent when it opens. */
	open_guest();
	assert_true(send_frame(guest_fd, guest_mac, everyone, 13) > 0);
	assert_int_equal(receive_frame(client_fd, ARRIVAL_MS), 13);
	shut_guest();
	while (receive_frame(third_fd, 0) != 0)
		; /* 13 has reached it, too */
	assert_shut();
}

static int compare_times(const void *left, const void *right)
{
	int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
	return (a > b) - (a < b);
}

/* The first frame after port_open() gets through, both ways, every time: nothing about the port is still on its way. */
static void test_open_forwards_at_once(void **state)
{
	(void)state;
	NEEDS_ROOT();
	enum { ROUNDS = 40 };
	int64_t open_us[ROUNDS], out_us[ROUNDS], in_us[ROUNDS];
	for (int round = 0; round < ROUNDS; round++) {
		unsigned int mark = 100 + (unsigned int)round;
		int64_t start_us = clock_monotonic_us();
		open_guest();
		open_us[round] = clock_monotonic_us() - start_us;
		if (round % 2 == 0) {
			assert_true(send_frame(guest_fd, guest_mac, everyone, mark) > 0);
			assert_int_equal(receive_frame(client_fd, ARRIVAL_MS), mark);
		}
		out_us[round] = clock_monotonic_us() - start_us;
		assert_true(send_frame(client_fd, client_mac, guest_mac, mark) > 0);
		assert_int_equal(receive_frame(guest_fd, ARRIVAL_MS), mark);
		in_us[round] = clock_monotonic_us() - start_us;
		shut_guest();
	}
	qsort(open_us, ROUNDS, sizeof(open_us[0]), compare_times);
	qsort(out_us, ROUNDS, sizeof(out_us[0]), compare_times);
	qsort(in_us, ROUNDS, sizeof(in_us[0]), compare_times);
	print_message("# port_open: median %lld us; from its call to the first frame out %lld us, in %lld us\n",
		      (long long)open_us[ROUNDS / 2], (long long)out_us[ROUNDS / 2], (long long)in_us[ROUNDS / 2]);
}

static void test_created_open(void **state)
{
	(void)state;
	NEEDS_ROOT();
	assert_true(send_frame(third_fd, third_mac, everyone, 21) > 0);
	assert_int_equal(receive_frame(client_fd, ARRIVAL_MS), 21);
}

/* Somebody took the device off its bridge: port_open() puts it back. */
static void test_open_puts_it_on_the_bridge(void **state)
{
	(void)state;
	NEEDS_ROOT();
	struct ifreq ifreq = {.ifr_name = "br-test", .ifr_ifindex = (int)if_nametoindex("fyguest")};
	assert_int_equal(ioctl(control_fd, SIOCBRDELIF, &ifreq), 0);
	open_guest();
	assert_true(send_frame(guest_fd, guest_mac, everyone, 22) > 0);
	assert_int_equal(receive_frame(client_fd, ARRIVAL_MS), 22);
}

/* ---- what the bridge knows ---- */

/* A frame to the guest's address goes to its port, and to no other, before the guest has said a word. */
static void test_bridge_is_told_the_address(void **state)
{
	(void)state;
	NEEDS_ROOT();
	/* The bridge believes the guest to be behind the third port (its old host). */
	assert_true(send_frame(third_fd, guest_mac, client_mac, 31) > 0);
	assert_int_equal(receive_frame(client_fd, ARRIVAL_MS), 31);
	assert_true(send_frame(client_fd, client_mac, guest_mac, 32) > 0);
	assert_int_equal(receive_frame(third_fd, ARRIVAL_MS), 32);

	open_guest();
	assert_true(send_frame(client_fd, client_mac, guest_mac, 33) > 0);
	assert_int_equal(receive_frame(guest_fd, ARRIVAL_MS), 33);
	assert_int_equal(receive_frame(third_fd, ABSENCE_MS), 0);
	open_guest(); /* again: no error */

	/* It moves away: one frame from elsewhere, and the entry follows. */
	assert_true(send_frame(third_fd, guest_mac, client_mac, 34) > 0);
	assert_int_equal(receive_frame(client_fd, ARRIVAL_MS), 34);
	assert_true(send_frame(client_fd, client_mac, guest_mac, 35) > 0);
	assert_int_equal(receive_frame(third_fd, ARRIVAL_MS), 35);
	assert_int_equal(receive_frame(guest_fd, ABSENCE_MS), 0);
}

static void test_shut_forgets_the_address(void **state)
{
	(void)state;
	NEEDS_ROOT();
	open_guest();
	assert_true(send_frame(guest_fd, "52:54:00:00:00:09", everyone, 41) > 0); /* one more that it learns */
	assert_int_equal(receive_frame(client_fd, ARRIVAL_MS), 41);
	assert_int_equal(receive_frame(third_fd, ARRIVAL_MS), 41);
	shut_guest();
	/* Unknown addresses go to every port. (A static entry would still be there.) */
	assert_true(send_frame(client_fd, client_mac, guest_mac, 42) > 0);
	assert_int_equal(receive_frame(third_fd, ARRIVAL_MS), 42);
	assert_true(send_frame(client_fd, client_mac, "52:54:00:00:00:09", 43) > 0);
	assert_int_equal(receive_frame(third_fd, ARRIVAL_MS), 43);
}

/* ---- silence ---- */

static void read_address(const char *name, unsigned char ret[6])
{
	struct ifreq ifreq = {0};
	snprintf(ifreq.ifr_name, sizeof(ifreq.ifr_name), "%s", name);
	assert_int_equal(ioctl(control_fd, SIOCGIFHWADDR, &ifreq), 0);
	memcpy(ret, ifreq.ifr_hwaddr.sa_data, 6);
}

/*
 * The host's own IPv6 on a tap would greet the guest with multicast reports and router solicitations within the first
 * second. What the bridge says under its own address is the host's business, not the port's.
 */
static void test_fresh_port_is_silent(void **state)
{
	(void)state;
	NEEDS_ROOT();
	struct ifreq ifreq = {.ifr_name = "br-test", .ifr_hwaddr = {.sa_family = 1}}; /* ARPHRD_ETHER */
	parse_mac("02:00:00:00:00:77", (unsigned char *)ifreq.ifr_hwaddr.sa_data);
	assert_int_equal(ioctl(control_fd, SIOCSIFHWADDR, &ifreq), 0);
	close_fd(&guest_fd);
	guest_fd = create("fyguest", true);
	unsigned char own[6];
	read_address("fyguest", own);
	int64_t deadline_us = clock_monotonic_us() + 1500000;
	for (int64_t left_us; (left_us = deadline_us - clock_monotonic_us()) > 0;) {
		unsigned char frame[2048];
		ssize_t n = read(guest_fd, frame, sizeof(frame));
		if (n >= VNET_HEADER + 14 && memcmp(frame + VNET_HEADER + 6, own, sizeof(own)) == 0)
			fail_msg("the device sent a frame of type %02x%02x", frame[VNET_HEADER + 12],
				 frame[VNET_HEADER + 13]);
		struct pollfd pollfd = {.fd = guest_fd, .events = POLLIN};
		if (n < 0)
			poll(&pollfd, 1, (int)(left_us / 1000 + 1));
	}
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_name),
		TEST(test_bridges),
		TEST(test_errors),
		TEST(test_leftover_device),
		TEST(test_device),
		TEST(test_mtu),
		TEST(test_shut_port_forwards_nothing),
		TEST(test_open_forwards_at_once),
		TEST(test_created_open),
		TEST(test_open_puts_it_on_the_bridge),
		TEST(test_bridge_is_told_the_address),
		TEST(test_shut_forgets_the_address),
		TEST(test_fresh_port_is_silent),
	};
	if (geteuid() == 0 && unshare(CLONE_NEWNET) < 0) {
		perror("cannot make a network namespace");
		return 1;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
