# The verbs. Every one of them works on a clean clone: it makes .venv and installs first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# torch's CPU build where there is no NVIDIA GPU; with one, pip chooses.
CONSTRAINT := $(if $(shell command -v nvidia-smi 2>/dev/null),,-c constraints.txt)

.PHONY: install serve test fuzz check fmt bench sweep data train image docs loadtest drills cluster-drill dashboards

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINT) -e '.[worker,embedded,dev]'
	@touch $@

serve: install       ## the whole service on this machine, with the embedded model
	$(BIN)/twigserve serve $(ARGS)

# Much of a test is waiting, for processes that start and leases that run out: a worker a core, and four at most.
# Threads of one that wait must not spin on the core of another.
test: install        ## every test
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

fuzz: install        ## 10,000 broken pictures of each format; FUZZ_SEED=n for others
	FUZZ_COUNT=10000 $(BIN)/python -m pytest tests/service/test_image_fuzz.py -s

check: install       ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install       ## our engine against transformers' generate, on the embedded model
	$(BIN)/twigserve bench --json

sweep: install       ## docs/performance.md: decode speed over batch, R-bar, drafts, prompt and answer
	$(BIN)/python -m model.bench.sweep $(ARGS)

ICON_SETS := noto twemoji fluent-emoji-flat openmoji emojione

data/sprites.npy:    # the scene art: five open emoji sets, rendered
	$(MAKE) install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINT) -e '.[train]'
	for set in $(ICON_SETS); do \
	  mkdir -p data/icons/$$set && npm pack --silent --pack-destination data/icons @iconify-json/$$set \
	  | xargs -I{} tar xzf data/icons/{} -C data/icons/$$set --strip-components=1 || exit 1; \
	done
	$(BIN)/python -m model.scenes.art data/icons data/sprites.npy

data: data/sprites.npy

# Two processes of one thread share each step where there is no GPU.
TRAIN := $(BIN)/python -m torch.distributed.run --standalone \
         --nproc-per-node $(if $(shell command -v nvidia-smi 2>/dev/null),1,2) -m service.cli train

# glibc: a step's large tensors stay in the heap; mapped anew each time, a step takes half as long again.
train: export MALLOC_MMAP_MAX_ := 0
train: export MALLOC_TRIM_THRESHOLD_ := 100000000000
train: data          ## the embedded model from nothing: about three and a half hours on two cores, resumable
	$(TRAIN) base
	$(TRAIN) twig
	$(BIN)/twigserve evaluate --model-card model/weights/README.md

docs: install        ## the guide, strictly: build/site
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINT) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

image:               ## gateway and CPU worker images, with buildah, podman or docker
	docker/build gateway worker-cpu

loadtest: install    ## two minutes of load against `twigserve serve`; ARGS="--scenario ramp --url http://…"
	$(BIN)/python -m loadtest $(ARGS)

drills: install      ## the service broken in every way we know, one JSON line each; ARGS="kill_gateway --list"
	$(BIN)/python -m loadtest.drills $(ARGS)

cluster-drill: install ## several hosts on one machine, rolled and cut under load; needs root. ARGS="--engine embedded"
	$(BIN)/python -m loadtest.cluster $(ARGS)

dashboards: install  ## the dashboards' JSON and the Kubernetes rules, from k8s/monitoring/
	$(BIN)/python -m k8s.monitoring
