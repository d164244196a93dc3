/* SPDX-License-Identifier: Apache-2.0 */
/* Time and random identifiers. Durations are measured on the monotonic clock only. Any thread. */
#ifndef FERRY_BASE_CLOCK_H
#define FERRY_BASE_CLOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int64_t clock_monotonic_us(void);
int64_t clock_monotonic_ms(void);
/* Milliseconds since 1970, for records that people read. Never subtract two of them. */
int64_t clock_wall_ms(void);

/* A condition variable whose timed wait follows the monotonic clock. */
void cond_init(pthread_cond_t *cond);
/* Wait for cond with mutex held until the monotonic time deadline_us; false when it has passed. */
bool cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *mutex, int64_t deadline_us);

/* 128 random bits as 32 hex digits and a NUL: ids of migrations and journals. */
#define RANDOM_ID_SIZE 33
void random_id(char ret_id[RANDOM_ID_SIZE]);
void random_bytes(void *ret_bytes, size_t size_bytes);

#endif
