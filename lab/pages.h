/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the load program writes into guest memory: pages whose every byte follows from (seed, page index, counter),
 * so that a page which is lost, stale, swapped with another or damaged anywhere is found by writing it anew beside it.
 *
 * A page is 512 words: a head of four (magic, index, counter, key) and 508 words of a key stream. The stream has to
 * look incompressible and never repeat, between pages and between two counters of one page, or it would flatter
 * whatever compresses, deduplicates or sends differences. It need not be secret, and it has to be cheap: guests run
 * without hardware virtualisation here, where an instruction costs about ten, and each page is made twice (once to
 * check it, once to rewrite it). So: a Weyl sequence x += step, with start and step drawn from (seed, index, counter)
 * by a full 64-bit mixer (splitmix64's), and each x spread by one multiplication between two xor-shifts. A ChaCha8
 * block costs eight times as much.
 */
#ifndef FERRY_LAB_PAGES_H
#define FERRY_LAB_PAGES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PAGE_BYTES 4096u
#define PAGE_WORDS (PAGE_BYTES / 8u)
#define PAGE_HEAD_WORDS 4u
#define PAGE_MAGIC UINT64_C(0x3147415059525246) /* "FRRYPAG1" */

/* splitmix64's finaliser: each bit of the result depends on each bit of x. */
static inline uint64_t page_mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

struct page_stream {
    uint64_t x;
    uint64_t step; /* odd, so that the sequence goes through all 2^64 values before it repeats */
};

static inline struct page_stream page_stream_start(uint64_t seed, uint64_t index, uint64_t counter)
{
    uint64_t key = page_mix(page_mix(page_mix(seed) ^ index) ^ counter);

    return (struct page_stream){.x = key, .step = page_mix(key) | 1};
}

static inline uint64_t page_stream_next(struct page_stream *stream)
{
    uint64_t y;

    stream->x += stream->step;
    y = (stream->x ^ (stream->x >> 32)) * UINT64_C(0xd6e8feb86659fd93);
    return y ^ (y >> 32);
}

static inline void page_write(uint64_t *page, uint64_t seed, uint64_t index, uint64_t counter)
{
    struct page_stream stream = page_stream_start(seed, index, counter);

    page[0] = PAGE_MAGIC;
    page[1] = index;
    page[2] = counter;
    page[3] = stream.x;
    for (size_t i = PAGE_HEAD_WORDS; i < PAGE_WORDS; i++)
        page[i] = page_stream_next(&stream);
}

/* Whether each of the page's 4096 bytes is what page_write() writes. */
static inline int page_is_right(const uint64_t *page, uint64_t seed, uint64_t index, uint64_t counter)
{
    struct page_stream stream = page_stream_start(seed, index, counter);
    uint64_t wrong = (page[0] ^ PAGE_MAGIC) | (page[1] ^ index) | (page[2] ^ counter) | (page[3] ^ stream.x);

    for (size_t i = PAGE_HEAD_WORDS; i < PAGE_WORDS; i++)
        wrong |= page[i] ^ page_stream_next(&stream);
    return wrong == 0;
}

/* ---- pages of which only 64 bytes change ---- */

#define CELL_WORDS 8u

/* Where in the page they stand: always in the same place, after the head. */
static inline size_t page_cell_word(uint64_t index)
{
    return CELL_WORDS * (1 + page_mix(index) % (PAGE_WORDS / CELL_WORDS - 1));
}

static inline void page_cell_make(uint64_t cell[CELL_WORDS], uint64_t seed, uint64_t index, uint64_t counter)
{
    struct page_stream stream = page_stream_start(seed, index, counter);

    cell[0] = counter;
    for (size_t i = 1; i < CELL_WORDS; i++)
        cell[i] = page_stream_next(&stream);
}

static inline void page_write_cell(uint64_t *page, uint64_t seed, uint64_t index, uint64_t counter)
{
    page_cell_make(page + page_cell_word(index), seed, index, counter);
}

static inline int page_cell_is_right(const uint64_t *page, uint64_t seed, uint64_t index, uint64_t counter)
{
    uint64_t cell[CELL_WORDS];

    page_cell_make(cell, seed, index, counter);
    return memcmp(page + page_cell_word(index), cell, sizeof(cell)) == 0;
}

/* The whole of such a page: as page_write() makes it with counter 0, with the cell in it. */
static inline void page_write_sparse(uint64_t *page, uint64_t seed, uint64_t index, uint64_t counter)
{
    page_write(page, seed, index, 0);
    page_write_cell(page, seed, index, counter);
}

static inline int page_is_right_sparse(const uint64_t *page, uint64_t seed, uint64_t index, uint64_t counter)
{
    uint64_t right[PAGE_WORDS];

    page_write_sparse(right, seed, index, counter);
    return memcmp(page, right, PAGE_BYTES) == 0;
}

/* ---- what is wrong with a page ---- */

/* The first byte that differs from what page_write() writes; PAGE_BYTES if none does. */
static inline size_t page_first_wrong_byte(const uint64_t *page, uint64_t seed, uint64_t index, uint64_t counter)
{
    uint64_t right[PAGE_WORDS];
    size_t i = 0;

    page_write(right, seed, index, counter);
    while (i < PAGE_BYTES && ((const unsigned char *)page)[i] == ((const unsigned char *)right)[i])
        i++;
    return i;
}

enum page_fault {
    PAGE_FAULT_NONE,
    PAGE_FAULT_ZERO, /* all zero: it was never sent, or lost */
    PAGE_FAULT_STALE, /* this page as it was at another time */
    PAGE_FAULT_SWAPPED, /* another page, whole */
    PAGE_FAULT_DAMAGED, /* none of these */
};

static inline const char *page_fault_name(enum page_fault fault)
{
    static const char *const names[] = {"none", "zero", "stale", "swapped", "damaged"};

    return names[fault];
}

/* Says what happened to a page that should be (index, counter). Slow; for the report only. */
static inline enum page_fault page_diagnose(const uint64_t *page, uint64_t seed, uint64_t index, uint64_t counter)
{
    uint64_t any = 0;

    if (page_is_right(page, seed, index, counter))
        return PAGE_FAULT_NONE;
    for (size_t i = 0; i < PAGE_WORDS; i++)
        any |= page[i];
    if (any == 0)
        return PAGE_FAULT_ZERO;
    /* Believe the head only where the rest of the page agrees with it. */
    if (page_is_right(page, seed, page[1], page[2]))
        return page[1] == index ? PAGE_FAULT_STALE : PAGE_FAULT_SWAPPED;
    return PAGE_FAULT_DAMAGED;
}

/* A page of words, compressible about as well as prose is. It follows from (seed, index), has no counter. */
static inline void page_write_text(uint64_t *page, uint64_t seed, uint64_t index)
{
    static const char words[64][12] = {
        "the ",       "of ",       "and ",      "to ",       "in ",        "is ",       "that ",      "it ",
        "was ",       "for ",      "on ",       "are ",      "as ",        "with ",     "they ",      "at ",
        "be ",        "this ",     "from ",     "have ",     "or ",        "by ",       "one ",       "had ",
        "not ",       "but ",      "what ",     "all ",      "were ",      "when ",     "we ",        "there ",
        "can ",       "an ",       "your ",     "which ",    "their ",     "said ",     "if ",        "do ",
        "will ",      "each ",     "about ",    "how ",      "up ",        "out ",      "them ",      "then ",
        "she ",       "many ",     "some ",     "so ",       "these ",     "would ",    "other ",     "into ",
        "memory ",    "machine ",  "migrate ",  "source\n",  "page.\n",    "ferry, ",   "running ",   "host; ",
    };
    struct page_stream stream = page_stream_start(seed ^ PAGE_MAGIC, index, 0);
    char *text = (char *)page;
    uint64_t draw = 0;
    size_t at = 0;

    for (unsigned bits = 0; at < PAGE_BYTES; bits -= 6, draw >>= 6) {
        const char *word;
        size_t length;

        if (bits < 6) {
            draw = page_stream_next(&stream);
            bits = 60;
        }
        word = words[draw & 63];
        length = strlen(word);
        if (length > PAGE_BYTES - at)
            length = PAGE_BYTES - at;
        memcpy(text + at, word, length);
        at += length;
    }
}

#endif
