/* SPDX-License-Identifier: Apache-2.0 */
/* The other hosts; see peers.h. At most a few idle connections are kept, newest first; curl reconnects one that has died. */
#include "migration/peers.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fault.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "migration/offer.h"
#include "net/socket.h"

#define PEERS_IDLE_MAX 8
#define ANSWER_LIMIT_BYTES ((size_t)1024 * 1024)

struct idle_client {
	char *name;
	struct http_client *client;
};

struct peer {
	char *name, *address;
	uint16_t port;
};

/* Readers must not wait for the database, which may be making something durable: they read the copy. */
struct peers {
	struct database *db;
	const struct tls_files *files;
	pthread_mutex_t writing; /* held while database and copy are changed; taken before mutex */
	pthread_mutex_t mutex;
	struct peer *all; /* sorted by name */
	size_t count;
	struct idle_client idle[PEERS_IDLE_MAX];
	size_t idle_count;
};

/* ---- the copy; the mutex is held, or nobody else is there yet ---- */

/* Where name stands, or would stand. */
static size_t peer_index(const struct peers *peers, const char *name)
{
	size_t i = 0;
	while (i < peers->count && strcmp(peers->all[i].name, name) < 0)
		i++;
	return i;
}

static const struct peer *peer_find(const struct peers *peers, const char *name)
{
	size_t i = peer_index(peers, name);
	return i < peers->count && strcmp(peers->all[i].name, name) == 0 ? &peers->all[i] : NULL;
}

static void peer_drop(struct peers *peers, const char *name)
{
	if (!peer_find(peers, name))
		return;
	size_t i = peer_index(peers, name);
	free(peers->all[i].name);
	free(peers->all[i].address);
	peers->count--;
	memmove(&peers->all[i], &peers->all[i + 1], (peers->count - i) * sizeof(peers->all[0]));
}

static void peer_put(struct peers *peers, const char *name, const char *address, uint16_t port)
{
	peer_drop(peers, name);
	size_t i = peer_index(peers, name);
	peers->all = xreallocarray(peers->all, peers->count + 1, sizeof(peers->all[0]));
	memmove(&peers->all[i + 1], &peers->all[i], (peers->count - i) * sizeof(peers->all[0]));
	peers->all[i] = (struct peer){xstrdup(name), xstrdup(address), port};
	peers->count++;
}

static json_t *peer_view(const struct peer *peer)
{
	return json_pack("{ss ss si}", "name", peer->name, "address", peer->address, "port", (int)peer->port);
}

static int peer_load(void *user, const struct database_row *row, struct error **e)
{
	(void)e;
	peer_put(user, database_text(row, 0), database_text(row, 1), (uint16_t)database_integer(row, 2));
	return 0;
}

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
	pthread_mutex_init(&peers->writing, NULL);
	if (database_query(db, e, peer_load, peers, "SELECT name, address, port FROM peer", "") < 0) {
		peers_free(peers);
		return -1;
	}
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
	while (peers->count > 0)
		peer_drop(peers, peers->all[0].name);
	free(peers->all);
	pthread_mutex_destroy(&peers->writing);
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
	LOCK_SCOPE(&peers->writing);
	pthread_mutex_lock(&peers->mutex);
	bool full = peers->count >= PEERS_MAX && !peer_find(peers, name);
	pthread_mutex_unlock(&peers->mutex);
	if (full)
		return error_set(e, ERROR_TOO_LARGE, "%d hosts are known here, and no more are possible", PEERS_MAX);
	peers_drop_idle(peers, name);
	if (database_run(peers->db, e, "INSERT OR REPLACE INTO peer(name, address, port) VALUES(?, ?, ?)", "ssi", name, address,
			 (int64_t)port) < 0)
		return -1;
	LOCK_SCOPE(&peers->mutex);
	peer_put(peers, name, address, port);
	return 0;
}

int peers_remove(struct peers *peers, const char *name, struct error **e)
{
	LOCK_SCOPE(&peers->writing);
	int removed = database_run(peers->db, e, "DELETE FROM peer WHERE name = ?", "s", name);
	if (removed == 0)
		return error_set(e, ERROR_NOT_FOUND, "no host '%s' is known here", name);
	if (removed < 0)
		return -1;
	peers_drop_idle(peers, name);
	LOCK_SCOPE(&peers->mutex);
	peer_drop(peers, name);
	return 0;
}

json_t *peers_list(struct peers *peers)
{
	json_t *list = json_array();
	LOCK_SCOPE(&peers->mutex);
	for (size_t i = 0; i < peers->count; i++)
		json_array_append_new(list, peer_view(&peers->all[i]));
	return list;
}

int peers_get(struct peers *peers, const char *name, json_t **ret, struct error **e)
{
	LOCK_SCOPE(&peers->mutex);
	const struct peer *peer = peer_find(peers, name);
	if (!peer)
		return error_set(e, ERROR_DEST_UNKNOWN, "host '%s' is not known here; add it with `ferry host add %s ADDRESS`", name,
				 name);
	*ret = peer_view(peer);
	return 0;
}

bool peers_have_address(struct peers *peers, const char *address)
{
	LOCK_SCOPE(&peers->mutex);
	for (size_t i = 0; i < peers->count; i++)
		if (socket_address_in_networks(address, peers->all[i].address))
			return true;
	return false;
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
	http_client_set_answer_limit(*ret, ANSWER_LIMIT_BYTES);
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

/* ---- messages ---- */

static const struct {
	const char *method, *path;
	enum fault_point send, answered;
} peer_messages[PEER_MESSAGE_COUNT] = {
	[PEER_CHECK] = {"POST", "/v1/peer/check", FAULT_CHECK_SEND, FAULT_CHECK_ANSWERED},
	[PEER_PREPARE] = {"POST", "/v1/peer/prepare", FAULT_PREPARE_SEND, FAULT_PREPARE_ANSWERED},
	[PEER_FINISH] = {"POST", "/v1/peer/finish", FAULT_FINISH_SEND, FAULT_FINISH_ANSWERED},
	[PEER_REFUSE] = {"POST", "/v1/peer/refuse", FAULT_REFUSE_SEND, FAULT_REFUSE_ANSWERED},
	[PEER_OUTCOME] = {"GET", "/v1/peer/outcome", FAULT_OUTCOME_SEND, FAULT_OUTCOME_ANSWERED},
};

static int peers_request(struct http_client *client, const struct peer_question *question, json_t **ret_body,
			 struct error **e)
{
	cleanup_free char *path = question->body ? xstrdup(peer_messages[question->message].path)
						 : xasprintf("%s/%s", peer_messages[question->message].path,
							     question->migration_id);
	return http_client_request(client, peer_messages[question->message].method, path, question->body,
				   question->timeout_ms, ret_body, e);
}

#ifdef FERRY_FAULTS
/* The last message of each kind, and the last one of another migration to the same host before it. */
struct kept_message {
	char *host, *migration_id;
	json_t *body;
};
static struct kept_message kept[PEER_MESSAGE_COUNT], kept_older[PEER_MESSAGE_COUNT];
static pthread_mutex_t kept_mutex = PTHREAD_MUTEX_INITIALIZER;

static void kept_done(struct kept_message *message)
{
	free(message->host);
	free(message->migration_id);
	json_decref(message->body);
	*message = (struct kept_message){0};
}

static void keep_message(const struct peer_question *question)
{
	LOCK_SCOPE(&kept_mutex);
	struct kept_message *last = &kept[question->message], *older = &kept_older[question->message];
	if (last->host && strcmp(last->migration_id, question->migration_id) != 0) {
		kept_done(older);
		*older = *last;
		*last = (struct kept_message){0};
	}
	kept_done(last);
	*last = (struct kept_message){xstrdup(question->host), xstrdup(question->migration_id),
				      json_deep_copy(question->body)};
}

/* An earlier migration's message goes out, and whatever is answered is nobody's. */
static void send_older(struct http_client *client, const struct peer_question *question)
{
	pthread_mutex_lock(&kept_mutex);
	const struct kept_message *found = &kept_older[question->message];
	bool sends = found->host && strcmp(found->host, question->host) == 0;
	cleanup_free char *id = sends ? xstrdup(found->migration_id) : NULL;
	cleanup_json json_t *body = sends ? json_deep_copy(found->body) : NULL;
	pthread_mutex_unlock(&kept_mutex);
	const struct peer_question older = {question->message, question->host, id, body, question->timeout_ms};
	if (sends && peers_request(client, &older, NULL, NULL) < 0)
		return;
}
#endif

/* What is done to a message on its way is done here; http_client.h does what a bad line does to its bytes. */
static int peers_request_with_faults(struct http_client *client, const struct peer_question *question, json_t **ret_body,
				     bool *ret_answered, struct error **e)
{
#ifdef FERRY_FAULTS
	int64_t number = 0;
	keep_message(question);
	switch (fault_pass(peer_messages[question->message].send, &number)) {
	case FAULT_DROP:
		*ret_answered = false;
		return error_set(e, ERROR_DAEMON_UNREACHABLE, "the message to %s got lost", question->host);
	case FAULT_CUT:
		http_client_break_next(client, FAULT_CUT, 0);
		break;
	case FAULT_CORRUPT:
		http_client_break_next(client, FAULT_CORRUPT, number);
		break;
	case FAULT_REPEAT:
		if (peers_request(client, question, NULL, NULL) < 0)
			break; /* it goes out again all the same */
		break;
	case FAULT_OLD:
		send_older(client, question);
		break;
	default:
		break;
	}
#endif
	int r = peers_request(client, question, ret_body, e);
	*ret_answered = r == 0 || http_client_answered(client);
	return r;
}

enum error_code peers_code_of_other(enum error_code code)
{
	return code == ERROR_CANCELLED || code == ERROR_SHUTTING_DOWN || code == ERROR_CODE_COUNT ? ERROR_PEER_REFUSED : code;
}

int peers_ask(struct http_client *client, const struct peer_question *question, json_t **ret_body, bool *ret_answered,
	      struct error **e)
{
	cleanup_json json_t *body = NULL;
	cleanup_error struct error *why = NULL;
	bool answered = false;
	int r = peers_request_with_faults(client, question, &body, &answered, &why);
	if (answered && fault_pass(peer_messages[question->message].answered, NULL) == FAULT_DROP) {
		answered = false;
		r = error_set(&why, ERROR_DAEMON_UNREACHABLE, "the answer of %s got lost", question->host);
	}
	if (ret_answered)
		*ret_answered = answered;
	if (r < 0 && answered)
		why->code = peers_code_of_other(why->code);
	if (r < 0)
		return error_move(e, take_ptr(why));
	if (ret_body)
		*ret_body = take_ptr(body);
	return 0;
}

bool peers_ask_owner(struct peers *peers, const char *name, const char *vm_uuid, int64_t timeout_ms, char **ret_owner,
		     uint64_t *ret_epoch)
{
	struct http_client *client = NULL;
	cleanup_json json_t *answer = NULL;
	cleanup_error struct error *e = NULL;
	cleanup_free char *path = xasprintf("/v1/peer/owner/%s", vm_uuid);
	const char *owner = NULL;
	int64_t epoch = 0;
	if (peers_take(peers, name, &client, &e) < 0)
		return false;
	int r = http_client_request(client, "GET", path, NULL, timeout_ms, &answer, &e);
	peers_give_back(peers, name, client, r < 0 && !http_client_answered(client));
	if (r < 0 || json_get_string(answer, "owner", &owner, &e) < 0 || json_get_integer(answer, "epoch", 1, OFFER_EPOCH_MAX, &epoch, &e) < 0)
		return false;
	*ret_owner = xstrdup(owner);
	*ret_epoch = (uint64_t)epoch;
	return true;
}
