/* SPDX-License-Identifier: Apache-2.0 */
/* The offer; see offer.h. */
#include "migration/offer.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "migration/host.h"

bool offer_id_valid(const char *text)
{
	return strlen(text) == RANDOM_ID_SIZE - 1 && strspn(text, "0123456789abcdef") == RANDOM_ID_SIZE - 1;
}

bool offer_uuid_valid(const char *text)
{
	static const char shape[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
	for (size_t i = 0; i < sizeof(shape) - 1; i++)
		if (shape[i] == '-' ? text[i] != '-' : !text[i] || !strchr("0123456789abcdef", text[i]))
			return false;
	return text[sizeof(shape) - 1] == '\0';
}

bool offer_key_valid(const char *text)
{
	return strlen(text) == OFFER_KEY_HEX_SIZE - 1 && strspn(text, "0123456789abcdef") == OFFER_KEY_HEX_SIZE - 1;
}

void offer_make_key(char ret_hex[OFFER_KEY_HEX_SIZE])
{
	unsigned char key[(OFFER_KEY_HEX_SIZE - 1) / 2];
	random_bytes(key, sizeof(key));
	for (size_t i = 0; i < sizeof(key); i++)
		snprintf(ret_hex + 2 * i, 3, "%02x", key[i]);
	explicit_bzero(key, sizeof(key));
}

static int offer_copy_id(const char *text, const char *key, char ret_id[RANDOM_ID_SIZE], struct error **e)
{
	if (!offer_id_valid(text))
		return error_set(e, ERROR_PEER_PROTOCOL, "key '%s' is not an id", key);
	memcpy(ret_id, text, RANDOM_ID_SIZE);
	return 0;
}

static int offer_check_proofs(const json_t *proofs, struct error **e)
{
	size_t i;
	const json_t *proof;
	if (json_array_size(proofs) > DEFINITION_DISKS_MAX)
		return error_set(e, ERROR_TOO_LARGE, "more than %d proofs", DEFINITION_DISKS_MAX);
	json_array_foreach (proofs, i, proof) {
		const char *text;
		int64_t number;
		if (json_get_string(proof, "target", &text, e) < 0 || json_get_string(proof, "path", &text, e) < 0 ||
		    json_get_string(proof, "probe", &text, e) < 0 || json_get_string(proof, "token", &text, e) < 0 ||
		    json_get_integer(proof, "inode", 0, INT64_MAX, &number, e) < 0)
			return error_wrap(e, "proofs[%zu]", i);
		if (!offer_id_valid(text)) /* the token, which was read last */
			return error_set(e, ERROR_PEER_PROTOCOL, "proofs[%zu].token is not an id", i);
	}
	return 0;
}

int offer_parse(const json_t *json, struct offer *ret, struct error **e)
{
	const char *id, *source, *source_journal, *tls_key_hex = NULL;
	int64_t protocol, epoch, channels;
	json_t *definition, *description, *proofs;
	struct offer offer = {0};
	if (json_get_integer(json, "protocol", 0, INT64_MAX, &protocol, e) < 0)
		return -1;
	if (protocol != MIGRATION_PROTOCOL)
		return error_set(e, ERROR_PEER_VERSION, "the source speaks protocol %lld, this host %d", (long long)protocol,
				 MIGRATION_PROTOCOL);
	if (json_get_string(json, "migration", &id, e) < 0 || json_get_string(json, "source", &source, e) < 0 ||
	    json_get_string(json, "journal", &source_journal, e) < 0 || json_get_integer(json, "epoch", 2, OFFER_EPOCH_MAX, &epoch, e) < 0 ||
	    json_get_object(json, "definition", &definition, e) < 0 || json_get_object(json, "description", &description, e) < 0 ||
	    json_get_array(json, "proofs", &proofs, e) < 0 || json_get_bool(json, "paused", &offer.paused, e) < 0 ||
	    json_get_integer(json, "channels", 1, 64, &channels, e) < 0 ||
	    json_get_bool_opt(json, "postcopy", &offer.postcopy, e) < 0 || json_get_bool_opt(json, "relay", &offer.relay, e) < 0 ||
	    json_get_string_opt(json, "tls_key_hex", &tls_key_hex, e) < 0 ||
	    offer_copy_id(id, "migration", offer.migration_id, e) < 0 ||
	    offer_copy_id(source_journal, "journal", offer.source_journal, e) < 0 || offer_check_proofs(proofs, e) < 0)
		return -1;
	if (tls_key_hex && !offer_key_valid(tls_key_hex))
		return error_set(e, ERROR_PEER_PROTOCOL, "key 'tls_key_hex' must be 64 hex digits");
	/* One that is missing would be made up here, and be another at each reading. */
	if (!json_is_string(json_object_get(definition, "uuid")))
		return error_set(e, ERROR_PEER_PROTOCOL, "the offered definition has no uuid");
	if (definition_parse(definition, &offer.definition, e) < 0)
		return error_wrap(e, "the offered definition");
	offer.source = xstrdup(source);
	offer.epoch = (uint64_t)epoch;
	offer.description = json_incref(description);
	offer.proofs = json_incref(proofs);
	offer.channels = (unsigned int)channels;
	offer.tls_key_hex = xstrdup_null(tls_key_hex);
	*ret = offer;
	return 0;
}

json_t *offer_to_json(const struct offer *offer)
{
	json_t *json = json_pack("{si ss ss ss sI sb sI sb sb}", "protocol", MIGRATION_PROTOCOL, "migration", offer->migration_id, "source",
				 offer->source, "journal", offer->source_journal, "epoch", (json_int_t)offer->epoch, "paused",
				 (int)offer->paused, "channels", (json_int_t)offer->channels, "postcopy", (int)offer->postcopy,
				 "relay", (int)offer->relay);
	json_object_set_new(json, "definition", definition_to_json(offer->definition));
	json_object_set(json, "description", offer->description);
	json_object_set(json, "proofs", offer->proofs);
	if (offer->tls_key_hex)
		json_object_set_new(json, "tls_key_hex", json_string(offer->tls_key_hex));
	return json;
}

void offer_done(struct offer *offer)
{
	definition_free(offer->definition);
	json_decref(offer->description);
	json_decref(offer->proofs);
	free(offer->source);
	if (offer->tls_key_hex)
		explicit_bzero(offer->tls_key_hex, strlen(offer->tls_key_hex));
	free(offer->tls_key_hex);
	*offer = (struct offer){0};
}
