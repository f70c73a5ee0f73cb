# `make` lists the targets. Every target works in a bare clone: it first installs what is missing (ops/bootstrap.sh).
# Everything uses the release profile, so that libtorch's bindings are compiled once.

PREFIX   ?= $(HOME)/.local
CARGO    ?= cargo
BINARIES := arinar-data arinar-trainer arinar-sample arinar-launcher
ENV      := . ops/env.sh &&

.DEFAULT_GOAL := help
.PHONY: help bootstrap bootstrap-tests build build-tests install demo test check mutants bench clean
.SILENT:

help:
	echo "make demo       build the programs, then encode, train on two ranks and sample a small set of images (minutes)"
	echo "make test       build and run every test, and list all failures at the end"
	echo "make check      check formatting, clippy, documentation and shell scripts, with warnings denied"
	echo "make mutants    list the changes of the code that no test detects (hours; GROUP=launcher: minutes)"
	echo "make build      build the programs in target/release"
	echo "make install    install the programs in PREFIX/bin and the configurations in PREFIX/share/arinar (PREFIX=$(PREFIX))"
	echo "make bench      run the benchmarks, and show how to run those of the official code"
	echo "make bootstrap  install what is needed to build; the other targets do this automatically"
	echo "make clean      remove the build and the output of the demo"

bootstrap:
	ops/bootstrap.sh

bootstrap-tests:
	ops/bootstrap.sh --tests

build: bootstrap
	echo "== build"
	$(ENV) $(CARGO) build --release --locked --workspace $(addprefix --bin ,$(BINARIES))

# The programs, and the stand-ins that the tests and benchmarks start.
build-tests: bootstrap-tests
	echo "== build"
	$(ENV) $(CARGO) build --release --locked --workspace --bins

install: build
	echo "== install to $(PREFIX)"
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/share/arinar/configs"
	install $(addprefix target/release/,$(BINARIES)) "$(DESTDIR)$(PREFIX)/bin"
	install -m 644 configs/*.yaml "$(DESTDIR)$(PREFIX)/share/arinar/configs"

demo: build
	ops/demo.sh

test: build-tests
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

bench: build-tests
	echo "== bench"
	$(ENV) $(CARGO) bench --locked --workspace --bench arinar_b --bench records --bench checkpoint --bench cold_store --bench launcher

clean:
	$(CARGO) clean --quiet
	ops/demo.sh clean
