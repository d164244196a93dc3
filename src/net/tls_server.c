/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server's side of mutual TLS; see tls_server.h.
 *
 * Credentials (certificate, key, CA) are counted: the server holds the newest, each session those with which it began.
 * New files are looked for at each connection by their inode, size and time, which costs three stat(2); files that do
 * not fit together (a renewal is between its two renames) leave the old credentials in use and are looked at again once
 * they change.
 */
#include "net/tls_server.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/xalloc.h"

#define TLS_LINGER_MS 300

struct tls_file_stamp {
	dev_t device;
	ino_t inode;
	off_t size;
	struct timespec changed;
};

struct tls_server_credentials {
	gnutls_certificate_credentials_t gnutls;
	unsigned int users; /* under the server's mutex */
};

struct tls_server {
	struct tls_files files;
	pthread_mutex_t mutex;
	struct tls_server_credentials *current; /* counts as one user of them */
	struct tls_file_stamp stamps[3];        /* of the files that were tried last */
};

static void tls_stamp_file(const char *path, struct tls_file_stamp *ret_stamp)
{
	struct stat st;
	*ret_stamp = (struct tls_file_stamp){0};
	if (stat(path, &st) == 0) {
		ret_stamp->device = st.st_dev;
		ret_stamp->inode = st.st_ino;
		ret_stamp->size = st.st_size;
		ret_stamp->changed = st.st_mtim;
	}
}

static bool tls_stamp_equal(const struct tls_file_stamp *a, const struct tls_file_stamp *b)
{
	return a->device == b->device && a->inode == b->inode && a->size == b->size &&
	       a->changed.tv_sec == b->changed.tv_sec && a->changed.tv_nsec == b->changed.tv_nsec;
}

static int tls_credentials_load(const struct tls_files *files, struct tls_server_credentials **ret, struct error **e)
{
	if (tls_files_check(files, e) < 0)
		return -1;
	gnutls_certificate_credentials_t gnutls;
	int rc = gnutls_certificate_allocate_credentials(&gnutls);
	if (rc < 0)
		return error_set(e, ERROR_PKI, "cannot load certificates: %s", gnutls_strerror(rc));
	rc = gnutls_certificate_set_x509_trust_file(gnutls, files->ca_path, GNUTLS_X509_FMT_PEM);
	if (rc >= 0)
		rc = gnutls_certificate_set_x509_key_file(gnutls, files->cert_path, files->key_path,
							  GNUTLS_X509_FMT_PEM);
	if (rc < 0) {
		gnutls_certificate_free_credentials(gnutls);
		return error_set(e, ERROR_PKI, "cannot load '%s': %s", files->cert_path, gnutls_strerror(rc));
	}
	*ret = xcalloc(1, sizeof(**ret));
	(*ret)->gnutls = gnutls;
	(*ret)->users = 1;
	return 0;
}

static void tls_credentials_unref(struct tls_server_credentials *credentials)
{
	if (--credentials->users > 0)
		return;
	gnutls_certificate_free_credentials(credentials->gnutls);
	free(credentials);
}

/* Load the files if they are others than last time. With the mutex held: only the first connection after a renewal
 * waits. */
static int tls_server_refresh(struct tls_server *server, struct error **e)
{
	struct tls_file_stamp now[3];
	tls_stamp_file(server->files.ca_path, &now[0]);
	tls_stamp_file(server->files.cert_path, &now[1]);
	tls_stamp_file(server->files.key_path, &now[2]);
	if (server->current && tls_stamp_equal(&now[0], &server->stamps[0]) &&
	    tls_stamp_equal(&now[1], &server->stamps[1]) && tls_stamp_equal(&now[2], &server->stamps[2]))
		return 0;
	memcpy(server->stamps, now, sizeof(now));
	struct tls_server_credentials *loaded = NULL;
	if (tls_credentials_load(&server->files, &loaded, e) < 0)
		return -1;
	if (server->current)
		tls_credentials_unref(server->current);
	server->current = loaded;
	return 0;
}

int tls_server_new(const struct tls_files *files, struct tls_server **ret, struct error **e)
{
	struct tls_server *server = xcalloc(1, sizeof(*server));
	server->files.ca_path = xstrdup(files->ca_path);
	server->files.cert_path = xstrdup(files->cert_path);
	server->files.key_path = xstrdup(files->key_path);
	pthread_mutex_init(&server->mutex, NULL);
	if (tls_server_refresh(server, e) < 0) {
		tls_server_free(server);
		return -1;
	}
	*ret = server;
	return 0;
}

void tls_server_free(struct tls_server *server)
{
	if (!server)
		return;
	if (server->current)
		tls_credentials_unref(server->current);
	pthread_mutex_destroy(&server->mutex);
	tls_files_done(&server->files);
	free(server);
}

/* Strangers can cause this line, so not more than one a second. */
static void tls_log_refusal(const struct error *why)
{
	static _Atomic int64_t last_ms;
	int64_t now_ms = clock_monotonic_ms(), before_ms = atomic_load(&last_ms);
	if (now_ms - before_ms >= 1000 && atomic_compare_exchange_strong(&last_ms, &before_ms, now_ms))
		log_failure(LOG_LEVEL_INFO, "a TLS client was refused", why);
}

static gnutls_alert_description_t tls_alert_for_status(unsigned int status)
{
	if (status & GNUTLS_CERT_EXPIRED)
		return GNUTLS_A_CERTIFICATE_EXPIRED;
	if (status & GNUTLS_CERT_SIGNER_NOT_FOUND)
		return GNUTLS_A_UNKNOWN_CA;
	return status ? GNUTLS_A_BAD_CERTIFICATE : GNUTLS_A_ACCESS_DENIED;
}

/* Tell the client why, and let it hear that. In TLS 1.3 its first request is under way already; closing the socket with
 * that unread would send a reset, which overtakes the alert, and the client would know of nothing but a broken
 * connection. */
static void tls_send_alert(gnutls_session_t session, gnutls_alert_description_t alert)
{
	const int64_t deadline_us = clock_monotonic_us() + TLS_LINGER_MS * 1000;
	struct pollfd poller = {.fd = gnutls_transport_get_int(session), .events = POLLIN};
	char unread[4096];
	if (gnutls_alert_send(session, GNUTLS_AL_FATAL, alert) < 0 || shutdown(poller.fd, SHUT_WR) < 0)
		return;
	while (clock_monotonic_us() < deadline_us) {
		poll(&poller, 1, TLS_LINGER_MS);
		ssize_t n = recv(poller.fd, unread, sizeof(unread), MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
			return;
	}
}

/* Called by GnuTLS in the handshake, once the client has shown its certificate and before it may send anything. */
static int tls_server_verify(gnutls_session_t session)
{
	static unsigned char purpose[] = GNUTLS_KP_TLS_WWW_CLIENT;
	gnutls_typed_vdata_st wanted = {.type = GNUTLS_DT_KEY_PURPOSE_OID, .data = purpose};
	struct tls_server_peer *peer = gnutls_session_get_ptr(session);
	cleanup_error struct error *why = NULL;
	unsigned int status = 0, count = 0;
	int rc = gnutls_certificate_verify_peers(session, &wanted, 1, &status);
	if (rc < 0) {
		error_set(&why, ERROR_TLS, "its certificate cannot be verified: %s", gnutls_strerror(rc));
	} else if (status) {
		tls_error_from_status(status, "its", &why);
	} else {
		const gnutls_datum_t *certificates = gnutls_certificate_get_peers(session, &count);
		if (!certificates || count == 0)
			error_set(&why, ERROR_TLS, "it showed no certificate");
		else if (tls_identity_from_certificate(&certificates[0], &peer->role, peer->name, &why) == 0)
			return 0;
	}
	tls_log_refusal(why);
	tls_send_alert(session, tls_alert_for_status(status));
	return GNUTLS_E_CERTIFICATE_ERROR;
}

struct tls_server_credentials *tls_server_attach(struct tls_server *server, gnutls_session_t session,
						 struct tls_server_peer *peer)
{
	LOCK_SCOPE(&server->mutex);
	cleanup_error struct error *why = NULL;
	if (tls_server_refresh(server, &why) < 0)
		log_failure(LOG_LEVEL_WARNING, "the changed certificates are not used", why);
	struct tls_server_credentials *credentials = server->current;
	credentials->users++;
	peer->role = TLS_ROLE_NONE;
	gnutls_session_set_ptr(session, peer);
	gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials->gnutls);
	gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUIRE);
	gnutls_session_set_verify_function(session, tls_server_verify);
	return credentials;
}

void tls_server_release(struct tls_server *server, struct tls_server_credentials *credentials)
{
	LOCK_SCOPE(&server->mutex);
	tls_credentials_unref(credentials);
}
