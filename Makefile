# SPDX-License-Identifier: Apache-2.0
# The commands that people use; meson does the building. As root on Debian 12, each installs what it needs.

BUILD ?= build

.PHONY: build demo test test-quick test-slow test-postcopy test-faults test-faults-all soak test-model test-model-all packages install clean bench fuzz

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

# Post-copy cut in the middle CUTS (20) times at random moments, with restarted daemons in every second.
test-postcopy: build
	@FERRY_BUILD=$(abspath $(BUILD)) FERRY_POSTCOPY_CUTS=$(or $(CUTS),20) pytest -q -p no:cacheprovider tests/system/test_postcopy.py

# Every kill of a daemon and every lost message, at every moment of a migration; see tests/fault/README.md.
test-faults: build
	@FERRY_BUILD=$(abspath $(BUILD)) tests/fault/matrix --daemons

# Every cell of the matrix, an hour or two; goes on where the last run stopped, unless AGAIN=1.
test-faults-all: build
	@FERRY_BUILD=$(abspath $(BUILD)) tests/fault/matrix $(if $(AGAIN),--again)

# Four VMs on the move for SOAK_SECONDS (an hour), with faults drawn at random; SOAK_SEED=N draws the same ones again.
soak: build
	@FERRY_BUILD=$(abspath $(BUILD)) tests/fault/soak

# Every parser, two at a time, each for FUZZ_SECONDS; see tests/fuzz/README.md.
fuzz: packages
	@tests/fuzz/run --build $(BUILD)-fuzz --seconds $(or $(FUZZ_SECONDS),60)

# The protocol's models, checked by spin: every claim, and every mutilated model, which must fail. -all: wider bounds.
test-model: packages
	@BUILD=$(BUILD) tests/model/check.py

test-model-all: packages
	@BUILD=$(BUILD) tests/model/check.py --all

# Against `virsh migrate` on the same guests, links and minutes; see bench/README.md.
bench: build
	@tools/install-packages bench
	@FERRY_BUILD=$(abspath $(BUILD)) bench/compare --quick --json $(BUILD)/compare.json

install: build
	@meson install -C $(BUILD)

clean:
	rm -rf $(BUILD) $(BUILD)-clang $(BUILD)-asan $(BUILD)-fuzz
