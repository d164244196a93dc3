/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Faults on purpose, for tests of what a crash leaves behind: the environment variable FERRY_FAULT names one point of the
 * program, "after-taken" for instance, and the process ends there as if by kill -9. With "stop:" before the name it stops
 * there (SIGSTOP) and can be continued, so that a test can do something at exactly that moment. Without the variable a point
 * costs one look at a pointer. tests/system/test_faults.py runs through all of them. Any thread.
 */
#ifndef FERRY_BASE_FAULT_H
#define FERRY_BASE_FAULT_H

/* The point's name is the two put together; either may be "". */
void fault_point(const char *when, const char *what);

#endif
