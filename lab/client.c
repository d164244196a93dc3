/* SPDX-License-Identifier: Apache-2.0 */
/*
 * heartbeat-client: receives the guests' heartbeats (beat.h) and says what they prove: how long a guest was not heard,
 * whether a beat was lost, came twice or out of order, whether two copies of one guest ran, and whether the guest
 * itself found a wrong page or a clock that went back.
 *
 * Time is the kernel's receive time stamp, so that a late turn of this process does not look like a pause. A guest is
 * told by the boot id in its beats, not by its address: a guest that was booted anew is another one.
 *
 * Everything is counted twice, since the start and since the last `mark`: the blackout of one migration is the
 * largest gap since the mark set before it. A gap in which the mark falls belongs to the mark.
 *
 * Sequence numbers are remembered in a ring with a digest of each beat. The same number with the same content is a
 * packet that the network doubled; with other content it is the proof of a second copy of the guest. A number older
 * than the ring counts as a second copy as well: no packet is that late, a copy of the guest from the past is.
 *
 * Control is a unix socket (--control PATH), one question and one line of JSON a connection:
 *     mark                    begin to count anew
 *     report                  all guests
 *     forget ADDRESS          forget the guest at ADDRESS: it has ended, and starts again from a saved state, with the boot
 *                             id and the numbers of then, which would look like a second copy
 *     wait ADDRESS BEATS      answers once the guest at ADDRESS (or any: "*") was ready and heard BEATS times since the mark
 *     load ADDRESS LOAD       order the load of the guest at ADDRESS to change, to MIB:MBPS:MODE as its own option has it;
 *                             answers once it has
 *     quit                    report, then end
 * `heartbeat-client --ask PATH QUESTION...` asks and prints the answer. SIGTERM and --seconds end it with a report on
 * stdout. It writes the line "ready" to stdout once it listens.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "beat.h"
#include "pages.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)

enum {
    GUESTS_MAX = 64,
    CONNECTIONS_MAX = 16,
    GAPS_MAX = 256, /* the longest are listed; all are counted */
    RING_BEATS = 1 << 17, /* two minutes at one beat a millisecond */
    QUESTION_BYTES = 128,
    BATCH = 64,
};

#define GAP_NS (10 * NS_PER_MS)
#define ORDER_AGAIN_NS (100 * NS_PER_MS)

struct gap {
    uint64_t start_ns; /* wall clock: the last beat before it */
    uint64_t end_ns; /* the first beat after it */
};

struct counts {
    uint64_t received; /* datagrams, whatever else they count as */
    uint64_t lost; /* numbers that never came */
    uint64_t doubled; /* numbers that came again */
    uint64_t two_copies; /* of these, with other content: a second copy of the guest ran */
    uint64_t reordered; /* numbers that came after a later one */
    uint64_t readdressed; /* beats from another address than the beat before */
    uint64_t gap_count; /* gaps of more than GAP_NS */
    struct gap max_gap;
    struct gap gaps[GAPS_MAX];
    /* For rates, and for what the guest counts itself. */
    uint64_t ready_beats;
    uint64_t first_ns;
    struct beat first, last;
};

struct guest {
    uint64_t boot_id;
    uint32_t address;
    uint16_t port; /* network order: where its beats come from, and orders go to */
    uint64_t last_ns; /* wall clock of the last beat */
    uint64_t highest_seq;
    struct counts total, marked;
    uint64_t ring[RING_BEATS]; /* digest of the beat with this number, 0: has not come */
};

struct connection {
    int fd;
    char question[QUESTION_BYTES];
    size_t length;
    bool waiting;
    uint32_t wait_address;
    uint64_t wait_beats;
    struct order order; /* what is waited for is that this has been carried out; number 0: it is not */
    uint64_t ordered_ns; /* when it was sent last */
};

static struct guest *guests[GUESTS_MAX];
static size_t guest_count;
static struct connection connections[CONNECTIONS_MAX];
static uint64_t started_ns, marked_ns, strangers, dropped;
static int udp = -1;
static bool ending;

static uint64_t wall_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* ---- accounting ---- */

static uint64_t beat_digest(const struct beat *beat)
{
    uint64_t words[sizeof(*beat) / 8], digest = 0;

    memcpy(words, beat, sizeof(words));
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        digest = page_mix(digest ^ words[i]);
    return digest | 1;
}

static struct guest *guest_find(uint64_t boot_id)
{
    for (size_t i = 0; i < guest_count; i++) {
        if (guests[i]->boot_id == boot_id)
            return guests[i];
    }
    return NULL;
}

/* A guest that is throttled has thousands of short gaps, and they must not keep the one of its switch off the list. */
static void gaps_replace_shortest(struct gap gaps[GAPS_MAX], struct gap gap)
{
    size_t shortest = 0;

    for (size_t i = 1; i < GAPS_MAX; i++) {
        if (gaps[i].end_ns - gaps[i].start_ns < gaps[shortest].end_ns - gaps[shortest].start_ns)
            shortest = i;
    }
    if (gap.end_ns - gap.start_ns > gaps[shortest].end_ns - gaps[shortest].start_ns)
        gaps[shortest] = gap;
}

static void counts_add_gap(struct counts *counts, uint64_t start_ns, uint64_t end_ns)
{
    struct gap gap = {start_ns, end_ns};

    if (end_ns <= start_ns)
        return;
    if (end_ns - start_ns > counts->max_gap.end_ns - counts->max_gap.start_ns)
        counts->max_gap = gap;
    if (end_ns - start_ns <= GAP_NS)
        return;
    if (counts->gap_count < GAPS_MAX)
        counts->gaps[counts->gap_count] = gap;
    else
        gaps_replace_shortest(counts->gaps, gap);
    counts->gap_count++;
}

enum arrival { ARRIVAL_NEXT, ARRIVAL_DOUBLED, ARRIVAL_TWO_COPIES, ARRIVAL_REORDERED };

/* Enters the number into the ring. *ret_lost: how many were left out before it; a reordered beat takes one back. */
static enum arrival guest_sequence(struct guest *guest, const struct beat *beat, uint64_t *ret_lost)
{
    uint64_t digest = beat_digest(beat), *slot = &guest->ring[beat->seq % RING_BEATS];

    *ret_lost = 0;
    if (guest->total.received == 0 || beat->seq > guest->highest_seq) {
        if (guest->total.received != 0) {
            uint64_t skipped = beat->seq - guest->highest_seq - 1;

            for (uint64_t i = 0; i < skipped && i < RING_BEATS; i++)
                guest->ring[(beat->seq - 1 - i) % RING_BEATS] = 0;
            *ret_lost = skipped;
        }
        guest->highest_seq = beat->seq;
        *slot = digest;
        return ARRIVAL_NEXT;
    }
    if (guest->highest_seq - beat->seq >= RING_BEATS)
        return ARRIVAL_TWO_COPIES;
    if (*slot == 0) {
        *slot = digest;
        return ARRIVAL_REORDERED;
    }
    return *slot == digest ? ARRIVAL_DOUBLED : ARRIVAL_TWO_COPIES;
}

static void counts_add_beat(struct counts *counts, const struct guest *guest, const struct beat *beat, uint32_t address,
                            uint64_t rx_ns, enum arrival arrival, uint64_t lost)
{
    if (counts->received == 0) {
        counts->first = *beat;
        counts->first_ns = rx_ns;
    }
    if (guest->total.received != 0 || counts->received != 0) {
        counts_add_gap(counts, guest->last_ns, rx_ns);
        counts->readdressed += address != guest->address;
    }
    counts->received++;
    counts->ready_beats += (beat->flags & BEAT_READY) != 0;
    counts->lost += lost;
    switch (arrival) {
    case ARRIVAL_NEXT:
        counts->last = *beat;
        break;
    case ARRIVAL_REORDERED:
        counts->reordered++;
        /* It was counted as lost when a later one came; that may have been before the mark. */
        if (counts->lost > 0)
            counts->lost--;
        break;
    case ARRIVAL_TWO_COPIES:
        counts->two_copies++;
        counts->doubled++;
        break;
    case ARRIVAL_DOUBLED:
        counts->doubled++;
        break;
    }
}

static void receive_beat(const struct beat *beat, const struct sockaddr_in *from, uint64_t rx_ns)
{
    uint32_t address = from->sin_addr.s_addr;
    struct guest *guest = guest_find(beat->boot_id);
    enum arrival arrival;
    uint64_t lost;

    if (!guest) {
        if (guest_count == GUESTS_MAX || !(guest = calloc(1, sizeof(*guest)))) {
            strangers++;
            return;
        }
        guest->boot_id = beat->boot_id;
        guest->address = address;
        guests[guest_count++] = guest;
    }
    arrival = guest_sequence(guest, beat, &lost);
    counts_add_beat(&guest->marked, guest, beat, address, rx_ns, arrival, lost);
    counts_add_beat(&guest->total, guest, beat, address, rx_ns, arrival, lost);
    guest->address = address;
    guest->port = from->sin_port;
    guest->last_ns = rx_ns;
}

static void receive_all(void)
{
    static struct beat beats[BATCH];
    static union {
        char bytes[CMSG_SPACE(sizeof(struct timespec)) + CMSG_SPACE(sizeof(uint32_t))];
        struct cmsghdr align;
    } control[BATCH];
    struct sockaddr_in from[BATCH];
    struct iovec parts[BATCH];
    struct mmsghdr messages[BATCH];

    for (;;) {
        int n;

        memset(messages, 0, sizeof(messages));
        for (int i = 0; i < BATCH; i++) {
            parts[i] = (struct iovec){&beats[i], sizeof(beats[i])};
            messages[i].msg_hdr = (struct msghdr){.msg_name = &from[i],
                                                  .msg_namelen = sizeof(from[i]),
                                                  .msg_iov = &parts[i],
                                                  .msg_iovlen = 1,
                                                  .msg_control = &control[i],
                                                  .msg_controllen = sizeof(control[i])};
        }
        n = recvmmsg(udp, messages, BATCH, MSG_DONTWAIT | MSG_TRUNC, NULL);
        if (n <= 0)
            return;
        for (int i = 0; i < n; i++) {
            struct msghdr *message = &messages[i].msg_hdr;
            uint64_t rx_ns = 0;

            for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
                if (c->cmsg_level != SOL_SOCKET)
                    continue;
                if (c->cmsg_type == SCM_TIMESTAMPNS) {
                    struct timespec t;

                    memcpy(&t, CMSG_DATA(c), sizeof(t));
                    rx_ns = (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
                } else if (c->cmsg_type == SO_RXQ_OVFL) {
                    uint32_t overflow;

                    memcpy(&overflow, CMSG_DATA(c), sizeof(overflow));
                    dropped = overflow;
                }
            }
            if (messages[i].msg_len != sizeof(beats[i]) || beats[i].magic != BEAT_MAGIC)
                strangers++;
            else
                receive_beat(&beats[i], &from[i], rx_ns ? rx_ns : wall_ns());
        }
        if (n < BATCH)
            return;
    }
}

static void mark(void)
{
    marked_ns = wall_ns();
    for (size_t i = 0; i < guest_count; i++)
        memset(&guests[i]->marked, 0, sizeof(guests[i]->marked));
}

static void forget(uint32_t address)
{
    size_t kept = 0;

    for (size_t i = 0; i < guest_count; i++) {
        if (guests[i]->address == address)
            free(guests[i]);
        else
            guests[kept++] = guests[i];
    }
    guest_count = kept;
}

/* ---- report ---- */

static double ms(uint64_t ns)
{
    return (double)ns / 1e6;
}

static void print_counts(FILE *out, const struct counts *c, uint64_t last_ns)
{
    double s = c->received ? (double)(last_ns - c->first_ns) / 1e9 : 0;
    size_t listed = c->gap_count < GAPS_MAX ? c->gap_count : GAPS_MAX;

    fprintf(out,
            "{\"received\":%" PRIu64 ",\"lost\":%" PRIu64 ",\"doubled\":%" PRIu64 ",\"two_copies\":%" PRIu64
            ",\"reordered\":%" PRIu64 ",\"readdressed\":%" PRIu64 ",\"max_gap_ms\":%.3f,\"max_gap_start_ns\":%" PRIu64
            ",\"max_gap_end_ns\":%" PRIu64,
            c->received, c->lost, c->doubled, c->two_copies, c->reordered, c->readdressed,
            ms(c->max_gap.end_ns - c->max_gap.start_ns), c->max_gap.start_ns, c->max_gap.end_ns);
    fprintf(out,
            ",\"seconds\":%.3f,\"work_per_s\":%.1f,\"dirty_bytes\":%" PRIu64 ",\"dirty_bytes_per_s\":%.0f,\"passes\":%" PRIu64
            ",\"pages_checked\":%" PRIu64 ",\"pages_wrong\":%" PRIu64 ",\"clock_back\":%" PRIu64 ",\"late_beats\":%" PRIu64,
            s, s > 0 ? (double)(c->last.work - c->first.work) / s : 0, c->last.dirty_bytes - c->first.dirty_bytes,
            s > 0 ? (double)(c->last.dirty_bytes - c->first.dirty_bytes) / s : 0, c->last.passes - c->first.passes,
            c->last.pages_checked - c->first.pages_checked, c->last.pages_wrong - c->first.pages_wrong,
            c->last.clock_back - c->first.clock_back, c->last.late_beats - c->first.late_beats);
    fprintf(out,
            ",\"disk_wrong\":%" PRIu64 ",\"disk_foreign\":%" PRIu64 ",\"disk_passes\":%" PRIu64 ",\"disk_ticks\":%" PRIu64,
            c->last.disk_wrong - c->first.disk_wrong, c->last.disk_foreign - c->first.disk_foreign,
            c->last.disk_passes - c->first.disk_passes, c->last.disk_ticks - c->first.disk_ticks);
    fprintf(out, ",\"gap_count\":%" PRIu64 ",\"gaps\":[", c->gap_count);
    for (size_t i = 0; i < listed; i++)
        fprintf(out, "%s{\"ms\":%.3f,\"start_ns\":%" PRIu64 ",\"end_ns\":%" PRIu64 "}", i ? "," : "",
                ms(c->gaps[i].end_ns - c->gaps[i].start_ns), c->gaps[i].start_ns, c->gaps[i].end_ns);
    fprintf(out, "]}");
}

static void report(FILE *out)
{
    uint64_t now = wall_ns();

    fprintf(out, "{\"time_ns\":%" PRIu64 ",\"started_ns\":%" PRIu64 ",\"marked_ns\":%" PRIu64 ",\"strangers\":%" PRIu64
            ",\"dropped\":%" PRIu64 ",\"guests\":[",
            now, started_ns, marked_ns, strangers, dropped);
    for (size_t i = 0; i < guest_count; i++) {
        const struct guest *guest = guests[i];
        const struct beat *last = &guest->total.last;
        char address[INET_ADDRSTRLEN];

        inet_ntop(AF_INET, &guest->address, address, sizeof(address));
        fprintf(out,
                "%s{\"address\":\"%s\",\"boot_id\":\"%016" PRIx64 "\",\"last_seq\":%" PRIu64 ",\"last_ns\":%" PRIu64
                ",\"silent_ms\":%.3f,\"ready\":%s,\"pages_wrong\":%" PRIu64 ",\"clock_back\":%" PRIu64 ",",
                i ? "," : "", address, guest->boot_id, guest->highest_seq, guest->last_ns,
                now > guest->last_ns ? ms(now - guest->last_ns) : 0.0, last->flags & BEAT_READY ? "true" : "false",
                last->pages_wrong, last->clock_back);
        fprintf(out, "\"disk_wrong\":%" PRIu64 ",\"disk_foreign\":%" PRIu64 ",\"total\":", last->disk_wrong,
                last->disk_foreign);
        print_counts(out, &guest->total, guest->last_ns);
        fprintf(out, ",\"since_mark\":");
        print_counts(out, &guest->marked, guest->last_ns);
        fprintf(out, "}");
    }
    fprintf(out, "]}\n");
    fflush(out);
}

/* ---- control ---- */

static void connection_close(struct connection *connection)
{
    close(connection->fd);
    *connection = (struct connection){.fd = -1};
}

/* The answer may be larger than a socket's buffer, and the asker slow: it gets a second, not more. */
static void connection_answer(struct connection *connection, const char *text, size_t length)
{
    struct timeval patience = {.tv_sec = 1};
    size_t at = 0;

    setsockopt(connection->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    while (at < length) {
        ssize_t n = send(connection->fd, text + at, length - at, MSG_NOSIGNAL);

        if (n <= 0)
            break;
        at += (size_t)n;
    }
    connection_close(connection);
}

static void connection_answer_report(struct connection *connection)
{
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);

    if (!out) {
        connection_close(connection);
        return;
    }
    report(out);
    fclose(out);
    connection_answer(connection, text, length);
    free(text);
}

/* The guest that was heard last of those at an address: what was booted anew is another one. */
static const struct guest *guest_at(uint32_t address)
{
    const struct guest *found = NULL;

    for (size_t i = 0; i < guest_count; i++) {
        if (guests[i]->address == address && (!found || guests[i]->last_ns > found->last_ns))
            found = guests[i];
    }
    return found;
}

/* Sends the order again if it may have got lost; answers once it has been carried out or refused. */
static void connection_pursue_order(struct connection *connection)
{
    static const char refused[] = "{\"error\":\"the guest does not understand the load\"}\n";
    const struct guest *guest = guest_at(connection->wait_address);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = connection->wait_address};
    uint64_t now = wall_ns();

    if (!guest)
        return;
    if (guest->total.last.order == connection->order.number) {
        if (guest->total.last.flags & BEAT_ORDER_REFUSED)
            connection_answer(connection, refused, sizeof(refused) - 1);
        else
            connection_answer_report(connection);
        return;
    }
    if (now - connection->ordered_ns < ORDER_AGAIN_NS)
        return;
    connection->ordered_ns = now;
    to.sin_port = guest->port;
    sendto(udp, &connection->order, sizeof(connection->order), MSG_DONTWAIT, (const struct sockaddr *)&to, sizeof(to));
}

static bool wait_is_over(const struct connection *connection)
{
    for (size_t i = 0; i < guest_count; i++) {
        if (connection->wait_address != INADDR_ANY && guests[i]->address != connection->wait_address)
            continue;
        if (guests[i]->marked.ready_beats >= connection->wait_beats)
            return true;
    }
    return false;
}

static void connection_obey(struct connection *connection)
{
    static const char unknown[] = "{\"error\":\"not a question\"}\n", marked[] = "{\"marked\":true}\n";
    static const char forgotten[] = "{\"forgotten\":true}\n";
    char address[64], load[sizeof(connection->order.load)];
    uint32_t number;

    if (strcmp(connection->question, "mark") == 0) {
        mark();
        connection_answer(connection, marked, sizeof(marked) - 1);
    } else if (sscanf(connection->question, "forget %63s", address) == 1 && inet_pton(AF_INET, address, &number) == 1) {
        forget(number);
        connection_answer(connection, forgotten, sizeof(forgotten) - 1);
    } else if (strcmp(connection->question, "report") == 0) {
        connection_answer_report(connection);
    } else if (strcmp(connection->question, "quit") == 0) {
        ending = true;
        connection_answer_report(connection);
    } else if (sscanf(connection->question, "wait %63s %" SCNu64, address, &connection->wait_beats) == 2 &&
               (strcmp(address, "*") == 0 || inet_pton(AF_INET, address, &connection->wait_address) == 1)) {
        if (strcmp(address, "*") == 0)
            connection->wait_address = INADDR_ANY;
        connection->waiting = true;
    } else if (sscanf(connection->question, "load %63s %47s", address, load) == 2 &&
               inet_pton(AF_INET, address, &connection->wait_address) == 1) {
        connection->order = (struct order){.magic = ORDER_MAGIC, .number = wall_ns()};
        memcpy(connection->order.load, load, strlen(load) + 1);
        connection->waiting = true;
    } else {
        connection_answer(connection, unknown, sizeof(unknown) - 1);
    }
}

static void connection_read(struct connection *connection)
{
    ssize_t n = recv(connection->fd, connection->question + connection->length,
                     sizeof(connection->question) - 1 - connection->length, MSG_DONTWAIT);
    char *end;

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        connection_close(connection);
        return;
    }
    if (connection->waiting)
        return;
    connection->length += (size_t)n;
    connection->question[connection->length] = '\0';
    end = strchr(connection->question, '\n');
    if (end) {
        *end = '\0';
        connection_obey(connection);
    } else if (connection->length == sizeof(connection->question) - 1) {
        connection_close(connection);
    }
}

static void connection_accept(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0)
        return;
    for (size_t i = 0; i < CONNECTIONS_MAX; i++) {
        if (connections[i].fd < 0) {
            connections[i] = (struct connection){.fd = fd};
            return;
        }
    }
    close(fd);
}

static int open_udp(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), on = 1, buffer = 8 << 20;

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(on)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &on, sizeof(on)) < 0 ||
        bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        fprintf(stderr, "heartbeat-client: cannot listen on UDP port %u: %s\n", port, strerror(errno));
        return -1;
    }
    /* Without the right to a large buffer it gets what there is; what overflows is counted as dropped. */
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof(buffer)) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer));
    return fd;
}

static int open_unix(const char *path, bool listening)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd, result;

    if (strlen(path) >= sizeof(address.sun_path)) {
        fprintf(stderr, "heartbeat-client: %s: path too long for a socket\n", path);
        return -1;
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (listening) {
        unlink(path);
        result = bind(fd, (struct sockaddr *)&address, sizeof(address));
        if (result == 0)
            result = listen(fd, CONNECTIONS_MAX);
    } else {
        result = connect(fd, (struct sockaddr *)&address, sizeof(address));
    }
    if (result < 0) {
        fprintf(stderr, "heartbeat-client: %s: %s\n", path, strerror(errno));
        close(fd);
        return -1;
    }
    return fd;
}

/* The other end of the control socket: asks, prints the answer. */
static int ask(const char *path, int words, char **word)
{
    int fd = open_unix(path, false);
    char text[4096];
    ssize_t n;
    bool answered = false;

    if (fd < 0)
        return 1;
    for (int i = 0; i < words; i++)
        dprintf(fd, "%s%s", i ? " " : "", word[i]);
    dprintf(fd, "\n");
    while ((n = read(fd, text, sizeof(text))) > 0) {
        fwrite(text, 1, (size_t)n, stdout);
        answered = true;
    }
    close(fd);
    return answered ? 0 : 1;
}

static void serve(int listener, int signals, uint64_t end_ns)
{
    while (!ending) {
        struct pollfd polls[3 + CONNECTIONS_MAX];
        uint64_t now = wall_ns();
        int timeout_ms = -1;

        if (end_ns != 0) {
            if (now >= end_ns)
                break;
            timeout_ms = (int)((end_ns - now) / NS_PER_MS) + 1;
        }
        polls[0] = (struct pollfd){.fd = udp, .events = POLLIN};
        polls[1] = (struct pollfd){.fd = listener, .events = POLLIN};
        polls[2] = (struct pollfd){.fd = signals, .events = POLLIN};
        for (size_t i = 0; i < CONNECTIONS_MAX; i++)
            polls[3 + i] = (struct pollfd){.fd = connections[i].fd, .events = POLLIN};
        if (poll(polls, 3 + CONNECTIONS_MAX, timeout_ms) < 0 && errno != EINTR)
            break;
        /* Beats first: a question is answered, and a mark set, after all that came before it. */
        receive_all();
        if (polls[2].revents)
            break;
        for (size_t i = 0; i < CONNECTIONS_MAX; i++) {
            if (connections[i].fd >= 0 && polls[3 + i].revents)
                connection_read(&connections[i]);
            if (connections[i].fd < 0 || !connections[i].waiting)
                continue;
            if (connections[i].order.number != 0)
                connection_pursue_order(&connections[i]);
            else if (wait_is_over(&connections[i]))
                connection_answer_report(&connections[i]);
        }
        if (polls[1].revents)
            connection_accept(listener);
    }
    receive_all();
}

int main(int argc, char **argv)
{
    static const struct option table[] = {
        {"port", required_argument, NULL, 'p'}, {"control", required_argument, NULL, 'c'},
        {"seconds", required_argument, NULL, 's'}, {"ask", required_argument, NULL, 'a'},
        {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0},
    };
    unsigned long port = BEAT_PORT, seconds = 0;
    const char *control = NULL, *asked = NULL;
    int choice, listener = -1, signals;
    sigset_t set;

    while ((choice = getopt_long(argc, argv, "+", table, NULL)) != -1) {
        switch (choice) {
        case 'p':
            port = strtoul(optarg, NULL, 10);
            break;
        case 'c':
            control = optarg;
            break;
        case 's':
            seconds = strtoul(optarg, NULL, 10);
            break;
        case 'a':
            asked = optarg;
            break;
        case 'h':
            printf("usage: heartbeat-client [--port N] [--control SOCKET] [--seconds N]\n"
                   "       heartbeat-client --ask SOCKET mark | report | forget ADDRESS | wait ADDRESS BEATS | load ADDRESS LOAD |\n"
                   "       quit\n");
            return 0;
        default:
            return 2;
        }
    }
    if (asked)
        return ask(asked, argc - optind, argv + optind);
    if (port == 0 || port > 65535 || seconds > 1000000 || optind != argc) {
        fprintf(stderr, "heartbeat-client: bad arguments; see --help\n");
        return 2;
    }

    for (size_t i = 0; i < CONNECTIONS_MAX; i++)
        connections[i].fd = -1;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signals = signalfd(-1, &set, SFD_CLOEXEC);
    udp = open_udp((uint16_t)port);
    if (signals < 0 || udp < 0 || (control && (listener = open_unix(control, true)) < 0))
        return 1;
    started_ns = marked_ns = wall_ns();
    printf("ready\n");
    fflush(stdout);

    serve(listener, signals, seconds ? started_ns + seconds * NS_PER_S : 0);

    report(stdout);
    if (control)
        unlink(control);
    return 0;
}
