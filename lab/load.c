/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load: the program that runs in a lab guest (or, for tests, anywhere) and shows whether its memory and its time
 * survive a migration. It is linked statically, so that the same file runs in an initramfs of one program.
 *
 *   - It rewrites a region of memory at a given rate, and checks each page before it does; it fills another once, with
 *     random bytes or with text, and keeps checking that slowly (memory.h). Whoever hears its heartbeats can order it to
 *     do so at another rate, over more or less memory, or in another way (struct order).
 *   - It sends a heartbeat each millisecond (beat.h), at absolute deadlines. Late beats are skipped, not sent after.
 *   - It watches that neither CLOCK_MONOTONIC nor CLOCK_REALTIME goes back.
 *   - On demand it writes a disk, and watches that nobody else does (disk.h).
 *
 * Threads: the main thread beats, at real-time priority where it may; one writes and checks memory; one, on demand,
 * spins at the lowest priority, to count what the guest could have done. They share counters only, all atomic.
 *
 * With --warm DIRECTORY it first reads every file below, so that the page cache holds them, before anything else.
 *
 * Options come from the command line or, with --cmdline, from words "ferry.NAME=VALUE" in /proc/cmdline.
 * --break makes it spoil its own memory, which shows that the checks find what they are there to find.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "beat.h"
#include "common.h"
#include "disk.h"
#include "memory.h"
#include "pages.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* An order is looked for with each so many beats: a system call is dear in an emulated guest. */
#define BEATS_AN_ORDER 16

struct options {
    struct memory_options memory;
    struct sockaddr_in client;
    bool has_client;
    uint64_t seed;
    uint64_t beat_us;
    bool spin;
    bool break_beat;
    uint64_t seconds; /* 0: for ever */
    bool bench;
    const char *warm; /* directory, or NULL */
    char disk[256]; /* device; empty: none */
    uint64_t disk_bytes_per_s;
};

static struct {
    _Atomic uint64_t spun, clock_back;
} stats;

static struct memory_counts memory_counts;
static struct disk_counts disk_counts;
static volatile sig_atomic_t ending;

/* ---- the spinner ---- */

static void *spinner_run(void *unused)
{
    struct sched_param lowest = {0};

    (void)unused;
    if (sched_setscheduler(0, SCHED_IDLE, &lowest) < 0)
        setpriority(PRIO_PROCESS, 0, 19);
    while (!ending) {
        for (uint64_t i = 0, x = 1; i < 1000; i++) {
            x = page_mix(x);
            __asm__ volatile("" : : "r"(x));
        }
        count(&stats.spun, 1);
    }
    return NULL;
}

/* ---- the beat ---- */

static void clock_watch(clockid_t clock, uint64_t *last, uint64_t *ret_now)
{
    uint64_t now = now_ns(clock);

    if (now < *last) {
        count(&stats.clock_back, 1);
        printf("load: CLOCK %s went back by %" PRIu64 " ns\n", clock == CLOCK_REALTIME ? "REALTIME" : "MONOTONIC",
               *last - now);
        fflush(stdout);
    }
    *last = now;
    *ret_now = now;
}

static int beat_open(const struct options *options)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0 || connect(fd, (const struct sockaddr *)&options->client, sizeof(options->client)) < 0) {
        fprintf(stderr, "load: cannot open the heartbeat's socket: %s\n", strerror(errno));
        if (fd >= 0)
            close(fd);
        return -1;
    }
    return fd;
}

static bool beat_send(int fd, const struct beat *beat)
{
    ssize_t sent = send(fd, beat, sizeof(*beat), 0);

    /* The error of an earlier datagram: this one has not been tried yet. */
    if (sent < 0 && errno == ECONNREFUSED)
        sent = send(fd, beat, sizeof(*beat), 0);
    return sent == (ssize_t)sizeof(*beat);
}

/* Returns the number of an order that has come now and is not understood, else 0. */
static uint64_t order_receive(int fd)
{
    struct order order;
    struct memory_load load;

    if (recv(fd, &order, sizeof(order), 0) != (ssize_t)sizeof(order) || order.magic != ORDER_MAGIC)
        return 0;
    order.load[sizeof(order.load) - 1] = '\0';
    if (memory_load_parse(order.load, &load) < 0)
        return order.number;
    memory_change_load(order.number, &load);
    return 0;
}

static uint64_t beat_flags(const struct options *options, uint64_t refused)
{
    bool ready = value(&memory_counts.ready) != 0 && (!options->disk[0] || value(&disk_counts.ready) != 0);

    return (ready ? BEAT_READY : 0) | (refused != 0 ? BEAT_ORDER_REFUSED : 0);
}

static void beat_fill(struct beat *beat, const struct options *options, uint64_t refused)
{
    beat->flags = beat_flags(options, refused);
    beat->passes = value(&memory_counts.passes);
    beat->pages_checked = value(&memory_counts.checked);
    beat->pages_wrong = value(&memory_counts.wrong);
    beat->clock_back = value(&stats.clock_back);
    beat->dirty_bytes = value(&memory_counts.dirty_bytes);
    beat->work = value(&memory_counts.work) + value(&stats.spun);
    beat->disk_wrong = value(&disk_counts.wrong);
    beat->disk_foreign = value(&disk_counts.foreign);
    beat->disk_passes = value(&disk_counts.passes);
    beat->disk_ticks = value(&disk_counts.ticks);
    beat->order = refused != 0 ? refused : value(&memory_counts.order);
}

static void beat_run(const struct options *options, int fd, uint64_t boot_id)
{
    struct beat beat = {.magic = BEAT_MAGIC, .boot_id = boot_id};
    uint64_t interval_ns = options->beat_us * 1000, last_real = 0, last_mono = 0;
    uint64_t start = now_ns(CLOCK_MONOTONIC), deadline = start + interval_ns, refused = 0;

    while (!ending) {
        sleep_until(deadline);
        clock_watch(CLOCK_MONOTONIC, &last_mono, &beat.monotonic_ns);
        clock_watch(CLOCK_REALTIME, &last_real, &beat.realtime_ns);
        if (options->seconds != 0 && beat.monotonic_ns >= start + options->seconds * NS_PER_S)
            break;
        if (fd >= 0 && beat.seq % BEATS_AN_ORDER == 0)
            refused = order_receive(fd);
        beat_fill(&beat, options, refused);
        if (fd >= 0 && beat_send(fd, &beat)) {
            /* A second copy of the guest, as the client would see it. */
            if (options->break_beat && beat.seq % 100 == 99) {
                beat.monotonic_ns++;
                beat_send(fd, &beat);
            }
            beat.seq++;
        }
        deadline += interval_ns;
        if (beat.monotonic_ns >= deadline) {
            uint64_t missed = (beat.monotonic_ns - deadline) / interval_ns + 1;

            beat.late_beats += missed;
            deadline += missed * interval_ns;
        }
    }
}

/* ---- options ---- */

static int parse_fill(const char *text, struct options *options)
{
    const char *colon = strchr(text, ':');
    size_t length = colon ? (size_t)(colon - text) : strlen(text);
    char *end;

    if (length == 6 && strncmp(text, "random", length) == 0)
        options->memory.fill_kind = MEMORY_FILL_RANDOM;
    else if (length == 4 && strncmp(text, "text", length) == 0)
        options->memory.fill_kind = MEMORY_FILL_TEXT;
    else
        return -1;
    options->memory.fill_mib = 64;
    if (colon) {
        options->memory.fill_mib = strtoull(colon + 1, &end, 10);
        if (end == colon + 1 || *end != '\0')
            return -1;
    }
    return 0;
}

/* DEVICE:MBPS */
static int parse_disk(const char *text, struct options *options)
{
    const char *colon = strrchr(text, ':');
    char *end;
    double rate;

    if (!colon || colon == text || (size_t)(colon - text) >= sizeof(options->disk))
        return -1;
    rate = strtod(colon + 1, &end);
    if (end == colon + 1 || *end != '\0' || !(rate >= 0) || rate > 1e6)
        return -1;
    memcpy(options->disk, text, (size_t)(colon - text));
    options->disk[colon - text] = '\0';
    options->disk_bytes_per_s = (uint64_t)(rate * 1e6);
    return 0;
}

static int parse_client(const char *text, struct options *options)
{
    const char *colon = strchr(text, ':');
    size_t length = colon ? (size_t)(colon - text) : strlen(text);
    char address[INET_ADDRSTRLEN];
    unsigned long port = colon ? strtoul(colon + 1, NULL, 10) : BEAT_PORT;

    if (length >= sizeof(address) || port == 0 || port > 65535)
        return -1;
    memcpy(address, text, length);
    address[length] = '\0';
    options->client = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, address, &options->client.sin_addr) != 1)
        return -1;
    options->has_client = true;
    return 0;
}

static int parse_break(const char *text, struct options *options)
{
    static const char *const names[] = {"none", "flip", "stale", "swap", "zero"};
    const char *colon = strchr(text, ':');
    size_t length = colon ? (size_t)(colon - text) : strlen(text);

    options->memory.break_pass = colon ? strtoull(colon + 1, NULL, 10) : 2;
    if (length == 4 && strncmp(text, "beat", length) == 0) {
        options->break_beat = true;
        return 0;
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strlen(names[i]) == length && strncmp(names[i], text, length) == 0) {
            options->memory.breakage = (enum memory_break)i;
            return 0;
        }
    }
    return -1;
}

static int parse_number(const char *text, uint64_t *ret_number, int base)
{
    char *end;
    uint64_t number = strtoull(text, &end, base);

    if (end == text || *end != '\0')
        return -1;
    *ret_number = number;
    return 0;
}

static int parse_option(const char *name, const char *text, struct options *options)
{
    uint64_t flag;

    if (strcmp(name, "load") == 0)
        return memory_load_parse(text, &options->memory.load);
    if (strcmp(name, "fill") == 0)
        return parse_fill(text, options);
    if (strcmp(name, "disk-load") == 0)
        return parse_disk(text, options);
    if (strcmp(name, "client") == 0)
        return parse_client(text, options);
    if (strcmp(name, "break") == 0)
        return parse_break(text, options);
    if (strcmp(name, "seed") == 0)
        return parse_number(text, &options->memory.seed, 16);
    if (strcmp(name, "seconds") == 0)
        return parse_number(text, &options->seconds, 10);
    if (strcmp(name, "beat-us") == 0)
        return parse_number(text, &options->beat_us, 10) < 0 || options->beat_us == 0 ? -1 : 0;
    if (strcmp(name, "spin") == 0) {
        if (parse_number(text, &flag, 10) < 0)
            return -1;
        options->spin = flag != 0;
        return 0;
    }
    return 1; /* not ours */
}

static int parse_kernel_cmdline(struct options *options)
{
    char line[4096], *rest = line, *word;
    FILE *file = fopen("/proc/cmdline", "re");
    size_t length;

    if (!file)
        return -1;
    length = fread(line, 1, sizeof(line) - 1, file);
    fclose(file);
    line[length] = '\0';
    while ((word = strsep(&rest, " \n")) != NULL) {
        char *equals = strchr(word, '=');

        if (strncmp(word, "ferry.", 6) != 0 || !equals)
            continue;
        *equals = '\0';
        if (parse_option(word + 6, equals + 1, options) < 0) {
            fprintf(stderr, "load: bad value for %s: %s\n", word, equals + 1);
            return -1;
        }
    }
    return 0;
}

static int parse_arguments(int argc, char **argv, struct options *options)
{
    static const struct option table[] = {
        {"load", required_argument, NULL, 'o'},    {"fill", required_argument, NULL, 'o'},
        {"client", required_argument, NULL, 'o'},  {"break", required_argument, NULL, 'o'},
        {"seed", required_argument, NULL, 'o'},    {"seconds", required_argument, NULL, 'o'},
        {"beat-us", required_argument, NULL, 'o'}, {"spin", required_argument, NULL, 'o'},
        {"disk-load", required_argument, NULL, 'o'},
        {"cmdline", no_argument, NULL, 'c'},       {"bench", no_argument, NULL, 'b'},
        {"warm", required_argument, NULL, 'w'},    {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int choice, at = -1;

    while ((choice = getopt_long(argc, argv, "", table, &at)) != -1) {
        switch (choice) {
        case 'o':
            if (parse_option(table[at].name, optarg, options) != 0) {
                fprintf(stderr, "load: bad value for --%s: %s\n", table[at].name, optarg);
                return -1;
            }
            break;
        case 'c':
            if (parse_kernel_cmdline(options) < 0)
                return -1;
            break;
        case 'b':
            options->bench = true;
            break;
        case 'w':
            options->warm = optarg;
            break;
        case 'h':
            printf("usage: load [--cmdline] [--load MIB[:MBPS|:max[:pages|skewed|sparse]]] [--fill random|text[:MIB]]\n"
                   "            [--client ADDRESS[:PORT]]\n"
                   "            [--seed HEX] [--beat-us N] [--spin 0|1] [--seconds N] [--bench]\n"
                   "            [--disk-load DEVICE:MBPS]\n"
                   "            [--warm DIRECTORY] [--break flip|stale|swap|zero|beat[:PASS]]\n"
                   "Rewrites MIB MiB of memory at MBPS million bytes a second and checks each page before it does;\n"
                   "does the same with a disk; sends a heartbeat each millisecond to ADDRESS. Exits 1 if a page or block was\n"
                   "wrong, somebody else wrote the disk, or a clock went back.\n");
            exit(0);
        default:
            return -1;
        }
    }
    if (optind != argc) {
        fprintf(stderr, "load: unexpected argument: %s\n", argv[optind]);
        return -1;
    }
    return 0;
}

/* ---- warming the page cache ---- */

/* Files whose reading has begun and is not waited for yet: one at a time, each would wait for the disk in turn. */
enum { WARM_AHEAD = 64 };

static struct {
    int null;
    int ahead[WARM_AHEAD]; /* descriptor + 1; 0: none */
    unsigned next;
    uint64_t files, bytes;
} warmed;

/* Waits for the file in a slot, if there is one. Into nothing, without a copy, which is dear under emulation. */
static void warm_finish(unsigned slot)
{
    int fd = warmed.ahead[slot] - 1;
    ssize_t n;

    if (fd < 0)
        return;
    while ((n = sendfile(warmed.null, fd, NULL, 1 << 20)) > 0)
        warmed.bytes += (uint64_t)n;
    warmed.files++;
    close(fd);
    warmed.ahead[slot] = 0;
}

static int warm_file(const char *path, const struct stat *status, int type, struct FTW *at)
{
    int fd;

    (void)at;
    if (type != FTW_F || !S_ISREG(status->st_mode) || status->st_size == 0)
        return 0;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOATIME);
    if (fd < 0)
        return 0;
    posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED);
    warm_finish(warmed.next);
    warmed.ahead[warmed.next] = fd + 1;
    warmed.next = (warmed.next + 1) % WARM_AHEAD;
    return 0;
}

static int warm(const char *directory)
{
    uint64_t start = now_ns(CLOCK_MONOTONIC);

    warmed.null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (warmed.null < 0 || nftw(directory, warm_file, 32, FTW_PHYS | FTW_MOUNT) < 0) {
        fprintf(stderr, "load: cannot read %s: %s\n", directory, strerror(errno));
        return -1;
    }
    for (unsigned slot = 0; slot < WARM_AHEAD; slot++)
        warm_finish(slot);
    close(warmed.null);
    printf("load: read %" PRIu64 " files, %" PRIu64 " MB, in %.1f s\n", warmed.files, warmed.bytes / 1000000,
           (double)(now_ns(CLOCK_MONOTONIC) - start) / 1e9);
    fflush(stdout);
    return 0;
}

static void on_signal(int signal_number)
{
    (void)signal_number;
    ending = 1;
}

int main(int argc, char **argv)
{
    struct options options = {.beat_us = BEAT_INTERVAL_US};
    struct sched_param real_time = {.sched_priority = 50};
    pthread_t spinner_thread;
    uint64_t entropy = 0, boot_id;
    int fd = -1;

    if (parse_arguments(argc, argv, &options) < 0)
        return 2;
    /* A guest has little entropy when it boots, and its siblings have the same: the seed given makes the difference. */
    if (getrandom(&entropy, sizeof(entropy), GRND_INSECURE) < 0)
        entropy = 0;
    entropy ^= page_mix(now_ns(CLOCK_REALTIME)) ^ page_mix(options.memory.seed);
    options.memory.seed = page_mix(entropy);
    options.memory.ending = &ending;
    boot_id = page_mix(entropy ^ BEAT_MAGIC);

    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    if (options.bench)
        memory_bench(options.memory.seed);
    if (options.warm && warm(options.warm) < 0)
        return 2;
    if (options.has_client) {
        fd = beat_open(&options);
        if (fd < 0)
            return 2;
    }
    if (memory_start(&options.memory, &memory_counts) < 0)
        return 2;
    if (options.spin && pthread_create(&spinner_thread, NULL, spinner_run, NULL) != 0) {
        fprintf(stderr, "load: cannot start a thread\n");
        return 2;
    }
    if (options.disk[0]) {
        struct disk_options disk = {.device = options.disk, .bytes_per_s = options.disk_bytes_per_s,
                                    .boot_id = boot_id, .seed = options.memory.seed, .ending = &ending};

        if (disk_start(&disk, &disk_counts) < 0)
            return 2;
    }
    /* After the threads, which must not inherit it. Without the right to it, the beat is only less regular. */
    pthread_setschedparam(pthread_self(), SCHED_FIFO, &real_time);

    beat_run(&options, fd, boot_id);

    ending = 1;
    memory_join();
    if (options.spin)
        pthread_join(spinner_thread, NULL);
    if (options.disk[0])
        disk_join();
    printf("load: end, passes=%" PRIu64 " checked=%" PRIu64 " wrong=%" PRIu64 " clock_back=%" PRIu64
           " dirty_bytes=%" PRIu64 " disk_wrong=%" PRIu64 " disk_foreign=%" PRIu64 " disk_passes=%" PRIu64
           " disk_ticks=%" PRIu64 "\n",
           value(&memory_counts.passes), value(&memory_counts.checked), value(&memory_counts.wrong), value(&stats.clock_back),
           value(&memory_counts.dirty_bytes), value(&disk_counts.wrong), value(&disk_counts.foreign),
           value(&disk_counts.passes), value(&disk_counts.ticks));
    return value(&memory_counts.wrong) != 0 || value(&stats.clock_back) != 0 || value(&disk_counts.wrong) != 0 ||
           value(&disk_counts.foreign) != 0;
}
