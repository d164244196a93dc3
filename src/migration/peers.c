/* SPDX-License-Identifier: Apache-2.0 */
/* The other hosts; see peers.h. At most a few idle connections are kept, newest first; curl reconnects one that has died. */
#include "migration/peers.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/xalloc.h"

#define PEERS_IDLE_MAX 8

struct idle_client {
	char *name;
	struct http_client *client;
};

struct peers {
	struct database *db;
	const struct tls_files *files;
	pthread_mutex_t mutex;
	struct idle_client idle[PEERS_IDLE_MAX];
	size_t idle_count;
};

int peers_new(struct database *db, const struct tls_files *files, struct peers **ret, struct error **e)
{
	if (database_run(db, e,
			 "CREATE TABLE IF NOT EXISTS peer(name TEXT PRIMARY KEY, address TEXT NOT NULL, port INTEGER NOT NULL) STRICT",
			 "") < 0)
		return -1;
	struct peers *peers = xcalloc(1, sizeof(*peers));
	peers->db = db;
	peers->files = files;
	pthread_mutex_init(&peers->mutex, NULL);
	*ret = peers;
	return 0;
}

/* The mutex is held (or nobody else is left). */
static void idle_drop(struct peers *peers, size_t i)
{
	free(peers->idle[i].name);
	http_client_free(peers->idle[i].client);
	peers->idle[i] = peers->idle[--peers->idle_count];
}

void peers_free(struct peers *peers)
{
	if (!peers)
		return;
	while (peers->idle_count > 0)
		idle_drop(peers, 0);
	pthread_mutex_destroy(&peers->mutex);
	free(peers);
}

static void peers_drop_idle(struct peers *peers, const char *name)
{
	LOCK_SCOPE(&peers->mutex);
	for (size_t i = peers->idle_count; i-- > 0;)
		if (strcmp(peers->idle[i].name, name) == 0)
			idle_drop(peers, i);
}

int peers_add(struct peers *peers, const char *name, const char *address, uint16_t port, struct error **e)
{
	peers_drop_idle(peers, name);
	return database_run(peers->db, e, "INSERT OR REPLACE INTO peer(name, address, port) VALUES(?, ?, ?)", "ssi", name, address,
			    (int64_t)port);
}

int peers_remove(struct peers *peers, const char *name, struct error **e)
{
	int removed = database_run(peers->db, e, "DELETE FROM peer WHERE name = ?", "s", name);
	if (removed == 0)
		return error_set(e, ERROR_NOT_FOUND, "no host '%s' is known here", name);
	peers_drop_idle(peers, name);
	return removed < 0 ? -1 : 0;
}

static int peers_append(void *user, const struct database_row *row, struct error **e)
{
	(void)e;
	json_array_append_new(user, json_pack("{ss ss sI}", "name", database_text(row, 0), "address", database_text(row, 1), "port",
					      (json_int_t)database_integer(row, 2)));
	return 0;
}

int peers_list(struct peers *peers, json_t **ret, struct error **e)
{
	cleanup_json json_t *list = json_array();
	if (database_query(peers->db, e, peers_append, list, "SELECT name, address, port FROM peer ORDER BY name", "") < 0)
		return -1;
	*ret = take_ptr(list);
	return 0;
}

int peers_get(struct peers *peers, const char *name, json_t **ret, struct error **e)
{
	cleanup_json json_t *list = json_array();
	if (database_query(peers->db, e, peers_append, list, "SELECT name, address, port FROM peer WHERE name = ?", "s", name) < 0)
		return -1;
	if (json_array_size(list) == 0)
		return error_set(e, ERROR_DEST_UNKNOWN, "host '%s' is not known here; add it with `ferry host add %s ADDRESS`", name,
				 name);
	*ret = json_incref(json_array_get(list, 0));
	return 0;
}

int peers_take(struct peers *peers, const char *name, struct http_client **ret, struct error **e)
{
	pthread_mutex_lock(&peers->mutex);
	for (size_t i = peers->idle_count; i-- > 0;) {
		if (strcmp(peers->idle[i].name, name) == 0) {
			*ret = take_ptr(peers->idle[i].client);
			idle_drop(peers, i);
			pthread_mutex_unlock(&peers->mutex);
			return 0;
		}
	}
	pthread_mutex_unlock(&peers->mutex);
	cleanup_json json_t *peer = NULL;
	if (peers_get(peers, name, &peer, e) < 0)
		return -1;
	if (!peers->files)
		return error_set(e, ERROR_PKI, "this host has no certificate; see `ferry pki issue`");
	if (http_client_new_tls(name, json_string_value(json_object_get(peer, "address")),
				(uint16_t)json_integer_value(json_object_get(peer, "port")), peers->files, ret, e) < 0)
		return -1;
	/* Every message between hosts may come twice; and the first one after the other ferryd was restarted must not fail. */
	http_client_set_repeatable(*ret);
	return 0;
}

void peers_give_back(struct peers *peers, const char *name, struct http_client *client, bool broken)
{
	if (!client)
		return;
	http_client_set_interrupt(client, NULL, NULL);
	pthread_mutex_lock(&peers->mutex);
	if (!broken && peers->idle_count < PEERS_IDLE_MAX) {
		peers->idle[peers->idle_count++] = (struct idle_client){xstrdup(name), client};
		client = NULL;
	}
	pthread_mutex_unlock(&peers->mutex);
	http_client_free(client);
}
