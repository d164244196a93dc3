/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load: the program that runs in a lab guest (or, for tests, anywhere) and shows whether its memory and its time
 * survive a migration. It is linked statically, so that the same file runs in an initramfs of one program.
 *
 *   - It rewrites a region of memory at a given rate, page after page, and checks every byte of each page before it
 *     rewrites it (pages.h). What a page must hold follows from the pass and the position alone, so there is no table
 *     of expectations that could be stale together with the pages. With rate 0 the region is written once, then
 *     only checked.
 *   - It fills other regions once, with random bytes or with text, and keeps checking them slowly.
 *   - It sends a heartbeat each millisecond (beat.h), at absolute deadlines. Late beats are skipped, not sent after.
 *   - It watches that neither CLOCK_MONOTONIC nor CLOCK_REALTIME goes back.
 *   - On demand it writes a disk, and watches that nobody else does (disk.h).
 *
 * Threads: the main thread beats, at real-time priority where it may; one thread writes and checks; one, on demand,
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
#include "disk.h"
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
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)
#define MIB (UINT64_C(1) << 20)
#define RATE_MAX UINT64_MAX

/* The writer works in slices: short beside a migration's pause, long beside the cost of a sleep. */
#define SLICE_NS (2 * NS_PER_MS)
/* A writer that is this far behind gives up the debt, instead of writing in a burst that no migration could follow. */
#define DEBT_NS (50 * NS_PER_MS)
/* Rate at which regions that do not change are checked. */
#define VERIFY_BYTES_PER_S (8 * MIB)
/* Wrong pages that are described one by one; all are counted. */
#define REPORTS_MAX 32

enum region_kind { REGION_PAGES, REGION_RANDOM, REGION_TEXT };

struct region {
    enum region_kind kind;
    uint64_t *base;
    uint64_t pages;
    uint64_t first_index; /* of its page 0: no two regions share an index */
    uint64_t pass; /* each page holds this counter, those before position one more (if the region is rewritten) */
    uint64_t position;
};

enum break_kind { BREAK_NONE, BREAK_FLIP, BREAK_STALE, BREAK_SWAP, BREAK_ZERO, BREAK_BEAT };

struct options {
    uint64_t load_mib;
    uint64_t load_bytes_per_s;
    uint64_t fill_mib;
    enum region_kind fill_kind;
    struct sockaddr_in client;
    bool has_client;
    uint64_t seed;
    uint64_t beat_us;
    bool spin;
    enum break_kind breakage;
    uint64_t break_pass;
    uint64_t seconds; /* 0: for ever */
    bool bench;
    const char *warm; /* directory, or NULL */
    char disk[256]; /* device; empty: none */
    uint64_t disk_bytes_per_s;
};

static struct {
    _Atomic uint64_t work, spun, passes, checked, wrong, clock_back, dirty_bytes, flags;
} stats;

static struct disk_counts disk_counts;
static uint64_t seed;
static volatile sig_atomic_t ending;

static uint64_t now_ns(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static void sleep_until(uint64_t deadline_ns)
{
    struct timespec t = {.tv_sec = (time_t)(deadline_ns / NS_PER_S), .tv_nsec = (long)(deadline_ns % NS_PER_S)};

    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

/* A relaxed add without the locked instruction: each counter has one writer. */
static void count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_relaxed);
}

static uint64_t value(_Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/* ---- regions ---- */

static int region_map(struct region *region, enum region_kind kind, uint64_t mib, uint64_t first_index)
{
    void *base;

    *region = (struct region){.kind = kind, .first_index = first_index, .pages = mib * MIB / PAGE_BYTES};
    if (region->pages == 0)
        return 0;
    base = mmap(NULL, mib * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        fprintf(stderr, "load: cannot map %" PRIu64 " MiB: %s\n", mib, strerror(errno));
        return -1;
    }
    region->base = base;
    return 0;
}

static uint64_t *region_page(const struct region *region, uint64_t at)
{
    return region->base + at * PAGE_WORDS;
}

static void region_fill(struct region *region)
{
    region->pass = 1;
    for (uint64_t at = 0; at < region->pages && !ending; at++) {
        if (region->kind == REGION_TEXT)
            page_write_text(region_page(region, at), seed, region->first_index + at);
        else
            page_write(region_page(region, at), seed, region->first_index + at, region->pass);
    }
}

/* Counts and describes the page at the region's position, which is wrong, and puts it right again: one fault is one
 * fault, not one on each pass from now on. */
static void region_page_wrong(struct region *region)
{
    uint64_t *page = region_page(region, region->position);
    uint64_t index = region->first_index + region->position;

    count(&stats.wrong, 1);
    if (value(&stats.wrong) <= REPORTS_MAX) {
        if (region->kind == REGION_TEXT)
            printf("load: WRONG text page %" PRIu64 "\n", index);
        else
            printf("load: WRONG page %" PRIu64 ": %s, should have counter %" PRIu64 ", says index %" PRIu64
                   " counter %" PRIu64 ", first wrong byte %zu, address %p\n",
                   index, page_fault_name(page_diagnose(page, seed, index, region->pass)), region->pass, page[1],
                   page[2], page_first_wrong_byte(page, seed, index, region->pass), (void *)page);
        fflush(stdout);
    }
    if (region->kind == REGION_TEXT)
        page_write_text(page, seed, index);
    else
        page_write(page, seed, index, region->pass);
}

static void region_check_page(struct region *region)
{
    const uint64_t *page = region_page(region, region->position);
    uint64_t index = region->first_index + region->position;
    bool right;

    if (region->kind == REGION_TEXT) {
        uint64_t expected[PAGE_WORDS];

        page_write_text(expected, seed, index);
        right = memcmp(page, expected, PAGE_BYTES) == 0;
    } else {
        right = page_is_right(page, seed, index, region->pass);
    }
    if (!right)
        region_page_wrong(region);
    count(&stats.checked, 1);
}

/* Spoils the region, half a pass away from where the writer is, so that it does not see it at once. */
static void region_break(struct region *region, enum break_kind breakage)
{
    uint64_t at = (region->position + region->pages / 2) % region->pages;
    uint64_t *page = region_page(region, at);
    uint64_t *next = region_page(region, (at + 1) % region->pages);
    uint64_t kept[PAGE_WORDS];

    switch (breakage) {
    case BREAK_FLIP:
        page[300] ^= UINT64_C(1) << 41;
        break;
    case BREAK_STALE:
        page_write(page, seed, region->first_index + at, region->pass - 1);
        break;
    case BREAK_SWAP:
        memcpy(kept, page, PAGE_BYTES);
        memcpy(page, next, PAGE_BYTES);
        memcpy(next, kept, PAGE_BYTES);
        break;
    case BREAK_ZERO:
        memset(page, 0, PAGE_BYTES);
        break;
    case BREAK_NONE:
    case BREAK_BEAT:
        break;
    }
}

static void region_step(struct region *region, bool rewrite)
{
    region_check_page(region);
    if (rewrite) {
        page_write(region_page(region, region->position), seed, region->first_index + region->position,
                   region->pass + 1);
        count(&stats.dirty_bytes, PAGE_BYTES);
    }
    count(&stats.work, 1);
    region->position++;
    if (region->position == region->pages) {
        region->position = 0;
        if (rewrite)
            region->pass++;
    }
}

/* ---- the writer ---- */

/* Pages that are due by now at a rate, with the debt bounded. */
struct pace {
    uint64_t bytes_per_s;
    uint64_t since_ns;
    uint64_t done; /* pages since then */
};

static uint64_t pace_due(struct pace *pace, uint64_t now)
{
    uint64_t due;

    if (pace->bytes_per_s == RATE_MAX)
        return 64;
    due = (uint64_t)((double)(now - pace->since_ns) * (double)pace->bytes_per_s / (double)(NS_PER_S * PAGE_BYTES));
    if (due <= pace->done)
        return 0;
    if (due - pace->done > DEBT_NS / 1000 * pace->bytes_per_s / (1000000 * (uint64_t)PAGE_BYTES) + 64) {
        pace->since_ns = now;
        pace->done = 0;
        return 1;
    }
    /* In small lots, so that the clock is looked at often. */
    return due - pace->done < 64 ? due - pace->done : 64;
}

struct writer {
    const struct options *options;
    struct region load, fill;
};

static void *writer_run(void *argument)
{
    struct writer *writer = argument;
    struct region *load = &writer->load, *fill = &writer->fill;
    bool rewrite = writer->options->load_bytes_per_s != 0, broken = false;
    struct pace load_pace = {.bytes_per_s = rewrite ? writer->options->load_bytes_per_s : VERIFY_BYTES_PER_S};
    struct pace fill_pace = {.bytes_per_s = VERIFY_BYTES_PER_S};
    uint64_t wake;

    region_fill(fill);
    region_fill(load);
    count(&stats.flags, BEAT_READY);
    printf("load: ready, %" PRIu64 " pages rewritten or checked, %" PRIu64 " filled\n", load->pages, fill->pages);
    fflush(stdout);

    wake = now_ns(CLOCK_MONOTONIC);
    load_pace.since_ns = fill_pace.since_ns = wake;
    while (!ending) {
        uint64_t now = now_ns(CLOCK_MONOTONIC), turns, fill_turns;

        turns = load->pages ? pace_due(&load_pace, now) : 0;
        fill_turns = fill->pages ? pace_due(&fill_pace, now) : 0;
        for (uint64_t i = 0; i < turns; i++) {
            region_step(load, rewrite);
            if (load->position == 0)
                count(&stats.passes, 1);
        }
        for (uint64_t i = 0; i < fill_turns; i++)
            region_step(fill, false);
        load_pace.done += turns;
        fill_pace.done += fill_turns;
        if (!broken && writer->options->breakage != BREAK_NONE && load->pages >= 4 &&
            value(&stats.passes) >= writer->options->break_pass) {
            region_break(load, writer->options->breakage);
            broken = true;
        }
        if (turns == 0 && fill_turns == 0) {
            if (load->pages == 0 && fill->pages == 0)
                break; /* nothing to do, ever: an idle guest */
            wake = now + SLICE_NS;
            sleep_until(wake);
        }
    }
    return NULL;
}

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

static void beat_run(const struct options *options, int fd, uint64_t boot_id)
{
    struct beat beat = {.magic = BEAT_MAGIC, .boot_id = boot_id};
    uint64_t interval_ns = options->beat_us * 1000, last_real = 0, last_mono = 0;
    uint64_t start = now_ns(CLOCK_MONOTONIC), deadline = start + interval_ns;

    while (!ending) {
        sleep_until(deadline);
        clock_watch(CLOCK_MONOTONIC, &last_mono, &beat.monotonic_ns);
        clock_watch(CLOCK_REALTIME, &last_real, &beat.realtime_ns);
        if (options->seconds != 0 && beat.monotonic_ns >= start + options->seconds * NS_PER_S)
            break;
        beat.flags = options->disk[0] && !value(&disk_counts.ready) ? 0 : value(&stats.flags);
        beat.passes = value(&stats.passes);
        beat.pages_checked = value(&stats.checked);
        beat.pages_wrong = value(&stats.wrong);
        beat.clock_back = value(&stats.clock_back);
        beat.dirty_bytes = value(&stats.dirty_bytes);
        beat.work = value(&stats.work) + value(&stats.spun);
        beat.disk_wrong = value(&disk_counts.wrong);
        beat.disk_foreign = value(&disk_counts.foreign);
        beat.disk_passes = value(&disk_counts.passes);
        beat.disk_ticks = value(&disk_counts.ticks);
        if (fd >= 0 && beat_send(fd, &beat)) {
            /* A second copy of the guest, as the client would see it. */
            if (options->breakage == BREAK_BEAT && beat.seq % 100 == 99) {
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

static int parse_load(const char *text, struct options *options)
{
    char *end;
    double rate;

    options->load_mib = strtoull(text, &end, 10);
    if (end == text)
        return -1;
    if (*end == '\0') {
        options->load_bytes_per_s = 0;
        return 0;
    }
    if (*end++ != ':')
        return -1;
    if (strcmp(end, "max") == 0) {
        options->load_bytes_per_s = RATE_MAX;
        return 0;
    }
    text = end;
    rate = strtod(text, &end);
    if (end == text || *end != '\0' || !(rate >= 0) || rate > 1e6)
        return -1;
    options->load_bytes_per_s = (uint64_t)(rate * 1e6);
    return 0;
}

static int parse_fill(const char *text, struct options *options)
{
    const char *colon = strchr(text, ':');
    size_t length = colon ? (size_t)(colon - text) : strlen(text);
    char *end;

    if (length == 6 && strncmp(text, "random", length) == 0)
        options->fill_kind = REGION_RANDOM;
    else if (length == 4 && strncmp(text, "text", length) == 0)
        options->fill_kind = REGION_TEXT;
    else
        return -1;
    options->fill_mib = 64;
    if (colon) {
        options->fill_mib = strtoull(colon + 1, &end, 10);
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
    static const char *const names[] = {"none", "flip", "stale", "swap", "zero", "beat"};
    const char *colon = strchr(text, ':');
    size_t length = colon ? (size_t)(colon - text) : strlen(text);

    options->break_pass = colon ? strtoull(colon + 1, NULL, 10) : 2;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strlen(names[i]) == length && strncmp(names[i], text, length) == 0) {
            options->breakage = (enum break_kind)i;
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
        return parse_load(text, options);
    if (strcmp(name, "fill") == 0)
        return parse_fill(text, options);
    if (strcmp(name, "disk-load") == 0)
        return parse_disk(text, options);
    if (strcmp(name, "client") == 0)
        return parse_client(text, options);
    if (strcmp(name, "break") == 0)
        return parse_break(text, options);
    if (strcmp(name, "seed") == 0)
        return parse_number(text, &options->seed, 16);
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
            printf("usage: load [--cmdline] [--load MIB[:MBPS|:max]] [--fill random|text[:MIB]] [--client ADDRESS[:PORT]]\n"
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

/* What checking and rewriting cost here, apart. */
static void bench(void)
{
    enum { PAGES = 2048, ROUNDS = 8 };
    struct region region;
    uint64_t start, wrong = 0;
    double s;

    if (region_map(&region, REGION_PAGES, (uint64_t)PAGES * PAGE_BYTES / MIB, 0) < 0)
        return;
    region_fill(&region);
    start = now_ns(CLOCK_MONOTONIC);
    for (int r = 0; r < ROUNDS; r++)
        for (uint64_t i = 0; i < PAGES; i++)
            page_write(region_page(&region, i), seed, i, 1);
    s = (double)(now_ns(CLOCK_MONOTONIC) - start) / 1e9;
    printf("load: bench write %.0f MB/s\n", (double)ROUNDS * PAGES * PAGE_BYTES / 1e6 / s);
    start = now_ns(CLOCK_MONOTONIC);
    for (int r = 0; r < ROUNDS; r++)
        for (uint64_t i = 0; i < PAGES; i++)
            wrong += !page_is_right(region_page(&region, i), seed, i, 1);
    s = (double)(now_ns(CLOCK_MONOTONIC) - start) / 1e9;
    printf("load: bench check %.0f MB/s, %" PRIu64 " wrong\n", (double)ROUNDS * PAGES * PAGE_BYTES / 1e6 / s, wrong);
    fflush(stdout);
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
    struct writer writer = {.options = &options};
    pthread_t writer_thread, spinner_thread;
    uint64_t entropy = 0, boot_id;
    int fd = -1;

    if (parse_arguments(argc, argv, &options) < 0)
        return 2;
    /* A guest has little entropy when it boots, and its siblings have the same: the seed given makes the difference. */
    if (getrandom(&entropy, sizeof(entropy), GRND_INSECURE) < 0)
        entropy = 0;
    entropy ^= page_mix(now_ns(CLOCK_REALTIME)) ^ page_mix(options.seed);
    seed = page_mix(entropy);
    boot_id = page_mix(entropy ^ BEAT_MAGIC);

    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    if (options.bench)
        bench();
    if (options.warm && warm(options.warm) < 0)
        return 2;
    if (options.has_client) {
        fd = beat_open(&options);
        if (fd < 0)
            return 2;
    }
    if (region_map(&writer.load, REGION_PAGES, options.load_mib, 0) < 0 ||
        region_map(&writer.fill, options.fill_kind, options.fill_mib, UINT64_C(1) << 32) < 0)
        return 2;
    if (pthread_create(&writer_thread, NULL, writer_run, &writer) != 0 ||
        (options.spin && pthread_create(&spinner_thread, NULL, spinner_run, NULL) != 0)) {
        fprintf(stderr, "load: cannot start a thread\n");
        return 2;
    }
    if (options.disk[0]) {
        struct disk_options disk = {.device = options.disk, .bytes_per_s = options.disk_bytes_per_s,
                                    .boot_id = boot_id, .seed = seed, .ending = &ending};

        if (disk_start(&disk, &disk_counts) < 0)
            return 2;
    }
    /* After the threads, which must not inherit it. Without the right to it, the beat is only less regular. */
    pthread_setschedparam(pthread_self(), SCHED_FIFO, &real_time);

    beat_run(&options, fd, boot_id);

    ending = 1;
    pthread_join(writer_thread, NULL);
    if (options.spin)
        pthread_join(spinner_thread, NULL);
    if (options.disk[0])
        disk_join();
    printf("load: end, passes=%" PRIu64 " checked=%" PRIu64 " wrong=%" PRIu64 " clock_back=%" PRIu64
           " dirty_bytes=%" PRIu64 " disk_wrong=%" PRIu64 " disk_foreign=%" PRIu64 " disk_passes=%" PRIu64
           " disk_ticks=%" PRIu64 "\n",
           value(&stats.passes), value(&stats.checked), value(&stats.wrong), value(&stats.clock_back),
           value(&stats.dirty_bytes), value(&disk_counts.wrong), value(&disk_counts.foreign),
           value(&disk_counts.passes), value(&disk_counts.ticks));
    return value(&stats.wrong) != 0 || value(&stats.clock_back) != 0 || value(&disk_counts.wrong) != 0 ||
           value(&disk_counts.foreign) != 0;
}
