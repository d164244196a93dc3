/* SPDX-License-Identifier: Apache-2.0 */
/* Prepared images; see images.h. */
#include "host/images.h"

#include <string.h>

#include "base/json.h"
#include "relay/image_index.h"

static const char schema[] = "CREATE TABLE IF NOT EXISTS image(path TEXT NOT NULL, owner TEXT NOT NULL, public INTEGER NOT NULL,"
			     " qcow2 INTEGER NOT NULL, PRIMARY KEY(path, owner, public)) STRICT";

static int load_row(void *user, const struct database_row *row, struct error **e)
{
	(void)e;
	page_supply_add_image(user, database_text(row, 0), database_integer(row, 3) != 0,
			      database_integer(row, 2) ? NULL : database_text(row, 1));
	return 0;
}

int images_open(struct database *db, struct page_supply *supply, struct error **e)
{
	if (database_run(db, e, schema, "") < 0)
		return -1;
	return database_query(db, e, load_row, supply, "SELECT path, owner, public, qcow2 FROM image", "");
}

int images_add(struct database *db, struct page_supply *supply, const json_t *body, struct error **e)
{
	static const char *const keys[] = {"path", "owner", "public", "format", NULL};
	const char *path, *owner = "", *format = "raw";
	bool is_public = false;
	struct image_version version;
	if (json_check_keys(body, keys, e) < 0 || json_get_string(body, "path", &path, e) < 0 ||
	    json_get_string_opt(body, "owner", &owner, e) < 0 || json_get_bool_opt(body, "public", &is_public, e) < 0 ||
	    json_get_string_opt(body, "format", &format, e) < 0)
		return -1;
	if (*path != '/')
		return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' is not an absolute path", path);
	if (is_public && *owner)
		return error_set(e, ERROR_INVALID_ARGUMENT, "an image is either public or an owner's");
	const bool is_qcow2 = strcmp(format, "qcow2") == 0;
	if (!is_qcow2 && strcmp(format, "raw") != 0)
		return error_set(e, ERROR_INVALID_ARGUMENT, "format '%s' is not one of raw, qcow2", format);
	if (image_version_read(path, &version, e) < 0 ||
	    database_run(db, e, "INSERT OR REPLACE INTO image(path, owner, public, qcow2) VALUES(?, ?, ?, ?)", "ssii", path, owner,
			 (int64_t)is_public, (int64_t)is_qcow2) < 0)
		return -1;
	page_supply_add_image(supply, path, is_qcow2, is_public ? NULL : owner);
	return 0;
}

int images_remove(struct database *db, const json_t *body, struct error **e)
{
	static const char *const keys[] = {"path", NULL};
	const char *path;
	if (json_check_keys(body, keys, e) < 0 || json_get_string(body, "path", &path, e) < 0)
		return -1;
	const int removed = database_run(db, e, "DELETE FROM image WHERE path = ?", "s", path);
	return removed == 0 ? error_set(e, ERROR_NOT_FOUND, "%s has not been prepared here", path) : removed;
}
