# KvDB: build, run, test. `make help` lists the targets.

KVDB ?= target/release/kvdb
SHARDS ?= 8
SEEDS ?= 1000
FOR ?= 0
SECONDS ?= 600

COMMANDS ?= 300000

.PHONY: help build build-profiling run-cluster stop-cluster cluster-status wipe-data smoke-test test compat redis-suite redis-py-suite redis-programs deploy-check size-check settings-docs sim planted torture bench bench-criterion instructions verify fix

help:
	@echo "build           release build of kvdb to target/release/kvdb"
	@echo "build-profiling the same with debug information beside it, to target/profiling/kvdb and kvdb.dwp"
	@echo "run-cluster     3 coordinators, 3 nodes and a gateway as processes; state in data/, logs in logs/"
	@echo "stop-cluster    stop what this checkout started"
	@echo "cluster-status  what runs, and how it is"
	@echo "wipe-data       stop the cluster and remove its data and logs"
	@echo "smoke-test      put, get, scan and delete against the running cluster"
	@echo "test            everything that CI tests"
	@echo "compat          random commands to a real Redis and to a gateway, every answer compared: COMMANDS=300000, SEED=n"
	@echo "redis-suite     Redis's own tests against a gateway; needs Debian's source package of redis 7.0"
	@echo "redis-py-suite  redis-py's own tests of commands against a gateway; needs its source package"
	@echo "redis-programs  leaderboard, job queues, tags, sessions, RQ, Dramatiq and django-redis against a cluster whose node dies; needs PyPI"
	@echo "deploy-check    the files in deploy/, and the metrics, with promtool; needs Debian's package prometheus"
	@echo "size-check      the release binary has at most 30 MiB"
	@echo "settings-docs   writes docs/settings.md from the definitions of the flags"
	@echo "sim             simulated clusters under faults: SEEDS=1000 of them, FOR=900 seconds at least, or SEED=n again with its trace"
	@echo "planted         mutants (seeded bugs), and how many seeds it takes to catch each"
	@echo "torture         real processes killed, paused, cut off and starved under load, with a judge: SECONDS=600, SEED=n"
	@echo "bench           figures beside etcd and Redis, and which targets are met; QUICK=1 for a short run"
	@echo "bench-criterion times of the hot pieces alone"
	@echo "instructions    their instruction counts beside the recorded ones; needs valgrind"
	@echo "verify          formatting, lints and docs, without editing anything"
	@echo "fix             format and apply lint fixes"

build:
	cargo build --release --locked -p kvdb

build-profiling:
	cargo build --profile profiling --locked -p kvdb

run-cluster: build
	@KVDB_BIN=$(KVDB) SHARDS=$(SHARDS) scripts/cluster.sh start

stop-cluster:
	@scripts/cluster.sh stop

cluster-status:
	@KVDB_BIN=$(KVDB) scripts/cluster.sh status

wipe-data:
	@scripts/cluster.sh wipe

smoke-test:
	@KVDB_BIN=$(KVDB) scripts/smoke.sh

test:
	@scripts/test.sh

compat: build
	@KVDB_BIN=$(KVDB) COMMANDS=$(COMMANDS) SEED=$(SEED) scripts/redis_compat.sh

redis-suite: build
	@KVDB_BIN=$(KVDB) scripts/redis_suite.sh

redis-py-suite: build
	@KVDB_BIN=$(KVDB) scripts/redis_py_suite.sh

redis-programs: build
	@KVDB_BIN=$(KVDB) scripts/redis_programs.sh

deploy-check: build
	@KVDB_BIN=$(KVDB) scripts/deploy_check.sh

size-check: build
	@KVDB_BIN=$(KVDB) scripts/size_check.sh

settings-docs:
	@scripts/settings_docs.sh

sim:
	cargo build --release --locked -p kvdb-sim --features small-collections --bin kvdb-sim
	@cargo run --quiet --release --locked -p kvdb-sim --features small-collections --bin kvdb-sim -- $(if $(SEED),--seed $(SEED) --trace,--seeds $(SEEDS) --for $(FOR))

planted:
	cargo build --release --locked -p kvdb-sim --features planted --bin kvdb-planted
	@cargo run --quiet --release --locked -p kvdb-sim --features planted --bin kvdb-planted

torture: build
	@KVDB_BIN=$(KVDB) LENGTH=$(SECONDS) SEED=$(SEED) scripts/torture.sh

bench: build
	@KVDB_BIN=$(KVDB) QUICK=$(QUICK) scripts/bench.sh

bench-criterion:
	cargo bench --locked -p kvdb-bench

instructions:
	@scripts/instructions.sh

verify:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
	@scripts/licences.sh

fix:
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
