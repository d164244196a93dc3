/* SPDX-License-Identifier: Apache-2.0 */
/* One migration as a picture, in SVG that stands alone: `ferry migration show ID --plot FILE`. One thread. */
#ifndef FERRY_CLI_PLOT_H
#define FERRY_CLI_PLOT_H

#include <jansson.h>

#include "base/error.h"

/* Both as the API gives them; nothing in them is relied upon. The caller frees it. */
char *plot_svg(const json_t *migration, const json_t *timeline);
/* "-" is standard output. A file is there whole or as it was before; what is no file (a pipe, say) is simply written to. */
int plot_write(const char *path, const char *svg, struct error **e) MUST_CHECK;

#endif
