# make demo: set up and run the main job. make test: set up and run every check.
PYTHON ?= python3
BIN := .venv/bin

# Containers often turn bytecode off; then each of the hundreds of processes of the tests compiles our modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo serve web test check thorough ui docs bench clean

# Editable, so that a change of the code needs no new set-up; a change of the dependencies does.
.venv/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@echo "Installing PyTorch, MLflow and the other packages into .venv: about 3 GB on Linux, which takes minutes"
	$(BIN)/pip install --disable-pip-version-check -e '.[dev]'
	touch $@

demo: .venv/.ready
	@echo "Training on the embedded sample, registering, serving and classifying a photo: three to ten minutes"
	@MLFLOW_LOGGING_LEVEL=WARNING PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/mlflow run . -e demo --env-manager local --experiment-name cifar10-sample

# The champion, until Ctrl-C: http://127.0.0.1:8000; on another port: make serve PORT=8001
serve: .venv/.ready
	$(BIN)/cifar-mlflow serve $(if $(PORT),--port $(PORT))

# The champion as a page of static files, until Ctrl-C: http://127.0.0.1:8080, or PORT
web: .venv/.ready
	$(BIN)/python -m serving.web $(if $(PORT),--port $(PORT))

# Lint, types and the quick tests: two minutes on two cores.
check: .venv/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check --no-cache .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2 --dist worksteal -m 'not slow and not thorough'

# Ray and Spark for the tests of `classify --engine`; Spark needs Java, too.
.venv/.engines: .venv/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[ray,spark]'
	touch $@

# Three processes for two cores: the tests wait a quarter of their time.
test: .venv/.engines
	$(BIN)/ruff format --check .
	$(BIN)/ruff check --no-cache .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pytest -n 3 --dist worksteal

# Tests too long for CI: variants, trainings on several processes that are killed, and all export formats.
thorough: .venv/.engines
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[tensorflow,litert,executorch]'
	$(BIN)/pytest -n 2 --dist worksteal -m thorough
	$(BIN)/pytest -n 2 --dist worksteal tests/export

# Runs and models, until Ctrl-C; on another port: make ui PORT=5001
ui: .venv/.ready
	$(BIN)/python -m cifar_mlflow.tracking.ui $(if $(PORT),--port $(PORT))

# docs/reference.md and the table of models in docs/training.md, from the code and the results in benchmarks/.
docs: .venv/.ready
	$(BIN)/python -m docs.generate

bench: .venv/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m benchmarks

# A third peer for `python -m benchmarks service`.
.venv-mlserver:
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet --disable-pip-version-check mlserver==1.7.1 mlserver-mlflow==1.7.1 "uvloop<0.22" torch torchvision

clean:
	rm -rf .venv .venv-mlserver build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
