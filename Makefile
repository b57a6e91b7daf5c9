# camrt: make demo | test | test-slow | lint | format | bench | bench-record | bench-server | gpu-check | coverage-table | synthetic-benchmark | clients | clients-toolchains | sanitize | wheel | train | clean
# Every target builds what it needs in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(shell find camrt/kernels/native proto -type f)
CPP_SOURCES := $(shell find camrt/kernels tests/kernels -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh')
DEMO_OUTPUT := demo_output
# Tests of processes, deadlines and load: one after the other, all others side by side.
TIMED_TESTS := tests/bench tests/cli tests/client tests/end_to_end tests/server
BENCH_THREADS ?= 2
BENCH_OUTPUT := build/bench
BENCH_BUNDLES := build/bench-bundles
BENCH_SIZES := 128 224 320 448
CLIENTS_PACKAGES := cmake g++ pkg-config libgrpc++-dev protobuf-compiler protobuf-compiler-grpc golang-go \
  golang-google-grpc-dev golang-github-golang-protobuf-1-5-dev protoc-gen-go protoc-gen-go-grpc
BENCHMARK_IMAGES ?= 180
BENCHMARK_OUTPUT := build/benchmark

.PHONY: demo test test-slow lint format bench bench-record bench-server gpu-check coverage-table synthetic-benchmark clients clients-toolchains sanitize wheel train clean

demo: $(VENV)/.runtime
	@clients/demo.sh $(BIN) $(DEMO_OUTPUT)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n auto --dist loadfile $(TIMED_TESTS:%=--ignore %)
	$(BIN)/python -m pytest -q -m "not slow" $(TIMED_TESTS)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m slow --timeout 3600

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(CPP_SOURCES)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_SOURCES)

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.bench_explain --threads $(BENCH_THREADS) --rounds 12 --warmup 1 --out $(BENCH_OUTPUT)
	$(BIN)/python -m benchmarks.bench_explain --threads $(BENCH_THREADS) --batch 16 --rounds 2 --warmup 0 --name peers_16 \
	  --models resnet18 resnet50 mobilenet_v3_small efficientnet_b0 --lines pytorch_grad_cam pytorch_grad_cam_best torchcam_best --out $(BENCH_OUTPUT)
	$(BIN)/python -m benchmarks.bench_evaluation --threads $(BENCH_THREADS) --rounds 10 --peer-rounds 2 \
	  --json $(BENCH_OUTPUT)/bench_evaluation.json
	$(BIN)/python -m benchmarks.bench_peer_servers --threads $(BENCH_THREADS) --turns 2 --seconds 6 --out $(BENCH_OUTPUT)
	$(BIN)/python -m benchmarks.make_bundles $(BENCH_BUNDLES) --model resnet18 --sizes $(BENCH_SIZES)
	$(BIN)/camrt bench latency $(BENCH_BUNDLES)/resnet18_224.bundle.onnx --threads $(BENCH_THREADS) \
	  --batch 1,4,16 --classes 5 --layers 1,2,3 --rounds 10 --out $(BENCH_OUTPUT)
	$(BIN)/camrt bench sizes $(BENCH_SIZES:%=$(BENCH_BUNDLES)/resnet18_%.bundle.onnx) --threads $(BENCH_THREADS) \
	  --out $(BENCH_OUTPUT)
	$(BIN)/camrt bench server $(BENCH_BUNDLES)/resnet18_224.bundle.onnx --threads $(BENCH_THREADS) --seconds 3 \
	  --out $(BENCH_OUTPUT)
	$(BIN)/camrt bench kernels --threads $(BENCH_THREADS) --out $(BENCH_OUTPUT)

# What the last `make bench` gave becomes what docs/performance.md shows.
bench-record: $(VENV)/.dev
	cp $(BENCH_OUTPUT)/*.json $(BENCH_OUTPUT)/*.md $(BENCH_OUTPUT)/*.png benchmarks/results
	$(BIN)/python -m benchmarks.tables benchmarks/results --write docs/performance.md docs/gpu.md README.md
	$(BIN)/python -m benchmarks.history $(BENCH_OUTPUT) benchmarks/results/history.jsonl

# Takes the Python of the machine, with what is installed there, and no network.
gpu-check:
	$(PYTHON) -c "import camrt.kernels._native" 2> /dev/null || $(PYTHON) -m pip install --quiet --no-index --no-deps \
	  --no-build-isolation --config-settings cmake.define.CAMRT_STUBS=OFF --editable .
	$(PYTHON) -m benchmarks.gpu_check --strict --json benchmarks/results/gpu-$(or $(NAME),local).json $(GPU_CHECK)

bench-server: $(VENV)/.dev
	$(BIN)/python -m benchmarks.bench_server --threads $(BENCH_THREADS)

coverage-table: $(VENV)/.dev
	$(BIN)/python -W ignore -m tests.coverage.report --out docs/coverage.md

clients: $(VENV)/.runtime
	CAMRT_PYTHON=$(BIN)/python clients/run_clients.sh $(CLIENTS_FLAGS)

clients-toolchains:
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(CLIENTS_PACKAGES)

synthetic-benchmark: $(VENV)/.dev
	$(BIN)/camrt evaluate --synthetic --images $(BENCHMARK_IMAGES) --name shapes_cnn --out $(BENCHMARK_OUTPUT)/shapes_cnn
	$(BIN)/python training/make_bundle.py --source training/plain_cnn.onnx --out $(BENCHMARK_OUTPUT)/plain_cnn.onnx
	$(BIN)/camrt evaluate $(BENCHMARK_OUTPUT)/plain_cnn.onnx --synthetic --images $(BENCHMARK_IMAGES) \
	  --name plain_cnn --out $(BENCHMARK_OUTPUT)/plain_cnn

sanitize: $(VENV)/.dev
	tests/kernels/run_sanitized.sh $(BIN)/python

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --outdir dist .

train: $(VENV)/.dev
	$(BIN)/python training/train_shapes.py --out build/shapes

clean:
	rm -rf build dist $(DEMO_OUTPUT) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(BUILD_INPUTS) | $(VENV)/bin/python
	$(PIP_INSTALL) --editable '.[server]'
	@touch $@

$(VENV)/.dev: $(BUILD_INPUTS) | $(VENV)/bin/python
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.runtime
