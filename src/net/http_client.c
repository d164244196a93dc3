/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The HTTP/JSON client; see http_client.h.
 *
 * One libcurl handle on a multi handle of its own, whose cache keeps the one connection alive between requests; the
 * multi interface so that an interrupt is noticed within 100 ms. Two habits of libcurl are not wanted here and kept in
 * check:
 *   - it sends a request again by itself when a kept-alive connection turns out to be dead, also one that may have been
 *     carried out. The pre-request callback lets only GET go out twice, unless told that all may.
 *   - it trusts the system's CA bundle beside ours, follows proxies of the environment, and accepts any certificate
 *     that has the right name. Bundle and proxies are switched off, and before a request is sent the certificate's
 *     role must be "host".
 */
#include "net/http_client.h"

#include <curl/curl.h>
#include <gnutls/gnutls.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/xalloc.h"

#define HTTP_ANSWER_LIMIT_BYTES (16 * 1024 * 1024)
#define HTTP_INTERRUPT_POLL_MS 100
/* Less than the server's 60 s: a connection that it is about to close is not used again. */
#define HTTP_CONNECTION_IDLE_S 50L

struct http_client {
	CURL *curl;
	CURLM *multi;
	struct curl_slist *headers, *connect_list;
	char *url_start; /* "https://host-b:4710" */
	char *whose;     /* "host-b (198.18.0.2 port 4710)" or "'/run/ferry/ferryd.sock'", for messages */
	struct tls_files files;
	bool is_tls;
	bool (*interrupted)(void *user);
	void *interrupted_user;
	int64_t last_us;
	bool answered;
	char curl_words[CURL_ERROR_SIZE];

	/* of the request under way */
	char *answer;
	size_t answer_length, answer_room, answer_limit;
	bool answer_too_large;
	int64_t sent_us;       /* when it went out last */
	unsigned int attempts; /* how often it has gone out */
	bool repeatable, all_repeatable;
	bool welcome;	       /* it has been answered: our certificate is good over there */
	struct error *refusal; /* why the pre-request callback stopped it */
#ifdef FERRY_FAULTS
	enum fault_action broken; /* what happens to the next request */
	int64_t broken_seed;
	size_t cut_length; /* of it, that goes out */
#endif

	/* The certificate that was last found to be a host's. */
	unsigned char *host_der;
	size_t host_der_size;
};

static void http_client_global_init(void)
{
	curl_global_init(CURL_GLOBAL_DEFAULT);
}

/* ---- Callbacks of libcurl ---- */

static size_t http_client_on_data(char *data, size_t size, size_t count, void *user)
{
	struct http_client *client = user;
	size_t length = size * count;
	if (length > client->answer_limit - client->answer_length) {
		client->answer_too_large = true;
		return 0;
	}
	if (length > client->answer_room - client->answer_length) {
		while (client->answer_room < client->answer_length + length)
			client->answer_room = client->answer_room ? client->answer_room * 2 : 4096;
		client->answer = xreallocarray(client->answer, client->answer_room, 1);
	}
	memcpy(client->answer + client->answer_length, data, length);
	client->answer_length += length;
	return length;
}

/* libcurl has verified chain and name; that it is a host's certificate (a client could have been given any name) is up
 * to us. */
static int http_client_check_role(struct http_client *client, struct error **e)
{
	struct curl_tlssessioninfo *info = NULL;
	if (curl_easy_getinfo(client->curl, CURLINFO_TLS_SSL_PTR, &info) != CURLE_OK || !info ||
	    info->backend != CURLSSLBACKEND_GNUTLS || !info->internals)
		return error_set(e, ERROR_TLS, "libcurl does not show the TLS session (is it not the GnuTLS one?)");
	unsigned int count = 0;
	const gnutls_datum_t *chain = gnutls_certificate_get_peers(info->internals, &count);
	if (!chain || count == 0)
		return error_set(e, ERROR_TLS, "%s shows no certificate", client->whose);
	if (client->host_der && client->host_der_size == chain[0].size &&
	    memcmp(client->host_der, chain[0].data, chain[0].size) == 0)
		return 0;

	enum tls_role role;
	char name[TLS_NAME_SIZE];
	if (tls_identity_from_certificate(&chain[0], &role, name, e) < 0)
		return -1;
	if (role != TLS_ROLE_HOST)
		return error_set(e, ERROR_TLS, "%s shows the certificate of a %s, not of a host", client->whose,
				 tls_role_name(role));
	free(client->host_der);
	client->host_der = xmalloc(chain[0].size);
	client->host_der_size = chain[0].size;
	memcpy(client->host_der, chain[0].data, chain[0].size);
	return 0;
}

#ifdef FERRY_FAULTS
/* The half of a body, then the end of the connection. */
static size_t http_client_on_cut(char *buffer, size_t size, size_t count, void *user)
{
	struct http_client *client = user;
	size_t length = client->cut_length < size * count ? client->cut_length : size * count;
	if (length == 0) {
		error_set(&client->refusal, ERROR_DAEMON_UNREACHABLE, "the connection to %s broke", client->whose);
		return CURL_READFUNC_ABORT;
	}
	memset(buffer, '{', length);
	client->cut_length -= length;
	return length;
}

/* Once the request is set up. A cut one announces a body, if it had none, of which only a part comes. */
static void http_client_break(struct http_client *client, char *text, char *url)
{
	CURL *curl = client->curl;
	curl_easy_setopt(curl, CURLOPT_READFUNCTION, NULL);
	if (client->broken == FAULT_CUT) {
		client->cut_length = text ? strlen(text) / 2 + 1 : 8;
		client->repeatable = false;
		curl_easy_setopt(curl, CURLOPT_POST, 1L);
		curl_easy_setopt(curl, CURLOPT_POSTFIELDS, NULL);
		curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long)client->cut_length * 2);
		curl_easy_setopt(curl, CURLOPT_READFUNCTION, http_client_on_cut);
		curl_easy_setopt(curl, CURLOPT_READDATA, client);
	} else if (client->broken == FAULT_CORRUPT && text) {
		fault_corrupt(text, strlen(text), client->broken_seed);
		curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long)strlen(text));
	} else if (client->broken == FAULT_CORRUPT) {
		char *last = strrchr(url, '/') + 1;
		last[(size_t)client->broken_seed % strlen(last)] ^= 1; /* a digit for a digit */
		curl_easy_setopt(curl, CURLOPT_URL, url);
	}
	client->broken = FAULT_NONE;
}

void http_client_break_next(struct http_client *client, enum fault_action how, int64_t seed)
{
	client->broken = how;
	client->broken_seed = seed;
}
#endif

/* Called when there is a connection, before each sending of the request. */
static int http_client_on_prerequest(void *user, char *remote_address, char *local_address, int remote_port,
				     int local_port)
{
	(void)remote_address;
	(void)local_address;
	(void)remote_port;
	(void)local_port;
	struct http_client *client = user;
	if (client->attempts++ > 0 && !client->repeatable) {
		error_set(&client->refusal, ERROR_DAEMON_UNREACHABLE, "%s closed the connection without an answer",
			  client->whose);
		return CURL_PREREQFUNC_ABORT;
	}
	if (client->is_tls && http_client_check_role(client, &client->refusal) < 0)
		return CURL_PREREQFUNC_ABORT;
	client->sent_us = clock_monotonic_us();
	return CURL_PREREQFUNC_OK;
}

/* ---- Make and free ---- */

static int http_client_new(struct http_client **ret, struct error **e)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, http_client_global_init);
	struct http_client *client = xcalloc(1, sizeof(*client));
	client->answer_limit = HTTP_ANSWER_LIMIT_BYTES;
	client->curl = curl_easy_init();
	client->multi = curl_multi_init();
	if (!client->curl || !client->multi) {
		http_client_free(client);
		return error_set(e, ERROR_INTERNAL, "libcurl cannot be started");
	}
	client->headers = curl_slist_append(client->headers, "Content-Type: application/json");
	client->headers = curl_slist_append(client->headers, "Accept: application/json");
	client->headers = curl_slist_append(client->headers, "Expect:"); /* a body never waits for "100 Continue" */
	curl_multi_setopt(client->multi, CURLMOPT_MAXCONNECTS, 1L);
	CURL *curl = client->curl;
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, client->curl_words);
	curl_easy_setopt(curl, CURLOPT_PROXY, "");
	curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
	curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, client->headers);
	curl_easy_setopt(curl, CURLOPT_TCP_NODELAY, 1L);
	curl_easy_setopt(curl, CURLOPT_MAXAGE_CONN, HTTP_CONNECTION_IDLE_S);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, http_client_on_data);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, client);
	curl_easy_setopt(curl, CURLOPT_PREREQFUNCTION, http_client_on_prerequest);
	curl_easy_setopt(curl, CURLOPT_PREREQDATA, client);
	*ret = client;
	return 0;
}

int http_client_new_unix(const char *path, struct http_client **ret, struct error **e)
{
	struct http_client *client;
	if (http_client_new(&client, e) < 0)
		return -1;
	client->url_start = xstrdup("http://localhost");
	client->whose = xasprintf("'%s'", path);
	if (curl_easy_setopt(client->curl, CURLOPT_UNIX_SOCKET_PATH, path) != CURLE_OK) {
		http_client_free(client);
		return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' cannot be the path of a socket", path);
	}
	*ret = client;
	return 0;
}

int http_client_new_tls(const char *name, const char *address, uint16_t port, const struct tls_files *files,
			struct http_client **ret, struct error **e)
{
	if (!tls_name_valid(name))
		return error_set(e, ERROR_INVALID_ARGUMENT, "'%s' cannot be the name of a host", name);
	if (tls_files_check(files, e) < 0)
		return -1;
	struct http_client *client;
	if (http_client_new(&client, e) < 0)
		return -1;
	client->is_tls = true;
	client->files =
		(struct tls_files){xstrdup(files->ca_path), xstrdup(files->cert_path), xstrdup(files->key_path)};
	client->url_start = xasprintf("https://%s:%u", name, port);
	client->whose = xasprintf("%s (%s port %u)", name, address, port);

	/* The URL has the name, which the certificate is checked against; the connection goes to the address. */
	bool is_ipv6 = strchr(address, ':') != NULL;
	cleanup_free char *connect_to = xasprintf("::%s%s%s:%u", is_ipv6 ? "[" : "", address, is_ipv6 ? "]" : "", port);
	client->connect_list = curl_slist_append(NULL, connect_to);
	CURL *curl = client->curl;
	curl_easy_setopt(curl, CURLOPT_CONNECT_TO, client->connect_list);
	curl_easy_setopt(curl, CURLOPT_CAPATH, NULL); /* else the system's CAs count too */
	curl_easy_setopt(curl, CURLOPT_CAINFO, files->ca_path);
	curl_easy_setopt(curl, CURLOPT_SSLCERT, files->cert_path);
	curl_easy_setopt(curl, CURLOPT_SSLKEY, files->key_path);
	curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 1L);
	curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 2L);
	curl_easy_setopt(curl, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_3);
	curl_easy_setopt(curl, CURLOPT_SSL_ENABLE_ALPN, 0L);
	*ret = client;
	return 0;
}

void http_client_free(struct http_client *client)
{
	if (!client)
		return;
	if (client->curl)
		curl_easy_cleanup(client->curl);
	if (client->multi)
		curl_multi_cleanup(client->multi);
	curl_slist_free_all(client->headers);
	curl_slist_free_all(client->connect_list);
	tls_files_done(&client->files);
	error_free(client->refusal);
	free(client->url_start);
	free(client->whose);
	free(client->answer);
	free(client->host_der);
	free(client);
}

bool http_client_answered(const struct http_client *client)
{
	return client->answered;
}

void http_client_set_interrupt(struct http_client *client, bool (*interrupted)(void *user), void *user)
{
	client->interrupted = interrupted;
	client->interrupted_user = user;
}

void http_client_set_repeatable(struct http_client *client)
{
	client->all_repeatable = true;
}

void http_client_set_answer_limit(struct http_client *client, size_t limit_bytes)
{
	client->answer_limit = limit_bytes;
}

int64_t http_client_last_us(const struct http_client *client)
{
	return client->last_us;
}

/* ---- One request ---- */

static bool http_client_is_interrupted(const struct http_client *client)
{
	return client->interrupted && client->interrupted(client->interrupted_user);
}

/* Let the request run to its end. CURLE_ABORTED_BY_CALLBACK without a refusal: it was interrupted. */
static CURLcode http_client_perform(struct http_client *client)
{
	CURLcode result = CURLE_ABORTED_BY_CALLBACK;
	if (curl_multi_add_handle(client->multi, client->curl) != CURLM_OK)
		return CURLE_FAILED_INIT;
	while (!http_client_is_interrupted(client)) {
		int running = 0, messages = 0;
		if (curl_multi_perform(client->multi, &running) != CURLM_OK) {
			result = CURLE_FAILED_INIT;
			break;
		}
		const CURLMsg *message = curl_multi_info_read(client->multi, &messages);
		if (message && message->msg == CURLMSG_DONE) {
			result = message->data.result;
			break;
		}
		/* libcurl's own time limits end the wait as well. */
		curl_multi_poll(client->multi, NULL, 0, client->interrupted ? HTTP_INTERRUPT_POLL_MS : 60000, NULL);
	}
	curl_multi_remove_handle(client->multi, client->curl);
	return result;
}

/* Whether the last request went out over a connection that was there already. */
static bool http_client_reused(const struct http_client *client)
{
	long connections = 1;
	curl_easy_getinfo(client->curl, CURLINFO_NUM_CONNECTS, &connections);
	return connections == 0;
}

/* A kept connection whose other end has been killed breaks in ways that libcurl does not all take for what they are (GnuTLS
 * calls it "non-properly terminated"). */
static bool http_client_worth_another(const struct http_client *client, CURLcode result)
{
	return client->repeatable && !client->refusal && http_client_reused(client) && client->answer_length == 0 &&
	       (result == CURLE_RECV_ERROR || result == CURLE_SEND_ERROR || result == CURLE_GOT_NOTHING);
}

/* No answer came: say why as exactly as can be known. */
static int http_client_failure(struct http_client *client, CURLcode result, struct error **e)
{
	const char *words = client->curl_words[0] ? client->curl_words : curl_easy_strerror(result);
	long verify_status = 0, os_errno = 0;
	curl_off_t handshake_us = 0;
	if (client->refusal)
		return error_move(e, take_ptr(client->refusal));
	switch (result) {
	case CURLE_ABORTED_BY_CALLBACK:
		return error_set(e, ERROR_CANCELLED, "the request to %s was cancelled", client->whose);
	case CURLE_OPERATION_TIMEDOUT:
		return error_set(e, ERROR_TIMEOUT, "no answer from %s in time", client->whose);
	case CURLE_COULDNT_CONNECT:
	case CURLE_COULDNT_RESOLVE_HOST:
		curl_easy_getinfo(client->curl, CURLINFO_OS_ERRNO, &os_errno);
		if (os_errno)
			return error_set_errno(e, ERROR_DAEMON_UNREACHABLE, (int)os_errno, "no ferryd answers at %s",
					       client->whose);
		return error_set(e, ERROR_DAEMON_UNREACHABLE, "no ferryd answers at %s: %s", client->whose, words);
	case CURLE_WRITE_ERROR:
		if (client->answer_too_large) {
			client->answered = true;
			return error_set(e, ERROR_TOO_LARGE, "the answer of %s is larger than %zu bytes", client->whose,
					 client->answer_limit);
		}
		break;
	default:
		break;
	}
	if (!client->is_tls)
		return error_set(e, ERROR_DAEMON_UNREACHABLE, "no answer from %s: %s", client->whose, words);

	/* Our own certificate first: the other side closes the connection on a bad one, often without a word. */
	cleanup_error struct error *own = NULL;
	if (tls_files_check(&client->files, &own) < 0)
		return error_set(e, ERROR_TLS, "no connection to %s: %s", client->whose, own->message);
	curl_easy_getinfo(client->curl, CURLINFO_SSL_VERIFYRESULT, &verify_status);
	if (result == CURLE_PEER_FAILED_VERIFICATION && verify_status > 0) {
		cleanup_free char *its = xasprintf("%s: its", client->whose);
		return tls_error_from_status((unsigned int)verify_status, its, e);
	}
	if (result == CURLE_PEER_FAILED_VERIFICATION)
		return error_set(e, ERROR_TLS, "%s shows a certificate for another name: %s", client->whose, words);
	/* In TLS 1.3 the other side judges our certificate when for us the handshake is over: its alert comes as an
	 * answer, or gets lost in the end of the connection. Where the certificate has been good before, or has not been
	 * shown yet, that is an end like any other: of a ferryd that was killed, say. */
	curl_easy_getinfo(client->curl, CURLINFO_APPCONNECT_TIME_T, &handshake_us);
	bool judged = !client->welcome && !http_client_reused(client) && handshake_us > 0;
	if (strstr(words, "alert") || (judged && strstr(words, "non-properly terminated")))
		return error_set(e, ERROR_TLS, "%s did not accept our certificate (%s): %s", client->whose,
				 client->files.cert_path, words);
	if (strstr(words, "non-properly terminated"))
		return error_set(e, ERROR_DAEMON_UNREACHABLE, "%s closed the connection without an answer", client->whose);
	if (result == CURLE_SSL_CONNECT_ERROR || result == CURLE_SSL_CERTPROBLEM || result == CURLE_SSL_CACERT_BADFILE)
		return error_set(e, ERROR_TLS, "no TLS connection to %s: %s", client->whose, words);
	return error_set(e, ERROR_DAEMON_UNREACHABLE, "no answer from %s: %s", client->whose, words);
}

/* An answer with an error in it gives that error back. */
static int http_client_restore_error(const struct http_client *client, long status, const json_t *body,
				     struct error **e)
{
	const json_t *error = json_object_get(body, "error");
	const char *name = json_string_value(json_object_get(error, "code"));
	const char *message = json_string_value(json_object_get(error, "message"));
	if (!name || !message)
		return error_set(e, ERROR_PEER_PROTOCOL, "%s answered with HTTP status %ld and without a reason",
				 client->whose, status);
	enum error_code code = error_code_from_name(name);
	if (code == ERROR_CODE_COUNT) /* of a later version */
		return error_set(e, ERROR_PEER_REFUSED, "%s (%s)", message, name);
	return error_set(e, code, "%s", message);
}

static int http_client_answer(struct http_client *client, json_t **ret_body, struct error **e)
{
	long status = 0;
	cleanup_json json_t *body = NULL;
	cleanup_error struct error *why = NULL;
	client->answered = true;
	curl_easy_getinfo(client->curl, CURLINFO_RESPONSE_CODE, &status);
	int rc = json_parse(client->answer ? client->answer : "", client->answer_length, &body, &why);
	if (status < 200 || status > 299)
		return http_client_restore_error(client, status, body, e);
	if (rc < 0)
		return error_set(e, ERROR_PEER_PROTOCOL, "the answer of %s is no JSON: %s", client->whose,
				 why->message);
	if (ret_body)
		*ret_body = take_ptr(body);
	return 0;
}

static void http_client_prepare(struct http_client *client, const char *method, const char *url, const char *text,
				int64_t timeout_ms)
{
	CURL *curl = client->curl;
	client->answered = false;
	client->answer_length = 0;
	client->answer_too_large = false;
	client->attempts = 0;
	client->repeatable = client->all_repeatable || strcmp(method, "GET") == 0;
	client->curl_words[0] = '\0';
	error_free(take_ptr(client->refusal));

	curl_easy_setopt(curl, CURLOPT_URL, url);
	/* libcurl's limit is a long of milliseconds, and counts from adding the handle. */
	curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)(timeout_ms > INT32_MAX ? INT32_MAX : timeout_ms));
	if (text || strcmp(method, "POST") == 0 || strcmp(method, "PUT") == 0) {
		curl_easy_setopt(curl, CURLOPT_POST, 1L);
		curl_easy_setopt(curl, CURLOPT_POSTFIELDS, text ? text : "");
		curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, text ? (long)strlen(text) : 0L);
	} else {
		curl_easy_setopt(curl, CURLOPT_HTTPGET, 1L);
	}
	curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
}

int http_client_request(struct http_client *client, const char *method, const char *path, const json_t *body,
			int64_t timeout_ms, json_t **ret_body, struct error **e)
{
	cleanup_free char *url = xasprintf("%s%s", client->url_start, path);
	cleanup_free char *text = body ? json_text(body) : NULL;
	if (timeout_ms <= 0) {
		client->answered = false;
		return error_set(e, ERROR_TIMEOUT, "no time is left to ask %s", client->whose);
	}
	http_client_prepare(client, method, url, text, timeout_ms);
#ifdef FERRY_FAULTS
	if (client->broken != FAULT_NONE)
		http_client_break(client, text, url);
#endif
	CURLcode result = http_client_perform(client);
	if (http_client_worth_another(client, result)) {
		curl_easy_setopt(client->curl, CURLOPT_FRESH_CONNECT, 1L);
		result = http_client_perform(client);
		curl_easy_setopt(client->curl, CURLOPT_FRESH_CONNECT, 0L);
	}
	if (result == CURLE_OK) {
		client->last_us = clock_monotonic_us() - client->sent_us;
		client->welcome = true;
	}

	int rc = result == CURLE_OK ? http_client_answer(client, ret_body, e) : http_client_failure(client, result, e);
	/* An answer may have been large; an idle client keeps little. */
	if (client->answer_room > 65536) {
		free(take_ptr(client->answer));
		client->answer_room = 0;
	}
	return rc;
}
