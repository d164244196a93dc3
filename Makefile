# SPDX-License-Identifier: Apache-2.0
# The commands that people use; meson does the building. As root on Debian 12, each installs what it needs.

BUILD ?= build

.PHONY: build demo test test-quick test-slow packages install clean bench fuzz

build: packages
	@test -f $(BUILD)/build.ninja || meson setup $(BUILD) >/dev/null
	@ninja -C $(BUILD)

packages:
	@tools/install-packages

# Two hosts on this machine, a real guest moved there and back; the results in build/demo/report.json.
demo: build
	@FERRY_BUILD=$(abspath $(BUILD)) lab/demo

# All that CI runs: layering, both compilers, units, system tests, units and one migration under ASan and UBSan.
test: packages
	@BUILD=$(BUILD) tools/run-tests

# While working: units and layering only.
test-quick: packages
	@BUILD=$(BUILD) tools/run-tests --quick

# The long suites: every system test, 50 migrations in a row.
test-slow: packages
	@BUILD=$(BUILD) tools/run-tests --slow

# Every parser, two at a time, each for FUZZ_SECONDS; see tests/fuzz/README.md.
fuzz: packages
	@tests/fuzz/run --build $(BUILD)-fuzz --seconds $(or $(FUZZ_SECONDS),60)

# Against `virsh migrate` on the same guests, links and minutes; see bench/README.md.
bench: build
	@tools/install-packages bench
	@FERRY_BUILD=$(abspath $(BUILD)) bench/compare --quick --json $(BUILD)/compare.json

install: build
	@meson install -C $(BUILD)

clean:
	rm -rf $(BUILD) $(BUILD)-clang $(BUILD)-asan $(BUILD)-fuzz
