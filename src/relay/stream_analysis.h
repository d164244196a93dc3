/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is in a migration stream that was kept in a file: its parts, its pages by what need not be sent of them, the fields of
 * its devices. For people who look for a fault, or want to know what a move of such a guest would cost. Any thread.
 */
#ifndef FERRY_RELAY_STREAM_ANALYSIS_H
#define FERRY_RELAY_STREAM_ANALYSIS_H

#include <jansson.h>
#include <stddef.h>

#include "base/error.h"

/*
 * `images` are files in which the stream's pages are looked for. *ret, the caller's:
 *
 *   bytes               of the file
 *   machine             the machine type; null where the stream does not say
 *   blocks              [{name, size_bytes}] of memory, in the stream's order
 *   commands            [name], in the stream's order
 *   records             {zero, page, delta, compressed}: how many of each
 *   pages               struct page_counts of all page records; zero records are not among them
 *   state               {"ram (ID)": {"section sizes": …}, "NAME (ID)": {FIELD: value}}, see device_state_decode(); without the
 *                       devices where nothing describes them
 *   state_bytes         of the devices' state, 0 where it is not known where it stands
 *   description_bytes   0 where there is none
 *   unread              null, or {offset, why}: from there on nothing could be told of the stream
 *
 * A stream that is damaged, cut off, or none: ERROR_DATA_STREAM, with the offset.
 */
int stream_analyze(const char *path, const char *const images[], size_t image_count, json_t **ret, struct error **e) MUST_CHECK;

#endif
