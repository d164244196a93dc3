/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The devices' state, field by field; see device_state.h. State and description are walked side by side: the description gives
 * each field's name, type and size, in the order in which they stand in the state. Neither is trusted: what is taken is
 * bounded by the state, what is made by VALUES_MAX.
 */
#include "qemu/device_state.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "qemu/stream.h"

#define VALUES_MAX 2000000 /* a guest of 200 processors has some 100,000 fields */
#define STRUCTURE_DEPTH_MAX 32
#define INTEGER_MAX_BYTES 8
#define LABEL_SIZE (STREAM_NAME_MAX + 16)
#define NULL_POINTER_MARK '0'

struct decoder {
	struct bytes bytes;
	uint64_t offset; /* of bytes.data */
	unsigned int values;
	char device[STREAM_NAME_MAX + 1]; /* the last whose section has begun */
	struct error **e;
};

#define MISFIT(decoder, format, ...)                                                                                             \
	error_set((decoder)->e, ERROR_DATA_STREAM, "the devices' state does not fit its description: at byte %" PRIu64 ", in '%s': " format, \
		  (decoder)->offset + (decoder)->bytes.at, (decoder)->device, ##__VA_ARGS__)

/* ---- single values ---- */

enum field_type {
	FIELD_BYTES, /* of all types that are not named below */
	FIELD_SIGNED,
	FIELD_UNSIGNED,
	FIELD_BOOL,
	FIELD_STRUCTURE,
	FIELD_CAPABILITY,
	FIELD_NULL_POINTER,
};

static enum field_type field_type(const char *name)
{
	static const struct {
		const char *name;
		enum field_type type;
	} types[] = {
		{"int8", FIELD_SIGNED},		{"int16", FIELD_SIGNED},
		{"int32", FIELD_SIGNED},	{"int64", FIELD_SIGNED},
		{"int32 equal", FIELD_SIGNED},	{"int64 equal", FIELD_SIGNED},
		{"int32 le", FIELD_SIGNED},	{"uint8", FIELD_UNSIGNED},
		{"uint16", FIELD_UNSIGNED},	{"uint32", FIELD_UNSIGNED},
		{"uint64", FIELD_UNSIGNED},	{"uint32 equal", FIELD_UNSIGNED},
		/* Of no sign in QEMU; shown as its script shows them. */
		{"uint8 equal", FIELD_SIGNED},	{"uint16 equal", FIELD_SIGNED},
		{"bool", FIELD_BOOL},		{"struct", FIELD_STRUCTURE},
		{"capability", FIELD_CAPABILITY}, {"nullptr", FIELD_NULL_POINTER},
	};
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
		if (strcmp(name, types[i].name) == 0)
			return types[i].type;
	return FIELD_BYTES;
}

/* A name or a word out of the stream, which nobody has checked. */
static json_t *safe_string(const uint8_t *bytes, size_t length)
{
	cleanup_free char *text = xcalloc(1, length + 1);
	for (size_t i = 0; i < length; i++)
		text[i] = bytes[i] >= 0x20 && bytes[i] <= 0x7e ? (char)bytes[i] : '?';
	return json_string(text);
}

static json_t *hex_bytes(const uint8_t *bytes, size_t length)
{
	static const char digits[] = "0123456789abcdef";
	cleanup_free char *text = xcalloc(1, 3 * length + 1);
	for (size_t i = 0; i < length; i++) {
		text[3 * i] = digits[bytes[i] >> 4];
		text[3 * i + 1] = digits[bytes[i] & 15];
		if (i + 1 < length)
			text[3 * i + 2] = ' ';
	}
	return json_string(text);
}

/* length: 1 to 8 */
static json_t *whole_number(const uint8_t *bytes, size_t length, bool is_signed)
{
	uint64_t value = 0;
	for (size_t i = 0; i < length; i++)
		value = value << 8 | bytes[i];
	const unsigned int spare_bits = (unsigned int)(64 - 8 * length);
	const int64_t with_sign = (int64_t)(value << spare_bits) >> spare_bits;
	const int width = (int)(2 * length);
	if (is_signed && with_sign < 0)
		return json_sprintf("0x%0*" PRIx64 " (%" PRId64 ")", width, value, with_sign);
	return json_sprintf("0x%0*" PRIx64, width, value);
}

static json_t *decode_structure(struct decoder *decoder, const json_t *description, unsigned int depth);

static json_t *decode_capability(struct decoder *decoder)
{
	const uint8_t *name;
	uint8_t length;
	if (bytes_take_name(&decoder->bytes, &name, &length))
		return safe_string(name, length);
	MISFIT(decoder, "it ends in the name of a capability");
	return NULL;
}

/* One value of this field; NULL is a failure. */
static json_t *decode_value(struct decoder *decoder, const json_t *field, const char *name, const char *type_name, unsigned int depth)
{
	const enum field_type type = field_type(type_name);
	const json_t *structure = json_object_get(field, "struct");
	const uint8_t *bytes;
	int64_t size = 0;
	if (++decoder->values > VALUES_MAX) {
		MISFIT(decoder, "more than %d values", VALUES_MAX);
		return NULL;
	}
	if (type == FIELD_STRUCTURE)
		return decode_structure(decoder, structure, depth + 1);
	if (type == FIELD_CAPABILITY)
		return decode_capability(decoder);
	if (json_get_integer(field, "size", 0, INT64_MAX, &size, decoder->e) < 0)
		return NULL;
	if (!bytes_take(&decoder->bytes, (size_t)size, &bytes)) {
		MISFIT(decoder, "'%s' has %" PRId64 " bytes, and %zu are left", name, size, bytes_left(&decoder->bytes));
		return NULL;
	}
	const bool is_number = (type == FIELD_SIGNED || type == FIELD_UNSIGNED) && size >= 1 && size <= INTEGER_MAX_BYTES;
	if (is_number)
		return whole_number(bytes, (size_t)size, type == FIELD_SIGNED);
	if (type == FIELD_BOOL && size == 1)
		return json_boolean(*bytes != 0);
	if (type == FIELD_NULL_POINTER && size == 1 && *bytes == NULL_POINTER_MARK)
		return json_string("nullptr");
	return hex_bytes(bytes, (size_t)size);
}

/* ---- structures ---- */

/* Takes value over. What has the name already becomes a list. */
static int add_value(json_t *object, const char *name, json_t *value)
{
	json_t *there = json_object_get(object, name);
	if (!there)
		return json_object_set_new(object, name, value);
	if (json_is_array(there))
		return json_array_append_new(there, value);
	return json_object_set_new(object, name, json_pack("[Oo]", there, value));
}

static int decode_field(struct decoder *decoder, const json_t *field, json_t *object, unsigned int depth)
{
	const char *name = NULL, *type = NULL;
	int64_t count = 1;
	if (json_get_string(field, "name", &name, decoder->e) < 0 || json_get_string(field, "type", &type, decoder->e) < 0 ||
	    json_get_integer_opt(field, "array_len", 0, VALUES_MAX, &count, decoder->e) < 0)
		return -1;
	for (int64_t i = 0; i < count; i++) {
		json_t *value = decode_value(decoder, field, name, type, depth);
		if (!value)
			return -1;
		if (add_value(object, name, value) < 0)
			return MISFIT(decoder, "a field whose name is no text");
	}
	return 0;
}

static int decode_subsection(struct decoder *decoder, const json_t *description, json_t *object, unsigned int depth)
{
	const char *wanted = NULL;
	const uint8_t *name = NULL;
	uint8_t mark = 0, length = 0;
	uint32_t version;
	if (json_get_string(description, "vmsd_name", &wanted, decoder->e) < 0)
		return -1;
	if (!bytes_take_u8(&decoder->bytes, &mark) || mark != STREAM_BYTE_SUBSECTION ||
	    !bytes_take_name(&decoder->bytes, &name, &length) || !bytes_take_u32(&decoder->bytes, &version) ||
	    length != strlen(wanted) || memcmp(name, wanted, length) != 0)
		return MISFIT(decoder, "the subsection '%s' is not there", wanted);
	json_t *value = decode_structure(decoder, description, depth + 1);
	return value ? json_object_set_new(object, wanted, value) : -1;
}

/* Fields, then subsections; NULL is a failure. */
static json_t *decode_structure(struct decoder *decoder, const json_t *description, unsigned int depth)
{
	json_t *fields = NULL, *subsections = NULL, *each;
	cleanup_json json_t *object = json_object();
	size_t i;
	if (depth > STRUCTURE_DEPTH_MAX) {
		MISFIT(decoder, "structures within structures, more than %d", STRUCTURE_DEPTH_MAX);
		return NULL;
	}
	if (json_get_array(description, "fields", &fields, decoder->e) < 0 ||
	    json_get_array_opt(description, "subsections", &subsections, decoder->e) < 0) {
		error_wrap(decoder->e, "the description of '%s'", decoder->device);
		return NULL;
	}
	json_array_foreach(fields, i, each)
		if (decode_field(decoder, each, object, depth) < 0)
			return NULL;
	json_array_foreach(subsections, i, each)
		if (decode_subsection(decoder, each, object, depth) < 0)
			return NULL;
	return take_ptr(object);
}

/* ---- sections ---- */

static const json_t *find_device(const json_t *devices, const char *name, uint32_t instance)
{
	const json_t *device;
	size_t i;
	json_array_foreach(devices, i, device) {
		const char *device_name = json_string_value(json_object_get(device, "name"));
		if (device_name && strcmp(device_name, name) == 0 &&
		    json_integer_value(json_object_get(device, "instance_id")) == (json_int_t)instance)
			return device;
	}
	return NULL;
}

/* A full section behind its first byte. */
static int decode_section(struct decoder *decoder, const json_t *devices, json_t *sections)
{
	char label[LABEL_SIZE];
	const uint8_t *name_bytes;
	uint8_t length, mark;
	uint32_t id, instance, version, footer_id;
	if (!bytes_take_u32(&decoder->bytes, &id) || !bytes_take_name(&decoder->bytes, &name_bytes, &length) ||
	    !bytes_take_u32(&decoder->bytes, &instance) || !bytes_take_u32(&decoder->bytes, &version))
		return MISFIT(decoder, "it ends in the head of a section");
	snprintf(decoder->device, sizeof(decoder->device), "%.*s", length, (const char *)name_bytes);
	const json_t *device = find_device(devices, decoder->device, instance);
	if (!device)
		return MISFIT(decoder, "the description does not have it");
	json_t *value = decode_structure(decoder, device, 0);
	if (!value)
		return -1;
	snprintf(label, sizeof(label), "%s (%u)", decoder->device, id);
	if (json_object_set_new(sections, label, value) < 0)
		return MISFIT(decoder, "a device whose name is no text");
	struct bytes ahead = decoder->bytes;
	if (!bytes_take_u8(&ahead, &mark) || mark != STREAM_FOOTER_MARK)
		return 0;
	if (!bytes_take_u32(&ahead, &footer_id) || footer_id != id)
		return MISFIT(decoder, "the section does not end where its fields do");
	decoder->bytes = ahead;
	return 0;
}

static int decode_sections(struct decoder *decoder, const json_t *devices, json_t *sections)
{
	for (;;) {
		const uint8_t *data;
		uint8_t kind;
		uint16_t command, length;
		if (!bytes_take_u8(&decoder->bytes, &kind))
			return MISFIT(decoder, "it has no end");
		switch (kind) {
		case STREAM_BYTE_EOF:
			return bytes_left(&decoder->bytes) == 0 ? 0 : MISFIT(decoder, "bytes behind its end");
		case STREAM_SECTION_FULL:
			if (decode_section(decoder, devices, sections) < 0)
				return -1;
			break;
		case STREAM_BYTE_COMMAND:
			if (!bytes_take_u16(&decoder->bytes, &command) || !bytes_take_u16(&decoder->bytes, &length) ||
			    !bytes_take(&decoder->bytes, length, &data))
				return MISFIT(decoder, "it ends in a command");
			break;
		default:
			return MISFIT(decoder, "neither a section nor a command begins with %02x", kind);
		}
	}
}

int device_state_decode(const uint8_t *state, size_t size_bytes, uint64_t offset, const json_t *description, json_t **ret,
			struct error **e)
{
	struct error *problem = NULL;
	struct decoder decoder = {.bytes = {.data = state, .size_bytes = size_bytes}, .offset = offset, .e = &problem};
	cleanup_json json_t *sections = json_object();
	json_t *devices = NULL;
	if (json_get_array(description, "devices", &devices, &problem) < 0 || decode_sections(&decoder, devices, sections) < 0) {
		problem->code = ERROR_DATA_STREAM; /* whatever a getter of the description called it */
		return error_move(e, problem);
	}
	*ret = take_ptr(sections);
	return 0;
}

/* Whether a description seems to begin here, and how long it calls itself. */
static bool is_frame(const uint8_t *stream, size_t size_bytes, size_t begin, uint32_t *ret_length)
{
	static const char first[] = "{\"";
	struct bytes frame = {.data = stream, .size_bytes = size_bytes, .at = begin};
	const uint8_t *json;
	uint8_t kind;
	return bytes_take_u8(&frame, &kind) && kind == STREAM_BYTE_DESCRIPTION && bytes_take_u32(&frame, ret_length) &&
	       bytes_take(&frame, strlen(first), &json) && memcmp(json, first, strlen(first)) == 0;
}

/* Its frame is a byte and its length, so it is the one whose length leads just to the stream's end. One that leads further is what
 * was left of a stream that was cut off. */
int device_state_description(const uint8_t *stream, size_t size_bytes, json_t **ret, size_t *ret_begins_at, struct error **e)
{
	const size_t frame_bytes = 1 + sizeof(uint32_t);
	for (size_t begin = size_bytes; begin > 0 && size_bytes - begin <= DEVICE_DESCRIPTION_MAX_BYTES; begin--) {
		uint32_t length;
		if (!is_frame(stream, size_bytes, begin, &length))
			continue;
		const size_t there = size_bytes - begin - frame_bytes;
		if (length > there)
			return error_set(e, ERROR_DATA_STREAM,
					 "the migration stream is cut off: of the description of the devices' state %zu of %u bytes are there",
					 there, length);
		if (length < there)
			continue;
		if (json_parse((const char *)stream + begin + frame_bytes, length, ret, e) < 0) {
			error_wrap(e, "the description of the devices' state");
			return -1;
		}
		*ret_begins_at = begin;
		return 0;
	}
	if (size_bytes > 0 && stream[size_bytes - 1] != STREAM_BYTE_EOF)
		return error_set(e, ERROR_DATA_STREAM, "the migration stream is cut off in the devices' state");
	return error_set(e, ERROR_NOT_FOUND, "the stream does not end with a description of the devices' state");
}
