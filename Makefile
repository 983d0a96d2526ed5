# Commands for those who work on build. `make demo` and `make test` need
# nothing but Go and, as root on Debian, a package mirror.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
BINARY  := bin/build
FUZZTIME ?= 20s

.PHONY: all build test race fuzz lint bench bench-scale bench-doc pgo bench-go bench-startup conformance demo clean

all: build

# The linker writes through a mapping, which leaves the file in the kernel's cache
# page by page. Written at once it is there in huge pages, where the file system can,
# and starts in two thirds of the time.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o $(BINARY).linked ./cmd/build
	dd if=$(BINARY).linked of=$(BINARY).written bs=2M status=none
	chmod +x $(BINARY).written
	mv $(BINARY).written $(BINARY)
	rm $(BINARY).linked

# All tests. As root it first installs what they need from Debian's packages;
# with CI=true a skipped test fails.
test:
	.ci/packages
	$(GO) vet ./...
	$(GO) run ./internal/noskip -timeout 20m ./...

race:
	.ci/packages
	CGO_ENABLED=1 $(GO) run ./internal/noskip -race -timeout 40m ./...

# Each fuzz target for FUZZTIME. Making an input of interest smaller, for which
# Go takes a minute unless told otherwise, would be all of that.
fuzz:
	@set -e; for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x $$p; \
	  done; \
	done

lint:
	test -z "$$(gofmt -l . | tee /dev/stderr)"
	$(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 run ./...

# build and the other builders of this machine, side by side: see
# docs/benchmarks.md. BENCHFLAGS are those that `go run ./internal/bench -h`
# lists; results go to bin/bench.
BENCHFLAGS ?=
BENCH = $(GO) run ./internal/bench -build $(abspath $(BINARY)) -out bin/bench
bench: build
	.ci/packages busybox-static docker-registry
	$(BENCH) $(BENCHFLAGS)

# How time and memory grow with files, bytes, steps, builds and layers.
bench-scale: build
	.ci/packages busybox-static docker-registry
	$(BENCH) -scale $(BENCHFLAGS)

# Puts what the two found into the documentation.
bench-doc:
	$(GO) run ./internal/bench -from bin/bench/results.json -doc docs/benchmarks.md
	$(GO) run ./internal/bench -from bin/bench/scale.json -doc docs/benchmarks.md

# What the compiler optimises for: where time goes in workloads that keep the
# processors busy. It goes by cmd/build/default.pgo whenever it builds the program.
pgo: build
	.ci/packages busybox-static docker-registry
	$(GO) run ./internal/bench -build $(abspath $(BINARY)) -builders build -limits=false -n 3 -w w1,w2,w3,w5a+oci,w5b,w6,w6+zstd,w7b,w9 -profile cmd/build/default.pgo $(BENCHFLAGS)

# The benchmarks in the packages' tests.
bench-go:
	$(GO) test -run '^$$' -bench . -benchmem ./...

# How long `build version` takes beside a Go program that does nothing.
bench-startup:
	$(GO) test -run '^$$' -bench Startup -count 3 ./cmd/build

# Dockerfiles whose results are known, from CONFORMANCE_DIR.
conformance: build
	testdata/conformance.sh $(abspath $(BINARY))

# Builds the binary, builds testdata/super-server with it, and runs that.
demo: build
	testdata/demo.sh $(abspath $(BINARY))

clean:
	rm -rf bin

# Generated Dockerfiles, built in several ways that should agree: for DURATION,
# or with FUZZARGS, such as FUZZARGS="-seed 7 -n 100"; -h lists them.
DURATION ?= 1m
.PHONY: fuzz-dockerfile
fuzz-dockerfile: build
	$(GO) run ./internal/dockerfuzz -build $(abspath $(BINARY)) -duration $(DURATION) $(FUZZARGS)

# Builds that are killed, fail in a system call, find their files damaged or are
# many at once, and what the next one makes of it: KILLS times, and each system
# call and kind of file. The seed is printed; SEED=n begins with the same again.
KILLS ?= 1000
SEED  ?= 0
.PHONY: torture
torture:
	.ci/packages
	$(GO) test -count 1 -timeout 3h -v ./internal/torture -kills $(KILLS) -faults 0 -damages 0 -seed $(SEED)
