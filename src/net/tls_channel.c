/* SPDX-License-Identifier: Apache-2.0 */
/* A stream of bytes by TLS; see tls_channel.h. */
#include "net/tls_channel.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/xalloc.h"
#include "net/socket.h"

struct tls_channel {
	int fd;
	gnutls_session_t session;
	gnutls_certificate_credentials_t credentials; /* of a client */
	struct tls_server *server;
	struct tls_server_credentials *server_credentials;
	struct tls_server_peer peer; /* the session points to it */
};

void tls_channel_free(struct tls_channel *channel)
{
	if (!channel)
		return;
	if (channel->session)
		gnutls_deinit(channel->session);
	if (channel->server_credentials)
		tls_server_release(channel->server, channel->server_credentials);
	if (channel->credentials)
		gnutls_certificate_free_credentials(channel->credentials);
	close(channel->fd);
	free(channel);
}

static struct tls_channel *channel_new(int fd, unsigned int flags)
{
	struct tls_channel *channel = xcalloc(1, sizeof(*channel));
	channel->fd = fd;
	if (gnutls_init(&channel->session, flags | GNUTLS_NO_SIGNAL) < 0 ||
	    gnutls_priority_set_direct(channel->session, TLS_PRIORITIES, NULL) < 0)
		abort(); /* no memory, or our own constant is wrong */
	gnutls_transport_set_int(channel->session, fd);
	return channel;
}

static int shake_hands(struct tls_channel *channel, int64_t timeout_ms, struct error **e)
{
	int rc;
	socket_set_timeout(channel->fd, timeout_ms);
	gnutls_handshake_set_timeout(channel->session, (unsigned int)timeout_ms);
	do
		rc = gnutls_handshake(channel->session);
	while (rc == GNUTLS_E_INTERRUPTED);
	socket_set_timeout(channel->fd, 0);
	if (rc == GNUTLS_E_TIMEDOUT || rc == GNUTLS_E_AGAIN)
		return error_set(e, ERROR_TIMEOUT, "the TLS handshake took longer than %lld ms", (long long)timeout_ms);
	if (rc == GNUTLS_E_FATAL_ALERT_RECEIVED)
		return error_set(e, ERROR_TLS, "the other side has refused us: %s",
				 gnutls_alert_get_name(gnutls_alert_get(channel->session)));
	if (rc < 0)
		return error_set(e, ERROR_TLS, "the TLS handshake failed: %s", gnutls_strerror(rc));
	return 0;
}

/* That it is the host of this name. */
static int check_host(struct tls_channel *channel, const char *name, struct error **e)
{
	static unsigned char purpose[] = GNUTLS_KP_TLS_WWW_SERVER;
	gnutls_typed_vdata_st wanted = {.type = GNUTLS_DT_KEY_PURPOSE_OID, .data = purpose};
	unsigned int status = 0, count = 0;
	int rc = gnutls_certificate_verify_peers(channel->session, &wanted, 1, &status);
	if (rc < 0)
		return error_set(e, ERROR_TLS, "the certificate of '%s' cannot be verified: %s", name, gnutls_strerror(rc));
	if (status)
		return tls_error_from_status(status, "the other side's", e);
	const gnutls_datum_t *chain = gnutls_certificate_get_peers(channel->session, &count);
	if (!chain || count == 0)
		return error_set(e, ERROR_TLS, "'%s' shows no certificate", name);
	if (tls_identity_from_certificate(&chain[0], &channel->peer.role, channel->peer.name, e) < 0)
		return -1;
	if (channel->peer.role != TLS_ROLE_HOST || strcmp(channel->peer.name, name) != 0)
		return error_set(e, ERROR_TLS, "it is the certificate of the %s '%s', not of the host '%s'",
				 tls_role_name(channel->peer.role), channel->peer.name, name);
	return 0;
}

static int load_credentials(struct tls_channel *channel, const struct tls_files *files, struct error **e)
{
	if (tls_files_check(files, e) < 0)
		return -1;
	int rc = gnutls_certificate_allocate_credentials(&channel->credentials);
	if (rc >= 0)
		rc = gnutls_certificate_set_x509_trust_file(channel->credentials, files->ca_path, GNUTLS_X509_FMT_PEM);
	if (rc >= 0)
		rc = gnutls_certificate_set_x509_key_file(channel->credentials, files->cert_path, files->key_path, GNUTLS_X509_FMT_PEM);
	if (rc >= 0)
		rc = gnutls_credentials_set(channel->session, GNUTLS_CRD_CERTIFICATE, channel->credentials);
	if (rc < 0)
		return error_set(e, ERROR_PKI, "cannot load '%s': %s", files->cert_path, gnutls_strerror(rc));
	return 0;
}

int tls_channel_connect(int fd, const char *name, const struct tls_files *files, int64_t timeout_ms, struct tls_channel **ret,
			struct error **e)
{
	struct tls_channel *channel = channel_new(fd, GNUTLS_CLIENT);
	if (load_credentials(channel, files, e) < 0 || shake_hands(channel, timeout_ms, e) < 0 || check_host(channel, name, e) < 0) {
		tls_channel_free(channel);
		return -1;
	}
	*ret = channel;
	return 0;
}

int tls_channel_accept(int fd, struct tls_server *server, int64_t timeout_ms, struct tls_channel **ret,
		       struct tls_server_peer *ret_peer, struct error **e)
{
	struct tls_channel *channel = channel_new(fd, GNUTLS_SERVER);
	channel->server = server;
	channel->server_credentials = tls_server_attach(server, channel->session, &channel->peer);
	if (shake_hands(channel, timeout_ms, e) < 0) {
		tls_channel_free(channel);
		return -1;
	}
	*ret = channel;
	*ret_peer = channel->peer;
	return 0;
}

static int set_broken(ssize_t rc, struct error **e)
{
	if (rc == GNUTLS_E_AGAIN) /* the socket is a blocking one, so its own time-out has passed (socket_set_timeout()) */
		return error_set(e, ERROR_TIMEOUT, "the other side says nothing");
	return error_set(e, ERROR_TLS, "the TLS connection broke: %s", gnutls_strerror((int)rc));
}

ssize_t tls_channel_send(struct tls_channel *channel, const void *data, size_t size_bytes, struct error **e)
{
	ssize_t n;
	do
		n = gnutls_record_send(channel->session, data, size_bytes);
	while (n == GNUTLS_E_INTERRUPTED);
	return n < 0 ? set_broken(n, e) : n;
}

ssize_t tls_channel_receive(struct tls_channel *channel, void *ret, size_t size_bytes, struct error **e)
{
	ssize_t n;
	do
		n = gnutls_record_recv(channel->session, ret, size_bytes);
	while (n == GNUTLS_E_INTERRUPTED);
	return n < 0 ? set_broken(n, e) : n;
}

int tls_channel_fd(const struct tls_channel *channel)
{
	return channel->fd;
}
