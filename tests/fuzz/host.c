/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A host in memory; see host.h. This file's http_client_request(), with fakes/fake_http_client.c, takes the place of src/net/http_client.c, and some functions
 * that would reach out of the process or wait are replaced by the linker (--wrap, see meson.build): nothing is sent
 * anywhere, no port is opened, and waits are short.
 */
#include "host.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/xalloc.h"
#include "fakes/fake_driver.h"
#include "fakes/fake_http_client.h"
#include "fuzz.h"
#include "host/recovery.h"
#include "migration/data_port.h"
#include "migration/destination.h"
#include "migration/rates.h"
#include "net/socket.h"

fuzz_answer_function *fuzz_answer;

/* ---- in place of the network ---- */

int http_client_request(struct http_client *client, const char *method, const char *path, const json_t *body,
			int64_t timeout_ms, json_t **ret_body, struct error **e)
{
	(void)timeout_ms;
	json_t *answer = NULL;
	client->answered = false;
	if (client->interrupted && client->interrupted(client->interrupted_user))
		return error_set(e, ERROR_CANCELLED, "cancelled");
	if (!fuzz_answer)
		return error_set(e, ERROR_DAEMON_UNREACHABLE, "%s does not answer", client->name);
	if (fuzz_answer(client->name, method, path, body, &answer, &client->answered, e) < 0)
		return -1;
	client->answered = true;
	if (ret_body)
		*ret_body = answer;
	else
		json_decref(answer);
	return 0;
}

/* Declared for the linker: --wrap=X sends calls of X to __wrap_X, whose own calls of __real_X are the real ones. */
int __wrap_socket_connect_tcp(const char *address, uint16_t port, int64_t timeout_ms, int *ret_fd, struct error **e);
int __wrap_data_port_reserve(struct migration_host *host, struct data_port *ret, struct error **e);
void __wrap_data_port_release(struct data_port *port);
bool __real_migration_host_wait_stopping(struct migration_host *host, int64_t timeout_ms);
bool __wrap_migration_host_wait_stopping(struct migration_host *host, int64_t timeout_ms);

/* Somebody listens there, and says nothing that would fit. */
int __wrap_socket_connect_tcp(const char *address, uint16_t port, int64_t timeout_ms, int *ret_fd, struct error **e)
{
	int fds[2];
	(void)timeout_ms;
	if (port % 2 == 1)
		return error_set(e, ERROR_SYSTEM, "cannot connect to %s port %u", address, port);
	REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
	/* What the host of the corpus would say. */
	REQUIRE(write(fds[1], FUZZ_JOURNAL, RANDOM_ID_SIZE - 1) == RANDOM_ID_SIZE - 1);
	close(fds[1]);
	*ret_fd = fds[0];
	return 0;
}

int __wrap_data_port_reserve(struct migration_host *host, struct data_port *ret, struct error **e)
{
	(void)host;
	(void)e;
	*ret = (struct data_port){.fd = -1, .port = 49152};
	memcpy(ret->token, FUZZ_JOURNAL, RANDOM_ID_SIZE);
	return 0;
}

void __wrap_data_port_release(struct data_port *port)
{
	(void)port;
}

bool __wrap_migration_host_wait_stopping(struct migration_host *host, int64_t timeout_ms)
{
	return __real_migration_host_wait_stopping(host, timeout_ms / 1000 + 1);
}

/* ---- the host ---- */

static void *loop_main(void *user)
{
	REQUIRE(loop_run(user, NULL) == 0);
	return NULL;
}

void fuzz_host_open(struct fuzz_host *fuzz)
{
	*fuzz = (struct fuzz_host){0};
	REQUIRE(database_open(":memory:", &fuzz->db, NULL) == 0);
	/* The tables as ferryd makes them, before rows are put into them: by opening and closing everything once. */
	struct inventory_options options = {.db = fuzz->db, .host_name = FUZZ_HOST, .driver = &vm_driver_fake};
	struct inventory *inventory = NULL;
	struct journal *journal = NULL;
	REQUIRE(inventory_new(&options, &inventory, NULL) == 0);
	REQUIRE(journal_open(fuzz->db, inventory, &journal, NULL) == 0);
	journal_free(journal);
	inventory_free(inventory);
	REQUIRE(database_run(fuzz->db, NULL, "UPDATE journal SET id = ?", "s", FUZZ_JOURNAL) == 1);
	fake_world_reset();
}

int fuzz_host_load(struct fuzz_host *fuzz, struct error **e)
{
	static const struct tls_files files; /* their paths are not read here */
	struct migration_host *host = &fuzz->host;
	*host = (struct migration_host){
		.name = FUZZ_HOST,
		.data_address = "198.18.0.2",
		.data_port_min = 49152,
		.data_port_max = 49215,
		.trusted = "",
		.times = FAKE_TIMES,
	};
	migration_host_init(host);
	host->migrations = migration_list_new();
	REQUIRE(loop_new(&host->loop, NULL) == 0);
	pthread_create(&fuzz->loop_thread, NULL, loop_main, host->loop);
	fuzz->driver_host = (struct driver_host){
		.loop = host->loop, .run_folder = FUZZ_HOST, .log_folder = "/nonexistent", .accelerator = "tcg"};
	const struct inventory_options options = {
		.db = fuzz->db, .host_name = FUZZ_HOST, .driver = &vm_driver_fake, .driver_host = &fuzz->driver_host};
	if (inventory_new(&options, &host->inventory, e) < 0)
		return -1;
	REQUIRE(journal_open(fuzz->db, host->inventory, &host->journal, NULL) == 0);
	REQUIRE(rates_open(fuzz->db, &host->rates, NULL) == 0);
	REQUIRE(peers_new(fuzz->db, &files, &host->peers, NULL) == 0);
	REQUIRE(peers_add(host->peers, FUZZ_PEER, "198.18.0.1", 4710, NULL) >= 0);
	REQUIRE(peers_add(host->peers, FUZZ_THIRD, "198.18.0.3", 4710, NULL) >= 0);
	return recovery_run(host, e);
}

void fuzz_host_close(struct fuzz_host *fuzz)
{
	struct migration_host *host = &fuzz->host;
	migration_host_stop_workers(host);
	destination_stop(host);
	migration_list_free(host->migrations);
	inventory_free(host->inventory);
	if (host->peers)
		peers_free(host->peers);
	journal_free(host->journal);
	rates_free(host->rates);
	loop_quit(host->loop);
	pthread_join(fuzz->loop_thread, NULL);
	loop_free(host->loop);
	database_close(fuzz->db);
	pthread_mutex_destroy(&host->workers.mutex);
	pthread_cond_destroy(&host->workers.changed);
	REQUIRE(!fake_world_breach());
	fake_world_reset();
}

void fuzz_host_start_vm(struct fuzz_host *fuzz)
{
	cleanup_json json_t *view = NULL;
	cleanup_json json_t *definition = json_pack("{ss ss si}", "name", FUZZ_VM, "uuid", FUZZ_VM_UUID, "memory_mib", 1);
	struct vm *vm = NULL;
	REQUIRE(inventory_define(fuzz->host.inventory, definition, &view, NULL) == 0);
	REQUIRE(inventory_lock(fuzz->host.inventory, FUZZ_VM, "start", &vm, NULL) == 0);
	REQUIRE(vm_start(fuzz->host.inventory, vm, NULL) == 0);
	inventory_unlock(fuzz->host.inventory, vm);
}
