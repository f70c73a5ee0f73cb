# `make` lists the targets. Every recipe works in a bare clone: it first installs what is missing (ops/bootstrap.sh).
# One profile, release, is used everywhere, so that libtorch's bindings are compiled once.

PREFIX   ?= $(HOME)/.local
CARGO    ?= cargo
BINARIES := arinar-data arinar-trainer arinar-sample arinar-launcher
ENV      := . ops/env.sh &&

.DEFAULT_GOAL := help
.PHONY: help bootstrap bootstrap-tests build install demo test check mutants bench clean
.SILENT:

help:
	echo "make demo       build, then encode, train on two ranks and sample a small set of pictures (minutes)"
	echo "make test       build and run every test; lists all failures at the end"
	echo "make check      formatting, clippy and docs, with warnings denied"
	echo "make mutants    mutation testing: list the changes of the code that no test notices (hours; GROUP=launcher: minutes)"
	echo "make build      the programs, in target/release"
	echo "make install    the programs to PREFIX/bin and the configurations to PREFIX/share/arinar (PREFIX=$(PREFIX))"
	echo "make bench      time this machine, and how to time the official code beside it"
	echo "make bootstrap  install what building needs; the other targets do it by themselves"
	echo "make clean      remove what was built and what the demo made"

bootstrap:
	ops/bootstrap.sh

bootstrap-tests:
	ops/bootstrap.sh --tests

build: bootstrap
	echo "== build"
	$(ENV) $(CARGO) build --release --locked --workspace --bins

install: build
	echo "== install to $(PREFIX)"
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/share/arinar/configs"
	install $(addprefix target/release/,$(BINARIES)) "$(DESTDIR)$(PREFIX)/bin"
	install -m 644 configs/*.yaml "$(DESTDIR)$(PREFIX)/share/arinar/configs"

demo: build
	ops/demo.sh

# The tests run the programs in target/release, so these are built first.
test: bootstrap-tests build
	ops/test.sh

check: bootstrap-tests
	echo "== cargo fmt"
	$(CARGO) fmt --all --check
	echo "== cargo clippy"
	$(ENV) $(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	echo "== cargo doc"
	$(ENV) RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --workspace --no-deps
	echo "== shellcheck"
	shellcheck ops/*.sh ops/slurm/*.sbatch tests/ops/*.sh tests/ops/processors/*.sh .ci/run

mutants: bootstrap
	ops/mutants.sh $(GROUP)

bench: build
	echo "== bench"
	$(ENV) $(CARGO) bench --locked --workspace --bench arinar_b --bench records --bench checkpoint --bench cold_store --bench launcher

clean:
	$(CARGO) clean --quiet
	ops/demo.sh clean
