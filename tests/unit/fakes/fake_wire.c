/* SPDX-License-Identifier: Apache-2.0 */
/* The fake wire; see fake_wire.h. */
#include "fakes/fake_wire.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "migration/destination.h"
#include "fakes/fake_http_client.h"

#define WIRE_HOSTS_MAX 4
#define WIRE_RULES_MAX 16
#define WIRE_KEPT_MAX 8

struct wire_host {
	char name[TLS_NAME_SIZE];
	const struct tls_files *files;
	struct migration_host *host;
	unsigned int busy; /* handlers at work */
	bool cut;
};

struct wire_rule {
	char message[32];
	enum wire_fault fault;
	unsigned int left, handled;
	void (*hooks[2])(void *user);
	void *users[2];
};

struct wire_message {
	char from[TLS_NAME_SIZE], to[TLS_NAME_SIZE];
	char *message, *argument; /* "finish", or "outcome" with an id */
	char *body;
};

static struct {
	pthread_mutex_t mutex;
	pthread_cond_t idle;
	struct wire_host hosts[WIRE_HOSTS_MAX];
	struct wire_rule rules[WIRE_RULES_MAX];
	struct wire_message kept[WIRE_KEPT_MAX];
	unsigned int kept_count;
} wire = {.mutex = PTHREAD_MUTEX_INITIALIZER, .idle = PTHREAD_COND_INITIALIZER};

/* ---- small parts; the mutex is held ---- */

static struct wire_host *host_by_name(const char *name)
{
	for (size_t i = 0; i < WIRE_HOSTS_MAX; i++)
		if (wire.hosts[i].host && strcmp(wire.hosts[i].name, name) == 0)
			return &wire.hosts[i];
	return NULL;
}

static struct wire_host *host_by_files(const struct tls_files *files)
{
	for (size_t i = 0; i < WIRE_HOSTS_MAX; i++)
		if (wire.hosts[i].host && wire.hosts[i].files == files)
			return &wire.hosts[i];
	return NULL;
}

static struct wire_rule *rule_for(const char *message)
{
	for (size_t i = 0; i < WIRE_RULES_MAX; i++) {
		struct wire_rule *rule = &wire.rules[i];
		if (!*rule->message)
			snprintf(rule->message, sizeof(rule->message), "%s", message);
		if (strcmp(rule->message, message) == 0)
			return rule;
	}
	abort();
}

static void message_done(struct wire_message *message)
{
	free(message->message);
	free(message->argument);
	free(message->body);
}

/* ---- handing over ---- */

static int unreachable(const char *name, struct error **e)
{
	return error_set(e, ERROR_DAEMON_UNREACHABLE, "%s does not answer", name);
}

static int handle(struct migration_host *host, const struct wire_message *message, json_t **ret, struct error **e)
{
	cleanup_json json_t *body = NULL;
	if (message->body && json_parse(message->body, strlen(message->body), &body, e) < 0)
		return -1;
	if (strcmp(message->message, "check") == 0)
		return destination_check(host, message->from, body, ret, e);
	if (strcmp(message->message, "prepare") == 0)
		return destination_prepare(host, message->from, body, ret, e);
	if (strcmp(message->message, "finish") == 0)
		return destination_finish(host, message->from, body, ret, e);
	if (strcmp(message->message, "refuse") == 0)
		return destination_refuse(host, message->from, body, ret, e);
	if (strcmp(message->message, "outcome") == 0)
		return destination_outcome(host, message->from, message->argument, ret, e);
	if (strcmp(message->message, "owner") == 0)
		return destination_owner(host, message->argument, ret, e);
	if (strcmp(message->message, "hello") == 0) {
		*ret = json_pack("{ss ss}", "host", host->name, "journal", journal_id(host->journal));
		return 0;
	}
	return error_set(e, ERROR_NOT_FOUND, "no such message");
}

static void run_hook(const char *message, bool after)
{
	pthread_mutex_lock(&wire.mutex);
	const struct wire_rule *rule = rule_for(message);
	void (*hook)(void *user) = rule->hooks[after];
	void *user = rule->users[after];
	pthread_mutex_unlock(&wire.mutex);
	if (hook)
		hook(user);
}

/* *ret_answered: whether an answer, good or bad, has come back. */
static int deliver(const struct wire_message *message, json_t **ret, bool *ret_answered, struct error **e)
{
	*ret_answered = false;
	pthread_mutex_lock(&wire.mutex);
	struct wire_host *to = host_by_name(message->to);
	if (!to || to->cut) {
		pthread_mutex_unlock(&wire.mutex);
		return unreachable(message->to, e);
	}
	struct migration_host *host = to->host;
	to->busy++;
	pthread_mutex_unlock(&wire.mutex);

	run_hook(message->message, false);
	cleanup_json json_t *answer = NULL;
	struct error *problem = NULL;
	int r = handle(host, message, &answer, &problem);
	run_hook(message->message, true);

	pthread_mutex_lock(&wire.mutex);
	bool heard = !to->cut;
	rule_for(message->message)->handled++;
	to->busy--;
	pthread_cond_broadcast(&wire.idle);
	pthread_mutex_unlock(&wire.mutex);
	if (!heard) {
		error_free(problem);
		return unreachable(message->to, e);
	}
	*ret_answered = true;
	if (r < 0)
		return error_move(e, problem);
	/* As text and back: nothing but what JSON can say crosses the wire. */
	cleanup_free char *text = answer ? json_text(answer) : xstrdup("{}");
	return json_parse(text, strlen(text), ret, e);
}

/* ---- the test's side ---- */

void wire_connect(const char *name, const struct tls_files *files, struct migration_host *host)
{
	LOCK_SCOPE(&wire.mutex);
	for (size_t i = 0; i < WIRE_HOSTS_MAX; i++) {
		struct wire_host *at = &wire.hosts[i];
		if (at->host)
			continue;
		*at = (struct wire_host){.files = files, .host = host};
		snprintf(at->name, sizeof(at->name), "%s", name);
		return;
	}
	abort();
}

void wire_cut(const char *name)
{
	LOCK_SCOPE(&wire.mutex);
	struct wire_host *host = host_by_name(name);
	if (host)
		host->cut = true;
}

void wire_disconnect(const char *name)
{
	LOCK_SCOPE(&wire.mutex);
	struct wire_host *host = host_by_name(name);
	if (!host)
		return;
	host->cut = true;
	while (host->busy > 0)
		pthread_cond_wait(&wire.idle, &wire.mutex);
	*host = (struct wire_host){0};
}

void wire_fault(const char *message, enum wire_fault fault, unsigned int count)
{
	LOCK_SCOPE(&wire.mutex);
	struct wire_rule *rule = rule_for(message);
	rule->fault = fault;
	rule->left = count;
}

void wire_hook(const char *message, bool after, void (*hook)(void *user), void *user)
{
	LOCK_SCOPE(&wire.mutex);
	struct wire_rule *rule = rule_for(message);
	rule->hooks[after] = hook;
	rule->users[after] = user;
}

unsigned int wire_deliver_kept(void)
{
	pthread_mutex_lock(&wire.mutex);
	struct wire_message kept[WIRE_KEPT_MAX];
	unsigned int count = wire.kept_count;
	memcpy(kept, wire.kept, sizeof(kept));
	wire.kept_count = 0;
	pthread_mutex_unlock(&wire.mutex);
	for (unsigned int i = 0; i < count; i++) {
		cleanup_json json_t *answer = NULL;
		bool answered;
		cleanup_error struct error *e = NULL;
		if (deliver(&kept[i], &answer, &answered, &e) < 0)
			(void)e; /* whoever asked has long given up */
		message_done(&kept[i]);
	}
	return count;
}

unsigned int wire_handled(const char *message)
{
	LOCK_SCOPE(&wire.mutex);
	return rule_for(message)->handled;
}

int wire_ask(const char *from, const char *to, const char *message, const json_t *body, json_t **ret, struct error **e)
{
	struct wire_message one = {.message = xstrdup(message), .argument = xstrdup(""), .body = json_text(body)};
	bool answered;
	snprintf(one.from, sizeof(one.from), "%s", from);
	snprintf(one.to, sizeof(one.to), "%s", to);
	int r = deliver(&one, ret, &answered, e);
	message_done(&one);
	return r;
}

void wire_reset(void)
{
	LOCK_SCOPE(&wire.mutex);
	for (unsigned int i = 0; i < wire.kept_count; i++)
		message_done(&wire.kept[i]);
	wire.kept_count = 0;
	memset(wire.rules, 0, sizeof(wire.rules));
	memset(wire.hosts, 0, sizeof(wire.hosts));
}

/* ---- in the place of net/http_client.c ---- */

/* Whether the message suffers something now; takes it from the rule. */
static bool take_fault(const char *message, enum wire_fault *ret)
{
	LOCK_SCOPE(&wire.mutex);
	struct wire_rule *rule = rule_for(message);
	if (rule->left == 0)
		return false;
	rule->left--;
	*ret = rule->fault;
	return true;
}

static bool find_asker(const struct tls_files *files, char ret_name[TLS_NAME_SIZE])
{
	LOCK_SCOPE(&wire.mutex);
	const struct wire_host *from = host_by_files(files);
	if (!from || from->cut)
		return false;
	snprintf(ret_name, TLS_NAME_SIZE, "%s", from->name);
	return true;
}

static void keep(struct wire_message *message)
{
	LOCK_SCOPE(&wire.mutex);
	if (wire.kept_count == WIRE_KEPT_MAX)
		abort();
	wire.kept[wire.kept_count++] = *message;
	*message = (struct wire_message){0};
}

int http_client_request(struct http_client *client, const char *method, const char *path, const json_t *body,
			int64_t timeout_ms, json_t **ret_body, struct error **e)
{
	static const char prefix[] = "/v1/peer/";
	(void)method;
	(void)timeout_ms;
	client->answered = false;
	if (client->interrupted && client->interrupted(client->interrupted_user))
		return error_set(e, ERROR_CANCELLED, "the request was cut short");
	if (strncmp(path, prefix, strlen(prefix)) != 0)
		abort();
	struct wire_message message = {.message = xstrdup(path + strlen(prefix))};
	char *slash = strchr(message.message, '/');
	message.argument = xstrdup(slash ? slash + 1 : "");
	if (slash)
		*slash = '\0';
	message.body = body ? json_text(body) : NULL;
	snprintf(message.to, sizeof(message.to), "%s", client->name);

	enum wire_fault fault = WIRE_TWICE;
	int r = -1;
	cleanup_json json_t *answer = NULL;
	if (!find_asker(client->files, message.from)) {
		unreachable(client->name, e);
	} else if (!take_fault(message.message, &fault)) {
		r = deliver(&message, &answer, &client->answered, e);
	} else if (fault == WIRE_TWICE) {
		if (deliver(&message, &answer, &client->answered, NULL) == 0)
			json_decref(take_ptr(answer));
		r = deliver(&message, &answer, &client->answered, e);
	} else {
		if (fault == WIRE_LOSE_ANSWER && deliver(&message, &answer, &client->answered, NULL) == 0)
			json_decref(take_ptr(answer));
		if (fault == WIRE_KEEP)
			keep(&message);
		client->answered = false;
		unreachable(client->name, e);
	}
	/* Somebody who has died meanwhile hears no answer either. */
	if (client->answered && !find_asker(client->files, message.from)) {
		client->answered = false;
		if (r == 0)
			r = unreachable(client->name, e);
	}
	message_done(&message);
	if (r == 0 && ret_body)
		*ret_body = take_ptr(answer);
	return r;
}
