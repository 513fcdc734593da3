# `make demo` shows a container at work, `make run` starts a daemon on private paths, `make test` runs the tests,
# `make check` the linters and the contract.

PYTHON ?= python3
VENV ?= .venv
RUN ?= .run
BIN := $(VENV)/bin

.PHONY: demo run test check stubs docs bench clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/.ready
	@BIN=$(BIN) contrib/demo/run

run: $(VENV)/.ready
	@mkdir -p $(RUN)
	@echo "starting moored; in another terminal: $(BIN)/moorctl -a $(CURDIR)/$(RUN)/moored.sock plugins ls"
	$(BIN)/moored --config contrib/examples/run.toml --root $(CURDIR)/$(RUN)/root --state $(CURDIR)/$(RUN)/state \
		--address $(CURDIR)/$(RUN)/moored.sock

test: $(VENV)/.ready
	$(BIN)/pytest $(ARGS)

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python contrib/dev/protogen.py --check
	$(BIN)/python contrib/dev/configdoc.py --check
	$(BIN)/python contrib/dev/syncgen.py --check
	$(BIN)/python contrib/dev/contract.py

stubs: $(VENV)/.ready
	$(BIN)/python contrib/dev/protogen.py
	$(BIN)/python contrib/dev/syncgen.py

docs: $(VENV)/.ready
	$(BIN)/python contrib/dev/configdoc.py

bench: $(VENV)/.ready
	$(BIN)/python -m contrib.bench

clean:
	rm -rf $(VENV) $(RUN) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
